"""Chunks: a source's rows as the models see them.

Reads a chunk, gives weight 0 to bad rows (so that row numbers keep their meaning), looks up weights and labels and applies
the preprocessing. Small and picklable; what it returns does not depend on who asks.
"""

from __future__ import annotations

import hashlib
import math
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.rows import Rows
from pipeline.data.checked import checked_column, checked_errors, checked_rows
from pipeline.data.column import Column, Errors
from pipeline.data.preprocess import Affine
from pipeline.data.source import TARGET_BYTES, Source
from pipeline.data.units import UnitSource
from pipeline.errors import InputError

FINITE_TILE = 2**16  # numbers
N_HASHED = 16  # chunks whose bytes enter the fingerprint
_COMPARED: set[tuple[str, int]] = set()  # chunks that this process has compared, by the token of their checksums


@dataclass(frozen=True)
class Chunks:
    """The rows of a source with their columns and preprocessing, chunk by chunk.

    Attributes
    ----------
    source : Source
    weights, labels : Column or None
    affine : Affine or None
        The preprocessing.
    clean : bool
        Whether a pass has found no NaN and no inf; to look again would cost as much as some E-steps.
    checksums : array, shape (m, 2), int64, or None
        First row and CRC-32 of the chunks that the profiling pass has read, by first row; a chunk is compared when a process reads it for
        the first time. None before that pass, which collects them.
    token : str
        Names `checksums` among those that a process has compared.
    noise : Errors or None
        Variances or covariances of the errors of rows, which then follow the entries of each row: see models/deconvolution.py.
    missing : bool
        Whether NaN is an entry that is not known: only rows of nothing else are bad, and inf is refused.
    """

    source: Source
    weights: Column | None = None
    affine: Affine | None = None
    clean: bool = False
    labels: Column | None = None
    checksums: Array | None = None
    token: str = ""
    missing: bool = False
    noise: Errors | None = None

    @property
    def n_chunks(self) -> int:
        """How many chunks a pass reads."""
        return self.source.n_chunks

    @property
    def n_rows(self) -> int:
        """Rows in all, bad ones included."""
        return self.source.n_rows

    @property
    def n_features(self) -> int:
        """Columns that the models see."""
        return self.source.n_features if self.affine is None else self.affine.n_out

    def after_profile(self, affine: Affine | None, n_bad: int, checksums: Array | None = None) -> Chunks:
        """Return the same rows with what a profiling pass has found: the preprocessing, the number of bad rows, and checksums."""
        compared = self if checksums is None else self.compared(checksums)
        return replace(compared, affine=affine, clean=n_bad == 0)

    def compared(self, checksums: Array) -> Chunks:
        """Return the same rows, of which every chunk must be as an earlier process has read it. checksums : as the attribute."""
        return replace(self, checksums=checksums[np.argsort(checksums[:, 0])], token=uuid.uuid4().hex)

    def raw(self) -> Chunks:
        """Return the same rows without the preprocessing."""
        return replace(self, affine=None)

    def load(self, i: int) -> Rows:
        """Read chunk i, ready for an E-step.

        Raises
        ------
        StorageError
            If the chunk cannot be read.
        InputError
            If the rows are not what the source declares, or a weight or label is not valid; the message names them.
        """
        return self.prepared(i, self.source.read(i))

    def prepared(self, i: int, x: Matrix) -> Rows:
        """Return chunk i from its rows as they were read."""
        start, stop = self.rows(i)
        source, place = self.source, f"rows {start}:{stop} (chunk {i})"
        x = checked_rows(place, x, (stop - start, source.n_features), source.dtype, source.sparse)
        weight, label = (
            None if column is None else checked_column(f"data.{what}, {place}", column.read(start, stop), stop - start)
            for what, column in (("weights", self.weights), ("labels", self.labels))
        )
        noise = None if self.noise is None else checked_errors(self.noise.read(start, stop), start, x.shape)
        checksum = self._checksum(i, start, x, [weight, label, noise])
        weight = None if weight is None else _checked_weights(weight, start)
        label = None if label is None else _checked_labels(label, start)
        bad = None if self.clean else _bad_rows(x)
        if bad is not None and self.missing:
            bad = _without_entries(x, start)
        if bad is not None:
            weight = np.where(bad, 0.0, 1.0 if weight is None else weight)
            x = _zeroed(x, bad)
        if noise is not None:
            x = np.concatenate([x, noise.reshape(len(x), -1)], axis=1, dtype=compute_dtype(x.dtype))
        return Rows(
            x if self.affine is None else self.affine.apply(x),
            weight,
            start,
            bad,
            label,
            checksum=checksum,
            units=self.source.units_of(start, stop),
        )

    def _checksum(self, i: int, start: int, x: Matrix, columns: Sequence[Array | None]) -> int | None:
        """The CRC-32 of a chunk before the profile is made. After it, raise InputError if the chunk is another than it was then."""
        if not self.source.stored or (self.checksums is not None and (self.token, i) in _COMPARED):
            return None
        found = 0
        for part in (*_parts(x), *columns):
            found = found if part is None else zlib.crc32(np.ascontiguousarray(part).data, found)
        if self.checksums is None:
            return found
        at = int(np.searchsorted(self.checksums[:, 0], start))
        if at < len(self.checksums) and self.checksums[at, 0] == start and self.checksums[at, 1] != found:
            raise InputError(
                f"data chunk {i}: rows {start} to {start + x.shape[0] - 1} have changed since the run read them: their CRC-32 was "
                f"{self.checksums[at, 1]:08x}, it is {found:08x}. Restore them, or `em-pipeline run` into another --output."
            )
        _COMPARED.add((self.token, i))
        return None

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk in the dtype of computations; of sparse rows the target."""
        if self.source.sparse:
            return TARGET_BYTES
        rows = int(np.diff(self.source.bounds).max())
        return rows * self.width * compute_dtype(self.source.dtype).itemsize

    @property
    def width(self) -> int:
        """Numbers of a row as it is read: its entries, and what is known of their errors."""
        return self.source.n_features + (0 if self.noise is None else math.prod(self.noise.of_each))

    def longest_unit(self) -> int:
        """Return the rows of the longest unit; 1 where each row is one."""
        starts = self.source.units()
        return 1 if starts is None else int(np.diff(starts, append=self.n_rows).max())

    def decoding(self) -> tuple[int, str]:
        """Return the bytes that a read needs beside three times its chunk, at most, and what would make it fewer."""
        n_bytes, advice = self.source.decoding()
        of_columns = sum(column.decoding() for column in (self.weights, self.labels, self.noise) if column is not None)
        return n_bytes + of_columns, advice if n_bytes > of_columns else "store weights and labels in smaller chunks"

    def pass_bytes(self) -> int:
        """Return the decoded bytes of one pass; of sparse rows those stored."""
        source = self.source
        if source.sparse:
            return sum(source.object_sizes())
        return source.n_rows * self.width * source.dtype.itemsize

    def rows(self, i: int) -> tuple[int, int]:
        """Return the first row of chunk i, and the one after its last."""
        return int(self.source.bounds[i]), int(self.source.bounds[i + 1])

    def hashed(self) -> list[int]:
        """Return the evenly spaced chunks whose bytes enter the fingerprint."""
        return [int(i) for i in np.unique(np.linspace(0, self.n_chunks - 1, N_HASHED).round())]

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the input without its path or times.

        Returns
        -------
        dict
            Shape, dtype, chunk grid, object sizes, the SHA-256 of 16 chunks with their weights and labels, and units.
        """
        source = self.source
        content = hashlib.sha256()
        for i in self.hashed():
            self._absorb(content, i)
            if self.weights is not None:
                content.update(self.weights.read(*self.rows(i)).tobytes())
            if self.labels is not None:
                content.update(b"labels" + self.labels.read(*self.rows(i)).tobytes())
            if self.noise is not None:
                content.update(b"noise" + self.noise.read(*self.rows(i)).tobytes())
        return {
            "shape": [source.n_rows, source.n_features],
            "dtype": str(source.dtype),
            "n_chunks": source.n_chunks,
            "grid": _digest(np.asarray(source.bounds, dtype=np.int64)),
            "object_sizes": _digest(np.asarray(source.object_sizes(), dtype=np.int64)),
            "sha256": content.hexdigest(),
            **({"units": _digest(source.starts)} if isinstance(source, UnitSource) else {}),
        }

    def digest(self, i: int) -> str:
        """Return the SHA-256 of the rows of chunk i: whether two machines read the same under one path."""
        content = hashlib.sha256()
        self._absorb(content, i)
        return content.hexdigest()

    def _absorb(self, content: Any, i: int) -> None:
        """Add the rows of chunk i to a hash, without a copy of them."""
        for part in _parts(self.source.read(i)):
            content.update(np.ascontiguousarray(part).data)


