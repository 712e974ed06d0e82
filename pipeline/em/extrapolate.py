"""SQUAREM of order 1: extrapolation of EM's sequence from two steps.

In the vector space of statistics, EM maps S to G(S) = E-step at M(S). From S₀, S₁ = G(S₀), S₂ = G(S₁):

    r = S₁ - S₀    v = (S₂ - S₁) - r    α = -|r| / |v|    S' = S₀ - 2 α r + α² v

α = -1 is EM itself, S' = S₂. The pass at M(S') is the first of the next cycle, so a step costs nothing unless it is rejected.
[Varadhan and Roland 2008, scheme S3]

With several blocks, G is an epoch over them, and the statistics of each are extrapolated with the α of their sum. The free
energy is known again when the next epoch has replaced them all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.em.accumulate import total_of
from pipeline.em.run import Run
from pipeline.models.base import Totals

HALVINGS = 8  # towards EM's own step, before a step is given up
SHORTEST = -1.1  # a step hardly longer than EM's own is not made


def extrapolate(run: Run) -> Run:
    """Return the run at extrapolated parameters, whose objective is not known yet, or the run itself if there is no step."""
    model, now = run.model, run.accumulator
    if now is None or not model.extrapolates or not now.can_extrapolate:
        return run
    first, second, third = (total_of(blocks) for blocks in now.epochs)
    r = second - first
    bend = model.change_norm((third - second) - r, third, run.params)
    alpha = -model.change_norm(r, third, run.params) / bend if bend > 0 else -1.0
    for _ in range(HALVINGS):
        if not alpha < SHORTEST:  # NaN too
            break
        blocks = tuple(_extrapolated(a, b, c, alpha) for a, b, c in zip(*now.epochs, strict=True))
        totals = model.feasible(total_of(blocks), third)
        if totals is not None:
            params = model.m_step(totals.stats, run.params)
            if model.is_valid(params, totals.stats):
                blocks = (totals,) if len(blocks) == 1 else blocks
                accumulator = now._replace(epochs=(blocks,), fallback=now.epochs[-1])
                return replace(run, params=params, accumulator=accumulator)
        alpha = 0.5 * (alpha - 1.0)
    return run


def _extrapolated(first: Totals, second: Totals, third: Totals, alpha: float) -> Totals:
    r = second - first
    return first + r * (-2.0 * alpha) + ((third - second) - r) * (alpha * alpha)


def least_objective(run: Run) -> float:
    """Return the objective that an extrapolation step must reach: the free energy after EM's own step, and no less than before it."""
    return float(np.fmax(run.bound, run.history[-1].objective))


def reverted(run: Run) -> Run:
    """Return the run after a rejected step, at EM's own step."""
    assert run.accumulator is not None
    blocks = run.accumulator.fallback
    accumulator = run.accumulator._replace(steps=len(blocks), epochs=(blocks,), fallback=())
    params = run.model.m_step(total_of(blocks).stats, run.params)
    return replace(run, params=params, accumulator=accumulator)
