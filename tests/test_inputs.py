"""Every way in, against NumPy read by hand: sources x dtypes x layouts x oddities. Equal, or refused with a sentence; never
silently different.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
import zarr
from dask import delayed
from PIL import Image, ImageOps

from pipeline import GaussianMixture, KMeans, MultinomialMixture, workflow
from pipeline.data.chunks import Chunks
from pipeline.data.source import TARGET_BYTES
from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.estimators.rows import input_rows
from pipeline.jobconfig import validate

N, D = 23, 3
REFUSALS = (PipelineError, ValueError, TypeError)


def rows_of(dtype: str) -> np.ndarray:
    """Small whole numbers that every dtype of numbers holds, with zeros among them, (N, D)."""
    x = np.random.default_rng(7).integers(0, 100, (N, D)) * (np.arange(N * D).reshape(N, D) % 4 > 0)
    return x.astype(dtype)


def opened(folder: Path, source: str, name: str, **options: Any) -> Chunks:
    """The chunks of a file or store, as the command opens them."""
    return validate({"data": {"source": source, "path": str(folder / name), **options}}).data.open_chunks()


def values(x: Any) -> np.ndarray:
    """Rows as float64, dense."""
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)


def loaded(chunks: Chunks) -> np.ndarray:
    """All rows as models see them; bad ones are NaN again."""
    found = []
    for i in range(chunks.n_chunks):
        rows = chunks.load(i)
        x = values(rows.x).copy()
        if rows.bad is not None:
            assert rows.weight is not None and (rows.weight[rows.bad] == 0).all()
            x[rows.bad] = np.nan
        found.append(x)
    return np.concatenate(found)


def seen(x: Any, kind: type = KMeans) -> np.ndarray:
    """Rows as the Python classes see them: the chunks of a fit, which have to equal the blocks of a prediction."""
    table = input_rows(kind(), x, reset=True, dense=False, counts=kind is MultinomialMixture)
    of_fit = loaded(Chunks(table.source()))
    of_prediction = values(table.map(values, of_fit.shape[1], np.float64, "feature"))
    np.testing.assert_array_equal(of_prediction, of_fit)
    return of_fit


# --- ways in, by name: each writes or wraps the rows and gives them back as they are read

Way = Callable[[np.ndarray, Path], np.ndarray]


def npy(order: Any) -> Way:
    """A .npy file."""

    def way(x: np.ndarray, folder: Path) -> np.ndarray:
        np.save(folder / "x.npy", np.asarray(x, order=order))
        return loaded(opened(folder, "npy", "x.npy"))

    return way


def stored(**layout: Any) -> Way:
    """A zarr array."""

    def way(x: np.ndarray, folder: Path) -> np.ndarray:
        zarr.create_array(folder / "x.zarr", data=x, **layout)
        return loaded(opened(folder, "zarr", "x.zarr"))

    return way


def dataset(zarr_format: Any) -> Way:
    """A variable that xarray wrote."""

    def way(x: np.ndarray, folder: Path) -> np.ndarray:
        variable = xr.Dataset({"x": (("row", "feature"), x)})
        variable.to_zarr(folder / "x.zarr", zarr_format=zarr_format, consolidated=False)
        return loaded(opened(folder, "zarr", "x.zarr"))

    return way


def write_csr(folder: Path, x: sp.csr_array, zarr_format: Any = 3) -> Path:
    """A CSR matrix in anndata's layout."""
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(x.shape)}
    group = zarr.open_group(folder / "x.zarr", mode="w", zarr_format=zarr_format)
    group.attrs.update(attributes)
    for name in ("data", "indices", "indptr"):
        group.create_array(name, data=getattr(x, name))
    return folder / "x.zarr"


def sparse_store(zarr_format: Any) -> Way:
    """A CSR matrix in zarr."""

    def way(x: np.ndarray, folder: Path) -> np.ndarray:
        write_csr(folder, sp.csr_array(x), zarr_format)
        return loaded(opened(folder, "zarr", "x.zarr"))

    return way


def text(delimiter: str, header: bool) -> Way:
    """A table in text."""

    def way(x: np.ndarray, folder: Path) -> np.ndarray:
        lines = [delimiter.join(f"c{j}" for j in range(x.shape[1]))] * header
        lines += [delimiter.join(str(v) for v in row) for row in x]
        (folder / "x.csv").write_text("\n".join(lines) + "\n")
        return loaded(opened(folder, "csv", "x.csv"))

    return way


