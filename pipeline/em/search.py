"""The start of EM under method auto: a multilevel search on rows in memory.

EM ends in a local optimum near its start, and a pass over data on disk is expensive, so the search uses a sample. Its levels
are nested and grow by a factor. Many candidate starts are refined on the lowest level and merged in pairs from level to
level; the last run is improved by moves (em/moves.py). The fit to all rows begins where the search ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.packing import stored
from pipeline.arrays.rows import LowestRows
from pipeline.data.profile import DataSummary
from pipeline.em.births import have_births
from pipeline.em.merging import SearchRows
from pipeline.em.moves import TRIAL_STEPS, WITH_BIRTHS, improve, merge_runs, most_passes, refine_all, round_passes
from pipeline.em.principal import leading
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.models.books import Quantizer
from pipeline.models.clusters import ClusterModel
from pipeline.models.lloyd import Centers, Lloyd
from pipeline.models.starts import ONE_BY_ONE, ROUNDS, HardStart, from_hard, hard_start, in_step, starting

GROWTH = 4  # of a level over the one below
ROWS_PER_COMPONENT = 64  # of the lowest level, at least
LEAST_ROWS = 10  # times the rows below which a component is collapsed: the same
EFFORT = {"low": 0.25, "medium": 1.0, "high": 4.0}  # fit.effort: parts of what follows
START_PASSES = 96  # over all rows, as two or three fits take: candidate starts are refined and merged in so many, about
FOR_ANOTHER = 0.25  # of the effort, for K-means that only starts another family
FEW_ROWS, FEW_PAIRS = (
    2**16,
    2**22,
)  # fewer rows count as so many: they are soon read; of starts pairs of rows and components
ROWS_FOR_ALL = 2**18  # the rows that moves that promise little may read, over their passes, are at most as many,
NUMBERS_FOR_ALL = 2**29  # and so many over the numbers of a mixture's statistics
MERGING = 6  # passes that it takes to choose among the components of two runs, about
STEPS = 12  # of EM after each round of moves
BIRTHS = 34  # passes that it takes to fit births, at most
BESIDE = 4  # passes for principal components, and to begin from centres and to end with them
DRAWN = 16  # rows of each of many centres, among which k-means++ draws them
PRINCIPAL = 64  # components that K-means is refined in, of twice as many features and more
CENTERS_ROWS = 2**15  # that K-means is refined on where it only starts another family


@stored
class Level(NamedTuple):
    """What was done on one level.

    rows : of the level.  read : rows read in all.  moved : components in each accepted round of moves.
    objective : per row, at the end.  features : in which it was searched; fewer than the data's for principal components.
    """

    family: str
    rows: int
    read: int
    starts: int
    moved: list[int]
    objective: float
    features: int


@dataclass(frozen=True)
class Search:
    """How to search for a start.

    Attributes
    ----------
    init : str
        Where candidate starts come from, as fit.init.
    moves : bool
    seed : int
    summary : DataSummary
    rows : SearchRows
    of : int
        Number of all rows.
    progress : callable
        Called after each level.
    effort : float
        Parts of the budget: 1 for fit.effort: medium.
    """

    init: str
    moves: bool
    seed: int
    summary: DataSummary
    rows: SearchRows
    of: int
    progress: Callable[[Level], None]
    effort: float = 1.0

    def __call__(self, model: ClusterModel | Quantizer) -> Any:
        """Return parameters to start the fit from."""
        if isinstance(model, Quantizer):
            return self._books(model)
        if model.above is not None:
            rows, seed = self.rows, (self.seed, 0)
            upper = self._few_centers(model.above, centers_rows(model.above, rows.n_rows)).centers
            return model.start_below(upper, rows.x, rows.weight, seed, rows.kernels, rows.map)  # type: ignore[attr-defined]  # where there is a level above
        if model.of_centers:
            return self._centers(model, self.rows)
        lowest = self.rows.head(levels(model, self.rows.n_rows)[0])
        if begins_from_centers(model, self.init, sp.issparse(self.rows.x)):
            lloyd = Lloyd(model.n_components, model.shift, float(np.mean(self.summary.variance)))
            centers = self._without_gaps(model)._few_centers(lloyd, centers_rows(model, self.rows.n_rows)).centers
            starts = from_hard(model, lowest.sum_over([hard_start(model, centers)]))
        else:
            starts = self._starts(model, self.rows, self.summary)
        return self._refine(model, starts, self.rows)

    def _without_gaps(self, model: ClusterModel) -> Search:
        """The search on rows without missing entries."""
        if not model.incomplete:
            return self
        sample = replace(self.summary.sample, x=model.plain(self.summary.sample.x))
        return replace(self, rows=self.rows.mapped(model.plain), summary=replace(self.summary, sample=sample))

    def _books(self, model: Quantizer) -> Centers:
        """K-means of each book, of what it is given of some rows."""
        rows, sample, found = self.rows.head(centers_rows(model.books[0], self.rows.n_rows)), self.summary.sample, []
        for book, lloyd in enumerate(model.books):
            own = rows.mapped(partial(model.given, book=book))
            x = model.given(sample.x, book)
            summary = replace(self.summary, mean=lloyd.shift, covariance=x.var(axis=0), sample=replace(sample, x=x))
            found.append(replace(self, summary=summary, rows=own)._few_centers(lloyd, own.n_rows).centers)
            rows = rows.mapped(partial(model.left_by, book=book, centers=found[-1], kernels=rows.kernels))
            sample = replace(sample, x=model.left_by(sample.x, book, found[-1], rows.kernels))
        return Centers(model.joined(found))

    def _few_centers(self, lloyd: Lloyd, n_rows: int) -> Centers:
        """K-means that only starts another model, on some of the rows."""
        return replace(self, effort=FOR_ANOTHER * self.effort)._centers(lloyd, self.rows.head(n_rows))

    def _centers(self, model: ClusterModel, rows: SearchRows) -> Centers:
        """K-means on some rows; of many features, in the space of the leading principal components."""
        few, effort = flattened(model, self.effort)
        if few is model:
            found: Centers = self._refine(model, self._starts(model, rows, self.summary), rows)
            return found
        project = leading(rows, model.shift, PRINCIPAL)
        flat, x = rows.mapped(project), project(self.summary.sample.x)
        sample = replace(self.summary.sample, x=x)
        summary = replace(self.summary, mean=few.shift, covariance=x.var(axis=0), sample=sample)
        search = replace(self, effort=effort)
        starts = search._starts(few, flat, summary)
        centers = project.back(search._refine(few, starts, flat).centers)
        found = from_hard(model, rows.sum_over([HardStart(model, centers)]))[0]
        return found

    def _starts(self, model: ClusterModel, rows: SearchRows, summary: DataSummary) -> list[Any]:
        """Candidate starts for the lowest level."""
        sizes = levels(model, rows.n_rows)
        many, lowest = candidate_starts(model, sizes, self.of, self.effort)[0], rows.head(sizes[0])
        some_known, init, k = len(rows.known) > 0, self.init, model.n_components
        if init == "k-means||" and k > ONE_BY_ONE and model.of_centers:  # whose rounds take 30 passes over all rows
            init, few = "k-means++", rows.head(min(rows.n_rows, DRAWN * k)).x
            none = np.zeros(few.shape[0])
            summary = replace(
                summary, sample=LowestRows(few.shape[0], none, none.astype(np.int64), few, none + 1.0, none)
            )
        if model.of_centers or not init.startswith("k-means"):
            parts = [(init, many, self.seed)]
        else:  # centres of these rows lead to few optima; random rows to many, whose best components merges keep
            parts = [(init, 1, self.seed), ("random", many - 1, self.seed + 1)]
        jobs = [
            starting(model, way, n, seed, summary, rows.kernels, some_known=some_known)
            for way, n, seed in parts
            if n > 0
        ]
        return [start for found in in_step(jobs, lowest.sum_over) for start in found]

    def _refine(self, model: ClusterModel, starts: Sequence[Any], rows: SearchRows) -> Any:
        """Refine the starts on each level, merge them until few enough are left, and move components of the last."""
        tol, first, merged = model.search.tol, model.search.first, model.search.merged
        sizes = levels(model, rows.n_rows)
        budget = move_budget(model.search.passes, rows.n_rows, self.effort)
        thorough = thorough_budget(model, self.effort)
        for size, left in zip(sizes, candidate_starts(model, sizes, self.of, self.effort)[1:], strict=True):
            if size == self.of and len(starts) == 1 and not self.moves:
                break  # the fit itself does the same
            level, before = rows.head(size), rows.read[0]
            runs = [Run(i, model, params) for i, params in enumerate(starts)]
            runs = refine_all(runs, level, Limits(first, tol))
            if not self.moves:
                runs = [max(runs, key=lambda run: run.objective)]
            while len(runs) > left:
                runs = merge_runs(runs, level, Limits(merged, tol))
            moved: list[int] = []
            if self.moves and len(runs) == 1:
                best, moved = improve(runs[0], level, Limits(STEPS, tol), budget, thorough)
                runs = [best]
            read, objective = rows.read[0] - before, runs[0].objective / size
            self.progress(Level(model.family, size, read, len(starts), moved, objective, model.n_features))
            starts = [run.params for run in runs]
        return starts[0]


def candidate_starts(model: ClusterModel, sizes: Sequence[int], of: int, effort: float = 1.0) -> list[int]:
    """Return the number of runs on each level, and after the last: each level costs as much as the highest.

    As many as the budget allows, START_PASSES times all rows, and at most those of the model's search.

    >>> (
    ...     candidate_starts(Lloyd(10, np.zeros(2)), [5000], of=5000),
    ...     candidate_starts(Lloyd(100, np.zeros(2)), [100_000], of=100_000),
    ... )
    ([32, 1], [4, 1])
    """
    starts, finalists = model.search.starts, model.search.finalists
    allowed = effort * START_PASSES * max(of, min(FEW_ROWS, FEW_PAIRS // model.n_components))
    while True:
        many = [finalists * GROWTH**above for above in reversed(range(len(sizes)))]
        many = [max(starts, many[0]), *many[1:], 1]
        if starts == 1 or _start_reads(model, sizes, many) <= allowed:
            return many
        starts, finalists = starts // 2, max(1, finalists // 2)


def _start_reads(model: ClusterModel, sizes: Sequence[int], many: Sequence[int]) -> int:
    """Rows read to refine and merge so many runs on levels of these sizes, about."""
    first, merged = model.search.first, model.search.merged + MERGING
    levels_ = zip(sizes, many, many[1:], strict=False)
    return sum(size * (first * here + merged * (here - left)) for size, here, left in levels_)


def levels(model: ClusterModel, n_rows: int) -> list[int]:
    """Return the sizes of the levels: the largest is n_rows, the lowest has enough rows for every component.

    >>> levels(Lloyd(10, np.zeros(2)), 200_000)
    [50000, 200000]
    """
    per_component = max(ROWS_PER_COMPONENT, LEAST_ROWS * model.least_rows)
    least = max(model.search.level_rows, model.n_components * per_component)
    sizes = [n_rows]
    while -(-sizes[-1] // GROWTH) >= least:
        sizes.append(-(-sizes[-1] // GROWTH))
    return sizes[::-1]


def begins_from_centers(model: ClusterModel | Quantizer, init: str, sparse: bool) -> bool:
    """Whether a search of a model begins with one of K-means."""
    if isinstance(model, Quantizer):
        return False  # each book is one of K-means
    return init.startswith("k-means") and not (model.of_centers or model.unit_rows or sparse)


def centers_rows(model: ClusterModel, n_rows: int) -> int:
    """Return the number of rows on which that K-means is searched for."""
    return min(n_rows, max(levels(model, n_rows)[0], CENTERS_ROWS))


def flattened(model: ClusterModel, effort: float) -> tuple[ClusterModel, float]:
    """Return what K-means is refined as, and the effort: of many features in the space of the leading principal components.

    A pass costs so much less there that more of them are made in the same time.
    """
    if not model.of_centers or model.unit_rows or model.n_features <= 2 * PRINCIPAL:
        return model, effort
    few = replace(model, shift=np.zeros(PRINCIPAL))  # type: ignore[type-var]  # models are dataclasses
    return few, effort * model.n_features / PRINCIPAL


def searched(
    model: ClusterModel | Quantizer, init: str, sparse: bool, n_rows: int, effort: float
) -> list[tuple[ClusterModel, int, float]]:
    """Return what one run searches for in turn, each with its number of rows and its effort: K-means, perhaps, and the model."""

    def centers(lloyd: ClusterModel, rows: int) -> tuple[ClusterModel, int, float]:
        few, more = flattened(lloyd, FOR_ANOTHER * effort)
        return few, rows, more

    if isinstance(model, Quantizer):
        return [centers(book, centers_rows(book, n_rows)) for book in model.books]
    if model.above is not None:
        return [centers(model.above, centers_rows(model.above, n_rows))]
    few, more = flattened(model, effort)
    own = [(few, n_rows, more)]
    if not begins_from_centers(model, init, sparse):
        return own
    return [centers(Lloyd(model.n_components, model.shift), centers_rows(model, n_rows)), *own]


def move_budget(passes: float, n_rows: int, effort: float) -> float:
    """Return how many rows may be read before the last round of moves begins. passes : over the rows in memory, for fit.effort: medium."""
    return effort * passes * max(n_rows, FEW_ROWS)


def thorough_budget(model: ClusterModel, effort: float) -> float:
    """Return how many rows may be read before the last move begins that promises little: where a pass takes little time. None of centres."""
    if model.of_centers:
        return 0.0
    return effort * model.search.passes * min(ROWS_FOR_ALL, 8 * NUMBERS_FOR_ALL // model.statistics_bytes())


def move_reads(model: ClusterModel, n_rows: int, budget: float, thorough: float = 0.0) -> float:
    """Return how many rows moves read at most. budget, thorough : before their last rounds begin."""
    with_births, births = (WITH_BIRTHS, BIRTHS) if have_births(model) else (1.0, 0)
    longest = max(STEPS, TRIAL_STEPS if thorough else 0)
    return max(with_births * budget, thorough) + n_rows * (round_passes(longest) + births)


def most_reads(model: ClusterModel, n_rows: int, of: int, moves: bool, effort: float = 1.0) -> float:
    """Return how many rows the search of one run reads at most. n_rows : in memory, of `of`."""
    sizes = levels(model, n_rows)
    many = candidate_starts(model, sizes, of, effort)
    first, merged = most_passes(model.search.first), most_passes(model.search.merged) + MERGING
    reads = float(BESIDE * n_rows + sizes[0] * (ROUNDS + 2))
    for size, (here, left) in zip(sizes, pairwise(many), strict=True):
        reads += size * (first * here + merged * (here - left))
        if moves and left == 1:
            budget = move_budget(model.search.passes, n_rows, effort)
            reads += move_reads(model, size, budget, thorough_budget(model, effort))
    return reads
