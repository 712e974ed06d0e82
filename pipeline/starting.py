"""How a fit begins: one profiling pass, and parameters for each restart, searched for on rows held in memory or as asked."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from pipeline.config import Config
from pipeline.data.column import RowColumn
from pipeline.data.draw import Draw, Drawn, draw_rows
from pipeline.data.profile import Known, Profile, ProfileJob, known_rows
from pipeline.em.run import Run
from pipeline.em.search import Rung, Search
from pipeline.engine.held import HeldRows
from pipeline.errors import InputError
from pipeline.job import Job
from pipeline.models.families import build_model
from pipeline.models.init import initial_params
from pipeline.planning import sample_size, searches

SEED_STEP = 1_000_003  # from the seed of one restart's search to that of the next


class Given(NamedTuple):
    """What fit.init_path holds: labels of the rows, or arrays by name; both None without one."""

    labels: RowColumn | None
    arrays: dict[str, np.ndarray] | None


def profiled(job: Job) -> tuple[Job, Known, Drawn | None]:
    """The profiling pass: the job with its preprocessing fitted, what is known, and rows for the search, drawn on the way."""
    config, chunks = job.config, job.chunks
    began = time.perf_counter()
    full = config.model.family == "gaussian" or any(step.kind in ("pca", "zca") for step in config.preprocess)
    scatter = "none" if chunks.source.sparse else "full" if full else "diag"
    look = ProfileJob(scatter, sample_size(config, chunks.n_features), config.fit.random_state)
    profile: Profile
    profile, *drawn = job.engine.sum_over(chunks, [look, *_draws(job)])
    job.log("profile", rows=profile.n_rows, seconds=time.perf_counter() - began, bytes_read=job.pass_bytes)
    profile.check(config.data.bad_rows)
    _warn(job, profile)
    known = known_rows(profile, config.preprocess)
    return replace(job, chunks=chunks.known(known.affine, known.n_bad)), known, drawn[0] if drawn else None


def starts(job: Job, known: Known, given: Given, drawn: Drawn | None) -> list[Run]:
    """A run for each restart, with its initial parameters.

    drawn : rows for the search; None to draw them again (a job that is gone on with in the middle of its search).
    """
    config, chunks, seed = job.config, job.chunks, job.config.fit.random_state
    init, n_init = config.fit.init, config.fit.n_init
    model = build_model(config, known)
    began = time.perf_counter()
    if searches(config) and given == (None, None):
        params: list[Any] = [None] * n_init
    else:
        params = initial_params(
            model, init, n_init, seed, known, lambda jobs: job.engine.sum_over(chunks, jobs), *given
        )
    runs = [Run(restart, model, p) for restart, p in enumerate(params)]
    if searches(config):
        if drawn is None:
            (drawn,) = job.engine.sum_over(chunks.raw(), _draws(job))
        runs = _searched(job, known, runs, drawn)
    job.log("init", method=init, seconds=time.perf_counter() - began)
    return runs


def _draws(job: Job) -> list[Draw]:
    """The job that draws rows for the search, where there is one."""
    if not searches(job.config):
        return []
    share = draw_rows(job.chunks, job.config.model.n_components) / job.chunks.n_rows
    return [Draw(share, job.config.fit.random_state)]


def _searched(job: Job, known: Known, runs: list[Run], drawn: Drawn) -> list[Run]:
    """The runs with parameters that a search has found, one restart after the other."""
    fit = job.config.fit
    x, weight = drawn.rows(known.affine)
    moves = fit.moves == "auto" and fit.init not in ("explicit", "labels")  # there components keep their meaning
    found = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(job.engine.workers, cores)) as threads:
        rows = HeldRows(x, weight, threads)
        for run in runs:
            rungs: list[Rung] = []

            def tell(rung: Rung, run: Run = run, rungs: list[Rung] = rungs) -> None:
                rungs.append(rung)
                job.log("rung", restart=run.restart, of=job.chunks.n_rows, **rung._asdict())

            look = Search(fit.init, moves, fit.random_state + SEED_STEP * run.restart, known, rows, tell)
            params = look(run.model, run.params)
            found.append(replace(run, params=params, rungs=tuple(rungs)))
    return found


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


def given_start(config: Config, n_rows: int) -> Given:
    """What fit.init_path holds: labels of the rows, or arrays by name."""
    path = config.fit.init_path
    if path is None:
        return Given(None, None)
    if config.fit.init == "labels":
        return Given(RowColumn.open(path, n_rows, "labels", missing_chunks=config.data.missing_chunks), None)
    import zarr

    try:
        if path.endswith(".npz"):
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                return Given(None, {name: stored[name] for name in stored.files})
        group = zarr.open_group(path, mode="r")
        arrays = {name: np.asarray(array[...]) for name, array in group.arrays() if array.dtype.kind in "iuf"}
        return Given(None, arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"fit.init_path {path}: cannot be read ({error}); expected an .npz or .zarr of arrays."
        ) from error
