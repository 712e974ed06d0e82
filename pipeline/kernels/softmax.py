"""Log-sum-exp, responsibilities and entropy of a tile in one loop, while each row of log joint densities is in cache."""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import at_least_lowest, exp
from pipeline.kernels.vectors import WIDE_BYTES, fma, highest, put, spread, total, view, where_less, wide, wide_lanes


@exact_kernel
def padded(k: int, itemsize: int) -> int:
    """k, rounded up to whole vectors: the columns of an array whose rows are read in vectors. itemsize : bytes."""
    lanes = WIDE_BYTES // itemsize
    return -(-k // lanes) * lanes


@exact_kernel
def softmax_rows(joint: np.ndarray, k_total: int, weight: np.ndarray, hard: bool, log_norm: np.ndarray) -> float:
    """Replace log joint densities by weight x responsibility.

    Parameters
    ----------
    joint : array, shape (n, padded(k)), float32 or float64
        Log joint densities in its first k_total columns; the others become 0.
    k_total : int
    weight : array, shape (n,), float64
    hard : bool
        Whether all weight goes to the first of the largest.
    log_norm : array, shape (n,), float64
        Written: log of the sum of exponentials, nats.

    Returns
    -------
    float
        Weighted entropy of the responsibilities, total nats.
    """
    rows, step = view(joint), wide_lanes(joint)
    entropy = 0.0
    for t in range(joint.shape[0]):
        for k in range(k_total, joint.shape[1]):
            joint[t, k] = -np.inf
        top = wide(rows, (t, 0))
        zero = spread(0.0, top)
        for k in range(step, joint.shape[1], step):
            v = wide(rows, (t, k))
            top = where_less(top, v, v, top)
        peak = highest(top)
        w = weight[t]
        if hard and w > 0:
            first = 0
            while first < k_total - 1 and joint[t, first] != peak:
                first += 1
        top = spread(peak, top)
        mass, cross = zero, zero
        for k in range(0, joint.shape[1], step):
            gap = at_least_lowest(wide(rows, (t, k)) - top)
            e = exp(gap)
            mass = mass + e
            cross = fma(e, gap, cross)
            put(rows, (t, k), e)
        sum_e, sum_cross = np.float64(total(mass)), np.float64(total(cross))
        log_sum = np.log(sum_e)
        log_norm[t] = np.float64(peak) + log_sum
        if not w > 0:
            joint[t] = 0
        elif hard:
            joint[t] = 0
            joint[t, first] = w
        else:
            share = spread(w / sum_e, top)
            for k in range(0, joint.shape[1], step):
                put(rows, (t, k), wide(rows, (t, k)) * share)
            entropy += w * (log_sum - sum_cross / sum_e)
    return entropy


@exact_kernel
def log_sum_exp_rows(joint: np.ndarray, line: np.ndarray, out: np.ndarray) -> None:
    """Log of the sum of exponentials of each row. joint : (n, k).  line : (padded(k),), -inf, scratch.  out : (n,)."""
    vectors, step = view(line), wide_lanes(line)
    for t in range(joint.shape[0]):
        peak = joint[t, 0]
        for k in range(joint.shape[1]):
            line[k] = joint[t, k]
            peak = max(peak, line[k])
        if peak == -np.inf:
            out[t] = peak
            continue
        top = spread(peak, wide(vectors, 0))
        mass = spread(0.0, top)
        for k in range(0, line.size, step):
            mass = mass + exp(at_least_lowest(wide(vectors, k) - top))
        out[t] = peak + np.log(total(mass))
