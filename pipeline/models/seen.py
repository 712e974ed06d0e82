"""Components whose features are independent of each other, of rows with missing entries: those are left out.

    log p(x | k) = sum over the entries that are there of log p(x_j | theta_kj)

The M-step of a feature is then that of the rows in which it is there, whose sums are statistics too. [Little and Rubin 2002, sec. 13.2; Linzer
and Lewis 2011, sec. 2.4]
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.models.collapse import mended
from pipeline.models.component import Component
from pipeline.models.incomplete import LOG_2PI, OfVariances, filled
from pipeline.models.mixture import relative_square
from pipeline.models.moments import Frame, resolved, rounding_of


class OfSeenEntries(Component):
    """What such components have in place of their own: a mixin before them."""

    incomplete: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries, as a whole number: what starts see."""
        return filled(x, np.round(self.shift))


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


class OfSeenMoments(OfSeenEntries):
    """Of Gaussian components with a variance for each feature and no prior. stats_type : of their statistics, as of `OfSeenCounts`.

    The counts of a frame are (k, d) too.
    """

    stats_type: ClassVar[Any]

    def log_joint(self: Any, theta: Any, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        if not np.isnan(x).any():
            return super().log_joint(theta, log_weights, x, kernels)  # type: ignore[safe-super]  # Gaussian's
        rows = OfVariances(x.astype(np.float64), theta.means, theta.covariances, one=False)
        return log_weights + rows.log_density

    def statistics(self: Any, theta: Any, x: Matrix, resp: Array) -> Any:
        by, missing = None if theta is None else theta.by, np.isnan(x)
        moments = self._moments(by)
        for one, own in zip(moments, resp.T, strict=True):
            one.add(np.where(missing, one.mean, x.astype(np.float64)), own)
        sums, seen = self._stacked(moments), np.repeat(resp.sum(axis=0)[:, None], x.shape[1], axis=1)
        if missing.any():
            seen = resp.T @ ~missing
        return self.stats_type(sums.sum_x, sums.sum_xx, seen=seen, frame=Frame.at(by, seen, self.covariance_type))

    def label_statistics(self: Any, x: Matrix, labels: Array, weight: Array) -> Any:
        return Component.label_statistics(self, x, labels, weight)

    def statistics_bytes(self) -> int:
        return int(super().statistics_bytes()) + 8 * self.n_components * self.n_features

    def m_step(self: Any, stats: Any, sum_w: Array, theta: Any | None) -> Any:
        before = theta or self.theta(
            means=np.tile(self.shift, (self.n_components, 1)), covariances=np.ones_like(stats.seen)
        )
        means, covariances, points, there = before.means, before.covariances, self._points(stats.by), stats.seen > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            if "means" not in self.fixed:
                means = np.where(there, points + stats.sum_x / stats.seen, means)
            if self.spread in self.fixed:
                return self.theta(means=means, covariances=covariances)
            squares = self.shape.moved(stats.seen, stats.sum_x, stats.sum_xx, means - points)[1]
            covariances = np.where(there, squares / stats.seen + self.reg_covar, covariances)
        rounding = rounding_of(means - points, self.shape)
        new = resolved(self, self.theta(means=means, covariances=covariances), rounding)
        return mended(self, new, stats, sum_w) if theta is None else new

    def expected_log_densities(self: Any, theta: Any, sum_w: Array, stats: Any) -> Array:
        by = theta.means - self._points(stats.by)
        squares = self.shape.moved(stats.seen, stats.sum_x, stats.sum_xx, by)[1]
        terms = stats.seen * (np.log(theta.covariances) + LOG_2PI) + squares / theta.covariances
        return np.asarray(-0.5 * terms.sum(axis=1))

    def step_squares(self: Any, stats: Any, sum_w: Array, theta: Any, new: Any) -> tuple[float, ...]:
        """N_kj/N (Δμ²/v + (Δv/v)²/2), summed, for the N_kj rows in which the entry is there."""
        moved, widened = new.means - theta.means, new.covariances - theta.covariances
        return self._squares_of(stats.seen / sum_w.sum(), theta, moved, widened)

    def change_squares(
        self: Any, change: Any, change_w: Array, stats: Any, sum_w: Array, theta: Any
    ) -> tuple[float, ...]:
        by = theta.means - self._points(change.by)
        first, second = self.shape.moved(change.seen, change.sum_x, change.sum_xx, by)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved, widened = first / stats.seen, (second - change.seen * theta.covariances) / stats.seen
        moved, widened = (
            np.where((stats.seen > 0) & (name not in self.fixed), value, 0.0)
            for name, value in (("means", moved), (self.spread, widened))
        )
        return self._squares_of(stats.seen / sum_w.sum(), theta, moved, widened)

    def _squares_of(self: Any, share: Array, theta: Any, moved: Array, widened: Array) -> tuple[float, ...]:
        of_means = float((share * relative_square(moved, theta.covariances)).sum())
        return of_means, 0.5 * float((share * np.square(widened / theta.covariances)).sum())
