"""How much a run may still gain, from the lengths of its steps.

Near a maximum, in the Fisher metric of the complete data, an M-step is Δ = A e: e is the way to the maximum, and A, the
share of the information that the rows hold without their components, is symmetric with eigenvalues between 0 and 1. The
next step is (1 - A) Δ, so steps shrink at a rate ρ = 1 - λ, and of the objective there remains, per row,

    eᵀ A e / 2 = Δᵀ A⁻¹ Δ / 2,    at least |Δ|² / 2,    and |Δ|² / (2 (1 - ρ)) along the slowest direction.

This is Aitken's estimate: a sum of gains that shrink by ρ² each. Lengths are used, not gains, which are differences of
large numbers. [Dempster, Laird and Rubin 1977, sec. 3; Louis 1982; Böhning et al. 1994]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REMEMBERED = 4  # iterations: an extrapolation hides the slowest direction from the two steps that follow it


def rate_of(before: float, now: float) -> float:
    """How much shorter an M-step is than the one that led to it; NaN where there was none. Both: Fisher norms."""
    return now / before if before > 0 else np.nan


def left_to_gain(norm: float, rates: Sequence[float]) -> float:
    """Nats per row that plain EM would still gain. norm : of the M-step from here.  rates : up to now, NaN where unknown.

    NaN as long as no rate is known, inf while steps grow: EM then leaves a plateau, and nothing bounds what comes.
    """
    if norm == 0:
        return 0.0
    known = [rate for rate in rates[-REMEMBERED:] if np.isfinite(rate)]
    if not known:
        return np.nan
    slowest = max(known)
    return 0.5 * norm * norm / (1.0 - slowest) if slowest < 1 else np.inf
