"""Gaussian mixture: pi_k = N_k/N, mu_k = sum r x / N_k, Sigma_k = sum r (x - mu_k)(x - mu_k)ᵀ / N_k.

log p(x, k) = log pi_k - (d log 2 pi + log|Sigma_k| + (x - mu_k)ᵀ Sigma_k⁻¹ (x - mu_k)) / 2
[Dempster, Laird and Rubin 1977; Bishop 2006, sec. 9.2]

Distances and moments are formed from x - mu_k, so that neither loses digits far from the origin or
in float32; a tile's moments are then moved, in float64, to the fixed reference point, where those
of all tiles, chunks and iterations add. A prior adds its own there (models/prior.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import tiles
from pipeline.errors import InputError, SingularCovariance
from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.cholesky import Moments
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import (
    MAX_RESETS,
    Mixture,
    MixtureStats,
    Reset,
    checked_arrays,
    checked_weights,
    map_weights,
    relative_square,
    share_with,
    weighted_total,
)
from pipeline.models.covariance import SHAPES, Shape, identity
from pipeline.models.prior import Prior
from pipeline.models.stats import Partial, Rows
from pipeline.models.words import Words

SCATTER_ROWS = 4096
LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass(frozen=True)
class GaussianParams:
    """weights : (k,).  means : (k, d).  covariances : scikit-learn's shape for the type.
    factors, eigenvalues : derived from the covariances once, so that no chunk has to; eigenvalues : (k, 2), extremes.
    """

    weights: Array
    means: Array
    covariances: Array
    factors: Array
    eigenvalues: Array

    def arrays(self) -> dict[str, Array]:
        """The parameters by name, without what is derived."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}


@dataclass(frozen=True)
class GaussianStats(MixtureStats):
    """Moments about the model's shift. sum_x : (k, d).  sum_xx : (k, d (d + 1) / 2) lower triangles, (d, d) of all rows
    (tied), (k, d) or (k,).
    """

    sum_x: Array
    sum_xx: Array


