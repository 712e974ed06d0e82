"""What an E-step returns: values that add.

Partial statistics of chunks add to those of the whole, so they form a vector space; that is
what lets one loop serve any chunking and any number of workers. What does not add but must be
known (the worst-fit rows, the best examples) travels beside them as lists that merge.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array

Rows = Any  # (n, d): a dense array or a scipy.sparse.csr_array


class Additive:
    """A frozen dataclass whose every field adds."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __iadd__(self, other: Self) -> Self:
        """The sum, in this value's arrays: no pass over large statistics allocates."""
        return type(self)(*map(operator.iadd, self._values(), other._values()))

    def __mul__(self, factor: float) -> Self:
        return type(self)(*(a * factor for a in self._values()))

    __rmul__ = __mul__

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(np.asarray(value).nbytes for value in self._values())

    def _values(self) -> list[Any]:
        return list(vars(self).values())  # in the order of the fields: they are set once, when it is made


def stack(a: Rows, b: Rows) -> Rows:
    """Rows of `a` above rows of `b`, dense or sparse."""
    return sp.vstack([a, b], format="csr") if sp.issparse(a) else np.concatenate([a, b])


@dataclass(frozen=True)
class LowestRows:
    """The `limit` rows with the lowest scores, ties to the lowest row index; lists of two sets merge by +.

    score : (m,) float64, ascending.  row : (m,) int64, global.  x : (m, d).  weight : (m,).  label : (m,), -1 if none.
    """

    limit: int
    score: Array
    row: Array
    x: Rows
    weight: Array
    label: Array

    @classmethod
    def of(
        cls, limit: int, score: Array, start: int, x: Rows, weight: Array | None, label: Array | None = None
    ) -> LowestRows:
        """The lowest of consecutive rows, of which the first is row `start`; scores of +inf or NaN are left out.

        weight : (n,), None for ones.  label : (n,), None for -1.
        """
        kept = lowest(score, limit)
        keep = kept[np.argsort(score[kept], kind="stable")][:limit]
        weight = np.ones(len(keep)) if weight is None else weight[keep]
        label = np.full(len(keep), -1) if label is None else label[keep]
        return cls(limit, score[keep], start + keep, x[keep], weight, label)

    def first(self, limit: int) -> LowestRows:
        """The lowest `limit` of these: what a list of that length would have kept."""
        parts = (part[:limit] for part in (self.score, self.row, self.x, self.weight, self.label))
        return LowestRows(min(limit, self.limit), *parts)

    def __add__(self, other: LowestRows) -> LowestRows:
        score = np.concatenate([self.score, other.score])
        row = np.concatenate([self.row, other.row])
        keep = np.lexsort((row, score))[: self.limit]
        merged = (
            stack(self.x, other.x)[keep],
            np.concatenate([self.weight, other.weight])[keep],
            np.concatenate([self.label, other.label])[keep],
        )
        return LowestRows(self.limit, score[keep], row[keep], *merged)


def lowest(score: Array, limit: int) -> Array:
    """Positions of scores up to the limit-th lowest, in order of position: more than `limit` only where scores tie."""
    # Cut by a few rows first and then by what is left: selecting among all rows would cost more than some E-steps.
    kept = np.flatnonzero(score <= _cut(score[: 1024 + 16 * limit], limit))
    return kept[score[kept] <= _cut(score[kept], limit)]


def _cut(score: Array, limit: int) -> Any:
    """The limit-th lowest score, or the largest finite number where there are fewer that are finite."""
    largest = np.finfo(np.float64).max
    return np.fmin(np.partition(score, limit - 1)[limit - 1], largest) if len(score) > limit > 0 else largest


@dataclass(frozen=True)
class Exemplars:
    """For each component, the rows that it is most responsible for; lists of two sets merge by +.

    Ordered by responsibility, then by log joint density (rows deep inside a component all have
    responsibility 1), then by row index.  row : (k, m) int64, m <= limit.
    log_resp, log_joint : (k, m).  x : (k, m, d) float64, or (k, m, 0) for sparse rows.
    """

    limit: int
    row: Array
    log_resp: Array
    log_joint: Array
    x: Array

    @classmethod
    def of(cls, limit: int, row: Array, log_resp: Array, log_joint: Array, x: Rows) -> Exemplars:
        """The best `limit` rows of a tile. row : (n,).  log_resp, log_joint : (n, k).  x : (n, d)."""
        best = np.lexsort((np.broadcast_to(row[:, None], log_resp.shape), -log_joint, -log_resp), axis=0)[:limit].T
        component = np.arange(log_resp.shape[1])[:, None]
        rows = np.empty((len(row), 0)) if sp.issparse(x) else x
        chosen = (row[best], log_resp[best, component], log_joint[best, component])
        return cls(limit, *chosen, rows[best].astype(np.float64))

    def challengers(self, log_resp: Array, log_joint: Array) -> Array:
        """Positions of later rows that may take a place here. log_resp, log_joint : (n, k).

        All others lose, also by ties, which go to the earlier row; few are left to be sorted.
        """
        if self.row.shape[1] < self.limit:
            return np.arange(len(log_resp))
        last_resp, last_joint = self.log_resp[:, -1], self.log_joint[:, -1]
        better = (log_resp > last_resp) | ((log_resp == last_resp) & (log_joint > last_joint))
        return np.flatnonzero(better.any(axis=1))

    def __add__(self, other: Exemplars) -> Exemplars:
        row, log_resp, log_joint = (
            np.concatenate([getattr(self, name), getattr(other, name)], axis=1)
            for name in ("row", "log_resp", "log_joint")
        )
        best = np.lexsort((row, -log_joint, -log_resp), axis=1)[:, : self.limit]
        x = np.concatenate([self.x, other.x], axis=1)
        row, log_resp, log_joint = (np.take_along_axis(values, best, axis=1) for values in (row, log_resp, log_joint))
        return Exemplars(self.limit, row, log_resp, log_joint, np.take_along_axis(x, best[:, :, None], axis=1))


@dataclass(frozen=True)
class HeldOut(Additive):
    """Rows that a fit left out. sum_w : sum of their weights.  log_likelihood : total nats under its parameters."""

    sum_w: float
    log_likelihood: float


@dataclass(frozen=True)
class Partial:
    """One chunk's share of an E-step: statistics that add, and lists that merge beside them."""

    stats: Any
    worst: LowestRows
    label_key: np.uint64 = np.uint64(0)  # a sum of keyed hashes of labels, modulo 2^64: equal keys, equal labels
    exemplars: Exemplars | None = None
    held_out: HeldOut | None = None

    def __add__(self, other: Partial) -> Partial:
        return self._with(self.stats + other.stats, other)

    def __iadd__(self, other: Partial) -> Partial:
        stats = self.stats
        stats += other.stats
        return self._with(stats, other)

    def _with(self, stats: Any, other: Partial) -> Partial:
        """The merged lists beside the summed statistics."""
        exemplars = self.exemplars
        if exemplars is not None and other.exemplars is not None:
            exemplars = exemplars + other.exemplars
        held_out = self.held_out
        if held_out is not None and other.held_out is not None:
            held_out = held_out + other.held_out
        return Partial(
            stats,
            self.worst + other.worst,
            np.add(self.label_key, other.label_key, dtype=np.uint64),
            exemplars,
            held_out,
        )
