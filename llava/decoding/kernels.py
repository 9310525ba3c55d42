"""A decoding step as one function: all layers of a LLaMA-shaped decoder over few rows, for numba to compile.

Nothing is allocated and no object of Python is touched: all tables and buffers come by address, as
`llava.decoding.step` lays them out. Every thread of the team runs the whole function. Each computes its share of a
product's outputs, or of the tiles that attention looks at; what is small (norms, rounding) each computes for itself
instead of waiting for another. Only the building process imports this file (`llava.decoding.build`).

Every row is computed on its own terms, in an order that depends on its position only. What lies between the products
is computed by the functions that a prompt is read with too (`llava.decoding.rowwise`, `attention`), so that in 8 bits
the layers of a step give what a prompt's give, bit for bit. Oracle: the decoder in PyTorch (tests/decoding).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.attention import (
    answered,
    asked,
    first_tile,
    looked,
    looked_through,
    part_bytes,
    tile_bytes,
    together,
)
from llava.decoding.layout import APART, BYTES, LAYER, ROW, TILE_KEYS, TILE_QUERIES
from llava.decoding.products import multiply, prepare
from llava.decoding.rows import barrier, exact, gated, normed, share, thread_count, thread_number, turned, words
from llava.decoding.vectors import array, half

scratch_bytes = exact(layout.scratch)


@exact
def all_normed(x: Any, rows: Any, norm: Any, out: Any, width: Any, epsilon: Any, found: Any) -> None:
    """RMSNorm of all rows, from one address to another; a copy where there is no norm."""
    for row in range(rows):
        source, place = x + row * width * 4, out + row * width * 4
        if norm != 0:
            normed(source, norm, place, width, epsilon, found)
        else:
            for i in range(width):
                array(place, types.float32)[i] = array(source, types.float32)[i]


@exact
def put(
    x: Any, out: Any, norm: Any, cosines: Any, sines: Any, count: Any, epsilon: Any, factor: Any, found: Any
) -> None:
    """A head's query or key, normed where the family does it, and turned to its position."""
    if norm != 0:
        normed(x, norm, out, count, epsilon, found)
        x = out
    source, place = array(x, types.float32), array(out, types.float32)
    turned(source, place, array(cosines, types.float32), array(sines, types.float32), count, factor)


