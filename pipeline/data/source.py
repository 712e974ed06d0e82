"""Rows that can be read again, chunk by chunk.

Out-of-core EM reads the same rows once a pass, from whichever process or machine a task runs on. So a source holds paths and
shapes only and opens files in `read`. Its chunk bounds follow from the stored data alone, never from the memory or the number
of workers, which must not change a bit of the result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.grid import Grid
from pipeline.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from scipy.sparse import csr_array

# Decoded bytes that a chunk aims at: large enough that a read's overhead is small beside it, small enough that a thread's
# working set (a chunk, its copy, the next one) stays far below any sensible memory budget.
TARGET_BYTES = 8 * 2**20
MOST_BYTES = 2**48  # of a table: the bounds of its chunks alone would be 256 MiB


class Source(ABC):
    """Rows that can be read again, chunk by chunk: small, picklable, without state.

    Attributes
    ----------
    n_features : int
        Columns of a row.
    dtype : numpy.dtype
        What `read` returns, in native byte order.
    bounds : array, shape (n_chunks + 1,), int64
        Increasing from 0: chunk i is rows ``bounds[i]:bounds[i + 1]``.
    sparse : bool
        Whether `read` returns a `scipy.sparse.csr_array`.
    stored : bool
        Whether rows are outside this process, where they may change between two reads.
    fetched_ahead : bool
        Whether the system fetches the next chunk while one is decoded, so that reading does not wait for a disk.
    """

    n_features: int
    dtype: np.dtype[Any]
    bounds: np.ndarray
    sparse: bool = False
    stored: bool = True
    fetched_ahead: bool = False

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return int(self.bounds[-1])

    @property
    def n_chunks(self) -> int:
        """Chunks in all; none is empty."""
        return len(self.bounds) - 1

    @abstractmethod
    def read(self, i: int) -> np.ndarray | csr_array:
        """Read chunk i.

        Returns
        -------
        array or csr_array, shape (bounds[i + 1] - bounds[i], n_features)
            C-contiguous where dense.

        Raises
        ------
        StorageError
            If what is read is missing, damaged or short; the message names it.
        """

    def describe(self) -> dict[str, Any]:
        """Return what a row is, for the report: plain values for JSON, without paths or times."""
        return {"kind": "rows"}

    def object_sizes(self) -> list[int]:
        """Return the bytes of each stored object (file or zarr chunk), in a fixed order; part of the fingerprint."""
        return []

    def unprotected(self) -> str | None:
        """Return what is stored so that a flipped bit may not be noticed, and how; None where that is not known."""
        return None

    def decoding(self) -> tuple[int, str]:
        """Return the bytes that a read needs beside three times its chunk, at most, and what would make it fewer."""
        return 0, ""

    def resident(self) -> int:
        """Return the bytes that it takes in each process while rows are read and labels written, beside the chunks."""
        return 0

    def notes(self) -> list[str]:
        """Return what a person should know of how the rows are read, a sentence each without its full stop, for warnings."""
        return []

    def pictures(self) -> tuple[list[str], np.ndarray] | None:
        """Return names of the pictures and the first row of each, shape (n_pictures,), int64; None if rows are not patches."""
        return None

    def units(self) -> np.ndarray | None:
        """Return the first row of each unit (picture, sequence), shape (n_units,), int64; None where each row is one."""
        pictures = self.pictures()
        return None if pictures is None else pictures[1]

    def units_of(self, start: int, stop: int) -> np.ndarray | None:
        """Return the first row of each unit of a chunk, counted from `start`; None where chunks need not hold whole units."""
        return None

    def rows_on(self) -> tuple[Grid, xr.Dataset | None]:
        """Return the grid that the rows lie on, and its coordinates where there are some; rows of a table have none."""
        return Grid.of_rows(self.n_rows), None

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return what names rows start:stop beside their numbers and coordinates, by name, each (stop - start,)."""
        return {}

    def places(self, start: int, stop: int) -> np.ndarray | None:
        """Return where rows are in their unit, from 0 to 1 down and across, shape (stop - start, 2); None where they are nowhere."""
        return None

    def vocabulary(self) -> list[str] | None:
        """Return the word of each feature, where there are words."""
        return None

    def blocks(self) -> list[Any] | None:
        """Return a delayed block for each chunk where rows are a Dask array already."""
        return None


def even_bounds(n_rows: int, rows_per_chunk: int) -> np.ndarray:
    """Return chunk bounds every `rows_per_chunk` rows, shape (n_chunks + 1,), int64; the last chunk may be shorter.

    >>> even_bounds(10, 4).tolist()
    [0, 4, 8, 10]
    """
    return np.append(np.arange(0, n_rows, rows_per_chunk, dtype=np.int64), np.int64(n_rows))


def rows_per_target(n_features: int, itemsize: int, unit: int = 1) -> int:
    """Return how many rows make about TARGET_BYTES: a multiple of `unit` rows, at least one unit.

    >>> rows_per_target(n_features=64, itemsize=8)
    16384
    >>> rows_per_target(n_features=64, itemsize=8, unit=10_000)
    10000
    """
    return unit * max(1, TARGET_BYTES // (unit * n_features * itemsize))


def row_dtype(what: str, shape: tuple[int, ...], dtype: Any) -> np.dtype[Any]:
    """Return the dtype that `read` returns for a stored table: native byte order, bool as uint8.

    Parameters
    ----------
    what : str
        Names the table in messages.
    shape : tuple of int
    dtype : Any
        As it is stored.

    Raises
    ------
    InputError
        Unless the table is two-dimensional, real, fixed-size and not empty.
    """
    got = f"{what}: got dtype {dtype} and shape {tuple(shape)}"
    kind = np.dtype(dtype) if isinstance(dtype, (np.dtype, type, str)) else np.dtype(object)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise InputError(f"{got}, expected bool, integers or float16/32/64. Convert it first.")
    if len(shape) != 2:
        raise InputError(f"{got}, expected two dimensions (rows, features). Reshape it first.")
    if min(shape) < 1:
        raise InputError(f"{got}, expected at least one row and one feature. Check what wrote it.")
    if math.prod(shape) * kind.itemsize > MOST_BYTES:
        raise InputError(f"{got}, more than {MOST_BYTES // 2**40} TiB. Its metadata are damaged: write it again.")
    return np.dtype(np.uint8) if kind.kind == "b" else kind.newbyteorder("=")
