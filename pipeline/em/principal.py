"""K-means in the space of leading principal components, at a fraction of the cost.

The cost of a partition differs there from its cost in full by nearly the same amount for all good partitions.
[Drineas, Frieze, Kannan, Vempala and Vinay 2004; Cohen, Elder, Musco, Musco and Persu 2015]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.em.merging import SearchRows

BASIS_ROWS = 2**14  # that the components are of: a direction that more rows would change carries little


@dataclass(frozen=True)
class Scatter:
    """Job: weighted products of rows about `shift`, (d, d), in the dtype of the rows."""

    shift: Array

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        x = rows.x - self.shift.astype(rows.x.dtype)
        return (x.T @ (x if rows.weight is None else rows.weight[:, None].astype(x.dtype) * x)).astype(np.float64)


@dataclass(frozen=True)
class Projection:
    """An orthonormal basis (d, n) about `shift` (d,)."""

    shift: Array
    basis: Array

    def __call__(self, x: Array) -> Array:
        """Return coordinates of rows (m, d), shape (m, n), in their dtype."""
        return (x - self.shift.astype(x.dtype)) @ self.basis.astype(x.dtype)

    def back(self, points: Array) -> Array:
        """Return points (k, d) with coordinates (k, n)."""
        return self.shift + points @ self.basis.T


def leading(rows: SearchRows, shift: Array, n: int) -> Projection:
    """Return the projection to the n leading principal components of the rows, about `shift`."""
    scatter = rows.head(min(rows.n_rows, BASIS_ROWS)).sum_over([Scatter(shift)])[0]
    d = len(shift)
    basis = scipy.linalg.eigh(scatter, subset_by_index=(d - n, d - 1))[1]
    return Projection(shift, basis[:, ::-1])
