"""Mixtures of Gaussians: mu_k = sum r x / N_k, Sigma_k = sum r (x - mu_k)(x - mu_k)ᵀ / N_k.

log p(x | k) = -(d log 2 pi + log|Sigma_k| + (x - mu_k)ᵀ Sigma_k⁻¹ (x - mu_k)) / 2
[Dempster, Laird and Rubin 1977; Bishop 2006, sec. 9.2]

Distances and moments use x - mu_k, so that neither loses digits far from the origin or in float32. The moments of a tile
are then moved, in float64, to the fixed reference point, where those of all tiles, chunks and iterations add. A component
that is too narrow for its distance from that point has one of its own, its mean (models/moments.py). A prior adds its own
moments there (models/prior.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Option

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tiles
from pipeline.config import OneOrMore
from pipeline.errors import SingularCovariance
from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.cholesky import Moments
from pipeline.models.clusters import Summary, reference
from pipeline.models.collapse import mended, pooled, without_width
from pipeline.models.component import OfSums, Pass
from pipeline.models.covariance import SHAPES, Shape, from_covariance, full_matrix, identity
from pipeline.models.deconvolution import OfRowsWithErrors
from pipeline.models.family import ClusterSection
from pipeline.models.incomplete import OfIncompleteRows
from pipeline.models.information import ScoreProducts
from pipeline.models.mixture import Mixture
from pipeline.models.moments import (
    SCATTER_ROWS,
    Frame,
    Gaussians,
    GaussianStats,
    far_apart,
    resolved,
    rounding_of,
    scatter,
)
from pipeline.models.noise import NoisyMixture
from pipeline.models.prior import Adapted, Prior, PriorOption
from pipeline.models.schema import Field, Fields
from pipeline.models.sizes import OfShape
from pipeline.models.words import Words

LOG_2PI = float(np.log(2.0 * np.pi))


@stored
@dataclass(frozen=True)
class Gaussian(OfShape, OfSums):
    """Gaussian components. fixed : fields that stay at their initial values.  prior : None for maximum likelihood."""

    n_components: int
    shift: Array
    covariance_type: str = "full"
    reg_covar: float = 1e-6
    fixed: tuple[str, ...] = ()
    prior: Prior | Adapted | None = None

    family: ClassVar[str] = "gaussian"
    words: ClassVar[Words] = Words("Gaussian mixture", "A mixture of {k} Gaussians")
    location: ClassVar[str] = "means"
    spread: ClassVar[str] = "covariances"
    halves: ClassVar[bool] = True
    born: ClassVar[bool] = True
    impossible_advice: ClassVar[str] = (
        "Its distance from every component overflows: rescale the data (preprocess: standardize)."
    )

    @property
    def shape(self) -> Shape:
        """The functions of the covariance type."""
        return SHAPES[self.covariance_type]

    @property
    def fields(self) -> Fields:
        return {"means": Field(("component", "feature")), self.spread: self.shape.field}

    def facts(self) -> dict[str, Any]:
        return {"covariance_type": self.covariance_type, "reg_covar": self.reg_covar}

    @property
    def bounded(self) -> bool:
        """Whether a prior bounds covariances away from 0, and so the objective."""
        return self.prior is not None and self.prior.bounds

    @property
    def floor(self) -> float:
        """What an M-step adds to the diagonal: 0 under a prior of covariances, whose mode it would miss."""
        return 0.0 if self.bounded else self.reg_covar

    @property
    def least_rows(self) -> int:
        """With fixed covariances, or a prior that bounds them, few rows do no harm; but less than one row explains nothing."""
        if self.prior is not None and self.bounded:
            return self.prior.least_rows
        return 1 if self.spread in self.fixed else self.shape.min_rows(self.n_features)

    def theta(self, **arrays: Array) -> Gaussians:
        means, covariances = arrays["means"], arrays["covariances"]
        factors, extremes = self.shape.factor(covariances), self.shape.extremes(covariances, self.n_components)
        by = means - self.shift
        far = far_apart(by, self.shape.precisions(factors, *by.shape), self.reg_covar)
        by_far = np.where(far[:, None], by, 0.0) if far.any() else None
        return Gaussians(means, covariances, factors, extremes, by=by_far)

    def log_joint(self, theta: Gaussians, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        self._refuse_singular(theta)
        return np.asarray(kernels.gaussian_log_joint(self._problem(theta, log_weights, False), x))

    def near_log_joint(self, theta: Gaussians, log_weights: Array, x: Matrix, ranks: int, kernels: Any) -> Array:
        found = kernels.gaussian_near_joint(self._problem(theta, log_weights, False), x, ranks)
        return self.log_joint(theta, log_weights, x, kernels) if found is None else np.asarray(found)

    def e_step(
        self, theta: Gaussians, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any
    ) -> Pass:
        self._refuse_singular(theta)
        if theta.by is not None and not self.shape.per_component:  # of one scatter for all rows no digits would be left
            return super().e_step(theta, log_weights, x, weight, hard, kernels)
        sums = kernels.gaussian_pass(self._problem(theta, log_weights, hard), x, weight)
        sum_x, sum_xx, by = sums.sum_x, sums.sum_xx, self._points(theta.by) - sums.about
        if by.any():
            sum_x, sum_xx = self.shape.moved(sums.sum_w, sum_x, sum_xx, by)
        if not self.shape.per_component:
            # The scatter of all rows is one matrix, so it is cheap to form it in float64 about the shift itself.
            sum_xx = scatter(x, weight, self.shift)
        stats = GaussianStats(sum_x, sum_xx, frame=Frame.at(theta.by, sums.sum_w, self.covariance_type))
        return Pass(sums.log_norm, sums.sum_w, stats, sums.entropy, 0.0, sums.skipped)

    def about_means(self, theta: Gaussians, sum_w: Array, sum_x: Array, sum_xx: Array) -> GaussianStats:
        """Return statistics from moments about the means."""
        moved = self.shape.moved(sum_w, sum_x, sum_xx, self._points(theta.by) - theta.means)
        return GaussianStats(*moved, frame=Frame.at(theta.by, sum_w.copy(), self.covariance_type))

    def _points(self, by: Array | None) -> Array:
        """The points that moments are about, (d,) or (k, d). by : as in `Gaussians` and `Frame`."""
        return self.shift if by is None else self.shift + by

    def implementations(self, theta: Gaussians, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        return dict(kernels.gaussian_implementations(self._problem(theta, np.zeros(1), False), dtype))

    def _problem(self, theta: Gaussians, log_weights: Array, hard: bool) -> GaussianProblem:
        """The input of the kernels, with c_k = λ_max(Σ_k⁻¹)(|μ_k|² + tr Σ_k) about the shift."""
        shape, k, d = self.shape, self.n_components, self.n_features
        with np.errstate(divide="ignore"):
            log_scale = log_weights + shape.log_det(theta.factors, d) - 0.5 * d * LOG_2PI
            far = ((theta.means - self.shift) ** 2).sum(axis=1) + shape.traces(theta.covariances, k, d)
            reach = far / np.maximum(theta.eigenvalues[:, 0], 0.0)
            condition = theta.eigenvalues[:, 1] / np.maximum(theta.eigenvalues[:, 0], 0.0)
        return GaussianProblem(
            shape, theta.means, theta.factors, log_scale, reach, condition, self.shift, hard, theta.covariances
        )

    def statistics(self, theta: Gaussians | None, x: Matrix, resp: Array) -> GaussianStats:
        """By component; fits use compiled passes."""
        by = None if theta is None else theta.by
        moments = self._moments(by)
        for one, own in zip(moments, resp.T, strict=True):
            one.add(x.astype(np.float64), own)
        return replace(self._stacked(moments), frame=Frame.at(by, resp.sum(axis=0), self.covariance_type))

    def _moments(self, by: Array | None) -> list[Moments]:
        points = np.broadcast_to(self._points(by), (self.n_components, self.n_features))
        return [Moments(self.shape, point) for point in points]

    def label_statistics(self, x: Matrix, labels: Array, weight: Array) -> GaussianStats:
        moments = self._moments(None)
        for rows in tiles(len(x), SCATTER_ROWS):
            tile = x[rows].astype(np.float64)  # how narrow components are is not known yet: float32 might lose them
            for c, one in enumerate(moments):
                one.add(tile, np.where(labels[rows] == c, weight[rows], 0.0))
        return self._stacked(moments)

    def _stacked(self, moments: list[Moments]) -> GaussianStats:
        sum_x, sum_xx = np.stack([m.sum_x for m in moments]), np.stack([m.sum_xx for m in moments])
        return GaussianStats(sum_x, self.shape.packed(sum_xx))

    def m_step(self, stats: GaussianStats, sum_w: Array, theta: Gaussians | None) -> Gaussians:
        k, d = self.n_components, self.n_features
        before = theta or self.theta(means=np.tile(self.shift, (k, 1)), covariances=identity(self.shape, k, d))
        counts, sum_x, sum_xx = self._with_prior(stats, sum_w)
        means, points = before.means, self._points(stats.by)
        if "means" not in self.fixed:
            with np.errstate(divide="ignore", invalid="ignore"):
                means = np.where(counts[:, None] > 0, points + sum_x / counts[:, None], before.means)
        if self.spread in self.fixed:
            return self.theta(means=means, covariances=before.covariances)
        about_means = self.shape.moved(counts, sum_x, sum_xx, means - points)[1]
        covariances = self._covariances(about_means, sum_w)
        empty = sum_w <= 0
        if self.shape.per_component and not self.bounded and empty.any():
            covariances[empty] = before.covariances[empty]
        rounding = rounding_of(means - points, self.shape)
        new = resolved(self, self.theta(means=means, covariances=covariances), rounding)
        return mended(self, new, stats, sum_w) if theta is None else new

    def _with_prior(self, stats: GaussianStats, sum_w: Array) -> tuple[Array, Array, Array]:
        """Zeroth, first and second moments with the pseudo-rows of the prior."""
        counts = self._zeroth(stats, sum_w)
        if self.prior is None:
            return counts, stats.sum_x, stats.sum_xx
        more_w, more_x, more_xx = self.prior.pseudo_moments(self.shape, self._points(stats.by), self.n_components)
        return counts + more_w, stats.sum_x + more_x, stats.sum_xx + more_xx

    def _zeroth(self, stats: Any, sum_w: Array) -> Array:
        """(k,) zeroth moments: sums of what rows count in `sum_x` and `sum_xx`."""
        return sum_w

    def _covariances(self, moments: Array, sum_w: Array) -> Array:
        """Covariances from moments about the means, with the prior's. sum_w : (k,), of rows alone."""
        d = self.n_features
        rows = sum_w if self.prior is None else sum_w + self.prior.rows(self.shape, len(sum_w), d)
        return self.shape.covariances(moments, rows, d, self.floor)

    def log_prior(self, theta: Gaussians) -> float:
        return 0.0 if self.prior is None else self.prior.log_density(self.shape, theta.means, theta.factors)

    def expected_log_densities(self, theta: Gaussians, sum_w: Array, stats: GaussianStats) -> Array:
        by, live = theta.means - self._points(stats.by), sum_w > 0
        moments = self.shape.moved(self._zeroth(stats, sum_w), stats.sum_x, stats.sum_xx, by)[1]
        per_row = self.shape.log_det(theta.factors, self.n_features) - 0.5 * self.n_features * LOG_2PI
        distances = self.shape.trace(theta.factors, moments)  # of all components together where they share a covariance
        own = np.where(live, distances, 0.0) if self.shape.per_component else distances / len(sum_w)
        return np.where(live, sum_w * per_row, 0.0) - 0.5 * own

    def step_squares(self, stats: GaussianStats, sum_w: Array, theta: Gaussians, new: Gaussians) -> tuple[float, ...]:
        """N_k/N (Δμᵀ Σ⁻¹ Δμ + tr((Σ⁻¹ ΔΣ)²) / 2), summed."""
        counts = self._zeroth(stats, sum_w)
        return self._squares(counts, sum_w, theta, new.means - theta.means, new.covariances - theta.covariances)

    def change_squares(
        self, change: GaussianStats, change_w: Array, stats: GaussianStats, sum_w: Array, theta: Gaussians
    ) -> tuple[float, ...]:
        shape, d, total = self.shape, self.n_features, sum_w.sum()
        counts, by = self._zeroth(stats, sum_w), theta.means - self._points(change.by)
        first, second = shape.moved(self._zeroth(change, change_w), change.sum_x, change.sum_xx, by)
        means = first / counts[:, None]
        covariances = shape.covariances(second, sum_w, d, 0.0)
        growth = change_w / sum_w if shape.per_component else change_w.sum(keepdims=True) / total
        covariances -= growth.reshape((-1,) + (1,) * (theta.covariances.ndim - 1)) * theta.covariances
        if "means" in self.fixed:
            means = np.zeros_like(means)
        if self.spread in self.fixed:
            covariances = np.zeros_like(covariances)
        return self._squares(counts, sum_w, theta, means, covariances)

    def _squares(self, counts: Array, sum_w: Array, theta: Gaussians, means: Array, covariances: Array) -> Any:
        """Terms of the squared Fisher norm of changes of the parameters, floats."""
        shape, total = self.shape, sum_w.sum()
        distances = shape.trace(theta.factors, shape.outer((counts / total)[:, None] * means, means))
        strains = sum_w / total * shape.strain(theta.factors, covariances, self.n_features)
        return np.sum(distances), 0.5 * strains.sum()

    def collapsed(self, theta: Gaussians, sum_w: Array) -> list[tuple[int, str]]:
        return without_width(self, theta, sum_w, self.spread not in self.fixed)

    def broken(self, theta: Gaussians) -> Array:
        """(k,) bool: components whose covariance has no Cholesky factor."""
        factors = theta.factors.reshape(self.n_components if self.shape.per_component else 1, -1)
        return np.broadcast_to(~np.isfinite(factors).all(axis=1), (self.n_components,))

    def score_products(self, model: Any, params: Any, fully: bool) -> ScoreProducts:
        return ScoreProducts(model, params, fully and self.spread not in self.fixed)

    def _refuse_singular(self, theta: Gaussians) -> None:
        broken = np.flatnonzero(self.broken(theta))
        if len(broken):
            raise SingularCovariance(
                f"component {broken[0]}: its covariance is not positive definite. Features are constant or follow from "
                f"others, or it has too few rows: raise model.reg_covar, now {self.reg_covar:g}, reduce the features "
                "(preprocess: pca), or lower model.n_components."
            )

    def start_at(self, rows: Array, summary: Summary | None) -> Gaussians:
        """Components at the rows, with the covariance of all rows."""
        k, d = self.n_components, self.n_features
        if self.spread in self.fixed or summary is None:
            covariances = identity(self.shape, k, d)
        else:
            floor = self.reg_covar * np.eye(d)
            covariances = from_covariance(self.shape, full_matrix(summary.covariance) + floor, k)
        return self.theta(means=np.asarray(rows, dtype=np.float64), covariances=covariances)

    def reset(
        self,
        new: Gaussians,
        old: Gaussians,
        stats: GaussianStats,
        sum_w: Array,
        collapsed: Array,
        places: Mapping[int, Array],
    ) -> Gaussians:
        """With the pooled covariance; a component that stays has the last covariance with a Cholesky factor."""
        means, covariances = new.means.copy(), new.covariances.copy()
        per_component, learned = self.shape.per_component, self.spread not in self.fixed
        average = pooled(self, new, stats, sum_w, collapsed)
        for k in collapsed:
            if k in places:
                means[k] = places[k]
                if per_component and learned:
                    covariances[k] = average
            elif per_component and not np.isfinite(new.factors[k]).all():
                covariances[k] = old.covariances[k]
        if not per_component and not np.isfinite(new.factors).all():
            covariances = old.covariances
        return self.theta(means=means, covariances=covariances)

    def with_missing(self) -> Gaussian:
        return IncompleteGaussian(**vars(self))

    def with_errors(self) -> Gaussian:
        return DeconvolvedGaussian(**vars(self))

    def sample(self, theta: Gaussians, labels: Array, rng: np.random.Generator) -> Array:
        x = np.empty((len(labels), self.n_features))
        for k in range(self.n_components):
            own = np.flatnonzero(labels == k)
            covariance = theta.covariances[k] if self.shape.per_component else theta.covariances
            x[own] = self.shape.draw(theta.means[k], covariance, len(own), rng)
        return x


