"""A job from its config to its report: run, update, resume, predict, check.

config → source → chunks → plan → profile → starts → [E-step, accumulate, M-step, checkpoint]* → model, labels, report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import provenance
from pipeline.advice import advice
from pipeline.applying.commands import FINISHED
from pipeline.applying.compressing import compress
from pipeline.applying.decompressing import decompress
from pipeline.applying.denoising import denoise
from pipeline.applying.encoding import encode
from pipeline.applying.imputing import impute
from pipeline.applying.outliers import outliers
from pipeline.applying.prediction import predict, resume_prediction
from pipeline.applying.rows import resumed
from pipeline.applying.sampling import sample
from pipeline.applying.summarizing import summarize
from pipeline.arrays.named import NamedArrays
from pipeline.checking import Cost, cost, from_shapes
from pipeline.config.stored import refuse_unnamed_engine, trusted
from pipeline.data.chunks import Chunks
from pipeline.data.earlier import Earlier
from pipeline.data.profile import DataSummary
from pipeline.data.user_start import UserStart
from pipeline.em.choice import best_run
from pipeline.em.run import Run
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import PeakMemory, Plan
from pipeline.engine.passes import unused_address
from pipeline.errors import InputError, as_written
from pipeline.fitting.disk import Disk, disk_plan, refuse_full
from pipeline.fitting.driver import Driver
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.job import Job, engine_for, refuse_labels, write_labels_of
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.outputs import checkpoint, model_store, partial
from pipeline.outputs.coordinates import on_coordinates
from pipeline.outputs.copied import Copy, not_copied
from pipeline.outputs.earlier import start_of
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import lacks_labels
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.standard_errors import lacks_errors, write_errors
from pipeline.outputs.state import as_read_before, unpack_state
from pipeline.outputs.written_back import lacks_column, write_back
from pipeline.updating import config_of_update, refuse_rows_of

__all__ = [
    "check",
    "compress",
    "decompress",
    "denoise",
    "encode",
    "impute",
    "open_run",
    "outliers",
    "predict",
    "resume",
    "run",
    "sample",
    "summarize",
    "update",
]

if TYPE_CHECKING:
    import xarray as xr


def run(
    config: Config,
    output: str | Path | None = None,
    overwrite: bool = False,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Fit what the config describes; return the run directory.

    Parameters
    ----------
    config : Config
    output : str or Path, optional
        In place of config.output.path.
    overwrite : bool
        Whether an earlier run of em-pipeline is replaced.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait; the time of the job is counted from it. Now by default.

    Raises
    ------
    InputError, StorageError, ClusterLost
        A directory is made only after config and input are opened.
    """
    directory = RunDirectory(config.output.path if output is None else output)
    config = config.resolved().written_to(directory.path)
    directory.refuse_unless_free(overwrite)
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        config = config.settled()
        chunks = config.open_chunks()
        plan = plan_job(config, chunks)
        plan.refuse_unreadable()
        user = start_of(config, chunks)
        refuse_labels(plan, chunks)
        if (copy := Copy.of(config)) is not None:
            copy.refuse_unless_free(overwrite)
        planned, disk = memory_plan(plan, chunks), disk_plan(plan)  # before a chunk is read
        refuse_full(directory, disk)
        record = provenance.record(config, chunks.fingerprint(), user.fingerprint(chunks))
        if config.fit.init_statistics:
            refuse_rows_of(str(config.fit.init_path), record["fingerprint"])
        with engine_for(config, planned) as engine, directory.lock():
            directory.refuse_unless_free(overwrite)  # another run may have been here since
            directory.create(record)
            if copy is not None:
                copy.begin(directory)
            log = EventLog(directory.events, tuple(listeners))
            job = Job(plan, chunks, engine, log, directory, memory, began)
            log("start", **provenance.surroundings(config, engine, chunks), plan=_facts(planned, disk, chunks))
            log.warn(unused_address(config.engine))
            _fit(job, job.driver(), user)
            _finish(job)
    return directory.path


