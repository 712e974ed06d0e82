"""The loops over all pairs of a tile of pruned.py: bounds, the pairs that they leave, and log-sum-exp over these.

Shapes: n rows, k components, m directions, p pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import at_least_lowest, exp
from pipeline.kernels.vectors import fma, highest, put, spread, view, where_less, wide, wide_lanes

RHO = 2.0**-8
SHRUNK = np.float32(1.0 - RHO - 2.0**-16)  # 1 - ρ of pruned.py, and the rounding of a sum of squares in float32
GROWN = np.float32(1.0 + 2.0**-16)


@exact_kernel
def project_tile(
    z: np.ndarray,
    shifts: np.ndarray,
    size: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    scale: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write scale - 1/2 of lower bounds of squared distances. c : k, rounded up to whole wide vectors.

    Parameters
    ----------
    z : array, shape (n, m c), float32
        Projections of the rows, a slab of c for each direction.
    shifts : array, shape (m c,), float32
        Those of the means.
    size : array, shape (n,), float32
        Squared lengths of the rows.
    slope, offset : arrays, shape (c,), float32
        What is taken away for rounding: slope x size + offset.
    scale : array, shape (c,), float32
        -inf beyond k.
    out : array, shape (n, c), float32
    """
    n, c = out.shape
    rows, means, of_size, constant, first, upper = (
        view(z),
        view(shifts),
        view(slope),
        view(offset),
        view(scale),
        view(out),
    )
    step = wide_lanes(rows)
    for k in range(0, c, step):
        start, by, more = wide(first, k), wide(of_size, k), wide(constant, k)
        half, kept, grown = spread(-0.5, start), spread(SHRUNK, start), spread(GROWN, start)
        for i in range(n):
            t = wide(rows, (i, k)) - wide(means, k)
            square = t * t
            for at in range(c + k, z.shape[1], c):
                t = wide(rows, (i, at)) - wide(means, at)
                square = fma(t, t, square)
            slack = fma(by, spread(size[i] * GROWN, start), more) * grown
            put(upper, (i, k), fma(kept * square - slack, half, start))


@exact_kernel
def take_highest(upper: np.ndarray, k_total: int, chosen: np.ndarray, ceiling: np.ndarray) -> None:
    """Write the components of each row's highest bounds, and replace these bounds by -inf; NaN is the highest.

    upper : (n, c), whole wide vectors.  chosen : (n, m) int32, the highest first, -1 where all others are -inf.
    ceiling : (n,), the lowest of the highest bounds.
    """
    count = chosen.shape[1]
    bounds, top = view(upper), np.empty(count, np.float32)
    step = wide_lanes(bounds)
    for i in range(upper.shape[0]):
        for j in range(count):
            top[j], chosen[i, j] = -np.inf, -1
        for first in range(0, k_total, step):
            if not _peak(wide(bounds, (i, first))) > top[count - 1]:
                continue
            for k in range(first, min(first + step, k_total)):
                bound = upper[i, k]
                if bound != bound:
                    bound = np.float32(np.inf)
                if bound > top[count - 1]:
                    j = count - 1
                    while j > 0 and bound > top[j - 1]:
                        top[j], chosen[i, j] = top[j - 1], chosen[i, j - 1]
                        j -= 1
                    top[j], chosen[i, j] = bound, k
        ceiling[i] = top[count - 1]
        for j in range(count):
            if chosen[i, j] >= 0:
                upper[i, chosen[i, j]] = -np.inf


@exact_kernel
def by_component(row: np.ndarray, component: np.ndarray, rows: np.ndarray, start: np.ndarray) -> None:
    """Sort pairs by component.

    row, component : (p,).  rows : (p,) int32, written.  start : (k + 1,), written: those of c are start[c] : start[c + 1].
    """
    start[:] = 0
    for c in component:
        start[c + 1] += 1
    for c in range(1, start.size):
        start[c] += start[c - 1]
    place = start[:-1].copy()
    for p in range(component.size):
        rows[place[component[p]]] = row[p]
        place[component[p]] += 1


