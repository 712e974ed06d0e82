"""Where a fit reports what happens and stores what it has: a run directory, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pipeline.data.chunks import Chunks
from pipeline.data.profile import DataSummary
from pipeline.em.run import Run
from pipeline.engine.stored_sums import SumStore


class Sink(Protocol):
    """What a fit reports to. The run directory is one (outputs/run_sink.py)."""

    @property
    def listens(self) -> bool:
        """Whether anybody reads events and what the final pass collects for a report."""

    def log(self, event: str, **fields: Any) -> None:
        """Report an event."""

    def progress(self, done: int, of: int) -> None:
        """Report how many chunks of a long pass are done."""

    def unfinished(self, chunks: Chunks, jobs: Sequence[Any], ids: Sequence[int] | None) -> SumStore | None:
        """Where the finished part of a long pass is stored; None for nowhere."""

    def save(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        """Store a checkpoint."""

    def passed(self, summary: DataSummary, before: Sequence[Run], runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Take note of a pass: store what is due. before, runs : before and after it.  resting : saved beside them."""

    def interrupted(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Store what has not been stored: the fit ends here."""


class NoSink:
    """Stores nothing. on_pass : called with the runs after each pass."""

    listens = False

    def __init__(self, on_pass: Callable[[Sequence[Run]], None] | None = None) -> None:
        self._on_pass = on_pass

    def log(self, event: str, **fields: Any) -> None:
        """Do nothing."""

    def progress(self, done: int, of: int) -> None:
        """Do nothing."""

    def unfinished(self, chunks: Chunks, jobs: Sequence[Any], ids: Sequence[int] | None) -> None:
        """Nowhere."""

    def save(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        """Do nothing."""

    def passed(self, summary: DataSummary, before: Sequence[Run], runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Call back."""
        if self._on_pass is not None:
            self._on_pass(runs)

    def interrupted(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Do nothing."""
