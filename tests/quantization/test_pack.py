"""Packing a model from outside: it computes what it did, and nothing float32 is left behind."""

import copy

import pytest
import torch
from torch import nn

from llava.checkpoints.gguf import GgufLlm
from llava.config import DecoderConfig
from llava.models.decoder import Decoder
from llava.quantization.linears import Precision
from llava.quantization.pack import pack_beside, pack_decoder
from tests.conftest import tiny_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("int8", 0.2), ("int4", 0.7)]
)
@torch.inference_mode()
def test_a_packed_decoder_gives_the_same_scores(
    precision: Precision, tolerance: float, tied: bool, biased: bool
) -> None:
    config = DecoderConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rope_theta=10000.0,
        norm_eps=1e-5,
        max_positions=64,
        tie_embeddings=tied,
        qkv_bias=biased,
        qk_norm=not biased,
    )
    torch.manual_seed(0)
    plain = Decoder(config).eval()
    nn.init.normal_(plain.embed_tokens.weight)
    packed = copy.deepcopy(plain)
    pack_decoder(packed, precision)
    ids = torch.randint(128, (2, 9))
    expected = plain.logits(plain(plain.embed_tokens(ids)))
    found = packed.logits(packed(packed.embed_tokens(ids)))
    # relative to the scores' spread; 8 and 4 bits lose what they lose (docs/precision.md: what it means for answers)
    assert (found - expected).abs().max() < tolerance * expected.std()
    assert not [m for m in packed.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("precision", ["float32", "int4"])
@torch.inference_mode()
def test_vision_encoder_and_projector_keep_at_least_sixteen_bits(smollm2: GgufLlm, precision: Precision) -> None:
    model = tiny_model(smollm2).model
    pixels = torch.randn(2, 3, 28, 28)
    expected = model.projector(model.vision(pixels))
    pack_beside(model, precision)
    assert torch.allclose(
        model.projector(model.vision(pixels)), expected, atol=1e-5 if precision == "float32" else 5e-3
    )
    assert any(isinstance(m, nn.Linear) for m in model.llm.modules())  # not its part
