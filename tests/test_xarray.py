"""Datasets of xarray as rows: against stacking by hand, in every layout, with labels back on their coordinates."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

import pipeline
from pipeline.data.grid import FlatRows, Grid
from pipeline.data.sources.xarray import XarraySection
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.outputs import labels as labels_module
from pipeline.outputs import model_store
from pipeline.workflow import check, predict, resume, run

DIMS = ("time", "level", "lat", "lon")
SIZES = {"time": 6, "level": 2, "lat": 5, "lon": 4}


def dataset(seed: int = 0) -> xr.Dataset:
    """Two variables of six times, two levels and a grid of 5 x 4; north and south differ."""
    rng = np.random.default_rng(seed)
    shift = np.where(np.arange(SIZES["lat"]) < 3, 0.0, 6.0)[:, None]
    u = rng.normal(size=tuple(SIZES.values())) + shift
    ds = xr.Dataset({"u": (DIMS, u), "ps": (("time", "lat", "lon"), rng.normal(size=(6, 5, 4)) - shift)})
    ds["u"].attrs["units"] = "m s**-1"
    return ds.assign_coords(
        time=np.datetime64("2001-01-01", "ns") + np.arange(6) * np.timedelta64(31, "D"),
        level=[500, 850],
        lat=np.linspace(60.0, -60.0, 5),
        lon=np.arange(4) * 90.0,
    )


def stacked(ds: xr.Dataset, dims: tuple[str, ...], names: tuple[str, ...] = ("u", "ps")) -> np.ndarray:
    """The table by hand."""
    parts = []
    for name in names:
        array = ds[name].transpose(*dims, ...)
        parts.append(array.values.reshape(int(np.prod([ds.sizes[d] for d in dims])), -1))
    return np.concatenate(parts, axis=1)


def opened(path, **options):
    """The source of a path."""
    return XarraySection(path=str(path), **({"features": ["level"]} | options)).open()


def whole(source) -> np.ndarray:
    """All rows of a source."""
    return np.concatenate([source.read(i) for i in range(source.n_chunks)])


def written(ds: xr.Dataset, path: Path, chunks: dict[str, int] | None = None) -> Path:
    """The store of a dataset in stored chunks; dimensions without a size are whole."""
    encoding = {
        name: {"chunks": tuple((chunks or {}).get(str(d), array.sizes[d]) for d in array.dims)}
        for name, array in ds.data_vars.items()
    }
    ds.to_zarr(path, encoding=encoding, zarr_format=3, consolidated=False)
    return path


LAYOUTS = {
    "time first": ({"time": 1}, DIMS, ("time", "lat", "lon")),
    "space first": ({"lat": 2, "lon": 2}, DIMS, ("lat", "lon", "time")),
    "transposed": ({"lon": 1}, ("lon", "lat", "level", "time"), ("lon", "lat", "time")),
    "one chunk": (None, DIMS, ("time", "lat", "lon")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_stacked_by_hand_and_chunks_follow_the_store(tmp_path, layout, monkeypatch):
    """Rows are the stacked table, in the order in which the store is read once."""
    chunks, stored, dims = LAYOUTS[layout]
    monkeypatch.setattr("pipeline.data.source.TARGET_BYTES", 1)  # as many chunks as the store allows
    ds = dataset()
    ordered = xr.Dataset({name: array.transpose(*(d for d in stored if d in array.dims)) for name, array in ds.items()})
    source = opened(written(ordered, tmp_path / "x.zarr", chunks), variables=["u", "ps"])
    assert source.grid.dims == dims
    assert source.feature_names == ["u 500", "u 850", "ps"]
    np.testing.assert_array_equal(whole(source), stacked(ds, dims))
    step = (chunks or {}).get(dims[0], SIZES[dims[0]])
    assert source.n_chunks == -(-SIZES[dims[0]] // step)


def test_each_stored_chunk_is_read_once_a_pass(tmp_path, monkeypatch):
    """A pass reads each object of the variable once."""
    path = written(dataset(), tmp_path / "x.zarr", {"lat": 2, "lon": 2})
    monkeypatch.setattr("pipeline.data.source.TARGET_BYTES", 1)
    source, seen = opened(path, variables=["u"]), []
    get = zarr.storage.LocalStore.get

    async def counted(self, key, *args, **kwargs):
        if "/c/" in key:
            seen.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    whole(source)
    used = [key for key in seen if key.startswith("u/")]
    assert len(used) == len(set(used)) == 3 * 2


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 40))
def test_blocks_of_a_grid_are_consecutive_rows(shape, rows):
    """Blocks are boxes of consecutive rows, no larger than asked for."""
    grid = Grid(tuple("abcd"[: len(shape)]), tuple(shape))
    number, row = np.arange(grid.n_rows).reshape(shape), 0
    for block in grid.blocks(grid.block_shape(rows)):
        np.testing.assert_array_equal(number[block.box].reshape(-1), np.arange(block.start, block.stop))
        assert block.start == row
        assert block.stop - block.start <= rows
        row = block.stop
    assert row == grid.n_rows


@pytest.mark.parametrize(
    ("select", "by_hand"),
    [
        ({"level": [850]}, {"level": [850]}),
        ({"level": 500}, {"level": [500]}),
        ({"level": [850, 500]}, {"level": [850, 500]}),
        ({"lat": "-30/30"}, {"lat": slice(30, -30)}),
        ({"time": "2001-02/2001-04"}, {"time": slice("2001-02", "2001-04")}),
        ({"time": ["2001-01", "2001-06-05"]}, {"time": [np.datetime64("2001-01-01"), np.datetime64("2001-06-05")]}),
        ({"lon": "90/"}, {"lon": slice(90, None)}),
        ({"member": "1/2"}, {}),
    ],
)
def test_selected_entries(tmp_path, select, by_hand):
    """Lists, single values and ranges select what xarray's sel selects."""
    ds = dataset()
    if "member" in select:  # a dimension without coordinates is counted from 0
        ds = xr.concat([ds - 1, ds, ds, ds + 1], "member").transpose("time", "member", ...)
        source = opened(
            written(ds, tmp_path / "x.zarr"), variables=["u"], select=select, samples=["member", "time", "lat", "lon"]
        )
        np.testing.assert_array_equal(
            whole(source), stacked(ds.isel(member=[1, 2]), ("member", "time", "lat", "lon"), ("u",))
        )
        return
    source = opened(written(ds, tmp_path / "x.zarr", {"time": 2}), variables=["u"], select=select)
    np.testing.assert_array_equal(whole(source), stacked(ds.sel(by_hand), ("time", "lat", "lon"), ("u",)))


