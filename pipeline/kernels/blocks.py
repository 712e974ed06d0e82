"""The innermost steps of K-means, written as vector instructions: transposing squares, rows against six centres, and single products.

From loops over arrays a compiler does not keep a block of sums in registers. Here a step loads one feature of many rows
and multiplies it with six centres, so that arithmetic, not memory, limits the speed: as in a large matrix product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.arrays.dtypes import Array
from pipeline.kernels.compiling import exact_kernel

BLOCK = 6  # centres: with vectors of two registers 12 sums, of 16 registers (32 with AVX-512)
SQUARE_BYTES = 32  # side of a transposed square: one AVX register
VECTOR_BYTES = 128 if binding.get_host_cpu_features().get("avx512f") else 64  # two registers
PART = 2**14 // VECTOR_BYTES  # features of a vector of rows that stay in the first-level cache
PRODUCT_BYTES = 128  # that a single product takes at once


def in_blocks(coefficients: Array, constants: Array) -> tuple[Array, Array]:
    """Return coefficients, (k, d), by blocks of centres, (ceil(k / BLOCK), d, BLOCK), and constants, (k,), filled up with inf: what is there is never nearest."""
    k, d = coefficients.shape
    n_blocks = -(-k // BLOCK)
    full, ends = np.zeros((n_blocks * BLOCK, d), coefficients.dtype), np.full(n_blocks * BLOCK, np.inf, constants.dtype)
    full[:k], ends[:k] = coefficients, constants
    return np.ascontiguousarray(full.reshape(n_blocks, BLOCK, d).swapaxes(1, 2)), ends.reshape(n_blocks, BLOCK)


def _data(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """The array structures among the arguments."""
    pairs = [(kind, value) for kind, value in zip(signature.args, args, strict=True) if isinstance(kind, types.Array)]
    return [context.make_array(kind)(context, builder, value) for kind, value in pairs]


def _transpose_square(typing: Any, x: Any, s: Any, i: Any, reference: Any, rows: Any, line: Any, t: Any) -> tuple[Any, Any]:  # fmt: skip
    """rows[line + j, t + r] <- x[s + r, i + j] - reference[i + j] for r, j in a square. x : (n, d).  rows : (lines, v)."""
    side, align = 8 * SQUARE_BYTES // x.dtype.bitwidth, x.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(64)
        vector = ir.VectorType(context.get_data_type(x.dtype), side)
        source, subtract, target = _data(context, builder, signature, args)

        def place(array: Any, line: Any, column: Any) -> Any:
            width = builder.extract_value(array.shape, 1)
            pointer = builder.gep(array.data, [builder.add(builder.mul(line, width), column)])
            return builder.bitcast(pointer, vector.as_pointer())

        one = builder.bitcast(builder.gep(subtract.data, [args[2]]), vector.as_pointer())
        shift = builder.load(one, align=align)
        lines = [
            builder.fsub(builder.load(place(source, builder.add(args[1], whole(r)), args[2]), align=align), shift)
            for r in range(side)
        ]
        step = 1
        while step < side:  # exchange the off-diagonal squares of 1, 2, 4, ... [Eklundh 1972]
            upper = [n if not n & step else side + n - step for n in range(side)]
            lower = [n + step if not n & step else side + n for n in range(side)]
            for r in range(side):
                if not r & step:
                    pair = lines[r], lines[r + step]
                    for at, mask in ((r, upper), (r + step, lower)):
                        chosen = ir.Constant(ir.VectorType(ir.IntType(32), side), mask)
                        lines[at] = builder.shuffle_vector(*pair, chosen)
            step *= 2
        for j, values in enumerate(lines):
            builder.store(values, place(target, builder.add(args[5], whole(j)), args[6]), align=align)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, reference, rows, types.intp, types.intp), generate


class _Vectors(NamedTuple):
    """Code for vectors of VECTOR_BYTES: a number of each of v rows.

    builder : of the code.  real, kind : types of a number and of a vector.  align : of a number, bytes.
    """

    builder: Any
    real: Any
    kind: Any
    align: int

    @classmethod
    def of(cls, context: Any, builder: Any, dtype: Any) -> _Vectors:
        real = context.get_data_type(dtype)
        return cls(builder, real, ir.VectorType(real, 8 * VECTOR_BYTES // dtype.bitwidth), dtype.bitwidth // 8)

    def at(self, pointer: Any, line: Any) -> Any:
        """A pointer to a line of an array, (lines, v)."""
        return self.builder.gep(self.builder.bitcast(pointer, self.kind.as_pointer()), [line])

    def load(self, pointer: Any, line: Any) -> Any:
        return self.builder.load(self.at(pointer, line), align=self.align)

    def store(self, value: Any, pointer: Any, line: Any) -> None:
        self.builder.store(value, self.at(pointer, line), align=self.align)

    def everywhere(self, value: Any) -> Any:
        """A vector of equal numbers."""
        whole, undefined = ir.IntType(32), ir.Constant(self.kind, ir.Undefined)
        one = self.builder.insert_element(undefined, value, whole(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(whole, self.kind.count), None))

    def with_products(self, rows: Any, lines: Any, element: Any, sums: list[Any]) -> list[Any]:
        """sums[j] + sum_i element(j, i) rows[i]. rows : pointer, (lines, v).  element : gives a pointer to a coefficient."""
        builder, totals = self.builder, [cgutils.alloca_once_value(self.builder, value) for value in sums]
        product, name = ir.FunctionType(self.kind, [self.kind] * 3), f"llvm.fma.v{self.kind.count}f{8 * self.align}"
        fma = cgutils.get_or_insert_function(builder.module, product, name)
        with cgutils.for_range(builder, lines) as loop:
            row = self.load(rows, loop.index)
            for j, total in enumerate(totals):
                factor = self.everywhere(builder.load(element(j, loop.index)))
                builder.store(builder.call(fma, [factor, row, builder.load(total)]), total)
        return [builder.load(total) for total in totals]

    def lower(self, values: list[Any], name_of: Any, low: Any, name: Any) -> None:
        """Compare values with the lowest so far, in turn; of equal ones the first stays. low, name : pointers, (v,).  name_of : gives a whole number."""
        builder, zero = self.builder, ir.IntType(64)(0)
        lowest, number = self.load(low, zero), self.load(name, zero)
        for j, value in enumerate(values):
            less = builder.fcmp_ordered("<", value, lowest)
            lowest = builder.select(less, value, lowest)
            number = builder.select(less, self.everywhere(builder.sitofp(name_of(j), self.real)), number)
        self.store(lowest, low, zero)
        self.store(number, name, zero)


def _update_nearest(typing: Any, rows: Any, coefficients: Any, constant: Any, first: Any, best: Any, index: Any) -> tuple[Any, Any]:  # fmt: skip
    """Compare constant_j + sum_i coefficients[i, j] rows[i] with the lowest so far; of equal ones the first stays.

    rows : (d, v), line i is feature i of v rows.  coefficients : (d, BLOCK).  constant : (BLOCK,).  first : number of the
    block's first centre.  best, index : (v,), updated. index holds whole numbers in the dtype of the others, exact up to
    2^24 centres in float32.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _consecutive(context, builder, signature, args, None)
        return context.get_dummy_value()

    return types.void(rows, coefficients, constant, first, best, index), generate


