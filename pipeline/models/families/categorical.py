"""Mixtures of categorical distributions, for columns of codes 0..m_j - 1: log p(x | k) = sum_j log p_kj(x_j).

Columns are independent within a component: latent class analysis. MAP under a Dirichlet prior on each column's
probabilities, which are proportional to the expected counts + concentration - 1. [Goodman 1974; Linzer and Lewis 2011]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field as Option
from scipy.special import xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.errors import InputError
from pipeline.models.clusters import Summary
from pipeline.models.component import Component
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, relative_square, relative_squares
from pipeline.models.schema import Field, Fields, Simplex
from pipeline.models.seen import OfSeenEntries
from pipeline.models.words import Words

MOST = 2**16  # categories of a column: more are no categories, but numbers


class Ragged(Simplex):
    """Probabilities of which each feature has its own number; those beyond are 0. many : (d,)."""

    def __init__(self, many: Array) -> None:
        self.many = many

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        beyond = value[:, np.arange(value.shape[-1]) >= self.many[:, None]]
        return f"{name}: got {beyond.max():.6g} for a category that is not there, expected 0." if beyond.any() else None

    def n_free(self, shape: tuple[int, ...]) -> int:
        return int(shape[0] * (self.many - 1).sum())


@dataclass(frozen=True)
class Tables:
    """probabilities : (k, d, m); of a column of fewer than m categories, the last ones are 0."""

    probabilities: Array


@stored
@dataclass(frozen=True)
class CategoryStats(Additive):
    """counts : (k, d, m) expected counts of each category."""

    counts: Array


@stored
@dataclass(frozen=True)
class Categorical(Component):
    """Categorical components. categories : (d,) of each column.  concentration : of the Dirichlet prior, at least 1."""

    n_components: int
    shift: Array
    categories: Array
    concentration: float = 1.1
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "categorical"
    words: ClassVar[Words] = Words(
        "latent class model",
        "A mixture of {k} latent classes",
        component="class",
        components="classes",
        location="probabilities",
    )
    location: ClassVar[str] = "probabilities"
    impossible_advice: ClassVar[str] = (
        "Its columns must be whole numbers from 0, below model.n_categories; or a category is in no row of any class: raise "
        "model.concentration above 1."
    )

    @property
    def sizes(self) -> dict[str, int]:
        return {"category": int(self.categories.max())}

    @property
    def fields(self) -> Fields:
        return {"probabilities": Field(("component", "feature", "category"), Ragged(self.categories))}

    def facts(self) -> dict[str, Any]:
        return {"concentration": self.concentration, "n_categories": self.categories.tolist()}

    @property
    def _there(self) -> Array:
        """(d, m) bool: the categories of each column."""
        there: Array = np.arange(self.sizes["category"]) < self.categories[:, None]
        return there

    def theta(self, **arrays: Array) -> Tables:
        return Tables(arrays["probabilities"])

    def log_joint(self, theta: Tables, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        codes, wrong = self._codes(x)
        with np.errstate(divide="ignore"):
            table = np.log(theta.probabilities).reshape(self.n_components, -1).T
        found: Array = np.asarray(codes @ table) + log_weights
        found[wrong] = -np.inf
        return found

    def statistics(self, theta: Tables | None, x: Matrix, resp: Array) -> CategoryStats:
        counts = np.asarray(self._codes(x)[0].T @ resp).T
        return CategoryStats(counts.reshape(self.n_components, *self._there.shape))

    def statistics_bytes(self) -> int:
        return 8 * self.n_components * self._there.size

    def _codes(self, x: Matrix) -> tuple[Any, Array]:
        """Sparse indicators of each row's categories (n, d m), and rows with another value (n,), whose codes mean nothing."""
        n, d = x.shape
        x = np.asarray(x, dtype=np.float64)
        fits = (x >= 0) & (x < self.categories) & (x == np.floor(x))
        column = np.where(fits, x, 0.0).astype(np.int64) + self.sizes["category"] * np.arange(d)
        shape = n, d * self.sizes["category"]
        return sp.csr_array((np.ones(n * d), column.ravel(), np.arange(0, n * d + 1, d)), shape), ~fits.all(axis=1)

    def with_missing(self) -> Categorical:
        return IncompleteCategorical(**vars(self))

    def m_step(self, stats: CategoryStats, sum_w: Array, theta: Tables | None) -> Tables:
        there = self._there
        even = np.tile(there / there.sum(axis=1, keepdims=True), (self.n_components, 1, 1))
        before = even if theta is None else theta.probabilities
        if "probabilities" in self.fixed:
            return Tables(before)
        counts = stats.counts + (self.concentration - 1.0) * there
        total = np.broadcast_to(counts.sum(axis=2, keepdims=True), counts.shape)
        return Tables(np.divide(counts, total, out=before.copy(), where=total > 0))

    def expected_log_joint(self, theta: Tables, weights: Array, sum_w: Array, stats: CategoryStats) -> float:
        return float(xlogy(sum_w, weights).sum() + xlogy(stats.counts, theta.probabilities).sum())

    def log_prior(self, theta: Tables) -> float:
        """(concentration - 1) sum_kjc log p_kjc, up to a constant."""
        if self.concentration == 1.0:
            return 0.0
        with np.errstate(divide="ignore"):
            return float((self.concentration - 1.0) * np.log(theta.probabilities[:, self._there]).sum())

    def step_squares(self, stats: CategoryStats, sum_w: Array, theta: Tables, new: Tables) -> tuple[float, ...]:
        """N_k/N Σ_jc Δp²/p, summed."""
        return (self._squares(stats, sum_w, theta, new.probabilities - theta.probabilities),)

    def change_squares(
        self, change: CategoryStats, change_w: Array, stats: CategoryStats, sum_w: Array, theta: Tables
    ) -> tuple[float, ...]:
        if "probabilities" in self.fixed:
            return (0.0,)
        rows = self._seen(stats, sum_w) + (self.concentration - 1.0) * self.categories
        moved = change.counts - self._seen(change, change_w)[:, :, None] * theta.probabilities
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.where(rows[:, :, None] > 0, moved / rows[:, :, None], 0.0)
        return (self._squares(stats, sum_w, theta, moved),)

    def _seen(self, stats: CategoryStats, sum_w: Array) -> Array:
        """Sums of the rows that are seen, (k, 1) or, where entries may be missing, (k, d)."""
        return sum_w[:, None]

    def _squares(self, stats: CategoryStats, sum_w: Array, theta: Tables, moved: Array) -> float:
        share, k = sum_w / sum_w.sum(), self.n_components
        return float(share @ relative_squares(share, moved.reshape(k, -1), theta.probabilities.reshape(k, -1)))

    def feasible(self, stats: CategoryStats, known: CategoryStats) -> CategoryStats:
        """Expected counts that would be negative stay as they are."""
        return CategoryStats(np.where(stats.counts > 0, stats.counts, known.counts))

    def start_at(self, rows: Array, summary: Summary | None) -> Tables:
        """Halfway between each row and equal probabilities."""
        k, there = self.n_components, self._there
        own = self._codes(np.clip(np.round(rows), 0, self.categories - 1))[0].toarray().reshape(k, *there.shape)
        return Tables(0.5 * own + 0.5 * there / there.sum(axis=1, keepdims=True))

    def sample(self, theta: Tables, labels: Array, rng: np.random.Generator) -> Matrix:
        below = np.cumsum(theta.probabilities, axis=2)[labels]
        drawn = rng.random((*below.shape[:2], 1)) * below[:, :, -1:]
        return (drawn >= below).sum(axis=2).astype(np.float64)


