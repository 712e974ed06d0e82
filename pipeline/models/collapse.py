"""Which components of Gaussians have collapsed: too few rows, or no width."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array

ENOUGH = 10  # times the rows below which a component is collapsed: so many equal rows are no chance


def without_width(component: Any, theta: Any, sum_w: Array, learned: bool) -> list[tuple[int, str]]:
    """Return components with too few rows, or without width, and the reasons; of many rows without width it is a cluster of equal rows.

    learned : whether covariances are estimated.
    """
    least, broken = component.least_rows, component.broken(theta)
    found = []
    rounding = np.broadcast_to(theta.rounding, (component.n_components,))
    width = theta.eigenvalues[:, 1] if learned else np.full(component.n_components, np.inf)
    width = np.where((sum_w >= ENOUGH * least) & ~broken, np.inf, width)
    for k in range(component.n_components):
        if sum_w[k] < least:
            found.append((k, f"{sum_w[k]:.3g} effective rows, fewer than {least}"))
        elif broken[k]:
            found.append((k, f"covariance has no Cholesky factor (largest eigenvalue {width[k]:.3g})"))
        elif not width[k] > 2 * component.floor:
            found.append((k, f"largest covariance eigenvalue {width[k]:.3g} <= 2 x reg_covar"))
        elif width[k] <= 2 * rounding[k]:
            found.append((k, f"largest covariance eigenvalue {width[k]:.3g} is lost in rounding ({rounding[k]:.3g})"))
    return found
