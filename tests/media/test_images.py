import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava import Image, LlavaError
from llava.config import ImageConfig
from llava.media import images
from llava.media.images import image_size, open_image, pixels_of

ORACLE = Path(__file__).parents[1] / "oracles" / "pixels.npz"  # computed by the original implementation
BLOCK = 16 << 20  # bytes: Pillow allocates pictures in blocks of at most this


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def picture(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(noise(width, height, seed=seed))


def encoded(source: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    source.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    for read in (open_image, image_size):
        with pytest.raises(LlavaError, match=r"none\.png: image not found"):
            read(tmp_path / "none.png")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match="not a file"):
        open_image(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "nul\0byte"])
def test_an_impossible_path_is_an_error(name: str) -> None:
    with pytest.raises(LlavaError, match=r"cannot be read|not found"):
        open_image(name)


@pytest.mark.parametrize("data", [b"", b"GIF89a", np.random.default_rng(1).bytes(2000)], ids=["empty", "stub", "noise"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    for read in (open_image, image_size):
        with pytest.raises(LlavaError, match=r"not a readable image.*expected one of JPEG, PNG"):
            read(data)


def test_a_format_beyond_the_list_is_refused() -> None:
    with pytest.raises(LlavaError, match="not a readable image"):
        open_image(encoded(picture(8, 8), "ICO"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encoded(picture(60, 60), kind)
    assert open_image(data).size == (60, 60)
    with pytest.raises(LlavaError, match=r"corrupt or truncated|not a readable image"):
        open_image(data[: len(data) // 2])


def test_damaged_files_raise_nothing_but_llava_error() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    kinds = [("PNG", {"exif": exif}), ("JPEG", {"exif": exif}), ("WEBP", {"exif": exif}), ("GIF", {}), ("BMP", {})]
    rng, refused = np.random.default_rng(0), 0
    for kind, options in kinds:
        data = np.frombuffer(encoded(picture(20, 20), kind, **options), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
            for read in (image_size, open_image):
                try:
                    read(damaged.tobytes())
                except LlavaError:
                    refused += 1
    assert refused > 50


@pytest.mark.parametrize("size", [(60000, 60000), (8001, 8000), (12000, 12000)])
def test_a_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    PIL.Image.core.reset_stats()
    for read in (open_image, image_size):
        with pytest.raises(LlavaError, match="too many pixels, the limit is 64000000"):
            read(png_header(*size))
    assert PIL.Image.core.get_stats()["new_count"] == 0  # nothing was decoded


def test_a_picture_from_the_caller_has_the_same_limit() -> None:
    with pytest.raises(LlavaError, match="the image: 8001x8000 is too many pixels"):
        open_image(PIL.Image.new("1", (8001, 8000)))


def test_a_file_over_the_byte_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(100, 100), "BMP")
    path = tmp_path / "large.bmp"
    path.write_bytes(data)
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert open_image(path).size == (100, 100)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    for source in (path, data):
        with pytest.raises(LlavaError, match="the limit for an image file"):
            open_image(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_and_the_size_agrees(kind: str, orientation: int) -> None:
    corners = np.zeros((24, 40, 3), np.uint8)
    corners[:12, :20] = 255  # the stored picture is white at the top left
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(corners), kind, exif=exif)
    upright = open_image(data)
    assert upright.size == image_size(data) == Image(data).size == ((24, 40) if orientation >= 5 else (40, 24))
    brightness = np.asarray(upright.convert("L").resize((2, 2), PIL.Image.Resampling.BOX))
    # EXIF 2.32, 4.6.4: the visual corner at which the stored first row and column meet
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert np.unravel_index(brightness.argmax(), (2, 2)) == corner


@pytest.mark.parametrize("header", [b"II+\0\0\0\0\0", b"II*\0", b"MM\0*\0\0\0\x08\xff"])
def test_exif_that_is_cut_short_is_one_clear_error_or_left_aside(header: bytes) -> None:
    plain = encoded(PIL.Image.new("RGB", (4, 4)), "PNG")
    chunk = b"eXIf" + header
    exif = len(header).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    for read in (open_image, image_size):
        try:
            read(plain[:33] + exif + plain[33:])  # behind the signature and IHDR
        except LlavaError as error:
            assert "corrupt or truncated image" in str(error)


def transparent(mode: str) -> PIL.Image.Image:
    """Left half opaque black, right half fully transparent black."""
    layer = PIL.Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 2, 2))
    if mode == "P":
        indexed = PIL.Image.new("P", (4, 2), 1)
        indexed.putpalette([0, 0, 0, 10, 10, 10])
        indexed.paste(0, (0, 0, 2, 2))
        indexed.info["transparency"] = 1
        return indexed
    return layer.convert(mode)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF")])
def test_transparency_becomes_white(mode: str, kind: str) -> None:
    found = np.asarray(open_image(encoded(transparent(mode), kind)))
    assert (found[:, :2] == 0).all()
    assert (found[:, 2:] == 255).all()


def test_half_transparent_is_blended_with_white() -> None:
    found = open_image(PIL.Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    assert found == (255, 127, 127)


@pytest.mark.parametrize(
    ("mode", "kind", "colour", "expected"),
    [
        ("1", "PNG", 1, (255, 255, 255)),
        ("L", "PNG", 100, (100, 100, 100)),
        ("I;16", "PNG", 100 << 8, (100, 100, 100)),
        ("I;16", "PPM", 100 << 8, (100, 100, 100)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", "JPEG", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_other_modes_become_rgb(mode: str, kind: str, colour: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = open_image(encoded(PIL.Image.new(mode, (8, 8), colour), kind))
    assert found.mode == "RGB"
    assert found.getpixel((4, 4)) == expected


def test_a_palette_becomes_its_colours() -> None:
    indexed = PIL.Image.new("P", (2, 2), 1)
    indexed.putpalette([0, 0, 0, 10, 20, 30])
    assert open_image(encoded(indexed)).getpixel((1, 1)) == (10, 20, 30)


def test_path_string_bytes_and_picture_give_the_same(tmp_path: Path) -> None:
    source, path = picture(13, 7), tmp_path / "a.png"
    source.save(path)
    for given in (path, str(path), path.read_bytes(), source):
        assert (np.asarray(open_image(given)) == np.asarray(source)).all()
        assert image_size(given) == (13, 7)


def test_pad_equals_the_original() -> None:
    with np.load(ORACLE) as oracle:
        for i in range(6):
            found = pixels_of(PIL.Image.fromarray(oracle[f"image_{i}"]), ImageConfig(size=56, aspect="pad"))
            assert torch.equal(found, torch.from_numpy(oracle[f"pad_{i}"]))


def test_squash_equals_the_base_view_of_the_original() -> None:
    with np.load(ORACLE) as oracle:
        for i in range(6):
            found = pixels_of(PIL.Image.fromarray(oracle[f"image_{i}"]), ImageConfig(size=56, aspect="squash"))
            assert torch.equal(found, torch.from_numpy(oracle[f"anyres_{i}"][0]))


@pytest.mark.parametrize("size", [32, 57])
def test_crop_equals_clip_of_transformers(size: int) -> None:
    clip = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    config = ImageConfig(size=size, aspect="crop")
    sizes = np.random.default_rng(2).integers(1, 150, (25, 2)).tolist()
    for width, height in [*sizes, [size, size], [400, 2], [3, 600]]:
        source = picture(width, height, seed=width)
        expected = clip(source, return_tensors="np")["pixel_values"][0]
        assert torch.equal(pixels_of(source, config), torch.from_numpy(expected)), (width, height)


def test_crop_of_a_thin_picture_shows_its_centre() -> None:
    clip = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for size in ((2000, 4), (4, 2000)):
        source = picture(*size)
        expected = torch.from_numpy(clip(source, return_tensors="np")["pixel_values"][0])
        assert torch.equal(pixels_of(source, ImageConfig(size=28, aspect="crop")), expected)


@pytest.mark.parametrize("aspect", ["pad", "crop", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_extreme_shapes_take_little_memory(aspect: str, size: tuple[int, int]) -> None:
    config = ImageConfig.model_validate({"size": 336, "aspect": aspect})
    source = PIL.Image.new("RGB", size, "red")
    PIL.Image.core.reset_stats()
    found = pixels_of(source, config)
    assert PIL.Image.core.get_stats()["allocated_blocks"] * BLOCK <= 384 << 20  # padding 20000x1 in full takes 1.6 GB
    assert found.shape == (3, 336, 336)
    assert found.dtype == torch.float32
    colours = (found.permute(1, 2, 0) * torch.tensor(config.std) + torch.tensor(config.mean)) * 255
    if aspect != "pad" or size == (1, 1):
        torch.testing.assert_close(colours, torch.tensor([255.0, 0, 0]).expand(336, 336, 3), atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(colours[0, 0], torch.tensor([122.0, 116, 104]), atol=1e-3, rtol=0)  # int(mean * 255)
        assert (colours - colours[0, 0]).abs().max() > 1  # the line is still seen


def test_the_hash_covers_size_and_pixels() -> None:
    data = noise(2, 3)
    wide, tall = PIL.Image.fromarray(data.reshape(2, 3, 3)), PIL.Image.fromarray(data)
    other = data.copy()
    other[-1, -1, -1] ^= 1
    assert wide.tobytes() == tall.tobytes()
    hashes = {Image(source).digest for source in (wide, tall, PIL.Image.fromarray(other))}
    assert len(hashes) == 3


def test_the_hash_is_equal_for_equal_pixels(tmp_path: Path) -> None:
    source, path = picture(5, 4), tmp_path / "a.bmp"
    source.save(path)
    assert Image(source).digest == Image(path).digest == Image(encoded(source)).digest


def test_an_image_is_opened_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(5, 4).save(path)
    image = Image(path)
    opened = image.open()
    path.unlink()
    assert image.open() is opened
    assert image.size == (5, 4)
