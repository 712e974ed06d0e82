"""Latent classes over columns of different kinds: log p(x | k) = sum of log p(x_j | k) over columns, each of its own distribution.

A column is gaussian, poisson, bernoulli or categorical. Columns are independent within a class, so a component is a product of
components, one of each kind, and its statistics are theirs side by side. [Everitt 1988; Hunt and Jorgensen 1999]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field as Option
from scipy.special import xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.errors import InputError, did_you_mean
from pipeline.models.clusters import NoRows, Summary
from pipeline.models.component import Component
from pipeline.models.families.bernoulli import Bernoulli
from pipeline.models.families.categorical import MOST, Categorical
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.families.poisson import Poisson
from pipeline.models.family import ClusterSection
from pipeline.models.incomplete import filled
from pipeline.models.mixture import Mixture
from pipeline.models.moments import GaussianStats
from pipeline.models.schema import Field, Fields
from pipeline.models.seen import OfSeenEntries, OfSeenMoments
from pipeline.models.words import Words

KINDS = ("gaussian", "poisson", "bernoulli", "categorical")
Kind = Literal["gaussian", "poisson", "bernoulli", "categorical"]


@dataclass(frozen=True)
class Kinds:
    """parts : the parameters of each kind that there is, by its name."""

    parts: dict[str, Any]


@stored
@dataclass(frozen=True)
class KindStats(Additive):
    """The statistics of the columns of each kind; None where there are none."""

    gaussian: Any = None
    poisson: Any = None
    bernoulli: Any = None
    categorical: Any = None


class Part(NamedTuple):
    """The columns of one kind. at : (m,) their positions.  component : theirs."""

    at: Array
    component: Any


@stored
@dataclass(frozen=True)
class Columns(Component):
    """Products of components by columns.

    names, kinds : of each column.  categories : (d,), of the categorical ones.  reg_covar, concentration : as of the kinds.
    """

    n_components: int
    shift: Array
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    categories: Array
    reg_covar: float = 1e-6
    concentration: float = 1.1
    fixed: tuple[str, ...] = ()

    family: ClassVar[str] = "columns"
    words: ClassVar[Words] = Words(
        "latent class model of columns",
        "A mixture of {k} classes over columns of different kinds",
        component="class",
        components="classes",
        location="location",
    )
    impossible_advice: ClassVar[str] = (
        "A value does not fit the kind of its column in model.columns: bernoulli takes 0 and 1, poisson whole numbers from 0, "
        "categorical codes below its number of categories."
    )

    @property
    def parts(self) -> dict[str, Part]:
        """What each kind that there is consists of, in the order of KINDS."""
        at = {kind: np.flatnonzero([each == kind for each in self.kinds]) for kind in KINDS if kind in self.kinds}
        return {kind: Part(own, self._component(kind, own)) for kind, own in at.items()}

    def with_missing(self) -> Columns:
        return IncompleteColumns(**vars(self))

    def _component(self, kind: str, at: Array) -> Component:
        k, shift = self.n_components, self.shift[at]
        fixed = tuple(name.removeprefix(f"{kind}_") for name in self.fixed if name.startswith(f"{kind}_"))
        if kind == "gaussian":
            return Gaussian(k, shift, "diag", self.reg_covar, fixed)
        if kind == "categorical":
            return Categorical(k, shift, self.categories[at], self.concentration, fixed)
        return (Poisson if kind == "poisson" else Bernoulli)(k, shift, self.concentration, fixed)

    @property
    def location(self) -> str:  # type: ignore[override]  # of the first kind
        """The locations of the first kind that there is."""
        kind, part = next(iter(self.parts.items()))
        return f"{kind}_{part.component.location}"

    @property
    def fields(self) -> Fields:
        found: dict[str, Field] = {}
        for kind, part in self.parts.items():
            names = {f"{kind}_column": [self.names[j] for j in part.at]}
            for name, (dims, support, _) in part.component.fields.items():
                own = tuple(f"{kind}_column" if dim == "feature" else dim for dim in dims)
                found[f"{kind}_{name}"] = Field(own, support, names)
        return found

    @property
    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for kind, part in self.parts.items():
            found |= {f"{kind}_column": len(part.at), **part.component.sizes}
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "columns": dict(zip(self.names, self.kinds, strict=True)),
            "concentration": self.concentration,
            "reg_covar": self.reg_covar,
        }

    @property
    def floor(self) -> float:
        return self.reg_covar if "gaussian" in self.kinds else 0.0

    @property
    def least_rows(self) -> int:
        return max(part.component.least_rows for part in self.parts.values())

    def theta(self, **arrays: Array) -> Kinds:
        found = {}
        for kind, part in self.parts.items():
            own = {name: arrays[f"{kind}_{name}"] for name in part.component.fields}
            found[kind] = part.component.theta(**own)
        return Kinds(found)

    def arrays(self, theta: Kinds) -> dict[str, Array]:
        return {
            f"{kind}_{name}": value
            for kind, part in self.parts.items()
            for name, value in part.component.arrays(theta.parts[kind]).items()
        }

    def log_joint(self, theta: Kinds, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        total = np.tile(log_weights, (x.shape[0], 1)).astype(np.float64)
        for kind, (at, component) in self.parts.items():
            own = _columns(x, at)
            total += component.log_joint(theta.parts[kind], np.zeros(self.n_components), own, kernels)
            if kind == "poisson":
                total[((own < 0) | (own > np.floor(own))).any(axis=1)] = -np.inf
        return total

    def statistics(self, theta: Kinds | None, x: Matrix, resp: Array) -> KindStats:
        return KindStats(
            **{
                kind: component.statistics(None if theta is None else theta.parts[kind], _columns(x, at), resp)
                for kind, (at, component) in self.parts.items()
            }
        )

    def statistics_bytes(self) -> int:
        return sum(int(part.component.statistics_bytes()) for part in self.parts.values())

    def m_step(self, stats: KindStats, sum_w: Array, theta: Kinds | None) -> Kinds:
        return Kinds(
            {
                kind: part.component.m_step(getattr(stats, kind), sum_w, None if theta is None else theta.parts[kind])
                for kind, part in self.parts.items()
            }
        )

    def expected_log_joint(self, theta: Kinds, weights: Array, sum_w: Array, stats: KindStats) -> float:
        one, total = np.ones(self.n_components), float(xlogy(sum_w, weights).sum())
        for kind, part in self.parts.items():
            total += part.component.expected_log_joint(theta.parts[kind], one, sum_w, getattr(stats, kind))
        return total

    def log_prior(self, theta: Kinds) -> float:
        return sum(float(part.component.log_prior(theta.parts[kind])) for kind, part in self.parts.items())

    def step_squares(self, stats: KindStats, sum_w: Array, theta: Kinds, new: Kinds) -> tuple[float, ...]:
        """Those of the kinds: they add, as their log densities do."""
        found: list[float] = []
        for kind, part in self.parts.items():
            found += part.component.step_squares(getattr(stats, kind), sum_w, theta.parts[kind], new.parts[kind])
        return tuple(found)

    def change_squares(
        self, change: KindStats, change_w: Array, stats: KindStats, sum_w: Array, theta: Kinds
    ) -> tuple[float, ...]:
        found: list[float] = []
        for kind, part in self.parts.items():
            moved, own = getattr(change, kind), getattr(stats, kind)
            found += part.component.change_squares(moved, change_w, own, sum_w, theta.parts[kind])
        return tuple(found)

    def feasible(self, stats: KindStats, known: KindStats) -> KindStats:
        return KindStats(
            **{
                kind: part.component.feasible(getattr(stats, kind), getattr(known, kind))
                for kind, part in self.parts.items()
            }
        )

    def collapsed(self, theta: Kinds, sum_w: Array) -> list[tuple[int, str]]:
        found: dict[int, str] = {}
        for kind, part in self.parts.items():
            found = dict(part.component.collapsed(theta.parts[kind], sum_w)) | found
        return sorted(found.items())

    def reset(
        self, new: Kinds, old: Kinds, stats: KindStats, sum_w: Array, collapsed: Array, places: Mapping[int, Array]
    ) -> Kinds:
        found = {}
        for kind, (at, component) in self.parts.items():
            moments, own = getattr(stats, kind), {k: row[at] for k, row in places.items()}
            found[kind] = component.reset(new.parts[kind], old.parts[kind], moments, sum_w, collapsed, own)
        return Kinds(found)

    def broken(self, theta: Kinds) -> Array:
        each = [part.component.broken(theta.parts[kind]) for kind, part in self.parts.items()]
        return np.asarray(np.any(each, axis=0))

    def start_at(self, rows: Array, summary: Summary | None) -> Kinds:
        found = {}
        for kind, (at, component) in self.parts.items():
            component, own = replace(component, n_components=len(rows)), summary and _of_columns(summary, at)
            found[kind] = component.start_at(rows[:, at], own)
        return Kinds(found)

    def sample(self, theta: Kinds, labels: Array, rng: np.random.Generator) -> Matrix:
        x = np.empty((len(labels), self.n_features))
        for kind, part in self.parts.items():
            x[:, part.at] = part.component.sample(theta.parts[kind], labels, rng)
        return x


@stored
@dataclass(frozen=True)
class SeenMoments(GaussianStats):
    """seen : (k, d) expected rows in which an entry is there."""

    seen: Array


@stored
@dataclass(frozen=True)
class IncompleteMeasures(OfSeenMoments, Gaussian):
    """The gaussian columns of rows with missing entries, which are left out."""

    stats_type: ClassVar[Any] = SeenMoments


@stored
@dataclass(frozen=True)
class IncompleteColumns(OfSeenEntries, Columns):
    """Products of components of rows with missing entries, which are left out."""

    def _component(self, kind: str, at: Array) -> Component:
        own = super()._component(kind, at)
        return IncompleteMeasures(**vars(own)) if isinstance(own, Gaussian) else own.with_missing()

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries, as a whole number unless the column is gaussian."""
        return filled(x, np.where([kind == "gaussian" for kind in self.kinds], self.shift, np.round(self.shift)))


