"""Tables of numbers in text: comma, semicolon, tab or blanks between cells, with or without a header line.

Opening is one pass that finds where each chunk starts; a read parses only its own lines.
Text is slow (a few million cells a second): convert what is read often to zarr or npy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import IO, Any, Literal, Self

import numpy as np
from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.categories import (
    CategoriesOption,
    categories_field,
    unknown_category,
    with_columns,
)
from pipeline.data.files import damaged, open_binary, opening, reading, seekable, stored_size, what_it_is
from pipeline.data.section import ConvertedSection
from pipeline.data.source import Source, even_bounds, rows_per_target
from pipeline.data.text_lines import (
    BLANKS,
    BYTE_ORDER_MARK,
    Layout,
    as_code,
    as_number,
    blocks,
    cells_of,
    coded_by,
    layout_of,
)
from pipeline.errors import InputError


class CsvSection(ConvertedSection):
    """Numbers in delimited text; lines that begin with # are comments."""

    source: Literal["csv"] = Field("csv", description="numbers in delimited text")
    path: AnyPath = Field(description="a text file, .gz or plain, or an fsspec URL of one")
    delimiter: str | None = Field(
        None,
        description="what separates columns; null: the first of semicolon, tab and comma in the first line, else blanks",
    )
    header: bool | None = Field(
        None,
        description="whether the first line holds names; null: if none of its cells is a number, or all count up as in 0, 1, 2 "
        "above rows without whole numbers",
    )
    columns: list[str | int] | None = Field(
        None,
        min_length=1,
        description="columns that are features: names of the header, or positions from 0 where there is none; null: all",
    )
    index: str | int | None = Field(
        None,
        description="the column that names a row, by name or position: it is no feature, and stands in the table of predict --format",
    )
    categories: CategoriesOption = categories_field
    index_column: bool | None = Field(
        None,
        description="whether the first column only numbers the rows, as pandas' index, and is left out; null: if the header has no "
        "name for it and it counts 0, 1, 2, … or 1, 2, 3, …",
    )
    cache: LocalPath | None = Field(
        None,
        description="folder of the unpacked copy of a large .gz file, which workers must see; null: the folder of the input",
    )

    def with_columns(self, used: Mapping[str, bool]) -> Self:
        return with_columns(self, used)

    def settled(self) -> Self:
        if not isinstance(self.categories, list):
            return self
        with opening(self.path), open_binary(self.path, self.storage_options) as stream:
            layout, _ = layout_of(stream, self.path, self)
            stream.seek(0)
            found = layout.distinct(stream, self.path, self.categories)
        return self.model_copy(update={"categories": found})

    def open(self) -> Source:
        if isinstance(self.categories, list):
            return self.settled().open()
        path = self.path
        with opening(path), open_binary(path, self.storage_options) as stream:
            if advice := what_it_is(stream.read(8)):
                raise InputError(f"{path}: is not text, expected lines of numbers. {advice}.")
            stream.seek(0)
            layout, notes = layout_of(stream, path, self)
            stream.seek(0)
            rows = rows_per_target(len(layout.used), 8)
            offsets, lines, n_rows, n_bytes = _scan(stream, path, layout.delimiter, layout.header, rows)
        if n_rows == 0:
            raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
        path = seekable(path, self.storage_options, self.cache, n_bytes)
        return TextSource(path, self.storage_options, layout, even_bounds(n_rows, rows), offsets, lines, notes)


