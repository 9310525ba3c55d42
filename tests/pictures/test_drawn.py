"""Drawn pictures show what they are said to show."""

import random

import numpy as np
import PIL.Image
import pytest

from llava.eval.benchmarks.easy_vqa import COLOURS, SHAPES
from llava.pictures import drawn


def nearest_colours(picture: PIL.Image.Image) -> np.ndarray:
    """For each pixel the index of the nearest of the drawn colours, or -1 where none is near."""
    table = np.array(list(drawn._RGB.values()))
    distances = np.abs(np.asarray(picture).astype(int)[:, :, None] - table).max(-1)
    return np.where(distances.min(-1) <= 25, distances.argmin(-1), -1)


def test_shapes_have_the_colour_they_are_said_to_have() -> None:
    seen = set()
    for seed in range(60):
        picture, form, colour = drawn.shape(random.Random(seed))
        seen |= {form, colour}
        assert (nearest_colours(picture) == list(drawn._RGB).index(colour)).sum() > 0.01 * picture.width**2
    assert seen == {*SHAPES, *COLOURS}


@pytest.mark.parametrize("seed", range(30))
def test_bars_have_the_colours_and_heights_they_are_said_to_have(seed: int) -> None:
    chart = drawn.chart(random.Random(seed))
    found = nearest_colours(chart.picture)
    places, heights = [], []
    for colour in chart.colours:
        _, columns = np.nonzero(found == list(drawn._RGB).index(colour))
        tall = np.bincount(columns).max()  # of its longest column: the axes are thinner than a bar
        places.append(float(np.median(columns)))
        heights.append(int(tall))
    assert places == sorted(places)
    assert np.argsort(heights).tolist() == np.argsort(chart.heights).tolist()
    assert chart.colours[int(np.argmax(heights))] == chart.tallest
    assert chart.colours[int(np.argmin(heights))] == chart.shortest


def test_numbers_and_words_fit_into_the_picture() -> None:
    assert all(0 <= drawn.digits(random.Random(seed))[1] < 100 for seed in range(20))
    words = set()
    for seed in range(40):
        picture, word = drawn.word(random.Random(seed))
        words.add(word)
        ink = np.asarray(picture.convert("L")) < 95
        assert ink.sum() > 100
        assert not ink[:, [0, -1]].any(), word  # nothing is cut off at the sides
    assert len(words) > 20 and words <= set(drawn.WORDS)
