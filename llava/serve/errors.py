"""What a client did wrong, or the server cannot do, in OpenAI's format."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException


class ApiError(Exception):
    """An answer other than success. param: the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON that says it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """When to try again, where that helps."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def unavailable(message: str, retry_after: float) -> ApiError:
    """Too much to do for now."""
    return ApiError(429, message, "overloaded_error", "server_overloaded", retry_after=retry_after)


def failed(message: str) -> ApiError:
    """A fault of the server's."""
    return ApiError(500, message, "server_error", "internal_error")


def add_errors(app: FastAPI) -> None:
    """All errors in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        param, message = _first_mistake(error)
        return JSONResponse(ApiError(400, message, param=param).body(), 400)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        told = ApiError(error.status_code, str(error.detail))
        return JSONResponse(told.body(), told.status, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return JSONResponse(failed("an unforeseen error; it was logged").body(), 500)


def _first_mistake(error: RequestValidationError) -> tuple[str | None, str]:
    """The field that is wrong, and why: of several readings of it, the one that came furthest."""
    mistakes = error.errors()
    if mistakes[0]["type"] == "json_invalid":
        return None, f"the body is not JSON: {mistakes[0].get('ctx', {}).get('error', mistakes[0]['msg'])}"
    named = [(_path(mistake["loc"][1:], error.body, mistake["type"] == "missing"), mistake) for mistake in mistakes]
    path, mistake = max(named, key=lambda pair: len(pair[0]))
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    message: str = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error" and not text and ": " in message:
        text, _, message = message.partition(": ")
    return text or None, f"{text}: {message}" if text else message


def _path(steps: tuple[Any, ...], value: Any, missing: bool) -> list[int | str]:
    """The steps that lead through the body; pydantic puts names of types between them."""
    path: list[int | str] = []
    for place, step in enumerate(steps):
        if (isinstance(value, list) and isinstance(step, int) and step < len(value)) or (
            isinstance(value, dict) and step in value
        ):
            path.append(step)
            value = value[step]
        elif missing and place == len(steps) - 1:
            path.append(step)
    return path
