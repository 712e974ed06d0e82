"""Gaussian mixture: pi_k = N_k/N, mu_k = sum r x / N_k, Sigma_k = sum r (x - mu_k)(x - mu_k)ᵀ / N_k.

log p(x, k) = log pi_k - (d log 2 pi + log|Sigma_k| + (x - mu_k)ᵀ Sigma_k⁻¹ (x - mu_k)) / 2
[Dempster, Laird and Rubin 1977; Bishop 2006, sec. 9.2]

Distances and moments are formed from x - mu_k, so that neither loses digits far from the origin or
in float32; a tile's moments are then moved, in float64, to the fixed reference point, where those
of all tiles, chunks and iterations add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.models.base import MAX_RESETS, Mixture, MixtureStats, Reset, checked_arrays, compute_dtype
from pipeline.models.covariance import SHAPES, Shape, identity
from pipeline.models.posterior import Posterior
from pipeline.models.stats import Array, Partial, Rows

LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass(frozen=True)
class GaussianParams:
    """weights : (k,).  means : (k, d).  covariances : scikit-learn's shape for the type.
    factors : derived from the covariances once, so that no chunk has to.
    """

    weights: Array
    means: Array
    covariances: Array
    factors: Array

    def arrays(self) -> dict[str, Array]:
        """The parameters by name, without what is derived."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}


@dataclass(frozen=True)
class GaussianStats(MixtureStats):
    """Moments about the model's shift. sum_x : (k, d).  sum_xx : the type's shape; tied: (d, d), of all rows."""

    sum_x: Array
    sum_xx: Array