def _columns(x: Matrix, at: Array) -> Array:
    return np.ascontiguousarray(np.asarray(x)[:, at], dtype=np.float64)


def _of_columns(summary: Summary, at: Array) -> NoRows:
    """Moments of some columns."""
    found = NoRows(len(at))
    found.mean, found.variance = np.asarray(summary.mean)[at], np.asarray(summary.variance)[at]
    found.covariance = found.variance
    return found


class ColumnsSection(ClusterSection):
    """Latent classes over columns of different kinds."""

    family: Literal["columns"] = Option("columns", description="latent classes over columns of different kinds")
    columns: dict[str, Kind] = Option(
        default_factory=dict,
        description="the kind of each column by its name, such as {age: gaussian, visits: poisson, smoker: bernoulli, region: "
        "categorical}; positions 0, 1, … where columns have no names",
    )
    n_categories: dict[str, Annotated[int, Option(ge=1, le=MOST)]] = Option(
        default_factory=dict,
        description="how many categories a categorical column has, such as {region: 5}; by default one more than its largest "
        "code, or as data.categories says",
    )
    concentration: float = Option(
        1.1, ge=1, description="priors of rates and probabilities: counts + concentration - 1; 1: none"
    )
    reg_covar: float = Option(1e-6, ge=0, description="added to each variance of gaussian columns after an M-step")
    fixed: list[
        Literal[
            "weights",
            "gaussian_means",
            "gaussian_covariances",
            "poisson_rates",
            "bernoulli_probabilities",
            "categorical_probabilities",
        ]
    ] = Option(default_factory=list, description="parts that stay at their initial values")

    also_called: ClassVar[tuple[str, ...]] = ("mixed", "mixed-columns", "product")
    words: ClassVar[Words] = Columns.words
    raw: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True
    inits: ClassVar[tuple[str, ...]] = ("k-means||", "k-means++", "random", "labels", "explicit")
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "csv", "path": "people.csv"},
        "model": {"columns": {"age": "gaussian", "visits": "poisson", "smoker": "bernoulli", "region": "categorical"}},
    }

    @classmethod
    def parameter_names(cls) -> list[str]:
        columns = {str(j): kind for j, kind in enumerate(KINDS)}
        return list(cls.model_validate({"columns": columns}).of_no_rows(len(KINDS)).fields)

    def used_columns(self) -> dict[str, bool]:
        return {name: kind == "categorical" for name, kind in self.columns.items()}

    def with_categories(self, counts: Mapping[str, int]) -> ColumnsSection:
        own = {name: n for name, n in counts.items() if self.columns.get(name) == "categorical"} | self.n_categories
        return self.model_copy(update={"n_categories": own})

    def refuse_features(self, names: Sequence[str] | None, d: int) -> None:
        expected = [str(j) for j in range(d)] if names is None else list(names)
        if not self.columns:
            raise InputError(
                f"model.columns: got none, expected a kind ({', '.join(KINDS)}) for each column. Write for example "
                f"{{{expected[0]}: gaussian}}."
            )
        for name in self.columns:
            if name not in expected:
                of = "a name" if names is not None else "a position: the columns have no names"
                raise InputError(
                    f"model.columns: got {name!r}, expected {of} ({', '.join(expected[:20])})"
                    f"{did_you_mean(name, expected) or '.'} Correct it."
                )
        if missing := [name for name in expected if name not in self.columns]:
            raise InputError(
                f"model.columns: got no kind for column {missing[0]!r}, expected one for each of the {d} columns. Add it, or leave "
                "the column out (data.columns)."
            )
        if names is not None and list(self.columns) != expected:
            raise InputError(
                f"model.columns: got the order {', '.join(self.columns)}, expected that of the columns, {', '.join(expected)}. "
                "Write them in one order."
            )
        if unknown := [name for name in self.n_categories if self.columns.get(name) != "categorical"]:
            raise InputError(
                f"model.n_categories: got {unknown[0]!r}, expected a categorical column. Remove it, or correct model.columns."
            )

    def build(self, summary: Summary, assignment: str) -> Mixture:
        [k], d = self.n_components, len(summary.mean)
        columns = self.columns
        if not columns or (isinstance(summary, NoRows) and len(columns) != d):
            columns = {str(j): "gaussian" for j in range(d)}
        names, kinds = tuple(columns), tuple(columns.values())
        found = np.maximum(summary.high + 1.0, 1.0)
        for j, name in enumerate(names):
            if kinds[j] == "categorical" and name not in self.n_categories and found[j] > MOST:
                raise InputError(
                    f"column {name!r}: got the code {found[j] - 1:g}, expected codes below {MOST}. Number its categories from 0, "
                    "or give it another kind."
                )
        many = [
            self.n_categories.get(name, found[j]) if kind == "categorical" else 1
            for j, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
        component = Columns(
            k,
            np.asarray(summary.mean, dtype=np.float64),
            names,
            kinds,
            np.asarray(many, dtype=np.float64).astype(np.int64),
            self.reg_covar,
            self.concentration,
            self.fixed_of_components,
        )
        return Mixture(component, assignment, "weights" in self.fixed)
