"""Gaussian and Student-t passes that skip the pairs of a row and a component whose responsibility rounds to nothing.

    log p(x, k) <= s_k - |W_kᵀ (x - μ_k)|² / 2,    W_k = P_k V_k,  V_kᵀ V_k = 1,  P_k P_kᵀ = Σ_k⁻¹

for any m orthonormal columns V_k, because a projection is no longer than what it projects. One matrix product a tile
gives bounds of all pairs from the first directions; more directions follow where these do not rule a pair out. Pairs whose
bound is more than TAIL below a density that is computed for the row have responsibilities below e^-TAIL, half a unit of
rounding; the others are computed from gathered rows (kernels/pairs.py). A bound that is replaced by its exact density
stays a bound, so the highest of a row's bounds is computed, again and again, to raise what the others are compared with.

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
from pipeline.kernels.features import PAIRS
from pipeline.kernels.pairs import GROUP, MOST_ROWS, lanes, pair_distances, pair_moments, whole_vectors
from pipeline.kernels.skipping import collect, filtered, grouped, lower_distances, pair_softmax, project_tile
from pipeline.kernels.softmax import padded

TAIL = 36.75  # nats: e^-TAIL = 1.1e-16
MARGIN = 0.01  # nats, for the rounding of a computed density, and of the last additions of a bound
RELATIVE = 2.0**-20  # of a density, for the same
ROUNDS = 2  # densities of a row that are computed to compare bounds with, after each stage
LEAST_COMPONENTS, LEAST_FEATURES, LEAST_ROWS = 48, 40, 256  # below, bounds cost more than they save
# Share of pairs above which it is faster to compute all by matrix products, A - B / d²: a pair costs some 0.037 d² ns, all by
# products 0.027 d² each, and the bound of one 34 ns, measured at d = 64; 0.8 of the break-even.
MOST_SHARE = (0.58, 735.0)
PROBED = 32  # one row of so many tells whether it is worth while: at least 16, and at most 128
TILE_PAIRS = 2**19  # of which few are computed; an eighth, where all are
PROJECTED = 256  # rows at a time
INT32 = np.dtype(np.int32)


class Pairs(NamedTuple):
    """Pairs by component: those of c are rows[start[c] : start[c + 1]].  skipped : (n,), the highest bound of the others."""

    rows: Array
    start: Array
    skipped: Array | None = None

    @property
    def counts(self) -> Array:
        """(k,) pairs of each component."""
        return np.diff(self.start)

    @property
    def components(self) -> Array:
        """(p,) components of the pairs."""
        return np.repeat(np.arange(len(self.start) - 1), self.counts)


class Tile(NamedTuple):
    """Rows of a tile by precision, about the reference in float32, and their squared lengths there."""

    x: dict[Any, Array]
    y: Array
    size: Array


def may_skip(problem: GaussianProblem) -> bool:
    """Whether there may be enough to skip."""
    k, d = problem.means.shape
    return problem.shape.kind == PAIRS and k >= LEAST_COMPONENTS and d >= LEAST_FEATURES


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
    if not (every or may_skip(problem)):
        return None
    work = _Work(problem, cache.of(problem, x.dtype), arena)
    prunes = work.pays(x)
    if not (every or prunes):
        return None
    log_norm, sum_w, scales, entropy = np.empty(n), np.zeros(k), np.zeros((2, k)), 0.0
    computed, largest = 0, 0.0
    sum_x, sum_xx = work.new_moments()
    for rows in tiles(n, work.height(TILE_PAIRS if prunes else TILE_PAIRS // 8)):
        tile = work.tile(x[rows])
        pairs = work.candidates(tile) if prunes else work.all_pairs(tile)
        value, distance = work.densities(tile, pairs)
        share = arena.array("shares", (padded(len(value), 8),), FLOAT64)
        scratch = arena.array("row sums", (3, len(tile.y)), FLOAT64)
        w = np.empty(0) if weight is None else weight[rows]
        more, dropped = pair_softmax(pairs.rows, value, w, problem.hard, np.exp(-TAIL), scratch, log_norm[rows], share)
        entropy, computed, share = entropy + more, computed + len(value), share[: len(value)]
        largest = max(largest, dropped, work.largest(pairs, log_norm[rows]))
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
    if not may_skip(problem):
        return None
    work = _Work(problem, cache.of(problem, x.dtype), arena, ranks)
    if not work.pays(x):
        return None
    out = np.full((len(x), work.k), -np.inf)
    for rows in tiles(len(x), work.height(TILE_PAIRS)):
        tile = work.tile(x[rows])
        pairs = work.candidates(tile)
        out[rows][pairs.rows, pairs.components] = work.densities(tile, pairs)[0]
    return out


def _padded(values: Array, width: int) -> Array:
    """Values (k,) and zeros behind them."""
    return np.concatenate([values, np.zeros(width - len(values), values.dtype)])


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

    def height(self, pairs: int) -> int:
        """Rows of a tile with so many pairs. It depends on the model alone: it decides in which order moments are summed."""
        return 1 << int(np.clip(np.log2(pairs / self.k), 6, 12))

    def tile(self, x: Array) -> Tile:
        found = self.bounds
        y = self.arena.array("rows about the reference", x.shape, FLOAT32)
        with np.errstate(over="ignore"):
            np.subtract(x, found.reference.astype(x.dtype), out=y, casting="same_kind")
            size = np.einsum("nd,nd->n", y, y)
        return Tile({p: x.astype(p, copy=False) for p in {*found.densities, *found.moments}}, y, size)

    def pays(self, x: Array) -> bool:
        """Whether to skip is faster than to compute all pairs, by some rows of a chunk."""
        n = len(x)
        if not may_skip(self.problem) or n < LEAST_ROWS:
            return False
        few = np.ascontiguousarray(x[:: -(-n // int(np.clip(n // PROBED, 16, 128)))])
        pairs = self.candidates(self.tile(few))
        return len(pairs.rows) <= (MOST_SHARE[0] - MOST_SHARE[1] / self.d**2) * len(few) * self.k

    def all_pairs(self, tile: Tile) -> Pairs:
        n = len(tile.y)
        return Pairs(np.tile(np.arange(n, dtype=np.int32), self.k), n * np.arange(self.k + 1))

    def candidates(self, tile: Tile) -> Pairs:
        """The pairs that are not ruled out."""
        bounds, n, k = self.bounds, len(tile.y), self.k
        upper = self.arena.array("bounds", (n, padded(k, 4)), FLOAT32)
        least, best = np.full(n, -np.inf, np.float32), np.full(n, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            self._project(tile, upper)
            self._raise(tile, upper, least, best)
            rows = self.arena.array("candidates", (n * k,), INT32)
            start, skipped = np.zeros(k + 1, np.int64), np.empty(n, np.float32)
            collect(upper, least, rows, start, skipped)
            pairs = Pairs(rows[: start[-1]], start, skipped)
            square = np.empty(len(pairs.rows))
            scratch = self.arena.array("differences of bounds", (GROUP, self.d), FLOAT32)
            pair_distances(
                tile.y, pairs.rows, pairs.start, np.arange(k), *bounds.about, *bounds.second, scratch, square
            )
            component = pairs.components
            lower = lower_distances(square, pairs.rows, start, tile.size, *bounds.slack[1])
            self._to_density(lower, component)
            lower = np.fmin(upper[pairs.rows, component], lower)
            upper[pairs.rows, component] = lower
            self._raise(tile, upper, least, best)
            start = filtered(pairs.rows, start, upper[pairs.rows, component], least, skipped)
        return Pairs(rows[: start[-1]], start, skipped)

    def _project(self, tile: Tile, upper: Array) -> None:
        """Write the bounds from the first directions. upper : (n, c), c as of `project_tile`."""
        bounds, width = self.bounds, upper.shape[1]
        projected = self.arena.array("projections", (PROJECTED, bounds.first.shape[1]), FLOAT32)
        scale = np.full(width, -np.inf, FLOAT32)
        scale[: self.k] = self.problem.log_scale if self.problem.df is None else 0.0
        slack = [_padded(values, width) for values in bounds.slack[0]]
        for rows in tiles(len(upper), PROJECTED):
            part = projected[: rows.stop - rows.start]
            np.matmul(tile.y[rows], bounds.first, out=part)
            project_tile(part, bounds.shifts, tile.size[rows], slack[0], slack[1], scale, upper[rows])
        upper[:, self.k :] = -np.inf  # also where a row overflows
        if self.problem.df is not None:
            self._to_density(upper[:, : self.k], np.arange(self.k))

    def _to_density(self, lower: Array, component: Array) -> None:
        """Replace -1/2 of lower bounds of squared distances by upper bounds of log densities, float32."""
        scale, df = self.problem.log_scale, self.problem.df
        if df is not None:
            lower *= np.float32(-2.0) / df.astype(np.float32)[component]
            np.log1p(np.maximum(lower, 0, out=lower), out=lower)
            lower *= (-0.5 * (df + self.d)).astype(np.float32)[component]
        lower += scale.astype(np.float32)[component]

    def _raise(self, tile: Tile, upper: Array, least: Array, best: Array) -> None:
        """Compute the highest-bounded densities of each row, put them in place of the bounds, and raise what is compared with.

        upper : (n, k).  least : (n,), bounds below it are ruled out.  best : (n,), whose density was computed last.
        """
        if self.ranks > 1:
            return self._raise_ranks(tile, upper, least)
        for _ in range(ROUNDS):
            now = upper.argmax(axis=1)
            rows = np.flatnonzero(now != best)
            pairs = Pairs(*grouped(rows, now, self.k))
            value, _ = self.densities(tile, pairs)
            rounding = MARGIN + RELATIVE * np.abs(value)
            least[pairs.rows] = np.fmax(least[pairs.rows], value - rounding - self.tail)
            upper[pairs.rows, now[pairs.rows]] = value + rounding
            best[:] = now

    def _raise_ranks(self, tile: Tile, upper: Array, least: Array) -> None:
        """The same with the densities of as many components as there are ranks, of which the lowest is compared with."""
        for _ in range(ROUNDS):
            top = np.argpartition(upper, -self.ranks, axis=1)[:, -self.ranks :].T
            pairs = [Pairs(*grouped(np.arange(len(upper)), now, self.k)) for now in top]
            values = np.empty(top.shape)
            for now, value, one in zip(top, values, pairs, strict=True):
                value[one.rows], _ = self.densities(tile, one)
                upper[np.arange(len(upper)), now] = value + MARGIN + RELATIVE * np.abs(value)
            value = values.min(axis=0)
            least[:] = np.fmax(least, value - MARGIN - RELATIVE * np.abs(value) - TAIL)

    def largest(self, pairs: Pairs, log_norm: Array) -> float:
        """The largest possible responsibility of pairs that are ruled out."""
        if pairs.skipped is None:
            return 0.0
        with np.errstate(invalid="ignore"):
            return float(np.exp(min(0.0, np.nanmax(pairs.skipped - log_norm, initial=-np.inf))))

    def densities(self, tile: Tile, pairs: Pairs) -> tuple[Array, Array]:
        """Log joint densities of pairs, and squared distances, float64."""
        distance = np.empty(len(pairs.rows))
        for precision, chosen in self.bounds.densities.items():
            scratch = self.arena.array(f"differences in {precision}", (GROUP, self.d), precision)
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
        scale, df = np.repeat(self.problem.log_scale, pairs.counts), self.problem.df
        if df is None:
            return scale - 0.5 * distance, distance
        own = np.repeat(df, pairs.counts)
        return scale - 0.5 * (own + self.d) * np.log1p(distance / own), distance

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
            scratch[:] = 0
            pair_moments(
                tile.x[precision],
                pairs.rows,
                pairs.start,
                share,
                chosen,
                *self.bounds.means[precision],
                scratch[0],
                scratch[1],
                part,
                sum_x,
                sum_xx,
            )