class TextSource(Source):
    """Rows of a delimited text file, float64; an empty cell is NaN; lines that begin with # are comments.

    Parameters
    ----------
    path : str
    options : mapping
        Of its file system.
    layout : Layout
    bounds : array, shape (n_chunks + 1,)
    offsets : array, shape (n_chunks,)
        Bytes of text before each chunk.
    lines : array, shape (n_chunks + 1,)
        Chunk i is lines ``lines[i]`` to ``lines[i + 1]``, from 0.
    notes : list of str
        What should be known of how the file is read.
    """

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        layout: Layout,
        bounds: np.ndarray,
        offsets: np.ndarray,
        lines: np.ndarray,
        notes: list[str],
    ) -> None:
        self.n_features, self.dtype, self.bounds = len(layout.used), np.dtype(np.float64), bounds
        self._path, self._options, self._layout = path, dict(options), layout
        self._offsets, self._lines, self._notes = offsets, lines, notes

    def read(self, i: int) -> np.ndarray:
        """Read chunk i. Raises InputError with line and column of a cell that is not a number."""
        n_rows = int(self.bounds[i + 1] - self.bounds[i])
        what = f"{self._path}, lines {self._lines[i] + 1} to {self._lines[i + 1]} (chunk {i})"
        with reading(what):
            try:
                with self._chunk(i) as lines:
                    some = len(self._layout.used) < self._layout.n_columns
                    whole = (
                        self._of_all_columns(lines) if some else lines
                    )  # loadtxt looks at those it is asked for alone
                    used = self._layout.used if some else None
                    x = np.loadtxt(
                        whole,
                        delimiter=self._layout.delimiter,
                        ndmin=2,
                        encoding="utf-8",
                        usecols=used,
                        converters={column: coded_by(names) for column, names in self._layout.categories.items()}
                        or None,
                    )
            except (ValueError, UnicodeDecodeError):
                x = np.empty((0, 0))  # an empty or a bad cell: go through the lines one by one
            if x.shape != (n_rows, self.n_features):
                with self._chunk(i) as lines:
                    x = self._parse(lines, int(self._lines[i]), n_rows)
        if len(x) != n_rows:
            raise damaged(what, f"it has {len(x)} rows of numbers, {n_rows} when it was opened")
        return x

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        name, column = self._layout.key
        if column is None:
            return {}
        first, last = np.searchsorted(self.bounds, [start, stop - 1], side="right") - 1
        found: list[str] = []
        for i in range(first, last + 1):
            with reading(self._path), self._chunk(i) as lines:
                rows = (cells_of(line, self._layout.delimiter) for line in lines)
                found += [cells[column].strip('"') for cells in rows if cells]
        return {name: np.array(found, object)[start - int(self.bounds[first]) :][: stop - start]}

    def describe(self) -> dict[str, Any]:
        named = {"features": self._layout.names} if self._layout.names else {}
        coded = {self._layout.name_of(column): names for column, names in self._layout.categories.items()}
        return {"kind": "rows", **named, **({"categories": coded} if coded else {})}

    def notes(self) -> list[str]:
        return self._notes

    def _chunk(self, i: int) -> _Lines:
        stream = open_binary(self._path, self._options)
        stream.seek(int(self._offsets[i]))
        return _Lines(stream, int(self._lines[i + 1] - self._lines[i]))

    def _of_all_columns(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines, until one has other columns: ValueError."""
        for line in lines:
            if len(cells_of(line, self._layout.delimiter)) not in (0, self._layout.n_columns):
                raise ValueError("other columns")
            yield line

    def _parse(self, lines: Iterator[str], first: int, n_rows: int) -> np.ndarray:
        x = np.empty((n_rows, self.n_features))
        row = 0
        for number, line in enumerate(lines, start=first + 1):
            cells = cells_of(line, self._layout.delimiter)
            if not cells:
                continue
            if len(cells) != self._layout.n_columns:
                raise InputError(
                    f"{self._path}, line {number}: has {len(cells)} columns, expected {self._layout.n_columns}. "
                    "Correct the line, or put # before it."
                )
            if row < n_rows:
                x[row] = [self._number(cells[column], number, column + 1) for column in self._layout.used]
            row += 1
        return x[:row]

    def _number(self, cell: str, line: int, column: int) -> float:
        names = self._layout.categories.get(column - 1)
        number = as_number(cell) if names is None else as_code(cell, names)
        if number is None and names is not None:
            raise unknown_category(cell, f"{self._path}, line {line}", self._layout.name_of(column - 1), names)
        if number is None:
            raise InputError(
                f"{self._path}, line {line}, column {column}: got {cell!r}, expected a number or an empty cell. "
                "Correct it, choose others by data.columns, name it in data.categories, set data.header where the first line holds names, or data.delimiter."
            )
        return number

    def object_sizes(self) -> list[int]:
        with reading(self._path):
            return [stored_size(self._path, self._options)]


class _Lines(Iterator[str]):
    """The next `n` lines of a stream, decoded one by one so that the text is never in memory as a whole."""

    def __init__(self, stream: IO[bytes], n: int) -> None:
        self._stream, self._lines = stream, islice(stream, n)

    def __next__(self) -> str:
        return next(self._lines).decode("utf-8-sig", errors="replace")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _scan(
    stream: IO[bytes], path: str, delimiter: str | None, header: bool, rows_per_chunk: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Byte offset and line number of each chunk's start (and the last line's end), rows, and bytes of text."""
    offsets, lines = [], []
    n_rows, n_lines, n_bytes = -int(header), 0, 0
    for block in blocks(stream, path):
        if n_bytes == 0 and block.startswith(BYTE_ORDER_MARK):
            block = b"   " + block[3:]
        starts, is_row = _line_starts(block, delimiter)
        rows = np.flatnonzero(is_row)
        chunk_starts = rows[np.arange(-n_rows % rows_per_chunk if n_rows >= 0 else 1, len(rows), rows_per_chunk)]
        offsets.append(starts[chunk_starts] + n_bytes)
        lines.append(chunk_starts + n_lines)
        n_rows, n_lines, n_bytes = n_rows + len(rows), n_lines + len(starts), n_bytes + len(block)
    lines.append(np.array([n_lines]))
    return np.concatenate(offsets) if offsets else np.array([]), np.concatenate(lines), max(n_rows, 0), n_bytes


def _line_starts(block: bytes, delimiter: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each line of a block starts, and whether it is a row: neither blank nor a comment."""
    text = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    starts = np.append(0, np.flatnonzero(text == ord("\n"))[:-1] + 1)
    first = text[starts]
    blanks = [ord(blank) for blank in BLANKS if blank != delimiter]
    if np.isin(first, blanks).any():
        visible = np.flatnonzero(~np.isin(text, blanks))
        first = text[visible[np.searchsorted(visible, starts)]]
    return starts, ~np.isin(first, [ord("\n"), ord("#")])
