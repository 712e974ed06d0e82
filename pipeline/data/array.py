"""Rows in a two-dimensional array of zarr or HDF5."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.files import native
from pipeline.data.hdf import HdfPlace
from pipeline.data.source import Source, even_bounds, row_dtype, rows_per_target
from pipeline.data.stores import ZarrPlace, stored_chunk, unprotected


class ArraySource(Source):
    """Rows of a two-dimensional array of zarr or HDF5: whole stored chunks (or shards) of rows at a time.

    Parameters
    ----------
    place : ZarrPlace or HdfPlace
    array : zarr.Array or h5py.Dataset
        The opened array at `place`.
    """

    def __init__(self, place: ZarrPlace | HdfPlace, array: Any) -> None:
        self.dtype = row_dtype(str(place), array.shape, array.dtype)
        self.n_features = int(array.shape[1])
        self.stored_chunk = stored_chunk(array)  # rows, features of an object
        unit = int(self.stored_chunk[0])
        self.bounds = even_bounds(int(array.shape[0]), rows_per_target(self.n_features, self.dtype.itemsize, unit))
        self._place, self.fetched_ahead = place, isinstance(place, ZarrPlace) and place.fetches_ahead
        codecs = unprotected(array)
        self._unprotected = None if codecs is None else f"{place} (codecs: {codecs})"

    def read(self, i: int) -> np.ndarray:
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        return native(self._place.read(start, stop, then=stop - start), self.dtype)

    def decoding(self) -> tuple[int, str]:
        """Return what stored chunks hold beyond the array, encoded and decoded."""
        beyond = np.prod(self.stored_chunk, dtype=object) - int(np.diff(self.bounds).max()) * self.n_features
        return 2 * max(
            0, int(beyond)
        ) * self.dtype.itemsize, "store the data in chunks that are not larger than the array"

    def object_sizes(self) -> list[int]:
        return self._place.object_sizes()

    def unprotected(self) -> str | None:
        return self._unprotected
