"""Conversions: every pair of layouts, bit-equal there and back, and read by transformers."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.chat.templates import Text
from llava.checkpoints import convert as module
from llava.checkpoints.convert import Layout, Source, convert, open_source
from llava.checkpoints.load import load_checkpoint
from llava.errors import LlavaError
from scripts.random_checkpoints import ARCHITECTURES, write_checkpoint
from tests.checkpoints.test_original import asked, noise, write_original

LAYOUTS: tuple[Layout, ...] = ("hf", "original", "native")


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """The same model in each layout: hf by transformers, the original by renaming, native by conversion of hf."""
    folder = tmp_path_factory.mktemp("sources")
    peer = write_checkpoint(folder / "hf", request.param, "llama", seed=5)
    aspect = {"image_aspect_ratio": "pad"}
    if request.param == "llava_next":
        pinpoints = [[w, h] for h, w in peer.model.config.image_grid_pinpoints]
        aspect = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": pinpoints}
        aspect["mm_patch_merge_type"] = "spatial_unpad"
    original = write_original(folder / "original", peer, with_tower=True, **aspect)
    convert(open_source(folder / "hf"), folder / "native", "native")
    return {"hf": folder / "hf", "original": original, "native": folder / "native"}


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("start", LAYOUTS)
def test_there_and_back_gives_the_same_bits(
    sources: dict[Layout, Path], tmp_path: Path, start: Layout, there: Layout
) -> None:
    convert(open_source(sources[start]), tmp_path / "there", there)
    template = None if start != "original" else "vicuna_v1"
    convert(open_source(tmp_path / "there", template), tmp_path / "back", start)
    expected, found = (
        load_file(sources[start] / "model.safetensors"),
        load_file(tmp_path / "back" / "model.safetensors"),
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("there", LAYOUTS)
@torch.inference_mode()
def test_a_converted_model_answers_the_same(sources: dict[Layout, Path], tmp_path: Path, there: Layout) -> None:
    convert(open_source(sources["original"]), tmp_path / "there", there)
    _, views, expected = asked(Assistant(load_checkpoint(sources["original"])), noise(90, 90))
    _, same_views, logits = asked(Assistant(load_checkpoint(tmp_path / "there", "vicuna_v1")), noise(90, 90))
    assert torch.equal(views, same_views)
    assert torch.allclose(logits[..., : expected.shape[-1]], expected, atol=1e-5)


def cut_vocabulary(original: Path) -> None:
    """As published: without rows for the image tokens that hf's layout adds."""
    tensors = load_file(original / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:32000].clone()
    module.write_safetensors(original / "model.safetensors", tensors)


@pytest.mark.parametrize("family", ARCHITECTURES)
@torch.inference_mode()
def test_the_hf_output_loads_in_transformers(tmp_path: Path, family: str) -> None:
    peer = write_checkpoint(tmp_path / "hf", "llava", family, seed=6)
    original = write_original(tmp_path / "original", peer, vocab_size=32000)
    cut_vocabulary(original)
    convert(open_source(original), tmp_path / "out", "hf")
    theirs, told = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids("<image>") == theirs.config.image_token_index == 32000
    again = load_checkpoint(tmp_path / "out").processor
    messages = [Message.user(Image(noise(44, 44)), "What is this?")]
    text = "".join(part.text if isinstance(part, Text) else "<image>" for part in again.segments(messages))
    once = [
        next(group) for _, group in itertools.groupby(again.prompt(messages).ids, lambda i: i if i < 0 else object())
    ]
    assert tokenizer(text).input_ids == [32000 if token < 0 else token for token in once]
    ours = Assistant(load_checkpoint(original, "vicuna_v1"))
    prompt, views, expected = asked(ours, noise(44, 44))
    ids = torch.tensor([[32000 if token < 0 else token for token in prompt.ids]])
    logits = theirs.eval()(input_ids=ids, pixel_values=views).logits
    assert logits.shape[-1] == 32064
    assert torch.allclose(logits[..., :32000], expected, atol=1e-4, rtol=0)
    assert logits.argmax(-1).equal(expected.argmax(-1))  # the added tokens never win
    convert(open_source(tmp_path / "out"), tmp_path / "back", "original")
    assert load_file(tmp_path / "back" / "model.safetensors")["lm_head.weight"].shape[0] == 32000


