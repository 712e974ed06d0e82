"""The four shapes of a Gaussian's covariance, as a table of functions.

A shape defines its second moments (`outer`), the covariances from them, and how a covariance whitens a row. For every
shape, moments about another point follow from

    M(a + b) = M(a) - outer(b, s) - outer(s, b) + N outer(b, b)

where s and N are the first and zeroth moments about a. Second moments of full covariances are symmetric, and only
their lower triangles (k, d (d + 1) / 2) are summed, sent and stored. [Bishop 2006, sec. 9.2; scikit-learn's shapes]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dtrtri

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import blocks
from pipeline.kernels.features import DIAGONAL, NONE, PAIRS, SPHERE
from pipeline.kernels.simd import packed
from pipeline.models.schema import POSITIVE, POSITIVE_DEFINITE, Field


class Shape(NamedTuple):
    """Functions of one covariance type; k components, d features.

    outer : ((k, d), (k, d)) -> the shape's product of two vectors, per component
    tile_moment : (diff (n, d), r (n,)) -> the weighted second moment of one component, not packed
    packed : such moments (k, ...) -> the shape's moments
    mahalanobis : (diff (n, d), factor of one component) -> (n,) squared distances
    factor : covariances -> precision factors, NaN for a component without one
    log_det : (factors, d) -> (k,) log determinants of the factors (half those of the precisions)
    trace : (factors, moments) -> (k,) tr(precision @ moment)
    strain : (factors, changes of covariances, d) -> (k,) tr((precision @ change)²); tied: one number
    covariances : (moments about the means, N (k,), d, reg) -> covariances
    extremes : (covariances, k) -> (k, 2) smallest and largest eigenvalues, NaN where there are none
    traces : (covariances, k, d) -> (k,) traces
    field : the schema of the covariances array
    per_component : False if one covariance serves all (tied)
    min_rows : d -> effective rows below which a component counts as collapsed
    kind : which quadratic features its log-density is linear in (kernels.features)
    lane_factors : (factors, k, d) -> packed lower triangles or diagonals (k, d), for rows in lanes
    moments_shape : (k, d) -> shape of the moments
    from_lanes : second moments (k, d, d), or (k, 1, d) of diagonals -> the shape's moments
    moments_of : (covariances, k, d) -> the second moments of one row of each component about its mean
    prior_rows : (degrees of freedom, d) -> rows that an inverse Wishart or gamma prior's power of |covariance| counts as
    draw : (mean (d,), covariance of one component, n, rng) -> (n, d) normal rows
    """

    outer: Callable[[Array, Array], Array]
    tile_moment: Callable[[Array, Array], Array]
    packed: Callable[[Array], Array]
    mahalanobis: Callable[[Array, Array], Array]
    factor: Callable[[Array], Array]
    log_det: Callable[[Array, int], Array]
    trace: Callable[[Array, Array], Array]
    strain: Callable[[Array, Array, int], Array]
    covariances: Callable[[Array, Array, int, float], Array]
    extremes: Callable[[Array, int], Array]
    traces: Callable[[Array, int, int], Array]
    field: Field
    per_component: bool
    min_rows: Callable[[int], int]
    kind: int
    lane_factors: Callable[[Array, int, int], Array]
    moments_shape: Callable[[int, int], tuple[int, ...]]
    from_lanes: Callable[[Array], Array]
    moments_of: Callable[[Array, int, int], Array]
    prior_rows: Callable[[float, int], float]
    draw: Callable[[Array, Array, int, Any], Array]

    @property
    def is_matrix(self) -> bool:
        """Whether a covariance is a whole matrix, not variances, whose inverse is by element."""
        return "feature_2" in self.field.dims

    def array_shape(self, k: int, d: int) -> tuple[int, ...]:
        """The shape of the covariances array."""
        return self.field.shape({"component": k, "feature": d})

    def whitened(self, diff: Array, factors: Array, k: int) -> Array:
        """Return rows, (n, d) about the mean of component k, scaled and rotated so that its covariance is the identity."""
        own = factors[k] if self.per_component else factors
        return diff @ own if self.is_matrix else diff * own

    def precisions(self, factors: Array, k: int, d: int) -> Array:
        """Return the diagonals of the precisions, (k, d); NaN for a component without a factor."""
        own = np.square(factors).sum(axis=-1) if self.is_matrix else np.square(self.lane_factors(factors, k, d))
        return np.broadcast_to(own, (k, d))

    def variances(self, covariances: Array, k: int, d: int) -> Array:
        """Return the variances of the features, (k, d)."""
        own = np.diagonal(covariances, axis1=-2, axis2=-1) if self.is_matrix else self.lane_factors(covariances, k, d)
        return np.broadcast_to(own, (k, d))

    def moved(self, counts: Array, sum_x: Array, sum_xx: Array, by: Array) -> tuple[Array, Array]:
        """Return first and second moments about points moved by `by`. counts : (k,), or (k, d) of features.  sum_x, by : (k, d)."""
        counts = counts if counts.ndim == 2 else counts[:, None]
        if not self.per_component:
            return sum_x - counts * by, self._moved(counts, sum_x, sum_xx, by)
        second = np.empty(sum_xx.shape)
        for own in blocks(len(by), second[0].size):
            second[own] = self._moved(counts[own], sum_x[own], sum_xx[own], by[own])
        return sum_x - counts * by, second

    def _moved(self, counts: Array, sum_x: Array, sum_xx: Array, by: Array) -> Array:
        cross = self.outer(by, sum_x) + self.outer(sum_x, by)
        return sum_xx - cross + self.outer(by * counts, by)


def _by_blocks(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return the function of components' matrices (k, d, d) and something else of theirs (k, ...), for some components at a time."""

    def by_blocks(matrices: Array, others: Array) -> Array:
        return np.concatenate([function(matrices[own], others[own]) for own in blocks(len(matrices), matrices[0].size)])

    return by_blocks


