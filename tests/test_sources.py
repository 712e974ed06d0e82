"""Each kind of source against an obvious reading in memory."""

import gzip
import itertools
import pickle
import struct
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_array, random_array
from sklearn.datasets import load_digits, load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

from pipeline.data import files, source, stores, text_lines
from pipeline.data.column import RowColumn
from pipeline.data.patch import patch_basis
from pipeline.data.source import Source, even_bounds
from pipeline.data.sources import docword, images
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate

rng = np.random.default_rng(0)


def read_all(rows: Source) -> np.ndarray:
    """Every row, checked chunk by chunk against what the source says of itself, after a trip through pickle."""
    packed = pickle.dumps(rows)
    assert len(packed) < 5000
    rows = pickle.loads(packed)
    chunks = [rows.read(i) for i in range(rows.n_chunks)]
    assert rows.bounds.dtype == np.int64 and rows.bounds[0] == 0 and (np.diff(rows.bounds) > 0).all()
    for chunk, n in zip(chunks, np.diff(rows.bounds), strict=True):
        assert chunk.shape == (n, rows.n_features) and chunk.dtype == rows.dtype
        assert rows.sparse or chunk.flags.c_contiguous
    assert all(isinstance(size, int) for size in rows.object_sizes())
    return np.concatenate([chunk.toarray() if rows.sparse else chunk for chunk in chunks])


