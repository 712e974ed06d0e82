"""Models whose latent variable is a label: each row belongs to one of K components.

Only these have labels of rows, statistics of labels, resets, moves between components, an order of components, and rows
with known labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import LowestRows, Representatives, Rows
from pipeline.errors import InputError
from pipeline.models.base import Expectation, LatentModel, RowArray

NOISE = -2  # the label of a row that is noise (models/noise.py); -1 is a row without one
FEW = 1024  # rows of the sample that show where most rows are
AWAY = 1e5  # times the range of nine tenths of the rows: a mean so far is not among them
MAX_RESETS = 3  # of one component; then it stays, so that K = N still ends


class Labels(NamedTuple):
    """Predictions for rows.

    label : (n,) int32.  score : (n,) float64, log p(x) in nats (K-means: squared distance to the centre).
    log_resp : (n, k) float64.
    """

    label: Array
    score: Array
    log_resp: Array


class Summary(Protocol):
    """Statistics of all rows from the profiling pass, in the model's space."""

    @property
    def mean(self) -> Array:
        """Shape (d,)."""

    @property
    def covariance(self) -> Array:
        """Of the population, shape (d, d) or (d,)."""

    @property
    def variance(self) -> Array:
        """Shape (d,)."""

    @property
    def low(self) -> Array:
        """Smallest value of each feature, shape (d,); (0,) after preprocessing, unless the family needs the box of the rows."""

    @property
    def high(self) -> Array:
        """Largest value of each feature, of the same shape."""

    @property
    def n_missing(self) -> int:
        """Missing entries."""

    @property
    def sample(self) -> LowestRows:
        """Rows drawn in proportion to their weights."""

    @property
    def earlier(self) -> Any:
        """What is taken over from an earlier run (data/earlier.py); None without one."""


