"""Hierarchical K-means: centres in groups, each below an upper centre, so that a row is compared with few of very many.

    p(x) = argmin_p |x - u_p|²                    the upper centres stay where the first level ended
    k(x) = argmin_k |x - c_k|²                    over the centres below u_p(x) and below its NEAR - 1 nearest neighbours
    c_k  = mean of the rows with k(x) = k         as in Lloyd's algorithm

The candidates of a row do not change while its iterations go on, so the inertia does not rise. The neighbours are there for rows
near the border of two groups. [Nistér and Stewénius 2006; Jégou, Douze and Schmid 2011, section IV]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.kernels.base import LloydSums
from pipeline.kernels.grouped import nearest_in_groups, settled
from pipeline.kernels.nearest import add_residuals, label_key, move_to, nearest
from pipeline.models.base import Reset
from pipeline.models.clusters import BestRows
from pipeline.models.lloyd import Centers, Lloyd, LloydStats
from pipeline.models.schema import Field, Fields, Support
from pipeline.models.starts import plus_plus

NEAR = 8  # groups that a row's centre is looked for in
ENOUGH = 5  # rows for each centre: of fewer, k-means++ takes those that stay alone
SHOWN_BYTES = 2**24  # of the nearest rows of each centre, which the report shows


Map = Callable[[Callable[[int], Array], Iterable[int]], Iterable[Array]]  # as `map`


class Group(Support):
    """Numbers of groups, below `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def problem(self, name: str, value: Array) -> str | None:
        wrong = ~np.isin(value, np.arange(self.size))
        expected = f"expected whole numbers from 0 to {self.size - 1}"
        return f"{name}: got {value[wrong][0]:g}, {expected}." if wrong.any() else None

    def n_free(self, shape: tuple[int, ...]) -> int:
        return 0


@dataclass(frozen=True)
class Grouped(Centers):
    """Centres in groups.

    Attributes
    ----------
    centers : array, shape (k, d)
    group : array, shape (k,), float64
        The upper centre that each is below.
    upper_centers : array, shape (n_groups, d)
    near : array of int, shape (n_groups, up to NEAR)
        The groups in which a row below an upper centre is looked for: the nearest ones that have centres.
    members, first : arrays of int, shapes (k,) and (n_groups + 1,)
        members[first[g] : first[g + 1]] are the centres of group g.
    """

    group: Array
    upper_centers: Array
    near: Array
    members: Array
    first: Array

    @classmethod
    def of(cls, centers: Array, group: Array, upper_centers: Array) -> Grouped:
        """Return them with what follows from the groups."""
        own, groups = group.astype(np.int64), len(upper_centers)
        members, size = np.argsort(own, kind="stable"), np.bincount(own, minlength=groups)
        used, moved = np.flatnonzero(size), upper_centers - upper_centers.mean(axis=0)
        square, count = np.einsum("gd,gd->g", moved, moved), min(NEAR, len(used))
        near = np.empty((groups, count), np.int64)
        for some in tiles(groups, tile_height(moved.shape[1], groups)):
            squared = square[used] - 2.0 * (moved[some] @ moved[used].T)
            near[some] = used[np.argpartition(squared, count - 1, axis=1)[:, :count]]
        return cls(centers, group, upper_centers, near, members, np.concatenate([[0], np.cumsum(size)]))

    def candidates(self, group: int) -> Array:
        """Return the centres that rows of a group are compared with, ascending: ties go to the lowest."""
        parts = [self.members[self.first[g] : self.first[g + 1]] for g in self.near[group]]
        return np.sort(np.concatenate(parts))


@stored
@dataclass(frozen=True)
class Hierarchy(Lloyd):
    """K-means of k centres in groups below the centres of a level above.

    Attributes
    ----------
    groups : int
        Number of upper centres.
    """

    groups: int = 1

    @property
    def above(self) -> Lloyd:
        """The model of the first level."""
        return Lloyd(self.groups, self.shift, self.variance)

    @property
    def fields(self) -> Fields:
        own, upper = Field(("component",), Group(self.groups)), Field(("upper", "feature"))
        return {**super().fields, "group": own, "upper_centers": upper}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {**super().sizes, "upper": self.groups}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "groups": self.groups}

    @property
    def represents(self) -> bool:  # type: ignore[override]
        """Whether the nearest rows of all centres are few enough to be collected."""
        return BestRows().nbytes(self) <= SHOWN_BYTES

    def scratch_bytes(self) -> int:
        compared = self.statistics_bytes()  # the centres that a row is compared with are at most all
        return max(self.above.scratch_bytes(), compared)

    def row_operations(self) -> float:
        return 4.0 * self.n_features * (self.groups + min(self.k, NEAR * self.k / self.groups))

    def params(self, **arrays: Array) -> Grouped:
        return Grouped.of(arrays["centers"], arrays["group"], arrays["upper_centers"])

    def start_below(self, upper: Array, rows: Array, weight: Array | None, seed: Sequence[int], kernels: Any, each: Map) -> Grouped:  # fmt: skip
        """Return centres among the rows below each upper centre, as many as in proportion to these rows: see `started`.

        Parameters
        ----------
        upper : array, shape (groups, d)
        rows : array, shape (n, d)
            At least k.
        weight : array, shape (n,), or None for ones
        seed : sequence of int
        kernels : Kernels
        each : callable
            (function, items) to function(item) for each item, in order, maybe by threads.
        """
        weight = np.ones(len(rows)) if weight is None else weight
        own = kernels.nearest(rows, upper, self.shift)[0]
        order = np.argsort(own, kind="stable")
        ends = np.cumsum(np.bincount(own, minlength=self.groups))
        many = shared(self.k, np.diff(ends, prepend=0))

        def below(group: int) -> Array:
            some = order[ends[group - 1] if group else 0 : ends[group]]
            return started(rows[some], weight[some], int(many[group]), np.random.default_rng([*seed, group]), kernels)

        found = list(each(below, np.flatnonzero(many).tolist()))
        return Grouped.of(np.concatenate(found), np.repeat(np.arange(self.groups), many).astype(np.float64), upper)

    def _groups(self, params: Grouped, above: Array) -> Iterator[tuple[Array, int, Array]]:
        """Yield the rows below each upper centre, its number, and the centres that these rows are compared with. above : (n,)."""
        order = np.argsort(above, kind="stable")
        ends = np.searchsorted(above[order], np.arange(self.groups + 1))
        for group in np.flatnonzero(np.diff(ends)).tolist():
            yield order[ends[group] : ends[group + 1]], group, params.candidates(group)

    def nearest(self, params: Centers, x: Matrix, kernels: Any) -> tuple[Array, Array]:
        found = self._summed(params, x, np.ones(x.shape[0]), kernels)
        return found.label, -found.score

    def sums(self, params: Centers, x: Matrix, weight: Array | None, first: int, kernels: Any) -> LloydSums:
        weights = np.ones(x.shape[0]) if weight is None else weight
        found = self._summed(params, x, weights, kernels)
        move_to(found.sum_w, params.centers, self.shift, found.sum_x)
        return found._replace(label_key=label_key(found.label, weights, first, self.k))

    def _summed(self, params: Centers, x: Matrix, weights: Array, kernels: Any) -> LloydSums:
        """As `sums`, with sums about the centres and without the key."""
        assert isinstance(params, Grouped)
        x, upper = np.ascontiguousarray(x, compute_dtype(x.dtype)), params.upper_centers
        above, score = kernels.nearest(x, upper, self.shift)[0], np.empty(len(x))
        compared = params.centers, params.near, params.members, params.first
        label = nearest_in_groups(x, above, upper, *compared)
        sum_w, sum_x = np.zeros(self.k), np.zeros_like(params.centers)
        inertia = add_residuals(x, weights, label, params.centers, score, sum_w, sum_x)
        if settled(x, above, upper, *compared, score, label):
            sum_w[:], sum_x[:] = 0.0, 0.0
            inertia = add_residuals(x, weights, label, params.centers, score, sum_w, sum_x)
        return LloydSums(label, score, sum_w, sum_x, inertia, np.uint64(0))

    def m_step(self, stats: LloydStats, params: Centers | None) -> Centers:
        """Means of the rows; a centre without rows stays."""
        assert isinstance(params, Grouped)
        live = stats.sum_w > 0
        centers = params.centers.copy()
        centers[live] = self.shift + stats.sum_x[live] / stats.sum_w[live, None]
        return replace(params, centers=centers)

    def reset(
        self, new: Centers, old: Centers, stats: LloydStats, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Centers, list[Reset]]:
        """As of K-means; a centre that moves to a row moves to the group of the row's old centre."""
        moved, done = super().reset(new, old, stats, attached, resets)
        places = [reset.component for reset in done if reset.done]
        if not places:
            return moved, done
        assert isinstance(moved, Grouped)
        group = moved.group.copy()
        group[places] = moved.group[attached["outliers"].label[: len(places)]]
        return Grouped.of(moved.centers, group, moved.upper_centers), done

    def silhouette(self, params: Centers, x: Matrix) -> Array:
        """As of K-means, the next centre being one of those that a row is compared with."""
        assert isinstance(params, Grouped)
        found = np.zeros(x.shape[0], np.float32)
        above = nearest(x, params.upper_centers, self.shift)[0]
        for rows, _, near in self._groups(params, above):
            found[rows] = Lloyd(len(near), self.shift).silhouette(Centers(params.centers[near]), x[rows])
        return found


def started(rows: Array, weight: Array, k: int, rng: np.random.Generator, kernels: Any) -> Array:
    """Return k centres among rows, (k, d): by k-means++, or different rows at random where there are fewer than ENOUGH for each.

    Of so few, k-means++ takes those that are far from all others, which then stay alone.
    """
    if len(rows) < ENOUGH * k:
        different = np.unique(rows, axis=0, return_index=True)[1]
        share = weight[different]
        if np.count_nonzero(share) >= k:
            return rows[rng.choice(different, k, replace=False, p=share / share.sum())].astype(np.float64)
    return plus_plus(rows, weight, k, rng, kernels)


def shared(k: int, size: Array) -> Array:
    """Return how many of k centres each group has, (n,) int: in proportion to its size, by largest remainders.

    >>> shared(5, np.array([10, 60, 30])).tolist()
    [1, 3, 1]
    """
    share = k * size / size.sum()
    many = np.floor(share).astype(np.int64)
    many[np.argsort(many - share, kind="stable")[: k - many.sum()]] += 1
    return many
