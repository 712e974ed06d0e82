"""Starts: centres or labels, then one M-step from the hard assignment.

k-means||: rounds of D²-weighted sampling over all rows, then weighted k-means++ on the candidates [Bahmani et al. 2012];
k-means++ on a sample [Arthur and Vassilvitskii 2007]; random rows; near the mean; user-supplied labels or parameters. All
restarts of all models share each read of the data. Components with known rows start at the mean of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import LowestRows, Rows, stack, unit
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.keyed import race
from pipeline.models.base import EStep, LatentModel
from pipeline.models.clusters import ClusterModel, Summary
from pipeline.models.lloyd import Lloyd
from pipeline.models.plus_plus import in_batches, one_by_one

ROUNDS = 5  # of k-means||, each drawing 2K rows
LLOYD_STEPS = 20  # of weighted Lloyd on the candidates
ONE_BY_ONE = 1000  # centres that k-means++ draws one by one; more are drawn many at a time
FIRST_ROUND_STREAM = 16  # key streams of the rounds; those below are the profile's

Jobs = list[Callable[[Rows, Any], Any]]
SumJobs = Callable[[Jobs], list[Any]]
Starting = Generator[Jobs, list[Any], list[Any]]  # yields the jobs of a pass, is sent their sums, returns parameters


class RowLabels(Protocol):
    """A column of labels beside the rows."""

    def read(self, start: int, stop: int) -> Array:
        """Labels of rows start:stop."""


@dataclass(frozen=True)
class DistanceSample:
    """Job: draw `size` rows without replacement, with probability proportional to weight x D²."""

    centers: Array
    shift: Array
    size: int
    seed: int
    stream: int
    unit_rows: bool = False

    def __call__(self, chunk: Rows, kernels: Any) -> LowestRows:
        total: LowestRows | None = None
        for rows, x, weight, _, squared in _tiles_to_centers(chunk, self.centers, self.shift, self.unit_rows, kernels):
            index = np.arange(chunk.start + rows.start, chunk.start + rows.stop)
            arrival = race(self.seed, self.stream, index, weight * squared)
            found = LowestRows.of(self.size, arrival, int(index[0]), x, weight)
            total = found if total is None else total + found
        assert total is not None, "a chunk has at least one row"
        return total


@dataclass(frozen=True)
class CountNearest:
    """Job: total weight of the rows nearest to each centre, (k,)."""

    centers: Array
    shift: Array
    unit_rows: bool = False

    def __call__(self, chunk: Rows, kernels: Any) -> Array:
        counts = np.zeros(len(self.centers))
        for _, _, weight, label, _ in _tiles_to_centers(chunk, self.centers, self.shift, self.unit_rows, kernels):
            counts += np.bincount(label, weights=weight, minlength=len(counts))
        return counts


@stored
@dataclass(frozen=True)
class LabelSums(Additive):
    """Sums over rows with known labels. sum_w : (k,).  sum_x : (k, d), about a point."""

    sum_w: Array
    sum_x: Array


@dataclass(frozen=True)
class SumKnown:
    """Job: weights and sums of the rows of each known component."""

    model: ClusterModel

    def __call__(self, chunk: Rows, kernels: Any) -> LabelSums:
        k, labels = self.model.n_components, self.model.checked_labels(chunk)
        assert labels is not None, "asked for where labels of some rows are known"
        known = np.flatnonzero(labels >= 0)
        label = labels[known]
        weight = np.ones(len(known)) if chunk.weight is None else chunk.weight[known]
        member = sp.csr_array((weight, (label, np.arange(len(known)))), shape=(k, len(known)))
        x = comparable(chunk.x[known], self.model.unit_rows)
        return LabelSums(np.bincount(label, weight, k), np.asarray(member @ (_dense(x) - self.model.shift)))


@dataclass(frozen=True)
class HardStart:
    """Job: a model's statistics of a hard assignment, to the nearest centre, user-supplied or known labels."""

    model: ClusterModel
    centers: Array | None
    labels: RowLabels | None = None

    def __call__(self, chunk: Rows, kernels: Any) -> Any:
        known = self.model.checked_labels(chunk)
        if self.centers is not None:
            tiles_ = _tiles_to_centers(chunk, self.centers, self.model.shift, self.model.unit_rows, kernels)
            labels = np.concatenate([label for _, _, _, label, _ in tiles_])
        else:
            labels = self._read(chunk)
        if known is not None:
            labels = np.where(known >= 0, known, labels)
        return self.model.label_statistics(chunk.x, labels, chunk.weight)

    def _read(self, chunk: Rows) -> Array:
        assert self.labels is not None
        labels = self.labels.read(chunk.start, chunk.start + chunk.n).astype(np.int64)
        if labels.max() >= self.model.n_components or labels.min() < -1:
            raise InputError(
                f"fit.init_path: rows {chunk.start}..{chunk.start + len(labels) - 1} have labels from {labels.min()} "
                f"to {labels.max()}, expected 0..{self.model.n_components - 1} (-1 leaves a row out)."
            )
        return labels


