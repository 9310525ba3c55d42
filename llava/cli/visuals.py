"""The options by which `chat` and `inspect` take images and videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llava.chat.messages import Image, Video, Visual

ImageOption = Annotated[list[Path] | None, typer.Option(help="An image; may be given several times.")]
VideoOption = Annotated[list[Path] | None, typer.Option(help="A video; may be given several times.")]
FramesOption = Annotated[int, typer.Option(help="How many frames of a video are seen, evenly spread; at most 256.")]
TemplateOption = Annotated[str | None, typer.Option(help="A chat template, where the checkpoint does not say its own.")]
FpsOption = Annotated[float | None, typer.Option(help="See so many frames a second, at most --frames in all.")]


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
