"""The whole model: vision encoder -> projector -> decoder.

The length of the sequence is fixed before the model runs: the processor has put one placeholder id for every image
feature. Here they are counted and written over, nothing else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llava.config import LlavaConfig
from llava.media.tiling import FlatLayout, Layout, VideoLayout
from llava.models.cache import CacheBatch
from llava.models.decoder import Decoder
from llava.models.packing import pack_image, pack_video, pool_frames
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
        newline = torch.zeros(config.llm.hidden_size) if config.has_newline else None
        self.image_newline = None if newline is None else nn.Parameter(newline)

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        device: torch.device = self.llm.embed_tokens.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: float32 on a CPU, however weights are stored."""
        weight = self.llm.norm.weight
        return weight.dtype

    def encode(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """The views (N, 3, size, size) of pictures and videos, in order, to all of their tokens (sum, D)."""
        return self.project(self.vision(pixels), layouts)

    def project(self, features: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """As `encode`, from the vision encoder's features (N, T, Dv)."""
        if all(isinstance(layout, FlatLayout) for layout in layouts):  # also none: the projector stays in the graph
            tokens: Tensor = self.projector(features).flatten(0, 1)
            return tokens
        pieces = torch.split(features, [layout.views for layout in layouts])
        return torch.cat([self._tokens(piece, layout) for piece, layout in zip(pieces, layouts, strict=True)])

    def _tokens(self, views: Tensor, layout: Layout) -> Tensor:
        if not isinstance(layout, VideoLayout):
            return pack_image(self.projector(views), layout, self.image_newline)
        if layout.config.where == "before":
            frames = self.projector(pool_frames(views, layout))
        else:
            frames = pool_frames(self.projector(views), layout)
        return pack_video(frames, layout, self.image_newline)

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

    def forward(self, ids: Tensor, image_tokens: Tensor, batch: CacheBatch | None = None) -> Tensor:
        """Ids (B, T) with placeholders and their image tokens (N, D) to hidden states (B, T, D)."""
        hidden: Tensor = self.llm(self.embed(ids, image_tokens), batch)
        return hidden
