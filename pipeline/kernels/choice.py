"""Which implementation computes a component of a Gaussian mixture.

    SIMD        few features, or few components with full covariances: rows in the lanes of vectors, the mean subtracted
    GEMM        log p(x, k) is linear in features of x: two matrix products a tile
    Cholesky    the mean subtracted, then one triangular product per component

SIMD serves all components or none. Otherwise c_k decides, per component (`GaussianProblem.reach`): GEMM cancels terms
of size c_k, so a log-density errs by about eps c_k; beyond a limit a component goes to the next precision, then to
Cholesky, whose error does not grow with c_k. The choice depends on model, parameters and dtype, never on memory or
workers, so that results keep their bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.features import PAIRS

MOST_SIMD_FEATURES = 16  # above, matrix products are faster
MOST_PAIR_FEATURES = 128  # above, a tile of their products no longer fits the cache
FEW_COMPONENTS = 50  # of full covariances: products of so few read and write features more than they compute

# The largest condition number of a covariance whose whitening may run in float32: its error grows with the root.
FLOAT32_CONDITION = 3e4
# The largest c_k for densities and for moments by GEMM, in the order in which they are tried. In float32 a density then
# errs by some eps c_k = 1.2e-7 x 1e4 = 1e-3 nats, and the smallest eigenvalue of a covariance by some 1e-4 of itself.
LIMITS: dict[np.dtype[Any], tuple[float, float]] = {
    np.dtype(np.float32): (1e4, 1e3),
    np.dtype(np.float64): (1e9, 1e8),
}


class GemmShare(NamedTuple):
    """The components that GEMM computes in one precision: ranges of the components in the order of c_k."""

    precision: np.dtype[Any]
    densities: slice
    moments: slice


def uses_simd(problem: GaussianProblem) -> bool:
    """Whether SIMD computes all components."""
    k, d = problem.means.shape
    few = problem.shape.kind == PAIRS and k <= FEW_COMPONENTS
    return d <= (MOST_PAIR_FEATURES if few else MOST_SIMD_FEATURES)


def gemm_shares(problem: GaussianProblem, dtype: np.dtype[Any]) -> list[GemmShare]:
    """The components that GEMM computes, for each precision at least as wide as the rows' dtype.

    Components beyond the limits of float32 are computed in float64, those beyond its limits by Cholesky.
    """
    k, d = problem.means.shape
    found, log_start, moment_start = [], 0, 0
    for precision, (log_limit, moment_limit) in LIMITS.items():
        if precision.itemsize < dtype.itemsize or (problem.shape.kind == PAIRS and d > MOST_PAIR_FEATURES):
            continue
        n_log, n_moments = int((problem.reach <= log_limit).sum()), int((problem.reach <= moment_limit).sum())
        if not problem.shape.per_component:
            # One covariance, one implementation, in the rows' own precision: before the common part is added, what a
            # float32 column holds may be far larger than a log-density. First moments about the shift lose nothing.
            n_log, n_moments = (k if n_log == k and precision == dtype else log_start), k
        found.append(GemmShare(precision, slice(log_start, n_log), slice(moment_start, n_moments)))
        log_start, moment_start = n_log, n_moments
    return found


def implementations(problem: GaussianProblem, dtype: np.dtype[Any]) -> dict[str, list[int]]:
    """How many components' densities, and how many's moments, each implementation computes. dtype : of computation."""
    k = len(problem.means)
    if uses_simd(problem):
        return {"SIMD": [k, k]}
    found = {
        f"GEMM in {precision}": [densities.stop - densities.start, moments.stop - moments.start]
        for precision, densities, moments in gemm_shares(problem, dtype)
    }
    rest = [k - sum(counts[part] for counts in found.values()) for part in (0, 1)]
    return found | {"Cholesky": rest}
