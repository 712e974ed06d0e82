"""Wrong inputs of every kind of data: each ends with one message that says what was found, what is valid, and what to write."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import xarray as xr
import zarr
from PIL import Image

from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from tests.test_xarray import dataset


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with inputs that can be read in some way, and some that cannot."""
    folder = tmp_path_factory.mktemp("desk")
    ds = dataset()
    ds.assign(when=("time", ds.time.values), name=(("lat", "lon"), np.full((5, 4), "sea")), crs=0).to_netcdf(
        folder / "ds.nc", engine="scipy"
    )
    ds.to_zarr(folder / "ds.zarr", consolidated=False)
    xr.Dataset({"t": ("time", ds.time.values)}).to_netcdf(folder / "times.nc", engine="scipy")
    (folder / "no.nc").write_text("nothing")
    torn = ds.copy(deep=True)
    torn["u"][1, 0, 2, 3] = np.nan
    torn.to_zarr(folder / "torn.zarr", consolidated=False)
    frame = pd.DataFrame(
        {"a": [1.0, 2.0, 3.0], "b": [4, 5, 6], "name": ["x", "y", "z"], "when": pd.date_range("2001", periods=3)}
    )
    frame.to_parquet(folder / "t.parquet", index=False)
    frame.to_csv(folder / "t.csv", index=False)
    (folder / "parts").mkdir()
    frame[["a", "b"]].to_parquet(folder / "parts" / "1.parquet", index=False)
    frame[["a"]].assign(b=["4", "5", "6"]).to_parquet(folder / "parts" / "2.parquet", index=False)
    pq.write_table(pa.table({"v": pa.array([[1.0], [2.0]], pa.list_(pa.float64()))}), folder / "lists.parquet")
    frame[[]].to_parquet(folder / "none.parquet", index=False)
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "words.csv").write_text("1,2\n3,x\n")
    (folder / "empty.csv").write_text("")
    (folder / "twice.csv").write_text("a,a\n1,2\n3,4\n")
    np.save(folder / "x.npy", np.ones((4, 2)))
    np.save(folder / "three.npy", np.ones((2, 2, 2)))
    np.save(folder / "one.npy", np.ones(4))
    np.save(folder / "complex.npy", np.ones((4, 2), complex))
    np.save(folder / "times.npy", np.ones((4, 2), "M8[s]"))
    np.save(folder / "objects.npy", np.array([[1, "a"]], object), allow_pickle=True)
    np.save(folder / "text.npy", np.array([["a", "b"]]))
    np.save(folder / "no rows.npy", np.ones((0, 2)))
    np.save(folder / "short.npy", np.ones(3))
    np.save(folder / "half.npy", np.array([0, 1, 0.5, 1]))
    np.save(folder / "negative.npy", np.array([1.0, 1.0, -1.0, 1.0]))
    np.save(folder / "nan.npy", np.full((4, 2), np.nan))
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-8])
    (folder / "gz.npy").write_bytes(gzip.compress((folder / "x.npy").read_bytes()))
    zarr.create_array(folder / "x.zarr", data=np.ones((4, 2)))
    group = zarr.open_group(folder / "group.zarr", mode="w")
    for name in ("p", "q"):
        group.create_array(name, data=np.ones((4, 2)))
    zarr.create_array(folder / "cube.zarr", data=np.ones((2, 2, 2)))
    csc = zarr.open_group(folder / "csc.zarr", mode="w")
    csc.attrs.update({"encoding-type": "csc_matrix", "shape": [2, 2]})
    csr = zarr.open_group(folder / "csr.zarr", mode="w")
    csr.attrs.update({"encoding-type": "csr_matrix", "shape": [3, 2]})
    for name, values in {"data": [1.0, 2.0], "indices": [0, 1], "indptr": [0, 2, 1, 2]}.items():
        csr.create_array(name, data=np.array(values, float if name == "data" else int))
    (folder / "docword.txt").write_text("2\n2\n2\n2 1 1\n1 1 1\n")
    (folder / "pictures").mkdir()
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(folder / "pictures" / "a.png")
    (folder / "bare").mkdir()
    (folder / "bare" / "note.pdf").write_text("x")
    sp.save_npz(folder / "coo.npz", sp.coo_array(np.eye(3)))
    return folder


XR = {"source": "xarray", "path": "ds.nc", "variables": ["u"], "features": ["level"]}
PQ = {"source": "parquet", "path": "t.parquet", "columns": ["a", "b"]}
CSV = {"source": "csv", "path": "t.csv", "columns": ["a", "b"]}
NPY = {"source": "npy", "path": "x.npy"}
ZARR = {"source": "zarr", "path": "x.zarr"}

