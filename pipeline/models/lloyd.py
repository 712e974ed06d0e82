"""K-means by Lloyd's iterations: each row is assigned to its nearest centre, each centre is the mean of its rows.

Stopping and empty centres as in scikit-learn: each empty centre moves to the row farthest from its own centre, which leaves
its old cluster; of very many, those that are left move in the next iterations. [Lloyd 1982; MacQueen 1967]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Representatives, Rows
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.base import LloydSums
from pipeline.kernels.nearest import add_residuals
from pipeline.kernels.nearest_bounds import bounds_bytes
from pipeline.models.base import Attachment, Evidence, Expectation, Reset, Totals
from pipeline.models.clusters import ClusterModel, Labels, Removal, SearchEffort, Summary, WorstRows
from pipeline.models.schema import Field, Fields
from pipeline.models.words import Words

LEAST_MOVED, MOVED_BYTES = 64, 2**20  # empty centres that can move in one iteration, and the bytes of rows for more


@dataclass(frozen=True)
class Centers:
    """centers : (k, d) float64."""

    centers: Array

    def __post_init__(self) -> None:
        # Kernels know centres by their array. This one is nobody else's, who might change it and ask again.
        object.__setattr__(self, "centers", self.centers.view())


class Book(NamedTuple):
    """What stands for rows, or for a part of their features. entries : (k, w).  first : the first of the w features."""

    entries: Array
    first: int


@stored
@dataclass(frozen=True)
class LloydStats(Additive):
    """sum_w : (k,).  sum_x : (k, d), about the model's shift.  inertia : sum of weighted squared distances."""

    sum_w: Array
    sum_x: Array
    inertia: float


@stored
@dataclass(frozen=True)
class LabelHash:
    """Sum of hashes of (row, label), modulo 2^64; those of two chunks merge by +."""

    value: np.uint64

    def __add__(self, other: LabelHash) -> LabelHash:
        return LabelHash(np.add(self.value, other.value, dtype=np.uint64))


@dataclass(frozen=True)
class HashedLabels:
    """Attachment: the label hash, which shows whether any label has changed."""

    name: ClassVar[str] = "label_hash"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> LabelHash:
        assert found.label_hash is not None
        return LabelHash(found.label_hash)

    def nbytes(self, model: Any) -> int:
        return 8


