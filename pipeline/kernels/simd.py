"""Gaussian E-step and moments in vectors: for few features or few components, where matrix products are slower.

    log p(x, k) = log_scale_k - |L_k (x - mu_k)|² / 2,   L_k lower triangular, or a diagonal

A vector holds one feature of many rows, a row in each lane. A tile of TILE rows is transposed, feature by feature; with
16 features in float32 it takes 16 KiB and stays in the first-level cache. Distances, log-sum-exp and moments are sums in
registers, and no (rows x components) array leaves the tile. A row is read once; of many features once more for each
component that has few rows of its tile: these wait until they fill a tile. The mean is subtracted before anything
else, so the error does not grow with the distance from the origin.

Shapes: n rows, d features, k components, e = whole(d) lines of differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import TAIL, at_least_lowest, exp, log
from pipeline.kernels.simd_sums import (
    TILE,
    diagonal_moments,
    first_moments,
    gather,
    load_waiting,
    pays_to_gather,
    soft_count,
    triangular_moments,
)
from pipeline.kernels.vectors import (
    columns,
    element,
    fma,
    lines,
    put,
    spread,
    total,
    view,
    where_equal,
    where_less,
    wide,
    wide_lanes,
)

LEAST = np.exp(-TAIL)  # lower responsibilities add nothing to moments that are gathered


def whole(d: int) -> int:
    """d, rounded up to a multiple of four: features are processed in blocks of four lines, the last filled with zeros."""
    return -(-d // 4) * 4


def packed(lower: np.ndarray) -> np.ndarray:
    """Lower triangles in the order in which `_triangular_joint` reads them.

    Parameters
    ----------
    lower : array, shape (k, d, d)

    Returns
    -------
    array, shape (k, e (e + 1) / 2)
    """
    k, d = lower.shape[:2]
    filled = np.zeros((k, whole(d), whole(d)))
    filled[:, :d, :d] = lower
    # Four lines at a time: their columns one by one, then the triangle at the end.
    order = [(i + c, j) for i in range(0, d, 4) for j in range(i + 4) for c in range(max(0, j - i), 4)]
    i, j = np.array(order).T
    return np.ascontiguousarray(filled[:, i, j])


@exact_kernel
def simd_pass(
    x: np.ndarray,
    weight: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    factor: np.ndarray,
    log_scale: np.ndarray,
    hard: bool,
    second: bool,
    log_norm: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
    sum_xx: np.ndarray,
    scratch: np.ndarray,
    waiting: np.ndarray,
    shares: np.ndarray,
    copied: np.ndarray,
) -> float:
    """Add the moments of rows about the means to sums.

    Of a component that has few rows of a tile, these are gathered, and the others left out, whose responsibilities round to nothing.

    Parameters
    ----------
    x : array, shape (n, d), float32 or float64
        Its dtype is that of all arguments but those said to be float64.
    weight : array, shape (n,), float64
        Empty for ones.
    high, low : arrays, shape (k, d)
        The means in two parts, so that their rounding does not count. low may be (0, d) for no second part.
    factor : array
        Packed lower triangles, or diagonals (k, d).
    log_scale : array, shape (k,)
        -inf for a component of weight 0.
    hard : bool
        Whether each row belongs to its most probable component alone.
    second : bool
        Whether second moments are wanted.
    log_norm : array, shape (n,), float64
        Written: log p(x), nats.
    sum_w : array, shape (k,), float64
        Added to, as sum_x and sum_xx.
    sum_x : array, shape (k, e), float64
    sum_xx : array, shape (k, e, e) or (k, 1, d), float64
        Of matrices only the lower triangles are written.
    scratch : array, shape (2 d + e + k + 8, TILE)
        Handed in, because views own nothing: numba would free an array of this function after its last mention here,
        while a view of it is still in use.
    waiting, shares : arrays, shape (k, TILE), int32 and x's dtype
        Scratch for rows that are gathered, and their weight x responsibility; (0, TILE) for none.
    copied : array, shape (TILE, d)
        Scratch for the same.

    Returns
    -------
    float
        Entropy of the responsibilities, total nats.
    """
    n, d = x.shape
    k_total, e = len(high), sum_x.shape[1]
    scratch[:] = 0  # lines of differences beyond d stay 0
    tile, single = scratch[e + k_total + 4 : e + k_total + 4 + d], e + k_total + 4 + d
    tile_weight, highest, log_mass, floor = (
        scratch[single],
        scratch[single + 1],
        scratch[single + 2],
        scratch[single + 3],
    )
    diff, joint, part = view(scratch[:e]), view(scratch[e : e + k_total]), view(scratch[e + k_total : e + k_total + 4])
    rows, w, peak, rest, least = view(tile), view(tile_weight), view(highest), view(log_mass), view(floor)
    upper, lower, scale, constant = view(high), view(low), view(factor), view(log_scale)
    first, squares = view(sum_x), view(sum_xx)
    diagonal = sum_xx.shape[1] == 1
    gathered = scratch[single + 4 :]
    few, resp, of_few = view(gathered), scratch[e : e + k_total], view(shares)
    count = np.zeros(len(shares), np.int64)  # of rows that wait
    entropy = 0.0
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        _load(x, weight, start, m, tile, tile_weight)
        for t in range(TILE):
            floor[t] = LEAST * tile_weight[t]
        _joint(rows, upper, lower, scale, constant, diagonal, diff, joint)
        if hard:
            _one_hot(joint, w, peak, rest)
        else:
            entropy += _responsibilities(joint, w, peak, rest)
        for t in range(m):
            log_norm[start + t] = np.float64(highest[t]) + np.float64(log_mass[t])
        for k in range(k_total):
            mass, own = soft_count(joint, least, k)
            if mass == 0.0:
                continue
            sum_w[k] += mass
            if len(shares) and pays_to_gather(own, d):
                if count[k] + own > TILE:
                    load_waiting(x, waiting[k], shares[k], count[k], copied, gathered)
                    _add_gathered(few, upper, lower, of_few, k, diff, part, first, squares)
                    count[k] = 0
                count[k] = gather(resp[k], floor, start, count[k], waiting[k], shares[k])
                continue
            _differences(rows, upper, lower, k, diff)
            if not second:
                first_moments(diff, joint, k, first)
            elif diagonal:
                diagonal_moments(diff, joint, k, d, first, squares)
            else:
                triangular_moments(diff, joint, k, part, first, squares)
    for k in range(len(shares)):
        if count[k]:
            load_waiting(x, waiting[k], shares[k], count[k], copied, gathered)
            _add_gathered(few, upper, lower, of_few, k, diff, part, first, squares)
    return entropy


@exact_kernel
def _add_gathered(
    rows: Any, high: Any, low: Any, resp: Any, k: int, diff: Any, part: Any, sum_x: Any, sum_xx: Any
) -> None:
    """Add the moments of gathered rows about mean k."""
    _differences(rows, high, low, k, diff)
    triangular_moments(diff, resp, k, part, sum_x, sum_xx)


@exact_kernel
def simd_joint(
    x: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    factor: np.ndarray,
    log_scale: np.ndarray,
    diagonal: bool,
    out: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """Write log joint densities. out : (n, k) float64.  scratch : (d + e + k + 1, TILE); the rest as in simd_pass."""
    n, d = x.shape
    k_total, e = len(high), len(scratch) - 1 - d - len(high)
    scratch[:] = 0
    tile, densities = scratch[e + k_total : e + k_total + d], scratch[e : e + k_total]
    rows, diff, joint = view(tile), view(scratch[:e]), view(densities)
    upper, lower, scale, constant = view(high), view(low), view(factor), view(log_scale)
    ones = np.empty(0)
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        _load(x, ones, start, m, tile, scratch[len(scratch) - 1])
        _joint(rows, upper, lower, scale, constant, diagonal, diff, joint)
        for t in range(m):
            for k in range(k_total):
                out[start + t, k] = densities[k, t]


@exact_kernel
def _load(x: np.ndarray, weight: np.ndarray, start: int, m: int, rows: np.ndarray, w: np.ndarray) -> None:
    """Transpose a tile of m rows; the lanes after them repeat the last row, with weight 0."""
    for i in range(x.shape[1]):
        for t in range(m):
            rows[i, t] = x[start + t, i]
        for t in range(m, TILE):
            rows[i, t] = x[start + m - 1, i]
    for t in range(m):
        w[t] = weight[start + t] if weight.size else 1.0
    w[m:] = 0


@exact_kernel
def _differences(rows: Any, high: Any, low: Any, k: int, diff: Any) -> None:
    """diff <- rows - mean k. rows : (d, TILE).  diff : (e, TILE)."""
    step = wide_lanes(rows)
    two_parts = lines(low) > 0
    for i in range(lines(rows)):
        h = element(high, (k, i), wide(rows, (i, 0)))
        if two_parts:
            rest = element(low, (k, i), h)
            for t in range(0, TILE, step):
                put(diff, (i, t), wide(rows, (i, t)) - h - rest)
        else:
            for t in range(0, TILE, step):
                put(diff, (i, t), wide(rows, (i, t)) - h)


@exact_kernel
def _joint(rows: Any, high: Any, low: Any, factor: Any, log_scale: Any, diagonal: bool, diff: Any, joint: Any) -> None:
    """joint <- log joint densities of a tile. joint : (k, TILE)."""
    for k in range(lines(joint)):
        _differences(rows, high, low, k, diff)
        if diagonal:
            _diagonal_joint(diff, factor, k, log_scale, joint)
        else:
            _triangular_joint(diff, factor, k, log_scale, joint)


@exact_kernel
def _diagonal_joint(diff: Any, factor: Any, k: int, log_scale: Any, joint: Any) -> None:
    """joint[k] <- log_scale_k - |factor_k diff|² / 2, factor_k a diagonal."""
    step = wide_lanes(diff)
    constant = element(log_scale, k, wide(diff, (0, 0)))
    for t in range(0, TILE, step):
        square = spread(0.0, constant)
        for i in range(columns(factor)):
            z = element(factor, (k, i), square) * wide(diff, (i, t))
            square = fma(z, z, square)
        put(joint, (k, t), fma(square, spread(-0.5, square), constant))


@exact_kernel
def _triangular_joint(diff: Any, factor: Any, k: int, log_scale: Any, joint: Any) -> None:
    """joint[k] <- log_scale_k - |L_k diff|² / 2, L_k a packed triangle.

    Four lines of L at a time: each vector of differences is loaded once for four products, and their sums stay in
    registers. First the columns left of the block on the diagonal, then that block, a triangle of 10 numbers.
    """
    step = wide_lanes(diff)
    constant = element(log_scale, k, wide(diff, (0, 0)))
    for t in range(0, TILE, step):
        square = spread(0.0, constant)
        zero = square
        p = 0
        for i in range(0, lines(diff), 4):
            z0, z1, z2, z3 = zero, zero, zero, zero
            for j in range(i):
                v = wide(diff, (j, t))
                z0 = fma(element(factor, (k, p), v), v, z0)
                z1 = fma(element(factor, (k, p + 1), v), v, z1)
                z2 = fma(element(factor, (k, p + 2), v), v, z2)
                z3 = fma(element(factor, (k, p + 3), v), v, z3)
                p += 4
            v = wide(diff, (i, t))
            z0 = fma(element(factor, (k, p), v), v, z0)
            z1 = fma(element(factor, (k, p + 1), v), v, z1)
            z2 = fma(element(factor, (k, p + 2), v), v, z2)
            z3 = fma(element(factor, (k, p + 3), v), v, z3)
            v = wide(diff, (i + 1, t))
            z1 = fma(element(factor, (k, p + 4), v), v, z1)
            z2 = fma(element(factor, (k, p + 5), v), v, z2)
            z3 = fma(element(factor, (k, p + 6), v), v, z3)
            v = wide(diff, (i + 2, t))
            z2 = fma(element(factor, (k, p + 7), v), v, z2)
            z3 = fma(element(factor, (k, p + 8), v), v, z3)
            v = wide(diff, (i + 3, t))
            z3 = fma(element(factor, (k, p + 9), v), v, z3)
            square = fma(z3, z3, fma(z2, z2, fma(z1, z1, fma(z0, z0, square))))
            p += 10
        put(joint, (k, t), fma(square, spread(-0.5, square), constant))


@exact_kernel
def _peak(joint: Any, t: int) -> Any:
    """The largest log joint density of each row in a vector."""
    top = wide(joint, (0, t))
    for k in range(1, lines(joint)):
        value = wide(joint, (k, t))
        top = where_less(top, value, value, top)
    return top


@exact_kernel
def _responsibilities(joint: Any, w: Any, peak: Any, rest: Any) -> float:
    """Replace log joint densities by weight x responsibility; return the entropy, total nats.

    peak, rest <- the two parts of log-sum-exp. They are added in float64 later: in float32 their sum would lose digits.
    """
    step = wide_lanes(joint)
    entropy = 0.0
    for t in range(0, TILE, step):
        top, weight = _peak(joint, t), wide(w, t)
        put(peak, t, top)
        zero = spread(0.0, top)
        mass, cross = zero, zero
        for k in range(lines(joint)):
            gap = at_least_lowest(wide(joint, (k, t)) - top)
            e = exp(gap)
            mass = mass + e
            cross = fma(e, gap, cross)
            put(joint, (k, t), e)
        log_mass = log(mass)
        put(rest, t, log_mass)
        share = where_less(zero, weight, weight / mass, zero)
        for k in range(lines(joint)):
            put(joint, (k, t), wide(joint, (k, t)) * share)
        # H = log(mass) - sum of e gap / mass, times the weight
        entropy += np.float64(total(fma(weight, log_mass, zero - cross * share)))
    return entropy


@exact_kernel
def _one_hot(joint: Any, w: Any, peak: Any, rest: Any) -> None:
    """Replace log joint densities by the weight at the first component with the largest, 0 elsewhere; peak, rest as above."""
    step = wide_lanes(joint)
    for t in range(0, TILE, step):
        top, remaining = _peak(joint, t), wide(w, t)
        put(peak, t, top)
        zero, mass = spread(0.0, top), spread(0.0, top)
        for k in range(lines(joint)):
            value = wide(joint, (k, t))
            mass = mass + exp(at_least_lowest(value - top))
            assigned = where_equal(value, top, remaining, zero)
            put(joint, (k, t), assigned)
            remaining = remaining - assigned
        put(rest, t, log(mass))
