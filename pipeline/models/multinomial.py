"""Multinomial mixture for counts: log p(x | k) = log n! - sum_v log x_v! + sum_v x_v log theta_kv.

Rows are sparse and never made dense. MAP under a Dirichlet prior: theta_k is proportional to
the expected counts + concentration - 1. [Nigam, McCallum, Thrun and Mitchell 2000]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln, xlogy

from pipeline.errors import InputError
from pipeline.models.base import MAX_RESETS, Mixture, MixtureStats, Reset, checked_arrays
from pipeline.models.posterior import Posterior
from pipeline.models.stats import Array, Partial, Rows


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
    """Hyperparameters of a multinomial mixture. shift : (v,), all 0 (counts keep their origin)."""

    n_components: int
    shift: Array
    concentration: float = 1.1
    assignment: str = "soft"
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "multinomial"
    impossible_advice: ClassVar[str] = "Raise model.concentration above 1, so that every word keeps some probability."

    def log_joint(self, params: MultinomialParams, x: Rows) -> Array:
        with np.errstate(divide="ignore"):
            log_weights = np.log(params.weights)
        return x @ params.log_prob.T + log_weights + _log_coefficient(x)[:, None]

    def tile_stats(
        self, centres: MultinomialParams | None, x: Rows, resp: Array, weight: Array, post: Posterior
    ) -> MultinomialStats:
        return MultinomialStats(
            resp.sum(axis=0),
            float(weight @ post.log_norm),
            float(weight @ post.entropy),
            np.ascontiguousarray((x.T @ resp).T),
            float(weight @ _log_coefficient(x)),
        )

    def m_step(self, stats: MultinomialStats, params: MultinomialParams | None) -> MultinomialParams:
        k, v = stats.sum_x.shape
        weights = stats.sum_w / stats.sum_w.sum()
        if "weights" in self.fixed:
            weights = np.full(k, 1.0 / k) if params is None else params.weights
        counts = stats.sum_x + (self.concentration - 1.0)
        total = counts.sum(axis=1, keepdims=True)
        held = np.full((k, v), -np.log(v)) if params is None else params.log_prob
        with np.errstate(divide="ignore", invalid="ignore"):
            return MultinomialParams(weights, np.where(total > 0, np.log(counts) - np.log(total), held))

    def expected_log_joint(self, stats: MultinomialStats, params: MultinomialParams) -> float:
        live = stats.sum_w > 0  # 0 log 0 = 0
        words = np.where(stats.sum_x[live] > 0, stats.sum_x[live] * params.log_prob[live], 0.0) if live.any() else 0.0
        return float(np.sum(xlogy(stats.sum_w, params.weights)) + np.sum(words) + stats.log_coefficient)

    def log_prior(self, params: MultinomialParams) -> float:
        """(concentration - 1) sum_kv log theta_kv, up to its constant."""
        if self.concentration == 1.0:
            return 0.0
        return float((self.concentration - 1.0) * params.log_prob.sum())

    def revive(
        self, new: MultinomialParams, params: MultinomialParams, partial: Partial, resets: Array
    ) -> tuple[MultinomialParams, list[Reset]]:
        """A component with less than one effective document starts again at the next worst-fit document,
        halfway between it and the words of all documents.
        """
        stats, worst = partial.stats, partial.worst
        sick = np.flatnonzero(stats.sum_w < 1.0)
        if not len(sick):
            return new, []
        weights, log_prob, k_total = new.weights.copy(), new.log_prob.copy(), self.n_components
        places = iter(worst.x.toarray() if sp.issparse(worst.x) else worst.x)
        done: list[Reset] = []
        for k in sick:
            place = next(places, None) if resets[k] < MAX_RESETS else None
            done.append(Reset(int(k), f"{stats.sum_w[k]:.3g} effective documents, fewer than 1", place is not None))
            if place is not None:
                log_prob[k] = start_at(place, stats.sum_x.sum(axis=0), self.concentration)
        if "weights" not in self.fixed:
            moved = np.array([reset.component for reset in done if reset.done], dtype=int)
            weights[moved] = 0.0
            weights *= (1.0 - len(moved) / k_total) / weights.sum()
            weights[moved] = 1.0 / k_total
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
        if not np.allclose(sums, 1.0) or not np.isclose(values["weights"].sum(), 1.0):
            raise InputError(
                f"initial weights sum to {values['weights'].sum():.6g} and exp(log_prob) to {sums}; expected 1 each."
            )
        return MultinomialParams(values["weights"], log_prob)

    def reorder(self, params: MultinomialParams, order: Array) -> MultinomialParams:
        return MultinomialParams(params.weights[order], params.log_prob[order])

    def positions(self, params: MultinomialParams) -> Array:
        return params.log_prob


def start_at(document: Array, background: Array, concentration: float) -> Array:
    """(v,) log probabilities halfway between one document's words and everybody's."""
    background = background + max(concentration - 1.0, 0.0)
    own = document / max(document.sum(), 1.0)
    mixed = own + background / background.sum()
    with np.errstate(divide="ignore"):
        return np.log(mixed / mixed.sum())


def _log_coefficient(x: Rows) -> Array:
    """(n,) log of the multinomial coefficient of each row."""
    counts = x.sum(axis=1)
    return gammaln(np.asarray(counts) + 1.0) - _row_sums(x)


def _row_sums(x: Rows) -> Array:
    """(n,) sums of log x! over the words of each row."""
    if not sp.issparse(x):
        return gammaln(x + 1.0).sum(axis=1)
    logs = sp.csr_array((gammaln(x.data + 1.0), x.indices, x.indptr), shape=x.shape)
    return logs.sum(axis=1)