def idx(x: np.ndarray, folder: Path) -> np.ndarray:
    """A file in the format of MNIST, which has five types; others cannot be written."""
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    if x.dtype.str[1:] not in codes:
        raise TypeError("not a type of the format")
    big = x.astype(x.dtype.newbyteorder(">"))
    header = bytes([0, 0, codes[x.dtype.str[1:]], x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
    (folder / "x.idx").write_bytes(header + big.tobytes())
    return loaded(opened(folder, "idx", "x.idx"))


def parquet(x: np.ndarray, folder: Path) -> np.ndarray:
    """A parquet file of several row groups; the format has one byte order."""
    x = x.astype(x.dtype.newbyteorder("="))
    pd.DataFrame(x, columns=list("abc")).to_parquet(folder / "x.parquet", row_group_size=7)
    return loaded(opened(folder, "parquet", "x.parquet"))


def memory(wrap: Callable[[np.ndarray], Any], kind: type = KMeans) -> Way:
    """Rows that are handed to a Python class."""
    return lambda x, folder: seen(wrap(x), kind)


def blocks(x: np.ndarray, of: Any) -> Any:
    """A Dask array of sparse blocks."""
    meta = of(np.zeros((0, D), x.dtype))
    return da.from_array(x, chunks=(10, D)).map_blocks(of, dtype=x.dtype, meta=meta)


def strided(x: np.ndarray) -> np.ndarray:
    """The same rows, neither C- nor Fortran-contiguous."""
    wide = np.zeros((2 * N, 2 * D), x.dtype)
    wide[::2, ::2] = x
    return wide[::2, ::2]


def opened_zarr(x: np.ndarray, folder: Path) -> np.ndarray:
    """A zarr array that a program has opened."""
    zarr.create_array(folder / "x.zarr", data=x, chunks=(5, 2))
    return seen(zarr.open_array(folder / "x.zarr", mode="r"))


WAYS: dict[str, Way] = {
    "npy": npy("C"),
    "npy by columns": npy("F"),
    "zarr 2": stored(zarr_format=2),
    "zarr 2 by columns": stored(zarr_format=2, order="F", chunks=(7, 2)),
    "zarr 3": stored(),
    "zarr 3 ragged": stored(chunks=(7, 2)),
    "zarr 3 shards": stored(chunks=(3, 1), shards=(9, 2)),
    "xarray's zarr 2": dataset(2),
    "xarray's zarr 3": dataset(3),
    "CSR in zarr 2": sparse_store(2),
    "CSR in zarr 3": sparse_store(3),
    "csv": text(",", False),
    "csv with a header": text(",", True),
    "tabs": text("\t", False),
    "blanks": text(" ", True),
    "idx": idx,
    "parquet": parquet,
    "NumPy": memory(lambda x: x),
    "NumPy by columns": memory(np.asfortranarray),
    "NumPy, strided": memory(strided),
    "DataFrame": memory(lambda x: pd.DataFrame(x, columns=list("abc"))),
    "csr_array": memory(sp.csr_array, MultinomialMixture),
    "csr_matrix": memory(sp.csr_matrix, MultinomialMixture),
    "csc_array": memory(sp.csc_array, MultinomialMixture),
    "coo_matrix": memory(sp.coo_matrix, MultinomialMixture),
    "Dask": memory(lambda x: da.from_array(x, chunks=(10, D))),
    "Dask, cut through the features": memory(lambda x: da.from_array(x, chunks=(8, 2))),
    "Dask of csr_array": memory(lambda x: blocks(x, sp.csr_array), MultinomialMixture),
    "Dask of csr_matrix": memory(lambda x: blocks(x, sp.csr_matrix), MultinomialMixture),
    "Dask of csc_matrix": memory(lambda x: blocks(x, sp.csc_matrix), MultinomialMixture),
    "Dask DataFrame": memory(lambda x: dd.from_pandas(pd.DataFrame(x, columns=list("abc")), npartitions=3)),
    "xarray": memory(lambda x: xr.DataArray(x, dims=("row", "feature"))),
    "xarray of Dask": memory(lambda x: xr.DataArray(da.from_array(x, chunks=(10, D)), dims=("row", "feature"))),
    "an open zarr array": opened_zarr,
}
NUMBERS = ["?", "u1", "i1", "u2", ">i2", "i4", "i8", "u8", "f2", "f4", ">f8"]
OTHERS = ["c8", "M8[s]", "U3", "O"]
SWAPPED = {dtype for dtype in NUMBERS if dtype[0] == ">"}


def cannot(way: str) -> set[str]:
    """What a format or a library itself does not hold."""
    if way in ("tabs", "blanks") or "csv" in way:
        return {"?"}
    if way == "idx":
        return {"?", "u2", "i8", "u8", "f2"}
    return {"f2", *SWAPPED} if "cs" in way.lower() or "coo" in way else set()


def said(error: BaseException) -> None:
    """A refusal says something that a person can read."""
    assert len(str(error)) > 20 and " " in str(error), error


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_read_as_numpy_holds_them(tmp_path, way, dtype):
    """Every way in gives the values that NumPy holds, whatever their type, byte order and layout."""
    x = rows_of(dtype)
    try:
        found = WAYS[way](x, tmp_path)
    except REFUSALS as error:
        if dtype not in cannot(way):
            raise
        said(error)
    else:
        np.testing.assert_array_equal(found, x.astype(np.float64))


@pytest.mark.parametrize(
    ("way", "dtype"),
    [(way, dtype) for way in WAYS for dtype in OTHERS if (way, dtype) != ("parquet", "c8")],  # which cannot be written
)
@pytest.mark.filterwarnings(
    "ignore::zarr.errors.UnstableSpecificationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_what_is_no_number_is_refused_or_read_as_the_number_it_is(tmp_path, way, dtype):
    """Complex numbers, times, text and objects are refused with a sentence; text and objects that are numbers may be read."""
    x = rows_of("i4").astype(dtype)
    try:
        found = WAYS[way](x, tmp_path)
    except REFUSALS as error:
        said(error)
    else:
        assert dtype in ("U3", "O") or "csv" in way or way in ("tabs", "blanks"), "read as something else"
        np.testing.assert_array_equal(found, rows_of("f8"))


# --- oddities of rows: what must come of each way that can hold it


def odd(value: float, dtype: str = "f8") -> np.ndarray:
    """Rows, one of whose values is this."""
    x = rows_of(dtype)
    x[11, 1] = value
    return x


FILES = ["npy", "npy by columns", "zarr 2", "zarr 3", "zarr 3 shards", "CSR in zarr 3", "csv", "tabs", "idx", "parquet"]
LAZY = [
    "Dask",
    "Dask, cut through the features",
    "Dask of csr_array",
    "Dask of csr_matrix",
    "Dask DataFrame",
    "xarray of Dask",
]
LOADED = ["NumPy", "DataFrame", "csr_array", "csr_matrix", "xarray"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", FILES)
def test_a_row_of_a_file_without_a_finite_value_is_a_bad_row(tmp_path, way, value):
    """It is set aside, with weight 0, and no other row is."""
    expected = rows_of("f8")
    expected[11] = np.nan
    np.testing.assert_array_equal(WAYS[way](odd(value), tmp_path), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", [*LAZY, *LOADED, "an open zarr array"])
def test_a_row_without_a_finite_value_is_refused_in_python(tmp_path, way, value):
    """By NumPy and Dask alike: never a label."""
    with pytest.raises(ValueError, match=r"(?i)nan|inf"):
        WAYS[way](odd(value), tmp_path)


@pytest.mark.parametrize(
    "way", [name for name in WAYS if "cs" in name.lower() and "csv" not in name and "zarr" not in name]
)
def test_negative_counts_are_refused_in_python(tmp_path, way):
    """By NumPy and Dask alike."""
    with pytest.raises(ValueError, match=r"(?i)negative|lowest value is -1"):
        WAYS[way](odd(-1), tmp_path)


def repeated(dtype: str) -> tuple[sp.csr_array, np.ndarray]:
    """A matrix with each entry stored twice, unsorted, and what it stands for."""
    x = sp.csr_array(rows_of("f8"))
    ends = zip(x.indptr[:-1], x.indptr[1:], strict=True)
    order = np.concatenate([np.tile(np.arange(a, b)[::-1], 2) for a, b in ends])
    twice = sp.csr_array((x.data[order].astype(dtype), x.indices[order], 2 * x.indptr), x.shape)
    return twice, 2 * x.toarray()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("kind", ["store", "csr_array", "csr_matrix", "csc_array", "coo_array", "Dask"])
def test_repeated_entries_are_summed(tmp_path, kind, dtype):
    """In 64 bits; the caller's matrix stays as it is."""
    twice, expected = repeated(dtype)
    before = [part.copy() for part in (twice.data, twice.indices, twice.indptr)]
    if kind == "store":
        write_csr(tmp_path, twice)
        found = loaded(opened(tmp_path, "zarr", "x.zarr"))
    elif kind == "Dask":
        cuts = [twice[a : a + 10] for a in range(0, N, 10)]
        parts = [da.from_delayed(delayed(part), part.shape, part.dtype, meta=twice[:0]) for part in cuts]
        found = seen(da.concatenate(parts), MultinomialMixture)
    else:
        found = seen(getattr(sp, kind)(twice), MultinomialMixture)
    np.testing.assert_array_equal(found, expected)
    for part, was in zip((twice.data, twice.indices, twice.indptr), before, strict=True):
        np.testing.assert_array_equal(part, was)


@pytest.mark.parametrize(("dtype", "value"), [("u1", 200), ("i1", 100), ("u2", 40_000), ("i4", 2**31 - 1)])
def test_repeated_entries_whose_sum_does_not_fit_are_refused(tmp_path, dtype, value):
    """A store of a narrow type cannot hold the sum; Python's rows are float64 by then."""
    x = sp.csr_array((np.array([value, value], dtype), np.array([1, 1]), np.array([0, 2])), (1, D))
    write_csr(tmp_path, x)
    with pytest.raises(InputError, match=f"repeated entries sum to {2 * value}"):
        loaded(opened(tmp_path, "zarr", "x.zarr"))
    assert seen(x, MultinomialMixture)[0, 1] == 2 * value


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8"])
@pytest.mark.parametrize("kind", ["NumPy", "Dask", "xarray of Dask", "weights", "y"])
def test_masked_values_are_refused(kind, dtype):
    """A mask is never dropped; an array in which nothing is masked is its values."""
    x = rows_of(dtype)
    for masked in (np.ma.masked_array(x, mask=np.zeros_like(x, bool)), np.ma.masked_equal(x, x[0, 1])):
        rows, more = masked, {}
        if kind == "weights":
            rows, more = rows_of("f8"), {"sample_weight": masked[:, 0] + 1}
        elif kind == "y":
            rows, more = rows_of("f8"), {"y": np.ma.masked_array(np.full(N, -1), masked.mask[:, 0])}
        elif kind != "NumPy":
            rows = da.from_array(masked, chunks=(10, D))
            rows = rows if kind == "Dask" else xr.DataArray(rows, dims=("row", "feature"))
        model = KMeans(2, random_state=0) if kind != "y" else GaussianMixture(1)
        if masked.mask.any() and (kind not in ("weights", "y") or masked.mask[:, 0].any()):
            with pytest.raises(ValueError, match=r"masked|NaN"):  # xarray makes them NaN
                model.fit(rows, **more)
        else:
            model.fit(rows, **more)


@pytest.mark.parametrize("n", [9, 11, 0])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_block_of_another_shape_is_refused(n, sparse):
    """A Dask block that is not what its chunks say is named, in fits and in predictions."""
    x = rows_of("f8")
    wrong = np.ones((n, D))
    meta = sp.csr_array((0, D)) if sparse else np.empty((0, D))
    part = da.from_delayed(delayed(sp.csr_array(wrong) if sparse else wrong), (10, D), float, meta=meta)
    rest = blocks(x, sp.csr_array) if sparse else da.from_array(x, chunks=(10, D))
    rows, kind = da.concatenate([rest, part]), MultinomialMixture if sparse else KMeans
    model = kind(2, random_state=0).fit(x)
    for act in (lambda: kind(2, random_state=0).fit(rows), lambda: np.asarray(model.predict(rows))):
        with pytest.raises(ValueError, match=rf"rows 23:33 .*got shape \({n}, 3\), expected \(10, 3\)"):
            act()


@pytest.mark.parametrize(("declared", "dtype", "fits"), [("f8", "f4", True), ("f8", "i4", True), ("f4", "f8", False), ("f8", "c16", False), ("f8", "O", False)])  # fmt: skip
def test_a_block_of_another_dtype_is_cast_or_refused(declared, dtype, fits):
    """Cast where every value stays as it is."""
    x = rows_of("f8")
    rows = da.from_delayed(delayed(x.astype(dtype)), x.shape, np.dtype(declared))
    if fits:
        np.testing.assert_array_equal(seen(rows), x)
    else:
        with pytest.raises(ValueError, match=f"got dtype {np.dtype(dtype)}"):
            seen(rows)


# --- text

TABLES: dict[str, tuple[str, dict[str, Any], Any]] = {
    # name: text, options, the rows or what the refusal says
    "names": ("a,b\n1,2\n3,4\n", {}, [[1, 2], [3, 4]]),
    "quoted names": ('"a","b"\n1,2\n3,4\n', {"columns": ["b"]}, [[2], [4]]),
    "no names": ("1,2\n3,4\n", {}, [[1, 2], [3, 4]]),
    "pandas' names": ("0,1\n.5,2.5\n3.5,4.5\n", {}, [[0.5, 2.5], [3.5, 4.5]]),
    "pandas' names, a row": ("0,1\n.5,2.5\n3.5,4.5\n", {"header": False}, [[0, 1], [0.5, 2.5], [3.5, 4.5]]),
    "whole numbers": ("0,1\n2,3\n4,5\n", {}, [[0, 1], [2, 3], [4, 5]]),
    "whole numbers, names": ("0,1\n2,3\n4,5\n", {"header": True}, [[2, 3], [4, 5]]),
    "years": ("2001,2002\n.5,2.5\n3.5,4.5\n", {"columns": [2002]}, [[2.5], [4.5]]),
    "names and numbers": ("id,2001\n1,2\n3,4\n", {}, "holds names and numbers"),
    "names and numbers, names": ("id,2001\n1,2\n3,4\n", {"header": True}, [[1, 2], [3, 4]]),
    "NA first": ("NA,NA\n1,2\n3,4\n", {}, "line 1, column 1: got 'NA'"),
    "NA within": ("1,2\nNA,2\n3,4\n", {}, "line 2, column 1: got 'NA'"),
    "empty and nan cells": ("1,\nnan,2\n3,4\n", {}, [[np.nan] * 2, [np.nan] * 2, [3, 4]]),
    "chosen by name": ("a,b,c\n1,x,2\n3,y,4\n", {"columns": ["c", "a"]}, [[2, 1], [4, 3]]),
    "chosen by position": ("1,5,2\n3,6,4\n", {"columns": [2, 0]}, [[2, 1], [4, 3]]),
    "no such name": ("alpha,beta\n1,2\n", {"columns": ["alpa"]}, "did you mean alpha"),
    "no such position": ("1,2\n3,4\n", {"columns": [2]}, "position from 0 to 1"),
    "twice": ("a,b\n1,2\n", {"columns": ["a", "a"]}, "names a column twice"),
    "two of one name": ("a,a\n1,2\n", {"columns": ["a"]}, "2 columns are named"),
    "ragged beside chosen ones": ("a,b\n1,2\n3,4,5\n", {"columns": ["a"]}, "line 3: has 3 columns, expected 2"),
    "short beside chosen ones": ("a,b\n1,2\n3\n", {"columns": ["a"]}, "line 3: has 1 columns, expected 2"),
    "index": (",a,b\n0,1,2\n1,3,4\n2,5,6\n", {}, [[1, 2], [3, 4], [5, 6]]),
    "index, by request": (",a,b\n0,1,2\n5,3,4\n2,5,6\n", {"index_column": True}, [[1, 2], [3, 4], [5, 6]]),
    "index, a feature": (",a\n0,1\n1,3\n2,5\n", {"index_column": False}, [[0, 1], [1, 3], [2, 5]]),
    "index, chosen": (",a\n0,1\n1,3\n2,5\n", {"columns": ["", "a"]}, [[0, 1], [1, 3], [2, 5]]),
    "no name, other numbers": (",a\n0,1\n1,3\n5,5\n", {}, [[0, 1], [1, 3], [5, 5]]),
    "no header, counts up": ("0,1\n1,3\n2,5\n", {}, [[0, 1], [1, 3], [2, 5]]),
    "index of R, found": ('"","a"\n"1",2\n"2",4\n"3",6\n', {}, [[2], [4], [6]]),
    "index of R": ('"","a"\n"1",2\n"2",4\n"3",6\n', {"index_column": True}, [[2], [4], [6]]),
    "nothing but an index": ("1\n2\n", {"index_column": True}, "has one column"),
    "form feeds": ("1,2\n\f\n3,4\n\f5,6\n", {}, [[1, 2], [3, 4], [5, 6]]),
    "form feeds, one column": ("1\n\f\n3\n \v\n", {}, [[1], [3]]),
    "carriage returns": ("\r1,2\r\n\r\n3,4\r\n", {}, [[1, 2], [3, 4]]),
    "old Mac": ("1,2\r3,4\r", {}, "columns|got"),
    "comments": ("# x\n1,2 # y\n  # z\n3,4\n", {}, [[1, 2], [3, 4]]),
    "a byte order mark": ("\ufeffa,b\n1,2\n3,4\n", {"columns": ["a"]}, [[1], [3]]),
    "decimal commas": ("1,5;2,5\n3,5;4,5\n", {}, "line 1, column 1: got '1,5'"),
    "quoted numbers": ('a,b\n"1",2\n', {}, "got '\"1\"'"),
    "underscores": ("1_0,2\n3,4\n", {}, "got '1_0'"),
    "hexadecimal": ("0x10,2\n3,4\n", {}, "holds names and numbers"),
    "huge": ("1e400,2\n3,4\n", {}, [[np.nan] * 2, [3, 4]]),
    "a delimiter in numbers": ("1.2\n", {"delimiter": "."}, "in no number"),
    "NUL": ("1,2\n3\0,4\n", {}, "line 2"),
    "nothing": ("\n \n", {}, "no rows"),
    "names alone": ("a,b\n", {}, "no rows"),
}


@pytest.mark.parametrize("name", TABLES)
def test_text_is_read_as_it_says(tmp_path, name):
    """Headers, columns, blanks, comments: the rows that a reader by hand has, or a sentence."""
    content, options, expected = TABLES[name]
    (tmp_path / "x.csv").write_bytes(content.encode())
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            loaded(opened(tmp_path, "csv", "x.csv", **options))
    else:
        np.testing.assert_array_equal(loaded(opened(tmp_path, "csv", "x.csv", **options)), expected)


@pytest.mark.parametrize(
    ("content", "said_of_it"),
    [
        (",a,b\n0,1,2\n1,3,4\n2,5,6\n", "numbers the rows: it is left out"),
        ("Unnamed: 0,a\n1,3.5\n2,5\n3,6\n", "numbers the rows: it is left out"),
        ("0,1.5\n1,3.5\n2,5.5\n", "numbers the rows, and is read as a feature"),
        ("time,a\n0,1.5\n1,3.5\n2,5.5\n", None),
        ("0,1\n.5,2.5\n3.5,4.5\n", "taken for names"),
        ("0,1\n2,3\n4,5\n", "read as a row"),
        ("a,b\n1,2\n3,4\n", None),
    ],
)
def test_what_is_guessed_of_text_is_said(tmp_path, content, said_of_it):
    """A header that is numbers, and a first column that numbers the rows, are named in a warning."""
    (tmp_path / "x.csv").write_text(content)
    notes = opened(tmp_path, "csv", "x.csv").source.notes()
    assert len(notes) == (said_of_it is not None) and all(said_of_it in note for note in notes), notes


# --- pictures

GREY = np.random.default_rng(3).integers(0, 256, (6, 9), dtype=np.uint8)  # of which each file below is a picture


def save_tiff(path: Path, pixels: np.ndarray, photometric: int) -> None:
    """An uncompressed grey TIFF, which says whether 0 is black (1) or white (0)."""
    data = pixels.tobytes()
    h, w = pixels.shape
    bits, kind = 8 * pixels.itemsize, 3 if pixels.dtype.kind == "f" else 1
    tags = [(256, w), (257, h), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, h), (279, len(data)), (339, kind)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    end = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + end)


def save(path: Path, pixels: np.ndarray, turn: int = 1) -> None:
    """A picture by Pillow, with an orientation as cameras note it."""
    exif = Image.Exif()
    exif[274] = turn
    more = {"exif": exif} if turn != 1 else {}
    Image.fromarray(pixels).save(path, **more)


def turned(turn: int) -> np.ndarray:
    """What has to be stored so that it is GREY to those who look at it: Pillow's own rule, backwards."""
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    picture, exif = Image.fromarray(GREY), Image.Exif()
    exif[274] = back[turn]
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(buffer)))


def save_turned(turn: int, path: Path) -> None:
    """A picture that has to be turned to be GREY."""
    save(path, turned(turn), turn)


DEEP, WHITE = GREY.astype(np.uint16), 255 - GREY
PICTURES: dict[str, tuple[Callable[[Path], None], Any, Any]] = {
    # name: writer, data.patch.range, and the value of GREY that is white, or what the refusal says
    "8 bits.png": (lambda p: save(p, GREY), None, 255),
    "8 bits.bmp": (lambda p: save(p, GREY), None, 255),
    "8 bits.jfif": (lambda p: Image.fromarray(np.full((6, 9), 77, np.uint8)).save(p, "JPEG"), None, None),
    "8 bits.pgm": (lambda p: save(p, GREY), None, 255),
    "8 bits, grey in colour.png": (lambda p: save(p, np.stack([GREY] * 3, axis=-1)), None, 255),
    "8 bits, palette.gif": (lambda p: save(p, GREY), None, 255),
    "8 bits, transparent.png": (lambda p: save(p, np.stack([GREY, GREY // 2], axis=-1)), None, 255),
    "16 bits.png": (lambda p: save(p, DEEP * 257), None, 255),
    "16 bits.tif": (lambda p: save_tiff(p, DEEP * 257, 1), None, 255),
    "12 bits in 16.png": (lambda p: save(p, DEEP * 16), None, 65535 / 16),
    "12 bits in 16, said.png": (lambda p: save(p, DEEP * 16), {16: 4080}, 255),
    "32 bits.tif": (lambda p: save_tiff(p, GREY.astype("<i4"), 1), None, "no value is known to be white"),
    "32 bits, said.tif": (lambda p: save_tiff(p, GREY.astype("<i4"), 1), {32: 255}, 255),
    "floats.tif": (lambda p: save_tiff(p, GREY.astype("<f4"), 1), "container", "no value is known to be white"),
    "floats, said.tif": (lambda p: save_tiff(p, GREY.astype("<f4"), 1), {32: 255}, 255),
    "white is zero, 8.tif": (lambda p: save_tiff(p, WHITE, 0), None, 255),
    "white is zero, 16.tif": (lambda p: save_tiff(p, WHITE.astype("<u2") * 257, 0), None, 255),
    "white is zero, 12.tif": (lambda p: save_tiff(p, WHITE.astype("<u2") * 16, 0), {16: 4080}, 255),
    "white is zero, floats.tif": (lambda p: save_tiff(p, WHITE.astype("<f4"), 0), {32: 255}, 255),
    **{f"turned {t}.png": (partial(save_turned, t), None, 255) for t in range(2, 9)},
    **{f"turned {t}.tif": (partial(save_turned, t), None, 255) for t in (2, 3, 6, 7, 8)},
    "16 bits, turned.png": (lambda p: save(p, turned(6).astype(np.uint16) * 257, 6), None, 255),
}


def pixels_of(folder: Path, name: str, value_range: Any, shape: tuple[int, int] = GREY.shape) -> np.ndarray:
    """The only patch of a picture."""
    patch = {"size": list(shape), "remove_mean": False, "range": value_range}
    return loaded(opened(folder, "images", name, patch=patch)).reshape(shape)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_a_viewer_shows(tmp_path, name):
    """Whatever the container: depth, orientation, white that is 0, colour; a depth that says nothing is asked about."""
    write, value_range, white = PICTURES[name]
    write(tmp_path / name)
    if isinstance(white, str):
        with pytest.raises(InputError, match=white):
            pixels_of(tmp_path, name, value_range)
    elif white is None:
        np.testing.assert_allclose(pixels_of(tmp_path, name, value_range), 77 / 255, rtol=1e-6)
    else:
        np.testing.assert_allclose(pixels_of(tmp_path, name, value_range), GREY / white, atol=1e-6)


def test_pictures_of_several_depths_are_refused_unless_a_range_is_said(tmp_path):
    """A folder of 8 and 16 bits has two whites."""
    save(tmp_path / "a.png", GREY)
    save(tmp_path / "b.png", DEEP * 16)
    with pytest.raises(InputError, match=r"8 bits as a\.png, 16 bits as b\.png"):
        opened(tmp_path, "images", "", patch={"size": [6, 9]})
    patch = {"size": [6, 9], "remove_mean": False}
    for value_range, high in (("container", 65535 / 16), ({16: 4080}, 255)):
        found = loaded(opened(tmp_path, "images", "", patch={**patch, "range": value_range}))
        np.testing.assert_allclose(found, [GREY.ravel() / 255, GREY.ravel() / high], atol=1e-6)


def test_only_the_plan_decides_whether_a_picture_is_too_large(tmp_path, monkeypatch):
    """Pillow's warning of more than 89 megapixels is not shown around our reads (warnings are errors here), and only there."""
    save(tmp_path / "a.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    np.testing.assert_allclose(pixels_of(tmp_path, "a.png", None), GREY / 255, atol=1e-6)
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(tmp_path / "a.png")


def test_what_is_odd_about_pictures_is_said(tmp_path):
    """Containers that are hardly filled, colour beside grey, and what a folder has besides pictures."""
    (tmp_path / "below").mkdir()
    for name in ("a.png", "below/c.png"):
        save(tmp_path / name, DEEP * 16)
    Image.fromarray(GREY).save(tmp_path / "below/d.jpe", "JPEG")
    patch = {"size": [6, 9], "range": "container"}
    [left_out, dark] = opened(tmp_path, "images", "", patch=patch).source.notes()
    assert "1 that have no picture's name are left out, such as below" in left_out
    assert f"values from {16 * int(GREY.min())} to {16 * int(GREY.max())}" in dark and "{16: 4095}" in dark
    everything = opened(tmp_path, "images", "**/*", patch=patch).source.pictures()
    assert everything is not None and everything[0] == ["a.png", "below/c.png", "below/d.jpe"]
    some = opened(tmp_path, "images", "below/*.p?g", patch=patch).source.pictures()
    assert some is not None and some[0] == ["c.png"]
    save(tmp_path / "below" / "e.png", np.stack([GREY] * 3, axis=-1))
    notes = opened(tmp_path, "images", "below", patch=patch).source.notes()
    assert any("1 of 3 pictures are in colour" in note for note in notes)


# --- weights and labels: the law of rows holds for them too


def column(folder: Path, way: str, values: np.ndarray, what: str) -> np.ndarray:
    """A column beside rows, written or handed over in one way, as models see it."""
    np.save(folder / "x.npy", rows_of("f8"))
    store = folder / "w.zarr"
    if way == "npy":
        np.save(folder / "w.npy", values)
    elif way == "xarray":
        xr.Dataset({what: (("row",), values)}).to_zarr(store, zarr_format=2, consolidated=True)
    elif way in ("zarr 2", "zarr 3"):
        zarr.create_array(store, data=values, zarr_format=int(way[-1]), chunks=(5,))
    elif way == "shards":
        zarr.create_array(store, data=values, chunks=(5,), shards=(10,))
    path = str(folder / ("w.npy" if way == "npy" else "w.zarr"))
    chunks = opened(folder, "npy", "x.npy", **{what: path})
    found = [getattr(chunks.load(i), what.removesuffix("s")) for i in range(chunks.n_chunks)]
    return np.concatenate(found)


COLUMNS = ["npy", "zarr 2", "zarr 3", "shards", "xarray"]


@pytest.mark.parametrize("dtype", ["?", "u1", ">i2", "i4", "u8", "f2", ">f4", "f8"])
@pytest.mark.parametrize("what", ["weights", "labels"])
@pytest.mark.parametrize("way", COLUMNS)
def test_a_column_is_read_as_numpy_holds_it(tmp_path, way, what, dtype):
    """One number a row, of any real type."""
    values = (np.arange(1, N + 1) % 7 + 1).astype(dtype)
    found = column(tmp_path, way, values, what)
    np.testing.assert_array_equal(found, values.astype(np.float64))


@pytest.mark.parametrize(
    ("what", "value"),
    [("weights", np.nan), ("weights", np.inf), ("weights", -1.0), ("labels", np.nan), ("labels", 0.5), ("labels", -2.0), ("labels", 1e30)],
)  # fmt: skip
@pytest.mark.parametrize("way", COLUMNS)
def test_a_value_that_no_column_may_have_is_refused(tmp_path, way, what, value):
    """The row is named."""
    values = np.ones(N)
    values[17] = value
    with pytest.raises(InputError, match="row 17"):
        column(tmp_path, way, values, what)


@pytest.mark.parametrize(
    "values", [np.ones(N - 1), np.ones(N + 1), np.ones((N, 1)), np.ones(N, "c8"), np.ones(N, "S1")]
)
@pytest.mark.parametrize("what", ["weights", "labels"])
@pytest.mark.parametrize("way", ["npy", "zarr 2", "zarr 3"])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_a_column_of_another_shape_or_type_is_refused(tmp_path, way, what, values):
    """One real number for each row."""
    if values.ndim == 2 and way != "npy":
        values = values[: N - 2, 0]
    with pytest.raises(PipelineError, match=r"expected one number for each|not decoded"):
        column(tmp_path, way, values, what)


@pytest.mark.parametrize("weight", [np.nan, -1.0, np.inf])
@pytest.mark.parametrize("act", ["fit", "score"])
def test_sample_weight_is_checked_wherever_it_is_taken(act, weight):
    """In fits and in scores."""
    x, weights = rows_of("f8"), np.ones(N)
    weights[17] = weight
    for model in (KMeans(2, random_state=0), GaussianMixture(1)):
        with pytest.raises(ValueError, match="row 17"):
            getattr(model.fit(x), act)(x, sample_weight=weights)
    with pytest.raises(ValueError, match="complex"):
        KMeans(2).fit(x, sample_weight=np.ones(N, complex))


# --- stores whose numbers are not the values, or are not there


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("part", ["rows", "weights", "labels", "CSR"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("scale_factor", 0.5), ("add_offset", 3), ("_FillValue", -9999), ("missing_value", 0), ("_Unsigned", "true"), ("units", "days since 1970-01-01")],
)  # fmt: skip
def test_encoded_values_are_refused(tmp_path, zarr_format, part, name, value):
    """Whatever array has the attribute; none of them is taken for its numbers."""
    path, more, attributes = tmp_path / "x.zarr", {}, {name: value}
    if part == "CSR":
        write_csr(tmp_path, sp.csr_array(rows_of("i4")), zarr_format)
        zarr.open_array(path / "data").attrs.update(attributes)
    else:
        x, w = rows_of("i4"), np.ones(N, "i4")
        zarr.create_array(path, data=x, zarr_format=zarr_format, attributes=attributes if part == "rows" else {})
        if part != "rows":
            zarr.create_array(tmp_path / "w.zarr", data=w, zarr_format=zarr_format, attributes=attributes)
            more = {part: str(tmp_path / "w.zarr")}
    with pytest.raises(InputError, match=f"{name}.*expected plain values"):
        opened(tmp_path, "zarr", "x.zarr", **more)


@pytest.mark.parametrize("name", ["scale_factor", "add_offset", "_FillValue", "units"])
def test_attributes_that_change_nothing_are_no_reason(tmp_path, name):
    """A scale of 1, an offset of 0, a fill value that is NaN, and a unit of length."""
    harmless = {"scale_factor": 1.0, "add_offset": 0, "_FillValue": "NaN", "units": "m"}
    x = rows_of("f8")
    zarr.create_array(tmp_path / "x.zarr", data=x, attributes={name: harmless[name]})
    np.testing.assert_array_equal(loaded(opened(tmp_path, "zarr", "x.zarr")), x)


@pytest.mark.parametrize("encoding", [{"_FillValue": -9999.0}, {"_FillValue": -32768, "dtype": "i2"}, {"scale_factor": 0.1, "dtype": "i2", "_FillValue": -1}])  # fmt: skip
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_xarray_encodes_is_refused(tmp_path, zarr_format, encoding):
    """Also where zarr v2 has the fill value in its own metadata."""
    x = rows_of("f8")
    x[3, 1] = np.nan
    data = xr.Dataset({"x": (("row", "feature"), x)})
    data.to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format, encoding={"x": encoding}, consolidated=False)
    with pytest.raises(InputError, match="expected plain values"):
        opened(tmp_path, "zarr", "x.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_consolidated_metadata_that_are_stale_are_not_believed(tmp_path, zarr_format):
    """What arrays say of themselves counts."""
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("x", data=rows_of("f8")[:5])
    zarr.consolidate_metadata(tmp_path / "x.zarr")
    fresh = zarr.open_group(tmp_path / "x.zarr", mode="a", use_consolidated=False)
    fresh.create_array("x", data=rows_of("f8"), overwrite=True)
    np.testing.assert_array_equal(loaded(opened(tmp_path, "zarr", "x.zarr")), rows_of("f8"))


@pytest.mark.parametrize("fill", ["error", "fill"])
@pytest.mark.parametrize("layout", [{"chunks": (5, 3)}, {"chunks": (2, 3), "shards": (8, 3)}, {"chunks": (2, 1), "shards": (24, 3)}, {"chunks": (5, 3), "zarr_format": 2}])  # fmt: skip
def test_holes_are_refused_or_meant(tmp_path, layout, fill):
    """A chunk that was never written, inside a shard too, is an error unless it is meant; chunks beyond the end are none."""
    x = rows_of("f8") + 1
    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, dtype=x.dtype, fill_value=0, **layout)
    array[:] = x
    np.testing.assert_array_equal(loaded(opened(tmp_path, "zarr", "x.zarr")), x)
    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, dtype=x.dtype, fill_value=0, overwrite=True, **layout)
    array[:10] = x[:10]
    if fill == "error":
        with pytest.raises(StorageError, match=r"missing|never written"):
            loaded(opened(tmp_path, "zarr", "x.zarr"))
        with pytest.raises(StorageError, match=r"missing|never written"):
            seen(zarr.open_array(tmp_path / "x.zarr", mode="r"))
    else:
        expected = np.where(np.arange(N)[:, None] < 10, x, 0)
        np.testing.assert_array_equal(loaded(opened(tmp_path, "zarr", "x.zarr", missing_chunks="fill")), expected)


@pytest.mark.parametrize("names", [("feature", "row"), ("gene", "cell"), ("bands", "pixels"), ("variable", "time"), ("Features", "Samples")])  # fmt: skip
@pytest.mark.parametrize("way", ["zarr 2", "zarr 3", "xarray", "an open zarr array"])
def test_names_that_exchange_rows_and_features_are_refused(tmp_path, way, names):
    """And the usual names, in their order, are not."""
    x = rows_of("f8")
    for order, fits in ((names, False), (names[::-1], True)):
        named = xr.DataArray(x, dims=order, name="x")
        if way != "xarray":
            zarr_format = 2 if way == "zarr 2" else 3
            named.to_dataset().to_zarr(tmp_path / "x.zarr", mode="w", zarr_format=zarr_format, consolidated=False)
        read = {
            "xarray": lambda named=named: seen(named),
            "an open zarr array": lambda: seen(zarr.open_array(tmp_path / "x.zarr/x", mode="r")),
        }.get(way, lambda: loaded(opened(tmp_path, "zarr", "x.zarr")))
        if fits:
            np.testing.assert_array_equal(read(), x)
        else:
            with pytest.raises(REFUSALS, match=f"named \\({names[0]}, {names[1]}\\), expected rows first"):
                read()


@pytest.mark.parametrize("what", ["npy", "weights", "idx", "idx.gz"])
@pytest.mark.parametrize("more", [b"\0", b"another array"])
def test_what_follows_an_array_is_refused(tmp_path, what, more):
    """Two arrays in one file are not read as one."""
    np.save(tmp_path / "x.npy", rows_of("f8"))
    np.save(tmp_path / "w.npy", np.ones(N))
    idx(rows_of("u1"), tmp_path)
    name = {"npy": "x.npy", "weights": "w.npy"}.get(what, "x.idx")
    content = (tmp_path / name).read_bytes() + more
    (tmp_path / name).write_bytes(content)
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match="goes on after the array"):
        if what == "weights":
            opened(tmp_path, "npy", "x.npy", weights=str(tmp_path / "w.npy"))
        else:
            opened(tmp_path, what.split(".")[0], f"x.{what}")


# --- rows that a program has opened and not read


class Hdf5:
    """What h5py's Dataset has, of which whole reads are counted."""

    __module__ = "h5py._hl.dataset"

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.dtype, self.ndim, self.chunks = x, x.shape, x.dtype, x.ndim, (5, 2)
        self.attrs: dict[str, Any] = {}
        self.most = 0

    def __getitem__(self, index: Any) -> np.ndarray:
        found = self.x[index]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("kind", ["zarr", "h5py", "DataFrame"])
def test_opened_rows_are_read_block_by_block(tmp_path, monkeypatch, kind):
    """Lazy results, names kept, and no read of all rows; the fit is that of NumPy's rows as a Dask array."""
    monkeypatch.setattr("pipeline.data.source.TARGET_BYTES", 5 * D * 8)
    x = rows_of("f8")
    rows = Hdf5(x)
    if kind == "zarr":
        zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(5, 2))
        rows = zarr.open_array(tmp_path / "x.zarr", mode="r")
    elif kind == "DataFrame":
        rows = dd.from_pandas(pd.DataFrame(x, columns=list("abc")), npartitions=4)
    model = KMeans(2, random_state=0).fit(rows)
    of_dask = KMeans(2, random_state=0).fit(da.from_array(x, chunks=(5, D)))
    np.testing.assert_allclose(
        np.sort(model.cluster_centers_, axis=0), np.sort(of_dask.cluster_centers_, axis=0), rtol=1e-12
    )
    labels = model.predict(rows)
    assert isinstance(labels, da.Array) and isinstance(model.labels_, da.Array)
    np.testing.assert_array_equal(
        labels.compute(), model.predict(x if kind != "DataFrame" else pd.DataFrame(x, columns=list("abc")))
    )
    if kind == "DataFrame":
        assert list(model.feature_names_in_) == list("abc")
        with pytest.raises(ValueError, match="feature names"):
            model.predict(dd.from_pandas(pd.DataFrame(x, columns=list("abd")), npartitions=2))
    if kind == "h5py":
        assert rows.most == 5


def test_opened_rows_that_cannot_be_used_are_refused(tmp_path):
    """Encoded ones, other ranks, and text."""
    encoded = Hdf5(rows_of("i4"))
    encoded.attrs["scale_factor"] = 0.1
    text_rows = dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), npartitions=1)
    for rows, expected in (
        (encoded, "plain values"),
        (Hdf5(np.zeros((4, 3, 2))), "two dimensions"),
        (Hdf5(rows_of("c8")), "real numbers"),
        (text_rows, "column 'b'"),
    ):
        with pytest.raises(ValueError, match=expected):
            KMeans(2).fit(rows)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_picture_that_does_not_fit_is_refused_before_it_is_decoded(tmp_path, monkeypatch, turn):
    """The plan knows its pixels from the header, and says which picture it is."""
    save(tmp_path / "a.png", np.zeros((2000, 1500, 3), np.uint8), turn)
    monkeypatch.setattr("pipeline.data.sources.images.decode", lambda *_: pytest.fail("decoded"))
    config = validate(
        {
            "data": {"source": "images", "path": str(tmp_path), "patch": {"stride": 8}},
            "model": {"n_components": 2},
            "engine": {"memory": "420MiB", "workers": 1},
            "output": {"path": str(tmp_path / "run")},
        }
    )
    size = "2000 x 1500" if turn == 1 else "1500 x 2000"
    with pytest.raises(InputError, match=rf"one task needs .*cut .*a\.png, of {size} pixels, into smaller pictures"):
        workflow.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["rows", "weights", "row"])
def test_stored_chunks_that_are_larger_than_their_rows_are_in_the_plan(tmp_path, part):
    """A chunk of 1 GB of a small array, of rows or of weights, and a row of a sparse matrix that is longer than the target."""
    x, more = rows_of("f8"), {}
    if part == "row":
        long = sp.csr_array((np.ones(2**21), np.arange(2**21), np.array([0, 0, 2**21])), (2, 2**21))
        write_csr(tmp_path, long)
    else:
        big = {"chunks": (N, 2**27 // N)} if part == "rows" else {"chunks": (2**27,)}
        zarr.create_array(tmp_path / "x.zarr", shape=x.shape, dtype=x.dtype, **(big if part == "rows" else {}))
        if part == "weights":
            zarr.create_array(tmp_path / "w.zarr", shape=(N,), dtype="f8", **big)
            more = {"weights": str(tmp_path / "w.zarr")}
    needed, advice = opened(tmp_path, "zarr", "x.zarr", **more).decoding()
    assert (
        needed > (2**30 if part != "row" else 3 * (2**21 * 12 - TARGET_BYTES)) and "smaller" in advice
    ) or "larger" in advice
