"""Where a fit reports events and stores state: a run directory, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pipeline.data.chunks import Chunks
from pipeline.data.profile import DataSummary
from pipeline.em.run import Run
from pipeline.engine.stored_sums import SumStore


class Sink(Protocol):
    """What a fit reports to; `pipeline.outputs.run_sink.RunSink` writes a run directory."""

    @property
    def listens(self) -> bool:
        """Whether events and the report's attachments are used."""

    @property
    def stops(self) -> bool:
        """Whether the fit is to end with the next iteration."""

    def log(self, event: str, **fields: Any) -> None:
        """Report an event."""

    def progress(self, done: int, of: int) -> None:
        """Report how many chunks of a long pass are done."""

    def unfinished(self, chunks: Chunks, jobs: Sequence[Any], ids: Sequence[int] | None) -> SumStore | None:
        """Return where the finished part of a long pass is stored; None for nowhere."""

    def save(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        """Store a checkpoint."""

    def passed(self, summary: DataSummary, before: Sequence[Run], runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Called after each pass: store what is due. before, runs : before and after it.  resting : saved with them."""

    def interrupted(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Called when the fit ends early: store what has not been stored."""


class NoSink:
    """Stores nothing. on_pass : called with the runs after each pass; it returns whether the fit is to end."""

    listens = False

    def __init__(self, on_pass: Callable[[Sequence[Run]], bool | None] | None = None) -> None:
        self._on_pass, self.stops = on_pass, False

    def log(self, event: str, **fields: Any) -> None:
        """Do nothing."""

    def progress(self, done: int, of: int) -> None:
        """Do nothing."""

    def unfinished(self, chunks: Chunks, jobs: Sequence[Any], ids: Sequence[int] | None) -> None:
        """Return None: nothing is stored."""

    def save(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        """Do nothing."""

    def passed(self, summary: DataSummary, before: Sequence[Run], runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Call `on_pass`."""
        if self._on_pass is not None and self._on_pass(runs):
            self.stops = True

    def interrupted(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Do nothing."""
