"""Rows drawn from the model of a run: `em-pipeline sample`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.applying.rows import output_of
from pipeline.arrays.dtypes import Array
from pipeline.arrays.stores import guarded
from pipeline.data.preprocess import Affine
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import Config
from pipeline.models.mixture import Mixture
from pipeline.outputs import checkpoint, model_store
from pipeline.outputs.events import Listener
from pipeline.outputs.run_directory import RunDirectory, publish, remove

BLOCK_BYTES = 2**23  # of rows drawn at a time, of one number of features always as many: draws do not depend on memory
SHOWN = 200  # rows on the sheet of patches or pictures


def sample(path: str | Path, rows: int, output: str | Path | None = None, seed: int = 0) -> Path:
    """Draw rows from the model of a run; return the store, `sample.zarr` in the output.

    Where rows are patches or pictures, the first are drawn on a sheet beside it, `sheet.png`.

    Parameters
    ----------
    path : str or Path
        Of a run of a mixture.
    rows : int
        How many.
    output : str or Path
        The directory. In its store are `x`, with the dimensions row and feature, in the units of the data (after a pca of fewer
        dimensions, the closest rows of those units), and `label`, the component of each row.
    seed : int
        The same number, the same rows. More rows begin with these, but for those of the last block.

    Raises
    ------
    InputError
        If the model cannot be sampled from, or the output is not free.
    """
    run, target = RunDirectory(path), output_of("sample", output)
    if rows < 1:
        raise InputError(f"sample: got {rows} rows, expected at least 1. Correct --rows.")
    draws = _draws(run, seed)
    record = {
        "prediction_of": str(run.path.absolute()),
        "model": checkpoint.sums(run.model),
        "config": run.read_config()["config"],
        "command": "sample",
        "rows": rows,
        "seed": seed,
    }
    target.refuse_unless_free(overwrite=False)
    with target.lock():
        target.create(record)
        return _finish(run, target, draws, rows)


def finish_sampling(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Draw what a directory lacks, from the first row on. options : of the command, by name. The other parameters are those of all commands."""
    draws = _draws(run, options["seed"])
    with target.lock():
        return _finish(run, target, draws, options["rows"])


def _draws(run: RunDirectory, seed: int) -> Draws:
    """Of the model of a run. Raises InputError if it cannot be sampled from."""
    model, params, affine = model_store.load_model(model_store.read_model(run.model))
    if not isinstance(model, Mixture):
        raise InputError(f"sample: got a run of a {model.words.name}, which cannot be sampled from. Fit a mixture.")
    return Draws(model, params, affine, seed)


def _finish(run: RunDirectory, target: RunDirectory, draws: Draws, rows: int) -> Path:
    """Write the store and the sheet where they are missing; return the store."""
    store, sheet = target.path / "sample.zarr", target.path / "sheet.png"
    if not store.exists():
        _write(store, draws, rows)
    if not sheet.exists():
        _draw_sheet(run.path, next(draws.blocks(rows))[1][:SHOWN], sheet)
    return store


@dataclass(frozen=True)
class Draws:
    """Blocks of rows of a model. affine : from the data's units to the model's, None if they are the same."""

    model: Mixture
    params: Any
    affine: Affine | None
    seed: int

    @property
    def columns(self) -> int:
        """Features of a row in the data's units."""
        return self.model.sizes["feature"] if self.affine is None else len(self.affine.offset)

    def blocks(self, rows: int) -> Iterator[tuple[int, Array, Array]]:
        """Yield the number of the first row, rows in the model's units and their components (n,), block by block."""
        step = max(1, BLOCK_BYTES // (8 * self.columns))
        for number, start in enumerate(range(0, rows, step)):
            rng = np.random.default_rng([self.seed, number])
            x, labels = self.model.sample(self.params, min(step, rows - start), rng)
            order = rng.permutation(len(labels))  # they come by component
            yield start, np.asarray(x[order], dtype=np.float64), labels[order]

    def in_units(self, x: Array) -> Array:
        """Return rows in the data's units, (n, columns)."""
        return x if self.affine is None else x @ self.affine.inverse() + self.affine.offset


def _write(store: Path, draws: Draws, rows: int) -> None:
    temporary = store.with_name(f".{store.name}.partial")
    try:
        remove(temporary)
        attributes: dict[str, Any] = {"family": draws.model.family, "n_rows": rows, "seed": draws.seed}
        group = zarr.open_group(guarded(temporary, read_only=False), mode="w", zarr_format=3, attributes=attributes)
        shape = (rows, draws.columns)
        step = min(rows, max(1, BLOCK_BYTES // (8 * draws.columns)))
        x = group.create_array(
            "x", shape=shape, dtype="float64", chunks=(step, shape[1]), dimension_names=("row", "feature")
        )
        label = group.create_array("label", shape=(rows,), dtype="int32", chunks=(step,), dimension_names=("row",))
        for start, drawn, labels in draws.blocks(rows):
            x[start : start + len(drawn)] = draws.in_units(drawn)
            label[start : start + len(drawn)] = labels
        publish(temporary, store)
    except OSError as error:
        raise StorageError(f"{store}: cannot be written ({error}). Make room, then `resume`.") from error


def _draw_sheet(run: Path, x: Array, path: Path) -> None:
    """Write rows as pictures, where that is what they are. x : in the model's units."""
    from pipeline.outputs.report.pictures import pixel_map, sheet_of
    from pipeline.outputs.report.record import read_record

    pixels = pixel_map(read_record(run))
    if pixels is not None:
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_bytes(base64.b64decode(sheet_of(pixels, x, "").source.partition(",")[2]))
        publish(temporary, path)
