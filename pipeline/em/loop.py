"""The EM loop, as a generator over passes.

    E-step: the sum of partial statistics over all chunks (one pass, shared by all restarts)
    M-step: the parameters that maximise the free energy given that sum
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
from pipeline.em.run import Entry, Run
from pipeline.em.stopping import Limits, stop_reason
from pipeline.models.base import Mixture, Model, Reset
from pipeline.models.stats import Partial


class ResetEvent(NamedTuple):
    """A reset, with the restart and iteration it happened in, and the candidate that the restart is of."""

    restart: int
    iteration: int
    reset: Reset
    candidate: int = 0


@dataclass(frozen=True)
class EStep:
    """The job of a pass: a model's E-step under fixed parameters. final: collect exemplars too."""

    model: Model
    params: Any
    final: bool = False

    def __call__(self, chunk: Any) -> Partial:
        """Partial statistics of one chunk."""
        return self.model.e_step(self.params, chunk.x, chunk.weight, chunk.start, self.final)


Evaluate = Callable[[Sequence[EStep]], Sequence[Partial]]


def em(
    runs: Sequence[Run], evaluate: Evaluate, limits: Limits, n_rows: int
) -> Iterator[tuple[list[Run], list[ResetEvent]]]:
    """Advance all runs together, one pass at a time, until each has stopped and been evaluated once more.

    evaluate : sums each job's partial statistics over all chunks.  n_rows : rows that a pass reads.
    Yields the runs after each pass, with the resets that happened in it.
    """
    current = list(runs)
    while live := [i for i, run in enumerate(current) if run.final is None]:
        jobs = [EStep(current[i].model, current[i].params, current[i].stop_reason is not None) for i in live]
        events: list[ResetEvent] = []
        for i, partial in zip(live, evaluate(jobs), strict=True):
            if current[i].stop_reason is not None:
                current[i] = replace(current[i], final=partial)
            else:
                current[i], resets = advance(current[i], partial, limits, n_rows)
                events += resets
        yield list(current), events


def advance(run: Run, partial: Partial, limits: Limits, n_rows: int) -> tuple[Run, list[ResetEvent]]:
    """One M-step: new parameters, one more entry of history, and whether to stop."""
    model, old = run.model, run.params
    counts = np.zeros(model.n_components, dtype=np.int64) if run.resets is None else run.resets
    raised = model.m_step(partial.stats, old)
    params, resets = model.revive(raised, old, partial, counts)
    iteration = len(run.history)
    entry = _entry(run, partial, raised, params, n_rows)
    moved = np.bincount([r.component for r in resets if r.done], minlength=model.n_components)
    advanced = replace(
        run,
        params=params,
        history=(*run.history, entry),
        resets=counts + moved,
        settled=not moved.any(),
        label_key=int(partial.label_key),
    )
    reason = stop_reason(run, advanced, limits)
    return replace(advanced, stop_reason=reason), [
        ResetEvent(run.restart, iteration, reset, run.candidate) for reset in resets
    ]


def _entry(run: Run, partial: Partial, raised: Any, after: Any, n_rows: int) -> Entry:
    """raised, after : parameters of the M-step, and those with which the run goes on."""
    model, stats = run.model, partial.stats
    norm = model.fisher_norm(stats, run.params, raised)
    rate = rate_of(run.history[-1].fisher_norm, norm) if run.history and run.settled else np.nan
    mixture = isinstance(model, Mixture)
    return Entry(
        objective=model.objective(stats, run.params),
        log_likelihood=float(stats.log_likelihood) if mixture else np.nan,
        entropy=float(stats.entropy) if mixture else np.nan,
        lower_bound=model.free_energy(stats, after) if isinstance(model, Mixture) else np.nan,
        n_effective=stats.sum_w,
        rows=n_rows,
        phase="em",
        fisher_norm=norm,
        rate=rate if mixture else np.nan,
        left=left_to_gain(norm, [*(entry.rate for entry in run.history), rate]) if mixture else np.nan,
    )
