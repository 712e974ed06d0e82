"""Nearest centres without computing most distances, with the labels that computing them all gives, ties included.

With y = x about the reference, Q of orthonormal columns and the lengths t = sqrt(|y|² - |Qᵀy|²) of what Q leaves out,

    |c|² - 2 y·c  >=  |c|² - 2 (Qᵀy)·(Qᵀc) - 2 t_y t_c

by the Cauchy-Schwarz inequality, a distance in few dimensions. [Bottesch, Bühler and Kächele 2016] Q spans the directions in which
the centres differ most; whatever it is, the bound holds. From bounds is taken what rounding may have added to them and taken from
Lloyd's own scores.

For as many rows as a vector has lanes all bounds are computed. A row's scores follow for the centre of its lowest bound and for those whose bound is
not above the lowest score so far, each as one product, whose order of additions is not Lloyd's. Where that might matter, Lloyd's own scores decide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.blocks import (
    BLOCK,
    PART,
    PRODUCT_BYTES,
    VECTOR_BYTES,
    add_products,
    bound_nearest,
    in_blocks,
    load_group,
    lowest_bit,
    product_of,
    reaching,
)
from pipeline.kernels.compiling import exact_kernel

LEAST_FEATURES, LEAST_CENTERS, LEAST_ROWS = 32, 64, 512  # with fewer, all distances take less time (measured)
LEAST_PRODUCTS = 10**9  # of all distances of a chunk: preparing bounds takes the time of 5e7 to 3e8 in each pass
DIRECTIONS, LEFT = 8 * BLOCK, 0.03  # of Q at most; fewer where they leave out no more of the centres' squared lengths
ITERATIONS = 2  # of the subspace iteration
EVERY = 16  # one of so many vectors of rows shows whether bounds save time
WORTH = 0.85  # of the operations of all distances
# What takes the time of how many operations, measured: of a row each feature, of a bound to write and compare it, of a single product, and of
# each of its features, and of each feature of a score in Lloyd's order
OF_FEATURE, OF_BOUND, OF_PRODUCT, OF_TERM, OF_SCORE = 16, 20, 800, 2.5, 256


class Leading(NamedTuple):
    """What all chunks of a pass need.

    Attributes
    ----------
    basis : array, shape (q / BLOCK, d, BLOCK)
    bounds, constants : arrays, shapes (ceil(k / BLOCK), q + 2, BLOCK) and (ceil(k / BLOCK), BLOCK)
        A bound is a constant and the product with a row's (Qᵀy, t, |y|).
    factors : array, shape (k, at least d)
        Minus twice the centres about the reference, as `product_of` takes them.
    square, length : arrays, shape (k,)
        Of the centres about the reference.
    near, slack : float
        See `_near` and `_slack`.
    saves : list of bool
        Whether bounds save time, as soon as a chunk has shown it.
    """

    basis: Array
    bounds: Array
    constants: Array
    factors: Array
    square: Array
    length: Array
    near: float
    slack: float
    saves: list[bool]


def leading_of(factors: Array, square: Array) -> Leading | None:
    """Return what bounds of these centres take; None where all distances take less time.

    factors : (k, d), minus twice the centres about the reference.  square : (k,), of their lengths.
    """
    (k, d), dtype = factors.shape, factors.dtype
    if d < LEAST_FEATURES or k < LEAST_CENTERS or not np.isfinite(square).all():
        return None
    basis = _directions(factors / np.sqrt(square.max() or 1.0))
    q = basis.shape[1]
    c = factors.astype(np.float64) / -2.0
    along = c @ basis.astype(np.float64)
    length, length_along = np.einsum("kd,kd->k", c, c), np.einsum("kq,kq->k", along, along)
    left = np.sqrt(np.maximum(length - length_along, 0.0) + _slack(dtype, d) * length)
    loose = _loose(dtype, d, q)  # what rounding may have added to a bound is taken off
    columns = np.concatenate([-2.0 * along, -2.0 * left[:, None], -2.0 * loose * np.sqrt(length)[:, None]], axis=1)
    bounds = in_blocks(columns.astype(dtype), ((1.0 - loose) * square).astype(dtype))
    at_once = PRODUCT_BYTES // dtype.itemsize
    single, whole = factors, d // at_once * at_once
    if whole < d:
        single = np.zeros((k, whole + at_once), dtype)
        single[:, :whole], single[:, whole - d :] = factors[:, :whole], factors[:, whole:]
    basis, _ = in_blocks(np.ascontiguousarray(basis.T), np.zeros(q, dtype))
    return Leading(basis, *bounds, single, square, np.sqrt(length), _near(dtype, d), _slack(dtype, d), [])


def _directions(c: Array) -> Array:
    """Q, (d, q), the first directions those in which the centres, (k, d), differ most. Rounding does not matter: the bound holds for any."""
    basis = np.random.default_rng(0).normal(size=(c.shape[1], min(DIRECTIONS, c.shape[1] // BLOCK * BLOCK)))
    for _ in range(ITERATIONS):
        basis = np.linalg.qr((c.T @ (c @ basis.astype(c.dtype))).astype(np.float64))[0]
    along, total = c.astype(np.float64) @ basis, np.square(c, dtype=np.float64).sum()
    squares, turn = np.linalg.eigh(along.T @ along)
    enough = 1 + int((np.cumsum(squares[::-1]) < (1.0 - LEFT) * total).sum())
    q = min(-(-enough // BLOCK) * BLOCK, len(squares))
    return np.asarray((basis @ turn[:, ::-1])[:, :q].astype(c.dtype))


def _loose(dtype: Any, d: int, q: int) -> float:
    """Rounding of a bound and of a score of Lloyd's, as a share of |c|² + 2 |y| |c|."""
    return (4.0 * d + 5.0 * q + 64.0) * float(np.finfo(dtype).eps)


