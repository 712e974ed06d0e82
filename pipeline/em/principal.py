"""Rows in the space of their leading principal components, where K-means is refined at a fraction of the cost.

What a partition costs there differs from what it costs in full by nearly the same amount for all partitions that are any
good. [Drineas, Frieze, Kannan, Vempala and Vinay 2004; Cohen, Elder, Musco, Musco and Persu 2015]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.em.moves import MemoryRows

BASIS_ROWS = 2**14  # that the components are of: a direction that more rows would change carries little


@dataclass(frozen=True)
class Scatter:
    """Job: (d, d) weighted products of rows about `shift`, formed in the dtype of the rows."""

    shift: Array

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        """Return that of one chunk."""
        x = rows.x - self.shift.astype(rows.x.dtype)
        return (x.T @ (x if rows.weight is None else rows.weight[:, None].astype(x.dtype) * x)).astype(np.float64)


@dataclass(frozen=True)
class Projection:
    """An orthonormal basis (d, n) about `shift` (d,)."""

    shift: Array
    basis: Array

    def __call__(self, x: Array) -> Array:
        """(m, n) coordinates of rows (m, d), in their dtype."""
        return (x - self.shift.astype(x.dtype)) @ self.basis.astype(x.dtype)

    def back(self, points: Array) -> Array:
        """(k, d) points with these coordinates (k, n)."""
        return self.shift + points @ self.basis.T


def leading(rows: MemoryRows, shift: Array, n: int) -> Projection:
    """To the n leading principal components of the rows, about `shift`."""
    scatter = rows.head(min(rows.n_rows, BASIS_ROWS)).sum_over([Scatter(shift)])[0]
    d = len(shift)
    basis = scipy.linalg.eigh(scatter, subset_by_index=(d - n, d - 1))[1]
    return Projection(shift, basis[:, ::-1])
