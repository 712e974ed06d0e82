"""Vectors as values of compiled functions: a numba type with loads, stores, arithmetic, fused products and sums.

From loops over arrays a compiler does not keep a block of sums in registers. With vectors as values, a kernel decides
what stays in registers and in which order sums are computed. A wide vector fills two registers, so that two chains of
products hide each other's latency; a narrow one fills one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

NARROW_BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32
WIDE_BYTES = 2 * NARROW_BYTES


class Vector(types.Type):
    """`lanes` numbers of a type in registers."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        real = manager[kind.dtype].get_value_type()
        super().__init__(manager, kind, ir.VectorType(real, kind.lanes))  # type: ignore[no-untyped-call]


class View(types.Type):
    """The address and shape of a C-contiguous array. It owns nothing, so passing it on counts no references."""

    def __init__(self, dtype: Any, ndim: int) -> None:
        self.dtype, self.ndim = dtype, ndim
        super().__init__(name=f"View({dtype}, {ndim})")


@register_model(View)
class _ViewModel(models.StructModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        members = [("data", types.CPointer(kind.dtype)), ("shape", types.UniTuple(types.intp, kind.ndim))]
        super().__init__(manager, kind, members)  # type: ignore[no-untyped-call]


def _view(typing: Any, array: Any) -> Any:
    """A view of an array, which must outlive it: an argument of the kernel, or a part of one."""
    if array.layout != "C":
        raise TypingError(f"view: got {array}, expected a C-contiguous array. Make it one before the call.")
    kind = View(array.dtype, array.ndim)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source = context.make_array(array)(context, builder, args[0])
        target = cgutils.create_struct_proxy(kind)(context, builder)
        target.data, target.shape = source.data, source.shape
        return target._getvalue()

    return signature(kind, array), generate


def _length_along(axis: int) -> Any:
    def length(typing: Any, view: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            struct = cgutils.create_struct_proxy(view)(context, builder, value=args[0])
            return builder.extract_value(struct.shape, axis)

        return signature(types.intp, view), generate

    return intrinsic(length)


def _arithmetic(function: Callable[..., Any], instruction: str) -> None:
    """a (+ - * /) b for two vectors of one type; nothing is contracted or reordered."""

    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(function, Vector, Vector)(lower)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index_kind: Any, index: Any) -> Any:
    """The address of an element. The index is not checked, and a negative one does not count from the end."""
    struct = cgutils.create_struct_proxy(kind)(context, builder, value=array)
    indices = [index] if isinstance(index_kind, types.Integer) else cgutils.unpack_tuple(builder, index)
    widths = cgutils.unpack_tuple(builder, struct.shape)
    flat = indices[0]
    for width, one in zip(widths[1:], indices[1:], strict=True):
        flat = builder.add(builder.mul(flat, width), one)
    return builder.gep(struct.data, [flat])


def _everywhere(builder: Any, value: Any, lanes: int) -> Any:
    """A number in all lanes of a vector."""
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, one, zeros)


