"""What is said: messages of text and images, in the order in which they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import PIL.Image

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
class Message:
    """One turn: who speaks, and text and images in order."""

    role: Role
    content: tuple[str | Image, ...]

    @staticmethod
    def system(text: str) -> Message:
        """Instructions that stand before the conversation."""
        return Message("system", (text,))

    @staticmethod
    def user(*content: str | Image) -> Message:
        """What the user says, text and images in any order."""
        return Message("user", content)

    @staticmethod
    def assistant(text: str) -> Message:
        """What the model answered."""
        return Message("assistant", (text,))


def images_of(messages: Sequence[Message]) -> list[Image]:
    """All images of a conversation, in order."""
    return [part for message in messages for part in message.content if isinstance(part, Image)]
