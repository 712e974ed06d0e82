"""Steps whose gain has to be checked: Newton's and quasi-Newton steps of a log-likelihood, and when they are accepted.

    Newton          Δ = I⁻¹ g          I : negative Hessian of log p(X), or of the expected log joint [Lange 1995]
    quasi-Newton    Δ = H g            H : from the last pairs of points and gradients [Liu and Nocedal 1989, algorithm 2.1]
    accepted if     f(u + Δ) >= f(u) + c gᵀΔ, else shorter [Armijo 1966]

Each trial is one pass over the rows, whose sums are value, gradient and curvature at the trial.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored

if TYPE_CHECKING:
    from pipeline.models.base import Totals

SUFFICIENT = 1e-4  # of the gain that the gradient promises
ROUNDING = 1e-13  # of the objective: as much as sums over rows may differ
SHORTER = (0.1, 0.5)  # of a rejected step, at least and at most
FLOOR = 1e-8  # of the largest curvature: least curvature that a step assumes


@stored
class Point(NamedTuple):
    """Accepted parameters by name, and the totals of the E-step there."""

    arrays: Mapping[str, Array]
    totals: Totals


class Ascent(ABC):
    """What a model has that is fitted by steps whose gain has to be checked.

    Attributes
    ----------
    steps : {"em", "newton", "gradient"}
        How they are found: with the curvature of the expected log joint, that of the log-likelihood, or from gradients.
    memory : int
        Accepted points that `ascend` needs.
    """

    @property
    @abstractmethod
    def steps(self) -> Literal["em", "newton", "gradient"]:
        """How steps are found."""

    @property
    @abstractmethod
    def memory(self) -> int:
        """Accepted points that `ascend` needs."""

    @abstractmethod
    def ascend(self, trail: Sequence[Point]) -> Any:
        """Return the parameters to try next. trail : accepted points, the newest last."""

    @abstractmethod
    def accepts(self, trail: Sequence[Point], params: Any, totals: Totals) -> bool:
        """Whether parameters, with these totals, raise the objective above that of the newest point."""

    @abstractmethod
    def shorten(self, trail: Sequence[Point], params: Any, totals: Totals) -> Any:
        """Return parameters between the newest point and rejected ones."""

    @abstractmethod
    def trying(self, trail: Sequence[Point], params: Any) -> Self:
        """Return the model for an E-step at parameters that may be impossible: it then returns NaN instead of raising."""

    @property
    def is_newton(self) -> bool:
        """Whether half the square of a step's length is what is left to gain, to second order."""
        return self.steps in ("newton", "gradient")


def newton_step(gradient: Array, *information: Array | None) -> Array:
    """Return I⁻¹ g for the first I that is positive definite; else of the first with curvatures made positive.

    Parameters
    ----------
    gradient : array, shape (p,)
    information : arrays, shape (p, p), or None
    """
    known = [matrix for matrix in information if matrix is not None and np.isfinite(matrix).all()]
    for matrix in known:
        if (step := _solved(matrix, gradient)) is not None:
            return step
    if not known:
        return np.full_like(gradient, np.nan)
    values, vectors = np.linalg.eigh(known[0])
    values = np.abs(values)
    return vectors @ ((vectors.T @ gradient) / np.maximum(values, FLOOR * max(values.max(), np.finfo(float).tiny)))


def _solved(matrix: Array, gradient: Array) -> Array | None:
    """I⁻¹ g, None if I is not positive definite to rounding."""
    diagonal = np.diagonal(matrix)
    if not (diagonal > 0).all():
        return None
    scale = np.sqrt(diagonal)
    try:
        factor = cho_factor(matrix / scale / scale[:, None], lower=True)
    except np.linalg.LinAlgError:
        return None
    if not (np.diagonal(factor[0]) ** 2 > len(scale) * np.finfo(np.float64).eps).all():
        return None
    return np.asarray(cho_solve(factor, gradient / scale) / scale)


def quasi_newton_step(points: Sequence[Array], gradients: Sequence[Array], weight: float) -> Array:
    """Return H g of the newest point. points, gradients : (p,) each, oldest first.  weight : of all rows.

    Without a pair of points, H is that of one unit of information a row, and the step at most 1 long.
    """
    pairs = []
    for (u, v), (g, h) in zip(pairwise(points), pairwise(gradients), strict=True):
        s, y = v - u, g - h
        if s @ y > 1e-12 * np.sqrt((s @ s) * (y @ y)):
            pairs.append((s, y))
    step = gradients[-1].copy()
    if not pairs:
        return step / max(weight, float(np.linalg.norm(step)))
    factors = []
    for s, y in reversed(pairs):
        factors.append((s @ step) / (s @ y))
        step -= factors[-1] * y
    s, y = pairs[-1]
    step *= (s @ y) / (y @ y)
    for (s, y), factor in zip(pairs, reversed(factors), strict=True):
        step += s * (factor - (y @ step) / (s @ y))
    return step


def is_accepted(before: float, after: float, slope: float) -> bool:
    """Whether the objective has risen enough. slope : gᵀΔ at the point before."""
    return bool(after >= before + SUFFICIENT * max(slope, 0.0) - ROUNDING * abs(before))


def shorter(before: float, after: float, slope: float) -> float:
    """Return the share of a rejected step to try next: the highest point of a parabola, within `SHORTER`."""
    fall = after - before - slope
    if not np.isfinite(fall) or fall >= 0:
        return SHORTER[0]
    return float(np.clip(-slope / (2.0 * fall), *SHORTER))