@torch.inference_mode()
def test_the_hf_output_of_a_video_model_loads_in_transformers(tmp_path: Path) -> None:
    peer = write_checkpoint(tmp_path / "hf", "llava_next_video", "llama", seed=7)
    original = write_original(
        tmp_path / "original",
        peer,
        vocab_size=32000,
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[[w, h] for h, w in peer.model.config.image_grid_pinpoints],
        mm_patch_merge_type="spatial_unpad",
        mm_resampler_type="spatial_pool",
        mm_spatial_pool_mode=peer.model.config.spatial_pool_mode,
        mm_spatial_pool_stride=2,
        mm_newline_position="no_token",
    )
    cut_vocabulary(original)
    convert(open_source(original), tmp_path / "out", "hf")
    theirs, told = transformers.LlavaNextVideoForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.convert_tokens_to_ids(["<image>", "<pad>", "<video>"])
    assert ids == [theirs.config.image_token_index, 32001, theirs.config.video_token_index] == [32000, 32001, 32002]
    assert load_checkpoint(tmp_path / "out").processor.video == load_checkpoint(original).processor.video


def test_large_models_are_written_in_shards(
    sources: dict[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 3_000_000)
    convert(open_source(sources["hf"]), tmp_path / "out", "native")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and all(file.stat().st_size < 7_000_000 for file in shards)
    places = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(places.values()) == {file.name for file in shards}
    found, expected = load_checkpoint(tmp_path / "out").model, load_checkpoint(sources["hf"]).model
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_what_a_layout_cannot_say_is_refused(sources: dict[Layout, Path], tmp_path: Path) -> None:
    config = json.loads((sources["original"] / "config.json").read_text())
    (sources["original"] / "config.json").write_text(json.dumps({**config, "mm_projector_type": "linear"}))
    try:
        with pytest.raises(LlavaError, match="the hf layout knows the projector mlp2x_gelu only"):
            convert(open_source(sources["original"], "llava_v1"), tmp_path / "out", "hf")
    finally:
        (sources["original"] / "config.json").write_text(json.dumps(config))
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_an_encoder_that_only_the_native_layout_has_is_refused(tmp_path: Path) -> None:
    from llava.registry import EMBEDDED

    with pytest.raises(LlavaError, match="efficientnet_lite0 exists in the native layout only"):
        convert(open_source(EMBEDDED["llava-smol"]), tmp_path / "hf", "hf")


def test_what_the_original_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llava", "llama", seed=5)
    source = open_source(tmp_path / "hf")

    def changed(**fields: Any) -> Source:
        return replace(source, config=source.config.model_copy(update=fields))

    image = source.config.image.model_copy(update={"aspect": "squash"})
    for name, wrong, message in (
        ("a", changed(image=image), "made square by: squash"),
        ("b", changed(template="chatml"), "template 'chatml': it is read as 'vicuna_v1'"),
        ("c", changed(template="vicuna_v1", system="Be brief."), "a system text of the model's own"),
    ):
        with pytest.raises(LlavaError, match=message):
            convert(wrong, tmp_path / name, "original")
        assert not (tmp_path / name).exists()
    own = changed(template="jinja", chat_template="{{ bos_token }}[INST] {{ messages }} [/INST]")
    for name, mistral in (("d", changed(template="mistral_instruct")), ("e", own)):  # without a window
        convert(mistral, tmp_path / name, "original")
        found = open_source(tmp_path / name).config
        assert found.template == "mistral_instruct" and found.llm == source.config.llm
    write_checkpoint(tmp_path / "siglip", "llava, SigLIP", "llama", seed=5)
    siglip = open_source(tmp_path / "siglip")
    vision = siglip.config.vision.model_copy(update={"feature_layer": -1})
    with pytest.raises(LlavaError, match="at layer -2 only, this model at -1"):
        convert(replace(siglip, config=siglip.config.model_copy(update={"vision": vision})), tmp_path / "f", "original")
