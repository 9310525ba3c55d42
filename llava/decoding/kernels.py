"""A decoding step as one function: all layers of a LLaMA-shaped decoder over few rows, for numba to compile.

Nothing is allocated and no object of Python is touched: all tables and buffers come by address, as
`llava.decoding.step` lays them out. Every thread of the team runs the whole function. Each computes its share of a
product's outputs, or of the slots that attention looks at; what is small (norms, rounding) each computes for itself
instead of waiting for another. Only the building process imports this file (`llava.decoding.build`).

Every row is computed on its own terms, in an order that depends on its own length and the number of threads only.
Oracle: the decoder in PyTorch (tests/decoding).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.build import VNNI, has
from llava.decoding.layout import FLOAT16, FLOAT32, INT8, INT8_BYTES, LAYER, ROW
from llava.decoding.vectors import TOGETHER, WIDTHS, array, dots, half, power_of_two

_BLOCK = 4  # outputs that are computed together
_SHARE = 16  # outputs that a thread has a multiple of: a line of the cache, which no two threads write

barrier = types.ExternalFunction("GOMP_barrier", types.void())
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())

# ---- arithmetic on rows ----

_fast = numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")  # sums in any order
_exact = numba.njit(error_model="numpy")


@_exact
def exp(x: Any) -> Any:
    """e**x in float32, of at least -87 and at most 88: next to nothing, next to infinity. Polynomial: Cephes' expf."""
    x = x if x > np.float32(-87) else np.float32(-87)
    x = x if x < np.float32(88) else np.float32(88)
    whole = np.rint(x * np.float32(1.44269504))
    r = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * power_of_two(np.int32(whole))


@_fast
def normed(x: Any, weight: Any, out: Any, count: Any, epsilon: Any) -> None:
    """RMSNorm of one row."""
    total = np.float32(0)
    for i in range(count):
        total += x[i] * x[i]
    scale = np.float32(1) / math.sqrt(total / np.float32(count) + epsilon)
    for i in range(count):
        out[i] = x[i] * scale * weight[i]


@_exact
def scale_of(x: Any, count: Any) -> Any:
    """What a step of 8 bits is worth in one row. As `Int8Linear` has it."""
    largest = np.float32(0)
    for i in range(count):
        size = abs(x[i])
        largest = size if size > largest else largest
    scale = largest / np.float32(127)
    return scale if scale > np.float32(1e-12) else np.float32(1e-12)


@_exact
def to_int16(x: Any, scale: Any, out: Any, count: Any) -> None:
    """One row to 8 bits, in int16."""
    for i in range(count):
        out[i] = np.int16(np.rint(x[i] / scale))


@_exact
def to_bytes(x: Any, scale: Any, out: Any, count: Any) -> None:
    """One row to 8 bits, 128 more than they are, in bytes."""
    for i in range(count):
        out[i] = np.uint8(np.int32(np.rint(x[i] / scale)) + np.int32(128))


@_exact
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


