"""The contract of every model: an E-step that returns a vector that adds, and an M-step that turns the sum into parameters.

A model is a frozen record of hyperparameters. It holds no rows and knows no Dask: parameters and statistics are values that
it is given and returns. Any latent-variable model for which these two steps can be written runs on the same loop, engine,
checkpoints, acceleration and report. [Dempster, Laird and Rubin 1977; Neal and Hinton 1998]
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
from pipeline.models import schema
from pipeline.models.schema import Fields
from pipeline.models.words import Words

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)  # of the statistics: how far `change_norm` follows a change, the first that it can


@stored
@dataclass(frozen=True)
class Evidence(Additive):
    """What an E-step says of its rows beside the statistics; it adds.

    Entropy adds over rows that were read under different parameters, which bounds do not: the bound of the sum follows from
    it, ``expected_log_joint(stats, params) + entropy``.

    Attributes
    ----------
    weight : float
        The sum of the rows' weights.
    entropy : float
        Entropy of q, the distribution of the latent variables, total nats; 0 for hard assignments.
    log_likelihood : float or None
        log p(X), total nats, where the E-step knows it.
    label_entropy : float or None
        Entropy of the labels' posterior, total nats, where there are labels (for ICL).
    """

    weight: float
    entropy: float
    log_likelihood: float | None = None
    label_entropy: float | None = None


class Expectation(NamedTuple):
    """What an E-step returns for the rows of one chunk.

    Attributes
    ----------
    stats : Additive
        Expected sufficient statistics.
    evidence : Evidence
    score : array, shape (n,)
        How well each row fits: log p(x) in nats, or another number that is lowest for the worst row; +inf where the
        weight is 0.
    label : array, shape (n,), or None
        The label of each row where assignments are hard.
    label_hash : np.uint64 or None
        Sum modulo 2^64 of hashes of (row, label): equal hashes, equal labels.
    """

    stats: Any
    evidence: Evidence
    score: Array
    label: Array | None = None
    label_hash: np.uint64 | None = None


class Attachment(Protocol):
    """What travels beside the statistics for whoever asked for it: the worst rows, representatives, held-out rows."""

    @property
    def name(self) -> str:
        """What it is found by."""

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> Any:
        """Return that of one chunk; those of two chunks merge by +."""

    def nbytes(self, model: Any) -> int:
        """Bytes of that of one chunk, about."""


@stored
@dataclass(frozen=True)
class Totals(Additive):
    """The part of an E-step that adds."""

    stats: Any
    evidence: Evidence


@stored
@dataclass(frozen=True)
class Partial:
    """One chunk's share of an E-step, or the sum of several: what adds, and the attachments by name, which merge."""

    stats: Any
    evidence: Evidence
    attached: Mapping[str, Any]

    @property
    def totals(self) -> Totals:
        """What adds."""
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
    """One component that was found empty or collapsed. done : False where it stays as it is."""

    component: int
    reason: str
    done: bool


class RowArray(NamedTuple):
    """An array of labels.zarr. fill : for rows that are dropped.  ranked : whether it has a second dimension, rank."""

    dtype: str
    fill: float
    ranked: bool = False


