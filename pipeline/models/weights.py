"""Weights of a mixture's components: sums of log joints, the mode under a Dirichlet prior, resets."""

from __future__ import annotations

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.softmax import log_sum_exp_rows, padded


def log_sum_exp(log_joint: Array) -> Array:
    """Return the log of the sum of exponentials of each row, (n,); -inf for a row of -inf. log_joint : (n, k) float64."""
    out = np.empty(len(log_joint))
    log_sum_exp_rows(log_joint, np.full(padded(log_joint.shape[1], 8), -np.inf), out)
    return out


def log(weights: Array) -> Array:
    """Return log weights, -inf for the weights of 0 that a start may have."""
    with np.errstate(divide="ignore"):
        return np.log(weights)


def share_with(weights: Array, reset: Array) -> Array:
    """Return weights with 1/K for each component in `reset` (m,), and the others scaled to sum to 1."""
    k = len(weights)
    others = np.delete(np.arange(k), reset)
    shared = np.full(k, 1.0 / k)
    rest = weights[others].sum()
    if rest > 0:
        shared[others] = weights[others] * (len(others) / k / rest)
    return shared


def map_weights(sum_w: Array, concentration: float | Array) -> Array:
    """Return weights at the mode under a Dirichlet prior. sum_w : (k,) soft counts.  concentration >= 1; 1: no prior."""
    counts = sum_w + (concentration - 1.0)
    return counts / counts.sum()


def log_dirichlet(weights: Array, concentration: float | Array) -> float:
    """Return the log density of that Dirichlet, nats, up to a constant. weights : (k,)."""
    if isinstance(concentration, np.ndarray):
        return float(((concentration - 1.0) * np.where(concentration > 1.0, log(weights), 0.0)).sum())
    return 0.0 if concentration == 1.0 else float((concentration - 1.0) * log(weights).sum())
