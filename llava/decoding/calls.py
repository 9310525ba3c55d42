"""The compiled functions called with tensors: a linear layer of 8 bits, and attention of many queries."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.decoding import build, layout
from llava.measure import fastest, least

_FLOAT = 4  # bytes
_UNIT = 16  # of a head's size
_MEASURED = 512  # queries, when it is measured


def reads(levels: Tensor) -> bool:
    """Whether the function can read such levels (out, in), on this processor."""
    return build.possible() and build.has(build.VNNI) and levels.shape[1] % layout.BYTES == 0


def multiplied(run: build.Run, x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), each row rounded to 8 bits, times levels (out, in) that it `reads`, with scales (out,): (..., out).

    All but the levels in float32, all on the CPU. Raises ValueError for other types and for an x of another width.
    """
    (outputs, inputs), threads = levels.shape, torch.get_num_threads()
    floats = [one for one in (x, scales, bias) if one is not None]
    if x.shape[-1] != inputs or any(one.dtype != torch.float32 or not one.is_cpu for one in floats):
        raise ValueError(f"expected float32 on a CPU, (..., {inputs}); found {x.dtype}, {tuple(x.shape)}")
    x, levels, scales = x.contiguous(), levels.contiguous(), scales.contiguous()
    bias = None if bias is None else bias.contiguous()
    rows, each = x.numel() // inputs, layout.scratch(inputs)
    y = x.new_empty(*x.shape[:-1], outputs)
    memory = torch.empty(rows * (inputs + _FLOAT) + threads * each, dtype=torch.uint8, device="cpu")
    of_rows = memory.data_ptr() + rows * inputs
    words = [0, rows, x.data_ptr(), y.data_ptr(), memory.data_ptr(), of_rows, of_rows + rows * _FLOAT, each]
    layer = [levels.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr()]
    call = torch.tensor([*words, layout.INT8_BYTES, outputs, inputs, *layer], device="cpu")
    call[layout.ALONE] = call.data_ptr() + call.itemsize * len(words)
    run(call.data_ptr(), threads)
    return y


def attention(q: Tensor, keys: Tensor, values: Tensor) -> build.Run | None:
    """The function for `attended` with these, where it is there and the faster: float32 on a CPU, without training.

    Few queries take it too, although PyTorch is as fast for them: where inputs of layers are rounded, to 8 bits or to
    bfloat16, the least difference between two ways can become another token.
    """
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
    return fastest(f"attention, {build.version()}", ways) == "compiled"


def attended(run: build.Run, q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None = None) -> Tensor:
    """q (N, H, T, Dh) over keys and values (N, Hkv, S, Dh): (N, H, T, Dh).

    start: the slot of the first query. Each sees its own slot and those before it, `window` of them at most.
    """
    (sequences, heads, queries, size), threads = q.shape, torch.get_num_threads()
    y = q.new_empty(sequences, queries, heads, size)
    each = layout.tile_bytes(size)
    memory = torch.empty(threads * each, dtype=torch.uint8, device="cpu")
    words = [sequences, heads, keys.shape[1], size, queries, keys.shape[2], start, window or 0]
    for one in (q, keys, values):
        words += [one.data_ptr(), *(step * _FLOAT for step in one.stride()[:3])]
    call = torch.tensor([*words, y.data_ptr(), memory.data_ptr(), each], device="cpu")
    run(call.data_ptr(), threads)
    return y.transpose(1, 2)
