"""Lines of delimited text: what a line is, from the first ones, and what its cells say."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, NamedTuple

from pipeline.data.categories import Distinct, refuse_others
from pipeline.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pipeline.data.sources.csv import CsvSection

_BLOCK = 2**20
LINE_BYTES = 16 * 2**20  # of one line: about a million columns
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = " \t\r\f\v"  # a line of nothing else is no row
_MISSING = {"", "na", "n/a", "nan", "null", "none", "nil", "inf", "-", "?", "."}  # a line of nothing else is no header
_LOOK, _LOOK_CELLS = 100, 2**18  # rows and cells that are looked at for what is said of a file


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
    categories : dict
        Names of the categories of a column, by its position.
    key : tuple
        Name and position of the column that names a row; None where there is none.
    """

    delimiter: str | None
    header: bool
    n_columns: int
    used: tuple[int, ...]
    names: list[str]
    categories: dict[int, list[str]]
    key: tuple[str, int | None] = ("", None)

    def name_of(self, column: int) -> str:
        """The name of a used column, its position where there are none."""
        return self.names[self.used.index(column)] if self.names else str(column)

    def distinct(self, stream: IO[bytes], path: str, names: list[str]) -> dict[str, list[str]]:
        """The categories of some columns, from all lines."""
        found, header = Distinct(names), self.header
        at = {name: column for column in self.used if (name := self.name_of(column)) in names}
        for block in blocks(stream, path):
            values: dict[str, set[str]] = {name: set() for name in names}
            for line in block.decode("utf-8-sig", errors="replace").split("\n"):
                cells = cells_of(line, self.delimiter)
                if cells and not header and len(cells) == self.n_columns:
                    for name, column in at.items():
                        values[name].add(cells[column].strip('"'))
                header = header and not cells
            for name, own in values.items():
                found.add(name, own - {""})
        return found.sorted()


def as_code(cell: str, names: list[str]) -> float | None:
    """The code of a cell: NaN when empty, None when it is no category."""
    name = cell.strip('"')
    return float("nan") if not name else float(names.index(name)) if name in names else None


def coded_by(names: list[str]) -> Callable[[str], float]:
    """What makes codes of cells. It raises ValueError for a cell that is no category."""
    table = {name: float(code) for code, name in enumerate(names)} | {"": float("nan")}

    def code(cell: str) -> float:
        name = cell.strip().strip('"')
        if name not in table:
            raise ValueError(name)
        return table[name]

    return code


def as_number(cell: str) -> float | None:
    """The value of a cell: NaN when empty, None when it is not a number."""
    if not cell:
        return float("nan")
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def cells_of(line: str, delimiter: str | None) -> list[str]:
    """The stripped cells of a line, none for a blank line or comment."""
    line = line.rstrip("\n").strip(BLANKS.replace("\t", "") if delimiter == "\t" else BLANKS)
    if not line or line.startswith("#"):
        return []
    return [cell.strip() for cell in line.split("#")[0].split(delimiter)]


def layout_of(stream: IO[bytes], path: str, asked: CsvSection) -> tuple[Layout, list[str]]:
    """What a line is, and what should be known of it."""
    if asked.delimiter is not None and (len(asked.delimiter) != 1 or asked.delimiter in '#+-.\r\n"' + string.digits):
        raise InputError(
            f"data.delimiter: got {asked.delimiter!r}, expected one character that is in no number. Set one: blanks are ' ', a tab is \"\\t\"."
        )
    lines = iter(lambda: stream.readline(LINE_BYTES + 1), b"")
    texts = (refuse_long(line, path).decode("utf-8-sig", errors="replace") for line in lines)
    rows = (text for text in texts if cells_of(text, None))
    first = next(rows, "")
    if not first:
        raise InputError(f"{path}: has no rows of numbers, expected at least one. Check what wrote it.")
    delimiter = asked.delimiter or next((character for character in ";\t," if character in first), None)
    delimiter = None if delimiter == " " else delimiter
    cells = cells_of(first, delimiter)
    rest = [cells_of(text, delimiter) for text in islice(rows, max(1, min(_LOOK, _LOOK_CELLS // len(cells))))]
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
    key = (
        ("", None) if asked.index is None else (str(asked.index), _column("index", path, asked.index, names, n_columns))
    )
    layout = Layout(delimiter, header, n_columns, used, [names[j] for j in used] if names else [], {}, key)
    refuse_others(asked.categories, [layout.name_of(column) for column in used])
    given = asked.categories if isinstance(asked.categories, dict) else {}
    coded = {column: given[name] for column in used if (name := layout.name_of(column)) in given}
    return layout._replace(categories=coded), notes


def _has_header(path: str, cells: list[str], rest: list[list[str]]) -> tuple[bool, list[str]]:
    """Whether the first line holds names, as far as it tells, and what should be said of that."""
    if any(as_number(cell) is None and cell.lower() not in _MISSING and any(map(str.isalpha, cell)) for cell in cells):
        if any(as_number(cell) is not None for cell in cells if cell):
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
    index = None if asked.index is None else _column("index", path, asked.index, names, n_columns)
    if asked.columns is None:
        used = tuple(j for j in range(int(bool(asked.index_column)), n_columns) if j != index)
        if not used:
            option = "index_column" if index is None else "index"
            raise InputError(f"data.{option}: {path} has one column, expected features beside it. Remove the option.")
        return used
    found = [_column("columns", path, column, names, n_columns) for column in asked.columns]
    if len(set(found)) < len(found) or (asked.index_column and 0 in found):
        raise InputError("data.columns: names a column twice, or the one that index_column leaves out. Remove it.")
    if index in found:
        raise InputError(f"data.index: {asked.index!r} is one of data.columns, expected another. Leave it out of one.")
    return tuple(found)


def _column(option: str, path: str, column: str | int, names: list[str], n_columns: int) -> int:
    """The position of a column that an option names."""
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
        raise InputError(f"data.{option}: got {column!r}, {several}; expected one of {those}. Correct it.")
    return at[0]


def refuse_long(line: bytes, path: str) -> bytes:
    """Return the line. Raises InputError for one of more than LINE_BYTES."""
    if len(line) > LINE_BYTES:
        raise InputError(
            f"{path}: has a line of more than {LINE_BYTES} bytes that begins with {line[:20]!r}, expected lines of numbers. "
            "Check what wrote it."
        )
    return line


def blocks(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """Pieces of about a megabyte that hold whole lines; the very last line may lack its end."""
    rest: list[bytes] = []
    while block := stream.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, block[:cut]])
            rest = []
        rest.append(block[cut:])
        if len(rest) > LINE_BYTES // _BLOCK:
            refuse_long(b"".join(rest), path)
    if any(rest):
        yield b"".join(rest)
