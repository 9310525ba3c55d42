"""Models by their id on the hub, against a hub of our own: a server on loopback that speaks the part of its API that
`huggingface_hub` asks for."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava.registry import published_template
from scripts.random_checkpoints import write_checkpoint

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/some-llava"
CUT = 11 * 2**20  # bytes; the library writes, and so keeps, pieces of 10 MB


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as a model's repository. `cut` makes it break off one download in its middle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.cut: str | None = None
        self.asked: list[tuple[str, str, str | None]] = []  # method, file, range


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{NAME}"):
            names = sorted(file.name for file in self.server.folder.iterdir())
            siblings = [{"rfilename": name} for name in names]
            listing: object = {"id": NAME, "sha": REVISION, "siblings": siblings, "private": False, "tags": []}
            if "/tree/" in path:
                sizes = {file.name: file.stat().st_size for file in self.server.folder.iterdir()}
                listing = [{"type": "file", "path": name, "size": sizes[name], "oid": name} for name in names]
            self.send(json.dumps(listing).encode(), "application/json", with_body)
            return
        file = self.server.folder / path.rpartition("/")[2]
        if not path.startswith(f"/{NAME}/resolve/") or not file.exists():
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append((self.command, file.name, wanted))
        self.send(file.read_bytes(), "application/octet-stream", with_body, wanted, file.name)

    def send(self, body: bytes, kind: str, with_body: bool, wanted: str | None = None, name: str = "") -> None:
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not with_body:
            return
        if name and name == self.server.cut and start == 0:
            self.wfile.write(body[:CUT])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body[start:])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_checkpoint(tmp_path / "repository", "llava", "llama", seed=4)
    server = Hub(tmp_path / "repository")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def llava(hub: Hub, home: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), **settings}
    command = [str(Path(sys.executable).parent / "llava"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


ASKED = ("chat", NAME, "--prompt", "What is this?", "--max-new-tokens", "3")


def test_a_model_is_fetched_once_and_then_used_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    done = llava(hub, tmp_path / "home", *ASKED)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    fetched = [name for method, name, _ in hub.asked if method == "GET"]
    assert fetched.count("model.safetensors") == 1
    hub.asked.clear()
    again = llava(hub, tmp_path / "home", *ASKED, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout and not hub.asked


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut = "model.safetensors"
    done = llava(hub, tmp_path / "home", *ASKED)
    ranges = [wanted for method, name, wanted in hub.asked if (method, name) == ("GET", "model.safetensors")]
    if done.returncode:  # the library gave up: the next call goes on
        assert done.returncode == 2 and "the same command goes on from there" in done.stderr
        assert "Traceback" not in done.stderr
        hub.asked.clear()
        done = llava(hub, tmp_path / "home", *ASKED)
        ranges = [wanted for method, name, wanted in hub.asked if (method, name) == ("GET", "model.safetensors")]
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert ranges[-1] is not None and int(ranges[-1].removeprefix("bytes=").partition("-")[0]) >= 10 * 2**20


def test_an_unknown_id_is_one_clear_line(hub: Hub, tmp_path: Path) -> None:
    done = llava(hub, tmp_path / "home", "chat", "someone/else", "--prompt", "hi")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "'someone/else' is no folder, and cannot be fetched from the hub" in done.stderr
    done = llava(hub, tmp_path / "home", "chat", "someone/else", "--prompt", "hi", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "cannot be fetched from the hub" in done.stderr


def test_the_template_of_the_originals_is_known_by_their_id() -> None:
    assert published_template("liuhaotian/llava-v1.6-34b") == "chatml_direct"
    assert published_template("liuhaotian/llava-llama-2-13b-chat-lightning-preview") == "llava_llama_2"
    assert published_template("llava-hf/llava-1.5-7b-hf") is None  # it brings its own
    assert published_template(NAME) is None
