"""Datasets that xarray opens: where they are, their variables and the entries that are selected from them."""

from __future__ import annotations

import glob
import json
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.paths import is_url
from pipeline.data.files import refuse_absent, stored_size
from pipeline.data.stores import ZarrPlace
from pipeline.errors import InputError, PipelineError, did_you_mean

if TYPE_CHECKING:
    import xarray as xr

ENTRY = "entry of "  # and a dimension: its number before data.select


@dataclass(frozen=True)
class DatasetPlace:
    """Where a dataset is. Small, picklable and hashable.

    Attributes
    ----------
    files : tuple of str
    stamp : tuple
        Sizes and times of local files, so that one that is written again is opened again.
    options : str
        Of the file system, as JSON.
    """

    path: str
    files: tuple[str, ...]
    stamp: tuple[Any, ...]
    engine: str | None
    group: str | None
    concat: str | None
    missing_chunks: str
    options: str = field(repr=False)

    @classmethod
    def of(
        cls,
        path: str,
        engine: str | None,
        group: str | None,
        concat: str | None,
        options: Mapping[str, Any],
        missing_chunks: str,
    ) -> DatasetPlace:
        """Return the place of a path, or of all files of a glob. Raises InputError where there is none."""
        files: tuple[str, ...] = (path,)
        if not is_url(path) and any(c in path for c in "*?[") and not os.path.lexists(path):
            files = tuple(sorted(glob.glob(path, recursive=True)))
            if not files:
                raise InputError(f"{path}: no file has such a name, expected at least one. Correct data.path.")
        for file in files:
            refuse_absent(file)
        if engine is None and (files[0].rstrip("/").endswith(".zarr") or os.path.isdir(files[0])):
            engine = "zarr"
        local = [os.stat(file) for file in files if not is_url(file)]
        stamp = tuple((found.st_mtime_ns, found.st_size) for found in local)
        return cls(path, files, stamp, engine, group, concat, missing_chunks, json.dumps(dict(options), sort_keys=True))

    def __str__(self) -> str:
        return self.path if self.group is None else f"{self.path}/{self.group}"

    def first(self) -> xr.Dataset:
        """Open the dataset for the first time. Raises InputError where it cannot be opened."""
        try:
            return self.open()
        except PipelineError:
            raise
        except Exception as error:  # every engine has its own kinds
            kinds = "zarr, netcdf4, h5netcdf, scipy (netCDF 3), cfgrib (GRIB) and rasterio (GeoTIFF)"
            said = str(error).split("\n")[0].rstrip(":. ")
            raise InputError(
                f"{self}: xarray cannot open it ({type(error).__name__}: {said}). Check data.path, data.group and data.concat; set "
                f"data.engine to one of {kinds}; install the engine where it is absent: pip install 'em-pipeline[netcdf]' for netCDF 4, 'em-pipeline[raster]' for GeoTIFF, cfgrib for GRIB."
            ) from error

    def open(self) -> xr.Dataset:
        """Open the dataset, once a process."""
        return _opened(self)

    def object_sizes(self) -> list[int]:
        options = json.loads(self.options)
        if self.engine == "zarr":
            places = [
                ZarrPlace(file, options, self.missing_chunks, (self.group or "").strip("/")) for file in self.files
            ]
            return [size for place in places for size in place.object_sizes()]
        return [stored_size(file, options) for file in self.files]


@lru_cache(maxsize=8)
def _opened(place: DatasetPlace) -> xr.Dataset:
    import xarray as xr

    options = json.loads(place.options)

    def target(file: str) -> Any:
        if place.engine == "zarr":
            return ZarrPlace(file, options, place.missing_chunks).store()
        if is_url(file):
            import fsspec

            filesystem, name = fsspec.core.url_to_fs(file, **options)
            return filesystem.open(name, "rb")
        return file

    kwargs: dict[str, Any] = {"engine": place.engine, "group": place.group}
    if place.engine == "zarr":
        kwargs["consolidated"] = False  # consolidated metadata may be older than the arrays
    if place.group is None:
        del kwargs["group"]  # scipy's engine has none
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", xr.SerializationWarning
        )  # such as a fill value NaN of integers, which hides nothing
        if len(place.files) == 1:
            return xr.open_dataset(target(place.files[0]), chunks=None, **kwargs)
        along: dict[str, Any] = (
            {"combine": "by_coords"} if place.concat is None else {"combine": "nested", "concat_dim": place.concat}
        )
        files = [target(file) for file in place.files]
        return xr.open_mfdataset(
            files, chunks={}, data_vars="minimal", coords="minimal", compat="override", **along, **kwargs
        )


