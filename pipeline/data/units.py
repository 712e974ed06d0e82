"""Units: consecutive rows that belong together, such as the patches of a picture or the steps of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Matrix
from pipeline.data.column import Column
from pipeline.data.grid import Grid
from pipeline.data.source import Source
from pipeline.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

READ = 2**20  # numbers of the column at a time


def unit_starts(column: Column, n_rows: int) -> np.ndarray:
    """Return the first row of each unit, shape (n_units,), int64, from a number a row that is the same within a unit.

    Raises
    ------
    InputError
        If the rows of a unit do not follow each other.
    """
    starts, numbers, last = [np.zeros(0, dtype=np.int64)], [], None
    for first in range(0, n_rows, READ):
        values = column.read(first, min(first + READ, n_rows))
        new = np.append(last is None or values[0] != last, values[1:] != values[:-1])
        starts.append(first + np.flatnonzero(new))
        numbers.append(values[new])
        last = values[-1]
    found, number = np.concatenate(starts), np.concatenate(numbers)
    unique, first_of = np.unique(number, return_index=True)
    if len(unique) < len(number):
        again = int(np.setdiff1d(np.arange(len(number)), first_of)[0])
        raise InputError(
            f"data.units: got number {number[again]} again at row {found[again]}, expected the rows of a unit one after the "
            "other. Sort the rows, or number the units in the order of the rows."
        )
    return found


def starts_of(lengths: Any, n_rows: int) -> np.ndarray:
    """Return the first row of each unit, shape (n_units,), int64, from how many rows each has; None: all rows are one unit.

    Raises
    ------
    InputError
        If they are not whole numbers above 0 with the sum n_rows.
    """
    found = np.asarray([n_rows] if lengths is None else lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 1).any() or found.sum() != n_rows:
        raise InputError(
            f"lengths: got {found.tolist()!s:.60} with the sum {found.sum()}, expected whole numbers above 0 with the sum {n_rows}, the "
            "number of rows. Give one for each sequence."
        )
    return np.concatenate([[0], np.cumsum(found[:-1])]).astype(np.int64)


@dataclass(frozen=True)
class UnitSource(Source):
    """Rows of a source with units, of which no chunk holds a part where they are whole.

    Attributes
    ----------
    inner : Source
    starts : array, shape (n_units,), int64
        First row of each unit.
    whole : bool
        Whether chunks end where units end. Stored chunks in which one ends are then read twice a pass.
    """

    inner: Source
    starts: np.ndarray
    whole: bool

    def __post_init__(self) -> None:
        bounds = self.inner.bounds
        if self.whole:
            ends = np.append(self.starts, bounds[-1])
            bounds = np.unique(ends[np.searchsorted(ends, bounds)])
        own = {name: getattr(self.inner, name) for name in ("n_features", "dtype", "sparse", "stored", "fetched_ahead")}
        for name, value in {**own, "bounds": bounds}.items():
            object.__setattr__(self, name, value)  # attributes of every source, derived once

    def read(self, i: int) -> Matrix:
        if not self.whole:
            return self.inner.read(i)
        start, stop = self.bounds[i], self.bounds[i + 1]
        first, last = np.searchsorted(self.inner.bounds, [start, stop - 1], side="right") - 1
        parts = []
        for j in range(first, last + 1):
            low, high = self.inner.bounds[j], self.inner.bounds[j + 1]
            parts.append(self.inner.read(j)[max(start, low) - low : min(stop, high) - low])
        if self.sparse:
            return sp.vstack(parts, format="csr")
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def units(self) -> np.ndarray:
        return self.starts

    def units_of(self, start: int, stop: int) -> np.ndarray | None:
        if not self.whole:
            return None
        return self.starts[slice(*np.searchsorted(self.starts, [start, stop]))] - start

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return self.inner.keys(start, stop)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def object_sizes(self) -> list[int]:
        return self.inner.object_sizes()

    def unprotected(self) -> str | None:
        return self.inner.unprotected()

    def decoding(self) -> tuple[int, str]:
        return self.inner.decoding()

    def resident(self) -> int:
        return self.inner.resident()

    def notes(self) -> list[str]:
        return self.inner.notes()

    def pictures(self) -> tuple[list[str], np.ndarray] | None:
        return self.inner.pictures()

    def rows_on(self) -> tuple[Grid, xr.Dataset | None]:
        return self.inner.rows_on()

    def vocabulary(self) -> list[str] | None:
        return self.inner.vocabulary()
