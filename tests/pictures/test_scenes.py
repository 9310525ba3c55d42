"""Composed pictures say truly where their things are."""

import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from llava.pictures.catalogue import Catalogue, Entry, related
from llava.pictures.scenes import SIDE, Placed, background, larger, scene, single, where, worn


def entry(name: str, also: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> Entry:
    return Entry(f"{name}.png", "test", name, also, None, above, None, "train")


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        PIL.Image.new("RGBA", (100, 60), (*colour, 255)).save(tmp_path / f"{name}.png")
    return Catalogue(tmp_path, [entry("red"), entry("blue")])


def test_things_stand_whole_where_the_scene_says(catalogue: Catalogue) -> None:
    red, blue = catalogue.entries
    for seed in range(20):
        picture, placed = scene(catalogue, [red, blue, blue], random.Random(seed))
        pixels = np.asarray(picture).astype(int)
        mask = (pixels[..., 0] > 250) & (pixels[..., 1] < 5) & (pixels[..., 2] < 5)
        rows, columns = np.nonzero(mask)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a whole rectangle: nothing hides it
        assert abs(columns.mean() / SIDE - placed[0].x) < 0.01 and abs(rows.mean() / SIDE - placed[0].y) < 0.01
        assert placed[0].size == pytest.approx(len(rows) ** 0.5 / SIDE)


def test_a_single_thing_is_plain_or_varied_and_the_same_for_the_same_seed(catalogue: Catalogue) -> None:
    red = catalogue.entries[0]
    plain = single(catalogue, red, random.Random(1), vary=False)
    assert plain.size == (SIDE, SIDE) and plain.getpixel((0, 0)) == (255, 255, 255)
    one, same, other = (single(catalogue, red, random.Random(seed)).tobytes() for seed in (1, 1, 2))
    assert one == same != other


def test_backgrounds_are_white_light_or_where_asked_for_dark() -> None:
    corners = [background(random.Random(seed), dark=0.5).getpixel((0, 0)) for seed in range(60)]
    kinds = {"white" if min(c) == 255 else "dark" if max(c) < 128 else "light" for c in corners}
    assert kinds == {"white", "dark", "light"}
    assert all(np.asarray(background(random.Random(seed)).convert("L")).mean() > 100 for seed in range(60))


def test_worn_pictures_are_black_grey_or_blurred(catalogue: Catalogue) -> None:
    kinds = set()
    for seed in range(40):
        pixels = np.asarray(worn(catalogue, catalogue.entries[0], random.Random(seed))).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        grey = bool((pixels.max(-1) == pixels.min(-1)).all())
        black = bool((pixels.max(-1) == 0).mean() > 0.1)
        kinds.add("grey" if grey and not black else "black" if black else "coloured")
    assert kinds == {"grey", "black", "coloured"}


def test_a_thing_larger_than_the_frame_fills_it_or_is_cut_off(catalogue: Catalogue) -> None:
    shares = [
        (np.asarray(single(catalogue, catalogue.entries[0], random.Random(seed)))[..., 0] > 150).mean()
        for seed in range(60)
    ]
    assert max(shares) > 0.55  # 100 x 60 at the frame's width is 0.6 of it


def test_where_one_thing_is_seen_from_another() -> None:
    middle = Placed(entry("a"), 0.5, 0.5, 0.3, 0.3)
    places = {(0.1, 0.5): "left", (0.9, 0.45): "right", (0.5, 0.1): "above", (0.4, 0.9): "below"}
    assert all(where(Placed(entry("b"), x, y, 0.3, 0.3), middle) == side for (x, y), side in places.items())
    assert where(Placed(entry("b"), 0.9, 0.9, 0.3, 0.3), middle) is None  # neither axis is clear


def test_only_what_is_clearly_larger_is_larger(catalogue: Catalogue) -> None:
    small, middle, large = (Placed(entry("a"), 0.5, 0.5, size, size) for size in (0.2, 0.25, 0.3))
    assert larger(large, small) and not larger(small, large) and not larger(large, middle)
    sizes = [thing.size for seed in range(60) for thing in scene(catalogue, catalogue.entries, random.Random(seed))[1]]
    varied = [thing.size for seed in range(60)
              for thing in scene(catalogue, catalogue.entries, random.Random(seed), least=0.35)[1]]  # fmt: skip
    assert min(varied) < 0.6 * min(sizes) and max(varied) == pytest.approx(max(sizes), rel=0.05)


def test_things_of_one_kind_are_related() -> None:
    dog, poodle, cat = entry("dog", (), (2, 1)), entry("poodle", (), (3, 2, 1)), entry("cat", ("tom",), (4, 1))
    assert related(dog, poodle) and related(poodle, dog)
    assert not related(dog, cat)
    assert related(cat, entry("tom")) and related(entry("guide dog"), dog)
