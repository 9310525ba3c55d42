"""A real server on loopback with the embedded model, in a thread of the tests' process."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from llava.serve.api import Server, ServerLimits, create_app
from llava.serve.keys import KeyStore
from llava.serve.metrics import Metrics
from llava.serve.pool import ModelPool, ModelSpec
from llava.serve.server import PatientProtocol, configure, listen

SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"  # blue
DATA_URL = "data:image/png;base64," + base64.b64encode(SHAPE.read_bytes()).decode()


@contextmanager
def serving(server: Server, protocol: type[PatientProtocol] = PatientProtocol) -> Iterator[str]:
    """Run a server while the block lasts; its address."""
    socket = listen("127.0.0.1", 0)
    running = uvicorn.Server(configure(create_app(server), protocol))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def new_server(pool: ModelPool, keys: KeyStore | None = None, limits: ServerLimits | None = None) -> Server:
    """A server over a pool."""
    return Server(pool, keys, limits or ServerLimits(), Metrics(pool))


@pytest.fixture(scope="session")
def pool() -> ModelPool:
    """The embedded model, under two names."""
    return ModelPool([ModelSpec("llava-smol", "llava-smol"), ModelSpec("other", "llava-smol", "int8")], 6 * 10**9)


@pytest.fixture(scope="session")
def served(pool: ModelPool) -> Iterator[tuple[str, Server]]:
    """The address of a server without keys, and what stands behind it."""
    server = new_server(pool)
    with serving(server) as address:
        yield address, server