@_exact
def share(count: Any, part: Any, parts: Any) -> Any:
    """Where a thread's outputs begin: its share of all lines."""
    lines = (count + _SHARE - 1) // _SHARE
    return min(count, lines * part // parts * _SHARE)


# ---- linear layers ----


def _multiplier(kind: int) -> Any:
    """A function that computes outputs first..last of a linear layer for some rows that were prepared."""
    four_rows, two_rows, one_row = (dots(kind, _BLOCK, rows) for rows in (4, 2, 1))
    one_output = dots(kind, 1)
    weight_bytes, input_bytes = WIDTHS[kind]

    @_exact
    def multiply(
        linear: Any, x: Any, scales: Any, rows: Any, y: Any, width: Any, first: Any, last: Any, add: Any, found: Any
    ) -> None:
        inputs = linear[layout.INPUTS]
        sums, bias = array(found, types.float32), linear[layout.BIAS]
        output = first
        while output < last:
            block = _BLOCK if output + _BLOCK <= last else 1
            weights = linear[layout.WEIGHT] + output * inputs * weight_bytes
            stride, apart = inputs * weight_bytes, inputs * input_bytes
            row = 0
            while row < rows:
                source, together = x + row * apart, 1
                if block == 1:
                    one_output(weights, stride, source, apart, inputs, found)
                elif TOGETHER >= 4 and row + 4 <= rows:
                    together = 4
                    four_rows(weights, stride, source, apart, inputs, found)
                elif TOGETHER >= 2 and row + 2 <= rows:
                    together = 2
                    two_rows(weights, stride, source, apart, inputs, found)
                else:
                    one_row(weights, stride, source, apart, inputs, found)
                for other in range(together):
                    place = (row + other) * width + output
                    for index in range(block):
                        value = sums[other * block + index]
                        if kind in (INT8, INT8_BYTES):
                            scale = array(scales, types.float32)[row + other]
                            value = value * array(linear[layout.SCALES], types.float32)[output + index] * scale
                        if bias != 0:
                            value += array(bias, types.float32)[output + index]
                        y[place + index] = y[place + index] + value if add else value
                row += together
            output += block

    return multiply


_multiply_float32, _multiply_float16, _multiply_int8 = (_multiplier(kind) for kind in (FLOAT32, FLOAT16, INT8))
_multiply_bytes = _multiplier(INT8_BYTES if has(VNNI) else INT8)
_scores4, _scores1 = dots(FLOAT32, _BLOCK), dots(FLOAT32, 1)


@_exact
def prepare(linear: Any, x: Any, rows: Any, ready: Any, scales: Any) -> Any:
    """Rows of floats at an address as a linear layer takes them; gives where they are."""
    kind, inputs = linear[layout.KIND], linear[layout.INPUTS]
    if kind != INT8 and kind != INT8_BYTES:
        return x
    for row in range(rows):
        source = array(x + row * inputs * 4, types.float32)
        scale = scale_of(source, inputs)
        array(scales, types.float32)[row] = scale
        if kind == INT8:
            to_int16(source, scale, array(ready + row * inputs * 2, types.int16), inputs)
        else:
            to_bytes(source, scale, array(ready + row * inputs, types.uint8), inputs)
    return ready


@_exact
def multiply(
    linear: Any, x: Any, scales: Any, rows: Any, y: Any, width: Any, first: Any, last: Any, add: Any, found: Any
) -> None:
    """Outputs first..last of a linear layer for prepared rows: y[row * width + output] = or += what it gives."""
    kind = linear[layout.KIND]
    if kind == FLOAT16:
        _multiply_float16(linear, x, scales, rows, y, width, first, last, add, found)
    elif kind == INT8_BYTES:
        _multiply_bytes(linear, x, scales, rows, y, width, first, last, add, found)
    elif kind == INT8:
        _multiply_int8(linear, x, scales, rows, y, width, first, last, add, found)
    else:
        _multiply_float32(linear, x, scales, rows, y, width, first, last, add, found)


# ---- attention ----


@_fast
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
            if slot + _BLOCK <= count:
                _scores4(keys + slot * size * 4, size * 4, query, 0, size, scores + slot * 4)
                slot += _BLOCK
            else:
                _scores1(keys + slot * size * 4, size * 4, query, 0, size, scores + slot * 4)
                slot += 1
        for slot in range(count):
            largest = row[slot] if row[slot] > largest else largest
        for slot in range(count):
            weight = exp(row[slot] - largest)
            row[slot] = weight
            total += weight
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


@_fast
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

_words = types.int64


@_exact
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
    model, table = array(call[layout.MODEL], _words), array(call[layout.FIRST_ROW], _words)
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
    # of this thread alone: rows of floats, the same prepared and their scales, a group's queries, sums, scores
    plain_at = call[layout.PRIVATE] + thread * call[layout.PRIVATE_BYTES]
    ready_at = plain_at + rows * widest * 4
    scales_at = ready_at + rows * widest * 4
    query_at = scales_at + rows * 4
    sums_at = query_at + heads * size * 4
    scores_at = sums_at + 4 * layout.SUMS

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
        layer = array(layer_at, _words)

        linear = array(layer_at + layout.QKV * 8, _words)
        all_normed(shared, rows, layer[layout.ATTENTION_NORM], plain_at, width, epsilon)
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        outputs = linear[layout.OUTPUTS]
        first, last = share(outputs, thread, threads), share(outputs, thread + 1, threads)
        multiply(linear, x, scales_at, rows, qkv, outputs, first, last, False, sums_at)
        barrier()

        for unit in range(thread, rows * kv_heads, threads):  # keys and values into their slots
            row, head = unit // kv_heads, unit % kv_heads
            entry = array(call[layout.FIRST_ROW] + row * ROW * 8, _words)
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
        barrier()

        factor = np.float32(1) / math.sqrt(np.float32(size))
        for unit in range(rows * kv_heads):
            row, head = unit // kv_heads, unit % kv_heads
            entry = array(call[layout.FIRST_ROW] + row * ROW * 8, _words)
            slots, begin = entry[layout.SLOTS], entry[layout.FIRST]
            seen = entry[layout.SLOT] + 1 - begin
            first, last = begin + seen * thread // threads, begin + seen * (thread + 1) // threads
            for index in range(group):
                turned(
                    array(qkv_at + (row * all_heads + head * group + index) * size * 4, types.float32),
                    array(query_at + index * size * 4, types.float32),
                    layer[layout.QUERY_NORM],
                    array(entry[layout.COSINES], types.float32),
                    array(entry[layout.SINES], types.float32),
                    size,
                    epsilon,
                    factor,
                )
            keys = entry[layout.CACHE] + ((number * 2 * kv_heads + head) * slots + first) * size * 4
            values = keys + kv_heads * slots * size * 4
            parts = parts_at + ((thread * rows + row) * heads + head * group) * (size + 2) * 4
            looked(keys, values, last - first, size, query_at, group, parts, scores_at)
        barrier()

        linear = array(layer_at + layout.OUT * 8, _words)
        for unit in range(rows * heads):
            parts = array(parts_at + unit * (size + 2) * 4, types.float32)
            out = array(plain_at + unit * size * 4, types.float32)
            together(parts, threads, rows * heads * (size + 2), size, out)
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

        linear = array(layer_at + layout.GATE_UP * 8, _words)
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

        linear = array(layer_at + layout.DOWN * 8, _words)
        for row in range(rows):
            source = array(gate_at + row * 2 * middle * 4, types.float32)
            out = array(plain_at + row * middle * 4, types.float32)
            for i in range(middle):
                out[i] = source[i]
        x = prepare(linear, plain_at, rows, ready_at, scales_at)
        first, last = share(width, thread, threads), share(width, thread + 1, threads)
        multiply(linear, x, scales_at, rows, hidden, width, first, last, True, sums_at)
        barrier()

    linear = array(model[layout.HEAD], _words)
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
