"""Vision encoders behind one small interface; one encoder a file.

To add one: write its file with a class that satisfies `VisionEncoder`, give it a config in `llava.config`,
and name both in `build_vision_encoder`.
"""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from llava.config import ClipVisionConfig, SiglipVisionConfig, VisionConfig
from llava.models.vision.clip import ClipVisionEncoder
from llava.models.vision.efficientnet_lite import EfficientNetLite
from llava.models.vision.siglip import SiglipVisionEncoder


class VisionEncoder(Protocol):
    """Pixels (N, 3, size, size), normalised, to features (N, num_tokens, feature_size)."""

    num_tokens: int
    feature_size: int

    def __call__(self, pixels: Tensor) -> Tensor: ...

    def state_dict_from(self, path: Path) -> dict[str, Tensor]:
        """The encoder's parameters, read from the file in which its authors publish them."""
        ...


def build_vision_encoder(config: VisionConfig) -> ClipVisionEncoder | SiglipVisionEncoder | EfficientNetLite:
    """The encoder that `config.type` names, with uninitialised weights."""
    if isinstance(config, ClipVisionConfig):
        return ClipVisionEncoder(config)
    return SiglipVisionEncoder(config) if isinstance(config, SiglipVisionConfig) else EfficientNetLite(config)