def test_rows_of_a_stored_grid_are_read_by_stored_chunk(tmp_path, monkeypatch):
    """Any rows are those of the flattened array, each part is one stored chunk, and a row reads one as well."""
    x = np.arange(2 * 7 * 5 * 3).reshape(2, 7, 5, 3)
    array = zarr.create_array(
        tmp_path / "x.zarr", data=x, chunks=(1, 3, 5, 3), dimension_names=("time", "y", "x", "rank")
    )
    rows, flat = FlatRows(array), x.reshape(-1, 3)
    assert rows.shape == flat.shape
    for start, stop in ((0, 70), (14, 15), (29, 36), (33, 70)):
        np.testing.assert_array_equal(rows[start:stop], flat[start:stop])
    seen, get = [], zarr.storage.LocalStore.get

    async def counted(self, key, *args, **kwargs):
        seen.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    np.testing.assert_array_equal(rows[34], flat[34])
    assert seen == ["c/0/2/0/0"]
    seen.clear()
    np.testing.assert_array_equal(np.concatenate([rows[part] for part in rows.parts()]), flat)
    assert len(seen) == len(set(seen)) == 2 * 3


def test_netcdf_and_its_packed_numbers_and_many_files_are_one_dataset(tmp_path):
    """A glob of netCDF 3 files of packed integers is the dataset that was cut into them."""
    ds = dataset().drop_encoding()
    packed = {"u": {"dtype": "int16", "scale_factor": 0.001, "add_offset": 2.0, "_FillValue": np.int16(-32768)}}
    for i in range(3):
        ds.isel(time=slice(2 * i, 2 * i + 2)).to_netcdf(tmp_path / f"part{i}.nc", engine="scipy", encoding=packed)
    source = opened(tmp_path / "part*.nc", variables=["u", "ps"])
    np.testing.assert_allclose(whole(source), stacked(ds, ("time", "lat", "lon")), atol=6e-4)
    assert opened(tmp_path / "part*.nc", variables=["u"], concat="time").n_rows == source.n_rows