def opened(**options: Any) -> Source:
    """A source from the options of the config's data section."""
    return validate({"data": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}}).data.open()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of about a kilobyte, so that small tables have many."""
    monkeypatch.setattr(source, "TARGET_BYTES", 1024)


# --- zarr


@given(n=st.integers(1, 10_000), step=st.integers(1, 3000))
def test_even_bounds(n: int, step: int) -> None:
    """Even bounds cover all rows in steps, the last of which may be shorter and is never empty."""
    sizes = np.diff(even_bounds(n, step))
    assert sizes.sum() == n and (sizes[:-1] == step).all() and 0 < sizes[-1] <= step


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "<f2", "f4", ">f8", ">i2"])
@pytest.mark.parametrize("chunks", [(7, 5), (50, 2), (1000, 5)])
def test_zarr_reads_what_was_written(tmp_path: Path, zarr_format: Any, dtype: str, chunks: tuple[int, int]) -> None:
    """Zarr arrays read back whatever their format, type, and chunks (ragged, or cut through the features)."""
    x = (rng.normal(size=(333, 5)) * 50).astype(dtype)
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=chunks, zarr_format=zarr_format)
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    np.testing.assert_array_equal(read_all(rows), x)
    assert rows.dtype.isnative and rows.dtype.kind != "b"
    assert (rows.bounds[:-1] % chunks[0] == 0).all()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("order", ["C", "F"])
def test_sharded_zarr_is_read_by_whole_shards(tmp_path: Path, order: Any) -> None:
    """Chunk bounds of a sharded array are bounds of shards, in either memory order."""
    x = rng.normal(size=(333, 4))
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(10, 2), shards=(40, 4), config={"order": order})
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    np.testing.assert_array_equal(read_all(rows), x)
    assert (rows.bounds[:-1] % 40 == 0).all() and len(rows.object_sizes()) == 9


@pytest.mark.parametrize("url", [False, True])
def test_zarr_group(tmp_path: Path, url: bool) -> None:
    """A group with one table needs no variable; with two it does, and the arrays are listed."""
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    a, b = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    group.create_array("a", data=a)
    group.create_array("label", data=np.arange(20))
    path = f"file://{tmp_path}/g.zarr" if url else tmp_path / "g.zarr"
    np.testing.assert_array_equal(read_all(opened(source="zarr", path=path)), a)
    group.create_array("deep/b", data=b)
    np.testing.assert_array_equal(read_all(opened(source="zarr", path=path, variable="deep/b")), b)
    group.create_array("c", data=b)
    with pytest.raises(InputError, match=r"a \(20, 3\), c \(20, 2\), label"):
        opened(source="zarr", path=path)
    with pytest.raises(InputError, match="no such array"):
        opened(source="zarr", path=path, variable="d")


def test_xarray_dataset(tmp_path: Path) -> None:
    """A variable that xarray wrote reads as xarray reads it; a packed one is refused rather than misread."""
    xarray = pytest.importorskip("xarray")
    x = rng.normal(size=(30, 4))
    dataset = xarray.Dataset({"x": (("row", "feature"), x)})
    dataset.to_zarr(tmp_path / "d.zarr", consolidated=False)
    np.testing.assert_array_equal(read_all(opened(source="zarr", path=tmp_path / "d.zarr")), x)
    for encoding in ({"scale_factor": 0.1, "dtype": "i2", "_FillValue": -1}, {"_FillValue": -9999.0}):
        dataset.to_zarr(tmp_path / "p.zarr", mode="w", consolidated=False, encoding={"x": encoding})
        with pytest.raises(InputError, match="expected plain values"):
            opened(source="zarr", path=tmp_path / "p.zarr", variable="x")


@pytest.mark.parametrize("sharded", [False, True])
def test_the_next_chunk_is_asked_for_while_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """The system is told which files come next; one that is absent is an error for its reader alone."""
    monkeypatch.setattr(source, "TARGET_BYTES", 400)
    x = np.arange(300.0).reshape(60, 5)
    shards = {"shards": (20, 5)} if sharded else {}
    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(10, 5), dtype=x.dtype, **shards)
    array[:] = x
    asked: list[str] = []
    monkeypatch.setattr(
        stores.os, "posix_fadvise", lambda file, *_: asked.append(stores.os.readlink(f"/proc/self/fd/{file}"))
    )
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    step = 20 if sharded else 10
    for i in range(rows.n_chunks):
        asked.clear()
        np.testing.assert_array_equal(rows.read(i), x[rows.bounds[i] : rows.bounds[i + 1]])
        start, stop = rows.bounds[i + 1], min(2 * rows.bounds[i + 1] - rows.bounds[i], len(x))
        expected = [expected_key(array, j) for j in range(start // step, -(-stop // step))]
        assert asked == [str(tmp_path / "x.zarr" / key) for key in expected]
    (tmp_path / "x.zarr" / expected_key(array, 1)).unlink()
    np.testing.assert_array_equal(rows.read(0), x[: rows.bounds[1]])


def expected_key(array: Any, j: int) -> str:
    """The file of the j-th stored chunk."""
    return str(array.metadata.encode_chunk_key((j, 0)))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("zarr_format", "sharded"), [(2, False), (3, False), (3, True)])
def test_missing_zarr_chunk(tmp_path: Path, zarr_format: Any, sharded: bool) -> None:
    """An absent chunk or shard is an error that names it, unless absent chunks are meant as fill values."""
    x = rng.normal(size=(300, 4))
    options: Any = {"chunks": (10, 4), "shards": (30, 4)} if sharded else {"chunks": (30, 4)}
    zarr.create_array(tmp_path / "x.zarr", data=x, fill_value=0, zarr_format=zarr_format, **options)
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    key = "c/2/0" if zarr_format == 3 else "2.0"
    (tmp_path / "x.zarr" / key).unlink()
    with pytest.raises(StorageError, match=f"chunk {key} is missing"):
        read_all(rows)
    x[60:90] = 0
    np.testing.assert_array_equal(read_all(opened(source="zarr", path=tmp_path / "x.zarr", missing_chunks="fill")), x)
    (tmp_path / "x.zarr").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match="could be opened before"):
        rows.read(0)


ZSTD, CHECKED = zarr.codecs.ZstdCodec(), zarr.codecs.ZstdCodec(checksum=True)


@pytest.mark.parametrize(
    ("options", "codecs"),
    [
        ({}, "zstd"),
        ({"compressors": CHECKED}, None),
        ({"compressors": CHECKED, "shards": (60, 4)}, None),
        ({"shards": (60, 4)}, "zstd"),
        ({"compressors": [zarr.codecs.BloscCodec()]}, "blosc"),
        ({"compressors": [ZSTD, zarr.codecs.Crc32cCodec()]}, None),
        ({"compressors": zarr.codecs.GzipCodec()}, None),
        ({"compressors": None}, "none"),
        ({"zarr_format": 2}, "zstd"),
        ({"zarr_format": 2, "compressors": numcodecs.Zstd(checksum=True)}, None),
        ({"zarr_format": 2, "filters": [numcodecs.Fletcher32()]}, None),
    ],
)
def test_what_flips_unnoticed_is_known(tmp_path: Path, options: Any, codecs: str | None) -> None:
    """Every flipped bit of a store is an error, or the store says of itself that none of its codecs looks for one."""
    x = rng.normal(size=(90, 4))
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(30, 2), **options)
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    said = rows.unprotected()
    assert said == (None if codecs is None else f"{tmp_path / 'x.zarr'} (codecs: {codecs})")
    chunks = [f for f in (tmp_path / "x.zarr").rglob("*") if f.is_file() and not f.name.startswith(("zarr.", ".z"))]
    stored, wrong = bytearray(chunks[0].read_bytes()), 0
    for at in range(0, len(stored), 41):
        chunks[0].write_bytes(stored[:at] + bytes([stored[at] ^ 16]) + stored[at + 1 :])
        try:
            wrong += not np.array_equal(read_all(rows), x)
        except StorageError as error:
            assert "x.zarr" in str(error)
    assert not wrong or said is not None


@pytest.mark.parametrize("kind", ["weights", "labels"])
def test_a_column_with_missing_chunks(tmp_path: Path, kind: str) -> None:
    """An absent chunk of weights or labels is named, unless absent chunks are meant; whatever the rows are stored in."""
    np.save(tmp_path / "x.npy", np.zeros((90, 2)))
    zarr.create_array(tmp_path / "column.zarr", data=np.ones(90), chunks=(30,), fill_value=0)
    (tmp_path / "column.zarr" / "c" / "1").unlink()
    path = str(tmp_path / "column.zarr")
    with pytest.raises(StorageError, match="chunk c/1 is missing"):
        RowColumn.open(path, 90, kind).read(0, 90)
    filled = RowColumn.open(path, 90, kind, missing_chunks="fill").read(0, 90)
    np.testing.assert_array_equal(filled, np.repeat([1.0, 0.0, 1.0], 30))
    assert opened(source="npy", path=tmp_path / "x.npy", weights=path, missing_chunks="fill").n_rows == 90
    with pytest.raises(InputError, match=r"data\.missing_chunks"):
        opened(source="npy", path=tmp_path / "x.npy", missing_chunks="fill")


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_damaged_zarr_chunk(tmp_path: Path, harm: str) -> None:
    """A flipped bit or a cut chunk is an error that names the chunk, where the codec has a checksum."""
    codec = zarr.codecs.ZstdCodec(checksum=True)
    zarr.create_array(tmp_path / "x.zarr", data=rng.normal(size=(90, 4)), chunks=(30, 2), compressors=codec)
    rows = opened(source="zarr", path=tmp_path / "x.zarr")
    chunk = tmp_path / "x.zarr" / "c" / "1" / "1"
    stored = bytearray(chunk.read_bytes())
    stored[len(stored) // 2] ^= 1
    chunk.write_bytes(stored if harm == "flip" else stored[:-9])
    with pytest.raises(StorageError, match="chunk c/1/1"):
        read_all(rows)


@pytest.mark.parametrize("x", [np.zeros(5), np.zeros((5, 2), complex), np.zeros((2, 2, 2)), np.zeros((0, 3))])
def test_unusable_tables_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    """What is not a real, two-dimensional, non-empty table is refused at opening with its dtype and shape."""
    zarr.create_array(tmp_path / "x.zarr", data=x)
    np.save(tmp_path / "x.npy", x)
    for kind in ("zarr", "npy"):
        with pytest.raises(InputError, match=rf"dtype {x.dtype} and shape \({x.shape[0]}"):
            opened(source=kind, path=tmp_path / f"x.{kind}")


def test_nothing_there(tmp_path: Path) -> None:
    """A path that leads nowhere is a mistake in the config, whatever the source."""
    for kind in ("zarr", "npy", "csv", "idx", "docword", "images"):
        with pytest.raises(InputError):
            opened(source=kind, path=tmp_path / "absent")


def test_options_of_other_sources_are_refused(tmp_path: Path) -> None:
    """An option that a source would not look at is refused, never ignored."""
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"data\.delimiter"):
        opened(source="npy", path=tmp_path / "x.npy", delimiter=",")


# --- npy, idx, text


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "u1", "<f2", ">f4", "f8"])
@pytest.mark.parametrize("url", [False, True])
def test_npy(tmp_path: Path, order: Any, dtype: str, url: bool) -> None:
    """npy files of either order and any byte order read as numpy.load reads them, locally and by URL."""
    x = np.asarray((rng.normal(size=(200, 6)) * 50).astype(dtype), order=order)
    np.save(tmp_path / "x.npy", x)
    rows = opened(source="npy", path=f"file://{tmp_path}/x.npy" if url else tmp_path / "x.npy")
    assert rows.n_chunks > 1 and rows.object_sizes() == [(tmp_path / "x.npy").stat().st_size]
    np.testing.assert_array_equal(read_all(rows), x)


def test_short_npy(tmp_path: Path) -> None:
    """A cut file is refused at opening; cut later, the read that meets its end says so."""
    np.save(tmp_path / "x.npy", rng.normal(size=(200, 6)))
    rows = opened(source="npy", path=tmp_path / "x.npy")
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(StorageError, match="chunk 0"):
        rows.read(0)
    with pytest.raises(StorageError, match="its header promises"):
        opened(source="npy", path=tmp_path / "x.npy")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("packed", ["no", "small", "large"])
@pytest.mark.parametrize(("code", "dtype"), [(0x08, "u1"), (0x0B, ">i2"), (0x0E, ">f8")])
def test_idx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, code: int, dtype: str) -> None:
    """IDX files flatten to rows; a large gzip is unpacked once into the cache, and the copy is used again."""
    x = (rng.normal(size=(50, 4, 6)) * 50).astype(dtype)
    content = struct.pack(">BBBB3I", 0, 0, code, 3, 50, 4, 6) + x.tobytes()
    path = tmp_path / ("x.idx" if packed == "no" else "x.idx.gz")
    path.write_bytes(content if packed == "no" else gzip.compress(content))
    cache = {"cache": tmp_path / "cache"} if packed == "large" else {}
    if packed == "large":
        monkeypatch.setattr(files, "GZIP_BYTES", 10)
    for _ in range(2):
        rows = opened(source="idx", path=path, **cache)
        np.testing.assert_array_equal(read_all(rows), x.reshape(50, 24))
        assert rows.describe() == {"kind": "image", "size": [4, 6]}
    assert len(list(tmp_path.glob("cache/*"))) == (packed == "large")
    if packed == "small":
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(StorageError, match=r"x\.idx\.gz"):
            read_all(opened(source="idx", path=path))


TEXTS = {
    "comma": "a,b\n1,2.5\n\n# note\n-3e1,nan\r\n5,\n",
    "semicolon": "1;2.5\n-3e1;nan\n5;\n",
    "tab": "1\t2.5\n-3e1\tnan\n5\t",
    "blanks": "  # x y\n  1   2.5\n -30 nan\n5 nan\n",
    "byte order mark": "\ufeff1,2.5\n-30,nan\n5,\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("rows_per_chunk", [1, 2, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows_per_chunk: int, packed: bool) -> None:
    """Delimiters and headers are found; comments and blank lines are no rows; empty cells are NaN."""
    monkeypatch.setattr(source, "TARGET_BYTES", 16 * rows_per_chunk)
    content = TEXTS[name].encode()
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = opened(source="csv", path=path)
    np.testing.assert_array_equal(read_all(rows), [[1, 2.5], [-30, np.nan], [5, np.nan]])
    assert rows.n_chunks == -(-3 // rows_per_chunk)


@given(
    lines=st.lists(st.sampled_from(["row", "", "  ", "#1,2", " # x"]), min_size=1, max_size=40),
    rows_per_chunk=st.integers(1, 9),
    block=st.integers(1, 30),
    header=st.booleans(),
    end=st.sampled_from(["", "\n", "\r\n"]),
)
def test_text_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], rows_per_chunk: int, block: int, header: bool, end: str
) -> None:
    """Rows do not depend on how the file falls into blocks and chunks."""
    cells = [f"{i},{i * i}" if line == "row" else line for i, line in enumerate(lines)]
    expected = [[i, i * i] for i, line in enumerate(lines) if line == "row"]
    path = tmp_path_factory.getbasetemp() / "pieces.csv"
    path.write_bytes(((end or "\n").join(["a,b"] * header + cells) + end).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "TARGET_BYTES", 16 * rows_per_chunk)
        patch.setattr(text_lines, "_BLOCK", block)
        if expected:
            np.testing.assert_array_equal(read_all(opened(source="csv", path=path)), expected)
        else:
            with pytest.raises(InputError, match="no rows"):
                opened(source="csv", path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# c\n1,2\n3,x\n", "line 3, column 2: got 'x'"),
        ("1,2\n3,4\n5\n", "line 3: has 1 columns, expected 2"),
        ("1024 32 0\n1 2\n", "first line has 3 columns, the next 2"),
        ("1,NA\n3,4\n", "line 1, column 2: got 'NA'"),
        ("a,b\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_bad_text(tmp_path: Path, content: str, message: str) -> None:
    """A cell that is no number, or a line of another length, is named by line and column."""
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_all(opened(source="csv", path=tmp_path / "x.csv"))


# --- counts


def write_docword(path: Path, x: csr_array) -> None:
    """A UCI bag-of-words file."""
    entries = x.tocoo()
    lines = [f"{d + 1} {w + 1} {c}\n" for d, w, c in zip(*entries.coords, entries.data, strict=True)]
    content = f"{x.shape[0]}\n{x.shape[1]}\n{x.nnz}\n{''.join(lines)}".encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["d.txt", "d.txt.gz"])
@pytest.mark.parametrize("block", [1000, 10**6])
def test_docword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    """Documents read as they were written, empty ones included, from a store that is made once, and again if it is damaged."""
    monkeypatch.setattr(docword, "_BLOCK", block)
    for density in (0.1, 0.2):
        x = random_array((300, 40), density=density, rng=1, format="csr", data_sampler=lambda size: 1 + np.arange(size))
        x = csr_array(x * (np.arange(300) % 7 > 0)[:, None], dtype=np.int64)
        x.eliminate_zeros()
        write_docword(tmp_path / name, x)
        rows = opened(source="docword", path=tmp_path / name)
        np.testing.assert_array_equal(read_all(rows), x.toarray())
        assert rows.n_chunks > 3 and rows.sparse and rows.describe() == {"kind": "document"}
    made = (tmp_path / f"{name}.csr.zarr" / "zarr.json").stat().st_mtime_ns
    opened(source="docword", path=tmp_path / name)
    assert (tmp_path / f"{name}.csr.zarr" / "zarr.json").stat().st_mtime_ns == made
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}.csr.zarr"]
    (tmp_path / f"{name}.csr.zarr" / "data" / "c" / "0").unlink()
    with pytest.raises(StorageError, match="data/c/0 is missing"):
        rows.read(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("2\n3\n2\n1 1 1\n2 4 1\n", "line 5: got '2 4 1'"),
        ("2\n3\n2\n1 1 1\n3 1 1\n", "line 5: got '3 1 1'"),
        ("2\n3\n2\n2 1 1\n1 1 1\n", "line 5: got '1 1 1', expected documents in increasing order"),
        ("2\n3\n2\n1 1 1\n2 1 -1\n", "line 5: got '2 1 -1'"),
        ("2\n3\n2\n1 1 1\n2 1\n", "line 5: got '2 1'"),
        ("2\n3\n2\n1 1 1 2\n1 2\n", "line 4: got '1 1 1 2'"),
        ("2\n3\n2\n1 1 1\n", "ends after 1 counts, line 3 promises 2"),
        ("2\n3\n1\n1 1 1\n2 1 1\n", "line 5: there is more"),
        ("2\nx\n1\n", "line 2: got 'x'"),
    ],
)
def test_bad_docword(tmp_path: Path, content: str, message: str) -> None:
    """A bad line is named with its number, and nothing is left behind."""
    (tmp_path / "d.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        opened(source="docword", path=tmp_path / "d.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["d.txt"]


def test_docword_beside_what_is_not_ours(tmp_path: Path) -> None:
    """A folder that bears the name of the converted store is never replaced."""
    write_docword(tmp_path / "d.txt", csr_array(np.eye(3, dtype=int)))
    (tmp_path / "d.txt.csr.zarr").mkdir()
    (tmp_path / "d.txt.csr.zarr" / "thesis").write_text("mine")
    with pytest.raises(InputError, match="is no converted store of ours"):
        opened(source="docword", path=tmp_path / "d.txt")
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(InputError, match=r"Set data\.cache"):
        opened(source="docword", path=tmp_path / "d.txt", cache=tmp_path / "folder")
    assert (tmp_path / "d.txt.csr.zarr" / "thesis").read_text() == "mine"


@pytest.mark.usefixtures("small_chunks")
def test_csr_zarr_in_anndata_layout(tmp_path: Path) -> None:
    """A CSR group of floats with unsorted, repeated indices reads as the matrix that it stands for."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w").create_group("X")
    indices = rng.integers(0, 50, 2000)
    indptr = np.append(np.sort(rng.integers(0, 2001, 300)), 2000)
    indptr[0] = 0
    data = rng.normal(size=2000)
    for name, array in {"data": data, "indices": indices, "indptr": indptr}.items():
        group.create_array(name, data=array, chunks=(100,))
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [300, 50]})
    rows = opened(source="zarr", path=tmp_path / "a.zarr", variable="X")
    expected = csr_array((data, indices, indptr), (300, 50)).toarray()
    np.testing.assert_allclose(read_all(rows), expected, rtol=1e-12, atol=1e-15)
    assert rows.n_chunks > 5 and rows.describe() == {"kind": "rows"}
    (tmp_path / "words").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 words, expected 50"):
        opened(source="zarr", path=tmp_path / "a.zarr", variable="X", vocabulary=tmp_path / "words")


