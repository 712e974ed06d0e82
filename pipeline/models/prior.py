"""Conjugate priors of Gaussian components, as pseudo-rows that are added to the statistics.

    mu_k | Sigma_k ~ N(m, Sigma_k / kappa)    Sigma_k ~ inverse Wishart(nu, Lambda)

(diag: each variance ~ inverse gamma(nu/2, lambda_j/2); spherical: the one variance, with the mean of the lambda_j.) The
M-step then maximizes free energy + log prior in closed form: kappa rows at m are added to each mean, and

    full       Sigma_k  = (Lambda + kappa N_k/(kappa + N_k) (xbar_k - m)(xbar_k - m)ᵀ + W_k) / (nu + N_k + d + 2)
    tied       Sigma    = the same, summed over components, Lambda once                      / (nu + N + K + d + 1)
    diag       sigma²_k = its diagonal                                                       / (nu + N_k + 3)
    spherical  sigma²_k = (trace Lambda / d + trace of the rest)                             / (nu + (N_k + 1) d + 2)

[after Fraley and Raftery 2007, sec. 3-4; the M-step is derived from the densities above]

Or the components of an earlier fit, which adapt to other rows: `Adapted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, model_validator
from pydantic import Field as Option

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.config import Section
from pipeline.config.paths import LocalPath
from pipeline.config.schema import AlsoWritten
from pipeline.models.clusters import Summary
from pipeline.models.covariance import Shape, from_covariance, full_matrix, identity

RELEVANCE = 16.0  # rows: that of Reynolds, Quatieri and Dunn (2000)
SHRINKAGE = 0.01  # rows: Fraley and Raftery's, found to make the BIC curve smooth and to change little else


@stored
@dataclass(frozen=True)
class Prior:
    """A prior of Gaussian components.

    Attributes
    ----------
    mean : array, shape (d,)
        Prior mean of the means.
    shrinkage : float
        kappa, in rows; 0: no prior on means.
    dof : float
        nu.
    scale : array, shape (d, d), or None
        Lambda, of which other shapes use their part; None: no prior on covariances.

    It does not depend on the number of components.
    """

    mean: Array
    shrinkage: float = SHRINKAGE
    dof: float = 0.0
    scale: Array | None = None

    @property
    def bounds(self) -> bool:
        """Whether it bounds covariances away from 0."""
        return self.scale is not None

    @property
    def least_rows(self) -> int:
        """Effective rows that a component needs where covariances are bounded."""
        return 1

    def pseudo_moments(self, shape: Shape, shift: Array, k: int) -> tuple[float, Array, Array | float]:
        """Return what is added to sum_w and sum_x of each component, and to sum_xx, about `shift`, (d,) or (k, d)."""
        by = np.broadcast_to(self.mean - shift, (k, len(self.mean)))
        return self.shrinkage, self.shrinkage * by, shape.outer(self.shrinkage * by, by) + self._lambda(shape)

    def rows(self, shape: Shape, k: int, d: int) -> float:
        """Return what is added to N_k in the denominator of a covariance (tied: to their sum / K)."""
        of_covariance = 0.0 if self.scale is None else shape.prior_rows(self.dof, d) / (1 if shape.per_component else k)
        return of_covariance + (self.shrinkage > 0)

    def log_density(self, shape: Shape, means: Array, factors: Array) -> float:
        """Return the log density, nats, up to a constant. means : (k, d).  factors : of the covariances' precisions."""
        k, d = means.shape
        by = means - self.mean
        log_dets = np.broadcast_to(shape.log_det(factors, d), (k,)).sum()
        moments = shape.outer(self.shrinkage * by, by) + self._lambda(shape)
        return float(self.rows(shape, k, d) * log_dets - 0.5 * np.sum(shape.trace(factors, moments)))

    def _lambda(self, shape: Shape) -> Array | float:
        """Lambda as moments of the shape: of one component, or of all (tied)."""
        if self.scale is None:
            return 0.0
        own = from_covariance(shape, self.scale, 1)
        return shape.packed(own) if shape.per_component else own