def feature_variables(
    dataset: xr.Dataset, names: Sequence[str] | None, features: Sequence[str], where: str, of: str = "data."
) -> list[str]:
    """Return the variables that are features. Raises InputError for what cannot be one. of : stands before options in messages."""
    if names is None:
        numeric = [str(name) for name, each in dataset.data_vars.items() if each.dtype.kind in "biuf" and each.ndim]
        most = max((dataset[name].ndim for name in numeric), default=0)
        names = [name for name in numeric if dataset[name].ndim == most]
        if not names:
            raise InputError(f"{where}: has no numeric variable. {content(dataset)} Set data.path, or data.group.")
    for name in names:
        if name not in dataset.variables:
            near = did_you_mean(name, [str(each) for each in dataset.data_vars]) or "."
            raise InputError(f"{of}variables: {where} has no {name!r}{near} {content(dataset)} Name one of these.")
        if not dataset[name].ndim:
            raise InputError(
                f"{of}variables: {name} is one number, without dimensions, expected one for each row. Leave it out."
            )
        kind = dataset[name].dtype
        if kind.kind not in "biuf" or kind.itemsize > 8:
            said = "times" if kind.kind in "mM" else f"dtype {kind}"
            raise InputError(
                f"{of}variables: {name} has {said}, expected real numbers. Leave it out, or convert it first."
            )
    refuse_unknown(dataset, names, features, where, "dimension", f"{of}features")
    if "variable" in features and len(names) > 1:
        raise InputError(
            f"{of}features: the dimension variable is that of the {len(names)} variables in results. Rename yours: dataset.rename(variable=…)."
        )
    dims = set(dataset[names[0]].dims) - set(features)
    for name in names:
        if set(dataset[name].dims) - set(features) != dims:
            raise InputError(
                f"{of}variables: {name} has the dimensions {listed(dataset[name].dims)}, {names[0]} has "
                f"{listed(dataset[names[0]].dims)}; beside {of}features they must be the same. Add to {of}features, or leave one out."
            )
    if not dims:
        raise InputError(
            f"{of}features: {listed(features)} are all dimensions of {names[0]}, expected at least one other for the rows. Leave one out."
        )
    return list(names)


def refuse_unknown(
    dataset: xr.Dataset, names: Sequence[str], dims: Sequence[Hashable], where: str, what: str, of: str = "data"
) -> None:
    """Raise InputError for dimensions that none of the variables has. what, of : what they are, for the message."""
    known = sorted({str(dim) for name in names for dim in dataset[name].dims})
    for dim in dims:
        if dim not in known:
            near = did_you_mean(str(dim), known) or "."
            raise InputError(f"{of}: {where} has no {what} {str(dim)!r}{near} Name one of {', '.join(known)}.")


def selected(dataset: xr.Dataset, names: Sequence[str], select: Mapping[str, Any], where: str) -> xr.Dataset:
    """The entries of data.select."""
    refuse_unknown(dataset, names, list(select), where, "dimension", "data.select")
    dataset = dataset.assign({f"{ENTRY}{dim}": (dim, np.arange(size)) for dim, size in dataset.sizes.items()})
    for dim, wanted in select.items():
        found = dataset.indexes.get(dim)
        if isinstance(wanted, str) and "/" in wanted:
            first, _, last = wanted.partition("/")
            ends: list[Any] = [first or None, last or None]
            if found is None or found.dtype.kind in "iuf":
                ends = [None if end is None else _number(end, dim) for end in ends]
            if found is None:  # counted from 0, both ends included as with coordinates
                ends = [0 if ends[0] is None else int(ends[0]), None if ends[1] is None else int(ends[1]) + 1]
            if found is not None and found.is_monotonic_decreasing and len(found) > 1:
                ends.reverse()
            indexer: Any = slice(*ends)
        else:
            indexer = wanted if isinstance(wanted, list) else [wanted]
        try:
            if found is None:  # a dimension without a coordinate is counted from 0
                dataset = dataset.isel({dim: indexer})
            elif isinstance(indexer, slice) or found.dtype.kind not in "mM":
                dataset = dataset.sel({dim: indexer})
            else:  # 2000-01 is all of that month
                places = [np.atleast_1d(np.arange(len(found))[_place(found, str(each))]) for each in indexer]
                dataset = dataset.isel({dim: np.unique(np.concatenate(places))})
        except (KeyError, IndexError, ValueError, TypeError) as error:
            values = _values(found, dataset.sizes[dim])
            raise InputError(f"data.select: {dim} has no {wanted!r}. Select some of its entries: {values}.") from error
        if not dataset.sizes[dim]:
            raise InputError(
                f"data.select: no {dim} lies in {wanted!r}. Select some of its entries: {_values(found, 0)}."
            )
    return dataset


def _place(index: Any, label: str) -> Any:
    found = index.get_loc(label)
    if isinstance(found, slice) and found.start == found.stop:
        raise KeyError(label)
    return found


def _number(text: str, dim: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"data.select: {dim}: got {text!r}, expected a number, as {dim} holds numbers. Correct it."
        ) from error


def _values(index: Any, size: int) -> str:
    if index is None:
        return f"0 to {size - 1}"
    shown = [str(value) for value in index[:5]] + (["…", str(index[-1])] if len(index) > 5 else [])
    return ", ".join(shown)


def listed(names: Any) -> str:
    """Return names in brackets, for messages."""
    return "(" + ", ".join(str(name) for name in names) + ")"


def content(dataset: xr.Dataset) -> str:
    """Return the variables of a dataset in words, for messages."""
    found = ", ".join(f"{name} {listed(each.dims)}" for name, each in dataset.data_vars.items())
    return f"Variables here: {found or 'none'}."