@stored
@dataclass(frozen=True)
class IncompleteCategorical(OfSeenEntries, Categorical):
    """Categorical components of rows with missing entries, which are left out: in no category, they are in no count."""

    def _codes(self, x: Matrix) -> tuple[Any, Array]:
        missing = np.isnan(x)
        codes, wrong = super()._codes(np.where(missing, 0.0, x))
        if missing.any():
            codes = sp.csr_array((1.0 - missing.ravel(), codes.indices, codes.indptr), shape=codes.shape)
        return codes, wrong

    def _seen(self, stats: CategoryStats, sum_w: Array) -> Array:
        return np.asarray(stats.counts.sum(axis=2))

    def _squares(self, stats: CategoryStats, sum_w: Array, theta: Tables, moved: Array) -> float:
        share = self._seen(stats, sum_w)[:, :, None] / sum_w.sum()
        return float((share * relative_square(moved, theta.probabilities)).sum())


class CategoricalSection(ClusterSection):
    """Latent class analysis: a mixture of categorical distributions over columns of codes."""

    family: Literal["categorical"] = Option("categorical", description="latent classes of columns of codes 0, 1, 2, …")
    n_categories: Annotated[int, Option(ge=1, le=MOST)] | list[Annotated[int, Option(ge=1, le=MOST)]] | None = Option(
        None,
        description="how many categories each column has: a number, or a list of one a column; null: as the data show",
    )
    concentration: float = Option(
        1.1, ge=1, description="Dirichlet prior on the probabilities: counts + concentration - 1; 1: none"
    )
    fixed: list[Literal["weights", "probabilities"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("lca", "latent-classes")
    words: ClassVar[Words] = Categorical.words
    counts: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True
    inits: ClassVar[tuple[str, ...]] = ("k-means||", "k-means++", "random", "labels", "explicit", "run")
    template: ClassVar[dict[str, Any]] = {"data": {"source": "npy", "path": "codes.npy"}}

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k] = self.n_components
        shift = np.asarray(summary.mean, dtype=np.float64)
        component = Categorical(k, shift, self._categories(summary), self.concentration, self.fixed_of_components)
        return Mixture(component, assignment, "weights" in self.fixed)

    def _categories(self, summary: Summary) -> Array:
        """(d,) categories of each column."""
        d, found = len(summary.mean), summary.high + 1.0
        if isinstance(self.n_categories, list) and len(self.n_categories) != d:
            raise InputError(
                f"model.n_categories: got {len(self.n_categories)} numbers, expected one for each of the {d} columns."
            )
        if self.n_categories is not None:
            return np.broadcast_to(np.asarray(self.n_categories, dtype=np.int64), (d,)).copy()
        if found.max() > MOST:
            raise InputError(
                f"column {int(found.argmax())}: got the code {found.max() - 1:g}, expected codes below {MOST}. "
                "Number its categories from 0, or leave it out."
            )
        return np.maximum(found, 1.0).astype(np.int64)
