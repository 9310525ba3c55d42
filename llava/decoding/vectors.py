"""What numba has no words for, in LLVM's own: numbers at an address, and products of rows as wide as registers are.

Only the building process imports this file (`llava.decoding.build`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llava.decoding.build import has
from llava.decoding.layout import BYTES, FLOAT16, FLOAT32, INT8, INT8_BYTES, PANEL

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_SIXTEEN = ir.VectorType(_I32, 16)
# Numbers that are read together, rows that are computed together for each weight, and outputs for each input of some
# rows: as registers are wide and many.
_LANES, TOGETHER, WIDE = (16, 4, 64) if has("avx512vl") else (8, 2, 16)
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
            return _dots4(builder, total, *(builder.bitcast(vector, sums) for vector in (x, weights)))
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
                    place = builder.add(row, _times(builder, at, width))
                    _prefetch(builder, builder.add(place, _times(builder, stride, outputs)))
                    read = _load(builder, place, stored)
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


@intrinsic
def packed(context: Any, weights: Any, stride: Any, count: Any, panel: Any, apart: Any, start: Any) -> Any:
    """Sixteen outputs' weights of 8 bits as `panel` reads them: four inputs of each, side by side, in a vector.

    Vectors are stored `apart` bytes from one another. start gets what the sums of each output begin with: -128 times
    the sum of its weights, since inputs are 128 more than they are. count: a multiple of 64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, stride, count, panel, apart, start = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(_SIXTEEN, None))
        ones = ir.Constant(_SIXTEEN, [0x01010101] * 16)
        rows = [builder.add(weights, _times(builder, stride, index)) for index in range(16)]
        with _steps(builder, count, BYTES) as at:
            places = [builder.add(row, at) for row in rows]
            for place in places:
                _prefetch(builder, builder.add(place, _times(builder, stride, PANEL)))
            vectors = [_load(builder, place, _SIXTEEN) for place in places]
            vectors = _transposed(builder, vectors)
            place = builder.add(panel, builder.mul(builder.lshr(at, ir.Constant(_I64, 2)), apart))
            for vector in vectors:
                builder.store(vector, builder.inttoptr(place, _SIXTEEN.as_pointer()), align=4)
                builder.store(_dots4(builder, builder.load(total), ones, vector), total)
                place = builder.add(place, apart)
        sums = builder.shl(builder.load(total), ir.Constant(_SIXTEEN, [7] * 16))
        place = builder.inttoptr(start, _SIXTEEN.as_pointer())
        builder.store(builder.neg(sums), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


def panel(columns: int, rows: int) -> Any:
    """panel(weights, start, x, apart, count, found): products of 16 * columns outputs with `rows` rows of inputs.

    weights, start: by `packed`. x: bytes, 128 more than they are, `apart` from row to row. found gets the products, in
    int32, row by row.
    """

    @intrinsic
    def panel(context: Any, weights: Any, start: Any, x: Any, apart: Any, count: Any, found: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, start, x, apart, count, found = arguments
            first = [_load(builder, _plus(builder, start, BYTES * column), _SIXTEEN) for column in range(columns)]
            totals = [[cgutils.alloca_once_value(builder, value) for value in first] for _ in range(rows)]
            places = [builder.add(x, _times(builder, apart, row)) for row in range(rows)]
            with _steps(builder, count, 4) as at:
                place = builder.add(weights, _times(builder, at, 16 * columns))
                vectors = [_load(builder, _plus(builder, place, BYTES * column), _SIXTEEN) for column in range(columns)]
                for of_row, row in zip(totals, places, strict=True):
                    four = _load(builder, builder.add(row, at), _I32)
                    four = builder.insert_element(ir.Constant(_SIXTEEN, ir.Undefined), four, ir.Constant(_I32, 0))
                    four = builder.shuffle_vector(four, four, ir.Constant(_SIXTEEN, [0] * 16))
                    for total, vector in zip(of_row, vectors, strict=True):
                        builder.store(_dots4(builder, builder.load(total), four, vector), total)
            for index, total in enumerate(total for of_row in totals for total in of_row):
                place = builder.inttoptr(_plus(builder, found, BYTES * index), _SIXTEEN.as_pointer())
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return panel


def _dots4(builder: Any, total: Any, x: Any, weights: Any) -> Any:
    """Each lane's sum, and the products of its four bytes: x from 0 to 255, weights from -128 to 127. VNNI."""
    return _called(builder, "llvm.x86.avx512.vpdpbusd.512", _SIXTEEN, total, x, weights)


def _transposed(builder: Any, vectors: Any) -> Any:
    """Sixteen vectors of sixteen as a matrix, transposed: four times, the halves of all are interleaved."""

    def interleaved(one: Any, other: Any, start: int) -> Any:
        lanes = [lane for index in range(start, start + 8) for lane in (index, 16 + index)]
        return builder.shuffle_vector(one, other, ir.Constant(_SIXTEEN, lanes))

    for _ in range(4):
        pairs = zip(vectors[:8], vectors[8:], strict=True)
        vectors = [interleaved(*pair, start) for pair in pairs for start in (0, 8)]
    return vectors


@intrinsic
def transposed(context: Any, source: Any, stride: Any, count: Any, place: Any, apart: Any) -> Any:
    """Sixteen rows of `count` numbers of 4 bytes as so many rows of sixteen, `apart` bytes from one another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, count, place, apart = arguments
        rows = [builder.add(source, _times(builder, stride, index)) for index in range(16)]
        with _steps(builder, count, 16) as at:
            offset, target = _times(builder, at, 4), builder.add(place, builder.mul(at, apart))
            for vector in _transposed(builder, [_load(builder, builder.add(row, offset), _SIXTEEN) for row in rows]):
                builder.store(vector, builder.inttoptr(target, _SIXTEEN.as_pointer()), align=4)
                target = builder.add(target, apart)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def maximum(count: int) -> Any:
    """maximum(address): the largest of so many float32 numbers, a multiple of sixteen."""

    @intrinsic
    def maximum(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, *others = _vectors(builder, arguments[0], count)
            for other in others:
                first = _called(builder, f"llvm.maxnum.v{_LANES}f32", first.type, first, other)
            return _called(builder, f"llvm.vector.reduce.fmax.v{_LANES}f32", _F32, first)

        return types.float32(types.int64), generate

    return maximum


def total(count: int) -> Any:
    """total(address): the sum of so many float32 numbers, a multiple of sixteen, always in the same order."""

    @intrinsic
    def total(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, *others = _vectors(builder, arguments[0], count)
            for other in others:
                first = builder.fadd(first, other)
            while first.type.count > 1:
                first = _neighbours(builder, first)
            return builder.extract_element(first, ir.Constant(_I32, 0))

        return types.float32(types.int64), generate

    return total


def _vectors(builder: Any, address: Any, count: int) -> list[Any]:
    """So many float32 numbers."""
    vector = ir.VectorType(_F32, _LANES)
    return [_load(builder, _plus(builder, address, 4 * start), vector) for start in range(0, count, _LANES)]


def sums(lanes: int, rows: int, fetches: bool = False) -> Any:
    """sums(matrix, stride, x, apart, count, found, between, ahead): found[r, c] += sum of x[r, i] * matrix[i, c].

    In float32, of `rows` rows and `lanes` columns, i from 0 to count; rows lie apart, stride and between bytes from one
    another. fetches: meanwhile count * lanes numbers at `ahead` are brought to the second cache.
    """
    columns, vector = lanes // _LANES, ir.VectorType(_F32, _LANES)

    @intrinsic
    def sums(
        context: Any, matrix: Any, stride: Any, x: Any, apart: Any, count: Any, found: Any, between: Any, ahead: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            matrix, stride, x, apart, count, found, between, ahead = arguments

            def places(start: Any) -> list[Any]:
                return [_plus(builder, start, 4 * _LANES * column) for column in range(columns)]

            targets = [places(builder.add(found, _times(builder, between, row))) for row in range(rows)]
            totals = [
                [cgutils.alloca_once_value(builder, _load(builder, place, vector)) for place in of_row]
                for of_row in targets
            ]
            inputs = [builder.add(x, _times(builder, apart, row)) for row in range(rows)]
            with _steps(builder, count, 1) as at:
                for start in range(0, 4 * lanes if fetches else 0, BYTES):
                    _prefetch(builder, _plus(builder, builder.add(ahead, _times(builder, at, 4 * lanes)), start))
                read = [_load(builder, place, vector) for place in places(builder.add(matrix, builder.mul(at, stride)))]
                for of_row, row in zip(totals, inputs, strict=True):
                    one = _load(builder, builder.add(row, _times(builder, at, 4)), _F32)
                    one = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.Constant(_I32, 0))
                    one = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES))
                    for total, value in zip(of_row, read, strict=True):
                        more = _called(builder, f"llvm.fma.v{_LANES}f32", vector, one, value, builder.load(total))
                        builder.store(more, total)
            for of_row, of_totals in zip(targets, totals, strict=True):
                for place, total in zip(of_row, of_totals, strict=True):
                    builder.store(builder.load(total), builder.inttoptr(place, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return sums


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


def _prefetch(builder: Any, address: Any) -> None:
    """Have what lies at an address brought to the second cache; no harm where nothing does."""
    pointer, number = ir.PointerType(_I8), ir.IntType(32)
    shape = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0i8")
    kind = [ir.Constant(number, value) for value in (0, 2, 1)]  # to read, into the second cache, of data
    builder.call(function, [builder.inttoptr(address, pointer), *kind])


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
