"""Nearest centres without computing most distances, with the labels that computing them all gives, ties included.

With y = x about the reference, Q of orthonormal columns and the lengths t = sqrt(|y|² - |Qᵀy|²) of what Q leaves out,

    |c|² - 2 y·c  >=  |c|² - 2 (Qᵀy)·(Qᵀc) - 2 t_y t_c

by the Cauchy-Schwarz inequality, a distance in few dimensions. [Bottesch, Bühler and Kächele 2016] Q spans the directions in which
the centres differ most; whatever it is, the bound holds. From bounds is taken what rounding may have added to them and taken from
Lloyd's own scores.

Rows are sorted by the nearest of a few centres, the pivots, so that those side by side have the same centres near them. For as many rows as a
vector has lanes all bounds are computed, then the scores of the centres of the lowest bounds, then those of all centres whose bound
is not above the lowest score for any of these rows, in Lloyd's order and with Lloyd's bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import TILE_BYTES
from pipeline.kernels.blocks import (
    BLOCK,
    VECTOR_BYTES,
    any_reaches,
    bound_nearest,
    in_blocks,
    load_group,
    update_among,
    update_nearest,
)
from pipeline.kernels.compiling import exact_kernel

LEAST_FEATURES, LEAST_CENTERS, LEAST_ROWS = 128, 256, 512  # with fewer, all distances take less time (measured)
DIRECTIONS = 48  # of Q
ITERATIONS = 2  # of the subspace iteration
CENTERS_PER_PIVOT = 16
ROWS = 256  # that are projected at once
LOOK, EVERY = 512, 4  # rows, of which every fourth vector decides
WORTH = 0.85  # of the operations of all distances
SCAN = 16  # operations that writing a bound and comparing it takes the time of (measured, as is the next)
FIXED = 150  # distances that a row's projection, sorting, copying and centre of lowest bound take the time of


class Leading(NamedTuple):
    """What all chunks of a pass need.

    Attributes
    ----------
    basis : array, shape (d, q)
    bounds, bound_constants : arrays, shapes (ceil(k / BLOCK), q + 2, BLOCK) and (ceil(k / BLOCK), BLOCK)
        A bound is a constant and the product with a row's (Qᵀy, t, |y|).
    pivots, pivot_squares : arrays, shapes (ceil(p / BLOCK), q, BLOCK) and (ceil(p / BLOCK), BLOCK)
        The same for distances along Q to the pivots.
    """

    basis: Array
    bounds: Array
    bound_constants: Array
    pivots: Array
    pivot_squares: Array


def leading_of(factors: Array, square: Array) -> Leading | None:
    """Return what bounds of these centres take; None where all distances take less time. Shapes as for `nearest_by_bounds`."""
    (k, d), q, dtype = factors.shape, DIRECTIONS, factors.dtype
    if d < LEAST_FEATURES or k < LEAST_CENTERS or not np.isfinite(square).all():
        return None
    scaled, basis = factors / np.sqrt(square.max() or 1.0), np.random.default_rng(0).normal(size=(d, q)).astype(dtype)
    for _ in range(
        ITERATIONS
    ):  # whatever the orthonormal basis is, the bound holds: rounding of the products does not matter
        basis = np.linalg.qr((scaled.T @ (scaled @ basis)).astype(np.float64))[0].astype(dtype)
    c = factors.astype(np.float64) / -2.0
    along = c @ basis.astype(np.float64)
    length, length_along = np.einsum("kd,kd->k", c, c), np.einsum("kq,kq->k", along, along)
    left = np.sqrt(np.maximum(length - length_along, 0.0) + _slack(dtype, d) * length)
    loose = _loose(dtype, d, q)  # what rounding may have added to a bound is taken off
    columns = np.concatenate([-2.0 * along, -2.0 * left[:, None], -2.0 * loose * np.sqrt(length)[:, None]], axis=1)
    bounds = in_blocks(columns.astype(dtype), ((1.0 - loose) * square).astype(dtype))
    some = slice(None, None, CENTERS_PER_PIVOT)
    return Leading(basis, *bounds, *in_blocks(-2.0 * along[some].astype(dtype), length_along[some].astype(dtype)))


def _loose(dtype: Any, d: int, q: int) -> float:
    """Rounding of a bound and of a score of Lloyd's, as a share of |c|² + 2 |y| |c|."""
    return (4.0 * d + 5.0 * q + 64.0) * float(np.finfo(dtype).eps)


def _slack(dtype: Any, d: int) -> float:
    """What rounding may take from the square of a length that Q leaves out, as a share of the square of the length."""
    return 16.0 * d * float(np.finfo(dtype).eps)


