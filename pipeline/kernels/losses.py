"""What log p(x) of each row loses where a mixture has fewer components, added up in one loop over a tile of log joint densities."""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import TAIL


@exact_kernel
def add_removals(
    log_joint: np.ndarray,
    log_noise: float,
    weight: np.ndarray,
    lost: np.ndarray,
    label: np.ndarray,
    second: np.ndarray,
) -> None:
    """Add weight times -log(1 - r) of each component to what its removal loses, and find the two best of each row.

    1 - r of the best is the sum of all others, so that no digit is lost where r is near 1. Where r is below e^-TAIL, half a unit of rounding,
    nothing is added.

    Parameters
    ----------
    log_joint : array, shape (n, k), float64
        Overwritten.
    log_noise : float
        Log joint density of noise, -inf without.
    weight : array, shape (n,), float64
    lost : array, shape (k,), float64
        Added to, nats.
    label, second : arrays, shape (n,), int32
        Written: the best and the next component of each row; of equal ones the first.
    """
    nothing = np.exp(-TAIL)
    for t in range(log_joint.shape[0]):
        row, best, near = log_joint[t], 0, 0
        for k in range(1, row.size):
            if row[k] > row[best]:
                best = k
        top, row[best] = row[best], -np.inf
        for k in range(row.size):
            if row[k] > row[near]:
                near = k
        label[t], second[t] = best, near
        if not weight[t] > 0:
            continue
        next_best = max(row[near], log_noise)
        if next_best == -np.inf:
            lost[best] = np.inf
            continue
        mass = np.exp(log_noise - next_best)
        for k in range(row.size):
            row[k] = np.exp(row[k] - next_best) if row[k] > next_best - TAIL else 0.0
            mass += row[k]
        rest = next_best + np.log(mass)
        log_norm = max(top, rest) + np.log1p(np.exp(-abs(top - rest)))
        lost[best] += weight[t] * (log_norm - rest)
        share = np.exp(next_best - log_norm)
        for k in range(row.size):
            if row[k] * share > nothing:
                lost[k] -= weight[t] * np.log1p(-row[k] * share)


@exact_kernel
def add_merges(
    log_joint: np.ndarray, log_norm: np.ndarray, weight: np.ndarray, pairs: np.ndarray, lost: np.ndarray
) -> None:
    """Add weight times what a row loses where one component stands for two, the others unchanged.

    Parameters
    ----------
    log_joint : array, shape (n, k + p), float64
        Log joint densities of k components, then of those that stand for the pairs.
    log_norm : array, shape (n,), float64
        Of the k components.
    weight : array, shape (n,), float64
    pairs : array, shape (p, 2), int
    lost : array, shape (p,), float64
        Added to, nats.
    """
    k = log_joint.shape[1] - len(pairs)
    for t in range(log_joint.shape[0]):
        least = log_norm[t] - TAIL
        for p in range(len(pairs)):
            one, other, both = log_joint[t, pairs[p, 0]], log_joint[t, pairs[p, 1]], log_joint[t, k + p]
            if max(one, other, both) > least:
                gone = np.exp(one - log_norm[t]) + np.exp(other - log_norm[t])
                # Without the pair its rows may have nothing left but rounding, which may be negative.
                rest = max(1.0 - gone, np.finfo(np.float64).tiny)
                lost[p] -= weight[t] * np.log(rest + np.exp(min(both - log_norm[t], 700.0)))
