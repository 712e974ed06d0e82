"""Rows that a program has opened and not read: arrays of zarr and HDF5, Dask DataFrames, and cells of xarray, as Dask arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from pipeline.data.checked import BadRows, refuse_columns
from pipeline.data.encoded import dimension_names, refuse_encoded, refuse_exchanged
from pipeline.data.source import rows_per_target
from pipeline.data.stores import WholeRows

ON_DISK = {"zarr", "h5py", "h5netcdf", "netCDF4", "tensorstore"}  # packages whose arrays are read when they are indexed


def lazy_rows(x: Any) -> tuple[Any, list[str] | None] | None:
    """Return such rows as a Dask array, and the names of their features.

    Parameters
    ----------
    x : Any
        Rows as a user supplies them.

    Returns
    -------
    array : dask.array.Array, shape (n, d)
    names : list of str, or None
    None for anything else, which is in memory or is a Dask array already.

    Raises
    ------
    BadRows
        If they are encoded, or no two-dimensional table.
    """
    package = type(x).__module__.partition(".")[0]
    if hasattr(x, "to_dask_array") and hasattr(x, "columns") and package.startswith("dask"):
        return _of_frame(x)
    if package in ON_DISK and all(hasattr(x, name) for name in ("shape", "dtype")):
        return _of_array(x), None
    return None


def _of_frame(x: Any) -> tuple[Any, list[str]]:
    refuse_columns(x.columns, x.dtypes)
    names = [str(name) for name in x.columns]
    # pandas' own numbers with missing values have no NumPy dtype until they are converted.
    kinds = [kind if isinstance(kind, np.dtype) else np.dtype(np.float64) for kind in x.dtypes]
    return x.astype(np.result_type(*kinds)).to_dask_array(lengths=True), names


def _of_array(x: Any) -> Any:
    import dask.array as da

    what = f"X, {type(x).__module__.partition('.')[0]} array {getattr(x, 'name', '')}".rstrip()
    refuse_encoded(what, x)
    if len(x.shape) != 2:
        raise BadRows(
            f"{what}: got shape {tuple(x.shape)}, expected two dimensions (rows, features). Reshape it first."
        )
    refuse_exchanged(what, dimension_names(x))
    n, d = map(int, x.shape)
    unit = (getattr(x, "shards", None) or getattr(x, "chunks", None) or (1,))[0] if n else 1
    height = rows_per_target(max(d, 1), np.dtype(x.dtype).itemsize, int(unit))
    rows = WholeRows(x) if hasattr(x, "store_path") else x
    return da.from_array(rows, chunks=(height, max(d, 1)), meta=np.empty((0, 0), x.dtype), lock=rows is x)


def with_whole(x: Any, first: int) -> Any:
    """Return a Dask array, of float32 or float64, whose dimensions from `first` on are in one chunk. x : array or Dask array."""
    import dask.array as da

    x = da.asarray(x).rechunk(dict.fromkeys(range(first, x.ndim), -1))
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def rows_by_block(x: Any, flatten: Callable[[Any], Any]) -> Any:
    """Return a Dask array of cells, (*shape, d), as rows, (n, d): those of each block together. flatten : a block to its rows."""
    import dask
    import dask.array as da

    of_block = dask.delayed(flatten)
    blocks = [
        da.from_delayed(of_block(block), (math.prod(shape), x.shape[-1]), x.dtype)
        for block, shape in zip(x.to_delayed().ravel(), product(*x.chunks[:-1]), strict=True)
    ]
    return da.concatenate(blocks)


def measured(x: Any) -> Any:
    """Return a Dask array with chunks of known sizes: one pass over it where they are not known. x itself stays as it is."""
    import dask.array as da

    if not any(np.isnan(size) for sizes in x.chunks for size in sizes):
        return x
    return da.Array(x.dask, x.name, x.chunks, meta=x._meta).compute_chunk_sizes()
