"""Gaussian E-step and moments with rows in the vector lanes: for few features or few components, where no matrix product pays.

A tile of TILE rows lies transposed, feature by feature, in the cache: of few features in the first level. Distances, log-sum-exp and moments
are sums in registers over its lanes: a row is read once, and no (rows x components) array leaves the tile.
The mean is subtracted before anything else, so the error does not grow with the distance from the origin.

    log p(x, k) = log_scale_k - |L_k (x - mu_k)|² / 2,   L_k lower triangular, or a diagonal
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import at_least_lowest, exp, log
from pipeline.kernels.vectors import (
    add,
    columns,
    element,
    fma,
    lines,
    narrow,
    narrow_lanes,
    put,
    spread,
    total,
    view,
    where_equal,
    where_less,
    wide,
    wide_lanes,
)

TILE = 256  # rows


def whole(d: int) -> int:
    """Lines of d features filled up to blocks of four; the rest are zeros."""
    return -(-d // 4) * 4


def packed(lower: np.ndarray) -> np.ndarray:
    """Lower triangles in the order in which the kernel reads them. lower : (k, d, d).  Returns (k, a few more)."""
    k, d = lower.shape[:2]
    filled = np.zeros((k, whole(d), whole(d)))
    filled[:, :d, :d] = lower
    # Four lines at a time: their columns one by one, then the triangle at the end.
    order = [(i + c, j) for i in range(0, d, 4) for j in range(i + 4) for c in range(max(0, j - i), 4)]
    i, j = np.array(order).T
    return np.ascontiguousarray(filled[:, i, j])


@exact_kernel
def simd_moments(
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
) -> float:
    """Add the moments of rows about the means to the sums; return the entropy of their responsibilities, total nats.

    x : (n, d).  weight : (n,), or empty for ones.  high, low : (k, d), the means in two parts, so that their rounding
    does not count; low may be (0, d).  factor : lower triangles, packed, or (k, d) diagonals.  log_scale : (k,), -inf
    for a component of weight 0; all of these but the weight in the compute dtype.  hard : one-hot responsibilities.
    second : whether second moments are wanted.  log_norm : (n,), written: log p(x), nats.  sum_w : (k,), sum_x : (k, e),
    sum_xx : (k, e, e), of which the lower triangle counts, or (k, 1, d), with e = whole(d); these in float64, added to.
    scratch : (d + e + k + 7, TILE) in the compute dtype. An array of the kernel's own would not outlive its last mention.
    """
    n, d = x.shape
    k_total, e = len(high), sum_x.shape[1]
    scratch[:] = 0  # lines of differences beyond d stay so
    tile, single = scratch[e + k_total + 4 : e + k_total + 4 + d], e + k_total + 4 + d
    tile_weight, highest, log_mass = scratch[single], scratch[single + 1], scratch[single + 2]
    diff, joint, part = view(scratch[:e]), view(scratch[e : e + k_total]), view(scratch[e + k_total : e + k_total + 4])
    rows, w, peak, rest = view(tile), view(tile_weight), view(highest), view(log_mass)
    upper, lower, scale, constant = view(high), view(low), view(factor), view(log_scale)
    first, squares = view(sum_x), view(sum_xx)
    diagonal = sum_xx.shape[1] == 1
    entropy = 0.0
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        _load(x, weight, start, m, tile, tile_weight)
        _joint(rows, upper, lower, scale, constant, diagonal, diff, joint)
        if hard:
            _one_hot(joint, w, peak, rest)
        else:
            entropy += _responsibilities(joint, w, peak, rest)
        for t in range(m):
            log_norm[start + t] = np.float64(highest[t]) + np.float64(log_mass[t])
        for k in range(k_total):
            mass = _mass(joint, k)
            if mass == 0.0:
                continue
            sum_w[k] += mass
            _differences(rows, upper, lower, k, diff)
            if not second:
                _first_moments(diff, joint, k, first)
            elif diagonal:
                _diagonal_moments(diff, joint, k, d, first, squares)
            else:
                _triangular_moments(diff, joint, k, part, first, squares)
    return entropy


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
    """Log joint densities alone. out : (n, k) float64, written.  scratch : (d + whole(d) + k + 1, TILE); the rest as above."""
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
    """Transpose a tile; lanes past the end repeat its last row, with weight 0."""
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
    top = wide(joint, (0, t))
    for k in range(1, lines(joint)):
        value = wide(joint, (k, t))
        top = where_less(top, value, value, top)
    return top


@exact_kernel
def _responsibilities(joint: Any, w: Any, peak: Any, rest: Any) -> float:
    """Turn log joint densities into weight x responsibility; peak, rest <- log-sum-exp in two parts. Returns the entropy."""
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
    """Turn log joint densities into the weight for the first component at the peak; peak, rest as above."""
    step = wide_lanes(joint)
    for t in range(0, TILE, step):
        top, left = _peak(joint, t), wide(w, t)
        put(peak, t, top)
        zero, mass = spread(0.0, top), spread(0.0, top)
        for k in range(lines(joint)):
            value = wide(joint, (k, t))
            mass = mass + exp(at_least_lowest(value - top))
            taken = where_equal(value, top, left, zero)
            put(joint, (k, t), taken)
            left = left - taken
        put(rest, t, log(mass))


@exact_kernel
def _mass(joint: Any, k: int) -> float:
    step = narrow_lanes(joint)
    mass = spread(0.0, narrow(joint, (k, 0)))
    for t in range(0, TILE, step):
        mass = mass + narrow(joint, (k, t))
    return np.float64(total(mass))


@exact_kernel
def _first_moments(diff: Any, resp: Any, k: int, sum_x: Any) -> None:
    step = narrow_lanes(diff)
    for i in range(columns(sum_x)):
        first = spread(0.0, narrow(diff, (i, 0)))
        for t in range(0, TILE, step):
            first = fma(narrow(resp, (k, t)), narrow(diff, (i, t)), first)
        add(sum_x, (k, i), total(first))


@exact_kernel
def _diagonal_moments(diff: Any, resp: Any, k: int, d: int, sum_x: Any, sum_xx: Any) -> None:
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
def _triangular_moments(diff: Any, resp: Any, k: int, part: Any, sum_x: Any, sum_xx: Any) -> None:
    for i in range(0, lines(diff), 4):
        _weighted_lines(diff, resp, k, i, part, sum_x)
        for j in range(0, i + 4, 2):
            _four_by_two(diff, part, k, i, j, sum_xx)


@exact_kernel
def _weighted_lines(diff: Any, resp: Any, k: int, i: int, part: Any, sum_x: Any) -> None:
    """part <- resp x diff for lines i to i + 3, whose sums are the first moments."""
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
    """Eight second moments: six loads serve eight products."""
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
