"""Densities and moments of chosen pairs of a row and a Gaussian component, for passes that skip the others (pruned.py).

Pairs are sorted by component: those of component c are rows[start[c] : start[c + 1]]. Eight rows are gathered at a time,
the component's mean is subtracted, and vectors run along the features: no row is transposed, and of a triangular factor
only the blocks that are not 0 are read.

Shapes: n rows, d features, k components, p pairs; L lanes of a narrow vector, e = d rounded up to whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.vectors import (
    NARROW_BYTES,
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
)

GROUP = 8  # rows at a time
MOST_ROWS = 256  # of one component whose moments are summed in the compute dtype before they are added in float64


def lanes(dtype: np.dtype[Any]) -> int:
    """Numbers in a narrow vector."""
    return NARROW_BYTES // dtype.itemsize


def whole_vectors(d: int, dtype: np.dtype[Any]) -> int:
    """d, rounded up to whole vectors, and to whole groups of rows of a second moment."""
    step = max(lanes(dtype), GROUP)
    return -(-d // step) * step


def packed_blocks(factors: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Upper triangles (k, d, d) in blocks of L columns, one line of L after the other, and how many lines each block has."""
    k, d = factors.shape[:2]
    step = lanes(dtype)
    first = np.arange(0, d, step)
    stops = np.minimum(d, first + step)  # a block ends at the diagonal
    ends = np.cumsum(stops * step)
    blocks = np.zeros((k, ends[-1]), dtype)
    with np.errstate(over="ignore"):
        for at, stop, end in zip(first, stops, ends, strict=True):
            block = blocks[:, end - stop * step : end].reshape(k, stop, step)
            block[:, :, : d - at] = factors[:, :stop, at : at + step]
    return blocks, stops


def whole_rows(rows: Array, out: Array) -> Array:
    """Rows (n, d) in out (n, e), and zeros behind them: what is read in whole vectors."""
    d = rows.shape[1]
    out[:, :d] = rows
    out[:, d:] = 0
    return out


@exact_kernel
def _subtract(rows: Any, row: Any, high: Any, low: Any, c: int, diff: Any, line: int) -> None:
    """diff[line] <- rows[row] - mean c, the mean in two parts. low : (0, e) for no second part. Views."""
    for at in range(0, columns(rows), narrow_lanes(rows)):
        t = narrow(rows, (row, at)) - narrow(high, (c, at))
        put(diff, (line, at), t - narrow(low, (c, at)) if lines(low) else t)