@stored
@dataclass(frozen=True)
class Lloyd(ClusterModel):
    """K-means. variance : mean variance of the features, which scales the tolerance."""

    k: int
    shift: Array
    variance: float = 1.0

    family: ClassVar[str] = "kmeans"
    location: ClassVar[str] = "centers"
    of_centers: ClassVar[bool] = True
    has_bound: ClassVar[bool] = False
    knows_bound: ClassVar[bool] = True
    share: ClassVar[float] = 1.0  # of a squared distance, in the inertia
    search: ClassVar[SearchEffort] = SearchEffort(2**15, 32, 16, 0.0, principal=True, first=8, merged=6, passes=24)
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
    def n_components(self) -> int:
        return self.k

    @property
    def fields(self) -> Fields:
        return {"centers": Field(("component", "feature"))}

    @property
    def extrapolates(self) -> bool:
        return False

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        most = max(LEAST_MOVED, MOVED_BYTES // (8 * self.n_features))
        return WorstRows(min(self.k, most)), HashedLabels()  # every centre but one can be empty

    def with_components(self, k: int) -> Lloyd:
        return replace(self, k=k)

    def without_fixed(self, field: str) -> Lloyd:
        return self

    def params(self, **arrays: Array) -> Centers:
        return Centers(arrays["centers"])

    def e_step(self, params: Centers, rows: Rows, kernels: Any) -> Expectation:
        known = self.checked_labels(rows)
        if known is None:
            found = self.sums(params, rows.x, rows.weight, rows.start, kernels)
        else:
            found = self._with_known(params, rows, known, kernels)
        label, score, sum_w, sum_x, inertia, label_hash = found
        if np.isnan(inertia):  # NaN since the profiling pass: bad rows have weight 0 here
            row = rows.start + int(np.isnan(score).argmax())
            raise InputError(
                f"row {row}: its distance is NaN. The data have changed since the job began: start it again."
            )
        evidence = Evidence(rows.total_weight, 0.0)
        return Expectation(LloydStats(sum_w, sum_x, inertia), evidence, score, label, label_hash)

    def sums(self, params: Centers, x: Matrix, weight: Array | None, first: int, kernels: Any) -> LloydSums:
        """Return the sums of an E-step; see `Kernels.lloyd_pass`."""
        found: LloydSums = kernels.lloyd_pass(x, weight, params.centers, self.shift, first)
        return found

    def nearest(self, params: Centers, x: Matrix, kernels: Any) -> tuple[Array, Array]:
        """Return the centre of each row, (n,) int32, and the squared distance to it, or what stands for it in the inertia, (n,)."""
        found: tuple[Array, Array] = kernels.nearest(x, params.centers, self.shift)
        return found

    def _with_known(self, params: Centers, rows: Rows, known: Array, kernels: Any) -> LloydSums:
        """As `lloyd_pass`. Rows with a known cluster stay in it, and are no places for empty centres: their score is inf."""
        label, score = known.astype(np.int32), np.full(rows.n, np.inf)
        sums = LloydSums(label, score, np.zeros(self.k), np.zeros_like(params.centers), 0.0, np.uint64(0))
        free, own = np.flatnonzero(known < 0), np.flatnonzero(known >= 0)
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        if len(free):
            sums = self.sums(params, rows.x[free], weight[free], rows.start, kernels)
            label[free], score[free] = sums.label, sums.score
        of_known = self.label_statistics(rows.x[own], known[own], weight[own])
        squares = np.square(np.subtract(rows.x[own], params.centers[known[own]], dtype=np.float64)).sum(axis=1)
        return LloydSums(
            label,
            score,
            sums.sum_w + of_known.sum_w,
            sums.sum_x + of_known.sum_x,
            sums.inertia + float(weight[own] @ squares),
            sums.label_key,
        )

    def m_step(self, stats: LloydStats, params: Centers | None) -> Centers:
        live = stats.sum_w > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            centers = self.shift + stats.sum_x / stats.sum_w[:, None]
        # An empty centre that no row can fill joins the heaviest one, as in scikit-learn: never the origin.
        return Centers(np.where(live[:, None], centers, centers[stats.sum_w.argmax()]))

    def expected_log_joint(self, stats: LloydStats, params: Centers) -> float:
        return -stats.inertia

    def restated(self, stats: LloydStats, before: Centers | None, after: Centers | None) -> LloydStats:
        """Rows with fixed labels cost sum_k N_k |c_k - m_k|² more under centres c than under their means m. None: the means."""
        live = stats.sum_w > 0
        means = self.shift + stats.sum_x[live] / stats.sum_w[live, None]
        more = [
            0.0 if each is None else float(stats.sum_w[live] @ ((each.centers[live] - means) ** 2).sum(axis=1))
            for each in (before, after)
        ]
        return replace(stats, inertia=stats.inertia + self.share * (more[1] - more[0]))

    def objective(self, totals: Totals, params: Centers) -> float:
        """Minus the inertia."""
        return float(-totals.stats.inertia)

    def counts(self, stats: LloydStats) -> Array:
        return stats.sum_w

    def collapsed(self, params: Centers, counts: Array) -> list[tuple[int, str]]:
        """Clusters with less than one row; only empty ones are reset during the iterations."""
        few = np.flatnonzero(counts < 1.0)
        return [(int(k), f"{counts[k]:.3g} rows, fewer than 1") for k in few]

    def reset(
        self, new: Centers, old: Centers, stats: LloydStats, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Centers, list[Reset]]:
        """scikit-learn's relocation: each empty centre moves to the farthest row, which leaves its old cluster."""
        far = attached["outliers"]
        empty = np.flatnonzero(stats.sum_w == 0)[: far.limit]
        if not len(empty):
            return new, []
        sum_w, sum_x = stats.sum_w.copy(), stats.sum_x.copy()
        done: list[Reset] = []
        for place, k in enumerate(empty):
            # No row is away from its centre: there are fewer distinct rows than centres.
            if place >= len(far.score) or far.score[0] == 0:
                done.append(Reset(int(k), "no rows, and no row away from its own centre", done=False))
                continue
            weight, before = far.weight[place], far.label[place]
            moved = weight * (np.asarray(far.x[place], dtype=np.float64) - self.shift)
            sum_w[before] -= weight
            sum_x[before] -= moved
            if sum_w[before] <= 1e-12 * stats.sum_w[before]:  # all its rows have left, to rounding
                sum_w[before] = 0.0
            sum_w[k], sum_x[k] = weight, moved
            done.append(Reset(int(k), f"no rows: got row {far.row[place]}", done=True))
        return self.m_step(LloydStats(sum_w, sum_x, stats.inertia), old), done

    def converged(self, before: Centers, after: Centers, same_labels: bool, tol: float) -> str | None:
        """As scikit-learn's KMeans: no label has changed, or the squared distance that centres moved is at most tol x variance."""
        if same_labels:
            return "converged: no label changed"
        moved = float(((after.centers - before.centers) ** 2).sum())
        allowed = tol * self.variance
        if moved <= allowed:
            return f"converged: the centres moved by {moved:.3g} squared, at most tol x variance = {allowed:.3g}"
        return None

    def fisher_norm(self, totals: Totals, params: Centers, new: Centers) -> float:
        """sqrt of sum_k N_k/N |Δc|² / variance: that of equal spherical components with the data's variance."""
        stats = totals.stats
        moved = stats.sum_w @ ((new.centers - params.centers) ** 2).sum(axis=1) / stats.sum_w.sum()
        with np.errstate(divide="ignore"):  # rows that are all the same
            return float(np.sqrt(moved / np.float64(self.variance))) if moved > 0 else 0.0

    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> LloydStats:
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        rows = np.ascontiguousarray(x, compute_dtype(x.dtype))
        origin = np.tile(self.shift, (self.k, 1))
        sum_w, sum_x = np.zeros(self.k), np.zeros_like(origin)
        own = np.maximum(labels, 0).astype(np.int32)
        add_residuals(rows, weights, own, origin, np.empty(len(rows)), sum_w, sum_x)
        return LloydStats(sum_w, sum_x, 0.0)

    def scratch_bytes(self) -> int:
        return bounds_bytes(self.k)

    def statistics_bytes(self) -> int:
        return 8 * self.k * (1 + self.n_features)

    def start_at(self, rows: Array, summary: Summary) -> Centers:
        return Centers(np.asarray(rows, dtype=np.float64))

    def assign(self, params: Centers, x: Matrix, kernels: Any) -> Iterator[tuple[slice, Labels]]:
        label, squared = self.nearest(params, x, kernels)
        for rows in tiles(x.shape[0], tile_height(self.n_features, self.k)):
            log_resp = np.where(label[rows, None] == np.arange(self.k), 0.0, -np.inf)
            yield rows, Labels(label[rows], squared[rows], log_resp)

    def codebook(self, params: Centers) -> list[Book]:
        """Return what rows are restored from."""
        return [Book(params.centers, 0)]

    def predict(self, params: Centers, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        if top_k or rows.label is not None:
            return super().predict(params, rows, top_k, kernels)
        label, squared = self.nearest(params, rows.x, kernels)  # without an array of (n, k)
        return {self.words.score: squared, "label": label}

    def representatives(
        self, params: Centers, rows: Rows, found: Expectation, limit: int, kernels: Any
    ) -> Representatives:
        assert found.label is not None
        live = np.flatnonzero(found.score < np.inf)
        label, score = found.label[live], found.score[live]
        return Representatives.of_labels(limit, self.k, rows.start + live, label, score, rows.x[live])

    def removal_costs(self, params: Centers, x: Matrix, weight: Array | None, kernels: Any) -> Removal:
        """How much farther the second nearest centre is, squared, summed over each centre's rows."""
        k, n = self.k, x.shape[0]
        label, second, farther = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n)
        centers = (params.centers - self.shift).astype(compute_dtype(x.dtype))
        square = np.einsum("kd,kd->k", centers, centers)
        height, factors = tile_height(self.n_features, k), -2.0 * centers.T
        scores = np.empty((min(height, n), k), centers.dtype)  # once: new pages would take longer than the product
        for rows in tiles(n, height):
            y = np.subtract(x[rows], self.shift, dtype=centers.dtype)
            score = np.matmul(y, factors, out=scores[: len(y)])
            score += square
            each = np.arange(len(score))
            label[rows] = score.argmin(axis=1)
            nearest_score = score[each, label[rows]]
            score[each, label[rows]] = np.inf
            second[rows] = score.argmin(axis=1)
            farther[rows] = score[each, second[rows]].astype(np.float64) - nearest_score
        cost = np.bincount(label, farther if weight is None else weight * farther, minlength=k)
        return Removal.of(cost, label, second, weight)

    def silhouette(self, params: Centers, x: Matrix) -> Array:
        """Return (b - a) / b of rows for the distances a and b to the nearest and the next centre, (n,), float32; 0 where b is 0, or there is none."""
        found = np.zeros(x.shape[0], np.float32)
        if self.k < 2:
            return found
        from scipy.spatial.distance import cdist

        for rows in tiles(x.shape[0], tile_height(self.n_features, self.k)):
            square = cdist(np.asarray(x[rows], np.float64), params.centers, "sqeuclidean")
            a, b = np.sqrt(np.partition(square, 1, axis=1)[:, :2]).T
            found[rows] = np.divide(b - a, b, out=np.zeros_like(b), where=b > 0)
        return found

    def responsibilities(self, params: Centers, x: Matrix, least: float, kernels: Any) -> sp.csr_array:
        label, _ = self.nearest(params, x, kernels)
        return sp.csr_array((np.ones(len(label)), label, np.arange(len(label) + 1)), (len(label), self.k))
