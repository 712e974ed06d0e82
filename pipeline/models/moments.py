"""Parameters and moments of Gaussian components; moments are about one point for all or about one for each.

Moments about the fixed reference point add without further ado. Seen from a mean at the distance D, they keep D² eps of rounding:
a component much narrower than D has lost its variances. Such a component has a point of its own, its mean at the E-step.
Moments about different points are moved before they add: M(a + b) = M(a) - outer(b, s) - outer(s, b) + N outer(b, b).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tiles
from pipeline.models.covariance import SHAPES, Shape, from_covariance

SCATTER_ROWS = 4096
ROUNDING = 16 * float(np.finfo(np.float64).eps)  # of D², in the variance of each feature
FARTHEST = 1e9  # D² over the variance, up to which one point serves: 4e-6 of the variance is rounding


@dataclass(frozen=True)
class Gaussians:
    """means : (k, d).  covariances : scikit-learn's shape for the type.
    factors, eigenvalues : computed from the covariances once; eigenvalues : (k, 2), smallest and largest.
    by : (k, d), where from the shift the moments of the next E-step are taken; None: about the shift.
    rounding : (k, d), of the variances, after an M-step from moments about distant points.
    """

    means: Array
    covariances: Array
    factors: Array
    eigenvalues: Array
    by: Array | None = field(default=None, kw_only=True)
    rounding: Array | float = field(default=0.0, kw_only=True)


@stored
class Frame(NamedTuple):
    """The points of moments. by : (k, d), from the shift.  counts : (k,), zeroth moments.  covariance_type : its name."""

    by: Array
    counts: Array
    covariance_type: str

    @classmethod
    def at(cls, by: Array | None, counts: Array, covariance_type: str) -> Frame | None:
        """Return the frame; None where all moments are about the shift."""
        return None if by is None else cls(by, counts.copy(), covariance_type)  # sums are in place: nothing is shared


@stored
@dataclass(frozen=True)
class GaussianStats(Additive):
    """Moments about the component's shift, or the points of a frame.

    sum_x : (k, d).  sum_xx : (k, d (d + 1) / 2) lower triangles, (d, d) of all rows (tied), (k, d) or (k,).
    """

    sum_x: Array
    sum_xx: Array
    frame: Frame | None = field(default=None, kw_only=True)

    @property
    def by(self) -> Array | None:
        """(k, d), the points' distances from the shift; None: all moments are about the shift."""
        return None if self.frame is None else self.frame.by

    @property
    def nbytes(self) -> int:
        return sum(np.asarray(value).nbytes for name, value in vars(self).items() if name != "frame")

    def __mul__(self, factor: float) -> Self:
        scaled = {name: value * factor for name, value in vars(self).items() if name != "frame"}
        frame = self.frame and self.frame._replace(counts=self.frame.counts * factor)
        return type(self)(**scaled, frame=frame)

    __rmul__ = __mul__

    def about_the_shift(self) -> Self:
        """Return the moments about the shift."""
        return self if self.frame is None else replace(self._moved(-self.frame.by), frame=None)

    def _moved(self, by: Array) -> Self:
        assert self.frame is not None
        shape = SHAPES[self.frame.covariance_type]
        sum_x, sum_xx = shape.moved(self.frame.counts, self.sum_x, self.sum_xx, by)
        return replace(self, sum_x=sum_x, sum_xx=sum_xx)

    def _with(self, other: Self, add: Callable[[Any, Any], Any]) -> Self:
        own, others, frame = self, other, None
        if self.frame is None or other.frame is None:
            own, others = self.about_the_shift(), other.about_the_shift()
        else:
            apart = self.frame.by - other.frame.by
            others = other._moved(apart) if apart.any() else other
            frame = self.frame._replace(counts=add(self.frame.counts, other.frame.counts))
        names = [name for name in vars(self) if name != "frame"]
        return type(self)(**{name: add(getattr(own, name), getattr(others, name)) for name in names}, frame=frame)


def far_apart(by: Array, precisions: Array, reg_covar: float) -> Array:
    """Return which components need points of their own, (k,) bool.

    Parameters
    ----------
    by : array, shape (k, d)
        Means from the shift.
    precisions : array, shape (k, d)
        Diagonals of the inverse covariances, so that units do not matter; NaN for a component without one.
    reg_covar : float
        Variances as small as this may come in one step, so the rounding of it counts at once.
    """
    square = np.square(by)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = ~((square * precisions).sum(axis=1) <= FARTHEST) & square.any(axis=1)
        far: Array = narrow | ((reg_covar > 0) & (ROUNDING * square.sum(axis=1) > reg_covar))
    return far


