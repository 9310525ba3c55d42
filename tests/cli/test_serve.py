"""`llava serve` and `llava keys` as a user runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llava.cli.serve import named
from tests.cli.test_errors import MAIN, llava, mistake


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_DATA", str(tmp_path / "data"))


def test_keys_from_making_to_revoking() -> None:
    made = llava("keys", "create", "ann", "--requests-per-minute", 5)
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("llava-") and len(key) > 40
    shown = llava("keys", "list").stdout
    assert "ann" in shown and "5 requests" in shown and key not in shown
    assert llava("keys", "limit", "ann", "--tokens-per-day", 7).returncode == 0
    shown = llava("keys", "list").stdout
    assert "7 tokens" in shown and "5 requests" not in shown
    assert "ann" not in llava("keys", "usage").stdout
    assert llava("keys", "revoke", "ann").returncode == 0
    assert mistake("keys", "create", "ann").startswith("there is a key named 'ann' already")
    assert mistake("keys", "revoke", "bob") == "no key named 'bob'; there are: ann"
    assert llava("keys", "create", "a[/b] [red]").returncode == 0
    assert "a[/b] [red]" in llava("keys", "list").stdout


def test_mistakes_are_told_before_a_model_is_loaded() -> None:
    serve = ("serve", "--port", "0")  # the default may be in use, by another test
    assert "without keys the server listens on this machine only" in mistake(*serve, "--host", "0.0.0.0")
    assert "two models are named a" in mistake(*serve, "a=llava-smol", "a=other")
    assert "unknown model 'nope'" in mistake(*serve, "nope")


def test_a_server_with_keys_ends_whole_on_sigterm() -> None:
    key = llava("keys", "create", "ann").stdout.strip()
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("Serving llava-smol at http://127.0.0.1:") and "with the keys of" in line
        address = line.split()[3]
        assert httpx.get(f"{address}/models").status_code == 401
        asked = {"prompt": "One", "max_tokens": 3}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{address}/completions", json=asked, headers=headers, timeout=60)
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "Traceback" not in rest
    assert "key=ann prompt=1 answer=3 end=length" in rest
    assert "ann" in llava("keys", "usage").stdout


def test_a_folder_is_served_by_its_path_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "lr=3e-4").mkdir()
    assert named(str(tmp_path / "lr=3e-4")) == ("lr=3e-4", str(tmp_path / "lr=3e-4"))
    assert named("a=llava-smol") == ("a", "llava-smol") and named("llava-smol") == ("llava-smol", "llava-smol")
