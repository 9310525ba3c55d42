"""SigLIP's vision transformer, read out at a hidden layer. Parameter names are Hugging Face's `SiglipVisionModel`'s.

Oracle: transformers' `SiglipVisionModel` (tests/models/test_vision.py).
"""

from pathlib import Path

from torch import Tensor, nn

from llava.config import SiglipVisionConfig
from llava.models.vision.transformer import VitLayers, published_weights


class _Embeddings(nn.Module):
    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight
        return out


class SiglipVisionEncoder(nn.Module):
    """Pixels (N, 3, size, size) to features (N, num_tokens, feature_size). Source: Zhai et al. 2023.

    No CLS token, so 729 tokens at 384 pixels; the pooling head and the post-layernorm are not part of it.
    """

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.feature_size = config.hidden_size
        self.num_tokens = (config.image_size // config.patch_size) ** 2
        self.embeddings = _Embeddings(config)
        self.encoder = VitLayers(config)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.embeddings(pixels))
        return out

    def state_dict_from(self, path: Path) -> dict[str, Tensor]:
        """Read a safetensors file of Hugging Face's `SiglipModel` or `SiglipVisionModel`."""
        return published_weights(self, path)
