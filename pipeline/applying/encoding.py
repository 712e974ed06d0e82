"""Rows, or units of rows such as pictures, as features by the components of a run: `em-pipeline encode`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.applying.rows import OpenRows, asked_of, output_of, write_rows
from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.config.paths import is_url
from pipeline.data.column import RowColumn
from pipeline.data.grid import Grid
from pipeline.data.source import Source
from pipeline.data.units import UnitSource, unit_starts
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import RowArray
from pipeline.models.codes import Code
from pipeline.models.words import Words
from pipeline.outputs.events import Listener
from pipeline.outputs.exported import refuse_format
from pipeline.outputs.labels import BLOCK_BYTES, BLOCK_ROWS, LabelBlock, refuse_bad
from pipeline.outputs.run_directory import RunDirectory

if TYPE_CHECKING:
    import xarray as xr


def encode(
    path: str | Path,
    code: str,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    pool: str | None = None,
    grid: Sequence[int] = (1,),
    units: str | Path | None = None,
    form: str = "zarr",
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Write rows, or units of rows, as features by the components of a run; return the store, `encode.zarr` in the output, or the table.

    Parameters
    ----------
    path : str or Path
        Of a run of a mixture or K-means.
    code : {"hard", "soft", "triangle", "distances", "words", "vlad", "fisher"}
        As `pipeline.models.codes` defines them. The last three are of units: pictures, or what `units` says.
    overrides : sequence of str
        ``data.path=…`` of the rows; engine may change too.
    output : str or Path
        The directory. `code` in its store is float32 with the dimensions row and column for rows, float64 with unit and column for
        units; their coordinates are the names of pictures, or numbers from 0, and of columns.
    pool : {"sum", "mean", "max"}, optional
        Pools one of the first four codes over the rows of a unit.
    grid : sequence of int
        Cuts pictures into g x g cells, for each g, whose codes follow each other: (2,) for quadrants, (1, 2, 4) for a pyramid.
    units : str or Path, optional
        A column of numbers, as `data.units`: rows of one number, which follow each other, are a unit. By default these are pictures.
    form : {"zarr", "parquet", "csv"}
        parquet, csv: also write a table, a line a row or unit.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.

    References
    ----------
    Coates, Lee and Ng (2011); Lazebnik, Schmid and Ponce (2006), for `grid`; Jégou et al. (2010); Perronnin, Sánchez and Mensink (2010).
    """
    refuse_format(form)
    config, target = asked_of(path, overrides, "encode"), output_of("encode", output)
    at = None if units is None else str(units) if is_url(str(units)) else str(Path(units).absolute())
    options = {"command": "encode", "code": code, "pool": pool, "grid": list(grid), "units": at, "format": form}
    return finish_encoding(RunDirectory(path), config, target, options, listeners, began)


def finish_encoding(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the codes that a directory lacks. options : of the command, by name."""

    def made(opened: OpenRows) -> LabelBlock:
        if opened.chunks.noise is not None:
            raise InputError("encode: got data.noise, but codes are of rows without errors. Leave it out.")
        code = Code(options["code"], opened.model, opened.params, options["pool"], tuple(options["grid"]))
        if not code.of_units:
            if options["units"] is not None:
                raise InputError(
                    f"encode: got --units, but {code.name} is a code of rows. Give --pool, or leave it out."
                )
            return opened.block(Encoded(code), opened.mapped)
        source = opened.chunks.source
        starts = source.units() if options["units"] is None else _units(options["units"], source, config)
        if starts is None:
            raise InputError(
                f"encode: {code.name} is a code of units, but rows of data.source: {config.data.source} are no parts of pictures. "
                "Give --units, a column with the number of each row's unit."
            )
        if max(code.grid) > 1 and (options["units"] is not None or source.places(0, 1) is None):
            raise InputError("encode: got a grid, but units are no pictures. Leave --grid out.")
        return UnitBlock(opened.mapped, Encoded(code), opened.params, 0, opened.drop, starts=starts)

    return write_rows(run, config, target, options, made, listeners, began, options["format"])


def _units(path: str, source: Source, config: Config) -> Array:
    """The first row of each unit, from a column."""
    inner, data = source.inner if isinstance(source, UnitSource) else source, config.data
    column = RowColumn.open(path, inner.n_rows, "units", None, data.storage_options, data.missing_chunks)
    return unit_starts(column, inner.n_rows)


@dataclass(frozen=True)
class Encoded:
    """Codes of rows, as an array of a store (see `LabelBlock`)."""

    code: Code

    @property
    def family(self) -> str:
        """That of the model."""
        return str(self.code.model.family)

    @property
    def words(self) -> Words:
        """Those of the model."""
        return Words(*self.code.model.words)

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """The codes."""
        dtype = "float64" if self.code.of_units else "float32"
        return {"code": RowArray(dtype, np.nan, columns=self.code.width, along="column")}

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the codes of the rows of a chunk."""
        return {"code": self.code.rows(rows.x, kernels).astype(np.float32)}


@dataclass(frozen=True)
class UnitBlock(LabelBlock):
    """Task: codes of units start:stop, reading only the chunks with their rows, one at a time. starts : first row of each unit."""

    starts: Any = None

    def rows_on(self) -> tuple[Grid, xr.Dataset]:
        """Return the grid of units, with the names of units and of the columns of their codes."""
        import xarray as xr

        found = self.chunks.source.pictures()
        is_named = found is not None and len(found[1]) == len(self.starts) and (found[1] == self.starts).all()
        names = np.array(found[0]) if found is not None and is_named else np.arange(len(self.starts))
        own = {"unit": names, "first_row": ("unit", self.starts), "column": np.array(self.model.code.names())}
        return Grid(("unit",), (len(self.starts),)), xr.Dataset(coords=own)

    def keys(self, start: int, stop: int) -> dict[str, Array]:
        """Return the first row of each unit."""
        return {"first_row": self.starts[start:stop]}

    def pictures(self) -> None:
        """Pictures are the units."""

    def block_rows(self) -> int:
        """Return the units of a block, at most: of as many rows as a block of labels."""
        rows = max(1, self.chunks.n_rows // len(self.starts))
        return max(1, min(BLOCK_BYTES // (8 * self.model.code.width), BLOCK_ROWS // rows))

    def __call__(self, start: int, stop: int, kernels: Any) -> dict[str, Array]:
        code, source = self.model.code, self.chunks.source
        ends = np.append(self.starts, self.chunks.n_rows)
        low, high = int(ends[start]), int(ends[stop])
        first, last = np.searchsorted(source.bounds, [low, high - 1], side="right") - 1
        sums = code.zeros(stop - start)
        for i in range(int(first), int(last) + 1):
            chunk = self.chunks.load(i)
            part = slice(max(low - chunk.start, 0), min(high - chunk.start, chunk.n))
            if not self.drop:
                refuse_bad(chunk, part)
            rows = np.arange(chunk.start + part.start, chunk.start + part.stop)
            own = np.searchsorted(self.starts, rows, side="right") - 1 - start
            place = source.places(int(rows[0]), int(rows[-1]) + 1) if max(code.grid) > 1 else None
            weight = None if chunk.weight is None else chunk.weight[part]
            code.add(sums, chunk.x[part], weight, own, place, kernels)
        return {"code": code.finish(sums)}
