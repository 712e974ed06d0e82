"""Sums of finished subtrees of a long pass, stored from time to time.

A resumed pass reads only the other chunks. Stored sums are subtrees of the canonical tree (engine/tree.py), so the total
has the same bits whatever was finished and however large the tasks of either pass were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.engine.tree import Span, contains, halves

STORE_SECONDS = 300.0  # of a pass, after which and between which finished sums are stored
PROGRESS_SECONDS = 5.0  # of a pass, after which and between which progress is reported
MOST_STORED = 256  # subtrees: what is stored, and pending for it, does not grow with the number of chunks

Fetch = Callable[[Any], list[Any]]  # the value of a finished task, or of a future of it


class SumStore(Protocol):
    """Storage for the sums of one pass that outlives the process (outputs/partial.py)."""

    def spans(self) -> set[Span]:
        """Return the stored subtrees, none of which contains another."""

    def read(self, span: Span) -> list[Any]:
        """Return the sums of a stored subtree."""

    def write(self, span: Span, value: list[Any]) -> None:
        """Store the sums of a subtree, in place of all that it contains."""


class FinishedSums:
    """The largest finished subtrees of a running pass.

    Parameters
    ----------
    store : SumStore
    spans : dict
        Tasks that are subtrees and may be stored, by key.
    progress : callable
        Called from time to time with the number of finished chunks.
    """

    def __init__(self, store: SumStore, spans: dict[Any, Span], progress: Callable[[int], None]) -> None:
        self._store, self.spans, self._progress = store, spans, progress
        self._keys = {span: key for key, span in spans.items()}
        self._values: dict[Span, Any] = {}
        self._stored: set[Span] = set()
        self._began = self._stored_at = self._reported_at = time.monotonic()

    def add(self, key: Any, value: Any) -> list[Any]:
        """Record a finished task, by its value or a future of it; return the keys of tasks that another now contains."""
        span = self.spans.get(key)
        if span is None:
            return []
        if any(contains(one, span) for one in self._values):
            return [key]
        inner = [one for one in self._values if contains(span, one)]
        for one in inner:
            del self._values[one]
        self._values[span] = value
        return [self._keys[one] for one in inner]

    def update(self, fetch: Fetch) -> None:
        """Report progress and store new sums, each if enough time has passed since the last time."""
        now = time.monotonic()
        if now - self._reported_at > PROGRESS_SECONDS:
            self._reported_at = now
            self._progress(sum(stop - start for start, stop in self._values))
        if now - self._stored_at > STORE_SECONDS:
            self._write(fetch)

    def store_if_long(self, fetch: Fetch) -> None:
        """Store new sums if the pass has been a long one, before it is given up."""
        if self.is_long:
            self._write(fetch)

    @property
    def is_long(self) -> bool:
        """Whether the pass has taken longer than STORE_SECONDS."""
        return time.monotonic() - self._began > STORE_SECONDS

    def _write(self, fetch: Fetch) -> None:
        for span in sorted(set(self._values) - self._stored):
            self._store.write(span, fetch(self._values[span]))
            self._stored.add(span)
        self._stored_at = time.monotonic()


def total(
    span: Span,
    stored: set[Span],
    store: SumStore | None,
    computed: Callable[[Span], Any],
    add: Callable[[Any, Any], Any],
) -> Any:
    """Return the sum of a subtree from stored sums and computed ones.

    computed : sums a subtree that contains no stored one; called for the largest of these, in order.
    """
    if store is not None and span in stored:
        return store.read(span)
    if not any(contains(span, one) for one in stored):
        return computed(span)
    first, second = (total(half, stored, store, computed, add) for half in halves(span))
    return add(first, second)
