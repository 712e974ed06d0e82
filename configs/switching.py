"""Two latent variables in one model: which line a row belongs to, and which noise it has. Rows to try it on are drawn here too.

y = a_z + b_z' u + sigma_s * noise        z ~ line_weights, s ~ noise_weights, independent;  a row is (u, y)

em-pipeline run configs/switching.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field as Option
from scipy.special import logsumexp, xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.data.source import Source, even_bounds
from pipeline.models.base import Evidence, Expectation, LatentModel, RowArray, Totals, weighted_total
from pipeline.models.clusters import Summary
from pipeline.models.family import FamilySection
from pipeline.models.schema import POSITIVE, SIMPLEX, Field, Fields
from pipeline.models.words import Words

STEPS = 100  # of an M-step, which alternates between coefficients and variances


class Lines(NamedTuple):
    """line_weights : (l,).  noise_weights, variances : (s,).  coefficients : (l, p), an intercept and slopes."""

    line_weights: Array
    noise_weights: Array
    coefficients: Array
    variances: Array


@stored
@dataclass(frozen=True)
class LineStats(Additive):
    """Sums over rows for each pair of a line and a noise: weights (l, s), v v' (l, s, p, p), v y (l, s, p) and y² (l, s); v is (1, u)."""

    w: Array
    vv: Array
    vy: Array
    yy: Array


