"""The EM loop, as a generator over passes.

    E-step: the sum of partial statistics over all chunks, or over those of a block (one read, shared by all restarts)
    fold:   statistics of all rows from those of the pass and of earlier ones (folds.py)
    M-step: the parameters that maximise the free energy given these
    log p(X | theta) = F(q, theta) + KL(q || p(z | X, theta))
[Dempster, Laird and Rubin 1977; Neal and Hinton 1998]

Resuming is the same generator started from loaded runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pipeline.em.certificate import left_to_gain, rate_of
from pipeline.em.folds import STEPWISE_SWEEPS, Fold, Method, total_of
from pipeline.em.run import Entry, Run
from pipeline.em.squarem import back, leap, least_objective
from pipeline.em.stopping import Limits, gained, stop_reason
from pipeline.models.base import Mixture, Model, Reset
from pipeline.models.stats import Partial


class ResetEvent(NamedTuple):
    """A reset, with the restart and iteration it happened in, and the candidate that the restart is of."""

    restart: int
    iteration: int
    reset: Reset
    candidate: int = 0

    def facts(self) -> dict[str, Any]:
        """What the log says of it."""
        where = {"candidate": self.candidate, "restart": self.restart, "iteration": self.iteration}
        return {"event": "reset", **where, **self.reset._asdict()}


class RefusedEvent(NamedTuple):
    """A leap that ended too low, with the restart and iteration. objective, least : what it had, and had to have, nats.

    objective : None where a component would have collapsed before that was known.
    """

    restart: int
    iteration: int
    objective: float | None
    least: float
    candidate: int = 0

    def facts(self) -> dict[str, Any]:
        """What the log says of it."""
        return {"event": "refused", **self._asdict()}


Event = ResetEvent | RefusedEvent


@dataclass(frozen=True)
class EStep:
    """The job of a pass: a model's E-step under fixed parameters. final: collect exemplars too."""

    model: Model
    params: Any
    final: bool = False

    def __call__(self, chunk: Any) -> Partial:
        """Partial statistics of one chunk."""
        return self.model.e_step(self.params, chunk.x, chunk.weight, chunk.start, self.final)


TEXTBOOK = Method()
Evaluate = Callable[..., Sequence[Partial]]  # (jobs), and (jobs, block) for methods that have blocks


def em(
    runs: Sequence[Run], evaluate: Evaluate, limits: Limits, n_rows: int, method: Method = TEXTBOOK
) -> Iterator[tuple[list[Run], list[Event]]]:
    """Advance all runs together, one pass at a time, until each has stopped and been evaluated once more.

    evaluate : sums each job's partial statistics over all chunks, or over those of a block.
    n_rows : rows that a pass over all of them reads.
    Yields the runs after each pass, with the resets and refusals that happened in it.
    """
    current = [replace(run, fold=run.fold or method.first(run.model)) for run in runs]
    while live := [i for i, run in enumerate(current) if run.final is None]:
        events: list[Event] = []
        current = [leap(run) if run.stop_reason is None else run for run in current]
        for block, members in _by_block(current, live, method).items():
            jobs = [EStep(current[i].model, current[i].params, current[i].stop_reason is not None) for i in members]
            partials = evaluate(jobs) if block is None else evaluate(jobs, block)
            read = n_rows if block is None else method.block_rows[block]
            for i, partial in zip(members, partials, strict=True):
                if current[i].stop_reason is not None:
                    current[i] = replace(current[i], final=partial)
                    continue
                current[i], happened = advance(current[i], partial, limits, read, method)
                events += happened
        yield list(current), events


def _by_block(current: Sequence[Run], live: Sequence[int], method: Method) -> dict[int | None, list[int]]:
    """Runs that read the same rows next. Restarts sweep in step, until one begins anew amid a sweep or changes to all rows."""
    members: dict[int | None, list[int]] = {}
    for i in live:
        fold = current[i].fold if current[i].stop_reason is None else None
        members.setdefault(fold.block(len(method.block_rows)) if fold else None, []).append(i)
    return members


