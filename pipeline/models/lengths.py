"""Lengths of steps in the Fisher metric, by differences of the expected log joint: for models without a closed form.

To second order an M-step raises the expected log joint, with the log prior, by half the square of its length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.arrays.additive import Additive

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)  # of the statistics: how far a change is followed, the first that is possible


def of_step(model: Any, totals: Any, params: Any, new: Any) -> float:
    """See `LatentModel.fisher_norm`."""
    gain = _q(model, totals.stats, new) - _q(model, totals.stats, params)
    return float(np.sqrt(max(0.0, 2.0 * gain / totals.evidence.weight)))


def of_change(model: Any, change: Any, totals: Any, params: Any) -> float:
    """See `LatentModel.change_norm`."""

    def length(new: Any) -> float:
        fall = _q(model, totals.stats, params) - _q(model, totals.stats, new)
        return float(np.sqrt(max(0.0, 2.0 * fall / totals.evidence.weight)))

    return per_change(model, change, totals, params, length)


def per_change(model: Any, change: Any, totals: Any, params: Any, length: Callable[[Any], float]) -> float:
    """Return the length of the M-step's move by a small part of a change, over that part. length : of the move to new parameters."""
    size, moved = _size_of(totals.stats), _size_of(change.stats)
    if moved == 0:
        return 0.0
    for step in (size / moved * relative for relative in STEPS):
        stats = totals.stats + change.stats * step
        new = model.m_step(stats, params)
        if model.is_valid(new, stats):
            return length(new) / step
    return np.nan


def _q(model: Any, stats: Any, params: Any) -> float:
    return float(model.expected_log_joint(stats, params) + model.log_prior(params))


def _size_of(stats: Any) -> float:
    """Euclidean length of all numbers of a value that adds."""
    values = [part for part in stats._values() if part is not None and not isinstance(part, tuple)]  # a frame is no sum
    squares = (_size_of(v) ** 2 if isinstance(v, Additive) else float(np.sum(np.square(v))) for v in values)
    return float(np.sqrt(sum(squares)))
