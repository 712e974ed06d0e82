"""Moves from one local optimum to a better one: components that gain by a split replace those that are hardly needed.

A round splits `many` components where two fitted to their own rows gain most, refines all of them, and then removes or merges,
some at a time, those whose rows the others, or one for two, explain nearly as well (em/merging.py). Where no split is accepted any more,
births take the place of splits (em/births.py). The result is accepted
only if the objective rose and no component is near collapse. Two runs are merged in the same way: the components of both,
less those that are least needed. Components with known rows stay. [Ueda, Nakano, Ghahramani and Hinton 2000; Fränti 2018; Fritzke 2020]

Gains and costs follow from the responsibilities: by Jensen's inequality the gain of a split is a lower bound of the
gain of the objective, and the cost of removing a component is exact while the others are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows, unit
from pipeline.em.accumulate import Method
from pipeline.em.births import Birth, births, have_births
from pipeline.em.loop import em
from pipeline.em.merging import RemovalCosts, SearchRows, least_costs, narrowed, only, parameters_of_one
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.errors import SingularCovariance
from pipeline.models import schema
from pipeline.models.base import EStep, LatentModel
from pipeline.models.clusters import ClusterModel

T = TypeVar("T")
ACCELERATED = Method(accelerated=True)
MOST_SPLITS = 8  # in one round, or a 16th of the components; halved when a round fails
SPLIT_SHARE = 16
SPLITS_TRIED = 2  # times the splits of a round: centres for which two are fitted
PATIENCE = 4  # single splits of a mixture, in the order of their gains, that fail before moves end
HOPE = 0.5  # of the cost of having a component less: what such a split must gain, by its lower bound
ROUNDING = 1e-9  # of the objective: a smaller gain is none
LEAST_SHARE = 0.05  # of a row, for it to take part in the fit of a split
SPLIT_ROWS = 4096  # of one component that the fit of a split looks at
SPLIT_STEPS, MORE_STEPS = 4, 16  # of a fit from each half, and, of mixtures, of the better one
SETTLED = 1e-2  # nats a row: a smaller gain ends the fit of a split
WITH_BIRTHS = 1.5  # of the budget of splits: so many rows may be read before the last birth
SPLITTING = 37  # passes, about, to find components to split, to compare gains with costs and chance, and to merge
WIDE_STEPS = 4  # with more components than asked for
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


def most_passes(iterations: int) -> int:
    """Return how many passes so many iterations take at most, with rejected steps and the last evaluation."""
    return iterations + iterations // 2 + 2


def round_passes(iterations: int) -> int:
    """Return how many passes a round of moves takes at most: splits and their costs, two refinements, and what is wide narrowed."""
    return SPLITTING + most_passes(WIDE_STEPS) + 2 * most_passes(iterations)


def refine(model: LatentModel, params: Any, rows: SearchRows, limits: Limits) -> Run:
    """Run EM on rows in memory until `limits`; return the finished run."""
    (run,) = refine_all([Run(0, model, params)], rows, limits)
    return run


def refine_all(runs: Sequence[Run], rows: SearchRows, limits: Limits) -> list[Run]:
    """Run EM on rows in memory for several runs that share each pass."""
    current = list(runs)
    for after, _ in em(runs, rows.sum_over, limits, rows.n_rows, ACCELERATED):
        current = after
    return current


def improve(run: Run, rows: SearchRows, limits: Limits, budget: float = np.inf) -> tuple[Run, list[int]]:
    """Make rounds of moves until single splits, and then births, are rejected.

    Parameters
    ----------
    run : Run
        Refined on these rows.
    rows : SearchRows
    limits : Limits
        Of the refinement after a move.
    budget : float
        Rows that may be read before the last round of splits begins; half as many more before the last birth.

    Returns
    -------
    run, moved : Run, list of int
        The run, and the number of components that each accepted round moved.
    """
    moved: list[int] = []
    k = _clusters(run).n_components
    many = min(max(MOST_SPLITS, k // SPLIT_SHARE), k)
    ends = [rows.read[0] + share * budget for _, share in KINDS]
    kind = idle = 0
    while idle < len(KINDS):
        end, gain, failed, patience = ends[kind], 0.0, 0, 1
        found = KINDS[kind][0](_clusters(run), run.params, rows, SPLITS_TRIED * many) if rows.read[0] < end else []
        if found and not _clusters(run).of_centers:
            many, hopeful = _worthwhile(run, found[: PATIENCE if kind else many], rows)
            patience = hopeful if kind else max(1, hopeful)
        while found[failed:] and failed < patience and rows.read[0] < end:
            try:
                candidate = _split_then_merge(run, rows, found[failed:], many)
                if candidate is None:
                    break
                (trial,) = refine_all([candidate], rows, limits)
                run, better = _compared(run, trial, rows, limits)
            except SingularCovariance:
                better = False
            if better and (near_empty(trial) <= near_empty(run) or _gains_without_few(trial, run, rows)):
                moved.append(many)
                gain, run = trial.objective - run.objective, trial
                break
            if many > 1:
                many //= 2
            else:
                failed += 1
        if gain > (limits.tol * rows.n_rows if have_births(run.model) else 0.0):
            idle = 0
        else:
            kind, idle = (kind + 1) % len(KINDS), idle + 1
    return run, moved


def _worthwhile(run: Run, splits: Sequence[Split | Birth], rows: SearchRows) -> tuple[int, int]:
    """How many splits to make at once: those that gain more than having a component less costs. And how many to try one by one.

    The first is at least 1.
    """
    costs = least_costs(_clusters(run), run.params, rows, len(splits))
    many = sum(bool(split.gain > cost) for split, cost in zip(splits, costs, strict=False))
    hopeful = sum(bool(split.gain > HOPE * cost) for split, cost in zip(splits, costs[:1] * PATIENCE, strict=False))
    return max(1, many), hopeful


def merge_runs(runs: Sequence[Run], rows: SearchRows, limits: Limits) -> list[Run]:
    """Return half as many runs: the best of each pair and of their merged components.

    runs : refined on these rows.  limits : of the refinement.
    """
    pairs = list(zip(runs[::2], runs[1::2], strict=False))
    try:
        children = [[child] for child in refine_all([_joint(a, b, rows) for a, b in pairs], rows, limits)]
    except SingularCovariance:
        children = [[]] * len(pairs)
    best = [_best([*pair, *child]) for pair, child in zip(pairs, children, strict=True)]
    return [*best, *runs[2 * len(pairs) :]]


def _clusters(run: Run) -> ClusterModel:
    assert isinstance(run.model, ClusterModel), "only components can be moved"
    return run.model


def _best(runs: Sequence[Run]) -> Run:
    """The run with the highest objective among those with the fewest near-empty components; ties go to the first."""
    return min(runs, key=lambda run: (near_empty(run), -run.objective))


def _joint(a: Run, b: Run, rows: SearchRows) -> Run:
    """A run with the components of both that are needed most; those with known rows are the first run's."""
    model = _clusters(a)
    k = model.n_components
    arrays = schema.joined(model.fields, model.arrays(a.params), model.arrays(b.params))
    wide = model.with_components(2 * k)
    params = wide.params_from_arrays(schema.normalized(model.fields, arrays))
    if len(rows.known):
        wide, params = only(wide, params, np.delete(np.arange(2 * k), k + rows.known))
    return Run(a.restart, model, narrowed(wide, params, k, rows)[1])


