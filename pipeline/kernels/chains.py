"""Forward-backward and Viterbi for chains of hidden states, a unit at a time.

    alpha_t(j) = b_t(j) sum_i alpha_t-1(i) a_ij / c_t        c_t = p(x_t | x_1 … x_t-1), so that alpha_t sums to 1
    beta_t(i) = sum_j a_ij b_t+1(j) beta_t+1(j) / c_t+1      p(z_t = i | x) = alpha_t(i) beta_t(i)

b_t(j) is the density of row t in state j, divided by that of the best state. Where that underflows (c_t is 0, or the
probabilities of a row do not sum to 1), the unit is done again with logarithms. [Rabiner 1989, eq. 19 to 40; Viterbi 1967]
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.arena import Arena
from pipeline.kernels.base import ChainSums
from pipeline.kernels.compiling import exact_kernel

FLOAT64 = np.dtype(np.float64)
LEAST = 1e-200  # a c_t below may have lost digits
APART = 1e-9  # of the sum of a row's probabilities from 1


def chain_pass(
    log_density: Array, starts: Array, weight: Array, initial: Array, transitions: Array, arena: Arena
) -> ChainSums:
    """See `Kernels.chain_pass`."""
    n, k = log_density.shape
    longest = int(np.diff(starts, append=n).max(initial=0))
    density, alpha, beta = (arena.array(f"chain {i}", (longest, k), FLOAT64) for i in range(3))
    lines = arena.array("chain lines", (3, k), FLOAT64)
    log_norm, sum_initial, joint = np.empty(n), np.zeros(k), np.zeros((k, k))
    sum_transitions = np.zeros((k, k))
    with np.errstate(divide="ignore"):
        logs = np.log(initial), np.log(transitions)
    parameters = initial, np.ascontiguousarray(transitions), logs[0], logs[1]
    _pass(
        log_density,
        starts,
        weight,
        *parameters,
        density,
        alpha,
        beta,
        lines,
        log_norm,
        sum_initial,
        joint,
        sum_transitions,
    )
    return ChainSums(log_norm, log_density, sum_initial, sum_transitions + joint * transitions)


def best_path(log_density: Array, starts: Array, initial: Array, transitions: Array) -> Array:
    """See `Kernels.best_path`."""
    n, k = log_density.shape
    path, back = np.empty(n, np.int32), np.empty((int(np.diff(starts, append=n).max(initial=0)), k), np.int32)
    with np.errstate(divide="ignore"):
        _viterbi(log_density, starts, np.log(initial), np.log(transitions), back, np.empty((2, k)), path)
    return path


@exact_kernel
def _pass(
    log_density: np.ndarray,
    starts: np.ndarray,
    weight: np.ndarray,
    initial: np.ndarray,
    transitions: np.ndarray,
    log_initial: np.ndarray,
    log_transitions: np.ndarray,
    density: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    lines: np.ndarray,
    log_norm: np.ndarray,
    sum_initial: np.ndarray,
    joint: np.ndarray,
    sum_transitions: np.ndarray,
) -> None:
    """Replace log densities by the states' probabilities, and add the expected first states and transitions.

    log_density : (n, k).  starts : (n_units,).  weight : (n_units,).  density, alpha, beta : (longest, k), scratch.
    log_norm : (n,), written.  joint : (k, k), the expected transitions before the product with the probabilities.
    """
    n, k_total = log_density.shape
    for u in range(starts.size):
        first = starts[u]
        last = starts[u + 1] if u + 1 < starts.size else n
        rows, norm, w = log_density[first:last], log_norm[first:last], weight[u]
        if _scaled(rows, w, initial, transitions, density, alpha, beta, lines, norm, joint) or _by_logs(
            rows, w, log_initial, log_transitions, alpha, beta, lines, norm, sum_transitions
        ):
            for k in range(k_total):
                sum_initial[k] += w * rows[0, k]


@exact_kernel
def _scaled(
    rows: np.ndarray,
    w: float,
    initial: np.ndarray,
    transitions: np.ndarray,
    density: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    lines: np.ndarray,
    norm: np.ndarray,
    joint: np.ndarray,
) -> bool:
    """One unit; False, with nothing changed but `norm`, where logarithms are needed. rows : (m, k), in and out."""
    m, k_total = rows.shape
    for t in range(m):
        peak = rows[t, 0]
        for k in range(1, k_total):
            peak = max(peak, rows[t, k])
        if not peak > -np.inf:
            return False
        for k in range(k_total):
            density[t, k] = math.exp(rows[t, k] - peak)
            lines[0, k] = initial[k] if t == 0 else 0.0
        if t > 0:
            for i in range(k_total):
                share = alpha[t - 1, i]
                for k in range(k_total):
                    lines[0, k] += share * transitions[i, k]
        c = 0.0
        for k in range(k_total):
            alpha[t, k] = lines[0, k] * density[t, k]
            c += alpha[t, k]
        if not c > LEAST:
            return False
        for k in range(k_total):
            alpha[t, k] /= c
            density[t, k] /= c
        norm[t] = math.log(c) + peak
    for k in range(k_total):
        beta[m - 1, k] = 1.0
    for t in range(m - 2, -1, -1):
        total = 0.0
        for k in range(k_total):
            density[t + 1, k] *= beta[t + 1, k]
        for i in range(k_total):
            found = 0.0
            for k in range(k_total):
                found += transitions[i, k] * density[t + 1, k]
            beta[t, i] = found
            total += alpha[t, i] * found
        if not abs(total - 1.0) < APART:
            return False
    for t in range(m):
        for k in range(k_total):
            rows[t, k] = alpha[t, k] * beta[t, k]
    for t in range(m - 1):
        for i in range(k_total):
            share = w * alpha[t, i]
            for k in range(k_total):
                joint[i, k] += share * density[t + 1, k]
    return True


@exact_kernel
def _log_sum(line: np.ndarray) -> float:
    peak = line[0]
    for k in range(1, line.size):
        peak = max(peak, line[k])
    if not peak > -np.inf:
        return -np.inf
    total = 0.0
    for k in range(line.size):
        total += math.exp(line[k] - peak)
    return peak + math.log(total)


@exact_kernel
def _by_logs(
    rows: np.ndarray,
    w: float,
    log_initial: np.ndarray,
    log_transitions: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    lines: np.ndarray,
    norm: np.ndarray,
    sum_transitions: np.ndarray,
) -> bool:
    """One unit with logarithms; False, with zeros for its rows and -inf from the first impossible one on, if no path can be."""
    m, k_total = rows.shape
    before = 0.0
    for t in range(m):
        for j in range(k_total):
            if t == 0:
                alpha[t, j] = log_initial[j] + rows[t, j]
            else:
                for i in range(k_total):
                    lines[1, i] = alpha[t - 1, i] + log_transitions[i, j]
                alpha[t, j] = _log_sum(lines[1]) + rows[t, j]
        total = _log_sum(alpha[t])
        norm[t] = total - before
        if not total > -np.inf:
            for s in range(t, m):
                norm[s] = -np.inf
            for s in range(m):
                for k in range(k_total):
                    rows[s, k] = 0.0
            return False
        before = total
    for k in range(k_total):
        beta[m - 1, k] = 0.0
    for t in range(m - 2, -1, -1):
        for i in range(k_total):
            for j in range(k_total):
                lines[1, j] = log_transitions[i, j] + rows[t + 1, j] + beta[t + 1, j]
            beta[t, i] = _log_sum(lines[1])
            if w > 0:
                for j in range(k_total):
                    sum_transitions[i, j] += w * math.exp(alpha[t, i] + lines[1, j] - before)
    for t in range(m):
        for k in range(k_total):
            rows[t, k] = math.exp(alpha[t, k] + beta[t, k] - before)
    return True


@exact_kernel
def _viterbi(
    log_density: np.ndarray,
    starts: np.ndarray,
    log_initial: np.ndarray,
    log_transitions: np.ndarray,
    back: np.ndarray,
    lines: np.ndarray,
    path: np.ndarray,
) -> None:
    """The most probable states of each unit; of equal ones the lowest, from the last row backwards."""
    n, k_total = log_density.shape
    for u in range(starts.size):
        first = starts[u]
        last = starts[u + 1] if u + 1 < starts.size else n
        for k in range(k_total):
            lines[0, k] = log_initial[k] + log_density[first, k]
        for t in range(first + 1, last):
            for j in range(k_total):
                best, where = -np.inf, 0
                for i in range(k_total):
                    found = lines[0, i] + log_transitions[i, j]
                    if found > best:
                        best, where = found, i
                back[t - first, j] = where
                lines[1, j] = best + log_density[t, j]
            for j in range(k_total):
                lines[0, j] = lines[1, j]
        state = 0
        for k in range(1, k_total):
            if lines[0, k] > lines[0, state]:
                state = k
        for t in range(last - 1, first - 1, -1):
            path[t] = state
            if t > first:
                state = back[t - first, state]
