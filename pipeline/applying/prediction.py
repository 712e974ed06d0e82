"""Labels of a run's own rows, or of others with a directory and a report of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.applying.rows import asked_of, begin, open_rows, reopened
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import PeakMemory
from pipeline.engine.passes import unused_address
from pipeline.errors import InputError
from pipeline.job import Job, engine_for, write_labels_of
from pipeline.jobconfig import Config
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.exported import FORMATS, export, refuse_format
from pipeline.outputs.labels import has_labels
from pipeline.outputs.raster import spatial_dims, write_raster
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.state import as_read_before
from pipeline.outputs.written_back import lacks_column, refuse_write_back, write_back


def predict(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
    form: str = "zarr",
) -> Path:
    """Label the run's own rows, or others; return the store of labels, or the table that is made of it.

    Parameters
    ----------
    path : str or Path
    overrides : sequence of str
        ``data.key=value`` for other rows; engine and output.top_k may change too.
    output : str or Path, optional
        Directory for the labels of other rows.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait; the time of the job is counted from it. Now by default.
    form : {"zarr", "parquet", "csv", "geotiff"}
        parquet, csv: also write labels.parquet or labels.csv, a line a row, with what names the row in the input; geotiff: also
        write labels.tif, with the coordinates of the data.
    """
    refuse_format(form, (*FORMATS, "geotiff"))
    config = asked_of(path, overrides, "predict", ("output.top_k", "output.write_back"))
    if not any(override.startswith("output.write_back=") for override in overrides):  # the run's is for its own rows
        config = config.model_copy(update={"output": config.output.model_copy(update={"write_back": None})})
    return _label_rows(RunDirectory(path), config, output, listeners, began, form)


def resume_prediction(
    path: str | Path, overrides: Sequence[str], listeners: Sequence[Listener], began: float | None
) -> Path:
    """Finish the labels of a directory that `predict` made, and its report; return the directory. Raises what `reopened` does."""
    run, config, _ = reopened(path, overrides)
    _label_rows(run, config, path, listeners, began)
    return RunDirectory(path).path


def _label_rows(
    directory: RunDirectory,
    config: Config,
    output: str | Path | None,
    listeners: Sequence[Listener],
    began: float | None,
    form: str = "zarr",
) -> Path:
    """Label rows with the model of a run directory. form : as of `predict`."""
    record = directory.read_config()
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        opened = open_rows(directory, config, "predict")
        model, chunks, plan, planned = opened.model, opened.chunks, opened.plan, opened.memory
        dims = spatial_dims(chunks.source) if form == "geotiff" else None  # refused before rows are labelled
        fingerprint = chunks.fingerprint()
        if output is None and fingerprint != record.get("fingerprint"):
            raise InputError("predict: the data are not those that the run read: give their labels an --output.")
        target = directory if output is None else RunDirectory(output)
        refuse_write_back(config)
        with engine_for(config, planned) as engine, target.lock():
            if output is not None:
                begin(target, directory, config, fingerprint)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(config.engine))
            chunks = as_read_before(chunks, directory.checkpoints, log.warn) if output is None else chunks
            job = Job(plan, replace(chunks, affine=opened.affine), engine, log, target, memory, began)
            top_k = min(config.output.top_k, model.sizes.get("component", 0))
            # Of its own rows, a table is made of the labels that are there.
            missing = not has_labels(target.labels, top_k if output is None else 0) or (
                output is None and form == "zarr"
            )
            if missing:
                write_labels_of(job, model, opened.params, output is None)
            if lacks_column(config, target.labels):
                write_back(config, target.labels)
            if output is not None and (missing or not target.report.exists()):
                from pipeline.outputs.report import write_report

                write_report(target.path)
            if dims is not None:
                made = write_raster(target.labels, dims)
            else:
                made = target.labels if form == "zarr" else export(target.labels, chunks.source, form)
            if missing:
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
    return made
