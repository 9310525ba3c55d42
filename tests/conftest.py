"""Shared fixtures: the real base parts, tiny random models, and small pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import strategies as st

from llava.checkpoints.gguf import GgufLlm, open_gguf
from llava.checkpoints.native import Loaded
from llava.config import BaseParts, ClipVisionConfig, DecoderConfig, ImageConfig, LlavaConfig
from llava.fetch import fetch
from llava.models.llava import LlavaModel
from llava.processor import Processor
from llava.registry import PARTS
from scripts.random_checkpoints import resize_as_pillow_13

resize_as_pillow_13()  # transformers, which pictures are compared with

# SmolLM2's vocabulary lacks 21 of the 256 bytes, so control characters and planes without assigned characters cannot
# round-trip: its tokenizer drops them.
ENCODABLE = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufffd")


# The longest files, which are given out first: then both processes end at about the same time.
LONG = (
    "test_documentation", "test_hostile", "train/test_loop", "serve/test_web", "test_embedded", "test_quantized",
    "test_published", "test_errors", "test_variants", "test_hf", "test_api", "test_hub", "test_compiling", "cli/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by LONG; within a file they stay as they stand."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG)))


@pytest.fixture(scope="session")
def smollm2() -> GgufLlm:
    """The real SmolLM2-135M-Instruct, from the cache that `make parts` fills."""
    return open_gguf(fetch(PARTS["smollm2-135m-instruct"]))


@pytest.fixture(scope="session")
def tiny(smollm2: GgufLlm) -> Loaded:
    """A small random model with CLIP's architecture and SmolLM2's tokenizer. Tests must not change it."""
    return tiny_model(smollm2)


def tiny_model(smollm2: GgufLlm, template: str = "chatml", seed: int = 0, width: int = 48) -> Loaded:
    """A new small random model: CLIP of 2 layers, mlp2x_gelu, decoder of 2 layers."""
    llm = DecoderConfig(
        vocab_size=smollm2.config.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=width // 4,
        rope_theta=10000.0,
        norm_eps=1e-5,
        max_positions=512,
        tie_embeddings=True,
    )
    vision = ClipVisionConfig(
        image_size=28, patch_size=14, hidden_size=32, intermediate_size=64, num_layers=3, num_heads=4
    )
    config = LlavaConfig(
        llm=llm,
        vision=vision,
        image=ImageConfig(size=28),
        projector="mlp2x_gelu",
        template=template,
        system="",
        images_first=True,
        base=BaseParts(llm="none", vision="none"),
    )
    torch.manual_seed(seed)
    model = LlavaModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm | torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
    processor = Processor(
        smollm2.tokenizer, config.image, None, model.vision.num_tokens, template, config.system, config.images_first
    )
    return Loaded(model.requires_grad_(False).eval(), processor)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Makes picture files: `picture("a.png", size=(w, h), colour=...)`; without a colour, random pixels."""

    def make(name: str, size: tuple[int, int] = (40, 30), colour: str | None = None, seed: int = 0) -> Path:
        if colour is not None:
            image = PIL.Image.new("RGB", size, colour)
        else:
            pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image = PIL.Image.fromarray(pixels)
        image.save(tmp_path / name)
        return tmp_path / name

    return make
