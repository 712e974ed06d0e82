"""One canonical binary tree over chunk indices, along which everything is summed.

Floating-point sums depend on their order. Here the order is a function of the number of leaves alone: a
sequence splits at the largest power of two below its length. Aligned runs of 2^j leaves are subtrees, so
a task may sum any of them and the total keeps every bit.

    7 leaves:  ((0 1) (2 3)) ((4 5) 6)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Span = tuple[int, int]  # consecutive leaves from the first up to, not including, the second


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


def halves(span: Span) -> tuple[Span, Span]:
    """The two subtrees that a subtree of more than one leaf is the sum of.

    >>> halves((0, 7))
    ((0, 4), (4, 7))
    """
    start, stop = span
    middle = start + (1 << (stop - start - 1).bit_length() - 1)
    return (start, middle), (middle, stop)


def shards(span: Span, level: int) -> Iterator[Span]:
    """The subtrees of a subtree that have at most 2^level leaves, the largest such, in order."""
    if span[1] - span[0] <= 1 << level:
        yield span
    else:
        for half in halves(span):
            yield from shards(half, level)


def contains(outer: Span, inner: Span) -> bool:
    """Whether one subtree is part of another, or the same."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def uncovered(span: Span, known: Collection[Span]) -> Iterator[Span]:
    """The largest subtrees of a subtree that hold nothing of those known, in order: what is left to sum.

    >>> list(uncovered((0, 8), {(0, 2), (4, 8)}))
    [(2, 4)]
    """
    if any(contains(one, span) for one in known):
        return
    if not any(contains(span, one) for one in known):
        yield span
        return
    for half in halves(span):
        yield from uncovered(half, known)


def shard_level(n_chunks: int, workers: int, chunk_seconds: float, per_worker: int = 8, longest: float = 20.0) -> int:
    """How large shards may be: a few per worker, and none much longer than `longest` seconds.

    >>> shard_level(n_chunks=10_000, workers=2, chunk_seconds=0.0)
    9
    """
    level = 0
    while n_chunks / (2 << level) >= workers * per_worker and chunk_seconds * (2 << level) <= longest:
        level += 1
    return level