@exact_kernel
def gaussian_density(distance: np.ndarray, start: np.ndarray, scale: np.ndarray, value: np.ndarray) -> None:
    """Write log joint densities of pairs by component."""
    for c in range(scale.size):
        for p in range(start[c], start[c + 1]):
            value[p] = scale[c] - 0.5 * distance[p]


@exact_kernel
def raise_highest(rows: np.ndarray, value: np.ndarray, top: np.ndarray) -> None:
    """Insert values (p,) of rows into their highest: top (n, m) float64, the highest first."""
    last = top.shape[1] - 1
    for p in range(rows.size):
        i = rows[p]
        if value[p] > top[i, last]:
            j = last
            while j > 0 and value[p] > top[i, j - 1]:
                top[i, j] = top[i, j - 1]
                j -= 1
            top[i, j] = value[p]


@exact_kernel
def survivors(
    upper: np.ndarray,
    chosen: np.ndarray,
    least: np.ndarray,
    component: np.ndarray,
    bound: np.ndarray,
    begin: np.ndarray,
    skipped: np.ndarray,
) -> None:
    """Write the pairs that are not chosen and whose bound is not below the row's least, row by row; NaN is not below.

    Parameters
    ----------
    upper, chosen : arrays
        As `take_highest` leaves them.
    least : array, shape (n,), float32
    component, bound : arrays, shape (n k + 1,), int32 and float32
        Written: those of row i in begin[i] : begin[i + 1].
    begin : array, shape (n + 1,), int64
    skipped : array, shape (n,), float32
        Written: the highest of the other bounds.
    """
    k_total = (component.size - 1) // upper.shape[0]
    bounds = view(upper)
    step = wide_lanes(bounds)
    at = 0
    begin[0] = 0
    lowest = np.float32(-np.inf)
    for i in range(upper.shape[0]):
        low, top = least[i], lowest
        for first in range(0, k_total, step):
            peak = _peak(wide(bounds, (i, first)))
            if peak < low:  # so are all of this vector
                top = max(top, peak)
                continue
            for k in range(first, min(first + step, k_total)):
                one = upper[i, k]
                below = one < low
                component[at], bound[at] = k, one  # without a branch, which would be guessed wrong half of the time
                top = max(top, one if below else lowest)
                at += 0 if below else 1
        if low == lowest:  # nothing is below, not even what was chosen
            kept = begin[i]
            for p in range(begin[i], at):
                ours = False
                for j in range(chosen.shape[1]):
                    ours |= chosen[i, j] == component[p]
                if not ours:
                    component[kept], bound[kept] = component[p], bound[p]
                    kept += 1
            at = kept
        begin[i + 1] = at
        skipped[i] = top


@exact_kernel
def take(
    component: np.ndarray,
    bound: np.ndarray,
    begin: np.ndarray,
    least: np.ndarray,
    skipped: np.ndarray,
    row: np.ndarray,
    found: np.ndarray,
) -> int:
    """Take the survivors whose bound is not below the row's least; return how many.

    Parameters
    ----------
    component, bound, begin : arrays
        From `survivors`; those that are not taken are left in them.
    least : array, shape (n,), float32
    skipped : array, shape (n,), float32
        Raised to the highest bound of the others; (0,) for not at all.
    row, found : arrays, shape (n k + 1,), int32
        Written: rows and components of those that are taken, row by row.
    """
    taken, rest, lowest = 0, 0, np.float32(-np.inf)
    for i in range(least.size):
        first, low, top = begin[i], least[i], lowest
        begin[i] = rest
        for p in range(first, begin[i + 1]):  # without branches, as above
            c, one = component[p], bound[p]
            below = one < low
            row[taken], found[taken] = i, c
            component[rest], bound[rest] = c, one
            top = max(top, one if below else lowest)
            taken += 0 if below else 1
            rest += 1 if below else 0
        if skipped.size:
            skipped[i] = max(skipped[i], top)
    begin[least.size] = rest
    return taken


