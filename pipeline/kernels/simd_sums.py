"""Sums over a tile for the SIMD implementation: soft counts, first and second moments of one component about its mean.

diff : (e, TILE), rows - mean.  resp : (k, TILE), weight x responsibility.  sum_x : (k, e) and sum_xx : (k, e, e) or
(k, 1, d), float64. Within a tile sums are in the compute dtype, one for each lane of a vector; a tile's totals are added
in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.kernels.blocks import load_group
from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.vectors import (
    add,
    columns,
    fma,
    highest,
    lines,
    narrow,
    narrow_lanes,
    put,
    spread,
    total,
    view,
    where_less,
)

TILE = 256  # rows
GATHER = 24  # to gather a row of d features takes so many times d, where its moments take d²
LEAST_GATHERED = 24  # features: with fewer, moments of all rows take less time


@exact_kernel
def soft_count(resp: Any, floor: Any, k: int) -> tuple[float, int]:
    """Sum of weight x responsibility of component k, and how many rows count: where it is above the row's floor.

    resp : (k, TILE).  floor : (TILE,).
    """
    step = narrow_lanes(resp)
    zero = spread(0.0, narrow(resp, (k, 0)))
    mass, rows, one = zero, zero, spread(1.0, zero)
    for t in range(0, TILE, step):
        r = narrow(resp, (k, t))
        mass, rows = mass + r, rows + where_less(narrow(floor, t), r, one, zero)
    return float(total(mass)), int(total(rows))


@exact_kernel
def pays_to_gather(rows: int, d: int) -> bool:
    """Whether to gather so many rows of a tile takes less time than moments of all."""
    return rows * (d + GATHER) < TILE * d


@exact_kernel
def gather(resp: np.ndarray, floor: np.ndarray, start: int, count: int, waiting: np.ndarray, shares: np.ndarray) -> int:
    """Append the rows of a tile that count for a component to those that wait; return how many wait then.

    Parameters
    ----------
    resp, floor : arrays, shape (TILE,)
        Weight x responsibility, and what it is above where a row counts.
    start : int
        First row of the tile.
    count : int
        Of the rows that wait; all must fit.
    waiting, shares : arrays, shape (TILE,)
        Their numbers, and their weight x responsibility.
    """
    own, least = view(resp), view(floor)
    step = narrow_lanes(own)
    for t in range(0, TILE, step):
        if highest(narrow(own, t) - narrow(least, t)) <= 0.0:  # none of these
            continue
        for s in range(t, t + step):
            if resp[s] > floor[s]:
                waiting[count], shares[count] = start + s, resp[s]
                count += 1
    return count


@exact_kernel
def load_waiting(
    x: np.ndarray, waiting: np.ndarray, shares: np.ndarray, count: int, copied: np.ndarray, rows: np.ndarray
) -> None:
    """Transpose the rows that wait; the lanes after them repeat the last, with a share of 0. copied : (TILE, d).  rows : (d, TILE)."""
    d = x.shape[1]
    for t in range(count, TILE):
        waiting[t], shares[t] = waiting[count - 1], 0.0
    for t in range(TILE):
        row = waiting[t]
        for i in range(d):
            copied[t, i] = x[row, i]
    load_group(copied, 0, np.zeros(d, x.dtype), rows)


@exact_kernel
def first_moments(diff: Any, resp: Any, k: int, sum_x: Any) -> None:
    """Add a tile's first moments of component k."""
    step = narrow_lanes(diff)
    for i in range(columns(sum_x)):
        first = spread(0.0, narrow(diff, (i, 0)))
        for t in range(0, TILE, step):
            first = fma(narrow(resp, (k, t)), narrow(diff, (i, t)), first)
        add(sum_x, (k, i), total(first))


@exact_kernel
def diagonal_moments(diff: Any, resp: Any, k: int, d: int, sum_x: Any, sum_xx: Any) -> None:
    """Add a tile's first moments of component k, and the diagonal of its second moments."""
    step = narrow_lanes(diff)
    for i in range(d):
        first = spread(0.0, narrow(diff, (i, 0)))
        square = first
        for t in range(0, TILE, step):
            v = narrow(diff, (i, t))
            share = narrow(resp, (k, t)) * v
            first = first + share
            square = fma(share, v, square)
        add(sum_x, (k, i), total(first))
        add(sum_xx, (k, 0, i), total(square))


@exact_kernel
def triangular_moments(diff: Any, resp: Any, k: int, part: Any, sum_x: Any, sum_xx: Any) -> None:
    """Add a tile's first moments of component k, and its second moments in blocks of 4 x 2 of the lower triangle."""
    for i in range(0, lines(diff), 4):
        _weighted_lines(diff, resp, k, i, part, sum_x)
        for j in range(0, i + 4, 2):
            _four_by_two(diff, part, k, i, j, sum_xx)


@exact_kernel
def _weighted_lines(diff: Any, resp: Any, k: int, i: int, part: Any, sum_x: Any) -> None:
    """part <- resp x diff for lines i to i + 3; add their sums, which are first moments."""
    step = narrow_lanes(diff)
    zero = spread(0.0, narrow(resp, (k, 0)))
    s0, s1, s2, s3 = zero, zero, zero, zero
    for t in range(0, TILE, step):
        r = narrow(resp, (k, t))
        p0, p1 = r * narrow(diff, (i, t)), r * narrow(diff, (i + 1, t))
        p2, p3 = r * narrow(diff, (i + 2, t)), r * narrow(diff, (i + 3, t))
        s0, s1, s2, s3 = s0 + p0, s1 + p1, s2 + p2, s3 + p3
        put(part, (0, t), p0)
        put(part, (1, t), p1)
        put(part, (2, t), p2)
        put(part, (3, t), p3)
    add(sum_x, (k, i), total(s0))
    add(sum_x, (k, i + 1), total(s1))
    add(sum_x, (k, i + 2), total(s2))
    add(sum_x, (k, i + 3), total(s3))


@exact_kernel
def _four_by_two(diff: Any, part: Any, k: int, i: int, j: int, sum_xx: Any) -> None:
    """Add eight second moments, lines i to i + 3 by j and j + 1: six loads serve eight products."""
    step = narrow_lanes(diff)
    zero = spread(0.0, narrow(diff, (j, 0)))
    a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
    for t in range(0, TILE, step):
        a, b = narrow(diff, (j, t)), narrow(diff, (j + 1, t))
        p = narrow(part, (0, t))
        a0, b0 = fma(p, a, a0), fma(p, b, b0)
        p = narrow(part, (1, t))
        a1, b1 = fma(p, a, a1), fma(p, b, b1)
        p = narrow(part, (2, t))
        a2, b2 = fma(p, a, a2), fma(p, b, b2)
        p = narrow(part, (3, t))
        a3, b3 = fma(p, a, a3), fma(p, b, b3)
    add(sum_xx, (k, i, j), total(a0))
    add(sum_xx, (k, i + 1, j), total(a1))
    add(sum_xx, (k, i + 2, j), total(a2))
    add(sum_xx, (k, i + 3, j), total(a3))
    add(sum_xx, (k, i, j + 1), total(b0))
    add(sum_xx, (k, i + 1, j + 1), total(b1))
    add(sum_xx, (k, i + 2, j + 1), total(b2))
    add(sum_xx, (k, i + 3, j + 1), total(b3))
