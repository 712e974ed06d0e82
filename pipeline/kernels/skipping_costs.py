"""Whether a pass that skips pairs (pruned.py) is faster than one that computes them all, before either is made.

In nanoseconds a row on one thread, of which only the ratios matter: fitted to passes of both kinds over rows of 24 to 100 features
and 8 to 100 components (docs/performance.md). They depend on the parameters and the dtype alone, as what is skipped has to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.bounds import FLOAT32, FLOAT64, MOMENTS_CONDITION
from pipeline.kernels.choice import FLOAT32_CONDITION, gemm_shares, uses_simd
from pipeline.kernels.features import PAIRS
from pipeline.kernels.simd_sums import GATHER, LEAST_GATHERED

LEAST_FEATURES, LEAST_WORK = 24, 2**14  # d, and k d² of all pairs: below, bounds cost more than they save
# Rows of a chunk, at least, by whether SIMD computes all pairs: fewer are computed while bounds are prepared.
LEAST_ROWS = {True: 8192, False: 256}
# Of skipping: (a row, each feature of it), (a bound, each feature of it).
ROW, BOUND = (350.0, 9.0), (5.0, 0.2)
# Of a pair: (a, b) for a + b d².
DENSITY = {FLOAT32: (27.0, 0.0073), FLOAT64: (45.0, 0.0125)}
MOMENTS = {FLOAT32: (48.0, 0.009), FLOAT64: (60.0, 0.02)}
# Of a pair where all are computed, density and moments in equal parts: times d².
VECTORS = {FLOAT32: 0.039, FLOAT64: 0.068}
PRODUCTS = {FLOAT32: 0.026, FLOAT64: 0.055}


def may_skip(problem: GaussianProblem) -> bool:
    """Whether there may be enough to skip."""
    k, d = problem.means.shape
    return problem.shape.kind == PAIRS and d >= LEAST_FEATURES and k * d * d >= LEAST_WORK


def might_pay(problem: GaussianProblem, x: Array, moments: bool) -> bool:
    """Whether to skip may be faster for a chunk, by what is known before bounds are prepared.

    x : (n, d).  moments : whether they are wanted, not densities alone.
    """
    few = len(x) < LEAST_ROWS[problem.df is None and uses_simd(problem)]
    return may_skip(problem) and not few and pays(problem, x.dtype, 1.0, 1.0, moments)


def pays(problem: GaussianProblem, dtype: np.dtype[Any], computed: float, needed: float, moments: bool) -> bool:
    """Whether to skip is faster where so many pairs of a row are computed, of which so many count. moments : as above."""
    return of_skipping(problem, dtype, computed, moments) <= of_all(problem, dtype, needed, moments)


def of_skipping(problem: GaussianProblem, dtype: np.dtype[Any], computed: float, moments: bool) -> float:
    """Nanoseconds of a row of which so many pairs are computed."""
    k, d = problem.means.shape
    return ROW[0] + ROW[1] * d + k * (BOUND[0] + BOUND[1] * d) + computed * _of_a_pair(problem, dtype, moments)


def of_all(problem: GaussianProblem, dtype: np.dtype[Any], needed: float, moments: bool) -> float:
    """Nanoseconds of a row of which all pairs are computed and so many count."""
    k, d = problem.means.shape
    if problem.df is not None and moments:  # by the kernels of pairs too
        return k * _of_a_pair(problem, dtype, moments)
    half, of_moments = 0.5 * k * d * d, 1.0
    if uses_simd(problem):
        wide = dtype == FLOAT64 or bool((problem.condition > FLOAT32_CONDITION).any())
        half *= VECTORS[FLOAT64 if wide else FLOAT32]
        if d >= LEAST_GATHERED:
            of_moments = min(1.0, needed / k * (1.0 + GATHER / d))
    else:
        shares = [one for one in gemm_shares(problem, dtype) if one.precision == FLOAT32]
        single = sum(part.stop - part.start for one in shares for part in (one.densities, one.moments)) / (2 * k)
        half *= single * PRODUCTS[FLOAT32] + (1.0 - single) * PRODUCTS[FLOAT64]
    return half + half * of_moments if moments else half


def _of_a_pair(problem: GaussianProblem, dtype: np.dtype[Any], moments: bool) -> float:
    """Nanoseconds of a pair from a gathered row, the mean over components."""
    d = problem.means.shape[1]

    def cost(of: dict[Any, tuple[float, float]], limit: float) -> float:
        wide: Array | bool = dtype == FLOAT64 or problem.condition > limit
        a, b = np.where(np.reshape(wide, (-1, 1)), of[FLOAT64], of[FLOAT32]).mean(axis=0)
        return float(a + b * d * d)

    return cost(DENSITY, FLOAT32_CONDITION) + (cost(MOMENTS, MOMENTS_CONDITION) if moments else 0.0)
