"""How far clusters are apart: the Davies-Bouldin and Calinski-Harabasz indices and the mean silhouette, from sums over rows.

References
----------
Davies and Bouldin (1979); Calinski and Harabasz (1974); Hruschka, de Castro and Campello (2004), eq. 5: the simplified silhouette.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.models.base import Expectation

_MOST_PAIRED = 10_000  # clusters whose centres are compared in pairs
BY_SEPARATION = ("silhouette", "davies_bouldin", "calinski_harabasz")  # of select.criterion


@stored
@dataclass(frozen=True)
class Separation(Additive):
    """Sums over the rows of each cluster, (k,) float64: rows, squared distances and distances to their centre; and of silhouettes, if known."""

    rows: Array
    squared: Array
    distance: Array
    silhouette: float | None

    @classmethod
    def of(cls, label: Array, squared: Array, k: int, silhouette: Array | None) -> Separation:
        """Return the sums over some rows. label, squared, silhouette : (n,), their own and that of their squared distance."""
        rows, square, distance = (
            np.bincount(label, each, minlength=k).astype(np.float64) for each in (None, squared, np.sqrt(squared))
        )
        return cls(rows, square, distance, None if silhouette is None else float(silhouette.sum(dtype=np.float64)))

    def measures(self, centers: Array) -> dict[str, float]:
        """Return the indices by name; empty for fewer than two clusters, or no more rows than clusters. centers : (k, d)."""
        used = self.rows > 0
        size, within, apart, centers = self.rows[used], self.squared[used], self.distance[used], centers[used]
        n, k = size.sum(), len(size)
        if k < 2 or n <= k:
            return {}
        between = float(size @ np.square(centers - size @ centers / n).sum(axis=1))
        inside = float(within.sum())
        measured = {} if self.silhouette is None else {"silhouette": self.silhouette / float(n)}
        if k <= _MOST_PAIRED:
            measured["davies_bouldin"] = _davies_bouldin(apart / size, centers)
        return measured | {"calinski_harabasz": 1.0 if inside == 0 else between * (n - k) / (inside * (k - 1.0))}


def _davies_bouldin(mean: Array, centers: Array) -> float:
    """mean : (k,) distances of rows to their centre."""
    from scipy.spatial.distance import cdist

    worst = np.zeros(len(centers))
    for first in range(0, len(centers), 256):
        some = slice(first, first + 256)
        distance = cdist(centers[some], centers)
        distance[distance == 0] = np.inf
        worst[some] = ((mean[some, None] + mean) / distance).max(axis=1)
    return float(worst.mean())


@dataclass(frozen=True)
class SeparationOfRows:
    """Attachment: the separation of the clusters of K-means, by which their number is chosen."""

    name: ClassVar[str] = "separation"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> Separation:
        assert found.label is not None
        live = found.score < np.inf
        silhouette = model.silhouette(params, rows.x)[live]
        return Separation.of(
            found.label[live], -found.score[live], model.k, silhouette
        )  # a score is low where a row fits badly

    def nbytes(self, model: Any) -> int:
        return 24 * model.k + 8