# --- pictures


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, np.ndarray]:
    """A folder of pictures of several kinds and sizes, and their pixels from 0 to 1."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    grey = rng.integers(0, 256, (20, 31), dtype=np.uint8)
    deep = rng.integers(0, 65536, (9, 12), dtype=np.uint16)
    colour = rng.integers(0, 256, (40, 25, 3), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "b.png")
    Image.fromarray(deep).save(folder / "a.png")
    Image.fromarray(colour).save(folder / "c.bmp")
    (folder / "notes.txt").write_text("not a picture")
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    return {"a.png": deep / 65535, "b.png": grey / 255, "c.bmp": luma / 255}


@pytest.mark.parametrize("target", [100, 3000, 10**6])
def test_patches_are_those_of_scikit_learn(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, target: int
) -> None:
    """Patches equal scikit-learn's, pictures by name, however they fall into chunks."""
    monkeypatch.setattr(source, "TARGET_BYTES", target)
    patch = {"size": (4, 6), "remove_mean": False, "range": "container"}
    rows = opened(source="images", path=tmp_path / "pictures", patch=patch)
    expected = [extract_patches_2d(pixels, (4, 6)).reshape(-1, 24) for pixels in pictures.values()]
    np.testing.assert_allclose(read_all(rows), np.concatenate(expected), rtol=1e-6)
    found = rows.pictures()
    assert found is not None and found[0] == list(pictures)
    np.testing.assert_array_equal(found[1], np.cumsum([0] + [len(e) for e in expected[:-1]]))
    url = opened(source="images", path=f"file://{tmp_path}/pictures", patch=patch)
    np.testing.assert_array_equal(url.bounds, rows.bounds)
    np.testing.assert_array_equal(url.read(0), rows.read(0))


