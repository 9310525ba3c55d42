"""LoRAs over one base, run at once, against each folded into the base and run alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import llava
from llava import Image, Message
from llava.assistant import Assistant
from llava.checkpoints.native import Loaded
from llava.checkpoints.shared import base_name, load_shared
from llava.config import Precision, Storage
from llava.decoding import build
from llava.engine.engine import Engine
from llava.engine.sampling import Sampling
from llava.engine.scheduler import Limits
from llava.errors import LlavaError
from llava.registry import EMBEDDED

SHAPE = Path(__file__).parents[2] / "examples" / "shape.png"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model, and two others of other adapters and projectors."""
    made = {"own": EMBEDDED["llava-smol"]}
    for seed, name in enumerate(("ann", "bob")):
        folder = tmp_path_factory.mktemp(name) / name
        shutil.copytree(made["own"], folder)
        noise = torch.Generator().manual_seed(seed)
        for file in (folder / "adapter" / "adapter_model.safetensors", folder / "projector.safetensors"):
            tensors = {key: tensor.float() for key, tensor in load_file(file).items()}
            if name == "bob" and "adapter" in str(file):  # some layers only
                tensors = {key: tensor for key, tensor in tensors.items() if "q_proj" in key or "down_proj" in key}
            changed = {
                key: tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=noise)
                for key, tensor in tensors.items()
            }
            save_file(changed, file)
        made[name] = folder
    return made


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_variants_at_once_answer_as_each_does_alone(folders: dict[str, Path], precision: Precision) -> None:
    question = [Message.user(Image(SHAPE), "what color is the shape?")]
    talk = [Message.user("Tell me about the sea.")]
    sampling = Sampling(12, logprobs=0)
    model, variants, processors = load_shared(folders, (Storage(precision, False), torch.device("cpu")))
    engine = Engine(model, processors["own"].tokenizer, variants=variants)
    pairs = []
    for name, processor in processors.items():
        assistant = Assistant(Loaded(model, processor), name)
        pairs += [(assistant.request(asked), sampling) for asked in (question, talk)]
    together = engine.generate([*pairs, *pairs[::-1]])
    seen = set()
    tolerance = 1e-4 if precision == "float32" else 0.02  # 16 bits: what is folded in is rounded with the base
    for index, name in enumerate(folders):
        alone = llava.load(str(folders[name]), precision=precision)
        for place, (answer,) in enumerate(alone.answers([question, talk], sampling)):
            for found in (together[2 * index + place], together[-1 - 2 * index - place]):
                assert found.output == answer.ids
                scores = [score.logprob for score in found.scored]
                assert scores == pytest.approx([score.logprob for score in answer.scored], abs=tolerance)
            seen.add(tuple(score.logprob for score in answer.scored))
    assert len(seen) == 6  # the variants do differ


def test_in_8_bits_a_variants_scores_do_not_depend_on_what_is_read_beside_it(folders: dict[str, Path]) -> None:
    """A prompt's rows are read in other parts where others want to be read too, and with other rows beside them."""
    build.wait()
    model, variants, processors = load_shared(folders, (Storage("int8", False), torch.device("cpu")))
    sampling, limits = Sampling(8, logprobs=2), Limits(64, shared_tokens=37)
    found = []
    for others in ((), ("own", "ann", "bob")):
        engine = Engine(model, processors["own"].tokenizer, limits=limits, variants=variants)
        asked = {name: Assistant(Loaded(model, processor), name) for name, processor in processors.items()}
        first = engine.submit(asked["ann"].request([Message.user(Image(SHAPE), "a b c " * 20)]), sampling)
        for name in others:
            engine.submit(asked[name].request([Message.user("What do you know of the sea? " * 12)]), sampling)
        while engine.busy:
            engine.step()
        found.append((first.output, [score.logprob for score in first.scored]))
    # the head's products are PyTorch's; a level that fell to the other side moves scores by a thousand times as much
    assert found[0][0] == found[1][0] and found[0][1] == pytest.approx(found[1][1], abs=1e-5) and len(found[0][0]) > 2


def test_variants_take_the_templates_that_are_asked_for(folders: dict[str, Path]) -> None:
    target = Storage("int8", False), torch.device("cpu")
    pair = {name: folders[name] for name in ("own", "ann")}
    _, _, processors = load_shared(pair, target, templates={"ann": "vicuna_v1"})
    assert [processors[name].template for name in pair] == ["chatml", "vicuna_v1"]


def test_what_cannot_be_shared_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folders["own"], whole)
    shutil.rmtree(whole / "adapter")
    with pytest.raises(LlavaError, match="not a LoRA"):
        base_name(whole)
    tuned = tmp_path / "tuned"
    shutil.copytree(folders["own"], tuned)
    (tuned / "llm.safetensors").touch()
    with pytest.raises(LlavaError, match="stands on an LLM of its own"):
        base_name(tuned)
    other = tmp_path / "other"
    shutil.copytree(folders["own"], other)
    config = json.loads((other / "config.json").read_text())
    config["vision"]["grid"] = 5
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlavaError, match="another base"):
        load_shared({"a": folders["own"], "b": other}, (Storage("float32", False), torch.device("cpu")))
