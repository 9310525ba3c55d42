"""Packing a model from outside: it computes what it did, and nothing float32 is left behind."""

import copy

import pytest
import torch
from torch import nn

from llava.checkpoints.gguf import GgufLlm
from llava.config import LlavaConfig, Precision, Storage
from llava.models.llava import LlavaModel
from llava.quantization.footprint import footprint
from llava.quantization.pack import pack_model
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
