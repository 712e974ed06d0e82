"""K-means (Lloyd): each row goes to its nearest centre, each centre to the mean of its rows.

With scikit-learn's stopping and its rule for empty centres: each takes the row farthest from its own
centre, which leaves its old cluster. [Lloyd 1982; MacQueen 1967]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from pipeline.errors import InputError
from pipeline.kernels.nearest import add_residuals, lloyd_pass
from pipeline.models.base import (
    N_EXEMPLARS,
    Labels,
    Model,
    Reset,
    checked_arrays,
    compute_dtype,
    first_few_then_tiles,
    tile_height,
    tiles,
)
from pipeline.models.stats import Additive, Array, Exemplars, LowestRows, Partial, Rows
from pipeline.models.words import Words


@dataclass(frozen=True)
class KMeansParams:
    """centers : (k, d) float64."""

    centers: Array

    def arrays(self) -> dict[str, Array]:
        """The parameters by name."""
        return {"centers": self.centers}


@dataclass(frozen=True)
class KMeansStats(Additive):
    """sum_w : (k,).  sum_x : (k, d), about the model's shift.  inertia : sum of weighted squared distances."""

    sum_w: Array
    sum_x: Array
    inertia: float


@dataclass(frozen=True)
class KMeans(Model):
    """Hyperparameters of K-means. variance : mean variance of the features, which scales the tolerance."""

    n_components: int
    shift: Array
    variance: float = 1.0

    family: ClassVar[str] = "kmeans"
    words: ClassVar[Words] = Words(
        name="K-means",
        title="K-means with {k} clusters",
        component="cluster",
        components="clusters",
        location="centre",
        objective="inertia",
        unit="squared distance",
        sign=-1,
        score="squared_distance",
        score_text="squared distance",
        until="no label changes, or the centres move by at most {tol} × the mean variance of the features, squared",
    )

    @property
    def n_worst(self) -> int:
        """Every centre but one can be empty."""
        return self.n_components

    def e_step(
        self, params: KMeansParams, x: Rows, weight: Array | None = None, start: int = 0, exemplars: bool = False
    ) -> Partial:
        rows = np.ascontiguousarray(x, compute_dtype(x.dtype))
        label, score, sum_w, sum_x, inertia, key = lloyd_pass(rows, weight, params.centers, self.shift, start)
        if np.isnan(inertia):  # NaN that came after the profiling pass: bad rows are set aside before they get here
            row = start + int(np.isnan(score).argmax())
            raise InputError(
                f"row {row}: its distance is NaN. The data have changed since the job began: start it again."
            )
        return Partial(
            KMeansStats(sum_w, sum_x, inertia),
            LowestRows.of(self.n_worst, score, start, x, weight, label),
            key,
            self._exemplars(x, start, label, score) if exemplars else None,
        )

    def _exemplars(self, x: Rows, start: int, label: Array, score: Array) -> Exemplars:
        total: Exemplars | None = None
        for rows in first_few_then_tiles(x.shape[0], tile_height(self.n_features, self.n_components)):
            live = rows.start + np.flatnonzero(score[rows] < np.inf)
            if total is not None and total.row.shape[1] == N_EXEMPLARS:  # as Exemplars.challengers, but without (n, k)
                last = np.where(total.log_resp[:, -1] == 0, total.log_joint[:, -1], -np.inf)
                live = live[score[live] > last[label[live]]]
            own = np.where(label[live, None] == np.arange(self.n_components), 0.0, -np.inf)
            best = Exemplars.of(N_EXEMPLARS, start + live, own, own + score[live, None], x[live])
            total = best if total is None else total + best
        assert total is not None, "a chunk has at least one row"
        return total

    def stats_of_labels(self, x: Rows, labels: Array, weight: Array | None = None) -> KMeansStats:
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        rows = np.ascontiguousarray(x, compute_dtype(x.dtype))
        origin = np.tile(self.shift, (self.n_components, 1))
        sum_w, sum_x = np.zeros(self.n_components), np.zeros_like(origin)
        own = np.maximum(labels, 0).astype(np.int32)
        add_residuals(rows, weights, own, origin, np.empty(len(rows)), sum_w, sum_x)
        return KMeansStats(sum_w, sum_x, 0.0)

    def m_step(self, stats: KMeansStats, params: KMeansParams | None) -> KMeansParams:
        live = stats.sum_w > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            centers = self.shift + stats.sum_x / stats.sum_w[:, None]
        # An empty centre that no row can fill joins the heaviest one, as in scikit-learn: never the origin.
        return KMeansParams(np.where(live[:, None], centers, centers[stats.sum_w.argmax()]))

    def revive(
        self, new: KMeansParams, params: KMeansParams, partial: Partial, resets: Array
    ) -> tuple[KMeansParams, list[Reset]]:
        """scikit-learn's relocation: each empty centre takes the farthest row, which leaves its old cluster."""
        stats, far = partial.stats, partial.worst
        empty = np.flatnonzero(stats.sum_w == 0)
        if not len(empty):
            return new, []
        sum_w, sum_x = stats.sum_w.copy(), stats.sum_x.copy()
        done: list[Reset] = []
        for place, k in enumerate(empty):
            # No row is away from its centre: there are fewer distinct rows than centres.
            if place >= len(far.score) or far.score[0] == 0:
                done.append(Reset(int(k), "no rows, and no row away from its own centre", done=False))
                continue
            weight, old = far.weight[place], far.label[place]
            moved = weight * (np.asarray(far.x[place], dtype=np.float64) - self.shift)
            sum_w[old] -= weight
            sum_x[old] -= moved
            if sum_w[old] <= 1e-12 * stats.sum_w[old]:  # all its rows have left, to rounding
                sum_w[old] = 0.0
            sum_w[k], sum_x[k] = weight, moved
            done.append(Reset(int(k), f"no rows: took row {far.row[place]}", done=True))
        return self.m_step(KMeansStats(sum_w, sum_x, stats.inertia), params), done

    def objective(self, stats: KMeansStats, params: KMeansParams) -> float:
        """Minus the inertia."""
        return -stats.inertia

    def fisher_norm(self, stats: KMeansStats, params: KMeansParams, new: KMeansParams) -> float:
        """Σ_k N_k/N |Δc|² / variance, and its root: that of equal spherical components as wide as the data."""
        moved = stats.sum_w @ ((new.centers - params.centers) ** 2).sum(axis=1) / stats.sum_w.sum()
        with np.errstate(divide="ignore"):  # rows that are all the same
            return float(np.sqrt(moved / np.float64(self.variance))) if moved > 0 else 0.0

    def assign(self, params: KMeansParams, x: Rows) -> Iterator[tuple[slice, Labels]]:
        label, d2 = nearest(x, params.centers, self.shift)
        for rows in tiles(x.shape[0], tile_height(self.n_features, self.n_components)):
            log_resp = np.where(label[rows, None] == np.arange(self.n_components), 0.0, -np.inf)
            yield rows, Labels(label[rows], d2[rows], log_resp)

    def removal_costs(self, params: KMeansParams, x: Rows, weight: Array | None = None) -> tuple[Array, Array]:
        """How much farther the second nearest centre is, squared, summed over each centre's rows."""
        k = self.n_components
        cost, heirs = np.zeros(k), np.zeros((k, k))
        centers = (params.centers - self.shift).astype(compute_dtype(x.dtype))
        square = np.einsum("kd,kd->k", centers, centers)
        for rows in tiles(x.shape[0], tile_height(self.n_features, k)):
            score = square - 2.0 * (np.subtract(x[rows], self.shift, dtype=centers.dtype) @ centers.T)
            each, label = np.arange(len(score)), score.argmin(axis=1)
            nearest_score = score[each, label]
            score[each, label] = np.inf
            second = score.argmin(axis=1)
            weights = np.ones(len(score)) if weight is None else weight[rows]
            farther = score[each, second].astype(np.float64) - nearest_score
            cost += np.bincount(label, weights * farther, minlength=k)
            heirs += np.bincount(label * k + second, weights, minlength=k * k).reshape(k, k)
        return cost, heirs

    def responsibilities(self, params: KMeansParams, x: Rows, least: float) -> sp.csr_array:
        label, _ = nearest(x, params.centers, self.shift)
        return sp.csr_array((np.ones(len(label)), label, np.arange(len(label) + 1)), (len(label), self.n_components))

    def n_free_parameters(self) -> int:
        return self.n_components * self.n_features

    def params_from_arrays(self, arrays: Mapping[str, Array]) -> KMeansParams:
        return KMeansParams(checked_arrays(arrays, {"centers": (self.n_components, self.n_features)})["centers"])

    def reorder(self, params: KMeansParams, order: Array) -> KMeansParams:
        return KMeansParams(params.centers[order])

    def positions(self, params: KMeansParams) -> Array:
        return params.centers


def nearest(x: Rows, centers: Array, shift: Array) -> tuple[Array, Array]:
    """Nearest centre of each row and the squared distance to it; ties go to the lowest centre.

    x : (n, d), dense, or sparse (shift must be 0 then).  centers : (k, d).
    The choice comes from |c|² - 2 x.c about `shift` in x's compute dtype; the distance of the chosen one
    is formed from the difference, in float64. Returns (n,) int32 and (n,) float64.
    """
    if sp.issparse(x):
        cross = x @ centers.T
        score = np.einsum("kd,kd->k", centers, centers) - 2.0 * cross
        label = score.argmin(axis=1)
        return label.astype(np.int32), np.maximum(score[np.arange(len(label)), label] + x.multiply(x).sum(axis=1), 0.0)
    rows = np.ascontiguousarray(x, compute_dtype(x.dtype))
    label, score, *_ = lloyd_pass(rows, None, centers, shift)
    return label, -score