def _loader(width: int) -> Any:
    def load(typing: Any, array: Any, index: Any) -> Any:
        vector = Vector(array.dtype, 8 * width // array.dtype.bitwidth)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            place = _pointer(context, builder, array, args[0], index, args[1])
            kind = context.get_value_type(vector).as_pointer()
            return builder.load(builder.bitcast(place, kind), align=array.dtype.bitwidth // 8)

        return signature(vector, array, index), generate

    return intrinsic(load)


def _put(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Store a vector at an index."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, array, args[0], index, args[1])
        builder.store(args[2], builder.bitcast(place, args[2].type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return signature(types.void, array, index, vector), generate


def _add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] += value, for one number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, array, args[0], index, args[1])
        number = context.cast(builder, args[2], value, array.dtype)
        builder.store(builder.fadd(builder.load(place), number), place)
        return context.get_dummy_value()

    return signature(types.void, array, index, value), generate


def _lanes_of(width: int) -> Any:
    def lanes(typing: Any, array: Any) -> Any:
        count = 8 * width // array.dtype.bitwidth

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return context.get_constant(types.intp, count)

        return signature(types.intp, array), generate

    return intrinsic(lanes)


def _is_single(typing: Any, like: Any) -> Any:
    """Whether an array's or a vector's numbers are float32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.boolean, like.dtype.bitwidth == 32)

    return signature(types.boolean, like), generate


def _spread(typing: Any, value: Any, like: Any) -> Any:
    """A number in all lanes of a vector like `like`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _everywhere(builder, context.cast(builder, args[0], value, like.dtype), like.lanes)

    return signature(like, value, like), generate


def _element(typing: Any, array: Any, index: Any, like: Any) -> Any:
    """An element of an array in all lanes of a vector like `like`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_pointer(context, builder, array, args[0], index, args[1]))
        return _everywhere(builder, value, like.lanes)

    return signature(like, array, index, like), generate


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a x b + c, rounded once."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        name = f"llvm.fma.v{a.lanes}f{a.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, args)

    return signature(a, a, b, c), generate


def _chooser(comparison: str) -> Any:
    def choose(typing: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

        return signature(yes, a, b, yes, no), generate

    return intrinsic(choose)


def _total(typing: Any, a: Any) -> Any:
    """The sum of all lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        real = context.get_value_type(a.dtype)
        name = f"llvm.vector.reduce.fadd.v{a.lanes}f{a.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(real, [real, args[0].type]), name)
        # Reassociation makes it pairwise, halves onto halves; in order it would be one number at a time.
        return builder.call(function, [ir.Constant(real, 0.0), args[0]], fastmath=("reassoc",))

    return signature(a.dtype, a), generate


def _highest(typing: Any, a: Any) -> Any:
    """The largest of all lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        real = context.get_value_type(a.dtype)
        name = f"llvm.vector.reduce.fmax.v{a.lanes}f{a.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(real, [args[0].type]), name)
        return builder.call(function, args)

    return signature(a.dtype, a), generate


def _layout(bits: int) -> tuple[int, int]:
    """(bias of the exponent, bits of the significand) of a floating-point number."""
    return (127, 23) if bits == 32 else (1023, 52)


def _power_of_two(typing: Any, rounded: Any) -> Any:
    """2^m in each lane, where `rounded` is m + 1.5 x 2^(bits of the significand), m a whole number."""
    bias, significand = _layout(rounded.dtype.bitwidth)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.VectorType(ir.IntType(rounded.dtype.bitwidth), rounded.lanes)
        number = builder.add(builder.bitcast(args[0], whole), ir.Constant(whole, [bias] * rounded.lanes))
        return builder.bitcast(builder.shl(number, ir.Constant(whole, [significand] * rounded.lanes)), args[0].type)

    return signature(rounded, rounded), generate


def _exponent(typing: Any, a: Any) -> Any:
    """floor(log2 a) in each lane, for normal positive numbers."""
    bias, significand = _layout(a.dtype.bitwidth)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.VectorType(ir.IntType(a.dtype.bitwidth), a.lanes)
        number = builder.lshr(builder.bitcast(args[0], whole), ir.Constant(whole, [significand] * a.lanes))
        # The difference fits in 32 bits, which every CPU converts in one instruction.
        small = ir.VectorType(ir.IntType(32), a.lanes)
        number = builder.sub(number, ir.Constant(whole, [bias] * a.lanes))
        return builder.sitofp(number if a.dtype.bitwidth == 32 else builder.trunc(number, small), args[0].type)

    return signature(a, a), generate


def _significand(typing: Any, a: Any) -> Any:
    """a / 2^exponent(a) in each lane: in [1, 2)."""
    bias, significand = _layout(a.dtype.bitwidth)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = ir.VectorType(ir.IntType(a.dtype.bitwidth), a.lanes)
        number = builder.and_(builder.bitcast(args[0], whole), ir.Constant(whole, [(1 << significand) - 1] * a.lanes))
        one = ir.Constant(whole, [bias << significand] * a.lanes)
        return builder.bitcast(builder.or_(number, one), args[0].type)

    return signature(a, a), generate


# Not by decorator: numba's types would show the code generators' arguments to callers.
view: Any = intrinsic(_view)
lines: Any = _length_along(0)
columns: Any = _length_along(1)
wide: Any = _loader(WIDE_BYTES)
"""wide(view, index): the vector of two registers at an index, an integer or a tuple."""
narrow: Any = _loader(NARROW_BYTES)
"""narrow(view, index): the vector of one register at an index."""
wide_lanes: Any = _lanes_of(WIDE_BYTES)
"""wide_lanes(view): numbers in a wide vector, known to the compiler."""
narrow_lanes: Any = _lanes_of(NARROW_BYTES)
"""narrow_lanes(view): numbers in a narrow vector, known to the compiler."""
is_single: Any = intrinsic(_is_single)
add: Any = intrinsic(_add)
put: Any = intrinsic(_put)
spread: Any = intrinsic(_spread)
element: Any = intrinsic(_element)
fma: Any = intrinsic(_fma)
where_less: Any = _chooser("<")
"""where_less(a, b, yes, no): lane by lane, `yes` where a < b."""
where_equal: Any = _chooser("==")
"""where_equal(a, b, yes, no): lane by lane, `yes` where a == b."""
total: Any = intrinsic(_total)
highest: Any = intrinsic(_highest)
power_of_two: Any = intrinsic(_power_of_two)
exponent: Any = intrinsic(_exponent)
significand: Any = intrinsic(_significand)
