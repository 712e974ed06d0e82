"""One canonical binary tree over chunk indices, along which everything is summed.

Floating-point sums depend on their order. Here the order is a function of the number of leaves alone: a
sequence splits at the largest power of two below its length. Aligned runs of 2^j leaves are subtrees, so
a task may sum any of them and the total keeps every bit.

    7 leaves:  ((0 1) (2 3)) ((4 5) 6)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tree_sum(leaves: Iterable[T], add: Callable[[T, T], T]) -> T:
    """The sum of the leaves along the canonical tree, holding at most log2(n) + 1 of them at a time.

    A binary counter: equal subtrees merge as they complete, and what is left over is folded from the
    smallest upward (largest first would give another tree).
    """
    stack: list[tuple[int, T]] = []
    for leaf in leaves:
        size = 1
        while stack and stack[-1][0] == size:
            leaf = add(stack.pop()[1], leaf)
            size *= 2
        stack.append((size, leaf))
    if not stack:
        raise ValueError("tree_sum: nothing to sum, expected at least one leaf")
    total = stack.pop()[1]
    while stack:
        total = add(stack.pop()[1], total)
    return total


def shards(n_chunks: int, level: int) -> Iterator[range]:
    """Aligned runs of 2^level consecutive chunks: subtrees of the canonical tree."""
    width = 1 << level
    for start in range(0, n_chunks, width):
        yield range(start, min(start + width, n_chunks))


def shard_level(n_chunks: int, workers: int, chunk_seconds: float, per_worker: int = 8, longest: float = 20.0) -> int:
    """How large shards may be: a few per worker, and none much longer than `longest` seconds.

    >>> shard_level(n_chunks=10_000, workers=2, chunk_seconds=0.0)
    9
    """
    level = 0
    while n_chunks / (2 << level) >= workers * per_worker and chunk_seconds * (2 << level) <= longest:
        level += 1
    return level
