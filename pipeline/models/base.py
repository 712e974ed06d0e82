"""The contract of every model: an E-step that returns a vector that adds, and an M-step that maps the sum to parameters.

A model is a frozen record of hyperparameters, without rows; parameters and statistics are values that are passed to it and
returned. Any latent-variable model with these two steps uses the same loop, engine, checkpoints, acceleration and report.
[Dempster, Laird and Rubin 1977; Neal and Hinton 1998]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.kernels.base import NOTHING_SKIPPED, Skipped
from pipeline.models import lengths, schema
from pipeline.models.ascent import Ascent
from pipeline.models.schema import Fields
from pipeline.models.words import Words


@stored
@dataclass(frozen=True)
class Evidence(Additive):
    """What an E-step finds about its rows beside the statistics; it adds.

    Entropies of rows that were read with different parameters add, bounds do not: the bound of the sum is
    ``expected_log_joint(stats, params) + entropy``.

    Attributes
    ----------
    weight : float
        Sum of the rows' weights.
    entropy : float
        Of q, the distribution of the latent variables, total nats; 0 for hard assignments.
    log_likelihood : float or None
        log p(X), total nats, if the E-step knows it.
    label_entropy : float or None
        Entropy of the labels' posterior, total nats, if there are labels (for ICL).
    skipped : Skipped
        What the E-step left out because it rounds to nothing.
    """

    weight: float
    entropy: float
    log_likelihood: float | None = None
    label_entropy: float | None = None
    skipped: Skipped = NOTHING_SKIPPED


class Expectation(NamedTuple):
    """What an E-step returns for the rows of one chunk.

    Attributes
    ----------
    stats, evidence : Additive, Evidence
        Expected sufficient statistics, and what adds beside them.
    score : array, shape (n,)
        log p(x) in nats, or another number that is lowest for the row that fits worst; +inf where the weight is 0.
    label : array, shape (n,), or None
        Of hard assignments.
    label_hash : np.uint64 or None
        Sum modulo 2^64 of hashes of (row, label); equal labels have equal hashes.
    beside : object
        What attachments of the model's own take from it.
    """

    stats: Any
    evidence: Evidence
    score: Array
    label: Array | None = None
    label_hash: np.uint64 | None = None
    beside: Any = None


class Attachment(Protocol):
    """Something that an E-step collects beside the statistics: the worst rows, representatives, held-out rows."""

    @property
    def name(self) -> str:
        """Its key in `Partial.attached`."""

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> Any:
        """Return the value for one chunk; those of two chunks merge by +."""

    def nbytes(self, model: Any) -> int:
        """Return about how many bytes the value for one chunk has."""


@stored
@dataclass(frozen=True)
class Totals(Additive):
    """The part of an E-step's result that adds."""

    stats: Any
    evidence: Evidence


@stored
@dataclass(frozen=True)
class Partial:
    """The E-step of one chunk, or the sum of several: what adds, and attachments by name, which merge."""

    stats: Any
    evidence: Evidence
    attached: Mapping[str, Any]

    @property
    def totals(self) -> Totals:
        """The part that adds."""
        return Totals(self.stats, self.evidence)

    def __add__(self, other: Partial) -> Partial:
        return Partial(self.stats + other.stats, self.evidence + other.evidence, self._merged(other))

    def __iadd__(self, other: Partial) -> Partial:
        stats = self.stats
        stats += other.stats
        return Partial(stats, self.evidence + other.evidence, self._merged(other))

    def _merged(self, other: Partial) -> dict[str, Any]:
        return {name: value + other.attached[name] for name, value in self.attached.items()}


class Reset(NamedTuple):
    """An empty or collapsed component. done : False if it was not reset."""

    component: int
    reason: str
    done: bool


class RowArray(NamedTuple):
    """An array of labels.zarr. fill : value for dropped rows.  ranked : whether it has a second dimension, rank.  columns : size of another one, called `along`."""

    dtype: str
    fill: float
    ranked: bool = False
    columns: int = 0
    along: str = "feature"


