"""Quantized checkpoints: the model that is loaded is the one that quantizing on load gives."""

from pathlib import Path

import pytest
import torch

import llava
from llava.chat.messages import Image, Message
from llava.checkpoints.convert import convert, open_source
from llava.checkpoints.load import load_checkpoint, stored_as
from llava.config import Precision, Storage
from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.registry import EMBEDDED
from scripts.random_checkpoints import write_checkpoint
from tests.cli.test_published import SHAPE
from tests.cli.test_published import llava as command

CPU = torch.device("cpu")


@torch.inference_mode()
def scores(model: LlavaModel) -> torch.Tensor:
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, model.config.image.size, model.config.image.size)
    image = model.projector(model.vision(pixels))[0]
    ids = torch.tensor([[5, 6, *[-200] * len(image), 7]])
    return model.llm.logits(model(ids, image))


@pytest.mark.parametrize("beside_8bit", [False, True])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_a_quantized_checkpoint_is_the_model_quantized_on_load(
    tmp_path: Path, family: str, precision: Precision, beside_8bit: bool
) -> None:
    write_checkpoint(tmp_path / "hf", "llava", family, seed=3)
    storage = Storage(precision, beside_8bit)
    convert(open_source(tmp_path / "hf"), tmp_path / "small", "native", storage)
    assert stored_as(tmp_path / "small") == storage and stored_as(tmp_path / "hf") is None
    found = load_checkpoint(tmp_path / "small", target=(storage, CPU)).model
    expected = load_checkpoint(tmp_path / "hf", target=(storage, CPU)).model
    found_scores, expected_scores = scores(found), scores(expected)
    # hf has rows for added tokens, as has the copy
    assert torch.equal(found_scores, expected_scores)


def test_the_embedded_model_in_four_bits_keeps_its_lora(tmp_path: Path) -> None:
    convert(open_source(EMBEDDED["llava-smol"]), tmp_path / "small", "native", Storage("int4", beside_8bit=True))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 180e6
    question = [Message.user(Image(SHAPE), "what color is the shape?")]
    small = llava.load(str(tmp_path / "small"), device="cpu")  # in what it is stored in, unasked
    direct = llava.load("llava-smol", device="cpu", precision="int4", beside_8bit=True)
    assert small.chat(question) == direct.chat(question) == "blue"


def test_what_a_quantized_checkpoint_cannot_be_used_for_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llava", "llama", seed=3)
    done = command("convert", tmp_path / "hf", tmp_path / "small", "--to", "native", "--load-8bit")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'small'}: native layout, int8\n"), done.stderr
    done = command("chat", tmp_path / "small", "--prompt", "Hi", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    done = command("inspect", tmp_path / "small")
    assert done.returncode == 0 and "int8" in done.stdout and "float16" not in done.stdout, done.stderr
    done = command("chat", tmp_path / "hf", "--prompt", "Hi", "--max-new-tokens", "2", "--load-4bit", "--beside-8bit")
    assert done.returncode == 0, done.stderr
    for arguments, message in (
        (("chat", tmp_path / "small", "--prompt", "Hi", "--load-4bit"), "is stored in int8, and runs so on a CPU only"),
        (("convert", tmp_path / "small", tmp_path / "x", "--to", "hf"), "convert what it was made from"),
        (("convert", tmp_path / "hf", tmp_path / "x", "--to", "hf", "--load-8bit"), "in the native layout only"),
        (("convert", tmp_path / "hf", tmp_path / "x", "--to", "native", "--beside-8bit"), "goes with --load-8bit"),
    ):
        done = command(*arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    with pytest.raises(LlavaError, match="it can be run, but not changed"):
        load_checkpoint(tmp_path / "small")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_tied_head_is_quantized_alike_on_load_and_before(tmp_path: Path, precision: Precision) -> None:
    storage = Storage(precision, beside_8bit=True)
    convert(open_source(EMBEDDED["llava-smol"]), tmp_path / "small", "native", storage)
    found = load_checkpoint(tmp_path / "small", target=(storage, CPU)).model
    expected = load_checkpoint(EMBEDDED["llava-smol"], target=(storage, CPU)).model
    assert torch.equal(scores(found), scores(expected))
