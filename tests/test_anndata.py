"""AnnData files and stores: rows, names and columns are those that were written, and labels go back only where they are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from pipeline.data import source
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import Config, validate
from pipeline.outputs.written_back import lacks_column, refuse_write_back, write_back
from tests.jobs import command

N, D = 300, 12
rng = np.random.default_rng(0)
X = sp.random_array((N, D), density=0.3, rng=rng, format="csr")
X.data = np.ceil(X.data * 5)
DENSE, PCA, TYPES = rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(N, 3)), rng.integers(-1, 2, N)


def put(group: Any, name: str, values: Any, kind: str = "array", version: str = "0.2.0") -> None:
    """An array of an open group of h5py or zarr, with the attributes of anndata."""
    values = np.asarray(values)
    text = values.dtype.kind in "OU"
    if isinstance(group, zarr.Group):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=str if text else values.dtype,
            chunks=(min(40, len(values)), *values.shape[1:]),
        )
        array[:] = values
    else:
        dtype = h5py.string_dtype() if text else values.dtype
        array = group.create_dataset(
            name,
            data=values.astype(object) if text else values,
            dtype=dtype,
            chunks=(min(40, len(values)), *values.shape[1:]),
        )
    array.attrs.update({"encoding-type": "string-array" if text else kind, "encoding-version": version})


def table(root: Any, name: str, index: list[str], columns: list[str]) -> Any:
    """An empty table of anndata."""
    group = root.create_group(name)
    put(group, "_index", np.array(index, dtype=object))
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs["column-order"] = columns
    return group


def compressed(root: Any, name: str, x: Any, kind: str) -> None:
    """A sparse matrix of anndata."""
    group = root.create_group(name)
    for part in ("data", "indices", "indptr"):
        put(group, part, getattr(x, part))
    group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": np.array(x.shape).tolist()})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with the same AnnData as a.h5ad and a.zarr, as anndata lays them out."""
    folder = tmp_path_factory.mktemp("anndata")
    for root in (h5py.File(folder / "a.h5ad", "w"), zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)):
        compressed(root, "X", X, "csr_matrix")
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for group in ("layers", "obsm"):
            root.create_group(group).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        put(root["layers"], "scaled", DENSE)
        compressed(root["layers"], "by_gene", X.tocsc(), "csc_matrix")
        put(root["obsm"], "X_pca", PCA)
        table(root["obsm"], "frame", [f"cell{i}" for i in range(N)], [])
        obs = table(root, "obs", [f"cell{i}" for i in range(N)], ["type", "weight", "note"])
        put(obs, "weight", np.arange(N, dtype=float))
        put(obs, "note", np.array(["x"] * N, dtype=object))
        kind = obs.create_group("type")
        put(kind, "codes", TYPES.astype(np.int8))
        put(kind, "categories", np.array(["B", "T"], dtype=object))
        kind.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        table(root, "var", [f"gene{i}" for i in range(D)], [])
        if isinstance(root, zarr.Group):
            zarr.consolidate_metadata(root.store)
        else:
            root.close()
    return folder


def config(path: Path, **options: Any) -> Config:
    """A config of AnnData; output is that of a multinomial mixture."""
    output = options.pop("output", {})
    family = "multinomial" if not {"layer", "obsm"} & options.keys() else "gaussian"
    data = {"source": "anndata", "path": str(path), **options}
    return validate({"data": data, "model": {"family": family, "n_components": 2}, "output": output})


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
@pytest.mark.parametrize(
    ("options", "expected"), [({}, X.toarray()), ({"layer": "scaled"}, DENSE), ({"obsm": "X_pca"}, PCA)]
)
def test_rows_names_and_columns_are_those_that_were_written(written, name, options, expected, monkeypatch):
    """In several chunks; sparse rows stay sparse."""
    monkeypatch.setattr(source, "TARGET_BYTES", 2000)
    made = config(written / name, labels_true="type", weights="weight", **options)
    chunks = made.open_chunks()
    rows, parts = chunks.source, [chunks.load(i) for i in range(chunks.n_chunks)]
    assert len(parts) > 2 and rows.sparse == (not options)
    found = [part.x.toarray() if rows.sparse else part.x for part in parts]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    np.testing.assert_array_equal(np.concatenate([part.weight for part in parts]), np.arange(N))
    np.testing.assert_array_equal(made.data.open_column("labels_true", rows).read(10, 90), TYPES[10:90])
    assert rows.keys(7, 9)["obs_name"].tolist() == ["cell7", "cell8"]
    names = [f"X_pca {i}" for i in range(3)] if "obsm" in options else [f"gene{i}" for i in range(D)]
    assert (rows.vocabulary() if rows.sparse else rows.describe()["features"]) == names


