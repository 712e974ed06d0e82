"""The composition root: the only place where the parts meet.

config -> source -> chunks -> profile -> initial parameters -> [pass, fold, M-step, checkpoint]* -> model, labels, report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import provenance
from pipeline.config import Config, to_plain, validate
from pipeline.data.chunks import Chunks
from pipeline.data.column import RowColumn
from pipeline.data.opening import open_source
from pipeline.data.profile import Known, Profile, ProfileJob, known_rows
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine, uses_processes
from pipeline.engine.memory import PeakMemory, plan, task_bytes
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.models.base import TILE_BYTES, Model
from pipeline.models.families import build_model, stats_bytes
from pipeline.models.init import initial_params
from pipeline.outputs import checkpoint
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import write_labels
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

if TYPE_CHECKING:
    import xarray as xr

CHECKPOINT_SECONDS = 10.0
MIN_SAMPLE_ROWS = 2000
SAMPLE_PER_COMPONENT = 20
SAMPLE_BYTES = 16 * 2**20


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
        record = provenance.record(config, chunks.fingerprint())
        with _engine(config, chunks) as engine:
            directory.path.mkdir(parents=True, exist_ok=True)
            with directory.lock():
                directory.create()
                directory.write_config(record)
                log = EventLog(directory.events, tuple(listeners))
                job = Job(config, directory, chunks, engine, log, memory, began)
                job.log("start", **provenance.surroundings(engine.workers, chunks))
                known, runs = _start(job)
                job = replace(job, chunks=replace(chunks, affine=known.affine))
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
    stored = validate(record["config"], name=str(directory.config))
    config = validate(record["config"], list(overrides), str(directory.config)).resolved()
    provenance.refuse_other_job(stored, config, record, accept_other_bits)
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        chunks = _open_chunks(config)
        provenance.refuse_other_data(record, chunks.fingerprint())
        with _engine(config, chunks) as engine, directory.lock():
            log = EventLog(directory.events, tuple(listeners))
            job = Job(config, directory, chunks, engine, log, memory, began)
            if not directory.model.exists():
                generation, state = checkpoint.load(
                    directory.checkpoints, lambda text: job.log("warning", message=text)
                )
                known = unpack_known(state)
                job = replace(job, chunks=replace(chunks, affine=known.affine))
                runs = unpack_runs(state, build_model(config, known))
                job.log("resume", generation=generation, **provenance.surroundings(engine.workers, chunks))
                _fit(job, known, _reopened(runs, config), generation)
            _finish(job)
    return directory.path


def predict(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
) -> Path:
    """Label the run's own rows, or others (`data.…` overrides and an output directory); the store of labels."""
    directory = RunDirectory(path)
    record = directory.read_config()
    foreign = [o for o in overrides if o.startswith("data.")]
    if foreign and output is None:
        raise InputError(
            f"predict: {foreign[0]} names other data, whose labels need a place of their own: give --output."
        )
    config = validate(record["config"], list(overrides), str(directory.config)).resolved()
    began = time.perf_counter()
    with single_thread(), PeakMemory() as memory:
        model, params, affine = load_model(read_dataset(directory.model))
        chunks = _open_chunks(config)
        n_raw = model.n_features if affine is None else len(affine.offset)
        if chunks.n_features != n_raw:
            raise InputError(f"predict: rows have {chunks.n_features} features, the model was fitted to {n_raw}.")
        fingerprint = chunks.fingerprint()
        if output is None:
            provenance.refuse_other_data(record, fingerprint)
        target = directory if output is None else _prediction_directory(output, config, fingerprint, directory)
        with _engine(config, chunks) as engine, target.lock():
            log = EventLog(target.events, tuple(listeners))
            job = Job(config, target, replace(chunks, affine=affine), engine, log, memory, began)
            _label(job, model, params)
    return target.labels


def open_run(path: str | Path) -> xr.Dataset:
    """The fitted model of a run as an xarray dataset in memory."""
    return read_dataset(RunDirectory(path).model)


def _open_chunks(config: Config) -> Chunks:
    source = open_source(config.data)
    weights = config.data.weights
    if weights is None:
        return Chunks(source)
    options = config.data.storage_options
    return Chunks(source, RowColumn.open(weights, source.n_rows, "weights", storage_options=options))


@contextmanager
def _engine(config: Config, chunks: Chunks) -> Iterator[Engine]:
    """The engine with as many tasks at a time as the memory plan allows."""
    model, engine = config.model, config.engine
    _refuse_impossible(config, chunks)
    d = min([chunks.n_features, *(step.n_components or chunks.n_features for step in config.preprocess)])
    statistics = stats_bytes(model.family, model.covariance_type, model.n_components, d)
    square = chunks.n_features**2 * 8 if config.preprocess or model.family == "gaussian" else 0
    sample = sample_size(config, chunks.n_features) * chunks.n_features * 8
    per_task = task_bytes(chunks.chunk_bytes(), max(statistics, square + sample), TILE_BYTES, config.fit.n_init)
    driver = 4 * statistics * config.fit.n_init + 3 * (square + sample)
    memory = plan(engine.memory, engine.workers, per_task, driver, uses_processes(engine))
    with open_engine(engine, memory.workers) as opened:
        yield opened


