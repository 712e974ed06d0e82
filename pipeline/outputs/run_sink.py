"""The sink of a fit that writes a run directory: events, checkpoints, stored iterations, unfinished passes."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Output
from pipeline.data.chunks import Chunks
from pipeline.data.profile import DataSummary
from pipeline.em.run import Run
from pipeline.outputs import checkpoint, partial
from pipeline.outputs.events import EventLog
from pipeline.outputs.iterations import store_iterations
from pipeline.outputs.partial import PartialPass
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.state import pack_state

CHECKPOINT_SECONDS = 10.0


class RunSink:
    """Stores the state of a fit in its run directory.

    Parameters
    ----------
    directory : RunDirectory
        Locked by the caller.
    log : EventLog
    output : Output
    computed : mapping
        What is computed, as plain values; every checkpoint stores it.
    generation : int
        The newest checkpoint, -1 for none.
    """

    listens = True
    stops = False

    def __init__(
        self, directory: RunDirectory, log: EventLog, output: Output, computed: Mapping[str, Any], generation: int = -1
    ) -> None:
        self.directory, self.log, self._output, self._computed = directory, log, output, computed
        self._generation, self._saved_at = generation, time.perf_counter()
        self._saved: list[weakref.ref[Run]] = []  # so that they are freed with the pass
        self._last: Sequence[Run] | None = None

    def progress(self, done: int, of: int) -> None:
        """Report how many chunks of a long pass are done."""
        self.log("progress", chunks=done, of=of)

    def unfinished(self, chunks: Chunks, jobs: Sequence[Any], ids: Sequence[int] | None) -> PartialPass:
        """Return where the finished part of a long pass is stored."""
        warn = lambda text: self.log("warning", message=text)  # noqa: E731
        return PartialPass(self.directory.checkpoints, chunks, jobs, ids, warn)

    def save(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        """Write the next checkpoint, and remove what passes stored before it."""
        self._write(summary, runs)
        partial.forget(self.directory.checkpoints)

    def passed(self, summary: DataSummary, before: Sequence[Run], runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Write wanted iterations, and a checkpoint if the last one is old enough."""
        folder, wanted = self.directory.iterations, self._output.keep_iterations
        if before is not self._last:  # a fit begins
            store_iterations(folder, [None] * len(before), before, wanted)
        store_iterations(folder, before, runs, wanted)
        self._last = runs
        old = time.perf_counter() - self._saved_at > CHECKPOINT_SECONDS
        if self._generation == 1 or old or all(run.stop_reason for run in runs):
            self._checkpoint(summary, runs, resting)
            partial.forget(self.directory.checkpoints)

    def interrupted(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        """Write a checkpoint, unless the newest one has these runs. What the pass has stored is still needed."""
        if [id(saved()) for saved in self._saved] != [id(run) for run in runs]:
            self._checkpoint(summary, runs, resting)

    def _checkpoint(self, summary: DataSummary, runs: Sequence[Run], resting: Sequence[Run]) -> None:
        began = time.perf_counter()
        self._write(summary, [*resting, *runs])
        self._saved = [weakref.ref(run) for run in runs]
        self.log("checkpoint", generation=self._generation, seconds=time.perf_counter() - began)

    def _write(self, summary: DataSummary, runs: Sequence[Run]) -> None:
        self.directory.refuse_if_lost()
        self._generation += 1
        state = pack_state(summary, runs, self._computed)
        checkpoint.save(self.directory.checkpoints, self._generation, state, self._output.keep_checkpoints)
        self._saved_at = time.perf_counter()
