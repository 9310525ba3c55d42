"""The engine for asyncio: it steps in a thread of its own; requests and tokens cross over in queues."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from llava.engine.engine import Engine
from llava.engine.request import Generation, Request
from llava.engine.sampling import Sampling
from llava.errors import LlavaError


@dataclass(eq=False)
class _Reader:
    """Who waits for the tokens of one request. Its queue gets lists of tokens, then None."""

    loop: asyncio.AbstractEventLoop
    tokens: "asyncio.Queue[list[int] | None]"
    generation: Generation | None = None
    error: LlavaError | None = None
    sent: int = 0


class BackgroundEngine:
    """Runs an engine in a thread. Its methods may be called from any event loop; the engine itself must not be used."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._readers: list[_Reader] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
        self._thread.start()

    async def stream(self, request: Request, sampling: Sampling) -> AsyncIterator[int]:
        """As `Engine.stream`. Leaving the iteration, also by cancelling the task, ends the request."""
        reader = _Reader(asyncio.get_running_loop(), asyncio.Queue())
        self._inbox.put(lambda: self._submit(reader, request, sampling))
        try:
            while (tokens := await reader.tokens.get()) is not None:
                for token in tokens:
                    yield token
            if reader.error is not None:
                raise reader.error
        finally:
            self._inbox.put(lambda: self._leave(reader))

    def close(self) -> None:
        """End all requests and the thread."""
        self._inbox.put(self._stop)
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            if not self._engine.busy:
                self._inbox.get()()  # sleeps until there is work
            while not self._inbox.empty():
                self._inbox.get()()
            self._engine.step()
            for reader in list(self._readers):
                self._deliver(reader)

    def _submit(self, reader: _Reader, request: Request, sampling: Sampling) -> None:
        self._readers.append(reader)
        try:
            reader.generation = self._engine.submit(request, sampling)
        except LlavaError as error:
            reader.error = error
        except Exception as error:  # noqa: BLE001  the thread serves others too
            reader.error = LlavaError(f"the request could not be taken: {error}")
        self._deliver(reader)

    def _deliver(self, reader: _Reader) -> None:
        """Send a reader what is new, and the end."""
        generation = reader.generation
        if generation is not None and len(generation.output) > reader.sent:
            self._send(reader, generation.output[reader.sent :])
            reader.sent = len(generation.output)
        if generation is None or generation.finished is not None:
            reader.error = reader.error or (generation.error if generation else None)
            self._readers.remove(reader)
            self._send(reader, None)

    def _send(self, reader: _Reader, tokens: list[int] | None) -> None:
        if not reader.loop.is_closed():
            reader.loop.call_soon_threadsafe(reader.tokens.put_nowait, tokens)

    def _leave(self, reader: _Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
        if reader.generation is not None:
            self._engine.cancel(reader.generation)

    def _stop(self) -> None:
        self._closed = True
        for reader in list(self._readers):
            reader.error = LlavaError("the engine was closed")
            if reader.generation is not None:
                self._engine.cancel(reader.generation)
            self._deliver(reader)
