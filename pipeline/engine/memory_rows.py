"""Passes over rows in memory, on threads of this process, without a task graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows
from pipeline.engine.passes import ChunkFunction, on_chunk
from pipeline.engine.tree import tree_sum
from pipeline.kernels.base import Kernels
from pipeline.kernels.cpu import KERNELS

T = TypeVar("T")
BLOCK_ROWS = 2**13  # rows of one call of a function


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory, summed over in blocks of BLOCK_ROWS.

    Parameters
    ----------
    x : array or csr_array, shape (m, d)
        In an order in which the first rows, for any number, are a sample of all.
    weight : array, shape (m,), or None for ones
    threads : ThreadPoolExecutor
        Results do not depend on its number of threads.
    kernels : Kernels
    label : array, shape (m,), or None
        Known component of each row, else -1.
    known : array of int
        Components with known rows, among all rows, ascending.
    read : list of one int
        Rows read so far; `head` and `mapped` share it.
    after : callable
        Called with this number after each pass.
    """

    x: Matrix
    weight: Array | None
    threads: ThreadPoolExecutor
    kernels: Kernels = KERNELS
    label: Array | None = None
    known: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    read: list[int] = field(default_factory=lambda: [0])
    after: Callable[[int], None] = lambda read: None

    @property
    def n_rows(self) -> int:
        """Number of rows, m."""
        return int(self.x.shape[0])

    def head(self, m: int) -> MemoryRows:
        """Return the first m rows."""
        weight, label = (None if column is None else column[:m] for column in (self.weight, self.label))
        return replace(self, x=self.x[:m], weight=weight, label=label)

    def mapped(self, function: Callable[[Array], Array]) -> MemoryRows:
        """Return the same rows with function(x) for x."""
        return replace(self, x=np.concatenate(list(self.map(lambda block: function(block.x), self._blocks()))))

    def sum_over(self, functions: Sequence[ChunkFunction]) -> list[Any]:
        """Return, for each function, the sum of function(block) over blocks: the same bits on any number of threads."""
        parts = self.map(lambda block: on_chunk(block, functions, self.kernels), self._blocks())
        total = tree_sum(parts, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])
        self.read[0] += self.n_rows
        self.after(self.read[0])
        return total

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """Return function(item) for each item, in order."""
        listed = list(items)
        return self.threads.map(function, listed) if len(listed) > 1 else [function(item) for item in listed]

    def _blocks(self) -> list[Rows]:
        return [self._block(slice(a, a + BLOCK_ROWS)) for a in range(0, self.n_rows, BLOCK_ROWS)]

    def _block(self, rows: slice) -> Rows:
        weight, label = (None if column is None else column[rows] for column in (self.weight, self.label))
        return Rows(self.x[rows], weight, rows.start, label=label)