@dataclass(frozen=True)
class Gaussian(Mixture):
    """Hyperparameters of a Gaussian mixture; `fixed` names parts that are held; prior : None for maximum likelihood."""

    n_components: int
    shift: Array
    covariance_type: str = "full"
    reg_covar: float = 1e-6
    assignment: str = "soft"
    fixed: tuple[str, ...] = ()
    prior: Prior | None = None

    family: ClassVar[str] = "gaussian"
    words: ClassVar[Words] = Words("Gaussian mixture", "A mixture of {k} Gaussians")
    stats_class: ClassVar[type[MixtureStats]] = GaussianStats
    impossible_advice: ClassVar[str] = (
        "Its distance from every component overflows: rescale the data (preprocess: standardize)."
    )

    @property
    def shape(self) -> Shape:
        """The functions of the covariance type."""
        return SHAPES[self.covariance_type]

    @property
    def bounded(self) -> bool:
        """Whether a prior keeps covariances away from 0: then the objective is bounded, however few rows they have."""
        return self.prior is not None and self.prior.scale is not None

    @property
    def floor(self) -> float:
        """What an M-step adds to the diagonal: nothing under a prior of covariances, whose mode it would leave."""
        return 0.0 if self.bounded else self.reg_covar

    @property
    def least_rows(self) -> int:
        """Where covariances are held, or a prior bounds them from below, few rows do no harm; but without one row a
        component explains nothing, and under most priors never would again.
        """
        learned = "covariances" not in self.fixed
        return self.shape.min_rows(self.n_features) if learned and not self.bounded else 1

    def params(self, weights: Array, means: Array, covariances: Array) -> GaussianParams:
        """Parameters with their derived factors."""
        factors, extremes = self.shape.factor(covariances), self.shape.extremes(covariances, self.n_components)
        return GaussianParams(weights, means, covariances, factors, extremes)

    def log_joint(self, params: GaussianParams, x: Rows) -> Array:
        self._refuse_singular(params)
        return KERNELS.gaussian_log_joint(self._problem(params), x)

    def chunk_stats(self, params: GaussianParams, x: Rows, weight: Array | None) -> tuple[GaussianStats, Array]:
        self._refuse_singular(params)
        shape = self.shape
        sums = KERNELS.gaussian_pass(self._problem(params), x, weight)
        sum_x, sum_xx, by = sums.sum_x, sums.sum_xx, self.shift - sums.about
        if by.any():
            sum_x, sum_xx = _moved(shape, sums.sum_w, sum_x, sum_xx, by)
        if not shape.per_component:
            # The scatter of all rows is one matrix, so it is cheap to form it in float64 about the shift itself.
            sum_xx = self._scatter(x, weight)
        log_likelihood = weighted_total(weight, sums.log_norm)
        return GaussianStats(sums.sum_w, log_likelihood, sums.entropy, sum_x, sum_xx), sums.log_norm

    def route_shares(self, params: GaussianParams, dtype: np.dtype[Any]) -> dict[str, list[int]]:
        return KERNELS.gaussian_implementations(self._problem(params), dtype)

    def _scatter(self, x: Array, weight: Array | None) -> Array:
        """(d, d) weighted scatter about the shift."""
        total = np.zeros((self.n_features, self.n_features))
        for rows in tiles(len(x), SCATTER_ROWS):
            diff = np.subtract(x[rows], self.shift, dtype=np.float64)
            total += (diff if weight is None else diff * weight[rows, None]).T @ diff
        return total

    def _problem(self, params: GaussianParams) -> GaussianProblem:
        """What the kernels need, with c_k = λ_max(Σ_k⁻¹)(|μ_k|² + tr Σ_k) about the shift."""
        shape, k, d = self.shape, self.n_components, self.n_features
        with np.errstate(divide="ignore"):
            log_scale = np.log(params.weights) + shape.log_det(params.factors, d) - 0.5 * d * LOG_2PI
            far = ((params.means - self.shift) ** 2).sum(axis=1) + shape.traces(params.covariances, k, d)
            reach = far / np.maximum(params.eigenvalues[:, 0], 0.0)
            condition = params.eigenvalues[:, 1] / np.maximum(params.eigenvalues[:, 0], 0.0)
        hard = self.assignment == "hard"
        return GaussianProblem(shape, params.means, params.factors, log_scale, reach, condition, self.shift, hard)

    def stats_of_labels(self, x: Rows, labels: Array, weight: Array | None = None) -> GaussianStats:
        shape, k = self.shape, self.n_components
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        sum_w = np.bincount(np.maximum(labels, 0), weights=weights, minlength=k)
        moments = [Moments(shape, self.shift) for _ in range(k)]
        for rows in tiles(len(x), SCATTER_ROWS):
            tile = x[rows].astype(np.float64)  # how narrow components are is not known yet: float32 might lose them
            for c in range(k):
                moments[c].add(tile, np.where(labels[rows] == c, weights[rows], 0.0))
        sum_x = np.stack([m.sum_x for m in moments])
        return GaussianStats(sum_w, 0.0, 0.0, sum_x, shape.packed(np.stack([m.sum_xx for m in moments])))

    def m_step(self, stats: GaussianStats, params: GaussianParams | None) -> GaussianParams:
        held = params if params is not None else self._unit_params()
        weights = held.weights
        if "weights" not in self.fixed:
            weights = map_weights(stats.sum_w, 1.0 if self.prior is None else self.prior.weights)
        sum_w, sum_x, sum_xx = self._with_prior(stats)
        means = held.means
        if "means" not in self.fixed:
            means = np.where(sum_w[:, None] > 0, self.shift + _mean(sum_x, sum_w), held.means)
        covariances = held.covariances
        if "covariances" not in self.fixed:
            about_means = _moved(self.shape, sum_w, sum_x, sum_xx, means - self.shift)[1]
            covariances = self._covariances(about_means, stats.sum_w)
            empty = stats.sum_w <= 0
            if self.shape.per_component and not self.bounded and empty.any():
                covariances[empty] = held.covariances[empty]
        new = self.params(weights, means, covariances)
        return self._mended(new, stats) if params is None else new

    def _with_prior(self, stats: GaussianStats) -> tuple[Array, Array, Array]:
        """sum_w, sum_x and sum_xx, with those of the rows that the prior stands for."""
        if self.prior is None:
            return stats.sum_w, stats.sum_x, stats.sum_xx
        sum_w, sum_x, sum_xx = self.prior.pseudo_moments(self.shape, self.shift, self.n_components)
        return stats.sum_w + sum_w, stats.sum_x + sum_x, stats.sum_xx + sum_xx

    def _covariances(self, moments: Array, sum_w: Array) -> Array:
        """Covariances of moments about the means, the prior's among them. sum_w : (k,), of rows alone."""
        d = self.n_features
        rows = sum_w if self.prior is None else sum_w + self.prior.rows(self.shape, len(sum_w), d)
        return self.shape.covariances(moments, rows, d, self.floor)

    def log_prior(self, params: GaussianParams) -> float:
        if self.prior is None:
            return 0.0
        weights = None if "weights" in self.fixed else params.weights
        return self.prior.log_density(self.shape, weights, params.means, params.factors)

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

    def fisher_norm(self, stats: GaussianStats, params: GaussianParams, new: GaussianParams) -> float:
        """Σ_k Δπ²/π + N_k/N (Δμᵀ Σ⁻¹ Δμ + tr((Σ⁻¹ ΔΣ)²) / 2), and its root."""
        changes = (getattr(new, name) - getattr(params, name) for name in ("weights", "means", "covariances"))
        return self._length(stats, params, *changes)

    def change_norm(self, change: GaussianStats, stats: GaussianStats, params: GaussianParams) -> float:
        shape, d, total = self.shape, self.n_features, stats.sum_w.sum()
        first, second = _moved(shape, change.sum_w, change.sum_x, change.sum_xx, params.means - self.shift)
        means = first / stats.sum_w[:, None]
        weights = (change.sum_w - stats.sum_w * (change.sum_w.sum() / total)) / total
        covariances = shape.covariances(second, stats.sum_w, d, 0.0)
        growth = change.sum_w / stats.sum_w if shape.per_component else change.sum_w.sum(keepdims=True) / total
        covariances -= growth.reshape((-1,) + (1,) * (params.covariances.ndim - 1)) * params.covariances
        changes = {"weights": weights, "means": means, "covariances": covariances}
        held = {name: np.zeros_like(changes[name]) for name in self.fixed}
        return self._length(stats, params, **{**changes, **held})

    def _length(
        self, stats: GaussianStats, params: GaussianParams, weights: Array, means: Array, covariances: Array
    ) -> float:
        """Fisher norm of changes of the parameters."""
        shape, share = self.shape, stats.sum_w / stats.sum_w.sum()
        distances = shape.trace(params.factors, shape.outer(share[:, None] * means, means))
        strains = share * shape.strain(params.factors, covariances, self.n_features)
        squares = relative_square(weights, params.weights).sum() + np.sum(distances) + 0.5 * strains.sum()
        return float(np.sqrt(squares))

    def feasible(self, stats: GaussianStats, known: GaussianStats) -> GaussianStats | None:
        return stats if (stats.sum_w > 0).all() else None

    def collapsed(self, params: GaussianParams, sum_w: Array) -> list[tuple[int, str]]:
        """Components that are collapsed, and why (SPEC: fewer than min_rows rows, or no width)."""
        learned, least = "covariances" not in self.fixed, self.least_rows
        found = []
        broken = self._broken(params)
        # Moments about the shift, seen from the mean, keep this much of their rounding.
        rounding = 16 * np.finfo(np.float64).eps * ((params.means - self.shift) ** 2).max(axis=1)
        if not self.shape.per_component:
            rounding = np.full(self.n_components, rounding.max())
        width = params.eigenvalues[:, 1] if learned else np.full(self.n_components, np.inf)
        for k in range(self.n_components):
            if sum_w[k] < least:
                found.append((k, f"{sum_w[k]:.3g} effective rows, fewer than {least}"))
            elif broken[k]:
                found.append((k, f"covariance has no Cholesky factor (largest eigenvalue {width[k]:.3g})"))
            elif not width[k] > 2 * self.floor:
                found.append((k, f"largest covariance eigenvalue {width[k]:.3g} <= 2 x reg_covar"))
            elif width[k] <= rounding[k]:
                found.append(
                    (k, f"largest covariance eigenvalue {width[k]:.3g} is lost in rounding ({rounding[k]:.3g})")
                )
        return found

    def _broken(self, params: GaussianParams) -> Array:
        """(k,) bool: components whose covariance has no Cholesky factor."""
        factors = params.factors.reshape(self.n_components if self.shape.per_component else 1, -1)
        return np.broadcast_to(~np.isfinite(factors).all(axis=1), (self.n_components,))

    def _mended(self, params: GaussianParams, stats: GaussianStats) -> GaussianParams:
        """A start in which covariances of too few rows are replaced by the average of the others."""
        sick = np.flatnonzero(self._broken(params))
        if not len(sick) or not self.shape.per_component:
            return params
        covariances = params.covariances.copy()
        covariances[sick] = self._pooled(params, stats, sick)
        return self.params(params.weights, params.means, covariances)

    def _refuse_singular(self, params: GaussianParams) -> None:
        broken = np.flatnonzero(self._broken(params))
        if len(broken):
            raise SingularCovariance(
                f"component {broken[0]}: its covariance is not positive definite. Features are constant or follow from "
                f"others, or it has too few rows: raise model.reg_covar, now {self.reg_covar:g}, reduce the features "
                "(preprocess: pca), or lower model.n_components."
            )

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
        shape = self.shape
        weights, means, covariances = new.weights, new.means.copy(), new.covariances.copy()
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
            weights = share_with(weights, moved)
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
        checked_weights(values["weights"])
        covariances = values["covariances"]
        if self.covariance_type in ("full", "tied"):
            apart = np.abs(covariances - np.swapaxes(covariances, -1, -2)).max()
            if apart > 1e-9 * np.abs(covariances).max():
                raise InputError(
                    f"initial covariances: differ from their transposes by {apart:.3g}; give symmetric ones."
                )
        params = self.params(**values)
        if self._broken(params).any():
            k = int(self._broken(params).argmax())
            raise InputError(
                f"initial covariances: that of component {k} is not positive definite; give positive eigenvalues."
            )
        return params

    def reorder(self, params: GaussianParams, order: Array) -> GaussianParams:
        covariances = params.covariances[order] if self.shape.per_component else params.covariances
        return self.params(params.weights[order], params.means[order], covariances)

    def positions(self, params: GaussianParams) -> Array:
        return params.means


def _mean(sum_x: Array, sum_w: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sum_x / sum_w[:, None]


def _moved(shape: Shape, counts: Array, sum_x: Array, sum_xx: Array, by: Array) -> tuple[Array, Array]:
    """First and second moments about points that lie `by` further on. counts : (k,).  sum_x, by : (k, d)."""
    cross = shape.outer(by, sum_x) + shape.outer(sum_x, by)
    return sum_x - counts[:, None] * by, sum_xx - cross + shape.outer(by * counts[:, None], by)
