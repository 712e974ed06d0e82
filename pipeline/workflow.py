"""The composition root: the only place where the parts meet.

config -> source -> chunks -> profile -> initial parameters -> [pass, fold, M-step, checkpoint]* -> model, labels, report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline import provenance
from pipeline.advice import advice
from pipeline.checking import Cost, cost
from pipeline.data.user_start import UserStart, user_start
from pipeline.em.run import Run
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine
from pipeline.engine.memory import PeakMemory, Plan
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.fitting import begin, fit
from pipeline.job import Job
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.models.base import Model
from pipeline.outputs import checkpoint, partial
from pipeline.outputs.disk import disk_plan, refuse_full
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import LabelBlock, has_labels, write_labels
from pipeline.outputs.model_store import load_model, read_dataset
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.standard_errors import lacks_errors, write_errors
from pipeline.outputs.state import unpack_known, unpack_runs
from pipeline.planning import memory_plan, refuse_impossible, sample_size
from pipeline.starting import models_of, profiled

if TYPE_CHECKING:
    import xarray as xr


def run(
    config: Config, output: str | Path | None = None, overwrite: bool = False, listeners: Sequence[Listener] = ()
) -> Path:
    """Fit what the config asks for; the run directory.

    output : in place of config.output.path.  listeners : called with each event, for progress.
    Raises InputError, StorageError or ClusterLost; a directory is made only once config and input open.
    """
    if output is not None:
        config = config.model_copy(update={"output": config.output.model_copy(update={"path": str(output)})})
    config = config.resolved()
    directory = RunDirectory(config.output.path)
    directory.refuse_unless_free(overwrite)
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        chunks = config.data.open_chunks()
        refuse_impossible(config, chunks)
        given = user_start(config.fit, config.data, chunks.n_rows)
        record = provenance.record(config, chunks.fingerprint(), given.fingerprint(chunks))
        planned = memory_plan(config, chunks)
        disk = disk_plan(config, chunks, sample_size(config, chunks.n_features))
        refuse_full(directory, disk)
        with _engine(config, planned) as engine, directory.lock():
            directory.refuse_unless_free(overwrite)  # another run may have been here since
            directory.create(record)
            log = EventLog(directory.events, tuple(listeners))
            job = Job(config, chunks, engine, log, directory, memory, began)
            job.log(
                "start",
                **provenance.surroundings(config, engine, chunks),
                plan=planned._asdict()
                | {"peak": planned.peak, "pass_bytes": chunks.pass_bytes()}
                | {"disk": disk._asdict() | {"total": disk.total}},
            )
            job, known, drawn = profiled(job)
            runs = begin(job, known, given, drawn)
            del drawn  # the rows of the search are not needed any more
            fit(job, known, runs)
            _finish(job)
    return directory.path


def check(config: Config) -> Cost:
    """What `run` would cost; writes nothing. Raises what `run` would raise before its first pass.

    Docword and packed files that have not been converted yet are converted in a scratch folder, which is removed.
    """
    config = config.resolved()
    with single_thread(), TemporaryDirectory(prefix="em-pipeline-") as scratch:
        chunks = config.data.converted_in(scratch).open_chunks()
        refuse_impossible(config, chunks)
        given, planned = user_start(config.fit, config.data, chunks.n_rows), memory_plan(config, chunks)
        with _engine(config, planned) as engine:
            found = cost(config, chunks, engine, planned, given)
        told = list(advice(found, config, chunks))
    try:
        RunDirectory(config.output.path).refuse_unless_free(overwrite=False)
    except InputError as taken:
        told.append(str(taken))
    return replace(found, advice=told)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    accept_other_bits: bool = False,
) -> Path:
    """Go on exactly where a run stopped; of a finished run, do what is missing.

    Raises InputError, with the difference, if what is computed would change.
    """
    directory = RunDirectory(path)
    record = directory.read_config()
    if "prediction_of" in record:
        raise InputError(
            f"{path}: holds labels, not a run. `em-pipeline predict` with the same options goes on with it."
        )
    stored = validate(record["config"], name=str(directory.config))
    config = validate(record["config"], list(overrides), str(directory.config)).resolved()
    provenance.refuse_other_job(stored, config, record, accept_other_bits)
    whole = directory.model.exists() and not _goes_on(directory, config) and not lacks_errors(directory.model, config)
    if whole and not _lacks_labels(directory, config):
        with directory.lock():  # nothing to compute: the data are not needed
            _report(directory)
        return directory.path
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        chunks = config.data.open_chunks()
        provenance.refuse_other_data(record, chunks.fingerprint())
        refuse_full(directory, disk_plan(config, chunks, sample_size(config, chunks.n_features)))
        with _engine(config, memory_plan(config, chunks)) as engine, directory.lock():
            log = EventLog(directory.events, tuple(listeners))
            job = Job(config, chunks, engine, log, directory, memory, began)
            for text in provenance.other_versions(record):
                job.log("warning", message=text)
            kept = config.model_copy(update={"engine": stored.engine})  # where it ran today says nothing of tomorrow
            directory.write_config({**record, "config": to_plain(kept)})
            if not directory.model.exists() or _goes_on(directory, config):
                _go_on(job)
            _finish(job)
    return directory.path


def _goes_on(directory: RunDirectory, config: Config) -> bool:
    """Whether a finished fit had stopped at a lower max_iter than is asked for now, or the other candidates are gone."""
    limit = config.fit.max_iter or 0
    attrs = read_dataset(directory.model).attrs
    restarts = [*attrs["restarts"], *(r for entry in attrs.get("candidates", ()) for r in entry["restarts"])]
    unfinished = any(r["stop_reason"].startswith("stopped") and r["n_iter"] < limit for r in restarts)
    return unfinished or (len(config.model.candidates()) > 1 and not directory.candidates.exists())


def _lacks_labels(directory: RunDirectory, config: Config) -> bool:
    if not config.output.labels:
        return False
    wanted = min(config.output.top_k, read_dataset(directory.model).attrs["n_components"])
    return not has_labels(directory.labels, wanted)


def _go_on(job: Job) -> None:
    """The fit, from the newest checkpoint that is whole."""
    directory = job.directory
    if not checkpoint.generations(directory.checkpoints) and partial.exist(directory.checkpoints):
        job.log("resume", generation=None, **provenance.surroundings(job.config, job.engine, job.chunks))
        given = _same_start(job)
        job, known, drawn = profiled(job)  # the pass that it ended in
        runs = begin(job, known, given, drawn)
        del drawn
        fit(job, known, runs)
        return
    generation, state = checkpoint.load(directory.checkpoints, lambda text: job.log("warning", message=text))
    known = unpack_known(state)
    job = replace(job, chunks=job.chunks.after_profile(known.affine, known.n_bad))
    for name in ("report.html", "labels.zarr", "model.zarr", "candidates.zarr"):  # those of a lower max_iter
        directory.discard(name)
    job.log("resume", generation=generation, **provenance.surroundings(job.config, job.engine, job.chunks))
    runs = unpack_runs(state, models_of(job.config, known))
    if runs:
        fit(job, known, _reopened(runs, job.config), generation)
    else:  # it ended while it looked for a start
        fit(job, known, begin(job, known, _same_start(job), None))


def _same_start(job: Job) -> UserStart:
    """What the run was given to start from. Raises InputError if that has changed since."""
    given = user_start(job.config.fit, job.config.data, job.chunks.n_rows)
    provenance.refuse_other_start(job.directory.read_config(), given.fingerprint(job.chunks))
    return given


def predict(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
) -> Path:
    """Label the run's own rows, or others (`data.…` overrides and an output directory); the store of labels."""
    directory = RunDirectory(path)
    record = directory.read_config()
    for override in overrides:
        if not override.startswith(("data.", "engine.", "output.top_k=")):
            raise InputError(
                f"predict: came with {override.partition('=')[0]}, expected data.…, engine.… or output.top_k. "
                "The rest is settled by the run."
            )
    config = validate(record["config"], list(overrides), str(directory.config)).resolved()
    provenance.refuse_other_code(config, record, ("model.path",))
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        model, params, affine = load_model(read_dataset(directory.model))
        chunks = config.data.open_chunks()
        n_raw = model.n_features if affine is None else len(affine.offset)
        if chunks.n_features != n_raw:
            raise InputError(
                f"predict: rows have {chunks.n_features} features, the model was fitted to {n_raw}. "
                "Give data.path rows made as the run's own were."
            )
        if chunks.source.sparse and not config.model.sparse:
            raise InputError(
                f"predict: rows are sparse counts, the model is a {config.model.family} one of dense rows."
            )
        fingerprint = chunks.fingerprint()
        if output is None and fingerprint != record.get("fingerprint"):
            raise InputError("predict: the data are not those that the run read: give their labels an --output.")
        target = directory if output is None else RunDirectory(output)
        with _engine(config, memory_plan(config, chunks)) as engine, target.lock():
            if output is not None:
                _begin_prediction(target, config, fingerprint, directory)
            log = EventLog(target.events, tuple(listeners))
            job = Job(config, replace(chunks, affine=affine), engine, log, target, memory, began)
            if output is None or not target.labels.exists():
                _label(job, model, params)
    return target.labels


