"""Room for what pictures and videos are decoded to: requests hold it until they end, and wait where there is none."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread

from llava.chat.messages import Image, Message, visuals_of
from llava.errors import LlavaError
from llava.media.images import pixel_count
from llava.media.video import pixels_seen
from llava.serve.errors import ApiError

MOST_PIXELS = 500_000_000  # of all requests at once: 2 GB


@dataclass(eq=False)
class PixelBudget:
    """The decoded pixels of all requests together."""

    most: int = MOST_PIXELS
    held: int = 0
    _left: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def room_for(self, messages: Sequence[Message]) -> AsyncIterator[None]:
        """Room for the pictures and videos of a conversation, as their headers tell. Raises ApiError for too many."""
        pixels = await anyio.to_thread.run_sync(_pixels_of, messages)
        if pixels > self.most:
            told = f"the pictures and videos have {pixels:,} pixels in all, the limit is {self.most:,}"
            raise ApiError(400, told, param="messages")
        if pixels == 0:  # waits for nobody
            yield
            return
        async with self._turn:  # in the order in which they came: what is large gets room too
            while self.held + pixels > self.most:
                self._left.clear()
                await self._left.wait()
            self.held += pixels
        try:
            yield
        finally:
            self.held -= pixels
            self._left.set()


def _pixels_of(messages: Sequence[Message]) -> int:
    found = 0
    for visual in visuals_of(messages):
        try:
            if isinstance(visual, Image):
                found += pixel_count(visual.source)
            else:
                found += pixels_seen(Path(visual.source), visual.frames)
        except LlavaError:
            pass  # what is no picture takes none; it is told where it is read
    return found