def test_weights_of_a_coordinate_and_of_a_variable(tmp_path):
    """Weights follow the rows, also for ranges that are no chunks."""
    ds = dataset().assign(area=(("lon", "lat"), np.arange(20.0).reshape(4, 5)))
    path = written(ds, tmp_path / "x.zarr", {"time": 1})
    by_hand = {"cos(lat)": np.cos(np.deg2rad(ds.lat)), "area": ds.area}
    for name, expected in by_hand.items():
        section = XarraySection(path=str(path), variables=["u"], features=["level"], weights=name)
        chunks = section.open_chunks()
        found = np.concatenate([chunks.load(i).weight for i in range(chunks.n_chunks)])
        full = expected.broadcast_like(ds.ps).transpose("time", "lat", "lon").values.reshape(-1)
        np.testing.assert_allclose(found, full, rtol=1e-15)
        np.testing.assert_array_equal(chunks.weights.read(7, 31), full[7:31])


def config(path, out, **data):
    """A job on a dataset."""
    return validate(
        {
            "data": {"source": "xarray", "path": str(path), "variables": ["u", "ps"], "features": ["level"], **data},
            "model": {"family": "gaussian", "n_components": 2},
            "output": {"path": str(out)},
        }
    )


def test_a_run_gives_labels_and_means_on_their_coordinates(tmp_path, monkeypatch):
    """labels.zarr opens with the dataset's coordinates, cells without data are -1, and means have the data's dimensions; the fit is scikit-learn's."""
    monkeypatch.setattr(labels_module, "BLOCK_ROWS", 50)  # of 120 rows: blocks of two times
    ds = dataset()
    ds["u"][2, :, 1, 1] = np.nan
    ds["ps"][2, 1, 1] = np.nan
    path = written(ds, tmp_path / "x.zarr", {"time": 1})
    out = run(config(path, tmp_path / "run", missing_chunks="fill"))
    found = xr.open_zarr(out / "labels.zarr", consolidated=False).load()
    assert found["label"].dims == ("time", "lat", "lon")
    xr.testing.assert_equal(found.coords.to_dataset(), ds.drop_vars("level").coords.to_dataset())
    assert int(found["label"].sel(lat=30, lon=90).isel(time=2)) == -1
    assert int((found["label"] == -1).sum()) == 1

    model = pipeline.open_run(out)
    assert model["mean"].dims == ("component", "variable", "level")
    assert set(model["mean"].sel(variable="u").dims) == {"component", "level"}
    assert np.isnan(model["mean"].sel(variable="ps", level=850)).all()

    x = stacked(ds, ("time", "lat", "lon"))
    x = x[np.isfinite(x).all(axis=1)]
    peer = GaussianMixture(
        2, weights_init=model["weights"], means_init=model["means"], max_iter=1000, tol=1e-9, random_state=0
    ).fit(x)
    assert peer.score(x) == pytest.approx(model.attrs["final_log_likelihood"] / len(x), abs=1e-4)
    flat = found["label"].values.reshape(-1)
    np.testing.assert_array_equal(flat[flat >= 0], peer.predict(x))
    report = (out / "report.html").read_text()
    assert "Labels at time 2001-01-01" in report
    assert "u 850" in report

    again = predict(out, [f"data.path={path}"], output=tmp_path / "again")
    xr.testing.assert_identical(xr.open_zarr(again, consolidated=False).load()["label"], found["label"])
    table = pd.read_parquet(predict(out, form="parquet"))  # a column for each dimension, with its coordinate
    assert list(table.columns[:4]) == ["time", "lat", "lon", "label"]
    cells = table.set_index(["time", "lat", "lon"])["label"].to_xarray()
    np.testing.assert_array_equal(cells.sel(lat=ds.lat), found["label"])


def test_labels_that_were_begun_on_a_grid_are_finished(tmp_path, monkeypatch):
    """Finished blocks of a grid are used again, damaged ones are made again."""
    monkeypatch.setattr(labels_module, "BLOCK_ROWS", 50)
    path = written(dataset(), tmp_path / "x.zarr", {"time": 1})
    out = run(config(path, tmp_path / "run"))
    whole_labels = xr.open_zarr(out / "labels.zarr", consolidated=False).load()
    labels = out / "labels.zarr"
    model, _, _ = model_store.load_model(model_store.read_dataset(out / "model.zarr"))
    specs = model.row_arrays(0)
    places = {name: labels / name / "c" for name in specs}
    sums = {f"{i}/0/0": labels_module._digest(f"{i}/0/0", places) for i in range(2)}
    layout = [
        {"family": "gaussian", "n_rows": 120, "top_k": 0},
        {name: str(spec) for name, spec in specs.items()},
        ["time", "lat", "lon"],
        [6, 5, 4],
        [2, 5, 4],
    ]
    os.rename(labels, out / ".labels.zarr.partial")
    (out / ".labels.zarr.sums").write_text(json.dumps(layout) + "\n" + "".join(f"\n{k} {d}\n" for k, d in sums.items()))
    (out / ".labels.zarr.partial" / "label" / "c" / "1" / "0" / "0").write_bytes(b"damaged")
    finished = (out / ".labels.zarr.partial" / "label" / "c" / "0" / "0" / "0").stat()
    (out / "report.html").unlink()
    resume(out)
    xr.testing.assert_identical(xr.open_zarr(out / "labels.zarr", consolidated=False).load(), whole_labels)
    found = (labels / "label" / "c" / "0" / "0" / "0").stat()
    assert (found.st_ino, found.st_mtime_ns) == (finished.st_ino, finished.st_mtime_ns)


