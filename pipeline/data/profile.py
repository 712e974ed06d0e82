"""The profiling pass: number of rows, mean, covariance, bad rows, and a sample, in one read of the data.

Means and scatters of two sets merge as M = M_a + M_b + (n_a n_b / n) (m_b - m_a)(m_b - m_a)ᵀ, which needs no
reference point and loses no digits far from the origin. [Chan, Golub and LeVeque 1983, eq. 2.1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import LowestRows, Rows
from pipeline.arrays.tiles import tiles
from pipeline.config import Preprocess
from pipeline.data.earlier import Earlier, Statistics
from pipeline.data.preprocess import Affine, fit_preprocess, mapped_moments
from pipeline.data.source import Source
from pipeline.errors import InputError
from pipeline.keyed import race

PROFILE_TILE = 4096
SAMPLE_STREAM = 1
_NO_CHECKSUMS = np.zeros((0, 2), np.int64)


@stored
@dataclass(frozen=True)
class Profile:
    """Statistics of the rows from one pass; profiles of chunks merge by +.

    Attributes
    ----------
    n_rows : int
        Rows in all.
    n_bad, first_bad : int
        How many rows have NaN or inf, and the first of them.
    total : float
        Sum of weights.
    mean : array, shape (d,)
    scatter : array, shape (d, d), (d,) or (0,)
        Weighted sums of squares and products about the mean.
    low, high : array, shape (d,)
        Extremes, in the dtype that models compute in.
    sample : LowestRows
        Rows drawn without replacement in proportion to their weights.
    known : array, shape (m,)
        Weight of the rows of each component that is known, as far as there are any.
    checksums : array, shape (m, 2), int64
        First row and CRC-32 of each chunk, in any order.
    n_missing : int
        Missing entries.
    seen : array, shape (d,), or (0,) if nothing is missing
        Sum of weights of the entries that are there. Then `mean` and the variances are theirs; products of entries of which one is
        missing count as 0, which leaves a covariance positive semidefinite.
    """

    n_rows: int
    n_bad: int
    first_bad: int
    total: float
    mean: Array
    scatter: Array
    low: Array
    high: Array
    sample: LowestRows
    known: Array
    checksums: Array = field(default_factory=lambda: _NO_CHECKSUMS)
    n_missing: int = 0
    seen: Array = field(default_factory=lambda: np.zeros(0))

    def __add__(self, other: Profile) -> Profile:
        total = self.total + other.total
        share: Any = other.total / total if total > 0 else 0.0
        missing, seen = self.n_missing + other.n_missing, np.zeros(0)
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported by check()
            apart = other.mean - self.mean
            if missing:
                own, more = self._seen(), other._seen()
                seen = own + more
                share = np.divide(more, seen, out=np.zeros_like(seen), where=seen > 0)
                between = _square(np.sqrt(own * share) * apart, self.scatter.ndim, len(self.scatter))
            else:
                between = self.total * share * _square(apart, self.scatter.ndim, len(self.scatter))
            mean, scatter = self.mean + share * apart, self.scatter + other.scatter + between
        return Profile(
            self.n_rows + other.n_rows,
            self.n_bad + other.n_bad,
            min(self.first_bad, other.first_bad),
            total,
            mean,
            scatter,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.sample + other.sample,
            _added(self.known, other.known),
            np.concatenate([self.checksums, other.checksums]),
            missing,
            seen,
        )

    def _seen(self) -> Array:
        """(d,), also where nothing is missing."""
        return self.seen if self.n_missing else np.full(len(self.mean), self.total)

    @property
    def covariance(self) -> Array:
        """Shape (d, d) or (d,), of the population (ddof 0), weighted."""
        if not self.n_missing:
            return self.scatter / self.total
        root = np.sqrt(self.seen)
        return self.scatter / (root if self.scatter.ndim == 1 else root[:, None]) / root

    @property
    def variance(self) -> Array:
        """Shape (d,), of the population."""
        return self.covariance if self.scatter.ndim == 1 else np.diagonal(self.covariance).copy()

    def check(self, bad_rows: str) -> None:
        """Check that models can use the rows.

        Parameters
        ----------
        bad_rows : {"error", "drop", "mask", "missing"}

        Raises
        ------
        InputError
            For bad rows (unless they are dropped), no weight at all, and values whose squares overflow or underflow.
        """
        if self.n_bad and bad_rows == "error":
            raise InputError(
                f"{self.n_bad} of {self.n_rows} rows hold NaN or inf, the first is row {self.first_bad}. "
                "Clean them, or set data.bad_rows: drop, or missing, which takes NaN for an entry that is not known."
            )
        if not self.total > 0:
            raise InputError(
                f"got {self.n_rows} rows, none with a positive weight and finite values, expected at least one. Correct data.weights."
            )
        if self.n_missing and not self.seen.all():
            raise InputError(f"feature {int(self.seen.argmin())} is missing in every row. Leave it out.")
        if not len(self.scatter):
            return
        limits, dtype = np.finfo(self.low.dtype), self.low.dtype  # what the models compute in
        with np.errstate(over="ignore", invalid="ignore"):
            spread = self.high.astype(np.float64) - self.low
            sums = PROFILE_TILE * np.square(spread).sum()
        if not (np.isfinite(self.scatter).all() and np.isfinite(self.mean).all() and sums < limits.max):
            peak = max(np.abs(self.low).max(), np.abs(self.high).max())
            raise InputError(f"values reach {peak:.3g}: sums of their squares overflow {dtype}. Rescale the data.")
        flat = (spread > 0) & (self.variance < limits.tiny / limits.eps)
        if flat.any():
            raise InputError(
                f"feature {int(flat.argmax())} varies by {spread[flat.argmax()]:.3g}, "
                f"so little that its square underflows {dtype}. Rescale the data."
            )

    def constant_features(self) -> Array:
        """Return the indices of features with one value only."""
        return np.flatnonzero(self.low == self.high)

    def distinct_sample_rows(self) -> int:
        """Return the number of distinct rows of the sample: with fewer than K, components cannot all differ."""
        x = self.sample.x
        return len(np.unique(x.toarray() if sp.issparse(x) else x, axis=0))


@dataclass(frozen=True)
class ProfileJob:
    """The job of the profiling pass.

    Attributes
    ----------
    scatter : {"matrix", "variances", "none"}
        Which second moments are formed.
    sample_size : int
        Rows of the sample.
    seed : int
    features : int or None
        The leading columns that moments are of; None: all. Those after them are errors (models/deconvolution.py).
    """

    scatter: str
    sample_size: int
    seed: int
    features: int | None = None

    def __call__(self, chunk: Rows, kernels: Any) -> Profile:
        """Return the profile of one chunk, formed tile by tile."""
        total: Profile | None = None
        for rows in tiles(chunk.x.shape[0], PROFILE_TILE):
            tile = self._tile(chunk, rows)
            total = tile if total is None else total + tile
        assert total is not None, "a chunk has at least one row"
        found = _NO_CHECKSUMS if chunk.checksum is None else np.array([[chunk.start, chunk.checksum]], np.int64)
        return replace(total, checksums=found)

    def _tile(self, chunk: Rows, rows: slice) -> Profile:
        x = chunk.x[rows]
        n = x.shape[0]
        index = np.arange(chunk.start + rows.start, chunk.start + rows.stop)
        weight = np.ones(n) if chunk.weight is None else chunk.weight[rows]
        bad = np.flatnonzero(chunk.bad[rows]) if chunk.bad is not None else np.empty(0, dtype=int)
        sample = LowestRows.of(
            self.sample_size, race(self.seed, SAMPLE_STREAM, index, weight), int(index[0]), x, weight
        )
        first_bad = int(index[bad[0]]) if len(bad) else np.iinfo(np.int64).max
        x = x if self.features is None else x[:, : self.features]
        n_missing, seen = _n_missing(x), np.zeros(0)
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported by check()
            if n_missing:
                moments, seen = self._seen_moments(x, weight)
            else:
                moments = self._sparse_moments(x, weight) if sp.issparse(x) else self._dense_moments(x, weight)
        known, total = _known(chunk, rows, weight), float(weight.sum())
        return Profile(n, len(bad), first_bad, total, *moments, sample, known, n_missing=n_missing, seen=seen)

    def _seen_moments(self, x: Array, weight: Array) -> tuple[tuple[Array, Array, Array, Array], Array]:
        """Moments and extremes of the entries that are there, and the sums of their weights, (d,)."""
        live = x[weight > 0].astype(compute_dtype(x.dtype))
        there, x = ~np.isnan(x), np.nan_to_num(x.astype(np.float64))
        seen = weight @ there
        mean = np.divide(weight @ x, seen, out=np.zeros(x.shape[1]), where=seen > 0)
        scatter = self._scatter(np.where(there, x - mean, 0.0), weight)
        low, high = np.fmin.reduce(live, axis=0, initial=np.inf), np.fmax.reduce(live, axis=0, initial=-np.inf)
        return (mean, scatter, low, high), seen

    def _dense_moments(self, x: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
        live = x[weight > 0].astype(compute_dtype(x.dtype))
        x = x.astype(np.float64)
        total = weight.sum()
        mean = weight @ x / total if total > 0 else np.zeros(x.shape[1])
        return (
            mean,
            self._scatter(x - mean, weight),
            live.min(axis=0, initial=np.inf),
            live.max(axis=0, initial=-np.inf),
        )

    def _scatter(self, diff: Array, weight: Array) -> Array:
        if self.scatter == "matrix":
            return (diff * weight[:, None]).T @ diff
        return weight @ (diff * diff) if self.scatter == "variances" else np.zeros(0)

    def _sparse_moments(self, x: Any, weight: Array) -> tuple[Array, Array, Array, Array]:
        total = weight.sum()
        mean = x.T @ weight / total if total > 0 else np.zeros(x.shape[1])
        extremes = x.min(axis=0).toarray().ravel(), x.max(axis=0).toarray().ravel()
        return mean, np.zeros(0), extremes[0].astype(np.float64), extremes[1].astype(np.float64)


def _n_missing(x: Matrix) -> int:
    """How many entries are NaN; rows without one are only added up."""
    with np.errstate(over="ignore", invalid="ignore"):
        if sp.issparse(x) or x.dtype.kind != "f" or not np.isnan(x.sum()):
            return 0
    return int(np.isnan(x).sum())


def _known(chunk: Rows, rows: slice, weight: Array) -> Array:
    """Weights of known components in a chunk."""
    if chunk.label is None:
        return np.zeros(0)
    label = chunk.label[rows]
    return np.bincount(label[label >= 0], weight[label >= 0])


def _added(a: Array, b: Array) -> Array:
    """The sum of two arrays, the shorter one padded with zeros."""
    total = np.zeros(max(len(a), len(b)))
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _square(apart: Array, ndim: int, size: int) -> Array:
    if size == 0:
        return np.zeros(0)
    return np.outer(apart, apart) if ndim == 2 else apart * apart


@stored
@dataclass(frozen=True)
class DataSummary:
    """Statistics of the rows in the space of the models: the profile after preprocessing.

    Attributes
    ----------
    affine : Affine or None
        The preprocessing.
    mean : array, shape (d,)
    covariance : array, shape (d, d), (d,) or (0,)
        Of the population.
    sample : LowestRows
        Rows, after preprocessing.
    n_rows, n_bad : int
        Rows in all, and those of them that are left out.
    total : float
        Sum of weights of the others.
    known : array of int
        Components of which some rows are known (data.labels), ascending.
    checksums : array, shape (m, 2), int64
        First row and CRC-32 of each chunk that was read, in any order.
    high, low : array, shape (d,), or (0,)
        The largest and smallest value of each feature; none after preprocessing, unless `with_box` found them.
    earlier : Earlier or None
        What the fit takes over from an earlier run.
    n_missing : int
        Missing entries.
    """

    affine: Affine | None
    mean: Array
    covariance: Array
    sample: LowestRows
    n_rows: int
    n_bad: int
    total: float
    known: Array
    checksums: Array = field(default_factory=lambda: _NO_CHECKSUMS)
    high: Array = field(default_factory=lambda: np.zeros(0))
    n_missing: int = 0
    low: Array = field(default_factory=lambda: np.zeros(0))
    earlier: Earlier | None = None

    @property
    def statistics(self) -> Statistics | None:
        """The statistics of earlier rows, where they count beside these."""
        return None if self.earlier is None else self.earlier.statistics

    @property
    def variance(self) -> Array:
        """Shape (d,), of the population."""
        return self.covariance if self.covariance.ndim == 1 else np.diagonal(self.covariance).copy()

    def with_sample(self, size: int) -> DataSummary:
        """Return the same with the sample that a profile of that size draws."""
        return replace(self, sample=self.sample.first(size))


def summary_of(
    profile: Profile, steps: Sequence[Preprocess], earlier: Earlier | None = None, source: Source | None = None
) -> DataSummary:
    """Fit the preprocessing to a profile, or take that of an earlier run, and apply it. Raises InputError as `fit_preprocess` does.

    source : of the rows, which says which variable each feature is of.
    """
    index = {} if source is None else source.describe().get("index", {})
    if earlier is None:
        affine = fit_preprocess(steps, profile.mean, profile.covariance, index.get("variable"))
    else:
        affine = earlier.affine
    mean, covariance, sample = profile.mean, profile.covariance, profile.sample
    high, low = profile.high, profile.low
    if affine is not None:
        high = low = np.zeros(0)
        mean, covariance = mapped_moments(affine, mean, covariance)
        sample = replace(sample, x=affine.apply(sample.x))
    known = np.flatnonzero(profile.known > 0)
    counts = profile.n_rows, profile.n_bad, profile.total
    summary = DataSummary(affine, mean, covariance, sample, *counts, known, profile.checksums, high, low=low)
    return replace(summary, n_missing=profile.n_missing, earlier=earlier)


def with_box(summary: DataSummary, sums: Callable[..., list[Any]]) -> DataSummary:
    """Return the statistics with the extremes of preprocessed rows. sums : sums jobs in a pass over these rows.

    Raises
    ------
    InputError
        If a feature does not vary, so that the box of the rows has no volume.
    """
    if summary.affine is not None:
        [found] = sums([ProfileJob("none", 1, 0)])
        summary = replace(summary, low=found.low, high=found.high)
    width = summary.high.astype(np.float64) - summary.low
    # Where features were mixed, one that does not vary has the rounding of the widest.
    least = 0.0 if summary.affine is None or summary.affine.matrix.ndim == 1 else 1e-7 * width.max()
    if not (width > least).all():
        raise InputError(
            f"model.noise: feature {int(width.argmin())} has one value only, so that the box of the rows has no volume. Leave "
            "it out, or set model.noise to null."
        )
    return summary
