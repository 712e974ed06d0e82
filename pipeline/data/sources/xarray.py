"""Variables of an xarray dataset: some dimensions are features, all others samples. Read lazily, by stored chunk.

A row is a point of the sample dimensions; its features are the variables at it, each with its entries along the feature dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.arrays.dtypes import compute_dtype
from pipeline.config import AnyPath
from pipeline.config.paths import absolute
from pipeline.data import source as chunking
from pipeline.data.column import Column
from pipeline.data.datasets import ENTRY, DatasetPlace, content, feature_variables, listed, refuse_unknown, selected
from pipeline.data.files import damaged
from pipeline.data.grid import Grid
from pipeline.data.section import FileSection
from pipeline.data.source import Source
from pipeline.errors import InputError, PipelineError, did_you_mean

if TYPE_CHECKING:
    import xarray as xr

SLAB_BYTES = 256 * 2**20  # of a chunk of rows that follows the stored chunks
OPENED = (
    128 * 2**20
)  # bytes of xarray's engines and of coordinates as they are written, beside those of other jobs: 60 to 120 MiB measured
TIMES = 4  # that a stored chunk may be read in one pass
_COSINE = re.compile(r"cos\((\w+)\)")


class XarraySection(FileSection):
    """What xarray opens: zarr, netCDF, HDF5, GRIB; variables and dimensions by name."""

    source: Literal["xarray"] = Field("xarray", description="what xarray opens: zarr, netCDF, HDF5, GRIB, GeoTIFF")
    path: AnyPath = Field(description="a file or zarr store, a glob of files such as era/*.nc, or an fsspec URL")
    variables: list[str] | None = Field(
        None, min_length=1, description="which variables are features; null: all numeric ones of the most dimensions"
    )
    features: list[str] = Field(
        default_factory=list,
        description="dimensions whose entries are features, such as [level]; all others are samples",
    )
    samples: list[str] | None = Field(
        None,
        description="the other dimensions in the order of the rows, the last varies fastest; null: as they are stored",
    )
    select: dict[str, Any] = Field(
        default_factory=dict,
        description="entries of dimensions by their coordinates: a list, one value, or a range such as 2000-01/2010-12",
    )
    weights: str | None = Field(
        None,
        description="cos(COORDINATE), as in cos(latitude), for cells of equal angles; a variable; or the path of a .npy or .zarr with "
        "one number a row",
    )
    bad_rows: Literal["mask", "error", "drop", "missing"] = Field(  # type: ignore[assignment]  # one value more
        "mask",
        description="mask: leave out cells that are NaN in all features, and refuse those that are in some; drop: leave out both; "
        "error: refuse both; missing: NaN is an entry that is not known",
    )
    engine: Literal["zarr", "netcdf4", "h5netcdf", "scipy", "cfgrib", "rasterio"] | None = Field(
        None, description="how xarray opens it; null: as it finds out"
    )
    group: str | None = Field(None, description="a group of the file or store; null: its root")
    concat: str | None = Field(
        None, description="the dimension along which the files of a glob follow each other; null: by their coordinates"
    )

    reads_stores: ClassVar[bool] = True
    also_called: ClassVar[tuple[str, ...]] = ("netcdf", "nc", "grib", "hdf5")

    @field_validator("weights")
    @classmethod
    def _absolute_where_it_is_a_path(cls, name: str | None) -> str | None:
        return absolute(name) if name is not None and name.endswith((".npy", ".zarr")) else name

    def open(self) -> XarraySource:
        place = DatasetPlace.of(
            self.path, self.engine, self.group, self.concat, self.storage_options, self.missing_chunks
        )
        dataset = place.first()
        names = feature_variables(dataset, self.variables, self.features, str(place))
        refuse_unknown(dataset, names, self.samples or [], str(place), "dimension", "data.samples")
        found = selected(dataset, names, self.select, str(place))
        return XarraySource.of(place, found, names, self)

    def open_column(self, what: str, source: Source) -> Column | None:
        name = getattr(self, what)
        own = what == "weights" and name is not None and not name.endswith((".npy", ".zarr"))
        if not (own and isinstance(source, XarraySource)):
            return super().open_column(what, source)
        return source.weights(name)


@dataclass(frozen=True, eq=False)
class XarraySource(Source):
    """Rows of the sample dimensions of a dataset. Made by `of`.

    Attributes
    ----------
    place : DatasetPlace
    names : tuple of str
        Variables.
    selection : dict of str to slice or array of int
        Entries of dimensions that are used.
    grid : Grid
        The sample dimensions.
    feature_dims : tuple of str
    index : tuple of tuple
        Of each feature its variable, and its entry of each of the feature dimensions; None where the variable has no such dimension.
    axis : int
        The dimension along which chunks are cut; of those before it a chunk has one entry.
    cuts : array, shape (m + 1,), int64
        Where, along `axis`.
    times : int
        How often a stored chunk is read in a pass.
    stored_bytes : int
        Of the largest stored chunk, decoded.
    masks : bool
        Whether rows that are NaN in all features are left out, and those that are in some refused.
    """

    place: DatasetPlace
    names: tuple[str, ...]
    selection: dict[str, Any]
    grid: Grid
    feature_dims: tuple[str, ...]
    index: tuple[tuple[Any, ...], ...]
    axis: int
    cuts: np.ndarray
    times: int
    stored_bytes: int
    masks: bool
    n_features: int
    dtype: np.dtype[Any]
    bounds: np.ndarray

    @classmethod
    def of(cls, place: DatasetPlace, dataset: xr.Dataset, names: Sequence[str], section: XarraySection) -> XarraySource:
        """Lay out rows and chunks of the selected entries of a dataset."""
        whole, arrays = place.open(), [dataset[name] for name in names]
        of_rows = [str(dim) for dim in arrays[0].dims if dim not in section.features]
        extent = {dim: max(_extent(whole[name], dim) for name in names) for dim in of_rows}
        position = {str(dim): dataset[ENTRY + str(dim)].values for dim in dataset.sizes}
        parts = {dim: len(np.unique(position[dim] // extent[dim])) for dim in of_rows}
        if section.samples is None:
            # Dimensions that are stored in several chunks come first, so that each chunk is read once.
            of_rows.sort(key=lambda dim: parts[dim] == 1)
        elif sorted(section.samples) != sorted(of_rows):
            raise InputError(
                f"data.samples: got {listed(section.samples)}, expected the dimensions that are not features, {listed(of_rows)}, in any order. Name these."
            )
        else:
            of_rows = list(section.samples)
        index = [entry for array in arrays for entry in entries_of(array, section.features)]
        dtype = compute_dtype(np.result_type(*(array.dtype for array in arrays)))
        grid = Grid(tuple(of_rows), tuple(dataset.sizes[dim] for dim in of_rows))
        axis, cuts, times = _layout(place, grid, position, extent, len(index) * dtype.itemsize)
        leading, below = math.prod(grid.shape[:axis]), math.prod(grid.shape[axis + 1 :])
        starts = np.arange(leading, dtype=np.int64)[:, None] * (grid.shape[axis] * below) + cuts[:-1] * below
        used = {dim: position[dim] for name in names for dim in map(str, whole[name].dims)}
        return cls(
            place,
            tuple(names),
            {dim: _as_slice(at) for dim, at in used.items()},
            grid,
            tuple(section.features),
            tuple(index),
            axis,
            cuts,
            times,
            max(math.prod(_extent(whole[name], dim) for dim in whole[name].dims) * 8 for name in names),
            section.bad_rows == "mask",
            len(index),
            dtype,
            np.append(starts.ravel(), np.int64(grid.n_rows)),
        )

    @cached_property
    def selected(self) -> xr.Dataset:
        """The dataset's selected entries, opened lazily."""
        dataset = self.place.open()
        return dataset.isel({dim: at for dim, at in self.selection.items() if dim in dataset.dims})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "selected"}  # open files stay here

    def read(self, i: int) -> np.ndarray:
        box = self._box(i)
        rows = int(self.bounds[i + 1] - self.bounds[i])
        x, first = np.empty((rows, self.n_features), self.dtype), 0
        for name in self.names:
            dims = [dim for dim in self.feature_dims if dim in self.selected[name].dims]
            part = self._values(name, box, dims).reshape(rows, -1)
            x[:, first : first + part.shape[1]] = part
            first += part.shape[1]
        if self.masks:
            self._refuse_partly_missing(i, x)
        return x

    def _box(self, i: int) -> dict[str, Any]:
        """Entries of each sample dimension in chunk i."""
        lead, part = divmod(i, len(self.cuts) - 1)
        before = np.unravel_index(lead, self.grid.shape[: self.axis]) if self.axis else ()
        box: dict[str, Any] = {d: slice(int(at), int(at) + 1) for d, at in zip(self.grid.dims, before, strict=False)}
        return box | {self.grid.dims[self.axis]: slice(int(self.cuts[part]), int(self.cuts[part + 1]))}

    def _values(self, name: str, box: dict[str, Any], feature_dims: Sequence[str]) -> np.ndarray:
        """Values of a variable in a box of the grid, dimensions in the order of the rows."""
        try:
            array = self.selected[name]
            array = array.isel({dim: at for dim, at in box.items() if dim in array.dims})
            order = [dim for dim in self.grid.dims if dim in array.dims]
            # Of several files it is a Dask array, and this thread is a task already.
            return np.asarray(array.transpose(*order, *feature_dims).compute(scheduler="synchronous").values)
        except PipelineError:
            raise
        except Exception as error:  # every engine has its own kinds
            raise damaged(f"{self.place}, {name} at {box}", f"{type(error).__name__}: {error}") from error

    def _refuse_partly_missing(self, i: int, x: np.ndarray) -> None:
        finite = np.isfinite(x)
        bad = ~finite.all(axis=1)
        if not bad.any():
            return
        partly = bad & ~np.isnan(x).all(axis=1)
        if partly.any():
            row = int(partly.argmax())
            at = np.unravel_index(int(self.bounds[i]) + row, self.grid.shape)
            cell = ", ".join(
                f"{dim} {_coordinate(self.selected, dim, int(j))}" for dim, j in zip(self.grid.dims, at, strict=True)
            )
            name = self.feature_names[int((~finite[row]).argmax())]
            raise InputError(
                f"{self.place}: {name} is NaN or inf at {cell}, where other features have values. Set data.bad_rows: drop to leave out "
                "such cells, or missing to use what they have, or select variables and entries that are there."
            )

    def weights(self, name: str) -> Column:
        """Return the weights of the rows: cos of a coordinate, or a variable. Raises InputError."""
        cosine = _COSINE.fullmatch(name.replace(" ", ""))
        wanted, dataset = cosine[1] if cosine else name, self.selected
        if wanted not in dataset.variables:
            near = did_you_mean(wanted, [str(each) for each in dataset.variables]) or "."
            raise InputError(
                f"data.weights: got {name!r}, expected cos(COORDINATE), a variable, or a path that ends in .npy or .zarr; there is no "
                f"{wanted!r}{near} {content(dataset)} Name a coordinate or one of these."
            )
        array = dataset[wanted]
        if array.dtype.kind not in "biuf" or not array.ndim or set(array.dims) - set(self.grid.dims):
            raise InputError(
                f"data.weights: {wanted} has dtype {array.dtype} and the dimensions {listed(array.dims)}, expected numbers along some of "
                f"{listed(self.grid.dims)}. Name another."
            )
        if cosine and not (np.abs(array.values) <= 90 + 1e-6).all():
            raise InputError(
                f"data.weights: {name}: {wanted} reaches {np.abs(array.values).max():g}, expected degrees from -90 to 90. Name another."
            )
        return _GridColumn(self, wanted, cosine is not None)

    @property
    def feature_names(self) -> list[str]:
        """The variable's name, followed by its entries of the feature dimensions: `u 500`."""
        return [" ".join(str(part) for part in entry if part is not None) for entry in self.index]

    def describe(self) -> dict[str, Any]:
        dims = dict(zip(self.grid.dims, self.grid.shape, strict=True))
        index = dict(zip(("variable", *self.feature_dims), map(list, zip(*self.index, strict=True)), strict=True))
        return {"kind": "rows", "features": self.feature_names, "dims": dims, "index": index}

    def object_sizes(self) -> list[int]:
        return self.place.object_sizes()

    def decoding(self) -> tuple[int, str]:
        return 2 * self.stored_bytes, "store the variables in smaller chunks"

    def resident(self) -> int:
        """xarray's engines, and the coordinates: in memory, and for the labels once more."""
        return OPENED + 3 * self.rows_on()[1].nbytes // 2

    def notes(self) -> list[str]:
        if self.times == 1:
            return []
        return [f"data: each stored chunk is read {self.times} times a pass, as rows follow {listed(self.grid.dims)}"]

    def rows_on(self) -> tuple[Grid, xr.Dataset]:
        """Return the grid of the rows and its coordinates."""
        import xarray as xr

        used = {
            name: each
            for name, each in self.selected.coords.items()
            if each.ndim and set(each.dims) <= set(self.grid.dims) and each.dtype.kind in "biufmMU"
        }
        return self.grid, xr.Dataset(coords=used).drop_encoding()


