"""LoRA adapters: our merge against peft's own, and adapters that do not fit."""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch

from llava.checkpoints.adapters import adapted, read_adapter, with_adapter
from llava.checkpoints.files import read_safetensors, write_safetensors
from llava.checkpoints.gguf import GgufLlm
from llava.config import Storage
from llava.errors import LlavaError
from llava.models.decoder import Decoder
from llava.models.llava import LlavaModel
from llava.quantization.pack import PackedAttention, Packer
from llava.train.recipe import Recipe
from llava.train.stages import prepare, save_trained
from tests.conftest import tiny_model


def recipe(tmp_path: Path, **changes: object) -> Recipe:
    values = {
        "stage": "finetune",
        "output": tmp_path,
        "model": tmp_path,
        "data": {"path": "x.json", "images": "."},
        "learning_rate": 1e-3,
        "lora": {"rank": 4, "alpha": 6},
    }
    return Recipe.model_validate({**values, **changes})


@pytest.fixture
def trained(smollm2: GgufLlm, tmp_path: Path) -> tuple[Decoder, LlavaModel, Path]:
    """The base decoder, the same with a random LoRA by peft, and the folder where that was saved."""
    model = tiny_model(smollm2).model
    base = copy.deepcopy(model.llm)
    prepare(model, recipe(tmp_path))
    for name, parameter in model.llm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_trained(tmp_path, model, recipe(tmp_path))
    return base, model, tmp_path / "adapter"


@torch.inference_mode()
def test_merging_gives_the_logits_of_pefts_unmerged_model(trained: tuple[Decoder, LlavaModel, Path]) -> None:
    base, model, folder = trained
    x = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0))
    before = base(x)
    base.load_state_dict(dict(with_adapter(base.state_dict().items(), folder)))
    assert not torch.allclose(base(x), before, atol=1e-2)
    assert torch.allclose(base(x), model.llm.eval()(x), atol=1e-4)


@torch.inference_mode()
def test_in_four_bits_an_adapter_stays_beside_its_base(
    trained: tuple[Decoder, LlavaModel, Path], smollm2: GgufLlm
) -> None:
    """What the adapter adds is the same as in 16 bits, whatever the base's weights are rounded to."""
    _, _, folder = trained
    plain = tiny_model(smollm2).model  # of the same seed as the one that was trained
    x = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0))
    packed: dict[bool, torch.Tensor] = {}
    for with_lora in (False, True):
        copied = copy.deepcopy(plain)
        packer = Packer(copied, Storage("int4"), torch.device("cpu"))
        if with_lora:
            list(adapted([], folder, packer, lambda name: f"llm.{name}"))
        for name in list(copied.state_dict()):
            packer.arrived(name)
        packer.finish()
        first = copied.llm.layers[0].self_attn
        assert isinstance(first, PackedAttention)
        packed[with_lora] = first.qkv(x)
    factors = read_adapter(folder)
    pairs = [factors[f"layers.0.self_attn.{part}_proj"] for part in "qkv"]
    added = torch.cat([x @ (b @ a).T for a, b in pairs], dim=-1)
    assert torch.allclose(packed[True] - packed[False], added, atol=5e-3)
    packer = Packer(copy.deepcopy(plain), Storage("int4"), torch.device("cpu"))
    with pytest.raises(LlavaError, match="does not fit the model"):
        adapted([], folder, packer, lambda name: f"llm.other.{name}")


def test_peft_loads_what_we_save(trained: tuple[Decoder, LlavaModel, Path]) -> None:
    base, model, folder = trained
    config = peft.LoraConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 6, "none")
    peft.inject_adapter_in_model(config, base)
    result = peft.set_peft_model_state_dict(
        base,
        {
            k.removeprefix("base_model.model."): v
            for k, v in read_safetensors(folder / "adapter_model.safetensors").items()
        },
    )
    assert not result.unexpected_keys
    x = torch.randn(1, 5, 48)
    assert torch.allclose(base.eval()(x), model.llm.eval()(x), atol=1e-6)


def test_lora_touches_the_decoder_only(trained: tuple[Decoder, LlavaModel, Path]) -> None:
    _, model, folder = trained
    assert not any("lora" in name for name, _ in model.vision.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.vision.parameters())
    assert len(read_safetensors(folder / "adapter_model.safetensors")) == 2 * 7 * 2  # A and B, 7 linears, 2 layers


def test_tensors_that_match_nothing_are_an_error(trained: tuple[Decoder, LlavaModel, Path]) -> None:
    base, _, folder = trained
    path = folder / "adapter_model.safetensors"
    tensors = read_safetensors(path)
    alone = {"base_model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 48)}
    write_safetensors(path, {**tensors, **alone})
    with pytest.raises(LlavaError, match="has no partner that fits"):
        dict(with_adapter(base.state_dict().items(), folder))
    both = {**alone, "base_model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(48, 4)}
    write_safetensors(path, {**tensors, **both})
    with pytest.raises(LlavaError, match="does not fit the model"):
        dict(with_adapter(base.state_dict().items(), folder))
    write_safetensors(path, {**tensors, "base_model.model.something": torch.zeros(2)})
    with pytest.raises(LlavaError, match="match nothing"):
        dict(with_adapter(base.state_dict().items(), folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "use_dora is not supported"), ({"r": 0}, "not a LoRA"), ({"r": None}, "not a LoRA")],
)
def test_another_kind_of_adapter_is_refused(
    trained: tuple[Decoder, LlavaModel, Path], change: dict[str, object], message: str
) -> None:
    base, _, folder = trained
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LlavaError, match=message):
        dict(with_adapter(base.state_dict().items(), folder))