def _begin_prediction(
    target: RunDirectory, config: Config, fingerprint: dict[str, Any], run_directory: RunDirectory
) -> None:
    """Make a directory for labels of other data; one that an earlier call made for the same is gone on with."""
    plain = to_plain(config)
    plain.pop("engine")
    record = {
        "prediction_of": str(run_directory.path),
        "model": checkpoint.sums(run_directory.model),
        "config": plain,
        "fingerprint": fingerprint,
    }
    if not (target.is_ours and target.read_config() == record):
        target.refuse_unless_free(overwrite=False)
        target.create(record)


def open_run(path: str | Path) -> xr.Dataset:
    """The fitted model of a run as an xarray dataset in memory."""
    return read_dataset(RunDirectory(path).model)


def _engine(config: Config, plan: Plan) -> AbstractContextManager[Engine]:
    """The engine with as many tasks at a time as the memory plan allows."""
    return open_engine(config.engine, plan.workers, plan.ahead, plan.spare)


def _reopened(runs: list[Run], config: Config) -> list[Run]:
    """Runs that had stopped at a lower max_iter go on when it was raised; a refit then waits for another choice."""
    limit = config.fit.max_iter or 0
    runs = [
        replace(r, stop_reason=None) if str(r.stop_reason).startswith("stopped") and len(r.history) < limit else r
        for r in runs
    ]
    chosen_again = any(run.stop_reason is None and not run.refit for run in runs)
    return [run for run in runs if not (run.refit and chosen_again)]


