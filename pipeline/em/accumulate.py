"""How the sums of passes become totals of all rows.

    em           total = T                       each pass reads all rows
    squarem      the same, extrapolated          three epochs in a row give an extrapolation step (extrapolate.py); an epoch is a pass
    incremental  replace T_b, total = Σ_b T_b    each pass reads one block, an epoch all of them [Neal and Hinton 1998]

A block is a set of chunks drawn by the seed, never neighbours in storage: rows are often stored in some order. The sum over
blocks is formed from all blocks each time: subtracting the old T_b from a running total drifts, below zero in the end.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.keyed import uniform
from pipeline.models.base import LatentModel, Totals

Kind = Literal["em", "squarem", "incremental"]

BLOCKS = 10  # of method incremental, which stores three totals of each
EPOCHS = 3  # in a row, that an extrapolation step is made from
# Totals that are stored between two passes, by fit.method: of each block those of the last epochs.
STORED = {"em": 0, "auto": EPOCHS + 1, "incremental": EPOCHS * BLOCKS}
_STREAM = 8  # of the keys that deal chunks to blocks


class Method(NamedTuple):
    """fit.method, as the loop knows it. The default is the textbook's EM.

    blockwise : whether the first epochs go block by block, before passes over all rows.
    accelerated : whether passes over all rows extrapolate, and go on until little is left to gain.
    blocks : chunk ids of each block.  block_rows : its rows.
    """

    blockwise: bool = False
    accelerated: bool = False
    blocks: tuple[tuple[int, ...], ...] = ()
    block_rows: tuple[int, ...] = ()

    def first(self, model: LatentModel) -> Accumulator:
        """Where a run of this model begins. One block is all rows."""
        if self.blockwise and len(self.block_rows) > 1 and model.has_bound:
            return Accumulator("incremental")
        return self.last(model)

    def last(self, model: LatentModel) -> Accumulator:
        """Where it goes on once epochs over blocks are over."""
        return Accumulator("squarem" if self.accelerated and model.extrapolates else "em")


Blocks = tuple[Totals, ...]


@stored
class Accumulator(NamedTuple):
    """Where a run is between two passes.

    steps : passes so far, each over one block or over all rows.
    epochs : totals of each block (all rows are one) after the last epochs, the oldest first.
    fallback : those that a run was extrapolated from, until the epoch at the end of the step shows that nothing was lost.
    """

    kind: Kind
    steps: int = 0
    epochs: tuple[Blocks, ...] = ()
    fallback: Blocks = ()

    def block(self, n_blocks: int) -> int | None:
        """The block that the next pass reads; None for all rows."""
        return self.steps % n_blocks if self.kind == "incremental" else None

    @property
    def mixed(self) -> bool:
        """Whether totals of blocks that were read under several parameters stand beside each other."""
        return self.kind == "incremental" and self.steps > len(self.epochs[-1])

    @property
    def can_extrapolate(self) -> bool:
        """Whether three epochs are over."""
        return len(self.epochs) == EPOCHS and self.steps % len(self.epochs[-1]) == 0

    def add(self, totals: Totals, n_blocks: int) -> tuple[Accumulator, Totals | None]:
        """The accumulator after a pass, and totals of all rows, or None while some have not been read."""
        if self.kind == "em":
            return self._replace(steps=self.steps + 1), totals
        if self.kind == "squarem":  # all rows are one block
            return self._replace(steps=self.steps + 1, epochs=(*self._earlier(), (totals,))), totals
        epochs, total = self._add_block(totals, n_blocks)
        return self._replace(steps=self.steps + 1, epochs=epochs), total

    def _add_block(self, totals: Totals, n_blocks: int) -> tuple[tuple[Blocks, ...], Totals | None]:
        """The first epoch fills all blocks under one set of parameters, as a batch E-step does."""
        b = self.steps % n_blocks
        if b:
            earlier, now = self.epochs[:-1], self.epochs[-1]
        else:
            earlier, now = self._earlier(), self.epochs[-1] if self.epochs else ()
        now = (*now[:b], totals, *now[b + 1 :])
        return (*earlier, now), total_of(now) if len(now) == n_blocks else None

    def _earlier(self) -> tuple[Blocks, ...]:
        """What is still of use when an epoch begins. The last of three is the first of the next three."""
        return self.epochs if len(self.epochs) < EPOCHS else self.epochs[-1:]


def total_of(blocks: Blocks) -> Totals:
    """Totals of all rows."""
    return reduce(operator.add, blocks)


def method_of(name: str, bounds: Array, seed: int, n_blocks: int = BLOCKS) -> Method:
    """The method that a config names, with blocks of chunks drawn by the seed. bounds : (n_chunks + 1,) rows of the chunks."""
    if name != "incremental":
        return Method(accelerated=name != "em")
    blocks = deal(len(bounds) - 1, seed, n_blocks)
    sizes = np.diff(bounds)
    return Method(True, True, blocks, tuple(int(sizes[list(block)].sum()) for block in blocks))


def deal(n_chunks: int, seed: int, n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Chunk ids of each block, ascending: every chunk in one block, and blocks of nearly as many chunks each."""
    order = np.argsort(uniform(seed, _STREAM, np.arange(n_chunks)))
    return tuple(tuple(np.sort(part).tolist()) for part in np.array_split(order, min(n_blocks, n_chunks)))
