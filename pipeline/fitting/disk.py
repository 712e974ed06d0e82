"""The disk space of a run, known before its first pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from pipeline.em.accumulate import n_stored
from pipeline.errors import StorageError
from pipeline.fitting.plan import JobPlan
from pipeline.models import schema
from pipeline.outputs.labels import row_bytes
from pipeline.outputs.run_directory import RunDirectory

SLACK = 16 * 2**20  # the report, the log, and what a file takes beyond its bytes
SERIES = 9  # numbers that the history has of every iteration


class Disk(NamedTuple):
    """Bytes before compression. checkpoints : those that are stored, and one that is being written."""

    checkpoints: int
    iterations: int
    models: int
    labels: int

    @property
    def total(self) -> int:
        """All of it, and SLACK."""
        return sum(self) + SLACK


def disk_plan(plan: JobPlan) -> Disk:
    """Plan the disk space of a run."""
    config, models, d = plan.config, plan.models, plan.n_features
    fit, output = config.fit, config.output
    max_iter, n_init = fit.max_iter or 0, fit.n_init
    square = 2 * d * d if config.preprocess or config.model.second_moments == "matrix" else 2 * d
    statistics = sum(model.statistics_bytes() for model in models)
    taken_over = 0 if config.earlier_run is None else 2 * statistics + 16 * d * len(models)
    summary_bytes = 8 * (square + max(plan.sample_rows) * (d + 4)) + taken_over
    parameters = [schema.n_bytes(model.fields, model.sizes) for model in models]
    traced = [sum(model.sizes[dim] for dims in model.traced.values() for dim in dims) for model in models]
    history = sum(8 * max_iter * (SERIES + each) for each in traced)
    state = summary_bytes + n_init * ((1 + n_stored(fit.method, models[0])) * sum(parameters) + history)
    wanted = output.keep_iterations
    iterations = max_iter + 1 if wanted == "all" else sum(t <= max_iter for t in set(wanted))
    labels = plan.n_rows * max(row_bytes(model, output.top_k) for model in models)
    whole = sum(parameters) + statistics + history + len(parameters) * summary_bytes
    return Disk(
        checkpoints=(output.keep_checkpoints + 1) * state,
        iterations=iterations * (2 if config.select.heldout > 0 else 1) * n_init * sum(parameters),
        models=2 * whole,  # before another is given up
        labels=labels if output.labels else 0,
    )


def refuse_full(directory: RunDirectory, planned: Disk) -> None:
    """Raise StorageError if there is too little space. What is in the directory will be replaced, or is included."""
    place = next(path for path in (directory.path, *directory.path.absolute().parents) if path.is_dir())
    present = sum(_stored(path) for path in directory.parts if path.exists())
    room = shutil.disk_usage(place).free + present
    if planned.total > room:
        parts = ", ".join(f"{size / 2**20:.0f} MiB of {name}" for name, size in planned._asdict().items() if size)
        raise StorageError(
            f"output {directory.path}: has room for {room / 2**20:.0f} MiB, the run may need {planned.total / 2**20:.0f} MiB "
            f"({parts}). Make room, choose another --output, or lower output.keep_checkpoints, output.keep_iterations or "
            "output.top_k."
        )


def _stored(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
