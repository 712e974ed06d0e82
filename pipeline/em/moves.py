"""Moves from one local optimum to a better one: components that gain by a split replace those that are hardly needed.

A round splits `many` components where two fitted to their own rows gain most, refines all of them, and then removes, one
by one, those whose rows the others explain nearly as well. The result is accepted only if the objective rose and no
component is near collapse. Two runs are merged in the same way: the components of both, less those that are least needed.
Components with known rows stay. [Ueda, Nakano, Ghahramani and Hinton 2000; Fränti 2018; Fritzke 2020]

Gains and costs follow from the responsibilities: by Jensen's inequality the gain of a split is a lower bound of the
gain of the objective, and the cost of removing a component is exact while the others are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows, unit
from pipeline.em.accumulate import Method
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.errors import SingularCovariance
from pipeline.models import schema
from pipeline.models.base import EStep, LatentModel
from pipeline.models.clusters import ClusterModel

T = TypeVar("T")
ACCELERATED = Method(accelerated=True)
MOST_SPLITS = 8  # in one round; halved when a round fails
ROUNDING = 1e-9  # of the objective: a smaller gain is none
LEAST_SHARE = 0.05  # of a row, for it to take part in the fit of a split
SPLIT_ROWS = 4096  # of one component that the fit of a split looks at
SPLIT_STEPS = 4
WIDE_STEPS = 4  # with more components than asked for
MARGIN = 4  # times the rows below which a component is collapsed: no move may end with fewer


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

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        """Return the costs above the weights by next-best component of one chunk, shape (k + 1, k)."""
        cost, next_best = self.model.removal_costs(self.params, rows.x, rows.weight, kernels)
        return np.concatenate([cost[None], next_best])


@dataclass(frozen=True)
class Responsibilities:
    """Job: responsibilities of at least LEAST_SHARE, sparse (n, k); in a list of one, so that sums concatenate."""

    model: ClusterModel
    params: Any

    def __call__(self, rows: Rows, kernels: Any) -> list[sp.csr_array]:
        return [self.model.responsibilities(self.params, rows.x, LEAST_SHARE, kernels)]


class Split(NamedTuple):
    """Two components in place of one. gain : lower bound, nats or squared distance.  read : rows read for it."""

    gain: float
    params: Any
    read: int


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
    """Make rounds of moves until one is rejected with a single split.

    Parameters
    ----------
    run : Run
        Refined on these rows.
    rows : SearchRows
    limits : Limits
        Of the refinement after a move.
    budget : float
        Rows that may be read before the last round begins.

    Returns
    -------
    run, moved : Run, list of int
        The run, and the number of components that each accepted round moved.
    """
    moved: list[int] = []
    many = min(MOST_SPLITS, _clusters(run).n_components)
    splits: list[Split] | None = None
    end = rows.read[0] + budget
    while many and rows.read[0] < end:
        splits = splits or _splits(_clusters(run), run.params, rows)
        try:
            candidate = _split_then_merge(run, rows, splits, many)
            if candidate is None:
                break
            (trial,) = refine_all([candidate], rows, limits)
        except SingularCovariance:
            many //= 2
            continue
        run, better = _compared(run, trial, rows, limits)
        if better and near_empty(trial) <= near_empty(run):
            run, splits = trial, None
            moved.append(many)
        else:
            many //= 2
    return run, moved


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
    return Run(a.restart, model, _narrowed(wide, params, k, rows))


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
    assert run.final is not None
    model = _clusters(run)
    return int((model.counts(run.final.stats) < MARGIN * model.least_rows).sum())


def _split_then_merge(run: Run, rows: SearchRows, splits: list[Split], many: int) -> Run | None:
    """One round: split `many` components, then remove as many. None if no component can be split."""
    model = _clusters(run)
    k = model.n_components
    order = np.argsort([-s.gain for s in splits], kind="stable")[:many]
    chosen = [int(i) for i in order if splits[i].gain > 0]
    if not chosen:
        return None
    wide = model.with_components(k + len(chosen))
    params = refine(wide, _with_splits(model, wide, run.params, splits, chosen), rows, Limits(WIDE_STEPS, 0.0)).params
    return Run(run.restart, model, _narrowed(wide, params, k, rows))


def _splits(model: ClusterModel, params: Any, rows: SearchRows) -> list[Split]:
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
            best = _fit_two(model, Rows(rows.x[index], share), rows.kernels)
        except SingularCovariance:  # its rows lie in fewer dimensions than there are: no place for two
            return Split(-np.inf, None, 0)
        return best._replace(gain=best.gain * total / share.sum())

    splits = list(rows.map(split, range(model.n_components)))
    rows.read[0] += sum(each.read for each in splits)
    return splits


def _fit_two(model: ClusterModel, rows: Rows, kernels: Any) -> Split:
    """Fit two components to weighted rows, and compare with one."""
    x, weight = model.plain(rows.x), rows.weight
    one = model.with_components(1)
    params = one.m_step(one.label_statistics(x, np.zeros(rows.n, dtype=np.int64), weight), None)
    before = one.objective(EStep(one, params)(rows, kernels).totals, params)
    two = model.with_components(2)
    halves = _halves(unit(x) if model.unit_rows else x, weight)
    best = Split(-np.inf, None, rows.n * (2 + len(halves) * (SPLIT_STEPS + 2)))
    for labels in halves:
        params = two.m_step(two.label_statistics(x, labels.astype(np.int64), weight), None)
        for _ in range(SPLIT_STEPS):
            params = two.m_step(EStep(two, params)(rows, kernels).stats, params)
        totals = EStep(two, params)(rows, kernels).totals
        gain = two.objective(totals, params) - before
        if two.counts(totals.stats).min() >= MARGIN * model.least_rows and gain > best.gain:
            best = best._replace(gain=gain, params=params)
    return best


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


def _with_splits(model: ClusterModel, wide: Any, params: Any, splits: Sequence[Split], chosen: Sequence[int]) -> Any:
    """Parameters with two components in place of each chosen one, the second at the end."""
    fields, two = model.fields, model.with_components(2)
    arrays = {name: value.copy() for name, value in model.arrays(params).items()}
    for i in chosen:
        halves = two.arrays(splits[i].params)
        for name, field in fields.items():
            if not field.component_axes:
                continue
            if field.is_share:
                halves[name] = halves[name] * arrays[name][i]
            arrays[name][i] = halves[name][0]
            arrays[name] = np.concatenate([arrays[name], halves[name][1:]])
    return wide.params_from_arrays(schema.normalized(fields, arrays))


def _narrowed(wide: Any, params: Any, k: int, rows: SearchRows) -> Any:
    """Parameters of the k components that are needed most; the others are removed, some at a time."""
    while wide.n_components > k:
        costs = rows.sum_over([RemovalCosts(wide, params)])[0]
        wide, params = only(wide, params, _needed(costs[0], costs[1:], wide.n_components - k, rows.known))
    return params


def _needed(cost: Array, next_best: Array, excess: int, known: Array) -> Array:
    """Indices of the components that stay when up to `excess` of the least needed are removed, in order.

    The next-best component of a removed one stays: two that share a cluster would both seem unnecessary. Components with known
    rows keep their indices, the others move up.
    """
    dropped: list[int] = []
    staying = set(known.tolist())
    for k in np.argsort(cost, kind="stable"):
        if len(dropped) < excess and k not in staying:
            dropped.append(int(k))
            staying.add(int(next_best[k].argmax()))
    rest = np.delete(np.arange(len(cost)), dropped)
    if not len(known):
        return rest
    order = np.full(len(rest), -1)
    order[known] = known
    order[order < 0] = np.setdiff1d(rest, known)
    return order


def only(model: Any, params: Any, components: Array) -> tuple[Any, Any]:
    """Return a model of the given components, and its parameters."""
    fewer = model.with_components(len(components))
    arrays = schema.selected(model.fields, model.arrays(params), components)
    return fewer, fewer.params_from_arrays(schema.normalized(model.fields, arrays))
