"""Gaussian E-step and moments as two matrix products a tile, and by Cholesky for the components beyond GEMM's limits.

    log p(x, k) = φ(x) · b_k        sum_n r_nk φ(x_n)        φ : features of x about the shift (kernels/features.py)

Components are columns in the order of c_k, so that each precision has a range of them (kernels/choice.py).
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import blocks, tiles
from pipeline.kernels.arena import Arena
from pipeline.kernels.base import GaussianProblem, GaussianSums
from pipeline.kernels.choice import MOST_PAIR_FEATURES, GemmShare, gemm_shares
from pipeline.kernels.cholesky import Moments, log_density
from pipeline.kernels.features import PAIRS, SPHERE, fill_features, n_features
from pipeline.kernels.softmax import padded, softmax_rows

TILE_NUMBERS = (
    2**21
)  # features and responsibilities of a tile: about as many as a core's share of the caches has room for


def gemm_pass(problem: GaussianProblem, x: Array, weight: Array | None, arena: Arena) -> GaussianSums:
    """E-step of one chunk, tile by tile. x : (n, d), float32 or float64.  weight : (n,), None for ones."""
    shape, dtype = problem.shape, x.dtype
    k, d = problem.means.shape
    order = np.argsort(problem.reach, kind="stable")
    p = n_features(shape.kind, d)
    height = tile_rows(p if d <= MOST_PAIR_FEATURES or shape.kind != PAIRS else d, k)
    precisions = [
        _Precision(problem, order, share, height, arena)
        for share in gemm_shares(problem, dtype)
        if share.densities.stop > share.densities.start or share.moments.stop > share.moments.start
    ]
    n_moments = max([0, *(one.moments.stop for one in precisions)])
    joint = arena.array("responsibilities", (height, padded(k, dtype.itemsize)), dtype)
    ones, log_norm, sum_w = np.ones(height), np.empty(len(x)), np.zeros(k)
    rest = [Moments(shape, problem.means[c]) for c in order[n_moments:]] if shape.per_component else []
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
    about, sum_x, sum_xx = _collected(problem, order, precisions, rest)
    all_w = np.empty(k)
    all_w[order] = sum_w
    return GaussianSums(log_norm, about, all_w, sum_x, sum_xx, entropy)


def gemm_log_joint(problem: GaussianProblem, x: Array, arena: Arena) -> Array:
    """(n, k) float64 log joint densities, by the implementations of a pass. x : (n, d), float32 or float64."""
    k, d = problem.means.shape
    out = np.empty((len(x), k))
    order = np.argsort(problem.reach, kind="stable")
    height = tile_rows(n_features(problem.shape.kind, d) if d <= MOST_PAIR_FEATURES else d, k)
    precisions = [
        _Precision(problem, order, share._replace(moments=slice(0, 0)), height, arena)
        for share in gemm_shares(problem, x.dtype)
        if share.densities.stop > share.densities.start
    ]
    joint = arena.array("responsibilities", (height, k), x.dtype)
    for rows in tiles(len(x), height):
        tile, some = x[rows], joint[: rows.stop - rows.start]
        common = _fill(problem, order, precisions, tile, some)
        out[rows.start : rows.stop, order] = some + np.reshape(common, (-1, 1))
    return out


def tile_rows(p: int, k: int) -> int:
    """Rows in a tile: a power of two from 64 to 2048, so that features and responsibilities stay in the cache.

    It depends on the model alone: a tile's height decides in which order moments are summed.
    """
    return 1 << int(np.clip(np.log2(TILE_NUMBERS / (p + k)), 6, 11))


class _Precision:
    """The components that GEMM computes in one precision: features, products and float64 sums of them."""

    def __init__(self, problem: GaussianProblem, order: Array, share: GemmShare, height: int, arena: Arena) -> None:
        """order : (k,), the components by increasing c_k.  height : rows of a tile."""
        dtype, self.densities, self.moments = share
        self.kind = problem.shape.kind
        self.reference = problem.shift.astype(dtype)
        own, p = order[self.densities], n_features(self.kind, len(self.reference))
        self.coefficients = arena.array(f"coefficients in {dtype}", (p, len(own)), dtype)
        _fill_coefficients(problem, own, self.reference.astype(np.float64), self.coefficients, arena)
        size = (self.moments.stop - self.moments.start, p)
        self.features = arena.array(f"features in {dtype}", (height, p), dtype)
        self.sums = arena.array(f"moments in {dtype}", size, np.dtype(np.float64))
        self.sums[:] = 0.0
        self.product = arena.array(f"moments of a tile in {dtype}", size, dtype)

    def fill(self, x: Array, joint: Array) -> None:
        """Write the features of a tile, and these components' log joint densities. x : (n, d).  joint : (n, k)."""
        phi, columns = self.features[: len(x)], joint[:, self.densities]
        fill_features(x.astype(phi.dtype, copy=False), self.reference, self.kind, phi)
        if columns.size:
            np.matmul(phi, self.coefficients, out=columns, casting="same_kind")

    def add(self, resp: Array) -> None:
        """Add the moments of the tile whose features were written last. resp : (n, k)."""
        if len(self.sums):
            columns = resp[:, self.moments].astype(self.product.dtype, copy=False)
            np.matmul(columns.T, self.features[: len(resp)], out=self.product)
            np.add(self.sums, self.product, out=self.sums)


