"""Spherical K-means: each row belongs to the centre of the highest cosine, each centre is the direction of its rows' sum.

    minimize sum_n w_n (1 - x_n·c_k(n))        |x_n| = |c_k| = 1

The limit of equal, concentrated von Mises-Fisher distributions with hard assignments; sparse rows stay sparse.
[Dhillon and Modha 2001; Hornik, Feinerer, Kober and Buchta 2012]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field as Option

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows, unit
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.nearest import label_key, scale_rows
from pipeline.models.base import Evidence, Expectation, Reset
from pipeline.models.clusters import Removal, SearchEffort, Summary
from pipeline.models.families.kmeans import CentersSection
from pipeline.models.families.vmf import ADVICE, is_zero
from pipeline.models.lloyd import Centers, Lloyd, LloydStats
from pipeline.models.schema import UNIT, Field, Fields


@stored
@dataclass(frozen=True)
class SphericalKMeans(Lloyd):
    """Spherical K-means; `shift` is 0. Its inertia is the sum of cosine distances, 1 - cosine."""

    family: ClassVar[str] = "spherical-kmeans"
    unit_rows: ClassVar[bool] = True
    share: ClassVar[float] = 0.5  # |x - c|² = 2 (1 - cosine)
    search: ClassVar[SearchEffort] = SearchEffort(2**15, 32, 16, 0.0, first=8, merged=6, passes=24)
    words: ClassVar = Lloyd.words._replace(
        name="spherical K-means",
        title="Spherical K-means with {k} clusters",
        unit="cosine distance",
        score="cosine_distance",
        score_text="cosine distance",
    )

    @property
    def fields(self) -> Fields:
        return {"centers": Field(("component", "feature"), UNIT)}

    def e_step(self, params: Centers, rows: Rows, kernels: Any) -> Expectation:
        known, weight = self.checked_labels(rows), np.ones(rows.n) if rows.weight is None else rows.weight
        if not sp.issparse(rows.x):
            x = np.empty(rows.x.shape, compute_dtype(rows.x.dtype))
            first = scale_rows(np.ascontiguousarray(rows.x, x.dtype), weight, x)
            if first >= 0:
                raise InputError(f"row {rows.start + first}: {ADVICE}")
            found = super().e_step(params, replace(rows, x=x), kernels)
            stats = replace(found.stats, inertia=self.share * found.stats.inertia)
            return found._replace(stats=stats, score=self.share * found.score)
        zero = np.flatnonzero(is_zero(rows.x) & (weight > 0))
        if len(zero):
            raise InputError(f"row {rows.start + zero[0]}: {ADVICE}")
        label, distance = np.empty(rows.n, np.int32), np.empty(rows.n)
        for tile, cosine in self._cosines(params, rows.x):
            label[tile] = cosine.argmax(axis=1)
            if known is not None:
                label[tile] = np.where(known[tile] >= 0, known[tile], label[tile])
            distance[tile] = 1.0 - cosine[np.arange(len(cosine)), label[tile]]
        score = np.where(weight > 0, -distance, np.inf)
        key = label_key(label, weight, rows.start, self.k)
        if known is not None:  # they are no places for empty centres
            score = np.where(known >= 0, np.inf, score)
        stats = replace(self.label_statistics(rows.x, label, weight), inertia=float(weight @ distance))
        return Expectation(stats, Evidence(rows.total_weight, 0.0), score, label, key)

    def _cosines(self, params: Centers, x: Matrix) -> Iterator[tuple[slice, Array]]:
        """The rows of each tile, and their cosines, (n, k) float64."""
        for rows in tiles(x.shape[0], tile_height(self.n_features, self.k)):
            yield rows, np.asarray(unit(x[rows]) @ params.centers.T)

    def m_step(self, stats: LloydStats, params: Centers | None) -> Centers:
        """A centre whose rows cancel stays, or at a start is that of the heaviest cluster."""
        found = unit(super().m_step(stats, params).centers)
        none = is_zero(found)
        if none.any():
            found[none] = found[stats.sum_w.argmax()] if params is None else params.centers[none]
        return Centers(found)

    def reset(
        self, new: Centers, old: Centers, stats: LloydStats, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Centers, list[Reset]]:
        far = attached["outliers"]
        x = unit(far.x.toarray() if sp.issparse(far.x) else far.x)
        return super().reset(new, old, stats, {**attached, "outliers": replace(far, x=x)}, resets)

    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> LloydStats:
        weights = np.where(labels >= 0, 1.0 if weight is None else weight, 0.0)
        own, n = np.maximum(labels, 0), x.shape[0]
        member = sp.csr_array((weights, (own, np.arange(n))), shape=(self.k, n))
        sums = member @ unit(x)
        sum_x = sums.toarray() if sp.issparse(sums) else np.asarray(sums)
        return LloydStats(np.bincount(own, weights, self.k), sum_x, 0.0)

    def start_at(self, rows: Array, summary: Summary) -> Centers:
        centers = unit(rows)
        centers[is_zero(centers)] = self.n_features**-0.5
        return Centers(centers)

    def start_near_mean(self, summary: Summary, draws: Array) -> Centers:
        return self.start_at(unit(summary.mean[None]) + 0.01 * self.n_features**-0.5 * draws, summary)

    def nearest(self, params: Centers, x: Matrix, kernels: Any) -> tuple[Array, Array]:
        label, distance = np.empty(x.shape[0], np.int32), np.empty(x.shape[0])
        for rows, cosine in self._cosines(params, x):
            label[rows] = cosine.argmax(axis=1)
            distance[rows] = 1.0 - cosine[np.arange(len(cosine)), label[rows]]
        return label, distance

    def removal_costs(self, params: Centers, x: Matrix, weight: Array | None, kernels: Any) -> Removal:
        """How much lower the second highest cosine is, summed over each centre's rows."""
        k, n = self.k, x.shape[0]
        weights = np.ones(n) if weight is None else weight
        label, second, lower = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
        for tile, cosine in self._cosines(params, x):
            each = np.arange(len(cosine))
            label[tile] = cosine.argmax(axis=1)
            best = cosine[each, label[tile]]
            cosine[each, label[tile]] = -np.inf
            second[tile] = cosine.argmax(axis=1)
            lower[tile] = best - cosine[each, second[tile]]
        cost = np.bincount(label, weights * lower if k > 1 else weights, minlength=k)
        return Removal.of(cost, label, second, weights)


class SphericalKMeansSection(CentersSection):
    """Spherical K-means: clusters of directions by the cosine, such as of embeddings and tf-idf."""

    family: Literal["spherical-kmeans"] = Option("spherical-kmeans", description="K-means by the cosine of directions")

    also_called: ClassVar[tuple[str, ...]] = ("cosine", "skmeans", "spherical")
    words: ClassVar = SphericalKMeans.words
    sparse: ClassVar[bool] = True
    second_moments: ClassVar[Literal["matrix", "variances", "none"]] = "none"
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "bundled", "path": "digits"},
        "model": {"family": "spherical-kmeans", "n_components": 10},
    }

    def build(self, summary: Summary, assignment: str) -> SphericalKMeans:
        [k] = self.n_components
        d = len(summary.mean)
        return SphericalKMeans(k, np.zeros(d), 1.0 / d)
