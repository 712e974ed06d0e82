"""A user's model in JAX as a `LatentModel`: E-step, M-step or step, start, predictions, standard errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tiles
from pipeline.errors import InputError
from pipeline.models.ascent import Ascent, Point, is_accepted, newton_step, quasi_newton_step, shorter
from pipeline.models.autodiff import faults
from pipeline.models.autodiff.compiled import Shapes, float64, layout_of, on_tile, shapes_of, tile_rows
from pipeline.models.autodiff.declare import Layout, has
from pipeline.models.autodiff.information import InformationJob
from pipeline.models.autodiff.starting import start
from pipeline.models.autodiff.sufficient import Fit
from pipeline.models.base import Evidence, Expectation, LatentModel, RowArray, Totals, weighted_total
from pipeline.models.lengths import per_change
from pipeline.models.schema import Fields
from pipeline.models.words import Words

PAIRS = 10  # of points and gradients, of method gradient
STRICT = 1e-9  # a step this short is not tried: what is impossible there is an error
LARGEST = 600.0  # of a number without constraints, in extrapolated parameters

# What the E-step computes of a tile, by rule.
WANTED = {
    "m_step": ("gradient", "sums"),
    "sufficient": ("gradient", "sums", "counts"),
    "em": ("gradient", "complete"),
    "newton": ("gradient", "observed", "complete"),
    "gradient": ("gradient",),
}


@dataclass(frozen=True)
class JaxParams:
    """arrays : parameters by name.  u : (p,), the same without constraints."""

    arrays: Mapping[str, Array]
    u: Array


@stored
@dataclass(frozen=True)
class JaxSums(Additive):
    """Sums over rows; None where the rule needs none.

    Attributes
    ----------
    gradient : array, shape (p,)
        Of log p(X).
    sums : array, shape (n_sums,), or None
        Expected statistics that the user names.
    counts, constant : array, shape (k,), and float, or None
        Of responsibilities, and of the expected log joint at the reference.
    observed, complete : array, shape (p, p), or None
        Second derivatives of log p(X), and of the expected log joint.
    """

    gradient: Array
    sums: Array | None
    counts: Array | None
    constant: Array | None
    observed: Array | None
    complete: Array | None


@stored
@dataclass(frozen=True)
class AutodiffModel(LatentModel, Ascent):
    """A user's model.

    Attributes
    ----------
    user : JaxModel
    n_features : int
    rule : {"m_step", "sufficient", "em", "newton", "gradient"}
        How parameters are updated.
    anchors : array, shape (k, r, d)
        Rows that determine the expected log joint, of rule sufficient; otherwise empty.
    reference : array, shape (p,)
        Parameters that the constant of the expected log joint refers to.
    fixed : tuple of str
    is_trial : bool
        Whether an E-step at impossible parameters returns NaN instead of raising.
    """

    user: Any
    n_features: int
    rule: str
    anchors: Array
    reference: Array
    fixed: tuple[str, ...] = ()
    is_trial: bool = False

    @property
    def family(self) -> str:  # type: ignore[override]  # the user's
        return type(self.user).__name__

    @property
    def words(self) -> Words:  # type: ignore[override]  # the user's
        name = self.user.name or self.family
        return Words(name, name)

    @property
    def layout(self) -> Layout:
        """Where the parameters are in one vector."""
        return layout_of(self.user, self.n_features)

    @property
    def shapes(self) -> Shapes:
        """What the user's functions return."""
        return shapes_of(self.user, self.n_features)

    @property
    def fields(self) -> Fields:
        return self.layout.fields

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.layout.sizes

    @property
    def label(self) -> str:
        return "-".join([self.family, *(f"{name}{value}" for name, value in vars(self.user).items())])

    def facts(self) -> dict[str, Any]:
        options = {name: value for name, value in vars(self.user).items() if isinstance(value, (int, float, str))}
        return {**options, "update": self.rule, "fixed": list(self.fixed)}

    @property
    def ascent(self) -> AutodiffModel | None:
        return self if self.rule in ("em", "newton", "gradient") else None

    @property
    def steps(self) -> Any:
        return self.rule

    @property
    def memory(self) -> int:
        return PAIRS + 1 if self.rule == "gradient" else 1

    @property
    def knows_bound(self) -> bool:
        return self.rule == "sufficient"

    @property
    def extrapolates(self) -> bool:
        return self.ascent is None

    @property
    def free(self) -> Array:
        """Indices of the numbers that are estimated."""
        parts = [
            np.arange(part.start, part.stop) for name, part in self.layout.slices.items() if name not in self.fixed
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def params(self, **arrays: Array) -> JaxParams:
        return JaxParams(arrays, self.layout.to_real(arrays))

    def arrays(self, params: JaxParams) -> dict[str, Array]:
        return dict(params.arrays)

    def _moved(self, params: JaxParams, u: Array) -> JaxParams:
        """Parameters at u, without rounding of those that are fixed."""
        arrays = self.layout.from_real(u)
        return self.params(**{name: params.arrays[name] if name in self.fixed else arrays[name] for name in arrays})

    def start(self, summary: Any, rng: np.random.Generator) -> JaxParams:
        return self.params_from_arrays(start(self.user, self.n_features, summary.sample.x, rng))

    def on_rows(self, params: JaxParams, rows: Rows, *wanted: str) -> Iterator[tuple[slice, Array, dict[str, Array]]]:
        """Yield tiles of rows, their weights (t,), and what is wanted of them; values of rows of weight 0 mean nothing."""
        second = any(name in ("observed", "complete", "gradients") for name in wanted)
        height = tile_rows(self.user, self.n_features, second)
        function = on_tile(self.user, self.n_features, wanted, height)
        for part in tiles(rows.n, height):
            w = np.ones(part.stop - part.start) if rows.weight is None else rows.weight[part]
            possible = np.flatnonzero(w > 0)
            x = np.asarray(rows.x[part], dtype=np.float64)
            label = np.full(len(w), -1) if rows.label is None else self._checked(rows, part)
            # Padded, and rows of weight 0 replaced, by a possible row, so that no derivative is NaN.
            source = np.where(w > 0, np.arange(len(w)), possible[0] if len(possible) else 0)
            source = np.concatenate([source, np.full(height - len(w), source[0])])
            padded = np.concatenate([w, np.zeros(height - len(w))])
            found = function(params.u, self.reference, x[source], padded, label[source])
            per_row = {"score", "posterior", "gradients"}
            yield part, w, {name: value[: len(w)] if name in per_row else value for name, value in found.items()}

    def _checked(self, rows: Rows, part: slice) -> Array:
        assert rows.label is not None
        k, label = self.shapes.n_labels, rows.label[part]
        if (label >= k).any():
            i = int((label >= k).argmax())
            raise InputError(
                f"data.labels: row {rows.start + part.start + i} has label {label[i]}, expected -1 (not known) to {k - 1}. "
                "Correct the labels, or leave them out."
            )
        return label

    def __getstate__(self) -> dict[str, Any]:
        """Take the version of JAX along to other processes, whose bits would differ with another."""
        return {**vars(self), "_jax": version("jax")}

    def _refuse_other_jax(self) -> None:
        sent = vars(self).get("_jax")
        if sent is not None and sent != (here := version("jax")):
            raise InputError(
                f"a worker has jax {here} (the process that started the job {sent}); results could depend on which worker computes "
                f"what. Where the worker runs: pip install jax=={sent}"
            )

    def e_step(self, params: JaxParams, rows: Rows, kernels: Any) -> Expectation:
        self._refuse_other_jax()
        score, entropy, total = np.empty(rows.n), 0.0, None
        for part, w, found in self.on_rows(params, rows, *WANTED[self.rule]):
            score[part] = np.where(w > 0, found["score"], np.inf)
            if not self.is_trial:
                faults.refuse(self, params, rows, part, w, found)
            entropy += float(found.get("entropy", np.nan))
            rest = (found.get(name) for name in ("sums", "counts", "constant", "observed", "complete"))
            each = JaxSums(found["gradient"], *rest)
            total = each if total is None or not (w > 0).any() else total + each
        assert total is not None, "a chunk has at least one row"
        labels = self.shapes.n_labels > 0
        log_likelihood = weighted_total(rows.weight, np.where(np.isposinf(score), 0.0, score))
        entropy = entropy if labels else (np.nan if has(self.user, "e_step") else 0.0)
        evidence = Evidence(rows.total_weight, entropy, log_likelihood, entropy if labels else None)
        return Expectation(total, evidence, score)

    def m_step(self, stats: JaxSums, params: JaxParams | None) -> JaxParams:
        assert params is not None and stats.sums is not None, "only with a rule that has an M-step"
        if self.rule == "sufficient":
            fit = self._fit(stats)
            return self._moved(params, fit.maximum(params.u, self.free))
        with float64(), faults.named(self.user, "m_step"):
            found = self.user.m_step(self.shapes.named(stats.sums))
            found = {name: np.asarray(found[name], dtype=np.float64) for name in self.fields}
        for name, value in found.items():
            if value.shape != self.layout.shapes[name]:
                expected = f"{name} of shape {self.layout.shapes[name]}"
                raise faults.wrong(self.user, "m_step", expected, value)
        return self.params(**{**found, **{name: params.arrays[name] for name in self.fixed}})

    def _fit(self, stats: JaxSums) -> Fit:
        assert stats.sums is not None and stats.counts is not None
        return Fit(self.user, self.anchors, stats.counts, self.shapes.named(stats.sums))

    def expected_log_joint(self, stats: JaxSums, params: JaxParams) -> float:
        """NaN where it is not known from the sums."""
        if self.rule != "sufficient":
            return np.nan
        fit = self._fit(stats)
        assert stats.constant is not None
        return float(stats.constant + fit(params.u)["value"] - fit(self.reference)["value"])

    def is_valid(self, params: JaxParams, stats: JaxSums) -> bool:
        return super().is_valid(params, stats) and bool((np.abs(params.u[self.free]) < LARGEST).all())

    def fisher_norm(self, totals: Totals, params: JaxParams, new: JaxParams) -> float:
        """sqrt(gᵀΔ): the gradient is I Δ to first order."""
        free = self.free
        square = totals.stats.gradient[free] @ (new.u - params.u)[free] / totals.evidence.weight
        return float(np.sqrt(max(0.0, square)))

    def change_norm(self, change: Totals, totals: Totals, params: JaxParams) -> float:
        """By differences of the M-step, in parameters without constraints."""
        return per_change(self, change, totals, params, lambda new: float(np.linalg.norm(new.u - params.u)))

    def ascend(self, trail: Sequence[Point]) -> JaxParams:
        params, totals, free = self.params(**trail[-1].arrays), trail[-1].totals, self.free
        stats, step = totals.stats, np.zeros(self.layout.size)
        if self.rule == "gradient":
            points = [self.layout.to_real(point.arrays)[free] for point in trail]
            gradients = [point.totals.stats.gradient[free] for point in trail]
            step[free] = quasi_newton_step(points, gradients, totals.evidence.weight)
        else:
            block = np.ix_(free, free)
            of = (None if each is None else -each[block] for each in (stats.observed, stats.complete))
            step[free] = newton_step(stats.gradient[free], *of)
        return self._moved(params, params.u + step)

    def _gain(self, trail: Sequence[Point], params: JaxParams, totals: Totals) -> tuple[float, float, float]:
        """Objective at the newest point and now, and the gain that the gradient promised."""
        last, before = self.params(**trail[-1].arrays), trail[-1].totals
        slope = float(before.stats.gradient[self.free] @ (params.u - last.u)[self.free])
        return self.objective(before, last), self.objective(totals, params), slope

    def accepts(self, trail: Sequence[Point], params: JaxParams, totals: Totals) -> bool:
        finite = np.isfinite(totals.stats.gradient).all()
        return bool(finite) and is_accepted(*self._gain(trail, params, totals))

    def shorten(self, trail: Sequence[Point], params: JaxParams, totals: Totals) -> JaxParams:
        last, share = self.params(**trail[-1].arrays), shorter(*self._gain(trail, params, totals))
        u = np.where(np.isfinite(params.u), params.u, last.u)
        return self._moved(last, last.u + share * (u - last.u))

    def trying(self, trail: Sequence[Point], params: JaxParams) -> AutodiffModel:
        moved = np.abs(params.u - self.layout.to_real(trail[-1].arrays)).max()
        return replace(self, is_trial=not moved < STRICT)

    def score_rows(self, params: JaxParams, x: Any, kernels: Any) -> Array:
        return np.concatenate([found["score"] for _, _, found in self.on_rows(params, Rows(x))] or [np.empty(0)])

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """The score, and of a model with labels the most probable one, and the `top_k` most probable with their probabilities."""
        ranked = {
            "top_component": RowArray("int32", -1, ranked=True),
            "top_responsibility": RowArray("float32", np.nan, ranked=True),
        }
        label = {"label": RowArray("int32", -1)} if self.shapes.n_labels else {}
        return super().row_arrays(top_k) | (ranked if 0 < top_k <= self.shapes.n_labels else {}) | label

    def predict(self, params: JaxParams, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        found = [each for _, _, each in self.on_rows(params, rows, "posterior")]
        arrays = {self.words.score: np.concatenate([np.empty(0), *(each["score"] for each in found)])}
        if k := self.shapes.n_labels:
            posterior = np.concatenate([np.empty((0, k)), *(each["posterior"] for each in found)])
            arrays["label"] = posterior.argmax(axis=1).astype(np.int32)
            if 0 < top_k <= k:
                top = np.argsort(-posterior, axis=1, kind="stable")[:, :top_k]
                arrays["top_component"] = top.astype(np.int32)
                arrays["top_responsibility"] = np.take_along_axis(posterior, top, axis=1).astype(np.float32)
        return arrays

    def statistics_bytes(self) -> int:
        p = self.layout.size
        return 8 * (
            p
            + self.shapes.n_sums
            + self.shapes.n_labels
            + p * p * sum(w in ("observed", "complete") for w in WANTED[self.rule])
        )

    def score_products(self, params: JaxParams | None, fully: bool) -> InformationJob:
        if not fully:
            raise InputError(
                "output.standard_errors: given-covariances is for models with covariances alone; set it to true."
            )
        return InformationJob(self, params)
