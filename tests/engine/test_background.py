"""The engine behind a thread gives what the engine gives, to many readers at once."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from llava.assistant import Assistant
from llava.chat.messages import Message
from llava.checkpoints.native import Loaded
from llava.engine.background import BackgroundEngine, Delta
from llava.engine.engine import Engine
from llava.engine.request import Generation, Request
from llava.engine.sampling import Sampling
from llava.errors import EngineError, LlavaError


@pytest.fixture
def shell(tiny: Loaded) -> Iterator[tuple[BackgroundEngine, Engine, Assistant]]:
    engine = Engine(tiny.model, tiny.processor.tokenizer)
    background = BackgroundEngine(engine)
    yield background, engine, Assistant(tiny)
    background.close()


async def collect(background: BackgroundEngine, request: Request, count: int) -> list[int]:
    return [token async for _, delta in background.stream([(request, Sampling(count))]) for token in delta.ids]


def test_readers_at_once_get_their_own_answers(shell: tuple[BackgroundEngine, Engine, Assistant]) -> None:
    background, _, assistant = shell
    requests = [assistant.request([Message.user(f"Say {n}")]) for n in range(6)]

    async def ask() -> list[list[int]]:
        return await asyncio.gather(*(collect(background, request, 3 + n) for n, request in enumerate(requests)))

    expected = [list(assistant._engine.stream(request, Sampling(3 + n))) for n, request in enumerate(requests)]
    assert asyncio.run(ask()) == expected
    assert asyncio.run(ask()) == expected  # from another event loop


def test_several_answers_to_one_reader(shell: tuple[BackgroundEngine, Engine, Assistant]) -> None:
    background, _, assistant = shell
    pairs = [(assistant.request([Message.user(f"Say {n}")]), Sampling(4 + n, logprobs=0)) for n in range(3)]

    async def ask() -> list[list[Delta]]:
        found: list[list[Delta]] = [[], [], []]
        async for index, delta in background.stream(pairs):
            found[index].append(delta)
        return found

    for deltas, (request, sampling) in zip(asyncio.run(ask()), pairs, strict=True):
        (alone,) = assistant._engine.generate([(request, sampling)])
        assert [token for delta in deltas for token in delta.ids] == alone.output
        scores = [score.logprob for delta in deltas for score in delta.scored]
        assert scores == pytest.approx([score.logprob for score in alone.scored], abs=1e-4)  # sums in another order
        assert "".join(delta.text for delta in deltas) == alone.text
        assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish == alone.finished == "length"
    load = background.load
    assert (load.waiting, load.running, load.blocks) == (0, 0, 0) and 0 < load.kept_blocks < load.all_blocks


def test_a_reader_that_leaves_ends_its_request(shell: tuple[BackgroundEngine, Engine, Assistant]) -> None:
    background, engine, assistant = shell
    request = assistant.request([Message.user("Say something long")])

    async def leave() -> None:
        stream = background.stream([(request, Sampling(400))])
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await collect(background, request, 1)  # whatever was asked before has been heeded by now

    asyncio.run(leave())
    assert not engine.scheduler.running and not engine.scheduler.waiting


def test_errors_reach_the_reader(shell: tuple[BackgroundEngine, Engine, Assistant]) -> None:
    background, _, assistant = shell
    request = assistant.request([Message.user("word " * 600)])
    with pytest.raises(LlavaError, match="context holds 512"):
        asyncio.run(collect(background, request, 3))
    assert len(asyncio.run(collect(background, assistant.request([Message.user("Hi")]), 3))) == 3


def test_a_token_that_ends_in_an_error_is_not_delivered(
    shell: tuple[BackgroundEngine, Engine, Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    background, engine, assistant = shell
    request, finishes = assistant.request([Message.user("Hi")]), []
    add = engine._add

    def fails(one: Generation, *rest: object) -> None:
        add(one, *rest)  # type: ignore[arg-type]
        if len(one.output) == 2:
            raise LlavaError("its grammar has grown too large")

    async def ask() -> None:
        async for _, delta in background.stream([(request, Sampling(5))]):
            finishes.append(delta.finish)

    monkeypatch.setattr(engine, "_add", fails)
    with pytest.raises(LlavaError, match="too large"):
        asyncio.run(ask())
    assert finishes == [None]


def test_closing_tells_those_who_wait(tiny: Loaded) -> None:
    background = BackgroundEngine(Engine(tiny.model, tiny.processor.tokenizer))
    request = Assistant(tiny).request([Message.user("Say something long")])

    async def wait() -> None:
        stream = background.stream([(request, Sampling(400))])
        async for _ in stream:
            await asyncio.to_thread(background.close)

    with pytest.raises(LlavaError, match="the engine was closed"):
        asyncio.run(wait())


@pytest.mark.parametrize("broken", ["submit", "_guess", "_run_apart", "_run"])
def test_an_unforeseen_error_reaches_its_reader_and_the_thread_goes_on(
    shell: tuple[BackgroundEngine, Engine, Assistant], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    background, engine, assistant = shell
    request = assistant.request([Message.user("Hi")])

    def fail(*_: object) -> None:
        raise ValueError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(engine, broken, fail)
        with pytest.raises(LlavaError, match="unforeseen"):
            asyncio.run(collect(background, request, 3))
    assert len(asyncio.run(collect(background, request, 3))) == 3


def test_a_closed_engine_refuses_requests(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    background = BackgroundEngine(assistant._engine)
    background.close()
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(collect(background, assistant.request([Message.user("Hi")]), 1))


def test_an_engine_that_is_about_to_close_refuses_requests_too(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = Assistant(tiny)
    engine, request = assistant._engine, assistant.request([Message.user("Hi")])
    entered, leave, step = threading.Event(), threading.Event(), engine.step

    def hold() -> None:
        entered.set()
        leave.wait(10)
        step()

    monkeypatch.setattr(engine, "step", hold)
    background = BackgroundEngine(engine)

    async def scenario() -> None:
        first = asyncio.create_task(collect(background, request, 3))
        assert await asyncio.to_thread(entered.wait, 10)
        closing = asyncio.create_task(asyncio.to_thread(background.close))  # waits for the step to end
        while not background._closed:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="closed"):
            await asyncio.wait_for(collect(background, request, 1), 5)
        leave.set()
        await closing
        with pytest.raises(EngineError, match="closed"):
            await first

    asyncio.run(scenario())
