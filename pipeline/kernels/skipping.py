"""The loops over all pairs of a tile of pruned.py: bounds, the pairs that they leave, and log-sum-exp over these.

Shapes: n rows, k components, m directions, p pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.kernels.compiling import exact_kernel, kernel
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


@kernel
def lower_distances(
    square: np.ndarray, rows: np.ndarray, start: np.ndarray, size: np.ndarray, slope: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """-1/2 of lower bounds of squared distances of pairs, (p,) float32. square : (p,) float64, as computed in float32."""
    out = np.empty(square.size, np.float32)
    for k in range(start.size - 1):
        for p in range(start[k], start[k + 1]):
            slack = GROWN * (slope[k] * (size[rows[p]] * GROWN) + offset[k])
            out[p] = np.float32(-0.5) * (SHRUNK * np.float32(square[p]) - slack)
    return out


@exact_kernel
def grouped(rows: np.ndarray, component: np.ndarray, k_total: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of each row with its component, by component: rows (p,) int32 and start (k + 1,). component : (n,)."""
    start, out = np.zeros(k_total + 1, np.int64), np.empty(rows.size, np.int32)
    for i in rows:
        start[component[i] + 1] += 1
    for k in range(k_total):
        start[k + 1] += start[k]
    place = start[:-1].copy()
    for i in rows:
        k = component[i]
        out[place[k]] = i
        place[k] += 1
    return out, start


@exact_kernel
def collect(upper: np.ndarray, least: np.ndarray, rows: np.ndarray, start: np.ndarray, skipped: np.ndarray) -> None:
    """Write the pairs whose bound is not below the row's least, by component; NaN is not below.

    upper : (n, c), whole wide vectors, -inf beyond k.  least : (n,).  rows : (n k,), its beginning is written.
    start : (k + 1,), zeros.  skipped : (n,), the highest of the other bounds.
    """
    k_total = start.size - 1
    bounds = view(upper)
    step = wide_lanes(bounds)
    for i in range(upper.shape[0]):
        bound, top = least[i], np.float32(-np.inf)
        for first in range(0, k_total, step):
            peak = _peak(wide(bounds, (i, first)))
            if peak < bound:  # so are all of this vector
                top = max(top, peak)
                continue
            for k in range(first, min(first + step, k_total)):
                if upper[i, k] < bound:
                    top = max(top, upper[i, k])
                else:
                    start[k + 1] += 1
        skipped[i] = top
    for k in range(k_total):
        start[k + 1] += start[k]
    place = start[:-1].copy()
    for i in range(upper.shape[0]):
        bound = least[i]
        for first in range(0, k_total, step):
            if _peak(wide(bounds, (i, first))) < bound:
                continue
            for k in range(first, min(first + step, k_total)):
                if not upper[i, k] < bound:
                    rows[place[k]] = i
                    place[k] += 1


@exact_kernel
def _peak(v: Any) -> Any:
    """The largest of a vector; inf if one is NaN, which no comparison may rule out."""
    return highest(where_less(v, spread(np.inf, v), v, spread(np.inf, v)))


@exact_kernel
def filtered(
    rows: np.ndarray, start: np.ndarray, bound: np.ndarray, least: np.ndarray, skipped: np.ndarray
) -> np.ndarray:
    """Leave in `rows` the pairs whose bound is not below the row's least; return the new start (k + 1,).

    bound : (p,).  skipped : (n,), raised to the highest of the other bounds.
    """
    out = np.zeros_like(start)
    at = 0
    for k in range(start.size - 1):
        for p in range(start[k], start[k + 1]):
            i = rows[p]
            if bound[p] < least[i]:
                skipped[i] = max(skipped[i], bound[p])
            else:
                rows[at] = i
                at += 1
        out[k + 1] = at
    return out


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
