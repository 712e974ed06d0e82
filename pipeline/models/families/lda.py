"""Latent Dirichlet allocation: each document has shares of topics, theta ~ Dirichlet(alpha), and each of its words a topic.

    p(x | alpha, topics) = C(x) ∫ p(theta | alpha) prod_v (sum_k theta_k p(v | k))^x_v dtheta,    C(x) = n! / prod_v x_v!

The posterior is approximated by independent q(theta) and q(topic of a word), so the objective is a bound below the
log-likelihood. The M-step is a closed form for the topics, MAP under a Dirichlet prior as in a multinomial mixture, and
Newton's method for alpha. [Blei, Ng and Jordan 2003; Minka 2000]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field as Option
from scipy.special import digamma, gammaln, polygamma

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Representatives, Rows
from pipeline.arrays.tiles import tiles
from pipeline.errors import InputError
from pipeline.kernels.base import TopicsProblem, TopicsSums
from pipeline.kernels.counts import log_coefficients
from pipeline.models.base import Attachment, Evidence, Expectation, LatentModel, RowArray, Totals
from pipeline.models.clusters import ClusterModel, Labels, Summary, WorstRows, predicted, ranked_arrays
from pipeline.models.families.multinomial import Multinomial, MultinomialSection
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, relative_squares
from pipeline.models.schema import LOG_SIMPLEX, POSITIVE, Field, Fields
from pipeline.models.words import Words

NEWTON_STEPS = 100  # 5 to 10 are needed
DECREMENT = 1e-26  # squared Newton decrement per document, in nats, at which alpha has no more to gain
NEAR = 1e-6  # decrement, in nats, below which whole steps are made: rounding of the objective may hide what they gain
WORDS = 100  # of a document that is drawn
TILE = 4096  # documents whose shares are there at a time


@dataclass(frozen=True)
class Topics:
    """alpha : (k,).  log_prob : (k, v), log p(word | topic); -inf for impossible words. Stored word by word."""

    alpha: Array
    log_prob: Array


@stored
@dataclass(frozen=True)
class TopicStats(Additive):
    """Sums over documents.

    sum_w : of weights.  sum_x : (k, v) expected counts.  sum_log_theta, sum_theta : (k,) of E log theta and E theta.
    constant : of the expected log joint, the terms without parameters, nats.
    """

    sum_w: float
    sum_x: Array
    sum_log_theta: Array
    sum_theta: Array
    constant: float


@stored
@dataclass(frozen=True)
class LatentDirichlet(LatentModel):
    """Latent Dirichlet allocation over v words.

    Attributes
    ----------
    concentration : float
        Of the Dirichlet prior on the words of each topic, at least 1; 1 is maximum likelihood.
    prior : float or None
        The fixed alpha of all topics; None if it is learned.
    tol : float
        Nats that the bound of a document may still gain when its iterations end.
    """

    n_components: int
    n_words: int
    concentration: float = 1.1
    prior: float | None = None
    tol: float = 1e-8

    family: ClassVar[str] = "lda"
    words: ClassVar[Words] = Words(
        name="latent Dirichlet allocation",
        title="Latent Dirichlet allocation with {k} topics",
        component="topic",
        components="topics",
        location="word probabilities",
        objective="bound",
        score="bound",
        score_text="bound on the log-density",
    )
    location: ClassVar[str] = "log_prob"
    represents: ClassVar[bool] = True
    traced: ClassVar[Mapping[str, tuple[str, ...]]] = {"n_effective": ("component",)}

    @property
    def exact(self) -> bool:
        return False

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]  # alpha, if it is not learned
        return () if self.prior is None else ("alpha",)

    @property
    def fields(self) -> Fields:
        return {"alpha": Field(("component",), POSITIVE), "log_prob": Field(("component", "feature"), LOG_SIMPLEX)}

    @property
    def sizes(self) -> dict[str, int]:
        return {"component": self.n_components, "feature": self.n_words}

    @property
    def n_features(self) -> int:
        """Words of the vocabulary, v."""
        return self.n_words

    @property
    def label(self) -> str:
        return f"k{self.n_components}"

    def facts(self) -> dict[str, Any]:
        of_alpha = "learned" if self.prior is None else self.prior
        sizes = {"n_components": self.n_components, "n_features": self.n_words}
        return {**sizes, "concentration": self.concentration, "doc_topic_prior": of_alpha}

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return (WorstRows(min(self.n_components, 8)),)

    def params(self, **arrays: Array) -> Topics:
        return Topics(arrays["alpha"], np.asfortranarray(arrays["log_prob"]))

    @property
    def starts_as(self) -> ClusterModel:
        return Mixture(Multinomial(self.n_components, self.n_words, self.concentration))

    def started(self, params: Any) -> Topics:
        """Return topics that begin as the components of a multinomial mixture, with equal alpha of 1/K or the fixed one."""
        alpha = 1.0 / self.n_components if self.prior is None else self.prior
        return Topics(np.full(self.n_components, alpha), params.theta.log_prob)

    def e_step(self, params: Topics, rows: Rows, kernels: Any) -> Expectation:
        found = self._pass(params, rows.x, rows.weight, False, kernels)
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        if (impossible := (found.bound == -np.inf) & (weight > 0)).any():
            raise InputError(
                f"row {rows.start + int(impossible.argmax())}: log-density -inf; no topic can produce it. Raise "
                "model.concentration above 1, so that every word keeps some probability."
            )
        stats = TopicStats(rows.total_weight, found.sum_x, found.sum_log_theta, found.sum_theta, found.constant)
        score = found.bound if rows.weight is None else np.where(weight > 0, found.bound, np.inf)
        return Expectation(stats, Evidence(rows.total_weight, found.entropy), score)

    def _pass(self, params: Topics, x: Matrix, weight: Array | None, shares: bool, kernels: Any) -> TopicsSums:
        problem = TopicsProblem(params.alpha, params.log_prob, self.tol, shares)
        found: TopicsSums = kernels.topics_pass(problem, x, weight)
        return found

    def m_step(self, stats: TopicStats, params: Topics | None) -> Topics:
        counts = stats.sum_x + (self.concentration - 1.0)
        total = counts.sum(axis=1, keepdims=True)
        before = np.full(counts.shape, -np.log(self.n_words)) if params is None else params.log_prob
        with np.errstate(divide="ignore", invalid="ignore"):
            log_prob = np.where(total > 0, np.log(counts) - np.log(total), before)
        alpha = np.full(self.n_components, self.prior or 1.0 / self.n_components) if params is None else params.alpha
        if self.prior is None:
            alpha = best_alpha(stats.sum_log_theta / stats.sum_w, alpha)
        return self.params(alpha=alpha, log_prob=log_prob)

    def expected_log_joint(self, stats: TopicStats, params: Topics) -> float:
        words = np.multiply(stats.sum_x, params.log_prob, out=np.zeros_like(stats.sum_x), where=stats.sum_x > 0)
        of_shares = stats.sum_w * _log_normalizer(params.alpha) + (params.alpha - 1.0) @ stats.sum_log_theta
        return float(words.sum() + of_shares + stats.constant)

    def log_prior(self, params: Topics) -> float:
        """(concentration - 1) sum_kv log p(v | k), up to a constant."""
        return 0.0 if self.concentration == 1.0 else float((self.concentration - 1.0) * params.log_prob.sum())

    def fisher_norm(self, totals: Totals, params: Topics, new: Topics) -> float:
        """sqrt of sum_k m_k Δp²/p + Δalpha' I Δalpha; m_k : expected words of topic k, per document."""
        words, prob = totals.stats.sum_x.sum(axis=1) / totals.stats.sum_w, np.exp(params.log_prob)
        squares = words @ relative_squares(words, np.exp(new.log_prob) - prob, prob)
        step = new.alpha - params.alpha
        of_alpha = step @ (_trigamma(params.alpha) * step) - _trigamma(params.alpha.sum()) * step.sum() ** 2
        return float(np.sqrt(squares + max(0.0, of_alpha)))

    def change_norm(self, change: Totals, totals: Totals, params: Topics) -> float:
        stats, moved = totals.stats, change.stats
        words, prob = stats.sum_x.sum(axis=1), np.exp(params.log_prob)
        counts = words + self.n_words * (self.concentration - 1.0)
        step = (moved.sum_x - moved.sum_x.sum(axis=1, keepdims=True) * prob) / counts[:, None]
        square = (words / stats.sum_w * relative_squares(words, step, prob)).sum()
        if self.prior is None and self.n_components > 1:
            mean = (moved.sum_log_theta - stats.sum_log_theta * (moved.sum_w / stats.sum_w)) / stats.sum_w
            square += mean @ _inverse_information(params.alpha, mean)
        return float(np.sqrt(max(0.0, square)))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        """Expected counts that would be negative stay as they are; E log theta must be that of some shares."""
        stats, possible = totals.stats, known.stats
        mean = stats.sum_log_theta / stats.sum_w
        if not ((mean < 0).all() and np.exp(mean).sum() < 1.0):
            return None
        sum_x = np.where(stats.sum_x > 0, stats.sum_x, possible.sum_x)
        sum_theta = np.where(stats.sum_theta > 0, stats.sum_theta, possible.sum_theta)
        return replace(totals, stats=replace(stats, sum_x=sum_x, sum_theta=sum_theta))

    def shares(self, params: Topics, stats: TopicStats) -> Array:
        return stats.sum_theta / stats.sum_theta.sum()

    def trace(self, stats: TopicStats) -> dict[str, Array]:
        """n_effective : documents of each topic, the sum of their shares."""
        return {"n_effective": stats.sum_theta}

    def score_rows(self, params: Topics, x: Matrix, kernels: Any) -> Array:
        return self._pass(params, x, None, False, kernels).bound

    def words_of(self, x: Matrix) -> tuple[Array, Array]:
        return np.asarray(x.sum(axis=1), dtype=np.float64), log_coefficients(x)

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        return {**super().row_arrays(top_k), **ranked_arrays(top_k), "label": RowArray("int32", -1)}

    def predict(self, params: Topics, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the bound, the largest shares of topics, and the topic with the largest as the label."""
        return predicted(self, params, rows.x, top_k, kernels)

    def assign(self, params: Topics, x: Matrix, kernels: Any) -> Iterator[tuple[slice, Labels]]:
        """Yield the topic with the largest share, the bound and the log shares, (n, k), tile by tile."""
        for part in tiles(x.shape[0], TILE):
            found = self._pass(params, x[part], None, True, kernels)
            yield part, Labels(found.shares.argmax(axis=1).astype(np.int32), found.bound, np.log(found.shares))

    def representatives(
        self, params: Topics, rows: Rows, found: Expectation, limit: int, kernels: Any
    ) -> Representatives:
        """Return the documents with the largest share of each topic; of equal shares the longer ones."""
        live = np.arange(rows.n) if rows.weight is None else np.flatnonzero(rows.weight > 0)
        x, total = rows.x[live], None
        for part, labels in self.assign(params, x, kernels):
            words = np.asarray(x[part].sum(axis=1), dtype=np.float64)
            likely = labels.log_resp + words[:, None]
            best = Representatives.of(limit, rows.start + live[part], labels.log_resp, likely, x[part])
            total = best if total is None else total + best
        none = np.empty((self.n_components, 0))
        return total or Representatives(limit, none.astype(np.int64), none, none, np.empty((self.n_components, 0, 0)))

    def statistics_bytes(self) -> int:
        return 2 * 8 * self.n_components * (self.n_words + 1)  # with the probabilities word by word

    def sample(self, params: Topics, n: int, rng: np.random.Generator, n_counts: int = WORDS) -> Matrix:
        """Return n documents of n_counts words each, (n, v) CSR."""
        import scipy.sparse as sp

        prob = np.exp(params.log_prob)
        mixed = rng.dirichlet(params.alpha, n) @ (prob / prob.sum(axis=1, keepdims=True))
        return sp.csr_array(rng.multinomial(n_counts, mixed / mixed.sum(axis=1, keepdims=True)))


def best_alpha(mean: Array, start: Array) -> Array:
    """Return the alpha of the Dirichlet distribution with given E log theta, the maximum of a concave function.

    Newton's method, with the inverse of a diagonal matrix plus one of rank one; steps are halved while they leave the
    positive numbers or lower the objective. [Minka 2000, eq. 15 to 18]

    Parameters
    ----------
    mean : array, shape (k,)
        Mean of E log theta over the documents.
    start : array, shape (k,)
    """
    if len(start) == 1:  # theta is 1, whatever alpha
        return start
    alpha, value, before = start, _dirichlet(start, mean), np.inf
    for _ in range(NEWTON_STEPS):
        gradient = digamma(alpha.sum()) - digamma(alpha) + mean
        step = _inverse_information(alpha, gradient)
        decrement = gradient @ step
        near = decrement < NEAR
        if decrement < DECREMENT or (near and not decrement < before):  # the second: only rounding is left
            break
        size = 1.0
        while (alpha + size * step <= 0.1 * alpha).any():
            size *= 0.5
        new = alpha + size * step
        while (gained := _dirichlet(new, mean)) < value and size > 1e-8 and not near:
            size *= 0.5
            new = alpha + size * step
        if not (near or gained >= value):
            break
        alpha, value, before = new, gained, decrement
    return alpha


def _dirichlet(alpha: Array, mean: Array) -> float:
    """Mean log density of a Dirichlet distribution, nats."""
    return _log_normalizer(alpha) + float((alpha - 1.0) @ mean)


def _log_normalizer(alpha: Array) -> float:
    return float(gammaln(alpha.sum()) - gammaln(alpha).sum())


def _inverse_information(alpha: Array, vector: Array) -> Array:
    """I⁻¹ vector, where I = diag trigamma(alpha) - trigamma(sum alpha) is the Fisher information of a Dirichlet distribution."""
    own, common = _trigamma(alpha), _trigamma(alpha.sum())
    scaled = vector / own
    return scaled + (common * scaled.sum() / (1.0 - common * (1.0 / own).sum())) / own


def _trigamma(x: Any) -> Any:
    return polygamma(1, x)


class LdaSection(ClusterSection):
    """Latent Dirichlet allocation over counts, such as words in documents."""

    family: Literal["lda"] = Option("lda", description="latent Dirichlet allocation: several topics in a document")
    concentration: float = Option(
        1.1,
        ge=1,
        description="Dirichlet prior on the words of a topic: counts + concentration - 1; 1: maximum likelihood",
    )
    doc_topic_prior: Literal["learned"] | Annotated[float, Option(gt=0)] = Option(
        "learned",
        description="alpha, the Dirichlet parameter of a document's topics: learned for each topic, or a fixed number",
    )
    doc_tol: float = Option(
        1e-8, gt=0, description="nats that the bound of a document may still gain when its own iterations end"
    )

    words: ClassVar[Words] = LatentDirichlet.words
    assignments: ClassVar[tuple[str, ...]] = ("soft",)
    criteria: ClassVar[tuple[str, ...]] = ("heldout",)
    takes_labels: ClassVar[bool] = False
    has_overlap: ClassVar[bool] = False
    counts: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    default_tol: ClassVar[float] = 1e-2
    template: ClassVar[dict[str, Any]] = {**MultinomialSection.template, "model": {"family": "lda", "n_components": 20}}
    template_help: ClassVar[str] = MultinomialSection.template_help

    def build(self, summary: Summary, assignment: str) -> LatentDirichlet:
        [k] = self.n_components
        prior = None if self.doc_topic_prior == "learned" else float(self.doc_topic_prior)
        return LatentDirichlet(k, len(summary.mean), self.concentration, prior, self.doc_tol)

    def for_few_rows(self) -> Self:
        return self.model_copy(update={"concentration": max(self.concentration, 1.1)})
