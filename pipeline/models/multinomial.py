"""Multinomial mixture for counts: log p(x | k) = log n! - sum_v log x_v! + sum_v x_v log theta_kv.

Rows are sparse and never made dense. MAP under a Dirichlet prior: theta_k is proportional to
the expected counts + concentration - 1, and the weights likewise under their own. [Nigam, McCallum, Thrun and Mitchell 2000]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.special import xlogy

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError
from pipeline.kernels.base import CountsProblem
from pipeline.kernels.counts import log_coefficients
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import (
    MAX_RESETS,
    Mixture,
    MixtureStats,
    Reset,
    checked_arrays,
    checked_weights,
    log_dirichlet,
    map_weights,
    relative_square,
    share_with,
    weighted_total,
)
from pipeline.models.stats import Partial, Rows
from pipeline.models.words import Words


@dataclass(frozen=True)
class MultinomialParams:
    """weights : (k,).  log_prob : (k, v), log theta; -inf where a word cannot occur."""

    weights: Array
    log_prob: Array

    def arrays(self) -> dict[str, Array]:
        """The parameters by name."""
        return {"weights": self.weights, "log_prob": self.log_prob}


@dataclass(frozen=True)
class MultinomialStats(MixtureStats):
    """sum_x : (k, v) expected counts.  log_coefficient : total log multinomial coefficient, nats."""

    sum_x: Array
    log_coefficient: float


@dataclass(frozen=True)
class Multinomial(Mixture):
    """Hyperparameters of a multinomial mixture. shift : (v,), all 0 (counts keep their origin).
    concentration, weight_concentration : the Dirichlet's of the words of each component, and of the weights.
    """

    n_components: int
    shift: Array
    concentration: float = 1.1
    assignment: str = "soft"
    fixed: tuple[str, ...] = ()
    weight_concentration: float = 1.0

    family: ClassVar[str] = "multinomial"
    words: ClassVar[Words] = Words(
        name="multinomial mixture",
        title="A mixture of {k} multinomials",
        component="topic",
        components="topics",
        location="word probabilities",
    )
    stats_class: ClassVar[type[MixtureStats]] = MultinomialStats
    impossible_advice: ClassVar[str] = "Raise model.concentration above 1, so that every word keeps some probability."

    def log_joint(self, params: MultinomialParams, x: Rows) -> Array:
        return KERNELS.counts_log_joint(self._problem(params), x)

    def chunk_stats(self, params: MultinomialParams, x: Rows, weight: Array | None) -> tuple[MultinomialStats, Array]:
        sums = KERNELS.counts_pass(self._problem(params), x, weight)
        log_likelihood = weighted_total(weight, sums.log_norm)
        stats = MultinomialStats(sums.sum_w, log_likelihood, sums.entropy, sums.sum_x, sums.log_coefficient)
        return stats, sums.log_norm

    def _problem(self, params: MultinomialParams) -> CountsProblem:
        # m_step adds the prior to sum_x: what is left out of 2^40 words does not reach its last bit.
        least = (self.concentration - 1.0) * 2.0**-93
        with np.errstate(divide="ignore"):
            log_weights = np.log(params.weights)
        return CountsProblem(log_weights, params.log_prob, self.assignment == "hard", least)

    def stats_of_labels(self, x: Rows, labels: Array, weight: Array | None = None) -> MultinomialStats:
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        own = np.maximum(labels, 0)
        member = sp.csr_array((weights, (own, np.arange(len(own)))), shape=(self.n_components, len(own)))
        return MultinomialStats(
            np.bincount(own, weights=weights, minlength=self.n_components),
            0.0,
            0.0,
            (member @ sp.csr_array(x)).toarray(order="F"),
            float(weights @ log_coefficients(x)),
        )

    def m_step(self, stats: MultinomialStats, params: MultinomialParams | None) -> MultinomialParams:
        k, v = stats.sum_x.shape
        weights = map_weights(stats.sum_w, self.weight_concentration)
        if "weights" in self.fixed:
            weights = np.full(k, 1.0 / k) if params is None else params.weights
        counts = stats.sum_x + (self.concentration - 1.0)
        total = counts.sum(axis=1, keepdims=True)
        held = np.full((k, v), -np.log(v)) if params is None else params.log_prob
        with np.errstate(divide="ignore", invalid="ignore"):
            log_prob = np.where(total > 0, np.log(counts) - np.log(total), held)
        return MultinomialParams(weights, np.asfortranarray(log_prob))  # word by word, as the kernels read it

    def expected_log_joint(self, stats: MultinomialStats, params: MultinomialParams) -> float:
        live = stats.sum_w > 0  # 0 log 0 = 0
        counts = stats.sum_x[live]
        words = np.multiply(counts, params.log_prob[live], out=np.zeros_like(counts), where=counts > 0)
        return float(np.sum(xlogy(stats.sum_w, params.weights)) + np.sum(words) + stats.log_coefficient)

    def log_prior(self, params: MultinomialParams) -> float:
        """(concentration - 1) sum_kv log theta_kv, and the same of the weights unless they are held, up to constants."""
        value = 0.0 if "weights" in self.fixed else log_dirichlet(params.weights, self.weight_concentration)
        if self.concentration == 1.0:
            return value
        return value + float((self.concentration - 1.0) * params.log_prob.sum())

    def fisher_norm(self, stats: MultinomialStats, params: MultinomialParams, new: MultinomialParams) -> float:
        """Σ_k Δπ²/π + m_k Σ_v Δθ²/θ, and its root; m_k : expected words of component k, per document."""
        words = stats.sum_x.sum(axis=1) / stats.sum_w.sum()
        weights = relative_square(new.weights - params.weights, params.weights)
        theta = np.exp(params.log_prob)
        return float(np.sqrt(weights.sum() + words @ relative_square(np.exp(new.log_prob) - theta, theta).sum(axis=1)))

    def change_norm(self, change: MultinomialStats, stats: MultinomialStats, params: MultinomialParams) -> float:
        total, theta = stats.sum_w.sum(), np.exp(params.log_prob)
        words = stats.sum_x.sum(axis=1)
        counts = words + self.n_features * (self.concentration - 1.0)
        moved = (change.sum_x - change.sum_x.sum(axis=1, keepdims=True) * theta) / counts[:, None]
        squares = words / total * relative_square(moved, theta).sum(axis=1)
        weights = (change.sum_w - stats.sum_w * (change.sum_w.sum() / total)) / total
        held = "weights" in self.fixed
        return float(np.sqrt(squares.sum() + (0.0 if held else relative_square(weights, params.weights).sum())))

    def feasible(self, stats: MultinomialStats, known: MultinomialStats) -> MultinomialStats | None:
        """Expected counts that would fall below zero stay as they are: of many rare words some always would."""
        if not (stats.sum_w > 0).all():
            return None
        return replace(stats, sum_x=np.where(stats.sum_x > 0, stats.sum_x, known.sum_x))

    def collapsed(self, params: MultinomialParams, sum_w: Array) -> list[tuple[int, str]]:
        return [(int(k), f"{sum_w[k]:.3g} effective documents, fewer than 1") for k in np.flatnonzero(sum_w < 1.0)]

    def stats_from_arrays(self, arrays: Mapping[str, Array]) -> MixtureStats:
        return super().stats_from_arrays({**arrays, "sum_x": np.asfortranarray(arrays["sum_x"])})

    def revive(
        self, new: MultinomialParams, params: MultinomialParams, partial: Partial, resets: Array
    ) -> tuple[MultinomialParams, list[Reset]]:
        """A component with less than one effective document starts again at the next worst-fit document,
        halfway between it and the words of all documents.
        """
        stats, worst = partial.stats, partial.worst
        sick = self.collapsed(new, stats.sum_w)
        if not sick:
            return new, []
        weights, log_prob = new.weights, new.log_prob.copy()
        places = iter(worst.x.toarray() if sp.issparse(worst.x) else worst.x)
        done: list[Reset] = []
        for k, reason in sick:
            place = next(places, None) if resets[k] < MAX_RESETS else None
            done.append(Reset(k, reason, place is not None))
            if place is not None:
                log_prob[k] = start_at(place, stats.sum_x.sum(axis=0), self.concentration)
        if "weights" not in self.fixed:
            weights = share_with(weights, np.array([reset.component for reset in done if reset.done], dtype=int))
        return MultinomialParams(weights, log_prob), done

    def n_free_parameters(self) -> int:
        k, v = self.n_components, self.n_features
        return k * (v - 1) + (0 if "weights" in self.fixed else k - 1)

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> MultinomialParams:
        k, v = self.n_components, self.n_features
        finite = {**arrays, "log_prob": np.maximum(arrays.get("log_prob", np.empty(0)), -1e300)}
        values = checked_arrays(finite, {"weights": (k,), "log_prob": (k, v)})
        log_prob = np.where(values["log_prob"] <= -1e300, -np.inf, values["log_prob"])
        sums = np.exp(log_prob).sum(axis=1)
        if not np.allclose(sums, 1.0):
            k = int(np.abs(sums - 1.0).argmax())
            raise InputError(f"initial log_prob: exp sums to {sums[k]:.6g} for component {k}, expected 1.")
        return MultinomialParams(checked_weights(values["weights"]), np.asfortranarray(log_prob))  # as after an M-step

    def reorder(self, params: MultinomialParams, order: Array) -> MultinomialParams:
        return MultinomialParams(params.weights[order], params.log_prob[order])

    def positions(self, params: MultinomialParams) -> Array:
        return params.log_prob


def start_at(document: Array, background: Array, concentration: float) -> Array:
    """(v,) log probabilities halfway between one document's words and everybody's."""
    background = background + max(concentration - 1.0, 0.0)
    own = document / max(document.sum(), 1.0)
    return log_shares(own + background / max(background.sum(), np.finfo(np.float64).tiny))


def log_shares(counts: Array) -> Array:
    """(..., v) log of each row's shares; equal shares where every count is 0."""
    counts = np.where(counts.sum(axis=-1, keepdims=True) > 0, counts, 1.0)
    with np.errstate(divide="ignore"):
        return np.log(counts) - np.log(counts.sum(axis=-1, keepdims=True))
