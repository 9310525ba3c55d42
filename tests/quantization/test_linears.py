"""Packed linear layers against their formulas in plain PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from llava.config import Precision
from llava.quantization.kernels import pack_linear
from llava.quantization.linears import (
    HalfLinear,
    Int8Linear,
    Plain8Linear,
    PlainLinear,
    WeightOnly8Linear,
    dequantized,
    group_of,
    quantize,
    sums_are_cut,
)

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")


def effective_weight(weight: Tensor, precision: Precision, bits: int = 8) -> Tensor:
    """The weight that is left of `weight` in this precision."""
    if precision == "float16":
        return weight.half().float()
    if precision == "int8":
        scales = weight.abs().amax(1, keepdim=True) / 127
        levels = (weight / scales).round()
        return (levels if bits == 8 else (levels / 2).round() * 2) * scales
    if precision == "int4":
        groups = weight.unflatten(1, (-1, 32))
        least, step = (
            groups.amin(-1, keepdim=True),
            (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15,
        )
        # scale and middle of each group are kept in bfloat16
        scale, middle = step.bfloat16().float(), (least + 8 * step).bfloat16().float()
        return ((((groups - least) / step).round() - 8) * scale + middle).flatten(1)
    return weight


def effective_input(x: Tensor, precision: Precision) -> Tensor:
    if precision == "int8":
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale
    return x.bfloat16().float() if precision == "int4" else x


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 64, 32), (5, 128, 96), (40, 192, 64)])
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_layer_computes_its_formula(precision: Precision, rows: int, outputs: int, inputs: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    x = torch.randn(2, rows, inputs, generator=generator)
    # int4's kernel gives bfloat16: 8 bits of a value
    tolerance = {"atol": 1e-4, "rtol": 0.0} if precision != "int4" else {"atol": 0.02, "rtol": 2**-7}
    for plain in (False, True):
        layer = pack_linear(weight, bias, precision, plain)
        bits = 7 if isinstance(layer, Int8Linear) and sums_are_cut() else 8
        expected = F.linear(effective_input(x, precision), effective_weight(weight, precision, bits), bias)
        assert torch.allclose(layer(x), expected, **tolerance)


@torch.inference_mode()
def test_the_largest_numbers_of_all_do_not_overflow() -> None:
    weight, x = torch.ones(64, 128), torch.ones(3, 128)
    # 7 bits have 64 levels to a side, of which 127 is the nearest to 63.5
    assert torch.allclose(pack_linear(weight, None, "int8")(x), torch.full((3, 64), 128.0), rtol=0.01)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (320, 576), (576, 1536)])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others(precision: Precision, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = pack_linear(torch.randn(outputs, inputs, generator=generator), None, precision)
    x = torch.randn(150, inputs, generator=generator)
    x[3] *= 1000  # what a shared scale would drown the others in
    alone = torch.cat([layer(row[None]) for row in x])
    for start, rows in [(0, 9), (1, 2), (2, 5), (0, 16), (7, 33), (0, 64), (3, 129), (0, 150)]:
        assert torch.equal(layer(x[start : start + rows]), alone[start : start + rows])


@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1.0, 1e20]), st.sampled_from([64, 2048]))
@settings(max_examples=20, deadline=None)
def test_what_is_stored_is_as_near_as_its_levels_are(seed: int, size: float, inputs: int) -> None:
    weight = torch.randn(64, inputs, generator=torch.Generator().manual_seed(seed)) * size
    eight = quantize(weight, None, "int8")
    assert ((dequantized(eight) - weight).abs() <= eight.scales[:, None] * 0.501 + 1e-12).all()
    four = quantize(weight, None, "int4")
    steps = four.scales.float().repeat_interleave(group_of(inputs), 1)
    # half a step, and what bfloat16 takes off the scale (up to 8 steps away) and off the middle
    allowed = steps * (0.501 + 8 * 2**-8) + weight.abs().amax() * 2**-8 + 1e-12
    assert ((dequantized(four) - weight).abs() <= allowed).all()


@torch.inference_mode()
def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.zeros(64, 32)
    for precision in PRECISIONS:
        assert torch.equal(pack_linear(weight, None, precision)(torch.zeros(3, 32)), torch.zeros(3, 64))


@torch.inference_mode()
def test_a_shape_that_int4_cannot_have_gets_eight_bits() -> None:
    weight, x = torch.randn(10, 20), torch.randn(3, 20)
    assert torch.equal(pack_linear(weight, None, "int4")(x), pack_linear(weight, None, "int8")(x))


@torch.inference_mode()
def test_layers_whose_weights_stay_as_they_are_compute_the_same() -> None:
    """Whatever this machine would choose for 8 bits; and a weight that becomes float32 in parts."""
    weight, bias, x = torch.randn(64, 96), torch.randn(64), torch.randn(2, 5, 96)
    expected = F.linear(effective_input(x, "int8"), effective_weight(weight, "int8"), bias)
    assert torch.allclose(Plain8Linear(quantize(weight, bias, "int8"))(x), expected, atol=1e-4)
    wide, x = torch.randn(3, 2**21), torch.randn(2, 2**21) / 1000
    assert torch.allclose(HalfLinear(wide, bias[:3])(x), F.linear(x, wide.half().float(), bias[:3]), atol=1e-3)


@torch.inference_mode()
def test_the_kernels_for_other_processors_compute_the_same() -> None:
    weight, bias, x = torch.randn(64, 96), torch.randn(64), torch.randn(2, 5, 96)
    assert torch.allclose(PlainLinear(weight, bias)(x), F.linear(x, weight, bias), atol=1e-5)
    expected = F.linear(x, effective_weight(weight, "int8"), bias)
    # inputs, scales and results in bfloat16
    assert torch.allclose(WeightOnly8Linear(quantize(weight, bias, "int8"))(x), expected, atol=0.1, rtol=2**-6)