def reference(summary: Summary) -> Array:
    """Return a point near the rows, (d,): their mean; the sample's median if a few rows have drawn the mean far away.

    About a point at the distance D, squares keep D² eps of rounding; fill values of 1e12 among rows near 0 move the mean by 1e9.
    """
    mean, sample = summary.mean, summary.sample.x[:FEW]
    if sp.issparse(sample) or not sample.shape[0]:
        return mean
    sample = sample[:, : len(mean)]  # errors of rows follow their entries
    if summary.n_missing:
        sample = np.where(np.isnan(sample), mean, sample)
    if _is_amid(mean, sample):  # quantiles take as long as an iteration over few rows
        return mean
    low, middle, high = np.quantile(sample, [0.05, 0.5, 0.95], axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        away = np.abs(mean - middle) > AWAY * (high - low)
    return middle if (away & (high > low)).any() else mean


def _is_amid(mean: Array, sample: Array) -> bool:
    """Whether a tenth of the sample is on each side of the mean, in each feature: it is among nine tenths of the rows."""
    few, n = len(sample) // 10, len(sample)
    below = np.count_nonzero(sample <= mean, axis=0)
    return few > 1 and bool(((below > few) & (below < n - few)).all())


class NoRows:
    """Statistics without rows (zeros and ones), for a model that is only asked for sizes. d : features."""

    def __init__(self, d: int) -> None:
        none, self.earlier = np.empty(0), None
        self.mean, self.covariance, self.variance = np.zeros(d), np.ones(d), np.ones(d)
        self.low, self.high, self.n_missing = np.zeros(d), np.ones(d), 1
        self.sample = LowestRows(0, none, none.astype(np.int64), np.empty((0, d)), none, none)


class SearchEffort(NamedTuple):
    """How a search for a start treats a model.

    level_rows : least rows of the lowest level; fewer rows have other local optima.
    starts : candidate starts on the lowest level, at least.  finalists : on the highest.  A budget may allow only fewer.
    first, merged : iterations of each candidate start on a level, and after a merge of two.
    passes : over all rows in memory; so many rows may be read on a level before the last round of moves begins.
    tol : nats per row, of the refinement on each level.
    principal : whether rows of many features are searched in the space of their leading principal components.
    """

    level_rows: int = 2**13
    starts: int = 4
    finalists: int = 1
    tol: float = 1e-4
    principal: bool = False
    first: int = 20
    merged: int = 12
    passes: int = 32


@dataclass(frozen=True)
class Removal(Additive):
    """What it costs to remove a component, the others unchanged; those of two sets of rows add.

    Attributes
    ----------
    cost : array, shape (k,)
    next_best : csr_array, shape (k, k)
        Weights of the rows of one component whose next-best component is another: at most one entry a row.
    """

    cost: Array
    next_best: sp.csr_array

    @classmethod
    def of(cls, cost: Array, label: Array, second: Array, weight: Array | None) -> Removal:
        """Return the removal with the counts of these rows. label, second : (n,), the best component and the next."""
        k, weights = len(cost), np.ones(len(label)) if weight is None else weight
        return cls(cost, sp.csr_array((weights, (label, second)), shape=(k, k)))


@dataclass(frozen=True)
class WorstRows:
    """Attachment: the rows with the lowest scores, for resets and for the report's outliers."""

    limit: int
    name: ClassVar[str] = "outliers"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> LowestRows:
        return LowestRows.of(self.limit, found.score, rows.start, rows.x, rows.weight, found.label)

    def nbytes(self, model: Any) -> int:
        return 8 * self.limit * (4 + int(model.sizes["feature"]))


@dataclass(frozen=True)
class BestRows:
    """Attachment: the rows with the highest responsibilities of each component, for models that `represents`."""

    limit: int = 5
    name: ClassVar[str] = "representatives"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> Representatives:
        best: Representatives = model.representatives(params, rows, found, self.limit, kernels)
        return best

    def nbytes(self, model: Any) -> int:
        return 8 * int(model.sizes["component"]) * self.limit * (3 + int(model.sizes["feature"]))


def ranked_arrays(top_k: int) -> dict[str, RowArray]:
    """Return the arrays of labels.zarr with the largest responsibilities of rows, or shares of components; none for top_k 0."""
    if not top_k:
        return {}
    return {
        "top_component": RowArray("int32", -1, ranked=True),
        "top_responsibility": RowArray("float32", np.nan, ranked=True),
    }


def top_ranked(log_share: Array, top_k: int) -> dict[str, Array]:
    """Return the content of `ranked_arrays`. log_share : (n, k)."""
    if not top_k:
        return {}
    top = np.argsort(-log_share, axis=1, kind="stable")[:, :top_k]
    share = np.exp(np.take_along_axis(log_share, top, axis=1))
    return {"top_component": top.astype(np.int32), "top_responsibility": share.astype(np.float32)}


def predicted(model: Any, params: Any, x: Matrix, top_k: int, kernels: Any) -> dict[str, Array]:
    """Return the arrays of labels.zarr, by name, of a model that has `assign`."""
    parts: dict[str, list[Array]] = {name: [] for name in model.row_arrays(top_k)}
    for _, found in model.assign(params, x, kernels):
        ranked = top_ranked(found.log_resp, top_k)
        for name, value in {model.words.score: found.score, "label": found.label, **ranked}.items():
            parts[name].append(value)
    return {name: np.concatenate(part) for name, part in parts.items()}


class ClusterModel(LatentModel):
    """A model of K components, where each row belongs to one.

    Attributes
    ----------
    n_components, n_features : int
    shift : array, shape (d,), float64
        Reference point near the rows, so that distances do not cancel.
    location : str
        The field with the components' locations, shape (k, d).
    of_centers : bool
        Whether the centres are its only parameters.
    unit_rows : bool
        Whether only the directions of rows count: all distances are between rows of length 1.
    incomplete : bool
        Whether rows may have missing entries, NaN.
    search : SearchEffort
    """

    shift: Array
    location: ClassVar[str]
    of_centers: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    incomplete: ClassVar[bool] = False
    search: ClassVar[SearchEffort] = SearchEffort()
    represents: ClassVar[bool] = True
    traced: ClassVar[Mapping[str, tuple[str, ...]]] = {"n_effective": ("component",)}

    @property
    @abstractmethod
    def n_components(self) -> int:
        """Number of components, K."""

    @property
    def n_features(self) -> int:
        """Columns of a row, d."""
        return len(self.shift)

    @property
    def label(self) -> str:
        return f"k{self.n_components}"

    def facts(self) -> dict[str, Any]:
        return {"n_components": self.n_components, "n_features": self.n_features}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"component": self.n_components, "feature": self.n_features}

    @property
    def above(self) -> Any:
        """The model of the level above, below whose components `start_below` puts those of this one; None in most models."""
        return None

    @property
    def least_rows(self) -> int:
        """Effective rows below which a component is collapsed."""
        return 1

    @abstractmethod
    def with_components(self, k: int) -> Any:
        """Return the same model with another number of components."""

    @abstractmethod
    def without_fixed(self, field: str) -> Any:
        """Return the same model in which a field is estimated."""

    def plain(self, x: Matrix) -> Matrix:
        """Return rows as starts and distances take them: whole. x : (n, d)."""
        return x

    def prepared_bytes(self) -> int:
        """Return the bytes of what is computed once from the parameters."""
        return 0

    def scratch_bytes(self) -> int:
        """Return the bytes that an E-step needs beside tiles and statistics."""
        return 0

    @abstractmethod
    def counts(self, stats: Any) -> Array:
        """Return the effective rows of each component, shape (k,)."""

    def row_operations(self) -> float:
        """Return about how many operations an E-step and its statistics take for a dense row."""
        return 4.0 * self.n_free_parameters()

    def rows_of(self, stats: Any) -> float:
        """Return the sum of the rows' weights."""
        return float(self.counts(stats).sum())

    @abstractmethod
    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> Any:
        """Return the statistics of labels. labels : (n,) int; rows with label -1 are left out."""

    @abstractmethod
    def assign(self, params: Any, x: Matrix, kernels: Any) -> Iterator[tuple[slice, Labels]]:
        """Yield labels and scores of rows, tile by tile."""

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        return {**super().row_arrays(top_k), **ranked_arrays(top_k), "label": RowArray("int32", -1)}

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return labels, scores and the highest responsibilities; a row with a known label has that label."""
        arrays = predicted(self, params, rows.x, top_k, kernels)
        if (known := self.checked_labels(rows)) is not None:
            arrays["label"] = np.where(known >= 0, known, arrays["label"]).astype(np.int32)
        return arrays

    @abstractmethod
    def representatives(self, params: Any, rows: Rows, found: Expectation, limit: int, kernels: Any) -> Representatives:
        """Return the rows of a chunk with the highest responsibilities of each component. found : the E-step."""

    @abstractmethod
    def removal_costs(self, params: Any, x: Matrix, weight: Array | None, kernels: Any) -> Removal:
        """Return the cost of removing each component, the others unchanged, and the next-best components."""

    @abstractmethod
    def responsibilities(self, params: Any, x: Matrix, least: float, kernels: Any) -> sp.csr_array:
        """Return sparse responsibilities of at least `least`, shape (n, k)."""

    @abstractmethod
    def collapsed(self, params: Any, counts: Array) -> list[tuple[int, str]]:
        """Return collapsed components with the reasons. counts : (k,) effective rows."""

    @abstractmethod
    def start_at(self, rows: Array, summary: Summary) -> Any:
        """Return initial parameters with components at given rows, equal otherwise. rows : (k, d)."""

    def start_near_mean(self, summary: Summary, draws: Array) -> Any:
        """Return initial parameters near the mean of the rows. draws : (k, d), standard normal."""
        return self.start_at(summary.mean + 0.01 * np.sqrt(summary.variance) * draws, summary)

    def unit_bytes(self) -> int:
        """Return the bytes that an E-step needs for each row of the longest unit, in families `by_unit`."""
        return 0

    def shares(self, params: Any, stats: Any) -> Array:
        """Return the share of the rows of each component, shape (k,)."""
        counts = self.counts(stats)
        return counts / counts.sum()

    def trace(self, stats: Any) -> dict[str, Array]:
        return {"n_effective": self.counts(stats)}

    def checked_labels(self, rows: Rows) -> Array | None:
        """Return the known labels of a chunk. Raises InputError for a component that does not exist."""
        if rows.label is not None and (rows.label >= self.n_components).any():
            i = int((rows.label >= self.n_components).argmax())
            raise InputError(
                f"data.labels: row {rows.start + i} has label {rows.label[i]}, expected -1 (not known) to "
                f"{self.n_components - 1}. Raise model.n_components, or correct the labels."
            )
        return rows.label
