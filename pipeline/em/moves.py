"""Moves from one local optimum to a better one: components that gain by a split replace those that are hardly needed.

A round splits `many` components where two fitted to their own rows gain most, refines all of them, and then removes or merges,
some at a time, those whose rows the others, or one for two, explain nearly as well (em/merging.py). Where no split is accepted any more,
births take the place of splits (em/births.py). At last, of mixtures of few rows, splits and births that promise little are tried too. A result is
accepted only if the objective rose and no component is near collapse. Two runs are merged in the same way: the components of both,
less those that are least needed. Components with known rows stay. [Ueda, Nakano, Ghahramani and Hinton 2000; Fränti 2018; Fritzke 2020]

Gains of splits are lower bounds; the cost of removing a component is exact while the others are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.em.accumulate import Method
from pipeline.em.births import Birth, births, have_births
from pipeline.em.loop import em
from pipeline.em.merging import RemovalCosts, SearchRows, least_costs, narrowed, only, parameters_of_one
from pipeline.em.run import Run
from pipeline.em.splits import MARGIN, Split, splits_of
from pipeline.em.stopping import Limits
from pipeline.errors import SingularCovariance
from pipeline.models import schema
from pipeline.models.base import LatentModel
from pipeline.models.clusters import ClusterModel

ACCELERATED = Method(accelerated=True)
MOST_SPLITS = 8  # in one round, or a 16th of the components; halved when a round fails
SPLIT_SHARE = 16
SPLITS_TRIED = 2  # times the splits of a round: centres for which two are fitted
PATIENCE = 4  # single splits of a mixture, in the order of their gains, that fail before other moves are tried
HOPE = 0.5  # of the cost of having a component less: what such a split must gain, by its lower bound
LITTLE = 0.1  # of the same: what it must gain at last
TRIAL_STEPS = 36  # of EM at last, as long as the candidate may still reach the current objective:
REACH = 12  # in so many more steps, each gaining as much as the better of the last two
ROUNDING = 1e-9  # of the objective: a smaller gain is none
WITH_BIRTHS = 1.5  # of the budget of splits: so many rows may be read before the last birth
SPLITTING = 37  # passes, about, to find components to split, to compare gains with costs and chance, and to merge
WIDE_STEPS = 4  # with more components than asked for


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


def improve(
    run: Run, rows: SearchRows, limits: Limits, budget: float = np.inf, thorough: float = 0.0
) -> tuple[Run, list[int]]:
    """Make rounds of moves until splits, and then births, are rejected; after one that gains begin again with splits.

    Parameters
    ----------
    run : Run
        Refined on these rows.
    rows : SearchRows
    limits : Limits
        Of the refinement after a move.
    budget : float
        Rows that may be read before the last round of splits begins; half as many more before the last birth.
    thorough : float
        Rows that may be read before the last split or birth is tried that promises little.

    Returns
    -------
    run, moved : Run, list of int
        The run, and the number of components that each accepted round moved.
    """
    k = _clusters(run).n_components
    now = _Moving(run, rows, limits, min(max(MOST_SPLITS, k // SPLIT_SHARE), k))
    start, stage, known = rows.read[0], 0, dict[Any, list[Split | Birth]]()
    while stage < len(STAGES):
        propose, share = STAGES[stage]
        end, gain = start + (thorough if share is None else share * budget), 0.0
        if rows.read[0] < end:
            if propose not in known:
                found = propose(_clusters(now.run), now.run.params, rows, SPLITS_TRIED * now.many)
                known[propose] = [each for each in found if each.gain > 0]
            gain = now.after_rounds(known[propose], end, every=share is None)
        if gain > 0:
            known = {}
        stage = 0 if gain > (limits.tol * rows.n_rows if have_births(run.model) else 0.0) else stage + 1
    return now.run, now.moved


@dataclass
class _Moving:
    """A run that rounds of moves improve. many : splits in the next round.  moved : components that each accepted round moved."""

    run: Run
    rows: SearchRows
    limits: Limits
    many: int
    moved: list[int] = field(default_factory=list)

    def after_rounds(self, found: Sequence[Split | Birth], end: float, every: bool) -> float:
        """Make rounds until one is accepted, and return what it gains, or 0.

        found : splits or births, the largest gain first.  end : no round begins once so many rows were read.
        """
        failed, patience = 0, self._patience(found, every)
        while failed < patience and self.rows.read[0] < end:
            better = None
            with suppress(SingularCovariance):
                candidate = _split_then_merge(self.run, self.rows, found[failed:][: self.many])
                better = self._better(candidate, every)
            if better is not None:
                gain, self.run = better.objective - self.run.objective, better
                self.moved.append(self.many)
                return gain
            if self.many > 1:
                self.many //= 2
            else:
                failed += 1
        return 0.0

    def _patience(self, found: Sequence[Split | Birth], every: bool) -> int:
        """How many are tried one by one. Sets how many splits are made at once: those that gain more than having a component less costs."""
        if not found or _clusters(self.run).of_centers:
            return min(len(found), 1)
        births = isinstance(found[0], Birth)
        first = found[: PATIENCE if births else self.many]
        costs = least_costs(_clusters(self.run), self.run.params, self.rows, len(first)) or [np.inf]
        if every:
            return sum(bool(each.gain > LITTLE * costs[0]) for each in found)
        self.many = max(1, sum(bool(each.gain > cost) for each, cost in zip(first, costs, strict=False)))
        hopeful = sum(bool(each.gain > HOPE * costs[0]) for each in found[:PATIENCE])
        return hopeful if births else max(1, hopeful)

    def _better(self, candidate: Run, every: bool) -> Run | None:
        """The candidate, refined, if it reaches a better optimum than the current run, which may be refined too, else None."""
        if every:
            trial = _within_reach(candidate, self.run.objective, self.rows, self.limits)
        else:
            (trial,) = refine_all([candidate], self.rows, self.limits)
        if trial is None:
            return None
        self.run, better = _compared(self.run, trial, self.rows, self.limits)
        no_more = near_empty(trial) <= near_empty(self.run)
        return trial if better and (no_more or _gains_without_few(trial, self.run, self.rows)) else None


def _within_reach(candidate: Run, objective: float, rows: SearchRows, limits: Limits) -> Run | None:
    """The candidate, refined; None as soon as the objective is out of its reach."""
    now = candidate
    for (now,), _ in em([candidate], rows.sum_over, limits._replace(max_iter=TRIAL_STEPS), rows.n_rows, ACCELERATED):
        latest = [entry.objective for entry in now.history[-3:]]
        if len(latest) == 3 and latest[-1] + REACH * max(0.0, *np.diff(latest)) < objective:
            return None
    return now


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


def _split_then_merge(run: Run, rows: SearchRows, splits: Sequence[Split | Birth]) -> Run:
    """One round: split components, or add some, then merge or remove as many."""
    model = _clusters(run)
    k = model.n_components
    wide = model.with_components(k + len(splits))
    params = refine(wide, _with(model, wide, run.params, splits), rows, Limits(WIDE_STEPS, 0.0)).params
    halves = [(split.component, k + i) for i, split in enumerate(splits) if isinstance(split, Split)]
    return Run(run.restart, model, narrowed(wide, params, k, rows, halves)[1])


def _with(model: ClusterModel, wide: Any, params: Any, chosen: Sequence[Split | Birth]) -> Any:
    """Parameters with two components in place of each that is split, the second at the end, and with those that are born."""
    fields, two = model.fields, model.with_components(2)
    arrays = {name: value.copy() for name, value in model.arrays(params).items()}
    for split in chosen:
        if isinstance(split, Birth):
            arrays = schema.joined(fields, arrays, split.arrays)
            continue
        i, halves = split.component, two.arrays(split.params)
        for name, each in fields.items():
            if not each.component_axes:
                continue
            if each.is_share:
                halves[name] = halves[name] * arrays[name][i]
            arrays[name][i] = halves[name][0]
            arrays[name] = np.concatenate([arrays[name], halves[name][1:]])
    return wide.params_from_arrays(schema.normalized(fields, arrays))


def _births(model: ClusterModel, params: Any, rows: SearchRows, tried: int) -> list[Birth]:
    try:
        return births(model, params, rows)
    except SingularCovariance:  # all rows lie in fewer dimensions than there are
        return []


STAGES = (  # what is proposed, and the share of the budget when its last round begins, None where all are tried
    (splits_of, 1.0),
    (_births, WITH_BIRTHS),
    (splits_of, None),
    (_births, None),
)
