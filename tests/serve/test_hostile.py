"""What strangers and accidents do to a server: `llava serve` as a user runs it, and limits made short in process."""

import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import PIL.Image
import pytest

from llava.serve.api import ServerLimits
from llava.serve.guard import GuardLimits
from llava.serve.pool import ModelPool
from llava.serve.server import PatientProtocol
from tests.cli.test_errors import BOMB, MAIN, llava
from tests.serve.conftest import new_server, serving

PATIENCE = 120.0  # seconds: generous, what hangs fails
LONG = {"prompt": "One", "max_tokens": 2000, "logit_bias": {"0": -100, "1": -100, "2": -100}}  # no end of text
CHAT = "/v1/chat/completions"


@dataclass(eq=False)
class Running:
    """A `llava serve` process. lines: of its stderr so far."""

    process: subprocess.Popen[str]
    address: str
    lines: list[str]
    reader: threading.Thread

    @property
    def where(self) -> tuple[str, int]:
        parts = urlsplit(self.address)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port


@contextmanager
def started(data: Path) -> Iterator[Running]:
    """Run `llava serve` while the block lasts."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0"]
    env = {**os.environ, "LLAVA_DATA": str(data), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("Serving llava-smol at http://"), first + process.stderr.read()
            lines: list[str] = []
            reader = threading.Thread(target=lines.extend, args=(process.stderr,))
            reader.start()
            yield Running(process, first.split()[3].removesuffix("/v1"), lines, reader)
        finally:
            process.kill()
            process.wait()
        reader.join()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("data")) as running:
        yield running
        assert httpx.get(running.address + "/health", timeout=PATIENCE).status_code == 200  # it outlived all of it
    assert "Traceback" not in "".join(running.lines)


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.address, timeout=PATIENCE) as client:
        yield client


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def question(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1}


def pictured(data: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1}


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    connection.settimeout(PATIENCE)
    data = b""
    try:
        while block := connection.recv(1 << 16):
            data += block
    except ConnectionResetError:
        pass
    return data


def head(path: str, length: int, **more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in more.items()), "", ""]).encode()


def until(done: Callable[[], bool]) -> None:
    """Look again and again; fail where it stays so."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def figure(client: httpx.Client, name: str) -> float:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def busy(client: httpx.Client) -> float:
    return figure(client, "llava_running") + figure(client, "llava_waiting")


# --- bodies ---


def broken_bodies() -> dict[str, bytes]:
    deep = 100_000
    return {
        "empty": b"",
        "not JSON": b"{'messages': 1}",
        "cut off": b'{"prompt": "One',
        "not UTF-8": b'{"prompt": "\xff\xfe"}',
        "not an object": b"[1, 2]",
        "null": b"null",
        "deep lists": b"[" * deep + b"]" * deep,
        "deep objects": b'{"prompt":' * deep + b"1" + b"}" * deep,
        "open brackets": b"[" * deep,
        "a deep prompt": b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}",
        "a long number": b'{"prompt": "One", "max_tokens": ' + b"9" * 100_000 + b"}",
        "half a pair": b'{"prompt": "\\ud800"}',
        "half a pair as a key": b'{"prompt": "One", "\\ud800": 1}',
        "half a pair as a model": b'{"prompt": "One", "model": "\\ud800"}',
        "not a number": b'{"prompt": "One", "temperature": NaN}',
        "infinite": b'{"prompt": "One", "repetition_penalty": Infinity}',
        "many keys": json.dumps({f"key{i}": 1 for i in range(50_000)}).encode(),
    }


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
@pytest.mark.parametrize("name", list(broken_bodies()))
def test_broken_bodies_are_told(client: httpx.Client, path: str, name: str) -> None:
    body = broken_bodies()[name].replace(b'"prompt"', b'"prompt"' if path == "/v1/completions" else b'"messages"')
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404), answer.text[:500]
    assert error(answer)["type"] == "invalid_request_error"
    assert len(answer.content) < 10_000


def test_a_deep_schema_is_told(client: httpx.Client) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(150):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    answer = client.post(CHAT, json=question("hi") | {"tools": [tool]})
    assert answer.status_code == 400 and "over 100 deep" in error(answer)["message"]


