"""Projectors: image features (N, T, Dv) to tokens of the LLM (N, T, D). Parameter names are the original's.

Source: LLaVA 1.0 (`linear`) and 1.5 (`mlp2x_gelu`), haotian-liu/LLaVA llava/model/multimodal_projector/builder.py.
"""

import re

from torch import nn

from llava.errors import LlavaError


def build_projector(name: str, in_features: int, out_features: int) -> nn.Module:
    """The projector called `linear` or `mlpNx_gelu`: N linear layers with GELU between them.

    Raises LlavaError for any other name.
    """
    if name == "linear":
        return nn.Linear(in_features, out_features)
    if match := re.fullmatch(r"mlp([1-9]\d?)x_gelu", name):
        layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
        for _ in range(1, int(match[1])):
            layers += [nn.GELU(), nn.Linear(out_features, out_features)]
        return nn.Sequential(*layers)
    raise LlavaError(f"unknown projector '{name}'; choose 'linear' or 'mlpNx_gelu' (for example mlp2x_gelu)")
