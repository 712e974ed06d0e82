"""Two innermost steps of K-means, written as vector instructions: transposing a square, and rows against six centres.

From loops over arrays a compiler does not keep a block of sums in registers. Here a step loads one feature of many rows
and multiplies it with six centres, so that arithmetic, not memory, limits the speed: as in a large matrix product.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 6  # centres: with vectors of two registers 12 sums, of 16 registers (32 with AVX-512)
SQUARE_BYTES = 32  # side of a transposed square: one AVX register
VECTOR_BYTES = 128 if binding.get_host_cpu_features().get("avx512f") else 64  # two registers


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


def _update_nearest(
    typing: Any, rows: Any, coefficients: Any, constant: Any, first: Any, best: Any, index: Any
) -> tuple[Any, Any]:
    """Compare constant_j + sum_i coefficients[i, j] rows[i] with the lowest so far; of equal ones the first stays.

    rows : (d, v), line i is feature i of v rows.  coefficients : (d, BLOCK).  constant : (BLOCK,).  first : number of the
    block's first centre.  best, index : (v,), updated. index holds whole numbers in the dtype of the others, exact up to
    2^24 centres in float32.
    """
    v = 8 * VECTOR_BYTES // rows.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real, whole = context.get_data_type(rows.dtype), ir.IntType(64)
        vector = ir.VectorType(real, v)
        arrays = _data(context, builder, signature, args)
        x, c, start, low, name = (array.data for array in arrays)
        x, low, name = (builder.bitcast(pointer, vector.as_pointer()) for pointer in (x, low, name))
        product = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, product, f"llvm.fma.v{v}f{rows.dtype.bitwidth}")
        align = rows.dtype.bitwidth // 8

        def everywhere(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), v), [0] * v)
            return builder.shuffle_vector(one, one, zeros)

        def element(pointer: Any, at: Any) -> Any:
            return everywhere(builder.load(builder.gep(pointer, [at])))

        sums = [cgutils.alloca_once_value(builder, element(start, whole(j))) for j in range(BLOCK)]
        with cgutils.for_range(builder, builder.extract_value(arrays[0].shape, 0)) as loop:
            row = builder.load(builder.gep(x, [loop.index]), align=align)
            line = builder.mul(loop.index, whole(BLOCK))
            for j, total in enumerate(sums):
                factor = element(c, builder.add(line, whole(j)))
                builder.store(builder.call(fma, [factor, row, builder.load(total)]), total)
        lowest, number = builder.load(low, align=align), builder.load(name, align=align)
        own = builder.sitofp(args[3], real)
        for j, total in enumerate(sums):
            value = builder.load(total)
            less = builder.fcmp_ordered("<", value, lowest)
            lowest = builder.select(less, value, lowest)
            number = builder.select(less, everywhere(builder.fadd(own, real(float(j)))), number)
        builder.store(lowest, low, align=align)
        builder.store(number, name, align=align)
        return context.get_dummy_value()

    return types.void(rows, coefficients, constant, first, best, index), generate


# Not by decorator: numba's types would show the code generators' arguments to callers.
transpose_square: Any = intrinsic(_transpose_square)
update_nearest: Any = intrinsic(_update_nearest)
