"""Directions that bound Gaussian log-densities from above, and what else all chunks of a pass that skips pairs need (pruned.py)."""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import blocks
from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.choice import FLOAT32_CONDITION
from pipeline.kernels.pairs import packed_blocks, whole_rows, whole_vectors
from pipeline.kernels.skipping import RHO
from pipeline.kernels.softmax import padded

DIRECTIONS, ITERATIONS = 3, 2  # of the bounds; steps of the subspace iteration that finds them
MOMENTS_CONDITION = 1e3  # of covariances whose moments are computed in float32: 1e-4 of the smallest eigenvalue
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Bounds(NamedTuple):
    """What all chunks of a pass need.

    directions : (d, DIRECTIONS c) float32, a slab of c columns for each, c as of `padded`; shifts : (DIRECTIONS c,), the means'
    projections.  slack : slope and offset (c,) float32, of |y|² and constant: what is taken from a squared distance for
    rounding.  means : (k, e) by precision, in two parts.
    densities, moments : components by the precision of their densities and moments.  factors : in blocks, by precision.
    """

    reference: Array
    directions: Array
    shifts: Array
    slack: tuple[Array, Array]
    means: dict[Any, tuple[Array, Array]]
    densities: dict[Any, Array]
    moments: dict[Any, Array]
    factors: dict[Any, tuple[Array, Array]]


class BoundsCache:
    """The bounds of parameters in use, so that the chunks of a pass share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, Any], Bounds] = {}
        self._lock = Lock()

    def of(self, problem: GaussianProblem, dtype: np.dtype[Any]) -> Bounds:
        """The bounds for rows of a dtype. They depend on means, covariances and shift, of which one array stands for all."""
        key = (id(problem.factors), dtype)
        with self._lock:
            if key not in self._known:
                self._known[key] = bounds_of(problem, dtype)
                finalize(problem.factors, self._known.pop, key, None)
            return self._known[key]


def bounds_of(problem: GaussianProblem, dtype: np.dtype[Any]) -> Bounds:
    """Prepare the bounds. dtype : of the rows' computation."""
    factors, reference = problem.factors, problem.shift.astype(np.float32).astype(np.float64)
    d = problem.means.shape[1]
    directions = leading_directions(problem, min(d, DIRECTIONS))
    shifts = np.einsum("kd,kdm->mk", problem.means - reference, directions)
    double = dtype != FLOAT32
    densities = _by_precision(double | (problem.condition > FLOAT32_CONDITION))
    moments = _by_precision(double | (problem.condition > MOMENTS_CONDITION))
    with np.errstate(over="ignore"):
        return Bounds(
            reference,
            _whole(directions.transpose(1, 2, 0)).reshape(d, -1),
            _whole(shifts).reshape(-1),
            _slack(directions, shifts),
            {precision: _two_parts(problem.means, precision) for precision in {*densities, *moments}},
            densities,
            moments,
            {precision: packed_blocks(factors, precision) for precision in densities},
        )


def _whole(values: Array) -> Array:
    """Values (..., k) in float32, zeros behind them up to whole vectors."""
    k = values.shape[-1]
    out = np.zeros((*values.shape[:-1], padded(k, 4)), FLOAT32)
    out[..., :k] = values
    return out


def _slack(directions: Array, shifts: Array) -> tuple[Array, Array]:
    """directions : (k, d, m).  shifts : (m, k)."""
    _, d, m = directions.shape
    rounding = 2 * m / RHO * ((d + 8) * 2.0**-24) ** 2
    length = np.square(directions).sum(axis=1).max(axis=1)
    return _whole(rounding * length), _whole(rounding * np.square(shifts).max(axis=0))


def _two_parts(means: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """(k, e), zeros beyond d."""
    high = means.astype(dtype)
    low = (means - high).astype(dtype)
    k, e = len(means), whole_vectors(means.shape[1], FLOAT32)
    upper, lower = (whole_rows(part, np.empty((k, e), dtype)) for part in (high, low))
    return upper, lower[:0] if dtype == FLOAT64 else lower


def _by_precision(double: Array) -> dict[Any, Array]:
    """Components (k,) of each precision that some have."""
    found = {FLOAT32: np.flatnonzero(~double), FLOAT64: np.flatnonzero(double)}
    return {precision: chosen for precision, chosen in found.items() if len(chosen)}


def leading_directions(problem: GaussianProblem, m: int) -> Array:
    """W_k = P_k V_k, (k, d, m), V_k about the leading eigenvectors of P_kᵀ S_k P_k, by subspace iteration.

    S_k : the average covariance of the components, and of their means, about μ_k: so these are the directions along which
    rows of other components are farthest, in units of component k. Any orthonormal V_k gives a bound: that these are not
    exact eigenvectors does no harm.
    """
    factors, (k, d) = problem.factors, problem.means.shape
    assert problem.covariances is not None
    centre = problem.means.mean(axis=0)
    about = problem.means - centre
    spread = problem.covariances.mean(axis=0) + about.T @ about / k
    columns = np.linalg.qr(np.random.default_rng(0).normal(size=(d, m)))[0]
    directions = np.empty((k, d, m))
    for some in blocks(k, d * d):
        own, from_centre = factors[some], about[some]
        flipped = np.ascontiguousarray(np.swapaxes(own, 1, 2))
        found = np.broadcast_to(columns, (len(own), d, m))
        for _ in range(ITERATIONS):
            found = own @ found
            found = spread @ found + from_centre[:, :, None] * (from_centre[:, None] @ found)
            found = np.linalg.qr(flipped @ found)[0]
        directions[some] = own @ found
    return directions
