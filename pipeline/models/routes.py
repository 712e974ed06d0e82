"""How a Gaussian's E-step is computed: three routes to the same statistics, chosen by d and, per component, by c_k.

    lanes      few features: rows in the vector lanes, the mean subtracted first
    products   log p(x, k) is linear in features of x: two matrix products a tile
    cholesky   the mean subtracted, then one triangular product per component

The error of a log-density on the products' route is about eps x c_k, where c_k = λ_max(Σ_k⁻¹)(|μ_k|² + tr Σ_k) about the
reference point; components above a limit go the Cholesky way, whose error does not grow. A tile's height depends on
model, parameters and dtype, never on memory or workers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.kernels.features import PAIRS, SPHERE, fill_features, n_features
from pipeline.kernels.lanes import LANES, gaussian_lanes
from pipeline.kernels.softmax import softmax_rows
from pipeline.models.base import tiles
from pipeline.models.covariance import Shape
from pipeline.models.stats import Array

MOST_LANES = 16  # features; above, matrix products win
MOST_PAIRS = 128  # features; above, a tile of their products no longer fits the cache
TILE_NUMBERS = 2**20  # features and responsibilities of a tile: about what a core's share of the caches holds

# The largest condition number of a covariance whose whitening may run in float32: its error grows with the root.
FLOAT32_CONDITION = 3e4
# The largest c_k for the E-step and for the moments on the products' route (tests/laws/test_routes.py).
LIMITS = {np.dtype(np.float32): (1e4, 1e3), np.dtype(np.float64): (1e9, 1e8)}


class Sums(NamedTuple):
    """An E-step's sums. sum_w : (k,).  sum_x, sum_xx : moments about `about`, (k, d) points.  entropy : nats."""

    about: Array
    sum_w: Array
    sum_x: Array
    sum_xx: Array
    entropy: float


class Problem(NamedTuple):
    """What a route needs. means : (k, d).  factors : precision factors.  log_scale : (k,), log pi_k + log-density at
    the mean.  reach : (k,), c_k.  condition : (k,), of the covariances.  shift : (d,).  All float64.
    """

    shape: Shape
    means: Array
    factors: Array
    log_scale: Array
    reach: Array
    condition: Array
    shift: Array
    hard: bool


def by_lanes(problem: Problem, x: Array, weight: Array, log_norm: Array) -> Sums:
    """Rows in the vector lanes. x : (n, d), float32 or float64.  log_norm : (n,), written."""
    k, d = problem.means.shape
    if (problem.condition > FLOAT32_CONDITION).any():  # one kernel serves all components
        x = x.astype(np.float64, copy=False)
    dtype = x.dtype
    high = problem.means.astype(dtype)
    low = (problem.means - high).astype(dtype)
    factor = problem.shape.lane_factors(problem.factors, k, d).astype(dtype)
    sum_w, sum_x, sum_xx = np.zeros(k), np.zeros((k, d)), np.zeros(factor.shape)
    entropy = gaussian_lanes(
        np.ascontiguousarray(x),
        weight.astype(dtype),
        high,
        low,
        np.ascontiguousarray(factor),
        problem.log_scale.astype(dtype),
        problem.hard,
        problem.shape.per_component,
        log_norm,
        sum_w,
        sum_x,
        sum_xx,
        np.empty(LANES, np.int32 if dtype.itemsize == 4 else np.int64),
    )
    return Sums(problem.means, sum_w, sum_x, problem.shape.from_lanes(sum_xx), entropy)


class _Linear(NamedTuple):
    """log p(x, k) as a linear function of features of y = x - reference.

    kind : of features (kernels.features).  coefficients : (p, k).  common : whether -|yᵀP|²/2, the same for all
    components, is left out of them (tied).
    """

    kind: int
    coefficients: Array
    common: bool


def by_products(problem: Problem, x: Array, weight: Array, log_norm: Array) -> Sums:
    """Matrix products, tile by tile; components beyond the limits by Cholesky. Arguments as for by_lanes."""
    shape, dtype = problem.shape, x.dtype
    k, d = problem.means.shape
    # Components in the order of c_k: those on the products' route are the first columns of every array.
    order = np.argsort(problem.reach, kind="stable")
    n_log, n_moments = _on_products(problem, dtype, d)
    reference = problem.shift.astype(dtype)
    linear = _linear(problem, order[:n_log], reference.astype(np.float64))
    p = n_features(linear.kind, d)
    height = tile_rows(p if n_log or n_moments else d, k)
    features = np.empty((height, p), dtype)
    joint = np.empty((height, k), dtype)
    coefficients = linear.coefficients.astype(dtype)
    bits = np.empty(k, np.int32 if dtype.itemsize == 4 else np.int64)
    sums = np.zeros((n_moments, p))
    sum_w = np.zeros(k)
    rest = [Moments(shape, problem.means[c], d) for c in order[n_moments:]] if shape.per_component else []
    entropy = 0.0
    for rows in tiles(len(x), height):
        tile = x[rows]
        phi, r, w = features[: len(tile)], joint[: len(tile)], weight[rows].astype(dtype)
        if n_log or n_moments:
            fill_features(tile, reference, linear.kind, phi)
        if n_log:
            np.matmul(phi, coefficients, out=r[:, :n_log])
        for column, c in enumerate(order[n_log:], start=n_log):
            r[:, column] = log_density(problem, int(c), tile)
        entropy += softmax_rows(r, w, problem.hard, log_norm[rows], bits)
        if linear.common:
            log_norm[rows] -= 0.5 * shape.mahalanobis(tile - reference, problem.factors.astype(dtype))
        sum_w += r.sum(axis=0, dtype=np.float64)
        if n_moments:
            sums += r[:, :n_moments].T @ phi
        for column, moments in enumerate(rest, start=n_moments):
            moments.add(tile, r[:, column])
    return _collected(problem, order, n_moments, linear.kind, reference, sums, sum_w, rest, entropy)


