"""Gaussian and Student-t passes that skip the pairs of a row and a component whose responsibility rounds to nothing.

    log p(x, k) <= s_k - |W_kᵀ (x - μ_k)|² / 2,    W_k = P_k V_k,  V_kᵀ V_k = 1,  P_k P_kᵀ = Σ_k⁻¹

for any m orthonormal columns V_k, because a projection is no longer than what it projects. One matrix product a tile
gives bounds of all pairs. Pairs whose bound is more than TAIL below the highest density of the row have responsibilities
below e^-TAIL, half a unit of rounding, and are skipped; the others are computed from gathered rows (kernels/pairs.py).
The highest density is found by computing the pairs with the highest bounds, then all whose bound is above what was found:
only these can be higher, and none of them is to be skipped.

The bounds are computed in float32, and lowered distances cover their rounding. A computed projection z errs by at most
e = γ (|y| |w| + |o|), y = x - reference, o = (μ - reference)·w, γ = (d + 8) 2^-24, and for 0 < ρ < 1

    max(0, |z| - e)² >= (1 - ρ) z² - e² / ρ        e² <= 2 γ² (|y|² |w|² + o²)

[Cauchy-Schwarz; Higham 2002, sec. 3.1]. What is skipped depends on the rows of the chunk, the parameters and the dtype alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import tiles
from pipeline.kernels.arena import Arena
from pipeline.kernels.base import NOTHING_SKIPPED, GaussianProblem, GaussianSums, Skipped
from pipeline.kernels.bounds import FLOAT32, FLOAT64, Bounds, BoundsCache
from pipeline.kernels.exponential import TAIL
from pipeline.kernels.pairs import GROUP, MOST_ROWS, lanes, pair_distances, pair_moments, whole_rows, whole_vectors
from pipeline.kernels.skipping import (
    by_component,
    gaussian_density,
    merged,
    pair_softmax,
    project_tile,
    raise_highest,
    survivors,
    take,
    take_highest,
)
from pipeline.kernels.skipping_costs import may_skip, might_pay, pays
from pipeline.kernels.softmax import padded

MARGIN = 0.01  # nats, for the rounding of a computed density, and of the last additions of a bound
RELATIVE = 2.0**-20  # of a density, for the same
FIRST = 3  # highest-bounded pairs of a row that are computed before it is known what others are compared with
PART = 0.5  # of the way from a row's highest density that was found up to the bounds that were not computed
PROBED = 32  # one row of so many tells whether it is worth while: at least 16, and at most 128
TILE_PAIRS = 2**19  # of which few are computed; an eighth, where all are
LEAST_HEIGHT = 1024  # rows of a tile of which few pairs are computed: each tile reads and writes all moments, 32 KiB a component at d = 64
PROJECTED = 256  # rows at a time
INT32 = np.dtype(np.int32)


class Pairs(NamedTuple):
    """Pairs by component: those of c are rows[start[c] : start[c + 1]]."""

    rows: Array
    start: Array

    @property
    def counts(self) -> Array:
        """(k,) pairs of each component."""
        return np.diff(self.start)

    @property
    def components(self) -> Array:
        """(p,) components of the pairs."""
        return np.repeat(np.arange(len(self.start) - 1), self.counts)


class Densities(NamedTuple):
    """Log joint densities (p,) and squared distances (p,) of pairs, float64.  skipped : (n,), the
    highest bound, or value, of the others.  computed : pairs, others included.
    """

    pairs: Pairs
    value: Array
    distance: Array
    skipped: Array | None = None
    computed: int | None = None


class Tile(NamedTuple):
    """Rows of a tile by precision, (n, e) with zeros beyond d; about the reference, (n, d) in float32; and their squared lengths there."""

    x: dict[Any, Array]
    y: Array
    size: Array


def counted(problem: GaussianProblem, n: int, computed: int | None = None, largest: float = 0.0) -> Skipped:
    """What a pass over n rows left out. computed : pairs; None for all."""
    if not may_skip(problem):
        return NOTHING_SKIPPED
    pairs = float(n * len(problem.means))
    return Skipped(pairs if computed is None else float(computed), pairs, largest)


def pruned_pass(
    problem: GaussianProblem, x: Array, weight: Array | None, arena: Arena, cache: BoundsCache
) -> GaussianSums | None:
    """E-step of one chunk that skips pairs; None if too few can be. x : (n, d), float32 or float64, C-contiguous."""
    (k, d), n = problem.means.shape, len(x)
    every = problem.df is not None  # other kernels have no moments of Student-t components
    prunes = might_pay(problem, x, True)
    if not (every or prunes):
        return None
    work = _Work(problem, cache.of(problem, x.dtype), arena)
    prunes = prunes and work.pays(x, True)
    if not (every or prunes):
        return None
    log_norm, sum_w, scales, entropy = np.empty(n), np.zeros(k), np.zeros((2, k)), 0.0
    computed, largest = 0, 0.0
    sum_x, sum_xx = work.new_moments()
    for rows in tiles(n, work.height(prunes)):
        tile = work.tile(x[rows])
        found = work.candidates(tile) if prunes else work.all_pairs(tile)
        pairs, value, distance, *_ = found
        share = arena.array("shares", (padded(len(value), 8),), FLOAT64)
        scratch = arena.array("row sums", (3, len(tile.y)), FLOAT64)
        w = np.empty(0) if weight is None else weight[rows]
        more, dropped = pair_softmax(pairs.rows, value, w, problem.hard, np.exp(-TAIL), scratch, log_norm[rows], share)
        entropy, share = entropy + more, share[: len(value)]
        computed += len(value) if found.computed is None else found.computed
        largest = max(largest, dropped, work.largest(found, log_norm[rows]))
        sum_w += _by_component(share, pairs)
        if problem.df is not None:
            df = np.repeat(problem.df, pairs.counts)
            with np.errstate(invalid="ignore"):
                ratio = np.where(share > 0, share * np.log1p(distance / df), 0.0)
                excess = np.where(share > 0, share * ((d - distance) / (df + distance)), 0.0)
            scales += [_by_component(ratio, pairs), _by_component(excess, pairs)]
            share += excess
        work.add_moments(tile, pairs, share, sum_x, sum_xx)
    return GaussianSums(
        log_norm,
        problem.means,
        sum_w,
        sum_x[:, :d],
        problem.shape.from_lanes(sum_xx[:, :d, :d]),
        entropy,
        counted(problem, n, computed, largest),
        scales,
    )


def near_joint(problem: GaussianProblem, x: Array, ranks: int, arena: Arena, cache: BoundsCache) -> Array | None:
    """See `Kernels.gaussian_near_joint`. x : (n, d), float32 or float64, C-contiguous."""
    if not might_pay(problem, x, False):
        return None
    work = _Work(problem, cache.of(problem, x.dtype), arena, ranks)
    if not work.pays(x, False):
        return None
    out = np.full((len(x), work.k), -np.inf)
    for rows in tiles(len(x), work.height(True)):
        tile = work.tile(x[rows])
        pairs, value, *_ = work.candidates(tile)
        out[rows][pairs.rows, pairs.components] = value
    return out


def _by_component(values: Array, pairs: Pairs) -> Array:
    """(k,) sums."""
    sums = np.zeros(len(pairs.start) - 1)
    some = np.flatnonzero(pairs.counts)
    sums[some] = np.add.reduceat(values, pairs.start[some]) if len(some) else 0.0
    return sums


class _Work:
    """The arithmetic of one chunk. ranks : what rounds to nothing beside the rank-th largest of a row is ruled out; 0: all but the largest."""

    def __init__(self, problem: GaussianProblem, bounds: Bounds, arena: Arena, ranks: int = 1) -> None:
        self.ranks, self.tail = ranks, TAIL if ranks else 0.0
        self.problem, self.bounds, self.arena = problem, bounds, arena
        self.k, self.d = problem.means.shape

    def height(self, prunes: bool) -> int:
        """Rows of a tile. It depends on the model alone: it decides in which order moments are summed."""
        pairs, least = (TILE_PAIRS, LEAST_HEIGHT) if prunes else (TILE_PAIRS // 8, 64)
        return 1 << int(np.clip(np.log2(pairs / self.k), np.log2(least), 12))

    def tile(self, x: Array) -> Tile:
        found = self.bounds
        y = self.arena.array("rows about the reference", x.shape, FLOAT32)
        with np.errstate(over="ignore"):
            np.subtract(x, found.reference.astype(x.dtype), out=y, casting="same_kind")
            size = np.einsum("nd,nd->n", y, y)
        e, rows = whole_vectors(self.d, FLOAT32), {}
        for precision in {*found.densities, *found.moments}:
            rows[precision] = whole_rows(x, self.arena.array(f"rows in {precision}", (len(x), e), precision))
        return Tile(rows, y, size)

    def pays(self, x: Array, moments: bool) -> bool:
        """Whether to skip is faster than to compute all pairs, by some rows of a chunk. moments : as in `might_pay`."""
        few = np.ascontiguousarray(x[:: -(-len(x) // int(np.clip(len(x) // PROBED, 16, 128)))])
        found = self.candidates(self.tile(few))
        assert found.computed is not None
        return pays(self.problem, x.dtype, found.computed / len(few), len(found.value) / len(few), moments)

    def all_pairs(self, tile: Tile) -> Densities:
        n, k = len(tile.y), self.k
        value, distance = np.empty((2, n * k))
        pairs = Pairs(np.tile(np.arange(n, dtype=np.int32), k), n * np.arange(k + 1))
        self.densities(tile, pairs, value, distance)
        return Densities(pairs, value, distance)

    def candidates(self, tile: Tile) -> Densities:
        """The pairs whose responsibility does not round to nothing, and some others."""
        n, k, array = len(tile.y), self.k, self.arena.array
        upper = array("bounds", (n, padded(k, 4)), FLOAT32)
        chosen = array("highest bounds", (n, min(k, max(FIRST, self.ranks))), INT32)
        ceiling, skipped = array("bounds of rows", (2, n), FLOAT32)
        component, row, found = array("candidates", (3, n * k + 1), INT32)
        bound = array("bounds of candidates", (n * k + 1,), FLOAT32)
        begin, top = np.empty(n + 1, np.int64), np.full((n, max(1, self.ranks)), -np.inf)
        some = _Computed(self, tile, top)
        with np.errstate(over="ignore", invalid="ignore"):
            self._project(tile, upper)
            take_highest(upper, k, chosen, ceiling)
            places = np.flatnonzero(chosen >= 0)
            some.add((places // chosen.shape[1]).astype(np.int32), chosen.reshape(-1)[places])
            survivors(upper, chosen, some.least(self.tail), component, bound, begin, skipped)
            least = some.least(0.0)
            least += np.float32(PART) * np.fmax(0, ceiling - least)
            count = take(component, bound, begin, least, skipped[:0], row, found)
            some.add(row[:count], found[:count])
            count = take(component, bound, begin, some.least(self.tail), skipped, row, found)
            some.add(row[:count], found[:count])
            return some.merged(skipped)

    def _project(self, tile: Tile, upper: Array) -> None:
        """Write the bounds. upper : (n, c), c as of `project_tile`."""
        bounds, width = self.bounds, upper.shape[1]
        projected = self.arena.array("projections", (PROJECTED, bounds.directions.shape[1]), FLOAT32)
        scale = np.full(width, -np.inf, FLOAT32)
        scale[: self.k] = self.problem.log_scale if self.problem.df is None else 0.0
        for rows in tiles(len(upper), PROJECTED):
            part = projected[: rows.stop - rows.start]
            np.matmul(tile.y[rows], bounds.directions, out=part)
            project_tile(part, bounds.shifts, tile.size[rows], *bounds.slack, scale, upper[rows])
        upper[:, self.k :] = -np.inf  # also where a row overflows
        if self.problem.df is not None:
            self._to_density(upper[:, : self.k])

    def _to_density(self, lower: Array) -> None:
        """Replace -1/2 of lower bounds of squared distances by upper bounds of Student-t log densities, (n, k) float32."""
        df = self.problem.df
        assert df is not None
        lower *= np.float32(-2.0) / df.astype(np.float32)
        np.log1p(np.maximum(lower, 0, out=lower), out=lower)
        lower *= (-0.5 * (df + self.d)).astype(np.float32)
        lower += self.problem.log_scale.astype(np.float32)

    def largest(self, found: Densities, log_norm: Array) -> float:
        """The largest possible responsibility of pairs that are ruled out."""
        if found.skipped is None:
            return 0.0
        with np.errstate(invalid="ignore"):
            return float(np.exp(min(0.0, np.nanmax(found.skipped - log_norm, initial=-np.inf))))

    def densities(self, tile: Tile, pairs: Pairs, value: Array, distance: Array) -> None:
        """Write log joint densities (p,) and squared distances (p,) of pairs, float64."""
        e = whole_vectors(self.d, FLOAT32)
        for precision, chosen in self.bounds.densities.items():
            scratch = self.arena.array(f"differences in {precision}", (GROUP, e), precision)
            pair_distances(
                tile.x[precision],
                pairs.rows,
                pairs.start,
                chosen,
                *self.bounds.means[precision],
                *self.bounds.factors[precision],
                scratch,
                distance,
            )
        if self.problem.df is None:
            gaussian_density(distance, pairs.start, self.problem.log_scale, value)
            return
        own = np.repeat(self.problem.df, pairs.counts)
        value[:] = np.repeat(self.problem.log_scale, pairs.counts) - 0.5 * (own + self.d) * np.log1p(distance / own)

    def new_moments(self) -> tuple[Array, Array]:
        e = whole_vectors(self.d, FLOAT32)
        sum_xx = self.arena.array("second moments", (self.k, e, e), FLOAT64)
        sum_xx[:] = 0.0
        return np.zeros((self.k, e)), sum_xx

    def add_moments(self, tile: Tile, pairs: Pairs, share: Array, sum_x: Array, sum_xx: Array) -> None:
        e = sum_x.shape[1]
        for precision, chosen in self.bounds.moments.items():
            scratch = self.arena.array(f"gathered in {precision}", (2, MOST_ROWS, e), precision)
            part = self.arena.array(f"part in {precision}", (GROUP, lanes(precision)), precision)
            pair_moments(
                tile.x[precision],
                pairs.rows,
                pairs.start,
                share,
                chosen,
                self.d,
                *self.bounds.means[precision],
                scratch[0],
                scratch[1],
                part,
                sum_x,
                sum_xx,
            )


class _Computed:
    """Densities of pairs of a tile, computed set by set. top : (n, ranks), the highest of each row, which are raised."""

    def __init__(self, work: _Work, tile: Tile, top: Array) -> None:
        self.work, self.tile, self.top = work, tile, top
        size, array = len(top) * work.k, work.arena.array
        self.rows, (self.value, self.distance) = (
            array("rows of pairs", (size,), INT32),
            array("pairs", (2, size), FLOAT64),
        )
        self.first: list[int] = [0]
        self.starts: list[Array] = []

    def add(self, row: Array, component: Array) -> None:
        """Compute a set of pairs (p,)."""
        some = slice(self.first[-1], self.first[-1] + len(row))
        pairs = Pairs(self.rows[some], np.empty(self.work.k + 1, np.int64))
        by_component(row, component, *pairs)
        self.work.densities(self.tile, pairs, self.value[some], self.distance[some])
        raise_highest(pairs.rows, self.value[some], self.top)
        self.first.append(some.stop)
        self.starts.append(pairs.start)

    def least(self, tail: float) -> Array:
        """What is so many nats below the lowest of the highest densities of each row, and below its rounding, (n,) float32."""
        value = self.top[:, -1]
        return (value - MARGIN - RELATIVE * np.abs(value) - tail).astype(np.float32)

    def merged(self, skipped: Array) -> Densities:
        """All that does not round to nothing. skipped : (n,) float32, raised to the highest value of the others."""
        size, array = self.first[-1] + 1, self.work.arena.array
        rows, (value, distance) = (
            array("rows of merged pairs", (size,), INT32),
            array("merged pairs", (2, size), FLOAT64),
        )
        start = np.empty(self.work.k + 1, np.int64)
        first, starts = np.array(self.first[:-1]), np.stack(self.starts)
        least = self.top[:, -1] - self.work.tail
        merged(self.rows, self.value, self.distance, first, starts, least, skipped, rows, value, distance, start)
        some = slice(start[-1])
        return Densities(Pairs(rows[some], start), value[some], distance[some], skipped, self.first[-1])
