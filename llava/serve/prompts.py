"""From what a client sent to messages of ours: pictures and videos fetched, tools written out as text.

Tools are described in the system message, calls and results stand in tags: the format that Qwen's and Nous Research's
models were trained on (https://github.com/NousResearch/Hermes-Function-Calling).
"""

import base64
import binascii
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from llava.chat.messages import Image, Message, Role, Video, Visual
from llava.errors import LlavaError
from llava.media.remote import FetchLimits, fetch_url
from llava.serve.errors import ApiError, unavailable
from llava.serve.schema import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    NamedTool,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
    VideoPart,
)

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class MediaLimits:
    """What one request may bring."""

    images: int = 32
    videos: int = 4
    frames: int = 64  # of a video
    image_bytes: int = 20 << 20
    video_bytes: int = 40 << 20
    all_bytes: int = 100 << 20
    fetch_seconds: float = 20.0
    allow_private: bool = False


@dataclass(eq=False)
class MediaBytes:
    """What the pictures and videos that are fetched take as files, of all requests at once (bodies: GuardLimits)."""

    most: int = 1 << 30
    held: int = 0


def count_visuals(request: ChatRequest) -> int:
    """How many pictures and videos a request names."""
    return sum(
        not isinstance(part, TextPart)
        for message in request.messages
        if isinstance(message, UserMessage) and not isinstance(message.content, str)
        for part in message.content
    )


async def read_messages(
    request: ChatRequest, limits: MediaLimits, folder: Path, media: MediaBytes, held: AsyncExitStack
) -> list[Message]:
    """A request's conversation; videos are kept in `folder`. Raises ApiError, which names the field.

    media: gets what the request takes, until `held` ends.
    """
    turns: list[tuple[Role, list[str | Visual]]] = []
    left = _Allowance(limits, media)
    held.callback(left.give_back)
    for index, message in enumerate(request.messages):
        role: Role = "user"
        parts: list[str | Visual] = []
        if isinstance(message, UserMessage):
            content = [message.content] if isinstance(message.content, str) else message.content
            for place, part in enumerate(content):
                parts.append(await _read_part(part, left, folder, f"messages[{index}].content[{place}]"))
        elif isinstance(message, ToolMessage):
            parts = [f"<tool_response>\n{_text(message.content)}\n</tool_response>"]
        elif isinstance(message, AssistantMessage):
            role, parts = "assistant", [_said(message)]
        else:
            if index != len(turns) or (turns and turns[-1][0] != "system"):
                raise ApiError(400, "a system message stands before all others", param=f"messages[{index}].role")
            role, parts = "system", [_text(message.content)]
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(["\n", *parts])  # of one speaker, one after the other
        else:
            turns.append((role, parts))
    if turns[-1][0] != "user":
        raise ApiError(400, "the last message must be the user's (or a tool's)", param="messages")
    if tools := _described(request):
        if turns[0][0] == "system":
            turns[0][1].extend(["\n\n", tools])
        else:
            turns.insert(0, ("system", [tools]))
    return [Message(role, tuple(parts)) for role, parts in turns]


class _Allowance:
    """What a request may still bring."""

    def __init__(self, limits: MediaLimits, media: MediaBytes) -> None:
        self.limits, self.images, self.videos, self.bytes = limits, limits.images, limits.videos, limits.all_bytes
        self._media, self._taken = media, 0

    def take(self, size: int) -> None:
        """Count bytes that were fetched. Raises ApiError where all requests together have too many."""
        if self._media.held + size > self._media.most:
            raise unavailable("pictures and videos of too many bytes at once; try again later", 5)
        self._media.held += size
        self._taken += size

    def give_back(self) -> None:
        """The request has ended."""
        self._media.held -= self._taken


async def _read_part(
    part: str | TextPart | ImagePart | VideoPart, left: _Allowance, folder: Path, where: str
) -> str | Visual:
    limits = left.limits
    if isinstance(part, str):
        return part
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, ImagePart):
        left.images -= 1
        if left.images < 0:
            raise ApiError(400, f"more than {limits.images} images", code="too_many_images", param=where)
        return Image(await _data(part.image_url.url, limits.image_bytes, left, f"{where}.image_url.url"))
    left.videos -= 1
    if left.videos < 0:
        raise ApiError(400, f"more than {limits.videos} videos", code="too_many_videos", param=where)
    video = part.video_url
    frames = min(8, limits.frames) if video.frames is None else video.frames
    if frames > limits.frames:
        raise ApiError(400, f"at most {limits.frames} frames of a video are seen", param=f"{where}.video_url.frames")
    data = await _data(video.url, limits.video_bytes, left, f"{where}.video_url.url")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(data)
    return Video(Path(file.name), frames, video.fps)


async def _data(url: str, most: int, left: _Allowance, where: str) -> bytes:
    """The bytes that a URL holds or names."""
    most = min(most, left.bytes)
    if url[:5].lower() == "data:":
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ApiError(400, "expected a data URL in base64: data:image/png;base64,...", param=where)
        if len(body) * 3 // 4 > most + 2:
            raise ApiError(413, f"more than {most >> 20} MB of data", param=where)
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, f"the data URL is not valid base64: {error}", param=where) from None
    else:
        limits = FetchLimits(most, left.limits.fetch_seconds, left.limits.allow_private)
        try:
            data = await fetch_url(url, limits, left.take)
        except LlavaError as error:
            raise ApiError(400, str(error), code="invalid_image_url", param=where) from None
    left.bytes -= len(data)
    return data


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _said(message: AssistantMessage) -> str:
    calls = [
        f'{CALL}\n{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}\n{END_OF_CALL}'
        for call in message.tool_calls or []
    ]
    text = "" if message.content is None else _text(message.content)
    return "\n".join([*([text] if text else []), *calls])


def _described(request: ChatRequest) -> str:
    """What the model is told of the functions; nothing where it may call none."""
    tools = callable_tools(request)
    if not tools:
        return ""
    lines = [tool.model_dump_json(exclude_none=True) for tool in tools]
    return "\n".join(
        [
            "You may call these functions, described as JSON:",
            "<tools>",
            *lines,
            "</tools>",
            "To call one, answer with nothing but",
            CALL,
            '{"name": the function\'s name, "arguments": an object of its arguments}',
            END_OF_CALL,
        ]
    )


def callable_tools(request: ChatRequest) -> list[Tool]:
    """The functions that the answer may call."""
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        return [tool for tool in request.tools or [] if tool.function.name == name]
    return [] if request.tool_choice == "none" else list(request.tools or [])