def _cholesky_factor(covariance: Array) -> Array:
    """Upper triangular P with P Pᵀ = covariance⁻¹, or NaN without a Cholesky factor.

    A pivot is the share of a feature's variance that the features before it do not explain; if it is within rounding, the
    factorization would succeed or fail by chance.
    """
    lower, failed = dpotrf(covariance, lower=1)
    pivots = np.diagonal(lower) ** 2
    if failed or not (pivots > len(lower) * np.finfo(np.float64).eps * np.diagonal(covariance)).all():
        return np.full_like(covariance, np.nan)
    return dtrtri(lower, lower=1)[0].T


def _cholesky_factors(covariances: Array) -> Array:
    """Return the factors of (k, d, d)."""
    factors = np.empty(covariances.shape)
    for factor, covariance in zip(factors, covariances, strict=True):
        factor[:] = _cholesky_factor(covariance)
    return factors


def _squares(diff: Array) -> Array:
    """Squared lengths, (n,), summed in float64: float32 sums over hundreds of pixels would be inexact."""
    return np.square(diff).sum(axis=1, dtype=np.float64)


def _inverse_root(variances: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variances > 0, 1.0 / np.sqrt(variances), np.nan)


def _ratio(moments: Array, counts: Array) -> Array:
    """moments / counts along the first axis; components without rows give NaN, replaced by the M-step."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return moments / counts.reshape((-1,) + (1,) * (moments.ndim - 1))


def _symmetric(moments: Array) -> Array:
    """Average of matrices and their transposes, because the two triangles of a product differ in the last digit."""
    return 0.5 * (moments + np.swapaxes(moments, -1, -2))


def _full_moment(diff: Array, r: Array) -> Array:
    return (diff * r[:, None]).T @ diff


@cache
def _triangle(d: int) -> tuple[Array, Array]:
    """Rows and columns of a lower triangle, row by row."""
    return np.tril_indices(d)


def _lower(matrices: Array) -> Array:
    """(k, d (d + 1) / 2) lower triangles, row by row, of (k, d, d)."""
    i, j = _triangle(matrices.shape[-1])
    return matrices[:, i, j]


def _lower_outer(a: Array, b: Array) -> Array:
    i, j = _triangle(a.shape[1])
    return a[:, i] * b[:, j]


def _from_lower(packed: Array, d: int) -> Array:
    """Symmetric matrices (k, d, d)."""
    i, j = _triangle(d)
    full = np.empty((len(packed), d, d))
    full[:, i, j] = packed
    full[:, j, i] = packed
    return full


def _full_covariances(moments: Array, counts: Array, d: int, reg: float) -> Array:
    covariances = _from_lower(moments, d)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariances /= counts[:, None, None]
    covariances[:, np.arange(d), np.arange(d)] += reg
    return covariances


def _matrix_mahalanobis(diff: Array, factor: Array) -> Array:
    white = diff @ factor
    return np.einsum("nd,nd->n", white, white)


def _log_diagonal(factors: Array, d: int) -> Array:
    return np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)


def _matrix_trace(factors: Array, moments: Array) -> Array:
    return np.einsum("...ij,...ij->...", np.swapaxes(factors, -1, -2) @ moments, np.swapaxes(factors, -1, -2))


def _matrix_strain(factors: Array, changes: Array) -> Array:
    return np.square(np.swapaxes(factors, -1, -2) @ changes @ factors).sum(axis=(-2, -1))


def _tied_covariances(moments: Array, counts: Array, d: int, reg: float) -> Array:
    return _symmetric(moments) / counts.sum() + reg * np.eye(d)


FULL = Shape(
    outer=_lower_outer,
    tile_moment=_full_moment,
    packed=_lower,
    mahalanobis=_matrix_mahalanobis,
    factor=_cholesky_factors,
    log_det=_log_diagonal,
    trace=_by_blocks(lambda factors, moments: _matrix_trace(factors, _from_lower(moments, factors.shape[-1]))),
    strain=lambda factors, changes, d: _by_blocks(_matrix_strain)(factors, changes),
    covariances=_full_covariances,
    extremes=lambda covariances, k: _extreme_eigenvalues(covariances),
    traces=lambda covariances, k, d: np.trace(covariances, axis1=1, axis2=2),
    field=Field(("component", "feature", "feature_2"), POSITIVE_DEFINITE),
    per_component=True,
    min_rows=lambda d: d + 1,
    kind=PAIRS,
    lane_factors=lambda factors, k, d: packed(np.swapaxes(factors, 1, 2)),
    moments_shape=lambda k, d: (k, d * (d + 1) // 2),
    from_lanes=_lower,
    moments_of=lambda covariances, k, d: _lower(covariances),
    prior_rows=lambda dof, d: dof + d + 1,
    draw=lambda mean, covariance, n, rng: rng.multivariate_normal(mean, covariance, n),
)
TIED = Shape(
    outer=lambda a, b: a.T @ b,
    tile_moment=_full_moment,
    packed=lambda moments: moments.sum(axis=0),
    mahalanobis=_matrix_mahalanobis,
    factor=_cholesky_factor,
    log_det=_log_diagonal,
    trace=_matrix_trace,
    strain=lambda factor, change, d: _matrix_strain(factor, change),
    covariances=_tied_covariances,
    extremes=lambda covariance, k: np.repeat(_extreme_eigenvalues(covariance[None]), k, axis=0),
    traces=lambda covariance, k, d: np.full(k, np.trace(covariance)),
    field=Field(("feature", "feature_2"), POSITIVE_DEFINITE),
    per_component=False,
    min_rows=lambda d: 1,
    kind=NONE,
    lane_factors=lambda factor, k, d: np.tile(packed(factor.T[None]), (k, 1)),
    moments_shape=lambda k, d: (d, d),
    from_lanes=lambda lower: lower[0],
    moments_of=lambda covariance, k, d: k * covariance,
    prior_rows=lambda dof, d: dof + d + 1,
    draw=lambda mean, covariance, n, rng: rng.multivariate_normal(mean, covariance, n),
)
DIAG = Shape(
    outer=lambda a, b: a * b,
    tile_moment=lambda diff, r: r @ (diff * diff),
    packed=lambda moments: moments,
    mahalanobis=lambda diff, factor: _squares(diff * factor),
    factor=_inverse_root,
    log_det=lambda factors, d: np.log(factors).sum(axis=1),
    trace=lambda factors, moments: (factors * factors * moments).sum(axis=1),
    strain=lambda factors, changes, d: np.square(factors * factors * changes).sum(axis=1),
    covariances=lambda moments, counts, d, reg: _ratio(moments, counts) + reg,
    extremes=lambda covariances, k: np.stack([covariances.min(axis=1), covariances.max(axis=1)], axis=1),
    traces=lambda covariances, k, d: covariances.sum(axis=1),
    field=Field(("component", "feature"), POSITIVE),
    per_component=True,
    min_rows=lambda d: 2,
    kind=DIAGONAL,
    lane_factors=lambda factors, k, d: factors,
    moments_shape=lambda k, d: (k, d),
    from_lanes=lambda squares: squares[:, 0],
    moments_of=lambda covariances, k, d: covariances,
    prior_rows=lambda dof, d: dof + 2,
    draw=lambda mean, variance, n, rng: mean + rng.standard_normal((n, len(mean))) * np.sqrt(variance),
)
SPHERICAL = Shape(
    outer=lambda a, b: np.einsum("kd,kd->k", a, b),
    tile_moment=lambda diff, r: r @ _squares(diff),
    packed=lambda moments: moments,
    mahalanobis=lambda diff, factor: _squares(diff) * (factor * factor),
    factor=_inverse_root,
    log_det=lambda factors, d: d * np.log(factors),
    trace=lambda factors, moments: factors * factors * moments,
    strain=lambda factors, changes, d: d * np.square(factors * factors * changes),
    covariances=lambda moments, counts, d, reg: _ratio(moments, counts) / d + reg,
    extremes=lambda covariances, k: np.stack([covariances, covariances], axis=1),
    traces=lambda covariances, k, d: d * covariances,
    field=Field(("component",), POSITIVE),
    per_component=True,
    min_rows=lambda d: 2,
    kind=SPHERE,
    lane_factors=lambda factors, k, d: np.repeat(factors[:, None], d, axis=1),
    moments_shape=lambda k, d: (k,),
    from_lanes=lambda squares: squares[:, 0].sum(axis=1),
    moments_of=lambda covariances, k, d: d * covariances,
    prior_rows=lambda dof, d: (dof + 2) / d,
    draw=lambda mean, variance, n, rng: mean + rng.standard_normal((n, len(mean))) * np.sqrt(variance),
)
SHAPES = {"full": FULL, "tied": TIED, "diag": DIAG, "spherical": SPHERICAL}


def _extreme_eigenvalues(covariances: Array) -> Array:
    """(k, 2) smallest and largest eigenvalues of symmetric matrices (k, d, d); NaN where they are not finite."""
    extremes = np.full((len(covariances), 2), np.nan)
    for own in blocks(len(covariances), covariances[0].size):
        finite = np.isfinite(covariances[own]).all(axis=(1, 2))
        extremes[own][finite] = np.linalg.eigvalsh(covariances[own][finite])[:, [0, -1]]
    return extremes


def identity(shape: Shape, k: int, d: int) -> Array:
    """Return unit covariances."""
    return from_covariance(shape, np.eye(d), k)


def from_covariance(shape: Shape, covariance: Array, k: int) -> Array:
    """Return one full covariance (d, d) for all k components, in the shape's array."""
    d = len(covariance)
    narrow = {2: covariance, 1: np.diagonal(covariance), 0: np.trace(covariance) / d}
    target = shape.array_shape(k, d)
    per_component = target[1:] if shape.per_component else target
    return np.broadcast_to(narrow[len(per_component)], target).copy()


def full_matrix(covariance: Array) -> Array:
    """Return a covariance, whole or as its diagonal (d,), as (d, d)."""
    return np.diag(covariance) if covariance.ndim == 1 else covariance


def full_covariances(shape: Shape, covariances: Array, k: int, d: int) -> Array:
    """Return the shape's array as (k, d, d)."""
    wide = covariances if shape.per_component else covariances[None]
    if wide.ndim == 1:
        wide = np.repeat(wide[:, None], d, axis=1)
    if wide.ndim == 2:
        wide = wide[:, :, None] * np.eye(d)
    return np.broadcast_to(wide, (k, d, d))
