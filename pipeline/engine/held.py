"""Rows in memory: passes over them on threads of this process, without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import Rows
from pipeline.engine.tree import tree_sum

T = TypeVar("T")
BLOCK_ROWS = 2**13  # rows of one call of a job


@dataclass(frozen=True)
class MemoryRows:
    """Rows in an order that makes every head of them a sample.

    Attributes
    ----------
    x : array or csr_array, shape (m, d)
    weight : array, shape (m,), or None for ones
    label : array, shape (m,), or None
        The component of each row where it is known, else -1.
    threads : ThreadPoolExecutor
    kernels : Kernels
    known : array of int
        Components of which some rows are known, among all rows, ascending.
    read : list of one int
        Rows that were read so far, shared by all heads.
    """

    x: Matrix
    weight: Array | None
    threads: ThreadPoolExecutor
    kernels: Any
    label: Array | None = None
    known: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    read: list[int] = field(default_factory=lambda: [0])

    @property
    def n_rows(self) -> int:
        """m."""
        return int(self.x.shape[0])

    def head(self, m: int) -> MemoryRows:
        """The first m rows."""
        return replace(self, x=self.x[:m], weight=_head(self.weight, m), label=_head(self.label, m))

    def mapped(self, function: Callable[[Array], Array]) -> MemoryRows:
        """The same rows with function(x) for x, formed block by block."""
        return replace(self, x=np.concatenate(list(self.map(lambda block: function(block.x), self._blocks()))))

    def sum_over(self, jobs: Sequence[Callable[[Rows, Any], Any]]) -> list[Any]:
        """For each job, the sum of job(block) over all blocks of rows: the same bits on any number of threads."""
        self.read[0] += self.n_rows
        parts = self.map(lambda block: [job(block, self.kernels) for job in jobs], self._blocks())
        return tree_sum(parts, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """function(item) for each, in order."""
        listed = list(items)
        return self.threads.map(function, listed) if len(listed) > 1 else [function(item) for item in listed]

    def _blocks(self) -> list[Rows]:
        return [self._block(slice(a, a + BLOCK_ROWS)) for a in range(0, self.n_rows, BLOCK_ROWS)]

    def _block(self, rows: slice) -> Rows:
        weight, label = (None if column is None else column[rows] for column in (self.weight, self.label))
        return Rows(self.x[rows], weight, rows.start, label=label)


def _head(column: Array | None, m: int) -> Array | None:
    return None if column is None else column[:m]