@stored
@dataclass(frozen=True)
class Switching(LatentModel):
    """Lines and noises that vary independently. n_inputs : columns of u."""

    n_lines: int
    n_noises: int
    n_inputs: int

    family: ClassVar[str] = "switching"
    words: ClassVar[Words] = Words("mixture of regressions", "A mixture of {line} regressions with {noise} noises")

    @property
    def fields(self) -> Fields:
        return {
            "line_weights": Field(("line",), SIMPLEX),
            "noise_weights": Field(("noise",), SIMPLEX),
            "coefficients": Field(("line", "coefficient")),
            "variances": Field(("noise",), POSITIVE),
        }

    @property
    def sizes(self) -> dict[str, int]:
        sizes = {"line": self.n_lines, "noise": self.n_noises, "coefficient": self.n_inputs + 1}
        return {**sizes, "feature": self.n_inputs + 1}

    def facts(self) -> dict[str, Any]:
        return {"n_lines": self.n_lines, "n_noises": self.n_noises}

    def params(self, **arrays: Array) -> Lines:
        return Lines(**arrays)

    def start(self, summary: Summary, rng: np.random.Generator) -> Lines:
        """Lines through a few random rows each, and standard deviations from a tenth of that of y on."""
        x = np.asarray(summary.sample.x, dtype=np.float64)
        p, deviation = self.n_inputs + 1, np.sqrt(summary.variance[-1])
        rows = [x[rng.choice(len(x), min(2 * p, len(x)), replace=False)] for _ in range(self.n_lines)]
        lines = np.stack([np.linalg.lstsq(_inputs(each), each[:, -1], rcond=None)[0] for each in rows])
        equal = [np.full(n, 1.0 / n) for n in (self.n_lines, self.n_noises)]
        return Lines(*equal, lines, (deviation * np.geomspace(0.1, 1.0, self.n_noises)) ** 2)

    def _log_joint(self, params: Lines, x: Array) -> Array:
        """(n, l, s) log p(x, line, noise)."""
        squared = (x[:, -1:] - _inputs(x) @ params.coefficients.T) ** 2
        of_noise = np.log(params.noise_weights) - 0.5 * np.log(2.0 * np.pi * params.variances)
        return np.log(params.line_weights)[:, None] + of_noise - 0.5 * squared[:, :, None] / params.variances

    def e_step(self, params: Lines, rows: Rows, kernels: Any) -> Expectation:
        x, w = np.asarray(rows.x, dtype=np.float64), np.ones(rows.n) if rows.weight is None else rows.weight
        log_joint = self._log_joint(params, x)
        score = logsumexp(log_joint, axis=(1, 2))
        posterior = np.exp(log_joint - score[:, None, None])
        r, v, y = posterior * w[:, None, None], _inputs(x), x[:, -1]
        vv = np.einsum("nls,np,nq->lspq", r, v, v, optimize=True)
        stats = LineStats(r.sum(axis=0), vv, np.einsum("nls,np,n->lsp", r, v, y), np.einsum("nls,n->ls", r, y * y))
        entropy = -float(w @ xlogy(posterior, posterior).sum(axis=(1, 2)))
        evidence = Evidence(rows.total_weight, entropy, weighted_total(rows.weight, score))
        return Expectation(stats, evidence, np.where(w > 0, score, np.inf))

    def m_step(self, stats: LineStats, params: Lines | None) -> Lines:
        """Coefficients given variances, and variances given coefficients, in turn: each raises the expected log joint."""
        variances = np.ones(self.n_noises) if params is None else params.variances
        for _ in range(STEPS):
            gram = np.einsum("lspq,s->lpq", stats.vv, 1.0 / variances)
            lines = np.linalg.solve(gram, np.einsum("lsp,s->lp", stats.vy, 1.0 / variances)[..., None])[..., 0]
            before, variances = variances, self._squares(stats, lines) / stats.w.sum(axis=0)
            if np.allclose(variances, before, rtol=1e-13, atol=0):
                break
        total = stats.w.sum()
        return Lines(stats.w.sum(axis=1) / total, stats.w.sum(axis=0) / total, lines, variances)

    def _squares(self, stats: LineStats, lines: Array) -> Array:
        """(s,) sums of squared residuals of each noise."""
        moved = np.einsum("lp,lspq,lq->ls", lines, stats.vv, lines) - 2.0 * np.einsum("lp,lsp->ls", lines, stats.vy)
        return np.asarray((stats.yy + moved).sum(axis=0))

    def expected_log_joint(self, stats: LineStats, params: Lines) -> float:
        of_labels = xlogy(stats.w.sum(axis=1), params.line_weights).sum()
        of_noises = xlogy(stats.w.sum(axis=0), params.noise_weights).sum()
        scale = stats.w.sum(axis=0) @ np.log(2.0 * np.pi * params.variances)
        squares = (self._squares(stats, params.coefficients) / params.variances).sum()
        return float(of_labels + of_noises - 0.5 * (scale + squares))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        possible = (totals.stats.w > 0).all() and (np.linalg.eigvalsh(totals.stats.vv) > 0).all()
        return totals if possible else None

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        return {**super().row_arrays(top_k), "line": RowArray("int32", -1), "noise": RowArray("int32", -1)}

    def predict(self, params: Lines, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return log p(x), and the most probable line and noise."""
        log_joint = self._log_joint(params, np.asarray(rows.x, dtype=np.float64))
        score = logsumexp(log_joint, axis=(1, 2))
        line, noise = logsumexp(log_joint, axis=2).argmax(axis=1), logsumexp(log_joint, axis=1).argmax(axis=1)
        return {"log_density": score, "line": line.astype(np.int32), "noise": noise.astype(np.int32)}

    def statistics_bytes(self) -> int:
        p = self.n_inputs + 1
        return 8 * self.n_lines * self.n_noises * (2 + p + p * p)


def _inputs(x: Array) -> Array:
    """(n, p): a column of ones, and all columns but the last."""
    return np.column_stack([np.ones(len(x)), x[:, :-1]])


class SwitchingSection(FamilySection):
    """A mixture of regressions with a switching variance; the last column of a row is the response."""

    family: Literal["switching"] = "switching"
    n_lines: int = Option(2, ge=1, description="how many regressions")
    n_noises: int = Option(2, ge=1, description="how many noises")

    words: ClassVar[Words] = Switching.words
    assignments: ClassVar[tuple[str, ...]] = ("soft",)
    inits: ClassVar[tuple[str, ...]] = ("random", "explicit")

    def build(self, summary: Summary, assignment: str) -> Switching:
        return Switching(self.n_lines, self.n_noises, len(summary.mean) - 1)


class DrawnRows(Source):
    """Rows of two lines, of which every fifth row on average has a wide noise; chunks of 1,000 rows."""

    truth: ClassVar[Lines] = Lines(
        np.array([0.6, 0.4]), np.array([0.8, 0.2]), np.array([[0.0, 2.0], [3.0, -1.0]]), np.array([0.04, 4.0])
    )

    def __init__(self, n: int = 20_000) -> None:
        self.n_features, self.dtype, self.bounds = 2, np.dtype(np.float64), even_bounds(n, 1000)

    def read(self, i: int) -> np.ndarray:
        rng, n = np.random.default_rng(i), int(self.bounds[i + 1] - self.bounds[i])
        line, noise = rng.choice(2, n, p=self.truth.line_weights), rng.choice(2, n, p=self.truth.noise_weights)
        u = rng.uniform(-2.0, 3.0, n)
        a, b = self.truth.coefficients[line].T
        return np.column_stack([u, a + b * u + np.sqrt(self.truth.variances[noise]) * rng.standard_normal(n)])
