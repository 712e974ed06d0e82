"""Where to start from: centres or labels, then one M-step from the hard assignment.

k-means||: rounds of D²-weighted sampling over all rows, then weighted k-means++ on the candidates
[Bahmani et al. 2012]; k-means++ on a sample [Arthur and Vassilvitskii 2007]; random rows; near the mean;
given labels; given parameters. All restarts of all models share each read of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.keyed import race
from pipeline.models.base import Model
from pipeline.models.covariance import from_covariance, full_matrix, identity
from pipeline.models.gaussian import Gaussian
from pipeline.models.kmeans import KMeans
from pipeline.models.multinomial import Multinomial, MultinomialParams, log_shares, start_at
from pipeline.models.stats import LowestRows, Rows, stack

ROUNDS = 5  # of k-means||, each drawing 2K rows
LLOYD_STEPS = 20  # of weighted Lloyd on the candidates
FIRST_ROUND_STREAM = 16  # key streams of the rounds; those below are the profile's

Jobs = list[Callable[[Any], Any]]
SumJobs = Callable[[Jobs], list[Any]]
Starting = Generator[Jobs, list[Any], list[Any]]  # yields the jobs of a pass, is sent their sums, returns parameters


class RowLabels(Protocol):
    """A column of labels beside the rows."""

    def read(self, start: int, stop: int) -> Array:
        """Labels of rows start:stop."""


class Known(Protocol):
    """What the profile knows of the rows, in the model's space."""

    @property
    def mean(self) -> Array:
        """(d,)."""

    @property
    def covariance(self) -> Array:
        """(d, d) or (d,), of the population."""

    @property
    def variance(self) -> Array:
        """(d,)."""

    @property
    def sample(self) -> LowestRows:
        """Rows drawn in proportion to their weights."""


@dataclass(frozen=True)
class DistanceSample:
    """Job: `size` rows drawn without replacement with probability proportional to weight x D²."""

    centers: Array
    shift: Array
    size: int
    seed: int
    stream: int

    def __call__(self, chunk: Any) -> LowestRows:
        """The rows of this chunk that arrive first."""
        total: LowestRows | None = None
        for rows, x, weight, _, d2 in _tiles_to_centers(chunk, self.centers, self.shift):
            index = np.arange(chunk.start + rows.start, chunk.start + rows.stop)
            found = LowestRows.of(self.size, race(self.seed, self.stream, index, weight * d2), int(index[0]), x, weight)
            total = found if total is None else total + found
        assert total is not None, "a chunk has at least one row"
        return total


@dataclass(frozen=True)
class CountNearest:
    """Job: (k,) total weight of the rows nearest to each centre."""

    centers: Array
    shift: Array

    def __call__(self, chunk: Any) -> Array:
        """Counts of one chunk."""
        counts = np.zeros(len(self.centers))
        for _, _, weight, label, _ in _tiles_to_centers(chunk, self.centers, self.shift):
            counts += np.bincount(label, weights=weight, minlength=len(counts))
        return counts


@dataclass(frozen=True)
class HardStart:
    """Job: a model's statistics of a hard assignment, to the nearest centre or to given labels."""

    model: Model
    centers: Array | None
    labels: RowLabels | None = None

    def __call__(self, chunk: Any) -> Any:
        """Statistics of one chunk."""
        if self.centers is not None:
            parts = [label for _, _, _, label, _ in _tiles_to_centers(chunk, self.centers, self.model.shift)]
            return self.model.stats_of_labels(chunk.x, np.concatenate(parts), chunk.weight)
        assert self.labels is not None
        labels = self.labels.read(chunk.start, chunk.start + chunk.x.shape[0]).astype(np.int64)
        if labels.max() >= self.model.n_components or labels.min() < -1:
            raise InputError(
                f"fit.init_path: rows {chunk.start}..{chunk.start + len(labels) - 1} have labels from {labels.min()} "
                f"to {labels.max()}, expected 0..{self.model.n_components - 1} (-1 leaves a row out)."
            )
        return self.model.stats_of_labels(chunk.x, labels, chunk.weight)


