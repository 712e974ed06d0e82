"""A running command, and what several commands do with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pipeline import provenance
from pipeline.data.chunks import Chunks
from pipeline.data.units import UnitSource
from pipeline.em.heldout import Units
from pipeline.engine.cluster import open_engine
from pipeline.engine.memory import PeakMemory, Plan
from pipeline.engine.passes import Engine
from pipeline.fitting.driver import Driver
from pipeline.fitting.plan import JobPlan
from pipeline.jobconfig import Config
from pipeline.models.base import LatentModel
from pipeline.outputs.events import EventLog
from pipeline.outputs.labels import LabelBlock, refuse_taken, write_labels
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.run_sink import RunSink
from pipeline.outputs.written_back import refuse_write_back


@dataclass(frozen=True)
class Job:
    """A running command: its plan, rows and engine, and the run directory that it writes."""

    plan: JobPlan
    chunks: Chunks
    engine: Engine
    log: EventLog
    directory: RunDirectory
    memory: PeakMemory
    began: float

    def __post_init__(self) -> None:
        self.engine.report_to(self.log)

    @property
    def config(self) -> Config:
        """The config of the job."""
        return self.plan.config

    def driver(self, generation: int = -1) -> Driver:
        """Return the driver of the fit, which writes the run directory. generation : the newest checkpoint."""
        sink = RunSink(self.directory, self.log, self.config.output, provenance.computed(self.config), generation)
        return Driver(self.config, self.chunks, self.engine, self.plan, sink)


def engine_for(config: Config, plan: Plan) -> AbstractContextManager[Engine]:
    """Return the engine with the number of tasks of the memory plan."""
    return open_engine(config.engine, plan.workers, plan.ahead, plan.spare)


def refuse_labels(plan: JobPlan, chunks: Chunks) -> None:
    """Raise InputError, before a chunk is read, where labels are asked for that could not be written."""
    output = plan.config.output
    refuse_write_back(plan.config)
    if output.labels:
        refuse_taken(chunks.source.rows_on()[0], plan.models[0].row_arrays(output.top_k), "labels.zarr")


def write_labels_of(job: Job, model: LatentModel, params: Any, own: bool) -> None:
    """Write labels.zarr of the rows of a job. own : whether they are those of the run."""
    began = time.perf_counter()
    progress: Callable[[int], None] = lambda rows: job.log("labelled", rows=rows, of=job.chunks.n_rows)  # noqa: E731
    top_k = min(job.config.output.top_k, model.sizes.get("component", 0))
    config, source = job.config, job.chunks.source
    share = 0.0 if config.select.refit or not own else config.select.heldout
    units = Units.of(source, share, config.fit.random_state)
    task = LabelBlock(
        job.chunks, model, params, top_k, config.data.bad_rows != "error", config.output.silhouette, units
    )
    truth = config.data.open_column("labels_true", source.inner if isinstance(source, UnitSource) else source)
    found = write_labels(job.directory.labels, task, job.engine, progress, truth)
    said = {name: value for name, value in found.items() if isinstance(value, float)}
    job.log("labels", rows=job.chunks.n_rows, seconds=time.perf_counter() - began, **said)
