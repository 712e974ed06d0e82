"""Log-sum-exp, responsibilities and entropy of a tile, fused: each row of log joint densities is read once, in cache."""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import kernel
from pipeline.kernels.exponential import exp_lanes


@kernel
def softmax_rows(joint: np.ndarray, weight: np.ndarray, hard: bool, log_norm: np.ndarray, bits: np.ndarray) -> float:
    """Turn log joint densities into weight x responsibility, in place; return the total weighted entropy, nats.

    joint : (n, k).  weight : (n,), in joint's dtype.  hard : all weight to the first of the largest.
    log_norm : (n,) float64, written: log of the sum.  bits : (k,) integers as wide as joint, for scratch.
    """
    n, k_total = joint.shape
    real = joint.dtype.type
    floor = real(-87.0) if joint.itemsize == 4 else real(-708.0)
    scale = bits.view(joint.dtype)
    gap = np.empty(k_total, joint.dtype)
    e = np.empty(k_total, joint.dtype)
    entropy = 0.0
    for t in range(n):
        row = joint[t]
        peak = row[0]
        for k in range(1, k_total):
            peak = max(peak, row[k])
        for k in range(k_total):
            e[k] = row[k] - peak
            gap[k] = max(e[k], floor)  # -inf x 0 would be NaN
        exp_lanes(e, scale, bits)
        total, cross = real(0), real(0)
        for k in range(k_total):
            total += e[k]
            cross += e[k] * gap[k]
        log_total = np.log(np.float64(total))
        log_norm[t] = np.float64(peak) + log_total
        w = weight[t]
        if not w > 0:
            row[:] = real(0)
        elif hard:
            first = 0
            while first < k_total - 1 and row[first] != peak:
                first += 1
            row[:] = real(0)
            row[first] = w
        else:
            share = w / total
            for k in range(k_total):
                row[k] = e[k] * share
            entropy += np.float64(w) * (log_total - np.float64(cross / total))
    return entropy