@pytest.mark.parametrize("target", [100, 3000])
@pytest.mark.parametrize("contrast", [None, 0.25])
def test_mean_free_patches(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, target: int, contrast: Any
) -> None:
    """Mean-free features map back to the pixels less their mean; contrast divides by the floored deviation."""
    monkeypatch.setattr(source, "TARGET_BYTES", target)
    patch = {"size": (4, 4), "stride": 3, "contrast": contrast, "range": "container"}
    rows = opened(source="images", path=tmp_path / "pictures", patch=patch)
    assert isinstance(rows, images.ImageSource)
    x = read_all(rows) @ patch_basis((4, 4)).T
    for row in range(0, rows.n_rows, 17):
        pixels = patch_of(row, rows, list(pictures.values()))
        scale = 1 if contrast is None else max(pixels.std(), contrast)
        np.testing.assert_allclose(x[row], (pixels - pixels.mean()) / scale, atol=1e-5)
    description = {"kind": "patch", "size": [4, 4], "channels": 1, "remove_mean": True, "contrast": contrast}
    assert rows.describe() == description


def patch_of(row: int, rows: Source, pictures: list[np.ndarray]) -> np.ndarray:
    """The pixels of a row: every third position of a 4 x 4 patch, across and then down."""
    _, starts = rows.pictures() or ([], np.zeros(1))
    picture = int(np.searchsorted(starts, row, side="right")) - 1
    down, across = divmod(row - int(starts[picture]), (pictures[picture].shape[1] - 4) // 3 + 1)
    return pictures[picture][3 * down : 3 * down + 4, 3 * across : 3 * across + 4].ravel()


@pytest.mark.parametrize("size", [(1, 2), (3, 3), (8, 8), (4, 6)])
def test_patch_basis(size: tuple[int, int]) -> None:
    """The basis is orthonormal and orthogonal to the constant patch."""
    basis = patch_basis(size)
    n = size[0] * size[1]
    assert basis.shape == (n, n - 1)
    np.testing.assert_allclose(basis.T @ basis, np.eye(n - 1), atol=1e-13)
    np.testing.assert_allclose(basis.sum(axis=0), 0, atol=1e-13)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=20), st.integers(1, 300))
