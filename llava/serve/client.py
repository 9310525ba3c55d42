"""A client of OpenAI's chat API: a conversation in, pieces of the answer out, errors as messages for people."""

import base64
import json
import mimetypes
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from llava.errors import LlavaError

_CONNECT, _READ = 5.0, 300.0  # seconds


class ApiClient:
    """Asks one server. base: its address with /v1; key: where it wants one."""

    def __init__(self, base: str, key: str | None = None) -> None:
        self.base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def models(self) -> list[str]:
        """The names of its models. Raises LlavaError."""
        try:
            answer = httpx.get(f"{self.base}/models", headers=self._headers, timeout=_CONNECT)
            if answer.status_code != httpx.codes.OK:
                raise LlavaError(_said(answer.status_code, answer.content))
            return [str(model["id"]) for model in answer.json()["data"]]
        except httpx.HTTPError as error:
            raise LlavaError(self._unreachable(error)) from None
        except (ValueError, KeyError, TypeError):
            raise LlavaError(f"{self.base} does not answer as OpenAI's API does") from None

    async def stream(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[str, None]:
        """The answer to a conversation, piece by piece. Raises LlavaError with what the server said."""
        body = {"messages": messages, "stream": True, **options}
        timeout = httpx.Timeout(_READ, connect=_CONNECT)
        try:
            async with (
                httpx.AsyncClient(headers=self._headers, timeout=timeout) as client,
                client.stream("POST", f"{self.base}/chat/completions", json=body) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    raise LlavaError(_said(answer.status_code, await answer.aread()))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        return
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise LlavaError(str(chunk["error"]["message"]))
                    for choice in chunk["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
                raise LlavaError("the server ended the answer before its end")
        except httpx.HTTPError as error:
            raise LlavaError(self._unreachable(error)) from None
        except (ValueError, KeyError, TypeError):
            raise LlavaError(f"{self.base} does not answer as OpenAI's API does") from None

    def _unreachable(self, error: httpx.HTTPError) -> str:
        return f"the server at {self.base} cannot be reached ({str(error) or type(error).__name__}); is it running?"


def data_url(path: Path) -> str:
    """A file as a data URL. Raises LlavaError where it cannot be read."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise LlavaError(f"{path.name} cannot be read ({error.strerror or error})") from None


def _said(status: int, body: bytes) -> str:
    """What an error's body says."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {status}"
