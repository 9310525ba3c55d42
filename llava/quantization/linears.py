"""Linear layers as inference stores them on a CPU: in 32, 16, 8 or 4 bits, packed for its matrix kernels.

float32  oneDNN's blocked layout, or the plain one; exact
float16  stored in half precision, computed in float32 (FBGEMM); exact for weights published in half precision
int8     a scale for each output; inputs are rounded to 8 bits, each row by its own largest value. On CPUs without
         AVX-512 VNNI, where FBGEMM would cut sums of two products at 16 bits, its weights have 7 bits. Without
         FBGEMM, inputs are in bfloat16
int4     a scale and a middle for each group of inputs of an output; inputs in bfloat16

Every row of an input is computed on its own terms: what else is in the batch does not change it (in float32 and float16
up to the order of summation). Oracle: the formulas in plain PyTorch (tests/quantization/test_linears.py).
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import Precision
from llava.decoding.build import Run, function, version
from llava.decoding.calls import multiplied, reads
from llava.measure import fastest, least

INT4_BLOCK = 64  # outputs that the kernel of int4 lays out together
_LEVELS = 127  # of int8, to each side
_SMALLEST = 1e-12  # a scale; for rows of zeros
_EXACT = 1024  # products of two levels, whose sums float32 holds exactly: 1024 * 127**2 < 2**24
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x (..., in), weight (out, in) and bias
_MEASURED = (512, 1024)  # of the matrices that libraries are measured with


class Float32Linear(nn.Module):
    """Weights in oneDNN's own layout, which it reads faster than the plain one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous())
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


class PlainLinear(nn.Module):
    """Weights as they are, which the compiled step (`llava.decoding`) reads too."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.float()
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        return _product()(x, self.weight, self.bias)


class Float16Linear(nn.Module):
    """Weights in half precision, arithmetic in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        floats = None if bias is None else bias.float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), floats)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return out


class HalfLinear(nn.Module):
    """Weights in half precision as they are, which the compiled step (`llava.decoding`) reads too; it is for few rows.

    For many, the weight becomes float32 for the moment, a large one in parts.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.half().contiguous()
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        y = _by_parts(x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


def _by_parts(x: Tensor, weight: Tensor) -> Tensor:
    """x times a weight of fewer bits, of which no more than a part is in float32 at a time."""
    product = _product()
    parts = [product(x, weight[rows].float(), None) for rows in _slices(weight)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@functools.cache
def _product() -> Product:
    """x @ weight.T + bias in float32, of a plain weight, by the faster library for prompts.

    MKL, which PyTorch asks, leaves AVX-512 unused on AMD's processors: oneDNN takes less than half of its time there.
    """
    if not torch._C._has_mkldnn:
        return _mkl
    x, weight = torch.ones(_MEASURED), torch.ones(_MEASURED)
    ways = {"mkl": _mkl, "onednn": _onednn}
    return ways[fastest("plain product", {name: partial(_seconds, way, x, weight) for name, way in ways.items()})]


def _seconds(way: Product, x: Tensor, weight: Tensor) -> float:
    return least(lambda: way(x, weight, None), 5)


def _mkl(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class Levels(nn.Module):
    """A linear layer's weight rounded to few levels, as checkpoints store it. It is not run, but packed.

    int8: levels int8 (out, in), scales float32 (out,); weight = level * scale
    int4: levels uint8 (out, in / 2), two of 0..15 in a byte, the even input's in its lower half; scales and middles
    bfloat16 (out, in / group); weight = (level - 8) * scale + middle
    """

    def __init__(self, levels: Tensor, scales: Tensor, middles: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)
        self.register_buffer("middles", middles)
        self.register_buffer("bias", bias)
        self.levels: Tensor
        self.scales: Tensor
        self.middles: Tensor | None
        self.bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return len(self.levels), self.levels.shape[1] * (1 if self.middles is None else 2)


class Int8Linear(nn.Module):
    """A weight with 8-bit levels; with 7-bit ones, the nearest to them, where `sums_are_cut`."""

    def __init__(self, stored: Levels) -> None:
        super().__init__()
        self.packed = _fbgemm_packed(*(halved(stored) if sums_are_cut() else (stored.levels, stored.scales)))
        self.bias = None if stored.bias is None else stored.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        scales = x.abs().amax(-1, keepdim=True).div_(_LEVELS).clamp_(min=_SMALLEST)
        # divided by scales of their own, all rows have the scale 1: no row sees another's
        y = _fbgemm_product(x / scales, self.packed).mul_(scales)
        return y if self.bias is None else y.add_(self.bias)


def halved(stored: Levels) -> tuple[Tensor, Tensor]:
    """8-bit levels and their scales as 7-bit ones, -64..64: two products with inputs of 0..255 fit into 16 bits."""
    return torch.cat([(stored.levels[rows] / 2).round_().char() for rows in _slices(stored.levels)]), stored.scales * 2


@functools.cache
def sums_are_cut() -> bool:
    """Whether FBGEMM's kernel adds two products in 16 bits here, which the largest levels overflow, or is not there."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return True
    packed = _fbgemm_packed(torch.full((1, 64), _LEVELS, dtype=torch.int8), torch.ones(1))
    return _fbgemm_product(torch.full((1, 64), float(_LEVELS)), packed).item() != 64 * _LEVELS**2


