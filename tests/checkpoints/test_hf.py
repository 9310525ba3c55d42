"""hf checkpoints, written by transformers in every variant of their names, answer as transformers does."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.checkpoints import hf
from llava.checkpoints.load import load_checkpoint
from llava.errors import LlavaError
from scripts.parity import ROWS, run
from scripts.random_checkpoints import write_checkpoint


@pytest.mark.parametrize(("kind", "family"), ROWS)
def test_a_checkpoint_answers_as_transformers_does(kind: str, family: str) -> None:
    found = run(kind, family, configs=2, images=5)
    assert (found.pixels, found.ids, found.greedy) == (0, 0, 0), found
    assert found.features < 1e-4 and found.logits < 1e-4, found
    assert found.images >= 5 and found.configs == 2


VARIANTS: dict[str, Callable[[str], str]] = {
    "hub": lambda name: name,
    "hub, no vision_model": lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
    "in memory": lambda name: re.sub(
        "^(?!lm_head)", "model.", name.replace("language_model.lm_head.", "lm_head.").replace("model.model.", "model.")
    ),
    "in memory, no vision_model": lambda name: VARIANTS["in memory"](VARIANTS["hub, no vision_model"](name)),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hf") / "model", "llava_next", "llama", seed=3).folder


def copy_of(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["one file", "shards", "bin"])
def test_every_variant_of_the_names_and_form_of_files_gives_the_same_model(
    checkpoint: Path, tmp_path: Path, variant: str, form: str
) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    tensors = {VARIANTS[variant](name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if form == "one file":
        save_file(tensors, folder / "model.safetensors")
    elif form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        places = {name: f"model-0000{index % 3 + 1}-of-00003.safetensors" for index, name in enumerate(tensors)}
        for file in set(places.values()):
            save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    expected = load_checkpoint(checkpoint).model.state_dict()
    found = load_checkpoint(folder).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_names_that_do_not_fit_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("language_model.model.norm.weight")
    tensors["language_model.model.extra"] = torch.zeros(1)
    tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LlavaError) as caught:
        load_checkpoint(folder)
    for told in (
        "1 missing: llm.norm.weight",
        "1 unexpected: language_model.model.extra",
        "1 of another shape: multi_modal_projector.linear_1.bias (3,), expected (48,)",
    ):
        assert told in str(caught.value)


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "x", "b": "model.safetensors"}})
    )
    with pytest.raises(LlavaError, match="1 of 2 shards are missing: x"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "blip"}, "not a LLaVA model"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not supported"),
        ({"vision_feature_layer": [-2, -1]}, "features of layer"),
        ({"text_config": None}, "expected an object 'text_config'"),
        ({"vision_config": {"model_type": "resnet"}}, "vision encoders of type 'resnet'"),
    ],
)
def test_what_is_not_supported_is_refused(checkpoint: Path, tmp_path: Path, change: object, message: str) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))  # type: ignore[dict-item]
    with pytest.raises(LlavaError, match=message):
        load_checkpoint(folder)


def test_without_a_chat_template_one_must_be_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    for name in hf.CHAT_TEMPLATES:
        if name.endswith(".jinja"):
            (folder / name).unlink(missing_ok=True)
    with pytest.raises(LlavaError, match="holds no chat template"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, template="vicuna_v1").processor.template == "vicuna_v1"


def test_a_checkpoint_without_its_tower_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_tower.")}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(LlavaError, match=r"missing: vision\."):
        load_checkpoint(folder)
