"""The whole model: vision encoder -> projector -> decoder.

The length of the sequence is fixed before the model runs: the processor has put one placeholder id for every image
feature. Here they are counted and written over, nothing else.
"""

import torch
from torch import Tensor, nn

from llava.config import LlavaConfig
from llava.models.cache import KVCache
from llava.models.decoder import Decoder
from llava.models.projectors import build_projector
from llava.models.vision import build_vision_encoder

IMAGE_TOKEN = -200  # the placeholder: one for every image feature. Negative, so that no vocabulary is resized


class LlavaModel(nn.Module):
    """LLaVA (Liu et al. 2023): image features become tokens of the LLM."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = build_vision_encoder(config.vision)
        self.projector = build_projector(config.projector, self.vision.feature_size, config.llm.hidden_size)
        self.llm = Decoder(config.llm)

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        device: torch.device = self.llm.embed_tokens.weight.device
        return device

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, size, size) to image tokens (N, T, D)."""
        tokens: Tensor = self.projector(self.vision(pixels))
        return tokens

    def embed(self, ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Look up `ids` (B, T) and write `image_tokens` (N, D), in order, over the placeholders. Returns (B, T, D).

        Raises ValueError when placeholders and image tokens differ in number.
        """
        is_image = ids == IMAGE_TOKEN
        count = int(is_image.sum())
        if count != len(image_tokens):
            raise ValueError(f"{count} image placeholders, but {len(image_tokens)} image tokens")
        x: Tensor = self.llm.embed_tokens(ids.masked_fill(is_image, 0))
        # Also without any image: then the projector still takes part in the graph, with a gradient of zero.
        return x.masked_scatter(is_image[..., None], image_tokens.to(x.dtype))

    def forward(
        self, ids: Tensor, image_tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Ids (B, T) with placeholders and their image tokens (N, D) to hidden states (B, T, D)."""
        hidden: Tensor = self.llm(self.embed(ids, image_tokens), cache, positions)
        return hidden
