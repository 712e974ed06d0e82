"""SQUAREM of order 1: two steps of EM show where a sequence of them would end; a leap goes there at once.

In the space of statistics, which is a vector space, EM maps S to G(S) = E-step at M(S). From S₀, S₁ = G(S₀), S₂ = G(S₁):

    r = S₁ - S₀    v = (S₂ - S₁) - r    α = -|r| / |v|    S' = S₀ - 2 α r + α² v

α = -1 is EM itself, S' = S₂. The pass at M(S') is the first of the next cycle, so a leap costs nothing unless it is refused.
[Varadhan and Roland 2008, scheme S3]

With several blocks G is a sweep through them, and the statistics of each leap by the α of their sum. The free energy is
then known again when the sweep at the end of the leap has replaced them all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.em.folds import total_of
from pipeline.em.run import Run
from pipeline.models.base import Mixture

HALVINGS = 8  # towards EM's own step, before a leap is given up
SHORTEST = -1.1  # a leap that is hardly longer than EM's step is none


def leap(run: Run) -> Run:
    """The run at extrapolated parameters, not looked at yet; itself where EM goes on by itself."""
    model, fold = run.model, run.fold
    if fold is None or not fold.may_leap:
        return run
    assert isinstance(model, Mixture)
    if model.assignment == "hard":  # labels jump: there is nothing to extrapolate
        return run
    first, second, third = (total_of(blocks) for blocks in fold.kept)
    r = second - first
    bend = model.change_norm((third - second) - r, third, run.params)
    alpha = -model.change_norm(r, third, run.params) / bend if bend > 0 else -1.0
    for _ in range(HALVINGS):
        if not alpha < SHORTEST:  # NaN too
            break
        blocks = tuple(_extrapolated(a, b, c, alpha) for a, b, c in zip(*fold.kept, strict=True))
        stats = model.feasible(total_of(blocks), third)
        if stats is not None:
            params = model.m_step(stats, run.params)
            if not model.collapsed(params, stats.sum_w):
                blocks = (stats,) if len(blocks) == 1 else blocks
                return replace(run, params=params, fold=fold._replace(kept=(blocks,), back=fold.kept[-1]))
        alpha = 0.5 * (alpha - 1.0)
    return run


def _extrapolated(first: Any, second: Any, third: Any, alpha: float) -> Any:
    r = second - first
    return first + r * (-2.0 * alpha) + ((third - second) - r) * (alpha * alpha)


def least_objective(run: Run) -> float:
    """What a leap has to reach: the free energy that EM's own step has reached already, and no less than before it."""
    return max(run.bound, run.history[-1].objective)


def back(run: Run) -> Run:
    """The run after a leap that was refused: it goes on from EM's own step."""
    assert run.fold is not None
    blocks = run.fold.back
    fold = run.fold._replace(steps=len(blocks), kept=(blocks,), back=())
    return replace(run, params=run.model.m_step(total_of(blocks), run.params), fold=fold)