@exact_kernel
def pair_distances(
    x: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    chosen: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    factor: np.ndarray,
    stops: np.ndarray,
    diff: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write |F_cᵀ (x - mean c)|² of pairs: squared Mahalanobis distances, if F is a factor of the precision.

    Parameters
    ----------
    x : array, shape (n, e), float32 or float64
        Zeros beyond d, as in high and low. Its dtype is that of high, low, factor and diff.
    rows : array, shape (p,), int32
    start : array, shape (k + 1,), int64
    chosen : array, int64
        The components whose pairs are computed.
    high, low : arrays, shape (k, e)
        The means in two parts; low may be (0, e).
    factor, stops : arrays, shapes (k, m) and (blocks,)
        From `packed_blocks`.
    diff : array, shape (GROUP, e), scratch
    out : array, shape (p,), float64
    """
    v, f, every, upper, lower = view(diff), view(factor), view(x), view(high), view(low)
    step = narrow_lanes(v)
    for c in chosen:
        for p in range(start[c], start[c + 1], GROUP):
            last = start[c + 1] - 1
            for r in range(GROUP):
                _subtract(every, np.int64(rows[min(p + r, last)]), upper, lower, c, v, r)
            zero = spread(0.0, narrow(f, (c, 0)))
            s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
            at = 0
            for stop in stops:
                z0, z1, z2, z3, z4, z5, z6, z7 = zero, zero, zero, zero, zero, zero, zero, zero
                for j in range(stop):
                    line = narrow(f, (c, at))
                    at += step
                    z0 = fma(element(v, (0, j), line), line, z0)
                    z1 = fma(element(v, (1, j), line), line, z1)
                    z2 = fma(element(v, (2, j), line), line, z2)
                    z3 = fma(element(v, (3, j), line), line, z3)
                    z4 = fma(element(v, (4, j), line), line, z4)
                    z5 = fma(element(v, (5, j), line), line, z5)
                    z6 = fma(element(v, (6, j), line), line, z6)
                    z7 = fma(element(v, (7, j), line), line, z7)
                s0, s1, s2, s3 = fma(z0, z0, s0), fma(z1, z1, s1), fma(z2, z2, s2), fma(z3, z3, s3)
                s4, s5, s6, s7 = fma(z4, z4, s4), fma(z5, z5, s5), fma(z6, z6, s6), fma(z7, z7, s7)
            out[p] = total(s0)
            if p + 7 <= last:
                out[p + 1], out[p + 2], out[p + 3] = total(s1), total(s2), total(s3)
                out[p + 4], out[p + 5], out[p + 6], out[p + 7] = total(s4), total(s5), total(s6), total(s7)
                continue
            for r, s in enumerate((s1, s2, s3, s4, s5, s6, s7)):
                if p + 1 + r <= last:
                    out[p + 1 + r] = total(s)


@exact_kernel
def pair_moments(
    x: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    share: np.ndarray,
    chosen: np.ndarray,
    d: int,
    high: np.ndarray,
    low: np.ndarray,
    diff: np.ndarray,
    product: np.ndarray,
    part: np.ndarray,
    sum_x: np.ndarray,
    sum_xx: np.ndarray,
) -> None:
    """Add first and second moments of pairs about the components' means.

    Parameters
    ----------
    share : array, shape (p,), float64
        What each pair's row counts; pairs with 0 are skipped.
    d : int
        Features.
    diff, product : arrays, shape (MOST_ROWS, e), scratch
    part : array, shape (GROUP, L), scratch
    sum_x : array, shape (k, e), float64
        Added to, as sum_xx.
    sum_xx : array, shape (k, e, e), float64
        Of each row only the vectors up to the diagonal are written.
    The others as of `pair_distances`.
    """
    v, w, q = view(diff), view(product), view(part)
    every, upper, lower = view(x), view(high), view(low)
    step = narrow_lanes(v)
    for c in chosen:
        p, end = start[c], start[c + 1]
        while p < end:
            m = 0
            while p < end and m < MOST_ROWS:
                if share[p] > 0:
                    _subtract(every, np.int64(rows[p]), upper, lower, c, v, m)
                    for at in range(0, columns(v), step):
                        t = narrow(v, (m, at))
                        put(w, (m, at), t * spread(share[p], t))
                    m += 1
                p += 1
            if m == 0:
                continue
            zero = spread(0.0, narrow(v, (0, 0)))
            for block in range(0, d, step):
                s0 = zero
                for t in range(m):
                    s0 = s0 + narrow(w, (t, block))
                put(q, (0, 0), s0)
                for j in range(step):
                    sum_x[c, block + j] += part[0, j]
            for i in range(0, d, GROUP):
                for block in range(0, i + GROUP, step):
                    a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
                    for t in range(m):
                        line = narrow(v, (t, block))
                        a0 = fma(element(w, (t, i), line), line, a0)
                        a1 = fma(element(w, (t, i + 1), line), line, a1)
                        a2 = fma(element(w, (t, i + 2), line), line, a2)
                        a3 = fma(element(w, (t, i + 3), line), line, a3)
                        a4 = fma(element(w, (t, i + 4), line), line, a4)
                        a5 = fma(element(w, (t, i + 5), line), line, a5)
                        a6 = fma(element(w, (t, i + 6), line), line, a6)
                        a7 = fma(element(w, (t, i + 7), line), line, a7)
                    put(q, (0, 0), a0)
                    put(q, (1, 0), a1)
                    put(q, (2, 0), a2)
                    put(q, (3, 0), a3)
                    put(q, (4, 0), a4)
                    put(q, (5, 0), a5)
                    put(q, (6, 0), a6)
                    put(q, (7, 0), a7)
                    for r in range(GROUP):
                        for j in range(step):
                            sum_xx[c, i + r, block + j] += part[r, j]
