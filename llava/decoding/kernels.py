"""A decoding step as one function: all layers of a LLaMA-shaped decoder over few rows, for numba to compile.

Nothing is allocated and no object of Python is touched: all tables and buffers come by address, as
`llava.decoding.step` lays them out. Every thread of the team runs the whole function. Each computes its share of a
product's outputs, or of the slots or tiles that attention looks at; what is small (norms, rounding) each computes for
itself instead of waiting for another. Only the building process imports this file (`llava.decoding.build`).

Every row is computed on its own terms, in an order that depends on its own length, on the number of threads, and on
whether so many rows of its sequence run that attention looks at them in tiles (`llava.decoding.attention`).
Oracle: the decoder in PyTorch (tests/decoding).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.attention import looked_tile
from llava.decoding.layout import FLOAT32, LAYER, ROW, TILE_QUERIES
from llava.decoding.products import multiply, prepare, scratch_bytes
from llava.decoding.rows import barrier, exact, exp, fast, normed, share, thread_count, thread_number, words
from llava.decoding.vectors import array, dots, half

tile_bytes = exact(layout.tile_bytes)
_SLOTS = 4  # that are looked at together
_scores4, _scores1 = dots(FLOAT32, _SLOTS), dots(FLOAT32, 1)


@exact
def turned(x: Any, out: Any, norm: Any, cosines: Any, sines: Any, count: Any, epsilon: Any, factor: Any) -> None:
    """A head's query or key: normed, where the family does it, turned to its position, and times a factor."""
    if norm != 0:
        normed(x, array(norm, types.float32), out, count, epsilon)
        x = out
    middle = count // 2
    for i in range(middle):
        low, high = x[i], x[middle + i]
        out[i] = (low * cosines[i] + high * sines[i]) * factor
        out[middle + i] = (high * cosines[middle + i] + low * sines[middle + i]) * factor


# ---- attention ----


@fast
def looked(keys: Any, values: Any, count: Any, size: Any, queries: Any, heads: Any, parts: Any, scores: Any) -> None:
    """Some slots, seen by the heads that share them: for each the largest score, the sum of weights, and their mean.

    The mean is not divided by the sum: parts of a sequence are put together later. queries, parts: of all heads.
    """
    held, row = array(values, types.float32), array(scores, types.float32)
    for head in range(heads):
        part = array(parts + head * (size + 2) * 4, types.float32)
        mean = array(parts + (head * (size + 2) + 2) * 4, types.float32)
        for i in range(size):
            mean[i] = np.float32(0)
        largest, total = np.float32(-3e38), np.float32(0)
        query = queries + head * size * 4
        slot = 0
        while slot < count:
            if slot + _SLOTS <= count:
                _scores4(keys + slot * size * 4, size * 4, query, 0, size, scores + slot * 4)
                slot += _SLOTS
            else:
                _scores1(keys + slot * size * 4, size * 4, query, 0, size, scores + slot * 4)
                slot += 1
        for slot in range(count):
            largest = row[slot] if row[slot] > largest else largest
        for slot in range(count):
            weight = exp(row[slot] - largest)
            total += weight + row[slot] * np.float32(0)  # not a number where the score is none
            row[slot] = weight
        whole = count // 4 * 4
        for slot in range(0, whole, 4):
            a, b, c, d = row[slot], row[slot + 1], row[slot + 2], row[slot + 3]
            at = slot * size
            for i in range(size):
                mean[i] += (
                    a * held[at + i]
                    + b * held[at + size + i]
                    + c * held[at + 2 * size + i]
                    + d * held[at + 3 * size + i]
                )
        for slot in range(whole, count):
            for i in range(size):
                mean[i] += row[slot] * held[slot * size + i]
        part[0], part[1] = largest, total


@fast
def together(parts: Any, count: Any, apart: Any, size: Any, out: Any) -> None:
    """What one head gives, from `count` parts that lie `apart` floats from one another."""
    largest, total = np.float32(-3e38), np.float32(0)
    for index in range(count):
        largest = max(largest, parts[index * apart])
    for i in range(size):
        out[i] = np.float32(0)
    for index in range(count):
        at = index * apart
        weight = exp(parts[at] - largest)
        total += weight * parts[at + 1]
        for i in range(size):
            out[i] += weight * parts[at + 2 + i]
    for i in range(size):
        out[i] /= total


