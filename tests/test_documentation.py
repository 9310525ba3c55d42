"""Every command and snippet shown in the README and docs/ runs. Long ones run cut short, by the arguments below."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "llava/embedded/llava-smol/README.md"]
# CI itself makes and installs (.ci/run), `make llava-smol` takes 90 minutes, and peers take ten to compile; what needs
# the catalogue fetches 500 MB from npm and Debian: tests/pictures and tests/eval run it on a small one
CATALOGUE = ("llava eval smol-suite", "python benchmarks/encoders.py", "python scripts/smol_data.py")
LONG = ("llava train recipes/llava-smol-", "python scripts/smol_nearest.py", "python scripts/smol_sheet.py", *CATALOGUE)
MODELS = "llava models"  # tests/cli/test_published.py runs it
ELSEWHERE = ("make ", "benchmarks/peers.sh", "python benchmarks/engine.py", "pip install", MODELS, *LONG)
SHORTER = {  # arguments added to a command, by how it begins
    "llava eval": ["--limit", "10", "--output", "{tmp}/eval", "--restart"],
    "llava train recipes/easy-vqa-align.yaml": [
        "output={tmp}/align",
        "max_steps=1",
        "batch_size=2",
        "data.path={tmp}/small/align.json",
        "data.images={tmp}/data/images",
    ],
    "llava train recipes/easy-vqa-finetune.yaml model=llava-smol": ["output={tmp}/mine", "max_steps=1", "batch_size=2"],
    "llava train recipes/easy-vqa-finetune.yaml": [
        "output={tmp}/finetune",
        "max_steps=1",
        "batch_size=2",
        "model=llava-smol",
        "data.path={tmp}/small/finetune.json",
        "data.images={tmp}/data/images",
    ],
    "python scripts/easy_vqa_data.py": ["{tmp}/data"],
    "python scripts/parity.py": ["{tmp}/parity.md", "--configs", "1", "--images", "3", "--rows", "2"],
    "python benchmarks/chat.py": ["--repeats", "1", "--short"],
    "python benchmarks/soak.py": ["--requests", "20"],
    "python benchmarks/precision.py": ["--questions", "2", "--windows", "1", "--answers", "3", "--precision", "int8"],
    "python benchmarks/lookup.py": ["--rounds", "1", "--precision", "float16", "--tokens", "8"],
    "python benchmarks/limits.py": ["llava-smol", "--precision", "int8", "--beside-8bit", "--starts", "1"],
    "python benchmarks/serve.py load": ["--clients", "4", "--seconds", "2"],
    "python benchmarks/serve.py throughput": ["--requests", "4"],
    "python scripts/random_model.py": ["{tmp}/random", "--layers", "1"],
    "python benchmarks/memory.py": ["{tmp}/random", "--precision", "int8", "--tokens", "2"],
}
WRITTEN = "llava-smol-int4"  # a folder that one command makes and the next one reads


def blocks(language: str) -> list[str]:
    return [
        block
        for page in PAGES
        for block in re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    ]


def commands() -> list[str]:
    lines = [line.strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory, ran: set[tuple[str, ...]]) -> Path:
    """A folder with easy-VQA as training data, made by the command that is shown, and its first rows in `small/`."""
    import json

    folder = tmp_path_factory.mktemp("documentation")
    words = ("python", "scripts/easy_vqa_data.py", str(folder / "data"))
    subprocess.run(words, cwd=ROOT, env=environment(), check=True)
    ran.add(words)
    (folder / "small").mkdir()
    for name in ("align.json", "finetune.json"):
        rows = json.loads((folder / "data" / name).read_text())
        (folder / "small" / name).write_text(json.dumps(rows[:4]))
    return folder


@pytest.fixture(scope="module")
def ran() -> set[tuple[str, ...]]:
    """Shortened commands that have been run."""
    return set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`llava serve`, as it is shown, at the address that the shown clients use."""
    folder = tmp_path_factory.mktemp("data")
    variables = {**environment(), "LLAVA_DATA": str(folder)}
    with subprocess.Popen(["llava", "serve"], cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        assert lines[0].startswith("Serving llava-smol at http://127.0.0.1:8000/v1"), lines
        yield
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


# `llava web` runs in tests/serve/test_web.py
def needs_server(text: str) -> bool:
    return "127.0.0.1:8000" in text


@pytest.mark.parametrize(
    "command", [c for c in commands() if not c.startswith((*ELSEWHERE, "llava serve", "llava web"))]
)
def test_a_shown_command_runs(
    command: str, tmp: Path, ran: set[tuple[str, ...]], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs_server(command):
        request.getfixturevalue("server")
    monkeypatch.setenv("LLAVA_DATA", str(tmp / "keys"))  # the user's own keys stay as they are
    words = [str(tmp / word) if word == WRITTEN else word for word in shlex.split(command)]
    extra = next((arguments for start, arguments in SHORTER.items() if command.startswith(start)), [])
    if extra and command.startswith(("python scripts/", "python benchmarks/memory.py", "python benchmarks/limits.py")):
        words = words[:2]
    words += [word.replace("{tmp}", str(tmp)) for word in extra]
    if words[:2] == ["llava", "train"] and "--dry-run" not in words:
        for name in ("align", "finetune"):  # a finished run is not run again
            shutil.rmtree(tmp / name, ignore_errors=True)
    if extra and tuple(words) in ran:  # shortened, two commands that are shown are one
        return
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or command.startswith("llava keys revoke")
    ran.add(tuple(words))


@pytest.mark.parametrize("snippet", blocks("python"))
def test_a_shown_snippet_runs(snippet: str, request: pytest.FixtureRequest) -> None:
    if needs_server(snippet):
        request.getfixturevalue("server")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = {name for page in PAGES for name in re.findall(r"`?make ([a-z-]+)`", page.read_text(encoding="utf-8"))}
    assert shown and all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in shown)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
