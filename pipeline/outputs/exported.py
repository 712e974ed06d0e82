"""labels.zarr as one table, labels.parquet or labels.csv: a line a row, with what names the row in the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arrays.stores import open_group
from pipeline.data.grid import FlatRows
from pipeline.data.row_groups import pyarrow_of
from pipeline.data.source import Source
from pipeline.errors import InputError, StorageError
from pipeline.outputs.coordinates import of_data
from pipeline.outputs.labels import LabelBlock
from pipeline.outputs.run_directory import publish

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("zarr", "parquet", "csv")
TABLE_ROWS, TABLE_NUMBERS = 2**16, 2**22  # at a time


def refuse_format(name: str, known: Sequence[str] = FORMATS) -> None:
    """Raise InputError for a format that is not known, or cannot be written here."""
    if name not in known:
        raise InputError(f"--format: got {name!r}, expected {', '.join(known[:-1])} or {known[-1]}. Correct it.")
    if name == "parquet":
        pyarrow_of("--format: parquet")


def export(labels: Path, source: Source | LabelBlock, name: str) -> Path:
    """Write complete labels as a table beside them, and return its path.

    Parameters
    ----------
    labels : Path
        A labels.zarr, or another store of `write_labels`.
    source : Source or LabelBlock
        Of the rows, or the task that has written them.
    name : {"parquet", "csv"}

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    return write_table(labels.with_suffix(f".{name}"), _frames(labels, source))


def write_table(path: Path, frames: Iterable[pd.DataFrame]) -> Path:
    """Write consecutive rows as a table, in the format that its name ends with; return it. Raises StorageError if it cannot be written."""
    part = path.with_name(f".{path.name}.partial")
    try:
        with closing(_WRITERS[path.suffix[1:]](part)) as writer:
            for frame in frames:
                writer.write(frame)
        publish(part, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error}). Make room, then give the same command again."
        ) from error
    return path


def named_rows(source: Source | LabelBlock, start: int, stop: int) -> dict[str, Any]:
    """Return what names rows start:stop: numbers or coordinates, and what the source has beside, by name, (stop - start,) each."""
    grid, coordinates = source.rows_on()
    columns: dict[str, Any] = {"row": np.arange(start, stop)}
    if coordinates is not None:
        at = np.unravel_index(columns["row"], grid.shape)
        columns = {
            dim: coordinates[dim].values[i] if dim in coordinates else i for dim, i in zip(grid.dims, at, strict=True)
        }
    return columns | source.keys(start, stop)


def _frames(labels: Path, source: Source | LabelBlock) -> Iterator[pd.DataFrame]:
    """Consecutive rows: what names them, then the arrays of labels.zarr, one column for each rank."""
    import pandas as pd

    group, (grid, coordinates) = open_group(labels), source.rows_on()
    arrays = {name: FlatRows(array) for name, array in group.arrays() if FlatRows(array).shape[0] == grid.n_rows}
    arrays = {name: arrays[name] for name in sorted(arrays, key=lambda name: (name != "label", name))}
    named = {} if coordinates is None else coordinates.coords
    beside = {of_data(name) if of_data(name) in group else name for name in map(str, named)}
    arrays = {name: array for name, array in arrays.items() if name not in beside}
    step = max(1, TABLE_NUMBERS // max(1, sum(array.shape[-1] for array in arrays.values() if len(array.shape) > 1)))
    for start in range(0, grid.n_rows, step := min(step, TABLE_ROWS)):
        stop = min(start + step, grid.n_rows)
        columns = named_rows(source, start, stop)
        for name, array in arrays.items():
            values = array[start:stop]
            each = named["column"].values if "column" in named else [f"{name}_{i}" for i in range(values.shape[-1])]
            ranks = {name: values} if values.ndim == 1 else dict(zip(each, values.T, strict=True))
            # A key that is called as an array of labels keeps its name.
            columns |= {each if each not in columns else f"{each}_of_model": value for each, value in ranks.items()}
        yield pd.DataFrame(columns)


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")

    def write(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self._file, index=False, header=self._file.tell() == 0, lineterminator="\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path, self._arrow = path, pyarrow_of("--format: parquet")
        self._writer: Any = None

    def write(self, frame: pd.DataFrame) -> None:
        schema = None if self._writer is None else self._writer.schema
        table = self._arrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


_WRITERS: dict[str, Any] = {"csv": _Csv, "parquet": _Parquet}