def nearest_by_bounds(x: Array, reference: Array, factors: Array, square: Array, leading: Leading | None) -> Array | None:  # fmt: skip
    """Return the nearest centres of rows, (n,) int32; None where that would not save time.

    x : (n, d).  reference : (d,).  factors : (k, d), minus twice the centres about the reference.  square : (k,), of their lengths.
    """
    n, d = x.shape
    if n < LEAST_ROWS or leading is None:
        return None
    given, label = (reference, factors, square, leading), np.empty(n, np.int32)
    computed = _settled(x[:: n // LOOK], *given, label, EVERY)
    k, m = len(factors), leading.bounds.shape[1]
    if k * (m + SCAN) + d * (computed + FIXED) > WORTH * k * d:
        return None
    many = TILE_BYTES // (2 * x.itemsize * m)
    for start in range(0, n, many):
        _settled(x[start : start + many], *given, label[start : start + many])
    return label


def bounds_bytes(k: int) -> int:
    """Return the bytes beside tiles: bounds for a vector of rows, and the centres near them."""
    return (VECTOR_BYTES + 8) * k


def _settled(x: Array, reference: Array, factors: Array, square: Array, leading: Leading, label: Array, step: int = 1) -> float:  # fmt: skip
    """Write labels, of every step-th vector of rows; return how many scores were computed for a row."""
    projected = _projected(x, reference, leading.basis)
    pivot = np.empty(len(x), np.int32)
    _nearest_pivots(projected, leading.pivots, leading.pivot_squares, pivot)
    order = np.argsort(pivot, kind="stable")
    given = leading.bounds, leading.bound_constants, factors, square
    found: float = _settle(x, reference, projected, order, *given, label, step)
    return found


def _projected(x: Array, reference: Array, basis: Array) -> Array:
    """(n, q + 2): (Qᵀy, t, |y|) of each row."""
    (n, d), q = x.shape, basis.shape[1]
    out, y = np.empty((n, q + 2), x.dtype), np.empty((min(n, ROWS), d), x.dtype)
    for start in range(0, n, ROWS):
        some = out[start : start + ROWS]
        rows = np.subtract(x[start : start + ROWS], reference, out=y[: len(some)])
        length, along = np.einsum("nd,nd->n", rows, rows), rows @ basis
        some[:, :q] = along
        some[:, q] = np.sqrt(
            np.maximum(length - np.einsum("nq,nq->n", along, along), 0.0) + _slack(x.dtype, d) * length
        )
        some[:, q + 1] = np.sqrt(length)
    return out


@exact_kernel
def _nearest_pivots(projected: np.ndarray, pivots: np.ndarray, squares: np.ndarray, pivot: np.ndarray) -> None:
    """Write the pivot that is nearest along Q, (n,) int32. Which one it is decides about the time alone."""
    n, q = len(projected), pivots.shape[1]
    lanes = VECTOR_BYTES // projected.itemsize
    rows, best, index = (
        np.zeros((q, lanes), projected.dtype),
        np.empty(lanes, projected.dtype),
        np.empty(lanes, projected.dtype),
    )
    for start in range(0, n, lanes):
        m = min(lanes, n - start)
        for t in range(m):
            for i in range(q):
                rows[i, t] = projected[start + t, i]
        best[:] = np.inf
        index[:] = 0
        for b in range(len(pivots)):
            update_nearest(rows, pivots[b], squares[b], b * BLOCK, best, index)
        for t in range(m):
            pivot[start + t] = np.int32(index[t])


@exact_kernel
def _settle(
    x: np.ndarray,
    reference: np.ndarray,
    projected: np.ndarray,
    order: np.ndarray,
    bounds: np.ndarray,
    constants: np.ndarray,
    factors: np.ndarray,
    square: np.ndarray,
    label: np.ndarray,
    step: int,
) -> float:
    """See `_settled`."""
    (n, d), k, m = x.shape, len(square), projected.shape[1]
    lanes = VECTOR_BYTES // x.itemsize
    groups, computed, seen = -(-n // lanes), 0, 0
    along, tile, rows = np.empty((m, lanes), x.dtype), np.empty((lanes, d), x.dtype), np.empty((d, lanes), x.dtype)
    best, index, limit = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    bound, near = np.empty((len(bounds) * BLOCK, lanes), x.dtype), np.empty(k + BLOCK, np.int64)
    for g in range(0, groups, step):
        for t in range(lanes):
            row = order[min(g * lanes + t, n - 1)]  # the last rows are filled up by the last
            for i in range(m):
                along[i, t] = projected[row, i]
            for i in range(d):
                tile[t, i] = x[row, i]
        load_group(tile, 0, reference, rows)
        best[:] = np.inf
        index[:] = 0
        for b in range(len(bounds)):
            bound_nearest(along, bounds[b], constants[b], b * BLOCK, best, index, bound[b * BLOCK : (b + 1) * BLOCK])
        # The lowest score of those of the lowest bounds is the limit, as Lloyd computes it.
        count = 0
        for t in range(lanes):
            own, known = np.int64(index[t]), False
            for j in range(count):
                known |= near[j] == own
            if not known:
                near[count] = own
                count += 1
        limit[:] = np.inf
        among(rows, factors, square, near, count, limit, index)
        count = 0
        for j in range(k):
            if any_reaches(bound[j], limit):
                near[count] = j
                count += 1
        best[:] = np.inf
        index[:] = 0
        among(rows, factors, square, near, count, best, index)
        for t in range(min(lanes, n - g * lanes)):
            label[order[g * lanes + t]] = np.int32(index[t])
        computed += count
        seen += 1
    return computed / seen


@exact_kernel
def among(
    rows: np.ndarray,
    factors: np.ndarray,
    square: np.ndarray,
    near: np.ndarray,
    count: int,
    best: np.ndarray,
    index: np.ndarray,
) -> None:
    """Update the lowest scores by those of the centres near[:count], ascending; more of near is overwritten."""
    if count == 0:
        return
    for j in range(count, -(-count // BLOCK) * BLOCK):
        near[j] = near[count - 1]
    for j in range(0, count, BLOCK):
        update_among(rows, factors, square, near[j : j + BLOCK], best, index)
