"""The EM loop, as a generator over passes.

    E-step:      sum of partial statistics over all chunks or a block (one read, shared by all restarts)
    accumulate:  totals of all rows from those of this pass and earlier ones (accumulate.py)
    M-step:      the parameters that maximize the free energy given the totals
    log p(X | theta) = F(q, theta) + KL(q || p(z | X, theta))
[Dempster, Laird and Rubin 1977; Neal and Hinton 1998]

To resume is to start the generator with loaded runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pipeline.em.accumulate import Method, total_of
from pipeline.em.certificate import rate_of, remaining_gain
from pipeline.em.extrapolate import extrapolate, least_objective, reverted
from pipeline.em.run import Entry, Run
from pipeline.em.stopping import Limits, gained, stop_reason
from pipeline.models.ascent import Point
from pipeline.models.base import Attachment, EStep, LatentModel, Partial, Reset, Totals


class ResetEvent(NamedTuple):
    """A reset in an iteration of a restart of a candidate."""

    restart: int
    iteration: int
    reset: Reset
    candidate: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the fields of its event."""
        where = {"candidate": self.candidate, "restart": self.restart, "iteration": self.iteration}
        return {"event": "reset", **where, **self.reset._asdict()}


class RejectedEvent(NamedTuple):
    """A rejected step, of an extrapolation or of an ascent. objective, least : its objective and the one it had to reach, total nats.

    objective : None if a component would have collapsed before it was known.
    """

    restart: int
    iteration: int
    objective: float | None
    least: float
    candidate: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the fields of its event."""
        return {"event": "rejected", **self._asdict()}


Event = ResetEvent | RejectedEvent
TEXTBOOK = Method()
Evaluate = Callable[..., Sequence[Partial]]  # (jobs), and (jobs, block) for methods that have blocks


def em(
    runs: Sequence[Run],
    evaluate: Evaluate,
    limits: Limits,
    n_rows: int,
    method: Method = TEXTBOOK,
    final: tuple[Attachment, ...] = (),
) -> Iterator[tuple[list[Run], list[Event]]]:
    """Advance all runs, one pass at a time, until each has stopped and its final parameters are evaluated.

    Parameters
    ----------
    runs : sequence of Run
    evaluate : callable
        Sums each job's partial statistics over all chunks, or over those of a block.
    limits : Limits
    n_rows : int
        Rows that a pass over all of them reads.
    method : Method
    final : tuple of Attachment
        What the evaluation of the final parameters collects in addition.

    Yields
    ------
    runs, events : list of Run, list of Event
        After each pass.
    """
    current = [_going_on(replace(run, accumulator=run.accumulator or method.first(run.model))) for run in runs]
    del runs  # large models: what is not needed any more is freed
    while live := [i for i, run in enumerate(current) if run.final is None]:
        events: list[Event] = []
        current = [extrapolate(run) if run.stop_reason is None else run for run in current]
        for block, members in _by_block(current, live, method).items():
            jobs = [_job(current[i], final) for i in members]
            partials = evaluate(jobs) if block is None else evaluate(jobs, block)
            read = n_rows if block is None else method.block_rows[block]
            for i, partial in zip(members, partials, strict=True):
                if current[i].stop_reason is not None:
                    current[i] = replace(current[i], final=partial)
                    continue
                current[i], happened = advance(current[i], partial, limits, read, method)
                events += happened
            del jobs, partials, partial
        yield list(current), events


def _going_on(run: Run) -> Run:
    """The run, at the step that it would have tried next if it had not been stopped at an accepted point."""
    model, trail = run.model, run.accumulator.trail if run.accumulator else ()
    if run.stop_reason is None and model.ascent is not None and trail:
        arrays = model.arrays(run.params)
        if all(np.array_equal(arrays[name], value) for name, value in trail[-1].arrays.items()):
            return replace(run, params=model.ascent.ascend(trail))
    return run


def _job(run: Run, final: tuple[Attachment, ...]) -> EStep:
    model, own, trail = run.model, run.model.attachments, run.accumulator.trail if run.accumulator else ()
    if run.stop_reason is not None:
        return EStep(model, run.params, (*own, *final))
    return EStep(model.ascent.trying(trail, run.params) if model.ascent and trail else model, run.params, own)


def _by_block(current: Sequence[Run], live: Sequence[int], method: Method) -> dict[int | None, list[int]]:
    """Group runs by the block they read next; restarts stay synchronised until one resets in the middle of an epoch."""
    members: dict[int | None, list[int]] = {}
    for i in live:
        now = current[i].accumulator if current[i].stop_reason is None else None
        members.setdefault(now.block(len(method.block_rows)) if now else None, []).append(i)
    return members


def advance(run: Run, partial: Partial, limits: Limits, read: int, method: Method) -> tuple[Run, list[Event]]:
    """Make one M-step: new parameters, an entry of the history if all rows have been read, and whether to stop.

    An extrapolation step is rejected if it ends below the objective of EM's own step, and a step of an ascent if it does not gain.
    """
    model, old, n_blocks = run.model, run.params, len(method.block_rows)
    assert run.accumulator is not None
    accumulator, total = run.accumulator.add(partial.totals, n_blocks)
    run = replace(run, accumulator=accumulator, read=run.read + read)
    if total is None:
        return run, []
    if accumulator.fallback:
        if accumulator.block(n_blocks):  # in the middle of an epoch
            return _extrapolated_epoch(run, total)
        objective, least = _objective(run, total), least_objective(run)
        if not objective >= least:
            return _rejected(run, objective)
    if (ascent := model.ascent) is not None:
        trail = accumulator.trail
        if trail and not ascent.accepts(trail, old, total):
            event = RejectedEvent(run.restart, len(run.history), _objective(run, total), run.objective, run.candidate)
            return replace(run, params=ascent.shorten(trail, old, total)), [event]
        accumulator = accumulator._replace(trail=(*trail, Point(model.arrays(old), total))[-ascent.memory :])
        run = replace(run, accumulator=accumulator)
        params, resets = ascent.ascend(accumulator.trail), list[Reset]()
    else:
        params, resets = model.reset(model.m_step(total.stats, old), old, total.stats, partial.attached, run.resets)
    moved = tuple(reset.component for reset in resets if reset.done)
    # After a reset, what is stored belongs to components that are no more.
    accumulator = type(accumulator)(accumulator.kind) if resets else accumulator._replace(fallback=())
    label_hash = partial.attached.get("label_hash")
    bound = model.bound(total, params) if model.has_bound else np.nan
    changes: dict[str, Any] = {
        "params": params,
        "resets": (*run.resets, *moved),
        "accumulator": accumulator,
        "bound": bound + model.log_prior(params) if model.has_bound else -np.inf,
        "label_hash": None if label_hash is None else int(label_hash.value),
    }
    events: list[Event] = [ResetEvent(run.restart, len(run.history), reset, run.candidate) for reset in resets]
    if accumulator.block(n_blocks):  # in the middle of an epoch
        return replace(run, **changes), events
    entry = _entry(run, total, params, bound)
    advanced = replace(run, **changes, history=(*run.history, entry), settled=not moved, read=0)
    if accumulator.kind == "incremental" and gained(run, advanced) < limits.tol:  # the last epoch gained little
        advanced = replace(advanced, accumulator=method.last(model))
    reason = stop_reason(run, advanced, limits, method.accelerated)
    if reason is not None:
        # After an ascent at the newest accepted point: what follows from it is not checked.
        advanced = replace(advanced, stop_reason=reason, params=old if accumulator.trail else params)
    return advanced, events


def _extrapolated_epoch(run: Run, total: Totals) -> tuple[Run, list[Event]]:
    """The M-step in the middle of the epoch after an extrapolation step.

    Some blocks are still extrapolated: it is only known whether the parameters can be used.
    """
    model = run.model
    assert run.accumulator is not None
    totals = model.feasible(total, total_of(run.accumulator.fallback))
    if totals is None:
        return _rejected(run, None)
    params = model.m_step(totals.stats, run.params)
    if not model.is_valid(params, totals.stats):
        return _rejected(run, None)
    return replace(run, params=params), []


def _rejected(run: Run, objective: float | None) -> tuple[Run, list[Event]]:
    event = RejectedEvent(run.restart, len(run.history), objective, least_objective(run), run.candidate)
    return reverted(run), [event]


def _objective(run: Run, total: Totals) -> float:
    """Objective at the E-step, total nats: the bound if blocks were read with different parameters."""
    assert run.accumulator is not None
    if not run.accumulator.mixed:
        return run.model.objective(total, run.params)
    return run.model.bound(total, run.params) + run.model.log_prior(run.params)


def _entry(run: Run, total: Totals, after: Any, bound: float) -> Entry:
    """Entry of the history. run : at the E-step.  total : of all rows.  after : parameters of the M-step.  bound : theirs, NaN without one."""
    model, accumulator = run.model, run.accumulator
    assert accumulator is not None
    mixed, bounded = accumulator.mixed, model.has_bound
    norm = np.nan if mixed else model.fisher_norm(total, run.params, after)
    comparable = run.history and run.settled and not accumulator.fallback and bounded and not mixed
    rate = rate_of(run.history[-1].fisher_norm, norm) if comparable else np.nan
    rates = [*(earlier.rate for earlier in run.history), rate]
    reported = model.reported(total, run.params)
    return Entry(
        objective=_objective(run, total),
        weight=total.evidence.weight,
        log_likelihood=np.nan if mixed or reported is None else float(reported),
        entropy=float(total.evidence.entropy) if bounded else np.nan,
        lower_bound=bound,
        traced=model.trace(total.stats),
        rows=run.read,
        phase=accumulator.kind,
        fisher_norm=norm,
        rate=rate,
        remaining_gain=_remaining_gain(model, norm, rates) if bounded and not mixed else np.nan,
        computed=total.evidence.skipped.share,
        left_out=total.evidence.skipped.largest,
    )


def _remaining_gain(model: LatentModel, norm: float, rates: Sequence[float]) -> float:
    if model.ascent is not None and model.ascent.is_newton:
        return 0.5 * norm * norm
    return remaining_gain(norm, rates)
