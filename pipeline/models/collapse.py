"""Which components of Gaussians have collapsed, too few rows or no width, and the covariance that they get."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.models.moments import lost_in_rounding

ENOUGH = 10  # times the rows below which a component is collapsed: so many equal rows are no chance


def without_width(component: Any, theta: Any, sum_w: Array, learned: bool) -> list[tuple[int, str]]:
    """Return components with too few rows, or without width, and the reasons; of many rows without width it is a cluster of equal rows.

    learned : whether covariances are estimated.
    """
    least, broken, size = component.least_rows, component.broken(theta), (component.n_components, component.n_features)
    enough = (sum_w >= ENOUGH * least) & ~broken
    unbounded = learned and component.reg_covar == 0 and not component.bounded
    if enough.all() and not unbounded:  # as almost always
        return []
    may = learned & ~enough
    width = np.where(may, theta.eigenvalues[:, 1], np.inf)
    rounding = np.broadcast_to(theta.rounding, size)
    narrow = (component.shape.variances(theta.covariances, *size) <= 2 * rounding).all(axis=1)
    # Without a floor the likelihood has no bound where one direction has no width, and what is left of it is the rounding of equal rows.
    reach = np.maximum(np.abs(theta.means), np.abs(theta.means - component.shift))
    flat = lost_in_rounding(
        np.square(4 * np.finfo(np.float64).eps * reach), component.shape.precisions(theta.factors, *size)
    )
    flat &= unbounded
    found = []
    for k in range(component.n_components):
        if sum_w[k] < least:
            found.append((k, f"{sum_w[k]:.3g} effective rows, fewer than {least}"))
        elif broken[k]:
            found.append((k, f"covariance has no Cholesky factor (largest eigenvalue {width[k]:.3g})"))
        elif not width[k] > 2 * component.floor:
            found.append((k, f"largest covariance eigenvalue {width[k]:.3g} <= 2 x reg_covar"))
        elif flat[k] or (may[k] and narrow[k]):
            low, high = theta.eigenvalues[k]
            found.append((k, f"a variance is lost in rounding (covariance eigenvalues {low:.3g} to {high:.3g})"))
    return found


def mended(component: Any, theta: Any, stats: Any, sum_w: Array) -> Any:
    """Return a start in which covariances of too few rows are replaced by the average of the others."""
    broken = np.flatnonzero(component.broken(theta))
    if not len(broken) or not component.shape.per_component:
        return theta
    covariances = theta.covariances.copy()
    covariances[broken] = pooled(component, theta, stats, sum_w, broken)
    return component.theta(means=theta.means, covariances=covariances)


def pooled(component: Any, theta: Any, stats: Any, sum_w: Array, collapsed: Array) -> Array:
    """Return the average covariance of the other components, or of all rows if there is none."""
    if not component.shape.per_component:
        return np.asarray(theta.covariances)
    share = sum_w.copy()
    share[collapsed] = 0.0
    if share.sum() > 0:
        return np.tensordot(share / share.sum(), np.nan_to_num(theta.covariances), axes=1)
    one = stats.about_the_shift()
    counts, sums = component._zeroth(stats, sum_w).sum(keepdims=True), one.sum_x.sum(axis=0, keepdims=True)
    moments = component.shape.moved(counts, sums, one.sum_xx.sum(axis=0, keepdims=True), sums / counts)[1]
    return np.asarray(component.shape.covariances(moments, counts, component.n_features, component.reg_covar)[0])
