"""Mixtures of factor analysers: Gaussians of many features, whose covariance is of low rank plus noise.

    x = mu_k + Lambda_k z + e        z ~ N(0, I), of q factors        e ~ N(0, Psi_k), Psi_k diagonal
    x | k ~ N(mu_k, Lambda_k Lambda_kᵀ + Psi_k)

One component is factor analysis, or probabilistic principal components where the noise is spherical. Given the label, z is
N(E z, V_k) with V_k = (I + Lambda_kᵀ Psi_k⁻¹ Lambda_k)⁻¹, q x q, and E z = V_k Lambda_kᵀ Psi_k⁻¹ (x - mu_k). With y = (1, z)
the statistics are sums of r E yyᵀ, r x E yᵀ and r x²: of d x (2 + q) numbers, never d x d. The M-step is the regression
of x on y: (mu_k, Lambda_k) = (sum r x E yᵀ)(sum r E yyᵀ)⁻¹, and Psi_k is what it leaves.
[Rubin and Thayer 1982; Ghahramani and Hinton 1996; Tipping and Bishop 1999; McLachlan and Peel 2000, ch. 8]

E z minimizes (x - mu - Lambda z)ᵀ Psi⁻¹ (x - mu - Lambda z) + |z|², whose least value is the squared distance of Woodbury's
identity: computed so, it loses no digits where the noise is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Option
from scipy.special import xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.config import OneOrMore
from pipeline.errors import InputError
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.models.clusters import NoRows, Summary
from pipeline.models.component import Component, Pass
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture
from pipeline.models.schema import POSITIVE, Field, Fields, Support
from pipeline.models.sketch import LEAST_NOISE, common_loadings
from pipeline.models.unseen_factors import OfUnseenEntries
from pipeline.models.words import Words

LOG_2PI = float(np.log(2.0 * np.pi))


class Rotated(Support):
    """Loadings (k, d, q), which are known up to a rotation of the factors."""

    def n_free(self, shape: tuple[int, ...]) -> int:
        k, d, q = shape
        return k * (d * q - q * (q - 1) // 2)


@dataclass(frozen=True)
class Analysers:
    """means : (k, d).  loadings : (k, d, q).  noise_variances : (k, d), (k,), or without k where components share them.

    slopes : (k, d, 1 + q), means about the shift and loadings.  noise : (k, d).  scaled : (k, d, q), loadings / noise.
    variance : (k, q, q), V_k.  log_scale : (k,), of the density, nats.
    """

    means: Array
    loadings: Array
    noise_variances: Array
    slopes: Array
    noise: Array
    scaled: Array
    variance: Array
    log_scale: Array


@stored
@dataclass(frozen=True)
class FactorStats(Additive):
    """Sums about the shift, where y = (1, z). yy : (k, 1 + q, 1 + q).  xy : (k, d, 1 + q).  xx : (k, d), of squares."""

    yy: Array
    xy: Array
    xx: Array


@stored
@dataclass(frozen=True)
class Factor(Component):
    """Factor analysers.

    rank : q.  noise_type : 'diag' or 'spherical'.  shared_noise : by all components.  variance : (d,), of all rows.
    common : (d, q), loadings that components start from.  noise_floor : least noise, a share of the variance.
    """

    n_components: int
    shift: Array
    rank: int
    noise_type: str
    shared_noise: bool
    variance: Array
    common: Array
    noise_floor: float = 1e-6
    fixed: tuple[str, ...] = ()

    has_own_latents: ClassVar[bool] = True
    family: ClassVar[str] = "factor"
    words: ClassVar[Words] = Words("mixture of factor analysers", "A mixture of {k} factor analysers")
    location: ClassVar[str] = "means"
    impossible_advice: ClassVar[str] = (
        "Its distance from every component overflows: rescale the data (preprocess: standardize)."
    )

    @property
    def fields(self) -> Fields:
        noise = (*(() if self.shared_noise else ("component",)), *(("feature",) if self.noise_type == "diag" else ()))
        return {
            "means": Field(("component", "feature")),
            "loadings": Field(("component", "feature", "factor"), Rotated()),
            "noise_variances": Field(noise, POSITIVE),
        }

    @property
    def sizes(self) -> dict[str, int]:
        return {"factor": self.rank}

    def facts(self) -> dict[str, Any]:
        names = ("rank", "noise_type", "shared_noise", "noise_floor")
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        return f"q{self.rank}-{self.noise_type}"

    @property
    def least_rows(self) -> int:
        """Through fewer rows the factors go without noise."""
        learned = "loadings" not in self.fixed and "noise_variances" not in self.fixed and not self.shared_noise
        return self.rank + 2 if learned else 1

    @property
    def least_noise(self) -> Array:
        """The floor of the noise variances, in their shape without components."""
        typical = self.variance[self.variance > 0].mean() if (self.variance > 0).any() else 1.0
        least = self.noise_floor * np.where(self.variance > 0, self.variance, typical)
        return least if self.noise_type == "diag" else np.asarray(least.mean())

    def theta(self, **arrays: Array) -> Analysers:
        means, stored_noise = arrays["means"], arrays["noise_variances"]
        loadings = np.ascontiguousarray(arrays["loadings"])  # as they are read back: sums over strides have other bits
        k, d, q = loadings.shape
        noise = np.array(np.broadcast_to(self._wide(stored_noise), (k, d)))
        slopes = np.concatenate([(means - self.shift)[:, :, None], loadings], axis=2)
        scaled = loadings / noise[:, :, None]
        precision = np.eye(q) + np.einsum("kdp,kdq->kpq", loadings, scaled)
        variance = np.linalg.inv(precision)
        log_det = np.log(noise).sum(axis=1) + np.linalg.slogdet(precision)[1]
        return Analysers(means, loadings, stored_noise, slopes, noise, scaled, variance, -0.5 * (d * LOG_2PI + log_det))

    def _wide(self, noise: Array) -> Array:
        """Noise variances as an array that broadcasts to (k, d)."""
        return noise if self.noise_type == "diag" else noise[..., None]

    def _posterior(self, theta: Analysers, about: Array) -> tuple[Array, Array]:
        """log p(x | k) (n, k) and E y (n, k, 1 + q). about : rows about the shift, (n, d)."""
        n, (k, d, q) = len(about), theta.loadings.shape
        flat = about @ theta.scaled.transpose(1, 0, 2).reshape(d, k * q)
        offset = np.einsum("kd,kdq->kq", theta.slopes[:, :, 0], theta.scaled)
        y, found = np.ones((n, k, 1 + q)), np.empty((n, k))
        y[:, :, 1:] = np.einsum("nkp,kpq->nkq", flat.reshape(n, k, q) - offset, theta.variance)
        for c in range(k):
            left = about - y[:, c] @ theta.slopes[c].T
            found[:, c] = np.square(left, out=left) @ (1.0 / theta.noise[c])
        found += np.square(y[:, :, 1:]).sum(axis=2)
        return theta.log_scale - 0.5 * found, y

    def log_joint(self, theta: Analysers, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        return log_weights + self._posterior(theta, self._about(x))[0]

    def _about(self, x: Matrix) -> Array:
        return np.subtract(x, self.shift, dtype=np.float64)

    def _height(self) -> int:
        return tile_height(self.n_features, self.n_components * (2 + self.rank))

    def e_step(
        self, theta: Analysers, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any
    ) -> Pass:
        k, n = self.n_components, x.shape[0]
        log_norm, sum_w, entropy = np.empty(n), np.zeros(k), 0.0
        total: FactorStats | None = None
        for rows in tiles(n, self._height()):
            about = self._about(x[rows])
            log_density, y = self._posterior(theta, about)
            resp = np.empty((len(about), padded(k, 8)))
            resp[:, :k] = log_weights + log_density
            w = np.ones(len(about)) if weight is None else weight[rows]
            entropy += softmax_rows(resp, k, w, hard, log_norm[rows])
            sum_w += resp[:, :k].sum(axis=0)
            part = self._sums(about, y, resp[:, :k])
            total = part if total is None else total + part
        assert total is not None, "a chunk has at least one row"
        total.yy[:, 1:, 1:] += sum_w[:, None, None] * theta.variance
        of_factors = 0.5 * (self.rank * (1.0 + LOG_2PI) + np.linalg.slogdet(theta.variance)[1])
        return Pass(log_norm, sum_w, total, entropy, float(sum_w @ of_factors))

    def statistics(self, theta: Analysers | None, x: Matrix, resp: Array) -> FactorStats:
        """At a start, z is the projection to the common loadings: its regression is that of a sketch of the covariance."""
        about = self._about(x)
        if theta is not None:
            found = self._sums(about, self._posterior(theta, about)[1], resp)
            found.yy[:, 1:, 1:] += resp.sum(axis=0)[:, None, None] * theta.variance
            return found
        z = about @ self._sketch()
        y = np.concatenate([np.ones((len(z), 1)), z], axis=1)
        return self._sums(about, np.repeat(y[:, None], resp.shape[1], axis=1), resp)

    def _sketch(self) -> Array:
        """(d, q) directions of the common loadings, in which features count by their standard deviations."""
        return self.common / np.where(self.variance > 0, self.variance, 1.0)[:, None]

    def _sums(self, about: Array, y: Array, resp: Array) -> FactorStats:
        """The statistics without V. about : (n, d).  y : (n, k, 1 + q).  resp : (n, k), 0 where y may be anything."""
        n, k, q = y.shape
        own = np.where(resp[:, :, None] > 0, y * resp[:, :, None], 0.0)
        yy = np.stack([own[:, c].T @ y[:, c] for c in range(k)])
        xy = (about.T @ own.reshape(n, k * q)).reshape(self.n_features, k, q).transpose(1, 0, 2)
        return FactorStats(yy, np.ascontiguousarray(xy), resp.T @ np.square(about))

    def statistics_bytes(self) -> int:
        k, d, p = self.n_components, self.n_features, 1 + self.rank
        return 8 * k * (p * p + d * p + d)

    def m_step(self, stats: FactorStats, sum_w: Array, theta: Analysers | None) -> Analysers:
        if theta is None:
            return self._start(stats)
        slopes, live = theta.slopes.copy(), stats.yy[:, 0, 0] > 0
        free = self._free
        if len(free):
            yy, xy = stats.yy[live], stats.xy[live] - slopes[live] @ stats.yy[live]
            step = np.linalg.solve(yy[:, free[:, None], free], xy[:, :, free].transpose(0, 2, 1))
            slopes[np.ix_(live, np.arange(self.n_features), free)] += step.transpose(0, 2, 1)
        return self._with_noise(slopes, stats, theta.noise_variances)

    @property
    def _free(self) -> Array:
        """Which columns of the slopes are learned."""
        return np.flatnonzero([name not in self.fixed for name in ("means", *("loadings" for _ in range(self.rank)))])

    def _with_noise(self, slopes: Array, stats: FactorStats, before: Array) -> Analysers:
        """Theta with the noise that slopes (k, d, 1 + q) leave."""
        noise = before
        if "noise_variances" not in self.fixed:
            counts = stats.yy[:, 0, 0]
            with np.errstate(divide="ignore", invalid="ignore"):
                found = np.maximum(self._by_noise(_left(slopes, stats), counts), self.least_noise)
            noise = np.where(np.isfinite(found), found, before)
        return self.theta(means=self.shift + slopes[:, :, 0], loadings=slopes[:, :, 1:], noise_variances=noise)

    def _by_noise(self, squares: Array, counts: Array) -> Array:
        """Averages of sums of squares (k, d), in the shape of the noise variances."""
        found = squares.sum(axis=0) / counts.sum() if self.shared_noise else squares / counts[:, None]
        return np.asarray(found if self.noise_type == "diag" else found.mean(axis=-1))

    def _start(self, stats: FactorStats) -> Analysers:
        """From sums with a sketch for z: Sigma B (Bᵀ Sigma B)^(-1/2), Nyström's approximation of each covariance.

        A component of too few rows has the common loadings. [Halko, Martinsson and Tropp 2011, sec. 5.4]
        """
        pooled = self._pooled_noise()
        means, loadings = np.tile(self.shift, (self.n_components, 1)), np.tile(self.common, (self.n_components, 1, 1))
        noise, counts = np.tile(pooled, (self.n_components, 1)), stats.yy[:, 0, 0]
        for k in np.flatnonzero(counts > 0):
            yy, xy = stats.yy[k] / counts[k], stats.xy[k] / counts[k]
            mean = xy[:, 0]
            if "means" not in self.fixed:
                means[k] = self.shift + mean
            of_z, with_x = yy[1:, 1:] - np.outer(yy[0, 1:], yy[0, 1:]), xy[:, 1:] - np.outer(mean, yy[0, 1:])
            values, vectors = np.linalg.eigh(of_z)
            if counts[k] < self.rank + 2 or not values[0] > 1e-12 * np.diagonal(yy)[1:].max():
                continue
            own = stats.xx[k] / counts[k] - mean**2
            loadings[k] = (with_x @ vectors) / np.sqrt(values)
            noise[k] = np.maximum(own - np.square(loadings[k]).sum(axis=1), LEAST_NOISE * own)
        return self._started(means, loadings, noise, np.maximum(counts, 1e-300))

    def _pooled_noise(self) -> Array:
        return np.maximum(self.variance - np.square(self.common).sum(axis=1), LEAST_NOISE * self.variance)

    def _started(self, means: Array, loadings: Array, noise: Array, counts: Array) -> Analysers:
        noise = np.maximum(self._by_noise(counts[:, None] * noise, counts), self.least_noise)
        return self.theta(means=means, loadings=loadings, noise_variances=noise)

    def expected_log_joint(self, theta: Analysers, weights: Array, sum_w: Array, stats: FactorStats) -> float:
        counts, q = stats.yy[:, 0, 0], self.rank
        of_rows = counts @ np.log(theta.noise).sum(axis=1) + (_left(theta.slopes, stats) / theta.noise).sum()
        of_factors = np.einsum("kii->", stats.yy[:, 1:, 1:])
        constants = counts.sum() * (self.n_features + q) * LOG_2PI
        return float(xlogy(sum_w, weights).sum() - 0.5 * (of_rows + of_factors + constants))

    def step_squares(self, stats: FactorStats, sum_w: Array, theta: Analysers, new: Analysers) -> tuple[float, ...]:
        """tr(Δ (sum r E yyᵀ / N) Δᵀ Psi⁻¹) of the slopes, and N_k/N |ΔPsi / Psi|² / 2, summed."""
        return self._squares(stats, sum_w, theta, new.slopes - theta.slopes, new.noise - theta.noise)

    def _squares(
        self, stats: FactorStats, sum_w: Array, theta: Analysers, slopes: Array, noise: Array
    ) -> tuple[float, ...]:
        of_slopes = np.einsum("kdp,kdp,kd->", slopes @ stats.yy, slopes, 1.0 / theta.noise)
        of_noise = 0.5 * sum_w @ np.square(noise / theta.noise).sum(axis=1)
        return float(of_slopes / sum_w.sum()), float(of_noise / sum_w.sum())

    def change_squares(
        self, change: FactorStats, change_w: Array, stats: FactorStats, sum_w: Array, theta: Analysers
    ) -> tuple[float, ...]:
        moved, free = np.zeros_like(theta.slopes), self._free
        if len(free):
            by = change.xy - theta.slopes @ change.yy
            step = np.linalg.solve(stats.yy[:, free[:, None], free], by[:, :, free].transpose(0, 2, 1))
            moved[:, :, free] = step.transpose(0, 2, 1)
        noise = np.zeros_like(theta.noise)
        if "noise_variances" not in self.fixed:
            squares = _left(theta.slopes, change) - change.yy[:, :1, 0] * theta.noise
            by_noise = np.where(theta.noise_variances > self.least_noise, self._by_noise(squares, sum_w), 0.0)
            noise = noise + self._wide(by_noise)
        return self._squares(stats, sum_w, theta, moved, noise)

    def feasible(self, stats: FactorStats, known: FactorStats) -> FactorStats:
        """A component whose moments are of no rows keeps those that it had."""
        good = (np.linalg.eigvalsh(stats.yy)[:, 0] > 0) & (stats.xx > 0).all(axis=1)
        wide = good[:, None, None]
        return FactorStats(
            np.where(wide, stats.yy, known.yy),
            np.where(wide, stats.xy, known.xy),
            np.where(good[:, None], stats.xx, known.xx),
        )

    def collapsed(self, theta: Analysers, sum_w: Array) -> list[tuple[int, str]]:
        """Components with too few rows, or without width."""
        found = dict(super().collapsed(theta, sum_w))
        if self.least_rows > 1:
            width = theta.noise + np.square(theta.loadings).sum(axis=2)
            for k in np.flatnonzero((width <= 2.0 * self.least_noise).all(axis=1)):
                found.setdefault(int(k), "its variances have come down to model.noise_floor")
        return sorted(found.items())

    def start_at(self, rows: Array, summary: Summary | None) -> Analysers:
        """Components at the rows, with common loadings."""
        k = len(rows)
        noise = np.tile(self._pooled_noise(), (k, 1))
        return self._started(np.asarray(rows, dtype=np.float64), np.tile(self.common, (k, 1, 1)), noise, np.ones(k))

    def with_missing(self) -> Factor:
        return IncompleteFactor(**vars(self))

    def sample(self, theta: Analysers, labels: Array, rng: np.random.Generator) -> Matrix:
        z, noise = rng.standard_normal((len(labels), self.rank)), rng.standard_normal((len(labels), self.n_features))
        x = theta.means[labels] + noise * np.sqrt(theta.noise[labels])
        for k in range(self.n_components):
            x[labels == k] += z[labels == k] @ theta.loadings[k].T
        return np.asarray(x)


@stored
@dataclass(frozen=True)
class IncompleteFactor(OfUnseenEntries, Factor):
    """Factor analysers of rows with missing entries."""

    stats_type: ClassVar[Any] = FactorStats


def _left(slopes: Array, stats: FactorStats) -> Array:
    """(k, d) sums of r E (x - slopes y)², about the shift."""
    left: Array = stats.xx + np.einsum("kdp,kdp->kd", slopes, slopes @ stats.yy - 2.0 * stats.xy)
    return left


class FactorSection(ClusterSection):
    """A mixture of factor analysers: Gaussians of many features, with covariances of low rank plus noise."""

    family: Literal["factor"] = Option("factor", description="a mixture of factor analysers, for many features")
    rank: OneOrMore[Annotated[int, Option(ge=1)]] = Option(
        (2,), description="how many factors each component has, fewer than features, or a list to choose from"
    )
    noise_type: OneOrMore[Literal["diag", "spherical"]] = Option(
        ("diag",),
        description="diag: each feature has its own noise variance; spherical: one for all features, as in probabilistic "
        "principal components; or a list to choose from",
    )
    shared_noise: bool = Option(False, description="whether all components share the noise variances")
    noise_floor: float = Option(
        1e-6, gt=0, lt=1, description="least noise variance of a feature, as a share of its variance over all rows"
    )
    fixed: list[Literal["weights", "means", "loadings", "noise_variances"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("mfa", "factor-analysis", "factor_analysis", "ppca", "mppca")
    words: ClassVar[Words] = Factor.words
    takes_missing: ClassVar[bool] = True

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k], [rank], [noise_type], d = self.n_components, self.rank, self.noise_type, len(summary.mean)
        if rank >= d and not isinstance(summary, NoRows):
            raise InputError(f"model.rank: got {rank}, expected fewer than the {d} features. Lower it.")
        component = Factor(
            k,
            np.asarray(summary.mean, dtype=np.float64),
            rank,
            noise_type,
            self.shared_noise,
            np.asarray(summary.variance, dtype=np.float64),
            common_loadings(summary, rank),
            self.noise_floor,
            self.fixed_of_components,
        )
        return Mixture(component, assignment, "weights" in self.fixed)
