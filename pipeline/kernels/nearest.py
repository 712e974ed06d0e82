"""One pass of Lloyd's algorithm: nearest centres, exact distances to them, and sums of residuals, tile by tile.

    argmin_k |x - c_k|² = argmin_k (|c_k|² - 2 x·c_k)

in the rows' dtype about a reference point, a row in each lane of a vector. The distance to the chosen centre is computed
from the difference, in float64, and so are the sums. [Lloyd 1982]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.kernels.base import LloydSums
from pipeline.kernels.blocks import BLOCK, PART, VECTOR_BYTES, add_products, load_group, lowest_of, update_nearest
from pipeline.kernels.centers import prepared
from pipeline.kernels.compiling import exact_kernel, kernel
from pipeline.kernels.nearest_bounds import may_save, nearest_by_bounds

DOUBTFUL = 16  # times eps: a score is a sum of two terms, each rounded to eps of the squared distance
TILE = 256  # rows, transposed: a block of centres is read once for all of them


def lloyd_pass(x: Array, weight: Array | None, centers: Array, shift: Array, first: int = 0) -> LloydSums:
    """See `Kernels.lloyd_pass`."""
    x = np.ascontiguousarray(x, compute_dtype(x.dtype))
    (k, d), n = centers.shape, len(x)
    made = prepared(centers, shift, x.dtype, may_save(n, k, d))
    label, score = np.empty(n, np.int32), np.empty(n)
    sum_w, sum_x = np.zeros(k), np.zeros((k, d))
    weights = np.empty(0) if weight is None else weight
    found = nearest_by_bounds(x, made.reference, made.leading)
    known = found is not None
    if found is not None:
        label = found
    elif d > 2 * PART and n >= VECTOR_BYTES // x.itemsize:
        _label_by_parts(x, made.reference, made.blocks, made.block_squares, label)
        known = True
    search = centers, made.reference, made.blocks, made.block_squares
    inertia, key = _pass(x, weights, first, *search, known, label, score, sum_w, sum_x)
    apart = _are_told_apart(made.square) if x.itemsize == 8 else np.zeros(k, np.bool_)
    largest = float(made.square.max())
    if not apart.all() and _corrected(x, weights, centers, shift, made.reference, label, score, apart, largest):
        sum_w[:], sum_x[:] = 0.0, 0.0
        inertia, key = _pass(x, weights, first, *search, True, label, score, sum_w, sum_x)
    move_to(sum_w, centers, shift, sum_x)
    return LloydSums(label, score, sum_w, sum_x, inertia, key)


def _corrected(
    x: Array,
    weight: Array,
    centers: Array,
    shift: Array,
    reference: Array,
    label: Array,
    score: Array,
    apart: Array,
    largest: float,
) -> bool:
    """Look the rows up again whose nearest centre the dtype may not tell; return whether any label has changed.

    Their squared distance to it is below the rounding of their squared distance to the reference. Float32 is followed by
    float64, and that by distances to all centres from differences.  largest : of the centres' squared distances to the reference.
    """
    limit = DOUBTFUL * float(np.finfo(x.dtype).eps)
    doubtful = np.flatnonzero(_are_doubtful(x, reference, score, limit, largest))
    doubtful = doubtful[~apart[label[doubtful]]]
    if not len(doubtful):
        return False
    rows = x[doubtful]
    if x.itemsize == 4:
        again = lloyd_pass(rows.astype(np.float64), weight[doubtful] if weight.size else None, centers, shift).label
    else:
        again = _by_differences(rows, centers)
    changed = again != label[doubtful]
    label[doubtful] = again
    return bool(changed.any())


def _are_told_apart(square: Array) -> Array:
    """Whether float64 tells each centre from all others, as their distances from the reference show, (k,) bool.

    Then it errs about none of the rows that it assigns to it: these are within 4 sqrt(eps) R of two centres, R their distance
    from the reference. square : (k,).
    """
    radii, order = np.sqrt(square), np.argsort(square)
    gaps = np.concatenate([[np.inf], np.diff(radii[order]), [np.inf]])
    apart = np.empty(len(radii), np.bool_)
    apart[order] = np.minimum(gaps[:-1], gaps[1:]) > 16 * np.sqrt(np.finfo(np.float64).eps) * radii.max()
    return apart


def nearest(x: Any, centers: Array, shift: Array) -> tuple[Array, Array]:
    """See `Kernels.nearest`. Sparse rows are compared by a sparse product."""
    if sp.issparse(x):
        score = np.einsum("kd,kd->k", centers, centers) - 2.0 * (x @ centers.T)
        label = score.argmin(axis=1)
        squared = score[np.arange(len(label)), label] + x.multiply(x).sum(axis=1)
        return label.astype(np.int32), np.maximum(squared, 0.0)
    found = lloyd_pass(x, None, centers, shift)
    return found.label, -found.score


@exact_kernel
def _pass(
    x: np.ndarray,
    weight: np.ndarray,
    first: int,
    centers: np.ndarray,
    reference: np.ndarray,
    coefficients: np.ndarray,
    square: np.ndarray,
    known: bool,
    label: np.ndarray,
    score: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> tuple[float, np.uint64]:
    """Write labels (unless they are known) and scores of rows, and add to the sums; return inertia and the key of labels."""
    n, d = x.shape
    lanes = VECTOR_BYTES // x.itemsize
    rows = np.empty((TILE // lanes, d, lanes), x.dtype)
    best, chosen = np.empty((TILE // lanes, lanes), x.dtype), np.empty(TILE, x.dtype)
    index = chosen.reshape(best.shape)
    tail = np.zeros((TILE, d), x.dtype)  # the last rows, filled up
    w = np.ones(TILE)
    inertia, key = 0.0, np.uint64(0)
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        own, stop = label[start : start + m], start + m
        if not known:
            if m < TILE:
                for t in range(m):  # not tail[:m] = …: see compiling.py
                    for i in range(d):
                        tail[t, i] = x[start + t, i]
            tile, groups = x[start : start + TILE] if m == TILE else tail, -(-m // lanes)
            for g in range(groups):
                load_group(tile, g * lanes, reference, rows[g])
            best[:] = np.inf
            chosen[:] = 0
            for b in range(len(coefficients)):
                for g in range(groups):
                    update_nearest(rows[g], coefficients[b], square[b], b * BLOCK, best[g], index[g])
            for t in range(m):
                own[t] = np.int32(chosen[t])
        if weight.size:
            for t in range(m):
                w[t] = weight[start + t]
        inertia += add_residuals(x[start:stop], w[:m], own, centers, score[start:stop], sum_w, sum_x)
        key += label_key(own, w, first + start, len(centers))
    return inertia, key


@exact_kernel
def _label_by_parts(
    x: np.ndarray, reference: np.ndarray, coefficients: np.ndarray, square: np.ndarray, label: np.ndarray
) -> None:
    """Write labels, with the bits of `_pass`: each sum is continued from one part of the features, which stays near, to the next.

    x : (n, d), n at least the lanes of a vector.
    """
    n, d = x.shape
    lanes = VECTOR_BYTES // x.itemsize
    part, sums = np.empty((PART, lanes), x.dtype), np.empty((len(square), BLOCK, lanes), x.dtype)
    best, index = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    for start in range(0, n, lanes):
        row = min(start, n - lanes)
        for b in range(len(sums)):
            for j in range(BLOCK):
                for t in range(lanes):
                    sums[b, j, t] = square[b, j]
        for i in range(0, d, PART):
            stop = min(i + PART, d)
            load_group(x, row, reference, part[: stop - i], i)
            for b in range(len(sums)):
                add_products(part[: stop - i], coefficients[b, i:stop], sums[b])
        best[:] = np.inf
        index[:] = 0
        for b in range(len(sums)):
            lowest_of(sums[b], b * BLOCK, best, index)
        for t in range(lanes):
            label[row + t] = np.int32(index[t])


@exact_kernel
def move_to(sum_w: np.ndarray, centers: np.ndarray, shift: np.ndarray, sum_x: np.ndarray) -> None:
    """Make sums about the centres, (k, d), sums about the shift."""
    for k in range(len(centers)):
        if sum_w[k] != 0.0:
            for i in range(len(shift)):
                sum_x[k, i] += sum_w[k] * (centers[k, i] - shift[i])


@exact_kernel
def _by_differences(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(n,) int32: the nearest centres, ties to the lowest. x : (n, d) float64."""
    out = np.zeros(len(x), np.int32)
    for t in range(len(x)):
        least = np.inf
        for k in range(len(centers)):
            square = 0.0
            for i in range(x.shape[1]):
                apart = x[t, i] - centers[k, i]
                square += apart * apart
            if square < least:
                out[t], least = k, square
    return out