def _refuse_impossible(config: Config, chunks: Chunks) -> None:
    k, family = config.model.n_components, config.model.family
    if k > chunks.n_rows:
        raise InputError(
            f"model.n_components: {k}, but there are {chunks.n_rows} rows. Set it to at most {chunks.n_rows}."
        )
    if chunks.source.sparse and family != "multinomial":
        raise InputError(f"model.family: {family}, but {config.data.source} rows are sparse counts; use multinomial.")
    if family == "multinomial" and config.preprocess:
        raise InputError("preprocess: counts stay counts; leave it empty for a multinomial model.")


def sample_size(config: Config, n_features: int) -> int:
    """Rows that the profile keeps for starts and pictures: enough for K, within a fixed number of bytes."""
    k = config.model.n_components
    affordable = SAMPLE_BYTES // (8 * n_features)
    return max(k, min(max(MIN_SAMPLE_ROWS, SAMPLE_PER_COMPONENT * k), affordable))


def _start(job: Job) -> tuple[Known, list[Run]]:
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
    chunks = replace(chunks, affine=known.affine)
    model = build_model(config, known)
    began = time.perf_counter()
    labels, arrays = _given_start(config, chunks.n_rows)
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
        return RowColumn.open(path, n_rows, "labels"), None
    import zarr

    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as stored:
                return None, {name: stored[name] for name in stored.files}
        group = zarr.open_group(path, mode="r")
        return None, {name: np.asarray(array[...]) for name, array in group.arrays() if array.dtype.kind in "iuf"}
    except (OSError, ValueError) as error:
        raise InputError(
            f"fit.init_path {path}: cannot be read ({error}); expected an .npz or .zarr of arrays."
        ) from error


def _fit(job: Job, known: Known, runs: list[Run], generation: int) -> None:
    """The loop, with events and checkpoints; ends with model.zarr."""
    limits = Limits(job.config.fit.max_iter or 0, job.config.fit.tol or 0.0)
    saved_at = began = time.perf_counter()
    evaluate = lambda jobs: job.engine.sum_over(job.chunks, jobs)  # noqa: E731
    for current, resets in em(runs, evaluate, limits, known.n_rows):
        runs, now = current, time.perf_counter()
        _log_pass(job, runs, known, now - began)
        for event in resets:
            job.log("reset", restart=event.restart, iteration=event.iteration, **event.reset._asdict())
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


def _log_pass(job: Job, runs: Sequence[Run], known: Known, seconds: float) -> None:
    best = best_run(runs)
    kmeans = job.config.model.family == "kmeans"
    name, value = ("inertia", -best.objective) if kmeans else ("log_likelihood", best.log_likelihood)
    job.log(
        "pass",
        iteration=max(len(run.history) for run in runs) - 1,
        final=all(run.final is not None for run in runs),
        seconds=seconds,
        rows=known.n_rows,
        bytes_read=_pass_bytes(job.chunks),
        workers=job.engine.workers,
        restarts=len(runs),
        max_iter=job.config.fit.max_iter,
        **{name: value, f"{name}_per_row": value / known.total},
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
    """Labels and the report, if either is missing."""
    directory = job.directory
    if directory.report.exists() and (directory.labels.exists() or not job.config.output.labels):
        return
    if job.config.output.labels and not job.directory.labels.exists():
        model, params, affine = load_model(read_dataset(job.directory.model))
        _label(replace(job, chunks=replace(job.chunks, affine=affine)), model, params)
    job.log("finished", seconds=time.perf_counter() - job.began, peak_pss=job.memory.bytes)
    from pipeline.outputs.report import write_report

    write_report(directory.path)


def _label(job: Job, model: Model, params: Any) -> None:
    began = time.perf_counter()
    report: Callable[[int], None] = lambda rows: job.log("labelled", rows=rows, of=job.chunks.n_rows)  # noqa: E731
    write_labels(job.directory.labels, job.chunks, model, params, job.config.output.top_k, job.engine, report)
    job.log("labels", rows=job.chunks.n_rows, seconds=time.perf_counter() - began)


def _prediction_directory(
    output: str | Path, config: Config, fingerprint: dict[str, Any], run_directory: RunDirectory
) -> RunDirectory:
    """A directory for labels of other data; one that an earlier call left unfinished is gone on with."""
    target = RunDirectory(output)
    record = {"prediction_of": str(run_directory.path), "config": to_plain(config), "fingerprint": fingerprint}
    if target.is_ours and target.read_config() == record and not target.labels.exists():
        return target
    target.refuse_unless_free(overwrite=False)
    target.create()
    target.write_config(record)
    return target
