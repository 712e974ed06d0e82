"""Rows in parquet files: whole row groups at a time, columns by name; needs the extra `parquet`.

Only the schema and the numbers of rows of a file's metadata are used, not the statistics of row groups (extremes, counts of
nulls), which may be wrong.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from pipeline.arrays.dtypes import compute_dtype
from pipeline.config import AnyPath, ColumnOrPath
from pipeline.config.paths import is_url
from pipeline.data import source as chunking
from pipeline.data.categories import (
    CategoriesOption,
    Distinct,
    categories_field,
    refuse_others,
    unknown_category,
    with_columns,
)
from pipeline.data.column import Column
from pipeline.data.files import damaged, open_binary, opening, reading, stored_size, what_it_is
from pipeline.data.section import FileSection
from pipeline.data.source import Source, rows_per_target
from pipeline.errors import InputError, did_you_mean

_SUFFIXES = (".parquet", ".parq", ".pq")


class ParquetSection(FileSection):
    """Parquet files: one, or all of a folder or glob in the order of their names. A null is NaN, hence a bad row."""

    source: Literal["parquet"] = Field("parquet", description="parquet files (extra parquet)")
    path: AnyPath = Field(
        description="a parquet file, a folder of them, a glob such as rows/*.parquet, or an fsspec URL of any of these"
    )
    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="names of the columns that are features; null: all but those of weights and labels and pandas' index",
    )
    index: str | None = Field(
        None,
        description="the column that names a row, of any type: it is no feature, and stands in the table of predict --format",
    )
    categories: CategoriesOption = categories_field
    weights: ColumnOrPath | None = Field(
        None, description="one non-negative weight a row: a column by its name, else the path of a .npy or .zarr"
    )
    labels: ColumnOrPath | None = Field(
        None,
        description="one integer a row; -1, and null in a column: unknown; a column by its name, else the path of a .npy or .zarr",
    )
    labels_true: ColumnOrPath | None = Field(None, description="the class of each row, for the report: as labels")

    def with_columns(self, used: Mapping[str, bool]) -> Self:
        return with_columns(self, used)

    def settled(self) -> Self:
        if not isinstance(self.categories, list):
            return self
        source = self.model_copy(update={"categories": {name: [] for name in self.categories}}).open()
        found = Distinct(self.categories)
        for _, name, values in source.groups.read(0, source.n_rows, self.categories):
            found.add(name, _texts(values.unique()).drop_null().to_pylist())
        return self.model_copy(update={"categories": found.sorted()})

    def open(self) -> ParquetSource:
        if isinstance(self.categories, list):
            return self.settled().open()
        paths = _files(self.path, self.storage_options)
        tables = [_ParquetFile.open(path, self.storage_options) for path in paths]
        first = tables[0]
        beside = [name for name in (self.weights, self.labels, self.labels_true, self.index) if name in first.columns]
        if self.index is not None and self.index not in {*first.columns, *first.index} - set(self.columns or ()):
            near = did_you_mean(self.index, first.columns) or f", expected one of {', '.join(first.columns)}."
            said = near if self.index not in first.columns else ", or one of data.columns."
            raise InputError(f"data.index: got {self.index!r}, which is no column of {self.path}{said} Correct it.")
        names = self.columns or [name for name in first.columns if name not in beside]
        coded = self.categories or {}
        first.refuse_absent_or_text(names, self.columns is None, coded)
        refuse_others(coded, names)
        used = None if self.columns is None else {*names, *beside}
        for table in tables[1:]:
            table.refuse_other_columns(first, used)
        groups = RowGroups.of(tables, self.storage_options)
        dtypes = [np.int32 if name in coded else first.columns[name].to_pandas_dtype() for name in names]
        return ParquetSource(groups, names, compute_dtype(np.result_type(*dtypes)), coded, self.index)

    def open_column(self, what: str, source: Source) -> Column | None:
        name = getattr(self, what)
        if name is None or not isinstance(source, ParquetSource):
            return None
        first = _ParquetFile.open(source.groups.paths[0], self.storage_options)
        if name in first.columns:
            first.refuse_absent_or_text([name], False, {})
            return ParquetColumn(source.groups, name, -1 if what.startswith("labels") else None)
        if not is_url(name) and not os.path.lexists(name):
            names = ", ".join(first.columns)
            near = did_you_mean(name, first.columns) or "."
            raise InputError(
                f"data.{what}: got {name!r}, expected a column ({names}) or a path that exists{near} Correct it."
            )
        return super().open_column(what, source)


@dataclass(frozen=True)
class _ParquetFile:
    """Metadata of a file. columns : types by name, without pandas' index.  rows : of each row group.  index : columns of pandas' index."""

    path: str
    columns: dict[str, Any]
    rows: list[int]
    index: list[str]

    @classmethod
    def open(cls, path: str, options: Mapping[str, Any]) -> _ParquetFile:
        arrow = _pyarrow()
        with opening(path), open_binary(path, options) as stream:
            try:
                file = arrow.parquet.ParquetFile(stream)
            except arrow.ArrowException as error:
                stream.seek(0)
                beginning = stream.read(8)
                if beginning.startswith(b"PAR1"):
                    raise damaged(path, f"it begins as a parquet file and does not end as one: {error}") from error
                advice = what_it_is(beginning) or "Set data.source to what it is"
                raise InputError(f"{path}: is no parquet file, it begins with {beginning!r}. {advice}.") from error
            schema, metadata = file.schema_arrow, file.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        twice = [name for name, n in Counter(schema.names).items() if n > 1]
        if twice:
            raise InputError(
                f"{path}: has {len(schema.names)} columns, several named {twice[0]!r}. Give each a name of its own."
            )
        stored_by_pandas = (schema.pandas_metadata or {}).get("index_columns", [])
        index = {name for name in stored_by_pandas if isinstance(name, str)}
        columns = {field.name: field.type for field in schema if field.name not in index}
        return cls(path, columns, rows, sorted(index))

    def refuse_absent_or_text(self, names: Sequence[str], chosen_by_default: bool, coded: Mapping[str, Any]) -> None:
        """Raise InputError for a name that is no column, and for a column without numbers. coded : those of categories."""
        for name in names:
            if name not in self.columns:
                near = did_you_mean(name, self.columns) or f", expected one of {', '.join(self.columns)}."
                raise InputError(f"data.columns: got {name!r}, which is no column of {self.path}{near} Correct it.")
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise InputError(f"data.columns: got {twice[0]!r} twice, expected each name once. Remove one.")
        other = [name for name in names if name not in coded and not _is_number(self.columns[name])]
        if other:
            numbers = [name for name in self.columns if _is_number(self.columns[name])]
            advice = (
                f"or name the columns to use, such as data.columns: [{', '.join(numbers)}]"
                if chosen_by_default and numbers
                else "or leave it out"
            )
            raise InputError(
                f"{self.path}: column {other[0]!r} has type {self.columns[other[0]]}, expected bool, integers or float16/32/64. "
                f"Write it as numbers, name it in data.categories, {advice}."
            )
        if not names:
            raise InputError(
                f"{self.path}: has no column that could be a feature, expected at least one. Check what wrote it."
            )

    def refuse_other_columns(self, first: _ParquetFile, used: set[str] | None) -> None:
        """Raise InputError if the columns differ from those of the first file. used : those that are compared, None for all."""
        for name in sorted({*self.columns, *first.columns} if used is None else used):
            own, wanted = (table.columns.get(name, "no such column") for table in (self, first))
            if own != wanted:
                raise InputError(
                    f"{self.path}: column {name!r}: got {own}, expected {wanted} as in {first.path}. Write the files with one "
                    "schema, or name columns that all have in data.columns."
                )


@dataclass(frozen=True)
class RowGroups:
    """The row groups of some files, those without rows left out.

    Attributes
    ----------
    paths : tuple of str
    options : dict
        Of their file system.
    file, group : array, shape (n_groups,)
        Which file it is in, and which of its row groups it is.
    starts : array, shape (n_groups + 1,), int64
        Global index of the first row of each.
    """

    paths: tuple[str, ...]
    options: dict[str, Any]
    file: np.ndarray
    group: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[_ParquetFile], options: Mapping[str, Any]) -> RowGroups:
        found = [(f, g, n) for f, table in enumerate(tables) for g, n in enumerate(table.rows) if n]
        if not found:
            raise InputError(f"{tables[0].path}: has no rows, expected at least one. Check what wrote it.")
        file, group, rows = np.array(found, np.int64).T
        return cls(tuple(table.path for table in tables), dict(options), file, group, np.append(0, np.cumsum(rows)))

    def bounds(self, target: int) -> np.ndarray:
        """Chunk bounds of whole groups, of at most `target` rows where a group is not larger."""
        bounds = [0]
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if start > bounds[-1] and stop - bounds[-1] > target:
                bounds.append(start)
        return np.array([*bounds, self.starts[-1]], np.int64)

    def read(self, start: int, stop: int, names: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
        """Read columns of the groups that rows start:stop are in.

        Yields
        ------
        row : int
            Global index of the first row of the group.
        name : str
        values : pyarrow.ChunkedArray
        """
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        for f in np.unique(self.file[first:last]).tolist():
            with self._open(self.paths[f]) as file:
                for i in (i for i in range(first, last) if self.file[i] == f):
                    yield from self._columns(file, i, names)

    def _columns(self, file: Any, i: int, names: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
        rows = int(self.starts[i + 1] - self.starts[i])
        some = max(1, chunking.TARGET_BYTES // (8 * rows))  # columns at a time: beside a chunk little more is in memory
        for a in range(0, len(names), some):
            found = file.read_row_group(int(self.group[i]), columns=list(names[a : a + some]), use_threads=False)
            for name in names[a : a + some]:
                values = found.column(name)
                if len(values) != rows:
                    raise ValueError(f"row group {self.group[i]} has {len(values)} rows, {rows} when it was opened")
                yield int(self.starts[i]), name, values

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        arrow = _pyarrow()
        with reading(path), open_binary(path, self.options) as stream:
            try:
                yield arrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            except (arrow.ArrowException, KeyError, IndexError, ValueError) as error:
                raise damaged(path, error) from error


class ParquetSource(Source):
    """Rows of some columns of parquet files: float32 if it represents every value of their types exactly, else float64.

    Parameters
    ----------
    groups : RowGroups
    names : sequence of str
        Of the columns.
    dtype : numpy.dtype
    categories : dict
        Names of the categories of some columns.
    index : str or None
        The column that names a row.
    """

    def __init__(
        self,
        groups: RowGroups,
        names: Sequence[str],
        dtype: np.dtype[Any],
        categories: Mapping[str, list[str]],
        index: str | None = None,
    ) -> None:
        self._index = index
        self.groups, self._names, self._categories = groups, list(names), dict(categories)
        self.n_features, self.dtype = len(names), dtype
        self.bounds = groups.bounds(rows_per_target(self.n_features, dtype.itemsize))

    def read(self, i: int) -> np.ndarray:
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        x = np.empty((stop - start, self.n_features), self.dtype)
        place = {name: j for j, name in enumerate(self._names)}
        for row, name, values in self.groups.read(start, stop, self._names):
            own = self._categories.get(name)
            found = _numbers(values) if own is None else _codes(values, name, own, row)
            x[row - start : row - start + len(values), place[name]] = found
        return x

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if self._index is None:
            return {}
        found = list(self.groups.read(start, stop, [self._index]))
        values = np.concatenate([each.to_pandas().to_numpy() for _, _, each in found])
        return {self._index: values[start - found[0][0] :][: stop - start]}

    def describe(self) -> dict[str, Any]:
        coded = {"categories": self._categories} if self._categories else {}
        return {"kind": "rows", "features": self._names, **coded}

    def object_sizes(self) -> list[int]:
        with reading(self.groups.paths[0]):
            return [stored_size(path, self.groups.options) for path in self.groups.paths]


@dataclass(frozen=True)
class ParquetColumn:
    """A column of parquet files. null : replaces a null; None for NaN."""

    groups: RowGroups
    name: str
    null: int | None

    def decoding(self) -> int:
        """Return the bytes of the largest row group, as Arrow and NumPy hold it."""
        return 16 * int(np.diff(self.groups.starts).max())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,)."""
        found = list(self.groups.read(start, stop, [self.name]))
        values = [_numbers(each if self.null is None else each.fill_null(self.null)) for _, _, each in found]
        return np.concatenate(values)[start - found[0][0] :][: stop - start]


