"""Components whose features are independent of each other, of rows with missing entries: those are left out.

    log p(x | k) = sum over the entries that are there of log p(x_j | theta_kj)

The M-step of a feature is then that of the rows in which it is there, whose sums are statistics too. [Little and Rubin 2002, sec. 13.2; Linzer
and Lewis 2011, sec. 2.4]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.models.component import Component


class OfSeenEntries(Component):
    """What such components have in place of their own: a mixin before them."""

    incomplete: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries, as a whole number: what starts see."""
        return np.where(np.isnan(x), np.round(self.shift).astype(x.dtype), x)

    def seen_of(self, x: Matrix, resp: Array) -> tuple[Matrix, Array]:
        """Return rows with 0 in place of missing entries, and the sums of the rows in which an entry is there, (k, d)."""
        missing = np.isnan(x)
        if not missing.any():
            return x, np.repeat(resp.sum(axis=0)[:, None], x.shape[1], axis=1)
        return np.where(missing, 0, x), np.asarray(resp.T @ ~missing)

    def _seen(self, stats: Any, sum_w: Array) -> Array:
        seen: Array = stats.seen
        return seen