def in_step(startings: Sequence[Starting], sum_jobs: SumJobs) -> list[list[Any]]:
    """What each of several starts returns, with the jobs that they wait for at a time summed in one pass.

    sum_jobs : one pass over all rows for a list of jobs. None knows of the others: each starts as it would alone.
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


def initial_params(
    model: Model,
    init: str,
    n_init: int,
    seed: int,
    known: Known,
    sum_jobs: SumJobs,
    labels: RowLabels | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> list[Any]:
    """One set of initial parameters for each restart of one model, see `starting`."""
    return in_step([starting(model, init, n_init, seed, known, labels, arrays)], sum_jobs)[0]


def starting(
    model: Model,
    init: str,
    n_init: int,
    seed: int,
    known: Known,
    labels: RowLabels | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> Starting:
    """One set of initial parameters for each restart, for `in_step`.

    known : moments and sample of the rows.
    Raises InputError if there are fewer usable rows than components, or given parameters do not fit.
    """
    if init == "explicit":
        assert arrays is not None
        return [model.params_from_arrays(arrays)] * n_init
    if init == "labels":
        return from_hard(model, (yield [HardStart(model, None, labels)])) * n_init
    generators = [np.random.default_rng([seed, restart]) for restart in range(n_init)]
    if init == "near-mean":
        return [_near_mean(model, known, rng) for rng in generators]
    k = model.n_components
    if known.sample.x.shape[0] < k:
        raise InputError(f"model.n_components: {k}, but only {known.sample.x.shape[0]} usable rows. Lower it.")
    if init == "random":
        picks = [known.sample.x[rng.choice(known.sample.x.shape[0], k, replace=False)] for rng in generators]
        return [_at_rows(model, known, _dense(rows)) for rows in picks]
    if init == "k-means++":
        sample = _unit(known.sample.x) if _is_counts(model) else known.sample.x
        centers = [_plus_plus(sample, np.ones(sample.shape[0]), k, rng) for rng in generators]
    else:
        centers = yield from _parallel(model, known, seed, generators)
    if isinstance(model, KMeans):
        return [model.params_from_arrays({"centers": c}) for c in centers]
    return from_hard(model, (yield [HardStart(model, c) for c in centers]))


def _parallel(model: Model, known: Known, seed: int, generators: Sequence[np.random.Generator]) -> Starting:
    """k-means||: (k, d) centres for each restart. Each round is one pass that serves all restarts."""
    k, shift = model.n_components, model.shift
    sample = _unit(known.sample.x) if _is_counts(model) else known.sample.x
    candidates = [sample[[rng.integers(sample.shape[0])]] for rng in generators]
    round_, distinct, grown = 0, 0, True
    # Where most rows are equal, a round may draw one value only: then there are more rounds, while they find others.
    while round_ < ROUNDS or (distinct < k and grown):
        stream = FIRST_ROUND_STREAM + round_
        found = yield [
            DistanceSample(_dense(c), shift, 2 * k, seed + 7919 * restart, stream)
            for restart, c in enumerate(candidates)
        ]
        rows = [_unit(f.x) if _is_counts(model) else f.x for f in found]
        candidates = [stack(c, r) for c, r in zip(candidates, rows, strict=True)]
        round_ += 1
        if round_ >= ROUNDS:
            before, distinct = distinct, min(_distinct(c) for c in candidates)
            grown = distinct > before
    counts = yield [CountNearest(_dense(c), shift) for c in candidates]
    return [_plus_plus(c, n, k, rng) for c, n, rng in zip(candidates, counts, generators, strict=True)]


def _plus_plus(rows: Rows, weight: Array, k: int, rng: np.random.Generator) -> Array:
    """Weighted k-means++ and a few steps of weighted Lloyd on rows that fit in memory: (k, d)."""
    from sklearn.cluster import kmeans_plusplus

    seed = int(rng.integers(2**31))
    rows, weight = rows[weight > 0], weight[weight > 0]
    if rows.shape[0] <= k:  # fewer distinct rows than components: each is a centre, and some are so twice
        return _dense(rows)[np.arange(k) % rows.shape[0]]
    dense = _dense(rows)
    about = dense.mean(axis=0)  # distances far from the origin would cancel
    centers = about + kmeans_plusplus(dense - about, k, sample_weight=weight, random_state=seed)[0]
    model = KMeans(k, about)
    params = model.params_from_arrays({"centers": centers})
    before: Any = None
    for _ in range(LLOYD_STEPS):
        partial = model.e_step(params, dense, weight)
        if partial.label_key == before:  # no label changed: nothing would move
            break
        before = partial.label_key
        params, _ = model.revive(model.m_step(partial.stats, params), params, partial, np.zeros(k, dtype=int))
    return params.centers


def from_hard(model: Model, stats: Sequence[Any]) -> list[Any]:
    """One M-step from a hard assignment; held weights and covariances that no one gave are uniform and the identity."""
    learned = tuple(part for part in getattr(model, "fixed", ()) if part != "means")
    started = replace(model, fixed=learned) if learned != getattr(model, "fixed", ()) else model  # type: ignore[type-var]
    if not all(s.sum_w.sum() > 0 for s in stats):
        raise InputError("fit.init_path: no row with a positive weight has a label; give at least one.")
    return [started.m_step(s, None) for s in stats]


def _near_mean(model: Model, known: Known, rng: np.random.Generator) -> Any:
    """The data mean plus 1% of the data's deviation times normal draws, (features, components) at a time."""
    draws = rng.standard_normal((model.n_features, model.n_components)).T
    if isinstance(model, Multinomial):
        words = known.mean * (1.0 + 0.01 * draws) + max(model.concentration - 1.0, 0.0) / model.n_features
        return _multinomial(model, np.maximum(words, 0.0))
    return _at_rows(model, known, known.mean + 0.01 * np.sqrt(known.variance) * draws)