def _on_products(problem: Problem, dtype: np.dtype[Any], d: int) -> tuple[int, int]:
    """How many components, in the order of c_k, have their densities and their moments by matrix products."""
    log_limit, moment_limit = LIMITS[dtype]
    n_log, n_moments = int((problem.reach <= log_limit).sum()), int((problem.reach <= moment_limit).sum())
    if problem.shape.kind == PAIRS and d > MOST_PAIRS:
        return 0, 0
    if not problem.shape.per_component:  # one covariance: one route; first moments about the reference lose nothing
        k = len(problem.reach)
        return (k if n_log == k else 0), k
    return n_log, n_moments


def tile_rows(p: int, k: int) -> int:
    """Rows in a tile: a power of two, so that features and responsibilities stay in the cache."""
    return 1 << int(np.clip(np.log2(TILE_NUMBERS / (p + k)), 6, 11))


def log_density(problem: Problem, c: int, x: Array) -> Array:
    """(n,) log pi_c + log p(x | c), the mean subtracted first."""
    shape = problem.shape
    factor = problem.factors[c] if shape.per_component else problem.factors
    if problem.condition[c] > FLOAT32_CONDITION:
        x = x.astype(np.float64, copy=False)
    return problem.log_scale[c] - 0.5 * shape.mahalanobis(difference(x, problem.means[c]), factor.astype(x.dtype))


class Moments:
    """Moments of one component about its mean, summed in float64."""

    def __init__(self, shape: Shape, mean: Array, d: int) -> None:
        self.shape, self.mean = shape, mean
        one = shape.array_shape(1, d)
        self.sum_x, self.sum_xx = np.zeros(d), np.zeros(one[1:] if shape.per_component else one)

    def add(self, x: Array, resp: Array) -> None:
        """Add the rows of a tile. x : (n, d).  resp : (n,)."""
        rows = np.flatnonzero(resp >= np.finfo(resp.dtype).tiny)  # the others add nothing
        if 2 * len(rows) < len(x):  # where most rows are elsewhere, gathering the few pays
            x, resp = x[rows], resp[rows]
        diff = difference(x, self.mean)
        self.sum_x += resp @ diff
        self.sum_xx += self.shape.tile_moment(diff, resp)


def difference(x: Array, mean: Array) -> Array:
    """x - mean in x's dtype, float32 or float64, as exact as it allows.

    In float32 the mean is subtracted in two parts, so that its own rounding does not count: a row close
    to the mean loses nothing, however far both are from the origin.
    """
    high = mean.astype(x.dtype)
    diff = x - high
    if x.dtype != np.float64:
        diff -= (mean - high).astype(x.dtype)
    return diff


def _linear(problem: Problem, chosen: Array, reference: Array) -> _Linear:
    """Coefficients of the chosen components' log joint densities, formed in float64."""
    shape = problem.shape
    m = problem.means[chosen] - reference
    if not shape.per_component:
        precision = problem.factors @ problem.factors.T
        slope = m @ precision
        quadratic = np.empty((len(chosen), 0))
    elif shape.kind == PAIRS:
        factors = problem.factors[chosen]
        precision = factors @ np.swapaxes(factors, 1, 2)
        slope = np.einsum("kij,kj->ki", precision, m)
        d = m.shape[1]
        i, j = np.tril_indices(d)
        quadratic = np.where(i == j, -0.5, -1.0) * precision[:, i, j]
    else:
        precision = problem.factors[chosen] ** 2
        if shape.kind == SPHERE:
            precision = precision[:, None]
        slope = precision * m
        quadratic = -0.5 * precision
    constant = problem.log_scale[chosen] - 0.5 * np.einsum("kd,kd->k", slope, m)
    coefficients = np.concatenate([quadratic, slope, constant[:, None]], axis=1).T
    return _Linear(shape.kind, np.ascontiguousarray(coefficients), not shape.per_component and len(chosen) > 0)


def _collected(
    problem: Problem,
    order: Array,
    n_moments: int,
    kind: int,
    reference: Array,
    sums: Array,
    sum_w: Array,
    rest: list[Moments],
    entropy: float,
) -> Sums:
    """The sums of both routes, in the order of the components."""
    shape = problem.shape
    k, d = problem.means.shape
    first, others = order[:n_moments], order[n_moments:]
    about = problem.means.copy()
    about[first] = reference
    all_w, sum_x = np.empty(k), np.zeros((k, d))
    all_w[order] = sum_w
    linear = sums.shape[1] - d - 1
    sum_x[first] = sums[:, linear : linear + d]
    if not shape.per_component:
        return Sums(about, all_w, sum_x, np.zeros((d, d)), entropy)
    sum_xx = np.zeros(shape.array_shape(k, d))
    sum_xx[first] = _from_quadratic(kind, sums[:, :linear], d)
    for c, moments in zip(others, rest, strict=True):
        sum_x[c], sum_xx[c] = moments.sum_x, moments.sum_xx
    return Sums(about, all_w, sum_x, sum_xx, entropy)


def _from_quadratic(kind: int, sums: Array, d: int) -> Array:
    """Second moments from the sums of quadratic features. sums : (k, q)."""
    if kind != PAIRS:
        return sums[:, 0] if kind == SPHERE else sums
    full = np.empty((len(sums), d, d))
    i, j = np.tril_indices(d)
    full[:, i, j] = sums
    full[:, j, i] = sums
    return full
