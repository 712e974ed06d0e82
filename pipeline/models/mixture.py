"""Mixtures: log p(x) = log sum_k pi_k p(x | theta_k), for any kind of component.

The mixture adds weights, responsibilities, labels, resets and the weights' part of a step to a `Component`.
[Dempster, Laird and Rubin 1977; McLachlan and Peel 2000]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Representatives, Rows
from pipeline.arrays.tiles import first_few_then_tiles, tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.losses import add_removals
from pipeline.models.base import Attachment, Evidence, Expectation, Reset, Totals, weighted_total
from pipeline.models.clusters import ClusterModel, Labels, Removal, SearchEffort, Summary, WorstRows
from pipeline.models.component import Pass
from pipeline.models.resets import reset
from pipeline.models.schema import SIMPLEX, Field, Fields
from pipeline.models.weights import log, log_dirichlet, log_sum_exp, map_weights
from pipeline.models.words import Words


@dataclass(frozen=True)
class MixtureParams:
    """weights : (k,).  theta : the component's parameters."""

    weights: Array
    theta: Any


@stored
@dataclass(frozen=True)
class MixtureStats(Additive):
    """sum_w : (k,) soft counts N_k.  component : the component's statistics."""

    sum_w: Array
    component: Any


@stored
@dataclass(frozen=True)
class Mixture(ClusterModel):
    """Weights times components.

    Attributes
    ----------
    component : Component
    assignment : {'soft', 'hard'}
    fixed_weights : bool
        Whether weights stay at their initial values.
    weight_concentration : float or array, shape (k,)
        Of the weights' Dirichlet prior, at least 1; 1 is none.
    """

    component: Any
    assignment: str = "soft"
    fixed_weights: bool = False
    weight_concentration: float | Array = 1.0

    @property
    def family(self) -> str:  # type: ignore[override]  # the component's
        return str(self.component.family)

    @property
    def words(self) -> Words:  # type: ignore[override]  # the component's
        return Words(*self.component.words)

    @property
    def location(self) -> str:  # type: ignore[override]  # the component's
        return str(self.component.location)

    @property
    def unit_rows(self) -> bool:  # type: ignore[override]  # the component's
        return bool(self.component.unit_rows)

    @property
    def incomplete(self) -> bool:  # type: ignore[override]  # the component's
        return bool(self.component.incomplete)

    @property
    def search(self) -> SearchEffort:  # type: ignore[override]  # the component's
        return SearchEffort(*self.component.search)

    @property
    def shift(self) -> Array:  # type: ignore[override]  # the component's
        return np.asarray(self.component.shift)

    @property
    def n_components(self) -> int:
        return int(self.component.n_components)

    @property
    def least_rows(self) -> int:
        return int(self.component.least_rows)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {**super().sizes, **self.component.sizes}

    @property
    def fields(self) -> Fields:
        return {"weights": Field(("component",), SIMPLEX), **self.component.fields}

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]  # of weights and component
        return (*(("weights",) if self.fixed_weights else ()), *self.component.fixed)

    @property
    def label(self) -> str:
        return "-".join(filter(None, [super().label, self.component.label]))

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **self.component.facts(), "assignment": self.assignment, "fixed": list(self.fixed)}

    @property
    def floor(self) -> float:
        return self.component.floor

    @property
    def hard(self) -> bool:
        """Whether each row belongs to one component entirely."""
        return self.assignment == "hard"

    @property
    def exact(self) -> bool:
        return not self.hard

    @property
    def extrapolates(self) -> bool:
        return not self.hard  # labels jump: there is nothing to extrapolate

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return (WorstRows(min(self.n_components, 8)),)

    def with_components(self, k: int) -> Mixture:
        return replace(self, component=replace(self.component, n_components=k))

    def for_rows(self, what: str) -> Mixture:
        """Return the same mixture for rows with missing entries ("missing"), or with known errors ("errors")."""
        return replace(self, component=getattr(self.component, f"with_{what}")())

    def plain(self, x: Matrix) -> Matrix:
        return self.component.plain(x)

    def scratch_bytes(self) -> int:
        return int(self.component.scratch_bytes())

    def prepared_bytes(self) -> int:
        return int(self.component.prepared_bytes())

    def without_fixed(self, field: str) -> Mixture:
        rest = tuple(name for name in self.component.fixed if name != field)
        return self if rest == self.component.fixed else replace(self, component=replace(self.component, fixed=rest))

    def params(self, **arrays: Array) -> MixtureParams:
        return MixtureParams(arrays.pop("weights"), self.component.theta(**arrays))

    def arrays(self, params: MixtureParams) -> dict[str, Array]:
        return {"weights": params.weights, **self.component.arrays(params.theta)}

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> MixtureParams:
        params: MixtureParams = super().params_from_arrays(arrays)
        broken = np.flatnonzero(self.component.broken(params.theta))
        if len(broken):
            raise InputError(
                f"initial covariances: that of component {broken[0]} is not positive definite; give positive eigenvalues."
            )
        return params

    def log_joint(self, params: MixtureParams, x: Matrix, kernels: Any) -> Array:
        """Return log pi_k + log p(x | theta_k), nats, (n, k) float64."""
        return self.component.log_joint(params.theta, self._log_weights(params), x, kernels)

    def e_step(self, params: MixtureParams, rows: Rows, kernels: Any) -> Expectation:
        found = self._by_label(params, rows, kernels)
        log_likelihood = weighted_total(rows.weight, found.log_norm)
        score = found.log_norm if rows.weight is None else np.where(rows.weight > 0, found.log_norm, np.inf)
        if not np.isfinite(log_likelihood):
            self._refuse_impossible(score, rows.start)
        figures = found.entropy + found.more_entropy, log_likelihood, found.entropy, found.skipped
        return Expectation(self._stats(found), Evidence(rows.total_weight, *figures), score)

    def _stats(self, found: Pass) -> MixtureStats:
        return MixtureStats(found.sum_w, found.stats)

    def _by_label(self, params: MixtureParams, rows: Rows, kernels: Any) -> Pass:
        """The pass over a chunk, by known component; -1 for rows of which it is not known."""
        labels = self.checked_labels(rows)
        if labels is None:
            return self._pass(params, -1, rows.x, rows.weight, kernels)
        total, log_norm = None, np.empty(rows.n)
        for label in np.unique(labels):
            chosen = np.flatnonzero(labels == label)
            weight = None if rows.weight is None else rows.weight[chosen]
            part = self._pass(params, int(label), rows.x[chosen], weight, kernels)
            log_norm[chosen] = part.log_norm
            total = part[1:] if total is None else tuple(a + b for a, b in zip(total, part[1:], strict=True))
        assert total is not None, "a chunk has at least one row"
        return Pass(log_norm, *total)

    def _pass(self, params: MixtureParams, label: int, x: Matrix, weight: Array | None, kernels: Any) -> Pass:
        """The pass over rows of one known component, for which all other weights are 0; -1: it is not known."""
        log_weights = self._log_weights(params)
        if label >= 0:
            log_weights = np.where(np.arange(self.n_components) == label, log_weights, -np.inf)
        return Pass(*self.component.e_step(params.theta, log_weights, x, weight, self.hard, kernels))

    def _log_weights(self, params: MixtureParams) -> Array:
        return log(params.weights)

    def _log_noise(self, params: MixtureParams) -> float:
        """Log joint density of noise, the same for all rows."""
        return -np.inf

    def log_norm(self, params: MixtureParams, log_joint: Array) -> Array:
        """log p(x) of rows, (n,), from their log joints (n, k)."""
        return log_sum_exp(log_joint)

    def _refuse_impossible(self, score: Array, start: int) -> None:
        """Raise InputError for a row without density. score : (n,) log-densities, inf for rows of weight 0."""
        bad = np.flatnonzero(~(score > -np.inf))
        if len(bad):
            raise InputError(
                f"row {start + bad[0]}: log-density {score[bad[0]]}; no component can produce it. "
                f"{self.component.impossible_advice}"
            )

    def m_step(self, stats: MixtureStats, params: MixtureParams | None) -> MixtureParams:
        weights = np.full(self.n_components, 1.0 / self.n_components) if params is None else params.weights
        if not self.fixed_weights:
            weights = map_weights(stats.sum_w, self.weight_concentration)
        theta = None if params is None else params.theta
        return MixtureParams(weights, self.component.m_step(stats.component, stats.sum_w, theta))

    def expected_log_joint(self, stats: MixtureStats, params: MixtureParams) -> float:
        return float(self.component.expected_log_joint(params.theta, params.weights, stats.sum_w, stats.component))

    def log_prior(self, params: MixtureParams) -> float:
        of_weights = 0.0 if self.fixed_weights else log_dirichlet(params.weights, self.weight_concentration)
        return float(self.component.log_prior(params.theta)) + of_weights

    def fisher_norm(self, totals: Totals, params: MixtureParams, new: MixtureParams) -> float:
        """sqrt of sum_k Δπ²/π + the components' part."""
        stats = totals.stats
        squares = relative_square(new.weights - params.weights, params.weights).sum()
        parts = self.component.step_squares(stats.component, stats.sum_w, params.theta, new.theta)
        return float(np.sqrt(sum([squares, *parts])))

    def change_norm(self, change: Totals, totals: Totals, params: MixtureParams) -> float:
        stats, moved = totals.stats, change.stats
        parts = self.component.change_squares(moved.component, moved.sum_w, stats.component, stats.sum_w, params.theta)
        if parts is None:
            return super().change_norm(change, totals, params)
        total = stats.sum_w.sum()
        weights = (moved.sum_w - stats.sum_w * (moved.sum_w.sum() / total)) / total
        squares = 0.0 if self.fixed_weights else relative_square(weights, params.weights).sum()
        return float(np.sqrt(sum([squares, *parts])))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        stats = totals.stats
        if not (stats.sum_w > 0).all():
            return None
        component = self.component.feasible(stats.component, known.stats.component)
        return replace(totals, stats=MixtureStats(stats.sum_w, component))

    def is_valid(self, params: MixtureParams, stats: MixtureStats) -> bool:
        return not self.collapsed(params, stats.sum_w)

    def counts(self, stats: MixtureStats) -> Array:
        return stats.sum_w

    def shares(self, params: MixtureParams, stats: MixtureStats | None) -> Array:
        return params.weights

    def collapsed(self, params: MixtureParams, counts: Array) -> list[tuple[int, str]]:
        return list(self.component.collapsed(params.theta, counts))

    def reset(
        self,
        new: MixtureParams,
        old: MixtureParams,
        stats: MixtureStats,
        attached: Mapping[str, Any],
        resets: tuple[int, ...],
    ) -> tuple[MixtureParams, list[Reset]]:
        """See `resets.reset`."""
        weights, theta, done = reset(self, new, old, stats, attached, resets)
        return (replace(new, weights=weights, theta=theta), done) if done else (new, [])

    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> MixtureStats:
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        own = np.maximum(labels, 0)
        sum_w = np.bincount(own, weights=weights, minlength=self.n_components)
        return MixtureStats(sum_w, self.component.label_statistics(x, own, weights))

    def start_at(self, rows: Array, summary: Summary) -> MixtureParams:
        return self._equal_weights(self.component.start_at(rows, summary))

    def start_near_mean(self, summary: Summary, draws: Array) -> MixtureParams:
        return self._equal_weights(self.component.start_near_mean(summary, draws))

    def _equal_weights(self, theta: Any) -> MixtureParams:
        return MixtureParams(np.full(self.n_components, 1.0 / self.n_components), theta)

    def assign(self, params: MixtureParams, x: Matrix, kernels: Any) -> Iterator[tuple[slice, Labels]]:
        for rows in self._tiles(x):
            log_joint = self.component.near_log_joint(params.theta, self._log_weights(params), x[rows], 1, kernels)
            log_norm = self.log_norm(params, log_joint)
            log_resp = log_joint - log_norm[:, None]
            yield rows, Labels(log_joint.argmax(axis=1).astype(np.int32), log_norm, log_resp)

    def most_probable(self, params: MixtureParams, x: Matrix, kernels: Any) -> Array:
        """Return the component of highest responsibility of each row, (n,): as `assign`, without the other responsibilities."""
        labels = np.empty(x.shape[0], np.int32)
        for rows in tiles(x.shape[0], 2**13):  # large: what is prepared for each is much of the work
            near = self.component.near_log_joint(params.theta, self._log_weights(params), x[rows], 0, kernels)
            labels[rows] = near.argmax(axis=1)
        return labels

    def blurred(self, params: MixtureParams, variance: float) -> MixtureParams:
        """Return the parameters of rows with errors of one variance in all directions; of a mixture `for_rows("errors")`."""
        return replace(params, theta=self.component.blurred(params.theta, variance))

    def score_rows(self, params: MixtureParams, x: Matrix, kernels: Any) -> Array:
        return np.concatenate([labels.score for _, labels in self.assign(params, x, kernels)] or [np.empty(0)])

    def representatives(
        self, params: MixtureParams, rows: Rows, found: Expectation, limit: int, kernels: Any
    ) -> Representatives:
        total: Representatives | None = None
        for part in first_few_then_tiles(rows.n, tile_height(self.n_features, self.n_components)):
            live = np.arange(part.start, part.stop)
            if rows.weight is not None:
                live = live[rows.weight[part] > 0]
            log_joint = self.log_joint(params, rows.x[live], kernels)
            log_resp = log_joint - self.log_norm(params, log_joint)[:, None]
            if total is not None:
                chosen = total.challengers(log_resp, log_joint)
                live, log_joint, log_resp = live[chosen], log_joint[chosen], log_resp[chosen]
            best = Representatives.of(limit, rows.start + live, log_resp, log_joint, rows.x[live])
            total = best if total is None else total + best
        assert total is not None, "a chunk has at least one row"
        return total

    def removal_costs(self, params: MixtureParams, x: Matrix, weight: Array | None, kernels: Any) -> Removal:
        n, log_weights, log_noise = x.shape[0], self._log_weights(params), self._log_noise(params)
        cost, label, second = np.zeros(self.n_components), np.empty(n, np.int32), np.empty(n, np.int32)
        weights = np.ones(n) if weight is None else weight
        for rows in self._tiles(x):
            log_joint = self.component.near_log_joint(params.theta, log_weights, x[rows], 2, kernels)
            add_removals(log_joint, log_noise, weights[rows], cost, label[rows], second[rows])
        return Removal.of(cost, label, second, weight)

    def responsibilities(self, params: MixtureParams, x: Matrix, least: float, kernels: Any) -> sp.csr_array:
        parts = []
        for _, labels in self.assign(params, x, kernels):
            shares = np.exp(labels.log_resp)
            shares[shares < least] = 0.0
            parts.append(sp.csr_array(shares))
        return sp.csr_array(sp.vstack(parts))

    def implementations(self, params: MixtureParams, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        return dict(self.component.implementations(params.theta, dtype, kernels))

    def sample(self, params: MixtureParams, n: int, rng: np.random.Generator) -> tuple[Matrix, Array]:
        """Return rows drawn from the mixture, (n, d), and their components, (n,), in the order of the components."""
        counts = rng.multinomial(n, params.weights / params.weights.sum())
        labels = np.repeat(np.arange(len(counts)), counts)
        return self.component.sample(params.theta, labels, rng), labels

    def statistics_bytes(self) -> int:
        return 8 * self.n_components + int(self.component.statistics_bytes())

    def score_products(self, params: MixtureParams | None, fully: bool) -> Any:
        return self.component.score_products(self, params, fully)

    def _tiles(self, x: Matrix) -> Iterator[slice]:
        return tiles(x.shape[0], tile_height(self.n_features, self.n_components))


def relative_squares(share: Array, change: Array, value: Array) -> Array:
    """Return sums of change² / value (k, d), shape (k,); 0 for a component with share 0."""
    return np.where(share > 0, relative_square(change, value).sum(axis=1), 0.0)


def relative_square(change: Array, value: Array) -> Array:
    """Return change² / value, and 0 for 0/0."""
    return np.divide(change * change, value, out=np.where(change == 0, 0.0, np.inf), where=value > 0)
