"""Passes over rows in memory, on threads of this process, without a task graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunk
from pipeline.engine.passes import ChunkFunction, on_chunk
from pipeline.engine.tree import tree_sum
from pipeline.kernels.base import Kernels
from pipeline.kernels.cpu import KERNELS
from pipeline.models.stats import Rows

T = TypeVar("T")
BLOCK_ROWS = 2**13  # rows of one call of a function


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory, summed over in blocks of BLOCK_ROWS.

    Parameters
    ----------
    x : array or CSR array, shape (m, d)
        In an order in which the first rows, however many, are a sample of all.
    weight : array, shape (m,), or None
        None for ones.
    threads : ThreadPoolExecutor
        Results do not depend on how many threads it has.
    read : list of one int
        Rows read so far; `head` and `mapped` share it.
    kernels : Kernels
    """

    x: Rows
    weight: Array | None
    threads: ThreadPoolExecutor
    read: list[int] = field(default_factory=lambda: [0])
    kernels: Kernels = KERNELS

    @property
    def n_rows(self) -> int:
        """m."""
        return int(self.x.shape[0])

    def head(self, m: int) -> MemoryRows:
        """The first m rows."""
        return replace(self, x=self.x[:m], weight=None if self.weight is None else self.weight[:m])

    def mapped(self, function: Callable[[Array], Array]) -> MemoryRows:
        """The same rows with function(x) for x, computed block by block."""
        return replace(self, x=np.concatenate(list(self.map(lambda block: function(block.x), self._blocks()))))

    def sum_over(self, functions: Sequence[ChunkFunction]) -> list[Any]:
        """For each function, the sum of function(block) over all blocks: the same bits on any number of threads."""
        self.read[0] += self.n_rows
        parts = self.map(lambda block: on_chunk(block, functions, self.kernels), self._blocks())
        return tree_sum(parts, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """function(item) for each item, in order."""
        listed = list(items)
        return self.threads.map(function, listed) if len(listed) > 1 else [function(item) for item in listed]

    def _blocks(self) -> list[Chunk]:
        starts = range(0, self.n_rows, BLOCK_ROWS)
        return [
            Chunk(self.x[a : a + BLOCK_ROWS], None if self.weight is None else self.weight[a : a + BLOCK_ROWS], a, None)
            for a in starts
        ]
