"""Pictures composed of cut-outs: one thing on a background, or one to five of them that do not overlap.

What varies is meant to bring drawings nearer to photographs: backgrounds that are pieces of other pictures, things
that are cut off by the frame, light and contrast, and (`worn`) pictures without colour, out of focus, or all black.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import PIL.ImageOps

from llava.pictures.catalogue import Catalogue, Entry

SIDE = 224  # pixels
_PLAIN = int(0.87 * SIDE)
DARK = 0.3  # of backgrounds that are not white: at night, in space, on a table


@dataclass(frozen=True)
class Placed:
    """A thing in a scene: its centre from the left and from the top, and how large it is, in sides of the picture.

    size: the square root of the area that it covers. length: of its longer side.
    """

    entry: Entry
    x: float
    y: float
    size: float
    length: float


def background(rng: random.Random, plain: float = 0.5, dark: float = 0.0) -> PIL.Image.Image:
    """A square: white or a colour, a gradient between two, or coarse noise. dark: how many of the others are."""
    if rng.random() < plain:
        return PIL.Image.new("RGB", (SIDE, SIDE), "white")
    least, most = (0, 90) if dark and rng.random() < dark else (110, 255)
    one, other = ([rng.randint(least, most) for _ in range(3)] for _ in range(2))
    shape = rng.random()
    if shape < 0.4:
        return PIL.Image.new("RGB", (SIDE, SIDE), (one[0], one[1], one[2]))
    if shape < 0.75:
        ramp = np.linspace(0, 1, SIDE)[:, None, None] * (np.array(other) - one) + one
        plane = np.broadcast_to(ramp, (SIDE, SIDE, 3)).astype(np.uint8)
        return PIL.Image.fromarray(plane if rng.random() < 0.6 else np.ascontiguousarray(plane.transpose(1, 0, 2)))
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 25, (rng.choice((6, 14, 40)),) * 2 + (3,))
    small = PIL.Image.fromarray(np.clip(noise + one, 0, 255).astype(np.uint8))
    return small.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)


def single(catalogue: Catalogue, entry: Entry, rng: random.Random, vary: bool = True) -> PIL.Image.Image:
    """One thing. vary: any size, place, background, light and side; else on white, in the middle, as it is."""
    if not vary:
        return _placed(PIL.Image.new("RGB", (SIDE, SIDE), "white"), _sized(catalogue.open(entry), _PLAIN), None)
    canvas = _piece(catalogue, rng) if rng.random() < 0.2 else background(rng, dark=DARK)
    share = rng.uniform(1.0, 1.35) if rng.random() < 0.15 else rng.uniform(0.55, 1.0)
    return lit(_placed(canvas, _sized(catalogue.open(entry), int(share * SIDE), rng.random() < 0.5), rng), rng)


def worn(catalogue: Catalogue, entry: Entry, rng: random.Random) -> PIL.Image.Image:
    """One thing of which little but its form is left to see: without colour, out of focus, or all black."""
    kind = rng.random()
    if kind < 0.2:
        cut = _sized(catalogue.open(entry), int(rng.uniform(0.55, 1.0) * SIDE), rng.random() < 0.5)
        cut.paste((0, 0, 0), (0, 0, *cut.size), cut.getchannel("A"))
        return _placed(background(rng), cut, rng)
    picture = single(catalogue, entry, rng)
    if kind < 0.6:
        picture = picture.convert("L").convert("RGB")
    return picture.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(1, 3))) if kind > 0.45 else picture


def lit(picture: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """The picture in another light, every second time: brightness, contrast and saturation by up to a third."""
    if rng.random() < 0.5:
        return picture
    for change in (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color):
        picture = change(picture).enhance(rng.uniform(0.7, 1.3))
    return picture


def _piece(catalogue: Catalogue, rng: random.Random) -> PIL.Image.Image:
    """A background: the middle of another training picture, enlarged and out of focus."""
    other = catalogue.open(rng.choice(catalogue.of("train")))
    w, h = other.size
    middle = other.crop((w // 3, h // 3, w - w // 3, h - h // 3)).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    canvas = background(rng, dark=DARK)
    canvas.paste(middle, (0, 0), middle)
    return canvas.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(0, 4)))


def _placed(canvas: PIL.Image.Image, cut: PIL.Image.Image, rng: random.Random | None) -> PIL.Image.Image:
    """The cut-out on the canvas, in the middle or anywhere; what is larger than the canvas is cut off by it."""
    room = SIDE - cut.width, SIDE - cut.height
    x, y = (side // 2 if rng is None else rng.randint(min(0, side), max(0, side)) for side in room)
    canvas.paste(cut, (x, y), cut)
    return canvas


def scene(
    catalogue: Catalogue, entries: Sequence[Entry], rng: random.Random, dark: float = 0.0, least: float = 0.7
) -> tuple[PIL.Image.Image, list[Placed]]:
    """These things, each in a cell of its own of a grid of 2 x 2 (up to 4) or 3 x 3, so that none hides another.

    dark: as of `background`. least: of a cell's side, that a thing's longer side takes.
    """
    canvas = background(rng, dark=dark)
    side = 2 if len(entries) <= 4 and rng.random() < 0.7 else 3
    cell = SIDE // side
    placed = []
    for entry, place in zip(entries, rng.sample(range(side * side), len(entries)), strict=True):
        cut = _sized(catalogue.open(entry), int(rng.uniform(least, 0.98) * cell), rng.random() < 0.5)
        x = place % side * cell + rng.randint(0, cell - cut.width)
        y = place // side * cell + rng.randint(0, cell - cut.height)
        canvas.paste(cut, (x, y), cut)
        centre = (x + cut.width / 2) / SIDE, (y + cut.height / 2) / SIDE
        covered = sum(cut.getchannel("A").histogram()[128:])
        placed.append(Placed(entry, *centre, covered**0.5 / SIDE, max(cut.size) / SIDE))
    return canvas, placed


def _sized(cut: PIL.Image.Image, side: int, mirror: bool = False) -> PIL.Image.Image:
    scale = side / max(cut.size)
    size = max(1, int(cut.width * scale)), max(1, int(cut.height * scale))
    cut = cut.resize(size, PIL.Image.Resampling.BICUBIC)
    return PIL.ImageOps.mirror(cut) if mirror else cut


def where(one: Placed, other: Placed) -> str | None:
    """Where `one` is as seen from `other`: the axis along which they are clearly apart; None if neither is."""
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > 0.25 and abs(dx) > 1.7 * abs(dy):
        return "right" if dx > 0 else "left"
    if abs(dy) > 0.25 and abs(dy) > 1.7 * abs(dx):
        return "below" if dy > 0 else "above"
    return None


def larger(one: Placed, other: Placed) -> bool:
    """Whether `one` is clearly the larger in the picture: it covers twice as much, and is longer."""
    return one.size > 1.4 * other.size and one.length > 1.15 * other.length