WRONG = {
    "a layer that is not there": (
        {"layer": "scale"},
        "expected one of by_gene, scaled; did you mean scaled? Correct it.",
    ),
    "an obsm that is not there": ({"obsm": "X_umap"}, "data.obsm: got 'X_umap', expected one of X_pca, frame"),
    "a table in obsm": (
        {"obsm": "frame"},
        "is a dataframe, expected an array or a csr_matrix. Write its numbers as one",
    ),
    "a matrix by columns": ({"layer": "by_gene"}, "is stored by columns (csc_matrix), expected rows. Write it again"),
    "both": ({"layer": "scaled", "obsm": "X_pca"}, "rows are those of a layer or of obsm, not of both; leave one out"),
    "text as labels": (
        {"labels": "note"},
        "expected one number for each of the 300 rows, or categories where these are classes",
    ),
    "categories as weights": ({"weights": "type"}, "has a categorical, expected one number for each of the 300 rows"),
    "a column that is not there": ({"labels": "typ"}, "(type, weight, note) or a path that exists; did you mean type?"),
    "labels of another file": ({"weights": "none.npy"}, "none.npy', expected a column of obs"),
}


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_said(written, name, case):
    """What was found, what is valid, and what to write."""
    options, message = WRONG[case]
    with pytest.raises(InputError) as raised:
        config(written / name, **options).open_chunks()
    assert message in str(raised.value)


def test_files_that_are_something_else_are_said(tmp_path, written):
    """No HDF5, no AnnData, an old layout, nothing at all, and damage."""
    (tmp_path / "text.h5ad").write_text("a,b")
    h5py.File(tmp_path / "other.h5ad", "w").create_dataset("x", data=np.ones(3))
    (tmp_path / "cut.h5ad").write_bytes((written / "a.h5ad").read_bytes()[:5000])
    with h5py.File(tmp_path / "linked.h5ad", "w") as file:
        for name in ("obs", "var", "X"):
            file[name] = h5py.ExternalLink(str(written / "a.h5ad"), name)
    shutil.copy(written / "a.h5ad", tmp_path / "holes.h5ad")
    with h5py.File(tmp_path / "holes.h5ad", "r+") as file:
        file["layers"].create_dataset("new", shape=(N, D), dtype="f4", chunks=(40, D))
        del file["X"]
    wrong = {
        "text.h5ad": ({}, InputError, "is no HDF5 file, it begins with b'a,b'"),
        "other.h5ad": ({}, InputError, "has no obs and var of AnnData; it holds x. Set data.source"),
        "none.h5ad": ({}, InputError, "does not exist"),
        "cut.h5ad": ({}, StorageError, "could not be read"),
        "linked.h5ad": ({}, InputError, "Write it again, as one file."),
        "holes.h5ad": ({}, InputError, "has no X; it holds layers, obs, obsm, var. Set data.layer or data.obsm."),
    }
    for name, (options, kind, message) in wrong.items():
        with pytest.raises(kind) as raised:
            config(tmp_path / name, **options).open_chunks()
        assert message in str(raised.value)
    rows = config(tmp_path / "holes.h5ad", layer="new").open_chunks()
    with pytest.raises(InputError, match=r"8 of 8 chunks were never written\. Write the file again"):
        rows.load(0)
    filled = config(tmp_path / "holes.h5ad", layer="new", missing_chunks="fill").open_chunks()
    assert not filled.load(0).x.any()


