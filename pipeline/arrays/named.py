"""Named arrays with dimensions, and a zarr group of them as xarray writes and reads it.

What a job stores and reads again needs no more of a dataset than this; to import xarray takes longer than a small fit. Names of
members are xarray's, so that functions which only read take its datasets too.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.dtypes import Array

_NAN = base64.b64encode(struct.pack("<d", np.nan)).decode()  # how xarray writes it into attributes


@dataclass(frozen=True)
class NamedArray:
    """An array and its dimensions. data : a NumPy array, or a zarr array, which is read when it is first needed."""

    dims: tuple[str, ...]
    data: Any

    @cached_property
    def values(self) -> Array:
        """The array in memory."""
        return np.asarray(self.data[...])

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return dict(zip(self.dims, self.data.shape, strict=True))


@dataclass(frozen=True)
class NamedArrays:
    """Arrays by name, with attributes. An array that has the name of its only dimension names the entries of that: a coordinate."""

    variables: dict[str, NamedArray]
    attrs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, tuple[Iterable[str], Any]], attrs: Mapping[str, Any]) -> NamedArrays:
        """Return arrays that are given as dimensions and values."""
        return cls({}, dict(attrs)).assign(arrays)

    @property
    def coords(self) -> dict[str, NamedArray]:
        """The coordinates."""
        return {name: array for name, array in self.variables.items() if array.dims == (name,)}

    @property
    def data_vars(self) -> dict[str, NamedArray]:
        """All other arrays."""
        return {name: array for name, array in self.variables.items() if array.dims != (name,)}

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return {dim: size for array in self.variables.values() for dim, size in array.sizes.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def __getitem__(self, name: str) -> NamedArray:
        return self.variables[name]

    def assign(self, arrays: Mapping[str, tuple[Iterable[str], Any]]) -> NamedArrays:
        """Return these with further arrays, given as dimensions and values, or with others in their place."""
        new = {name: NamedArray(tuple(dims), np.asarray(values)) for name, (dims, values) in arrays.items()}
        return NamedArrays({**self.variables, **new}, self.attrs)

    def first(self, dim: str, most: int) -> NamedArrays:
        """Return these with the first entries of a dimension alone, at most so many."""
        cut = {
            name: NamedArray(array.dims, array.values[tuple(slice(most if one == dim else None) for one in array.dims)])
            for name, array in self.variables.items()
            if dim in array.dims
        }
        return NamedArrays({**self.variables, **cut}, self.attrs)

    def rename(self, names: Mapping[str, str]) -> NamedArrays:
        """Return these with other names of arrays and dimensions."""
        renamed = {
            names.get(name, name): NamedArray(tuple(names.get(dim, dim) for dim in array.dims), array.data)
            for name, array in self.variables.items()
        }
        return NamedArrays(renamed, self.attrs)

    def without(self, dims: Iterable[str]) -> NamedArrays:
        """Return the arrays that have none of these dimensions."""
        refused = set(dims)
        return NamedArrays({k: v for k, v in self.variables.items() if not refused & set(v.dims)}, self.attrs)

    def load(self) -> NamedArrays:
        """Read all arrays into memory; return these."""
        for array in self.variables.values():
            _ = array.values
        return self

    def write(self, store: Any, path: str) -> None:
        """Write a group that xarray opens as a dataset, each array as one chunk with a checksum. path : of the group; / is the root."""
        attributes = {name: _plain(value) for name, value in self.attrs.items()}
        group = zarr.create_group(store, path=path, attributes=attributes, zarr_format=3, overwrite=True)
        for name, array in self.variables.items():
            values = array.values
            if values.dtype.kind == "O":
                values = values.astype(np.dtypes.StringDType())
            is_float = values.dtype.kind == "f"
            stored = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=tuple(max(1, size) for size in values.shape),
                compressors=ZstdCodec(level=3, checksum=True),
                fill_value=np.nan if is_float else None,
                dimension_names=array.dims,
                attributes={"_FillValue": _NAN} if is_float else {},
            )
            stored[...] = values


def read_group(store: Any) -> NamedArrays:
    """Return the arrays of a group, each to be read when it is first needed.

    Raises
    ------
    ValueError
        If the dimensions of an array have no names.
    """
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    found = {}
    for name, array in group.arrays():
        dims = getattr(array.metadata, "dimension_names", None) or ()
        if len(dims) != array.ndim or None in dims:
            raise ValueError(f"{name}: got dimensions {dims}, expected {array.ndim} names")
        found[name] = NamedArray(tuple(map(str, dims)), array)
    return NamedArrays(found, dict(group.attrs))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
