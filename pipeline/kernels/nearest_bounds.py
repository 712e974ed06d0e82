"""Nearest centres without computing most distances, with the labels that computing them all gives, ties included.

With y = x about the reference, Q of orthonormal columns and the lengths t = sqrt(|y|² - |Qᵀy|²) of what Q leaves out,

    |c|² - 2 y·c  >=  |c|² - 2 (Qᵀy)·(Qᵀc) - 2 t_y t_c

by the Cauchy-Schwarz inequality, which is one small matrix product for all centres. [Bottesch, Bühler and Kächele 2016] Q spans the directions in which
the centres differ most; whatever it is, the bound holds. The score of the centre of the lowest bound is computed first, then of
those whose bound is not above the lowest score. From bounds is taken what rounding may have added to them, to these scores and to
Lloyd's own; a row whose two lowest scores differ by less than rounding is left to Lloyd's pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.compiling import kernel

LEAST_FEATURES, LEAST_CENTERS, LEAST_ROWS = 128, 256, 512  # with fewer, all distances take less time (measured)
DIRECTIONS = 32  # of Q
ITERATIONS = 2  # of the subspace iteration
ROWS, LOOK = 256, 128  # of a tile; of the first, after which it is decided
WORTH = 0.7  # of the operations of all distances
SCAN, GATHERED = 3, 4  # operations that a bound, and a factor of a distance by gathering, take the time of
LANES = 32  # bounds that are compared at once


class Leading(NamedTuple):
    """What all chunks of a pass need. basis : (d, q).  bounds : (q + 3, k), which a row's (Qᵀy, t, |y|, 1) is multiplied by."""

    basis: Array
    bounds: Array


def leading_of(factors: Array, square: Array) -> Leading | None:
    """Return what bounds of these centres take; None where all distances take less time. Shapes as for `nearest_by_bounds`."""
    (k, d), q = factors.shape, DIRECTIONS
    if d < LEAST_FEATURES or k < LEAST_CENTERS or not np.isfinite(square).all():
        return None
    c = factors.astype(np.float64) / -2.0
    basis = np.random.default_rng(0).normal(size=(d, q))
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(c.T @ (c @ basis))[0]
    basis = basis.astype(factors.dtype)
    along = c @ basis.astype(np.float64)
    length = np.einsum("kd,kd->k", c, c)
    left = np.sqrt(np.maximum(length - np.einsum("kq,kq->k", along, along), 0.0) + _slack(factors.dtype, d) * length)
    loose = _loose(factors.dtype, d, q)  # what rounding may have added to a bound is taken off
    lines = -2.0 * along.T, -2.0 * left[None], -2.0 * loose * np.sqrt(length)[None], (1.0 - loose) * square[None]
    return Leading(basis, np.concatenate(lines).astype(factors.dtype))


def _loose(dtype: Any, d: int, q: int) -> float:
    """Rounding of a bound and of a score of Lloyd's, as a share of |c|² + 2 |y| |c|."""
    return (4.0 * d + 5.0 * q + 64.0) * float(np.finfo(dtype).eps)


def _slack(dtype: Any, d: int) -> float:
    """What rounding may take from the square of a length that Q leaves out, as a share of the square of the length."""
    return 16.0 * d * float(np.finfo(dtype).eps)


def nearest_by_bounds(
    x: Array, reference: Array, factors: Array, square: Array, leading: Leading | None
) -> tuple[Array, Array] | None:
    """Return the nearest centres of rows, (n,) int32, and whether each is certain; None where that would not save time.

    x : (n, d).  reference : (d,).  factors : (k, d), minus twice the centres about the reference.  square : (k,), of their lengths.
    """
    (n, d), k = x.shape, len(factors)
    if n < LEAST_ROWS or leading is None:
        return None
    eps, q, slack = float(np.finfo(x.dtype).eps), leading.basis.shape[1], _slack(x.dtype, d)
    bound = (q * d + k * (q + 3 + SCAN)) / 2  # a matrix product is twice as fast as distances are
    if bound > WORTH * k * d:
        return None
    label, certain = np.empty(n, np.int32), np.empty(n, np.bool_)
    y, projected = np.empty((ROWS, d), x.dtype), np.ones((ROWS, q + 3), x.dtype)
    bounds, start = np.empty((ROWS, k), x.dtype), 0
    while start < n:
        m = min(LOOK if start == 0 else ROWS, n - start)
        rows = slice(start, start + m)
        np.subtract(x[rows], reference, out=y[:m])
        length = np.einsum("nd,nd->n", y[:m], y[:m])
        along = np.matmul(y[:m], leading.basis)
        projected[:m, :q] = along
        projected[:m, q] = np.sqrt(np.maximum(length - np.einsum("nq,nq->n", along, along), 0.0) + slack * length)
        projected[:m, q + 1] = np.sqrt(length)
        np.matmul(projected[:m], leading.bounds, out=bounds[:m])
        first = bounds[:m].argmin(axis=1).astype(np.int32)
        computed = _settle(y[:m], bounds[:m], factors, square, (d + 16) * eps, first, label[rows], certain[rows])
        if start == 0 and bound + GATHERED * d * computed / m > WORTH * k * d:
            return None
        start += m
    return label, certain


@kernel
def _settle(
    y: np.ndarray,
    bounds: np.ndarray,
    factors: np.ndarray,
    square: np.ndarray,
    rounding: float,
    first: np.ndarray,
    label: np.ndarray,
    certain: np.ndarray,
) -> int:
    """Write labels and whether they are certain; return how many distances were computed. rounding : of two scores, as in `_loose`."""
    (n, d), k, computed = y.shape, len(square), 0
    for t in range(n):
        own = first[t]
        dot = length = y[t, 0] * np.float32(0.0)
        for i in range(d):
            dot += y[t, i] * factors[own, i]
            length += y[t, i] * y[t, i]
        twice = 2.0 * np.sqrt(np.float64(length))
        best, chosen = square[own] + dot, own
        high = best + rounding * (
            square[own] + twice * np.sqrt(square[own])
        )  # which the chosen centre's score cannot exceed
        low = np.inf  # which those of the others exceed
        computed += 1
        for start in range(0, k, LANES):
            stop, near, limit = min(start + LANES, k), 0, high
            for j in range(start, stop):
                near += bounds[t, j] <= limit
            if near == 0:
                continue
            for j in range(start, stop):
                if j == own or bounds[t, j] > high:
                    continue
                dot = y[t, 0] * np.float32(0.0)
                for i in range(d):
                    dot += y[t, i] * factors[j, i]
                score = square[j] + dot
                computed += 1
                error = rounding * (square[j] + twice * np.sqrt(square[j]))
                if score < best:
                    error, high = high - best, score + error
                    low, best, chosen = min(low, best - error), score, j
                else:
                    low = min(low, score - error)
        label[t] = chosen
        certain[t] = low > high
    return computed
