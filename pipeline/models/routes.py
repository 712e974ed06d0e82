"""How a Gaussian's E-step is computed: three routes to the same statistics, chosen by d and, per component, by c_k.

    lanes      few features, or few components of full covariances: rows in the vector lanes, the mean subtracted first
    products   log p(x, k) is linear in features of x: two matrix products a tile
    cholesky   the mean subtracted, then one triangular product per component

The error of a log-density on the products' route is about eps x c_k, where c_k = λ_max(Σ_k⁻¹)(|μ_k|² + tr Σ_k) about the
reference point; components above a limit go the Cholesky way, whose error does not grow. A tile's height depends on
model, parameters and dtype, never on memory or workers.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import tiles
from pipeline.kernels.features import DIAGONAL, NONE, PAIRS, SPHERE, fill_features, n_features
from pipeline.kernels.lanes import TILE, gaussian_lanes, joint_lanes, whole
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.models.covariance import Shape

CACHE_LINE = 64  # bytes
MOST_LANES = 16  # features; above, matrix products win
MOST_PAIRS = 128  # features; above, a tile of their products no longer fits the cache
FEW_COMPONENTS = 50  # of full covariances: products of so few read and write features more than they compute
TILE_NUMBERS = 2**21  # features and responsibilities of a tile: about what a core's share of the caches holds

# The largest condition number of a covariance whose whitening may run in float32: its error grows with the root.
FLOAT32_CONDITION = 3e4
# The largest c_k for the E-step and for the moments on the products' route (tests/laws/test_routes.py).
LIMITS: dict[np.dtype[Any], tuple[float, float]] = {
    np.dtype(np.float32): (1e4, 1e3),
    np.dtype(np.float64): (1e9, 1e8),
}  # in this order


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


_kept = threading.local()


def scratch(name: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """An array of anything, the same memory for each call of a thread with this name: pages that are new have to be
    fetched from the system, which takes longer than to fill them. It begins at a cache line: a vector that straddles
    two is loaded twice.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    raw = getattr(_kept, name, None)
    if raw is None or len(raw) < size + CACHE_LINE:
        raw = np.empty(size + CACHE_LINE, np.uint8)
        setattr(_kept, name, raw)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def in_lanes(problem: Problem) -> bool:
    """Whether rows lie in the vector lanes, for all components."""
    k, d = problem.means.shape
    few = problem.shape.kind == PAIRS and k <= FEW_COMPONENTS
    return d <= (MOST_PAIRS if few else MOST_LANES)


def shares(problem: Problem, dtype: np.dtype[Any]) -> dict[str, list[int]]:
    """By route, how many components have their densities and their moments computed there."""
    k = len(problem.means)
    if in_lanes(problem):
        return {"lanes": [k, k]}
    found = {f"products in {p}": [e.stop - e.start, m.stop - m.start] for p, e, m in on_products(problem, dtype)}
    rest = [k - sum(counts[part] for counts in found.values()) for part in (0, 1)]
    return found | {"cholesky": rest}


def by_lanes(problem: Problem, x: Array, weight: Array | None, log_norm: Array) -> Sums:
    """Rows in the vector lanes. x : (n, d), float32 or float64.  weight : (n,), None for ones.  log_norm : (n,), written."""
    k, d = problem.means.shape
    matrices, e = problem.shape.kind in (PAIRS, NONE), whole(d)
    sum_w, sum_x = np.zeros(k), np.zeros((k, e))
    sum_xx = np.zeros((k, e, e) if matrices else (k, 1, d))
    x, high, low, factor, log_scale = _for_lanes(problem, x)
    entropy = gaussian_lanes(
        x,
        np.empty(0) if weight is None else weight,
        high,
        low,
        factor,
        log_scale,
        problem.hard,
        problem.shape.per_component,
        log_norm,
        sum_w,
        sum_x,
        sum_xx,
        scratch("lanes", (d + e + k + 7, TILE), x.dtype),
    )
    sum_xx = problem.shape.from_lanes(sum_xx[:, :d, :d])
    return Sums(problem.means, sum_w, sum_x[:, :d], sum_xx, entropy)


