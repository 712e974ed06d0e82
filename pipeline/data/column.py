"""A column beside the rows: weights or labels, one number a row; or the errors of rows, some numbers each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zarr

from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import native, open_binary, opening, read_exactly, reading
from pipeline.data.hdf import HdfPlace
from pipeline.data.stores import ZarrPlace, listing
from pipeline.data.table import npy_header, refuse_other_size
from pipeline.errors import InputError


class Column(Protocol):
    """One number a row."""

    def decoding(self) -> int:
        """Return the bytes that a read needs beside its numbers, at most."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,)."""


class Errors(Column, Protocol):
    """Several numbers a row."""

    @property
    def of_each(self) -> tuple[int, ...]:
        """Their shape."""


@dataclass(frozen=True)
class MemoryColumn:
    """A column in memory. values : array, shape (n,)."""

    values: np.ndarray

    @property
    def of_each(self) -> tuple[int, ...]:
        """The shape of what is there of a row."""
        return self.values.shape[1:]

    def decoding(self) -> int:
        """Return 0: nothing is decoded."""
        return 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,)."""
        return self.values[start:stop]


@dataclass(frozen=True)
class RowColumn:
    """A column in a file or store: small and picklable. Made by `open`.

    Attributes
    ----------
    n_rows : int
    place : ZarrPlace, HdfPlace or None
        Where the array is; None for a `.npy` file at `path`.
    path : str
    options : dict
        Of its file system.
    chunk_bytes : int
        Of a stored chunk; 0 for a `.npy` file.
    of_each : tuple of int
        The shape of what is stored of a row; () is one number.
    """

    n_rows: int
    place: ZarrPlace | HdfPlace | None
    path: str
    options: dict[str, Any]
    chunk_bytes: int = 0
    of_each: tuple[int, ...] = ()

    @classmethod
    def open(
        cls,
        path: str,
        n_rows: int,
        what: str,
        variable: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        missing_chunks: str = "error",
        of_each: tuple[tuple[int, ...], ...] = ((),),
    ) -> RowColumn:
        """Open the column in a `.npy` file, a zarr array, or an array of a zarr group.

        Parameters
        ----------
        path : str
        n_rows : int
            How many numbers there must be.
        what : str
            What they are, for messages: "weights", "labels" or "units".
        variable : str, optional
            The array of a group; by default the one named `what`, with or without its last s.
        storage_options : mapping, optional
        missing_chunks : {"error", "fill"}
        of_each : tuple of tuple of int
            The shapes that what is stored of a row may have: () is one number.

        Raises
        ------
        InputError
            Unless there are `n_rows` real numbers.
        """
        options = dict(storage_options or {})
        place: ZarrPlace | None = None
        shape: tuple[int, ...]
        dtype: Any
        if path.endswith(".npy"):
            with opening(path), open_binary(path, options) as stream:
                shape, columns_first, dtype, offset = npy_header(stream, path)
                if columns_first and len(shape) > 1:
                    raise InputError(f"{path}: is stored column by column, expected row by row. Write it in C order.")
                if shape[:1] == (n_rows,):
                    refuse_other_size(stream, path, offset + math.prod(shape) * dtype.itemsize)
        else:
            place = ZarrPlace(path, options, missing_chunks)
            node = place.open_first()
            with place.opening():
                if isinstance(node, zarr.Group):
                    names = [variable] if variable else [what, what.removesuffix("s")]
                    found = next((name for name in names if name in node), None)
                    if found is None:
                        raise InputError(f"{path}: has no array {' or '.join(names)} for the {what}. {listing(node)}")
                    place = place.child(found)
                    node = place.open_first()
                shape, dtype = getattr(node, "shape", ()), getattr(node, "dtype", None)
                if isinstance(node, zarr.Array):
                    refuse_encoded(str(place), node)
        if shape[:1] != (n_rows,) or shape[1:] not in of_each or getattr(dtype, "kind", "O") not in "biuf":
            each = "one number" if of_each == ((),) else "real numbers"
            shapes = " or ".join(str((n_rows, *tail)) for tail in of_each)
            raise InputError(
                f"{place or path}: got dtype {dtype} and shape {shape} as {what}, expected {each} for each of the "
                f"{n_rows} rows of the data, shape {shapes}. Give those of these rows."
            )
        chunk = 0 if place is None else math.prod(node.shards or node.chunks) * dtype.itemsize
        return cls(n_rows, place, path, options, chunk, shape[1:])

    def decoding(self) -> int:
        """Return the bytes of a stored chunk, encoded and decoded."""
        return 2 * self.chunk_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start, *of_each), in native byte order."""
        if self.place is not None:
            x = self.place.read(start, stop)
        else:
            with reading(self.path), open_binary(self.path, self.options) as stream:
                _, _, dtype, offset = npy_header(stream, self.path)
                stream.seek(offset + start * math.prod(self.of_each) * dtype.itemsize)
                x = np.empty((stop - start, *self.of_each), dtype)
                read_exactly(stream, x, f"{self.path}, rows {start}:{stop}")
        return native(x, x.dtype.newbyteorder("="))
