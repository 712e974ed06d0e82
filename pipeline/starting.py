"""How a fit begins: one profiling pass, and parameters for each run, as asked or searched for on rows held in memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from pipeline.config import Config
from pipeline.data.chunks import Chunks
from pipeline.data.draw import Draw, Drawn
from pipeline.data.given import Given
from pipeline.data.profile import Known, Profile, ProfileJob, known_rows
from pipeline.em.annihilation import annihilated
from pipeline.em.run import Run
from pipeline.em.search import Rung, Search
from pipeline.engine.memory import cores
from pipeline.engine.memory_rows import MemoryRows
from pipeline.job import Work
from pipeline.models.base import Model
from pipeline.models.families import build_model
from pipeline.models.init import in_step, starting
from pipeline.planning import held_share, refuse_negative, sample_size, searches, warnings_of

W = TypeVar("W", bound=Work)
SEED_STEP = 1_000_003  # from the seed of one restart's search to that of the next


def profiled(job: W) -> tuple[W, Known, Drawn | None]:
    """The profiling pass: the job with its preprocessing fitted, what is known, and rows for the search, drawn on the way."""
    config, chunks = job.config, job.chunks
    if (stored := chunks.source.unprotected()) is not None:
        advice = "Write it with ZstdCodec(checksum=True)."
        job.tell("warning", message=f"{stored}: stored without checksums, so that damage may go unnoticed. {advice}")
    began = time.perf_counter()
    profile: Profile
    profile, *drawn = job.sums()([profile_job(config, chunks), *draws(config, chunks)])
    job.tell("profile", rows=profile.n_rows, seconds=time.perf_counter() - began, bytes_read=chunks.pass_bytes())
    profile.check(config.data.bad_rows)
    refuse_negative(config, profile)
    if job.log is not None:
        for text in warnings_of(config, profile):
            job.log("warning", message=text)
    known = known_rows(profile, config.preprocess)
    return replace(job, chunks=chunks.known(known.affine, known.n_bad)), known, drawn[0] if drawn else None


def profile_job(config: Config, chunks: Chunks) -> ProfileJob:
    """What the profiling pass computes of each chunk."""
    full = config.model.family == "gaussian" or any(step.kind in ("pca", "zca") for step in config.preprocess)
    scatter = "none" if chunks.source.sparse else "full" if full else "diag"
    return ProfileJob(scatter, sample_size(config, chunks.n_features), config.fit.random_state)


def models_of(config: Config, known: Known) -> list[Model]:
    """The model of each candidate."""
    return [build_model(candidate, known) for candidate in config.candidates()]


def starts(job: Work, known: Known, given: Given, drawn: Drawn | None) -> list[Run]:
    """A run for each candidate and restart, with its initial parameters.

    drawn : rows for the search; None to draw them again (a job that ended in the middle of its search).
    """
    config, fit = job.config, job.config.fit
    began = time.perf_counter()
    models = models_of(config, known)
    if searches(config) and drawn is None:
        (drawn,) = replace(job, chunks=job.chunks.raw()).sums()(draws(config, job.chunks))
    if drawn is not None and not _is_enough(job, drawn):
        drawn = None
    found: list[list[Any]]
    if drawn is not None:
        found = [[None] * fit.n_init for _ in models]
    else:
        own = [_own(job, known, i) for i in range(len(models))]
        startings = [
            starting(model, fit.init, fit.n_init, fit.random_state, k, *given)
            for model, k in zip(models, own, strict=True)
        ]
        found = in_step(startings, job.sums())
    runs = [
        Run(restart, models[i], params, candidate=i)
        for i, each in enumerate(found)
        for restart, params in enumerate(each)
    ]
    if drawn is not None:
        runs = _searched(job, known, runs, drawn)
    job.tell("init", method=fit.init, seconds=time.perf_counter() - began)
    return runs


def _own(job: Work, known: Known, candidate: int) -> Known:
    """What a job with this candidate alone would know."""
    return known.with_sample(sample_size(job.config.candidates()[candidate], job.chunks.source.n_features))


def draws(config: Config, chunks: Chunks) -> list[Draw]:
    """The job that draws rows for the search, where there is one."""
    return [Draw(held_share(config, chunks), config.fit.random_state)] if searches(config) else []


def _is_enough(job: Work, drawn: Drawn) -> bool:
    """Whether every candidate has a row for each component: with long rows, or few of positive weight, it may have none."""
    return all(
        drawn.below(held_share(candidate, job.chunks)) >= max(candidate.model.n_components)
        for candidate in job.config.candidates()
    )


def _searched(job: Work, known: Known, runs: list[Run], drawn: Drawn) -> list[Run]:
    """The runs with parameters that a search has found, one after the other, each on the rows that it would hold alone."""
    config, fit = job.config, job.config.fit
    held, found = drawn.rows(known.affine), []
    movable = "weights" not in config.model.fixed  # held weights keep their places
    with ThreadPoolExecutor(min(job.engine.workers, cores())) as threads:
        rows = MemoryRows(*held, threads)
        for run in runs:
            own = rows.head(drawn.below(held_share(config.candidates()[run.candidate], job.chunks)))
            rungs: list[Rung] = []

            def tell(rung: Rung, run: Run = run, rungs: list[Rung] = rungs) -> None:
                rungs.append(rung)
                of = {"candidate": run.candidate, "restart": run.restart, "of": job.chunks.n_rows}
                job.tell("rung", **of, **rung._asdict())

            seed = fit.random_state + SEED_STEP * run.restart
            search = Search(
                fit.init,
                movable and fit.moves == "auto",
                seed,
                _own(job, known, run.candidate),
                own,
                job.chunks.n_rows,
                tell,
            )
            run = replace(run, params=search(run.model), rungs=tuple(rungs))
            found.append(_shrunk(job, run, own, known.total) if config.select.annihilation else run)
    return found


def _shrunk(job: Work, run: Run, rows: MemoryRows, of: float) -> Run:
    """The run with as many components as the shortest message has."""
    began = time.perf_counter()
    kept = annihilated(run.model, run.params, rows, of)
    job.tell(
        "annihilation",
        candidate=run.candidate,
        n_components=kept.model.n_components,
        lengths=kept.lengths,
        rows=rows.n_rows,
        seconds=time.perf_counter() - began,
    )
    return replace(run, model=kept.model, params=kept.params, lengths=tuple(kept.lengths))
