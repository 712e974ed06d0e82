"""Rows that are unlike those of a run, at a wanted rate of false alarms: `em-pipeline outliers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline import keyed
from pipeline.applying.rows import OpenRows, asked_of, output_of, write_rows
from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import LowestRows, Rows, stack
from pipeline.arrays.stores import open_group
from pipeline.data.grid import FlatRows
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import RowArray
from pipeline.models.words import Words
from pipeline.outputs import checkpoint, model_store
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import LabelBlock
from pipeline.outputs.run_directory import RunDirectory

MOST = 1_000_000  # rows of the run that new ones are compared with; of more, a sample


def outliers(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    rate: float = 0.01,
    by_component: bool = False,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
    calibration: str | Path | None = None,
) -> Path:
    """Flag rows that fit worse than nearly all rows of the run; return the store, `outliers.zarr` in the output.

    Parameters
    ----------
    path : str or Path
        Of a run with `labels.zarr`, whose log-densities calibrate the threshold: of held-out rows alone, where the chosen model was not
        refitted to them (``select.refit: false``).
    overrides : sequence of str
        ``data.path=…`` of the rows; engine may change too.
    output : str or Path
        The directory. Beside the arrays of labels.zarr, its store has `p_value`, the share of the run's rows that fit no better (0 by
        component where none of them has the label), and
        `outlier`: 1 where that is at most the rate, 0 where it is above, -1 for rows with NaN or inf.
    rate : float
        Of false alarms: the share of rows like those of the run that are flagged.
    by_component : bool
        Whether a row is compared with rows of the run that have its label; else with all.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.
    calibration : str or Path, optional
        Directory of a prediction by the same run, of rows that the model was not fitted to: these are then compared with, not those of
        the run.

    References
    ----------
    Vovk, Gammerman and Shafer (2005): conformal p-values, which are exact for calibration rows that the model was not fitted to.
    """
    config = asked_of(path, overrides, "outliers")
    if not 0 < rate < 1:
        raise InputError(f"outliers: got rate {rate:g}, expected a number between 0 and 1, such as 0.01. Correct it.")
    calibration = None if calibration is None else str(Path(calibration).absolute())
    options = {"command": "outliers", "rate": rate, "by_component": by_component, "calibration": calibration}
    return finish_outliers(RunDirectory(path), config, output_of("outliers", output), options, listeners, began)


def finish_outliers(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the flags that a directory lacks. options : of the command, by name."""

    def made(opened: OpenRows) -> LabelBlock:
        words = opened.model.words
        labelled = run if options["calibration"] is None else _prediction_of(run, options["calibration"])
        known = _calibration(labelled, words.score, words.sign, options["by_component"])
        least = min(len(scores) for scores in known.values())
        if options["rate"] * (least + 1) < 1:
            of = "component" if options["by_component"] else "run"
            raise InputError(
                f"outliers: got rate {options['rate']:g}, but the {of} has {least} rows, of which none is so rare. Expected at least "
                f"{1 / (least + 1):.2g}. Raise --rate."
            )
        return opened.block(Judged(opened.model, known, options["rate"]), opened.mapped)

    def after(opened: OpenRows, log: EventLog) -> None:
        if not target.report.exists():
            from pipeline.outputs.report import write_report

            _keep_oddest(target.path / "outliers.zarr", opened)
            write_report(target.path)

    return write_rows(run, config, target, options, made, listeners, began, after=after)


