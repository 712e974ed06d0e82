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
from pipeline.em.folds import STEPWISE_SWEEPS, Fold, Method
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
    """A leap that ended too low, with the restart and iteration. objective, least : what it had, and had to have, nats."""

    restart: int
    iteration: int
    objective: float
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
        leaps = {i: found for i in live if current[i].stop_reason is None and (found := leap(current[i]))}
        for block, members in _by_block(current, live, method).items():
            at = [leaps.get(i, current[i]) for i in members]
            jobs = [EStep(run.model, run.params, run.stop_reason is not None) for run in at]
            partials = evaluate(jobs) if block is None else evaluate(jobs, block)
            read = n_rows if block is None else method.block_rows[block]
            for i, partial in zip(members, partials, strict=True):
                if current[i].stop_reason is not None:
                    current[i] = replace(current[i], final=partial)
                    continue
                if i in leaps:
                    current[i], happened = land(current[i], leaps[i], partial, limits, read, method)
                else:
                    current[i], happened = advance(current[i], partial, limits, read, method)
                events += happened
        yield list(current), events


def _by_block(current: Sequence[Run], live: Sequence[int], method: Method) -> dict[int | None, list[int]]:
    """Runs that read the same rows next. Restarts sweep in step; one that has changed to all rows reads them alone."""
    members: dict[int | None, list[int]] = {}
    for i in live:
        fold = current[i].fold if current[i].stop_reason is None else None
        members.setdefault(fold.block(len(method.block_rows)) if fold else None, []).append(i)
    return members


def land(run: Run, leapt: Run, partial: Partial, limits: Limits, read: int, method: Method) -> tuple[Run, list[Event]]:
    """Go on from a leap, or from where the run was if it leads lower than EM's own step has come already."""
    objective, least = run.model.objective(partial.stats, leapt.params), least_objective(run)
    if objective >= least:
        return advance(leapt, partial, limits, read, method, leapt=True)
    return back(run, read), [RefusedEvent(run.restart, len(run.history), objective, least, run.candidate)]


def advance(
    run: Run, partial: Partial, limits: Limits, read: int, method: Method, leapt: bool = False
) -> tuple[Run, list[Event]]:
    """One M-step: new parameters, an entry of history where all rows have been read, and whether to stop."""
    model, old = run.model, run.params
    assert run.fold is not None
    fold, total = run.fold.take(partial.stats, method.block_rows)
    run = replace(run, fold=fold, read=run.read + read)
    if total is None:
        return run, []
    counts = np.zeros(model.n_components, dtype=np.int64) if run.resets is None else run.resets
    params, resets = model.revive(model.m_step(total, old), old, replace(partial, stats=total), counts)
    if resets and fold.kind == "stepwise":  # few rows have been seen: the M-step waits for more
        params, resets = old, []
    moved = np.bincount([r.component for r in resets if r.done], minlength=model.n_components)
    if resets:  # what is kept belongs to components that are no more
        fold = Fold(fold.kind)
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
    entry = _entry(run, total, params, leapt)
    advanced = replace(advanced, history=(*run.history, entry), settled=not moved.any(), read=0)
    if _sweeps_are_over(run, advanced, limits):
        advanced = replace(advanced, fold=method.last(model))
    return replace(advanced, stop_reason=stop_reason(run, advanced, limits, method.accelerated)), events


def _sweeps_are_over(before: Run, after: Run, limits: Limits) -> bool:
    """Stepwise sweeps are a start; incremental ones end when the last gained no more than tol."""
    assert after.fold is not None
    if after.fold.kind == "stepwise":
        return len(after.history) >= STEPWISE_SWEEPS
    return after.fold.kind == "incremental" and gained(before, after) < limits.tol


def _entry(run: Run, total: Any, after: Any, leapt: bool) -> Entry:
    """run : at the E-step.  total : statistics of all rows.  after : parameters of the M-step."""
    model, fold = run.model, run.fold
    assert fold is not None
    entry = Entry(
        objective=model.objective(total, run.params),
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
    if fold.kind == "incremental" and fold.steps > len(fold.kept):  # blocks were read under several parameters
        bound = model.free_energy(total, run.params) + model.log_prior(run.params)
        return entry._replace(objective=bound, fisher_norm=np.nan)
    comparable = run.history and run.settled and not leapt
    rate = rate_of(run.history[-1].fisher_norm, entry.fisher_norm) if comparable else np.nan
    rates = [*(earlier.rate for earlier in run.history), rate]
    left = left_to_gain(entry.fisher_norm, rates)
    return entry._replace(log_likelihood=float(total.log_likelihood), rate=rate, left=left)
