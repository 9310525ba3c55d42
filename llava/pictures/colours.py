"""The colour of a cut-out in one word, where people would agree on one."""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

NAMES = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "light blue",
)  # fmt: skip
_UNCLEAR = len(NAMES)  # between two colours: pale orange, turquoise, a very dark red


def colour_of(picture: PIL.Image.Image) -> str | None:
    """The colour of the opaque part of an RGBA picture: more than half of it has it, and half as much no other.

    White is what nearly all of it has, or drawings in lines would be white.
    """
    pixels = np.asarray(picture.resize((48, 48), PIL.Image.Resampling.BOX), dtype=np.uint8).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 200][:, :3]
    if len(opaque) < 100:
        return None
    counts = np.bincount(_named(opaque), minlength=_UNCLEAR + 1)[:_UNCLEAR]
    second, first = np.argsort(counts)[-2:]
    least = 0.85 if NAMES[first] == "white" else 0.5
    clear = counts[first] > least * len(opaque) and counts[first] >= 2 * counts[second]
    return NAMES[first] if clear else None


def has_colour_word(name: str) -> bool:
    """Whether a name says a colour itself: "green apple"."""
    return any(word in NAMES or word in ("grey", "golden") for word in name.lower().split())


def _named(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each colour (N, 3) the place of its name, by bands of hue, saturation and value with gaps between them."""
    part = rgb.astype(np.float32) / 255
    v, low = part.max(1), part.min(1)
    span = v - low
    s = np.where(v > 0, span / np.maximum(v, 1e-6), 0)
    r, g, b = part.T
    divisor = np.maximum(span, 1e-6)
    h = 60 * np.where(v == r, (g - b) / divisor % 6, np.where(v == g, (b - r) / divisor + 2, (r - g) / divisor + 4))
    red = (h < 12) | (h >= 345)
    bands = {
        "red": red & (s >= 0.65) & (v >= 0.5),
        "orange": (h >= 16) & (h < 39) & (s >= 0.65) & (v >= 0.85),
        "yellow": (h >= 41) & (h < 68) & (s >= 0.5) & (v >= 0.8),
        "green": (h >= 75) & (h < 165) & (s >= 0.3) & (v >= 0.2),
        "blue": (h >= 190) & (h < 250) & (((s >= 0.55) & (v >= 0.3)) | ((s >= 0.45) & (v >= 0.3) & (v < 0.8))),
        "light blue": (h >= 185) & (h < 225) & (s >= 0.18) & (s < 0.5) & (v >= 0.85),
        "purple": (h >= 255) & (h < 320) & (s >= 0.3) & (v >= 0.25) & ((h < 290) | (v < 0.65)),
        "pink": ((h >= 300) | (h < 10)) & (s >= 0.2) & (s < np.where(h >= 320, 0.75, 0.55)) & (v >= 0.85),
        "brown": (h >= 8) & (h < 45) & (s >= 0.38) & (v >= 0.25) & (v < 0.78),
        "black": (v < 0.18) | ((v < 0.28) & (s < 0.4)),
        "white": (s < 0.06) & (v >= 0.93),
        "gray": (v >= 0.32) & (v < 0.86) & (s < np.where((h > 180) & (h < 240), 0.24, 0.1)),
    }
    found = np.full(len(rgb), _UNCLEAR)
    for name, band in bands.items():
        found[band] = NAMES.index(name)
    return found
