"""What every model is: an E-step that gives statistics that add, and an M-step that uses their sum.

A model is a frozen record of hyperparameters. It holds no data and knows no Dask; parameters and
statistics are values that it is given and returns. [Dempster, Laird and Rubin 1977]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import first_few_then_tiles, tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.softmax import log_sum_exp_rows, padded
from pipeline.models.stats import Additive, Exemplars, LowestRows, Partial, Rows
from pipeline.models.words import Words

N_EXEMPLARS = 5
MAX_RESETS = 3  # of one component; then it stays, so that K = N still ends


class Labels(NamedTuple):
    """What prediction says of each row. label : (n,) int32.  log_density : (n,) float64, nats
    (K-means: the squared distance to the centre).  log_resp : (n, k) float64.
    """

    label: Array
    log_density: Array
    log_resp: Array


class Reset(NamedTuple):
    """One component that was found empty or collapsed. done: False when it stays as it is."""

    component: int
    reason: str
    done: bool


def log_sum_exp(log_joint: Array) -> Array:
    """(n,) log of the sum of exponentials of each row; -inf for a row of -inf. log_joint : (n, k) float64."""
    out = np.empty(len(log_joint))
    log_sum_exp_rows(log_joint, np.full(padded(log_joint.shape[1], 8), -np.inf), out)
    return out


class Model(ABC):
    """A family with its hyperparameters.

    shift : (d,) float64, the fixed reference point of all statistics (the data mean): moments about a
    far-away origin would cancel.
    """

    family: ClassVar[str]
    words: ClassVar[Words]
    n_components: int
    shift: Array

    @property
    def n_features(self) -> int:
        """d, the columns of a row."""
        return len(self.shift)

    @property
    def least_rows(self) -> int:
        """A component with fewer effective rows than this is collapsed."""
        return 1

    @property
    def n_worst(self) -> int:
        """How many worst-fit rows travel beside the statistics, as places for resets."""
        return min(self.n_components, 8)

    @abstractmethod
    def e_step(
        self, params: Any, x: Rows, weight: Array | None = None, start: int = 0, exemplars: bool = False
    ) -> Partial:
        """Expected sufficient statistics of one chunk, tile by tile in constant extra memory.

        x : (n, d), finite.  weight : (n,) non-negative, or None for ones.  start : global index of the first row.
        exemplars : whether to collect each component's best rows too.
        """

    @abstractmethod
    def stats_of_labels(self, x: Rows, labels: Array, weight: Array | None = None) -> Any:
        """Statistics of a given hard assignment. labels : (n,) int; rows with label -1 are left out."""

    @abstractmethod
    def m_step(self, stats: Any, params: Any | None) -> Any:
        """The parameters that maximise the objective given the statistics.

        params : where fixed parts, and those of components without rows, are taken from.
        """

    @abstractmethod
    def revive(self, new: Any, params: Any, partial: Partial, resets: Array) -> tuple[Any, list[Reset]]:
        """Parameters in which empty and collapsed components have been reset, and what was done.

        new, params : after and before the M-step.  resets : (k,) int, how often each has been reset already.
        """

    @abstractmethod
    def objective(self, stats: Any, params: Any) -> float:
        """What the iterations raise, in total nats, from an E-step's statistics under the same parameters."""

    @abstractmethod
    def fisher_norm(self, stats: Any, params: Any, new: Any) -> float:
        """Length of the M-step from `params` to `new`: 0 exactly where EM moves nothing.

        sqrt of Δᵀ I Δ, where I is the Fisher information of the complete data per row at `params`, with the shares of
        rows that `stats` gives to the components. To second order the step gains half its square, in nats per row
        (K-means: in units of the variance). [Dempster, Laird and Rubin 1977, sec. 3]
        """

    @abstractmethod
    def assign(self, params: Any, x: Rows) -> Iterator[tuple[slice, Labels]]:
        """Labels and log-densities of a chunk, tile by tile."""

    @abstractmethod
    def removal_costs(self, params: Any, x: Rows, weight: Array | None = None) -> tuple[Array, Array]:
        """What the objective would lose on these rows without each component, the others unchanged, and who would
        take its rows: (k,), and (k, k) weights of the rows of one component that are next best explained by another.
        """

    @abstractmethod
    def responsibilities(self, params: Any, x: Rows, least: float) -> sp.csr_array:
        """(n, k), those below `least` left out."""

    def route_shares(self, params: Any, dtype: np.dtype[Any]) -> dict[str, list[int]]:
        """How an E-step on rows of this dtype is computed: by route, components' densities and moments. Empty: one way."""
        return {}

    @abstractmethod
    def n_free_parameters(self) -> int:
        """How many numbers are learned, for BIC and AIC."""

    @abstractmethod
    def params_from_arrays(self, arrays: Mapping[str, Array]) -> Any:
        """Parameters from named arrays, checked. Raises InputError naming what is wrong."""

    @abstractmethod
    def reorder(self, params: Any, order: Array) -> Any:
        """The same parameters with components in another order."""

    @abstractmethod
    def positions(self, params: Any) -> Array:
        """(k, d): where each component is, to break ties of the canonical order."""