@exact_kernel
def merged(
    rows: np.ndarray,
    value: np.ndarray,
    distance: np.ndarray,
    first: np.ndarray,
    starts: np.ndarray,
    least: np.ndarray,
    skipped: np.ndarray,
    all_rows: np.ndarray,
    all_values: np.ndarray,
    all_distances: np.ndarray,
    start: np.ndarray,
) -> None:
    """Merge sets of pairs, each sorted by component, and leave out those whose value is below the row's least.

    Parameters
    ----------
    rows, value, distance : arrays, shape (p,)
    first : array, shape (s,)
        Where each set begins.
    starts : array, shape (s, k + 1)
        Where each component's pairs begin in each set.
    least : array, shape (n,), float64
    skipped : array, shape (n,), float32
        Raised to the highest value that is left out.
    all_rows, all_values, all_distances : arrays, shape (p + 1,)
        Written.
    start : array, shape (k + 1,)
        Written.
    """
    to = 0
    for c in range(start.size - 1):
        start[c] = to
        for s in range(first.size):
            for p in range(first[s] + starts[s, c], first[s] + starts[s, c + 1]):
                i, one = rows[p], value[p]
                below = one < least[i]
                all_rows[to], all_values[to], all_distances[to] = i, one, distance[p]
                skipped[i] = max(skipped[i], np.float32(one) if below else skipped[i])
                to += 0 if below else 1
    start[start.size - 1] = to


@exact_kernel
def _peak(v: Any) -> Any:
    """The largest of a vector; inf if one is NaN, which no comparison may rule out."""
    return highest(where_less(v, spread(np.inf, v), v, spread(np.inf, v)))


@exact_kernel
def pair_softmax(
    rows: np.ndarray,
    value: np.ndarray,
    weight: np.ndarray,
    hard: bool,
    least: float,
    scratch: np.ndarray,
    log_norm: np.ndarray,
    share: np.ndarray,
) -> tuple[float, float]:
    """Log-sum-exp of each row over its pairs, and weight x responsibility of each pair.

    Parameters
    ----------
    rows, value : arrays, shape (p,)
        By component. value : log joint densities, float64.
    weight : array, shape (n,), float64
        Empty for ones.
    hard : bool
        Whether all weight goes to the first of the largest.
    least : float
        Lower responsibilities are left out.
    scratch : array, shape (3, n), float64
    log_norm : array, shape (n,), float64
        Written.
    share : array, shape (padded(p),), float64
        Written: weight x responsibility.

    Returns
    -------
    entropy, largest : float, float
        Weighted entropy of the responsibilities, total nats; the largest responsibility that was left out.
    """
    n, n_pairs = log_norm.size, rows.size
    top, mass, cross = scratch[0], scratch[1], scratch[2]
    top[:] = -np.inf
    mass[:] = 0.0
    cross[:] = 0.0
    for p in range(n_pairs):
        top[rows[p]] = max(top[rows[p]], value[p])
    for p in range(n_pairs):
        share[p] = value[p] - top[rows[p]]
    share[n_pairs:] = 0.0
    shares = view(share)
    for p in range(0, share.size, wide_lanes(shares)):
        put(shares, p, exp(at_least_lowest(wide(shares, p))))
    for p in range(n_pairs):
        if share[p] > 0:
            i = rows[p]
            mass[i] += share[p]
            cross[i] += share[p] * (value[p] - top[i])
    entropy, largest = 0.0, 0.0
    for i in range(n):
        log_mass = np.log(mass[i])
        log_norm[i] = top[i] + log_mass
        w = weight[i] if weight.size else 1.0
        if w > 0 and mass[i] > 0:
            if not hard:
                entropy += w * (log_mass - cross[i] / mass[i])
        else:
            w = 0.0
        cross[i] = w
    for p in range(n_pairs):
        i = rows[p]
        w = cross[i]
        if hard:
            share[p] = w if value[p] == top[i] else 0.0
            if share[p] > 0:
                cross[i] = 0.0
        elif w > 0:
            r = share[p] / mass[i]
            if r < least:
                largest = max(largest, r)
                r = 0.0
            share[p] = w * r
        else:
            share[p] = 0.0
    return entropy, largest
