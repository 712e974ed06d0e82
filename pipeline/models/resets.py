"""Resets of collapsed components: each becomes half of a component with many rows, or moves to a row that fits badly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.models.base import Reset
from pipeline.models.clusters import MAX_RESETS
from pipeline.models.moments import halved
from pipeline.models.weights import share_with

ROOM = 4  # times the rows below which a component is collapsed: what each half of a component must have


def reset(
    model: Any, new: Any, old: Any, stats: Any, attached: Mapping[str, Any], resets: tuple[int, ...]
) -> tuple[Array, Any, list[Reset]]:
    """Reset the collapsed components of a mixture.

    The largest component that is left is cut in two, for one after the other: a half keeps rows enough. A component at a single row
    would be collapsed again at the next iteration. Where none is large enough, and for families that are not cut, a component
    moves to the next worst row, with weight 1/K. After MAX_RESETS it stays, so that fits with K = N end.

    Parameters
    ----------
    model : Mixture
    new, old, stats, attached, resets : as of `LatentModel.reset`

    Returns
    -------
    weights, theta, resets
    """
    collapsed = model.collapsed(new, stats.sum_w)
    if not collapsed:
        return new.weights, new.theta, []
    component, which = model.component, np.array([k for k, _ in collapsed])
    movable = model.location not in model.fixed
    donors = iter(_large(stats.sum_w, which, 2 * ROOM * model.least_rows) if movable and component.halves else [])
    rows: Matrix = attached["outliers"].x if movable else np.empty((0, 0))
    worst = iter(np.asarray(rows.toarray() if sp.issparse(rows) else rows, dtype=np.float64))
    places: dict[int, Array] = {}
    halves: dict[int, int] = {}
    for k in which.tolist():
        if resets.count(k) >= MAX_RESETS:
            continue
        if (donor := next(donors, None)) is not None:
            halves[k] = donor
        elif (place := next(worst, None)) is not None:
            places[k] = model.plain(place[None])[0]
    theta = component.reset(new.theta, old.theta, stats.component, stats.sum_w, which, places)
    weights = new.weights if model.fixed_weights else share_with(new.weights, np.array(list(places), dtype=int))
    if halves:
        theta = halved(component, theta, halves)
        weights = weights if model.fixed_weights else _with_halves(weights, halves)
    return weights, theta, [Reset(k, reason, k in places or k in halves) for k, reason in collapsed]


def _large(sum_w: Array, collapsed: Array, least: int) -> list[int]:
    """Components with at least so many rows, the largest first, without the collapsed ones."""
    order = np.argsort(-sum_w, kind="stable")
    return [int(k) for k in order if sum_w[k] >= least and k not in collapsed]


def _with_halves(weights: Array, halves: Mapping[int, int]) -> Array:
    """Weights in which both halves have half of a component's weight; they sum to 1."""
    found = weights.copy()
    for k, donor in halves.items():
        found[k] = found[donor] = 0.5 * found[donor]
    return found / found.sum()
