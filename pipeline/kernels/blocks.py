"""Two innermost steps of K-means, written as vector instructions: transposing squares, and rows against six centres.

From loops over arrays a compiler does not keep a block of sums in registers. Here a step loads one feature of many rows
and multiplies it with six centres, so that arithmetic, not memory, limits the speed: as in a large matrix product.
"""

from __future__ import annotations

from typing import Any

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


def _transpose_square(typing: Any, x: Any, s: Any, i: Any, reference: Any, rows: Any, t: Any) -> tuple[Any, Any]:
    """rows[i + j, t + r] <- x[s + r, i + j] - reference[i + j] for r, j in a square. x : (n, d).  rows : (d, v)."""
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
        for j, line in enumerate(lines):
            builder.store(line, place(target, builder.add(args[2], whole(j)), args[5]), align=align)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, reference, rows, types.intp), generate


def _nearest_of_block(context: Any, builder: Any, rows: Any, element: Any, constant: Any, name_of: Any, low: Any, name: Any, out: Any = None) -> None:  # fmt: skip
    """Compare constant(j) + sum_i element(j, i) rows[i] for each j of a block with the lowest so far, a row in each lane.

    rows : type and array of the rows, (d, v).  element, constant, name_of : give pointers and a number for code that reads a
    coefficient, the sum's beginning, and what is written into the index.  low, name : pointers.  out : where the sums go as well.
    """
    kind, x = rows
    v = 8 * VECTOR_BYTES // kind.dtype.bitwidth
    real, align = context.get_data_type(kind.dtype), kind.dtype.bitwidth // 8
    vector = ir.VectorType(real, v)
    product = ir.FunctionType(vector, [vector] * 3)
    fma = cgutils.get_or_insert_function(builder.module, product, f"llvm.fma.v{v}f{kind.dtype.bitwidth}")

    def everywhere(value: Any) -> Any:
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), v), [0] * v)
        return builder.shuffle_vector(one, one, zeros)

    source, low, name = (builder.bitcast(pointer, vector.as_pointer()) for pointer in (x.data, low, name))
    sums = [cgutils.alloca_once_value(builder, everywhere(builder.load(constant(j)))) for j in range(BLOCK)]
    with cgutils.for_range(builder, builder.extract_value(x.shape, 0)) as loop:
        row = builder.load(builder.gep(source, [loop.index]), align=align)
        for j, total in enumerate(sums):
            factor = everywhere(builder.load(element(j, loop.index)))
            builder.store(builder.call(fma, [factor, row, builder.load(total)]), total)
    lowest, number = builder.load(low, align=align), builder.load(name, align=align)
    for j, total in enumerate(sums):
        value = builder.load(total)
        less = builder.fcmp_ordered("<", value, lowest)
        lowest = builder.select(less, value, lowest)
        number = builder.select(less, everywhere(builder.sitofp(name_of(j), real)), number)
        if out is not None:
            builder.store(
                value, builder.gep(builder.bitcast(out, vector.as_pointer()), [ir.IntType(64)(j)]), align=align
            )
    builder.store(lowest, low, align=align)
    builder.store(number, name, align=align)


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
    """Code for the consecutive centres of a block of `update_nearest` and `bound_nearest`."""
    whole = ir.IntType(64)
    x, c, start, low, name = _data(context, builder, signature, args)[:5]

    def element(j: int, i: Any) -> Any:
        return builder.gep(c.data, [builder.add(builder.mul(i, whole(BLOCK)), whole(j))])

    def constant(j: int) -> Any:
        return builder.gep(start.data, [whole(j)])

    def name_of(j: int) -> Any:
        return builder.add(args[3], whole(j))

    rows = signature.args[0], x
    _nearest_of_block(context, builder, rows, element, constant, name_of, low.data, name.data, out)


def _bound_nearest(typing: Any, rows: Any, coefficients: Any, constant: Any, first: Any, best: Any, index: Any, out: Any) -> tuple[Any, Any]:  # fmt: skip
    """As `update_nearest`; the sums are written into out, (BLOCK, v), as well."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = _data(context, builder, signature, args)[5]
        _consecutive(context, builder, signature, args, out.data)
        return context.get_dummy_value()

    return types.void(rows, coefficients, constant, first, best, index, out), generate


def _update_among(typing: Any, rows: Any, factors: Any, square: Any, numbers: Any, best: Any, index: Any) -> tuple[Any, Any]:  # fmt: skip
    """As `update_nearest`, with the same bits, of any centres.  factors : (k, d).  square : (k,).  numbers : (BLOCK,), int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, c, start, which, low, name = _data(context, builder, signature, args)
        d = builder.extract_value(x.shape, 0)
        own = [builder.load(builder.gep(which.data, [ir.IntType(64)(j)])) for j in range(BLOCK)]
        lines = [builder.gep(c.data, [builder.mul(number, d)]) for number in own]

        def element(j: int, i: Any) -> Any:
            return builder.gep(lines[j], [i])

        def constant(j: int) -> Any:
            return builder.gep(start.data, [own[j]])

        rows = signature.args[0], x
        _nearest_of_block(context, builder, rows, element, constant, own.__getitem__, low.data, name.data)
        return context.get_dummy_value()

    return types.void(rows, factors, square, numbers, best, index), generate


def _any_reaches(typing: Any, line: Any, limit: Any) -> tuple[Any, Any]:
    """Whether line[t] > limit[t] is false for any t: NaN is not above. Both (v,)."""
    v = 8 * VECTOR_BYTES // line.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.VectorType(context.get_data_type(line.dtype), v).as_pointer()
        align = line.dtype.bitwidth // 8
        one, other = (
            builder.load(builder.bitcast(array.data, pointer), align=align)
            for array in _data(context, builder, signature, args)
        )
        found = builder.bitcast(builder.fcmp_unordered("<=", one, other), ir.IntType(v))
        return builder.icmp_unsigned("!=", found, ir.IntType(v)(0))

    return types.boolean(line, limit), generate


# Not by decorator: numba's types would show the code generators' arguments to callers.
transpose_square: Any = intrinsic(_transpose_square)
update_nearest: Any = intrinsic(_update_nearest)
bound_nearest: Any = intrinsic(_bound_nearest)
update_among: Any = intrinsic(_update_among)
any_reaches: Any = intrinsic(_any_reaches)


@exact_kernel
def load_group(tile: np.ndarray, first: int, reference: np.ndarray, group: np.ndarray) -> None:
    """group, (d, lanes) <- tile[first : first + lanes] - reference, transposed."""
    d, lanes = group.shape
    side = SQUARE_BYTES // tile.itemsize
    squares = d - d % side
    for t in range(0, lanes, side):
        for i in range(0, squares, side):
            transpose_square(tile, first + t, i, reference, group, t)
    for t in range(lanes):
        for i in range(squares, d):
            group[i, t] = tile[first + t, i] - reference[i]
