"""Pictures: opened with limits, and turned into the pixels that a vision encoder takes."""

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from llava.config import ImageConfig
from llava.errors import LlavaError
from llava.media.tiling import best_resolution, padded_size

MAX_BYTES = 64 << 20  # of a file
MAX_PIXELS = 64_000_000  # once decoded: 256 MB at most
# What cameras, screens and the web produce. Pillow's other decoders are a surface of attack without use.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # EXIF; 5 to 8 mean: on its side
_THINNEST = 200  # the longest edge over the shortest that is resized whole

Source = str | Path | bytes | PIL.Image.Image


def open_image(source: Source) -> PIL.Image.Image:
    """Open a picture, check its limits before decoding, turn it upright, and convert it to RGB.

    Transparent parts become white. Raises LlavaError when it is missing, corrupt, too large or of another format.
    """
    name, picture = _identify(source)
    with _decoding(name):
        picture.load()
        # `exif_transpose` and `convert` copy a picture that stays as it is: 36 MB each of a phone's photograph
        turned = picture.getexif().get(_ORIENTATION, 1) != 1
        upright = PIL.ImageOps.exif_transpose(picture) if turned else picture
        deep_grey = upright.mode == "I" and picture.format == "PPM"  # of 16 bits too
        if upright.mode.startswith("I;16") or deep_grey:  # `convert` would turn everything above 255 white
            upright = PIL.Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            upright = PIL.Image.new("RGBA", layer.size, "white")
            upright.alpha_composite(layer)
        return upright if upright.mode == "RGB" and upright is not source else upright.convert("RGB")


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of a picture once upright. Raises LlavaError as `open_image` does.

    Reads the header only, but decodes a PNG without EXIF there: it may stand behind the pixels.
    """
    name, picture = _identify(source)
    with _decoding(name):
        turned = picture.format != "TIFF" and picture.getexif().get(_ORIENTATION, 1) >= 5  # Pillow turns a TIFF itself
    return (picture.height, picture.width) if turned else picture.size


def pixel_count(source: Source) -> int:
    """How many pixels a picture has, by its header. Raises LlavaError as `open_image` does."""
    width, height = _identify(source)[1].size
    return width * height


# What Pillow raises on a bad file; struct.error where the header of EXIF is cut short.
_BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, EOFError, MemoryError, LookupError, ArithmeticError, struct.error,
    PIL.Image.DecompressionBombError,
)  # fmt: skip


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """What Pillow raises on a bad file as a LlavaError. Its warnings (odd EXIF, ...) are of no use to the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _BROKEN as error:
        raise LlavaError(f"{name}: corrupt or truncated image ({error})") from None


def _identify(source: Source) -> tuple[str, PIL.Image.Image]:
    """A name for messages, and the picture with its limits checked but not yet decoded."""
    if isinstance(source, PIL.Image.Image):
        _check_pixels("the image", source)
        return "the image", source
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if len(data) > MAX_BYTES:
        raise LlavaError(f"{name}: over {MAX_BYTES >> 20} MB, the limit for an image file")
    return name, _parse(name, data)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise LlavaError(f"{path}: image not found" if not path.exists() else f"{path}: not a file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise LlavaError(f"{path}: cannot be read ({error})") from None


def _parse(name: str, data: bytes) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is stricter than Pillow's
            picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError:
        raise LlavaError(f"{name}: too many pixels, the limit is {MAX_PIXELS}") from None
    except _BROKEN as error:
        kinds = ", ".join(FORMATS)
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({error})"
        raise LlavaError(f"{name}: not a readable image{reason}; expected one of {kinds}") from None
    _check_pixels(name, picture)
    return picture


def _check_pixels(name: str, picture: PIL.Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise LlavaError(f"{name}: {width}x{height} is too many pixels, the limit is {MAX_PIXELS}")
    if width * height == 0:
        raise LlavaError(f"{name}: has no pixels ({width}x{height})")


def views_of(picture: PIL.Image.Image, config: ImageConfig) -> Tensor:
    """An RGB picture to the views that the encoder sees (views, 3, size, size), as `image_layout` counts them.

    With tiling: the whole picture squashed to a square, then the tiles, row by row, of the picture padded with black.
    Source: haotian-liu/LLaVA llava/mm_utils.py (`process_anyres_image`).
    """
    if config.tiling is None:
        return pixels_of(picture, config)[None]
    size = config.size
    best = best_resolution(picture.size, config.tiling.pinpoints)
    fitted = resized(picture, padded_size(picture.size, best))
    canvas = PIL.Image.new("RGB", best)
    canvas.paste(fitted, ((best[0] - fitted.width) // 2, (best[1] - fitted.height) // 2))
    corners = [(x, y) for y in range(0, best[1], size) for x in range(0, best[0], size)]
    tiles = [canvas.crop((x, y, x + size, y + size)) for x, y in corners]
    return torch.stack([_normalised(view, config) for view in (resized(picture, (size, size)), *tiles)])


def pixels_of(picture: PIL.Image.Image, config: ImageConfig) -> Tensor:
    """An RGB picture to normalised pixels (3, size, size), float32.

    Equal to the original's `process_images` with CLIP's processor: PIL's bicubic on uint8, then scale and normalise.
    Source: haotian-liu/LLaVA llava/mm_utils.py.
    """
    if config.aspect == "pad":
        picture = _pad_to_square(picture, config.mean)
    if config.aspect == "squash":
        picture = resized(picture, (config.size, config.size))
    else:
        picture = _resize_and_crop(picture, config.size)
    return _normalised(picture, config)


def resized(picture: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """A picture in another size (width, height), by Pillow's bicubic filter, as Pillow 13 gives it.

    Earlier ones (Gradio asks for one) always go along rows first, which rounds a tenth of a tall picture's numbers
    otherwise. Source: https://github.com/python-pillow/Pillow/pull/9549; the bound was found by trying 6,000 sizes.
    """
    fewer_columns, fewer_rows = picture.width - size[0], picture.height - size[1]
    if fewer_rows > max(0, 2 * fewer_columns):
        picture = picture.resize((picture.width, size[1]), PIL.Image.Resampling.BICUBIC)
    return picture.resize(size, PIL.Image.Resampling.BICUBIC)


def _normalised(picture: PIL.Image.Image, config: ImageConfig) -> Tensor:
    array = (np.asarray(picture) * (1 / 255)).astype(np.float32)  # (size, size, 3)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    return torch.from_numpy(((array - mean) / std).transpose(2, 0, 1).copy())


def _pad_to_square(picture: PIL.Image.Image, mean: tuple[float, float, float]) -> PIL.Image.Image:
    width, height = picture.size
    if width == height:
        return picture
    if max(width, height) ** 2 > MAX_PIXELS:  # a thin picture must not grow into a huge square: the one deviation
        scale = math.isqrt(MAX_PIXELS) / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        picture = resized(picture, (width, height))
    side = max(width, height)
    colour = tuple(int(value * 255) for value in mean)
    square = PIL.Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _resize_and_crop(picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """The shortest edge becomes `size`, then the centre is cut out."""
    if max(picture.size) > _THINNEST * min(picture.size):  # would grow huge; only the centre is kept anyway
        side = _THINNEST * min(picture.size)
        picture = PIL.ImageOps.fit(picture, (min(picture.width, side), min(picture.height, side)))
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    new = (size, long) if width <= height else (long, size)
    picture = resized(picture, new)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return picture.crop((left, top, left + size, top + size))
