"""The parts of a running job, as those that do a step of it are handed them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.data.chunks import Chunks
from pipeline.engine.memory import PeakMemory
from pipeline.engine.passes import Engine
from pipeline.outputs.events import EventLog
from pipeline.outputs.run_directory import RunDirectory


@dataclass(frozen=True)
class Job:
    """The parts of a running job."""

    config: Config
    directory: RunDirectory
    chunks: Chunks
    engine: Engine
    log: EventLog
    memory: PeakMemory
    began: float

    @property
    def pass_bytes(self) -> int:
        """Decoded bytes of one pass; for sparse rows those that are stored."""
        source = self.chunks.source
        if source.sparse:
            return sum(source.object_sizes())
        return source.n_rows * source.n_features * source.dtype.itemsize