def rounding_of(by: Array, shape: Shape) -> Array:
    """Return the rounding of variances, (k, d), from moments about points that the means are `by` (k, d) away from."""
    rounding: Array = ROUNDING * np.square(by)
    if len(shape.array_shape(*by.shape)) == 1:  # one variance for all features is the mean of theirs
        rounding = np.broadcast_to(rounding.mean(axis=1, keepdims=True), by.shape)
    return rounding if shape.per_component else np.broadcast_to(rounding.max(axis=0), by.shape)


def lost_in_rounding(rounding: Array, precisions: Array) -> Array:
    """Return which components, (k,), have a direction with a variance that rounding (k, d) may make up; also those without precisions."""
    with np.errstate(over="ignore", invalid="ignore"):
        lost: Array = ~((rounding * precisions).sum(axis=1) < 1)
    return lost


def resolved(component: Any, theta: Gaussians, rounding: Array) -> Gaussians:
    """Variances that moments about distant points cannot tell from 0 grow by their rounding; the next pass has nearer points."""
    if theta.by is None:  # none is far from the shift
        return replace(theta, rounding=rounding)
    shape = component.shape
    precisions = shape.precisions(theta.factors, *rounding.shape)
    lost = far_apart(theta.means - component.shift, precisions, component.reg_covar)
    lost &= lost_in_rounding(rounding, precisions) & np.isfinite(theta.eigenvalues[:, 1])
    if lost.any():
        covariances = theta.covariances.copy()
        for k in np.flatnonzero(lost) if shape.per_component else [0]:
            own = covariances[k : k + 1] if shape.per_component else covariances
            own += from_covariance(shape, np.diag(rounding[k]), 1)
        theta = component.theta(means=theta.means, covariances=covariances)
    return replace(theta, rounding=rounding)


def scatter(x: Array, weight: Array | None, shift: Array) -> Array:
    """Return the weighted scatter of rows about the shift, (d, d)."""
    total = np.zeros((len(shift), len(shift)))
    for rows in tiles(len(x), SCATTER_ROWS):
        diff = np.subtract(x[rows], shift, dtype=np.float64)
        total += (diff if weight is None else diff * weight[rows, None]).T @ diff
    return total


def halved(component: Any, theta: Any, halves: Mapping[int, int]) -> Any:
    """Cut components in two at their means, across the axis of largest variance v: each half has the moments of half a Gaussian.

    The means are then sqrt(2 v / pi) to both sides, and v is left with 1 - 2 / pi of itself.

    Parameters
    ----------
    component : Gaussian
    theta : Gaussians
    halves : mapping of int to int
        The component that is cut, by the one that becomes its second half.
    """
    arrays = {name: value.copy() for name, value in component.arrays(theta).items()}
    own = [name for name, field in component.fields.items() if field.component_axes]
    means, spreads = arrays["means"], arrays[component.spread]
    for k, donor in halves.items():
        for name in own:
            arrays[name][k] = arrays[name][donor]
        spread = spreads[donor] if component.spread in own else spreads
        variance, axis = _widest(spread, means)
        step = np.sqrt(2.0 / np.pi * variance) * axis
        means[k] += step
        means[donor] -= step
        if component.spread in own and component.spread not in component.fixed:
            part = (np.asarray(1.0 / len(axis)), axis, np.outer(axis, axis))[spread.ndim]
            spreads[k] = spreads[donor] = spread - 2.0 / np.pi * variance * part
    return component.theta(**arrays)


def _widest(spread: Array, means: Array) -> tuple[float, Array]:
    """The largest variance of a covariance of any type, and its axis (d,); of a spherical one, the axis along which means differ most."""
    if spread.ndim == 2:
        values, vectors = np.linalg.eigh(spread)
        return float(values[-1]), vectors[:, -1]
    i = int(spread.argmax() if spread.ndim else means.var(axis=0).argmax())
    return float(spread[i] if spread.ndim else spread), np.eye(means.shape[1])[i]
