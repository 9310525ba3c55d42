"""What numba has no words for, in LLVM's own: numbers at an address, and products of rows as wide as registers are.

Only the building process imports this file (`llava.decoding.build`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llava.decoding.build import has
from llava.decoding.layout import BYTES, FLOAT16, FLOAT32, INT8, INT8_BYTES

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
# Numbers that are read together, and rows that are computed together for each weight: as registers are wide and many.
_LANES, TOGETHER = (16, 4) if has("avx512vl") else (8, 2)
_INT8_LANES = 16
WIDTHS = {FLOAT32: (4, 4), FLOAT16: (2, 4), INT8: (1, 2), INT8_BYTES: (1, 1)}  # bytes of a weight, of an input


@intrinsic
def array(context: Any, address: Any, dtype: Any) -> Any:
    """The pointer to values of a type at an address."""
    signature = types.CPointer(dtype.dtype)(address, dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def power_of_two(context: Any, exponent: Any) -> Any:
    """2 to an int32 from -126 to 127, in float32: the number with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.add(arguments[0], ir.Constant(_I32, 127)), ir.Constant(_I32, 23))
        return builder.bitcast(bits, _F32)

    return types.float32(types.int32), generate


@intrinsic
def half(context: Any, address: Any) -> Any:
    """The float16 number at an address, in float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(_load(builder, arguments[0], ir.HalfType()), _F32)

    return types.float32(types.int64), generate


def dots(kind: int, outputs: int, rows: int = 1) -> Any:
    """dots(weights, stride, x, apart, count, found): products of `outputs` rows of weights with `rows` rows of inputs.

    They lie `stride` and `apart` bytes from one another; found gets the products row by row.
    FLOAT32, FLOAT16: x in float32. INT8: x in int16. INT8_BYTES: x in bytes, 128 more than it is, so that none is
    negative, as VNNI wants it. Sums of integers are exact.
    """
    stored, held, sums, lanes = {
        FLOAT32: (_F32, _F32, _F32, _LANES),
        FLOAT16: (ir.HalfType(), _F32, _F32, _LANES),
        INT8: (_I8, _I16, _I32, _INT8_LANES),
        INT8_BYTES: (_I8, _I8, _I32, BYTES),
    }[kind]
    width, held_width = WIDTHS[kind]
    sums = ir.VectorType(sums, lanes * held_width // 4)
    held, stored = ir.VectorType(held, lanes), ir.VectorType(stored, lanes)

    def added(builder: Any, total: Any, weights: Any, x: Any) -> Any:
        if kind == INT8_BYTES:
            x, weights = (builder.bitcast(vector, sums) for vector in (x, weights))
            return _called(builder, "llvm.x86.avx512.vpdpbusd.512", sums, total, x, weights)
        if kind == INT8:
            product = _called(builder, "llvm.x86.avx2.pmadd.wd", sums, builder.sext(weights, held), x)
            return builder.add(total, product)
        return _called(builder, f"llvm.fma.v{_LANES}f32", sums, weights, x, total)

    @intrinsic
    def dots(context: Any, weights: Any, stride: Any, x: Any, apart: Any, count: Any, found: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, stride, x, apart, count, found = arguments

            def zeros(number: int) -> list[Any]:
                return [cgutils.alloca_once_value(builder, ir.Constant(sums, None)) for _ in range(number)]

            totals, surplus = [zeros(outputs) for _ in range(rows)], zeros(outputs)
            ones = ir.Constant(held, [1] * lanes) if kind == INT8_BYTES else None
            weight_rows = [builder.add(weights, _times(builder, stride, index)) for index in range(outputs)]
            input_rows = [builder.add(x, _times(builder, apart, index)) for index in range(rows)]
            with _steps(builder, count, lanes) as at:
                places = [builder.add(row, _times(builder, at, held_width)) for row in input_rows]
                values = [_load(builder, place, held) for place in places]
                for index, row in enumerate(weight_rows):
                    read = _load(builder, builder.add(row, _times(builder, at, width)), stored)
                    if kind == FLOAT16:
                        read = builder.fpext(read, held)
                    for value, of_row in zip(values, totals, strict=True):
                        builder.store(added(builder, builder.load(of_row[index]), read, value), of_row[index])
                    if ones is not None:
                        builder.store(added(builder, builder.load(surplus[index]), read, ones), surplus[index])
            vectors = [[builder.load(total) for total in of_row] for of_row in totals]
            if ones is not None:
                more = [builder.shl(builder.load(one), ir.Constant(sums, [7] * sums.count)) for one in surplus]
                vectors = [[builder.sub(*pair) for pair in zip(of_row, more, strict=True)] for of_row in vectors]
            _store_sums(builder, [vector for of_row in vectors for vector in of_row], found)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return dots


def _steps(builder: Any, count: Any, step: int) -> Any:
    """A loop from 0 to count; the context gives the index."""
    loop = cgutils.for_range_slice(builder, ir.Constant(_I64, 0), count, ir.Constant(_I64, step), intp=_I64)
    return _First(loop)


class _First:
    """The first of what a context gives."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __enter__(self) -> Any:
        return self.inner.__enter__()[0]

    def __exit__(self, *error: Any) -> Any:
        return self.inner.__exit__(*error)


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(_I64, factor))


def _plus(builder: Any, value: Any, more: int) -> Any:
    return builder.add(value, ir.Constant(_I64, more))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _called(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """An instruction of the processor, by LLVM's name for it."""
    shape = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)


def _store_sums(builder: Any, vectors: Any, address: Any) -> None:
    """Store the sums of some vectors' lanes, in float32, one after the other. Their number is a power of two.

    Neighbours are added, then neighbouring sums, always: so a sum does not depend on how many vectors there are. Two
    vectors become one of their neighbours' sums, until one is left; then it becomes half as long.
    """
    most = vectors[0].type.count
    for start in range(0, len(vectors), most):
        group = vectors[start : start + most]
        number = len(group)
        while len(group) > 1:
            group = [_neighbours(builder, *pair) for pair in zip(group[::2], group[1::2], strict=True)]
        (vector,) = group
        while vector.type.count > number:
            vector = _neighbours(builder, vector)
        if vector.type.element == _I32:
            vector = builder.sitofp(vector, ir.VectorType(_F32, number))
        place = builder.inttoptr(_plus(builder, address, 4 * start), vector.type.as_pointer())
        builder.store(vector, place, align=4)


def _neighbours(builder: Any, one: Any, other: Any = None) -> Any:
    """The sums of neighbouring lanes of a vector, then those of another where there is one."""
    lanes = one.type.count if other is None else 2 * one.type.count
    even, odd = (
        builder.shuffle_vector(
            one,
            one if other is None else other,
            ir.Constant(ir.VectorType(_I32, lanes // 2), list(range(start, lanes, 2))),
        )
        for start in (0, 1)
    )
    return builder.add(even, odd) if one.type.element == _I32 else builder.fadd(even, odd)
