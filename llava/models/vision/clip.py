"""CLIP's vision transformer, read out at a hidden layer. Parameter names are Hugging Face's `CLIPVisionModel`'s.

Oracle: transformers' `CLIPVisionModel` (tests/models/test_vision.py).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from llava.config import ClipVisionConfig
from llava.models.vision.transformer import VitLayers, published_weights


class _Embeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(patches + 1, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat((cls, patches), dim=1) + self.position_embedding.weight


class ClipVisionEncoder(nn.Module):
    """Pixels (N, 3, size, size) to features (N, num_tokens, feature_size). Source: Radford et al. 2021."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.feature_size = config.hidden_size
        self.drop_cls = config.feature_select == "patch"
        self.num_tokens = (config.image_size // config.patch_size) ** 2 + (not self.drop_cls)
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)  # sic: the published tensors' name
        self.encoder = VitLayers(config)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return x[:, 1:] if self.drop_cls else x

    def state_dict_from(self, path: Path) -> dict[str, Tensor]:
        """Read a safetensors file of Hugging Face's `CLIPModel` or `CLIPVisionModel`."""
        return published_weights(self, path)
