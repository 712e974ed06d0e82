"""The canonical binary tree over chunk indices, along which everything is summed.

Floating-point sums depend on their order. Here the order depends only on the number of leaves: a sequence splits at the
largest power of two below its length. Aligned runs of 2^j leaves are subtrees, so tasks may be subtrees of any size, on
any number of workers, and the total has the same bits.

    7 leaves:  ((0 1) (2 3)) ((4 5) 6)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Span = tuple[int, int]  # consecutive leaves from the first up to, not including, the second


def tree_sum(leaves: Iterable[T], add: Callable[[T, T], T]) -> T:
    """Return the sum of the leaves along the canonical tree, with at most log2(n) + 1 partial sums in memory.

    A binary counter: the sums of two subtrees of one size are added as soon as both are complete. At the end the
    remaining sums are added from the smallest up: 7 leaves leave 4, 2 and 1, and (4 + (2 + 1)) is the tree, while
    ((4 + 2) + 1) is another one.
    """
    stack: list[tuple[int, T]] = []
    for leaf in leaves:
        size = 1
        while stack and stack[-1][0] == size:
            leaf = add(stack.pop()[1], leaf)
            size *= 2
        stack.append((size, leaf))
    if not stack:
        raise ValueError("tree_sum: got no leaves, expected at least one")
    total = stack.pop()[1]
    while stack:
        total = add(stack.pop()[1], total)
    return total


def halves(span: Span) -> tuple[Span, Span]:
    """Return the two subtrees of a subtree of more than one leaf.

    >>> halves((0, 7))
    ((0, 4), (4, 7))
    """
    start, stop = span
    middle = start + (1 << (stop - start - 1).bit_length() - 1)
    return (start, middle), (middle, stop)


def contains(outer: Span, inner: Span) -> bool:
    """Whether one subtree is part of another, or the same."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def uncovered(span: Span, stored: Collection[Span]) -> Iterator[Span]:
    """Yield the largest subtrees of a subtree that contain none of the stored ones, in order.

    >>> list(uncovered((0, 8), {(0, 2), (4, 8)}))
    [(2, 4)]
    """
    if any(contains(one, span) for one in stored):
        return
    if not any(contains(span, one) for one in stored):
        yield span
        return
    for half in halves(span):
        yield from uncovered(half, stored)


def shard_level(n_chunks: int, workers: int, chunk_seconds: float, per_worker: int = 8, longest: float = 20.0) -> int:
    """Return the level j of a pass's shards, which are subtrees of 2^j chunks, one task each.

    The largest with at least `per_worker` shards a worker, each of which takes at most about `longest` seconds: an empty
    task takes 2 to 3.5 ms on worker processes, and a lost worker's shards are computed again.

    Parameters
    ----------
    n_chunks, workers : int
    chunk_seconds : float
        Time of one chunk.

    >>> shard_level(n_chunks=10_000, workers=2, chunk_seconds=0.0)
    9
    """
    level = 0
    while n_chunks / (2 << level) >= workers * per_worker and chunk_seconds * (2 << level) <= longest:
        level += 1
    return level
