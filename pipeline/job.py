"""The parts of a running fit or job, as those that do a step of it are handed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.data.chunks import Chunks
from pipeline.em.heldout import SumJobs, Units, without
from pipeline.engine.memory import PeakMemory
from pipeline.engine.passes import Engine
from pipeline.outputs.events import EventLog
from pipeline.outputs.partial import PartialPass
from pipeline.outputs.run_directory import RunDirectory


@dataclass(frozen=True)
class Work:
    """What a fit works with, wherever its results go. log : told of events, as EventLog is; None where nobody listens."""

    config: Config
    chunks: Chunks
    engine: Engine
    log: Callable[..., None] | None

    def tell(self, event: str, **fields: Any) -> None:
        """An event, to whoever listens."""
        if self.log is not None:
            self.log(event, **fields)

    def sums(self, refit: bool = False) -> SumJobs:
        """What sums a list of jobs in one pass: over the rows that are not held out, or for a refit over all."""
        share, seed = self.config.select.heldout, self.config.fit.random_state
        units = None if refit else Units.of(self.chunks.source, share, seed)
        return without(units, self._sum)

    def _sum(self, jobs: Sequence[Any], ids: Sequence[int] | None = None) -> list[Any]:
        return self.engine.sum_over(self.chunks, jobs, ids)


@dataclass(frozen=True)
class Job(Work):
    """A fit with a run directory, in which long passes are kept."""

    log: EventLog
    directory: RunDirectory
    memory: PeakMemory
    began: float

    def _sum(self, jobs: Sequence[Any], ids: Sequence[int] | None = None) -> list[Any]:
        warn = lambda text: self.log("warning", message=text)  # noqa: E731
        keep = PartialPass(self.directory.checkpoints, self.chunks, jobs, ids, warn)
        tell = lambda done, of: self.log("progress", chunks=done, of=of)  # noqa: E731
        return self.engine.sum_over(self.chunks, jobs, ids, keep, tell)