def _fbgemm_packed(levels: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():  # the only place where quantized tensors are made: they are to be replaced
        warnings.simplefilter("ignore")
        quantized = torch._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)


def _fbgemm_product(x: Tensor, packed: Any) -> Tensor:
    """x, in -127..127, rounded to whole numbers, times the packed weight."""
    product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, _LEVELS + 1, packed)
    return product


class Plain8Linear(nn.Module):
    """As `Int8Linear`, with the levels as they are: the compiled functions (`llava.decoding`) read them too.

    PyTorch and the compiled function give the same, bit for bit: sums are exact, and scaled in one order.
    """

    def __init__(self, stored: Levels) -> None:
        super().__init__()
        self.levels, self.scales = stored.levels.contiguous(), stored.scales.float().contiguous()
        self.bias = None if stored.bias is None else stored.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and reads(self.levels) and (run := _compiled()):
            return multiplied(run, x, self.levels, self.scales, self.bias)
        return _rounded_product(x, self.levels, self.scales, self.bias)


def _rounded_product(x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), each row rounded to 8 bits, times levels with scales: by PyTorch."""
    flat = x.reshape(-1, x.shape[-1])
    of_rows = flat.abs().amax(-1, keepdim=True).div_(_LEVELS).clamp_(min=_SMALLEST)
    rounded = (flat / of_rows).round_()
    if sums_are_cut():  # then products of whole numbers are slow too; as floats, sums of so few are exact
        parts = zip(torch.split(rounded, _EXACT, dim=1), torch.split(levels, _EXACT, dim=1), strict=True)
        product = sum((_by_parts(*part).int() for part in parts), torch.tensor(0)).float()
    else:
        product = torch._int_mm(rounded.char(), levels.t()).float()
    y: Tensor = product.mul_(scales).mul_(of_rows).view(*x.shape[:-1], -1)
    return y if bias is None else y.add_(bias)


def _compiled() -> Run | None:
    """The compiled function for layers of 8 bits, where it is there and faster than PyTorch (which can have AMX)."""
    run = function("linear")
    return run if run and _compiled_is_faster(run) else None


@functools.cache
def _compiled_is_faster(run: Run) -> bool:
    x, scales = torch.ones(_MEASURED), torch.ones(_MEASURED[0])
    levels = torch.ones(_MEASURED, dtype=torch.int8)
    ways = {
        "pytorch": lambda: least(lambda: _rounded_product(x, levels, scales, None), 5),
        "compiled": lambda: least(lambda: multiplied(run, x, levels, scales, None), 5),
    }
    return fastest(f"product of 8 bits, {version()}", ways) == "compiled"


class WeightOnly8Linear(nn.Module):
    """A weight with 8-bit levels, inputs in bfloat16: for processors that FBGEMM has no kernels for."""

    def __init__(self, stored: Levels) -> None:
        super().__init__()
        self.levels, self.scales = stored.levels, stored.scales.bfloat16()
        self.bias = None if stored.bias is None else stored.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch._weight_int8pack_mm(flat, self.levels, self.scales).float().view(*x.shape[:-1], -1)
        return y if self.bias is None else y.add_(self.bias)


class Int4Linear(nn.Module):
    """A weight with 4-bit levels."""

    def __init__(self, stored: Levels) -> None:
        super().__init__()
        assert stored.middles is not None
        self.out_features, inputs = stored.shape
        self.group = inputs // stored.scales.shape[1]
        convert, step = torch.ops.aten._convert_weight_to_int4pack_for_cpu, _rows_at_once(inputs, INT4_BLOCK)
        parts = [stored.levels[row : row + step] for row in range(0, self.out_features, step)]
        self.packed = torch.cat([convert(_unpaired(part), 1) for part in parts])  # as int32 all would take much memory
        self.scales = torch.stack((stored.scales, stored.middles), dim=-1).transpose(0, 1).contiguous()
        self.bias = None if stored.bias is None else stored.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, self.group, self.scales).float()
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)


_ROUNDING = (Int8Linear, Plain8Linear, WeightOnly8Linear, Int4Linear)


def rounds_inputs(model: nn.Module) -> bool:
    """Whether any layer rounds its inputs: then the least difference in one can become another token."""
    return any(isinstance(layer, _ROUNDING) for layer in model.modules())


def group_of(inputs: int) -> int:
    """How many inputs share a scale in int4: wide layers bear larger groups, which take less memory."""
    return 32 if inputs < 2048 else 64


def stored_precision(inputs: int, precision: Precision) -> Precision:
    """What a weight with so many inputs is stored in when `precision` is asked for: 8 bits where 4 cannot be had."""
    return "int8" if precision == "int4" and inputs % group_of(inputs) else precision


def quantize(weight: Tensor, bias: Tensor | None, precision: Precision) -> Levels:
    """A weight (out, in) as int8 or int4 levels: to the nearest, between the least and the largest value."""
    if stored_precision(weight.shape[1], precision) == "int8":
        return _quantize_int8(weight, bias)
    return _quantize_int4(weight, bias)


def _quantize_int8(weight: Tensor, bias: Tensor | None) -> Levels:
    levels, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for rows in _slices(weight):
        part = weight[rows].float()
        scales[rows] = part.abs().amax(1).clamp_(min=_SMALLEST) / _LEVELS
        levels[rows] = (part / scales[rows, None]).round_().char()
    return Levels(levels, scales, None, bias)


def _quantize_int4(weight: Tensor, bias: Tensor | None) -> Levels:
    outputs, inputs = weight.shape
    group = group_of(inputs)
    levels = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    scales, middles = torch.empty(2, outputs, inputs // group, dtype=torch.bfloat16)
    for rows in _slices(weight):
        groups = weight[rows].float().view(-1, inputs // group, group)
        least = groups.amin(-1, keepdim=True)
        steps = ((groups.amax(-1, keepdim=True) - least) / 15).clamp_(min=_SMALLEST)
        scales[rows], middles[rows] = steps[..., 0].bfloat16(), (least + 8 * steps)[..., 0].bfloat16()
        groups = (groups - least).div_(steps)
        pairs = groups.round_().clamp_(0, 15).byte().view(-1, inputs // 2, 2)
        levels[rows] = pairs[..., 0] | (pairs[..., 1] << 4)
    return Levels(levels, scales, middles, bias)


def _unpaired(levels: Tensor) -> Tensor:
    """Pairs of levels in a byte (out, in / 2) to one level each (out, in), int32."""
    return torch.stack((levels & 15, levels >> 4), dim=-1).flatten(1).int()


def dequantized(stored: Levels) -> Tensor:
    """The weight (out, in) that levels stand for, in float32."""
    if stored.middles is None:
        return stored.levels.float() * stored.scales.float()[:, None]
    groups = _unpaired(stored.levels).float().view(*stored.scales.shape, -1) - 8
    return (groups * stored.scales.float()[..., None] + stored.middles.float()[..., None]).flatten(1)


def joined(parts: Sequence[Levels]) -> Levels:
    """The levels of one layer that gives what several give, one after the other."""
    if len(parts) == 1:
        return parts[0]
    middles = [part.middles for part in parts if part.middles is not None]
    biases = [part.bias for part in parts if part.bias is not None]
    return Levels(
        torch.cat([part.levels for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(middles) if middles else None,
        torch.cat(biases) if biases else None,
    )


def _slices(weight: Tensor) -> Iterator[slice]:
    """Rows that make up some 16 MB in float32: work on them takes little memory beside the weight."""
    step = _rows_at_once(weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _rows_at_once(inputs: int, unit: int = 1) -> int:
    """So many rows, a multiple of `unit`."""
    return max(1, 2**22 // inputs // unit) * unit
