"""Rows in zarr: a plain array, one variable of a group (xarray's too), or a sparse matrix in anndata's layout.

zarr reads a chunk that is not there as fill values without a word, so that an unmounted disk looks like
zeros. Here every chunk is fetched through a store that raises when the object is absent, unless the config
says that absent chunks are meant (`missing_chunks: fill`).
"""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pipeline.config import Data
from pipeline.data.files import (
    absolute,
    damaged,
    is_url,
    native,
    npy_header,
    open_binary,
    opening,
    read_exactly,
    reading,
)
from pipeline.data.source import Source, even_bounds, row_dtype, rows_per_target
from pipeline.errors import InputError, StorageError

_METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


class _WholeStore(WrapperStore[Any]):
    """A store in which an absent chunk is an error, not fill values."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and key.rsplit("/", 1)[-1] not in _METADATA:
            raise StorageError(
                f"{self._store}: chunk {key} is missing. Mount or restore the storage; if the store leaves out chunks "
                "of nothing but the fill value on purpose, set data.missing_chunks=fill."
            )
        return value


class ZarrPlace:
    """Where a zarr array or group is: a store, a path in it, and what an absent chunk means. Small, picklable."""

    def __init__(self, path: str, options: Mapping[str, Any], missing_chunks: str, name: str = "") -> None:
        """`name` is the path of the node inside the store."""
        self.path, self.options, self.missing_chunks, self.name = absolute(path), dict(options), missing_chunks, name

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.name else self.path

    def child(self, name: str) -> ZarrPlace:
        """A node below this one."""
        below = f"{self.name}/{name}" if self.name else name
        return ZarrPlace(self.path, self.options, self.missing_chunks, below)

    def open(self) -> Any:
        """The zarr Array or Group; whatever zarr raises when there is none."""
        store: Any
        if is_url(self.path):
            store = FsspecStore.from_url(self.path, storage_options=self.options, read_only=True)
        else:
            store = LocalStore(self.path, read_only=True)
        return zarr.open(_WholeStore(store) if self.missing_chunks == "error" else store, path=self.name, mode="r")

    def open_first(self) -> Any:
        """The zarr Array or Group, or an InputError that says that there is none."""
        try:
            return self.open()
        except Exception as error:  # every store and codec has its own kinds
            raise InputError(
                f"{self}: no zarr array or group can be opened here ({type(error).__name__}: {error}). "
                "Check data.path and data.variable."
            ) from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Entries start:stop along the first axis; StorageError naming the stored chunk that is missing or damaged."""
        try:
            array = self.open()
        except Exception as error:
            raise damaged(str(self), f"it could be opened before and now {type(error).__name__}: {error}") from error
        if array.shape[0] < stop:
            raise damaged(f"{self}, {start}:{stop}", f"it has shrunk to shape {array.shape}")
        try:
            return np.asarray(array[start:stop])
        except StorageError:
            raise
        except Exception as error:
            raise damaged(self._name_damage(array, start, stop), f"{type(error).__name__}: {error}") from error

    def _name_damage(self, array: Any, start: int, stop: int) -> str:
        """Which of the chunks under start:stop does not decode: the error of a whole read does not tell."""
        steps = array.shards or array.chunks
        ranges = [range(start // steps[0], -(-stop // steps[0]))]
        ranges += [range(-(-size // step)) for size, step in zip(array.shape[1:], steps[1:], strict=True)]
        for where in product(*ranges):
            try:
                array[tuple(slice(w * step, (w + 1) * step) for w, step in zip(where, steps, strict=True))]
            except Exception:
                return f"{self}, chunk {array.metadata.encode_chunk_key(where)}"
        return f"{self}, {start}:{stop}"

    def object_sizes(self) -> list[int]:
        """Bytes of each stored chunk, by the order of the keys."""
        with reading(str(self)):
            if is_url(self.path):
                import fsspec

                filesystem, root = fsspec.core.url_to_fs(self.path, **self.options)
                found = filesystem.find(f"{root}/{self.name}" if self.name else root, detail=True)
                sizes = {key: entry["size"] for key, entry in found.items()}
            else:
                top = os.path.join(self.path, self.name)
                names = (os.path.join(folder, name) for folder, _, files in os.walk(top) for name in files)
                sizes = {name: os.path.getsize(name) for name in names}
        return [int(sizes[key]) for key in sorted(sizes) if key.rsplit("/", 1)[-1] not in _METADATA]


class ZarrSource(Source):
    """Rows of a two-dimensional zarr array: whole stored chunks (or shards) of rows at a time."""

    def __init__(self, place: ZarrPlace, array: Any) -> None:
        """`array` is the opened array at `place`; only its shape is kept."""
        self.dtype = row_dtype(str(place), array.shape, array.dtype)
        self.n_features = int(array.shape[1])
        unit = int((array.shards or array.chunks)[0])
        self.bounds = even_bounds(int(array.shape[0]), rows_per_target(self.n_features, self.dtype.itemsize, unit))
        self._place = place

    def read(self, i: int) -> np.ndarray:
        """Chunk i, see `Source.read`."""
        return native(self._place.read(int(self.bounds[i]), int(self.bounds[i + 1])), self.dtype)

    def object_sizes(self) -> list[int]:
        """Bytes of each stored chunk."""
        return self._place.object_sizes()


def open_zarr(data: Data) -> Source:
    """The rows of a zarr array, of one variable of a group, or of a CSR matrix in anndata's layout."""
    place = ZarrPlace(str(data.path), data.storage_options, data.missing_chunks)
    node = place.open_first()
    if data.variable is not None:
        if isinstance(node, zarr.Array):
            raise InputError(f"data.variable: came as {data.variable!r}, but {place} is an array. Remove it.")
        place = place.child(data.variable.strip("/"))
        if place.name not in node:
            raise InputError(f"{place}: there is no such array. {_listing(node)}")
        node = place.open_first()
    if isinstance(node, zarr.Group):
        encoding = node.attrs.get("encoding-type")
        if encoding == "csr_matrix":
            from pipeline.data.counts import CsrSource

            return CsrSource(place, node, vocabulary=data.vocabulary)
        if encoding == "csc_matrix":
            raise InputError(f"{place}: came stored by columns (csc_matrix), expected rows. Write it as csr_matrix.")
        tables = [name for name, array in node.arrays() if array.ndim == 2]
        if len(tables) != 1:
            raise InputError(f"{place}: is a group, expected one 2-d array. Set data.variable. {_listing(node)}")
        place = place.child(tables[0])
        node = node[tables[0]]
    if data.vocabulary is not None:
        raise InputError(f"data.vocabulary: came with the dense array {place}, expected a CSR matrix. Remove it.")
    _refuse_encoded(str(place), node)
    return ZarrSource(place, node)


def _listing(group: zarr.Group) -> str:
    arrays = ", ".join(f"{name} {array.shape}" for name, array in sorted(group.arrays())) or "none"
    groups = ", ".join(sorted(name for name, _ in group.groups()))
    return f"Arrays here: {arrays}" + (f"; groups: {groups}." if groups else ".")


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


class RowColumn:
    """One number a row, beside the rows: weights or labels. Small and picklable; reads only what is asked for."""

    def __init__(self, place: ZarrPlace | None, path: str, options: Mapping[str, Any], n_rows: int) -> None:
        """Use `RowColumn.open`."""
        self.n_rows, self._place, self._path, self._options = n_rows, place, path, dict(options)

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
        """The column in a `.npy` file, a zarr array, or a zarr group's `variable`.

        `what` names it in messages ("weights", "labels"); without `variable` a group's array is looked for by
        that name, with or without its last s. Raises InputError unless it is n_rows real numbers.
        """
        path, options = absolute(path), dict(storage_options or {})
        place: ZarrPlace | None = None
        shape: tuple[int, ...]
        dtype: Any
        if path.endswith(".npy"):
            with opening(path), open_binary(path, options) as stream:
                shape, _, dtype, _ = npy_header(stream, path)
        else:
            place = ZarrPlace(path, options, missing_chunks)
            node = place.open_first()
            if isinstance(node, zarr.Group):
                names = [variable] if variable else [what, what.removesuffix("s")]
                found = next((name for name in names if name in node), None)
                if found is None:
                    raise InputError(f"{path}: has no array {' or '.join(names)} for the {what}. {_listing(node)}")
                place = place.child(found)
                node = place.open_first()
            shape, dtype = getattr(node, "shape", ()), getattr(node, "dtype", None)
        if shape != (n_rows,) or getattr(dtype, "kind", "O") not in "biuf":
            raise InputError(
                f"{place or path}: came with dtype {dtype} and shape {shape} as {what}, expected one number for each "
                f"of the {n_rows} rows of the data, shape ({n_rows},)."
            )
        return cls(place, path, options, n_rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The numbers of rows start:stop, (stop - start,), in native byte order."""
        if self._place is not None:
            x = self._place.read(start, stop)
        else:
            with reading(self._path), open_binary(self._path, self._options) as stream:
                _, _, dtype, offset = npy_header(stream, self._path)
                stream.seek(offset + start * dtype.itemsize)
                x = np.empty(stop - start, dtype)
                read_exactly(stream, x, f"{self._path}, rows {start}:{stop}")
        return native(x, x.dtype.newbyteorder("="))