def _near(dtype: Any, d: int) -> float:
    """Rounding of a score of Lloyd's, d additions, and of a single product, d / 16 or fewer, as a share of |c|² + 2 |y| |c|."""
    return (0.6 * d + 16.0) * float(np.finfo(dtype).eps)


def _slack(dtype: Any, d: int) -> float:
    """What rounding may take from the square of a length that Q leaves out, as a share of the square of the length."""
    return 16.0 * d * float(np.finfo(dtype).eps)


def nearest_by_bounds(x: Array, reference: Array, leading: Leading | None) -> Array | None:
    """Return the nearest centres of rows, (n,) int32; None where that would not save time. x : (n, d).  reference : (d,)."""
    if leading is None or False in leading.saves or not may_save(len(x), len(leading.square), x.shape[1]):
        return None
    k, d, q = len(leading.square), x.shape[1], len(leading.basis) * BLOCK
    most = WORTH * k * d - d * (q + OF_FEATURE) - k * (q + 2 + OF_BOUND)
    label = np.empty(len(x), np.int32)
    for step in (1,) if leading.saves else (EVERY, 1):
        if not _settle(x, reference, *leading[:8], most, step, label):
            leading.saves[:] = [False]
            return None
        leading.saves[:] = [True]
    return label


def may_save(n: int, k: int, d: int) -> bool:
    """Whether a chunk has enough rows, and enough to compute, for bounds to save time."""
    return n >= LEAST_ROWS and n * k * d >= LEAST_PRODUCTS


def bounds_bytes(k: int) -> int:
    """Return the bytes beside tiles: bounds for a vector of rows."""
    return VECTOR_BYTES * k


