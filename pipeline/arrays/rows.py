"""Rows of a chunk with their columns, and lists of rows that merge.

Lists hold what does not add, such as the rows that fit worst or the representatives of a component.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored


@dataclass(frozen=True)
class Rows:
    """Consecutive rows and their columns.

    Attributes
    ----------
    x : array or csr_array, shape (n, d)
    weight : array, shape (n,), float64, or None for ones
        0 for bad rows and rows that are left out.
    start : int
        Global index of the first row.
    bad : array of bool, shape (n,), or None if no row is bad
        Rows with NaN or inf; their values and weights are 0.
    label : array, shape (n,), int64, or None
        Known component of each row, -1 if unknown; None without such a column.
    whole : Rows or None
        The same rows before some were left out.
    units : array, shape (n_units,), int64, or None
        First row of each unit, counted from the first of the chunk. Every unit is whole. None if the model does not ask for
        units (`FamilySection.by_unit`).
    checksum : int or None
        CRC-32 of the rows and their columns as they were read; None where that is not wanted.
    """

    x: Matrix
    weight: Array | None = None
    start: int = 0
    bad: Array | None = None
    label: Array | None = None
    whole: Rows | None = None
    units: Array | None = None
    checksum: int | None = None

    @property
    def n(self) -> int:
        """How many rows."""
        return int(self.x.shape[0])

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return float(self.n) if self.weight is None else float(self.weight.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of rows and columns."""
        x = (self.x.data, self.x.indices, self.x.indptr) if sp.issparse(self.x) else (self.x,)
        return sum(part.nbytes for part in (*x, self.weight, self.bad, self.label) if part is not None)


def stack(a: Matrix, b: Matrix) -> Matrix:
    """Return the rows of `a` and then of `b`, dense or sparse."""
    return sp.vstack([a, b], format="csr") if sp.issparse(a) else np.concatenate([a, b])


@stored
@dataclass(frozen=True)
class LowestRows:
    """The `limit` rows with the lowest scores; ties go to the lowest index. The lists of two sets of rows merge by +.

    score : (m,) float64, ascending.  row : (m,) int64, global.  x : (m, d).  weight : (m,).  label : (m,), -1 if unknown.
    """

    limit: int
    score: Array
    row: Array
    x: Matrix
    weight: Array
    label: Array

    @classmethod
    def of(
        cls, limit: int, score: Array, start: int, x: Matrix, weight: Array | None, label: Array | None = None
    ) -> LowestRows:
        """Return the lowest of consecutive rows, the first of which has the index `start`.

        score : (n,); +inf and NaN are left out.  weight : (n,), None for ones.  label : (n,), None for -1.
        """
        found = lowest(score, limit)
        chosen = found[np.argsort(score[found], kind="stable")][:limit]
        weight = np.ones(len(chosen)) if weight is None else weight[chosen]
        label = np.full(len(chosen), -1) if label is None else label[chosen]
        return cls(limit, score[chosen], start + chosen, x[chosen], weight, label)

    def first(self, limit: int) -> LowestRows:
        """Return the lowest `limit` of these rows."""
        parts = (part[:limit] for part in (self.score, self.row, self.x, self.weight, self.label))
        return LowestRows(min(limit, self.limit), *parts)

    def __add__(self, other: LowestRows) -> LowestRows:
        score = np.concatenate([self.score, other.score])
        row = np.concatenate([self.row, other.row])
        chosen = np.lexsort((row, score))[: self.limit]
        merged = (
            stack(self.x, other.x)[chosen],
            np.concatenate([self.weight, other.weight])[chosen],
            np.concatenate([self.label, other.label])[chosen],
        )
        return LowestRows(self.limit, score[chosen], row[chosen], *merged)


def lowest(score: Array, limit: int) -> Array:
    """Return the positions of scores up to the limit-th lowest, ascending; more than `limit` if scores tie."""
    # Cut by a few rows first and then by what is left: selecting among all rows would cost more than some E-steps.
    few = score[: 1024 + 16 * limit]
    found = np.flatnonzero(score <= _cut(few, limit))
    return found if len(few) == len(score) else found[score[found] <= _cut(score[found], limit)]