@exact
def put_together(
    call: Any,
    rows: Any,
    heads: Any,
    group: Any,
    size: Any,
    window: Any,
    parts: Any,
    out: Any,
    thread: Any,
    threads: Any,
) -> None:
    """What few rows have seen, from the parts of their tiles, as they were written one after the other."""
    row, each = 0, part_bytes(size)
    while row < rows:
        entry = array(call[layout.FIRST_ROW] + row * ROW * 8, words)
        slot, count = entry[layout.SLOT], entry[layout.TOGETHER]
        sharing = group if count * group <= TILE_QUERIES else 1
        tiles = (slot + count - first_tile(slot, window) + TILE_KEYS - 1) // TILE_KEYS
        block = count * sharing * each  # parts of one tile
        for unit in range(thread, count * heads, threads):
            query, head = unit // heads, unit % heads
            whole = parts + head // sharing * tiles * block + (query * sharing + head % sharing) * each
            for tile in range(1, tiles):
                together(whole, whole + tile * block, size)
            answered(whole, size, out + ((row + query) * heads + head) * size * 4)
        parts += heads // sharing * tiles * block
        row += count


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
    # shared: hidden states, q k v, gate and up, and what goes into the next product: means of attention, gated values
    hidden = array(shared, types.float32)
    qkv_at = shared + rows * width * 4
    gate_at = qkv_at + rows * all_heads * size * 4
    next_at = gate_at + rows * 2 * middle * 4
    parts_at = call[layout.PARTS]
    qkv, gate = array(qkv_at, types.float32), array(gate_at, types.float32)
    # of this thread alone: rows of floats, the same prepared and their scales, scratch memory, a tile's
    plain_at = call[layout.PRIVATE] + thread * call[layout.PRIVATE_BYTES]
    ready_at = plain_at + rows * width * 4
    scales_at = ready_at + rows * widest * 4
    sums_at = scales_at + rows * 4
    tile_at = (sums_at + scratch_bytes(widest) + BYTES - 1) // BYTES * BYTES
    own_at = tile_at + tile_bytes(size) - TILE_QUERIES * part_bytes(size)
    window, one = model[layout.WINDOWED], np.float32(1)

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
        all_normed(shared, rows, layer[layout.ATTENTION_NORM], plain_at, width, epsilon, sums_at)
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
            cosines, sines = entry[layout.COSINES], entry[layout.SINES]
            place = entry[layout.CACHE] + ((number * 2 * kv_heads + head) * slots + slot) * size * 4
            put(key_at, place, layer[layout.KEY_NORM], cosines, sines, size, epsilon, np.float32(1), sums_at)
            stored = array(place + kv_heads * slots * size * 4, types.float32)
            for i in range(size):
                stored[i] = value[i]
            for index in range(group):
                query = qkv_at + (row * all_heads + head * group + index) * size * 4
                put(query, query, layer[layout.QUERY_NORM], cosines, sines, size, epsilon, factor, sums_at)
        barrier()

        unit, row, part_at = 0, 0, parts_at
        while row < rows:
            entry = array(call[layout.FIRST_ROW] + row * ROW * 8, words)
            slots, slot, count = entry[layout.SLOTS], entry[layout.SLOT], entry[layout.TOGETHER]
            cache = entry[layout.CACHE] + number * 2 * kv_heads * slots * size * 4
            sharing = group if count * group <= TILE_QUERIES else 1  # heads of a tile: few queries do not fill it
            for head in range(0, heads, sharing):
                keys = cache + head // group * slots * size * 4
                values = keys + kv_heads * slots * size * 4
                if rows <= APART:
                    queries = qkv_at + (row * all_heads + head) * size * 4
                    for first in range(first_tile(slot, window), slot + count, TILE_KEYS):
                        unit += 1
                        if unit % threads == thread:
                            asked(queries, all_heads * size * 4, count, size * 4, sharing, size, one, tile_at)
                            looked(
                                keys,
                                size * 4,
                                values,
                                size * 4,
                                slot + count,
                                size,
                                first,
                                slot,
                                count,
                                sharing,
                                window,
                                tile_at,
                                own_at,
                                keys + (first + threads * TILE_KEYS) * size * 4,
                            )
                            for index in range(count * sharing):
                                place = array(part_at + index * part_bytes(size), types.float32)
                                found = array(own_at + index * part_bytes(size), types.float32)
                                for i in range(size + 2):
                                    place[i] = found[i]
                        part_at += count * sharing * part_bytes(size)
                    continue
                for first in range(0, count, TILE_QUERIES):
                    unit += 1
                    if unit % threads == thread:
                        looked_through(
                            qkv_at + ((row + first) * all_heads + head) * size * 4,
                            all_heads * size * 4,
                            min(TILE_QUERIES, count - first),
                            size * 4,
                            sharing,
                            keys,
                            size * 4,
                            values,
                            size * 4,
                            slot + count,
                            size,
                            slot + first,
                            window,
                            one,
                            next_at + ((row + first) * heads + head) * size * 4,
                            heads * size * 4,
                            tile_at,
                        )
            row += count
        barrier()
        if rows <= APART:
            put_together(call, rows, heads, group, size, window, parts_at, next_at, thread, threads)
            barrier()

        linear = array(layer_at + layout.OUT * 8, words)
        x = prepare(linear, next_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

        linear = array(layer_at + layout.GATE_UP * 8, words)
        all_normed(shared, rows, layer[layout.MLP_NORM], plain_at, width, epsilon, sums_at)
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(middle, thread, threads), share(middle, thread + 1, threads)
        multiply(linear, x, scales_at, rows, gate, 2 * middle, first, last, False, sums_at)
        multiply(linear, x, scales_at, rows, gate, 2 * middle, middle + first, middle + last, False, sums_at)
        for row in range(rows):
            low = array(gate_at + row * 2 * middle * 4, types.float32)
            high = array(gate_at + (row * 2 + 1) * middle * 4, types.float32)
            gated(low, high, array(next_at + row * middle * 4, types.float32), first, last)
        barrier()

        linear = array(layer_at + layout.DOWN * 8, words)
        x = prepare(linear, next_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

    linear = array(model[layout.HEAD], words)
    scored = 0
    for row in range(rows):
        if table[row * ROW + layout.SCORED]:
            place = plain_at + scored * width * 4
            all_normed(shared + row * width * 4, 1, model[layout.NORM], place, width, epsilon, sums_at)
            scored += 1
    rows = scored
    x = prepare(linear, plain_at, rows, ready_at, scales_at)
    first, last = share(vocabulary, thread, threads), share(vocabulary, thread + 1, threads)
    logits = array(call[layout.LOGITS], types.float32)
    multiply(linear, x, scales_at, rows, logits, vocabulary, first, last, False, sums_at)