def _keep_oddest(store: Path, opened: OpenRows) -> None:
    """Store the oddest rows themselves beside the arrays, for the report: those of the lowest p-values, then of the lowest scores."""
    group, words = zarr.open_group(store, mode="a"), opened.model.words
    p, scores, found = FlatRows(group["p_value"]), FlatRows(group[words.score]), np.empty((0, 3))
    for part in p.parts():
        block = np.stack([p[part], words.sign * scores[part], np.arange(part.start, part.stop)], axis=1)
        found = np.concatenate([found, block[~np.isnan(block[:, 0])]])
        found = found[np.lexsort(found.T[::-1])][: model_store.OUTLIERS]
    if not len(found):
        return
    rows, bounds = found[:, 2].astype(np.int64), opened.chunks.source.bounds
    ascending = np.sort(rows)
    chunk = np.searchsorted(bounds, ascending, side="right") - 1
    read = (opened.mapped.load(i).x[ascending[chunk == i] - bounds[i]] for i in np.unique(chunk).tolist())
    x = reduce(stack, read)[np.searchsorted(ascending, rows)]
    oddest = LowestRows(len(rows), found[:, 1], rows, x, np.ones(len(rows)), np.full(len(rows), -1))
    for name, (dims, value) in model_store.outlier_variables(oddest, opened.model).items():
        group.create_array(name, data=np.asarray(value), dimension_names=dims, overwrite=True)


def _prediction_of(run: RunDirectory, path: str) -> RunDirectory:
    """The directory of a prediction. Raises InputError if it is by another model."""
    found = RunDirectory(path)
    if found.read_config().get("model") != checkpoint.sums(run.model):
        raise InputError(
            f"--calibration {path}: holds no labels by the model of {run}. Make them: em-pipeline predict {run}"
        )
    return found


def _calibration(run: RunDirectory, score: str, sign: int, by_component: bool) -> dict[int, Array]:
    """Ascending scores of rows of the run, higher where they fit better, by label; -1 for those of all rows."""
    try:
        group = open_group(run.labels)
        scores, labels = FlatRows(group[score]), FlatRows(group["label"]) if "label" in group else None
        held_out = FlatRows(group["held_out"]) if "held_out" in group else None  # the model was not fitted to these
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"outliers: {run} has no labels.zarr with {score} ({error}). Write it: em-pipeline predict {run}"
        ) from error
    if by_component and labels is None:
        raise InputError("outliers: got --by-component, but the labels of the run have no components. Leave it out.")
    share, found, own = MOST / max(MOST, scores.shape[0]), [], []
    for rows in scores.parts():
        chosen = keyed.uniform(0, 77, np.arange(rows.start, rows.stop)) <= share
        value = sign * scores[rows]
        chosen &= np.isfinite(value)
        if held_out is not None:
            chosen &= held_out[rows] == 1
        found.append(value[chosen])
        own.append(labels[rows][chosen] if by_component and labels is not None else np.full(chosen.sum(), -1))
    value, label = np.concatenate(found), np.concatenate(own)
    if not len(value):
        raise InputError(f"outliers: {run} has no rows with a {score}. Fit a model to some.")
    return {int(one): np.sort(value[label == one]) for one in np.unique(label)}


@dataclass(frozen=True)
class Judged:
    """Labels with p-values and flags, as arrays of a store (see `LabelBlock`). known : as `_calibration` returns them."""

    model: Any
    known: dict[int, Array]
    rate: float

    @property
    def family(self) -> str:
        """That of the model."""
        return str(self.model.family)

    @property
    def words(self) -> Words:
        """Those of the model."""
        return Words(*self.model.words)

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """Those of labels, and two more."""
        return {
            **self.model.row_arrays(top_k),
            "p_value": RowArray("float64", np.nan),
            "outlier": RowArray("int8", -1),
        }

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the arrays of a chunk."""
        arrays: dict[str, Array] = self.model.predict(params, rows, top_k, kernels)
        value = self.model.words.sign * arrays[self.model.words.score]
        label = np.full(len(value), -1) if set(self.known) == {-1} else arrays["label"]
        p = np.full(len(value), np.nan)
        for one in np.unique(label):
            own = label == one
            scores = self.known.get(int(one))  # None: no row of the run has this label
            if scores is None:
                p[own] = 0.0
            else:
                p[own] = (1.0 + np.searchsorted(scores, value[own], side="right")) / (1.0 + len(scores))
        return {**arrays, "p_value": p, "outlier": (p <= self.rate).astype(np.int8)}
