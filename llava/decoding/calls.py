"""The compiled functions called with tensors: a linear layer of 8 bits, and attention of many queries."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.decoding import build, layout
from llava.quantization.measure import fastest, least

_FLOAT = 4  # bytes
_UNIT = 16  # of a head's size
_MEASURED = 512  # queries, when it is measured


def reads(levels: Tensor) -> bool:
    """Whether the function can read such levels (out, in), on this processor."""
    return build.possible() and build.has(build.VNNI) and levels.shape[1] % layout.BYTES == 0


def table_of(levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """What `multiplied` takes for a layer. It has the addresses of the three, not the tensors."""
    places = (levels.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr())
    return torch.tensor([layout.INT8_BYTES, *levels.shape, *places])


def multiplied(run: build.Run, table: Tensor, x: Tensor, outputs: int) -> Tensor:
    """x (..., in) float32, each row rounded to 8 bits, times the weight: (..., out)."""
    x, threads = x.contiguous(), torch.get_num_threads()
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    y = x.new_empty(*x.shape[:-1], outputs)
    each = layout.scratch(inputs)
    memory = torch.empty(rows * (inputs + _FLOAT) + threads * each, dtype=torch.uint8)
    scales = memory.data_ptr() + rows * inputs
    words = [
        table.data_ptr(),
        rows,
        x.data_ptr(),
        y.data_ptr(),
        memory.data_ptr(),
        scales,
        scales + rows * _FLOAT,
        each,
    ]
    call = torch.tensor(words)
    run(call.data_ptr(), threads)
    return y


def attention(q: Tensor, keys: Tensor, values: Tensor) -> build.Run | None:
    """The function for `attended` with these, where it is there and the faster: float32 on a CPU, without training."""
    plain = all(one.dtype == torch.float32 and one.is_cpu and one.stride(-1) == 1 for one in (q, keys, values))
    if not plain or q.shape[-1] % _UNIT or torch.is_grad_enabled() or not build.possible():
        return None
    run = build.attention()
    return run if run and _attention_is_faster(run) else None


@functools.cache
def _attention_is_faster(run: build.Run) -> bool:
    q, keys = torch.ones(1, 8, _MEASURED, 64), torch.ones(1, 2, _MEASURED, 64)
    ways = {
        "pytorch": lambda: least(
            lambda: F.scaled_dot_product_attention(q, keys, keys, is_causal=True, enable_gqa=True), 5
        ),
        "compiled": lambda: least(lambda: attended(run, q, keys, keys, 0), 5),
    }
    return fastest("attention", ways) == "compiled"


def attended(
    run: build.Run, q: Tensor, keys: Tensor, values: Tensor, start: int | None = None, window: int | None = None
) -> Tensor:
    """q (N, H, T, Dh) over keys and values (N, Hkv, S, Dh): (N, H, T, Dh).

    start: the slot of the first query, of which each sees its own and those before it, at most `window`; None: all.
    """
    (sequences, heads, queries, size), threads = q.shape, torch.get_num_threads()
    y = q.new_empty(sequences, queries, heads, size)
    each = layout.tile_bytes(size)
    memory = torch.empty(threads * each, dtype=torch.uint8)
    words = [sequences, heads, keys.shape[1], size, queries, keys.shape[2], -1 if start is None else start, window or 0]
    for one in (q, keys, values):
        words += [one.data_ptr(), *(step * _FLOAT for step in one.stride()[:3])]
    call = torch.tensor([*words, y.data_ptr(), memory.data_ptr(), each])
    run(call.data_ptr(), threads)
    return y.transpose(1, 2)
