"""Tables of numbers in text: comma, semicolon, tab or blanks between cells, with or without a header line.

Opening is one pass that finds where each chunk starts; a read parses only its own lines.
Text is slow (a few million cells a second): convert what is read often to zarr or npy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import IO, Any, Literal

import numpy as np
from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.files import damaged, open_binary, opening, reading, seekable, stored_size, what_it_is
from pipeline.data.section import ConvertedSection
from pipeline.data.source import Source, even_bounds, rows_per_target
from pipeline.errors import InputError

_BLOCK = 2**20
_LINE_BYTES = 16 * 2**20  # of one line: about a million columns
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CsvSection(ConvertedSection):
    """Numbers in delimited text. A first line without a single number is a header; lines that begin with # are comments."""

    source: Literal["csv"] = Field("csv", description="numbers in delimited text")
    path: AnyPath = Field(description="a text file, .gz or plain, or an fsspec URL of one")
    delimiter: str | None = Field(
        None,
        description="what separates columns; null: the first of semicolon, tab and comma in the first line, else blanks",
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
            delimiter, names, n_features = _sniff(stream, path, self.delimiter)
            stream.seek(0)
            rows = rows_per_target(n_features, 8)
            offsets, lines, n_rows, n_bytes = _scan(stream, path, delimiter, bool(names), rows)
        if n_rows == 0:
            raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
        path = seekable(path, self.storage_options, self.cache, n_bytes)
        bounds = even_bounds(n_rows, rows)
        return TextSource(path, self.storage_options, delimiter, bounds, n_features, names, offsets, lines)


class TextSource(Source):
    """Rows of a delimited text file, float64; an empty cell is NaN; lines that begin with # are comments.

    Parameters
    ----------
    path : str
    options : mapping
        Of its file system.
    delimiter : str or None
        None: blanks.
    bounds : array, shape (n_chunks + 1,)
    n_features : int
    names : list of str
        Of the header, empty without one.
    offsets : array, shape (n_chunks,)
        Bytes of text before each chunk.
    lines : array, shape (n_chunks + 1,)
        Chunk i is lines ``lines[i]`` to ``lines[i + 1]``, from 0.
    """

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        delimiter: str | None,
        bounds: np.ndarray,
        n_features: int,
        names: list[str],
        offsets: np.ndarray,
        lines: np.ndarray,
    ) -> None:
        self.n_features, self.dtype, self.bounds = n_features, np.dtype(np.float64), bounds
        self._path, self._options, self._delimiter = path, dict(options), delimiter
        self._names, self._offsets, self._lines = names, offsets, lines

    def read(self, i: int) -> np.ndarray:
        """Read chunk i. Raises InputError with line and column of a cell that is not a number."""
        n_rows = int(self.bounds[i + 1] - self.bounds[i])
        what = f"{self._path}, lines {self._lines[i] + 1} to {self._lines[i + 1]} (chunk {i})"
        with reading(what):
            try:
                with self._chunk(i) as lines:
                    x = np.loadtxt(lines, delimiter=self._delimiter, ndmin=2, encoding="utf-8")
            except (ValueError, UnicodeDecodeError):
                x = np.empty((0, 0))  # an empty or a bad cell: go through the lines one by one
            if x.shape != (n_rows, self.n_features):
                with self._chunk(i) as lines:
                    x = self._parse(lines, int(self._lines[i]), n_rows)
        if len(x) != n_rows:
            raise damaged(what, f"it has {len(x)} rows of numbers, {n_rows} when it was opened")
        return x

    def describe(self) -> dict[str, Any]:
        return {"kind": "rows", "features": self._names} if self._names else {"kind": "rows"}

    def _chunk(self, i: int) -> _Lines:
        stream = open_binary(self._path, self._options)
        stream.seek(int(self._offsets[i]))
        return _Lines(stream, int(self._lines[i + 1] - self._lines[i]))

    def _parse(self, lines: Iterator[str], first: int, n_rows: int) -> np.ndarray:
        x = np.empty((n_rows, self.n_features))
        row = 0
        for number, line in enumerate(lines, start=first + 1):
            cells = _cells(line, self._delimiter)
            if not cells:
                continue
            if len(cells) != self.n_features:
                raise InputError(
                    f"{self._path}, line {number}: has {len(cells)} columns, expected {self.n_features}. "
                    "Correct the line, or put # before it."
                )
            if row < n_rows:
                x[row] = [self._number(cell, number, column) for column, cell in enumerate(cells, start=1)]
            row += 1
        return x[:row]

    def _number(self, cell: str, line: int, column: int) -> float:
        number = _as_number(cell)
        if number is None:
            raise InputError(
                f"{self._path}, line {line}, column {column}: got {cell!r}, expected a number or an empty cell. "
                "Correct it, remove the column, or set data.delimiter."
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
    line = line.strip(" \r\n" if delimiter == "\t" else None)
    if not line or line.startswith("#"):
        return []
    return [cell.strip() for cell in line.split("#")[0].split(delimiter)]


def _sniff(stream: IO[bytes], path: str, asked: str | None) -> tuple[str | None, list[str], int]:
    """Delimiter (None: blanks), the names in the header line (none without one), and the number of columns."""
    if asked is not None and len(asked) != 1:
        raise InputError(f"data.delimiter: got {asked!r}, expected one character. Blanks are ' ', a tab \"\\t\".")
    lines = iter(lambda: stream.readline(_LINE_BYTES + 1), b"")
    texts = (_refuse_long(line, path).decode("utf-8-sig", errors="replace") for line in lines)
    texts = (text for text in texts if _cells(text, None))
    first, second = next(texts, ""), next(texts, None)
    if not first:
        raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
    delimiter = asked or next((character for character in ";\t," if character in first), None)
    delimiter = None if delimiter == " " else delimiter
    cells = _cells(first, delimiter)
    header = any(cells) and all(_as_number(cell) is None for cell in cells if cell)
    n_columns = len(_cells(second, delimiter)) if second is not None else len(cells)
    if n_columns != len(cells):
        raise InputError(
            f"{path}: its first line has {len(cells)} columns, the next {n_columns}. Every line must have as many; "
            "put # before a first line that is no row, or set data.delimiter."
        )
    return delimiter, cells if header else [], n_columns


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
    blanks = [ord(" ")] if delimiter == "\t" else [ord(" "), ord("\t")]
    if np.isin(first, blanks).any():
        visible = np.flatnonzero(~np.isin(text, blanks))
        first = text[visible[np.searchsorted(visible, starts)]]
    return starts, ~np.isin(first, [ord("\n"), ord("\r"), ord("#")])
