"""Functions of the degrees of freedom nu of Student-t distributions, of a = nu/2.

Only differences of large terms are computed, so that nothing is lost as nu grows and the distribution becomes Gaussian.
[Liu and Rubin 1995; Minka 2002 for the root]
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, polygamma, psi

from pipeline.arrays.dtypes import Array

LOG_2PI = float(np.log(2.0 * np.pi))
LEAST, MOST = 0.1, 1e6  # at most these are learned: a Gaussian is the limit, which no likelihood reaches
SERIES = 16.0  # from here on Stirling's series is exact to the last digit


def log_scale(a: Array, b: Array | float) -> Array:
    """What a t density has where delta is 0 beyond a Gaussian one of the same scales, nats. a : nu / 2.  b : features / 2."""
    scale: Array = (a + b - 0.5) * np.log1p(b / a) - b + stirling(a + b) - stirling(a)
    return scale


def stirling(a: Array | float) -> Array:
    """log Γ(a) - (a - 1/2) log a + a - log(2 pi) / 2."""
    with np.errstate(over="ignore"):
        y = 1.0 / np.square(a)
    series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * 691 / 360360))))) / a
    return np.where(np.asarray(a) >= SERIES, series, gammaln(a) - (a - 0.5) * np.log(a) + a - 0.5 * LOG_2PI)


def expected_log_density(df: Array, d: int, sum_w: Array, sum_u: Array, gap: Array) -> Array:
    """Return sums of r E log (p(u) u^(d/2)), (k,) nats. sum_u, gap : of r E u and of r (E log u - E u + 1)."""
    a = 0.5 * df
    return sum_w * (0.5 * (np.log(a) - LOG_2PI) - stirling(a)) + a * gap + (0.5 * d - 1.0) * (gap + sum_u - sum_w)


def log_less_psi(a: Array | float) -> Array:
    """log a - psi(a), above 0, falling to 1/(2a)."""
    y = 1.0 / np.square(a)
    series = 0.5 / a + y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return np.where(np.asarray(a) >= SERIES, series, np.log(a) - psi(a))


def slope(a: Array | float) -> Array:
    """psi'(a) - 1/a, above 0, falling to 1/(2a²)."""
    y = 1.0 / np.square(a)
    series = y * (0.5 + (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * 5 / 66)))) / a)
    return np.where(np.asarray(a) >= SERIES, series, polygamma(1, a) - 1.0 / a)


def root(value: Array) -> Array:
    """The a for which log a - psi(a) is the value, between LEAST / 2 and MOST / 2; by Newton's method in 1/a."""
    low, high = 2.0 / MOST, 2.0 / LEAST
    s = np.clip(np.nan_to_num(value), log_less_psi(MOST / 2), log_less_psi(LEAST / 2))
    inverse = 12.0 * s / (3.0 - s + np.sqrt((s - 3.0) ** 2 + 24.0 * s))
    for _ in range(6):  # from Minka's approximation, off by 2 % at most: four are enough
        a = 1.0 / np.clip(inverse, low, high)
        inverse = 1.0 / a - (log_less_psi(a) - s) / (a * a * slope(a))
    return 1.0 / np.clip(inverse, low, high)
