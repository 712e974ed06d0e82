"""Where EM starts from under method auto: a search on rows that are held in memory, rung by rung.

EM stops at the nearest hill, and a pass over data on disk is expensive. So what takes many passes is done on a sample: its
rungs are nested and grow by a factor; many runs start on the lowest, are united in pairs as they climb, and the one that is
left looks for a better hill by moves (em/moves.py). The fit of all rows begins where the search ends; nothing of it is from a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.data.profile import DataSummary as Known
from pipeline.em.moves import HeldRows, improve, settle_all, united
from pipeline.em.principal import leading
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.models.base import Model
from pipeline.models.init import HardStart, from_hard, initial_params
from pipeline.models.kmeans import KMeans, KMeansParams

GROWTH = 4  # of a rung over the one below
ROWS_PER_COMPONENT, RUNG_ROWS = 64, 2**13  # of the lowest rung, at least: on fewer the hills are others
KMEANS_RUNG_ROWS = 2**15  # the same, for K-means, whose hills differ by less
LEAST_ROWS = 10  # times the rows below which a component is collapsed: the same
STARTS, KMEANS_STARTS = 4, 32  # at least
KMEANS_CONTENDERS = 16  # on the highest rung: its passes are cheap, and its hills many
PASSES = 24  # over all held rows: so many rows may be read on one rung before the last round of moves begins
FEW_ROWS = 2**16  # held rows that are fewer count as so many: they are soon read
UNITING = 6  # passes that it takes to choose among the components of two runs, about
FIRST_STEPS, STEPS = 20, 12  # of EM on a rung, and after each round of moves
TOL = 1e-4  # nats a row, of these
PRINCIPAL = 64  # components that K-means climbs in, of twice as many features and more
CENTERS_ROWS = 2**15  # that K-means climbs to where it only starts another family


class Rung(NamedTuple):
    """What was done on one rung. rows : it has.  read : rows that were read, in all.  moved : components, in each accepted
    round of moves.  objective : per row, after it.  features : in which it was searched, fewer than there are where these
    are principal components.
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
    """How to look for a start.

    init : where starts come from, as fit.init.  moves : whether components may be taken from one place to another.
    rows : in memory.  of : how many rows there are in all.  tell : called after each rung.
    """

    init: str
    moves: bool
    seed: int
    known: Known
    rows: HeldRows
    of: int
    tell: Callable[[Rung], None]

    def __call__(self, model: Model) -> Any:
        """Parameters for the fit to start from."""
        if isinstance(model, KMeans):
            return self._kmeans(model, self.rows)
        lowest = self.rows.head(rungs(model, self.rows.n_rows)[0])
        if sp.issparse(self.rows.x) or not self.init.startswith("k-means"):
            starts = self._starts(model, self.rows, self.known)
        else:
            kmeans = KMeans(model.n_components, model.shift, float(np.mean(self.known.variance)))
            centers = self._kmeans(kmeans, self.rows.head(max(lowest.n_rows, CENTERS_ROWS))).centers
            starts = from_hard(model, lowest.sum_over([HardStart(model, centers)]))
        return self._climb(model, starts, self.rows)

    def _kmeans(self, model: KMeans, rows: HeldRows) -> KMeansParams:
        """K-means on some rows; where they have many features, in the space of the leading principal components."""
        if model.n_features <= 2 * PRINCIPAL:
            return self._climb(model, self._starts(model, rows, self.known), rows)
        project, origin = leading(rows, model.shift, PRINCIPAL), np.zeros(PRINCIPAL)
        flat, few = rows.mapped(project), replace(model, shift=origin)
        x = project(self.known.sample.x)
        known = replace(self.known, mean=origin, covariance=x.var(axis=0), sample=replace(self.known.sample, x=x))
        starts = self._starts(few, flat, known)
        centers = project.back(self._climb(few, starts, flat).centers)
        return from_hard(model, rows.sum_over([HardStart(model, centers)]))[0]

    def _starts(self, model: Model, rows: HeldRows, known: Known) -> list[Any]:
        """Starts for the lowest rung."""
        sizes = rungs(model, rows.n_rows)
        many, lowest = contenders(model, len(sizes))[0], rows.head(sizes[0])
        return initial_params(model, self.init, many, self.seed, known, lowest.sum_over, None, None)

    def _climb(self, model: Model, starts: Sequence[Any], rows: HeldRows) -> Any:
        """The one that comes of the starts: settled on each rung, united until few enough are left to climb, and moved."""
        tol = 0.0 if isinstance(model, KMeans) else TOL
        sizes = rungs(model, rows.n_rows)
        for size, left in zip(sizes, contenders(model, len(sizes))[1:], strict=True):
            if size == self.of and len(starts) == 1 and not self.moves:
                break  # the fit itself does the same
            rung, before = rows.head(size), rows.read[0]
            runs = [Run(i, model, params) for i, params in enumerate(starts)]
            runs = settle_all(runs, rung, Limits(FIRST_STEPS, tol))
            if not self.moves:
                runs = [max(runs, key=lambda run: run.objective)]
            while len(runs) > left:
                runs = united(runs, rung, Limits(STEPS, tol))
            moved: list[int] = []
            if self.moves and len(runs) == 1:
                best, moved = improve(runs[0], rung, Limits(STEPS, tol), PASSES * max(rows.n_rows, FEW_ROWS))
                runs = [best]
            self.tell(
                Rung(
                    model.family,
                    size,
                    rows.read[0] - before,
                    len(starts),
                    moved,
                    runs[0].objective / size,
                    model.n_features,
                )
            )
            starts = [run.params for run in runs]
        return starts[0]


def contenders(model: Model, n_rungs: int) -> list[int]:
    """How many runs are on each rung, and after the last: on each they cost as much as on the highest.

    >>> contenders(KMeans(10, np.zeros(2)), 3)
    [256, 64, 16, 1]
    """
    highest, least = (KMEANS_CONTENDERS, KMEANS_STARTS) if isinstance(model, KMeans) else (1, STARTS)
    many = [highest * GROWTH**above for above in reversed(range(n_rungs))]
    return [max(least, many[0]), *many[1:], 1]


def rungs(model: Model, n_rows: int) -> list[int]:
    """Sizes of the rungs, the largest n_rows, the lowest enough for every component.

    >>> rungs(KMeans(10, np.zeros(2)), 200_000)
    [50000, 200000]
    """
    few = KMEANS_RUNG_ROWS if isinstance(model, KMeans) else RUNG_ROWS
    least = max(few, model.n_components * max(ROWS_PER_COMPONENT, LEAST_ROWS * model.least_rows))
    sizes = [n_rows]
    while -(-sizes[-1] // GROWTH) >= least:
        sizes.append(-(-sizes[-1] // GROWTH))
    return sizes[::-1]


def most_looks(model: Model, n_rows: int, moves: bool) -> int:
    """How often a row is looked at in a search by one run, about and at most."""
    sizes, looks = rungs(model, n_rows), 0
    many = contenders(model, len(sizes))
    for size, here, left in zip(sizes, many, many[1:], strict=False):
        looks += size * (FIRST_STEPS * here + (STEPS + UNITING) * (here - left))
        looks += PASSES * max(n_rows, FEW_ROWS) if moves and left == 1 else 0
    return looks
