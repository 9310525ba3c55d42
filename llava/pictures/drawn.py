"""Pictures that need no catalogue: a coloured shape, a number, a word, or a bar chart, of any size and place."""

import math
import random
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from llava.eval.benchmarks.easy_vqa import COLOURS, SHAPES
from llava.pictures.scenes import SIDE, background

_RGB = {
    "black": (15, 15, 15), "blue": (40, 70, 220), "brown": (130, 80, 40), "gray": (130, 130, 130),
    "green": (40, 160, 60), "red": (220, 30, 40), "teal": (0, 140, 140), "yellow": (245, 215, 40),
}  # fmt: skip
# Short ones that stand on signs, doors and buttons; a model that sees 224 pixels cannot spell
WORDS = (
    "stop", "exit", "open", "shut", "push", "pull", "sale", "free", "stay", "wait", "yes", "no", "hello", "bye",
    "love", "help", "fire", "water", "milk", "bread", "coffee", "tea", "cat", "dog", "fish", "bird", "bus", "taxi",
    "train", "car", "book", "news", "sun", "moon", "star", "red", "blue", "green", "black", "white", "north",
    "south", "east", "west", "up", "down", "left", "right", "one", "two", "three", "start", "end", "play", "menu",
    "shop", "bank", "hotel", "park", "school", "home", "zoo",
)  # fmt: skip
_FINER = 3  # drawn so much larger, for smooth edges


def shape(rng: random.Random) -> tuple[PIL.Image.Image, str, str]:
    """A picture, its shape and its colour, in easy-VQA's words."""
    form, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    canvas = background(rng, plain=0.7).resize((SIDE * _FINER,) * 2)
    draw = PIL.ImageDraw.Draw(canvas)
    fill = tuple(max(0, min(255, part + rng.randint(-20, 20))) for part in _RGB[colour])
    radius = rng.uniform(0.1, 0.42) * SIDE * _FINER
    x, y = (rng.uniform(radius, SIDE * _FINER - radius) for _ in range(2))
    if form == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon(_corners(form, x, y, radius, rng), fill=fill)
    return canvas.resize((SIDE, SIDE), PIL.Image.Resampling.BOX), form, colour


def _corners(form: str, x: float, y: float, radius: float, rng: random.Random) -> list[tuple[float, float]]:
    if form == "triangle":
        start = rng.uniform(0, 2 * math.pi)
        angles = [start + third * 2 * math.pi / 3 + rng.uniform(-0.35, 0.35) for third in range(3)]
    else:
        half, start = rng.uniform(0.4, 1.2), rng.choice((0.0, 0.0, rng.uniform(0, math.pi)))
        angles = [start + angle for angle in (half, math.pi - half, math.pi + half, -half)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def digits(rng: random.Random) -> tuple[PIL.Image.Image, int]:
    """A picture of a number from 0 to 99, and the number."""
    number = rng.choice((rng.randint(0, 9), rng.randint(10, 99)))
    return _written(str(number), rng.randint(60, 170), rng), number


def word(rng: random.Random) -> tuple[PIL.Image.Image, str]:
    """A picture of one of WORDS in capitals, small letters or with a capital, and the word in small letters."""
    chosen = rng.choice(WORDS)
    shown = rng.choice((chosen, chosen.upper(), chosen.capitalize()))
    size = 40
    while size < 110 and PIL.ImageFont.load_default(size + 5).getlength(shown) < 0.95 * SIDE:
        size += 5
    return _written(shown, rng.randint(40, size), rng), chosen


@dataclass(frozen=True)
class Chart:
    """A bar chart: the colours of its bars from left to right, and their heights in 0..1, no two alike."""

    picture: PIL.Image.Image
    colours: tuple[str, ...]
    heights: tuple[float, ...]

    @property
    def tallest(self) -> str:
        """The colour of the tallest bar."""
        return self.colours[self.heights.index(max(self.heights))]

    @property
    def shortest(self) -> str:
        """The colour of the shortest bar."""
        return self.colours[self.heights.index(min(self.heights))]


def chart(rng: random.Random) -> Chart:
    """A bar chart of two to five bars, each of a colour of its own, on a light ground."""
    count = rng.randint(2, 5)
    colours = rng.sample(sorted(_RGB), count)
    steps = rng.sample(range(2, 11), count)  # a tenth apart at the least
    heights = [step / 10 for step in steps]
    ground = tuple(rng.randint(235, 255) for _ in range(3))
    canvas = PIL.Image.new("RGB", (SIDE, SIDE), ground if rng.random() < 0.5 else "white")
    draw = PIL.ImageDraw.Draw(canvas)
    left, right, base, top = (
        rng.randint(12, 40),
        SIDE - rng.randint(8, 40),
        SIDE - rng.randint(14, 40),
        rng.randint(8, 30),
    )
    slot = (right - left) / count
    width = slot * rng.uniform(0.5, 0.85)
    for index, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        x = left + slot * index + (slot - width) / 2
        fill = tuple(max(0, min(255, part + rng.randint(-15, 15))) for part in _RGB[colour])
        draw.rectangle((x, base - height * (base - top), x + width, base), fill=fill)
    draw.line((left, top, left, base, right, base), fill=(60, 60, 60), width=rng.randint(1, 3))
    return Chart(canvas, tuple(colours), tuple(heights))


def _written(text: str, size: int, rng: random.Random) -> PIL.Image.Image:
    canvas = background(rng, plain=0.6)
    font = PIL.ImageFont.load_default(size)
    box = font.getbbox(text)
    x = rng.uniform(0, SIDE - box[2]) - box[0] if box[2] < SIDE else (SIDE - box[2]) / 2
    y = rng.uniform(-box[1], SIDE - box[3])
    dark = tuple(rng.randint(0, 90) for _ in range(3))
    PIL.ImageDraw.Draw(canvas).text((x, y), text, fill=dark, font=font)
    return canvas
