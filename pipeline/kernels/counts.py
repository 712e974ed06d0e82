"""E-step of a multinomial mixture on sparse counts, a tile of documents at a time; only stored counts are touched.

    log p(x, k) = log_weight_k + log n! - sum_v log x_v! + sum_v x_v log_prob[v, k]

Probabilities and expected counts lie word by word, (v, k), so that a word's components are contiguous and fill vectors.
All in float64: log-densities of long documents are thousands of nats. [Nigam et al. 2000]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from pipeline.arrays.dtypes import Array
from pipeline.kernels.base import CountsProblem, CountsSums
from pipeline.kernels.compiling import kernel
from pipeline.kernels.softmax import padded, softmax_rows

TILE = 64  # documents; their log joint densities stay in the first-level cache
LOG_FACTORIAL = gammaln(np.arange(1024) + 1.0)  # of small counts, as nearly all are: a look-up in place of lgamma


def counts_pass(problem: CountsProblem, x: Any, weight: Array | None) -> CountsSums:
    """See `Kernels.counts_pass`."""
    counts = stored(x)
    coefficient = _coefficients_of(*counts)
    (k, v), n = problem.log_prob.shape, len(coefficient)
    log_norm, sum_w, sum_x = np.empty(n), np.zeros(k), np.zeros((v, k))
    weights = np.ones(n) if weight is None else weight
    by_word = np.ascontiguousarray(problem.log_prob.T)
    entropy = _pass(
        *counts,
        weights,
        coefficient,
        problem.log_weights,
        by_word,
        problem.hard,
        problem.least,
        log_norm,
        sum_w,
        sum_x,
    )
    return CountsSums(log_norm, sum_w, sum_x.T, entropy, float(weights @ coefficient))


def counts_log_joint(problem: CountsProblem, x: Any) -> Array:
    """See `Kernels.counts_log_joint`."""
    counts = stored(x)
    out = np.empty((x.shape[0], len(problem.log_weights)))
    by_word = np.ascontiguousarray(problem.log_prob.T)
    _log_joint(*counts, _coefficients_of(*counts), problem.log_weights, by_word, out)
    return out


def log_coefficients(x: Any) -> Array:
    """(n,) log multinomial coefficient of each row. x : (n, v) counts, CSR or dense."""
    return _coefficients_of(*stored(x))


def stored(x: Any) -> tuple[Array, Array, Array]:
    """data, indices and indptr of counts in CSR form, without stored zeros: 0 log 0 is 0."""
    x = sp.csr_array(x)
    if not x.data.all():
        x = x.copy()
        x.eliminate_zeros()
    return x.data, x.indices, x.indptr


def _coefficients_of(data: Array, indices: Array, indptr: Array) -> Array:
    out = np.empty(len(indptr) - 1)
    _log_coefficients(data, indptr, LOG_FACTORIAL, out)
    return out


@kernel
def _log_coefficients(data: np.ndarray, indptr: np.ndarray, log_factorial: np.ndarray, out: np.ndarray) -> None:
    """Log multinomial coefficient of each row. data, indptr : of a CSR matrix.  out : (n,), written."""
    for t in range(out.size):
        total, logs = 0.0, 0.0
        for p in range(indptr[t], indptr[t + 1]):
            count = np.float64(data[p])
            small = int(count)
            total += count
            if small == count and small < log_factorial.size:
                logs += log_factorial[small]
            else:
                logs += math.lgamma(count + 1.0)
        out[t] = math.lgamma(total + 1.0) - logs


@kernel
def _log_joint(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    constant: np.ndarray,
    log_weights: np.ndarray,
    log_prob: np.ndarray,
    out: np.ndarray,
) -> None:
    """Log joint densities. data, indices, indptr : CSR counts (n, v), none of them 0.  constant : (n,), added.
    log_weights : (k,).  log_prob : (v, k), C-contiguous.  out : (n, k or more), C-contiguous, written.
    """
    k_total = log_weights.size
    for t in range(out.shape[0]):
        start, stop = indptr[t], indptr[t + 1]
        for k in range(k_total):
            out[t, k] = log_weights[k] + constant[t]
        # Four words at a time: the sums are loaded and stored a quarter as often.
        p = start
        while p + 4 <= stop:
            v0, v1, v2, v3 = indices[p], indices[p + 1], indices[p + 2], indices[p + 3]
            c0, c1 = np.float64(data[p]), np.float64(data[p + 1])
            c2, c3 = np.float64(data[p + 2]), np.float64(data[p + 3])
            for k in range(k_total):
                out[t, k] += c0 * log_prob[v0, k] + c1 * log_prob[v1, k] + (c2 * log_prob[v2, k] + c3 * log_prob[v3, k])
            p += 4
        while p < stop:
            v0, c0 = indices[p], np.float64(data[p])
            for k in range(k_total):
                out[t, k] += c0 * log_prob[v0, k]
            p += 1


@kernel
def _pass(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    weight: np.ndarray,
    constant: np.ndarray,
    log_weights: np.ndarray,
    log_prob: np.ndarray,
    hard: bool,
    least: float,
    log_norm: np.ndarray,
    sum_w: np.ndarray,
    sum_x: np.ndarray,
) -> float:
    """Add soft counts and expected counts of the documents; return the total weighted entropy, nats.

    data, indices, indptr, constant, log_weights, log_prob : as for _log_joint.  weight : (n,) float64.
    hard : one-hot responsibilities.  least : weight x responsibility below this may be left out of sum_x.
    log_norm : (n,), written; -inf for a document that no component can produce, which adds nothing.
    sum_w : (k,) and sum_x : (v, k), float64, added to.
    """
    n, k_total = weight.size, sum_w.size
    tile = np.empty((TILE, padded(k_total, 8)))
    w, possible = np.empty(TILE), np.empty(TILE, np.bool_)
    chosen = np.empty(k_total, np.int64)
    entropy = 0.0
    for start in range(0, n, TILE):
        stop = min(start + TILE, n)
        joint = tile[: stop - start]  # whole lines: contiguous, so that loops over k become vectors
        ends = indptr[start : stop + 1]
        _log_joint(data, indices, ends, constant[start:stop], log_weights, log_prob, joint)
        for t in range(stop - start):
            possible[t] = joint[t, :k_total].max() > -np.inf
            w[t] = weight[start + t] if possible[t] else 0.0
            if not possible[t]:
                joint[t] = 0.0  # -inf minus -inf would be NaN
        entropy += softmax_rows(joint, k_total, w[: stop - start], hard, log_norm[start:stop])
        for t in range(stop - start):
            if not possible[t]:
                log_norm[start + t] = -np.inf
            for k in range(k_total):
                sum_w[k] += joint[t, k]
            _add_expected(data, indices, ends[t], ends[t + 1], joint[t], least, chosen, sum_x)
    return entropy


@kernel
def _add_expected(
    data: np.ndarray,
    indices: np.ndarray,
    start: int,
    stop: int,
    resp: np.ndarray,
    least: float,
    chosen: np.ndarray,
    sum_x: np.ndarray,
) -> None:
    """sum_x[v] += count x resp for one document.

    Most documents belong to few components. Below a quarter of all, adding to the few is faster than to all in vectors.
    """
    n_chosen, k_total = 0, sum_x.shape[1]
    for k in range(k_total):
        if resp[k] > least:
            chosen[n_chosen] = k
            n_chosen += 1
    scattered = 4 * n_chosen < k_total
    for p in range(start, stop):
        v, count = indices[p], np.float64(data[p])
        if scattered:
            for c in range(n_chosen):
                k = chosen[c]
                sum_x[v, k] += count * resp[k]
        else:
            for k in range(k_total):
                sum_x[v, k] += count * resp[k]
