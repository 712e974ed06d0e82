"""Rows in zarr: a plain array, one variable of a group (xarray's too), or a sparse matrix in anndata's layout."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import zarr

from pipeline.config import Data
from pipeline.data.counts import CsrSource
from pipeline.data.files import native
from pipeline.data.source import Source, even_bounds, row_dtype, rows_per_target
from pipeline.data.stores import ZarrPlace, listing, unprotected
from pipeline.errors import InputError


class ZarrSource(Source):
    """Rows of a two-dimensional zarr array: whole stored chunks (or shards) of rows at a time."""

    def __init__(self, place: ZarrPlace, array: Any) -> None:
        """`array` is the opened array at `place`; only its shape and grid are kept."""
        self.dtype = row_dtype(str(place), array.shape, array.dtype)
        self.n_features = int(array.shape[1])
        self.stored_chunk: tuple[int, int] = tuple(array.shards or array.chunks)  # rows, features of an object
        unit = int(self.stored_chunk[0])
        self.bounds = even_bounds(int(array.shape[0]), rows_per_target(self.n_features, self.dtype.itemsize, unit))
        self._place = place
        codecs = unprotected(array)
        self._unprotected = None if codecs is None else f"{place} (codecs: {codecs})"

    def read(self, i: int) -> np.ndarray:
        """Chunk i, see `Source.read`."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        return native(self._place.read(start, stop, then=stop - start), self.dtype)

    def object_sizes(self) -> list[int]:
        """Bytes of each stored chunk."""
        return self._place.object_sizes()

    def unprotected(self) -> str | None:
        """The array, unless one of its codecs has a checksum."""
        return self._unprotected


def open_zarr(data: Data) -> Source:
    """The rows of a zarr array, of one variable of a group, or of a CSR matrix in anndata's layout."""
    place = ZarrPlace(str(data.path), data.storage_options, data.missing_chunks)
    node = place.open_first()
    if data.variable is not None:
        if isinstance(node, zarr.Array):
            raise InputError(f"data.variable: came as {data.variable!r}, but {place} is an array. Remove it.")
        place = place.child(data.variable.strip("/"))
        try:
            found = place.name in node
        except ValueError:  # zarr refuses a name with .. in it
            found = False
        if not found:
            raise InputError(f"{place}: there is no such array. {listing(node)}")
        node = place.open_first()
    if isinstance(node, zarr.Group):
        encoding = node.attrs.get("encoding-type")
        if encoding == "csr_matrix":
            return CsrSource(place, node, data.vocabulary, options=data.storage_options)
        if encoding == "csc_matrix":
            raise InputError(f"{place}: came stored by columns (csc_matrix), expected rows. Write it as csr_matrix.")
        tables = [name for name, array in node.arrays() if array.ndim == 2]
        if len(tables) != 1:
            raise InputError(f"{place}: is a group, expected one 2-d array. Set data.variable. {listing(node)}")
        place = place.child(tables[0])
        node = node[tables[0]]
    if data.vocabulary is not None:
        raise InputError(f"data.vocabulary: came with the dense array {place}, expected a CSR matrix. Remove it.")
    _refuse_encoded(str(place), node)
    return ZarrSource(place, node)


def _refuse_encoded(what: str, array: Any) -> None:
    """Refuse an array whose numbers are not the values: packed, or with a number that stands for "missing" (CF)."""
    for name in ("scale_factor", "add_offset", "_FillValue", "missing_value"):
        value = array.attrs.get(name)
        if value is None or (name in ("_FillValue", "missing_value") and _is_nan(value)):
            continue
        raise InputError(
            f"{what}: came with the attribute {name}={value!r}, expected plain values (missing ones as NaN). "
            "Write the decoded values, for example with xarray and an empty encoding, or delete the attribute."
        )


def _is_nan(value: Any) -> bool:
    """Whether a fill value is NaN; xarray writes floats in base64."""
    try:
        number = struct.unpack("<d", base64.standard_b64decode(value))[0] if isinstance(value, str) else float(value)
    except (ValueError, TypeError, struct.error):
        return isinstance(value, str) and value.lower() == "nan"
    return bool(np.isnan(number))
