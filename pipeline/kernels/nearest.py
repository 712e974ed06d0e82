"""One pass of Lloyd's algorithm: nearest centres, exact distances to them, and sums of residuals, tile by tile.

argmin_k |x - c_k|² = argmin_k (|c_k|² - 2 x.c_k), in the rows' dtype about a shift; a tile's rows lie in the vector
lanes, so that the comparison with the best centre so far costs a few instructions for many rows. The cross terms
come from lanes too where features are few, else from a matrix product that stays in the cache. The distance to the
chosen centre is formed from the difference, in float64. [Lloyd 1982]
"""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import exact_kernel, kernel

LANES = 256  # rows of a tile; products of a tile with BLOCK centres take 256 KiB in float32
BLOCK = 256
FEW_FEATURES = 16  # up to here, loops over lanes are faster than a matrix product (measured)


def lloyd_pass(
    x: np.ndarray, weight: np.ndarray, centers: np.ndarray, shift: np.ndarray, first: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, np.uint64]:
    """Nearest centre of each row, ties to the lowest, and what they sum up to.

    x : (n, d), float32 or float64.  weight : (n,) float64.  centers : (k, d) float64.  shift : (d,) float64, near
    the rows.  first : global index of the first row.
    Returns label : (n,) int32;  d2 : (n,) float64, squared distances;  sum_w : (k,);  sum_x : (k, d), about the
    shift;  the weighted sum of d2;  the sum modulo 2^64 of keyed hashes of (row, label) where weights are positive.
    """
    n, k, d = len(x), *centers.shape
    points = centers - shift
    # Centres by twos and features by fours: no remainder in the innermost loops. A centre at infinity is never near.
    coefficients = np.zeros((k + k % 2, -(-d // 4) * 4 if d <= FEW_FEATURES else d), x.dtype)
    coefficients[:k, :d] = -2.0 * points
    square = np.full(len(coefficients), np.inf, x.dtype)
    square[:k] = np.einsum("kd,kd->k", points, points)
    # A product may round equal centres differently at different places, and they would share their rows.
    names: dict[bytes, int] = {}
    lowest = np.array([names.setdefault(row.tobytes(), j) for j, row in enumerate(coefficients[:k])], np.int32)
    label, d2 = np.empty(n, np.int32), np.empty(n)
    sum_w, sum_x = np.zeros(k), np.zeros((k, d))
    inertia, key = _pass(x, weight, first, centers, shift, coefficients, square, lowest, label, d2, sum_w, sum_x)
    return label, d2, sum_w, sum_x + sum_w[:, None] * points, inertia, key


@exact_kernel  # the sums of a row must not follow its place among the lanes
def _pass(
    x: np.ndarray,
    weight: np.ndarray,
    first: int,
    centers: np.ndarray,
    shift: np.ndarray,
    coefficients: np.ndarray,
    square: np.ndarray,
    lowest: np.ndarray,
    label: np.ndarray,
    d2: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> tuple[float, np.uint64]:
    n, d = x.shape
    k_total, width = coefficients.shape
    few = d <= FEW_FEATURES
    block = 2 if few else min(BLOCK, k_total)
    rows = np.zeros((width, LANES) if few else (LANES, width), x.dtype)
    score = np.empty((block, LANES), x.dtype)
    best, index = np.empty(LANES, x.dtype), np.empty(LANES, x.dtype)
    inertia, key = 0.0, np.uint64(0)
    for start in range(0, n, LANES):
        stop = min(start + LANES, n)
        if few:
            _load_across(x, start, shift, rows)
        else:
            _load(x, start, shift, rows)
        best[:] = np.inf
        index[:] = 0
        for k in range(0, k_total, block):
            m = min(block, k_total - k)
            if few:
                _cross_of_two(coefficients, k, rows, score)
            else:
                np.dot(coefficients[k : k + m], rows.T, score[:m])
            _keep_lowest(score, square, k, m, best, index)
        for t in range(stop - start):
            label[start + t] = lowest[np.int32(index[t])]
        inertia += add_residuals(
            x[start:stop], weight[start:stop], label[start:stop], centers, d2[start:stop], sum_w, sum_x
        )
        key += _key(label[start:stop], weight[start:stop], first + start, len(centers))
    return inertia, key


@exact_kernel
def _load(x: np.ndarray, start: int, shift: np.ndarray, rows: np.ndarray) -> None:
    """rows <- a tile of x - shift. Past the end the last row is repeated: every product has the same shape."""
    for t in range(LANES):
        s = min(start + t, x.shape[0] - 1)
        for i in range(x.shape[1]):
            rows[t, i] = x[s, i] - shift[i]


@exact_kernel
def _load_across(x: np.ndarray, start: int, shift: np.ndarray, rows: np.ndarray) -> None:
    """The same, transposed."""
    for t in range(LANES):
        s = min(start + t, x.shape[0] - 1)
        for i in range(x.shape[1]):
            rows[i, t] = x[s, i] - shift[i]


@exact_kernel
def _cross_of_two(coefficients: np.ndarray, k: int, rows: np.ndarray, out: np.ndarray) -> None:
    """out <- coefficients[k : k + 2] @ rows. Eight coefficients stay in registers while lanes stream by."""
    for i in range(0, rows.shape[0], 4):
        a0, a1 = coefficients[k, i], coefficients[k, i + 1]
        a2, a3 = coefficients[k, i + 2], coefficients[k, i + 3]
        b0, b1 = coefficients[k + 1, i], coefficients[k + 1, i + 1]
        b2, b3 = coefficients[k + 1, i + 2], coefficients[k + 1, i + 3]
        if i == 0:
            out[:2] = 0
        for t in range(LANES):
            x0, x1, x2, x3 = rows[i, t], rows[i + 1, t], rows[i + 2, t], rows[i + 3, t]
            out[0, t] = out[0, t] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            out[1, t] = out[1, t] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3


@exact_kernel
def _keep_lowest(
    score: np.ndarray, square: np.ndarray, first: int, m: int, best: np.ndarray, index: np.ndarray
) -> None:
    """Compare centres first .. first + m - 1 with the best so far. index : (LANES,), whole numbers in score's dtype:
    lanes of one width.
    """
    for k in range(m):
        add, name = square[first + k], score.dtype.type(first + k)
        for t in range(LANES):
            value = score[k, t] + add
            index[t] = name if value < best[t] else index[t]
            best[t] = value if value < best[t] else best[t]


@kernel
def add_residuals(
    x: np.ndarray,
    weight: np.ndarray,
    label: np.ndarray,
    centers: np.ndarray,
    d2: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> float:
    """Add weights and weight x (x - centre) to the sums of each row's centre; return the weighted sum of d2.

    x : (n, d).  weight : (n,).  label : (n,) int32.  centers, sum_x : (k, d).  sum_w : (k,).  d2 : (n,), written.
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
        d2[t] = square
        total += w * square
    return total


@exact_kernel
def _key(label: np.ndarray, weight: np.ndarray, first: int, k_total: int) -> np.uint64:
    """Sum of hashes of row x k + label: SplitMix64, as in pipeline/keyed.py. [Steele, Lea and Flood 2014]."""
    key = np.uint64(0)
    for t in range(len(label)):
        z = np.uint64((first + t) * k_total + label[t] + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key += (z ^ (z >> np.uint64(31))) if weight[t] > 0 else np.uint64(0)
    return key
