"""What is said: messages of text, images and videos, in the order in which they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import PIL.Image

    from llava.media.video import SampledVideo

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture: a path, the bytes of an image file, or a PIL image. It is opened when it is first needed, once."""

    source: str | Path | bytes | PIL.Image.Image

    def open(self) -> PIL.Image.Image:
        """The picture in RGB, upright. Raises LlavaError when it is missing, corrupt or too large."""
        return self._picture

    @cached_property
    def _picture(self) -> PIL.Image.Image:
        from llava.media.images import open_image

        return open_image(self.source)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright; reads no more than the header. Raises LlavaError as `open` does."""
        if "_picture" in self.__dict__:
            return self._picture.size
        from llava.media.images import image_size

        return image_size(self.source)

    @cached_property
    def digest(self) -> str:
        """Equal for equal pixels: covers mode, size and every pixel."""
        digest = hashlib.sha256(f"{self.open().mode} {self.open().size}".encode())
        digest.update(self.open().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Video:
    """A video file, of which so many frames are seen: evenly spread, or at most so many at `fps` a second.

    It is decoded when it is first needed, once; only the frames that are seen are kept.
    """

    source: str | Path
    frames: int = 8
    fps: float | None = None

    @cached_property
    def sampled(self) -> SampledVideo:
        """The frames and their times. Raises LlavaError when the file is missing, broken, or holds no video."""
        from llava.media.video import sample_video

        return sample_video(Path(self.source), self.frames, self.fps)

    @cached_property
    def digest(self) -> str:
        """Equal for equal frames: covers mode, size and every pixel of each."""
        return hashlib.sha256("".join(Image(frame).digest for frame in self.sampled.frames).encode()).hexdigest()


Visual = Image | Video


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and text, images and videos in order."""

    role: Role
    content: tuple[str | Visual, ...]

    @staticmethod
    def system(text: str) -> Message:
        """Instructions that stand before the conversation."""
        return Message("system", (text,))

    @staticmethod
    def user(*content: str | Visual) -> Message:
        """What the user says: text, images and videos in any order."""
        return Message("user", content)

    @staticmethod
    def assistant(text: str) -> Message:
        """What the model answered."""
        return Message("assistant", (text,))


def visuals_of(messages: Sequence[Message]) -> list[Visual]:
    """All images and videos of a conversation, in order."""
    return [part for message in messages for part in message.content if not isinstance(part, str)]