def _fill(
    problem: GaussianProblem, order: Array, precisions: list[_Precision], x: Array, joint: Array
) -> Array | float:
    """Write log joint densities, columns in the order of c_k. x : (n, d).  joint : (n, k or more).

    With one covariance for all components (tied) a part that they share is left out, and returned: (n,); else 0.
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


def _fill_coefficients(problem: GaussianProblem, chosen: Array, reference: Array, out: Array, arena: Arena) -> None:
    """Write the coefficients of the chosen components' log joint densities in the features, computed in float64.

    Tied: without -|yᵀP|²/2, which all components share. reference : (d,) float64.  out : (p, k').
    """
    shape, size = problem.shape, len(chosen)
    m = problem.means[chosen] - reference
    q = len(out) - m.shape[1] - 1
    if not shape.per_component:
        slope = m @ (problem.factors @ problem.factors.T)
    elif shape.kind == PAIRS:
        # In scratch memory: new arrays cost 4,500 page faults a chunk at d = 64, K = 200, 6 % of the E-step of 8192 rows.
        d, real, slope = m.shape[1], np.dtype(np.float64), np.empty_like(m)
        i, j = np.tril_indices(d)
        for some in blocks(size, d * d):
            few = some.stop - some.start
            factors = np.take(problem.factors, chosen[some], 0, arena.array("factors", (few, d, d), real), mode="clip")
            precision = arena.array("precisions", (few, d, d), real)
            np.matmul(factors, np.swapaxes(factors, 1, 2), out=precision)
            slope[some] = np.einsum("kij,kj->ki", precision, m[some])
            lower = arena.array("lower triangles", (few, q), real)
            np.take(precision.reshape(few, d * d), i * d + j, 1, lower, mode="clip")
            lower *= np.where(i == j, -0.5, -1.0)
            out[:q, some] = lower.T
    else:
        precision = problem.factors[chosen] ** 2
        if shape.kind == SPHERE:
            precision = precision[:, None]
        slope = precision * m
        out[:q] = -0.5 * precision.T
    out[q:-1] = slope.T
    out[-1] = problem.log_scale[chosen] - 0.5 * np.einsum("kd,kd->k", slope, m)


def _collected(
    problem: GaussianProblem, order: Array, precisions: list[_Precision], rest: list[Moments]
) -> tuple[Array, Array, Array]:
    """The points about which moments were taken, and first and second moments, in the components' own order."""
    shape = problem.shape
    k, d = problem.means.shape
    about, sum_x, sum_xx = problem.means.copy(), np.zeros((k, d)), np.zeros(shape.moments_shape(k, d))
    for one in precisions:
        own, linear = order[one.moments], one.sums.shape[1] - d - 1
        about[own] = one.reference
        sum_x[own] = one.sums[:, linear : linear + d]
        if shape.per_component:
            sum_xx[own] = one.sums[:, 0] if one.kind == SPHERE else one.sums[:, :linear]
    if rest:
        others = order[k - len(rest) :]
        sum_x[others] = [moments.sum_x for moments in rest]
        for c, moments in zip(others, rest, strict=True):
            sum_xx[c] = shape.packed(moments.sum_xx[None])[0]
    return about, sum_x, sum_xx