def _for_lanes(problem: Problem, x: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Rows, the means in two parts, factors and log scales as the lanes' kernels take them."""
    k, d = problem.means.shape
    if (problem.condition > FLOAT32_CONDITION).any():  # one kernel serves all components
        x = x.astype(np.float64, copy=False)
    dtype = x.dtype
    high = problem.means.astype(dtype, order="C")
    low = (problem.means - high).astype(dtype, order="C")
    if dtype == np.float64:
        low = low[:0]  # nothing is left
    factor = problem.shape.lane_factors(problem.factors, k, d).astype(dtype, order="C")
    return np.ascontiguousarray(x), high, low, factor, problem.log_scale.astype(dtype)


class _Products:
    """Components whose densities and moments are matrix products in one precision, as columns in the order of c_k."""

    def __init__(
        self, problem: Problem, order: Array, densities: slice, moments: slice, dtype: Any, height: int
    ) -> None:
        self.densities, self.moments = densities, moments
        self.kind = problem.shape.kind
        self.reference = problem.shift.astype(dtype)
        self.coefficients = _coefficients(problem, order[densities], self.reference.astype(np.float64)).astype(dtype)
        self.features = scratch(
            f"features in {dtype}", (height, n_features(self.kind, len(self.reference))), np.dtype(dtype)
        )
        self.sums = np.zeros((moments.stop - moments.start, self.features.shape[1]))
        self.product = np.empty(self.sums.shape, dtype)

    def fill(self, x: Array, joint: Array) -> None:
        """Features of a tile, and its log joint densities. x : (n, d).  joint : (n, k), some columns written."""
        phi, columns = self.features[: len(x)], joint[:, self.densities]
        fill_features(x.astype(phi.dtype, copy=False), self.reference, self.kind, phi)
        if columns.size:
            np.matmul(phi, self.coefficients, out=columns, casting="same_kind")

    def add(self, resp: Array) -> None:
        """Add the moments of the tile. resp : (n, k)."""
        if len(self.sums):
            columns = resp[:, self.moments].astype(self.product.dtype, copy=False)
            np.matmul(columns.T, self.features[: len(resp)], out=self.product)
            np.add(self.sums, self.product, out=self.sums)


def by_products(problem: Problem, x: Array, weight: Array | None, log_norm: Array) -> Sums:
    """Matrix products, tile by tile; components beyond the limits by Cholesky. Arguments as for by_lanes."""
    shape, dtype = problem.shape, x.dtype
    k, d = problem.means.shape
    order = np.argsort(problem.reach, kind="stable")
    p = n_features(shape.kind, d)
    height = tile_rows(p if d <= MOST_PAIRS or shape.kind != PAIRS else d, k)
    precisions = [
        _Products(problem, order, densities, moments, precision, height)
        for precision, densities, moments in on_products(problem, dtype)
        if densities.stop > densities.start or moments.stop > moments.start
    ]
    n_moments = max([0, *(one.moments.stop for one in precisions)])
    joint, ones = scratch("responsibilities", (height, padded(k, dtype.itemsize)), dtype), np.ones(height)
    sum_w = np.zeros(k)
    rest = [Moments(shape, problem.means[c], d) for c in order[n_moments:]] if shape.per_component else []
    entropy = 0.0
    for rows in tiles(len(x), height):
        tile, resp = x[rows], joint[: rows.stop - rows.start]
        common = _fill(problem, order, precisions, tile, resp)
        w = ones[: len(tile)] if weight is None else weight[rows]
        entropy += softmax_rows(resp, k, w, problem.hard, log_norm[rows])
        log_norm[rows] += common
        sum_w += resp[:, :k].sum(axis=0, dtype=np.float64)
        for one in precisions:
            one.add(resp)
        for column, moments in enumerate(rest, start=n_moments):
            moments.add(tile, resp[:, column])
    return _collected(problem, order, precisions, sum_w, rest, entropy)


def log_joint(problem: Problem, x: Array) -> Array:
    """(n, k) float64 log joint densities, by the routes of an E-step. x : (n, d), float32 or float64."""
    k, d = problem.means.shape
    out = np.empty((len(x), k))
    if in_lanes(problem):
        x, high, low, factor, log_scale = _for_lanes(problem, x)
        diagonal = problem.shape.kind in (DIAGONAL, SPHERE)
        joint_lanes(
            x, high, low, factor, log_scale, diagonal, out, scratch("lanes", (d + whole(d) + k + 1, TILE), x.dtype)
        )
        return out
    order = np.argsort(problem.reach, kind="stable")
    height = tile_rows(n_features(problem.shape.kind, d) if d <= MOST_PAIRS else d, k)
    precisions = [
        _Products(problem, order, densities, slice(0, 0), precision, height)
        for precision, densities, _ in on_products(problem, x.dtype)
        if densities.stop > densities.start
    ]
    joint = np.empty((height, k), x.dtype)
    for rows in tiles(len(x), height):
        tile, some = x[rows], joint[: rows.stop - rows.start]
        common = _fill(problem, order, precisions, tile, some)
        out[rows.start : rows.stop, order] = some + np.reshape(common, (-1, 1))
    return out


def _fill(problem: Problem, order: Array, precisions: list[_Products], x: Array, joint: Array) -> Array | float:
    """Write log joint densities, in the order of c_k, without a part that all share (tied); (n,) that part, or 0.

    x : (n, d).  joint : (n, k or more).
    """
    n_log = 0
    for one in precisions:
        one.fill(x, joint)
        n_log = max(n_log, one.densities.stop)
    for column, c in enumerate(order[n_log:], start=n_log):
        joint[:, column] = log_density(problem, int(c), x)
    if problem.shape.per_component or not n_log:
        return 0.0
    return -0.5 * problem.shape.mahalanobis(x - problem.shift.astype(x.dtype), problem.factors.astype(x.dtype))


def on_products(problem: Problem, dtype: np.dtype[Any]) -> list[tuple[np.dtype[Any], slice, slice]]:
    """Which components, in the order of c_k, have densities and moments by matrix products, by precision.

    Those beyond the limits of float32 data's own precision are computed in float64.
    """
    k, d = problem.means.shape
    found, log_start, moment_start = [], 0, 0
    for precision, (log_limit, moment_limit) in LIMITS.items():
        if precision.itemsize < dtype.itemsize or (problem.shape.kind == PAIRS and d > MOST_PAIRS):
            continue
        n_log, n_moments = int((problem.reach <= log_limit).sum()), int((problem.reach <= moment_limit).sum())
        if not problem.shape.per_component:
            # One covariance, one route, in the rows' own precision: before the common part is added, what a float32
            # column holds may be far larger than a log-density. First moments about the shift lose nothing.
            n_log, n_moments = (k if n_log == k and precision == dtype else log_start), k
        found.append((precision, slice(log_start, n_log), slice(moment_start, n_moments)))
        log_start, moment_start = n_log, n_moments
    return found


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
        self.sum_x, self.sum_xx = np.zeros(d), shape.tile_moment(np.zeros((0, d)), np.zeros(0))

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


def _coefficients(problem: Problem, chosen: Array, reference: Array) -> Array:
    """(p, k') coefficients of the chosen components' log joint densities in the features, formed in float64.

    Tied: without -|yᵀP|²/2, which all components share.
    """
    shape = problem.shape
    m = problem.means[chosen] - reference
    if not shape.per_component:
        slope = m @ (problem.factors @ problem.factors.T)
        quadratic = np.empty((len(chosen), 0))
    elif shape.kind == PAIRS:
        factors = problem.factors[chosen]
        precision = factors @ np.swapaxes(factors, 1, 2)
        slope = np.einsum("kij,kj->ki", precision, m)
        i, j = np.tril_indices(m.shape[1])
        quadratic = np.where(i == j, -0.5, -1.0) * precision[:, i, j]
    else:
        precision = problem.factors[chosen] ** 2
        if shape.kind == SPHERE:
            precision = precision[:, None]
        slope = precision * m
        quadratic = -0.5 * precision
    constant = problem.log_scale[chosen] - 0.5 * np.einsum("kd,kd->k", slope, m)
    return np.ascontiguousarray(np.concatenate([quadratic, slope, constant[:, None]], axis=1).T)


def _collected(
    problem: Problem, order: Array, precisions: list[_Products], sum_w: Array, rest: list[Moments], entropy: float
) -> Sums:
    """The sums of all routes, in the order of the components."""
    shape = problem.shape
    k, d = problem.means.shape
    about, all_w, sum_x = problem.means.copy(), np.empty(k), np.zeros((k, d))
    sum_xx = np.zeros(shape.moments_shape(k, d))
    all_w[order] = sum_w
    for one in precisions:
        own, linear = order[one.moments], one.sums.shape[1] - d - 1
        about[own] = one.reference
        sum_x[own] = one.sums[:, linear : linear + d]
        if shape.per_component:
            sum_xx[own] = one.sums[:, 0] if one.kind == SPHERE else one.sums[:, :linear]
    if rest:
        others = order[k - len(rest) :]
        sum_x[others] = [moments.sum_x for moments in rest]
        sum_xx[others] = shape.packed(np.stack([moments.sum_xx for moments in rest]))
    return Sums(about, all_w, sum_x, sum_xx, entropy)
