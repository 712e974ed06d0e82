"""Gaussian E-step and moments with rows in the vector lanes: for few features, where no matrix product pays.

A tile of LANES rows lies transposed, feature by feature, in the first-level caches. Distances, log-sum-exp and
moments are loops over its lanes: a row is read once, and no (rows x components) array leaves the tile.
The mean is subtracted before anything else, so the error does not grow with the distance from the origin.

    log p(x, k) = log_scale_k - |L_k (x - mu_k)|² / 2,   L_k lower triangular, or a diagonal
"""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import exact_kernel, kernel
from pipeline.kernels.exponential import exp_lanes

LANES = 256


@kernel
def gaussian_lanes(
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
    bits: np.ndarray,
) -> float:
    """Add the moments of rows about the means to the sums; return the entropy of their responsibilities, total nats.

    x : (n, d).  weight : (n,).  high, low : (k, d), the means in two parts, so that their rounding does not count.
    factor : (k, d, d) lower triangular, or (k, 1, d) a diagonal.  log_scale : (k,), -inf for a component of weight 0;
    these in the compute dtype.  hard : one-hot responsibilities.  second : whether second moments are wanted.
    log_norm : (n,), written: log p(x), nats.  sum_w : (k,), sum_x : (k, d), sum_xx : as factor, lower triangles;
    these in float64, added to.  bits : (LANES,) integers as wide as x, for scratch.
    """
    n, d = x.shape
    real = x.dtype.type
    diagonal = factor.shape[1] == 1
    rows = np.empty((d, LANES), x.dtype)
    diff = np.zeros((d + 3, LANES), x.dtype)  # three rows of zeros, so that loops over features go by four
    joint = np.empty((high.shape[0], LANES), x.dtype)
    # One allocation each: pieces of one array would be taken to overlap, and no loop over them would be vectorised.
    w = np.empty(LANES, x.dtype)
    peak = np.empty(LANES, x.dtype)
    total = np.empty(LANES, x.dtype)
    a = np.empty(LANES, x.dtype)
    b = np.empty(LANES, x.dtype)
    scale = bits.view(x.dtype)
    entropy = 0.0
    for start in range(0, n, LANES):
        m = min(LANES, n - start)
        for t in range(LANES):  # lanes past the end repeat the last row, with weight 0
            s = start + min(t, m - 1)
            w[t] = weight[s] if t < m else real(0)
            for i in range(d):
                rows[i, t] = x[s, i]
        for k in range(joint.shape[0]):
            _differences(rows, high[k], low[k], diff)
            if diagonal:
                _diagonal_distance(diff, factor[k, 0], a)
            else:
                _triangular_distance(diff, factor[k], a, b)
            for t in range(LANES):
                joint[k, t] = log_scale[k] - real(0.5) * a[t]
        _subtract_peak(joint, peak)
        if hard:
            _one_hot(joint, w, total, a, b, scale, bits)
        else:
            entropy += _softmax(joint, w, total, a, b, scale, bits)
        for t in range(m):
            log_norm[start + t] = np.float64(peak[t]) + np.log(np.float64(total[t]))
        for k in range(joint.shape[0]):
            mass = real(0)
            for t in range(LANES):
                mass += joint[k, t]
            if mass == 0:
                continue
            sum_w[k] += mass
            _differences(rows, high[k], low[k], diff)
            if not second:
                _first_moments(diff, joint[k], sum_x[k])
            elif diagonal:
                _diagonal_moments(diff, joint[k], sum_x[k], sum_xx[k, 0])
            else:
                _triangular_moments(diff, joint[k], a, sum_x[k], sum_xx[k])
    return entropy


@exact_kernel  # reordered, the two parts of the mean would be added up first
def _differences(rows: np.ndarray, high: np.ndarray, low: np.ndarray, diff: np.ndarray) -> None:
    for i in range(rows.shape[0]):
        h, rest = high[i], low[i]
        for t in range(LANES):
            diff[i, t] = (rows[i, t] - h) - rest


@kernel
def _diagonal_distance(diff: np.ndarray, factor: np.ndarray, out: np.ndarray) -> None:
    out[:] = 0
    for i in range(factor.size):
        f = factor[i]
        for t in range(LANES):
            z = f * diff[i, t]
            out[t] += z * z