def _consecutive(context: Any, builder: Any, signature: Any, args: Any, out: Any) -> None:
    """Code for the consecutive centres of a block of `update_nearest` and `bound_nearest`. out : where the sums go as well."""
    vectors, whole = _Vectors.of(context, builder, signature.args[0].dtype), ir.IntType(64)
    x, c, start, low, name = _data(context, builder, signature, args)[:5]
    begin = [vectors.everywhere(builder.load(builder.gep(start.data, [whole(j)]))) for j in range(BLOCK)]
    values = vectors.with_products(x.data, _lines(builder, x), _of_block(builder, c), begin)
    vectors.lower(values, lambda j: builder.add(args[3], whole(j)), low.data, name.data)
    if out is not None:
        for j, value in enumerate(values):
            vectors.store(value, out, whole(j))


def _lines(builder: Any, array: Any) -> Any:
    return builder.extract_value(array.shape, 0)


def _of_block(builder: Any, coefficients: Any) -> Any:
    """Gives a pointer to the coefficient of centre j and feature i. coefficients : array, (d, BLOCK)."""
    whole = ir.IntType(64)

    def element(j: int, i: Any) -> Any:
        return builder.gep(coefficients.data, [builder.add(builder.mul(i, whole(BLOCK)), whole(j))])

    return element


def _bound_nearest(typing: Any, rows: Any, coefficients: Any, constant: Any, first: Any, best: Any, index: Any, out: Any) -> tuple[Any, Any]:  # fmt: skip
    """As `update_nearest`; the sums are written into out, (BLOCK, v), as well."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = _data(context, builder, signature, args)[5]
        _consecutive(context, builder, signature, args, out.data)
        return context.get_dummy_value()

    return types.void(rows, coefficients, constant, first, best, index, out), generate


def _add_products(typing: Any, rows: Any, coefficients: Any, sums: Any) -> tuple[Any, Any]:
    """sums[j] += sum_i coefficients[i, j] rows[i].  rows : (p, v).  coefficients : (p, BLOCK).  sums : (BLOCK, v)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, whole = _Vectors.of(context, builder, rows.dtype), ir.IntType(64)
        x, c, total = _data(context, builder, signature, args)
        begin = [vectors.load(total.data, whole(j)) for j in range(BLOCK)]
        for j, value in enumerate(vectors.with_products(x.data, _lines(builder, x), _of_block(builder, c), begin)):
            vectors.store(value, total.data, whole(j))
        return context.get_dummy_value()

    return types.void(rows, coefficients, sums), generate


