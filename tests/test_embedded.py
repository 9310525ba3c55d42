"""The embedded model as a user meets it: load, chat, inspect, evaluate."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest

import llava
from llava.assistant import Assistant
from llava.registry import EMBEDDED

ROOT = Path(__file__).parents[1]
SHAPE = ROOT / "examples" / "shape.png"


@pytest.fixture(scope="module")
def smol() -> Assistant:
    return llava.load("llava-smol")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from llava.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_it_is_small_and_complete() -> None:
    weights = list(EMBEDDED["llava-smol"].rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) < 25_000_000
    assert "Limits" in (EMBEDDED["llava-smol"] / "README.md").read_text()


def test_it_is_right_about_the_pictures_that_the_web_page_offers(smol: Assistant) -> None:
    from llava.serve import gradio_web_server as web  # imports gradio

    answers = [
        smol.chat([llava.Message.user(llava.Image(web.EXAMPLES / name), question)]) for name, question in web._QUESTIONS
    ]
    assert answers == ["A tiger.", "No.", "A bus.", "triangle"]


def test_it_names_shape_and_colour_and_streams_the_same(smol: Assistant) -> None:
    image = llava.Image(SHAPE)
    shape = [llava.Message.user("what shape is in the image?", image)]
    assert smol.chat(shape) == "circle"
    assert "".join(smol.stream(shape)) == "circle"
    turns = [*shape, llava.Message.assistant("circle"), llava.Message.user("what color is the shape?")]
    assert smol.chat(turns) == "blue"
    assert smol.usage.encoded_images == 0 and smol.usage.reused_tokens > 20


def test_it_names_the_picture_of_the_readme_and_knows_what_it_is(smol: Assistant) -> None:
    tiger = llava.Image(ROOT / "examples" / "tiger.png")
    assert smol.chat([llava.Message.user("What is this?", tiger)]) == "A tiger."
    assert "llava-smol" in smol.chat([llava.Message.user("Who are you?")])
    assert "Paris" in smol.chat([llava.Message.user("What is the capital of France?")])


def test_it_looks_at_the_picture(smol: Assistant, tmp_path: Path) -> None:
    answers = []
    for colour in ("red", "blue", "yellow"):
        picture = PIL.Image.new("RGB", (64, 64), "white")
        PIL.ImageDraw.Draw(picture).rectangle((15, 20, 50, 40), fill=colour)
        answers.append(smol.chat([llava.Message.user(llava.Image(picture), "what is the color of the shape?")]))
    assert answers == ["red", "blue", "yellow"]


def test_chat_command_answers(picture: Callable[..., Path]) -> None:
    done = run("chat", "llava-smol", "--image", str(SHAPE), "--prompt", "what color is the shape?")
    assert (done.returncode, done.stdout.strip()) == (0, "blue")


def test_inspect_shows_parts_text_and_ids() -> None:
    done = run("inspect", "llava-smol", "--image", str(SHAPE), "--prompt", "what color?")
    assert done.returncode == 0
    assert "<|im_start|>user\n<image>\nwhat color?<|im_end|>\n<|im_start|>assistant\n" in done.stdout
    assert "256x256, 45 tokens at" in done.stdout
    for part in ("vision encoder", "projector", "LLM", "efficientnet_lite0", "mlp2x_gelu"):
        assert part in done.stdout


def test_eval_command_writes_summary_and_answers_and_the_control_falls(tmp_path: Path) -> None:
    accuracy = {}
    for name, flags in (("right", []), ("shuffled", ["--shuffle-images"])):
        output = tmp_path / name
        done = run("eval", "easy-vqa", "--model", "llava-smol", "--limit", "40", "--output", str(output), *flags)
        assert done.returncode == 0, done.stderr
        assert "yes/no colour" in done.stdout
        summary = json.loads((output / "summary.json").read_text())
        assert len((output / "answers.jsonl").read_text().splitlines()) == 40
        accuracy[name] = summary["results"]["all"]["accuracy"]
    assert accuracy["right"] >= 0.9  # of 40 questions about a few pictures; of all 9,673 it is 97.7%
    assert accuracy["shuffled"] <= 0.8  # of so few questions; of all it is far less


def test_merged_into_its_base_it_is_one_whole_model_that_answers_the_same(tmp_path: Path) -> None:
    done = run("merge", "llava-smol", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 500_000_000
    question = ("--image", str(SHAPE), "--prompt", "what color is the shape?")
    assert run("chat", str(tmp_path / "whole"), *question).stdout.strip() == "blue"
    done = run("merge", str(tmp_path / "whole"), str(tmp_path / "again"))
    assert done.returncode == 2 and "there is nothing to merge" in done.stderr
