"""Mixtures of Bernoulli distributions, for features of 0 and 1: log p(x | k) = sum_j x_j log p_kj + (1 - x_j) log(1 - p_kj).

Features are independent within a component: latent class analysis of yes and no. MAP under a Beta prior on each
probability; sparse rows stay sparse. [Lazarsfeld and Henry 1968; Bishop 2006, sec. 9.3.3]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field as Option
from scipy.special import xlog1py, xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.models.clusters import Summary
from pipeline.models.component import OfSums
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, relative_squares
from pipeline.models.schema import PROBABILITY, Field, Fields
from pipeline.models.seen import OfSeenCounts
from pipeline.models.words import Words

EDGE = 2.0**-53  # probabilities keep this distance from 0 and 1, so that every row of 0 and 1 has a density


@dataclass(frozen=True)
class Chances:
    """probabilities : (k, d), of a 1."""

    probabilities: Array

    @property
    def variance(self) -> Array:
        """(k, d), of an entry."""
        return self.probabilities * (1.0 - self.probabilities)


@stored
@dataclass(frozen=True)
class BernoulliStats(Additive):
    """sum_x : (k, d) expected ones."""

    sum_x: Array


@stored
@dataclass(frozen=True)
class Bernoulli(OfSums):
    """Bernoulli components. shift : (d,), the mean of the rows.  concentration : of the Beta prior, at least 1."""

    n_components: int
    shift: Array
    concentration: float = 1.1
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "bernoulli"
    words: ClassVar[Words] = Words("Bernoulli mixture", "A mixture of {k} Bernoullis", location="probability")
    location: ClassVar[str] = "probabilities"
    impossible_advice: ClassVar[str] = "Its features must be 0 or 1."

    @property
    def fields(self) -> Fields:
        return {"probabilities": Field(("component", "feature"), PROBABILITY)}

    def facts(self) -> dict[str, Any]:
        return {"concentration": self.concentration}

    def theta(self, **arrays: Array) -> Chances:
        return Chances(np.clip(arrays["probabilities"], EDGE, 1.0 - EDGE))

    def log_joint(self, theta: Chances, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        yes, no = np.log(theta.probabilities), np.log1p(-theta.probabilities)
        found: Array = _numbers(x) @ (yes - no).T + (log_weights + no.sum(axis=1))
        found[_others(x)] = -np.inf
        return found

    def statistics(self, theta: Chances | None, x: Matrix, resp: Array) -> BernoulliStats:
        return BernoulliStats((_numbers(x).T @ resp).T)

    def with_missing(self) -> Bernoulli:
        return IncompleteBernoulli(**vars(self))

    def _seen(self, stats: BernoulliStats, sum_w: Array) -> Array:
        """Sums of the rows that are seen, (k, 1) or, where entries may be missing, (k, d)."""
        return sum_w[:, None]

    def m_step(self, stats: BernoulliStats, sum_w: Array, theta: Chances | None) -> Chances:
        before = np.tile(self.shift, (self.n_components, 1)) if theta is None else theta.probabilities
        if "probabilities" in self.fixed:
            return self.theta(probabilities=before)
        more = self.concentration - 1.0
        counts = np.broadcast_to(self._seen(stats, sum_w) + 2.0 * more, before.shape)
        found = np.divide(stats.sum_x + more, counts, out=before.copy(), where=counts > 0)
        return self.theta(probabilities=found)

    def expected_log_densities(self, theta: Chances, sum_w: Array, stats: BernoulliStats) -> Array:
        p = theta.probabilities
        return (xlogy(stats.sum_x, p) + xlog1py(self._seen(stats, sum_w) - stats.sum_x, -p)).sum(axis=1)

    def log_prior(self, theta: Chances) -> float:
        """(concentration - 1) sum_kj log p_kj (1 - p_kj), up to a constant."""
        if self.concentration == 1.0:
            return 0.0
        p = theta.probabilities
        return float((self.concentration - 1.0) * (np.log(p) + np.log1p(-p)).sum())

    def step_squares(self, stats: BernoulliStats, sum_w: Array, theta: Chances, new: Chances) -> tuple[float, ...]:
        """N_k/N Σ_j Δp²/(p (1 - p)), summed."""
        return (self._squares(stats, sum_w, new.probabilities - theta.probabilities, theta.variance),)

    def change_squares(
        self, change: BernoulliStats, change_w: Array, stats: BernoulliStats, sum_w: Array, theta: Chances
    ) -> tuple[float, ...]:
        if "probabilities" in self.fixed:
            return (0.0,)
        rows = self._seen(stats, sum_w) + 2.0 * (self.concentration - 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = (change.sum_x - self._seen(change, change_w) * theta.probabilities) / rows
        return (self._squares(stats, sum_w, moved, theta.variance),)

    def _squares(self, stats: BernoulliStats, sum_w: Array, moved: Array, variance: Array) -> float:
        share = sum_w / sum_w.sum()
        return float(share @ relative_squares(share, moved, variance))

    def feasible(self, stats: BernoulliStats, known: BernoulliStats) -> BernoulliStats:
        """Expected ones that would be negative stay as they are; the M-step keeps probabilities below 1."""
        return BernoulliStats(np.where(stats.sum_x > 0, stats.sum_x, known.sum_x))

    def start_at(self, rows: Array, summary: Summary | None) -> Chances:
        """Halfway between each row and the mean of all, pulled to 1/2, so that no probability is 0 or 1."""
        return self.theta(probabilities=0.45 * np.clip(rows, 0.0, 1.0) + 0.45 * np.clip(self.shift, 0.0, 1.0) + 0.05)

    def sample(self, theta: Chances, labels: Array, rng: np.random.Generator) -> Matrix:
        p = theta.probabilities[labels]
        return (rng.random(p.shape) < p).astype(np.float64)


@stored
@dataclass(frozen=True)
class IncompleteBernoulliStats(BernoulliStats):
    """seen : (k, d) expected rows in which an entry is there."""

    seen: Array


@stored
@dataclass(frozen=True)
class IncompleteBernoulli(OfSeenCounts, Bernoulli):
    """Bernoulli components of rows with missing entries, which are left out."""

    stats_type: ClassVar[Any] = IncompleteBernoulliStats

    def log_joint(self, theta: Chances, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        there = ~np.isnan(x)
        if there.all():
            return super().log_joint(theta, log_weights, x, kernels)
        yes, no, whole = np.log(theta.probabilities), np.log1p(-theta.probabilities), np.where(there, x, 0.0)
        found: Array = whole @ (yes - no).T + there @ no.T + log_weights
        found[_others(whole)] = -np.inf
        return found

    def feasible(self, stats: Any, known: Any) -> IncompleteBernoulliStats:
        good = (stats.sum_x > 0) & (stats.seen > stats.sum_x)
        return IncompleteBernoulliStats(
            np.where(good, stats.sum_x, known.sum_x), np.where(good, stats.seen, known.seen)
        )


def _numbers(x: Matrix) -> Matrix:
    return x.astype(np.float64)


def _others(x: Matrix) -> Array:
    """(n,) bool: rows with a value other than 0 and 1."""
    if sp.issparse(x):
        wrong = np.concatenate([[0], np.cumsum((x.data != 0) & (x.data != 1))])
        return np.asarray(wrong[x.indptr[1:]] > wrong[x.indptr[:-1]])
    return np.asarray(((x != 0) & (x != 1)).any(axis=1))


class BernoulliSection(ClusterSection):
    """A mixture of Bernoulli distributions over features of 0 and 1."""

    family: Literal["bernoulli"] = Option("bernoulli", description="latent classes of features that are 0 or 1")
    concentration: float = Option(
        1.1, ge=1, description="Beta prior on the probabilities: ones and zeros + concentration - 1 each; 1: none"
    )
    fixed: list[Literal["weights", "probabilities"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("binary", "latent-class")
    words: ClassVar[Words] = Bernoulli.words
    counts: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {"data": {"source": "npy", "path": "answers.npy"}}

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k] = self.n_components
        component = Bernoulli(
            k, np.asarray(summary.mean, dtype=np.float64), self.concentration, self.fixed_of_components
        )
        return Mixture(component, assignment, "weights" in self.fixed)
