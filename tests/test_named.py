"""Named arrays are stored as xarray stores a dataset, and read as xarray reads it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.named import NamedArrays, read_group
from pipeline.arrays.stores import guarded
from tests.jobs import blobs, write_config, write_rows

ARRAYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "means": (("component", "feature"), np.array([[1.0, np.nan], [np.inf, -0.0]])),
    "float32": (("component", "feature"), np.arange(4, dtype=np.float32).reshape(2, 2)),
    "row": (("outlier",), np.arange(3)),
    "zeros": (("outlier",), np.zeros(3, np.int8)),
    "missing": (("outlier",), np.full(3, np.nan)),
    "flag": (("component",), np.array([True, False])),
    "one": ((), np.float64(7.0)),
    "phase": (("iteration",), np.array(["em", "é", ""], dtype=object)),
    "feature": (("feature",), np.array(["a", "b"], dtype=object)),
}
ATTRS = {"family": "gaussian", "n": np.int64(3), "mean": [0.5, 1.0], "of": {"a": None}}


def dataset(arrays: dict[str, Any] = ARRAYS) -> xr.Dataset:
    """The same as xarray has it."""
    return xr.Dataset(arrays, attrs=ATTRS)


def written_by_xarray(path: Path, group: str) -> None:
    """A group of the dataset, in one chunk an array."""
    codec = ZstdCodec(level=3, checksum=True)
    encoding: Any = {n: {"compressors": [codec], "chunks": np.shape(v)} for n, (_, v) in ARRAYS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text has no specification
        zarr.create_group(guarded(path, read_only=False), zarr_format=3)
        dataset().to_zarr(
            guarded(path, read_only=False), group=group, mode="w", zarr_format=3, consolidated=False, encoding=encoding
        )


def written(path: Path, group: str) -> None:
    """The same by ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = guarded(path, read_only=False)
        zarr.create_group(store, zarr_format=3)
        NamedArrays.of(ARRAYS, ATTRS).write(store, group)


@pytest.mark.parametrize("group", ["/", "k2-full"])
def test_files_are_those_of_xarray(tmp_path: Path, group: str) -> None:
    """Metadata and chunks, byte for byte."""
    written_by_xarray(tmp_path / "a", group)
    written(tmp_path / "b", group)
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (tmp_path / "a", tmp_path / "b")]  # fmt: skip
    assert files[0] == files[1]


def test_xarray_reads_what_is_written(tmp_path: Path) -> None:
    """Values, dtypes, dimensions, coordinates and attributes."""
    written(tmp_path / "b", "/")
    found = xr.open_zarr(guarded(tmp_path / "b"), consolidated=False).load()
    xr.testing.assert_equal(found, dataset())
    assert {n: v.dtype for n, v in found.variables.items() if v.dtype.kind in "fib"} == {
        n: np.asarray(v).dtype for n, (_, v) in ARRAYS.items() if np.asarray(v).dtype.kind in "fib"
    }
    assert found.attrs == {**ATTRS, "n": 3} and set(found.coords) == {"feature"}


def test_what_xarray_writes_is_read(tmp_path: Path) -> None:
    """As xarray reads it itself."""
    written_by_xarray(tmp_path / "a", "/")
    found, other = read_group(guarded(tmp_path / "a")), xr.open_zarr(guarded(tmp_path / "a"), consolidated=False).load()
    assert found.attrs == other.attrs and found.sizes == dict(other.sizes)
    assert set(found.coords) == set(other.coords) and set(found.data_vars) == set(other.data_vars)
    for name, array in found.variables.items():
        assert array.dims == other[name].dims and array.values.dtype == other[name].dtype
        np.testing.assert_array_equal(array.values, other[name].values)


def test_parts_are_those_of_xarray() -> None:
    """The first entries of a dimension, other names, and arrays without a dimension."""
    ours, theirs = NamedArrays.of(ARRAYS, ATTRS), dataset()
    names = {"means": "centers", "outlier": "misfit"}
    for mine, other in (
        (ours.first("component", 1), theirs.isel(component=slice(1))),
        (ours.rename(names), theirs.rename(names)),
        (ours.without(["outlier", "component"]), theirs.drop_dims(["outlier", "component"])),
        (ours.assign({"row": (("outlier",), [3, 2, 1])}), theirs.assign(row=("outlier", [3, 2, 1]))),
    ):
        made = {name: (array.dims, array.values) for name, array in mine.variables.items()}
        xr.testing.assert_equal(xr.Dataset(made), other)


def test_dimensions_without_names_are_refused(tmp_path: Path) -> None:
    """A foreign array whose dimensions are not known."""
    zarr.open_group(str(tmp_path / "x"), mode="w").create_array("a", data=np.zeros(3))
    with pytest.raises(ValueError, match="a: got dimensions"):
        read_group(guarded(tmp_path / "x"))


@pytest.mark.full
def test_a_run_imports_neither_xarray_nor_pandas(tmp_path: Path) -> None:
    """From rows in a store to the report: they would take a sixth of the CPU time of a small fit."""
    config = write_config(tmp_path / "job.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        f"sys.argv = ['em-pipeline', 'run', {str(config)!r}, '--output', 'run']\n"
        "try:\n    main()\nfinally:\n"
        "    sys.stderr.write(str([name for name in ('xarray', 'pandas', 'distributed', 'sklearn') if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.endswith("[]"), done.stderr