# What to write is said: a verb of these, or the name that may have been meant.
ADVICE = re.compile(
    r"\b(Set|set|Add|unpack|Write|Name|Leave|Correct|Check|Give|Convert|Reshape|Select|Remove|Fetch|Take|did you mean|sort the lines|needs it|"
    r"relative paths start|it belongs to)\b"
)

# The data section, and what has to be said.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # datasets of xarray
    "a variable that is not there": (XR | {"variables": ["v"]}, "Variables here: "),
    "a variable that is almost there": (XR | {"variables": ["U"]}, "has no 'U'; did you mean u?"),
    "times as a feature": (
        XR | {"variables": ["when"], "features": []},
        "data.variables: when has times, expected real numbers. Leave it out, or convert it first.",
    ),
    "text as a feature": (
        XR | {"variables": ["name"], "features": []},
        "data.variables: name has dtype object, expected real numbers. Leave it out, or convert it first.",
    ),
    "a number as a variable": (
        XR | {"variables": ["crs"], "features": []},
        "data.variables: crs is one number, without dimensions, expected one for each row. Leave it out.",
    ),
    "a dataset of times": (
        XR | {"path": "times.nc", "variables": None, "features": []},
        "has no numeric variable. Variables here: t (time). Set data.path, or data.group.",
    ),
    "variables of other dimensions": (
        XR | {"variables": ["u", "ps"], "features": []},
        "Add to data.features, or leave one out.",
    ),
    "a feature dimension that is not there": (
        XR | {"features": ["levle"]},
        "has no dimension 'levle'; did you mean level? Name one of lat, level, lon, time.",
    ),
    "no dimension left for rows": (
        XR | {"variables": ["ps"], "features": ["time", "lat", "lon"]},
        "data.features: (time, lat, lon) are all dimensions of ps, expected at least one other for the rows. Leave one out.",
    ),
    "a sample dimension that is not there": (
        XR | {"samples": ["time", "lat", "x"]},
        "has no dimension 'x'. Name one of lat, level, lon, time.",
    ),
    "too few sample dimensions": (
        XR | {"samples": ["time", "lat"]},
        "data.samples: got (time, lat), expected the dimensions that are not features, (time, lat, lon), in any order. Name these.",
    ),
    "a dimension to select from that is not there": (
        XR | {"select": {"height": 500}},
        "has no dimension 'height'. Name one of lat, level, lon, time.",
    ),
    "an entry that is not there": (
        XR | {"select": {"level": 700}},
        "data.select: level has no 700. Select some of its entries: 500, 850.",
    ),
    "an empty selection": (
        XR | {"select": {"time": "1999-01/1999-12"}},
        "no time lies in '1999-01/1999-12'. Select some of its entries: 2001-01-01 00:00:00,",
    ),
    "an empty list": (
        XR | {"select": {"level": []}},
        "data.select: no level lies in []. Select some of its entries: 500, 850.",
    ),
    "a range of words": (
        XR | {"select": {"level": "low/high"}},
        "data.select: level: got 'low', expected a number, as level holds numbers. Correct it.",
    ),
    "a month that is none": (
        XR | {"select": {"time": "2001-13"}},
        "time has no '2001-13'. Select some of its entries: 2001-01-01 00:00:00,",
    ),
    "an engine that is not installed": (
        XR | {"engine": "cfgrib"},
        "install the engine where it is absent: pip install 'em-pipeline[netcdf]' for netCDF 4, 'em-pipeline[raster]' for GeoTIFF, cfgrib for GRIB.",
    ),
    "an engine that is none": (
        XR | {"engine": "hdf4"},
        "got 'hdf4', expected zarr, netcdf4, h5netcdf, scipy, cfgrib or rasterio; did you mean netcdf4?",
    ),
    "another engine's file": (
        XR | {"path": "no.nc"},
        "set data.engine to one of zarr, netcdf4, h5netcdf, scipy (netCDF 3), cfgrib (GRIB) and rasterio (GeoTIFF); install the engine",
    ),
    "a group that is not there": (
        XR | {"path": "ds.zarr", "group": "summer"},
        "Check data.path, data.group and data.concat; set data.engine to one of",
    ),
    "a glob without files": (
        XR | {"path": "era/*.nc"},
        "no file has such a name, expected at least one. Correct data.path.",
    ),
    "weights of nothing": (XR | {"weights": "cos(latitude)"}, "there is no 'latitude'. Variables here: "),
    "weights of another dimension": (
        XR | {"weights": "level"},
        "data.weights: level has dtype int32 and the dimensions (level), expected numbers along some of (time, lat, lon). Name another.",
    ),
    "weights of no degrees": (
        XR | {"weights": "cos(lon)"},
        "lon reaches 270, expected degrees from -90 to 90. Name another.",
    ),
    "cells that are partly missing": (
        XR | {"path": "torn.zarr"},
        "where other features have values. Set data.bad_rows: drop to leave out such cells",
    ),
    "no path": ({"source": "xarray"}, "data.path: is missing; source xarray needs it: a file or zarr store"),
    # tables
    "a column that is not there": (PQ | {"columns": ["a", "c"]}, "expected one of a, b, name, when. Correct it."),
    "a column of text": (
        PQ | {"columns": ["a", "name"]},
        "type large_string, expected bool, integers or float16/32/64. Write it as numbers, name it in data.categories, or leave",
    ),
    "a column of times": (
        PQ | {"columns": ["a", "when"]},
        "timestamp[us], expected bool, integers or float16/32/64. Write it as numbers, name it in data.categories, or leave",
    ),
    "all columns, some of text": (
        PQ | {"columns": None},
        "type large_string, expected bool, integers or float16/32/64. Write it as numbers, name it in data.categories, or name",
    ),
    "a column twice": (
        PQ | {"columns": ["a", "a"]},
        "data.columns: got 'a' twice, expected each name once. Remove one.",
    ),
    "a column of lists": (
        PQ | {"path": "lists.parquet", "columns": None},
        "double>, expected bool, integers or float16/32/64. Write it as numbers, name it in data.categories, or leave",
    ),
    "no columns": (
        PQ | {"path": "none.parquet", "columns": None},
        "has no column that could be a feature, expected at least one. Check what wrote it.",
    ),
    "files of mixed types": (
        PQ | {"path": "parts", "columns": None},
        "Write the files with one schema, or name columns that all have in data.columns.",
    ),
    "a folder without tables": (
        PQ | {"path": "bare"},
        "no parquet or Arrow files (.parquet, .parq, .pq, .feather, .arrow). Give data.path their folder, or a glob such as",
    ),
    "a text called parquet": (
        PQ | {"path": "t.csv"},
        "is no parquet or Arrow file, it begins with b'a,b,name'. Set data.source to what it is.",
    ),
    "weights that are no column": (
        PQ | {"weights": "w"},
        "data.weights: got 'w', expected a column (a, b, name, when) or a path that exists. Correct it.",
    ),
    "labels of text": (
        PQ | {"labels": "name"},
        "type large_string, expected bool, integers or float16/32/64. Write it as numbers, name it in data.categories, or leave",
    ),
    "an index that is no column": (PQ | {"index": "id"}, "expected one of a, b, name, when. Correct it."),
    "a csv column that is not there": (CSV | {"columns": ["c"]}, "expected one of a, b, name, when. Correct it."),
    "a csv column of text": (
        CSV | {"columns": ["a", "name"]},
        "2, column 3: got 'x', expected a number or an empty cell. Correct it, choose others by data.columns, name it in",
    ),
    "a ragged line": (
        CSV | {"path": "ragged.csv", "columns": None},
        "line 3: has 1 columns, expected 2. Correct the line, or put # before it.",
    ),
    "a word among numbers": (
        CSV | {"path": "words.csv", "columns": None},
        "2, column 2: got 'x', expected a number or an empty cell. Correct it, choose others by data.columns, name it in",
    ),
    "an empty file": (
        CSV | {"path": "empty.csv", "columns": None},
        "has no rows of numbers, expected at least one. Check what wrote it.",
    ),
    "two columns of one name": (
        CSV | {"path": "twice.csv", "columns": ["a"]},
        "data.columns: got 'a', which 2 columns are named; expected one of a, a. Correct it.",
    ),
    "a delimiter of two letters": (
        CSV | {"delimiter": "::"},
        "data.delimiter: got '::', expected one character that is in no number. Set one: blanks are ' ', a tab is \"\\t\".",
    ),
    "a picture as text": (
        CSV | {"path": "pictures/a.png", "columns": None},
        "is not text, expected lines of numbers. It is a picture: set data.source to images.",
    ),
    # arrays
    "three dimensions": (
        NPY | {"path": "three.npy"},
        "got dtype float64 and shape (2, 2, 2), expected two dimensions (rows, features). Reshape it first.",
    ),
    "one dimension": (
        NPY | {"path": "one.npy"},
        "got dtype float64 and shape (4,), expected two dimensions (rows, features). Reshape it first.",
    ),
    "complex numbers": (
        NPY | {"path": "complex.npy"},
        "got dtype complex128 and shape (4, 2), expected bool, integers or float16/32/64. Convert it first.",
    ),
    "an array of times": (
        NPY | {"path": "times.npy"},
        "got dtype datetime64[s] and shape (4, 2), expected bool, integers or float16/32/64. Convert it first.",
    ),
    "objects": (
        NPY | {"path": "objects.npy"},
        "got dtype object and shape (1, 2), expected bool, integers or float16/32/64. Convert it first.",
    ),
    "an array of text": (
        NPY | {"path": "text.npy"},
        "got dtype <U1 and shape (1, 2), expected bool, integers or float16/32/64. Convert it first.",
    ),
    "no rows": (NPY | {"path": "no rows.npy"}, "expected at least one row and one feature. Check what wrote it."),
    "an array that is cut short": (
        NPY | {"path": "cut.npy"},
        "has 184 bytes, its header promises 192. Fetch or write it again.",
    ),
    "a gzip called npy": (NPY | {"path": "gz.npy"}, "It is compressed by gzip: unpack it with gunzip."),
    "weights of other rows": (
        NPY | {"weights": "short.npy"},
        "for each of the 4 rows of the data, shape (4,). Give those of these rows.",
    ),
    "weights that are not there": (NPY | {"weights": "w.npy"}, "does not exist; did you mean x.npy?"),
    "labels of fractions": (
        NPY | {"labels": "half.npy"},
        "data.labels: row 2 has label 0.5, expected an integer from 0, or -1 where it is unknown. Correct it.",
    ),
    "weights below 0": (
        NPY | {"weights": "negative.npy"},
        "data.weights: row 2 has weight -1.0, expected finite, non-negative weights. Correct it.",
    ),
    "classes of other rows": (
        NPY | {"labels_true": "short.npy"},
        "as labels_true, expected one number for each of the 4 rows of the data, shape (4,). Give those of these rows.",
    ),
    "a file that is not there": (NPY | {"path": "y.npy"}, "does not exist; did you mean x.npy?"),
    "a folder as a file": (
        NPY | {"path": "bare"},
        "a folder, expected a file. Name a file in it; a folder of pictures is read by data.source:",
    ),
    "a group of two arrays": (
        ZARR | {"path": "group.zarr"},
        "is a group, expected one 2-d array. Set data.variable. Arrays here: p (4, 2), q (4, 2).",
    ),
    "an array that is not in the group": (
        ZARR | {"path": "group.zarr", "variable": "r"},
        "there is no such array. Set data.variable to one that is. Arrays here: p (4, 2), q (4, 2).",
    ),
    "a cube": (
        ZARR | {"path": "cube.zarr"},
        "got dtype float64 and shape (2, 2, 2), expected two dimensions (rows, features). Reshape it first.",
    ),
    "a sparse matrix by columns": (
        ZARR | {"path": "csc.zarr"},
        "is stored by columns (csc_matrix), expected rows. Write it as csr_matrix.",
    ),
    "pointers that fall": (
        ZARR | {"path": "csr.zarr"},
        "its indptr, near row 0, does not grow from 0. Write it again.",
    ),
    "a file as a store": (
        ZARR | {"path": "x.npy"},
        "is a file, expected a zarr store, which is a folder. Set data.source to what it is.",
    ),
    "unsorted counts": (
        {"source": "docword", "path": "docword.txt"},
        "line 5: got '1 1 1', expected documents in increasing order; sort the lines by document.",
    ),
    "a sparse matrix of another layout": (
        {"source": "sparse", "path": "coo.npz"},
        "is a coo matrix, expected csr, by rows. Write it again: save_npz(path, matrix.tocsr()).",
    ),
    # pictures and the rest
    "a folder without pictures": (
        {"source": "images", "path": "bare"},
        ".mpo, .pbm, .pgm, .png, .pnm, .ppm, .tf8, .tif, .tiff, .webp). Give data.path their folder, a glob such as",
    ),
    "patches larger than a picture": (
        {"source": "images", "path": "pictures", "patch": {"size": [9, 9]}},
        "is 6 x 6 pixels, expected at least one patch of 9 x 9. Take it out of the folder, or make data.patch.size smaller.",
    ),
    "a source that is none": ({"source": "netcdf", "path": "ds.nc"}, "did you mean xarray?"),
    "an option of another source": (
        NPY | {"columns": ["a"]},
        "data.columns: there is no such key; it belongs to source csv",
    ),
    "scales of no variables": (
        NPY,
        "got by: variable, but the features are of no variables. Set data.source: xarray, let no step before it mix",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_explained(desk, case, monkeypatch):
    """What was found and what to write, in one line, before anything is fitted."""
    data, said = WRONG[case]
    monkeypatch.chdir(desk)
    counts = data["source"] in ("docword", "sparse") or data.get("path") in ("csr.zarr", "csc.zarr")
    more = {"preprocess": [{"kind": "standardize", "by": "variable"}]} if case == "scales of no variables" else {}
    with pytest.raises((InputError, StorageError)) as error:
        validate({"data": data, "model": {"family": "multinomial" if counts else "kmeans"}} | more).open_chunks().load(
            0
        )
    text = str(error.value).removesuffix("\n`em-pipeline config` prints every option and its meaning.")
    assert said in text
    assert "\n" not in text and text.endswith((".", "?")) and ADVICE.search(text), text