@stored
@dataclass(frozen=True)
class IncompleteGaussian(OfIncompleteRows, Gaussian):
    """Gaussian components of rows with missing entries."""


@stored
@dataclass(frozen=True)
class DeconvolvedGaussian(OfRowsWithErrors, Gaussian):
    """Gaussian components of rows with known errors."""


class GaussianSection(ClusterSection):
    """A mixture of Gaussians."""

    family: Literal["gaussian"] = Option("gaussian", description="a mixture of Gaussians")
    covariance_type: OneOrMore[Literal["full", "tied", "diag", "spherical"]] = Option(
        ("full",), description="the shape of its covariances, or a list to choose from"
    )
    reg_covar: float = Option(
        1e-6,
        ge=0,
        description="added to each covariance's diagonal after an M-step; under a prior of covariances, to the covariance "
        "that its scale comes from",
    )
    prior: PriorOption = Option(
        None,
        description="conjugate priors; null: none, maximum likelihood; auto: Fraley and Raftery's; or",
    )
    noise: Literal["uniform"] | None = Option(
        None,
        description="uniform: one more component of constant density over the box of all rows, whose rows have the label -2",
    )
    fixed: list[Literal["weights", "means", "covariances"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("gmm",)
    words: ClassVar[Words] = Gaussian.words
    second_moments: ClassVar[Literal["matrix", "variances", "none"]] = "matrix"
    takes_missing: ClassVar[bool] = True
    takes_errors: ClassVar[bool] = True
    can_prune: ClassVar[bool] = True
    has_standard_errors: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {"data": {"source": "images", "path": "photographs"}}
    template_help: ClassVar[str] = (
        "Set data.source and data.path to your data, and model.n_components to how many components you look for. As it is, it "
        "fits the 8 x 8 patches of two photographs that are installed with scikit-learn."
    )

    @property
    def needs_box(self) -> bool:
        return self.noise is not None

    @property
    def from_run(self) -> str | None:
        return None if self.prior is None else self.prior.from_run

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k], [covariance_type] = self.n_components, self.covariance_type
        # Rounded to float32, the reference point is the same in either precision, and moments need not be moved to it.
        center = reference(summary)
        with np.errstate(over="ignore"):
            shift = center.astype(np.float32).astype(np.float64)
        shift = np.where(np.isfinite(shift), shift, center)
        own, of_weights = self.fixed_of_components, 1.0 if self.prior is None else self.prior.concentration(summary, k)
        prior = None if self.prior is None else self.prior.of(summary, k, self.reg_covar, SHAPES[covariance_type])
        component = Gaussian(k, shift, covariance_type, self.reg_covar, own, prior)
        model = Mixture(component, assignment, "weights" in self.fixed, of_weights)
        return model if self.noise is None else NoisyMixture.of(model, summary.low, summary.high)
