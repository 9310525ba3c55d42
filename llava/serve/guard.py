"""What stands before the application: whether a request is let in at all, and how much of a body may come, how slowly.

It decides before a body is read: a stranger's does not take memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.errors import ApiError

_CLOSE = {"Connection": "close"}  # what follows on the connection is not a request


@dataclass(frozen=True)
class GuardLimits:
    """Of one request's body: bytes, and seconds until all of it is there. all_bytes: of all bodies at once."""

    body_bytes: int = 64 << 20
    body_seconds: float = 60.0
    all_bytes: int = 1 << 30


class Guard:
    """ASGI middleware. admit: raises ApiError for a request that is refused. requests: counted by path and status."""

    def __init__(
        self, app: ASGIApp, limits: GuardLimits, admit: Callable[[HTTPConnection], None], requests: Counter
    ) -> None:
        self._app, self._limits, self._admit, self._requests = app, limits, admit, requests
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken, complete, begun = 0, False, False
        deadline = anyio.current_time() + self._limits.body_seconds

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not come within {self._limits.body_seconds:g} seconds"
                raise HTTPException(408, late, _CLOSE) from None
            taken += len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._limits.body_bytes:
                raise HTTPException(413, f"the body is over {self._limits.body_bytes >> 20} MB", _CLOSE)
            if self._held > self._limits.all_bytes:
                raise HTTPException(429, "requests of too many bytes at once", {**_CLOSE, "Retry-After": "5"})
            return message

        def count(status: int) -> None:
            nonlocal begun
            begun = True
            path = getattr(scope.get("route"), "path", "other")  # a known one: paths are a stranger's text
            self._requests.labels(path, str(status)).inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            self._admit(HTTPConnection(scope))
        except ApiError as error:
            await JSONResponse(error.body(), error.status, {**error.headers(), **_CLOSE})(scope, receive, counted)
            return
        try:
            await self._app(scope, limited, counted)
        except Exception:
            if not begun:  # its answer is made outside, by Starlette
                count(500)
            raise
        finally:
            self._held -= taken
