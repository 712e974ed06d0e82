"""Rows that are cells of a labelled array: X of xarray in any number of dimensions, and results on its coordinates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.checked import BadRows
from pipeline.data.datasets import feature_variables
from pipeline.data.encoded import refuse_exchanged
from pipeline.data.grid import Grid
from pipeline.data.sources.xarray import entries_of
from pipeline.engine.lazy import with_whole
from pipeline.errors import InputError


@dataclass(frozen=True)
class Cells:
    """Where the rows of a labelled array are.

    Attributes
    ----------
    array : array or Dask array, shape (*grid.shape, d)
    grid : Grid
        The sample dimensions.
    coords : mapping
        Coordinates of the sample dimensions.
    names : array of str, shape (d,), or None
        Of the features.
    index : dict of str to list
        By name of a feature dimension (and ``variable``), the entry of each feature; as in `Source.describe`.
    masks : bool
        Whether cells that are NaN in all features are left out.
    seen : array of bool, shape (n,), or None
        Of cells in memory, those that are not left out; None for all.
    """

    array: Any
    grid: Grid
    coords: Any
    names: np.ndarray | None
    index: dict[str, list[Any]]
    masks: bool = False
    seen: np.ndarray | None = None

    def labelled(self, found: Any, name: str) -> Any:
        """Return results as an xarray.DataArray. found : shape grid.shape, or (*grid.shape, k), whose last dimension is called `name`."""
        import xarray as xr

        while name in self.grid.dims:
            name += "_"
        return xr.DataArray(found, dims=(*self.grid.dims, name)[: found.ndim], coords=self.coords)

    def flat(self, what: str, values: Any) -> Any:
        """Return one value a row, shape (n,), from values along some of the grid's dimensions; a scalar as it is.

        Parameters
        ----------
        what : str
            Names the values in messages.
        values : xarray.DataArray, or array of the shape of the grid

        Raises
        ------
        InputError
            If they have other dimensions, shapes or coordinates.
        """
        if is_named(values):
            values = self._aligned(what, values)
        values = np.asanyarray(values)
        if not values.ndim:
            return values
        if values.shape != self.grid.shape:
            raise InputError(
                f"{what}: got shape {values.shape}, expected {self.grid.shape}, that of {self.grid.dims}. Pass an xarray.DataArray "
                "with some of these dimensions, or an array of this shape."
            )
        chunks = getattr(self.array, "chunks", None)
        if chunks is not None:  # rows follow each other by block
            ends = [np.cumsum((0, *sizes)) for sizes in chunks[:-1]]
            boxes = np.ndindex(*(len(sizes) for sizes in chunks[:-1]))
            parts = [tuple(slice(e[i], e[i + 1]) for e, i in zip(ends, at, strict=True)) for at in boxes]
            return np.concatenate([values[box].reshape(-1) for box in parts])
        return values.reshape(-1) if self.seen is None else values.reshape(-1)[self.seen]

    def _aligned(self, what: str, values: Any) -> Any:
        import xarray as xr

        if more := [dim for dim in values.dims if dim not in self.grid.dims]:
            raise InputError(
                f"{what}: has the dimension {more[0]!r}, expected some of {self.grid.dims}, those of the rows."
            )
        lengths = dict(zip(self.grid.dims, self.grid.shape, strict=True))
        grid = xr.DataArray(np.broadcast_to(0, self.grid.shape), dims=self.grid.dims, coords=self.coords)
        try:
            values = xr.align(grid, values, join="exact")[1]
        except ValueError as error:
            raise InputError(f"{what}: its coordinates are not those of X. Select the same entries of both.") from error
        shape = [lengths[dim] if dim in values.dims else 1 for dim in self.grid.dims]
        found = values.transpose(*(dim for dim in self.grid.dims if dim in values.dims)).values
        return np.broadcast_to(found.reshape(shape), self.grid.shape)


def seen_of(what: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return which cells have values, shape (n,), or None for all.

    what : names them in messages.  x : (n, d).  shape : of the grid.  Raises BadRows for a cell with values of some features only.
    """
    if x.dtype.kind != "f" or not (bad := ~np.isfinite(x).all(axis=1)).any():
        return None
    empty = np.isnan(x).all(axis=1)
    if (bad & ~empty).any():
        at = tuple(int(i) for i in np.unravel_index(int((bad & ~empty).argmax()), shape))
        raise BadRows(
            f"{what}: NaN or inf in some features of the cell {at}, where others have values. Fill them, make all of them NaN to leave "
            "the cell out, or, for NaN and a class that has it, set missing=True."
        )
    return ~empty


