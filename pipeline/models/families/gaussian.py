"""The section of Gaussian mixtures."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import OneOrMore, Section
from pipeline.models.covariance import full_matrix
from pipeline.models.family import FamilySection, Summary
from pipeline.models.gaussian import Gaussian
from pipeline.models.prior import SHRINKAGE, Prior
from pipeline.models.words import Words


def _auto(value: Any) -> Any:
    """`auto` is the prior of which every part is left out."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError("write null for none, auto, or a mapping such as {shrinkage: 0.01}")
        return {}
    return value


class PriorSection(Section):
    """Conjugate priors, as rows that are imagined beside the data's; what is left out is Fraley and Raftery's (2007)."""

    weights: float = Field(1.0, ge=1, description="Dirichlet concentration of the weights; 1: none")
    shrinkage: float | None = Field(
        None, ge=0, description="how many rows the pull of each mean to the data's mean counts as; 0: none; null: 0.01"
    )
    dof: float | None = Field(
        None, gt=0, description="degrees of freedom of the covariances' inverse Wishart; null: features + 2"
    )
    scale: float | None = Field(
        None,
        ge=0,
        description="its scale, as a share of the data's covariance; 0: none; null: n_components^(-2/features)",
    )

    @model_validator(mode="after")
    def _no_dof_without_scale(self) -> PriorSection:
        if self.scale == 0 and self.dof is not None:
            raise ValueError(f"scale: 0 means no prior of covariances, but dof is {self.dof:g}; leave one out")
        return self


class GaussianSection(FamilySection):
    """A mixture of Gaussians."""

    family: Literal["gaussian"] = Field("gaussian", description="a mixture of Gaussians")
    covariance_type: OneOrMore[Literal["full", "tied", "diag", "spherical"]] = Field(
        ("full",), description="the shape of its covariances, or a list to choose from"
    )
    reg_covar: float = Field(
        1e-6,
        ge=0,
        description="added to each covariance's diagonal after an M-step; under a prior of covariances, to the covariance "
        "that its scale comes from",
    )
    prior: Annotated[PriorSection | None, BeforeValidator(_auto)] = Field(
        None,
        description="conjugate priors, for the most probable parameters; null: none; auto: Fraley and Raftery's; or",
    )
    fixed: list[Literal["weights", "means", "covariances"]] = Field(
        default_factory=list, description="parts that stay at their initial values"
    )

    also_called: ClassVar[tuple[str, ...]] = ("gmm",)
    words: ClassVar[Words] = Gaussian.words
    second_moments: ClassVar[Literal["full", "diag", "none"]] = "full"
    can_prune: ClassVar[bool] = True
    has_standard_errors: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {"data": {"source": "images", "path": "photographs"}}
    template_help: ClassVar[str] = (
        "Set data.source and data.path to your data, and model.n_components to how many components you look for. As it is, it "
        "fits the 8 x 8 patches of two photographs that the installation brings along."
    )

    @property
    def fixed_parts(self) -> tuple[str, ...]:
        return tuple(self.fixed)

    def build(self, summary: Summary, assignment: str) -> Gaussian:
        [k], [covariance_type] = self.n_components, self.covariance_type
        # Rounded to float32, the reference point is the same in either precision, and moments need not be moved to it.
        with np.errstate(over="ignore"):
            shift = summary.mean.astype(np.float32).astype(np.float64)
        shift = np.where(np.isfinite(shift), shift, summary.mean)
        prior = self._prior(summary, k)
        return Gaussian(k, shift, covariance_type, self.reg_covar, assignment, self.fixed_parts, prior)

    def _prior(self, summary: Summary, k: int) -> Prior | None:
        """The prior; what it leaves open is as Fraley and Raftery (2007, sec. 4.2) have it."""
        asked, d = self.prior, len(summary.mean)
        if asked is None:
            return None
        shrinkage = SHRINKAGE if asked.shrinkage is None else asked.shrinkage
        factor = k ** (-2.0 / d) if asked.scale is None else asked.scale
        # reg_covar keeps features that never vary from a scale of 0, as it keeps covariances where there is no prior.
        spread = full_matrix(summary.covariance) + self.reg_covar * np.eye(d)
        scale = factor * spread if factor > 0 else None
        return Prior(summary.mean, shrinkage, asked.dof or d + 2.0, scale, asked.weights)

    def statistics_bytes(self, d: int) -> int:
        [k], [shape] = self.n_components, self.covariance_type
        second = {"full": k * d * (d + 1) // 2, "tied": d * d, "diag": k * d, "spherical": k}[shape]
        return super().statistics_bytes(d) + 8 * second

    def parameter_bytes(self, d: int) -> int:
        [k], [shape] = self.n_components, self.covariance_type
        second = {"full": k * d * d, "tied": d * d, "diag": k * d, "spherical": k}[shape]
        return super().parameter_bytes(d) + 8 * second
