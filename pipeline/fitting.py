"""The fit of a job: its starts, the loop with events and checkpoints, the choice among candidates; ends with model.zarr."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.profile import DataSummary as Known
from pipeline.data.sample import Sample as Drawn
from pipeline.data.user_start import UserStart as Given
from pipeline.em.folds import method_of
from pipeline.em.loop import EStep, Event, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.job import Job, Work
from pipeline.outputs import checkpoint, partial
from pipeline.outputs.candidates import choose, name_of
from pipeline.outputs.events import figures
from pipeline.outputs.iterations import keep_iterations
from pipeline.outputs.model_store import best_run, build_dataset, canonical_order, write_dataset, write_datasets
from pipeline.outputs.state import pack
from pipeline.planning import sample_size
from pipeline.starting import starts

if TYPE_CHECKING:
    import xarray as xr

CHECKPOINT_SECONDS = 10.0


def begin(job: Job, known: Known, given: Given, drawn: Drawn | None) -> list[Run]:
    """The runs at their starts, saved. drawn : rows for a search, or None to draw them now. A search takes as long as some passes do: what is known is saved before it."""
    _save(job, 0, pack(known, []))
    partial.forget(job.directory.checkpoints)
    runs = starts(job, known, given, drawn)
    _save(job, 1, pack(known, runs))
    partial.forget(job.directory.checkpoints)
    return runs


def fit(job: Job, known: Known, runs: list[Run], generation: int = 1) -> None:
    """All candidates to their ends, and the chosen one once more where rows were held out; ends with model.zarr.

    generation : the last checkpoint, which the runs are from.
    """
    fits, refits = [run for run in runs if not run.refit], [run for run in runs if run.refit]
    fits, generation = _advance(job, known, fits, refits, generation)
    choice = choose(fits, job.config.select.criterion, known.total)
    for entry in choice.shown:
        job.log("candidate", **entry)
    others = [restarts for i, restarts in enumerate(choice.restarts) if i != choice.chosen]
    if others:
        datasets = {name_of(restarts[0].model): _dataset(job, known, restarts) for restarts in others}
        write_datasets(job.directory.candidates, datasets)
    chosen = choice.restarts[choice.chosen]
    if job.config.select.heldout:
        chosen, _ = _advance(job, known, refits or [choice.refit()], fits, generation)
        known = replace(known, total=known.total + choice.table[choice.chosen]["heldout_weight"])
    model = _dataset(job, known, chosen)
    if choice.shown:
        model.attrs["candidates"] = choice.shown
    write_dataset(job.directory.model, model)


def _dataset(job: Job, known: Known, restarts: list[Run]) -> xr.Dataset:
    """What the best of a candidate's restarts leaves: what a job with this candidate alone would."""
    run, source = best_run(restarts), job.chunks.source
    ordered = job.config.fit.init not in ("explicit", "labels")
    order = canonical_order(run) if ordered else np.arange(run.model.n_components)
    size = sample_size(job.config.candidates()[run.candidate], source.n_features)
    return build_dataset(run, restarts, order, known.with_sample(size), source)


def _advance(job: Job, known: Known, runs: list[Run], resting: list[Run], generation: int) -> tuple[list[Run], int]:
    """The loop, with events and checkpoints: runs at their ends, and the last generation. resting : saved beside them."""
    read, names = [0], {run.candidate: name_of(run.model) for run in runs}  # read : rows since the last event

    saved, saved_at = runs, time.perf_counter()
    began = saved_at

    def save() -> None:
        nonlocal generation, saved, saved_at
        generation, began = generation + 1, time.perf_counter()
        _save(job, generation, pack(known, [*resting, *runs]))
        saved, saved_at = runs, time.perf_counter()
        job.log("checkpoint", generation=generation, seconds=saved_at - began)

    keep_iterations(job.directory.iterations, [None] * len(runs), runs, job.config.output.keep_iterations)
    try:
        for current, events in iterations(job, known, runs, read):
            before, runs, now = runs, current, time.perf_counter()
            keep_iterations(job.directory.iterations, before, runs, job.config.output.keep_iterations)
            _log_pass(job, runs, known, now - began, read[0])
            read[0] = 0
            for event in events:
                job.log(**event.facts(), name=names[event.candidate], refit=runs[0].refit)
            if generation == 1 or now - saved_at > CHECKPOINT_SECONDS or all(run.stop_reason for run in runs):
                save()
                partial.forget(job.directory.checkpoints)  # what passes had kept on the way to it is in it
            began = time.perf_counter()
    except BaseException:  # a stop, a lost cluster, a chunk that cannot be read: the passes before it are kept
        if runs is not saved:
            save()
        raise
    return runs, generation


def iterations(
    work: Work, known: Known, runs: Sequence[Run], read: list[int], exemplars: bool = True
) -> Iterator[tuple[list[Run], list[Event]]]:
    """The loop over all rows as the config asks for it; what `em` yields.

    read : its first number grows by the rows read.  exemplars : whether the last pass collects them.
    """
    limits = Limits(work.config.fit.max_iter or 0, work.config.fit.tol or 0.0)
    method = method_of(work.config.fit.method, work.chunks.source.bounds, work.config.fit.random_state)
    sums = work.sums(refit=runs[0].refit)

    def evaluate(jobs: Sequence[EStep], block: int | None = None) -> list[Any]:
        read[0] += known.n_rows if block is None else method.block_rows[block]
        if not exemplars:
            jobs = [replace(job, final=False) for job in jobs]
        return sums(jobs, None if block is None else method.blocks[block])

    return em(runs, evaluate, limits, known.n_rows, method)


def _save(job: Job, generation: int, state: checkpoint.State) -> None:
    checkpoint.save(job.directory.checkpoints, generation, state, job.config.output.keep_checkpoints)


def _log_pass(job: Job, runs: Sequence[Run], known: Known, seconds: float, rows: int) -> None:
    best = best_run(runs)
    job.log(
        "pass",
        iteration=max(0, max(len(run.history) for run in runs) - 1),
        final=all(run.final is not None for run in runs),
        seconds=seconds,
        rows=rows,
        bytes_read=job.chunks.pass_bytes() * rows // known.n_rows,
        workers=job.engine.workers,
        restarts=len(runs),
        running=sum(run.stop_reason is None for run in runs),
        refit=best.refit,
        stop_reason=best.stop_reason,
        max_iter=job.config.fit.max_iter,
        routes=best.model.route_shares(best.params, job.chunks.source.dtype),
        **figures(best, float(best.history[-1].n_effective.sum()) if best.history else known.total),
    )