def test_half_a_surrogate_pair_in_a_message(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=json.dumps(question("a \ud800")), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "surrogate" in error(answer)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types_are_told(client: httpx.Client, kind: str) -> None:
    answer = client.post("/v1/completions", content=b'{"prompt": "One"}', headers={"Content-Type": kind})
    assert answer.status_code == 400 and error(answer)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 10**30),
        ("top_k", 10**30),
        ("stop", ["x" * 1000] * 16),
        ("temperature", 1e-320),
        ("top_p", 1e-320),
        ("repetition_penalty", 1e-320),
        ("logit_bias", {"5": 1e-320}),
    ],
)
def test_extreme_values_do_no_harm(client: httpx.Client, field: str, value: Any) -> None:
    answer = client.post("/v1/completions", json=LIMITED | {"n": 2, field: value})
    assert answer.status_code in (200, 400), answer.text


LIMITED = {"prompt": "One", "max_tokens": 2, "stop": ["e", "a", " ", "\n", "o"]}  # ends soon in any case


def test_a_body_over_the_limit(running: Running) -> None:
    limit = GuardLimits().body_bytes
    with socket.create_connection(running.where, timeout=PATIENCE) as connection:
        connection.sendall(head("/v1/completions", limit * 2))
        block = bytes(1 << 20)
        for _ in range(limit >> 20):
            connection.sendall(block)
        connection.sendall(b"x")
        assert b"HTTP/1.1 413 " in read_all(connection)


@pytest.mark.parametrize(
    "text",
    ["word " * 1_000_000, "a" * 5_000_000, "word " * 150_000, "a" * 800_000, "\U0001f642" * 200_000],
    ids=["a million words", "a long word", "many words", "a word", "faces"],
)
def test_giant_prompts_are_refused_at_once(client: httpx.Client, text: str) -> None:
    for path, body in ((CHAT, question(text)), ("/v1/completions", {"prompt": text, "max_tokens": 1})):
        answer = client.post(path, json=body, timeout=30)
        assert answer.status_code == 400 and error(answer)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "regex", "pattern": "(((a{1000}){1000}){1000}){1000}"},
        {"type": "regex", "pattern": "(" * 10_000 + "a" + ")" * 10_000},
        {"type": "regex", "pattern": "(a*)*" * 2000 + "["},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1:9/"}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "minItems": 10**9}}},
    ],
    ids=["repeats", "brackets", "stars", "itself", "elsewhere", "items"],
)
def test_hostile_grammars(client: httpx.Client, asked: dict[str, Any]) -> None:
    answer = client.post(CHAT, json=question("hi") | {"response_format": asked}, timeout=60)
    assert answer.status_code in (200, 400), answer.text


# --- pictures ---


def test_a_decompression_bomb(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=pictured(BOMB), timeout=30)
    assert answer.status_code == 400 and "too many pixels" in error(answer)["message"]


def small_pictures() -> dict[str, bytes]:
    picture = PIL.Image.radial_gradient("L").resize((24, 24)).convert("RGB")
    files = {}
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        file = io.BytesIO()
        picture.save(file, kind)
        files[kind] = file.getvalue()
    return files


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 5, 20))):
        at = chance.randrange(len(changed) if chance.random() < 0.5 else min(64, len(changed)))  # half in the header
        changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.1 else changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_mutated_pictures(client: httpx.Client, kind: str) -> None:
    whole, chance, statuses = small_pictures()[kind], random.Random(kind), set()
    assert client.post(CHAT, json=pictured(whole)).status_code == 200
    for _ in range(20):
        data = mutated(whole, chance)
        answer = client.post(CHAT, json=pictured(data))
        assert answer.status_code in (200, 400), f"{answer.text}: {data.hex()}"
        statuses.add(answer.status_code)
    assert 400 in statuses  # or it tested nothing


# --- connections ---


def test_other_hosts_are_refused(client: httpx.Client) -> None:
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "localhost@evil.example",
        "evil_1.example",
        "a b",
        "127.0.0.1:x",
    ):
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path, headers={"Host": host}).status_code == 403, (host, path)


def test_a_client_that_leaves_in_a_stream(client: httpx.Client) -> None:
    left = figure(client, "llava_cancelled_total")
    with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
        lines = answer.iter_lines()  # a name: httpx closes the connection when the iterator is let go
        first = next(lines)
        assert first.startswith('data: {"id"'), first
        assert busy(client) == 1, first
    until(lambda: busy(client) == 0)
    assert figure(client, "llava_cancelled_total") == left + 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_its_first_token(running: Running, client: httpx.Client, stream: bool) -> None:
    left = figure(client, "llava_cancelled_total")
    body = json.dumps(LONG | {"prompt": "word " * 1200, "stream": stream}).encode()
    with socket.create_connection(running.where, timeout=PATIENCE) as connection:
        connection.sendall(head("/v1/completions", len(body)) + body)
        until(lambda: busy(client) == 1)
    until(lambda: busy(client) == 0)
    until(lambda: figure(client, "llava_cancelled_total") == left + 1)


