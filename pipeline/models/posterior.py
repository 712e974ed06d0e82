"""From log joint densities to responsibilities, in the log domain.

soft: r_nk = exp(log p(x_n, k) - log p(x_n)); hard: 1 for the largest, ties to the lowest component.
[Bishop 2006, eq. 9.23]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.models.stats import Array


class Posterior(NamedTuple):
    """Responsibilities of a tile. resp : (n, k).  log_norm, entropy : (n,) nats per row."""

    resp: Array
    log_norm: Array
    entropy: Array

    def without(self, absent: Array) -> Posterior:
        """The same, in which absent rows are 0: even 0 x -inf is then 0. absent : (n,) bool."""
        if not absent.any():
            return self
        return Posterior(*(np.where(absent.reshape(-1, *[1] * (a.ndim - 1)), 0.0, a) for a in self))


def soft(log_joint: Array) -> Posterior:
    """Log-sum-exp over components. log_joint : (n, k); a row of -inf gives log_norm -inf."""
    peak = log_joint.max(axis=1)
    # A row that no component explains has peak -inf; 0 in its place keeps the arithmetic free of NaN.
    gap = log_joint - np.where(np.isneginf(peak), 0.0, peak)[:, None]
    resp = np.exp(gap)
    total = resp.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        resp /= total[:, None]
        log_total = np.log(total)
    # H = -sum r log r = log(total) - sum r * gap; -inf * 0 is 0 here, and below -800 exp() is 0 anyway.
    entropy = log_total - np.einsum("nk,nk->n", resp, np.maximum(gap, -800.0))
    return Posterior(resp, peak + log_total, entropy)


def hard(log_joint: Array) -> Posterior:
    """All responsibility to the largest log joint density. log_joint : (n, k)."""
    log_norm = soft(log_joint).log_norm
    resp = np.zeros_like(log_joint)
    resp[np.arange(len(resp)), log_joint.argmax(axis=1)] = 1.0
    return Posterior(resp, log_norm, np.zeros(len(resp)))


POSTERIORS: dict[str, Callable[[Array], Posterior]] = {"soft": soft, "hard": hard}
