"""Linear layers as inference stores them on a CPU: in 32, 16, 8 or 4 bits, packed for its matrix kernels.

float32  oneDNN's blocked layout; exact
float16  stored in half precision, computed in float32 (FBGEMM); exact for weights published in half precision
int8     a scale for each output; inputs are rounded to 8 bits, each row by its own largest value. On CPUs without VNNI
         the kernel's sums of two products are cut at 16 bits: where two neighbours are near their largest at once
int4     a scale and an offset for each 32 inputs of an output; inputs in bfloat16

Every row of an input is computed on its own terms: what else is in the batch does not change it (in float32 and float16
up to the order of summation). Oracle: the formulas in plain PyTorch (tests/quantization/test_linears.py).
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "float16", "int8", "int4"]

GROUP = 32  # inputs that share a scale in int4
_LEVELS = 127  # of inputs in int8, to each side
_SMALLEST = 1e-12  # a scale; for rows of zeros


class Float32Linear(nn.Module):
    """Weights in oneDNN's own layout, which it reads faster than the plain one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous())
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


class Float16Linear(nn.Module):
    """Weights in half precision, arithmetic in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        floats = None if bias is None else bias.float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), floats)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return out


class Int8Linear(nn.Module):
    """levels: int8 (out, in), scales: float32 (out,); weight = levels * scales."""

    def __init__(self, levels: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():  # the only place where quantized tensors are made: they are to be replaced
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
            self.packed: Any = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True).clamp_(min=_SMALLEST)
        # inputs in -1..1 have one scale for all rows, so that no row sees another's
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = product(x / largest, 1 / _LEVELS, _LEVELS + 1, self.packed).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


class Int4Linear(nn.Module):
    """levels: uint8 0..15 (out, in), scales and offsets: (out, in / GROUP); weight = levels * scale + offset."""

    def __init__(self, levels: Tensor, scales: Tensor, offsets: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = len(levels)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
        middles = offsets.float() + 8 * scales.float()  # the kernel counts levels from -8
        self.scales = torch.stack((scales.float(), middles), dim=-1).transpose(0, 1).contiguous().bfloat16()
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, GROUP, self.scales).float()
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Levels and scales of `Int8Linear`, symmetric, by the largest value of each output."""
    levels, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for rows in _slices(weight):
        part = weight[rows].float()
        scales[rows] = part.abs().amax(1).clamp_(min=_SMALLEST) / 127
        levels[rows] = (part / scales[rows, None]).round_().char()
    return levels, scales


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, scales and offsets of `Int4Linear`, between the least and the largest value of each group."""
    levels = torch.empty(weight.shape, dtype=torch.uint8)
    scales, offsets = torch.empty(2, len(weight), weight.shape[1] // GROUP)
    for rows in _slices(weight):
        groups = weight[rows].float().view(-1, weight.shape[1] // GROUP, GROUP)
        offsets[rows] = groups.amin(-1)
        scales[rows] = ((groups.amax(-1) - offsets[rows]) / 15).clamp_(min=_SMALLEST)
        groups = (groups - offsets[rows, :, None]).div_(scales[rows, :, None])
        levels[rows] = groups.round_().clamp_(0, 15).byte().flatten(1)
    return levels, scales, offsets


def _slices(weight: Tensor) -> Iterator[slice]:
    """Rows that make up some 16 MB in float32: work on them takes little memory beside the weight."""
    step = max(1, 2**22 // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


def pack_linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> nn.Module:
    """A layer that computes F.linear(x, weight, bias) for float32 x (..., in) on the CPU.

    Where this build of PyTorch or the weight's shape rules a precision out, the layer has the next higher one.
    """
    if precision == "int4" and weight.shape[1] % GROUP == 0 and weight.shape[0] % 64 == 0:
        return Int4Linear(*quantize_int4(weight), bias)
    if precision in ("int8", "int4") and _has_fbgemm():
        return Int8Linear(*quantize_int8(weight), bias)
    if precision == "float16" and _has_fbgemm():
        return Float16Linear(weight, bias)
    if torch._C._has_mkldnn:
        return Float32Linear(weight, bias)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    plain.load_state_dict({"weight": weight.float(), **({} if bias is None else {"bias": bias.float()})}, assign=True)
    return plain


@functools.cache
def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines
