"""The canonical binary tree over chunk indices, along which everything is summed.

Floating-point sums depend on their order. Here the order depends only on the number of leaves: a sequence splits at the
largest power of two below its length. Aligned runs of 2^j leaves are subtrees, so tasks may be subtrees of any size, on
any number of workers, and the total has the same bits.

    7 leaves:  ((0 1) (2 3)) ((4 5) 6)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
SHORT_SECONDS = 0.1  # of a task; a shorter one is worth it where a worker has few
SENT_BYTES = 2e7  # of sums, for which a second of work is worth it
HANDED_SECONDS = 0.004  # in which a scheduler hands out a task, with all that this takes
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


def below(span: Span, width: int, levels: int) -> list[Span]:
    """Return the subtrees, at most 2^levels, whose sums the task of a subtree of more than `width` leaves adds, in order.

    They have width · 2^(levels · j) leaves, or fewer at the end: in a large tree no task has few of them.

    >>> below((0, 15), width=2, levels=2)
    [(0, 8), (8, 15)]
    >>> below((8, 15), width=2, levels=2)
    [(8, 10), (10, 12), (12, 14), (14, 15)]
    """
    most = width
    while most << levels < span[1] - span[0]:
        most <<= levels
    return list(_within(span, most))


def _within(span: Span, most: int) -> Iterator[Span]:
    """The largest subtrees of at most so many leaves."""
    if span[1] - span[0] <= most:
        yield span
        return
    for half in halves(span):
        yield from _within(half, most)


def sum_of(span: Span, parts: Mapping[Span, T], add: Callable[[T, T], T]) -> T:
    """Return the sum of a subtree from those of subtrees below it that cover it."""
    if span in parts:
        return parts[span]
    first, second = (sum_of(half, parts, add) for half in halves(span))
    return add(first, second)


def shard_level(n_chunks: int, workers: int, chunk_seconds: float, sum_bytes: int = 0, longest: float = 20.0) -> int:
    """Return the level j of a pass's shards, which are subtrees of 2^j chunks, one task each.

    They take at most about `longest` seconds, as a lost worker's are computed again. A worker gets 32 to 64, so that all workers end
    at about the same time; 8 to 16 where these would take less than 0.1 s, 16 ms for each worker, or 30 times as long as to send and add
    their sums; 4 to 8 where they would take less than 4 ms for each worker, as the one scheduler hands out all.

    Parameters
    ----------
    n_chunks, workers : int
    chunk_seconds : float
        Time of one chunk.
    sum_bytes : int
        Of the sums that a task returns; 0 where it is not known.

    >>> [shard_level(n_chunks=10_000, workers=2, chunk_seconds=seconds) for seconds in (0.0, 1e-3, 1e-2)]
    [10, 7, 7]
    >>> shard_level(n_chunks=300_000, workers=1000, chunk_seconds=0.1)
    6
    """
    level, handed = 0, HANDED_SECONDS * workers
    long = max(SHORT_SECONDS, 4 * handed, sum_bytes / SENT_BYTES)
    while (takes := chunk_seconds * (1 << level)) * 2 <= longest:
        least = 32 if takes >= long else 8 if takes >= handed else 4
        if n_chunks / (2 << level) < workers * least:
            break
        level += 1
    return level
