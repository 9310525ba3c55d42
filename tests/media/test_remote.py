"""Fetching what a stranger's URL names: what is refused, and what is given, by real servers on loopback."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llava.errors import LlavaError
from llava.media.remote import FetchLimits, fetch_url, is_public

OPEN = FetchLimits(1 << 20, allow_private=True)
CLOSED = FetchLimits(1 << 20)
BODY = b"a picture"


class Handler(BaseHTTPRequestHandler):
    """One path for each kind of answer. The server's `over` is set when slow ones may end."""

    over: threading.Event

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # the client left: for some answers it must
            getattr(self, f"_{self.path.strip('/').partition('?')[0]}")()

    def log_message(self, *_: object) -> None: ...

    def _fine(self) -> None:
        self._head(200, {"Content-Length": str(len(BODY))})
        self.wfile.write(BODY)

    def _missing(self) -> None:
        self._head(404, {"Content-Length": "0"})

    def _once(self) -> None:
        self._head(302, {"Location": "/fine"})

    def _loudly(self) -> None:
        self._head(302, {"LOCATION": "/fine"})

    def _again(self) -> None:
        self._head(302, {"Location": "/again"})

    def _file(self) -> None:
        self._head(302, {"Location": "file:///etc/hostname"})

    def _inside(self) -> None:
        self._head(302, {"Location": f"http://127.0.0.2:{self.server.server_port}/fine"})  # type: ignore[attr-defined]

    def _endless(self) -> None:
        self._head(200, {})
        while True:
            self.wfile.write(bytes(1 << 16))

    def _redirect_endless(self) -> None:
        self._head(302, {"Location": "/fine"})
        while True:
            self.wfile.write(bytes(1 << 16))

    def _slow(self) -> None:
        self._head(200, {"Content-Length": "1000"})
        while not self.over.wait(0.05):
            self.wfile.write(b"x")

    def _silent(self) -> None:
        self.over.wait()

    def _garbage(self) -> None:
        self.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    Handler.over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Handler.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, limits: FetchLimits = OPEN) -> bytes:
    return asyncio.run(fetch_url(url, limits))


def refusal(url: str, limits: FetchLimits = OPEN) -> str:
    with pytest.raises(LlavaError) as caught:
        fetch(url, limits)
    return str(caught.value)


@pytest.mark.parametrize("path", ["fine", "once", "loudly", "redirect_endless", "fine#part", "fine?a b=ä"])
def test_what_a_url_names_is_given(address: str, path: str) -> None:
    assert fetch(f"{address}/{path}") == BODY


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",  # 127.0.0.1 in decimal
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",  # a cloud's metadata
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fc00::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",  # 6to4
    ],
)
def test_private_addresses_are_refused(host: str) -> None:
    assert refusal(f"http://{host}:9/", CLOSED).endswith("is a private address; only public ones are fetched from")


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_the_internets_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_a_redirect_to_a_private_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.media.remote.is_public", lambda ip: ip == "127.0.0.1")
    assert fetch(f"{address}/fine", CLOSED) == BODY
    assert refusal(f"{address}/inside", CLOSED).startswith("127.0.0.2: is a private address")


def resolve_as(monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop, answers: list[list[str]]) -> list[str]:
    """Names are looked up in `answers`, the last of which stays; the names that were asked for."""
    asked = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        given = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in given]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return asked


def test_what_is_connected_to_is_what_was_checked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.media.remote.is_public", lambda ip: ip == "127.0.0.1")
    url = f"http://rebinding.example:{address.rpartition(':')[2]}/fine"

    async def run() -> None:
        asked = resolve_as(monkeypatch, asyncio.get_running_loop(), [["127.0.0.1"], ["127.0.0.2"]])
        assert await fetch_url(url, CLOSED) == BODY
        assert asked == ["rebinding.example"]
        with pytest.raises(LlavaError, match="private"):
            await fetch_url(url, CLOSED)

    asyncio.run(run())


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        resolve_as(monkeypatch, asyncio.get_running_loop(), [["93.184.215.14", "127.0.0.1"]])
        with pytest.raises(LlavaError, match="private"):
            await fetch_url("http://both.example/", CLOSED)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("endless", "over 1 MB, the limit"),
        ("again", "more than 5 redirects"),
        ("file", "expected a URL that begins with http:// or https://"),
        ("missing", "the server answers with status 404"),
        ("garbage", "cannot be fetched"),
    ],
)
def test_answers_that_are_refused(address: str, path: str, expected: str) -> None:
    assert expected in refusal(f"{address}/{path}")


@pytest.mark.parametrize("path", ["slow", "silent"])
def test_patience_ends(address: str, path: str) -> None:
    limits = FetchLimits(1 << 20, seconds=0.3, allow_private=True)
    assert "no whole answer within 0.3 seconds" in refusal(f"{address}/{path}", limits)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/a",
        "//127.0.0.1/a",
        "http:///a",
        "",
        "http://ann:secret@127.0.0.1/a",
        "http://ann@127.0.0.1/a",
        "http://:secret@127.0.0.1/a",
        "http://@127.0.0.1/a",
        f"http://127.0.0.1/{'a' * 9000}",
    ],
)
def test_urls_of_other_kinds_are_refused(url: str) -> None:
    assert "expected a URL that begins with http:// or https://" in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://[::1/",
        "http://[nonsense]/",
        f"http://{'a' * 70}.example/",
        "http://a\x00b/",
        "http://127.0.0.1:9/\ud800",
        "http://127.0.0.1:9/a b\tc",
        "http://\ud800/",
        "http://..example/",
    ],
)
def test_broken_urls_are_told(url: str) -> None:
    assert refusal(url)