@dataclass(frozen=True)
class MixtureStats(Additive):
    """What all mixtures sum. sum_w : (k,) soft counts N_k.  log_likelihood, entropy : total nats."""

    sum_w: Array
    log_likelihood: float
    entropy: float


class Mixture(Model):
    """A model with a density: log p(x) = log sum_k pi_k p(x | k)."""

    assignment: str
    stats_class: ClassVar[type[MixtureStats]]

    @abstractmethod
    def log_joint(self, params: Any, x: Rows) -> Array:
        """(n, k) float64: log pi_k + log p(x | k), nats."""

    @abstractmethod
    def chunk_stats(self, params: Any, x: Rows, weight: Array | None) -> tuple[Any, Array]:
        """Statistics of a chunk, and (n,) log p(x) of its rows, nats; tile by tile. weight : (n,), or None for ones."""

    @abstractmethod
    def expected_log_joint(self, stats: Any, params: Any) -> float:
        """E_q[log p(x, z | params)], total nats; linear in the statistics."""

    @abstractmethod
    def change_norm(self, change: Any, stats: Any, params: Any) -> float:
        """Fisher norm of what a small change of the statistics does to the parameters of their M-step.

        change, stats : statistics.  params : the M-step of `stats`.
        """

    @abstractmethod
    def feasible(self, stats: Any, known: Any) -> Any | None:
        """Extrapolated statistics as some rows could have them, or None.  known : statistics that rows do have."""

    @abstractmethod
    def collapsed(self, params: Any, sum_w: Array) -> list[tuple[int, str]]:
        """Components that are collapsed, and why. sum_w : (k,) their soft counts."""

    def stats_from_arrays(self, arrays: Mapping[str, Array]) -> MixtureStats:
        """Statistics from arrays by the names of their fields, laid out in memory as an E-step's: sums follow it."""
        values: dict[str, Any] = {name: a if np.ndim(a) else float(a) for name, a in arrays.items()}
        return self.stats_class(**values)

    def log_prior(self, params: Any) -> float:
        """Log of the prior density of the parameters, up to a constant; 0 without a prior."""
        return 0.0

    def free_energy(self, stats: Any, params: Any) -> float:
        """F(q, params) = expected log joint + entropy of q, total nats, without the prior.

        [Neal and Hinton 1998, eq. 7]
        """
        return self.expected_log_joint(stats, params) + stats.entropy

    def objective(self, stats: Any, params: Any) -> float:
        """log p(X) + log prior; for hard assignment the free energy of the labels + log prior."""
        soft = self.assignment == "soft"
        value = stats.log_likelihood if soft else self.free_energy(stats, params)
        return value + self.log_prior(params)

    def e_step(
        self, params: Any, x: Rows, weight: Array | None = None, start: int = 0, exemplars: bool = False
    ) -> Partial:
        stats, log_norm = self.chunk_stats(params, x, weight)
        score = log_norm if weight is None else np.where(weight > 0, log_norm, np.inf)
        if not np.isfinite(stats.log_likelihood):
            self._refuse_impossible(score, start)
        worst = LowestRows.of(self.n_worst, score, start, x, weight)
        return Partial(stats, worst, exemplars=self._exemplars(params, x, weight, start) if exemplars else None)

    def _exemplars(self, params: Any, x: Rows, weight: Array | None, start: int) -> Exemplars:
        total: Exemplars | None = None
        for rows in first_few_then_tiles(x.shape[0], tile_height(self.n_features, self.n_components)):
            live = np.arange(rows.start, rows.stop)
            if weight is not None:
                live = live[weight[rows] > 0]
            log_joint = self.log_joint(params, x[live])
            log_resp = log_joint - log_sum_exp(log_joint)[:, None]
            if total is not None:
                chosen = total.challengers(log_resp, log_joint)
                live, log_joint, log_resp = live[chosen], log_joint[chosen], log_resp[chosen]
            best = Exemplars.of(N_EXEMPLARS, start + live, log_resp, log_joint, x[live])
            total = best if total is None else total + best
        assert total is not None, "a chunk has at least one row"
        return total

    def assign(self, params: Any, x: Rows) -> Iterator[tuple[slice, Labels]]:
        for rows in tiles(x.shape[0], tile_height(self.n_features, self.n_components)):
            log_joint = self.log_joint(params, x[rows])
            log_norm = log_sum_exp(log_joint)
            log_resp = log_joint - log_norm[:, None]
            yield rows, Labels(log_joint.argmax(axis=1).astype(np.int32), log_norm, log_resp)

    def removal_costs(self, params: Any, x: Rows, weight: Array | None = None) -> tuple[Array, Array]:
        """Sums of -log(1 - r_nk); where r_nk is near 1 the rest is summed without it, so that no digit is lost."""
        k = self.n_components
        cost, heirs = np.zeros(k), np.zeros((k, k))
        for rows in tiles(x.shape[0], tile_height(self.n_features, k)):
            log_joint = self.log_joint(params, x[rows])
            log_norm = log_sum_exp(log_joint)
            each, top = np.arange(len(log_joint)), log_joint.argmax(axis=1)
            with np.errstate(divide="ignore"):
                lost = -np.log1p(-np.exp(log_joint - log_norm[:, None]))
            log_joint[each, top] = -np.inf
            lost[each, top] = log_norm - log_sum_exp(log_joint)
            weights = np.ones(len(lost)) if weight is None else weight[rows]
            cost += weights @ lost
            np.add.at(heirs, (top, log_joint.argmax(axis=1)), weights)
        return cost, heirs

    def responsibilities(self, params: Any, x: Rows, least: float) -> sp.csr_array:
        parts = []
        for _, labels in self.assign(params, x):
            shares = np.exp(labels.log_resp)
            shares[shares < least] = 0.0
            parts.append(sp.csr_array(shares))
        return sp.csr_array(sp.vstack(parts))

    def _refuse_impossible(self, score: Array, start: int) -> None:
        """score : (n,) log-densities, inf for rows of weight 0."""
        bad = np.flatnonzero(~(score > -np.inf))
        if len(bad):
            raise InputError(
                f"row {start + bad[0]}: log-density {score[bad[0]]}; no component can produce it. "
                f"{self.impossible_advice}"
            )

    impossible_advice: ClassVar[str] = ""


