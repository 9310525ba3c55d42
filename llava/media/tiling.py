"""How pictures and videos become views for the encoder, and what is left of the views' features.

Dynamic resolution ("anyres", LLaVA 1.6) cuts a picture into tiles; a video is a row of frames.

Pure functions of sizes. The same layout tells the processor how many tokens a picture takes, and the model which
features to keep; so they cannot differ. Sizes are (width, height) everywhere.
Source: haotian-liu/LLaVA llava/mm_utils.py and llava_arch.py (1.6); LLaVA-VL/LLaVA-NeXT for ranges and `anyres_max_N`;
where Hugging Face transformers differs (`models/llava_next`), the config says which to follow.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava.config import TilingConfig, VideoConfig
from llava.errors import LlavaError

Size = tuple[int, int]


@dataclass(frozen=True)
class FlatLayout:
    """Views whose features all become tokens, one view after the other."""

    views: int
    tokens_per_view: int

    @property
    def num_tokens(self) -> int:
        return self.views * self.tokens_per_view


@dataclass(frozen=True)
class TiledLayout:
    """The base view's features, then those of a grid of tiles, joined to one plane, cropped and perhaps scaled down.

    columns, rows: tiles across and down. side: features along a tile's edge.
    crop: (top, bottom, left, right) of the plane that is kept, in features.
    scaled: (height, width) to which it is then reduced, or None.
    newline: whether every row ends with the newline token.
    """

    columns: int
    rows: int
    side: int
    crop: tuple[int, int, int, int]
    scaled: tuple[int, int] | None
    newline: bool

    @property
    def views(self) -> int:
        """Pictures that the encoder sees: the base view and the tiles."""
        return 1 + self.columns * self.rows

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width, in features, of what is kept of the tiles."""
        top, bottom, left, right = self.crop
        return self.scaled or (bottom - top, right - left)

    @property
    def num_tokens(self) -> int:
        height, width = self.plane
        return self.side**2 + height * (width + self.newline)


@dataclass(frozen=True)
class VideoLayout:
    """Frames of side x side features each, pooled, with newline tokens where `config` wants them."""

    frames: int
    side: int
    config: VideoConfig

    @property
    def views(self) -> int:
        """Pictures that the encoder sees."""
        return self.frames

    @property
    def pooled_side(self) -> int:
        """Features along the edge of a pooled frame."""
        stride = self.config.stride
        return math.ceil(self.side / stride) if self.config.pool == "bilinear" else self.side // stride

    @property
    def num_tokens(self) -> int:
        newlines = {"none": 0, "row": self.frames * self.pooled_side, "frame": self.frames, "one_token": 1}
        return self.frames * self.pooled_side**2 + newlines[self.config.newline]


ImageLayout = FlatLayout | TiledLayout
Layout = ImageLayout | VideoLayout


def video_layout(frames: int, config: VideoConfig, tokens_per_view: int) -> VideoLayout:
    """The layout of a video of so many frames. Raises LlavaError where the features of a frame are no square."""
    return VideoLayout(frames, _side(tokens_per_view), config)


def image_layout(size: Size, tiling: TilingConfig | None, view_size: int, tokens_per_view: int) -> ImageLayout:
    """How a picture of `size` becomes views of `view_size` pixels a side, and these tokens.

    Raises LlavaError where the features of a view are no square, but a plane of them is asked for.
    """
    if tiling is None:
        return FlatLayout(1, tokens_per_view)
    best = best_resolution(size, tiling.pinpoints)
    columns, rows = best[0] // view_size, best[1] // view_size
    if tiling.merge == "flat":
        return FlatLayout(1 + columns * rows, tokens_per_view)
    side = _side(tokens_per_view)
    plane = (columns * side, rows * side)
    if tiling.merge == "spatial":
        return TiledLayout(columns, rows, side, (0, plane[1], 0, plane[0]), None, newline=False)
    crop = unpadded(size, plane, tiling.rounding)
    height, width = crop[1] - crop[0], crop[3] - crop[2]
    scaled = None
    if tiling.max_tiles is not None:
        ratio = math.sqrt(height * width / (tiling.max_tiles * side**2))
        if ratio > 1.1:  # the original's threshold
            scaled = (max(1, int(height // ratio)), max(1, int(width // ratio)))
    return TiledLayout(columns, rows, side, crop, scaled, newline=True)


def _side(tokens_per_view: int) -> int:
    side = math.isqrt(tokens_per_view)
    if side**2 != tokens_per_view:
        raise LlavaError(f"tiles and videos need square features, an image has {tokens_per_view}")
    return side


def best_resolution(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The resolution that keeps most of the picture's pixels, then wastes least; the first of those that tie."""
    width, height = size

    def rank(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -(resolution[0] * resolution[1] - kept)

    return max(pinpoints, key=rank)


def padded_size(size: Size, resolution: Size) -> Size:
    """The size to which a picture is resized to fit into `resolution`, its aspect ratio kept."""
    across, down = resolution[0] / size[0], resolution[1] / size[1]
    if across < down:
        return resolution[0], min(math.ceil(size[1] * across), resolution[1])
    return min(math.ceil(size[0] * down), resolution[0]), resolution[1]


def unpadded(size: Size, plane: Size, rounding: str) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a plane of features without those that show only padding.

    rounding: `original` cuts a length down; `hf` first rounds it to seven decimals.
    """
    width, height = plane
    if size[0] / size[1] > width / height:
        kept = _cut_down(size[1] * (width / size[0]), rounding)
        padding = (height - kept) // 2
        return padding, height - padding, 0, width
    kept = _cut_down(size[0] * (height / size[1]), rounding)
    padding = (width - kept) // 2
    return 0, height, padding, width - padding


def _cut_down(length: float, rounding: str) -> int:
    return int(length) if rounding == "original" else int(round(length, 7))


def parse_pinpoints(value: object, view_size: int) -> tuple[Size, ...]:
    """Resolutions as the original's configs write them: a list of (width, height), such a list as text, or a range.

    `"(1x1),...,(6x6)"` is every grid of tiles between the two; `"(1x2),(2x1)"` is just these. Raises LlavaError.
    """
    if isinstance(value, str) and "x" in value:
        grids = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", value)]
        if "..." in value and len(grids) == 2:
            (first_x, first_y), (last_x, last_y) = grids
            grids = [(x, y) for x in range(first_x, last_x + 1) for y in range(first_y, last_y + 1)]
        pinpoints = [(x * view_size, y * view_size) for x, y in grids]
    elif isinstance(value, str):
        pinpoints = [(int(a), int(b)) for a, b in re.findall(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*[)\]]", value)]
    elif isinstance(value, list | tuple):
        pinpoints = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
    else:
        pinpoints = []
    good = [pair for pair in pinpoints if len(pair) == 2 and all(isinstance(n, int) and n >= view_size for n in pair)]
    if not good or len(good) != len(pinpoints):
        raise LlavaError(f"image_grid_pinpoints {value!r}: expected pairs of at least {view_size} pixels, or a range")
    return tuple(good)
