"""Rows and pictures from the codes of `em-pipeline compress`: `em-pipeline decompress`."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np

from pipeline.applying.beside import beside
from pipeline.applying.rows import asked_of, begin, output_of
from pipeline.arrays.dtypes import Array
from pipeline.data.grid import Grid
from pipeline.data.sources.images import ImageSource
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine, uses_processes
from pipeline.engine.memory import MIB, PeakMemory, plan
from pipeline.engine.passes import Engine, unused_address
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import Config
from pipeline.models.base import RowArray
from pipeline.outputs.compressed import Compressed
from pipeline.outputs.denoised import likeness
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import BLOCK_BYTES, BLOCK_ROWS, LabelBlock, write_labels
from pipeline.outputs.picture_files import PictureFiles
from pipeline.outputs.run_directory import RunDirectory, publish

WORK = 96 * MIB  # of a block of rows
TABLE = "pictures.csv"


def decompress(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
    original: str | Path | None = None,
) -> Path:
    """Restore rows or pictures from their codes; return the directory.

    Parameters
    ----------
    path : str or Path
        A directory of `compress`: neither the run nor the data are needed.
    overrides : sequence of str
        ``engine.…``.
    output : str or Path
        The directory. It gets `decompress.zarr` with `x`, (row, feature), in the order of the rows that were compressed; of pictures the
        folder `pictures` with files of their names, lossless and of their depth, where overlapping patches are averaged.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.
    original : str or Path, optional
        The folder of the pictures that were compressed, to compare with: `pictures.csv` gets PSNR and SSIM of each, as a whole.

    Raises
    ------
    InputError
        If there are no finished codes, or the originals are others.
    """
    for override in overrides:
        if not override.startswith(("engine.", "engine=")):
            raise InputError(
                f"decompress: got {override.partition('=')[0]}, expected engine.…: the codes are all that is read. Leave it out."
            )
    config, target = asked_of(path, overrides, "decompress"), output_of("decompress", output)
    options = {"command": "decompress"}
    options |= {} if original is None else {"original": str(Path(original).absolute())}
    return finish_decompressing(RunDirectory(path), config, target, options, listeners, began)


def finish_decompressing(
    codes: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Restore what a directory lacks. options : of the command, by name."""
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        found, asked = Compressed(codes.path / "compress.zarr"), config.engine
        needed = WORK + found.largest_picture
        advice = "compress smaller pictures"
        originals = _originals(found, config, options.get("original"))
        planned = plan(asked.memory, asked.workers, needed, 0, needed, uses_processes(asked), advice=advice)
        with open_engine(asked, planned.workers, planned.ahead, planned.spare) as engine, target.lock():
            begin(target, codes, config, {}, options)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(asked))
            engine.report_to(log)
            written = _write(found, target, engine, log)
            if written or (originals and not (target.path / TABLE).exists()):
                if originals:
                    _compare(found, originals, target, log)
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
    return target.path


def _write(found: Compressed, target: RunDirectory, engine: Engine, log: EventLog) -> bool:
    """Write what is missing; return whether anything was."""
    if found.patch is None:
        store, n = target.path / "decompress.zarr", found.n_rows
        missing = not store.exists()
        if missing:
            write_labels(
                store,
                Restored(cast(Any, None), found, None, 0, False),
                engine,
                lambda rows: log("labelled", rows=rows, of=n, what="rows"),
            )
        return missing
    files = PictureFiles(target.path / "pictures", found)
    todo = [i for i in range(len(files.names)) if not files.path(i).exists()]
    restored = engine.map_in_order(RestoredPicture(found), [(i,) for i in todo])
    for done, (i, pixels) in enumerate(zip(todo, restored, strict=True), 1):
        files.write(i, pixels)
        log("restored", pictures=done, of=len(todo))
    return bool(todo)


def _originals(found: Compressed, config: Config, path: str | None) -> list[tuple[ImageSource, int]]:
    """The original of each picture; none without a folder of them. Raises InputError for rows of a table, or if one is missing."""
    if path is None:
        return []
    if found.patch is None:
        raise InputError("--original: got codes of rows, expected those of pictures. Leave it out.")
    return beside(found, config, "original", path)


def _compare(found: Compressed, originals: list[tuple[ImageSource, int]], target: RunDirectory, log: EventLog) -> None:
    """Write PSNR and SSIM of the files beside the originals, and tell their means."""
    assert found.patch is not None
    files, whole, colour = (
        PictureFiles(target.path / "pictures", found),
        (slice(None), slice(None)),
        found.patch["channels"] > 1,
    )
    lines = [
        (name, *likeness(files.read(i), source.pixels(number, whole, colour)))
        for i, (name, (source, number)) in enumerate(zip(files.names, originals, strict=True))
    ]
    table = target.path / TABLE
    temporary = table.with_name(f".{TABLE}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("picture", "psnr", "ssim"), *lines])
        publish(temporary, table)
    except OSError as error:
        raise StorageError(f"{table}: cannot be written ({error}). Make room, then `resume`.") from error
    similar = [ssim for _, _, ssim in lines if ssim is not None]
    means = {"psnr": fmean(psnr for _, psnr, _ in lines), "ssim": fmean(similar) if similar else None}
    log("compared", pictures=len(lines), **means)


@dataclass(frozen=True)
class RestoredPicture:
    """Task: the pixels of a picture."""

    codes: Compressed

    def __call__(self, picture: int, kernels: Any) -> Array:
        return self.codes.pixels(picture)


@dataclass(frozen=True)
class Restored(LabelBlock):
    """Task: rows start:stop, from the codes that are its `model`."""

    def arrays(self) -> dict[str, RowArray]:
        """Return the array by name."""
        codebook = self.model.codebook
        return {"x": RowArray(codebook.entries.dtype.name, np.nan, columns=codebook.n_values)}

    def rows_on(self) -> tuple[Grid, None]:
        """Return the grid of a table."""
        return Grid.of_rows(self.model.n_rows), None

    def pictures(self) -> None:
        """Rows are no patches."""

    def block_rows(self) -> int:
        """Return the rows of a block, at most."""
        codebook = self.model.codebook
        row = max(codebook.n_values * codebook.entries.itemsize, sum(codebook.widths) + 8 * len(codebook.widths))
        return min(BLOCK_ROWS, max(1, BLOCK_BYTES // row))

    def __call__(self, start: int, stop: int, kernels: Any) -> dict[str, Array]:
        return {"x": self.model.rows(start, stop)}
