"""Parts as a GPU gets them. There is none here: bitsandbytes runs on the CPU, moves end on `meta`."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llava.checkpoints.gguf import GgufLlm
from llava.config import Precision, Storage
from llava.quantization.gpu import place
from llava.quantization.pack import Packer
from tests.conftest import tiny_model

CPU = torch.device("cpu")


def part() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.RMSNorm(64), nn.Linear(64, 32, bias=False)).requires_grad_(False)


@pytest.mark.parametrize(("precision", "bits", "tolerance"), [("int8", torch.int8, 0.05), ("int4", torch.uint8, 0.5)])
@torch.inference_mode()
def test_linear_layers_become_those_of_bitsandbytes(precision: Precision, bits: torch.dtype, tolerance: float) -> None:
    plain = part()
    placed: Any = place(copy.deepcopy(plain), precision, CPU)
    assert [layer.weight.dtype for layer in placed] == [bits, torch.float16, bits]
    x = torch.randn(5, 128)
    assert (placed(x.half()).float() - plain(x)).abs().max() < tolerance * plain(x).std()
    alone: Any = place(copy.deepcopy(plain[0]), precision, CPU)
    assert alone.weight.dtype == bits and torch.equal(alone(x.half()), placed[0](x.half()))


@torch.inference_mode()
def test_eight_bits_are_those_of_the_paper() -> None:
    """LLM.int8(): each output's largest value is 127 (Dettmers et al. 2022, section 2)."""
    layer = part()[0]
    placed: Any = place(copy.deepcopy(layer), "int8", CPU)
    largest = layer.weight.half().float().abs().amax(1, keepdim=True)
    levels = (layer.weight.half().float() / largest * 127).round()
    assert (placed.weight.float() - levels).abs().max() <= 1  # what lies between two levels may go either way
    assert (placed.weight.float() != levels).float().mean() < 0.01
    x = torch.randn(5, 128).half()
    expected = F.linear(x.float(), levels * largest / 127, layer.bias)
    assert torch.allclose(placed(x).float(), expected, atol=0.02)


@pytest.mark.parametrize(("precision", "dtype"), [("float16", torch.float16), ("float32", torch.float32)])
def test_every_part_is_moved_as_soon_as_it_is_there(smollm2: GgufLlm, precision: Precision, dtype: torch.dtype) -> None:
    model = tiny_model(smollm2).model
    packer = Packer(model, Storage(precision), torch.device("meta"))
    names = list(model.state_dict())
    for name in names:
        packer.arrived(name)
    packer.finish()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert list(model.state_dict()) == names
