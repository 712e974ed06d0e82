"""Rows held in memory: passes over them on threads of this process, without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunk
from pipeline.engine.tree import tree_sum
from pipeline.models.stats import Rows

T = TypeVar("T")
BLOCK_ROWS = 2**13  # rows of one call of a job


@dataclass(frozen=True)
class HeldRows:
    """x : (m, d), in an order that makes every head of it a sample.  weight : (m,), or None for ones.

    read : [rows that were read so far], shared by all heads.
    """

    x: Rows
    weight: Array | None
    threads: ThreadPoolExecutor
    read: list[int] = field(default_factory=lambda: [0])

    @property
    def n_rows(self) -> int:
        """m."""
        return int(self.x.shape[0])

    def head(self, m: int) -> HeldRows:
        """The first m rows."""
        return replace(self, x=self.x[:m], weight=None if self.weight is None else self.weight[:m])

    def mapped(self, function: Callable[[Array], Array]) -> HeldRows:
        """The same rows with function(x) for x, formed block by block."""
        return replace(self, x=np.concatenate(list(self.map(lambda block: function(block.x), self._blocks()))))

    def sum_over(self, jobs: Sequence[Callable[[Chunk], Any]]) -> list[Any]:
        """For each job, the sum of job(block) over all blocks of rows: the same bits on any number of threads."""
        self.read[0] += self.n_rows
        parts = self.map(lambda block: [job(block) for job in jobs], self._blocks())
        return tree_sum(parts, lambda a, b: [x + y for x, y in zip(a, b, strict=True)])

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterable[T]:
        """function(item) for each, in order."""
        listed = list(items)
        return self.threads.map(function, listed) if len(listed) > 1 else [function(item) for item in listed]

    def _blocks(self) -> list[Chunk]:
        starts = range(0, self.n_rows, BLOCK_ROWS)
        return [
            Chunk(self.x[a : a + BLOCK_ROWS], None if self.weight is None else self.weight[a : a + BLOCK_ROWS], a, None)
            for a in starts
        ]