@dataclass(frozen=True)
class Gaussian(Mixture):
    """Hyperparameters of a Gaussian mixture; `fixed` names parts that are held."""

    n_components: int
    shift: Array
    covariance_type: str = "full"
    reg_covar: float = 1e-6
    assignment: str = "soft"
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "gaussian"
    impossible_advice: ClassVar[str] = (
        "Its distance from every component overflows: rescale the data (preprocess: standardize)."
    )

    @property
    def shape(self) -> Shape:
        """The functions of the covariance type."""
        return SHAPES[self.covariance_type]

    def params(self, weights: Array, means: Array, covariances: Array) -> GaussianParams:
        """Parameters with their derived factors."""
        return GaussianParams(weights, means, covariances, self.shape.factor(covariances))

    def log_joint(self, params: GaussianParams, x: Rows) -> Array:
        shape, d = self.shape, self.n_features
        x = x.astype(compute_dtype(x.dtype), copy=False)
        out = np.empty((len(x), self.n_components))
        for k, mean in enumerate(params.means):
            factor = params.factors[k] if shape.per_component else params.factors
            out[:, k] = shape.mahalanobis(_difference(x, mean), factor.astype(x.dtype))
        with np.errstate(divide="ignore"):
            log_weights = np.log(params.weights)
        return (log_weights + shape.log_det(params.factors, d) - 0.5 * d * LOG_2PI) - 0.5 * out

    def tile_stats(
        self, centres: GaussianParams | None, x: Rows, resp: Array, weight: Array, post: Posterior
    ) -> GaussianStats:
        shape, k_total, d = self.shape, self.n_components, self.n_features
        about = np.broadcast_to(self.shift, (k_total, d)) if centres is None else centres.means
        dtype = compute_dtype(x.dtype)
        x = x.astype(dtype, copy=False)
        # Below the smallest normal number a responsibility adds nothing, and would slow the products down.
        r = np.where(resp < np.finfo(dtype).tiny, 0.0, resp).astype(dtype)
        sum_w, sum_x = resp.sum(axis=0), np.empty((k_total, d))
        if shape.per_component:
            sum_xx = np.empty(shape.array_shape(k_total, d))
            for k in range(k_total):
                rows = np.flatnonzero(r[:, k])
                few = 2 * len(rows) < len(x)  # where most rows are elsewhere, gathering the others pays
                r_k = r[rows, k] if few else r[:, k]
                diff = _difference(x[rows] if few else x, about[k])
                sum_x[k] = r_k @ diff
                sum_xx[k] = shape.tile_moment(diff, r_k)
            sum_x, sum_xx = _moved(shape, sum_w, sum_x, sum_xx, self.shift - about)
        else:
            # The scatter of all rows is one matrix, so it is cheap to form it in float64 about the shift itself.
            diff = np.subtract(x, self.shift, dtype=np.float64)
            sum_x = resp.T @ diff
            sum_xx = shape.tile_moment(diff, weight)
        return GaussianStats(sum_w, float(weight @ post.log_norm), float(weight @ post.entropy), sum_x, sum_xx)

    def m_step(self, stats: GaussianStats, params: GaussianParams | None) -> GaussianParams:
        shape, d = self.shape, self.n_features
        held = params if params is not None else self._unit_params()
        total = stats.sum_w.sum()
        live = stats.sum_w > 0
        weights = held.weights if "weights" in self.fixed else stats.sum_w / total
        means = held.means
        if "means" not in self.fixed:
            means = np.where(live[:, None], self.shift + _mean(stats), held.means)
        covariances = held.covariances
        if "covariances" not in self.fixed:
            about_means = _moved(shape, stats.sum_w, stats.sum_x, stats.sum_xx, means - self.shift)[1]
            covariances = shape.covariances(about_means, stats.sum_w, d, self.reg_covar)
            if shape.per_component and not live.all():
                covariances[~live] = held.covariances[~live]
        return self.params(weights, means, covariances)

    def expected_log_joint(self, stats: GaussianStats, params: GaussianParams) -> float:
        shape, d = self.shape, self.n_features
        moments = _moved(shape, stats.sum_w, stats.sum_x, stats.sum_xx, params.means - self.shift)[1]
        live = stats.sum_w > 0  # 0 log 0 = 0
        with np.errstate(divide="ignore", invalid="ignore"):
            per_row = np.log(params.weights) + shape.log_det(params.factors, d) - 0.5 * d * LOG_2PI
        distances = shape.trace(params.factors, moments)
        if shape.per_component:
            distances = distances[live]
        return float((stats.sum_w[live] * per_row[live]).sum() - 0.5 * np.sum(distances))

    def collapsed(self, params: GaussianParams, sum_w: Array) -> list[tuple[int, str]]:
        """Components that are collapsed, and why (SPEC: fewer than min_rows rows, or no width)."""
        shape, d = self.shape, self.n_features
        least = shape.min_rows(d)
        found = []
        learned = "covariances" not in self.fixed
        factors = (
            params.factors.reshape(self.n_components, -1) if shape.per_component else params.factors.reshape(1, -1)
        )
        broken = np.broadcast_to(~np.isfinite(factors).all(axis=1), (self.n_components,))
        width = shape.largest(params.covariances, self.n_components) if learned else np.full(self.n_components, np.inf)
        for k in range(self.n_components):
            if learned and sum_w[k] < least:
                found.append((k, f"{sum_w[k]:.3g} effective rows, fewer than {least}"))
            elif broken[k]:
                found.append((k, f"covariance has no Cholesky factor (largest eigenvalue {width[k]:.3g})"))
            elif not width[k] > 2 * self.reg_covar:
                found.append((k, f"largest covariance eigenvalue {width[k]:.3g} <= 2 x reg_covar"))
        return found

    def revive(
        self, new: GaussianParams, params: GaussianParams, partial: Partial, resets: Array
    ) -> tuple[GaussianParams, list[Reset]]:
        """Each collapsed component moves to the next worst-fit row, with the pooled covariance and weight 1/K.

        After MAX_RESETS it stays where it is (keeping its last sound covariance): so K = N still ends.
        """
        stats, worst = partial.stats, partial.worst
        collapsed = self.collapsed(new, stats.sum_w)
        if not collapsed:
            return new, []
        shape, k_total = self.shape, self.n_components
        weights, means, covariances = new.weights.copy(), new.means.copy(), new.covariances.copy()
        sick = np.array([k for k, _ in collapsed])
        pooled = self._pooled(new, stats, sick)
        done: list[Reset] = []
        places = iter(np.asarray(worst.x, dtype=np.float64)) if "means" not in self.fixed else iter(())
        for k, reason in collapsed:
            place = next(places, None) if resets[k] < MAX_RESETS else None
            done.append(Reset(k, reason, place is not None))
            if place is not None:
                means[k] = place
                if shape.per_component and "covariances" not in self.fixed:
                    covariances[k] = pooled
            elif shape.per_component and not np.isfinite(new.factors[k]).all():
                covariances[k] = params.covariances[k]
        if not shape.per_component and not np.isfinite(new.factors).all():
            covariances = params.covariances
        if "weights" not in self.fixed:
            moved = np.array([reset.component for reset in done if reset.done], dtype=int)
            weights[moved] = 0.0
            rest = weights.sum()
            weights *= (1.0 - len(moved) / k_total) / rest if rest > 0 else 0.0
            weights[moved] = 1.0 / k_total if rest > 0 else 1.0 / len(moved)
        return self.params(weights, means, covariances), done

    def _pooled(self, params: GaussianParams, stats: GaussianStats, sick: Array) -> Array:
        """The average covariance of the sound components, or of all rows when there is none."""
        if not self.shape.per_component:
            return params.covariances
        share = stats.sum_w.copy()
        share[sick] = 0.0
        if share.sum() > 0:
            return np.tensordot(share / share.sum(), np.nan_to_num(params.covariances), axes=1)
        counts, sums = stats.sum_w.sum(keepdims=True), stats.sum_x.sum(axis=0, keepdims=True)
        moments = _moved(self.shape, counts, sums, stats.sum_xx.sum(axis=0, keepdims=True), sums / counts)[1]
        return self.shape.covariances(moments, counts, self.n_features, self.reg_covar)[0]

    def _unit_params(self) -> GaussianParams:
        k, d = self.n_components, self.n_features
        return self.params(np.full(k, 1.0 / k), np.tile(self.shift, (k, 1)), identity(self.shape, k, d))

    def n_free_parameters(self) -> int:
        """As scikit-learn's BIC counts them; held parts are not counted."""
        k, d = self.n_components, self.n_features
        counts = {"weights": k - 1, "means": k * d, "covariances": self.shape.n_parameters(k, d)}
        return sum(count for part, count in counts.items() if part not in self.fixed)

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> GaussianParams:
        k, d = self.n_components, self.n_features
        shapes = {"weights": (k,), "means": (k, d), "covariances": self.shape.array_shape(k, d)}
        values = checked_arrays(arrays, shapes)
        if (values["weights"] < 0).any() or not np.isclose(values["weights"].sum(), 1.0):
            raise InputError(
                f"weights: sum {values['weights'].sum():.6g}, expected non-negative weights that sum to 1."
            )
        params = self.params(**values)
        if not np.isfinite(params.factors).all():
            raise InputError("covariances: not positive definite; give covariances with positive eigenvalues.")
        return params

    def reorder(self, params: GaussianParams, order: Array) -> GaussianParams:
        if self.shape.per_component:
            params = replace(params, covariances=params.covariances[order], factors=params.factors[order])
        return replace(params, weights=params.weights[order], means=params.means[order])

    def positions(self, params: GaussianParams) -> Array:
        return params.means


def _mean(stats: GaussianStats) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return stats.sum_x / stats.sum_w[:, None]


def _difference(x: Array, mean: Array) -> Array:
    """x - mean in x's dtype, float32 or float64, as exact as it allows.

    In float32 the mean is subtracted in two parts, so that its own rounding does not count: a row close
    to the mean loses nothing, however far both are from the origin.
    """
    high = mean.astype(x.dtype)
    diff = x - high
    if x.dtype != np.float64:
        diff -= (mean - high).astype(x.dtype)
    return diff


def _moved(shape: Shape, counts: Array, sum_x: Array, sum_xx: Array, by: Array) -> tuple[Array, Array]:
    """First and second moments about points that lie `by` further on. counts : (k,).  sum_x, by : (k, d)."""
    cross = shape.outer(by, sum_x) + shape.outer(sum_x, by)
    return sum_x - counts[:, None] * by, sum_xx - cross + shape.outer(by * counts[:, None], by)