def _finish(job: Job) -> None:
    """Standard errors, labels and the report, each if it is missing."""
    directory = job.directory
    if lacks_errors(directory.model, job.config):
        write_errors(directory.model, job.config, job.chunks, job.engine, job.log)
        directory.discard("report.html")
    if _lacks_labels(directory, job.config):
        model, params, affine = load_model(read_dataset(directory.model))
        _label(replace(job, chunks=replace(job.chunks, affine=affine)), model, params)
        directory.discard("report.html")
    job.log("finished", seconds=time.perf_counter() - job.began, peak_pss=job.memory.bytes)
    _report(directory)


def _report(directory: RunDirectory) -> None:
    if not directory.report.exists():
        from pipeline.outputs.report import write_report

        write_report(directory.path)


def _label(job: Job, model: Model, params: Any) -> None:
    began = time.perf_counter()
    report: Callable[[int], None] = lambda rows: job.log("labelled", rows=rows, of=job.chunks.n_rows)  # noqa: E731
    top_k = min(job.config.output.top_k, model.n_components)
    task = LabelBlock(job.chunks, model, params, top_k, job.config.data.bad_rows == "drop")
    write_labels(job.directory.labels, task, job.engine, report)
    job.log("labels", rows=job.chunks.n_rows, seconds=time.perf_counter() - began)