def _codes(values: Any, name: str, categories: list[str], start: int) -> np.ndarray:
    """Codes of a column of categories; a null is NaN. Raises InputError for what is none of them. start : row of the first value."""
    arrow, texts = _pyarrow(), _texts(values)
    codes = arrow.compute.index_in(texts, arrow.array(categories, arrow.string()), skip_nulls=True)
    if codes.null_count > texts.null_count:
        row = int(np.argmax(np.asarray(codes.is_null()) & np.asarray(texts.is_valid())))
        raise unknown_category(texts[row].as_py(), f"data.path, row {start + row}", name, categories)
    return _numbers(codes)


def _texts(values: Any) -> Any:
    """A column as text. Whole numbers have no point, and truth is false or true."""
    arrow = _pyarrow()
    values = values.cast(values.type.value_type) if arrow.types.is_dictionary(values.type) else values
    return values.cast(arrow.string())


def _numbers(values: Any) -> np.ndarray:
    """A column as a NumPy array; a null is NaN, which makes integers float64."""
    arrow = _pyarrow()
    return np.asarray((values.cast(arrow.uint8()) if arrow.types.is_boolean(values.type) else values).to_numpy())


def _is_number(kind: Any) -> bool:
    types = _pyarrow().types
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def _files(path: str, options: Mapping[str, Any]) -> list[str]:
    """The files of a path, a folder or a glob, sorted."""
    with opening(path):
        if is_url(path):
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(path, **options)
            if filesystem.isfile(root):
                return [path]
            names = filesystem.glob(root) if glob.has_magic(root) else filesystem.ls(root, detail=False)
            found = [str(filesystem.unstrip_protocol(name)) for name in names]
        elif os.path.isdir(path):
            found = [os.path.join(path, name) for name in os.listdir(path)]
        elif glob.has_magic(path) and not os.path.isfile(path):
            found = glob.glob(path, recursive=True)
        else:
            return [path]
    files = sorted(
        name for name in found if name.endswith(_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(("_", "."))
    )
    if not files:
        raise InputError(
            f"{path}: has no parquet files ({', '.join(_SUFFIXES)}). Give data.path their folder, or a glob such as "
            "rows/**/*.parquet for those in folders below it."
        )
    return files


def _pyarrow() -> Any:
    return pyarrow_of("data.source: parquet")


def pyarrow_of(what: str) -> Any:
    """Return the module. Raises InputError if it is not installed. what : needs it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{what} needs pyarrow. Install the extra: pip install 'em-pipeline[parquet]'.") from error
    return pyarrow