class LatentModel(ABC):
    """A model with latent variables.

    Attributes
    ----------
    family, words : str, Words
        What the model and its parts are called.
    fields : mapping of str to Field
        Schema of the parameters.
    sizes : mapping of str to int
        Sizes of the schema's dimensions.
    fixed : tuple of str
        Fields that stay at their initial values.
    has_bound : bool
        Whether `expected_log_joint` is defined.
    traced : mapping of str to tuple of str
        Series that `trace` returns for each iteration, with their dimensions.
    location : str
        The field that says where components are, shape (k, d); empty without components.
    represents : bool
        Whether it says which components a row belongs to: by `assign` and `representatives`, as those of `ClusterModel`.
    starts_as : LatentModel or None
        A model with labels, from whose start `started` makes one of this model; None if the model has its own, `start`.
    """

    family: ClassVar[str]
    words: ClassVar[Words]
    traced: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    has_bound: ClassVar[bool] = True
    location: ClassVar[str] = ""
    represents: ClassVar[bool] = False
    starts_as: Any = None
    fixed: tuple[str, ...] = ()

    @property
    @abstractmethod
    def fields(self) -> Fields:
        """The schema of the parameters."""

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Sizes of the schema's dimensions."""

    @property
    def label(self) -> str:
        """Short name of a candidate, such as k10-full."""
        return self.family

    def facts(self) -> dict[str, Any]:
        """Return hyperparameters for people, by name: numbers and text."""
        return {}

    def figures(self, params: Any) -> dict[str, float]:
        """Return numbers of the parameters that people follow from pass to pass, by name."""
        return {}

    @property
    def floor(self) -> float:
        """What an M-step adds to each variance."""
        return 0.0

    @property
    def exact(self) -> bool:
        """Whether q is the posterior: the objective is then the log-likelihood, else a bound below it."""
        return True

    @property
    def knows_bound(self) -> bool:
        """Whether `expected_log_joint` of sums is known at all parameters, once these are `restated`."""
        return self.has_bound

    def restated(self, stats: Any, before: Any, after: Any) -> Any:
        """Return the statistics under `before` as those under `after`, for the same latent variables. None: of the M-step, unprojected."""
        return stats

    @property
    def ascent(self) -> Ascent | None:
        """Steps whose gain has to be checked; None: an M-step, which never lowers the objective."""
        return None

    @property
    def extrapolates(self) -> bool:
        """Whether statistics of three iterations may be extrapolated."""
        return True

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What the model needs of every E-step."""
        return ()

    @abstractmethod
    def params(self, **arrays: Array) -> Any:
        """Return parameters from the arrays of the schema, with what is computed from them once."""

    @abstractmethod
    def e_step(self, params: Any, rows: Rows, kernels: Any) -> Expectation:
        """Return expected sufficient statistics of one chunk, in constant extra memory.

        Parameters
        ----------
        params : object
            From `params` or `m_step`.
        rows : Rows
            Finite rows.
        kernels : Kernels

        Raises
        ------
        InputError
            Naming a row that is impossible under the parameters.
        """

    @abstractmethod
    def m_step(self, stats: Any, params: Any | None) -> Any:
        """Return parameters that maximize expected log joint + log prior for given statistics.

        params : values of fixed fields and of components without rows; None at a start.
        """

    @abstractmethod
    def expected_log_joint(self, stats: Any, params: Any) -> float:
        """Return E_q[log p(x, z | params)], total nats; linear in the statistics."""

    def log_prior(self, params: Any) -> float:
        """Return the log prior density of the parameters, up to a constant; 0 without a prior."""
        return 0.0

    def bound(self, totals: Totals, params: Any) -> float:
        """Return F(q, params) = expected log joint + entropy of q, total nats, without the prior [Neal and Hinton 1998, eq. 7]."""
        return self.expected_log_joint(totals.stats, params) + totals.evidence.entropy

    def objective(self, totals: Totals, params: Any) -> float:
        """Return what the iterations maximize, total nats, from an E-step with the same parameters."""
        log_likelihood = totals.evidence.log_likelihood if self.exact else None
        value = self.bound(totals, params) if log_likelihood is None else log_likelihood
        return value + self.log_prior(params)

    def reported(self, totals: Totals, params: Any) -> float | None:
        """Return log p(X), total nats, or the bound below it where the E-step does not know it; None without a bound."""
        known = totals.evidence.log_likelihood
        return self.bound(totals, params) if known is None and self.has_bound else known

    def shares(self, params: Any, stats: Any) -> Array | None:
        """Return the share of the rows of each component, shape (k,); None without components."""
        return None

    def words_of(self, x: Matrix) -> tuple[Array, Array] | None:
        """Return numbers of words and log multinomial coefficients of rows, (n,) each; None unless rows are bags of words."""
        return None

    def score_rows(self, params: Any, x: Matrix, kernels: Any) -> Array:
        """Return the score of new rows, as in `Expectation`: log p(x), nats, shape (n,)."""
        return self.e_step(params, Rows(x), kernels).score

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """Return what `predict` computes: by default the score. top_k : ranks of arrays with ranks."""
        return {self.words.score: RowArray("float64", np.nan)}

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the arrays of `row_arrays` by name, of shape (n,) or (n, top_k)."""
        return {self.words.score: self.score_rows(params, rows.x, kernels)}

    def start(self, summary: Any, rng: np.random.Generator) -> Any:
        """Return initial parameters. summary : statistics of the rows, see `clusters.Summary`."""
        raise InputError(f"fit.init: {self.family} has no start of its own; give parameters (init: explicit).")

    def reset(
        self, new: Any, old: Any, stats: Any, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Any, list[Reset]]:
        """Return parameters with collapsed parts reset, and the resets.

        new, old : after and before the M-step.  attached : of the E-step.  resets : components that were reset so far.
        """
        return new, []

    def is_valid(self, params: Any, stats: Any) -> bool:
        """Whether extrapolated parameters, the M-step of `stats`, may be used."""
        arrays = self.arrays(params)
        return all(field.support.problem(name, arrays[name]) is None for name, field in self.fields.items())

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        """Return extrapolated totals, corrected to be possible for some rows, or None. known : possible totals."""
        return totals

    def fisher_norm(self, totals: Totals, params: Any, new: Any) -> float:
        """Return the length of the M-step from `params` to `new`: 0 exactly where EM moves nothing.

        sqrt of Δᵀ I Δ, I the Fisher information of the complete data per row. By differences; a closed form avoids the
        rounding of large sums. [Dempster, Laird and Rubin 1977, sec. 3]
        """
        return lengths.of_step(self, totals, params, new)

    def change_norm(self, change: Totals, totals: Totals, params: Any) -> float:
        """Return the Fisher norm of the change of the M-step's parameters, `params`, by a small change of the statistics."""
        return lengths.of_change(self, change, totals, params)

    def trace(self, stats: Any) -> dict[str, Array]:
        """Return the series of `traced` at one iteration."""
        return {}

    def converged(self, before: Any, after: Any, same_labels: bool, tol: float) -> str | None:
        """Return why the iterations have converged by a rule of the model's own; None to use the objective.

        before, after : parameters around an M-step.  same_labels : whether no hard label has changed.
        """
        return None

    def implementations(self, params: Any, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        """Return how many components' densities and moments each implementation computes for rows of this dtype."""
        return {}

    def arrays(self, params: Any) -> dict[str, Array]:
        """Return the parameters by the names of the schema."""
        return {name: getattr(params, name) for name in self.fields}

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> Any:
        """Return parameters from arrays of a user or a file. Raises InputError if one is missing or does not fit the schema."""
        return self.params(**schema.checked(self.fields, self.sizes, arrays))

    def statistics_bytes(self) -> int:
        """Return the bytes of the statistics of one chunk: by default those of the parameters."""
        return schema.n_bytes(self.fields, self.sizes)

    def e_step_bytes(self) -> int:
        """Return the bytes of an E-step's result for one chunk: statistics and attachments."""
        return self.statistics_bytes() + sum(attachment.nbytes(self) for attachment in self.attachments)

    def score_products(self, params: Any, fully: bool) -> Any:
        """Return the job whose sum gives standard errors (models/information.py), for families that have them.

        params : None to ask only for its bytes.  fully : whether all estimated parameters are included, or locations and weights only.
        """
        raise InputError(f"output.standard_errors: family {self.family} has none; set it to false.")

    def n_free_parameters(self) -> int:
        """Return the number of estimated parameters, for BIC and AIC."""
        return schema.n_free(self.fields, self.sizes, self.fixed)


def weighted_total(weight: Array | None, values: Array) -> float:
    """Return the sum of weight x value; rows of weight 0 do not count, whatever their value. weight, values : (n,)."""
    if weight is None:
        return float(values.sum())
    with np.errstate(invalid="ignore"):  # 0 x inf
        total = float(weight @ values)
    return total if np.isfinite(total) else float(weight @ np.where(weight > 0, values, 0.0))


@dataclass(frozen=True)
class EStep:
    """Job: a model's E-step with given parameters, and attachments."""

    model: Any
    params: Any
    attachments: tuple[Attachment, ...] = ()

    def __call__(self, rows: Rows, kernels: Any) -> Partial:
        found = self.model.e_step(self.params, rows, kernels)
        attached = {a.name: a.of(self.model, self.params, rows, found, kernels) for a in self.attachments}
        return Partial(found.stats, found.evidence, attached)