def test_cells_that_are_partly_missing_are_named_and_dropped_on_request(tmp_path):
    """A cell without some of its features is named by its coordinates, left out, or used; one without any is left out."""
    ds = dataset()
    ds["u"][3, 1, 2, 0] = np.nan
    path = written(ds, tmp_path / "x.zarr", {"time": 1})
    with pytest.raises(
        InputError, match=r"u 850 is NaN or inf at time 2001-04-04 00:00:00, lat 0.0, lon 0.0.*bad_rows: drop"
    ):
        whole(opened(path, variables=["u", "ps"]))
    chunks = XarraySection(path=str(path), variables=["u", "ps"], features=["level"], bad_rows="drop").open_chunks()
    assert chunks.load(0).bad.sum() == 1
    missing = chunks_with_missing(path)
    assert missing.load(0).bad is None
    np.testing.assert_array_equal(np.isnan(missing.load(0).x).sum(axis=0), [0, 1, 0])
    ds["u"][3, :, 2, 0] = ds["ps"][3, 2, 0] = np.nan
    assert chunks_with_missing(written(ds, tmp_path / "y.zarr", {"time": 1})).load(0).bad.sum() == 1


def chunks_with_missing(path):
    """Chunks whose cells may have missing entries."""
    return XarraySection(path=str(path), variables=["u", "ps"], features=["level"], bad_rows="missing").open_chunks()


