"""Colours are named where people would agree on one."""

import PIL.Image
import PIL.ImageDraw
import pytest

from llava.pictures.colours import colour_of, has_colour_word


def disc(colour: str) -> PIL.Image.Image:
    picture = PIL.Image.new("RGBA", (200, 120))
    PIL.ImageDraw.Draw(picture).ellipse((60, 20, 160, 110), fill=colour)
    return picture


@pytest.mark.parametrize(
    ("fill", "colour"),
    [
        ("red", "red"), ("#DD2E44", "red"), ("#BE1931", "red"), ("#F4900C", "orange"), ("#FFCC4D", "yellow"),
        ("yellow", "yellow"), ("#77B255", "green"), ("#A6D388", "green"), ("#3E721D", "green"), ("#5DADEC", "blue"),
        ("blue", "blue"), ("#226699", "blue"), ("#88C9F9", "light blue"), ("#AA8ED6", "purple"), ("#744EAA", "purple"),
        ("#F4ABBA", "pink"), ("#EA596E", "pink"), ("#C1694F", "brown"), ("#662113", "brown"), ("#BF6952", "brown"),
        ("black", "black"), ("#292F33", "black"), ("white", "white"), ("#99AAB5", "gray"), ("gray", "gray"),
        ("#D99E82", None), ("#FFD983", None), ("turquoise", None), ("#E1E8ED", None),
    ],
)  # fmt: skip
def test_fills_of_twitters_emoji_and_plain_colours(fill: str, colour: str | None) -> None:
    assert colour_of(disc(fill)) == colour


def test_two_halves_have_no_colour_and_lines_are_not_white() -> None:
    half = disc("red")
    PIL.ImageDraw.Draw(half).rectangle((60, 20, 110, 110), fill="blue")
    assert colour_of(half) is None
    drawn = disc("white")
    PIL.ImageDraw.Draw(drawn).ellipse((60, 20, 160, 110), outline="black", width=6)
    assert colour_of(drawn) is None
    assert colour_of(PIL.Image.new("RGBA", (50, 50))) is None


def test_names_that_say_a_colour() -> None:
    assert has_colour_word("green apple") and not has_colour_word("greenhouse")
