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
from pipeline.models.mixture import relative_square


class OfSeenEntries(Component):
    """What such components have in place of their own: a mixin before them."""

    incomplete: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries, as a whole number: what starts see."""
        return np.where(np.isnan(x), np.round(self.shift).astype(x.dtype), x)


class OfSeenCounts(OfSeenEntries):
    """Of components with one parameter a feature. stats_type : of the statistics, with the rows in which an entry is there as `seen`."""

    stats_type: ClassVar[Any]

    def statistics(self, theta: Any, x: Matrix, resp: Array) -> Any:
        missing = np.isnan(x)
        if missing.any():
            x, seen = np.where(missing, 0, x), resp.T @ ~missing
        else:
            seen = np.repeat(resp.sum(axis=0)[:, None], x.shape[1], axis=1)
        found = super().statistics(theta, x, resp)  # type: ignore[safe-super]  # that of whole rows
        return self.stats_type(**vars(found), seen=seen)

    def _seen(self, stats: Any, sum_w: Array) -> Array:
        seen: Array = stats.seen
        return seen

    def _squares(self, stats: Any, sum_w: Array, moved: Array, variance: Array) -> float:
        squares = np.where(stats.seen > 0, relative_square(moved, variance), 0.0)
        return float((stats.seen / sum_w.sum() * squares).sum())
