"""A user's mistake: status 2, one line on stderr, no traceback. Each test runs the real command."""

import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

MAIN = "from llava.cli import main; main()"
BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", b""))
)
RECIPE = """
stage: align
output: {folder}/out
model: {folder}/none
data: {{path: {folder}/rows.json, images: {folder}}}
learning_rate: 1.0e-3
"""


def llava(*arguments: object, code: str = MAIN, cache: Path = Path(os.devnull)) -> subprocess.CompletedProcess[str]:
    """Run the command line without a terminal; by default, fetching anything fails."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LLAVA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
    )


def mistake(*arguments: object) -> str:
    """The message of a command that must fail as a user's mistake does."""
    done = llava(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("llava: error: ")
    return line.removeprefix("llava: error: ")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.mark.parametrize("command", [("chat", "--prompt", "hi"), ("inspect",), ("eval", "easy-vqa", "--model")])
def test_an_unknown_model_lists_the_names(command: tuple[str, ...]) -> None:
    assert mistake(*command, "gpt-9").startswith(
        "unknown model 'gpt-9': neither a known name (llava-smol), a folder, nor an id on the hub"
    )


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    assert "config.json: cannot be read" in mistake("inspect", tmp_path)


def test_a_config_with_an_unknown_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"layout": "llava-native-1", "hidden": 1}')
    assert "unknown key 'hidden' (known here: layout, llm" in mistake("inspect", tmp_path)


@pytest.mark.parametrize("command", ["chat", "inspect"])
def test_a_missing_image_is_told_before_a_model_is_loaded(tmp_path: Path, command: str) -> None:
    path = tmp_path / "none.png"
    assert mistake(command, "llava-smol", "--prompt", "hi", "--image", path) == f"{path}: image not found"


def test_a_corrupt_image_is_told(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    assert mistake("chat", "--prompt", "hi", "--image", path).startswith(f"{path}: not a readable image")


def test_a_decompression_bomb_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMB)
    assert mistake("chat", "--prompt", "hi", "--image", path).startswith(f"{path}: too many pixels")


def test_a_missing_prompt_without_a_terminal_is_told() -> None:
    assert mistake("chat") == "no --prompt given, and no terminal to ask for one"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--temperature", "-1", "temperature must be 0 or more, found -1.0"),
        ("--top-p", "0", "top_p must be above 0 and at most 1, found 0.0"),
        ("--max-new-tokens", "0", "max_new_tokens must be at least 1, found 0"),
    ],
)
def test_a_sampling_option_out_of_range_is_told(option: str, value: str, expected: str) -> None:
    assert mistake("chat", "--prompt", "hi", option, value) == expected


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    assert mistake("eval", "mmlu") == "unknown benchmark 'mmlu'; choose one of: easy-vqa, smol-suite"
    assert mistake("eval", "easy-vqa", "--base").startswith("--base asks questions without a picture, which easy-vqa")


def test_an_unusable_cache_folder_is_told() -> None:
    assert mistake("eval", "easy-vqa", "--model", ".").startswith(f"cannot use the cache folder {os.devnull}")


def test_a_missing_recipe_is_told(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert mistake("train", path) == f"{path}: recipe cannot be read (No such file or directory)"


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: {\n\tb: 1}", ""])
def test_a_recipe_that_is_not_keys_and_values_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert mistake("train", path).startswith((f"{path}: not valid YAML", f"{path}: expected keys and values"))


def test_a_recipe_with_an_unknown_key_lists_the_known_ones(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "learning_rat: 1\n")
    assert mistake("train", recipe).startswith(
        f"{recipe}: unknown key 'learning_rat' (known here: stage, output, model, data, lora,"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_steps", "override 'max_steps' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("stage.x=3", "override 'stage.x=3': 'stage' holds no keys"),
        ("data.foo=1", "unknown key 'data.foo' (known here: path, images, max_dropped)"),
        ("max_steps=many", "key 'max_steps': Input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_told(recipe: Path, override: str, expected: str) -> None:
    assert expected in mistake("train", recipe, override)


def test_a_recipe_whose_files_are_missing_is_told(recipe: Path) -> None:
    assert str(recipe.parent) in mistake("train", recipe)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("chat", "--no-such-option"), "No such option"),
        (("no-such-command",), "No such command"),
        (("eval",), "Missing argument"),
        (("chat", "--temperature", "warm"), "Invalid value for '--temperature'"),
        (("eval", "easy-vqa", "--limit", "0"), "Invalid value for '--limit'"),
    ],
)
def test_a_wrong_usage_has_status_2_and_no_traceback(arguments: tuple[str, ...], expected: str) -> None:
    done = llava(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interruption_has_status_130_and_no_traceback() -> None:
    code = "from llava.cli import app, main\n@app.command()\ndef stop() -> None:\n    raise KeyboardInterrupt\nmain()"
    done = llava("stop", code=code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ended_from_outside_it_leaves_no_temporary_file(tmp_path: Path, name: str) -> None:
    code = (
        "import os, pathlib, signal\nfrom llava.cli import app, main\nfrom llava.files import atomic_path\n"
        "@app.command()\ndef stop(folder: pathlib.Path) -> None:\n"
        "    with atomic_path(folder / 'file') as path:\n"
        "        assert path.exists()\n"
        f"        os.kill(os.getpid(), signal.{name})\nmain()"
    )
    done = llava("stop", tmp_path, code=code)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "")
    assert list(tmp_path.iterdir()) == []


def test_memory_that_ran_out_is_told_with_what_to_change(recipe: Path) -> None:
    code = (
        "import torch\nfrom llava.train import loop\n"
        "def train(*_: object) -> None:\n    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')\n"
        f"loop.train = train\n{MAIN}"
    )
    done = llava("train", recipe, code=code)
    assert done.returncode == 2 and done.stderr.startswith("llava: error: memory ran out; lower batch_size"), (
        done.stderr
    )


def test_a_reader_that_went_away_sees_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run([sys.executable, "-c", MAIN, "--help"], stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [[], ["chat"], ["train"], ["eval"], ["inspect"]], ids=" ".join)
def test_help_imports_neither_torch_nor_pillow(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom llava.cli import app\n"
        "app(standalone_mode=False)\n"
        "assert 'llava.cli.chat' in sys.modules\n"
        "assert not {'torch', 'PIL', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = llava(*arguments, "--help", code=code)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_a_command_imports_torch_so_that_the_test_above_can_fail() -> None:
    code = "import sys\nimport llava.assistant\nassert 'torch' in sys.modules"
    assert llava(code=code).returncode == 0