def _parts(x: Matrix) -> tuple[Array, ...]:
    """The arrays that rows are made of."""
    return (x,) if isinstance(x, np.ndarray) else (x.indptr, x.indices, x.data)


def _checked_weights(weight: Array, start: int) -> Array:
    weight = weight.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"data.weights: row {start + row} has weight {weight[row]}, expected finite, non-negative weights. Correct it."
        )
    return weight


def _checked_labels(label: Array, start: int) -> Array:
    """Labels as (n,) int64; floats must be whole numbers."""
    with np.errstate(invalid="ignore"):  # of NaN, which is refused
        found = label.astype(np.int64)
    wrong = np.flatnonzero((found != label) | (found < -1))
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"data.labels: row {start + row} has label {label[row]}, expected an integer from 0, or -1 where it is unknown. "
            "Correct it."
        )
    return found


def _digest(numbers: Array) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _bad_rows(x: Matrix) -> Array | None:
    """(n,) bool mask of rows with NaN or inf, or None when there are none."""
    if x.dtype.kind != "f":
        return None
    if sp.issparse(x):
        if np.isfinite(x.data).all():
            return None
        return np.asarray((sp.csr_array((~np.isfinite(x.data), x.indices, x.indptr), shape=x.shape)).sum(axis=1) > 0)
    flat = x.reshape(-1)
    # Piece by piece: a mask of the whole chunk would be new memory each time, which costs more than the test.
    if all(np.isfinite(flat[i : i + FINITE_TILE]).all() for i in range(0, flat.size, FINITE_TILE)):
        return None
    return ~np.isfinite(x).all(axis=1)


def _without_entries(x: Array, start: int) -> Array | None:
    """(n,) bool mask of rows of NaN alone, or None when there are none. Raises InputError for inf. start : index of the first row."""
    infinite = np.isinf(x).any(axis=1)
    if infinite.any():
        raise InputError(
            f"row {start + int(infinite.argmax())} holds inf, which data.bad_rows: missing does not take for a missing entry. Write NaN "
            "there, or set data.bad_rows: drop."
        )
    bad = np.asarray(np.isnan(x).all(axis=1))
    return bad if bad.any() else None


def _zeroed(x: Matrix, bad: Array) -> Matrix:
    if sp.issparse(x):
        good = np.repeat(~bad, np.diff(x.indptr))
        return sp.csr_array((np.where(good, x.data, 0), x.indices, x.indptr), shape=x.shape)
    x = x.copy()
    x[bad] = 0
    return x
