"""Tables of numbers in text: comma, semicolon, tab or blanks between cells, with or without a header line.

Opening is one pass that finds where each chunk starts; a read parses only its own lines.
Text is slow (a few million cells a second): convert what is read often to zarr or npy.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.files import damaged, open_binary, opening, reading, seekable, stored_size, what_it_is
from pipeline.data.section import ConvertedSection
from pipeline.data.source import Source, even_bounds, rows_per_target
from pipeline.errors import InputError, did_you_mean

_BLOCK = 2**20
_LINE_BYTES = 16 * 2**20  # of one line: about a million columns
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = " \t\r\f\v"  # a line of nothing else is no row
_MISSING = {"", "na", "n/a", "nan", "null", "none", "nil", "inf", "-", "?", "."}  # a line of nothing else is no header
_LOOK, _LOOK_CELLS = 100, 2**18  # rows and cells that are looked at for what is said of a file


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
    index_column: bool | None = Field(
        None,
        description="whether the first column only numbers the rows, as pandas' index, and is left out; null: if the header has no "
        "name for it and it counts 0, 1, 2, … or 1, 2, 3, …",
    )
    cache: LocalPath | None = Field(
        None,
        description="folder of the unpacked copy of a large .gz file, which workers must see; null: the folder of the input",
    )

    def open(self) -> Source:
        path = self.path
        with opening(path), open_binary(path, self.storage_options) as stream:
            if advice := what_it_is(stream.read(8)):
                raise InputError(f"{path}: is not text, expected lines of numbers. {advice}.")
            stream.seek(0)
            layout, notes = _sniff(stream, path, self)
            stream.seek(0)
            rows = rows_per_target(len(layout.used), 8)
            offsets, lines, n_rows, n_bytes = _scan(stream, path, layout.delimiter, layout.header, rows)
        if n_rows == 0:
            raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
        path = seekable(path, self.storage_options, self.cache, n_bytes)
        return TextSource(path, self.storage_options, layout, even_bounds(n_rows, rows), offsets, lines, notes)


class Layout(NamedTuple):
    """What a line of a file is.

    Attributes
    ----------
    delimiter : str or None
        None: blanks.
    header : bool
        Whether the first line is one.
    n_columns : int
    used : tuple of int
        The columns that are features.
    names : list of str
        Of these; empty without a header.
    """

    delimiter: str | None
    header: bool
    n_columns: int
    used: tuple[int, ...]
    names: list[str]


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
                    x = np.loadtxt(whole, delimiter=self._layout.delimiter, ndmin=2, encoding="utf-8", usecols=used)
            except (ValueError, UnicodeDecodeError):
                x = np.empty((0, 0))  # an empty or a bad cell: go through the lines one by one
            if x.shape != (n_rows, self.n_features):
                with self._chunk(i) as lines:
                    x = self._parse(lines, int(self._lines[i]), n_rows)
        if len(x) != n_rows:
            raise damaged(what, f"it has {len(x)} rows of numbers, {n_rows} when it was opened")
        return x

    def describe(self) -> dict[str, Any]:
        return {"kind": "rows", "features": self._layout.names} if self._layout.names else {"kind": "rows"}

    def notes(self) -> list[str]:
        return self._notes

    def _chunk(self, i: int) -> _Lines:
        stream = open_binary(self._path, self._options)
        stream.seek(int(self._offsets[i]))
        return _Lines(stream, int(self._lines[i + 1] - self._lines[i]))

    def _of_all_columns(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines, until one has other columns: ValueError."""
        for line in lines:
            if len(_cells(line, self._layout.delimiter)) not in (0, self._layout.n_columns):
                raise ValueError("other columns")
            yield line

    def _parse(self, lines: Iterator[str], first: int, n_rows: int) -> np.ndarray:
        x = np.empty((n_rows, self.n_features))
        row = 0
        for number, line in enumerate(lines, start=first + 1):
            cells = _cells(line, self._layout.delimiter)
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
        number = _as_number(cell)
        if number is None:
            raise InputError(
                f"{self._path}, line {line}, column {column}: got {cell!r}, expected a number or an empty cell. "
                "Correct it, choose others by data.columns, set data.header where the first line holds names, or data.delimiter."
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


def _as_number(cell: str) -> float | None:
    """The value of a cell: NaN when empty, None when it is not a number."""
    if not cell:
        return float("nan")
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _cells(line: str, delimiter: str | None) -> list[str]:
    """The stripped cells of a line, none for a blank line or comment."""
    line = line.rstrip("\n").strip(_BLANKS.replace("\t", "") if delimiter == "\t" else _BLANKS)
    if not line or line.startswith("#"):
        return []
    return [cell.strip() for cell in line.split("#")[0].split(delimiter)]


def _sniff(stream: IO[bytes], path: str, asked: CsvSection) -> tuple[Layout, list[str]]:
    """What a line is, and what should be known of it."""
    if asked.delimiter is not None and (len(asked.delimiter) != 1 or asked.delimiter in '#+-.\r\n"' + string.digits):
        raise InputError(
            f"data.delimiter: got {asked.delimiter!r}, expected one character that is in no number. Blanks are ' ', a tab \"\\t\"."
        )
    lines = iter(lambda: stream.readline(_LINE_BYTES + 1), b"")
    texts = (_refuse_long(line, path).decode("utf-8-sig", errors="replace") for line in lines)
    rows = (text for text in texts if _cells(text, None))
    first = next(rows, "")
    if not first:
        raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
    delimiter = asked.delimiter or next((character for character in ";\t," if character in first), None)
    delimiter = None if delimiter == " " else delimiter
    cells = _cells(first, delimiter)
    rest = [_cells(text, delimiter) for text in islice(rows, max(1, min(_LOOK, _LOOK_CELLS // len(cells))))]
    n_columns = len(rest[0]) if rest else len(cells)
    if n_columns != len(cells):
        raise InputError(
            f"{path}: its first line has {len(cells)} columns, the next {n_columns}. Every line must have as many; "
            "put # before a first line that is no row, or set data.delimiter."
        )
    header, notes = (asked.header, []) if asked.header is not None else _has_header(path, cells, rest)
    names = [cell.strip('"') for cell in cells] if header else []
    found = asked.index_column is None and _counts_up((rest if header else [cells, *rest]), names)
    if found and names and asked.columns is None:  # a header that names all but this column
        asked = asked.model_copy(update={"index_column": True})
        notes.append(
            f"{path}: its first column has no name and numbers the rows: it is left out. If it is a feature, set data.index_column: "
            "false"
        )
    used = _used(path, asked, names, n_columns)
    if found and 0 in used:
        notes.append(
            f"{path}: its first column has no name and numbers the rows, and is read as a feature. Set data.index_column: true "
            "to leave it out, or false to keep it"
        )
    return Layout(delimiter, header, n_columns, used, [names[j] for j in used] if names else []), notes


def _has_header(path: str, cells: list[str], rest: list[list[str]]) -> tuple[bool, list[str]]:
    """Whether the first line holds names, as far as it tells, and what should be said of that."""
    if any(_as_number(cell) is None and cell.lower() not in _MISSING and any(map(str.isalpha, cell)) for cell in cells):
        if any(_as_number(cell) is not None for cell in cells if cell):
            raise InputError(
                f"{path}: its first line holds names and numbers, {', '.join(cells[:4])}. Set data.header: true if they are all "
                "names, else correct it, or choose data.columns and set data.header: false."
            )
        return True, []
    if len(cells) > 1 and all(cell.isdecimal() for cell in cells) and rest:
        first = int(cells[0])
        if [int(cell) for cell in cells] == list(range(first, first + len(cells))):
            line = f"{path}: its first line is {', '.join(cells[:3])}, …"
            if not any(cell.isdecimal() for row in rest for cell in row):
                return True, [
                    f"{line} above rows without whole numbers: they are taken for names. If it is a row, set data.header: false"
                ]
            return False, [f"{line} and is read as a row. If they are names, set data.header: true"]
    return False, []


def _counts_up(rows: list[list[str]], names: list[str]) -> bool:
    """Whether the first cells of rows are 0, 1, 2 or 1, 2, 3, and so on, in a column without a name."""
    if (names and names[0] and not names[0].startswith("Unnamed")) or len(rows) < 3 or len(rows[0]) < 2:
        return False
    firsts = [row[0].strip('"') if row else "" for row in rows]
    return any(firsts == [str(i) for i in range(start, start + len(firsts))] for start in (0, 1))


def _used(path: str, asked: CsvSection, names: list[str], n_columns: int) -> tuple[int, ...]:
    """The columns that are features."""
    if asked.columns is None:
        used = tuple(range(int(bool(asked.index_column)), n_columns))
        if not used:
            raise InputError(
                f"data.index_column: {path} has one column, expected features beside it. Remove the option."
            )
        return used
    found = []
    for column in asked.columns:
        at = [j for j, name in enumerate(names) if name == str(column)] if names else []
        if not names and str(column).isdecimal() and int(column) < n_columns:
            at = [int(column)]
        if len(at) != 1:
            those = ", ".join(names[:20]) if names else f"a position from 0 to {n_columns - 1}, as there is no header"
            several = (
                f"which {len(at)} columns are named"
                if at
                else f"which is no column of {path}{did_you_mean(str(column), names)}"
            )
            raise InputError(f"data.columns: got {column!r}, {several}; expected one of {those}. Correct it.")
        found += at
    if len(set(found)) < len(found) or (asked.index_column and 0 in found):
        raise InputError("data.columns: names a column twice, or the one that index_column leaves out. Remove it.")
    return tuple(found)


def _refuse_long(line: bytes, path: str) -> bytes:
    if len(line) > _LINE_BYTES:
        raise InputError(
            f"{path}: has a line of more than {_LINE_BYTES} bytes that begins with {line[:20]!r}, expected lines of numbers. "
            "Check what wrote it."
        )
    return line


def _scan(
    stream: IO[bytes], path: str, delimiter: str | None, header: bool, rows_per_chunk: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Byte offset and line number of each chunk's start (and the last line's end), rows, and bytes of text."""
    offsets, lines = [], []
    n_rows, n_lines, n_bytes = -int(header), 0, 0
    for block in _blocks(stream, path):
        if n_bytes == 0 and block.startswith(_BYTE_ORDER_MARK):
            block = b"   " + block[3:]
        starts, is_row = _line_starts(block, delimiter)
        rows = np.flatnonzero(is_row)
        chunk_starts = rows[np.arange(-n_rows % rows_per_chunk if n_rows >= 0 else 1, len(rows), rows_per_chunk)]
        offsets.append(starts[chunk_starts] + n_bytes)
        lines.append(chunk_starts + n_lines)
        n_rows, n_lines, n_bytes = n_rows + len(rows), n_lines + len(starts), n_bytes + len(block)
    lines.append(np.array([n_lines]))
    return np.concatenate(offsets) if offsets else np.array([]), np.concatenate(lines), max(n_rows, 0), n_bytes


def _blocks(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """Pieces of about a megabyte that hold whole lines; the very last line may lack its end."""
    rest: list[bytes] = []
    while block := stream.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, block[:cut]])
            rest = []
        rest.append(block[cut:])
        if len(rest) > _LINE_BYTES // _BLOCK:
            _refuse_long(b"".join(rest), path)
    if any(rest):
        yield b"".join(rest)


def _line_starts(block: bytes, delimiter: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each line of a block starts, and whether it is a row: neither blank nor a comment."""
    text = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    starts = np.append(0, np.flatnonzero(text == ord("\n"))[:-1] + 1)
    first = text[starts]
    blanks = [ord(blank) for blank in _BLANKS if blank != delimiter]
    if np.isin(first, blanks).any():
        visible = np.flatnonzero(~np.isin(text, blanks))
        first = text[visible[np.searchsorted(visible, starts)]]
    return starts, ~np.isin(first, [ord("\n"), ord("#")])
