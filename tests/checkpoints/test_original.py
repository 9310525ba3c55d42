"""Checkpoints in the original's layout: the weights of transformers' random models under the original's names."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llava import Image, Message
from llava.assistant import Assistant
from llava.checkpoints.load import load_checkpoint
from llava.checkpoints.merge import merge
from llava.errors import LlavaError
from llava.models.llava import IMAGE_TOKEN
from llava.processor import Prompt
from scripts.random_checkpoints import Peer, original_names, write_checkpoint, write_original


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """Tests read it, and write elsewhere."""
    return write_checkpoint(tmp_path_factory.mktemp("llava") / "hf", "llava", "llama", seed=1)


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """As `llava`."""
    return write_checkpoint(tmp_path_factory.mktemp("llava_next") / "hf", "llava_next", "mistral", seed=2)


def noise(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def asked(ours: Assistant, picture: PIL.Image.Image) -> tuple[Prompt, Tensor, Tensor]:
    """The prompt, the picture's views and the logits of a question."""
    prompt = ours.processor.prompt([Message.user(Image(picture), "What is this?")])
    views = ours.processor.views([span.image for span in prompt.spans])
    tokens = ours.model.encode(views, [span.layout for span in prompt.spans])
    return prompt, views, ours.model.llm.logits(ours.model(torch.tensor([prompt.ids]), tokens))


def their_ids(prompt: Prompt) -> Tensor:
    return torch.tensor([[32000 if token == IMAGE_TOKEN else token for token in prompt.ids]])


@pytest.mark.parametrize("with_tower", [True, False])
@torch.inference_mode()
def test_1_5_answers_as_transformers_on_the_same_weights(llava: Peer, tmp_path: Path, with_tower: bool) -> None:
    ours = Assistant(load_checkpoint(write_original(tmp_path / "original", llava, with_tower)))
    prompt, views, logits = asked(ours, noise(50, 31))
    expected = llava.model(input_ids=their_ids(prompt), pixel_values=views).logits
    assert torch.allclose(logits, expected, atol=1e-4, rtol=0)
    assert ours.processor.template == "vicuna_v1"
    corner = views[0, :, 0, 0]  # padded with the mean colour, cut down to whole levels
    assert corner == pytest.approx(
        [(c / 255 - m) / s for c, m, s in zip((122, 116, 104), MEAN, STD, strict=True)], abs=1e-6
    )


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@torch.inference_mode()
def test_1_6_answers_as_transformers_where_both_choose_the_same_tiles(llava_next: Peer, tmp_path: Path) -> None:
    hf_pinpoints = llava_next.model.config.image_grid_pinpoints
    folder = write_original(
        tmp_path / "original",
        llava_next,
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[[width, height] for height, width in hf_pinpoints],
        mm_patch_merge_type="spatial_unpad",
    )
    ours = Assistant(load_checkpoint(folder))
    for size in ((300, 290), (200, 90), (61, 200), (1, 100)):
        prompt, views, logits = asked(ours, noise(*size))
        inputs = {"pixel_values": views[None], "image_sizes": torch.tensor([[size[1], size[0]]])}
        expected = llava_next.model(input_ids=their_ids(prompt), **inputs).logits
        assert torch.allclose(logits, expected, atol=1e-4, rtol=0), size
    assert ours.processor.template == "mistral_instruct"


