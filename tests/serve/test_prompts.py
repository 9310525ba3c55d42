"""From OpenAI's messages to ours."""

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from llava.chat.messages import Image, Message, Video
from llava.serve import prompts
from llava.serve.errors import ApiError
from llava.serve.prompts import MediaBytes, MediaLimits, count_visuals, read_messages
from llava.serve.schema import ChatRequest
from tests.serve.conftest import DATA_URL, SHAPE

PICTURE = {"type": "image_url", "image_url": {"url": DATA_URL}}
VIDEO = {"type": "video_url", "video_url": {"url": DATA_URL, "frames": 3}}


def read(messages: list[object], limits: MediaLimits | None = None, **fields: object) -> list[Message]:
    request = ChatRequest.model_validate({"messages": messages, **fields})

    async def whole() -> list[Message]:
        async with AsyncExitStack() as held:
            return await read_messages(request, limits or MediaLimits(), Path(folder), MediaBytes(), held)

    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(whole)


def test_parts_keep_their_order_and_what_one_says_is_one_turn() -> None:
    content = [{"type": "text", "text": "a"}, PICTURE, {"type": "text", "text": "b"}, VIDEO]
    found = read([{"role": "user", "content": content}, {"role": "user", "content": "c"}])
    (message,) = found
    kinds = [part if isinstance(part, str) else type(part) for part in message.content]
    assert kinds == ["a", Image, "b", Video, "\n", "c"]
    picture, video = message.content[1], message.content[3]
    assert isinstance(picture, Image) and picture.source == SHAPE.read_bytes()
    assert isinstance(video, Video) and video.frames == 3
    assert count_visuals(ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]})) == 2


def test_tools_are_told_in_the_system_message_and_calls_come_back() -> None:
    tool = {"type": "function", "function": {"name": "paint", "description": "Paints."}}
    call = {"id": "1", "type": "function", "function": {"name": "paint", "arguments": '{"color": "red"}'}}
    messages: list[object] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Paint it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    system, _, said, result = read(messages, tools=[tool])
    told = "".join(str(part) for part in system.content)
    assert told.startswith("Be brief.\n\n") and '"name":"paint"' in told and "<tool_call>" in told
    assert said.content == ('<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>',)
    assert result == Message.user("<tool_response>\ndone\n</tool_response>")
    assert read(messages, tools=[tool], tool_choice="none")[0] == Message.system("Be brief.")


@pytest.mark.parametrize(
    ("limits", "content", "message"),
    [
        (MediaLimits(images=1), [PICTURE, PICTURE], "more than 1 images"),
        (MediaLimits(videos=0), [VIDEO], "more than 0 videos"),
        (MediaLimits(frames=2), [VIDEO], "at most 2 frames"),
        (MediaLimits(image_bytes=10), [PICTURE], "MB of data"),
        (MediaLimits(all_bytes=SHAPE.stat().st_size + 10), [PICTURE, PICTURE], "MB of data"),
    ],
)
def test_a_request_brings_no_more_than_it_may(limits: MediaLimits, content: list[object], message: str) -> None:
    with pytest.raises(ApiError, match=message) as told:
        read([{"role": "user", "content": content}], limits)
    assert told.value.param is not None and told.value.param.startswith("messages[0].content[")


def test_fetched_bytes_of_all_requests_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fetch(url: str, limits: object, on_bytes: Callable[[int], None]) -> bytes:
        for _ in range(4):
            on_bytes(25)
            await anyio.sleep(0)
        return bytes(100)

    monkeypatch.setattr(prompts, "fetch_url", fetch)
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": [picture]}]})
    media = MediaBytes(250)

    async def ask(seconds: float) -> None:
        async with AsyncExitStack() as held:
            await read_messages(request, MediaLimits(), tmp_path, media, held)
            await anyio.sleep(seconds)

    async def talk() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0.05)
            group.start_soon(ask, 0.05)
            await anyio.sleep(0.02)
            assert media.held == 200
            with pytest.raises(ApiError, match="too many bytes at once") as told:
                await ask(0)
            assert told.value.status == 429 and media.held == 200
        assert media.held == 0
        await ask(0)

    anyio.run(talk)