class Impatient(PatientProtocol):
    head_seconds = read_seconds = 0.5

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # soon full
        super().connection_made(transport)


def test_patience_ends_with_slow_clients(pool: ModelPool) -> None:
    limits = ServerLimits(guard=GuardLimits(body_bytes=1 << 20, body_seconds=0.5))
    server = new_server(pool, limits=limits)
    with serving(server, Impatient) as address, httpx.Client(base_url=address, timeout=PATIENCE) as client:
        where = (urlsplit(address).hostname, urlsplit(address).port)
        with socket.create_connection(where) as silent:
            assert read_all(silent) == b""
        with socket.create_connection(where) as slow:
            over = threading.Event()

            def drip() -> None:
                while not over.wait(0.05):
                    try:
                        slow.sendall(b"X-Long: x\r\n")
                    except OSError:
                        return

            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
            thread = threading.Thread(target=drip)
            thread.start()
            assert read_all(slow) == b""
            over.set()
            thread.join()
        with socket.create_connection(where) as slow:
            slow.sendall(head("/v1/completions", 1000) + b'{"prompt":')
            assert b"HTTP/1.1 408 " in read_all(slow)
        with socket.create_connection(where) as large:
            large.sendall(head("/v1/completions", 2 << 20) + bytes((1 << 20) + 1))
            assert b"HTTP/1.1 413 " in read_all(large)
        assert client.get("/health").status_code == 200


def test_a_request_right_behind_another_has_its_time(pool: ModelPool) -> None:
    body = json.dumps(LONG | {"max_tokens": 100, "stream": True}).encode()
    with serving(new_server(pool), Impatient) as address:
        where = (urlsplit(address).hostname, urlsplit(address).port)
        with socket.create_connection(where) as both:
            first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            both.sendall(first + head("/v1/completions", len(body), Connection="close") + body)
            answer = read_all(both)
    assert b'{"status":"ok"}' in answer and b"data: [DONE]" in answer


def test_a_client_that_never_reads(pool: ModelPool) -> None:
    server = new_server(pool)
    body = json.dumps(LONG | {"n": 8, "logprobs": 20, "stream": True}).encode()
    with serving(server, Impatient) as address, httpx.Client(base_url=address, timeout=PATIENCE) as client:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((urlsplit(address).hostname, urlsplit(address).port))
            deaf.sendall(head("/v1/completions", len(body)) + body)
            until(lambda: busy(client) > 0)
            until(lambda: busy(client) == 0)
        assert figure(client, "llava_cancelled_total") == 1


# --- the end ---


def test_sigterm_in_a_stream(tmp_path: Path) -> None:
    with started(tmp_path) as running, httpx.Client(base_url=running.address, timeout=PATIENCE) as client:
        with client.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 150, "stream": True}) as answer:
            lines = answer.iter_lines()
            seen = [next(lines)]
            running.process.send_signal(signal.SIGTERM)
            until(lambda: refused(running.where))
            seen += [line for line in lines if line]
        assert seen[-1] == "data: [DONE]"
        assert json.loads(seen[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(PATIENCE) == 0
    assert "Traceback" not in "".join(running.lines)


def refused(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where, timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_kill_in_a_stream_keeps_keys_and_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_DATA", str(tmp_path))
    key = llava("keys", "create", "ann", "--requests-per-day", 2).stdout.strip()
    headers = {"Authorization": f"Bearer {key}"}
    with started(tmp_path) as running, httpx.Client(base_url=running.address, timeout=PATIENCE) as client:
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: SIM117
            with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}, headers=headers) as answer:
                lines = answer.iter_lines()
                next(lines)
                running.process.kill()
                list(lines)
        running.process.wait()
    with started(tmp_path) as running, httpx.Client(base_url=running.address, timeout=PATIENCE) as client:
        assert client.get("/v1/models").status_code == 401
        asked = {"prompt": "One", "max_tokens": 1}
        assert client.post("/v1/completions", json=asked, headers=headers).status_code == 200  # the second
        answer = client.post("/v1/completions", json=asked, headers=headers)
        assert answer.status_code == 429 and error(answer)["code"] == "rate_limit_exceeded"
