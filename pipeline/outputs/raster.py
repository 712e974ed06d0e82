"""Labels of a grid as a GeoTIFF, with the coordinates and the reference system of the data. Written by rioxarray, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.source import Source
from pipeline.errors import InputError, StorageError
from pipeline.outputs.run_directory import publish

_DIMS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"))
_UNEVEN = 1e-3  # of the spacing, that a coordinate may deviate: float32 longitudes do by 3e-5
_MASKED = -1


def spatial_dims(source: Source) -> tuple[str, str]:
    """Return the dimensions of a grid's rows that go down and across.

    Raises
    ------
    InputError
        If the rows lie on no grid of two such dimensions, evenly spaced, and perhaps one more; or if rioxarray is not installed.
    """
    try:
        import rioxarray  # noqa: F401  # makes the accessor
    except ImportError as error:
        raise InputError(
            "--format: geotiff is written by rioxarray, which is not installed. Install it: pip install 'em-pipeline[raster]'."
        ) from error
    grid, coordinates = source.rows_on()
    for down, across in _DIMS:
        if {down, across} <= set(grid.dims) and len(grid.dims) <= 3 and coordinates is not None:
            for dim in (down, across):
                if dim not in coordinates or not _is_even(coordinates[dim].values):
                    raise InputError(
                        f"--format: geotiff needs evenly spaced coordinates, and those of {dim} are not. Use zarr, parquet or csv."
                    )
            return down, across
    raise InputError(
        f"--format: got geotiff, but rows lie on ({', '.join(grid.dims)}), expected y and x, latitude and longitude, or lat and lon, "
        "and at most one dimension more. Use zarr, parquet or csv."
    )


def _is_even(values: np.ndarray) -> bool:
    steps = np.diff(values.astype(np.float64))
    return len(steps) > 0 and bool(np.abs(steps - steps.mean()).max() <= _UNEVEN * abs(steps.mean()) != 0)


def write_raster(labels: Path, dims: tuple[str, str]) -> Path:
    """Write complete labels as labels.tif beside them, and return it: -1 where cells are masked, a band for each entry of a third dimension.

    Block by block. dims : from `spatial_dims`. Raises StorageError if it cannot be written.
    """
    import xarray as xr

    path = labels.with_suffix(".tif")
    part = path.with_name(f".partial.{path.name}")  # GDAL goes by the suffix
    label: Any = xr.open_zarr(labels, consolidated=False)["label"]
    label = label.transpose(*(dim for dim in label.dims if dim not in dims), *dims)
    label = label.rio.set_spatial_dims(x_dim=dims[1], y_dim=dims[0]).rio.write_nodata(_MASKED)
    try:
        label.rio.to_raster(part, driver="GTiff", windowed=True, tiled=True, compress="deflate")
        publish(part, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error}). Make room, then give the same command again."
        ) from error
    return path