def advance(run: Run, partial: Partial, limits: Limits, read: int, method: Method) -> tuple[Run, list[Event]]:
    """One M-step: new parameters, an entry of history where all rows have been read, and whether to stop.

    A leap that has led lower than EM's own step had come already is taken back.
    """
    model, old = run.model, run.params
    assert run.fold is not None
    fold, total = run.fold.take(partial.stats, method.block_rows)
    run = replace(run, fold=fold, read=run.read + read)
    if total is None:
        return run, []
    if fold.back:
        if fold.block(len(method.block_rows)):  # amid a sweep
            return _in_flight(run, total)
        objective, least = _objective(run, total), least_objective(run)
        if not objective >= least:
            return _refused(run, objective)
    counts = np.zeros(model.n_components, dtype=np.int64) if run.resets is None else run.resets
    params, resets = model.revive(model.m_step(total, old), old, replace(partial, stats=total), counts)
    if resets and fold.kind == "stepwise":  # few rows have been seen: the M-step waits for more
        params, resets = old, []
    moved = np.bincount([r.component for r in resets if r.done], minlength=model.n_components)
    # After a reset, what is kept belongs to components that are no more.
    fold = Fold(fold.kind) if resets else fold._replace(back=())
    bound = -np.inf
    if isinstance(model, Mixture) and fold.kind != "stepwise":
        bound = model.free_energy(total, params) + model.log_prior(params)
    advanced = replace(
        run,
        params=params,
        resets=counts + moved,
        fold=fold,
        bound=bound,
        label_key=int(partial.label_key),
    )
    events: list[Event] = [ResetEvent(run.restart, len(run.history), reset, run.candidate) for reset in resets]
    if fold.block(len(method.block_rows)):  # amid a sweep
        return advanced, events
    entry = _entry(run, total, params)
    advanced = replace(advanced, history=(*run.history, entry), settled=not moved.any(), read=0)
    if _sweeps_are_over(run, advanced, limits):
        advanced = replace(advanced, fold=method.last(model))
    return replace(advanced, stop_reason=stop_reason(run, advanced, limits, method.accelerated)), events


def _in_flight(run: Run, total: Any) -> tuple[Run, list[Event]]:
    """The M-step amid the sweep after a leap: some blocks are still where they leapt to, and nothing is known but whether
    components have collapsed.
    """
    model = run.model
    assert isinstance(model, Mixture) and run.fold is not None
    stats = model.feasible(total, total_of(run.fold.back))
    if stats is None:
        return _refused(run, None)
    params = model.m_step(stats, run.params)
    if model.collapsed(params, stats.sum_w):
        return _refused(run, None)
    return replace(run, params=params), []


def _refused(run: Run, objective: float | None) -> tuple[Run, list[Event]]:
    event = RefusedEvent(run.restart, len(run.history), objective, least_objective(run), run.candidate)
    return back(run), [event]


def _sweeps_are_over(before: Run, after: Run, limits: Limits) -> bool:
    """Stepwise sweeps are a start; incremental ones end when the last gained no more than tol."""
    assert after.fold is not None
    if after.fold.kind == "stepwise":
        return len(after.history) >= STEPWISE_SWEEPS
    return after.fold.kind == "incremental" and gained(before, after) < limits.tol


def _objective(run: Run, total: Any) -> float:
    """At the E-step, total nats: exact, also where blocks were read under several parameters."""
    assert run.fold is not None
    if not run.fold.mixed:
        return run.model.objective(total, run.params)
    assert isinstance(run.model, Mixture)
    return run.model.free_energy(total, run.params) + run.model.log_prior(run.params)


def _entry(run: Run, total: Any, after: Any) -> Entry:
    """run : at the E-step.  total : statistics of all rows.  after : parameters of the M-step."""
    model, fold = run.model, run.fold
    assert fold is not None
    entry = Entry(
        objective=_objective(run, total),
        log_likelihood=np.nan,
        entropy=np.nan,
        lower_bound=np.nan,
        n_effective=total.sum_w,
        rows=run.read,
        phase=fold.kind,
        fisher_norm=model.fisher_norm(total, run.params, after),
        rate=np.nan,
        left=np.nan,
    )
    if not isinstance(model, Mixture):
        return entry
    if fold.kind == "stepwise":
        return entry._replace(objective=np.nan, fisher_norm=np.nan)
    entry = entry._replace(entropy=float(total.entropy), lower_bound=model.free_energy(total, after))
    if fold.mixed:
        return entry._replace(fisher_norm=np.nan)
    comparable = run.history and run.settled and not fold.back
    rate = rate_of(run.history[-1].fisher_norm, entry.fisher_norm) if comparable else np.nan
    rates = [*(earlier.rate for earlier in run.history), rate]
    left = left_to_gain(entry.fisher_norm, rates)
    return entry._replace(log_likelihood=float(total.log_likelihood), rate=rate, left=left)
