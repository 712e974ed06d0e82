"""A column beside the rows: weights or labels, one number a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zarr

from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import native, open_binary, opening, read_exactly, reading
from pipeline.data.stores import ZarrPlace, listing
from pipeline.data.table import npy_header, refuse_other_size
from pipeline.errors import InputError


class Column(Protocol):
    """One number a row."""

    def decoding(self) -> int:
        """Return the bytes that a read needs beside its numbers, at most."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,)."""


@dataclass(frozen=True)
class MemoryColumn:
    """A column in memory. values : array, shape (n,)."""

    values: np.ndarray

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
    place : ZarrPlace or None
        Where the zarr array is; None for a `.npy` file at `path`.
    path : str
    options : dict
        Of its file system.
    chunk_bytes : int
        Of a stored chunk; 0 for a `.npy` file.
    """

    n_rows: int
    place: ZarrPlace | None
    path: str
    options: dict[str, Any]
    chunk_bytes: int = 0

    @classmethod
    def open(
        cls,
        path: str,
        n_rows: int,
        what: str,
        variable: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        missing_chunks: str = "error",
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
                shape, _, dtype, offset = npy_header(stream, path)
                if shape == (n_rows,):
                    refuse_other_size(stream, path, offset + n_rows * dtype.itemsize)
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
        if shape != (n_rows,) or getattr(dtype, "kind", "O") not in "biuf":
            raise InputError(
                f"{place or path}: got dtype {dtype} and shape {shape} as {what}, expected one number for each of the "
                f"{n_rows} rows of the data, shape ({n_rows},)."
            )
        chunk = 0 if place is None else int((node.shards or node.chunks)[0]) * dtype.itemsize
        return cls(n_rows, place, path, options, chunk)

    def decoding(self) -> int:
        """Return the bytes of a stored chunk, encoded and decoded."""
        return 2 * self.chunk_bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,), in native byte order."""
        if self.place is not None:
            x = self.place.read(start, stop)
        else:
            with reading(self.path), open_binary(self.path, self.options) as stream:
                _, _, dtype, offset = npy_header(stream, self.path)
                stream.seek(offset + start * dtype.itemsize)
                x = np.empty(stop - start, dtype)
                read_exactly(stream, x, f"{self.path}, rows {start}:{stop}")
        return native(x, x.dtype.newbyteorder("="))
