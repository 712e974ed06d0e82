"""A raster with nodata, and its labels as a raster of the same place."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.transform import from_origin

from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.workflow import predict, run

HEIGHT, WIDTH, NODATA = 48, 33, -9999


@pytest.mark.full
def test_labels_of_a_raster_are_a_raster(tmp_path: Path) -> None:
    """Bands are features, cells of nodata are masked, and the labels have the size, transform and reference system of the scene."""
    rng = np.random.default_rng(0)
    land = np.arange(WIDTH) < WIDTH // 2
    scene = (rng.normal(size=(3, HEIGHT, WIDTH)) * 5 + np.where(land, 100, 400)).astype(np.int16)
    scene[:, :10, :7] = NODATA
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.2e6, 10, 10)}
    shape = {"height": HEIGHT, "width": WIDTH, "count": 3, "dtype": "int16"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", nodata=NODATA, **shape, **place) as file:
        file.write(scene)
    config = {
        "data": {"source": "xarray", "path": str(tmp_path / "scene.tif"), "features": ["band"]},
        "model": {"family": "kmeans", "n_components": 2},
        "output": {"path": str(tmp_path / "run")},
    }
    made = predict(run(Config.model_validate(config)), form="geotiff")
    assert made.name == "labels.tif"
    with rasterio.open(made) as file:
        labels = file.read(1)
        assert (file.nodata, file.count, file.dtypes) == (-1, 1, ("int32",))
        assert {"crs": str(file.crs), "transform": file.transform} == place
    masked = (scene == NODATA).all(axis=0)
    np.testing.assert_array_equal(labels == -1, masked)
    expected = np.broadcast_to(np.where(land, labels[-1, 0], labels[-1, -1]), labels.shape)
    np.testing.assert_array_equal(labels[~masked], expected[~masked])
    assert labels[-1, 0] != labels[-1, -1]


@pytest.mark.full
def test_a_band_for_each_time_and_rows_that_are_no_raster(tmp_path: Path) -> None:
    """Further dimensions are bands; uneven coordinates and rows of a table are refused before anything is labelled."""
    rng = np.random.default_rng(1)
    latitude, longitude = np.linspace(60, -60, 13), np.arange(20) * 18.0
    values = rng.normal(size=(2, 13, 20)) + 9.0 * (np.abs(latitude) < 30)[:, None]
    coordinates = {"latitude": latitude, "longitude": longitude}
    data = xr.Dataset({"t": (("time", "latitude", "longitude"), values)}, coordinates)
    data.to_netcdf(tmp_path / "even.nc", engine="scipy")
    uneven = data.assign_coords(latitude=np.sort(latitude**3)[::-1])
    uneven.to_netcdf(tmp_path / "uneven.nc", engine="scipy")
    np.save(tmp_path / "rows.npy", values.reshape(-1, 2))
    paths = {}
    for name, source in (("even.nc", "xarray"), ("uneven.nc", "xarray"), ("rows.npy", "npy")):
        config = {
            "data": {"source": source, "path": str(tmp_path / name)},
            "model": {"family": "kmeans", "n_components": 2},
            "output": {"path": str(tmp_path / f"run-{name}")},
        }
        paths[name] = run(Config.model_validate(config))
    made = predict(paths["even.nc"], form="geotiff")
    label = xr.open_zarr(paths["even.nc"] / "labels.zarr", consolidated=False).label
    with rasterio.open(made) as file:
        np.testing.assert_array_equal(file.read(), label.values)
        assert file.transform.almost_equals(from_origin(-9.0, 65.0, 18.0, 10.0))
    with pytest.raises(InputError, match="evenly spaced coordinates, and those of latitude are not"):
        predict(paths["uneven.nc"], form="geotiff")
    with pytest.raises(InputError, match=r"rows lie on \(row\), expected y and x"):
        predict(paths["rows.npy"], form="geotiff")
