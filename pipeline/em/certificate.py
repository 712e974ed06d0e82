"""How much a run may still gain, from the lengths of its steps.

Near a maximum, in the Fisher metric of the complete data, an M-step is Δ = A e. e is the vector to the maximum; A is the
share of the information that the rows have without their latent variables, symmetric with eigenvalues λ in (0, 1]. The
next step is (1 - A) Δ, so steps shrink at a rate ρ = 1 - λ. The remaining gain of the objective is, per row,

    eᵀ A e / 2 = Δᵀ A⁻¹ Δ / 2,    at least |Δ|² / 2,    and |Δ|² / (2 (1 - ρ)) along the slowest direction.

This is Aitken's estimate: a sum of gains that shrink by ρ² each. It uses lengths because gains are differences of
large numbers. [Dempster, Laird and Rubin 1977, sec. 3; Louis 1982; Böhning et al. 1994]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LAST_RATES = (
    3  # known rates that count: an extrapolation step hides the slowest direction from the step that follows it
)
NOTHING = 1e-8  # a step that gains half its square, less than the last digit of a log-likelihood per row


def rate_of(before: float, now: float) -> float:
    """Return the ratio of the Fisher norms of an M-step and the one before it; NaN without one."""
    return now / before if before > 0 else np.nan


def remaining_gain(norm: float, rates: Sequence[float]) -> float:
    """Return Aitken's estimate of the nats per row that plain EM would still gain.

    Parameters
    ----------
    norm : float
        Fisher norm of the M-step.
    rates : sequence of float
        Rates so far, NaN if unknown.

    Returns
    -------
    float
        NaN until three rates are known; inf while steps grow, as on leaving a plateau.
    """
    if norm < NOTHING:
        return 0.0
    known = [rate for rate in rates if np.isfinite(rate)][-LAST_RATES:]
    if len(known) < LAST_RATES:
        return np.nan
    slowest = max(known)
    return 0.5 * norm * norm / (1.0 - slowest) if slowest < 1 else np.inf


def remaining_distance(norm: float, gain: float) -> float:
    """Return |e| = |Δ| / (1 - ρ), the Fisher distance to the maximum, from the two numbers of an entry."""
    return 2.0 * gain / norm if norm > 0 else gain