def test_picture_bounds(grid: list[tuple[int, int]], target: int) -> None:
    """Chunks cover all rows, stay near the target, and cut a picture between rows of patches or not at all."""
    bounds = images._picture_bounds(np.array(grid), target)
    starts = np.append(0, np.cumsum([down * across for down, across in grid]))
    assert bounds[0] == 0 and bounds[-1] == starts[-1] and (np.diff(bounds) > 0).all()
    for start, stop in itertools.pairwise(bounds.tolist()):
        first = np.searchsorted(starts, start, side="right") - 1
        across = grid[first][1]
        assert (start - starts[first]) % across == 0
        assert stop - start <= max(target, across)
        if start != starts[first]:
            assert stop <= starts[first + 1]


def test_bad_pictures(tmp_path: Path, pictures: dict[str, np.ndarray]) -> None:
    """A picture smaller than a patch, and one that does not decode, are named."""
    folder = tmp_path / "pictures"
    with pytest.raises(InputError, match=r"a\.png: is 9 x 12 pixels"):
        opened(source="images", path=folder, patch={"size": (10, 10)})
    rows = opened(source="images", path=folder, patch={"range": "container"})
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[:-60])
    with pytest.raises(StorageError, match=r"b\.png"):
        read_all(rows)
    (folder / "b.png").write_bytes(b"not a picture")
    with pytest.raises(StorageError, match=r"b\.png"):
        opened(source="images", path=folder)
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(folder / "b.png")
    with pytest.raises(StorageError, match=r"b\.png"):
        read_all(rows)
    with pytest.raises(InputError, match="no pictures"):
        opened(source="images", path=tmp_path)


