"""The composition root: the only place where the parts meet.

config -> source -> chunks -> profile -> initial parameters -> [pass, fold, M-step, checkpoint]* -> model, labels, report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from pipeline import provenance
from pipeline.config import Config, to_plain, validate
from pipeline.data.chunks import Chunks
from pipeline.data.column import RowColumn
from pipeline.data.opening import open_source
from pipeline.data.profile import Known, Profile, ProfileJob, known_rows
from pipeline.em.folds import method_of
from pipeline.em.loop import EStep, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine
from pipeline.engine.memory import PeakMemory, Plan
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.models.base import Model
from pipeline.models.families import build_model
from pipeline.models.init import initial_params
from pipeline.outputs import checkpoint
from pipeline.outputs.events import EventLog, Listener, figures
from pipeline.outputs.labels import LabelBlock, has_labels, write_labels
from pipeline.outputs.model_store import (
    best_run,
    build_dataset,
    canonical_order,
    load_model,
    read_dataset,
    write_dataset,
)
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.state import pack, unpack_known, unpack_runs
from pipeline.planning import memory_plan, refuse_impossible, sample_size

if TYPE_CHECKING:
    import xarray as xr

CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """The parts of a running job."""

    config: Config
    directory: RunDirectory
    chunks: Chunks
    engine: Engine
    log: EventLog
    memory: PeakMemory
    began: float


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
        chunks = _open_chunks(config)
        refuse_impossible(config, chunks)
        start = _given_start(config, chunks.n_rows)
        record = provenance.record(config, chunks.fingerprint())
        planned = memory_plan(config, chunks)
        with _engine(config, planned) as engine, directory.lock():
            directory.refuse_unless_free(overwrite)  # another run may have been here since
            directory.create(record)
            log = EventLog(directory.events, tuple(listeners))
            job = Job(config, directory, chunks, engine, log, memory, began)
            job.log(
                "start",
                **provenance.surroundings(engine.workers, chunks),
                plan=planned._asdict() | {"peak": planned.peak},
            )
            known, runs = _start(job, *start)
            job = replace(job, chunks=chunks.known(known.affine, known.n_bad))
            checkpoint.save(directory.checkpoints, 0, pack(known, runs))
            _fit(job, known, runs, generation=0)
            _finish(job)
    return directory.path


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
    if directory.model.exists() and not _goes_on(directory, config) and not _lacks_labels(directory, config):
        with directory.lock():  # nothing to compute: the data are not needed
            _report(directory)
        return directory.path
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        chunks = _open_chunks(config)
        provenance.refuse_other_data(record, chunks.fingerprint())
        with _engine(config, memory_plan(config, chunks)) as engine, directory.lock():
            log = EventLog(directory.events, tuple(listeners))
            job = Job(config, directory, chunks, engine, log, memory, began)
            for text in provenance.other_versions(record):
                job.log("warning", message=text)
            kept = config.model_copy(update={"engine": stored.engine})  # where it ran today says nothing of tomorrow
            directory.write_config({**record, "config": to_plain(kept)})
            if not directory.model.exists() or _goes_on(directory, config):
                _go_on(job)
            _finish(job)
    return directory.path


def _goes_on(directory: RunDirectory, config: Config) -> bool:
    """Whether a finished fit had stopped at a lower max_iter than is asked for now."""
    limit = config.fit.max_iter or 0
    restarts = read_dataset(directory.model).attrs["restarts"]
    return any(r["stop_reason"].startswith("stopped") and r["n_iter"] < limit for r in restarts)


def _lacks_labels(directory: RunDirectory, config: Config) -> bool:
    wanted = min(config.output.top_k, config.model.n_components)
    return config.output.labels and not has_labels(directory.labels, wanted)


def _go_on(job: Job) -> None:
    """The fit, from the newest checkpoint that is whole."""
    directory = job.directory
    generation, state = checkpoint.load(directory.checkpoints, lambda text: job.log("warning", message=text))
    known = unpack_known(state)
    job = replace(job, chunks=job.chunks.known(known.affine, known.n_bad))
    runs = unpack_runs(state, build_model(job.config, known))
    for name in ("report.html", "labels.zarr", "model.zarr"):  # those of a lower max_iter
        directory.discard(name)
    job.log("resume", generation=generation, **provenance.surroundings(job.engine.workers, job.chunks))
    _fit(job, known, _reopened(runs, job.config), generation)


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
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        model, params, affine = load_model(read_dataset(directory.model))
        chunks = _open_chunks(config)
        n_raw = model.n_features if affine is None else len(affine.offset)
        if chunks.n_features != n_raw:
            raise InputError(f"predict: rows have {chunks.n_features} features, the model was fitted to {n_raw}.")
        if chunks.source.sparse and config.model.family != "multinomial":
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
            job = Job(config, target, replace(chunks, affine=affine), engine, log, memory, began)
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


def _open_chunks(config: Config) -> Chunks:
    source = open_source(config.data)
    weights = config.data.weights
    if weights is None:
        return Chunks(source)
    options = config.data.storage_options
    return Chunks(source, RowColumn.open(weights, source.n_rows, "weights", None, options, config.data.missing_chunks))


def _engine(config: Config, plan: Plan) -> AbstractContextManager[Engine]:
    """The engine with as many tasks at a time as the memory plan allows."""
    return open_engine(config.engine, plan.workers, plan.ahead, plan.spare)


def _start(job: Job, labels: RowColumn | None, arrays: dict[str, np.ndarray] | None) -> tuple[Known, list[Run]]:
    """The profiling pass, the preprocessing it fits, and the initial parameters of all restarts."""
    config, chunks = job.config, job.chunks
    seed = config.fit.random_state
    began = time.perf_counter()
    full = config.model.family == "gaussian" or any(step.kind in ("pca", "zca") for step in config.preprocess)
    scatter = "none" if chunks.source.sparse else "full" if full else "diag"
    size = sample_size(config, chunks.n_features)
    profile: Profile = job.engine.sum_over(chunks, [ProfileJob(scatter, size, seed)])[0]
    job.log("profile", rows=profile.n_rows, seconds=time.perf_counter() - began, bytes_read=_pass_bytes(chunks))
    profile.check(config.data.bad_rows)
    _warn(job, profile)
    known = known_rows(profile, config.preprocess)
    chunks = chunks.known(known.affine, known.n_bad)
    model = build_model(config, known)
    began = time.perf_counter()
    params = initial_params(
        model,
        config.fit.init,
        config.fit.n_init,
        seed,
        known,
        lambda jobs: job.engine.sum_over(chunks, jobs),
        labels,
        arrays,
    )
    job.log("init", method=config.fit.init, seconds=time.perf_counter() - began)
    return known, [Run(restart, model, p) for restart, p in enumerate(params)]


def _warn(job: Job, profile: Profile) -> None:
    if profile.n_bad:
        job.log(
            "warning", message=f"{profile.n_bad} rows with NaN or inf are left out, the first is {profile.first_bad}"
        )
    if job.config.model.family == "multinomial":
        if profile.low.min() < 0:
            raise InputError(
                f"counts: the lowest value is {profile.low.min():g}; a multinomial needs counts of 0 or more."
            )
        return
    constant = profile.constant_features()
    if len(constant):
        shown = ", ".join(str(i) for i in constant[:10]) + (", …" if len(constant) > 10 else "")
        job.log("warning", message=f"{len(constant)} features have one value only: {shown}")
    distinct = profile.distinct_sample_rows()
    if distinct < min(job.config.model.n_components, len(profile.sample.row)):
        message = f"the sample of {len(profile.sample.row)} rows has {distinct} distinct ones, fewer than n_components"
        job.log("warning", message=message)


def _given_start(config: Config, n_rows: int) -> tuple[RowColumn | None, dict[str, np.ndarray] | None]:
    """What fit.init_path holds: labels of the rows, or arrays by name."""
    path = config.fit.init_path
    if path is None:
        return None, None
    if config.fit.init == "labels":
        return RowColumn.open(path, n_rows, "labels", missing_chunks=config.data.missing_chunks), None
    import zarr

    try:
        if path.endswith(".npz"):
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                return None, {name: stored[name] for name in stored.files}
        group = zarr.open_group(path, mode="r")
        return None, {name: np.asarray(array[...]) for name, array in group.arrays() if array.dtype.kind in "iuf"}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"fit.init_path {path}: cannot be read ({error}); expected an .npz or .zarr of arrays."
        ) from error


def _fit(job: Job, known: Known, runs: list[Run], generation: int) -> None:
    """The loop, with events and checkpoints; ends with model.zarr."""
    limits = Limits(job.config.fit.max_iter or 0, job.config.fit.tol or 0.0)
    method = method_of(job.config.fit.method, job.chunks.source.bounds, job.config.fit.random_state)
    read: list[int] = []  # rows of each read since the last event

    def evaluate(jobs: Sequence[EStep], block: int | None = None) -> list[Any]:
        read.append(known.n_rows if block is None else method.block_rows[block])
        return job.engine.sum_over(job.chunks, jobs, None if block is None else method.blocks[block])

    saved_at = began = time.perf_counter()
    for current, events in em(runs, evaluate, limits, known.n_rows, method):
        runs, now = current, time.perf_counter()
        _log_pass(job, runs, known, now - began, sum(read))
        read.clear()
        for event in events:
            job.log(**event.facts())
        first = generation == 0
        if first or now - saved_at > CHECKPOINT_SECONDS or all(run.stop_reason for run in runs):
            generation += 1
            checkpoint.save(job.directory.checkpoints, generation, pack(known, runs))
            saved_at = time.perf_counter()
            job.log("checkpoint", generation=generation, seconds=saved_at - now)
        began = time.perf_counter()
    chosen = best_run(runs)
    ordered = job.config.fit.init not in ("explicit", "labels")
    order = canonical_order(chosen) if ordered else np.arange(chosen.model.n_components)
    write_dataset(job.directory.model, build_dataset(chosen, runs, order, known, job.chunks.source))


def _log_pass(job: Job, runs: Sequence[Run], known: Known, seconds: float, rows: int) -> None:
    best = best_run(runs)
    job.log(
        "pass",
        iteration=max(0, max(len(run.history) for run in runs) - 1),
        final=all(run.final is not None for run in runs),
        seconds=seconds,
        rows=rows,
        bytes_read=_pass_bytes(job.chunks) * rows // known.n_rows,
        workers=job.engine.workers,
        restarts=len(runs),
        max_iter=job.config.fit.max_iter,
        routes=best.model.route_shares(best.params, job.chunks.source.dtype),
        **figures(best, known.total),
    )


def _pass_bytes(chunks: Chunks) -> int:
    """Decoded bytes of one pass."""
    source = chunks.source
    return (
        source.n_rows * source.n_features * source.dtype.itemsize if not source.sparse else sum(source.object_sizes())
    )


def _reopened(runs: list[Run], config: Config) -> list[Run]:
    """Runs that had stopped at a lower max_iter go on when it was raised."""
    limit = config.fit.max_iter or 0
    return [
        replace(r, stop_reason=None) if str(r.stop_reason).startswith("stopped") and len(r.history) < limit else r
        for r in runs
    ]


def _finish(job: Job) -> None:
    """Labels and the report, each if it is missing."""
    directory = job.directory
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
