"""Mixtures of multinomials for counts: log p(x | k) = log n! - sum_v log x_v! + sum_v x_v log theta_kv.

Rows are sparse and never made dense. MAP under a Dirichlet prior: theta_k is proportional to the expected counts +
concentration - 1. [Nigam, McCallum, Thrun and Mitchell 2000]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
from pydantic import BeforeValidator
from pydantic import Field as Option

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.config import Section
from pipeline.kernels.base import CountsProblem
from pipeline.kernels.counts import log_coefficients
from pipeline.models.clusters import SearchEffort, Summary
from pipeline.models.component import OfSums, Pass
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, relative_squares
from pipeline.models.schema import LOG_SIMPLEX, Field, Fields
from pipeline.models.words import Words

START_ENTRIES = 2**23  # of the probabilities of all candidate starts: they are in memory together
WORDS = 100  # of a document that is drawn


@dataclass(frozen=True)
class WordProbabilities:
    """log_prob : (k, v), log theta; -inf for impossible words. Stored word by word, as the kernels read it."""

    log_prob: Array


@stored
@dataclass(frozen=True)
class CountStats(Additive):
    """sum_x : (k, v) expected counts.  log_coefficient : total log multinomial coefficient, nats."""

    sum_x: Array
    log_coefficient: float


@stored
@dataclass(frozen=True)
class Multinomial(OfSums):
    """Multinomial components over v words. concentration : of the Dirichlet prior on each component's words, at least 1."""

    n_components: int
    n_words: int
    concentration: float = 1.1
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "multinomial"
    words: ClassVar[Words] = Words(
        name="multinomial mixture",
        title="A mixture of {k} multinomials",
        component="topic",
        components="topics",
        location="word probabilities",
    )
    location: ClassVar[str] = "log_prob"
    impossible_advice: ClassVar[str] = "Raise model.concentration above 1, so that every word keeps some probability."

    @property
    def search(self) -> SearchEffort:  # type: ignore[override]  # by its size
        """Of many starts that soon settle: responsibilities of documents are nearly 0 or 1, and optima many."""
        starts = max(4, min(32, START_ENTRIES // (self.n_components * self.n_words)))
        return SearchEffort(starts=starts, first=8, merged=8)

    @property
    def shift(self) -> Array:  # type: ignore[override]  # of no rows in particular
        """(v,) zeros: counts keep their origin."""
        return np.zeros(self.n_words)

    @property
    def n_features(self) -> int:
        return self.n_words

    @property
    def fields(self) -> Fields:
        return {"log_prob": Field(("component", "feature"), LOG_SIMPLEX)}

    def facts(self) -> dict[str, Any]:
        return {"concentration": self.concentration}

    def theta(self, **arrays: Array) -> WordProbabilities:
        return WordProbabilities(np.asfortranarray(arrays["log_prob"]))

    def log_joint(self, theta: WordProbabilities, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        found: Array = kernels.counts_log_joint(CountsProblem(log_weights, theta.log_prob), x)
        return found

    def e_step(
        self, theta: WordProbabilities, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any
    ) -> Pass:
        # m_step adds the prior to sum_x: what is left out of 2^40 words does not reach its last bit.
        least = (self.concentration - 1.0) * 2.0**-93
        sums = kernels.counts_pass(CountsProblem(log_weights, theta.log_prob, hard, least), x, weight)
        return Pass(sums.log_norm, sums.sum_w, CountStats(sums.sum_x, sums.log_coefficient), sums.entropy)

    def statistics(self, theta: WordProbabilities | None, x: Matrix, resp: Array) -> CountStats:
        sum_x = (sp.csr_array(resp.T) @ sp.csr_array(x)).toarray(order="F")
        return CountStats(sum_x, float(resp.sum(axis=1) @ log_coefficients(x)))

    def statistics_bytes(self) -> int:
        return 8 * self.n_components * self.n_words

    def label_statistics(self, x: Matrix, labels: Array, weight: Array) -> CountStats:
        member = sp.csr_array((weight, (labels, np.arange(len(labels)))), shape=(self.n_components, len(labels)))
        sum_x = (member @ sp.csr_array(x)).toarray(order="F")
        return CountStats(sum_x, float(weight @ log_coefficients(x)))

    def m_step(self, stats: CountStats, sum_w: Array, theta: WordProbabilities | None) -> WordProbabilities:
        k, v = stats.sum_x.shape
        counts = stats.sum_x + (self.concentration - 1.0)
        total = counts.sum(axis=1, keepdims=True)
        before = np.full((k, v), -np.log(v)) if theta is None else theta.log_prob
        with np.errstate(divide="ignore", invalid="ignore"):
            log_prob = np.where(total > 0, np.log(counts) - np.log(total), before)
        return self.theta(log_prob=log_prob)

    def expected_log_joint(self, theta: WordProbabilities, weights: Array, sum_w: Array, stats: CountStats) -> float:
        return super().expected_log_joint(theta, weights, sum_w, stats) + stats.log_coefficient

    def expected_log_densities(self, theta: WordProbabilities, sum_w: Array, stats: CountStats) -> Array:
        counts = stats.sum_x
        return np.multiply(counts, theta.log_prob, out=np.zeros_like(counts), where=counts > 0).sum(axis=1)

    def log_prior(self, theta: WordProbabilities) -> float:
        """(concentration - 1) sum_kv log theta_kv, up to a constant."""
        if self.concentration == 1.0:
            return 0.0
        return float((self.concentration - 1.0) * theta.log_prob.sum())

    def step_squares(
        self, stats: CountStats, sum_w: Array, theta: WordProbabilities, new: WordProbabilities
    ) -> tuple[float, ...]:
        """m_k Σ_v Δθ²/θ, summed; m_k : expected words of component k, per document."""
        words = stats.sum_x.sum(axis=1) / sum_w.sum()
        before = np.exp(theta.log_prob)
        return (words @ relative_squares(words, np.exp(new.log_prob) - before, before),)

    def change_squares(
        self, change: CountStats, change_w: Array, stats: CountStats, sum_w: Array, theta: WordProbabilities
    ) -> tuple[float, ...]:
        total, prob = sum_w.sum(), np.exp(theta.log_prob)
        words = stats.sum_x.sum(axis=1)
        counts = words + self.n_features * (self.concentration - 1.0)
        moved = (change.sum_x - change.sum_x.sum(axis=1, keepdims=True) * prob) / counts[:, None]
        squares = words / total * relative_squares(words, moved, prob)
        return (squares.sum(),)

    def feasible(self, stats: CountStats, known: CountStats) -> CountStats:
        """Expected counts that would be negative stay as they are; with many rare words there are always some."""
        return replace(stats, sum_x=np.where(stats.sum_x > 0, stats.sum_x, known.sum_x))

    def collapsed(self, theta: WordProbabilities, sum_w: Array) -> list[tuple[int, str]]:
        return [(int(k), f"{sum_w[k]:.3g} effective documents, fewer than 1") for k in np.flatnonzero(sum_w < 1.0)]

    def reset(
        self,
        new: WordProbabilities,
        old: WordProbabilities,
        stats: CountStats,
        sum_w: Array,
        collapsed: Array,
        places: Any,
    ) -> WordProbabilities:
        """Halfway between the new place, a document, and the words of all documents."""
        log_prob = new.log_prob.copy()
        for k, place in places.items():
            log_prob[k] = _halfway(place, stats.sum_x.sum(axis=0), self.concentration)
        return self.theta(log_prob=log_prob)

    def start_at(self, rows: Array, summary: Summary | None) -> WordProbabilities:
        """Halfway between each row and the words of all documents."""
        background = np.ones(self.n_words) if summary is None else summary.mean
        theta = np.exp([_halfway(row, background, self.concentration) for row in rows])
        return self.theta(log_prob=_log_shares(theta))

    def start_near_mean(self, summary: Summary, draws: Array) -> WordProbabilities:
        words = summary.mean * (1.0 + 0.01 * draws) + max(self.concentration - 1.0, 0.0) / self.n_features
        return self.theta(log_prob=_log_shares(np.maximum(words, 0.0)))

    def sample(
        self, theta: WordProbabilities, labels: Array, rng: np.random.Generator, n_counts: int = WORDS
    ) -> Matrix:
        """Documents of n_counts words each."""
        prob = np.exp(theta.log_prob)
        prob /= prob.sum(axis=1, keepdims=True)
        rows = [rng.multinomial(n_counts, prob[k], int((labels == k).sum())) for k in range(self.n_components)]
        order = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
        return sp.csr_array(np.vstack(rows)[order])


def _halfway(document: Array, background: Array, concentration: float) -> Array:
    """Log probabilities halfway between one document's words and those of all documents, (v,)."""
    background = background + max(concentration - 1.0, 0.0)
    own = document / max(document.sum(), 1.0)
    return _log_shares(own + background / max(background.sum(), np.finfo(np.float64).tiny))


def _log_shares(counts: Array) -> Array:
    """Log of each row's shares, (..., v); equal shares if every count is 0."""
    counts = np.where(counts.sum(axis=-1, keepdims=True) > 0, counts, 1.0)
    with np.errstate(divide="ignore"):
        return np.log(counts) - np.log(counts.sum(axis=-1, keepdims=True))


_LEAST_CONCENTRATION = 1.1  # of a fit to few documents: any word may come


def _no_word(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("write null for none, or {weights: …} above 1; the prior of the words is model.concentration")
    return value


class WeightPriorSection(Section):
    """A conjugate prior on the weights; `concentration` is that of the words."""

    weights: float = Option(gt=1, description="Dirichlet concentration of the weights")


class MultinomialSection(ClusterSection):
    """A mixture of multinomials over counts, such as words in documents."""

    family: Literal["multinomial"] = Option("multinomial", description="a mixture of multinomials, for counts")
    prior: Annotated[WeightPriorSection | None, BeforeValidator(_no_word)] = Option(
        None,
        description="conjugate prior on the weights, for the most probable parameters; null: none; or {weights: 2}",
    )
    concentration: float = Option(1.1, ge=1, description="Dirichlet prior on words: counts + concentration - 1")
    fixed: list[Literal["weights"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    words: ClassVar[Words] = Multinomial.words
    counts: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "docword", "path": "docword.txt.gz", "vocabulary": "vocab.txt"},
        "model": {"family": "multinomial", "n_components": 20},
    }
    template_help: ClassVar[str] = (
        "Set data.path to your counts (UCI's docword format: D, W and NNZ on a line each, then `document word count` lines), "
        "data.vocabulary to their words or null, and model.n_components to how many topics you look for."
    )

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k] = self.n_components
        of_weights = 1.0 if self.prior is None else self.prior.weights
        component = Multinomial(k, len(summary.mean), self.concentration)
        return Mixture(component, assignment, "weights" in self.fixed, of_weights)

    def for_few_rows(self) -> Self:
        return self.model_copy(update={"concentration": max(self.concentration, _LEAST_CONCENTRATION)})