def test_bundled() -> None:
    """Digits and photographs are scikit-learn's."""
    np.testing.assert_array_equal(read_all(opened(source="bundled", path="digits")), load_digits().data)
    rows = opened(source="images", path="photographs", patch={"size": (8, 8), "remove_mean": False, "stride": 9})
    china = np.asarray(Image.fromarray(load_sample_images().images[0]).convert("L"))
    np.testing.assert_allclose(rows.read(0)[0].reshape(8, 8), china[:8, :8] / 255, rtol=1e-6)
    assert opened(source="bundled", path="photographs").n_rows == 531_720
    with pytest.raises(InputError, match="digits or photographs"):
        opened(source="bundled", path="iris")


# --- synthetic


COVARIANCES = [[[1, 0], [0, 9]], [[1, 0.8], [0.8, 1]]]
MIXTURE: dict[str, Any] = {"weights": [2 / 3, 1 / 3], "means": [[-2, 0], [2, 0]], "covariances": COVARIANCES}


def test_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have the moments of their components, and do not depend on chunks or on how many there are."""
    rows = opened(source="synthetic", n_rows=100_000, mixture=MIXTURE)
    x, weights, means = read_all(rows), np.array(MIXTURE["weights"]), np.array(MIXTURE["means"], float)
    mean = weights @ means
    between = (means - mean).T @ (weights[:, None] * (means - mean))
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), np.tensordot(weights, MIXTURE["covariances"], axes=1) + between, atol=0.15)
    apart = [
        {"weights": [1.0], "means": [mean], "covariances": [c]}
        for mean, c in zip(means.tolist(), COVARIANCES, strict=True)
    ]
    for mixture, covariance in zip(apart, COVARIANCES, strict=True):
        alone = read_all(opened(source="synthetic", n_rows=100_000, mixture=mixture))
        np.testing.assert_allclose(alone.mean(axis=0), mixture["means"][0], atol=0.05)
        np.testing.assert_allclose(np.cov(alone.T), covariance, atol=0.15)
    monkeypatch.setattr(source, "TARGET_BYTES", 100)
    fewer = opened(source="synthetic", n_rows=5000, mixture=MIXTURE)
    assert fewer.n_chunks == 2
    np.testing.assert_array_equal(read_all(fewer), x[:5000])
    other = opened(source="synthetic", n_rows=5000, mixture=MIXTURE, random_state=1, dtype="float32")
    assert other.dtype == np.float32 and not np.isclose(read_all(other), x[:5000]).all(axis=1).any()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [0.5, 0.6]},
        {"weights": [1.0]},
        {"means": [[0, 0], [0]]},
        {"covariances": [[[1, 2], [2, 1]]] * 2},
        {"covariances": [[[1, 0.5], [0, 1]]] * 2},
        {"covariances": [1, -1]},
        {"covariances": [[1, 2, 3]] * 2},
        {"covariances": ["a", "b"]},
    ],
)
def test_bad_mixture(change: dict[str, Any]) -> None:
    """A mixture that is none is refused, naming the part."""
    with pytest.raises(InputError, match=r"data\.mixture\.(weights|means|covariances)"):
        opened(source="synthetic", n_rows=10, mixture={**MIXTURE, **change})


# --- a column beside the rows


@pytest.mark.parametrize("kind", ["npy", "zarr", "group"])
def test_row_column(tmp_path: Path, kind: str) -> None:
    """A column reads any run of rows from npy, an array or a group, and must have one number a row."""
    x = rng.random(100).astype(">f4")
    path = tmp_path / ("w.npy" if kind == "npy" else "w.zarr")
    if kind == "npy":
        np.save(path, x)
    elif kind == "zarr":
        zarr.create_array(path, data=x, chunks=(30,))
    else:
        zarr.open_group(path, mode="w").create_array("weights", data=x)
    column = pickle.loads(pickle.dumps(RowColumn.open(str(path), 100, "weights")))
    np.testing.assert_array_equal(column.read(25, 70), x[25:70])
    assert column.read(0, 1).dtype.isnative
    with pytest.raises(InputError, match=r"shape \(100,\) as weights, expected .* 99 rows"):
        RowColumn.open(str(path), 99, "weights")
    if kind == "group":
        with pytest.raises(InputError, match="no array labels or label"):
            RowColumn.open(str(path), 100, "labels")


@pytest.mark.parametrize("dtype", ["i1", "i8", "u2", "f4", "?"])
@pytest.mark.parametrize("kind", ["npy", "zarr"])
@pytest.mark.usefixtures("small_chunks")
def test_labels_come_with_the_rows(tmp_path: Path, kind: str, dtype: str) -> None:
    """One int64 a row of each chunk, beside weights and bad rows; of any type that holds whole numbers."""
    x = rng.normal(size=(300, 3))
    x[7, 1] = np.nan
    known = (np.arange(300) % 5 - (dtype in ("i1", "i8", "f4"))).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    (np.save if kind == "npy" else write_column)(tmp_path / f"y.{kind}", known)
    data = {"source": "npy", "path": str(tmp_path / "x.npy"), "labels": str(tmp_path / f"y.{kind}")}
    chunks = pickle.loads(pickle.dumps(validate({"data": data}).data.open_chunks()))
    loaded = [chunks.load(i) for i in range(chunks.n_chunks)]
    assert len(loaded) > 3 and all(each.label.dtype == np.int64 for each in loaded)
    np.testing.assert_array_equal(np.concatenate([each.label for each in loaded]), known.astype(int))
    assert loaded[0].label[7] == known[7] and loaded[0].weight[7] == 0
    without = validate({"data": {**data, "labels": None}}).data.open_chunks()
    assert without.load(0).label is None and without.load(0).nbytes == loaded[0].nbytes - 8 * len(loaded[0].label)
    known[17] += 1
    (np.save if kind == "npy" else write_column)(tmp_path / f"y.{kind}", known)
    prints = [each.fingerprint()["sha256"] for each in (chunks, without, without.raw())]
    assert prints[0] != prints[1] == prints[2]


def write_column(path: Path, values: np.ndarray) -> None:
    """A zarr array."""
    zarr.create_array(path, data=values, chunks=(70,), overwrite=True)


@pytest.mark.parametrize(
    ("value", "said"), [(-2, r"-2\.0"), (1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf"), (1e19, r"1e\+19")]
)
@pytest.mark.usefixtures("small_chunks")
def test_labels_that_are_none_are_refused(tmp_path: Path, value: float, said: str) -> None:
    """The first row that has no whole number from -1 is named."""
    labels = np.zeros(300)
    labels[[123, 200]] = value
    np.save(tmp_path / "x.npy", np.zeros((300, 3)))
    np.save(tmp_path / "y.npy", labels)
    chunks = validate(
        {"data": {"source": "npy", "path": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}}
    ).data.open_chunks()
    with pytest.raises(InputError, match=rf"data\.labels: row 123 has label {said}, expected an integer from 0, or -1"):
        [chunks.load(i) for i in range(chunks.n_chunks)]
    np.save(tmp_path / "y.npy", labels[1:])
    with pytest.raises(InputError, match="as labels, expected one number for each of the 300 rows"):
        validate(
            {"data": {"source": "npy", "path": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}}
        ).data.open_chunks()


# --- real data


def test_real_tables(shared: Path) -> None:
    """MNIST, Old Faithful and S1 have the counts and means that their list of sources gives."""
    digits = read_all(opened(source="idx", path=shared / "mnist" / "t10k-images-idx3-ubyte.gz"))
    assert digits.shape == (10_000, 784) and round(float(digits.mean()), 4) == 33.7912
    geyser = read_all(opened(source="csv", path=shared / "faithful.csv"))
    np.testing.assert_allclose(geyser.mean(axis=0), [3.48778, 70.8971], rtol=1e-5)
    assert geyser.shape == (272, 2)
    assert read_all(opened(source="csv", path=shared / "clustering" / "s1.data.gz")).shape == (5000, 2)


def test_real_documents(shared: Path, tmp_path: Path) -> None:
    """KOS has the documents, words and tokens that its list of sources gives."""
    rows = opened(
        source="docword",
        path=shared / "bow" / "docword.kos.txt.gz",
        vocabulary=shared / "bow" / "vocab.kos.txt",
        cache=tmp_path,
    )
    x = rows.read(0)
    assert (rows.n_rows, rows.n_features, rows.n_chunks) == (3430, 6906, 1)
    assert (x.nnz, x.sum(), x.data.min(), x.data.max()) == (353_160, 467_714, 1, 43)
    assert len(set(rows.vocabulary() or [])) == 6906


def test_real_pictures(shared: Path) -> None:
    """Train400 is 400 pictures of 180 x 180 pixels."""
    rows = opened(source="images", path=shared / "images" / "train400", patch={"stride": 8})
    assert rows.n_rows == 400 * 22 * 22 and len(rows.object_sizes()) == 400
