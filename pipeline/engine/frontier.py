"""What is finished of a pass: its largest whole subtrees, stored now and then once the pass is long.

A resumed pass reads only the rest. Sums follow the canonical tree, of which each of these is a part, so that the total
keeps every bit whatever was finished, and at whatever shard level either pass worked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from pipeline.engine.tree import Span, contains, halves

LONG = 300.0  # seconds of a pass after which, and between which, what is finished is stored
TOLD = 5.0  # seconds of a pass after which, and between which, it is told how much is finished
STORED = 256  # subtrees at most: what is stored, and held for it, does not grow with the number of chunks


Fetch = Callable[[Any], list[Any]]
Tell = Callable[[int], None]  # told how many chunks are finished


class Keep(Protocol):
    """A place for subtrees of one pass that outlives the process (outputs/partial.py)."""

    def spans(self) -> set[Span]:
        """Which are there, whole."""

    def read(self, span: Span) -> list[Any]:
        """What was written."""

    def write(self, span: Span, value: list[Any]) -> None:
        """Store a subtree, in place of all that it contains."""


class Frontier:
    """Finished subtrees that no other finished one contains, and what they came to (or a future of it).

    spans : which tasks are subtrees that may be stored, by key.  tell : told now and then how many chunks are finished.
    """

    def __init__(self, keep: Keep, spans: dict[Hashable, Span], tell: Tell) -> None:
        self._keep, self._spans, self._tell = keep, spans, tell
        self._keys = {span: key for key, span in spans.items()}
        self._held: dict[Span, Any] = {}
        self._stored: set[Span] = set()
        self._began = self._stored_at = self._told_at = time.monotonic()

    def finished(self, key: Hashable, value: Any) -> list[Hashable]:
        """Take note of a task; the keys of those that are of no more use, because one contains them."""
        span = self._spans.get(key)
        if span is None:
            return []
        if any(contains(one, span) for one in self._held):
            return [key]
        inner = [one for one in self._held if contains(span, one)]
        for one in inner:
            del self._held[one]
        self._held[span] = value
        return [self._keys[one] for one in inner]

    def now_and_then(self, fetch: Fetch) -> None:
        """Tell how much is finished, and write what is not written yet, each if it is long since that was done.

        fetch : the value of what was told.
        """
        now = time.monotonic()
        if now - self._told_at > TOLD:
            self._told_at = now
            self._tell(sum(stop - start for start, stop in self._held))
        if now - self._stored_at > LONG:
            self._store(fetch)

    def store_at_the_end(self, fetch: Fetch) -> None:
        """Write what is not written yet, if the pass was a long one: it is about to be given up."""
        if self.is_long:
            self._store(fetch)

    @property
    def is_long(self) -> bool:
        """Whether the pass has been a long one."""
        return time.monotonic() - self._began > LONG

    def _store(self, fetch: Fetch) -> None:
        for span in sorted(set(self._held) - self._stored):
            self._keep.write(span, fetch(self._held[span]))
            self._stored.add(span)
        self._stored_at = time.monotonic()


def total(
    span: Span, known: set[Span], keep: Keep | None, computed: Callable[[Span], Any], add: Callable[[Any, Any], Any]
) -> Any:
    """The sum of a subtree from known ones, and from the largest that hold nothing of these, asked for in order."""
    if keep is not None and span in known:
        return keep.read(span)
    if not any(contains(span, one) for one in known):
        return computed(span)
    first, second = (total(half, known, keep, computed, add) for half in halves(span))
    return add(first, second)
