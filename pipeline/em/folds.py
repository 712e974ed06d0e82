"""How what passes return becomes statistics of all rows, as ways of folding vectors.

    em           total = T                            each pass reads all rows
    squarem      the same, and leaps                  three sweeps in a row make a leap (squarem.py); here a sweep is a pass
    incremental  replace T_b, total = Σ_b T_b, leaps  each pass reads one block, a sweep all of them; Neal and Hinton 1998
    stepwise     total = (1 - η) total + η N/n_b T_b  the same, a start for others; Cappé and Moulines 2009

A block is a set of chunks drawn by the seed, never neighbours in storage: rows are often stored in some order.
The sum over blocks is formed anew each time: taking the old T_b off a running total drifts, below zero in the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.keyed import uniform
from pipeline.models.base import Mixture, Model

Kind = Literal["em", "squarem", "incremental", "stepwise"]

BLOCKS = {"incremental": 10, "stepwise": 20}  # incremental keeps three statistics of each, stepwise none
SWEEPS = 3  # in a row, that a leap is made from
# Statistics that a mixture keeps between two passes, by method: of each block those of the last sweeps.
KEPT = {"em": 0, "auto": 4, "stepwise": 4, "incremental": SWEEPS * BLOCKS["incremental"]}
STEPWISE_SWEEPS = 1
DECAY = 0.7  # of stepwise's η: Liang and Klein 2009
_STREAM = 8  # of the keys that deal chunks to blocks


class Method(NamedTuple):
    """fit.method, as the loop knows it. The default is the textbook's EM.

    sweeps : how the first iterations fold, block by block, before those that read all rows; None: there are none.
    accelerated : whether those that read all rows leap, and go on until little is left to gain.
    blocks : chunk ids of each block.  block_rows : its rows.
    """

    sweeps: Literal["incremental", "stepwise"] | None = None
    accelerated: bool = False
    blocks: tuple[tuple[int, ...], ...] = ()
    block_rows: tuple[int, ...] = ()

    def first(self, model: Model) -> Fold:
        """Where a run of this model begins. One block is all rows."""
        if self.sweeps is not None and len(self.block_rows) > 1 and isinstance(model, Mixture):
            return Fold(self.sweeps)
        return self.last(model)

    def last(self, model: Model) -> Fold:
        """Where it goes on once sweeps are over. Hard assignments jump: there is nothing to extrapolate."""
        leaps = self.accelerated and isinstance(model, Mixture) and model.assignment == "soft"
        return Fold("squarem" if leaps else "em")


Blocks = tuple[Any, ...]  # statistics of each


class Fold(NamedTuple):
    """Where a run stands between two passes.

    steps : passes so far, each over one block or over all rows.  kept : statistics that the next ones are folded with: those
    of each block (all rows are one) after the last sweeps, the oldest first; of stepwise sweeps the running total.
    back : those from which a run has leapt, until the sweep at the leap's end shows that nothing was lost.
    """

    kind: Kind
    steps: int = 0
    kept: tuple[Blocks, ...] = ()
    back: Blocks = ()

    def block(self, n_blocks: int) -> int | None:
        """The block that the next pass reads, None for all rows."""
        return self.steps % n_blocks if self.kind in ("incremental", "stepwise") else None

    @property
    def mixed(self) -> bool:
        """Whether the statistics of blocks that were read under several parameters stand beside each other."""
        return self.kind == "incremental" and self.steps > len(self.kept[-1])

    @property
    def may_leap(self) -> bool:
        """Whether three sweeps are over."""
        kept = self.kept if self.kind in ("squarem", "incremental") else ()
        return len(kept) == SWEEPS and self.steps % len(kept[-1]) == 0

    def take(self, stats: Any, block_rows: Sequence[int]) -> tuple[Fold, Any | None]:
        """The fold after a pass, and statistics of all rows, or None while there are none."""
        kept, total = _TAKE[self.kind](self, stats, block_rows)
        return self._replace(steps=self.steps + 1, kept=kept), total


Taken = tuple[tuple[Blocks, ...], Any | None]


def total_of(blocks: Blocks) -> Any:
    """Statistics of all rows."""
    return reduce(operator.add, blocks)


def _em(fold: Fold, stats: Any, rows: Sequence[int]) -> Taken:
    return (), stats


def _squarem(fold: Fold, stats: Any, rows: Sequence[int]) -> Taken:
    """All rows are one block. The last of three sweeps, when no leap was made, is the first of the next three."""
    return (*_earlier(fold), (stats,)), stats


def _incremental(fold: Fold, stats: Any, rows: Sequence[int]) -> Taken:
    """The first sweep fills all blocks under one set of parameters, as a batch E-step does."""
    b = fold.steps % len(rows)
    earlier, now = (fold.kept[:-1], fold.kept[-1]) if b else (_earlier(fold), fold.kept[-1] if fold.kept else ())
    now = (*now[:b], stats, *now[b + 1 :])
    return (*earlier, now), total_of(now) if len(now) == len(rows) else None


def _earlier(fold: Fold) -> tuple[Blocks, ...]:
    """What is still of use when a sweep begins."""
    return fold.kept if len(fold.kept) < SWEEPS else fold.kept[-1:]


def _stepwise(fold: Fold, stats: Any, rows: Sequence[int]) -> Taken:
    total = stats * (sum(rows) / rows[fold.steps % len(rows)])
    if fold.kept:
        eta = (fold.steps + 2.0) ** -DECAY
        total = fold.kept[0][0] * (1.0 - eta) + total * eta
    return ((total,),), total


_TAKE: dict[str, Callable[[Fold, Any, Sequence[int]], Taken]] = {
    "em": _em,
    "squarem": _squarem,
    "incremental": _incremental,
    "stepwise": _stepwise,
}


def method_of(name: str, bounds: Array, seed: int, n_blocks: int | None = None) -> Method:
    """The method that a config names, with blocks of chunks drawn by the seed. bounds : (n_chunks + 1,) rows of the chunks."""
    if name not in ("incremental", "stepwise"):
        return Method(None, name != "em")
    blocks = deal(len(bounds) - 1, seed, n_blocks or BLOCKS[name])
    sizes = np.diff(bounds)
    rows = tuple(int(sizes[list(block)].sum()) for block in blocks)
    return Method("incremental" if name == "incremental" else "stepwise", True, blocks, rows)


def deal(n_chunks: int, seed: int, n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Chunk ids of each block, ascending: every chunk in one block, and blocks of nearly as many chunks each."""
    order = np.argsort(uniform(seed, _STREAM, np.arange(n_chunks)))
    return tuple(tuple(np.sort(part).tolist()) for part in np.array_split(order, min(n_blocks, n_chunks)))
