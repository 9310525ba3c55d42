"""Videos: pooling and newline tokens against their definitions, feature by feature."""

import math

import pytest
import torch
from torch import Tensor

from llava.config import VideoConfig
from llava.media.tiling import video_layout
from llava.models.packing import pack_video, pool_frames

CONFIGS = [
    VideoConfig(stride=stride, pool=pool, where="after", newline=newline)
    for stride in (1, 2, 3)
    for pool in ("average", "max", "bilinear")
    for newline in ("none", "row", "frame", "one_token")
]


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

    def place(i: int) -> tuple[int, int, float]:  # the two neighbours of a cell's centre, and the weight of the second
        centre = max((i + 0.5) * side / cells - 0.5, 0.0)
        return int(centre), min(int(centre) + 1, side - 1), centre - int(centre)

    rows = []
    for y0, y1, v in map(place, range(cells)):
        line = [(1 - v) * frame[y0, x] + v * frame[y1, x] for x in range(side)]
        rows.append([(1 - u) * line[x0] + u * line[x1] for x0, x1, u in map(place, range(cells))])
    return rows


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
