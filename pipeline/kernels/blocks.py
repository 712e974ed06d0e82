"""The innermost step of nearest centres: a vector of rows against a block of centres, in registers alone.

Compilers do not keep a block of sums in registers across a loop over features when they start from loops; here
the vectors are spelled out. A step loads a feature of many rows once and multiplies it with six centres, so
nothing waits for memory: measured at the speed of a large matrix product, with the comparisons included.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 6  # centres: with vectors of two registers, 12 sums; there are 16 registers (32 with AVX-512)
VECTOR_BYTES = 128 if binding.get_host_cpu_features().get("avx512f") else 64


@intrinsic  # type: ignore[untyped-decorator]
def keep_nearest(
    typing: Any, rows: Any, coefficients: Any, constant: Any, first: Any, best: Any, index: Any
) -> tuple[Any, Any]:
    """Compare constant_j + sum_i coefficients[i, j] rows[i] with the best so far; the first of equal ones stays.

    rows : (d, v), a feature of v rows a line.  coefficients : (d, BLOCK).  constant : (BLOCK,).  first : the first
    centre's number.  best, index : (v,), updated; index holds whole numbers in the dtype of all others.
    """
    v = 8 * VECTOR_BYTES // rows.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real, whole = context.get_data_type(rows.dtype), ir.IntType(64)
        vector = ir.VectorType(real, v)
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
            if isinstance(kind, types.Array)
        ]
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
