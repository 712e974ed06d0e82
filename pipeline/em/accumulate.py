"""How the sums of passes become totals of all rows.

    em           total = T                       each pass reads all rows
    squarem      total = T, extrapolated         three epochs in a row give an extrapolation step (extrapolate.py); an epoch is a pass
    incremental  replace T_b, total = Σ_b T_b    each pass reads one block, an epoch all of them [Neal and Hinton 1998]
    newton, gradient    total = T                each pass tries a step from the totals at accepted points (models/ascent.py)

A block is a set of chunks drawn by the seed, because stored rows are often in some order. The sum over blocks is computed
from all blocks each time: subtracting old T_b from a running total would accumulate rounding errors, down to negative sums.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.keyed import uniform
from pipeline.models.ascent import Point
from pipeline.models.base import LatentModel, Totals

Kind = Literal["em", "squarem", "incremental", "newton", "gradient"]

BLOCKS = 10  # of method incremental, which stores three totals of each
EPOCHS = 3  # in a row, that an extrapolation step is made from
# Totals that are stored between two passes, by fit.method: of each block those of the last epochs.
STORED = {"em": 0, "auto": EPOCHS + 1, "incremental": EPOCHS * BLOCKS}
_STREAM = 8  # of the keys that deal chunks to blocks


def n_stored(method: str, model: LatentModel) -> int:
    """Return how many totals are stored between two passes."""
    if model.ascent is not None:
        return model.ascent.memory
    return STORED[method]


class Method(NamedTuple):
    """fit.method; the default is the textbook's EM.

    Attributes
    ----------
    blockwise : bool
        Whether the first epochs read block by block.
    accelerated : bool
        Whether passes over all rows are extrapolated, and go on until the estimated remaining gain is below tol.
    blocks : tuple of tuple of int
        Chunk ids of each block.
    block_rows : tuple of int
        Rows of each block.
    """

    blockwise: bool = False
    accelerated: bool = False
    blocks: tuple[tuple[int, ...], ...] = ()
    block_rows: tuple[int, ...] = ()

    def first(self, model: LatentModel) -> Accumulator:
        """Return the accumulator at the beginning of a run."""
        if self.blockwise and len(self.block_rows) > 1 and model.has_bound:
            return Accumulator("incremental")
        return self.last(model)

    def last(self, model: LatentModel) -> Accumulator:
        """Return the accumulator for passes over all rows."""
        if model.ascent is not None:
            return Accumulator(model.ascent.steps)
        return Accumulator("squarem" if self.accelerated and model.extrapolates else "em")


Blocks = tuple[Totals, ...]


@stored
class Accumulator(NamedTuple):
    """The statistics of a run between two passes.

    Attributes
    ----------
    steps : int
        Passes so far, each over one block or over all rows.
    epochs : tuple of tuple of Totals
        Totals of each block after the last epochs, oldest first; all rows are one block.
    fallback : tuple of Totals
        Totals of each block before an extrapolation step; empty once the step is accepted.
    trail : tuple of Point
        Accepted points that the next step follows from, where steps may fail.
    """

    kind: Kind
    steps: int = 0
    epochs: tuple[Blocks, ...] = ()
    fallback: Blocks = ()
    trail: tuple[Point, ...] = ()

    def block(self, n_blocks: int) -> int | None:
        """Return the block that the next pass reads; None for all rows."""
        return self.steps % n_blocks if self.kind == "incremental" else None

    @property
    def mixed(self) -> bool:
        """Whether the totals of blocks are from different parameters."""
        return self.kind == "incremental" and self.steps > len(self.epochs[-1])

    @property
    def can_extrapolate(self) -> bool:
        """Whether three epochs are complete."""
        return len(self.epochs) == EPOCHS and self.steps % len(self.epochs[-1]) == 0

    def add(self, totals: Totals, n_blocks: int) -> tuple[Accumulator, Totals | None]:
        """Return the accumulator after a pass, and the totals of all rows; None until all blocks have been read."""
        if self.kind in ("em", "newton", "gradient"):
            return self._replace(steps=self.steps + 1), totals
        if self.kind == "squarem":  # all rows are one block
            return self._replace(steps=self.steps + 1, epochs=(*self._earlier(), (totals,))), totals
        epochs, total = self._add_block(totals, n_blocks)
        return self._replace(steps=self.steps + 1, epochs=epochs), total

    def _add_block(self, totals: Totals, n_blocks: int) -> tuple[tuple[Blocks, ...], Totals | None]:
        """Replace one block. The first epoch fills all blocks with the same parameters, as a batch E-step does."""
        b = self.steps % n_blocks
        if b:
            earlier, now = self.epochs[:-1], self.epochs[-1]
        else:
            earlier, now = self._earlier(), self.epochs[-1] if self.epochs else ()
        now = (*now[:b], totals, *now[b + 1 :])
        return (*earlier, now), total_of(now) if len(now) == n_blocks else None

    def _earlier(self) -> tuple[Blocks, ...]:
        """Return the epochs that are still needed when one begins; the last of three is the first of the next three."""
        return self.epochs if len(self.epochs) < EPOCHS else self.epochs[-1:]


def total_of(blocks: Blocks) -> Totals:
    """Return the sum over blocks."""
    return reduce(operator.add, blocks)


def method_of(name: str, bounds: Array, seed: int, n_blocks: int = BLOCKS) -> Method:
    """Return the method that a config names, with blocks drawn by the seed. bounds : (n_chunks + 1,) rows of the chunks."""
    if name != "incremental":
        return Method(accelerated=name != "em")
    blocks = deal(len(bounds) - 1, seed, n_blocks)
    sizes = np.diff(bounds)
    return Method(True, True, blocks, tuple(int(sizes[list(block)].sum()) for block in blocks))


def deal(n_chunks: int, seed: int, n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """Assign chunks to blocks of nearly equal size; return the ascending chunk ids of each."""
    order = np.argsort(uniform(seed, _STREAM, np.arange(n_chunks)))
    return tuple(tuple(np.sort(part).tolist()) for part in np.array_split(order, min(n_blocks, n_chunks)))
