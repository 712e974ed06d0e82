"""Fewer components: those that the rest explain are removed, and pairs that one can stand for are merged.

The cost of removing a component is sum_n -log(1 - r_nk), exact while the others are fixed. It is high for each half of a cluster that
two components share, because the other half is as narrow as its rows. One component with the moments of both may cost next to
nothing. The statistics of two components add, so pairs are screened without a pass, by

    Q_i + Q_j - Q_ij        Q : expected log joint at the parameters of largest Q; of Gaussians (N_i log|S_i| + ... - N_ij log|S_ij|) / 2

and the cost of the best is computed from the rows, the others fixed. [Ueda, Nakano, Ghahramani and Hinton 2000]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.kernels.losses import add_merges
from pipeline.models import schema
from pipeline.models.base import EStep
from pipeline.models.clusters import ClusterModel, Removal
from pipeline.models.component import OfSums
from pipeline.models.mixture import Mixture, MixtureParams, MixtureStats

T = TypeVar("T")
NEIGHBOURS = 3  # of each component, with which a merge is considered
TRIED = 10  # merges at least, whose costs are computed from the rows
SCREENED_BYTES = 2**23  # of the statistics of pairs that are screened at once


class SearchRows(Protocol):
    """Rows in memory: `pipeline.engine.memory_rows.MemoryRows`."""

    @property
    def x(self) -> Matrix:
        """(m, d)."""

    @property
    def weight(self) -> Array | None:
        """(m,), or None for ones."""

    @property
    def read(self) -> list[int]:
        """[rows that were read so far]."""

    @property
    def n_rows(self) -> int:
        """m."""

    @property
    def kernels(self) -> Any:
        """Compiled kernels."""

    @property
    def known(self) -> Array:
        """Components of which some rows are known, ascending."""

    def head(self, m: int) -> SearchRows:
        """Return the first m rows, a sample."""

    def mapped(self, function: Callable[[Array], Array]) -> SearchRows:
        """Return the same rows with function(x) for x."""

    def sum_over(self, jobs: Sequence[Callable[[Rows, Any], Any]]) -> list[Any]:
        """Return sums of jobs over all rows."""

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """Return function(item) for each item, in order."""


@dataclass(frozen=True)
class RemovalCosts:
    """Job: the cost of removing each component, and the next-best components: see `ClusterModel.removal_costs`."""

    model: ClusterModel
    params: Any

    def __call__(self, rows: Rows, kernels: Any) -> Removal:
        """Return those of one chunk."""
        return self.model.removal_costs(self.params, rows.x, rows.weight, kernels)


@dataclass(frozen=True)
class MergeCosts:
    """Job: what log p(X) loses where one component stands for two, the others unchanged, (p,).

    model, params : of k + p components, the last p for the pairs.  pairs : (p, 2) int.
    """

    model: Mixture
    params: Any
    pairs: Array

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        """Return the costs on one chunk, nats."""
        lost, k = np.zeros(len(self.pairs)), self.model.n_components - len(self.pairs)
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        for part in tiles(rows.n, tile_height(self.model.n_features, self.model.n_components)):
            log_joint = self.model.log_joint(self.params, rows.x[part], kernels)
            log_norm = self.model.log_norm(self.params, log_joint[:, :k])
            add_merges(log_joint, log_norm, weight[part], self.pairs, lost)
        return lost


class Fewer(NamedTuple):
    """A way to have one component less. goes : the component that goes.  stays : the one that takes over its rows, or becomes `merged`."""

    cost: float
    goes: int
    stays: int
    merged: int | None = None


def narrowed(
    model: Any, params: Any, k: int, rows: SearchRows, apart: Collection[tuple[int, int]] = ()
) -> tuple[Any, Any]:
    """Return a model of k components and its parameters: the cheapest removals and merges are made, some at a time.

    Components with known rows keep their indices, the others move up. apart : pairs that are not merged at first, halves of one.
    """
    while model.n_components > k:
        excess = model.n_components - k
        wide, merged, ways = _ways(model, params, rows, max(TRIED, 2 * excess), apart)
        apart = ()
        stay = _stay(_taken(ways, excess, rows.known), model.n_components, rows.known)
        model, params = only(wide, merged, stay)
    return model, params


def least_costs(model: ClusterModel, params: Any, rows: SearchRows, most: int) -> list[float]:
    """Return the costs of having one component less, two, and so on to `most`, each above the one before."""
    ways = _ways(model, params, rows, max(TRIED, 2 * most))[2]
    return [way.cost for way in _taken(ways, most, rows.known)]


def _ways(
    model: Any, params: Any, rows: SearchRows, tried: int, apart: Collection[tuple[int, int]] = ()
) -> tuple[Any, Any, list[Fewer]]:
    """The ways to have one component less, and a model, with its parameters, that has the merged components after its own."""
    merges = merges_of(model)
    sums = rows.sum_over([RemovalCosts(model, params), *([EStep(model, params)] if merges else [])])
    cost, next_best = sums[0].cost, sums[0].next_best
    near = _neighbours(next_best, 1)
    ways = [Fewer(float(cost[i]), i, near[i][0] if near[i] else 0) for i in range(len(cost))]
    if not merges:
        return model, params, ways
    wide, merged, more = _merges(model, params, sums[1].stats, next_best, tried, rows, apart)
    return wide, merged, ways + more


def merges_of(model: ClusterModel) -> bool:
    """Whether merges are considered.

    A centre that is removed loses as much as one that is merged. What is fixed cannot be merged, nor what all components share.
    """
    if not isinstance(model, Mixture) or model.fixed or not isinstance(model.component, OfSums):
        return False
    return all(field.component_axes for field in model.component.fields.values())


def _merges(
    model: Mixture,
    params: MixtureParams,
    stats: MixtureStats,
    next_best: sp.csr_array,
    tried: int,
    rows: SearchRows,
    apart: Collection[tuple[int, int]],
) -> tuple[Mixture, MixtureParams, list[Fewer]]:
    """The model with a component for each of the `tried` best pairs after its own, its parameters, and the merges."""
    k = model.n_components
    near = _neighbours(next_best, NEIGHBOURS)
    considered = {(min(i, j), max(i, j)) for i in range(k) for j in near[i] if i != j}
    unknown = [pair for pair in sorted(considered.difference(apart)) if not np.isin(pair, rows.known).any()]
    if not unknown:
        return model, params, []
    own = _most(model, stats, np.repeat(np.arange(k)[:, None], 2, axis=1))  # of twice the rows
    pairs = np.array(unknown)
    screened = 0.5 * own[pairs].sum(axis=1) - _most(model, stats, pairs)
    order = [p for p in np.argsort(screened, kind="stable")[:tried] if np.isfinite(screened[p])]
    if not order:
        return model, params, []
    best = pairs[order]
    joint = model.with_components(len(best))
    of_pairs = joint.m_step(_of_pairs(model, stats, best), None)
    arrays = schema.joined(model.fields, model.arrays(params), joint.arrays(of_pairs))
    arrays["weights"][k:] = params.weights[best].sum(axis=1)
    wide = model.with_components(k + len(best))
    merged = wide.params_from_arrays(schema.normalized(model.fields, arrays))
    costs = rows.sum_over([MergeCosts(wide, merged, best)])[0]
    return wide, merged, [Fewer(float(costs[p]), int(j), int(i), k + p) for p, (i, j) in enumerate(best)]


def _neighbours(next_best: sp.csr_array, most: int) -> list[list[int]]:
    """For each component, at most `most` that are next best for its rows, the most frequent first; ties go to the lowest."""
    found, at = [], next_best.indptr
    for i in range(next_best.shape[0]):
        column, weight = next_best.indices[at[i] : at[i + 1]], next_best.data[at[i] : at[i + 1]]
        found.append([int(column[e]) for e in np.lexsort((column, -weight))[:most] if weight[e] > 0])
    return found


def _of_pairs(model: Mixture, stats: MixtureStats, pairs: Array) -> MixtureStats:
    first, second = np.asarray(pairs).T
    component = model.component.of_pairs(stats.component, first, second)
    return replace(stats, sum_w=stats.sum_w[first] + stats.sum_w[second], component=component)


def _most(model: Mixture, stats: MixtureStats, pairs: Array) -> Array:
    """The expected log densities of the rows of pairs at the parameters of one component that fit them best, (p,) nats."""
    at_once, found = max(1, SCREENED_BYTES * model.n_components // model.statistics_bytes()), []
    for start in range(0, len(pairs), at_once):
        summed = _of_pairs(model, stats, pairs[start : start + at_once])
        component = model.with_components(len(summed.sum_w)).component
        theta = component.m_step(summed.component, summed.sum_w, None)
        most = component.expected_log_densities(theta, summed.sum_w, summed.component)
        found.append(np.where(component.broken(theta), -np.inf, most))
    return np.concatenate(found)


def _taken(ways: Sequence[Fewer], excess: int, known: Array) -> list[Fewer]:
    """The cheapest ways that can be taken together, at most `excess`.

    The component that takes over the rows of another stays: two that share a cluster would both seem unnecessary. So do those with
    known rows.
    """
    gone: set[int] = set()
    staying: set[int] = set(known.tolist())
    taken: list[Fewer] = []
    for way in sorted(ways, key=lambda way: way.cost):
        free = way.goes not in gone and way.goes not in staying
        if way.merged is not None:
            free = free and way.stays not in gone and way.stays not in staying
        if free and len(taken) < excess:
            taken.append(way)
            gone.add(way.goes)
            staying.add(way.stays)
    return taken


def _stay(taken: Sequence[Fewer], k: int, known: Array) -> Array:
    """Indices of the components that stay, merged ones among them; those with known rows keep their indices, the others move up."""
    place = np.arange(k)
    for way in taken:
        if way.merged is not None:
            place[way.stays] = way.merged
    rest = np.delete(np.arange(k), [way.goes for way in taken])
    if not len(known):
        return place[rest]
    order = np.full(len(rest), -1)
    order[known] = known
    order[order < 0] = np.setdiff1d(rest, known)
    return place[order]


def only(model: Any, params: Any, components: Array) -> tuple[Any, Any]:
    """Return a model of the given components, and its parameters."""
    fewer = model.with_components(len(components))
    arrays = schema.selected(model.fields, model.arrays(params), components)
    return fewer, fewer.params_from_arrays(schema.normalized(model.fields, arrays))


def parameters_of_one(model: ClusterModel) -> int:
    """Return the number of free parameters of a component beside its weight."""
    return model.with_components(2).n_free_parameters() - model.with_components(1).n_free_parameters() - 1
