"""Arithmetic on one row, and what threads of a team need of each other, for numba to compile.

Only the building process imports this file (`llava.decoding.build`).
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from llava.decoding.layout import FLOAT32
from llava.decoding.vectors import array, dots, power_of_two

_SHARE = 16  # outputs that a thread has a multiple of: a line of the cache, which no two threads write

words = types.int64
barrier = types.ExternalFunction("GOMP_barrier", types.void())
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
exact = numba.njit(error_model="numpy")  # in the order that is written, wherever it is used
_squares = dots(FLOAT32, 1)


@exact
def share(count: Any, part: Any, parts: Any) -> Any:
    """Where a thread's outputs begin: its share of all lines."""
    lines = (count + _SHARE - 1) // _SHARE
    return min(count, lines * part // parts * _SHARE)


@exact
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


@exact
def normed(x: Any, weight: Any, out: Any, count: Any, epsilon: Any, found: Any) -> None:
    """RMSNorm of one row, from one address to another, which may be the same. found: a place for one number."""
    _squares(x, 0, x, 0, count, found)
    scale = np.float32(1) / math.sqrt(array(found, types.float32)[0] / np.float32(count) + epsilon)
    source, norm, place = array(x, types.float32), array(weight, types.float32), array(out, types.float32)
    for i in range(count):
        place[i] = source[i] * scale * norm[i]


@exact
def turned(x: Any, out: Any, cosines: Any, sines: Any, count: Any, factor: Any) -> None:
    """A head's query or key turned to its position, and times a factor; out may be where it is."""
    middle = count // 2
    for i in range(middle):
        low, high = x[i], x[middle + i]
        out[i] = (low * cosines[i] + high * sines[i]) * factor
        out[middle + i] = (high * cosines[middle + i] + low * sines[middle + i]) * factor


@exact
def gated(gate: Any, up: Any, out: Any, first: Any, last: Any) -> None:
    """SiLU of a gate, times what it lets through."""
    for i in range(first, last):
        out[i] = gate[i] / (np.float32(1) + exp(-gate[i])) * up[i]


@exact
def scale_of(bits: Any, count: Any, largest: Any) -> Any:
    """What a step of 8 bits is worth in one row, as `Int8Linear` has it; not a number where an input is none.

    bits: the row's numbers as integers, which without their signs have the same order, and last what is no number.
    largest: a place for one number, by its address.
    """
    most = np.int32(0)
    for i in range(count):
        size = bits[i] & np.int32(0x7FFFFFFF)
        most = size if size > most else most
    array(largest, types.int32)[0] = most
    scale = array(largest, types.float32)[0] / np.float32(127)
    return np.float32(1e-12) if scale < np.float32(1e-12) else scale


@exact
def to_int16(x: Any, scale: Any, out: Any, count: Any) -> None:
    """One row to 8 bits, in int16."""
    for i in range(count):
        out[i] = np.int16(np.rint(x[i] / scale))


@exact
def to_bytes(x: Any, scale: Any, out: Any, count: Any) -> None:
    """One row to 8 bits, 128 more than they are, in bytes."""
    for i in range(count):
        out[i] = np.uint8(np.int32(np.rint(x[i] / scale)) + np.int32(128))
