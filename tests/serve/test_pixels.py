"""Decoded pixels of all requests: counted by headers, and never more than there is room for."""

import asyncio
import io

import PIL.Image
import pytest

from llava import Image, Message
from llava.serve.errors import ApiError
from llava.serve.pixels import PixelBudget


def picture(side: int) -> Image:
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side)).save(file, "PNG")
    return Image(file.getvalue())


def test_requests_wait_for_room_and_give_it_back() -> None:
    budget, most = PixelBudget(25_000), 0

    async def ask(side: int) -> None:
        nonlocal most
        async with budget.room_for([Message.user(picture(side), picture(side), "Which?")]):
            most = max(most, budget.held)
            await asyncio.sleep(0.01)

    async def talk() -> None:
        await asyncio.gather(*(ask(100) for _ in range(5)))
        waiting = [asyncio.create_task(ask(100)) for _ in range(3)]
        await asyncio.sleep(0.005)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(ApiError, match="28,800 pixels in all, the limit is 25,000"):
            await ask(120)

    asyncio.run(talk())
    assert most == 20_000 and budget.held == 0


def test_what_is_no_picture_takes_no_room() -> None:
    async def talk() -> None:
        async with PixelBudget(1).room_for([Message.user(Image(b"no picture"), "What?")]):
            pass

    asyncio.run(talk())


def test_who_brings_no_picture_waits_for_nobody() -> None:
    budget, talked = PixelBudget(10_000), []

    async def show(seconds: float) -> None:
        async with budget.room_for([Message.user(picture(100), "Which?")]):
            await asyncio.sleep(seconds)

    async def talk() -> None:
        shown = [asyncio.create_task(show(0.2)) for _ in range(2)]  # the second waits for the first
        await asyncio.sleep(0.1)
        async with budget.room_for([Message.user("hi")]):
            talked.append(all(not task.done() for task in shown))
        await asyncio.gather(*shown)

    asyncio.run(talk())
    assert talked == [True]
