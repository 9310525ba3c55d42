"""What lies between a decoder's products, for rows alone, for numba to compile: RMSNorm, rotary positions, SwiGLU.

The step (`llava.decoding.kernels`) computes each with the same function, and so the same bits. Threads of the team
share the rows. Only the building process imports this file (`llava.decoding.build`).
"""

from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding import layout
from llava.decoding.rows import gated, normed, thread_count, thread_number, turned
from llava.decoding.vectors import array

_CALL = types.void(types.CPointer(types.int64))


@numba.cfunc(_CALL, error_model="numpy")
def norm(call: Any) -> None:
    """RMSNorm of rows. An output's first number is where its sum of squares is for a moment."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    rows, width = call[layout.NORM_ROWS], call[layout.NORM_WIDTH]
    epsilon = array(call[layout.NORM_EPSILON], types.float32)[0]
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        place = call[layout.NORM_Y] + row * width * 4
        normed(call[layout.NORM_X] + row * width * 4, call[layout.NORM_WEIGHT], place, width, epsilon, place)


@numba.cfunc(_CALL, error_model="numpy")
def turn(call: Any) -> None:
    """Queries and keys turned to their positions."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    rows, heads, size = call[layout.TURN_ROWS], call[layout.TURN_HEADS], call[layout.TURN_SIZE]
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        turns = row % call[layout.TURN_PERIOD] * size * 4
        cosines = array(call[layout.TURN_COSINES] + turns, types.float32)
        sines = array(call[layout.TURN_SINES] + turns, types.float32)
        for head in range(heads):
            source = array(call[layout.TURN_X] + row * call[layout.TURN_STRIDE] + head * size * 4, types.float32)
            place = array(call[layout.TURN_Y] + (row * heads + head) * size * 4, types.float32)
            turned(source, place, cosines, sines, size, np.float32(1))


@numba.cfunc(_CALL, error_model="numpy")
def gate(call: Any) -> None:
    """SwiGLU's gates and what they let through to its products."""
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    rows, width = call[layout.GATE_ROWS], call[layout.GATE_WIDTH]
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        low = array(call[layout.GATE_X] + row * 2 * width * 4, types.float32)
        high = array(call[layout.GATE_X] + (row * 2 + 1) * width * 4, types.float32)
        gated(low, high, array(call[layout.GATE_Y] + row * width * 4, types.float32), 0, width)