def _at_rows(model: Model, known: Known, rows: Array) -> Any:
    """Components at given rows with weights 1/K and the covariance of the data. rows : (k, d)."""
    k = model.n_components
    if isinstance(model, KMeans):
        return model.params_from_arrays({"centers": rows})
    if isinstance(model, Multinomial):
        theta = np.exp([start_at(row, known.mean, model.concentration) for row in rows])
        return _multinomial(model, theta)
    assert isinstance(model, Gaussian)
    if "covariances" in model.fixed:
        covariances = identity(model.shape, k, model.n_features)
    else:
        floor = model.reg_covar * np.eye(model.n_features)
        covariances = from_covariance(model.shape, full_matrix(known.covariance) + floor, k)
    return model.params(np.full(k, 1.0 / k), np.asarray(rows, dtype=np.float64), covariances)


def _multinomial(model: Multinomial, words: Array) -> MultinomialParams:
    return MultinomialParams(np.full(model.n_components, 1.0 / model.n_components), log_shares(words))


def _tiles_to_centers(chunk: Any, centers: Array, shift: Array) -> Any:
    """(rows, x, weight, nearest centre, D²), for sparse rows tile by tile: they are compared, at unit length, by products."""
    n = chunk.x.shape[0]
    for rows in tiles(n, tile_height(len(shift), len(centers)) if sp.issparse(chunk.x) else n):
        x = chunk.x[rows]
        weight = np.ones(x.shape[0]) if chunk.weight is None else chunk.weight[rows]
        yield rows, x, weight, *KERNELS.nearest(_unit(x), centers, shift)


def _is_counts(model: Model) -> bool:
    return isinstance(model, Multinomial)


def _unit(x: Rows) -> Rows:
    """Sparse rows scaled to unit length: documents differ in length more than in words. Empty rows stay."""
    if not sp.issparse(x):
        return x
    length = np.sqrt(x.multiply(x).sum(axis=1))
    scale = np.divide(1.0, length, out=np.zeros_like(length, dtype=np.float64), where=length > 0)
    return sp.csr_array(x.multiply(scale[:, None]))


def _distinct(x: Rows) -> int:
    return len(np.unique(_dense(x), axis=0))


def _dense(x: Rows) -> Array:
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
