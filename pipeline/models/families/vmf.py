"""Mixtures of von Mises-Fisher distributions, for directions: log p(x | k) = log C_d(kappa_k) + kappa_k mu_k·x, |x| = 1.

    log C_d(kappa) = (d/2 - 1) log kappa - (d/2) log 2 pi - log I_{d/2 - 1}(kappa)
    mu_k = sum r x / |sum r x|        I_{d/2}(kappa_k) / I_{d/2 - 1}(kappa_k) = |sum r x| / N_k

Rows are scaled to length 1 as they are read; sparse rows stay sparse. The density is one on the sphere.
[Banerjee, Dhillon, Ghosh and Sra 2005; Sra 2012 for the root; Hornik and Grün 2014; Olver 1954 for the Bessel function]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from numpy.polynomial import Polynomial
from pydantic import Field as Option
from scipy.special import ive

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import unit
from pipeline.models.clusters import Summary
from pipeline.models.component import OfSums
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture
from pipeline.models.schema import POSITIVE, UNIT, Field, Fields
from pipeline.models.words import Words

LOG_2PI = float(np.log(2.0 * np.pi))
HIGH_ORDER = 24.0  # from here on Olver's expansion of Bessel functions errs by less than 1e-13
LEAST, MOST = 1e-8, 1e5  # concentrations, times d: nearly even, and within 0.003 rad of one direction
ADVICE = "It is all zeros, and has no direction: leave it out, or give it weight 0 (data.weights)."


@dataclass(frozen=True)
class Caps:
    """directions : (k, d), of length 1.  concentrations : (k,)."""

    directions: Array
    concentrations: Array


@stored
@dataclass(frozen=True)
class DirectionStats(Additive):
    """sum_x : (k, d) sums of rows of length 1."""

    sum_x: Array


@stored
@dataclass(frozen=True)
class VonMisesFisher(OfSums):
    """Von Mises-Fisher components in d dimensions."""

    n_components: int
    dimensions: int
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "vmf"
    words: ClassVar[Words] = Words(
        "von Mises-Fisher mixture", "A mixture of {k} von Mises-Fisher distributions", location="direction"
    )
    location: ClassVar[str] = "directions"
    unit_rows: ClassVar[bool] = True
    impossible_advice: ClassVar[str] = ADVICE

    @property
    def shift(self) -> Array:  # type: ignore[override]  # of no rows in particular
        """(d,) zeros: directions are seen from the origin."""
        return np.zeros(self.dimensions)

    @property
    def least_rows(self) -> int:
        return 2

    @property
    def fields(self) -> Fields:
        return {
            "directions": Field(("component", "feature"), UNIT),
            "concentrations": Field(("component",), POSITIVE),
        }

    def theta(self, **arrays: Array) -> Caps:
        return Caps(arrays["directions"], arrays["concentrations"])

    def log_joint(self, theta: Caps, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        x = unit(x)
        cosines = np.asarray(x @ theta.directions.T)
        found: Array = log_weights + self._log_scale(theta.concentrations) + theta.concentrations * cosines
        found[is_zero(x)] = -np.inf
        return found

    def _log_scale(self, kappa: Array) -> Array:
        """(k,) log C_d, nats."""
        order = 0.5 * self.dimensions - 1.0
        scale: Array = order * np.log(kappa) - (order + 1.0) * LOG_2PI - (log_ive(order, kappa) + kappa)
        return scale

    def statistics(self, theta: Caps | None, x: Matrix, resp: Array) -> DirectionStats:
        return DirectionStats(np.asarray(unit(x).T @ resp).T.copy())

    def statistics_bytes(self) -> int:
        return 8 * self.n_components * self.dimensions

    def m_step(self, stats: DirectionStats, sum_w: Array, theta: Caps | None) -> Caps:
        k, d = self.n_components, self.dimensions
        before = Caps(np.full((k, d), d**-0.5), np.full(k, float(d))) if theta is None else theta
        length = np.linalg.norm(stats.sum_x, axis=1)
        live = (sum_w > 0) & (length > 0)
        directions, kappa = before.directions.copy(), before.concentrations.copy()
        if "directions" not in self.fixed:
            directions[live] = stats.sum_x[live] / length[live, None]
        if "concentrations" not in self.fixed:
            along = np.einsum("kd,kd->k", directions, stats.sum_x)
            kappa[live] = concentration_of(along[live] / sum_w[live], d)
        return Caps(directions, kappa)

    def expected_log_densities(self, theta: Caps, sum_w: Array, stats: DirectionStats) -> Array:
        along = np.einsum("kd,kd->k", theta.directions, stats.sum_x)
        return sum_w * self._log_scale(theta.concentrations) + theta.concentrations * along

    def step_squares(self, stats: DirectionStats, sum_w: Array, theta: Caps, new: Caps) -> tuple[float, ...]:
        """N_k/N (kappa A |Δmu|² + A' Δkappa²), A = E mu·x."""
        moved = new.directions - theta.directions, new.concentrations - theta.concentrations
        return (self._squares(sum_w, theta, *moved),)

    def change_squares(
        self, change: DirectionStats, change_w: Array, stats: DirectionStats, sum_w: Array, theta: Caps
    ) -> tuple[float, ...]:
        mean, slope = mean_cosine(theta.concentrations, self.dimensions)
        along = np.einsum("kd,kd->k", theta.directions, change.sum_x)
        across = (change.sum_x - along[:, None] * theta.directions) / (sum_w * mean)[:, None]
        kappa = (along - change_w * mean) / (sum_w * slope)
        kappa = np.where(self._inside(theta.concentrations), kappa, 0.0)
        across = np.zeros_like(across) if "directions" in self.fixed else across
        return (self._squares(sum_w, theta, across, 0.0 * kappa if "concentrations" in self.fixed else kappa),)

    def _squares(self, sum_w: Array, theta: Caps, directions: Array, kappa: Array) -> float:
        mean, slope = mean_cosine(theta.concentrations, self.dimensions)
        squares = theta.concentrations * mean * np.square(directions).sum(axis=1) + slope * kappa**2
        return float(sum_w / sum_w.sum() @ squares)

    def _inside(self, kappa: Array) -> Array:
        inside: Array = (kappa > LEAST * self.dimensions) & (kappa < MOST * self.dimensions)
        return inside

    def feasible(self, stats: DirectionStats, known: DirectionStats) -> DirectionStats:
        """Sums of no length stay as they are."""
        length = np.linalg.norm(stats.sum_x, axis=1, keepdims=True)
        return DirectionStats(np.where(length > 0, stats.sum_x, known.sum_x))

    def collapsed(self, theta: Caps, sum_w: Array) -> list[tuple[int, str]]:
        """Those of too few rows, or whose rows all have one direction."""
        found = dict(super().collapsed(theta, sum_w))
        if "concentrations" not in self.fixed:
            for k in np.flatnonzero(theta.concentrations >= MOST * self.dimensions):
                found.setdefault(int(k), f"concentration {theta.concentrations[k]:.3g}: its rows have one direction")
        return sorted(found.items())

    def start_at(self, rows: Array, summary: Summary | None) -> Caps:
        """At the directions of rows, moderately wide."""
        directions = unit(rows)
        directions[is_zero(directions)] = self.dimensions**-0.5
        return Caps(directions, np.full(len(rows), float(self.dimensions)))

    def start_near_mean(self, summary: Summary, draws: Array) -> Caps:
        return self.start_at(unit(summary.mean[None]) + 0.01 * self.dimensions**-0.5 * draws, summary)

    def sample(self, theta: Caps, labels: Array, rng: np.random.Generator) -> Matrix:
        """By rejection of the cosine, and a direction across it at random. [Wood 1994]."""
        d, kappa = self.dimensions, theta.concentrations[labels]
        b = (d - 1.0) / (2.0 * kappa + np.sqrt(4.0 * kappa**2 + (d - 1.0) ** 2))
        x0 = (1.0 - b) / (1.0 + b)
        c = kappa * x0 + (d - 1.0) * np.log1p(-(x0**2))
        cosine, left = np.empty(len(labels)), np.arange(len(labels))
        while len(left):
            z = rng.beta(0.5 * (d - 1.0), 0.5 * (d - 1.0), len(left))
            w = (1.0 - (1.0 + b[left]) * z) / (1.0 - (1.0 - b[left]) * z)
            good = kappa[left] * w + (d - 1.0) * np.log1p(-x0[left] * w) - c[left] >= np.log(rng.random(len(left)))
            cosine[left[good]] = w[good]
            left = left[~good]
        mu = theta.directions[labels]
        across = rng.standard_normal(mu.shape)
        across = unit(across - np.einsum("nd,nd->n", across, mu)[:, None] * mu)
        return cosine[:, None] * mu + np.sqrt(1.0 - cosine**2)[:, None] * across


def is_zero(x: Matrix) -> Array:
    """(n,) bool: rows of zeros."""
    if sp.issparse(x):
        return np.asarray(abs(x).sum(axis=1) == 0)
    return np.asarray(~np.asarray(x).any(axis=1))


def _olver(count: int) -> list[Polynomial]:
    """Polynomials U_0, U_1, … of Olver's expansion. [DLMF 10.41.9]."""
    found = [Polynomial([1.0])]
    for _ in range(count - 1):
        u = found[-1]
        found.append(Polynomial([0, 0, 0.5, 0, -0.5]) * u.deriv() + 0.125 * (Polynomial([1.0, 0, -5.0]) * u).integ())
    return found


_TERMS = _olver(9)


def log_ive(order: float, kappa: Array) -> Array:
    """log I_order(kappa) - kappa, for any order of 0 or more and any kappa above 0."""
    if order < HIGH_ORDER:
        with np.errstate(divide="ignore"):
            found: Array = np.log(ive(order, kappa))
        return found
    root = np.hypot(order, kappa)
    p = order / root
    series = sum(u(p) / order**i for i, u in enumerate(_TERMS))
    eta = order**2 / (root + kappa) - order * np.arcsinh(order / kappa)
    expansion: Array = eta - 0.5 * (LOG_2PI + np.log(root)) + np.log(series)
    return expansion


def mean_cosine(kappa: Array, d: int) -> tuple[Array, Array]:
    """A = E mu·x = I_{d/2}(kappa) / I_{d/2 - 1}(kappa), and its derivative 1 - A² - (d - 1) A / kappa, both (k,)."""
    order = 0.5 * d - 1.0
    mean = np.exp(log_ive(order + 1.0, kappa) - log_ive(order, kappa))
    return mean, np.maximum(1.0 - mean**2 - (d - 1.0) * mean / kappa, np.finfo(np.float64).tiny)


def concentration_of(length: Array, d: int) -> Array:
    """The kappa whose mean cosine is `length`, by Newton's method from Banerjee's approximation. length : (k,), below 1."""
    low, high = LEAST * d, MOST * d
    r = np.clip(length, 0.0, mean_cosine(np.array([high]), d)[0])
    kappa = np.clip(r * (d - r * r) / np.maximum(1.0 - r * r, np.finfo(np.float64).eps), low, high)
    for _ in range(8):
        mean, slope = mean_cosine(kappa, d)
        kappa = np.clip(kappa - (mean - r) / slope, 0.5 * kappa, 2.0 * kappa)
        kappa = np.clip(kappa, low, high)
    return kappa


class VonMisesFisherSection(ClusterSection):
    """A mixture of von Mises-Fisher distributions over directions of rows, such as embeddings and tf-idf."""

    family: Literal["vmf"] = Option("vmf", description="a mixture of von Mises-Fisher distributions over directions")
    fixed: list[Literal["weights", "directions", "concentrations"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("movmf", "von-mises-fisher")
    words: ClassVar[Words] = VonMisesFisher.words
    sparse: ClassVar[bool] = True
    second_moments: ClassVar[Literal["matrix", "variances", "none"]] = "none"

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k] = self.n_components
        return Mixture(
            VonMisesFisher(k, len(summary.mean), self.fixed_of_components), assignment, "weights" in self.fixed
        )
