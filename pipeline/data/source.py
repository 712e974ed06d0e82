"""Rows that can be read again, chunk by chunk.

Out-of-core EM reads the same rows once a pass, from whichever process or machine a task lands on. So a
source holds paths and shapes only, opens files in `read`, and its chunk bounds follow from the stored data
alone: never from the memory or the number of workers, which must not change a bit of the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError

if TYPE_CHECKING:
    import dask.array
    from scipy.sparse import csr_array

# Decoded bytes that a chunk aims at: large enough that a read's overhead is small beside it, small enough
# that a thread's working set (a chunk, its copy, the next one) stays far below any sensible memory budget.
TARGET_BYTES = 8 * 2**20


class Source(ABC):
    """Rows that can be read again, chunk by chunk: small, picklable, stateless."""

    n_features: int
    dtype: np.dtype[Any]
    """What `read` returns: native byte order."""
    bounds: np.ndarray
    """(n_chunks + 1,) int64, increasing from 0: chunk i is rows bounds[i]:bounds[i + 1]."""
    sparse: bool = False
    """True: `read` returns a `scipy.sparse.csr_array`."""

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
        """Chunk i: (bounds[i + 1] - bounds[i], n_features), C-contiguous where dense.

        Raises StorageError, naming what was read, when it is missing, damaged or short.
        """

    def describe(self) -> dict[str, Any]:
        """What a row is, for the report: JSON-able, without paths or times."""
        return {"kind": "rows"}

    def object_sizes(self) -> list[int]:
        """Bytes of each stored object (file or zarr chunk), in a fixed order; part of the fingerprint."""
        return []

    def unprotected(self) -> str | None:
        """What is stored in such a way that a flipped bit may not be noticed, and how; None where that is not known."""
        return None

    def pictures(self) -> tuple[list[str], np.ndarray] | None:
        """Names of the pictures and the first row of each, (n_pictures,) int64; None if rows are not patches."""
        return None

    def vocabulary(self) -> list[str] | None:
        """The word of each feature, where there are words."""
        return None

    def blocks(self) -> list[Any] | None:
        """For rows that are a Dask array already: a delayed block for each chunk, used where it lies."""
        return None

    def to_dask(self) -> dask.array.Array:
        """The rows as a lazy dask array, one block per chunk; sparse sources refuse with InputError."""
        import dask.array

        if self.sparse:
            raise InputError("to_dask: came with sparse rows, expected dense ones. Read chunk i with read(i).")
        chunks = (tuple(np.diff(self.bounds).tolist()), (self.n_features,))
        meta = np.empty((0, 0), self.dtype)
        map_blocks: Any = dask.array.map_blocks  # not annotated
        rows: dask.array.Array = map_blocks(_read_block, source=self, chunks=chunks, dtype=self.dtype, meta=meta)
        return rows


def _read_block(source: Source, block_id: tuple[int, ...]) -> np.ndarray | csr_array:
    return source.read(block_id[0])


def even_bounds(n_rows: int, rows_per_chunk: int) -> np.ndarray:
    """Chunk bounds every `rows_per_chunk` rows, (n_chunks + 1,) int64; the last chunk takes what is left.

    >>> even_bounds(10, 4).tolist()
    [0, 4, 8, 10]
    """
    return np.append(np.arange(0, n_rows, rows_per_chunk, dtype=np.int64), np.int64(n_rows))


def rows_per_target(n_features: int, itemsize: int, unit: int = 1) -> int:
    """How many rows make about TARGET_BYTES: a multiple of `unit` rows, at least one unit.

    >>> rows_per_target(n_features=64, itemsize=8)
    16384
    >>> rows_per_target(n_features=64, itemsize=8, unit=10_000)
    10000
    """
    return unit * max(1, TARGET_BYTES // (unit * n_features * itemsize))


def row_dtype(what: str, shape: tuple[int, ...], dtype: Any) -> np.dtype[Any]:
    """The dtype that `read` returns for a stored table: native byte order, bool as uint8.

    Raises InputError unless the table is two-dimensional, real, fixed-size and not empty.
    """
    came = f"{what}: came with dtype {dtype} and shape {tuple(shape)}"
    kind = np.dtype(dtype) if isinstance(dtype, (np.dtype, type, str)) else np.dtype(object)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise InputError(f"{came}, expected bool, integers or float16/32/64. Convert it first.")
    if len(shape) != 2:
        raise InputError(f"{came}, expected two dimensions (rows, features). Reshape it first.")
    if 0 in shape:
        raise InputError(f"{came}, expected at least one row and one feature. Check what wrote it.")
    return np.dtype(np.uint8) if kind.kind == "b" else kind.newbyteorder("=")
