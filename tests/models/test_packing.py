"""Tiles and videos: cutting, scaling, pooling and newline tokens against their definitions, feature by feature."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from llava.config import TilingConfig, VideoConfig
from llava.media.tiling import TiledLayout, image_layout, video_layout
from llava.models.packing import pack_image, pack_video, pool_frames

CONFIGS = [
    VideoConfig(stride=stride, pool=pool, where="after", newline=newline)
    for stride in (1, 2, 3)
    for pool in ("average", "max", "bilinear")
    for newline in ("none", "row", "frame", "one_token")
]


def scaled_by_hand(plane: Tensor, height: int, width: int) -> list[list[Tensor]]:
    """Rows of a plane (H, W, D), scaled bilinearly without smoothing."""

    def place(i: int, new: int, old: int) -> tuple[int, int, float]:  # a centre's two neighbours, the second's weight
        centre = max((i + 0.5) * old / new - 0.5, 0.0)
        return int(centre), min(int(centre) + 1, old - 1), centre - int(centre)

    rows = []
    for y0, y1, v in (place(y, height, plane.shape[0]) for y in range(height)):
        line = [(1 - v) * a + v * b for a, b in zip(plane[y0], plane[y1], strict=True)]
        places = (place(x, width, plane.shape[1]) for x in range(width))
        rows.append([(1 - u) * line[x0] + u * line[x1] for x0, x1, u in places])
    return rows


def pooled_by_hand(frame: Tensor, config: VideoConfig) -> list[list[Tensor]]:
    """Rows of pooled features of one frame (side, side, D)."""
    side, stride = len(frame), config.stride
    if config.pool != "bilinear":
        cells = side // stride
        parts = [
            [frame[y * stride : (y + 1) * stride, x * stride : (x + 1) * stride].flatten(0, 1) for x in range(cells)]
            for y in range(cells)
        ]
        return [[p.mean(0) if config.pool == "average" else p.amax(0) for p in row] for row in parts]
    cells = math.ceil(side / stride)
    return scaled_by_hand(frame, cells, cells)


@pytest.mark.parametrize("max_tiles", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("size", [(60, 28), (61, 200), (84, 84), (300, 90)])
@pytest.mark.parametrize("merge", ["spatial", "spatial_unpad"])
def test_a_tiled_picture_becomes_the_tokens_of_its_plane(
    merge: Literal["spatial", "spatial_unpad"], size: tuple[int, int], max_tiles: int | None
) -> None:
    """`anyres_max_N` scales the plane down where it has more than 1.1**2 times the features of N tiles."""
    side, pinpoints = 4, tuple((x * 28, y * 28) for x in range(1, 4) for y in range(1, 4))
    tiling = TilingConfig(pinpoints=pinpoints, merge=merge, max_tiles=max_tiles)
    layout = image_layout(size, tiling, 28, side * side)
    assert isinstance(layout, TiledLayout)
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(layout.views, side * side, 5, generator=generator)
    newline = torch.randn(5, generator=generator)
    rows = [
        torch.cat([views[1 + r * layout.columns + c].view(side, side, 5)[y] for c in range(layout.columns)])
        for r in range(layout.rows)
        for y in range(side)
    ]
    plane = torch.stack(rows)  # (H, W, D)
    expected = list(views[0])
    if merge == "spatial_unpad":
        height, width = plane.shape[:2]
        if size[0] / size[1] > width / height:
            cut = (height - int(size[1] * width / size[0])) // 2
            plane = plane[cut : height - cut]
        else:
            cut = (width - int(size[0] * height / size[1])) // 2
            plane = plane[:, cut : width - cut]
        height, width = plane.shape[:2]
        times = math.sqrt(height * width / (max_tiles * side**2)) if max_tiles else 1.0
        lines = scaled_by_hand(plane, int(height // times), int(width // times)) if times > 1.1 else list(plane)
        for line in lines:
            expected += [*line, newline]
    else:
        expected += list(plane.flatten(0, 1))
    tokens = pack_image(views, layout, newline)
    assert len(tokens) == layout.num_tokens == len(expected)
    assert torch.allclose(tokens, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.stride}-{c.pool}-{c.newline}")
@pytest.mark.parametrize("side", [6, 7])
def test_a_video_becomes_the_tokens_that_its_config_says(config: VideoConfig, side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    features = torch.randn(3, side * side, 5, generator=generator)
    newline = torch.randn(5, generator=generator)
    layout = video_layout(3, config, side * side)
    expected: list[Tensor] = []
    for frame in features:
        for row in pooled_by_hand(frame.view(side, side, 5), config):
            expected += [*row, newline] if config.newline == "row" else row
        expected += [newline] if config.newline == "frame" else []
    expected += [newline] if config.newline == "one_token" else []
    tokens = pack_video(pool_frames(features, layout), layout, newline)
    assert len(tokens) == layout.num_tokens == len(expected)
    assert torch.allclose(tokens, torch.stack(expected), atol=1e-6)


def test_siglips_27_features_become_13_or_14() -> None:
    """As in LLaVA-NeXT: averaging drops the last row and column, bilinear keeps them."""
    sides = [
        video_layout(1, VideoConfig(pool=pool, where="after"), 27 * 27).pooled_side for pool in ("average", "bilinear")
    ]
    assert sides == [13, 14]


def test_a_newline_that_the_model_lacks_is_told() -> None:
    layout = video_layout(1, VideoConfig(newline="frame"), 16)
    with pytest.raises(ValueError, match="asks for newline tokens, the model has none"):
        pack_video(torch.zeros(1, 4, 5), layout, None)