@dataclass(frozen=True)
class Plain:
    """Job: another one, which sees rows without missing entries."""

    job: Callable[[Rows, Any], Any]
    model: ClusterModel

    def __call__(self, chunk: Rows, kernels: Any) -> Any:
        return self.job(replace(chunk, x=self.model.plain(chunk.x)), kernels)


def hard_start(model: ClusterModel, centers: Array | None, labels: RowLabels | None = None) -> Plain:
    """Return the job of a `HardStart` on whole rows."""
    return Plain(HardStart(model, centers, labels), model)


def on_plain(model: LatentModel, starting: Starting) -> Starting:
    """Return a start whose jobs see rows without missing entries; itself, where the model has none."""
    if not isinstance(model, ClusterModel) or not model.incomplete:
        return (yield from starting)
    sums = None
    while True:
        try:
            jobs = starting.send(sums)  # type: ignore[arg-type]  # None begins a generator
        except StopIteration as end:
            return list(end.value)
        sums = yield [Plain(job, model) for job in jobs]


def in_step(startings: Sequence[Starting], sum_jobs: SumJobs) -> list[list[Any]]:
    """Return the results of several starts; jobs that they need at the same time are summed in one pass.

    sum_jobs : one pass over all rows for a list of jobs. Each start has the result that it would have alone.
    """
    found: list[list[Any]] = [[] for _ in startings]
    sums: dict[int, Any] = dict.fromkeys(range(len(startings)))  # None begins a generator
    while sums:
        waiting: dict[int, Jobs] = {}
        for i, value in sums.items():
            try:
                waiting[i] = startings[i].send(value)
            except StopIteration as end:
                found[i] = end.value
        together = iter(sum_jobs([job for jobs in waiting.values() for job in jobs]) if waiting else ())
        sums = {i: [next(together) for _ in jobs] for i, jobs in waiting.items()}
    return found


def starting(
    model: LatentModel, init: str, n_init: int, seed: int, summary: Summary, *rest: Any, **options: Any
) -> Starting:
    """As `_starting`, on rows without missing entries."""
    return on_plain(model, _starting(model, init, n_init, seed, summary, *rest, **options))


def _starting(
    model: LatentModel,
    init: str,
    n_init: int,
    seed: int,
    summary: Summary,
    kernels: Any,
    labels: RowLabels | None = None,
    arrays: Mapping[str, Array] | None = None,
    some_known: bool = False,
) -> Starting:
    """Return a generator, for `in_step`, of initial parameters for each restart.

    Parameters
    ----------
    model : LatentModel
    init : str
        As fit.init; a model without labels has explicit parameters, and a start of its own or that of its `starts_as`.
    n_init, seed : int
    summary : Summary
        Moments and a sample of the rows.
    kernels : Kernels
    labels, arrays : labels of all rows (init: labels), or parameters (init: explicit, run)
    some_known : bool
        Whether labels of some rows are known (data.labels).

    Raises
    ------
    InputError
        If there are fewer usable rows than components, or user-supplied values do not fit.
    """
    if init in ("explicit", "run"):
        assert arrays is not None
        return [model.params_from_arrays(arrays)] * n_init
    generators = [np.random.default_rng([seed, restart]) for restart in range(n_init)]
    if not isinstance(model, ClusterModel):
        if model.starts_as is None:
            return [model.start(summary, rng) for rng in generators]
        found = yield from starting(model.starts_as, init, n_init, seed, summary, kernels, labels, arrays, some_known)
        return [model.started(params) for params in found]  # type: ignore[attr-defined]  # where there is a `starts_as`
    if init == "labels":
        return from_hard(model, (yield [HardStart(model, None, labels)])) * n_init
    known = (yield [SumKnown(model)])[0] if some_known else None
    k = model.n_components
    if init == "near-mean":
        draws = [rng.standard_normal((model.n_features, k)).T for rng in generators]
        return [model.start_near_mean(summary, each) for each in draws]
    sample = model.plain(summary.sample.x)
    if sample.shape[0] < k:
        raise InputError(f"model.n_components: {k}, but only {sample.shape[0]} usable rows. Lower it.")
    if model.above is not None:
        upper = yield from _starting(model.above, init, n_init, seed, summary, kernels)
        below = [(each.centers, _dense(sample), None, (seed, restart)) for restart, each in enumerate(upper)]
        return [model.start_below(*each, kernels, map) for each in below]  # type: ignore[attr-defined]  # where there is a level above
    if init == "random":
        picks = [sample[rng.choice(sample.shape[0], k, replace=False)] for rng in generators]
        return [model.start_at(_at_known(_dense(rows), known, model.shift), summary) for rows in picks]
    if init == "k-means++":
        sample = comparable(sample, model.unit_rows)
        centers = [plus_plus(sample, np.ones(sample.shape[0]), k, rng, kernels) for rng in generators]
    else:
        centers = yield from _parallel(model, summary, seed, generators, kernels)
    centers = [_at_known(c, known, model.shift) for c in centers]
    if model.of_centers:
        return [model.start_at(c, summary) for c in centers]
    return from_hard(model, (yield [HardStart(model, c) for c in centers]))