@torch.inference_mode()
def test_1_0_has_a_linear_projector_and_must_be_told_its_template(llava: Peer, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "original", llava, mm_projector_type="linear", image_aspect_ratio=None)
    names = original_names(llava, with_tower=True)
    names = {name: tensor for name, tensor in names.items() if "mm_projector" not in name}
    linear = torch.nn.Linear(32, 48)
    names |= {"model.mm_projector.weight": linear.weight.data, "model.mm_projector.bias": linear.bias.data}
    names["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old checkpoints hold it
    save_file(names, folder / "model.safetensors")
    with pytest.raises(LlavaError, match="give --template llava_v0, llava_v1 or llava_llama_2"):
        load_checkpoint(folder)
    ours = Assistant(load_checkpoint(folder, template="llava_v1"))
    assert ours.processor.image.aspect == "crop"
    views = ours.processor.views([Image(noise(40, 40))])
    states = llava.model.model.vision_tower(views, output_hidden_states=True).hidden_states[-2][:, 1:]
    tokens = ours.model.project(ours.model.vision(views), [ours.processor.layout((40, 40))])
    assert torch.allclose(tokens, linear(states)[0], atol=1e-5)


@torch.inference_mode()
def test_stage_1_output_stands_on_its_base(llava: Peer, tmp_path: Path) -> None:
    whole = write_original(tmp_path / "whole", llava)
    base = tmp_path / "base"
    shutil.copytree(whole, base)
    tensors = original_names(llava, with_tower=False)
    save_file({name: t for name, t in tensors.items() if "mm_projector" not in name}, base / "model.safetensors")
    stage1 = write_original(tmp_path / "stage1", llava, _name_or_path=str(base))
    (stage1 / "model.safetensors").unlink()
    (stage1 / "tokenizer.model").unlink()
    torch.save({name: t for name, t in tensors.items() if "mm_projector" in name}, stage1 / "mm_projector.bin")
    assert_equal(load_checkpoint(stage1).model, load_checkpoint(whole).model)


def assert_equal(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 1e-6) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.allclose(tensor, right[name], atol=tolerance, rtol=tolerance), name


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_lora_folder_stands_on_its_base_and_is_merged_into_it(
    llava: Peer, tmp_path: Path, dtype: torch.dtype
) -> None:
    whole = write_original(tmp_path / "whole", llava)
    tensors = original_names(llava, with_tower=False)
    base = tmp_path / "base"
    shutil.copytree(whole, base)
    kept = {name: t.to(dtype) for name, t in tensors.items() if "mm_projector" not in name}
    save_file(kept, base / "model.safetensors")
    lora = write_original(tmp_path / "lora", llava, _name_or_path="never this")
    (lora / "model.safetensors").unlink()
    target = "model.layers.0.self_attn.q_proj"
    a, b = torch.randn(2, 48) / 10, torch.randn(48, 2) / 10
    adapter = {f"base_model.model.{target}.lora_{name}.weight": t for name, t in (("A", a), ("B", b))}
    save_file(adapter, lora / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    trained = {f"base_model.model.{name}": t for name, t in tensors.items() if "mm_projector" in name}
    torch.save(trained, lora / "non_lora_trainables.bin")
    expected = load_checkpoint(whole).model
    expected.llm.layers[0].self_attn.q_proj.weight += 2 * b @ a
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3  # what half precision rounds
    assert_equal(load_checkpoint(lora).model, expected, tolerance)
    assert merge(lora, tmp_path / "merged") < (1e-4 if dtype == torch.float32 else 0.05)
    assert_equal(load_checkpoint(tmp_path / "merged").model, expected, tolerance)
    with pytest.raises(LlavaError, match="not a LoRA folder"):
        merge(whole, tmp_path / "again")


def test_a_tower_that_is_there_in_part_is_refused(llava: Peer, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "original", llava)
    tensors = original_names(llava, with_tower=True)
    gone = next(name for name in tensors if "layers.0.self_attn.q_proj.weight" in name and "vision" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LlavaError, match=r"1 of the vision tower's .* tensors are missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": "somewhere/clip-vit-large"}, "neither known .* nor a folder"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architecture 'LlavaMptForCausalLM' is not one of"),
        ({"mm_projector_type": "qformer"}, "unknown projector 'qformer'"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres' is not supported"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": None}, "image_grid_pinpoints None"),
        ({"mm_spatial_pool_mode": "average", "mm_newline_position": "up"}, "mm_newline_position 'up' is not one of"),
    ],
)
def test_what_is_not_supported_is_refused(llava: Peer, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LlavaError, match=message):
        load_checkpoint(write_original(tmp_path / "original", llava, **changes))


def test_start_and_end_tokens_stand_around_an_image(llava: Peer, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "original", llava, mm_use_im_start_end=True)
    (folder / "added_tokens.json").write_text(json.dumps({"<im_start>": 32001, "<im_end>": 32002}))
    ours = Assistant(load_checkpoint(folder))
    prompt = ours.processor.prompt([Message.user(Image(noise(9, 9)), "What?")])
    span = prompt.spans[0]
    assert prompt.ids[span.start - 1] == 32001 and prompt.ids[span.start + span.length] == 32002


@pytest.mark.parametrize(
    ("added", "template"),
    [({"<|im_start|>": 32001}, "chatml_direct"), ({"<|start_header_id|>": 32001}, "llava_llama_3"), ({}, "vicuna_v1")],
)
def test_the_template_follows_from_the_content(
    llava: Peer, tmp_path: Path, added: dict[str, int], template: str
) -> None:
    folder = write_original(tmp_path / "llava-mistral-34b-v0", llava)  # the folder's name says nothing
    (folder / "added_tokens.json").write_text(json.dumps(added))
    assert load_checkpoint(folder).processor.template == template