@kernel
def _are_doubtful(x: np.ndarray, reference: np.ndarray, score: np.ndarray, limit: float, largest: float) -> np.ndarray:
    """(n,) bool: whether minus the score is below the limit times the squared distance to the reference."""
    out = np.empty(len(x), np.bool_)
    for t in range(len(x)):
        # That distance, squared, is at most 2 (largest - score): twice that, for rounding, saves most rows from being read.
        if -score[t] >= 4.0 * limit * (largest - score[t]):
            out[t] = False
            continue
        square = np.float32(0.0)
        for i in range(x.shape[1]):
            apart = x[t, i] - reference[i]
            square += apart * apart
        out[t] = -score[t] < limit * square and score[t] < np.inf
    return out


@kernel
def scale_rows(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> int:
    """out <- rows of length 1, computed in float64; return the first row of weight that has no direction, or -1."""
    found = -1
    for t in range(x.shape[0]):
        square = 0.0
        for i in range(x.shape[1]):
            square += np.float64(x[t, i]) * np.float64(x[t, i])
        if square == 0.0 and weight[t] > 0 and found < 0:
            found = t
        length = np.sqrt(square) if square != 0.0 else 1.0
        for i in range(x.shape[1]):
            out[t, i] = x[t, i] / length
    return found


@kernel
def add_residuals(
    x: np.ndarray,
    weight: np.ndarray,
    label: np.ndarray,
    centers: np.ndarray,
    score: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> float:
    """Add weights and weight x (x - centre) to the sums of each row's centre.

    Parameters
    ----------
    x : array, shape (n, d)
    weight : array, shape (n,), float64
    label : array, shape (n,), int32
        The centre of each row.
    centers : array, shape (k, d), float64
    score : array, shape (n,), float64
        Written: minus the squared distance, inf where the weight is 0.
    sum_w, sum_x : arrays, shapes (k,) and (k, d), float64
        Added to.

    Returns
    -------
    float
        Weighted sum of squared distances.
    """
    total = 0.0
    for t in range(x.shape[0]):
        k, w = label[t], weight[t]
        square = 0.0
        for i in range(x.shape[1]):
            residual = np.float64(x[t, i]) - centers[k, i]
            square += residual * residual
            sum_x[k, i] += w * residual
        sum_w[k] += w
        score[t] = -square if w > 0 else np.inf
        total += w * square
    return total


@exact_kernel
def label_key(label: np.ndarray, weight: np.ndarray, first: int, k_total: int) -> np.uint64:
    """Sum modulo 2^64 of SplitMix64 hashes of row x k + label, as in pipeline/keyed.py. [Steele, Lea and Flood 2014]."""
    key = np.uint64(0)
    for t in range(len(label)):
        z = np.uint64((first + t) * k_total + label[t] + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key += (z ^ (z >> np.uint64(31))) if weight[t] > 0 else np.uint64(0)
    return key
