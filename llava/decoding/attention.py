"""Attention, for numba to compile: tile by tile, each with its own maximum. Source: FlashAttention (Dao et al. 2022).

Keys are looked at in tiles that begin at the first slot, whatever queries there are; a tile's part of an answer is its
own, and parts are put together in the order of tiles. Sums have an order of their own too (`llava.decoding.vectors`).
So what a query gives depends on its position only, and is the same, bit for bit, whether a prompt is read at once or in
parts, by this function alone or inside a step, by one thread or by several. (What is no number in a key or value may
reach earlier queries of its own sequence, in its tile.) Only the building process imports this file
(`llava.decoding.build`). Oracle: PyTorch's scaled_dot_product_attention (tests/decoding).

A part, for one query: its weighed mean, `size` numbers; then its largest score, and the sum of its weights, by which
the mean is not divided yet (`layout.part_bytes`).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.layout import BYTES, OF_HEAD, OF_POSITION, OF_SEQUENCE, TILE_KEYS, TILE_QUERIES
from llava.decoding.rows import exact, exp, thread_count, thread_number
from llava.decoding.vectors import WIDE, array, maximum, sums, total, transposed

_HIDDEN = np.float32(-3e38)  # a score that stands for none
_largest, _sum = maximum(TILE_KEYS), total(TILE_KEYS)
part_bytes, tile_bytes = exact(layout.part_bytes), exact(layout.tile_bytes)
_ROWS = 4  # computed together
_NARROW = 16
_wide, _narrow = sums(WIDE, _ROWS), sums(_NARROW, _ROWS)
_fetching = sums(WIDE, _ROWS, True)


@exact
def _products(
    matrix: Any,
    stride: Any,
    columns: Any,
    x: Any,
    apart: Any,
    rows: Any,
    count: Any,
    found: Any,
    between: Any,
    ahead: Any,
) -> None:
    """found[r, c] += sum of x[r, i] * matrix[i, c], i from 0 to count. columns: a multiple of 16, rows: of _ROWS.

    ahead: where what is needed next lies, as much as the matrix has, for few rows; else 0.
    """
    column = 0
    while column < columns:
        wide = column + WIDE <= columns
        source = matrix + column * 4
        for row in range(0, rows, _ROWS):
            values, target = x + row * apart, found + column * 4 + row * between
            if wide and ahead != 0:
                at = ahead + column * count * 4
                _fetching(source, stride, values, apart, count, target, between, at)
            elif wide:
                _wide(source, stride, values, apart, count, target, between, 0)
            else:
                _narrow(source, stride, values, apart, count, target, between, 0)
        column += WIDE if wide else _NARROW


@exact
def _keys_turned(keys: Any, stride: Any, count: Any, size: Any, place: Any) -> None:
    """A tile's keys (count, size) as (size, TILE_KEYS); what is beyond the last, up to a multiple of 16, is zero."""
    whole = count // 16 * 16
    for slot in range(0, whole, 16):
        transposed(keys + slot * stride, stride, size, place + slot * 4, TILE_KEYS * 4)
    if whole < count:
        turned = array(place, types.float32)
        for slot in range(whole, whole + 16):
            for i in range(size):
                value = array(keys + slot * stride, types.float32)[i] if slot < count else np.float32(0)
                turned[i * TILE_KEYS + slot] = value