def _lowest_of(typing: Any, sums: Any, first: Any, best: Any, index: Any) -> tuple[Any, Any]:
    """What `update_nearest` does once the sums are there.  sums : (BLOCK, v)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, whole = _Vectors.of(context, builder, sums.dtype), ir.IntType(64)
        values, low, name = _data(context, builder, signature, args)
        lines = [vectors.load(values.data, whole(j)) for j in range(BLOCK)]
        vectors.lower(lines, lambda j: builder.add(args[1], whole(j)), low.data, name.data)
        return context.get_dummy_value()

    return types.void(sums, types.intp, best, index), generate


def _update_among(typing: Any, rows: Any, factors: Any, square: Any, numbers: Any, best: Any, index: Any) -> tuple[Any, Any]:  # fmt: skip
    """As `update_nearest`, with the same bits, of any centres.  factors : (k, d).  square : (k,).  numbers : (BLOCK,), int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = _Vectors.of(context, builder, rows.dtype)
        x, c, start, which, low, name = _data(context, builder, signature, args)
        own = [builder.load(builder.gep(which.data, [ir.IntType(64)(j)])) for j in range(BLOCK)]
        lines = [builder.gep(c.data, [builder.mul(number, _lines(builder, x))]) for number in own]
        begin = [vectors.everywhere(builder.load(builder.gep(start.data, [number]))) for number in own]

        def element(j: int, i: Any) -> Any:
            return builder.gep(lines[j], [i])

        values = vectors.with_products(x.data, _lines(builder, x), element, begin)
        vectors.lower(values, own.__getitem__, low.data, name.data)
        return context.get_dummy_value()

    return types.void(rows, factors, square, numbers, best, index), generate


def _reaching(typing: Any, line: Any, limit: Any) -> tuple[Any, Any]:
    """For which t line[t] > limit[t] is false, bit by bit: NaN is not above. Both (v,)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, zero = _Vectors.of(context, builder, line.dtype), ir.IntType(64)(0)
        one, other = (vectors.load(array.data, zero) for array in _data(context, builder, signature, args))
        bits = ir.IntType(vectors.kind.count)
        return builder.zext(builder.bitcast(builder.fcmp_unordered("<=", one, other), bits), ir.IntType(64))

    return types.uint64(line, limit), generate


def _lowest_bit(typing: Any, bits: Any) -> tuple[Any, Any]:
    """The place of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


def _product_of(typing: Any, x: Any, row: Any, reference: Any, factors: Any, j: Any) -> tuple[Any, Any]:
    """sum_i factors[j, i] (x[row, i] - reference[i]), added up in any order.

    x : (n, d), d at least what PRODUCT_BYTES hold.  factors : (k, d), or where d is no multiple of that, zeros before the last features
    make it one: the last numbers of a line belong to the last features.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, real, whole = x.dtype.bitwidth // 8, context.get_data_type(x.dtype), ir.IntType(64)
        n = PRODUCT_BYTES // width
        kind, name = ir.VectorType(real, n), f"llvm.fma.v{n}f{8 * width}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        rows, zero, lines = _data(context, builder, signature, args)
        d, long = (builder.extract_value(array.shape, 1) for array in (rows, lines))
        own, line = (
            builder.gep(rows.data, [builder.mul(args[1], d)]),
            builder.gep(lines.data, [builder.mul(args[4], long)]),
        )

        def load(pointer: Any, place: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()), align=width)

        total = cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * n))
        with cgutils.for_range(builder, builder.udiv(long, whole(n))) as loop:
            at, last = builder.mul(loop.index, whole(n)), builder.sub(d, whole(n))
            place = builder.select(builder.icmp_signed("<", at, last), at, last)
            apart = builder.fsub(load(own, place), load(zero.data, place))
            builder.store(builder.call(fma, [load(line, at), apart, builder.load(total)]), total)
        found = builder.load(total)
        while n > 1:
            n //= 2
            low, high = (ir.Constant(ir.VectorType(ir.IntType(32), n), [*range(k, k + n)]) for k in (0, n))
            found = builder.fadd(builder.shuffle_vector(found, found, low), builder.shuffle_vector(found, found, high))
        return builder.extract_element(found, ir.IntType(32)(0))

    return x.dtype(x, types.intp, reference, factors, types.intp), generate


# Not by decorator: numba's types would show the code generators' arguments to callers.
transpose_square: Any = intrinsic(_transpose_square)
update_nearest: Any = intrinsic(_update_nearest)
bound_nearest: Any = intrinsic(_bound_nearest)
add_products: Any = intrinsic(_add_products)
lowest_of: Any = intrinsic(_lowest_of)
update_among: Any = intrinsic(_update_among)
reaching: Any = intrinsic(_reaching)
lowest_bit: Any = intrinsic(_lowest_bit)
product_of: Any = intrinsic(_product_of)


@exact_kernel
def load_group(tile: np.ndarray, first: int, reference: np.ndarray, group: np.ndarray, start: int = 0) -> None:
    """group, (p, lanes) <- tile[first : first + lanes, start : start + p] - reference, transposed."""
    p, lanes = group.shape
    side = SQUARE_BYTES // tile.itemsize
    squares = p - p % side
    for t in range(0, lanes, side):
        for i in range(0, squares, side):
            transpose_square(tile, first + t, start + i, reference, group, i, t)
    for t in range(lanes):
        for i in range(squares, p):
            group[i, t] = tile[first + t, start + i] - reference[start + i]
