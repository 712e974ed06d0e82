"""exp over lanes, by a polynomial that the compiler turns into vector instructions (libm's exp stays scalar).

exp(v) = 2^m exp(r), m = round(v / ln 2), |r| <= ln 2 / 2; Taylor to degree 7 (float32) or 13 (float64): the
error is that of rounding. [Cody and Waite 1980: the reduction in two steps]
"""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import exact_kernel

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.4286068203094172e-06  # the first has 15 bits: m times it is exact


@exact_kernel  # reordering would undo the reduction in two steps
def exp_lanes(a: np.ndarray, scale: np.ndarray, bits: np.ndarray) -> None:
    """a <- exp(a) for a <= 0.

    Below -87 (float32) or -708 (float64) the result is 0: the smallest normal number is not far.
    a, scale : (t,) float32 or float64.  bits : `scale` viewed as integers of the same width.
    """
    real, whole = a.dtype.type, bits.dtype.type
    single = a.itemsize == 4
    lowest = real(-87.0) if single else real(-708.0)
    bias, shift = (whole(127), whole(23)) if single else (whole(1023), whole(52))
    # Adding 1.5 x 2^(mantissa bits) rounds to an integer and leaves it in the low bits, in vector registers.
    magic = real(12582912.0) if single else real(6755399441055744.0)
    for t in range(a.size):
        v = max(a[t], lowest)
        rounded = v * real(_LOG2E) + magic
        scale[t] = rounded
        m = rounded - magic
        r = v - m * real(_LN2_HIGH) - m * real(_LN2_LOW)
        if single:
            y = r * real(1 / 5040) + real(1 / 720)
            y = y * r + real(1 / 120)
        else:
            y = r * real(1 / 6227020800) + real(1 / 479001600)
            y = y * r + real(1 / 39916800)
            y = y * r + real(1 / 3628800)
            y = y * r + real(1 / 362880)
            y = y * r + real(1 / 40320)
            y = y * r + real(1 / 5040)
            y = y * r + real(1 / 720)
            y = y * r + real(1 / 120)
        y = y * r + real(1 / 24)
        y = y * r + real(1 / 6)
        y = y * r + real(0.5)
        y = y * r + real(1)
        y = y * r + real(1)
        a[t] = y if a[t] > lowest else real(0)
    for t in range(a.size):
        bits[t] = (bits[t] + bias) << shift
    for t in range(a.size):
        a[t] *= scale[t]