def spread(found: np.ndarray, seen: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return results of the cells that have values on the grid; others have -1 where these are integers, else NaN."""
    if seen is not None:
        full = np.full((len(seen), *found.shape[1:]), -1 if found.dtype.kind == "i" else np.nan, found.dtype)
        full[seen] = found
        found = full
    return found.reshape(*shape, *found.shape[1:])


def is_named(x: Any) -> bool:
    """Whether x is an xarray.DataArray."""
    return "xarray" in sys.modules and isinstance(x, sys.modules["xarray"].DataArray)


def is_xarray(x: Any) -> bool:
    """Whether x is an xarray.DataArray or Dataset."""
    return is_named(x) or ("xarray" in sys.modules and isinstance(x, sys.modules["xarray"].Dataset))


def cells_of(x: Any, features: Sequence[str] | str | None) -> Cells:
    """Return an xarray.DataArray or Dataset as cells.

    Parameters
    ----------
    x : DataArray or Dataset
        Rows of a Dataset have its variables as features.
    features : sequence of str, or None
        Dimensions whose entries are features; None: the second of two dimensions of a DataArray, none of a Dataset.

    Raises
    ------
    InputError
        For anything else, and for dimensions or variables that cannot be used.
    """
    if not is_xarray(x):
        raise InputError(
            f"features: got {features!r} for X of type {type(x).__name__}, expected an xarray.Dataset or DataArray. Leave it out."
        )
    dataset = not is_named(x)
    plain = not dataset and features is None
    if plain and x.ndim != 2:
        raise InputError(
            f"X: got dimensions {x.dims}, expected two: rows and features. Pass features=[…], the dimensions whose entries are features."
        )
    features = [x.dims[1]] if plain else [features] if isinstance(features, str) else list(features or ())
    if plain:
        refuse_exchanged("X", tuple(map(str, x.dims)))
    name = "X" if dataset or x.name is None else str(x.name)
    variables = x if dataset else x.to_dataset(name=name)
    if dataset and not len(x.data_vars):
        raise InputError("X: the Dataset has no variable, expected at least one. Select some: dataset[['u', 'v']].")
    found = feature_variables(variables, [str(each) for each in variables.data_vars], features, "X", of="")
    of_rows = [dim for dim in variables[found[0]].dims if dim not in features]
    index = [each for one in found for each in entries_of(variables[one], features)]
    by_dim = dict(zip(("variable", *features), map(list, zip(*index, strict=True)), strict=True))
    shape = tuple(variables.sizes[dim] for dim in of_rows)
    return Cells(
        _stacked([variables[one] for one in found], of_rows, features),
        Grid(tuple(map(str, of_rows)), shape),
        {key: value for key, value in variables.coords.items() if set(value.dims) <= set(of_rows)},
        _names(index, dataset, x.indexes.get(features[0]) if len(features) == 1 and not dataset else None),
        by_dim if dataset else {dim: entries for dim, entries in by_dim.items() if dim != "variable"},
        masks=not plain,
    )


def _stacked(arrays: Sequence[Any], of_rows: Sequence[Any], features: Sequence[str]) -> Any:
    """Variables beside each other, (*rows, d): a Dask array where one is."""
    parts = []
    for array in arrays:
        data = array.transpose(*of_rows, *(dim for dim in features if dim in array.dims)).data
        if any(each.chunks is not None for each in arrays):
            data = with_whole(data, len(of_rows))
        parts.append(data.reshape(*data.shape[: len(of_rows)], -1))
    if len(parts) == 1:
        return parts[0]
    whole: Any = np.concatenate(parts, axis=-1)  # of Dask arrays it is one
    return whole if isinstance(whole, np.ndarray) else whole.rechunk({whole.ndim - 1: -1})


def _names(index: Sequence[tuple[Any, ...]], dataset: bool, entries: Any) -> np.ndarray | None:
    """Of each feature: its variable and entries; of a DataArray with one feature dimension its entries, where they are text."""
    if entries is not None:
        return np.asarray(entries) if entries.dtype.kind in "OUT" else None
    names = [" ".join(str(part) for part in entry[0 if dataset else 1 :] if part is not None) for entry in index]
    return np.array(names, dtype=object)


def on_dimensions(parameters: dict[str, Any], index: dict[str, list[Any]] | None, location: str) -> Any:
    """Return parameters as an xarray.Dataset, with their locations on the variables and coordinates of `Cells.index`."""
    import xarray as xr

    from pipeline.outputs.coordinates import on_coordinates

    attrs = {"data": {} if index is None else {"index": index}, "words": {"location": location}}
    return on_coordinates(xr.Dataset(parameters, attrs=attrs)).drop_attrs()
