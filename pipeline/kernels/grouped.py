"""Nearest centres of rows that are compared with the centres of a few groups: one call for all groups of a chunk.

A chunk has few rows for each group, so what a group needs is made within the kernel, into the same small arrays for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.blocks import BLOCK, VECTOR_BYTES, load_group, update_among
from pipeline.kernels.compiling import exact_kernel, kernel
from pipeline.kernels.nearest import DOUBTFUL

LOOK = 8  # features, after which a sum may be too large already


def nearest_in_groups(
    x: Array, above: Array, upper: Array, centers: Array, near: Array, members: Array, first: Array
) -> Array:
    """Return the nearest of the centres that each row is compared with, (n,) int32; of equal ones the lowest.

    As `lloyd_pass` about the row's upper centre, in the rows' dtype; see `settled`.

    Parameters
    ----------
    x : array, shape (n, d)
    above : array of int, shape (n,)
        The group of each row.
    upper : array, shape (n_groups, d)
    centers : array, shape (k, d)
    near : array of int, shape (n_groups, m)
        The groups that rows of each are compared with the centres of.
    members, first : arrays of int, shapes (k,) and (n_groups + 1,)
        members[first[g] : first[g + 1]] are the centres of group g, ascending.
    """
    order = np.argsort(above, kind="stable")
    ends = np.searchsorted(above[order], np.arange(len(upper) + 1))
    count = np.diff(first)[near].sum(axis=1)  # of the centres that rows of each group are compared with
    label = np.empty(len(x), np.int32)
    _look_up(x, order, ends, upper.astype(x.dtype), centers, near, members, first, int(count.max()), label)
    return label


def settled(
    x: Array,
    above: Array,
    upper: Array,
    centers: Array,
    near: Array,
    members: Array,
    first: Array,
    score: Array,
    label: Array,
) -> bool:
    """Look the rows up again whose nearest centre the dtype may not tell, by differences in float64; return whether any label has changed.

    See `nearest.py`: their squared distance to it is below the rounding of that to the reference.

    Parameters
    ----------
    score, label : arrays, shape (n,)
        As of `lloyd_pass`. Labels are updated.
    """
    limit = DOUBTFUL * float(np.finfo(x.dtype).eps)
    changed: bool = _settle(x, above, upper.astype(x.dtype), limit, centers, near, members, first, score, label)
    return changed


@exact_kernel
def _look_up(
    x: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    reference: np.ndarray,
    centers: np.ndarray,
    near: np.ndarray,
    members: np.ndarray,
    first: np.ndarray,
    most: int,
    label: np.ndarray,
) -> None:
    """Write labels. order[ends[g] : ends[g + 1]] : the rows of group g.  most : centres that a row is compared with."""
    d, lanes = x.shape[1], VECTOR_BYTES // x.itemsize
    tile, rows = np.zeros((lanes, d), x.dtype), np.empty((d, lanes), x.dtype)
    best, index = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    candidates, places = np.empty(most, np.int64), np.empty(most + BLOCK, np.int64)
    factors, square = np.empty((most, d), x.dtype), np.empty(most, x.dtype)
    for g in range(len(reference)):
        if ends[g] == ends[g + 1]:
            continue
        count = _merge(near[g], members, first, candidates)
        for j in range(count):
            square[j] = _point(centers, candidates[j], reference[g], factors[j])
            places[j] = j
        # A vector of rows stays in the first-level cache, and the factors in the second.
        for start in range(ends[g], ends[g + 1], lanes):
            m = min(lanes, ends[g + 1] - start)
            for t in range(m):
                for i in range(d):
                    tile[t, i] = x[order[start + t], i]
            load_group(tile, 0, reference[g], rows)
            best[:] = np.inf
            index[:] = 0
            _among(rows, factors, square, places, count, best, index)
            for t in range(m):
                label[order[start + t]] = np.int32(candidates[int(index[t])])


@exact_kernel
def _among(
    rows: np.ndarray,
    factors: np.ndarray,
    square: np.ndarray,
    near: np.ndarray,
    count: int,
    best: np.ndarray,
    index: np.ndarray,
) -> None:
    """Update the lowest scores by those of the centres near[:count]; near ascends. More of it is overwritten."""
    if count == 0:
        return
    for j in range(count, -(-count // BLOCK) * BLOCK):
        near[j] = near[count - 1]
    for j in range(0, count, BLOCK):
        update_among(rows, factors, square, near[j : j + BLOCK], best, index)


@exact_kernel
def _merge(near: np.ndarray, members: np.ndarray, first: np.ndarray, out: np.ndarray) -> int:
    """Write the members of some groups, ascending; return how many there are."""
    at, stop = np.empty(len(near), np.int64), np.empty(len(near), np.int64)
    count = 0
    for j in range(len(near)):
        at[j], stop[j] = first[near[j]], first[near[j] + 1]
        count += stop[j] - at[j]
    place, none = 0, np.int64(np.iinfo(np.int64).max)
    while place < count:  # a run of one group, up to the next member of another
        chosen, lowest, second = 0, none, none
        for j in range(len(near)):
            head = members[at[j]] if at[j] < stop[j] else none
            if head < lowest:
                chosen, lowest, second = j, head, lowest
            else:
                second = min(second, head)
        while at[chosen] < stop[chosen] and members[at[chosen]] < second:
            out[place] = members[at[chosen]]
            at[chosen] += 1
            place += 1
    return count


@kernel
def _point(centers: np.ndarray, k: int, reference: np.ndarray, out: np.ndarray) -> float:
    """Write minus twice a centre about the reference; return its squared length: as `Prepared` has them."""
    square = 0.0
    for i in range(len(reference)):
        point = centers[k, i] - reference[i]
        square += point * point
        out[i] = -2.0 * point
    return square


@exact_kernel
def _settle(
    x: np.ndarray,
    above: np.ndarray,
    reference: np.ndarray,
    limit: float,
    centers: np.ndarray,
    near: np.ndarray,
    members: np.ndarray,
    first: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
) -> bool:
    """Update labels; return whether any has changed. limit : times the squared distance to the reference."""
    changed = False
    for t in range(len(x)):
        if score[t] == np.inf or -score[t] >= limit * _square(x, t, reference, above[t], np.inf):
            continue
        chosen = np.int64(label[t])
        least = _square(x, t, centers, chosen, np.inf)
        for g in near[above[t]]:
            for k in members[first[g] : first[g + 1]]:
                square = _square(x, t, centers, k, least)
                if square < least or (square == least and k < chosen):
                    chosen, least = k, square
        changed = changed or chosen != label[t]
        label[t] = chosen
    return changed


@exact_kernel
def _square(x: np.ndarray, t: int, points: np.ndarray, k: Any, least: float) -> float:
    """The squared distance of row t to point k, or of its first features where that is above the least."""
    square, d = 0.0, x.shape[1]
    for start in range(0, d, LOOK):
        for i in range(start, min(start + LOOK, d)):
            apart = np.float64(x[t, i]) - points[k, i]
            square += apart * apart
        if square > least:
            break
    return square
