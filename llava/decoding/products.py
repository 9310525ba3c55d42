"""Linear layers for few or many rows, for numba to compile: rounding rows to 8 bits, and products with a weight.

As in `llava.decoding.kernels`, all comes by address, and every thread of the team computes its share of the outputs.
Only the building process imports this file (`llava.decoding.build`).

Oracle: `llava.quantization.linears` in PyTorch (tests/decoding); of 8 bits, whose sums are exact, bit for bit.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.build import VNNI, has
from llava.decoding.layout import FLOAT16, FLOAT32, INT8, INT8_BYTES
from llava.decoding.rows import barrier, exact, scale_of, share, thread_count, thread_number, to_bytes, to_int16, words
from llava.decoding.vectors import TOGETHER, WIDTHS, array, dots, packed, panel

_BLOCK = 4  # outputs that are computed together for few rows
_MANY = 24  # rows from which it pays to lay a panel of the weight out anew


def _multiplier(kind: int) -> Any:
    """A function that computes outputs first..last of a linear layer for some rows that were prepared."""
    four_rows, two_rows, one_row = (dots(kind, _BLOCK, rows) for rows in (4, 2, 1))
    one_output = dots(kind, 1)
    weight_bytes, input_bytes = WIDTHS[kind]

    @exact
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
_multiply_few = _multiplier(INT8_BYTES if has(VNNI) else INT8)


@exact
def scaled(sums: Any, y: Any, place: Any, scales: Any, bias: Any, scale: Any, count: Any, add: Any) -> None:
    """A row's outputs, at a place of y, from sums of whole numbers: times the scales of the outputs and of the row."""
    for i in range(count):
        value = np.float32(sums[i]) * scales[i] * scale
        if bias != 0:
            value += array(bias, types.float32)[i]
        y[place + i] = y[place + i] + value if add else value


def _paneled(columns: int) -> Any:
    """A function that computes 16 * columns outputs for many rows of bytes."""
    outputs, most = 16 * columns, layout.PANEL_ROWS
    many, one = panel(columns, most), panel(columns, 1)

    @exact
    def paneled(
        linear: Any, x: Any, scales: Any, rows: Any, y: Any, width: Any, output: Any, add: Any, found: Any
    ) -> None:
        inputs = linear[layout.INPUTS]
        start = found + 4 * layout.SUMS
        weights = start + 4 * layout.PANEL
        for index in range(0, outputs, 16):
            place = linear[layout.WEIGHT] + (output + index) * inputs
            packed(place, inputs, inputs, weights + index * 4, outputs * 4, start + index * 4)
        bias = linear[layout.BIAS] + output * 4 if linear[layout.BIAS] != 0 else 0
        of_outputs = array(linear[layout.SCALES] + output * 4, types.float32)
        row = 0
        while row < rows:
            together = most if row + most <= rows else 1
            if together == most:
                many(weights, start, x + row * inputs, inputs, inputs, found)
            else:
                one(weights, start, x + row * inputs, inputs, inputs, found)
            for index in range(together):
                sums = array(found + index * outputs * 4, types.int32)
                place = (row + index) * width + output
                scaled(sums, y, place, of_outputs, bias, array(scales, types.float32)[row + index], outputs, add)
            row += together

    return paneled


if has(VNNI):
    _wide, _narrow = _paneled(layout.PANEL // 16), _paneled(1)

    @exact
    def _multiply_bytes(
        linear: Any, x: Any, scales: Any, rows: Any, y: Any, width: Any, first: Any, last: Any, add: Any, found: Any
    ) -> None:
        output = first
        if rows >= _MANY:
            place = (found + layout.BYTES - 1) // layout.BYTES * layout.BYTES
            while output + layout.PANEL <= last:
                _wide(linear, x, scales, rows, y, width, output, add, place)
                output += layout.PANEL
            while output + 16 <= last:
                _narrow(linear, x, scales, rows, y, width, output, add, place)
                output += 16
        _multiply_few(linear, x, scales, rows, y, width, output, last, add, found)
else:
    _multiply_bytes = _multiply_few


@exact
def prepare(linear: Any, x: Any, rows: Any, ready: Any, scales: Any) -> Any:
    """Rows of floats at an address as a linear layer takes them; gives where they are."""
    kind, inputs = linear[layout.KIND], linear[layout.INPUTS]
    if kind != INT8 and kind != INT8_BYTES:
        return x
    for row in range(rows):
        source = array(x + row * inputs * 4, types.float32)
        scale = scale_of(array(x + row * inputs * 4, types.int32), inputs, scales + row * 4)
        array(scales, types.float32)[row] = scale
        if kind == INT8:
            to_int16(source, scale, array(ready + row * inputs * 2, types.int16), inputs)
        else:
            to_bytes(source, scale, array(ready + row * inputs, types.uint8), inputs)
    return ready


@exact
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


@numba.cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def linear(call: Any) -> None:
    """One thread's part of a linear layer alone (INT8_BYTES, FLOAT32); all of the team call it with the same table."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    table, rows = array(call[layout.ALONE], words), call[layout.ALONE_ROWS]
    inputs, outputs = table[layout.INPUTS], table[layout.OUTPUTS]
    ready, scales = call[layout.READY], call[layout.READY_SCALES]
    first, last = rows * thread // threads, rows * (thread + 1) // threads
    prepare(table, call[layout.INPUT] + first * inputs * 4, last - first, ready + first * inputs, scales + first * 4)
    barrier()
    first, last = share(outputs, thread, threads), share(outputs, thread + 1, threads)
    scratch = call[layout.SCRATCH] + thread * call[layout.SCRATCH_BYTES]
    y = array(call[layout.OUTPUT], types.float32)
    x = ready if table[layout.KIND] == INT8_BYTES else call[layout.INPUT]
    multiply(table, x, scales, rows, y, outputs, first, last, False, scratch)
