"""How much a run may still gain, from the lengths of its steps.

Near a maximum, in the Fisher metric of the complete data, an M-step is Δ = A e. e is the vector to the maximum. A is the
share of the information that the rows hold without their latent variables: symmetric, with eigenvalues between 0 and 1. The
next step is (1 - A) Δ, so steps shrink at a rate ρ = 1 - λ, and of the objective there remains, per row,

    eᵀ A e / 2 = Δᵀ A⁻¹ Δ / 2,    at least |Δ|² / 2,    and |Δ|² / (2 (1 - ρ)) along the slowest direction.

This is Aitken's estimate: a sum of gains that shrink by ρ² each. Lengths are used, not gains, which are differences of
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
    """How much shorter an M-step is than the one that led to it; NaN where there was none. Both: Fisher norms."""
    return now / before if before > 0 else np.nan


def remaining_gain(norm: float, rates: Sequence[float]) -> float:
    """Nats per row that plain EM would still gain.

    Parameters
    ----------
    norm : float
        Fisher norm of the M-step from here.
    rates : sequence of float
        Rates up to now, NaN where unknown.

    Returns
    -------
    float
        NaN until three rates are known; inf while steps grow: EM then leaves a plateau, and nothing bounds what comes.
    """
    if norm < NOTHING:
        return 0.0
    known = [rate for rate in rates if np.isfinite(rate)][-LAST_RATES:]
    if len(known) < LAST_RATES:
        return np.nan
    slowest = max(known)
    return 0.5 * norm * norm / (1.0 - slowest) if slowest < 1 else np.inf


def remaining_distance(norm: float, gain: float) -> float:
    """|e|, the Fisher distance of where plain EM would end: |Δ| / (1 - ρ), from both numbers of an entry."""
    return 2.0 * gain / norm if norm > 0 else gain