def _cut(score: Array, limit: int) -> Any:
    """Return the limit-th lowest score, or the largest finite number if fewer are finite."""
    largest = np.finfo(np.float64).max
    return np.fmin(np.partition(score, limit - 1)[limit - 1], largest) if len(score) > limit > 0 else largest


@stored
@dataclass(frozen=True)
class Representatives:
    """The rows with the highest responsibilities of each component; the lists of two sets of rows merge by +.

    Ordered by responsibility, then by log joint density (many rows have responsibility 1), then by index.

    row : (k, m) int64, m <= limit.  log_resp, log_joint : (k, m).  x : (k, m, d) float64, or (k, m, 0) for sparse rows.
    """

    limit: int
    row: Array
    log_resp: Array
    log_joint: Array
    x: Array

    @classmethod
    def of(cls, limit: int, row: Array, log_resp: Array, log_joint: Array, x: Matrix) -> Representatives:
        """Return the best `limit` rows of a tile. row : (n,).  log_resp, log_joint : (n, k).  x : (n, d)."""
        best = np.lexsort((np.broadcast_to(row[:, None], log_resp.shape), -log_joint, -log_resp), axis=0)[:limit].T
        component = np.arange(log_resp.shape[1])[:, None]
        rows = np.empty((len(row), 0)) if sp.issparse(x) else x
        chosen = (row[best], log_resp[best, component], log_joint[best, component])
        return cls(limit, *chosen, rows[best].astype(np.float64))

    @classmethod
    def of_labels(cls, limit: int, k: int, row: Array, label: Array, score: Array, x: Matrix) -> Representatives:
        """As `of` where a row belongs to one component, without arrays of (n, k). row : (n,), ascending.  label, score : (n,)."""
        m = min(limit, len(row))
        order = np.lexsort((row, -score, label))
        first, count = np.searchsorted(label[order], np.arange(k)), np.bincount(label, minlength=k)
        filled = np.minimum(count, m)
        own = np.arange(m) < filled[:, None]
        best = order[np.minimum(first[:, None] + np.arange(m), len(row) - 1)]
        for other in range(min(2 * m, len(row))):  # where a component has fewer rows, the first of others follow
            short = np.flatnonzero((filled < m) & (label[other] != np.arange(k)))
            best[short, filled[short]] = other
            filled[short] += 1
        log_resp = np.where(own, 0.0, -np.inf)
        rows = np.empty((len(row), 0)) if sp.issparse(x) else x
        return cls(limit, row[best], log_resp, np.where(own, score[best], -np.inf), rows[best].astype(np.float64))

    def challengers(self, log_resp: Array, log_joint: Array) -> Array:
        """Return the positions of later rows that may enter the lists. log_resp, log_joint : (n, k)."""
        if self.row.shape[1] < self.limit:
            return np.arange(len(log_resp))
        last_resp, last_joint = self.log_resp[:, -1], self.log_joint[:, -1]
        better = (log_resp > last_resp) | ((log_resp == last_resp) & (log_joint > last_joint))
        return np.flatnonzero(better.any(axis=1))

    def __add__(self, other: Representatives) -> Representatives:
        row, log_resp, log_joint = (
            np.concatenate([getattr(self, name), getattr(other, name)], axis=1)
            for name in ("row", "log_resp", "log_joint")
        )
        best = np.lexsort((row, -log_joint, -log_resp), axis=1)[:, : self.limit]
        x = np.concatenate([self.x, other.x], axis=1)
        row, log_resp, log_joint = (np.take_along_axis(values, best, axis=1) for values in (row, log_resp, log_joint))
        return Representatives(self.limit, row, log_resp, log_joint, np.take_along_axis(x, best[:, :, None], axis=1))


def unit(x: Matrix) -> Matrix:
    """Rows scaled to unit length, float; those of zeros stay. x : (n, d), dense or CSR."""
    if not sp.issparse(x):
        x = np.asarray(x, dtype=np.float64)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)  # the squares of integers may not fit their type
    length = np.sqrt(x.multiply(x).sum(axis=1))
    scale = np.divide(1.0, length, out=np.zeros_like(length, dtype=np.float64), where=length > 0)
    return sp.csr_array(x.multiply(scale[:, None]))
