"""Mixtures of Poisson distributions, for counts: log p(x | k) = sum_j (x_j log lambda_kj - lambda_kj - log x_j!).

MAP under a gamma prior of shape `concentration` and rate 0 on each rate. 1 is maximum likelihood; then a rate may become 0,
which makes a count above 0 impossible. [Karlis and Meligkotsidou 2007]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Option
from scipy.special import gammaln, xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.models.clusters import Summary
from pipeline.models.component import OfSums
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, relative_squares
from pipeline.models.schema import POSITIVE, Field, Fields
from pipeline.models.seen import OfSeenCounts
from pipeline.models.words import Words


@dataclass(frozen=True)
class Rates:
    """rates : (k, d), expected count of each feature."""

    rates: Array


@stored
@dataclass(frozen=True)
class PoissonStats(Additive):
    """sum_x : (k, d) expected counts.  log_factorials : total of log x!, nats."""

    sum_x: Array
    log_factorials: float


@stored
@dataclass(frozen=True)
class Poisson(OfSums):
    """Poisson components: d independent counts each. shift : (d,), the mean of the rows."""

    n_components: int
    shift: Array
    concentration: float = 1.0
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "poisson"
    words: ClassVar[Words] = Words(name="Poisson mixture", title="A mixture of {k} Poissons", location="rate")
    location: ClassVar[str] = "rates"
    impossible_advice: ClassVar[str] = "Raise model.concentration above 1, so that no rate comes to 0."

    @property
    def fields(self) -> Fields:
        return {"rates": Field(("component", "feature"), POSITIVE)}

    def theta(self, **arrays: Array) -> Rates:
        return Rates(arrays["rates"])

    def log_joint(self, theta: Rates, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        x = np.asarray(x, dtype=np.float64)
        constant = gammaln(x + 1.0).sum(axis=1)
        return x @ np.log(theta.rates).T + (log_weights - theta.rates.sum(axis=1)) - constant[:, None]

    def statistics(self, theta: Rates | None, x: Matrix, resp: Array) -> PoissonStats:
        x = np.asarray(x, dtype=np.float64)
        return PoissonStats(resp.T @ x, float(resp.sum(axis=1) @ gammaln(x + 1.0).sum(axis=1)))

    def with_missing(self) -> Poisson:
        return IncompletePoisson(**vars(self))

    def _seen(self, stats: PoissonStats, sum_w: Array) -> Array:
        """Sums of the rows that are seen, (k, 1) or, where entries may be missing, (k, d)."""
        return sum_w[:, None]

    def m_step(self, stats: PoissonStats, sum_w: Array, theta: Rates | None) -> Rates:
        before = np.tile(self.shift, (self.n_components, 1)) if theta is None else theta.rates
        if "rates" in self.fixed:
            return Rates(before)
        counts = stats.sum_x + (self.concentration - 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = self._seen(stats, sum_w)
            rates = np.where(seen > 0, counts / seen, before)
        return Rates(np.maximum(rates, np.finfo(np.float64).tiny))

    def expected_log_joint(self, theta: Rates, weights: Array, sum_w: Array, stats: PoissonStats) -> float:
        return super().expected_log_joint(theta, weights, sum_w, stats) - stats.log_factorials

    def expected_log_densities(self, theta: Rates, sum_w: Array, stats: PoissonStats) -> Array:
        return (xlogy(stats.sum_x, theta.rates) - self._seen(stats, sum_w) * theta.rates).sum(axis=1)

    def log_prior(self, theta: Rates) -> float:
        """(concentration - 1) sum_kj log lambda_kj, up to a constant."""
        return 0.0 if self.concentration == 1.0 else float((self.concentration - 1.0) * np.log(theta.rates).sum())

    def step_squares(self, stats: PoissonStats, sum_w: Array, theta: Rates, new: Rates) -> tuple[float, ...]:
        """N_k/N Σ_j Δλ²/λ, summed."""
        return (self._squares(stats, sum_w, new.rates - theta.rates, theta.rates),)

    def change_squares(
        self, change: PoissonStats, change_w: Array, stats: PoissonStats, sum_w: Array, theta: Rates
    ) -> tuple[float, ...]:
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = (change.sum_x - self._seen(change, change_w) * theta.rates) / self._seen(stats, sum_w)
        return (0.0,) if "rates" in self.fixed else (self._squares(stats, sum_w, moved, theta.rates),)

    def _squares(self, stats: PoissonStats, sum_w: Array, moved: Array, variance: Array) -> Any:
        share = sum_w / sum_w.sum()
        return share @ relative_squares(share, moved, variance)

    def feasible(self, stats: PoissonStats, known: PoissonStats) -> PoissonStats:
        """Expected counts that would be negative stay as they are."""
        return PoissonStats(np.where(stats.sum_x > 0, stats.sum_x, known.sum_x), stats.log_factorials)

    def start_at(self, rows: Array, summary: Summary | None) -> Rates:
        """Halfway between each row and the mean of all, so that no rate is 0."""
        return Rates(np.maximum(0.5 * (rows + self.shift), np.finfo(np.float64).tiny))

    def sample(self, theta: Rates, labels: Array, rng: np.random.Generator) -> Matrix:
        return rng.poisson(theta.rates[labels]).astype(np.float64)


@stored
@dataclass(frozen=True)
class IncompletePoissonStats(PoissonStats):
    """seen : (k, d) expected rows in which an entry is there."""

    seen: Array


@stored
@dataclass(frozen=True)
class IncompletePoisson(OfSeenCounts, Poisson):
    """Poisson components of rows with missing entries, which are left out."""

    stats_type: ClassVar[Any] = IncompletePoissonStats

    def log_joint(self, theta: Rates, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        there = ~np.isnan(x)
        if there.all():
            return super().log_joint(theta, log_weights, x, kernels)
        x = np.where(there, x, 0.0).astype(np.float64)
        constant = gammaln(x + 1.0).sum(axis=1)
        return x @ np.log(theta.rates).T + log_weights - there @ theta.rates.T - constant[:, None]

    def feasible(self, stats: Any, known: Any) -> IncompletePoissonStats:
        sums = super().feasible(stats, known)
        return IncompletePoissonStats(**vars(sums), seen=np.where(stats.seen > 0, stats.seen, known.seen))


class PoissonSection(ClusterSection):
    """A mixture of Poisson distributions over counts."""

    family: Literal["poisson"] = Option("poisson", description="a mixture of Poisson distributions over counts")
    concentration: float = Option(
        1.0, ge=1, description="shape of a gamma prior on the rates; counts + concentration - 1; 1: none"
    )
    fixed: list[Literal["weights", "rates"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    words: ClassVar[Words] = Poisson.words
    counts: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k] = self.n_components
        component = Poisson(k, np.asarray(summary.mean, dtype=np.float64), self.concentration, self.fixed_of_components)
        return Mixture(component, assignment, "weights" in self.fixed)
