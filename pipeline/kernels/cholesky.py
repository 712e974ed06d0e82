"""One component of a Gaussian mixture at a time: the mean subtracted first, then one triangular product.

Slower than the other implementations, but its error does not grow with the distance from the reference point, nor with
how narrow a component is: (x - μ)ᵀ Σ⁻¹ (x - μ) = |(x - μ) P|², P Pᵀ = Σ⁻¹.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.base import CovarianceShape, GaussianProblem
from pipeline.kernels.choice import FLOAT32_CONDITION


def log_density(problem: GaussianProblem, c: int, x: Array) -> Array:
    """(n,) log π_c + log p(x | c), nats. x : (n, d), float32 or float64."""
    shape = problem.shape
    factor = problem.factors[c] if shape.per_component else problem.factors
    if problem.condition[c] > FLOAT32_CONDITION:
        x = x.astype(np.float64, copy=False)
    return problem.log_scale[c] - 0.5 * shape.mahalanobis(difference(x, problem.means[c]), factor.astype(x.dtype))


class Moments:
    """First and second moments of one component about a point, in float64. mean : (d,), the point."""

    def __init__(self, shape: CovarianceShape, mean: Array) -> None:
        d = len(mean)
        self.shape, self.mean = shape, mean
        self.sum_x, self.sum_xx = np.zeros(d), shape.tile_moment(np.zeros((0, d)), np.zeros(0))

    def add(self, x: Array, resp: Array) -> None:
        """Add the rows of a tile. x : (n, d), float32 or float64.  resp : (n,), weights of the rows."""
        rows = np.flatnonzero(resp >= np.finfo(resp.dtype).tiny)  # the others add nothing
        if 2 * len(rows) < len(x):  # where most rows are elsewhere, gathering the few pays
            x, resp = x[rows], resp[rows]
        diff = difference(x, self.mean)
        self.sum_x += resp @ diff
        self.sum_xx += self.shape.tile_moment(diff, resp)


def difference(x: Array, mean: Array) -> Array:
    """x - mean in x's dtype, float32 or float64. x : (n, d).  mean : (d,), float64.

    In float32 the mean is subtracted in two parts, so that its own rounding does not count: a row close to the mean
    loses nothing, however far both are from the origin. At 1e4 the rounding would be 5e-4.
    """
    high = mean.astype(x.dtype)
    diff = x - high
    if x.dtype != np.float64:
        diff -= (mean - high).astype(x.dtype)
    return diff