WRONG = {
    "variable": ({"variables": ["uu"]}, "has no 'uu'.*did you mean u.*Variables here"),
    "text": ({"variables": ["name"]}, "name has dtype.*expected real numbers"),
    "times": ({"variables": ["when"]}, "when has times, expected real numbers"),
    "other dimensions": ({"variables": ["u", "mask"]}, "beside data.features they must be the same"),
    "no rows left": ({"features": list(DIMS)}, "expected at least one other for the rows"),
    "feature dimension": ({"features": ["levels"]}, "no dimension 'levels'.*did you mean level"),
    "samples": ({"samples": ["time", "lat"]}, r"expected the dimensions that are not features, \(time, lat, lon\)"),
    "selected dimension": ({"select": {"height": [1]}}, "data.select: .* has no dimension 'height'"),
    "selected entry": ({"select": {"level": [700]}}, r"level has no \[700\]. Select some of its entries: 500, 850"),
    "selected text": ({"select": {"level": "low"}}, "level has no 'low'"),
    "selected range of text": ({"select": {"lat": "a/b"}}, "expected a number, as lat holds numbers"),
    "empty range": ({"select": {"time": "1990/1991"}}, "no time lies in '1990/1991'"),
    "weights": ({"weights": "cos(latitude)"}, "got 'cos(.*)', expected cos(.*) there is no 'latitude'"),
    "weights of more than degrees": ({"weights": "cos(lon)"}, "lon reaches 270, expected degrees"),
    "weights along features": ({"weights": "level"}, "level has dtype int32 and the dimensions"),
    "group": ({"group": "deep"}, "xarray cannot open it.*Check data.path, data.group"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, case):
    """What is wrong is said with what is there."""
    ds = dataset()
    ds["name"] = (("time", "lat", "lon"), np.full((6, 5, 4), "a"))
    ds["when"] = (("time", "lat", "lon"), np.full((6, 5, 4), np.datetime64("2001-01-01", "ns")))
    ds["mask"] = (("lat", "lon"), np.ones((5, 4)))
    path = tmp_path / "x.nc"
    ds.drop_encoding().to_netcdf(path, engine="scipy")
    options, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        XarraySection(**({"path": str(path), "features": ["level"], "variables": ["u"]} | options)).open_chunks()


def test_other_paths(tmp_path):
    """A path without a dataset is refused."""
    with pytest.raises(InputError, match="no file has such a name"):
        opened(tmp_path / "*.nc")
    (tmp_path / "x.nc").write_bytes(b"no netCDF")
    with pytest.raises(InputError, match="xarray cannot open it"):
        opened(tmp_path / "x.nc")
    with pytest.raises(InputError, match="nowhere"):
        opened(tmp_path / "nowhere.nc")


def test_a_store_that_would_be_read_many_times_is_refused(tmp_path, monkeypatch):
    """Chunks that no order of rows can follow within memory are refused, with what to do."""
    path = written(dataset(), tmp_path / "x.zarr")
    monkeypatch.setattr("pipeline.data.sources.xarray.SLAB_BYTES", 500)
    with pytest.raises(
        InputError, match=r"each would be read 6 times a pass. Store it in chunks that are small along time"
    ):
        opened(path, variables=["u"])
    monkeypatch.setattr("pipeline.data.sources.xarray.TIMES", 6)
    assert opened(path, variables=["u"]).notes()


def test_an_absent_chunk_is_an_error_unless_it_is_meant(tmp_path):
    """An absent chunk of a zarr store is not read as missing values without being asked."""
    path = written(dataset(), tmp_path / "x.zarr", {"time": 1})
    (path / "u" / "c" / "3" / "0" / "0" / "0").unlink()
    with pytest.raises(StorageError, match="missing"):
        whole(opened(path, variables=["u"]))
    assert np.isnan(whole(opened(path, variables=["u"], missing_chunks="fill"))[3 * 20 : 4 * 20]).all()


def test_a_file_that_is_written_again_is_opened_again(tmp_path):
    """An open dataset is not used for a file that was replaced."""
    ds = dataset().drop_encoding()
    for value in (1.0, 2.0):
        (ds * 0 + value).to_netcdf(tmp_path / "x.nc", engine="scipy")
        os.utime(tmp_path / "x.nc", ns=(int(value), int(value)))
        assert (whole(opened(tmp_path / "x.nc", variables=["u"])) == value).all()


def test_names_that_results_use_too_take_no_place_of_theirs(tmp_path):
    """A coordinate called label stays beside the labels; a feature dimension called component beside the components; others are refused."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 12, 3)) + 8 * (np.arange(12) % 2)[None, :, None]
    ds = xr.Dataset({"wind": (("time", "lat", "component"), values)}, {"component": [7, 8, 9]})
    ds = ds.assign_coords(label=(("time", "lat"), np.full((10, 12), 99)), log_density=("lat", np.arange(12.0)))
    ds.to_netcdf(tmp_path / "x.nc", engine="scipy")
    raw = {
        "data": {"source": "xarray", "path": str(tmp_path / "x.nc"), "features": ["component"]},
        "model": {"n_components": 2},
        "output": {"path": str(tmp_path / "run"), "top_k": 2},
    }
    out = run(validate(raw))
    found = xr.open_zarr(out / "labels.zarr", consolidated=False).load()
    assert set(np.unique(found["label"])) == {0, 1} and (found["label"] == found["label"][0]).all()
    assert (found["data_label"] == 99).all() and found["data_log_density"].dims == ("lat",)
    assert found["log_density"].dims == ("time", "lat")
    mean = pipeline.open_run(out)["mean"]
    assert mean.dims == ("component", "variable", "data_component") and mean["data_component"].values.tolist() == [
        7,
        8,
        9,
    ]
    table = pd.read_parquet(predict(out, form="parquet"))
    np.testing.assert_array_equal(table["label"], found["label"].values.ravel())
    for renamed, said in (({"lat": "rank"}, "dimension called rank"), ({"time": "label"}, "dimension called label")):
        other = ds.drop_vars(["label", "log_density"]).rename(renamed)
        other.to_netcdf(tmp_path / "other.nc", engine="scipy")
        with pytest.raises(InputError, match=said):
            run(validate({**raw, "data": {**raw["data"], "path": str(tmp_path / "other.nc")}}), tmp_path / "other")
        with pytest.raises(InputError, match=said):
            check(validate({**raw, "data": {**raw["data"], "path": str(tmp_path / "other.nc")}}))
        assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="the dimension variable is that of the 2 variables"):
        two = ds.rename(component="variable").assign(gust=lambda each: each.wind + 1)
        pipeline.KMeans(2).fit(two, features=["variable"])
    holes = ds.drop_vars(["label", "log_density"]).rename(lat="x")
    holes["wind"][2, 3, 1] = np.nan
    holes.to_netcdf(tmp_path / "holes.nc", engine="scipy")
    filled = pipeline.impute(out, [f"data.path={tmp_path / 'holes.nc'}", "data.bad_rows=missing"], tmp_path / "filled")
    assert zarr.open_group(filled, mode="r")["imputed"].shape == (10, 12, 3)
