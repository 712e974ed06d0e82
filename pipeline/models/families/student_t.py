"""Mixtures of Student-t distributions: Gaussians whose precision varies from row to row.

    x | u, k ~ N(mu_k, Sigma_k / u)    u ~ Gamma(nu_k / 2, nu_k / 2)    delta = (x - mu_k)ᵀ Sigma_k⁻¹ (x - mu_k)

Given the label k, u is Gamma(alpha, beta) with alpha = (nu_k + d) / 2 and beta = (nu_k + delta) / 2. The M-step is in closed
form but for nu_k, the root of log(nu/2) - psi(nu/2) + 1 + sum r (E log u - E u) / N_k = 0.
[Liu and Rubin 1995; Peel and McLachlan 2000, sec. 4; Minka 2002 for the root]

Functions of nu are in models/degrees.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Option
from scipy.special import gammaincinv, ndtr

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.base import GaussianProblem
from pipeline.kernels.cholesky import Moments
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.models.clusters import Summary
from pipeline.models.component import Component, Pass
from pipeline.models.degrees import LEAST, MOST, expected_log_density, log_less_psi, log_scale, root, slope, stirling
from pipeline.models.families.gaussian import LOG_2PI, Gaussian, GaussianSection
from pipeline.models.incomplete import Drawn, ExpectedMoments, OfDistances, OfIncompleteRows, WithMoments
from pipeline.models.mixture import Mixture
from pipeline.models.moments import Frame, Gaussians, GaussianStats
from pipeline.models.schema import POSITIVE, Field, Fields
from pipeline.models.words import Words

START = 10.0  # degrees of freedom that are learned begin here


@dataclass(frozen=True)
class StudentTs(Gaussians):
    """df : (k,), or () where all components share it.  means, covariances : mu_k and Sigma_k, which is no covariance."""

    df: Array

    @property
    def scales(self) -> Array:
        """Sigma_k, by the name that it has in the schema."""
        return self.covariances


@stored
@dataclass(frozen=True)
class StudentTStats(GaussianStats):
    """Moments as of Gaussians, in which each row counts E u times. sum_u : (k,) sums of r E u.  gap : (k,) of r (E log u - E u + 1)."""

    sum_u: Array
    gap: Array


@stored
@dataclass(frozen=True)
class StudentT(Gaussian):
    """Student-t components. df : degrees of freedom, None where they are learned.  shared_df : by all components together."""

    df: float | None = None
    shared_df: bool = False

    has_own_latents: ClassVar[bool] = True
    family: ClassVar[str] = "student-t"
    words: ClassVar[Words] = Words("Student-t mixture", "A mixture of {k} Student-t distributions", location="location")

    spread: ClassVar[str] = "scales"

    @property
    def fields(self) -> Fields:
        return {**super().fields, "df": Field(() if self.shared_df else ("component",), POSITIVE)}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "df": self.df, "shared_df": self.shared_df}

    def theta(self, **arrays: Array) -> StudentTs:
        """Without `df`, that of a start."""
        df = arrays.pop("df", None)
        if df is None:
            df = np.full(() if self.shared_df else self.n_components, START if self.df is None else self.df)
        elif self.df is not None and (df != self.df).any():
            raise InputError(f"initial df: got {df.flat[0]:g}, expected model.df: {self.df:g}. Change one of them.")
        scales = arrays["scales"] if "scales" in arrays else arrays["covariances"]
        return StudentTs(**vars(super().theta(means=arrays["means"], covariances=scales)), df=df)

    def log_joint(self, theta: Gaussians, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        assert isinstance(theta, StudentTs)
        self._refuse_singular(theta)
        return log_weights + self._log_density(theta, np.log1p(self._squared(theta, x, kernels) / theta.df))

    def _squared(self, theta: Gaussians, x: Array, kernels: Any) -> Array:
        """(n, k) delta."""
        problem = self._problem(theta, np.zeros(self.n_components), False)
        joint = kernels.gaussian_log_joint(problem._replace(log_scale=np.zeros(self.n_components)), x)
        return np.maximum(-2.0 * joint, 0.0)

    def _log_density(self, theta: StudentTs, log_ratio: Array) -> Array:
        """(n, k) log p(x | k), nats, from log(1 + delta / nu)."""
        a, b = 0.5 * theta.df, 0.5 * self.n_features
        log_det = self.shape.log_det(theta.factors, self.n_features)
        density: Array = (log_scale(a, b) + log_det - b * LOG_2PI) - (a + b) * log_ratio
        return density

    def e_step(
        self, theta: Gaussians, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any
    ) -> Pass:
        assert isinstance(theta, StudentTs)
        self._refuse_singular(theta)
        if self.shape.per_component and self.shape.is_matrix:
            return self._compiled(theta, log_weights, x, weight, hard, kernels)
        k, d = self.n_components, self.n_features
        log_norm, sum_w, entropy = np.empty(len(x)), np.zeros(k), 0.0
        sums = np.zeros((2, k))  # of r log(1 + delta / nu) and r (E u - 1)
        moments = [Moments(self.shape, mean) for mean in theta.means]
        apart = self.shape.per_component or theta.by is not None
        shared = None if apart else Moments(self.shape, self.shift)
        for rows in tiles(len(x), tile_height(d, k)):
            tile = np.asarray(x[rows], compute_dtype(x.dtype))
            squared = self._squared(theta, tile, kernels)
            log_ratio = np.log1p(squared / theta.df)
            buffer = np.empty((len(tile), padded(k, 8)))
            buffer[:, :k] = log_weights + self._log_density(theta, log_ratio)
            w = np.ones(len(tile)) if weight is None else weight[rows]
            entropy += softmax_rows(buffer, k, w, hard, log_norm[rows])
            resp = buffer[:, :k]
            excess = _excess(theta.df, squared, d)
            sum_w += resp.sum(axis=0)
            sums += [_column_sums(resp, log_ratio), _column_sums(resp, excess)]
            resp = _counts(resp, excess)
            if shared is None:
                for one, own in zip(moments, resp.T, strict=True):
                    one.add(tile, own)
            else:
                shared.add(tile.astype(np.float64), resp.sum(axis=1))
                for one, own in zip(moments, resp.T, strict=True):
                    one.sum_x += own @ np.subtract(tile, one.mean, dtype=np.float64)
        stacked = self._stacked(moments)
        stats, more = self._collected(theta, sum_w, sums, stacked.sum_x, stacked.sum_xx, shared)
        return Pass(log_norm, sum_w, stats, entropy, more)

    def _compiled(
        self, theta: StudentTs, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any
    ) -> Pass:
        """The pass of full scale matrices, by the kernels of Gaussians."""
        sums = kernels.gaussian_pass(self._t_problem(theta, log_weights, hard), x, weight)
        stats, more = self._collected(theta, sums.sum_w, sums.scales, sums.sum_x, sums.sum_xx)
        return Pass(sums.log_norm, sums.sum_w, stats, sums.entropy, more, sums.skipped)

    def _t_problem(self, theta: StudentTs, log_weights: Array, hard: bool) -> GaussianProblem:
        one = np.zeros((1, self.n_components))
        log_scale = log_weights + self._log_density(theta, one)[0]
        df = np.broadcast_to(theta.df, log_scale.shape)
        return self._problem(theta, log_weights, hard)._replace(log_scale=log_scale, df=df)

    def near_log_joint(self, theta: Gaussians, log_weights: Array, x: Matrix, ranks: int, kernels: Any) -> Array:
        assert isinstance(theta, StudentTs)
        found = kernels.gaussian_near_joint(self._t_problem(theta, log_weights, False), x, ranks)
        return self.log_joint(theta, log_weights, x, kernels) if found is None else np.asarray(found)

    def _collected(
        self,
        theta: StudentTs,
        sum_w: Array,
        sums: Array,
        first: Array,
        second: Array,
        shared: Moments | None = None,
    ) -> tuple[StudentTStats, float]:
        """The statistics, and the entropy of u given the labels. first, second : moments about the means."""
        log_ratio, excess = sums
        a, b = 0.5 * theta.df, 0.5 * self.n_features
        alpha, sum_u = a + b, sum_w + excess
        gap = sum_w * (np.log1p(b / a) - log_less_psi(alpha)) - log_ratio - excess
        by = self._points(theta.by) - theta.means
        if shared is None:
            sum_x, sum_xx = self.shape.moved(sum_u, first, second, by)
        else:
            sum_x, sum_xx = first - sum_u[:, None] * by, shared.sum_xx
        own = np.log1p(b / a) + 0.5 * (LOG_2PI - np.log(alpha)) + stirling(alpha) + (alpha - 1.0) * log_less_psi(alpha)
        frame = Frame.at(theta.by, sum_u, self.covariance_type)
        return StudentTStats(sum_x, sum_xx, sum_u, gap, frame=frame), float(np.sum(sum_w * own - log_ratio))

    def statistics(self, theta: Gaussians | None, x: Matrix, resp: Array) -> StudentTStats:
        """At a start, where each row counts once."""
        return StudentTStats(
            **vars(super().statistics(None, x, resp)), sum_u=resp.sum(axis=0), gap=np.zeros(resp.shape[1])
        )

    def statistics_bytes(self) -> int:
        return super().statistics_bytes() + 2 * 8 * self.n_components

    def label_statistics(self, x: Matrix, labels: Array, weight: Array) -> StudentTStats:
        counts = np.bincount(labels, weight, self.n_components)
        return StudentTStats(
            **vars(super().label_statistics(x, labels, weight)), sum_u=counts, gap=np.zeros(len(counts))
        )

    def _zeroth(self, stats: StudentTStats, sum_w: Array) -> Array:
        return stats.sum_u

    @property
    def _learns_df(self) -> bool:
        return self.df is None and "df" not in self.fixed

    def _by_df(self, values: Array) -> Array:
        """Sums (k,) by degree of freedom, in the shape of `df`."""
        return np.asarray(values.sum()) if self.shared_df else values

    def m_step(self, stats: Any, sum_w: Array, theta: Gaussians | None) -> StudentTs:
        new = super().m_step(stats, sum_w, theta)
        assert isinstance(new, StudentTs)
        if not isinstance(theta, StudentTs):
            return new
        if not self._learns_df:
            return replace(new, df=theta.df)
        counts, gap = self._by_df(sum_w), self._by_df(stats.gap)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 2.0 * root(-gap / counts)
        return replace(new, df=np.where(counts > 0, found, theta.df))

    def expected_log_densities(self, theta: Any, sum_w: Array, stats: Any) -> Array:
        of_u = expected_log_density(theta.df, self.n_features, sum_w, stats.sum_u, stats.gap)
        return super().expected_log_densities(theta, sum_w, stats) + of_u

    def step_squares(self, stats: Any, sum_w: Array, theta: Any, new: Any) -> tuple[float, ...]:
        """As of Gaussians, with E u for the rows of a mean, and N_k/N (psi'(a) - 1/a) Δa² of a = nu/2."""
        return (
            *super().step_squares(stats, sum_w, theta, new),
            self._df_square(sum_w, theta, 0.5 * (new.df - theta.df)),
        )

    def change_squares(self, change: Any, change_w: Array, stats: Any, sum_w: Array, theta: Any) -> tuple[float, ...]:
        squares = super().change_squares(change, change_w, stats, sum_w, theta)
        if not self._learns_df:
            return squares
        a = 0.5 * theta.df
        moved = (self._by_df(change.gap) + self._by_df(change_w) * log_less_psi(a)) / (self._by_df(sum_w) * slope(a))
        inside = (theta.df > LEAST) & (theta.df < MOST)
        return (*squares, self._df_square(sum_w, theta, np.where(inside, moved, 0.0)))

    def _df_square(self, sum_w: Array, theta: StudentTs, by: Array) -> float:
        return float(np.sum(sum_w / sum_w.sum() * slope(0.5 * theta.df) * by**2))

    def feasible(self, stats: Any, known: Any) -> StudentTStats:
        """What a component's rows count stays as it is where it would be negative."""
        if stats.frame is not None or known.frame is not None:  # then in one frame
            stats = known * 0.0 + stats
            known = stats * 0.0 + known
        good = stats.sum_u > 0
        column, by = good[:, None], self.shape.per_component
        sum_xx = (
            np.where(good.reshape((-1,) + (1,) * (stats.sum_xx.ndim - 1)), stats.sum_xx, known.sum_xx)
            if by
            else stats.sum_xx
        )
        sum_x = np.where(column, stats.sum_x, known.sum_x)
        sum_u = np.where(good, stats.sum_u, known.sum_u)
        frame = stats.frame and stats.frame._replace(counts=sum_u)
        return StudentTStats(sum_x, sum_xx, sum_u, np.minimum(stats.gap, 0.0), frame=frame)

    def reset(
        self, new: Any, old: Any, stats: Any, sum_w: Array, collapsed: Array, places: Mapping[int, Array]
    ) -> StudentTs:
        found = super().reset(new, old, stats, sum_w, collapsed, places)
        assert isinstance(found, StudentTs)
        moved = np.isin(np.arange(self.n_components), list(places)) & self._learns_df & (not self.shared_df)
        return replace(found, df=np.where(moved, found.df, new.df) if moved.any() else new.df)

    def implementations(self, theta: Gaussians, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        """Of full scale matrices pairs; else densities as of Gaussians, and moments about each mean."""
        if self.shape.per_component and self.shape.is_matrix:
            return {"pairs": [self.n_components] * 2}
        found = {
            name: [densities, 0] for name, (densities, _) in super().implementations(theta, dtype, kernels).items()
        }
        return {**found, "Cholesky": [found.get("Cholesky", [0])[0], self.n_components]}

    score_products = Component.score_products  # those of Gaussians are not for it

    def sample(self, theta: Gaussians, labels: Array, rng: np.random.Generator) -> Array:
        assert isinstance(theta, StudentTs)
        df, means = np.broadcast_to(theta.df, (self.n_components,))[labels], theta.means[labels]
        around = super().sample(theta, labels, rng) - means
        drawn: Array = means + around / np.sqrt(rng.gamma(0.5 * df, 2.0 / df))[:, None]
        return drawn

    def with_missing(self) -> StudentT:
        return IncompleteStudentT(**vars(self))


class WithTails(WithMoments, Drawn):
    """Rows under Student-t components, as those under Gaussians but for u. df : nu, (k,) or ().

    The observed entries are a t too: with p of them, u is Gamma((nu + p) / 2, (nu + delta) / 2). E u x xᵀ = E u x̂ x̂ᵀ + S_m|o.
    [Liu and Rubin 1995, sec. 4; Lin, Lee and Ho 2006, sec. 3]
    """

    def __init__(self, own: OfDistances, df: Array) -> None:
        a, b, self.own, self.df = 0.5 * df, 0.5 * own.n_seen, own, df
        self.log_density = log_scale(a, b) + own.log_scale - (a + b) * np.log1p(own.squared / df)

    @property
    def excess(self) -> Array:
        """(n, k) E u - 1."""
        return _excess(self.df, self.own.squared, self.own.n_seen)

    @property
    def gap(self) -> Array:
        """(n, k) E log u - E u + 1."""
        a, b = 0.5 * self.df, 0.5 * self.own.n_seen
        gap: Array = np.log1p(b / a) - log_less_psi(a + b) - np.log1p(self.own.squared / self.df) - self.excess
        return gap

    def counts(self, resp: Array) -> Array:
        return _counts(resp, self.excess)

    def row(self, c: int) -> Array:
        return self.own.row(c)

    def covariance(self, c: int, resp: Array) -> Array:
        return self.own.covariance(c, resp)

    def deviations(self, c: int, normal: Array) -> Array:
        df, squared = np.broadcast_to(self.df, self.own.squared.shape)[:, c], self.own.squared[:, c]
        u = 2.0 * gammaincinv(0.5 * (df + np.ravel(self.own.n_seen)), ndtr(normal[:, -1])) / (df + squared)
        return self.own.deviations(c, normal[:, :-1]) / np.sqrt(u)[:, None]


class MomentsWithTails(ExpectedMoments):
    """Sums of `StudentTStats`."""

    def __init__(self, component: Any, theta: StudentTs) -> None:
        super().__init__(component, theta)
        self.sum_u, self.gap = np.zeros((2, component.n_components))

    def add(self, expected: Any, resp: Array) -> None:
        super().add(expected, resp)
        self.sum_u += expected.counts(resp).sum(axis=0)
        self.gap += _column_sums(resp, expected.gap)

    def stats(self, sum_w: Array) -> StudentTStats:
        return StudentTStats(**vars(self.moved(self.sum_u)), sum_u=self.sum_u, gap=self.gap)


@stored
@dataclass(frozen=True)
class IncompleteStudentT(OfIncompleteRows, StudentT):
    """Student-t components of rows with missing entries."""

    @property
    def n_normal(self) -> int:
        return self.n_features + 1

    def batches(self, theta: Any, x: Array) -> Iterator[tuple[Array | slice, WithTails]]:
        return ((rows, WithTails(own, theta.df)) for rows, own in super().batches(theta, x))

    def sums(self, theta: Any) -> MomentsWithTails:
        return MomentsWithTails(self, theta)


def _excess(df: Array, squared: Array, d: Array | int) -> Array:
    """(n, k) E u - 1."""
    with np.errstate(invalid="ignore"):  # inf / inf, where a row cannot belong
        return np.asarray((d - squared) / (df + squared))


def _counts(resp: Array, excess: Array) -> Array:
    """(n, k) r E u."""
    with np.errstate(invalid="ignore"):
        return np.where(resp > 0, resp + resp * excess, 0.0)


def _column_sums(resp: Array, values: Array) -> Array:
    """(k,) sums of r x value, in which rows without a share do not count, whatever their value."""
    with np.errstate(invalid="ignore"):  # 0 x inf
        total: Array = np.einsum("nk,nk->k", resp, values)
        return total if np.isfinite(total).all() else np.where(resp > 0, resp * values, 0.0).sum(axis=0)


class StudentTSection(GaussianSection):
    """A mixture of Student-t distributions, in which rows far from all components count less."""

    family: Literal["student-t"] = Option("student-t", description="a mixture of Student-t distributions")  # type: ignore[assignment]  # its own name
    df: float | None = Option(None, gt=0, description="degrees of freedom; null: learned")
    shared_df: bool = Option(False, description="whether all components share the degrees of freedom")
    fixed: list[Literal["weights", "means", "scales", "df"]] = Option(  # type: ignore[assignment]  # one part more
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("t", "student", "student_t", "tmm")
    words: ClassVar[Words] = StudentT.words
    takes_errors: ClassVar[bool] = False
    has_standard_errors: ClassVar[bool] = False

    def build(self, summary: Summary, assignment: str) -> Mixture:
        model = super().build(summary, assignment)
        fixed = tuple(dict.fromkeys((*model.component.fixed, *(("df",) if self.df is not None else ()))))
        options = {**vars(model.component), "fixed": fixed}
        return replace(model, component=StudentT(**options, df=self.df, shared_df=self.shared_df))
