"""The geometry of dynamic resolution, against the original's and against transformers'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.config import ImageConfig, TilingConfig
from llava.errors import LlavaError
from llava.media.images import views_of
from llava.media.tiling import FlatLayout, TiledLayout, best_resolution, image_layout, parse_pinpoints
from llava.models.packing import pack_image

ORACLES = Path(__file__).parents[1] / "oracles"
PUBLISHED = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
SETTINGS: list[dict[str, Any]] = json.loads((ORACLES / "anyres_geometry.json").read_text())
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@pytest.mark.parametrize("setting", SETTINGS, ids=["1.6", "6x6"])
def test_geometry_equals_the_originals(setting: dict[str, Any]) -> None:
    tiling = TilingConfig(pinpoints=tuple(map(tuple, setting["pinpoints_wh"])))
    size, side = setting["image_size"], setting["image_size"] // setting["patch_size"]
    for case in setting["cases"]:
        layout = image_layout(tuple(case["size"]), tiling, size, side**2)
        assert isinstance(layout, TiledLayout)
        assert best_resolution(tuple(case["size"]), tiling.pinpoints) == tuple(case["best"])
        assert [layout.columns, layout.rows] == case["grid_wh"]
        assert list(layout.plane) == case["unpadded_rows_cols"]
        assert layout.num_tokens == case["tokens"]
    assert len(setting["cases"]) > 60


def test_pixels_equal_the_originals() -> None:
    oracle = np.load(ORACLES / "pixels.npz")
    pinpoints = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
    config = ImageConfig(size=56, tiling=TilingConfig(pinpoints=pinpoints))
    names = [name for name in oracle.files if name.startswith("image_")]
    for name in names:
        views = views_of(PIL.Image.fromarray(oracle[name]), config)
        assert torch.equal(views, torch.from_numpy(oracle[name.replace("image", "anyres")]))
    assert names


@given(
    sizes,
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6),
    st.sampled_from(["flat", "spatial", "spatial_unpad"]),
    st.sampled_from([None, 1, 2, 4, 9]),
    st.sampled_from(["original", "hf"]),
)
def test_tokens_counted_are_the_features_produced(
    size: tuple[int, int], grids: list[tuple[int, int]], merge: Any, max_tiles: int | None, rounding: Any
) -> None:
    pinpoints = tuple((x * 28, y * 28) for x, y in grids)
    tiling = TilingConfig(pinpoints=pinpoints, merge=merge, max_tiles=max_tiles, rounding=rounding)
    layout = image_layout(size, tiling, 28, 9)
    tokens = pack_image(torch.randn(layout.views, 9, 5), layout, torch.zeros(5))
    assert tokens.shape == (layout.num_tokens, 5)


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_views_counted_are_the_views_made(size: tuple[int, int]) -> None:
    config = ImageConfig(size=28, tiling=TilingConfig(pinpoints=((28, 56), (56, 28), (84, 84))))
    views = views_of(PIL.Image.new("RGB", size), config)
    assert views.shape == (image_layout(size, config.tiling, 28, 4).views, 3, 28, 28)


def test_the_order_of_hf_gives_other_grids_where_small_pictures_tie() -> None:
    original = TilingConfig(pinpoints=PUBLISHED)
    hf = TilingConfig(pinpoints=tuple((w, h) for h, w in PUBLISHED), rounding="hf")
    counts = {
        size: [image_layout(size, tiling, 336, 576).num_tokens for tiling in (original, hf)]
        for size in [(161, 184), (200, 300), (300, 200), (640, 480)]
    }
    assert counts == {
        (161, 184): [1276, 1128],
        (200, 300): [1476, 984],
        (300, 200): [976, 1464],
        (640, 480): [2340] * 2,
    }


def test_without_tiling_every_picture_takes_as_many() -> None:
    assert image_layout((5, 999), None, 336, 576) == FlatLayout(1, 576)


def test_features_that_are_no_square_cannot_be_joined() -> None:
    with pytest.raises(LlavaError, match="need square features, an image has 577"):
        image_layout((5, 9), TilingConfig(pinpoints=PUBLISHED), 336, 577)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[336, 672], [672, 336]], ((336, 672), (672, 336))),
        ("[[336, 672], [672, 336]]", ((336, 672), (672, 336))),
        ("(1x2),(2x1)", ((336, 672), (672, 336))),
        ("(1x1),...,(2x2)", ((336, 336), (336, 672), (672, 336), (672, 672))),
    ],
)
def test_pinpoints_are_read_as_lists_text_and_ranges(value: object, expected: object) -> None:
    assert parse_pinpoints(value, 336) == expected


@pytest.mark.parametrize("value", [None, "", [], "336", [[336]], [[10, 10]], [["a", "b"]], [[336, 336], 5], "(0x1)"])
def test_pinpoints_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(LlavaError, match="image_grid_pinpoints"):
        parse_pinpoints(value, 336)
