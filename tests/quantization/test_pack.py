"""Packing a model from outside: it computes what it did, and nothing float32 is left behind."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from llava.checkpoints.gguf import GgufLlm
from llava.config import LlavaConfig, Precision, Storage
from llava.decoding import build
from llava.media.tiling import FlatLayout
from llava.models.llava import LlavaModel
from llava.quantization.footprint import footprint
from llava.quantization.kernels import pack_levels
from llava.quantization.linears import Int8Linear, Plain8Linear, quantize
from llava.quantization.pack import AdaptedLinear, pack_model
from tests.conftest import tiny_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("int8", 0.2), ("int4", 0.7)]
)
@torch.inference_mode()
def test_a_packed_model_gives_the_same_scores(
    smollm2: GgufLlm, precision: Precision, tolerance: float, tied: bool, biased: bool
) -> None:
    config = tiny_model(smollm2).model.config
    changes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_embeddings": tied}
    llm = config.llm.model_copy(update={**changes, "qkv_bias": biased, "qk_norm": not biased})
    torch.manual_seed(0)
    plain = LlavaModel(LlavaConfig.model_validate({**config.model_dump(), "llm": llm.model_dump()})).eval()
    nn.init.normal_(plain.llm.embed_tokens.weight)
    packed = copy.deepcopy(plain)
    pack_model(packed, Storage(precision))
    pixels = torch.randn(2, 3, 28, 28)
    expected = plain.projector(plain.vision(pixels))
    assert torch.allclose(
        packed.projector(packed.vision(pixels)), expected, atol=1e-5 if precision == "float32" else 5e-3
    )
    ids = torch.randint(128, (2, 9))
    expected = plain.llm.logits(plain.llm(plain.llm.embed_tokens(ids)))
    found = packed.llm.logits(packed.llm(packed.llm.embed_tokens(ids)))
    # relative to the scores' spread; 8 and 4 bits lose what they lose (docs/precision.md: what it means for answers)
    assert (found - expected).abs().max() < tolerance * expected.std()
    assert not [m for m in packed.modules() if isinstance(m, nn.Linear)]


@torch.inference_mode()
def test_what_lies_beside_the_llm_has_eight_bits_when_asked_for(smollm2: GgufLlm) -> None:
    plain = tiny_model(smollm2).model
    packed = copy.deepcopy(plain)
    pack_model(packed, Storage("float16", beside_8bit=True))
    layers: list[Any] = [packed.vision.encoder.layers[0].mlp.fc1, packed.vision.encoder.layers[0].self_attn.qkv]
    layers += [packed.projector[0], packed.projector[2], packed.llm.lm_head]
    assert {type(layer) for layer in layers} <= {Int8Linear, Plain8Linear}
    pixels, ids = torch.randn(3, 3, 28, 28), torch.randint(1000, (1, 9))
    for found, expected in (
        (packed.vision(pixels), plain.vision(pixels)),
        (packed.encode(pixels, [FlatLayout(1, 4)] * 3), plain.encode(pixels, [FlatLayout(1, 4)] * 3)),
        (packed.llm.logits(packed.llm.embed_tokens(ids)), plain.llm.logits(plain.llm.embed_tokens(ids))),
    ):
        assert 0 < (found - expected).abs().max() < 0.15 * expected.std()
    one = packed.vision(pixels[1:2])
    assert torch.allclose(one, packed.vision(pixels)[1:2], atol=1e-4)  # no view's rows change another's


def test_the_footprint_of_what_lies_beside_the_llm(smollm2: GgufLlm) -> None:
    config = tiny_model(smollm2).model.config
    half, eight = footprint(config, Storage("int4")), footprint(config, Storage("int4", beside_8bit=True))
    linear = sum(
        layer.weight.numel()
        for part in (tiny_model(smollm2).model.vision, tiny_model(smollm2).model.projector)
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    )
    saved = sum(half[part].bytes - eight[part].bytes for part in ("vision encoder", "projector"))
    assert saved == linear
    assert half["LLM"].bytes - eight["LLM"].bytes == config.llm.vocab_size * config.llm.hidden_size  # the head
    lora = footprint(config, Storage("int4"), adapter=1000)["LLM"]
    assert (lora.bytes - half["LLM"].bytes, lora.parameters - half["LLM"].parameters) == (4000, 1000)  # in float32
    assert footprint(config, Storage("int8"), adapter=1000) == footprint(config, Storage("int8"))  # it is folded in


def test_the_footprint_counts_every_parameter(smollm2: GgufLlm) -> None:
    model = tiny_model(smollm2).model
    parts = footprint(model.config, Storage("float32"))
    assert sum(part.parameters for part in parts.values()) == sum(p.numel() for p in model.parameters())
    assert sum(part.bytes for part in parts.values()) == 4 * sum(p.numel() for p in model.parameters())
    sizes = [footprint(model.config, Storage(p))["LLM"].bytes for p in ("float32", "float16", "int8", "int4")]
    table = model.llm.embed_tokens.weight.numel()
    blocks = sizes[0] - 4 * table
    assert sizes[1] == pytest.approx(blocks / 2 + 4 * table, rel=0.01)  # a tied head is a copy then
    assert sizes[2] == pytest.approx(blocks / 4 + 4 * table, rel=0.01)
    assert sizes[3] == pytest.approx(blocks * 0.15625 + 4 * table, rel=0.01)
    config = tiny_model(smollm2, width=64).model.config  # of a shape that the compiled step can run
    table = config.llm.vocab_size * config.llm.hidden_size
    four, eight = (footprint(config, Storage(p))["LLM"].bytes for p in ("int4", "int8"))
    blocks = eight - table * (2 if build.possible() else 4)
    assert 0 < blocks < 0.05 * table and four > 4 * table


def test_a_lora_beside_4_bits_gives_each_row_the_same_whatever_rows_are_beside_it() -> None:
    if not build.possible():
        pytest.skip("sums have an order of their own in the compiled functions only")
    build.wait()
    noise = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    stored = quantize(random(320, 576) / 24, None, "int4")
    first, last = (random(24, 576) / 24, random(192, 24)), (random(8, 576) / 24, random(64, 8))
    packed = pack_levels(stored)
    layer = AdaptedLinear(packed, [first, (torch.empty(0, 576), torch.empty(64, 0)), last])
    x = random(1, 200, 576)
    with torch.inference_mode():
        alone = torch.cat([layer(x[:, row : row + 1]) for row in range(200)], dim=1)
        for rows in (1, 2, 3, 5, 16, 33, 64, 150):
            assert torch.equal(layer(x[:, 7 : 7 + rows]), alone[:, 7 : 7 + rows])
        added = [x @ (up @ down).T for down, up in (first, last)]
        expected = packed(x) + torch.cat([added[0], torch.zeros(1, 200, 64), added[1]], dim=-1)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
