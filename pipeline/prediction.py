"""Labels of a run's own rows, or of others with a directory and a report of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import provenance
from pipeline.config.stored import refuse_unnamed_engine, trusted
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import PeakMemory
from pipeline.engine.passes import unused_address
from pipeline.errors import InputError
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.job import Job, engine_for, write_labels_of
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.models.mixture import Mixture
from pipeline.outputs import checkpoint, model_store
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.state import as_read_before


def predict(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Label the run's own rows, or others; return the store of labels.

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
    """
    directory = RunDirectory(path)
    record = directory.read_config()
    for override in overrides:
        if not override.startswith(("data.", "engine.", "engine=", "output.top_k=", "model.path=")):
            raise InputError(
                f"predict: got {override.partition('=')[0]}, expected data.…, engine.…, output.top_k or model.path. "
                "The rest is settled by the run."
            )
    name = str(directory.config)
    config = validate(trusted(record["config"], overrides, name), list(overrides), name).resolved()
    refuse_unnamed_engine(record["config"], overrides, name)
    return _label_rows(directory, record, config, output, listeners, began)


def resume_prediction(
    path: str | Path, overrides: Sequence[str], listeners: Sequence[Listener], began: float | None
) -> Path:
    """Finish the labels of a directory that `predict` made, and its report; return the directory.

    Raises
    ------
    InputError
        If the model is gone, or is another than the one that the labels began with.
    """
    target = RunDirectory(path)
    begun, name = target.read_config(), str(target.config)
    run = RunDirectory(str(begun["prediction_of"]))
    if not run.model.is_dir() or checkpoint.sums(run.model) != begun.get("model"):
        what = "has another model than these labels began with" if run.model.is_dir() else "has no model.zarr"
        raise InputError(
            f"{path}: holds labels by the model of {run}, which {what}. Restore it, or label the rows again."
        )
    config = validate(trusted(begun["config"], overrides, name), list(overrides), name).resolved()
    _label_rows(run, run.read_config(), config, path, listeners, began)
    return target.path


def _label_rows(
    directory: RunDirectory,
    record: dict[str, Any],
    config: Config,
    output: str | Path | None,
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Label rows with the model of a run directory. record : its config.yaml."""
    provenance.refuse_other_code(config, record, ("model.path",))
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        model, params, affine = model_store.load_model(model_store.read_dataset(directory.model))
        if config.data.bad_rows == "missing" and isinstance(model, Mixture) and not model.incomplete:
            model = model.for_rows("missing")
        chunks = config.open_chunks()
        n_raw = model.sizes.get("feature", chunks.n_features) if affine is None else len(affine.offset)
        if chunks.n_features != n_raw:
            raise InputError(
                f"predict: rows have {chunks.n_features} features, the model was fitted to {n_raw}. "
                "Give data.path rows made as the run's own were."
            )
        plan = plan_job(config, chunks, fits=False)
        planned = memory_plan(plan, chunks)  # before a chunk is read
        fingerprint = chunks.fingerprint()
        if output is None and fingerprint != record.get("fingerprint"):
            raise InputError("predict: the data are not those that the run read: give their labels an --output.")
        target = directory if output is None else RunDirectory(output)
        with engine_for(config, planned) as engine, target.lock():
            if output is not None:
                _begin_prediction(target, config, fingerprint, directory)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(config.engine))
            chunks = as_read_before(chunks, directory.checkpoints, log.warn) if output is None else chunks
            job = Job(plan, replace(chunks, affine=affine), engine, log, target, memory, began)
            missing = output is None or not target.labels.exists()
            if missing:
                write_labels_of(job, model, params)
            if output is not None and (missing or not target.report.exists()):
                from pipeline.outputs.report import write_report

                write_report(target.path)
            if missing:
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
    return target.labels


def _begin_prediction(
    target: RunDirectory, config: Config, fingerprint: dict[str, Any], run_directory: RunDirectory
) -> None:
    """Make a directory for labels of other data, or continue with one of the same prediction."""
    plain = to_plain(config)
    plain.pop("engine")
    record = {
        "prediction_of": str(run_directory.path.absolute()),
        "model": checkpoint.sums(run_directory.model),
        "config": plain,
        "fingerprint": fingerprint,
    }
    if not (target.is_ours and target.read_config() == record):
        target.refuse_unless_free(overwrite=False)
        target.create(record)
