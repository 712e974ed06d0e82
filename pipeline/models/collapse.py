"""Which components of Gaussians have collapsed: too few rows, or no width."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array


def without_width(component: Any, theta: Any, sum_w: Array, learned: bool) -> list[tuple[int, str]]:
    """Return components with too few rows, or without width, and the reasons. learned : whether covariances are estimated."""
    least, broken = component.least_rows, component.broken(theta)
    found = []
    # Moments about the shift, seen from the mean, keep this much of their rounding.
    rounding = 16 * np.finfo(np.float64).eps * ((theta.means - component.shift) ** 2).max(axis=1)
    if not component.shape.per_component:
        rounding = np.full(component.n_components, rounding.max())
    width = theta.eigenvalues[:, 1] if learned else np.full(component.n_components, np.inf)
    for k in range(component.n_components):
        if sum_w[k] < least:
            found.append((k, f"{sum_w[k]:.3g} effective rows, fewer than {least}"))
        elif broken[k]:
            found.append((k, f"covariance has no Cholesky factor (largest eigenvalue {width[k]:.3g})"))
        elif not width[k] > 2 * component.floor:
            found.append((k, f"largest covariance eigenvalue {width[k]:.3g} <= 2 x reg_covar"))
        elif width[k] <= rounding[k]:
            found.append((k, f"largest covariance eigenvalue {width[k]:.3g} is lost in rounding ({rounding[k]:.3g})"))
    return found