class LatentModel(ABC):
    """A model with latent variables.

    Attributes
    ----------
    family : str
    words : Words
        What the model and its parts are called.
    fields : mapping of str to Field
        The schema of the parameters.
    sizes : mapping of str to int
        Sizes of the schema's dimensions.
    fixed : tuple of str
        Fields that keep their initial values.
    exact : bool
        Whether the E-step's q is the posterior: the objective then is the log-likelihood, else a bound below it.
    has_bound : bool
        Whether `expected_log_joint` is defined.
    extrapolates : bool
        Whether statistics of three iterations may be extrapolated.
    attachments : tuple of Attachment
        What the model itself needs of every E-step.
    traced : mapping of str to tuple of str
        Series that `trace` returns for each iteration, with their dimensions.
    """

    family: ClassVar[str]
    words: ClassVar[Words]
    traced: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    has_bound: ClassVar[bool] = True
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
        """A short name that tells candidates apart, such as k10-full."""
        return self.family

    def facts(self) -> dict[str, Any]:
        """Hyperparameters that people read, by name: numbers and text."""
        return {}

    @property
    def exact(self) -> bool:
        """Whether the E-step's q is the posterior."""
        return True

    @property
    def extrapolates(self) -> bool:
        """Whether statistics of three iterations may be extrapolated."""
        return True

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What the model itself needs of every E-step."""
        return ()

    @abstractmethod
    def params(self, **arrays: Array) -> Any:
        """Parameters from the arrays of the schema, with what is derived from them once."""

    @abstractmethod
    def e_step(self, params: Any, rows: Rows, kernels: Any) -> Expectation:
        """Expected sufficient statistics of one chunk, in constant extra memory.

        Parameters
        ----------
        params : object
            As `params` or `m_step` returned them.
        rows : Rows
            Finite rows.
        kernels : Kernels
            Compiled kernels, as the engine hands them out.

        Raises
        ------
        InputError
            If a row is impossible under the parameters, naming it.
        """

    @abstractmethod
    def m_step(self, stats: Any, params: Any | None) -> Any:
        """Parameters that maximize expected log joint + log prior for given statistics.

        params : where fixed fields, and those of components without rows, are taken from; None at a start.
        """

    @abstractmethod
    def expected_log_joint(self, stats: Any, params: Any) -> float:
        """E_q[log p(x, z | params)], total nats; linear in the statistics."""

    def log_prior(self, params: Any) -> float:
        """Log of the prior density of the parameters, up to a constant; 0 without a prior."""
        return 0.0

    def bound(self, totals: Totals, params: Any) -> float:
        """F(q, params) = expected log joint + entropy of q, total nats, without the prior. [Neal and Hinton 1998, eq. 7]."""
        return self.expected_log_joint(totals.stats, params) + totals.evidence.entropy

    def objective(self, totals: Totals, params: Any) -> float:
        """What the iterations raise, total nats, from an E-step under the same parameters."""
        log_likelihood = totals.evidence.log_likelihood if self.exact else None
        value = self.bound(totals, params) if log_likelihood is None else log_likelihood
        return value + self.log_prior(params)

    def score_rows(self, params: Any, x: Matrix, kernels: Any) -> Array:
        """(n,) the score of each row, as in `Expectation`, of new rows: log p(x), nats."""
        return self.e_step(params, Rows(x), kernels).score

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """What `predict` returns: by default the score of each row. top_k : ranks of arrays that have ranks."""
        return {self.words.score: RowArray("float64", np.nan)}

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """What the model says of each row, by the names of `row_arrays`, each (n,) or (n, top_k)."""
        return {self.words.score: self.score_rows(params, rows.x, kernels)}

    def start(self, summary: Any, rng: np.random.Generator) -> Any:
        """Parameters of a start. summary : statistics of the rows, see `clusters.Summary`."""
        raise InputError(f"fit.init: {self.family} has no start of its own; give parameters (init: explicit).")

    def reset(
        self, new: Any, old: Any, stats: Any, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Any, list[Reset]]:
        """Parameters in which what has collapsed starts again, and what was done.

        new, old : after and before the M-step.  attached : of the E-step.  resets : components that were reset so far.
        """
        return new, []

    def is_valid(self, params: Any, stats: Any) -> bool:
        """Whether extrapolated parameters may be used. stats : those that they are the M-step of."""
        arrays = self.arrays(params)
        return all(field.support.problem(name, arrays[name]) is None for name, field in self.fields.items())

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        """Extrapolated totals as some rows could have them, or None. known : totals that rows do have."""
        return totals

    def fisher_norm(self, totals: Totals, params: Any, new: Any) -> float:
        """Length of the M-step from `params` to `new`: 0 exactly where EM moves nothing.

        sqrt of Δᵀ I Δ, where I is the Fisher information of the complete data per row at `params`. To second order the step
        raises the expected log joint by half its square, which is what is computed here; models with a closed form have no
        rounding of large sums in it. [Dempster, Laird and Rubin 1977, sec. 3]
        """
        gain = self._q(totals.stats, new) - self._q(totals.stats, params)
        return float(np.sqrt(max(0.0, 2.0 * gain / totals.evidence.weight)))

    def change_norm(self, change: Totals, totals: Totals, params: Any) -> float:
        """Fisher norm of what a small change of the statistics does to the parameters of their M-step.

        params : the M-step of `totals`. By differences: the expected log joint is highest at `params`, so that it falls by
        half the square of a small step. NaN where even the smallest leads to parameters that are none.
        """
        size, moved = _size(totals.stats), _size(change.stats)
        if moved == 0:
            return 0.0
        for step in (size / moved * relative for relative in STEPS):
            stats = totals.stats + change.stats * step
            new = self.m_step(stats, params)
            if self.is_valid(new, stats):
                fall = self._q(totals.stats, params) - self._q(totals.stats, new)
                return float(np.sqrt(max(0.0, 2.0 * fall / totals.evidence.weight)) / step)
        return np.nan

    def _q(self, stats: Any, params: Any) -> float:
        return self.expected_log_joint(stats, params) + self.log_prior(params)

    def trace(self, stats: Any) -> dict[str, Array]:
        """The series of `traced` at one iteration."""
        return {}

    def converged(self, before: Any, after: Any, same_labels: bool, tol: float) -> str | None:
        """Say why the iterations have converged by a rule of the model's own; None where the objective decides.

        before, after : parameters around an M-step.  same_labels : whether no hard label has changed.
        """
        return None

    def implementations(self, params: Any, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        """How an E-step on rows of this dtype is computed: by implementation, components' densities and moments."""
        return {}

    def arrays(self, params: Any) -> dict[str, Array]:
        """The parameters by the names of the schema, without what is derived."""
        return {name: getattr(params, name) for name in self.fields}

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> Any:
        """Parameters from arrays that somebody else made.

        Raises
        ------
        InputError
            If an array is missing or not as the schema says.
        """
        return self.params(**schema.checked(self.fields, self.sizes, arrays))

    def statistics_bytes(self) -> int:
        """Bytes of the statistics of one chunk: by default as many as of the parameters."""
        return schema.n_bytes(self.fields, self.sizes)

    def e_step_bytes(self) -> int:
        """Bytes of what an E-step returns for one chunk: statistics and attachments."""
        return self.statistics_bytes() + sum(attachment.nbytes(self) for attachment in self.attachments)

    def score_products(self, params: Any, fully: bool) -> Any:
        """The job whose sum gives standard errors (models/information.py). A family says whether it has them.

        params : None to ask for its bytes alone.  fully : whether all that was learned counts, not locations and weights alone.
        """
        raise InputError(f"output.standard_errors: family {self.family} has none; set it to false.")

    def n_free_parameters(self) -> int:
        """How many numbers are learned, for BIC and AIC."""
        return schema.n_free(self.fields, self.sizes, self.fixed)


def weighted_total(weight: Array | None, values: Array) -> float:
    """Sum of weight x value, in which rows of weight 0 do not count, whatever their value. weight, values : (n,)."""
    if weight is None:
        return float(values.sum())
    with np.errstate(invalid="ignore"):  # 0 x inf
        total = float(weight @ values)
    return total if np.isfinite(total) else float(weight @ np.where(weight > 0, values, 0.0))


def _size(stats: Any) -> float:
    """The Euclidean length of all numbers of a value that adds."""
    values = [part for part in stats._values() if part is not None]
    squares = (_size(v) ** 2 if isinstance(v, Additive) else float(np.sum(np.square(v))) for v in values)
    return float(np.sqrt(sum(squares)))


@dataclass(frozen=True)
class EStep:
    """Job: a model's E-step under given parameters, with attachments."""

    model: Any
    params: Any
    attachments: tuple[Attachment, ...] = ()

    def __call__(self, rows: Rows, kernels: Any) -> Partial:
        """Return the share of one chunk."""
        found = self.model.e_step(self.params, rows, kernels)
        attached = {a.name: a.of(self.model, self.params, rows, found, kernels) for a in self.attachments}
        return Partial(found.stats, found.evidence, attached)
