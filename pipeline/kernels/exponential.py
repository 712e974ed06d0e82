"""exp and log of vectors: those of libm take one number at a time. Their errors are little more than rounding."""

from __future__ import annotations

from typing import Any

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.vectors import exponent, fma, is_single, power_of_two, significand, spread, where_less

TAIL = 36.75  # nats below the largest of a row: e^-TAIL = 1.1e-16 of it, half a unit of rounding, is nothing
_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.4286068203094172e-06  # the first has 15 bits: its product with m is exact
_LN2, _ROOT2 = 0.6931471805599453, 1.4142135623730951


@exact_kernel
def lowest(like: Any) -> Any:
    """The lowest argument of exp, in all lanes.

    e^-50 = 2e-22 is nothing beside the 1 that is the largest of a row, and its products with two small numbers are still normal float32:
    some CPUs take far longer for subnormal ones. e^-708 is the smallest power that is a normal float64.
    """
    return spread(-50.0 if is_single(like) else -708.0, like)


@exact_kernel
def at_least_lowest(v: Any) -> Any:
    """v, or the lowest argument of exp where v is less, or NaN (which -inf minus -inf is)."""
    floor = lowest(v)
    return where_less(floor, v, v, floor)


@exact_kernel
def exp(v: Any) -> Any:
    """e^v for v from lowest(v) to 0; of lowest(v) itself it is 0. v : a vector.

    exp(v) = 2^m exp(r), m = round(v / ln 2), |r| <= ln 2 / 2; Taylor to degree 7 (float32) or 13 (float64).
    [Cody and Waite 1980: the reduction in two steps]
    """
    single = is_single(v)
    # Adding 1.5 x 2^23 (float64: 2^52) rounds to a whole number, and leaves it in the low bits of the significand.
    magic = spread(12582912.0 if single else 6755399441055744.0, v)
    rounded = fma(v, spread(_LOG2E, v), magic)
    m = rounded - magic
    r = fma(m, spread(-_LN2_LOW, v), fma(m, spread(-_LN2_HIGH, v), v))
    if single:
        y = fma(r, spread(1 / 5040, v), spread(1 / 720, v))
        y = fma(y, r, spread(1 / 120, v))
    else:
        y = fma(r, spread(1 / 6227020800, v), spread(1 / 479001600, v))
        y = fma(y, r, spread(1 / 39916800, v))
        y = fma(y, r, spread(1 / 3628800, v))
        y = fma(y, r, spread(1 / 362880, v))
        y = fma(y, r, spread(1 / 40320, v))
        y = fma(y, r, spread(1 / 5040, v))
        y = fma(y, r, spread(1 / 720, v))
        y = fma(y, r, spread(1 / 120, v))
    one = spread(1.0, v)
    y = fma(y, r, spread(1 / 24, v))
    y = fma(y, r, spread(1 / 6, v))
    y = fma(y, r, spread(0.5, v))
    y = fma(fma(y, r, one), r, one)
    return where_less(lowest(v), v, y * power_of_two(rounded), spread(0.0, v))


@exact_kernel
def log(v: Any) -> Any:
    """Natural logarithm of normal positive numbers. v : a vector.

    log(2^e s) = e ln 2 + 2 atanh(f), f = (s - 1) / (s + 1), s between the roots of 1/2 and 2, by the series of atanh.
    """
    one, e, s = spread(1.0, v), exponent(v), significand(v)
    root = spread(_ROOT2, v)
    e = where_less(root, s, e + one, e)
    s = where_less(root, s, s * spread(0.5, v), s)
    f = (s - one) / (s + one)
    z = f * f
    if is_single(v):
        y = fma(z, spread(1 / 9, v), spread(1 / 7, v))
    else:
        y = fma(z, spread(1 / 21, v), spread(1 / 19, v))
        y = fma(y, z, spread(1 / 17, v))
        y = fma(y, z, spread(1 / 15, v))
        y = fma(y, z, spread(1 / 13, v))
        y = fma(y, z, spread(1 / 11, v))
        y = fma(y, z, spread(1 / 9, v))
        y = fma(y, z, spread(1 / 7, v))
    y = fma(y, z, spread(1 / 5, v))
    y = fma(y, z, spread(1 / 3, v))
    y = fma(y, z, one)
    return fma(e, spread(_LN2, v), (f + f) * y)
