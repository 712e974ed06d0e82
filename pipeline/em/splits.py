"""Splits: two components in place of one, fitted to the rows of the one.

By Jensen's inequality, with the responsibilities of the one, the gain of a split is a lower bound of the gain of the objective.
[Ueda, Nakano, Ghahramani and Hinton 2000]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows, unit
from pipeline.em.merging import SearchRows
from pipeline.errors import SingularCovariance
from pipeline.models.base import EStep
from pipeline.models.clusters import ClusterModel

LEAST_SHARE = 0.05  # of a row, for it to take part in the fit of a split
SPLIT_ROWS = 4096  # of one component that the fit of a split looks at
SPLIT_STEPS, MORE_STEPS = 4, 16  # of a fit from each half, and, of mixtures, of the better one
SETTLED = 1e-2  # nats a row: a smaller gain ends the fit of a split
MARGIN = 4  # times the rows below which a component is collapsed: no move ends with fewer, unless it gains more than chance would


@dataclass(frozen=True)
class Responsibilities:
    """Job: responsibilities of at least LEAST_SHARE, sparse (n, k); in a list of one, so that sums concatenate."""

    model: ClusterModel
    params: Any

    def __call__(self, rows: Rows, kernels: Any) -> list[sp.csr_array]:
        return [self.model.responsibilities(self.params, rows.x, LEAST_SHARE, kernels)]


@dataclass(frozen=True)
class OwnCosts:
    """Job: the sum of the rows' costs of each centre, such as squared distances, (k,)."""

    model: ClusterModel
    params: Any

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        found = self.model.e_step(self.params, rows, kernels)
        assert found.label is not None, "centres have labels"
        cost = np.where(found.score < np.inf, -found.score, 0.0)
        return np.bincount(found.label, cost if rows.weight is None else rows.weight * cost, self.model.n_components)


class Split(NamedTuple):
    """Two components in place of one. gain : lower bound, nats or squared distance.  read : rows read for it."""

    component: int
    gain: float
    params: Any
    read: int


def splits_of(model: ClusterModel, params: Any, rows: SearchRows, tried: int) -> list[Split]:
    """For each component, two that are fitted to its own rows; the largest gain first. tried : of centres, those that cost most."""
    k = np.arange(model.n_components)
    if model.of_centers and tried < len(k):
        k = np.argsort(-rows.sum_over([OwnCosts(model, params)])[0], kind="stable")[:tried]
    shares = sp.csc_array(sp.vstack(rows.sum_over([Responsibilities(model, params)])[0]))

    def split(k: Any) -> Split:
        own = slice(shares.indptr[k], shares.indptr[k + 1])
        index, share = shares.indices[own], shares.data[own]
        if rows.weight is not None:
            share = share * rows.weight[index]
        total = share.sum()
        index, share = index[:SPLIT_ROWS], share[:SPLIT_ROWS]  # a head of the sample
        if not (share > 0).any() or share.sum() < 2 * MARGIN * model.least_rows:
            return Split(int(k), -np.inf, None, 0)
        try:
            best = _fit_two(model, Rows(rows.x[index], share), rows.kernels)
        except SingularCovariance:  # its rows lie in fewer dimensions than there are: no place for two
            return Split(int(k), -np.inf, None, 0)
        return best._replace(component=int(k), gain=best.gain * total / share.sum())

    splits = list(rows.map(split, k))
    read = sum(each.read for each in splits)
    # A row of two components takes a mixture less time than one of all; of centres, bounds exclude most in any case.
    rows.read[0] += read if model.of_centers else 2 * read // model.n_components
    return sorted(splits, key=lambda each: -each.gain)


def _fit_two(model: ClusterModel, rows: Rows, kernels: Any) -> Split:
    """Fit two components to weighted rows, and compare with one."""
    x, weight = model.plain(rows.x), rows.weight
    one = model.with_components(1)
    params = one.m_step(one.label_statistics(x, np.zeros(rows.n, dtype=np.int64), weight), None)
    before = one.objective(EStep(one, params)(rows, kernels).totals, params)
    two = model.with_components(2)
    halves = _halves(unit(x) if model.unit_rows else x, weight)[: 1 if model.of_centers else 2]
    least, passes, best = MARGIN * model.least_rows, 2, None
    for labels in halves:
        params = two.m_step(two.label_statistics(x, labels.astype(np.int64), weight), None)
        for _ in range(SPLIT_STEPS):
            params = two.m_step(EStep(two, params)(rows, kernels).stats, params)
        found = _Fit.of(two, params, rows, kernels)
        passes += SPLIT_STEPS + 2
        if found.fewest >= least and (best is None or found.objective > best.objective):
            best = found
    if best is None:
        return Split(-1, -np.inf, None, passes * rows.n)
    more = 0 if model.of_centers else MORE_STEPS  # in many features two clusters that overlap take so many to part
    for _ in range(more):
        found = _Fit.of(two, two.m_step(best.stats, best.params), rows, kernels)
        passes += 1
        if found.fewest < least:
            break
        gained, best = found.objective - best.objective, found
        if gained < SETTLED * rows.total_weight:
            break
    return Split(-1, best.objective - before, best.params, passes * rows.n)


class _Fit(NamedTuple):
    """Parameters of two components and what an E-step finds. fewest : soft counts of the smaller one."""

    params: Any
    stats: Any
    objective: float
    fewest: float

    @classmethod
    def of(cls, two: ClusterModel, params: Any, rows: Rows, kernels: Any) -> _Fit:
        totals = EStep(two, params)(rows, kernels).totals
        return cls(params, totals.stats, two.objective(totals, params), float(two.counts(totals.stats).min()))


def _halves(x: Matrix, weight: Any) -> list[Array]:
    """Labels to begin a split from, (n,) bool: the sides of the axis of largest variance; near and far rows (scale mixtures)."""
    share = weight / weight.sum()
    mean = share @ x
    axis = np.ones(x.shape[1]) / np.sqrt(x.shape[1])
    for _ in range(8):  # power iterations
        along = x @ axis - mean @ axis
        axis = (share * along) @ x - (share @ along) * mean
        length = np.linalg.norm(axis)
        if length == 0:
            break
        axis = axis / length
    along = np.asarray(x @ axis - mean @ axis)
    found = [along > 0]
    if not sp.issparse(x):
        far = ((x - mean) ** 2).sum(axis=1)
        found.append(far > np.median(far))
    return found
