"""How weights lie in memory, applied from outside to a model that is to generate."""

import torch

from llava.models.decoder import Decoder

_WIDE = ("lm_head.weight", "gate_proj.weight", "up_proj.weight")


@torch.no_grad()
def lay_out_for_cpu(decoder: Decoder) -> None:
    """Store the decoder's widest matrices column by column; values and shapes stay.

    For one token on a CPU, a matrix with many more rows than columns is read faster so (benchmarks/chat.py: decode).
    """
    wide = (*_WIDE, "embed_tokens.weight") if decoder.lm_head is None else _WIDE
    for name, parameter in decoder.named_parameters():
        if name.endswith(wide):
            parameter.data = parameter.data.t().contiguous().t()