def _at_known(centers: Array, known: LabelSums | None, shift: Array) -> Array:
    """Centres with those of known components at the means of their rows; each replaces a near one."""
    if known is None or not (known.sum_w > 0).any():
        return centers
    from scipy.optimize import linear_sum_assignment

    own = np.flatnonzero(known.sum_w > 0)
    means = shift + known.sum_x[own] / known.sum_w[own, None]
    squared = ((means[:, None] - centers[None]) ** 2).sum(axis=2)
    replaced = linear_sum_assignment(squared)[1]
    found = np.empty_like(centers)
    found[own] = means
    found[np.delete(np.arange(len(centers)), own)] = np.delete(centers, replaced, axis=0)
    return found


def _parallel(
    model: ClusterModel, summary: Summary, seed: int, generators: Sequence[np.random.Generator], kernels: Any
) -> Starting:
    """k-means||: centres for each restart, (k, d). Each round is one pass for all restarts."""
    k, shift = model.n_components, model.shift
    sample = comparable(model.plain(summary.sample.x), model.unit_rows)
    candidates = [sample[[rng.integers(sample.shape[0])]] for rng in generators]
    round_, distinct, grown = 0, 0, True
    # Where most rows are equal, a round may draw one value only: then there are more rounds, while they find others.
    while round_ < ROUNDS or (distinct < k and grown):
        stream = FIRST_ROUND_STREAM + round_
        found = yield [
            DistanceSample(_dense(c), shift, 2 * k, seed + 7919 * restart, stream, model.unit_rows)
            for restart, c in enumerate(candidates)
        ]
        candidates = [stack(c, comparable(f.x, model.unit_rows)) for c, f in zip(candidates, found, strict=True)]
        round_ += 1
        if round_ >= ROUNDS:
            before, distinct = distinct, min(_distinct(c) for c in candidates)
            grown = distinct > before
    counts = yield [CountNearest(_dense(c), shift, model.unit_rows) for c in candidates]
    return [plus_plus(c, n, k, rng, kernels) for c, n, rng in zip(candidates, counts, generators, strict=True)]


def plus_plus(rows: Matrix, weight: Array, k: int, rng: np.random.Generator, kernels: Any) -> Array:
    """Weighted k-means++ and a few steps of weighted Lloyd on rows in memory: (k, d)."""
    seed = int(rng.integers(2**31))
    rows, weight = rows[weight > 0], weight[weight > 0]
    if rows.shape[0] <= k:  # fewer distinct rows than components: each is a centre, and some are so twice
        return _dense(rows)[np.arange(k) % rows.shape[0]]
    dense = _dense(rows)
    about = dense.mean(axis=0)  # distances far from the origin would cancel
    if k > ONE_BY_ONE:
        centers = dense[in_batches(dense, weight, k, np.random.default_rng(seed), kernels)]
    else:
        moved = dense - about
        centers = about + moved[one_by_one(moved, weight, k, seed)]
    model = Lloyd(k, about)
    params = model.params(centers=centers)
    before: Any = None
    for _ in range(LLOYD_STEPS):
        partial = EStep(model, params, model.attachments)(Rows(dense, weight), kernels)
        hashed = partial.attached["label_hash"].value
        if hashed == before:  # no label changed: nothing would move
            break
        before = hashed
        params, _ = model.reset(model.m_step(partial.stats, params), params, partial.stats, partial.attached, ())
    return params.centers


def from_hard(model: ClusterModel, stats: Sequence[Any]) -> list[Any]:
    """Return parameters after one M-step from each hard assignment; other fixed fields are uniform, and the identity."""
    if not all(model.counts(s).sum() > 0 for s in stats):
        raise InputError("fit.init_path: no row with a positive weight has a label; give at least one.")
    started = model.without_fixed(model.location)
    return [started.m_step(s, None) for s in stats]


def _tiles_to_centers(chunk: Rows, centers: Array, shift: Array, unit_rows: bool, kernels: Any) -> Any:
    """Yield (rows, x, weight, nearest centre, D²). Sparse rows are compared at unit length, tile by tile."""
    n = chunk.n
    for rows in tiles(n, tile_height(len(shift), len(centers)) if unit_rows or sp.issparse(chunk.x) else n):
        x = chunk.x[rows]
        weight = np.ones(x.shape[0]) if chunk.weight is None else chunk.weight[rows]
        yield rows, x, weight, *kernels.nearest(comparable(x, unit_rows), centers, shift)


def comparable(x: Matrix, unit_rows: bool) -> Matrix:
    """Rows between which distances mean something: at unit length where only directions count, and sparse ones always.

    Documents differ in length more than in words. Rows of zeros stay.
    """
    if not sp.issparse(x):
        return unit(x) if unit_rows else x
    return unit(x)


def _distinct(x: Matrix) -> int:
    return len(np.unique(_dense(x), axis=0))


def _dense(x: Matrix) -> Array:
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
