"""Factor analysis, a latent-variable model without components, in a file of a user's own.

x = mean + loadings z + noise, z ~ N(0, I), noise ~ N(0, diag(noise_variance)). [Rubin and Thayer 1982]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field as Option

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.config import OneOrMore
from pipeline.models.base import Evidence, Expectation, LatentModel, Totals, weighted_total
from pipeline.models.clusters import Summary
from pipeline.models.family import FamilySection
from pipeline.models.schema import POSITIVE, Field, Fields
from pipeline.models.words import Words

LOG_2PI = np.log(2.0 * np.pi)


class Factors(NamedTuple):
    """mean : (d,).  loadings : (d, q).  noise_variance : (d,)."""

    mean: Array
    loadings: Array
    noise_variance: Array


@stored
@dataclass(frozen=True)
class FactorStats(Additive):
    """Sums of w (), w y² (d,), w y ẑᵀ (d, 1 + q) and w ẑẑᵀ; y is a row less the shift, ẑ is (1, z)."""

    w: float
    yy: Array
    yz: Array
    zz: Array


@stored
@dataclass(frozen=True)
class FactorAnalysis(LatentModel):
    """Factor analysis with q factors. shift : (d,), about which moments are summed."""

    n_factors: int
    shift: Array

    family: ClassVar[str] = "factor-analysis"
    words: ClassVar[Words] = Words(name="factor analysis", title="Factor analysis with {factor} factors")

    @property
    def fields(self) -> Fields:
        return {
            "mean": Field(("feature",)),
            "loadings": Field(("feature", "factor")),
            "noise_variance": Field(("feature",), POSITIVE),
        }

    @property
    def sizes(self) -> dict[str, int]:
        return {"feature": len(self.shift), "factor": self.n_factors}

    @property
    def label(self) -> str:
        return f"q{self.n_factors}"

    def facts(self) -> dict[str, Any]:
        return {"n_factors": self.n_factors}

    def params(self, **arrays: Array) -> Factors:
        return Factors(**arrays)

    def start(self, summary: Summary, rng: np.random.Generator) -> Factors:
        """Random loadings that explain half of the variance."""
        drawn = rng.normal(size=(len(self.shift), self.n_factors))
        scale = np.sqrt(0.5 * summary.variance / (drawn * drawn).sum(axis=1))
        return Factors(np.array(summary.mean), scale[:, None] * drawn, 0.5 * summary.variance)

    def e_step(self, params: Factors, rows: Rows, kernels: Any) -> Expectation:
        q, w = self.n_factors, np.ones(rows.n) if rows.weight is None else rows.weight
        y = np.asarray(rows.x, dtype=np.float64) - self.shift
        about = y - (params.mean - self.shift)
        scaled = params.loadings / params.noise_variance[:, None]
        variance = np.linalg.inv(np.eye(q) + params.loadings.T @ scaled)  # of z given x
        z = about @ scaled @ variance
        log_det = np.log(params.noise_variance).sum() - np.linalg.slogdet(variance)[1]
        squared = (about * about) @ (1.0 / params.noise_variance) - np.einsum("ij,ij->i", z, about @ scaled)
        score = -0.5 * (len(self.shift) * LOG_2PI + log_det + squared)
        total = float(w.sum())
        ones = np.column_stack([np.ones(rows.n), z])
        zz = (ones.T * w) @ ones
        zz[1:, 1:] += total * variance
        stats = FactorStats(total, w @ (y * y), (y.T * w) @ ones, zz)
        entropy = 0.5 * total * (q * (1.0 + LOG_2PI) + np.linalg.slogdet(variance)[1])
        evidence = Evidence(total, float(entropy), weighted_total(rows.weight, score))
        return Expectation(stats, evidence, np.where(w > 0, score, np.inf))

    def m_step(self, stats: FactorStats, params: Factors | None) -> Factors:
        slopes = np.linalg.solve(stats.zz, stats.yz.T).T
        left = (stats.yy - np.einsum("ij,ij->i", slopes, stats.yz)) / stats.w
        return Factors(self.shift + slopes[:, 0], slopes[:, 1:], left)

    def expected_log_joint(self, stats: FactorStats, params: Factors) -> float:
        slopes = np.column_stack([params.mean - self.shift, params.loadings])
        squares = stats.yy + np.einsum("ij,ij->i", slopes, slopes @ stats.zz - 2.0 * stats.yz)
        of_rows = stats.w * np.log(params.noise_variance).sum() + (squares / params.noise_variance).sum()
        of_factors = np.trace(stats.zz) - stats.zz[0, 0]
        return float(-0.5 * (of_rows + of_factors + stats.w * (len(self.shift) + self.n_factors) * LOG_2PI))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        return totals if np.linalg.eigvalsh(totals.stats.zz)[0] > 0 else None

    def statistics_bytes(self) -> int:
        d, q = len(self.shift), self.n_factors
        return 8 * (1 + d * (2 + q) + (1 + q) ** 2)

    def n_free_parameters(self) -> int:
        """Loadings are known up to a rotation of the factors."""
        return super().n_free_parameters() - self.n_factors * (self.n_factors - 1) // 2


class FactorSection(FamilySection):
    """Factor analysis."""

    family: Literal["factor-analysis"] = "factor-analysis"
    n_factors: OneOrMore[Annotated[int, Option(ge=1)]] = Option((2,), description="how many factors")

    words: ClassVar[Words] = FactorAnalysis.words
    assignments: ClassVar[tuple[str, ...]] = ("soft",)
    inits: ClassVar[tuple[str, ...]] = ("random", "explicit")

    def build(self, summary: Summary, assignment: str) -> FactorAnalysis:
        [q] = self.n_factors
        return FactorAnalysis(q, np.asarray(summary.mean, dtype=np.float64))