def _compared(run: Run, trial: Run, rows: SearchRows, limits: Limits) -> tuple[Run, bool]:
    """Return the current run and whether the candidate reached a better optimum.

    Reaching the same optimum with a higher objective does not count: if the current run might come as high in as many steps,
    each gaining no more than its last, it is refined too.
    """
    gap = trial.objective - run.objective
    last = run.objective - run.history[-1].objective
    if 0 < gap <= limits.max_iter * last:
        (run,) = refine_all([replace(run, final=None, stop_reason=None, history=(), accumulator=None)], rows, limits)
        gap = trial.objective - run.objective
    return run, gap > ROUNDING * abs(run.objective)


def near_empty(run: Run) -> int:
    """Return how many components are near collapse."""
    return int(_few(run).sum())


def _few(run: Run) -> Array:
    """Which components are near collapse, (k,) bool."""
    model = _clusters(run)
    return np.asarray(model.counts(_final(run).stats) < MARGIN * model.least_rows)


def _final(run: Run) -> Any:
    assert run.final is not None
    return run.final


def _gains_without_few(trial: Run, run: Run, rows: SearchRows) -> bool:
    """Whether the candidate is better even without what its components near collapse may gain by chance, or gain at all.

    By chance, the rows of a component can gain a nat for each of its parameters, and what it takes to say which rows they are.
    """
    model, few = _clusters(trial), _few(trial)
    if model.of_centers:
        return False
    total = float(rows.n_rows) if rows.weight is None else float(rows.weight.sum())
    size = np.maximum(model.counts(_final(trial).stats)[few], 1.0)
    chance = parameters_of_one(model) + size * np.log(total / size)
    [removal] = rows.sum_over([RemovalCosts(model, trial.params)])
    return bool(trial.objective - np.minimum(removal.cost[few], chance).sum() > run.objective)


def _split_then_merge(run: Run, rows: SearchRows, splits: Sequence[Split | Birth], many: int) -> Run | None:
    """One round: split `many` components, or add as many, then merge or remove as many. None if no component can be split."""
    model = _clusters(run)
    k = model.n_components
    chosen = [split for split in splits[:many] if split.gain > 0]
    if not chosen:
        return None
    wide = model.with_components(k + len(chosen))
    params = refine(wide, _with_splits(model, wide, run.params, chosen), rows, Limits(WIDE_STEPS, 0.0)).params
    halves = [(split.component, k + i) for i, split in enumerate(chosen) if isinstance(split, Split)]
    return Run(run.restart, model, narrowed(wide, params, k, rows, halves)[1])


def _splits(model: ClusterModel, params: Any, rows: SearchRows, tried: int) -> list[Split]:
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


def _with_splits(model: ClusterModel, wide: Any, params: Any, chosen: Sequence[Split | Birth]) -> Any:
    """Parameters with two components in place of each that is split, the second at the end, and with those that are born."""
    fields, two = model.fields, model.with_components(2)
    arrays = {name: value.copy() for name, value in model.arrays(params).items()}
    for split in chosen:
        if isinstance(split, Birth):
            arrays = schema.joined(fields, arrays, split.arrays)
            continue
        i, halves = split.component, two.arrays(split.params)
        for name, field in fields.items():
            if not field.component_axes:
                continue
            if field.is_share:
                halves[name] = halves[name] * arrays[name][i]
            arrays[name][i] = halves[name][0]
            arrays[name] = np.concatenate([arrays[name], halves[name][1:]])
    return wide.params_from_arrays(schema.normalized(fields, arrays))


def _births(model: ClusterModel, params: Any, rows: SearchRows, tried: int) -> list[Birth]:
    try:
        return births(model, params, rows)
    except SingularCovariance:  # all rows lie in fewer dimensions than there are
        return []


KINDS = (
    (_splits, 1.0),
    (_births, WITH_BIRTHS),
)  # of candidates, and the share of the budget when their last round begins
