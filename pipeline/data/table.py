"""Tables of fixed-size numbers in one binary file, after a header."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from pipeline.data.files import native, open_binary, read_exactly, reading, stored_size, what_it_is
from pipeline.data.source import Source, even_bounds, row_dtype, rows_per_target
from pipeline.errors import InputError, StorageError


class TableSource(Source):
    """A rectangle of fixed-size numbers in one file.

    Parameters
    ----------
    path : str
    options : mapping
        Of its file system.
    offset : int
        Bytes of header.
    shape : tuple of int
        (rows, ...), flattened to features.
    stored : numpy.dtype
    columns_first : bool
        Whether it is in NumPy's Fortran order (of two dimensions).
    """

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        offset: int,
        shape: tuple[int, ...],
        stored: np.dtype[Any],
        columns_first: bool = False,
    ) -> None:
        n_features = math.prod(shape[1:])
        rows = (shape[0], n_features) if len(shape) > 1 else tuple(shape)
        self.dtype = row_dtype(path, rows, stored)
        self.n_features = n_features
        self.bounds = even_bounds(shape[0], rows_per_target(n_features, stored.itemsize))
        self._path, self._options, self._offset = path, dict(options), offset
        self._shape, self._stored, self._columns_first = tuple(shape), stored, columns_first

    def read(self, i: int) -> np.ndarray:
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        what = f"{self._path}, rows {start}:{stop} (chunk {i})"
        with reading(what), open_binary(self._path, self._options) as stream:
            if self._columns_first:
                x = np.empty((self.n_features, stop - start), self._stored)
                for j in range(self.n_features):
                    stream.seek(self._offset + (j * self.n_rows + start) * self._stored.itemsize)
                    read_exactly(stream, x[j], what)
                return native(x.T, self.dtype)
            x = np.empty((stop - start, self.n_features), self._stored)
            stream.seek(self._offset + start * self.n_features * self._stored.itemsize)
            read_exactly(stream, x, what)
            return native(x, self.dtype)

    def describe(self) -> dict[str, Any]:
        if len(self._shape) == 3:
            return {"kind": "image", "size": list(self._shape[1:])}
        return {"kind": "rows"}

    def object_sizes(self) -> list[int]:
        with reading(self._path):
            return [stored_size(self._path, self._options)]


def npy_header(stream: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read the header of an .npy stream.

    Returns
    -------
    shape : tuple of int
    columns_first : bool
        Whether it is in Fortran order.
    dtype : numpy.dtype
    offset : int
        Bytes of header.

    Raises
    ------
    InputError
        If it is none.
    """
    try:
        version = np.lib.format.read_magic(stream)
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = parse(stream)
    except ValueError as error:
        stream.seek(0)
        beginning = stream.read(8)
        advice = what_it_is(beginning) or "Write it with numpy.save; text is read by data.source: csv"
        raise InputError(f"{path}: is not an .npy file, it begins with {beginning!r}. {advice}.") from error
    return shape, columns_first, dtype, stream.tell()


def refuse_other_size(stream: IO[bytes], path: str, expected: int) -> None:
    """Raise StorageError for a file of fewer than the expected bytes, InputError for one of more."""
    size = (
        stream.seek(expected) if path.endswith(".gz") else stream.seek(0, os.SEEK_END)
    )  # gzip only knows what it has read
    if size < expected:
        raise StorageError(f"{path}: has {size} bytes, its header promises {expected}. Fetch or write it again.")
    if size > expected or stream.read(1):
        raise InputError(
            f"{path}: goes on after the array that its header promises, at byte {expected}, expected its end. Two arrays in "
            "one file are not read: write each to a file of its own."
        )