@dataclass(frozen=True)
class _GridColumn:
    """Weights of the rows of a grid. cosine : whether they are the cosine of degrees."""

    source: XarraySource
    name: str
    cosine: bool

    def decoding(self) -> int:
        """Return 0: it is small beside the rows, or stored as they are."""
        return 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the weights of rows start:stop, shape (stop - start,), float64."""
        source = self.source
        first, last = np.searchsorted(source.bounds, [start, stop - 1], side="right") - 1
        found = np.concatenate([self._of_chunk(i) for i in range(first, last + 1)])
        return found[start - source.bounds[first] :][: stop - start]

    def _of_chunk(self, i: int) -> np.ndarray:
        source, box = self.source, self.source._box(i)
        values = source._values(self.name, box, ()).astype(np.float64)
        if self.cosine:
            values = np.maximum(np.cos(np.deg2rad(values)), 0.0)  # that of 90 degrees is -4e-17 in float32
        dims = source.selected[self.name].dims
        lengths = {
            dim: box[dim].stop - box[dim].start if dim in box else size
            for dim, size in zip(source.grid.dims, source.grid.shape, strict=True)
        }
        shape = tuple(lengths[dim] if dim in dims else 1 for dim in source.grid.dims)
        return np.broadcast_to(values.reshape(shape), tuple(lengths.values())).reshape(-1)


def _layout(
    place: DatasetPlace, grid: Grid, position: dict[str, np.ndarray], extent: dict[str, int], row_bytes: int
) -> tuple[int, np.ndarray, int]:
    """Where chunks of rows are cut: axis, cuts along it, and how often each stored chunk is then read.

    Raises
    ------
    InputError
        If stored chunks would be read more than TIMES times.
    """
    times = 1
    for axis, dim in enumerate(grid.dims):
        below = math.prod(grid.shape[axis + 1 :])
        ids = position[dim] // extent[dim]
        ends = np.append(np.flatnonzero(np.diff(ids)) + 1, len(ids))  # of stored chunks
        slab = int(np.diff(ends, prepend=0).max()) * below * row_bytes
        if slab <= SLAB_BYTES or axis == len(grid.dims) - 1:
            break
        times *= min(extent[dim], grid.shape[axis])
    if times > TIMES:
        stored = ", ".join(f"{dim} {extent[dim]}" for dim in grid.dims)
        raise InputError(
            f"{place}: is stored in chunks of {stored} entries: as rows of {listed(grid.dims)} each would be read {times} times a pass. "
            f"Store it in chunks that are small along {grid.dims[0]}: dataset.chunk({grid.dims[0]}=1).to_zarr(…)."
        )
    wanted = max(1, chunking.TARGET_BYTES // (below * row_bytes))
    cuts = [0]
    for end, following in zip(ends, [*ends[1:], ends[-1] + wanted + 1], strict=True):
        if following - cuts[-1] > wanted:
            cuts.append(int(end))
    if cuts[-1] != ends[-1]:
        cuts.append(int(ends[-1]))
    return axis, np.array(cuts, dtype=np.int64), times


def _extent(array: xr.DataArray, dim: Hashable) -> int:
    """Entries of a stored chunk along a dimension; 1 where an array is not stored in chunks."""
    if dim not in array.dims:
        return 1
    if array.chunks is not None:  # several files
        return int(max(array.chunks[array.dims.index(dim)]))
    return int(array.encoding.get("preferred_chunks", {}).get(dim, 1))


def _as_slice(at: np.ndarray) -> Any:
    return slice(int(at[0]), int(at[-1]) + 1) if np.array_equal(at, np.arange(at[0], at[-1] + 1)) else at


def entries_of(array: xr.DataArray, features: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return of each feature of a variable: its name, and its entry of each of the feature dimensions."""
    every = [
        array.indexes[dim].tolist()
        if dim in array.indexes
        else range(array.sizes[dim])
        if dim in array.dims
        else [None]
        for dim in features
    ]
    return [
        (str(array.name), *(entry if entry is None or isinstance(entry, (int, float)) else str(entry) for entry in at))
        for at in product(*every)
    ]


def _coordinate(array: Any, dim: str, i: int) -> str:
    """An entry of a dimension in words."""
    index = array.indexes.get(dim)
    return str(i) if index is None else str(index[i])
