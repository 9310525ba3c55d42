"""Pictures drawn for llava-smol: one coloured shape, or a number, of any size and place, with smooth edges."""

import math
import random

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from llava.eval.benchmarks.easy_vqa import COLOURS, SHAPES
from llava.pictures.scenes import SIDE, background

_RGB = {
    "black": (15, 15, 15), "blue": (40, 70, 220), "brown": (130, 80, 40), "gray": (130, 130, 130),
    "green": (40, 160, 60), "red": (220, 30, 40), "teal": (0, 140, 140), "yellow": (245, 215, 40),
}  # fmt: skip
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
    canvas = background(rng, plain=0.6)
    font = PIL.ImageFont.load_default(rng.randint(60, 170))
    box = font.getbbox(str(number))
    x = rng.uniform(0, SIDE - box[2]) - box[0] if box[2] < SIDE else (SIDE - box[2]) / 2
    y = rng.uniform(-box[1], SIDE - box[3])
    dark = tuple(rng.randint(0, 90) for _ in range(3))
    PIL.ImageDraw.Draw(canvas).text((x, y), str(number), fill=dark, font=font)
    return canvas, number