@exact
def _scores_begun(scores: Any, queries: Any, heads: Any, first: Any, count: Any, position: Any, window: Any) -> None:
    """Scores of a tile before products are added: zero for slots that a query sees, else next to nothing.

    first: the tile's first slot. position: of the first query, which sees its own slot and those before it.
    """
    for row in range(queries * heads):
        end, at = min(count, position + row // heads + 1 - first), row * TILE_KEYS
        begin = min(max(0, position + row // heads + 1 - window - first), TILE_KEYS) if window > 0 else 0
        for slot in range(at, at + TILE_KEYS):
            scores[slot] = _HIDDEN
        for slot in range(at + begin, at + end):
            scores[slot] = np.float32(0)


@exact
def _weighed(place: Any, part: Any, size: Any) -> None:
    """A query's scores of a tile to weights, whose largest and sum go into its part. place: the scores' address."""
    scores, most = array(place, types.float32), _largest(place)
    for slot in range(TILE_KEYS):
        score = scores[slot]
        weight = exp(score - most) if score > np.float32(-1e38) else np.float32(0)
        scores[slot] = weight + score * np.float32(0)  # not a number where the score is none
    array(part, types.float32)[size] = most
    array(part, types.float32)[size + 1] = _sum(place)


@exact
def looked(
    keys: Any,
    key_stride: Any,
    values: Any,
    value_stride: Any,
    slots: Any,
    size: Any,
    first: Any,
    position: Any,
    count: Any,
    heads: Any,
    window: Any,
    memory: Any,
    parts: Any,
    ahead: Any,
) -> None:
    """The parts (count * heads) of one tile of keys, from the slot `first` on, for queries in memory (by `asked`).

    position: of the first of `count` queries. slots: that there are. parts: an address of TILE_QUERIES parts.
    ahead: where the keys are that few queries look at next; 0 for many.
    """
    key_at = memory + TILE_QUERIES * size * 4
    score_at = key_at + TILE_KEYS * size * 4
    scores, each = array(score_at, types.float32), part_bytes(size)
    rows = count * heads
    padded = (rows + _ROWS - 1) // _ROWS * _ROWS
    seen = min(TILE_KEYS, min(slots, position + count) - first)
    _keys_turned(keys + first * key_stride, key_stride, seen, size, key_at)
    _scores_begun(scores, count, heads, first, seen, position, window)
    for place in range(rows * TILE_KEYS, padded * TILE_KEYS):
        scores[place] = np.float32(0)
    columns = (seen + 15) // 16 * 16
    place = values + first * value_stride if ahead != 0 else 0
    _products(key_at, TILE_KEYS * 4, columns, memory, size * 4, padded, size, score_at, TILE_KEYS * 4, place)
    for row in range(padded):
        mean = array(parts + row * each, types.float32)
        for i in range(size):
            mean[i] = np.float32(0)
    for row in range(rows):
        _weighed(score_at + row * TILE_KEYS * 4, parts + row * each, size)
    place = values + first * value_stride
    _products(place, value_stride, size, score_at, TILE_KEYS * 4, padded, seen, parts, each, ahead)


@exact
def asked(
    queries: Any, query_stride: Any, count: Any, head_stride: Any, heads: Any, size: Any, factor: Any, memory: Any
) -> None:
    """Put queries, of heads that share keys, where `looked` finds them, times a factor; count * heads: TILE_QUERIES."""
    query, rows = array(memory, types.float32), count * heads
    for row in range(rows):
        source = array(queries + row // heads * query_stride + row % heads * head_stride, types.float32)
        for i in range(size):
            query[row * size + i] = source[i] * factor
    for place in range(rows * size, (rows + _ROWS - 1) // _ROWS * _ROWS * size):
        query[place] = np.float32(0)


@exact
def together(whole: Any, more: Any, size: Any) -> None:
    """Add a later tile's part to what was seen before it."""
    one, other = array(whole, types.float32), array(more, types.float32)
    most = max(one[size], other[size])
    old, new = exp(one[size] - most), exp(other[size] - most)
    for i in range(size):
        one[i] = one[i] * old + other[i] * new
    one[size + 1] = one[size + 1] * old + other[size + 1] * new
    one[size] = most


@exact
def answered(part: Any, size: Any, out: Any) -> None:
    """The mean of a part that has all tiles, divided by its weights."""
    mean, y = array(part, types.float32), array(out, types.float32)
    for i in range(size):
        y[i] = mean[i] / mean[size + 1]


@exact
def first_tile(position: Any, window: Any) -> Any:
    """The first slot of the first tile that a query sees. window: how many slots back it does (0: all)."""
    return max(0, position + 1 - window) // TILE_KEYS * TILE_KEYS if window > 0 else 0


@exact
def looked_through(
    queries: Any,
    query_stride: Any,
    count: Any,
    head_stride: Any,
    heads: Any,
    keys: Any,
    key_stride: Any,
    values: Any,
    value_stride: Any,
    slots: Any,
    size: Any,
    position: Any,
    window: Any,
    factor: Any,
    out: Any,
    out_stride: Any,
    memory: Any,
) -> None:
    """Outputs for `count` queries from `position` on, of `heads` heads that share keys.

    count * heads: TILE_QUERIES at most. The outputs of a query's heads lie side by side.
    """
    each = part_bytes(size)
    parts = memory + tile_bytes(size) - 2 * TILE_QUERIES * each
    more = parts + TILE_QUERIES * each
    asked(queries, query_stride, count, head_stride, heads, size, factor, memory)
    begin = first_tile(position, window)
    for first in range(begin, min(slots, position + count), TILE_KEYS):
        place = parts if first == begin else more
        looked(
            keys, key_stride, values, value_stride, slots, size, first, position, count, heads, window, memory, place, 0
        )
        if first > begin:
            for row in range(count * heads):
                together(parts + row * each, more + row * each, size)
    for row in range(count * heads):
        answered(parts + row * each, size, out + row // heads * out_stride + row % heads * size * 4)


@numba.cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def attention(call: Any) -> None:
    """One thread's part of attention; all threads of the team call it with the same table (`layout`)."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    memory = (call[layout.MEMORY] + BYTES - 1) // BYTES * BYTES + thread * call[layout.MEMORY_BYTES]
    heads, size, start, queries = call[layout.QUERY_HEADS], call[layout.SIZE], call[layout.START], call[layout.QUERIES]
    all_heads = call[layout.SEQUENCES] * heads
    tiles = (queries + TILE_QUERIES - 1) // TILE_QUERIES
    query_stride = call[layout.Q + OF_POSITION]
    factor = np.float32(1) / math.sqrt(np.float32(size))
    for unit in range(thread, tiles * all_heads, threads):  # neighbours have the same tile, and so as much to do
        first, sequence, head = unit // all_heads * TILE_QUERIES, unit % all_heads // heads, unit % heads
        shared = head * call[layout.KEY_HEADS] // heads
        place = call[layout.Q] + sequence * call[layout.Q + OF_SEQUENCE] + head * call[layout.Q + OF_HEAD]
        looked_through(
            place + first * query_stride,
            query_stride,
            min(TILE_QUERIES, queries - first),
            0,
            1,
            call[layout.K] + sequence * call[layout.K + OF_SEQUENCE] + shared * call[layout.K + OF_HEAD],
            call[layout.K + OF_POSITION],
            call[layout.V] + sequence * call[layout.V + OF_SEQUENCE] + shared * call[layout.V + OF_HEAD],
            call[layout.V + OF_POSITION],
            call[layout.KEYS],
            size,
            start + first,
            call[layout.WINDOW],
            factor,
            call[layout.Y] + ((sequence * queries + first) * heads + head) * size * 4,
            heads * size * 4,
            memory,
        )
