"""Conjugate priors of Gaussian components, as what a few imagined rows would add to the statistics.

    mu_k | Sigma_k ~ N(m, Sigma_k / kappa)    Sigma_k ~ inverse Wishart(nu, Lambda)

(diag: each variance ~ inverse gamma(nu/2, lambda_j/2); spherical: the one variance, with the mean of the lambda_j.) The
M-step then maximizes free energy + log prior in closed form: kappa rows at m join each mean, and

    full       Sigma_k  = (Lambda + kappa N_k/(kappa + N_k) (xbar_k - m)(xbar_k - m)ᵀ + W_k) / (nu + N_k + d + 2)
    tied       Sigma    = the same, summed over components, Lambda once                      / (nu + N + K + d + 1)
    diag       sigma²_k = its diagonal                                                       / (nu + N_k + 3)
    spherical  sigma²_k = (trace Lambda / d + trace of the rest)                             / (nu + (N_k + 1) d + 2)

[after Fraley and Raftery 2007, sec. 3-4; the M-step is derived from the densities above]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, model_validator
from pydantic import Field as Option

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.config import Section
from pipeline.models.covariance import Shape, from_covariance, full_matrix

SHRINKAGE = 0.01  # rows: Fraley and Raftery's, found to make the BIC curve smooth and to change little else


@stored
@dataclass(frozen=True)
class Prior:
    """What is believed of Gaussian components before rows are seen.

    mean : (d,), where means are drawn to.  shrinkage : kappa, how many rows that counts as; 0: means are free.
    dof : nu.  scale : (d, d) Lambda, of which narrower shapes take their part; None: covariances are free.

    Nothing in it depends on how many components there are, so one prior serves models of any K.
    """

    mean: Array
    shrinkage: float = SHRINKAGE
    dof: float = 0.0
    scale: Array | None = None

    def pseudo_moments(self, shape: Shape, shift: Array, k: int) -> tuple[float, Array, Array | float]:
        """What is added to sum_w and sum_x of each component, and to sum_xx, all about `shift` (d,).

        A fixed mean then is where the moments are taken about, as it is for rows.
        """
        by = np.tile(self.mean - shift, (k, 1))
        return self.shrinkage, self.shrinkage * by[0], shape.outer(self.shrinkage * by, by) + self._lambda(shape)

    def rows(self, shape: Shape, k: int, d: int) -> float:
        """What is added to each N_k where a covariance is moments divided by rows (tied: to their sum / K)."""
        of_covariance = 0.0 if self.scale is None else shape.prior_rows(self.dof, d) / (1 if shape.per_component else k)
        return of_covariance + (self.shrinkage > 0)

    def log_density(self, shape: Shape, means: Array, factors: Array) -> float:
        """Log of the prior's density, nats, up to a constant. means : (k, d).  factors : of the covariances' precisions."""
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


def _auto(value: Any) -> Any:
    """`auto` is the prior of which every part is left out."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError("write null for none, auto, or a mapping such as {shrinkage: 0.01}")
        return {}
    return value


class PriorSection(Section):
    """Conjugate priors, as rows that are imagined beside the data's; what is left out is Fraley and Raftery's (2007)."""

    weights: float = Option(1.0, ge=1, description="Dirichlet concentration of the weights; 1: none")
    shrinkage: float | None = Option(
        None, ge=0, description="how many rows the pull of each mean to the data's mean counts as; 0: none; null: 0.01"
    )
    dof: float | None = Option(
        None, gt=0, description="degrees of freedom of the covariances' inverse Wishart; null: features + 2"
    )
    scale: float | None = Option(
        None,
        ge=0,
        description="its scale, as a share of the data's covariance; 0: none; null: n_components^(-2/features)",
    )

    @model_validator(mode="after")
    def _no_dof_without_scale(self) -> PriorSection:
        if self.scale == 0 and self.dof is not None:
            raise ValueError(f"scale: 0 means no prior of covariances, but dof is {self.dof:g}; leave one out")
        return self

    def of(self, mean: Array, covariance: Array, k: int, floor: float) -> Prior:
        """Return the prior; what is left out is as in Fraley and Raftery (2007, sec. 4.2).

        Parameters
        ----------
        mean, covariance : array, shape (d,), (d, d) or (d,)
            Of the rows.
        k : int
            Components.
        floor : float
            Added to the variances: it keeps features that never vary from a scale of 0.
        """
        d = len(mean)
        factor = k ** (-2.0 / d) if self.scale is None else self.scale
        scale = factor * (full_matrix(covariance) + floor * np.eye(d)) if factor > 0 else None
        return Prior(mean, SHRINKAGE if self.shrinkage is None else self.shrinkage, self.dof or d + 2.0, scale)


PriorOption = Annotated[PriorSection | None, BeforeValidator(_auto)]