@stored
@dataclass(frozen=True)
class Adapted:
    """The prior of MAP adaptation: `relevance` pseudo-rows of each component of an earlier fit.

    Normal-Wishart densities with tau_k = relevance, alpha_k = relevance + d and u_k = relevance Sigma_k, so that the M-step gives

        mu_k    = (relevance m_k + sum r x) / (relevance + N_k)
        Sigma_k = (relevance (Sigma'_k + (m_k - mu_k)(m_k - mu_k)ᵀ) + sum r (x - mu_k)(x - mu_k)ᵀ) / (relevance + N_k)

    for earlier means m and covariances Sigma'; of the other covariance types their part. [Gauvain and Lee 1994; Reynolds, Quatieri and Dunn 2000]

    Attributes
    ----------
    means : array, shape (k, d)
    covariances : array
        In the shape of the covariance type.
    relevance : float
        In rows.
    """

    means: Array
    covariances: Array
    relevance: float

    bounds: ClassVar[bool] = True
    least_rows: ClassVar[int] = 0  # a component without new rows stays as it was

    def pseudo_moments(self, shape: Shape, shift: Array, k: int) -> tuple[float, Array, Array]:
        """As `Prior.pseudo_moments`."""
        by = self.means - shift
        own = shape.outer(by, by) + shape.moments_of(self.covariances, *self.means.shape)
        return self.relevance, self.relevance * by, self.relevance * own

    def rows(self, shape: Shape, k: int, d: int) -> float:
        """As `Prior.rows`."""
        return self.relevance

    def log_density(self, shape: Shape, means: Array, factors: Array) -> float:
        """As `Prior.log_density`."""
        k, d = means.shape
        by = means - self.means
        log_dets = np.broadcast_to(shape.log_det(factors, d), (k,)).sum()
        moments = shape.outer(by, by) + shape.moments_of(self.covariances, k, d)
        return float(self.relevance * (log_dets - 0.5 * np.sum(shape.trace(factors, moments))))


def _auto(value: Any) -> Any:
    """`auto` is a prior without any part set."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError("write null for none, auto, or a mapping such as {shrinkage: 0.01}")
        return {}
    return value


class PriorSection(Section):
    """Conjugate priors, as pseudo-rows; parts that are not set are those of Fraley and Raftery (2007)."""

    weights: float = Option(1.0, ge=1, description="Dirichlet concentration of the weights; 1: none")
    shrinkage: float | None = Option(
        None, ge=0, description="weight of the data's mean in each mean, in rows; 0: none; null: 0.01"
    )
    dof: float | None = Option(
        None, gt=0, description="degrees of freedom of the covariances' inverse Wishart; null: features + 2"
    )
    scale: float | None = Option(
        None,
        ge=0,
        description="its scale, as a share of the data's covariance; 0: none; null: n_components^(-2/features)",
    )

    from_run: LocalPath | None = Option(
        None,
        description="an earlier run directory, whose components are the prior of these (MAP adaptation), in place of the other parts; "
        "null: none",
    )
    relevance: float | None = Option(
        None, gt=0, description="from_run: how many rows each of its components counts as; null: 16"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> PriorSection:
        if self.from_run is None and self.relevance is not None:
            raise ValueError(
                f"relevance: is for from_run, the run that components are adapted from; got {self.relevance:g} alone"
            )
        others = [name for name in ("weights", "shrinkage", "dof", "scale") if name in self.model_fields_set]
        others = [name for name in others if getattr(self, name) != type(self).model_fields[name].default]
        if self.from_run is not None and others:
            raise ValueError(f"{others[0]}: is part of another prior than from_run; leave one out")
        return self

    @model_validator(mode="after")
    def _no_dof_without_scale(self) -> PriorSection:
        if self.scale == 0 and self.dof is not None:
            raise ValueError(f"scale: 0 means no prior of covariances, but dof is {self.dof:g}; leave one out")
        return self

    def of(self, summary: Summary, k: int, floor: float, shape: Shape) -> Prior | Adapted:
        """Return the prior; parts that are not set are those of Fraley and Raftery (2007, sec. 4.2).

        Parameters
        ----------
        summary : Summary
            Of the rows, with the earlier run if there is one.
        k : int
            Components.
        floor : float
            Added to the variances, so that constant features have no scale of 0.
        shape : Shape
        """
        mean, covariance, d = summary.mean, summary.covariance, len(summary.mean)
        if self.from_run is not None:
            arrays = {"means": np.zeros((k, d)), "covariances": identity(shape, k, d)}  # without rows
            arrays = arrays if summary.earlier is None else summary.earlier.arrays
            return Adapted(arrays["means"], arrays["covariances"], self._relevance)
        factor = k ** (-2.0 / d) if self.scale is None else self.scale
        scale = factor * (full_matrix(covariance) + floor * np.eye(d)) if factor > 0 else None
        return Prior(mean, SHRINKAGE if self.shrinkage is None else self.shrinkage, self.dof or d + 2.0, scale)

    def concentration(self, summary: Summary, k: int) -> float | Array:
        """Return that of the weights' Dirichlet prior: of an earlier run 1 + relevance for each component, in proportion to its weights."""
        if self.from_run is None:
            return self.weights
        weights = np.full(k, 1.0 / k) if summary.earlier is None else summary.earlier.arrays["weights"]
        return np.asarray(1.0 + self._relevance * k * weights)

    @property
    def _relevance(self) -> float:
        return RELEVANCE if self.relevance is None else self.relevance


PriorOption = Annotated[PriorSection | None, BeforeValidator(_auto), AlsoWritten({"const": "auto"})]
