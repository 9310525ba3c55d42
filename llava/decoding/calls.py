"""The compiled functions called with tensors: a linear layer of 8 bits, attention, and what rows alone are made to."""

import functools
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from llava.decoding import build, layout

_FLOAT = 4  # bytes
_WORD = "q"  # of a table: 64 bits
_UNIT = 16  # of a head's size


def reads(levels: Tensor) -> bool:
    """Whether the function can read such levels (out, in), on this processor."""
    return build.possible() and build.has(build.VNNI) and levels.shape[1] % layout.BYTES == 0


def multiplied(run: build.Run, x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), each row rounded to 8 bits, times levels (out, in) that it `reads`, with scales (out,): (..., out).

    All but the levels in float32, all on the CPU. Raises ValueError for other types and for an x of another width.
    """
    inputs = levels.shape[1]
    floats = [one for one in (x, scales, bias) if one is not None]
    if x.shape[-1] != inputs or any(one.dtype != torch.float32 or not one.is_cpu for one in floats):
        raise ValueError(f"expected float32 on a CPU, (..., {inputs}); found {x.dtype}, {tuple(x.shape)}")
    return _product(run, layout.INT8_BYTES, x, levels, scales, bias)


def multiplied_in_order(x: Tensor, weight: Tensor) -> Tensor | None:
    """x (..., in) times a weight (out, in), in float32; None where the function is not there for them.

    Sums of a row have an order of their own, whatever rows are beside it; those of PyTorch's libraries may not.
    """
    run = _function("linear", x, weight) if x.shape[-1] == weight.shape[1] else None
    return _product(run, layout.FLOAT32, x, weight) if run and x.numel() else None


def _product(
    run: build.Run, kind: int, x: Tensor, weight: Tensor, scales: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    (outputs, inputs), threads = weight.shape, torch.get_num_threads()
    x, weight = x.contiguous(), weight.contiguous()
    scales, bias = (None if one is None else one.contiguous() for one in (scales, bias))
    rows, each = x.numel() // inputs, layout.scratch(inputs)
    y = x.new_empty(*x.shape[:-1], outputs)
    memory = torch.empty(rows * (inputs + _FLOAT) + threads * each, dtype=torch.uint8, device="cpu")
    of_rows = memory.data_ptr() + rows * inputs
    places = [weight.data_ptr(), *(0 if one is None else one.data_ptr() for one in (scales, bias))]
    layer = array(_WORD, [kind, outputs, inputs, *places])
    words = [layer.buffer_info()[0], rows, x.data_ptr(), y.data_ptr(), memory.data_ptr()]
    _call(run, [*words, of_rows, of_rows + rows * _FLOAT, each], threads)
    return y


def _call(run: build.Run, words: Sequence[int], threads: int) -> None:
    """Call a function with its table."""
    table = array(_WORD, words)
    run(table.buffer_info()[0], threads)


def _function(name: str, x: Tensor, *others: Tensor) -> build.Run | None:
    """A function, where it is there and these are what it reads: float32 on a CPU, without training."""
    if torch.compiler.is_compiling():
        return None
    plain = all(one.dtype == torch.float32 and one.is_cpu and one.stride(-1) == 1 for one in (x, *others))
    if not plain or x.shape[-1] % _UNIT or torch.is_grad_enabled() or not build.possible():
        return None
    return build.function(name)


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """RMSNorm of x (..., D), with a weight (D,); None where the function is not there for it."""
    run = _function("norm", x, weight) if weight.shape == x.shape[-1:] else None
    if run is None or not x.numel():
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    places = (one.data_ptr() for one in (x, weight, _number(epsilon), y))
    _call(run, [x.numel() // width, width, *places], torch.get_num_threads())
    return y


@functools.cache
def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32, device="cpu")


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor | None:
    """Queries and keys x (B, T, H, Dh) turned by angles (T, 1, Dh); None where the function is not there for them."""
    sequences, positions, heads, size = x.shape
    fit = all(one.shape == (positions, 1, size) and one.is_contiguous() for one in (cosines, sines))
    run = _function("turn", x, cosines, sines) if fit else None
    if run is None or not x.numel():
        return None
    side_by_side = x.stride(2) == size and (sequences == 1 or x.stride(0) == positions * x.stride(1))
    x, stride = (x, x.stride(1)) if side_by_side else (x.contiguous(), heads * size)
    y = x.new_empty(x.shape)
    places = [x.data_ptr(), stride * _FLOAT, cosines.data_ptr(), sines.data_ptr(), positions, y.data_ptr()]
    _call(run, [sequences * positions, heads, size, *places], torch.get_num_threads())
    return y


def gated(gate_up: Tensor) -> Tensor | None:
    """SiLU of the first half of (..., 2 D), times the second: (..., D); None where the function is not there for it."""
    run = _function("gate", gate_up)
    if run is None or not gate_up.numel():
        return None
    gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], width)
    words = [gate_up.numel() // (2 * width), width, gate_up.data_ptr(), y.data_ptr()]
    _call(run, words, torch.get_num_threads())
    return y


def attended(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None = None) -> Tensor | None:
    """q (N, H, T, Dh) over keys and values (N, Hkv, S, Dh): (N, H, T, Dh); None where the function is not there for it.

    start: the slot of the first query. Each sees its own slot and those before it, `window` of them at most. It is as
    fast as PyTorch's, or faster, for many queries. Few take it too: where inputs of layers are rounded, to 8 bits or to
    bfloat16, the least difference between two ways can become another token.
    """
    run = _function("attention", q, keys, values)
    if run is None:
        return None
    (sequences, heads, queries, size), threads = q.shape, torch.get_num_threads()
    y = q.new_empty(sequences, queries, heads, size)
    each = layout.tile_bytes(size)
    memory = torch.empty(threads * each + layout.BYTES, dtype=torch.uint8, device="cpu")
    words = [sequences, heads, keys.shape[1], size, queries, keys.shape[2], start, window or 0]
    for one in (q, keys, values):
        words += [one.data_ptr(), *(step * _FLOAT for step in one.stride()[:3])]
    _call(run, [*words, y.data_ptr(), memory.data_ptr(), each], threads)
    return y.transpose(1, 2)
