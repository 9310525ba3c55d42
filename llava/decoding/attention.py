"""Attention of many queries, for numba to compile: tile by tile, with a running maximum. Source: FlashAttention (2022).

Keys are looked at in tiles that begin at the first slot, whatever queries there are: what a query gives depends on its
own position only, and so is the same, bit for bit, whether a prompt is read at once or in parts. (What is no number in
a key or value may reach earlier queries of its own sequence, in its tile.) Only the building process imports this file
(`llava.decoding.build`). Oracle: PyTorch's scaled_dot_product_attention (tests/decoding).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.layout import BYTES, OF_HEAD, OF_POSITION, OF_SEQUENCE, TILE_KEYS, TILE_QUERIES
from llava.decoding.rows import exact, exp, fast, thread_count, thread_number
from llava.decoding.vectors import WIDE, array, maximum, sums, transposed

_HIDDEN = np.float32(-3e38)  # a score that stands for none
_largest = maximum(TILE_KEYS)
_ROWS = 4  # computed together
_NARROW = 16
_wide4, _wide1, _narrow4, _narrow1 = (sums(lanes, rows) for lanes in (WIDE, _NARROW) for rows in (_ROWS, 1))


@exact
def _products(
    matrix: Any, stride: Any, columns: Any, x: Any, apart: Any, rows: Any, count: Any, found: Any, between: Any
) -> None:
    """found[r, c] += sum of x[r, i] * matrix[i, c], i from 0 to count. columns: a multiple of 16."""
    column = 0
    while column < columns:
        wide = column + WIDE <= columns
        source, target, row = matrix + column * 4, found + column * 4, 0
        while row < rows:
            many = row + _ROWS <= rows
            if wide and many:
                _wide4(source, stride, x + row * apart, apart, count, target + row * between, between)
            elif wide:
                _wide1(source, stride, x + row * apart, apart, count, target + row * between, between)
            elif many:
                _narrow4(source, stride, x + row * apart, apart, count, target + row * between, between)
            else:
                _narrow1(source, stride, x + row * apart, apart, count, target + row * between, between)
            row += _ROWS if many else 1
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
def _scores_begun(scores: Any, rows: Any, first: Any, count: Any, position: Any, window: Any) -> None:
    """Scores of a tile before products are added: zero for slots that a query sees, else next to nothing.

    first: the tile's first slot. position: of the first query, which sees its own slot and those before it.
    """
    for row in range(rows):
        end, at = min(count, position + row + 1 - first), row * TILE_KEYS
        begin = min(max(0, position + row + 1 - window - first), TILE_KEYS) if window > 0 else 0
        for slot in range(at, at + TILE_KEYS):
            scores[slot] = _HIDDEN
        for slot in range(at + begin, at + end):
            scores[slot] = np.float32(0)


@fast
def _weighed(place: Any, row: Any, largest: Any, totals: Any, mean: Any, size: Any) -> None:
    """A query's scores of a tile to weights, and what it had before to the new maximum. place: the scores' address."""
    scores = array(place, types.float32)
    most = max(largest[row], _largest(place))
    total = np.float32(0)
    for slot in range(TILE_KEYS):
        score = scores[slot]
        weight = exp(score - most) if score > np.float32(-1e38) else np.float32(0)
        scores[slot] = weight
        total += weight + score * np.float32(0)  # not a number where the score is none
    if most > largest[row]:
        factor = exp(largest[row] - most)
        for i in range(size):
            mean[row * size + i] *= factor
        totals[row] *= factor
        largest[row] = most
    totals[row] += total


@exact
def looked_tile(
    queries: Any,
    query_stride: Any,
    rows: Any,
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
    """One head's outputs for `rows` queries, TILE_QUERIES at most, from `position` on; out may be where they are."""
    query_at = (memory + BYTES - 1) // BYTES * BYTES
    key_at = query_at + TILE_QUERIES * size * 4
    mean_at = key_at + TILE_KEYS * size * 4
    score_at = mean_at + TILE_QUERIES * size * 4
    query, mean = array(query_at, types.float32), array(mean_at, types.float32)
    scores = array(score_at, types.float32)
    largest = array(score_at + TILE_QUERIES * TILE_KEYS * 4, types.float32)
    totals = array(score_at + TILE_QUERIES * (TILE_KEYS + 1) * 4, types.float32)
    for row in range(rows):
        source = array(queries + row * query_stride, types.float32)
        for i in range(size):
            query[row * size + i] = source[i] * factor
            mean[row * size + i] = np.float32(0)
        largest[row], totals[row] = _HIDDEN, np.float32(0)
    end = min(slots, position + rows)
    first = max(0, position + 1 - window) // TILE_KEYS * TILE_KEYS if window > 0 else 0
    while first < end:
        count = min(TILE_KEYS, end - first)
        _keys_turned(keys + first * key_stride, key_stride, count, size, key_at)
        _scores_begun(scores, rows, first, count, position, window)
        columns = (count + 15) // 16 * 16
        _products(key_at, TILE_KEYS * 4, columns, query_at, size * 4, rows, size, score_at, TILE_KEYS * 4)
        for row in range(rows):
            _weighed(score_at + row * TILE_KEYS * 4, row, largest, totals, mean, size)
        place = values + first * value_stride
        _products(place, value_stride, size, score_at, TILE_KEYS * 4, rows, count, mean_at, size * 4)
        first += TILE_KEYS
    for row in range(rows):
        y = array(out + row * out_stride, types.float32)
        for i in range(size):
            y[i] = mean[row * size + i] / totals[row]


@numba.cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def attention(call: Any) -> None:
    """One thread's part of attention; all threads of the team call it with the same table (`layout`)."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    memory = call[layout.MEMORY] + thread * call[layout.MEMORY_BYTES]
    heads, size, start, queries = call[layout.QUERY_HEADS], call[layout.SIZE], call[layout.START], call[layout.QUERIES]
    all_heads = call[layout.SEQUENCES] * heads
    tiles = (queries + TILE_QUERIES - 1) // TILE_QUERIES
    query_stride = call[layout.Q + OF_POSITION]
    factor = np.float32(1) / math.sqrt(np.float32(size))
    for unit in range(thread, tiles * all_heads, threads):  # neighbours have the same tile, and so as much to do
        first, sequence, head = unit // all_heads * TILE_QUERIES, unit % all_heads // heads, unit % heads
        shared = head * call[layout.KEY_HEADS] // heads
        place = call[layout.Q] + sequence * call[layout.Q + OF_SEQUENCE] + head * call[layout.Q + OF_HEAD]
        looked_tile(
            place + first * query_stride,
            query_stride,
            min(TILE_QUERIES, queries - first),
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
