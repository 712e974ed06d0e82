"""Moves from one optimum to a better one: components that gain by being split make up for those that are hardly missed.

A round splits `many` components where a fit of two to their own rows gains most, lets all of them settle, and then leaves
out, one by one, those whose rows the others explain nearly as well. What is left is kept only if the objective rose and no
component came near collapse. Two runs are united in the same way: the components of both, less those that are least
missed. [Ueda, Nakano, Ghahramani and Hinton 2000; Fränti 2018; Fritzke 2020]

Gains and costs come from the responsibilities alone: by Jensen's inequality the gain of a split is a lower bound of what
the objective gains, and the cost of leaving a component out is exact for fixed others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array
from pipeline.em.folds import Method
from pipeline.em.loop import EStep, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.errors import SingularCovariance
from pipeline.models.base import Model
from pipeline.models.stats import Rows

T = TypeVar("T")
LEAPS = Method(accelerated=True)
MOST_SPLITS = 8  # in one round; halved when a round fails
ROUNDING = 1e-9  # of the objective: a smaller gain is none
LEAST_SHARE = 0.05  # of a row, for it to take part in the fit of a split
SPLIT_ROWS = 4096  # of one component that the fit of a split looks at
SPLIT_STEPS = 4
WIDE_STEPS = 4  # with more components than asked for
MARGIN = 4  # times the rows below which a component is collapsed: no move may end with fewer


class HeldRows(Protocol):
    """Rows in memory, see engine/held.py."""

    @property
    def x(self) -> Rows:
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

    def head(self, m: int) -> HeldRows:
        """The first m rows: a sample."""

    def mapped(self, function: Callable[[Array], Array]) -> HeldRows:
        """The same rows with function(x) for x."""

    def sum_over(self, jobs: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """Sums of jobs over all rows."""

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """function(item) for each, in order."""


@dataclass(frozen=True)
class RemovalCosts:
    """Job: what the objective would lose without each component, and who would take its rows, see Model.removal_costs."""

    model: Model
    params: Any

    def __call__(self, chunk: Any) -> Array:
        """(k + 1, k): the costs above the heirs, of one chunk."""
        cost, heirs = self.model.removal_costs(self.params, chunk.x, chunk.weight)
        return np.concatenate([cost[None], heirs])


@dataclass(frozen=True)
class Responsibilities:
    """Job: (n, k) responsibilities of at least LEAST_SHARE, sparse; a list of one, so that sums concatenate."""

    model: Model
    params: Any

    def __call__(self, chunk: Any) -> list[sp.csr_array]:
        """Those of one chunk."""
        return [self.model.responsibilities(self.params, chunk.x, LEAST_SHARE)]


class Split(NamedTuple):
    """Two components in place of one. gain : of the objective, at least, nats or squared distance.  read : rows, for it."""

    gain: float
    params: Any
    read: int


def settle(model: Model, params: Any, rows: HeldRows, limits: Limits) -> Run:
    """EM on held rows until `limits`; the run, finished."""
    (run,) = settle_all([Run(0, model, params)], rows, limits)
    return run


def settle_all(runs: Sequence[Run], rows: HeldRows, limits: Limits) -> list[Run]:
    """The same for several runs that share each pass."""

    def evaluate(jobs: Sequence[EStep]) -> list[Any]:
        return rows.sum_over([replace(job, final=False) for job in jobs])  # nobody looks at exemplars of a sample

    current = list(runs)
    for after, _ in em(runs, evaluate, limits, rows.n_rows, LEAPS):
        current = after
    return current


def improve(run: Run, rows: HeldRows, limits: Limits, budget: float = np.inf) -> tuple[Run, list[int]]:
    """Rounds of moves until none helps; the run, and how many components each accepted one moved.

    run : settled on these rows.  limits : of the settling after a move.
    budget : rows that may be read before the last round begins.
    """
    moved: list[int] = []
    many = min(MOST_SPLITS, run.model.n_components)
    splits: list[Split] | None = None
    end = rows.read[0] + budget
    while many and rows.read[0] < end:
        splits = splits or _splits(run.model, run.params, rows)
        try:
            tried = _breathe(run, rows, splits, many)
            if tried is None:
                break
            (trial,) = settle_all([tried], rows, limits)
        except SingularCovariance:
            many //= 2
            continue
        run, risen = _compared(run, trial, rows, limits)
        if risen and crowded(trial) <= crowded(run):
            run, splits = trial, None
            moved.append(many)
        else:
            many //= 2
    return run, moved


def united(runs: Sequence[Run], rows: HeldRows, limits: Limits) -> list[Run]:
    """Half as many runs: of each pair the better one, or what the components of both come to, the least needed left out.

    runs : settled on these rows.  limits : of the settling.
    """
    pairs = list(zip(runs[::2], runs[1::2], strict=False))
    try:
        children = [[child] for child in settle_all([_joint(a, b, rows) for a, b in pairs], rows, limits)]
    except SingularCovariance:
        children = [[]] * len(pairs)
    best = [_best([*pair, *child]) for pair, child in zip(pairs, children, strict=True)]
    return [*best, *runs[2 * len(pairs) :]]


def _best(runs: Sequence[Run]) -> Run:
    """The highest, and of equals the first; one with components near collapse only if all have as many."""
    return min(runs, key=lambda run: (crowded(run), -run.objective))


def _joint(a: Run, b: Run, rows: HeldRows) -> Run:
    """As many components as each has, chosen from those of both."""
    model, k = a.model, a.model.n_components
    ours, theirs = a.params.arrays(), b.params.arrays()
    arrays = {
        name: np.concatenate([ours[name], theirs[name]]) if _per_component(name, model) else ours[name] for name in ours
    }
    wide = replace(model, n_components=2 * k)  # type: ignore[type-var]
    return Run(a.restart, model, _narrowed(wide, wide.params_from_arrays(_normalized(arrays)), k, rows))


def _compared(run: Run, trial: Run, rows: HeldRows, limits: Limits) -> tuple[Run, bool]:
    """The run, and whether the trial is on a higher hill: to come back to the same one, farther up, is no gain.

    Where the run might come as high in as many steps, each gaining no more than its last, it is given them.
    """
    gap = trial.objective - run.objective
    last = run.objective - run.history[-1].objective
    if 0 < gap <= limits.max_iter * last:
        (run,) = settle_all([replace(run, final=None, stop_reason=None, history=(), fold=None)], rows, limits)
        gap = trial.objective - run.objective
    return run, gap > ROUNDING * abs(run.objective)


def crowded(run: Run) -> int:
    """How many components are near collapse."""
    assert run.final is not None
    return int((run.final.stats.sum_w < MARGIN * run.model.least_rows).sum())


def _breathe(run: Run, rows: HeldRows, splits: list[Split], many: int) -> Run | None:
    """One round: `many` components more, then as many fewer. None if no component can be split."""
    model, k = run.model, run.model.n_components
    order = np.argsort([-s.gain for s in splits], kind="stable")[:many]
    chosen = [int(i) for i in order if splits[i].gain > 0]
    if not chosen:
        return None
    wide = replace(model, n_components=k + len(chosen))  # type: ignore[type-var]
    params = settle(wide, _with_splits(model, wide, run.params, splits, chosen), rows, Limits(WIDE_STEPS, 0.0)).params
    return Run(run.restart, model, _narrowed(wide, params, k, rows))


def _splits(model: Model, params: Any, rows: HeldRows) -> list[Split]:
    """For each component, two that are fitted to its own rows."""
    shares = sp.csc_array(sp.vstack(rows.sum_over([Responsibilities(model, params)])[0]))

    def split(k: int) -> Split:
        own = slice(shares.indptr[k], shares.indptr[k + 1])
        index, share = shares.indices[own], shares.data[own]
        if rows.weight is not None:
            share = share * rows.weight[index]
        total = share.sum()
        index, share = index[:SPLIT_ROWS], share[:SPLIT_ROWS]  # a head of the sample
        if not (share > 0).any() or share.sum() < 2 * MARGIN * model.least_rows:
            return Split(-np.inf, None, 0)
        try:
            best = _fit_two(model, rows.x[index], share)
        except SingularCovariance:  # its rows lie in fewer dimensions than there are: no place for two
            return Split(-np.inf, None, 0)
        return best._replace(gain=best.gain * total / share.sum())

    splits = list(rows.map(split, range(model.n_components)))
    rows.read[0] += sum(each.read for each in splits)
    return splits


def _fit_two(model: Model, x: Rows, weight: Array) -> Split:
    """Two components against one, on weighted rows."""
    one = replace(model, n_components=1)  # type: ignore[type-var]
    params = one.m_step(one.stats_of_labels(x, np.zeros(x.shape[0], dtype=np.int64), weight), None)
    before = one.objective(one.e_step(params, x, weight).stats, params)
    two = replace(model, n_components=2)  # type: ignore[type-var]
    halves = _halves(x, weight)
    best = Split(-np.inf, None, x.shape[0] * (2 + len(halves) * (SPLIT_STEPS + 2)))
    for labels in halves:
        params = two.m_step(two.stats_of_labels(x, labels.astype(np.int64), weight), None)
        for _ in range(SPLIT_STEPS):
            params = two.m_step(two.e_step(params, x, weight).stats, params)
        stats = two.e_step(params, x, weight).stats
        gain = two.objective(stats, params) - before
        if stats.sum_w.min() >= MARGIN * model.least_rows and gain > best.gain:
            best = best._replace(gain=gain, params=params)
    return best


def _halves(x: Rows, weight: Array) -> list[Array]:
    """Ways to begin a split, (n,) bool: along the axis of most variance; and near against far (scale mixtures)."""
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


def _with_splits(model: Model, wide: Model, params: Any, splits: Sequence[Split], chosen: Sequence[int]) -> Any:
    """Parameters in which each chosen component became two, the second at the end."""
    arrays = {name: value.copy() for name, value in params.arrays().items()}
    k = model.n_components
    for i in chosen:
        for name, halves in splits[i].params.arrays().items():
            if not _per_component(name, model):
                continue
            if name == "weights":
                halves = halves * params.weights[i]
            arrays[name][i] = halves[0]
            arrays[name] = np.concatenate([arrays[name], halves[1:]])
    assert all(len(value) == k + len(chosen) for name, value in arrays.items() if _per_component(name, model))
    return wide.params_from_arrays(_normalized(arrays))


def _narrowed(wide: Model, params: Any, k: int, rows: HeldRows) -> Any:
    """Parameters of the k components that the others can least do without: the least needed are left out, some at a time."""
    while wide.n_components > k:
        costs = rows.sum_over([RemovalCosts(wide, params)])[0]
        wide, params = only(wide, params, _needed(costs[0], costs[1:], wide.n_components - k))
    return params


def _needed(cost: Array, heirs: Array, excess: int) -> Array:
    """Components to keep when up to `excess` of the least missed are left out, in order.

    Whoever takes over the rows of one that is left out stays: of two that share a cluster both would hardly be missed.
    """
    dropped: list[int] = []
    staying = set()
    for k in np.argsort(cost, kind="stable"):
        if len(dropped) < excess and k not in staying:
            dropped.append(int(k))
            staying.add(int(heirs[k].argmax()))
    return np.delete(np.arange(len(cost)), dropped)


def only(model: Model, params: Any, kept: Array) -> tuple[Model, Any]:
    """A model of the given components alone."""
    fewer = replace(model, n_components=len(kept))  # type: ignore[type-var]
    arrays = {name: value[kept] if _per_component(name, model) else value for name, value in params.arrays().items()}
    return fewer, fewer.params_from_arrays(_normalized(arrays))


def _normalized(arrays: dict[str, Array]) -> dict[str, Array]:
    if "weights" in arrays:
        arrays["weights"] = arrays["weights"] / arrays["weights"].sum()
    return arrays


def _per_component(name: str, model: Model) -> bool:
    """Whether an array has a row for each component: all but a tied covariance."""
    return not (name == "covariances" and getattr(model, "covariance_type", "") == "tied")
