"""Files of tables, parquet and Arrow's (Feather): their columns, and the groups of rows in which they are read.

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
from typing import Any

import numpy as np

from pipeline.config.paths import is_url
from pipeline.data import source as chunking
from pipeline.data.files import damaged, open_binary, opening, reading, what_it_is
from pipeline.errors import InputError, did_you_mean

_SUFFIXES = (".parquet", ".parq", ".pq", ".feather", ".arrow")
WHAT = "data.source: parquet"
_ARROW = b"ARROW1"  # the first bytes of Arrow's files


@dataclass(frozen=True)
class TableFile:
    """Metadata of a file. columns : types by name, without pandas' index.  rows : of each row group.  index : columns of pandas' index."""

    path: str
    columns: dict[str, Any]
    rows: list[int]
    index: list[str]

    @classmethod
    def open(cls, path: str, options: Mapping[str, Any]) -> TableFile:
        arrow = pyarrow_of(WHAT)
        with opening(path), open_binary(path, options) as stream:
            try:
                file = _opened(stream)
            except arrow.ArrowException as error:
                stream.seek(0)
                beginning = stream.read(8)
                if beginning.startswith((b"PAR1", _ARROW)):
                    kind = "an Arrow" if beginning.startswith(_ARROW) else "a parquet"
                    raise damaged(path, f"it begins as {kind} file and does not end as one: {error}") from error
                advice = what_it_is(beginning) or "Set data.source to what it is"
                raise InputError(
                    f"{path}: is no parquet or Arrow file, it begins with {beginning!r}. {advice}."
                ) from error
            schema, rows = file.schema, file.rows()
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
        other = [name for name in names if name not in coded and not is_number(self.columns[name])]
        if other:
            numbers = [name for name in self.columns if is_number(self.columns[name])]
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

    def refuse_other_columns(self, first: TableFile, used: set[str] | None) -> None:
        """Raise InputError if the columns differ from those of the first file. used : those that are compared, None for all."""
        for name in sorted({*self.columns, *first.columns} if used is None else used):
            own, wanted = (table.columns.get(name, "no such column") for table in (self, first))
            if own != wanted:
                raise InputError(
                    f"{self.path}: column {name!r}: got {own}, expected {wanted} as in {first.path}. Write the files with one "
                    "schema, or name columns that all have in data.columns."
                )


class _Parquet:
    """An open parquet file. schema : of Arrow."""

    def __init__(self, stream: Any) -> None:
        self._file = pyarrow_of(WHAT).parquet.ParquetFile(stream, page_checksum_verification=True)
        self.schema = self._file.schema_arrow

    def rows(self) -> list[int]:
        """Return the rows of each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def read(self, group: int, names: list[str]) -> Any:
        """Return columns of a row group, a pyarrow.Table."""
        return self._file.read_row_group(group, columns=names, use_threads=False)


class _Arrow:
    """An open Arrow file, such as Feather's: its record batches are row groups."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.schema = stream, self._reader(stream, None).schema

    def rows(self) -> list[int]:
        """As of `_Parquet`: each batch is looked at, of which one column is decompressed."""
        first = self._reader(self._stream, [0])
        return [first.get_batch(i).num_rows for i in range(first.num_record_batches)]

    @staticmethod
    def _reader(stream: Any, fields: list[int] | None) -> Any:
        from pyarrow import ipc

        return ipc.open_file(stream, options=ipc.IpcReadOptions(included_fields=fields, use_threads=False))

    def read(self, group: int, names: list[str]) -> Any:
        """As of `_Parquet`."""
        fields = sorted(self.schema.get_field_index(name) for name in names)
        batch = self._reader(self._stream, fields).get_batch(group)
        return pyarrow_of(WHAT).Table.from_batches([batch])


def _opened(stream: Any) -> _Parquet | _Arrow:
    beginning = stream.read(len(_ARROW))
    stream.seek(0)
    return _Arrow(stream) if beginning == _ARROW else _Parquet(stream)


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
    def of(cls, tables: Sequence[TableFile], options: Mapping[str, Any]) -> RowGroups:
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
            found = file.read(int(self.group[i]), list(names[a : a + some]))
            for name in names[a : a + some]:
                values = found.column(name)
                if len(values) != rows:
                    raise ValueError(f"row group {self.group[i]} has {len(values)} rows, {rows} when it was opened")
                yield int(self.starts[i]), name, values

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        arrow = pyarrow_of(WHAT)
        with reading(path), open_binary(path, self.options) as stream:
            try:
                yield _opened(stream)
            except (arrow.ArrowException, KeyError, IndexError, ValueError) as error:
                raise damaged(path, error) from error


def is_number(kind: Any) -> bool:
    """Return whether a type of Arrow is one of numbers."""
    types = pyarrow_of(WHAT).types
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def table_files(path: str, options: Mapping[str, Any]) -> list[str]:
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
            f"{path}: has no parquet or Arrow files ({', '.join(_SUFFIXES)}). Give data.path their folder, or a glob such as "
            "rows/**/*.parquet for those in folders below it."
        )
    return files


def pyarrow_of(what: str) -> Any:
    """Return the module. Raises InputError if it is not installed. what : needs it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{what} needs pyarrow. Install the extra: pip install 'em-pipeline[parquet]'.") from error
    return pyarrow