def labels_of(path: Path) -> np.ndarray:
    """A store with labels, of noise and of no component too."""
    labels = np.append(rng.integers(-2, 130, N - 3), [-2, -1, 129]).astype(np.int32)
    zarr.create_group(path).create_array("label", data=labels)
    return labels


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_labels_are_written_back_as_categories(written, tmp_path, name, monkeypatch):
    """Rows and their fingerprint stay what they were; the column is written once, and again for other labels."""
    monkeypatch.setattr("pipeline.outputs.written_back._BLOCK", 64)
    path, copy = tmp_path / name, shutil.copytree if name.endswith("zarr") else shutil.copy
    copy(written / name, path)
    made = config(path, output={"write_back": "cluster"})
    before = made.open_chunks().fingerprint()
    for again in range(2):
        labels = labels_of(tmp_path / f"labels{again}.zarr")
        refuse_write_back(made)
        assert lacks_column(made, tmp_path / f"labels{again}.zarr")
        write_back(made, tmp_path / f"labels{again}.zarr")
        assert not lacks_column(made, tmp_path / f"labels{again}.zarr")
    assert made.open_chunks().fingerprint() == before
    with made.data.place.node() as root:
        assert list(root["obs"].attrs["column-order"]) == ["type", "weight", "note", "cluster"]
        categories = [each.decode() if isinstance(each, bytes) else each for each in root["obs/cluster/categories"][:]]
        codes = root["obs/cluster/codes"][:]
    assert codes.dtype == np.int16 and categories == [*map(str, range(130)), "noise"]
    np.testing.assert_array_equal(codes, np.where(labels == -2, 130, labels))
    assert sorted(each.name for each in tmp_path.iterdir()) == [name, "labels0.zarr", "labels1.zarr"]
    for column, message in {"type": "which is not replaced", "a/b": "expected a name without /"}.items():
        with pytest.raises(InputError, match=message):
            refuse_write_back(config(path, output={"write_back": column}))


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_anndata_reads_what_is_written_back(written, tmp_path, name):
    """The column that anndata itself finds."""
    anndata = pytest.importorskip("anndata")
    path, copy = tmp_path / name, shutil.copytree if name.endswith("zarr") else shutil.copy
    copy(written / name, path)
    labels = labels_of(tmp_path / "labels.zarr")
    write_back(config(path, output={"write_back": "cluster"}), tmp_path / "labels.zarr")
    found = (anndata.read_zarr if name.endswith("zarr") else anndata.read_h5ad)(path)
    np.testing.assert_array_equal(found.X.toarray(), X.toarray())
    expected = ["noise" if label == -2 else None if label == -1 else str(label) for label in labels]
    assert [None if each != each else each for each in found.obs["cluster"]] == expected


@pytest.mark.slow
def test_a_run_writes_back_and_resume_writes_what_is_missing(written, tmp_path):
    """The labels of the run, in the order of the rows; without the option the file has the same bytes as before."""
    path, run = tmp_path / "a.h5ad", tmp_path / "run"
    shutil.copy(written / "a.h5ad", path)
    job = {"data": {"source": "anndata", "path": str(path)}, "model": {"family": "multinomial", "n_components": 2}}
    (tmp_path / "job.yaml").write_text(
        str(job | {"fit": {"method": "em", "max_iter": 3}, "output": {"path": str(run)}})
    )
    assert command("run", tmp_path / "job.yaml").code == 0
    assert path.read_bytes() == (written / "a.h5ad").read_bytes()
    for _ in range(2):  # the second time there is nothing to do
        assert command("resume", run, "--set", "output.write_back=cluster").code == 0
    labels = zarr.open_group(run / "labels.zarr", mode="r")["label"][:]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["obs/cluster/codes"][:], labels)
    shutil.copy(written / "a.h5ad", path)
    assert command("predict", run).code == 0
    assert path.read_bytes() == (written / "a.h5ad").read_bytes()
    assert command("predict", run, "--format", "csv", "--set", "output.write_back=cluster").code == 0
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["obs/cluster/codes"][:], labels)
    assert (run / "labels.csv").read_text().startswith("row,obs_name,label,")


def test_write_back_is_for_anndata(tmp_path):
    """Other sources have no obs."""
    np.save(tmp_path / "x.npy", np.ones((4, 2)))
    with pytest.raises(
        InputError, match=r"output\.write_back: is for source anndata with output\.labels; got source npy"
    ):
        validate({"data": {"source": "npy", "path": str(tmp_path / "x.npy")}, "output": {"write_back": "cluster"}})
