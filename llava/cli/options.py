"""The options that commands share: images and videos, and how weights are stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava.chat.messages import Image, Video, Visual
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.config import Precision

ImageOption = Annotated[list[Path] | None, typer.Option(help="An image; may be given several times.")]
VideoOption = Annotated[list[Path] | None, typer.Option(help="A video; may be given several times.")]
FramesOption = Annotated[int, typer.Option(help="How many frames of a video are seen, evenly spread; at most 256.")]
TemplateOption = Annotated[str | None, typer.Option(help="A chat template, where the checkpoint does not say its own.")]
FpsOption = Annotated[float | None, typer.Option(help="See so many frames a second, at most --frames in all.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="How weights are stored: float16 (the default) or float32.")
]
Load8bitOption = Annotated[bool, typer.Option("--load-8bit", help="Store the LLM's weights in 8 bits.")]
Load4bitOption = Annotated[bool, typer.Option("--load-4bit", help="Store the LLM's weights in 4 bits.")]

Beside8bitOption = Annotated[
    bool, typer.Option("--beside-8bit", help="Store vision tower, projector and the LLM's head in 8 bits too.")
]
KeysOption = Annotated[Path | None, typer.Option("--keys", help="The file of keys; by default the user's own.")]


def precision_of(dtype: str | None, load_8bit: bool, load_4bit: bool) -> "Precision | None":
    """What these options ask for; None is the default. Raises LlavaError where they contradict each other."""
    if load_8bit + load_4bit + (dtype is not None) > 1:
        raise LlavaError("give one of --dtype, --load-8bit and --load-4bit")
    if load_8bit or load_4bit:
        return "int8" if load_8bit else "int4"
    if dtype is None or dtype == "float16":
        return None if dtype is None else "float16"
    if dtype == "float32":
        return "float32"
    raise LlavaError(f"--dtype {dtype}: expected float16 or float32")


def open_visuals(
    images: Sequence[Path] | None, videos: Sequence[Path] | None, frames: int, fps: float | None
) -> list[Visual]:
    """The images, then the videos, all opened. Raises LlavaError for the first that cannot be."""
    pictures, clips = [Image(path) for path in images or []], [Video(path, frames, fps) for path in videos or []]
    for picture in pictures:
        picture.open()
    for clip in clips:
        clip.sampled  # noqa: B018  decodes it
    return [*pictures, *clips]
