"""SQUAREM of order 1: two EM steps show where a sequence of them would end; a leap goes there at once.

In the space of statistics, which is a vector space, EM maps S to G(S) = E-step at M(S). From S₀, S₁ = G(S₀), S₂ = G(S₁):

    r = S₁ - S₀    v = (S₂ - S₁) - r    α = -|r| / |v|    S' = S₀ - 2 α r + α² v

α = -1 is EM itself, S' = S₂. The pass at M(S') is the first of the next cycle, so a leap costs nothing unless it is refused.
[Varadhan and Roland 2008, scheme S3]
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.em.folds import Fold
from pipeline.em.run import Run
from pipeline.models.base import Mixture

HALVINGS = 8  # towards EM's own step, before a leap is given up
SHORTEST = -1.1  # a leap that is hardly longer than EM's step is none


def leap(run: Run) -> Run | None:
    """The run at extrapolated parameters, not looked at yet; None where EM goes on by itself."""
    model, fold = run.model, run.fold
    if fold is None or fold.kind != "squarem" or len(fold.kept) < 3:
        return None
    assert isinstance(model, Mixture)
    first, second, third = fold.kept
    r = second - first
    v = (third - second) - r
    bend = model.change_norm(v, third, run.params)
    alpha = -model.change_norm(r, third, run.params) / bend if bend > 0 else -1.0
    for _ in range(HALVINGS):
        if not alpha < SHORTEST:  # NaN too
            return None
        stats = model.feasible(first + r * (-2.0 * alpha) + v * (alpha * alpha), third)
        if stats is not None:
            params = model.m_step(stats, run.params)
            if not model.collapsed(params, stats.sum_w):
                return replace(run, params=params, fold=Fold("squarem", 0, (stats,)))
        alpha = 0.5 * (alpha - 1.0)
    return None


def least_objective(run: Run) -> float:
    """What a leap has to reach: the free energy that EM's own step has reached already, and no less than before it."""
    return max(run.bound, run.history[-1].objective)


def back(run: Run, rows: int) -> Run:
    """The run after a leap that was refused: it goes on from EM's own step. rows : read in vain."""
    assert run.fold is not None
    return replace(run, fold=Fold("squarem", 0, run.fold.kept[-1:]), read=run.read + rows)