def update(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Add rows to a finished run, without reading its own again; return the directory of a new run.

    The statistics of the run's rows, under its parameters, count beside those of the new rows in every iteration. A fit of all rows
    would compute them again under each iteration's parameters.

    Parameters
    ----------
    path : str or Path
        Of the run.
    overrides : sequence of str
        ``data.path=…`` of the new rows; engine, output, fit.max_iter, fit.tol and fit.method may change too.
    output : str or Path, optional
        The new run directory; by default beside the run's, with ``-updated`` behind its name.
    overwrite, listeners, began
        As of `run`.

    References
    ----------
    Neal and Hinton (1998): EM that maximizes over the distribution of some rows only.
    """
    return run(config_of_update(path, overrides), output, overwrite, listeners, began)


def _facts(planned: Plan, disk: Disk, chunks: Chunks) -> dict[str, Any]:
    of_memory = planned._asdict() | {"peak": planned.peak, "pass_bytes": chunks.pass_bytes()}
    return of_memory | {"disk": disk._asdict() | {"total": disk.total}}


def check(config: Config, tell: Callable[[str], None] = lambda text: None, began: float | None = None) -> Cost:
    """Return the cost of a job without writing anything. Raises what `run` would raise before its first pass.

    Inputs that have to be converted are converted in a scratch folder, which is removed.

    Parameters
    ----------
    config : Config
    tell : callable
        Called with lines in words as soon as they are known: what the data are, the memory, and what takes time now.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.
    """
    config, began = config.resolved(), time.perf_counter() if began is None else began
    with single_thread(), TemporaryDirectory(prefix="em-pipeline-") as scratch:
        config = config.model_copy(update={"data": config.data.converted_in(scratch)}).settled()
        chunks = config.open_chunks()
        plan = plan_job(config, chunks)
        plan.refuse_unreadable()
        refuse_labels(plan, chunks)
        user, planned = start_of(config, chunks), memory_plan(plan, chunks)
        for text in from_shapes(chunks, planned):
            tell(text)
        with engine_for(config, planned) as engine:
            found = cost(plan, chunks, engine, planned, user, began)
        notes = [*advice(found, config, chunks), *filter(None, [unused_address(config.engine)])]
    try:
        RunDirectory(config.output.path).refuse_unless_free(overwrite=False)
        if (copy := Copy.of(config)) is not None:
            copy.refuse_unless_free(overwrite=False)
    except InputError as error:
        notes.append(str(error))
    return replace(found, advice=notes)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    accept_other_bits: bool = False,
    began: float | None = None,
) -> Path:
    """Continue where a run, or a prediction, stopped; of a finished one, compute what is missing. Return the directory.

    Parameters
    ----------
    path : str or Path
    overrides : sequence of str
        ``section.key=value``; engine, output, data.path and a higher fit.max_iter may change.
    listeners : sequence of callable
        Called with each event.
    accept_other_bits : bool
        Whether to go on with other BLAS kernels, which change last digits.
    began : float, optional
        time.perf_counter() when the user began to wait; the time of the job is counted from it. Now by default.

    Raises
    ------
    InputError
        With the difference, if something else would be computed.
    """
    directory = RunDirectory(path)
    record = directory.read_config()
    if "prediction_of" in record:
        if "command" not in record:
            return resume_prediction(path, overrides, listeners, began)
        command = str(record["command"])
        if command not in FINISHED:
            raise InputError(
                f"{directory.config}: got command {command!r}, expected one of {', '.join(FINISHED)}. Restore it."
            )
        return resumed(FINISHED[command], path, overrides, listeners, began)
    name = str(directory.config)
    safe = trusted(record["config"], overrides, name)
    stored, config = validate(safe, name=name), validate(safe, list(overrides), name).resolved()
    provenance.refuse_other_job(checkpoint.computed(directory.checkpoints), stored, config, record, accept_other_bits)
    unnamed = not_copied(record["config"], config)
    whole = directory.model.exists() and not _goes_on(directory, config)
    whole = whole and not lacks_errors(directory.model, config.output)
    labels = directory.labels
    if whole and not (lacks_labels(directory.model, labels, config.output) or lacks_column(config, labels)):
        with directory.lock():  # nothing to compute: the data are not needed
            _report(directory)
            log = EventLog(directory.events, tuple(listeners))
            log.warn(unnamed)
            _copy(config, directory, log)
        return directory.path
    refuse_unnamed_engine(record["config"], overrides, name)
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        chunks = config.open_chunks()
        plan = plan_job(config, chunks)
        planned = memory_plan(plan, chunks)  # before a chunk is read
        provenance.refuse_other_data(record, chunks.fingerprint())
        refuse_labels(plan, chunks)
        refuse_full(directory, disk_plan(plan))
        with engine_for(config, planned) as engine, directory.lock():
            log = EventLog(directory.events, tuple(listeners))
            chunks = as_read_before(chunks, directory.checkpoints, log.warn)
            job = Job(plan, chunks, engine, log, directory, memory, began)
            log.warn(unused_address(config.engine))
            log.warn(unnamed)
            for text in provenance.other_versions(record):
                log.warn(text)
            where = {"engine": record["config"].get("engine", {})}  # where it runs today says nothing of tomorrow
            directory.write_config(provenance.with_config(record, {**to_plain(config), **where}))
            if not directory.model.exists() or _goes_on(directory, config):
                _go_on(job)
            _finish(job)
    return directory.path


@as_written("model.zarr")
def _goes_on(directory: RunDirectory, config: Config) -> bool:
    """Whether a finished fit goes on: it stopped at a lower max_iter, or the other candidates are gone."""
    attrs = model_store.read_model(directory.model).attrs
    restarts = [*attrs["restarts"], *(r for entry in attrs.get("candidates", ()) for r in entry["restarts"])]
    unfinished = any(
        r["stop_reason"].startswith("stopped") and r["n_iter"] < (config.fit.max_iter or 0) for r in restarts
    )
    return unfinished or (len(config.model.candidates()) > 1 and not directory.candidates.exists())


def _fit(job: Job, driver: Driver, user: UserStart) -> None:
    """A fit from its profile to model.zarr."""
    driver, summary, sample = driver.profiled(user.earlier)
    runs = driver.begin(summary, user, sample)
    del sample  # the rows of the search are not needed any more
    _to_the_end(job, driver, summary, runs)


def _go_on(job: Job) -> None:
    """Continue the fit from the newest undamaged checkpoint."""
    directory, surroundings = job.directory, provenance.surroundings(job.config, job.engine, job.chunks)
    if not checkpoint.generations(directory.checkpoints) and partial.exist(directory.checkpoints):
        job.log("resume", generation=None, **surroundings)
        _fit(job, job.driver(), _same_start(job))  # it ended in the profile
        return
    generation, state = checkpoint.load(directory.checkpoints, lambda text: job.log("warning", message=text))
    summary, runs = unpack_state(state, job.config.models)
    for name in ("report.html", "labels.zarr", "model.zarr", "candidates.zarr"):  # those of a lower max_iter
        directory.discard(name)
    job.log("resume", generation=generation, **surroundings)
    if runs:
        driver, runs = job.driver(generation).after_profile(summary), _reopened(runs, job.config)
    else:  # it ended while it looked for a start
        driver = job.driver().after_profile(summary)
        runs = driver.begin(summary, _same_start(job, summary.earlier), None)
    _to_the_end(job, driver, summary, runs)


def _to_the_end(job: Job, driver: Driver, summary: DataSummary, runs: list[Run]) -> None:
    """Iterate and choose; ends with model.zarr."""
    choice, chosen, summary_of_all = driver.finish(summary, runs)
    if choice.others:
        models = {best_run(each).model.label: _stored(job, driver, summary, each) for each in choice.others}
        model_store.write_models(job.directory.candidates, models)
    model = _stored(job, driver, summary_of_all, chosen)
    if choice.shown:
        model.attrs["candidates"] = choice.shown
    model_store.write_model(job.directory.model, model)


def _stored(job: Job, driver: Driver, summary: DataSummary, restarts: list[Run]) -> NamedArrays:
    """What is stored of the best restart of a candidate: that of a job with this candidate alone."""
    run, order = best_run(restarts), None
    assert run.final is not None
    if (shares := run.model.shares(run.params, run.final.stats)) is not None:
        named = job.config.fit.is_supplied or job.config.data.labels is not None
        order = np.arange(len(shares)) if named else model_store.canonical_order(run)
        if summary.statistics is not None and summary.statistics.order is not None:
            order = summary.statistics.order
    sample = driver.plan.sample_rows[run.candidate]
    return model_store.build_model(run, restarts, order, summary.with_sample(sample), job.chunks.source)


def _same_start(job: Job, earlier: Earlier | None = None) -> UserStart:
    """The user-supplied start. Raises InputError if that has changed since. earlier : what a checkpoint has of an earlier run."""
    if earlier is not None and job.config.fit.init == "run":
        return UserStart(arrays=dict(earlier.arrays), earlier=earlier)
    user = start_of(job.config, job.chunks)
    provenance.refuse_other_start(job.directory.read_config(), user.fingerprint(job.chunks))
    return user


def open_run(path: str | Path) -> xr.Dataset:
    """Return the fitted model of a run as an xarray dataset in memory.

    Of data from xarray, it also has the locations of components on the data's own variables and coordinates, before preprocessing: for
    means that is ``mean``, with the dimensions component, variable and those in data.features.
    """
    return on_coordinates(model_store.read_dataset(RunDirectory(path).model))


def _reopened(runs: list[Run], config: Config) -> list[Run]:
    """Runs that stopped at a lower max_iter go on if it was raised; a refit then waits for another choice."""
    limit = config.fit.max_iter or 0
    runs = [
        replace(r, stop_reason=None) if str(r.stop_reason).startswith("stopped") and len(r.history) < limit else r
        for r in runs
    ]
    chosen_again = any(run.stop_reason is None and not run.refit for run in runs)
    return [run for run in runs if not (run.refit and chosen_again)]


def _finish(job: Job) -> None:
    """Compute standard errors, labels and the report, each if it is missing."""
    directory = job.directory
    if lacks_errors(directory.model, job.config.output):
        write_errors(directory.model, job.config.output, job.chunks, job.engine, job.log)
        directory.discard("report.html")
    if lacks_labels(directory.model, directory.labels, job.config.output):
        model, params, affine = model_store.load_model(model_store.read_model(directory.model))
        write_labels_of(replace(job, chunks=replace(job.chunks, affine=affine)), model, params, True)
        directory.discard("report.html")
    if lacks_column(job.config, directory.labels):
        write_back(job.config, directory.labels)
    job.log("stored", seconds=time.perf_counter() - job.began, peak_pss=job.memory.bytes)  # the report has these
    _report(directory)
    _copy(job.config, directory, job.log)
    job.log("finished", seconds=time.perf_counter() - job.began, peak_pss=job.memory.bytes)


def _copy(config: Config, directory: RunDirectory, log: Callable[..., None]) -> None:
    if (copy := Copy.of(config)) is not None and not copy.is_whole(directory):
        copy.write(directory, log)


def _report(directory: RunDirectory) -> None:
    if not directory.report.exists():
        from pipeline.outputs.report import write_report

        write_report(directory.path)