# ---- the step ----


@exact
def all_normed(x: Any, rows: Any, norm: Any, out: Any, width: Any, epsilon: Any) -> None:
    """RMSNorm of all rows, from one address to another; a copy where there is no norm."""
    for row in range(rows):
        source = array(x + row * width * 4, types.float32)
        place = array(out + row * width * 4, types.float32)
        if norm != 0:
            normed(source, array(norm, types.float32), place, width, epsilon)
        else:
            for i in range(width):
                place[i] = source[i]


@numba.cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def step(call: Any) -> None:
    """One thread's part of a step; all threads of the team call it with the same table (`layout`)."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    rows, shared = call[layout.ROWS], call[layout.SHARED]
    model, table = array(call[layout.MODEL], words), array(call[layout.FIRST_ROW], words)
    width, middle, vocabulary = model[layout.WIDTH], model[layout.MIDDLE], model[layout.VOCABULARY]
    heads, kv_heads, size = model[layout.HEADS], model[layout.KV_HEADS], model[layout.HEAD_DIM]
    epsilon = array(model[layout.EPSILON], types.float32)[0]
    group, all_heads = heads // kv_heads, heads + 2 * kv_heads
    widest = max(width, max(heads * size, middle))
    # shared: hidden states, q k v, gate and up, parts of attention
    hidden = array(shared, types.float32)
    qkv_at = shared + rows * width * 4
    gate_at = qkv_at + rows * all_heads * size * 4
    parts_at = gate_at + rows * 2 * middle * 4
    qkv, gate = array(qkv_at, types.float32), array(gate_at, types.float32)
    # of this thread alone: rows of floats, the same prepared and their scales, scratch memory, a tile's, scores
    plain_at = call[layout.PRIVATE] + thread * call[layout.PRIVATE_BYTES]
    ready_at = plain_at + rows * widest * 4
    scales_at = ready_at + rows * widest * 4
    sums_at = scales_at + rows * 4
    tile_at = sums_at + scratch_bytes(widest)
    scores_at = tile_at + tile_bytes(size)

    for row in range(rows):
        token = table[row * ROW + layout.TOKEN]
        if row % threads == thread and model[layout.EMBEDDING] != 0 and token >= 0:
            for i in range(width):
                if model[layout.HALF_EMBEDDING]:
                    hidden[row * width + i] = half(model[layout.EMBEDDING] + (token * width + i) * 2)
                else:
                    hidden[row * width + i] = array(model[layout.EMBEDDING], types.float32)[token * width + i]
    barrier()
    for number in range(model[layout.LAYERS]):
        layer_at = model[layout.FIRST_LAYER] + number * LAYER * 8
        layer = array(layer_at, words)

        linear = array(layer_at + layout.QKV * 8, words)
        all_normed(shared, rows, layer[layout.ATTENTION_NORM], plain_at, width, epsilon)
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        outputs = linear[layout.OUTPUTS]
        first, last = share(outputs, thread, threads), share(outputs, thread + 1, threads)
        multiply(linear, x, scales_at, rows, qkv, outputs, first, last, False, sums_at)
        barrier()

        factor = np.float32(1) / math.sqrt(np.float32(size))
        for unit in range(thread, rows * kv_heads, threads):  # keys and values into their slots, queries where they are
            row, head = unit // kv_heads, unit % kv_heads
            entry = array(call[layout.FIRST_ROW] + row * ROW * 8, words)
            slots, slot = entry[layout.SLOTS], entry[layout.SLOT]
            key_at = qkv_at + (row * all_heads + heads + head) * size * 4
            value = array(key_at + kv_heads * size * 4, types.float32)
            place = entry[layout.CACHE] + ((number * 2 * kv_heads + head) * slots + slot) * size * 4
            turned(
                array(key_at, types.float32),
                array(place, types.float32),
                layer[layout.KEY_NORM],
                array(entry[layout.COSINES], types.float32),
                array(entry[layout.SINES], types.float32),
                size,
                epsilon,
                np.float32(1),
            )
            stored = array(place + kv_heads * slots * size * 4, types.float32)
            for i in range(size):
                stored[i] = value[i]
            for index in range(group):
                query = array(qkv_at + (row * all_heads + head * group + index) * size * 4, types.float32)
                turned(
                    query,
                    query,
                    layer[layout.QUERY_NORM],
                    array(entry[layout.COSINES], types.float32),
                    array(entry[layout.SINES], types.float32),
                    size,
                    epsilon,
                    factor,
                )
        barrier()

        tile = 0
        for row in range(rows):
            entry = array(call[layout.FIRST_ROW] + row * ROW * 8, words)
            slots, slot, begin = entry[layout.SLOTS], entry[layout.SLOT], entry[layout.FIRST]
            cache, tiled = entry[layout.CACHE] + number * 2 * kv_heads * slots * size * 4, entry[layout.TILED]
            for first in range(0, tiled, TILE_QUERIES):
                for head in range(heads):
                    tile += 1
                    if tile % threads == thread:
                        keys = cache + head // group * slots * size * 4
                        place = qkv_at + ((row + first) * all_heads + head) * size * 4
                        looked_tile(
                            place,
                            all_heads * size * 4,
                            min(TILE_QUERIES, tiled - first),
                            keys,
                            size * 4,
                            keys + kv_heads * slots * size * 4,
                            size * 4,
                            slot + tiled,
                            size,
                            slot + first,
                            model[layout.WINDOWED],
                            np.float32(1),
                            place,
                            all_heads * size * 4,
                            tile_at,
                        )
            if tiled != 0:
                continue
            for head in range(kv_heads):
                seen = slot + 1 - begin
                first, last = begin + seen * thread // threads, begin + seen * (thread + 1) // threads
                keys = cache + (head * slots + first) * size * 4
                values = keys + kv_heads * slots * size * 4
                queries = qkv_at + (row * all_heads + head * group) * size * 4
                parts = parts_at + ((thread * rows + row) * heads + head * group) * (size + 2) * 4
                looked(keys, values, last - first, size, queries, group, parts, scores_at)
        barrier()

        linear = array(layer_at + layout.OUT * 8, words)
        for unit in range(rows * heads):
            row, head = unit // heads, unit % heads
            out = array(plain_at + unit * size * 4, types.float32)
            if table[row * ROW + layout.TILED] == 0:
                parts = array(parts_at + unit * (size + 2) * 4, types.float32)
                together(parts, threads, rows * heads * (size + 2), size, out)
            else:
                found = array(qkv_at + (row * all_heads + head) * size * 4, types.float32)
                for i in range(size):
                    out[i] = found[i]
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

        linear = array(layer_at + layout.GATE_UP * 8, words)
        all_normed(shared, rows, layer[layout.MLP_NORM], plain_at, width, epsilon)
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(middle, thread, threads), share(middle, thread + 1, threads)
        multiply(linear, x, scales_at, rows, gate, 2 * middle, first, last, False, sums_at)
        multiply(linear, x, scales_at, rows, gate, 2 * middle, middle + first, middle + last, False, sums_at)
        for row in range(rows):
            low = array(gate_at + row * 2 * middle * 4, types.float32)
            high = array(gate_at + (row * 2 + 1) * middle * 4, types.float32)
            for i in range(first, last):
                low[i] = low[i] / (np.float32(1) + exp(-low[i])) * high[i]
        barrier()

        linear = array(layer_at + layout.DOWN * 8, words)
        for row in range(rows):
            source = array(gate_at + row * 2 * middle * 4, types.float32)
            out = array(plain_at + row * middle * 4, types.float32)
            for i in range(middle):
                out[i] = source[i]
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

    linear = array(model[layout.HEAD], words)
    scored = 0
    for row in range(rows):
        if table[row * ROW + layout.SCORED]:
            place = plain_at + scored * width * 4
            all_normed(shared + row * width * 4, 1, model[layout.NORM], place, width, epsilon)
            scored += 1
    rows = scored
    x = prepare(linear, plain_at, rows, ready_at, scales_at)
    first, last = share(vocabulary, thread, threads), share(vocabulary, thread + 1, threads)
    logits = array(call[layout.LOGITS], types.float32)
    multiply(linear, x, scales_at, rows, logits, vocabulary, first, last, False, sums_at)
