"""Parquet files against pandas and pyarrow, which read them whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

import pipeline
from pipeline.data import source
from pipeline.data.chunks import Chunks
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from tests.jobs import blobs, job, results

rng = np.random.default_rng(0)


def chunks_of(path: object, **options: Any) -> Chunks:
    """The chunks of the data section."""
    return validate({"data": {"source": "parquet", "path": str(path), **options}}).data.open_chunks()


def read_all(chunks: Chunks) -> np.ndarray:
    """Every row, after a trip through pickle, checked against what the source says of itself."""
    rows = pickle.loads(pickle.dumps(chunks.source))
    assert rows.bounds.dtype == np.int64 and (np.diff(rows.bounds) > 0).all()
    found = [rows.read(i) for i in range(rows.n_chunks)]
    for x, n in zip(found, np.diff(rows.bounds), strict=True):
        assert x.shape == (n, rows.n_features) and x.dtype == rows.dtype and x.flags.c_contiguous
    return np.concatenate(found)


def table(n: int, kinds: dict[str, str]) -> pd.DataFrame:
    """Columns of these dtypes, with numbers that all of them hold."""
    return pd.DataFrame(
        {name: rng.integers(0, 2 if kind == "bool" else 100, n).astype(kind) for name, kind in kinds.items()}
    )


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ({"a": "float64", "b": "float64"}, "float64"),
        ({"a": "float32", "b": "int16", "c": "bool", "d": "uint8"}, "float32"),
        ({"a": "float16", "b": "int8"}, "float32"),
        ({"a": "bool"}, "float32"),
        ({"a": "float32", "b": "int32"}, "float64"),
        ({"a": "int64", "b": "uint64", "with.dot": "float32"}, "float64"),
    ],
)
@pytest.mark.parametrize("group", [7, 100, 1000])
def test_columns_read_as_pandas_reads_them(tmp_path: Path, monkeypatch, kinds, dtype, group) -> None:
    """Numbers of any type, in the narrowest float that holds all of them, in chunks of whole row groups."""
    monkeypatch.setattr(source, "TARGET_BYTES", 1024)
    frame = table(333, kinds)
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=group)
    chunks = chunks_of(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read_all(chunks), pd.read_parquet(tmp_path / "x.parquet").to_numpy(np.float64))
    assert chunks.source.dtype == dtype and chunks.source.describe() == {"kind": "rows", "features": list(kinds)}
    assert set(chunks.source.bounds[:-1] % group) == {0}
    target = max(group, 1024 // (len(kinds) * chunks.source.dtype.itemsize))
    assert np.diff(chunks.source.bounds).max() <= target
    assert chunks.n_chunks == 1 if group == 1000 else chunks.n_chunks > 1


@pytest.mark.parametrize("kind", ["float64", "float16", "int32", "bool", "uint64"])
@pytest.mark.parametrize("some", [1, 8 * 2**20])
def test_a_null_is_a_bad_row(tmp_path: Path, monkeypatch, kind, some) -> None:
    """Whatever the type of its column, and however many columns are read at a time."""
    values = table(50, {"a": kind, "b": "float64"})
    columns = {"a": pa.array(values["a"].to_numpy(), mask=np.arange(50) % 7 == 3), "b": pa.array(values["b"])}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=20)
    chunks = chunks_of(tmp_path / "x.parquet")
    monkeypatch.setattr(source, "TARGET_BYTES", some)
    chunk = chunks.load(0)
    np.testing.assert_array_equal(chunk.bad, np.arange(50) % 7 == 3)
    np.testing.assert_array_equal(chunk.x[~chunk.bad], values.to_numpy(np.float64)[~chunk.bad])


@pytest.mark.parametrize("path", ["", "*.parquet", "**/*.parquet", "file://", "file://*/*.parquet"])
def test_files_of_a_folder_follow_one_another(tmp_path: Path, monkeypatch, path) -> None:
    """By name, small ones together in a chunk; what is no data is left out, and an empty file adds nothing."""
    monkeypatch.setattr(source, "TARGET_BYTES", 400)
    folder = tmp_path / "rows"
    folder.mkdir()
    frames = [table(n, {"a": "float64", "b": "float64"}) for n in (5, 9, 0, 60, 1)]
    for i, frame in enumerate(frames):
        frame.to_parquet(folder / f"part-{i}.parquet", row_group_size=10)
    for name in ("_metadata.parquet", ".hidden.parquet", "notes.txt"):
        (folder / name).write_text("no rows")
    where = {
        "": str(folder),
        "file://": f"file://{folder}",
        "file://*/*.parquet": f"file://{tmp_path}/*/*.parquet",
        "**/*.parquet": str(tmp_path / "**" / "*.parquet"),
    }
    chunks = chunks_of(where.get(path, str(folder / path)))
    np.testing.assert_array_equal(read_all(chunks), pd.concat(frames).to_numpy())
    assert chunks.source.bounds.tolist() == [0, 24, 44, 64, 75] and len(chunks.source.object_sizes()) == 5


def test_pandas_index_is_no_feature(tmp_path: Path) -> None:
    """Neither one that is stored as a column nor one that is not; named, it is a column like any other."""
    frame = table(30, {"a": "float64"}).set_index(pd.Index(rng.permutation(30), name="id"))
    frame.to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read_all(chunks_of(tmp_path / "x.parquet")), frame.to_numpy())


@pytest.mark.parametrize("beside", [{}, {"columns": ["b", "a"]}])
def test_weights_and_labels_are_columns_or_files(tmp_path: Path, monkeypatch, beside) -> None:
    """A column of that name comes first; it is no feature, and an unknown label may be null."""
    monkeypatch.setattr(source, "TARGET_BYTES", 400)
    frame = table(100, {"a": "float64", "w": "float32", "b": "float64"})
    label = np.where(rng.uniform(size=100) < 0.3, -1, rng.integers(0, 5, 100))
    columns = {name: pa.array(frame[name]) for name in frame} | {"y": pa.array(label, mask=label == -1)}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=13)
    np.save(tmp_path / "y.npy", label)
    chunks = chunks_of(tmp_path / "x.parquet", weights="w", labels="y", **beside)
    assert chunks.n_chunks > 2
    loaded = [chunks.load(i) for i in range(chunks.n_chunks)]
    wanted = ["b", "a"] if beside else ["a", "b"]
    np.testing.assert_array_equal(np.concatenate([each.x for each in loaded]), frame[wanted])
    np.testing.assert_array_equal(np.concatenate([each.weight for each in loaded]), frame["w"])
    np.testing.assert_array_equal(np.concatenate([each.label for each in loaded]), label)
    np.testing.assert_array_equal(chunks.weights.read(20, 47), frame["w"][20:47])
    filed = chunks_of(tmp_path / "x.parquet", columns=["a", "b"], labels=str(tmp_path / "y.npy"))
    np.testing.assert_array_equal(filed.load(1).label, label[slice(*filed.rows(1))])
    with pytest.raises(
        InputError, match=r"data\.weights: got 'v', expected a column \(a, w, b, y\) or a path that exists"
    ):
        chunks_of(tmp_path / "x.parquet", columns=["a"], weights="v")


DATES = pd.date_range("2020", periods=4)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"name": list("abcd")}, "column 'name' has type (large_)?string"),
    "category": ({"name": pd.Categorical(list("abca"))}, "column 'name' has type dictionary"),
    "time": ({"name": DATES}, "column 'name' has type timestamp"),
    "decimal": (
        {"name": pa.array([1, 2, 3, 4]).cast(pa.decimal128(24, 2))},
        r"column 'name' has type decimal128\(24, 2\)",
    ),
    "list": ({"name": [[1.0]] * 4}, "column 'name' has type list"),
    "record": ({"name": [{"a": 1}] * 4}, "column 'name' has type struct"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, name) -> None:
    """With the columns that could be used; once they are named, the others may hold anything."""
    columns, said = REFUSED[name]
    arrays = {
        "x": pa.array([1.0, 2, 3, 4]),
        **{key: pa.array(value) for key, value in columns.items()},
        "z": pa.array([4, 3, 2, 1]),
    }
    pq.write_table(pa.table(arrays), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=rf"{said}.*name the columns to use, such as data\.columns: \[x, z\]"):
        chunks_of(tmp_path / "x.parquet")
    np.testing.assert_array_equal(
        read_all(chunks_of(tmp_path / "x.parquet", columns=["z", "x"])), [[4, 1], [3, 2], [2, 3], [1, 4]]
    )
    with pytest.raises(InputError, match=f"{said}.*or leave it out"):
        chunks_of(tmp_path / "x.parquet", columns=["x", "name"])
    with pytest.raises(InputError, match=said):
        chunks_of(tmp_path / "x.parquet", columns=["x"], labels="name")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["a", "lenght"], "got 'lenght', which is no column of .*; did you mean length"),
        (["a", "q"], "got 'q', which is no column of .*, expected one of a, length"),
        (["a", "a"], "got 'a' twice"),
        ([], "data.columns: got \\[\\], expected a list"),
    ],
)
def test_names_that_are_no_columns_are_refused(tmp_path: Path, columns, said) -> None:
    """With the nearest name."""
    table(5, {"a": "float64", "length": "float64"}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=said):
        chunks_of(tmp_path / "x.parquet", columns=columns)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"a": "float64", "b": "float32"}, "1.parquet: column 'b': got float, expected double as in .*0.parquet"),
        ({"a": "float64"}, "1.parquet: column 'b': got no such column, expected double"),
        ({"a": "float64", "b": "float64", "c": "int8"}, "1.parquet: column 'c': got int8, expected no such column"),
    ],
)
def test_files_that_differ_are_refused_by_name(tmp_path: Path, kinds, said) -> None:
    """Of columns that are named these alone have to be the same."""
    table(5, {"a": "float64", "b": "float64"}).to_parquet(tmp_path / "0.parquet")
    table(5, kinds).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(InputError, match=said):
        chunks_of(tmp_path)
    assert chunks_of(tmp_path, columns=["a"]).n_rows == 10


def test_statistics_of_row_groups_are_not_believed(tmp_path: Path) -> None:
    """A file without them reads as one that has them, nulls included."""
    values = pa.table({"a": pa.array([1.0, None, 3.0])})
    for name, written in (("with", True), ("without", False)):
        pq.write_table(values, tmp_path / f"{name}.parquet", write_statistics=written)
    first, other = (chunks_of(tmp_path / f"{name}.parquet").load(0) for name in ("with", "without"))
    np.testing.assert_array_equal(first.x, other.x)
    np.testing.assert_array_equal(first.bad, other.bad)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    """With what it is, where that is known; a cut file is damaged, and so is one whose pages do not have their checksums."""
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    (tmp_path / "text.parquet").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    for path, said in (
        ("x.npy", "set data.source to npy"),
        ("text.parquet", "is no parquet or Arrow file"),
        ("empty", "has no parquet or Arrow files"),
        ("nothing-*.parquet", "has no parquet or Arrow files"),
        ("nothing.parquet", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            chunks_of(tmp_path / path)
    table(0, {"a": "float64"}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="has no rows"):
        chunks_of(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"a": rng.normal(size=500)}), tmp_path / "x.parquet", write_page_checksum=True)
    chunks = chunks_of(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with pytest.raises(StorageError, match=r"x\.parquet"):
        chunks.source.read(0)
    (tmp_path / "x.parquet").write_bytes(whole[:2000])
    with pytest.raises(StorageError, match="does not end as one"):
        chunks_of(tmp_path / "x.parquet")
    with pytest.raises(StorageError, match=r"x\.parquet"):
        chunks.source.read(0)
    pq.write_table(pa.table({"b": rng.normal(size=500)}), tmp_path / "x.parquet")
    with pytest.raises(StorageError, match=r"x\.parquet"):
        chunks.source.read(0)
    pq.write_table(pa.table({"a": rng.normal(size=400)}), tmp_path / "x.parquet")
    with pytest.raises(StorageError, match="has 400 rows, 500 when it was opened"):
        chunks.source.read(0)
    pq.write_table(pa.table([[1.0], [2.0]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="several named 'a'"):
        chunks_of(tmp_path / "twice.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'em-pipeline\[parquet\]'"):
        chunks_of(tmp_path / "x.parquet")


def test_a_fit_to_parquet_is_that_to_the_same_rows_in_npy(tmp_path: Path) -> None:
    """The same bits where chunks are the same."""
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    pd.DataFrame(x, columns=list("abc")).to_parquet(tmp_path / "x.parquet")
    pipeline.run(job(tmp_path / "x.npy"), tmp_path / "npy")
    data = {"source": "parquet", "path": str(tmp_path / "x.parquet")}
    pipeline.run(job(tmp_path / "x.npy", data=data), tmp_path / "parquet")
    one, other = results(tmp_path / "npy"), results(tmp_path / "parquet")
    differ = {key for key in one if one[key] != other.get(key)}
    assert differ <= {"model.zarr/zarr.json"}  # which names the features


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_arrow_files_read_as_parquet_files_do(tmp_path: Path, monkeypatch, compression: str) -> None:
    """Feather, by record batch: types, nulls, categories, the index of pandas, weights and a folder of both kinds."""
    monkeypatch.setattr(source, "TARGET_BYTES", 400)
    frame = table(90, {"a": "float32", "b": "int16", "c": "bool"}).assign(kind=pd.Categorical(list("xyz") * 30))
    frame["w"] = np.arange(90.0)
    frame = frame.set_index(pd.Index(rng.permutation(90), name="id"))
    feather.write_feather(frame, tmp_path / "x.feather", compression=compression, chunksize=11)
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=11)
    options = {"columns": ["a", "c", "b", "kind"], "categories": ["kind"], "weights": "w"}
    ours, theirs = (chunks_of(tmp_path / f"x.{kind}", **options) for kind in ("feather", "parquet"))
    np.testing.assert_array_equal(read_all(ours), read_all(theirs))
    assert ours.source.describe() == theirs.source.describe() and ours.n_chunks == theirs.n_chunks > 1
    np.testing.assert_array_equal(ours.load(1).weight, theirs.load(1).weight)
    both = chunks_of(tmp_path, columns=["a", "b"])
    assert both.n_rows == 180
    nulls = pa.table({"a": pa.array([1.0, None, 3.0]), "b": pa.array([1, 2, None])})
    feather.write_feather(nulls, tmp_path / "nulls.arrow", compression=compression)
    assert chunks_of(tmp_path / "nulls.arrow").load(0).bad.tolist() == [False, True, True]


def test_damaged_arrow_files_are_named(tmp_path: Path) -> None:
    """Cut short, or changed after it was opened."""
    frame = table(200, {"a": "float64", "b": "float64"})
    path = tmp_path / "x.feather"
    feather.write_feather(frame, path, compression="uncompressed")
    whole, chunks = path.read_bytes(), chunks_of(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match=r"x\.feather"):
        chunks.source.read(0)
    with pytest.raises(StorageError, match="begins as an Arrow file and does not end as one"):
        chunks_of(path)
    path.write_bytes(b"FEA1 of long ago")
    with pytest.raises(InputError, match="is no parquet or Arrow file"):
        chunks_of(path)
