"""Models within a budget: loaded once however many ask, least recently used out, never one in use."""

import asyncio

import pytest

from llava import Image, Message
from llava.checkpoints.shared import base_name
from llava.engine.sampling import Sampling
from llava.errors import LlavaError
from llava.fetch import quiet
from llava.registry import EMBEDDED
from llava.serve.errors import ApiError
from llava.serve.pool import ModelPool, ModelSpec, Served
from tests.serve.conftest import SHAPE

SPECS = [ModelSpec("a", "llava-smol", "int8"), ModelSpec("b", "llava-smol", "int8"), ModelSpec("c", "no-such-model")]


def test_the_least_recently_used_model_leaves_but_none_in_use() -> None:
    pool = ModelPool(SPECS, 10**9)
    each = pool._needed(SPECS[0])
    pool.budget = int(1.5 * each)

    async def talk() -> None:
        async with pool.use(pool.spec("a")) as first:
            (again, other) = await asyncio.gather(_held(pool, "a"), _held(pool, None))
            assert first is again is other and first.users == 1
            waiting = asyncio.create_task(_held(pool, "b"))
            await asyncio.sleep(0.5)
            assert list(pool.loaded) == ["a"] and not waiting.done()  # a is in use
        second = await waiting
        assert list(pool.loaded) == ["b"] and not first.engine._thread.is_alive()
        assert list(second.assistants) == ["b"]
        with pytest.raises(ApiError, match="unknown model") as told:
            await _held(pool, "c")
        assert told.value.status == 503
        await pool.close()
        assert not pool.loaded

    asyncio.run(talk())


def test_a_model_in_steady_use_leaves_for_one_that_waits() -> None:
    pool = ModelPool(SPECS, 10**9)
    pool.budget = int(1.5 * pool._needed(SPECS[0]))
    served: list[str] = []

    async def ask(name: str, until: asyncio.Event) -> None:
        async with pool.use(pool.spec(name)):
            served.append(name)
            await until.wait()

    async def talk() -> None:
        over = asyncio.Event()
        first = asyncio.create_task(ask("a", over))
        while not served:
            await asyncio.sleep(0.01)
        other = asyncio.create_task(ask("b", over))
        while pool._leaving is None:
            await asyncio.sleep(0.01)
        later = asyncio.create_task(ask("a", over))
        await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(first, other, later)
        await pool.close()

    asyncio.run(asyncio.wait_for(talk(), 120))
    assert served == ["a", "b", "a"] and pool._leaving is None


async def _held(pool: ModelPool, name: str | None) -> Served:
    async with pool.use(pool.spec(name)) as served:
        return served


def test_a_model_beyond_the_budget_is_told() -> None:
    pool = ModelPool(SPECS, 10**8)
    with pytest.raises(LlavaError, match="GB; store it in fewer bits"):
        pool.preload(quiet)


def test_loras_of_one_base_share_it() -> None:
    base = base_name(EMBEDDED["llava-smol"])
    specs = [ModelSpec(name, "llava-smol", base=base) for name in ("a", "b")]
    pool = ModelPool(specs, 2 * 10**9)

    async def talk() -> None:
        first, second = await asyncio.gather(_held(pool, "a"), _held(pool, "b"))
        assert first is second and list(first.assistants) == ["a", "b"] and len(pool.loaded) == 1
        pairs = [
            (one.request([Message.user(Image(SHAPE), "what color is the shape?")]), Sampling(5))
            for one in first.assistants.values()
        ]
        texts = ["", ""]
        async for index, delta in first.engine.stream(pairs):
            texts[index] += delta.text
        assert texts == ["blue", "blue"]
        await pool.close()

    asyncio.run(talk())
