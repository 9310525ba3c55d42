"""Running the application: uvicorn, with a limit on how slowly a client may send a request's head or read an answer."""

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava.errors import LlavaError


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose patience ends: with clients that never finish a request, or never read their answer."""

    head_seconds = 20.0  # until the head of a request is there, after the first byte could have come
    read_seconds = 60.0  # that a client may take nothing of what waits for it

    _head: asyncio.TimerHandle | None = None
    _read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head, self._read):
            if timer is not None:
                timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read is not None:
            self._read.cancel()

    def _await_head(self) -> None:
        """End the connection if no further request has begun in time."""
        if self._head is not None:
            self._head.cancel()
        before: Any = self.cycle

        def check() -> None:
            if self.cycle is before and (before is None or before.response_complete):  # else it came right behind
                self.transport.abort()

        self._head = self.loop.call_later(self.head_seconds, check)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises LlavaError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise LlavaError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None


def configure(app: FastAPI, protocol: type[PatientProtocol] = PatientProtocol) -> uvicorn.Config:
    """How uvicorn serves an application."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
        proxy_headers=False,
    )


def run(app: FastAPI, where: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then no request is taken any more, and those that were taken finish.

    A second Ctrl-C ends at once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn heeds them, then raises them again: all is done by then
    uvicorn.Server(configure(app)).run(sockets=[where])
