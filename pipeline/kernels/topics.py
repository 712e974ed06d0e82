"""E-step of latent Dirichlet allocation on sparse counts, a document at a time; only stored counts are touched.

Each word of a document has a topic, and each document shares of topics, theta ~ Dirichlet(alpha). Under the mean-field
posterior theta ~ Dirichlet(gamma), so that the coordinate ascent of one document is

    e_k = exp(E log theta_k) = exp(digamma(gamma_k) - digamma(sum gamma))    gamma_k = alpha_k + sum_v x_v phi_vk
    phi_vk = e_k prob[v, k] / sum_j e_j prob[v, j]

It begins at gamma_k = alpha_k + words / K, whatever came before, and ends where the bound would gain less than a
tolerance, so that the result depends on the document and the parameters alone. [Blei, Ng and Jordan 2003, fig. 6; Hoffman,
Blei and Bach 2010]

Where alpha_k < 1 a document has several optima, and from one start their basins change places from pass to pass: the sum
over documents then falls. So its smallest topics are left out one by one, while that raises the bound: where two optima
change places as the better one, they are equally good.

Probabilities and expected counts lie word by word, (v, k), so that a word's topics fill vectors. All in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import xlogy

from pipeline.arrays.dtypes import Array
from pipeline.kernels.arena import Arena
from pipeline.kernels.base import TopicsProblem, TopicsSums
from pipeline.kernels.compiling import exact_kernel, kernel
from pipeline.kernels.counts import log_coefficients, stored
from pipeline.kernels.exponential import at_least_lowest, exp
from pipeline.kernels.softmax import padded
from pipeline.kernels.vectors import fma, put, spread, view, wide, wide_lanes

FLOAT64 = np.dtype(np.float64)
MOST_STEPS = 1000  # of one document: slower ascents than that were not seen
LEAST_WORDS = 1e-2  # of a topic in a document, to be left out
MOST_RATE = 0.99  # at which steps are taken to shrink, at most
# exp(digamma(x + 1/2)) = x (1 + c_1 / x^2 + c_2 / x^4 + ...), from the logarithm's series in Bernoulli numbers.
_SERIES = (
    1 / 24,
    -37 / 5760,
    10313 / 2903040,
    -5509121 / 1393459200,
    2709398569 / 367873228800,
    -499769010050743 / 24103053950976000,
    47655701498228027 / 578473294823424000,
)


def topics_pass(problem: TopicsProblem, x: Any, weight: Array | None, arena: Arena) -> TopicsSums:
    """See `Kernels.topics_pass`."""
    counts = stored(x)
    coefficient = log_coefficients(x)
    (k, v), n = problem.log_prob.shape, len(coefficient)
    by_word = np.exp(problem.log_prob.T, order="C")
    score, shares = np.empty(n), np.empty((n if problem.shares else 0, k))
    sum_theta, sum_log_theta, sum_x = np.zeros(k), np.zeros(k), np.zeros((v, k))
    weights = np.ones(n) if weight is None else weight
    longest = int(np.diff(counts[2]).max(initial=0))
    width = padded(k, 8)
    words = arena.array("words", (max(longest, 1), width), FLOAT64)
    lines = arena.array("lines", (5, width), FLOAT64)
    sums = score, shares, sum_theta, sum_log_theta, sum_x
    entropy, constant, steps = _pass(*counts, weights, problem.alpha, by_word, problem.tol, words, lines, *sums)
    entropy -= float(xlogy(sum_x, by_word).sum())
    constant += float(weights @ coefficient)
    return TopicsSums(score + coefficient, shares, sum_x.T, sum_theta, sum_log_theta, entropy, constant, int(steps))


@exact_kernel
def _exp_digamma(v: Any) -> Any:
    """exp(digamma(v)) of positive numbers; 0 below 1/708. v : a vector.  The relative error is about 1e-14.

    digamma(v) = digamma(v + 8) - sum_i 1 / (v + i), i = 0 … 7, of which the first and the last, the second and the last but
    one, … are taken together: (2 v + 7) / (u + i (7 - i)), u = v (v + 7).
    """
    one, twice = spread(1.0, v), v + v + spread(7.0, v)
    u = v * (v + spread(7.0, v))
    a, b = u * (u + spread(6.0, v)), (u + spread(10.0, v)) * (u + spread(12.0, v))
    below = twice * ((u + u + spread(6.0, v)) / a + (u + u + spread(22.0, v)) / b)
    x = v + spread(7.5, v)
    z = one / (x * x)
    y = spread(_SERIES[6], v)
    y = fma(y, z, spread(_SERIES[5], v))
    y = fma(y, z, spread(_SERIES[4], v))
    y = fma(y, z, spread(_SERIES[3], v))
    y = fma(y, z, spread(_SERIES[2], v))
    y = fma(y, z, spread(_SERIES[1], v))
    y = fma(y, z, spread(_SERIES[0], v))
    y = fma(y, z, one)
    return x * y * exp(at_least_lowest(spread(0.0, v) - below))


@exact_kernel
def _exp_digammas(gamma: np.ndarray, out: np.ndarray) -> None:
    """exp(digamma) of a line of whole vectors."""
    source, target = view(gamma), view(out)
    for k in range(0, gamma.size, wide_lanes(source)):
        put(target, k, _exp_digamma(wide(source, k)))


@kernel
def _digamma(x: float) -> float:
    """Digamma of a positive number."""
    total = 0.0
    while x < 10.0:
        total -= 1.0 / x
        x += 1.0
    z = 1.0 / (x * x)
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z * (1 / 132 - z * (691 / 32760 - z / 12))))))
    return total + math.log(x) - 0.5 / x - series


@kernel
def _spread_words(words: np.ndarray, data: np.ndarray, start: int, e: np.ndarray, new: np.ndarray) -> None:
    """new[k] = sum_v x_v prob[v, k] / sum_j e_j prob[v, j], two words at a time. words : (m, width) probabilities."""
    m, width = words.shape
    for k in range(width):
        new[k] = 0.0
    j = 0
    while j + 2 <= m:
        first, second = 0.0, 0.0
        for k in range(width):
            first += e[k] * words[j, k]
            second += e[k] * words[j + 1, k]
        first, second = np.float64(data[start + j]) / first, np.float64(data[start + j + 1]) / second
        for k in range(width):
            new[k] += first * words[j, k] + second * words[j + 1, k]
        j += 2
    if j < m:
        norm = 0.0
        for k in range(width):
            norm += e[k] * words[j, k]
        norm = np.float64(data[start + j]) / norm
        for k in range(width):
            new[k] += norm * words[j, k]


@kernel
def _ascend(
    words: np.ndarray,
    data: np.ndarray,
    start: int,
    alpha: np.ndarray,
    tol: float,
    gamma: np.ndarray,
    e: np.ndarray,
    new: np.ndarray,
) -> int:
    """Coordinate ascent of one document; returns the steps. gamma : its start, and its end.  e : exp(digamma(gamma)).

    Near the end steps shrink at a rate r, and what is left to gain is about d^2 / 2 / (1 - r), d the length of a step in the
    metric of the bound, where trigamma(g) <= 1 / g + 1 / g^2.
    """
    before = np.inf
    for step in range(MOST_STEPS):
        _exp_digammas(gamma, e)
        _spread_words(words, data, start, e, new)
        square = 0.0
        for k in range(gamma.size):
            now = alpha[k] + e[k] * new[k]
            change = now - gamma[k]
            square += change * change * (1.0 + now) / (now * now)
            gamma[k] = now
        rate = min(math.sqrt(square / before), MOST_RATE) if before > 0 else 0.0
        if 0.5 * square <= tol * (1.0 - rate):
            _exp_digammas(gamma, e)
            return step + 1
        before = square
    _exp_digammas(gamma, e)
    return MOST_STEPS


@kernel
def _bound(
    words: np.ndarray, data: np.ndarray, start: int, alpha: np.ndarray, k_total: int, gamma: np.ndarray, e: np.ndarray
) -> float:
    """The bound of one document, without what depends on alpha or the counts alone. e : exp(digamma(gamma))."""
    sum_gamma = 0.0
    for k in range(k_total):
        sum_gamma += gamma[k]
    base = _digamma(sum_gamma)
    found = -math.lgamma(sum_gamma)
    for k in range(k_total):
        found += math.lgamma(gamma[k]) + (alpha[k] - gamma[k]) * (_digamma(gamma[k]) - base)
    for j in range(words.shape[0]):
        norm = 0.0
        for k in range(k_total):
            norm += e[k] * words[j, k]
        found += np.float64(data[start + j]) * (math.log(norm) - base)
    return found


@kernel
def _without_small(
    words: np.ndarray,
    data: np.ndarray,
    start: int,
    alpha: np.ndarray,
    k_total: int,
    total: float,
    tol: float,
    gamma: np.ndarray,
    lines: np.ndarray,
) -> int:
    """Leave out the topic with the fewest words of a document while that raises its bound; returns the steps."""
    e, new, trial = lines[2], lines[3], lines[4]
    steps, best = 0, np.nan
    while True:
        smallest, fewest = -1, 0.5 * total
        for k in range(k_total):
            count = gamma[k] - alpha[k]
            if alpha[k] < 1.0 and LEAST_WORDS < count < fewest:
                smallest, fewest = k, count
        if smallest < 0:
            return steps
        if np.isnan(best):
            best = _bound(words, data, start, alpha, k_total, gamma, e)
        for k in range(gamma.size):
            trial[k] = alpha[k] + (gamma[k] - alpha[k]) * (total / (total - fewest) if k != smallest else 0.0)
        steps += _ascend(words, data, start, alpha, tol, trial, e, new)
        found = _bound(words, data, start, alpha, k_total, trial, e)
        if not found > best + 1e-10 * abs(best):
            _exp_digammas(gamma, e)
            return steps
        best = found
        for k in range(gamma.size):
            gamma[k] = trial[k]


@kernel
def _pass(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    weight: np.ndarray,
    alpha: np.ndarray,
    prob: np.ndarray,
    tol: float,
    words: np.ndarray,
    lines: np.ndarray,
    score: np.ndarray,
    shares: np.ndarray,
    sum_theta: np.ndarray,
    sum_log_theta: np.ndarray,
    sum_x: np.ndarray,
) -> tuple[float, float, int]:
    """Add the expected statistics of the documents; return entropy, constant and steps.

    data, indices, indptr : CSR counts, none of them 0.  prob : (v, k).  words : (longest, width) and lines : (5, width),
    scratch.  score : (n,), written.  shares : (n, k), written, or (0, k).  The entropy lacks - sum_x log prob.
    """
    n, k_total = weight.size, alpha.size
    width = words.shape[1]
    prior, gamma, e, new = lines[0], lines[1], lines[2], lines[3]
    log_norm = 0.0
    for k in range(width):
        prior[k] = alpha[k] if k < k_total else 1.0
    total_alpha = 0.0
    for k in range(k_total):
        total_alpha += alpha[k]
        log_norm -= math.lgamma(alpha[k])
    log_norm += math.lgamma(total_alpha)
    entropy, constant, steps = 0.0, 0.0, 0
    for t in range(n):
        start, stop = indptr[t], indptr[t + 1]
        total, possible = 0.0, True
        for p in range(start, stop):
            v, most = indices[p], 0.0
            for k in range(k_total):
                words[p - start, k] = prob[v, k]
                most = max(most, prob[v, k])
            for k in range(k_total, width):
                words[p - start, k] = 0.0
            total += np.float64(data[p])
            possible = possible and most > 0.0
        if not possible:
            score[t] = -np.inf
            if shares.shape[0]:
                for k in range(k_total):
                    shares[t, k] = np.nan
            continue
        for k in range(width):
            gamma[k] = prior[k] + (total / k_total if k < k_total else 0.0)
        own = words[: stop - start]
        steps += _ascend(own, data, start, prior, tol, gamma, e, new)
        steps += _without_small(own, data, start, prior, k_total, total, tol, gamma, lines)
        # With these e, phi is optimal for gamma, and the bound is that of (gamma, phi).
        sum_gamma = 0.0
        for k in range(k_total):
            sum_gamma += gamma[k]
        base = _digamma(sum_gamma)
        of_theta = of_q = -math.lgamma(sum_gamma)
        expected = 0.0
        w = weight[t]
        _spread_words(own, data, start, e, new)
        for k in range(k_total):
            log_theta = _digamma(gamma[k]) - base
            count = e[k] * new[k]
            expected += count * log_theta
            log_gamma = math.lgamma(gamma[k])
            of_theta += log_gamma + (alpha[k] - gamma[k]) * log_theta
            of_q += log_gamma + (1.0 - gamma[k]) * log_theta
            share = gamma[k] / sum_gamma
            sum_theta[k] += w * share
            sum_log_theta[k] += w * log_theta
            if shares.shape[0]:
                shares[t, k] = share
        of_words = 0.0
        for p in range(start, stop):
            norm = 0.0
            for k in range(k_total):
                norm += e[k] * words[p - start, k]
            count = np.float64(data[p])
            of_words += count * (math.log(norm) - base)
            scale = w * count / norm
            v = indices[p]
            for k in range(k_total):
                sum_x[v, k] += scale * e[k] * words[p - start, k]
        score[t] = of_words + of_theta + log_norm
        entropy += w * (of_words - expected + of_q)
        constant += w * expected
    return entropy, constant, steps