def weighted_total(weight: Array | None, values: Array) -> float:
    """sum of weight x value, in which rows of weight 0 do not count, whatever their value. weight, values : (n,)."""
    if weight is None:
        return float(values.sum())
    with np.errstate(invalid="ignore"):  # 0 x inf
        total = float(weight @ values)
    return total if np.isfinite(total) else float(weight @ np.where(weight > 0, values, 0.0))


def share_with(weights: Array, moved: Array) -> Array:
    """Weights in which each moved component has 1/K, and the others share the rest as before. moved : (m,) int."""
    k = len(weights)
    kept = np.delete(np.arange(k), moved)
    shared = np.full(k, 1.0 / k)
    rest = weights[kept].sum()
    if rest > 0:
        shared[kept] = weights[kept] * (len(kept) / k / rest)
    return shared


def map_weights(sum_w: Array, concentration: float) -> Array:
    """Weights at the mode under a symmetric Dirichlet. sum_w : (k,) soft counts.  concentration >= 1; 1: no prior."""
    counts = sum_w + (concentration - 1.0)
    return counts / counts.sum()


def log_dirichlet(weights: Array, concentration: float) -> float:
    """Log density of that Dirichlet, nats, up to its constant. weights : (k,)."""
    if concentration == 1.0:
        return 0.0
    with np.errstate(divide="ignore"):  # a given start may have weights of 0
        return float((concentration - 1.0) * np.log(weights).sum())


def relative_square(change: Array, value: Array) -> Array:
    """change² / value, and 0 where nothing changes: 0/0 is a part that no row belongs to. Both : (...)."""
    return np.divide(change * change, value, out=np.where(change == 0, 0.0, np.inf), where=value > 0)


def checked_weights(weights: Array) -> Array:
    """The weights, or InputError unless they are non-negative and sum to 1. weights : (k,)."""
    if (weights < 0).any() or not np.isclose(weights.sum(), 1.0):
        raise InputError(
            f"initial weights: sum {weights.sum():.6g}, lowest {weights.min():.6g}; expected weights >= 0 that sum to 1."
        )
    return weights


def checked_arrays(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The named arrays as float64, or InputError saying which is missing or has which shape."""
    values: dict[str, Array] = {}
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(
                f"initial parameters: found {sorted(arrays)}, expected {sorted(shapes)}; {name} is missing."
            )
        value = np.asarray(arrays[name], dtype=np.float64)
        if value.shape != shape or not np.isfinite(value).all():
            raise InputError(f"initial {name}: shape {value.shape}, expected finite values of shape {shape}.")
        values[name] = value
    return values