@exact_kernel
def _settle(
    x: np.ndarray,
    reference: np.ndarray,
    basis: np.ndarray,
    bounds: np.ndarray,
    constants: np.ndarray,
    factors: np.ndarray,
    square: np.ndarray,
    length: np.ndarray,
    near: float,
    slack: float,
    most: float,
    step: int,
    label: np.ndarray,
) -> bool:
    """Write the labels of every step-th vector of rows; return False as soon as that takes more than so many operations for each row."""
    (n, d), k, q = x.shape, len(square), len(basis) * BLOCK
    lanes = VECTOR_BYTES // x.itemsize
    of_product, left = OF_PRODUCT + OF_TERM * d, most * (n // step)
    part, along = np.empty((min(d, PART), lanes), x.dtype), np.empty((q + 2, lanes), x.dtype)
    best, index, bound = (
        np.empty(lanes, x.dtype),
        np.empty(lanes, x.dtype),
        np.empty((len(bounds) * BLOCK, lanes), x.dtype),
    )
    limit, others, own = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    chosen = np.empty(lanes, np.int64)
    centers, found = (reference, factors, square, length, near), (limit, others, own, chosen)
    for start in range(0, n, lanes * step):
        row = min(start, n - lanes)
        _project(x, row, reference, basis, slack, part, along)
        limit[:] = np.inf
        others[:] = np.inf
        own[:] = np.inf
        chosen[:] = -1
        best[:] = np.inf
        index[:] = -1
        for b in range(len(bounds)):
            place = b * BLOCK
            bound_nearest(along, bounds[b], constants[b], place, best, index, bound[place : place + BLOCK])
        for t in range(lanes):
            if index[t] >= 0:
                _compare(x, row, t, int(index[t]), along[q + 1, t], centers, found)
                left -= of_product
        for j in range(k):
            some = reaching(bound[j], limit)
            while some != 0:
                t = lowest_bit(some)
                some &= some - np.uint64(1)
                if j != int(index[t]):
                    _compare(x, row, t, j, along[q + 1, t], centers, found)
                    left -= of_product
            if left < 0:
                return False
        for t in range(lanes):
            if chosen[t] < 0 or not others[t] > limit[t]:
                left -= OF_SCORE * d * _choose_by_scores(x, row, t, bound, centers, found)
            label[row + t] = np.int32(chosen[t])
    return True


@exact_kernel
def _project(
    x: np.ndarray, row: int, reference: np.ndarray, basis: np.ndarray, slack: float, part: np.ndarray, along: np.ndarray
) -> None:
    """Write (Qᵀy, t, |y|) of a vector of rows, (q + 2, lanes). part : overwritten."""
    d, (m, lanes) = x.shape[1], along.shape
    along[:] = 0.0
    for i in range(0, d, PART):
        stop = min(i + PART, d)
        load_group(x, row, reference, part[: stop - i], i)
        for b in range(len(basis)):
            add_products(part[: stop - i], basis[b, i:stop], along[b * BLOCK : (b + 1) * BLOCK])
        for j in range(stop - i):
            for t in range(lanes):
                along[m - 1, t] += part[j, t] * part[j, t]
    for i in range(m - 2):
        for t in range(lanes):
            along[m - 2, t] += along[i, t] * along[i, t]
    for t in range(lanes):
        whole = along[m - 1, t]
        along[m - 2, t] = np.sqrt(max(whole - along[m - 2, t], 0.0) + slack * whole)
        along[m - 1, t] = np.sqrt(whole)


@exact_kernel
def _compare(x: np.ndarray, row: int, t: int, j: int, size: float, centers: Any, found: Any) -> None:
    """Compare row t of a vector with centre j.

    found : for each row what Lloyd's score of the chosen centre is at most, the limit; what those of the others are at least; what it is at
    least itself; and the chosen centre.
    """
    (reference, factors, square, length, near), (limit, others, own, chosen) = centers, found
    score = square[j] + product_of(x, row + t, reference, factors, j)
    error = near * (square[j] + 2.0 * size * length[j])
    most, least = score + error, score - error
    if not least > -np.inf:  # NaN as well
        least = -np.inf
    if most < limit[t]:
        others[t] = min(others[t], own[t])
        limit[t], own[t], chosen[t] = most, least, j
    else:
        others[t] = min(others[t], least)


@exact_kernel
def _choose_by_scores(x: np.ndarray, row: int, t: int, bound: np.ndarray, centers: Any, found: Any) -> int:
    """Choose for row t by Lloyd's scores of the centres whose bounds the limit leaves; return how many these are."""
    (reference, factors, square, _, _), (limit, _, _, chosen) = centers, found
    d, (k, width) = x.shape[1], factors.shape
    filled = width - d  # zeros before the last features
    whole = width - PRODUCT_BYTES // x.itemsize if filled else d
    least, count = x.dtype.type(np.inf), 0
    chosen[t] = 0
    for j in range(k):
        if not bound[j, t] > limit[t]:
            score = square[j]
            for i in range(whole):
                score += factors[j, i] * (x[row + t, i] - reference[i])
            for i in range(whole, d):
                score += factors[j, filled + i] * (x[row + t, i] - reference[i])
            if score < least:
                least, chosen[t] = score, j
            count += 1
    return count