@kernel
def _triangular_distance(diff: np.ndarray, factor: np.ndarray, out: np.ndarray, z: np.ndarray) -> None:
    out[:] = 0
    for i in range(factor.shape[0]):
        f = factor[i, i]
        for t in range(LANES):
            z[t] = f * diff[i, t]
        j = 0
        while j + 4 <= i:  # four at a time: z is loaded and stored a quarter as often
            f0, f1, f2, f3 = factor[i, j], factor[i, j + 1], factor[i, j + 2], factor[i, j + 3]
            for t in range(LANES):
                z[t] += f0 * diff[j, t] + f1 * diff[j + 1, t] + f2 * diff[j + 2, t] + f3 * diff[j + 3, t]
            j += 4
        while j < i:
            f = factor[i, j]
            for t in range(LANES):
                z[t] += f * diff[j, t]
            j += 1
        for t in range(LANES):
            out[t] += z[t] * z[t]


@kernel
def _subtract_peak(joint: np.ndarray, peak: np.ndarray) -> None:
    peak[:] = joint[0]
    for k in range(1, joint.shape[0]):
        for t in range(LANES):
            peak[t] = max(peak[t], joint[k, t])
    for k in range(joint.shape[0]):
        for t in range(LANES):
            joint[k, t] -= peak[t]


@kernel
def _softmax(
    joint: np.ndarray,
    weight: np.ndarray,
    total: np.ndarray,
    a: np.ndarray,
    gap: np.ndarray,
    scale: np.ndarray,
    bits: np.ndarray,
) -> float:
    """Turn log joint minus peak into weight x responsibility; total <- its sum over components before dividing."""
    real = joint.dtype.type
    floor = real(-87.0) if joint.itemsize == 4 else real(-708.0)
    total[:] = 0
    a[:] = 0
    for k in range(joint.shape[0]):
        row = joint[k]
        for t in range(LANES):
            gap[t] = max(row[t], floor)  # -inf x 0 would be NaN
        exp_lanes(row, scale, bits)
        for t in range(LANES):
            total[t] += row[t]
            a[t] += row[t] * gap[t]
    entropy = 0.0
    for t in range(LANES):
        live = weight[t] > 0
        scale[t] = weight[t] / total[t] if live else real(0)
        if live:  # H = log(total) - sum r gap
            entropy += np.float64(weight[t]) * (np.log(np.float64(total[t])) - np.float64(a[t] / total[t]))
    for k in range(joint.shape[0]):
        for t in range(LANES):
            joint[k, t] = joint[k, t] * scale[t] if scale[t] > 0 else real(0)
    return entropy


@kernel
def _one_hot(
    joint: np.ndarray,
    weight: np.ndarray,
    total: np.ndarray,
    left: np.ndarray,
    e: np.ndarray,
    scale: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Turn log joint minus peak into weight for the first component at the peak; total <- sum of exponentials."""
    real = joint.dtype.type
    total[:] = 0
    left[:] = weight
    for k in range(joint.shape[0]):
        row = joint[k]
        e[:] = row
        exp_lanes(e, scale, bits)
        for t in range(LANES):
            total[t] += e[t]
            taken = left[t] if row[t] == 0 else real(0)
            row[t] = taken
            left[t] -= taken


@kernel
def _first_moments(diff: np.ndarray, resp: np.ndarray, sum_x: np.ndarray) -> None:
    for i in range(sum_x.size):
        first = resp.dtype.type(0)
        for t in range(LANES):
            first += resp[t] * diff[i, t]
        sum_x[i] += first


@kernel
def _diagonal_moments(diff: np.ndarray, resp: np.ndarray, sum_x: np.ndarray, sum_xx: np.ndarray) -> None:
    for i in range(sum_x.size):
        first, square = resp.dtype.type(0), resp.dtype.type(0)
        for t in range(LANES):
            part = resp[t] * diff[i, t]
            first += part
            square += part * diff[i, t]
        sum_x[i] += first
        sum_xx[i] += square


@kernel
def _triangular_moments(
    diff: np.ndarray, resp: np.ndarray, part: np.ndarray, sum_x: np.ndarray, sum_xx: np.ndarray
) -> None:
    zero = resp.dtype.type(0)
    d = sum_x.size
    for i in range(d):
        first = zero
        for t in range(LANES):
            part[t] = resp[t] * diff[i, t]
            first += part[t]
        sum_x[i] += first
        for j in range(0, i + 1, 4):  # four at a time: `part` is loaded a quarter as often
            s0, s1, s2, s3 = zero, zero, zero, zero
            for t in range(LANES):
                p = part[t]
                s0 += p * diff[j, t]
                s1 += p * diff[j + 1, t]
                s2 += p * diff[j + 2, t]
                s3 += p * diff[j + 3, t]
            sums = (s0, s1, s2, s3)
            for c in range(min(4, i + 1 - j)):
                sum_xx[i, j + c] += sums[c]
