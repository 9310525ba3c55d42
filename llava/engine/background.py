"""The engine for asyncio: it steps in a thread of its own; requests and what becomes of them cross over in queues."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from llava.engine.engine import Engine
from llava.engine.request import Finish, Generation, Request, Scored, Usage
from llava.engine.sampling import Sampling
from llava.engine.scheduler import Scheduler
from llava.errors import EngineError, LlavaError


@dataclass(frozen=True)
class Delta:
    """What is new of an answer: text that can be shown, its ids and their scores; how it ended, in the last one."""

    text: str
    ids: list[int]
    scored: list[Scored]
    usage: Usage
    finish: Finish | None


@dataclass(frozen=True)
class Load:
    """How busy an engine is: its requests, and the blocks of keys and values: of running ones, kept, in all."""

    waiting: int
    running: int
    blocks: int
    kept_blocks: int
    all_blocks: int


def _load(scheduler: Scheduler) -> Load:
    total = scheduler.limits.blocks
    blocks = sum(one.blocks for one in scheduler.running)
    return Load(len(scheduler.waiting), len(scheduler.running), blocks, total - scheduler.prefixes.free - blocks, total)


@dataclass(eq=False)
class _Reader:
    """Who waits for answers. Its queue gets deltas with the index of their answer, then None."""

    loop: asyncio.AbstractEventLoop
    deltas: "asyncio.Queue[tuple[int, Delta] | None]"
    generations: list[Generation] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)  # ids and characters of each
    ended: set[int] = field(default_factory=set)
    error: LlavaError | None = None


class BackgroundEngine:
    """Runs an engine in a thread. Its methods may be called from any event loop; the engine itself must not be used."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._readers: list[_Reader] = []
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[_Reader, tuple[int, Delta] | None]]] = {}
        self._closed, self._stopped = False, False  # from outside, and in the thread
        self._lock = threading.Lock()  # of putting something behind what ends the thread
        self._load = _load(engine.scheduler)
        self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """How busy it was after its last step."""
        return self._load

    async def stream(self, requests: Sequence[tuple[Request, Sampling]]) -> AsyncGenerator[tuple[int, Delta], None]:
        """The answers to several requests as they come, each with the index of its request.

        Leaving the iteration, also by cancelling the task, ends the requests. Raises LlavaError when one of them
        cannot run, EngineError where the engine is at fault.
        """
        reader = _Reader(asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            if self._closed:
                raise EngineError("the engine was closed")
            self._inbox.put(lambda: self._submit(reader, requests))
        try:
            while (item := await reader.deltas.get()) is not None:
                yield item
            if reader.error is not None:
                raise reader.error
        finally:
            self._inbox.put(lambda: self._leave(reader))

    def close(self) -> None:
        """End all requests and the thread."""
        with self._lock:
            self._closed = True
            self._inbox.put(self._stop)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            if not self._engine.busy:
                self._inbox.get()()  # sleeps until there is work
            while not self._inbox.empty():
                self._inbox.get()()
            try:
                self._engine.step()
            except Exception as error:  # noqa: BLE001  a mistake of ours; requests to come must still be served
                self._fail(error)
            for reader in list(self._readers):
                self._deliver(reader)
            self._load = _load(self._engine.scheduler)  # before anyone hears of the step
            self._send()

    def _submit(self, reader: _Reader, requests: Sequence[tuple[Request, Sampling]]) -> None:
        self._readers.append(reader)
        try:
            for place, (request, sampling) in enumerate(requests):
                reader.generations.append(self._engine.submit(request, sampling, place))
                reader.sent.append((0, 0))
        except LlavaError as error:
            reader.error = error
        except Exception as error:  # noqa: BLE001  the thread serves others too
            reader.error = EngineError(f"the request could not be taken: {error}")
        self._deliver(reader)

    def _deliver(self, reader: _Reader) -> None:
        """Put what is new for a reader into the outbox, and the end: when all have ended, or one has failed."""
        out = self._outbox.setdefault(reader.loop, [])
        for index, one in enumerate(reader.generations):
            if index in reader.ended:
                continue
            ids, characters = reader.sent[index]
            reader.error = reader.error or one.error
            if one.finished is not None:
                reader.ended.add(index)
            if one.error is None and (len(one.output) > ids or one.finished is not None):
                delta = Delta(one.text[characters:], one.output[ids:], one.scored[ids:], one.usage, one.finished)
                out.append((reader, (index, delta)))
                reader.sent[index] = (len(one.output), len(one.text))
        if reader.error is not None or len(reader.ended) == len(reader.generations):
            self._leave(reader)
            out.append((reader, None))

    def _send(self) -> None:
        """Hand the outbox over: one call for each event loop, which costs more than what it carries."""
        outbox, self._outbox = self._outbox, {}
        for loop, items in outbox.items():
            if items:
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to hear of it
                    loop.call_soon_threadsafe(_put, items)

    def _leave(self, reader: _Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
        for one in reader.generations:
            self._engine.cancel(one)

    def _fail(self, error: Exception) -> None:
        """End every request: what the engine holds for them is not known."""
        for reader in self._readers:
            reader.error = EngineError(f"the engine failed: {error}")
            for one in reader.generations:
                with contextlib.suppress(Exception):
                    self._engine.drop(one, reader.error)

    def _stop(self) -> None:
        self._stopped = True
        for reader in list(self._readers):
            reader.error = EngineError("the engine was closed")
            self._deliver(reader)


def _put(items: list[tuple[_Reader, tuple[int, Delta] | None]]) -> None:
    for reader, item in items:
        reader.deltas.put_nowait(item)
