"""How much room a run will take on the disk, known before its first pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from pipeline.data.chunks import Chunks
from pipeline.em.folds import KEPT
from pipeline.errors import StorageError
from pipeline.jobconfig import Config
from pipeline.outputs.run_directory import RunDirectory

SLACK = 16 * 2**20  # the report, the log, and what a file takes beyond its bytes


class Disk(NamedTuple):
    """Bytes before compression. checkpoints : all that are kept, and one that is being written."""

    checkpoints: int
    iterations: int
    models: int
    labels: int

    @property
    def total(self) -> int:
        """All of it, and something for the rest."""
        return sum(self) + SLACK


def disk_plan(config: Config, chunks: Chunks, sample_rows: int) -> Disk:
    """What a run will write. sample_rows : rows that its profile keeps."""
    model, output, d = config.model, config.output, chunks.n_features
    runs, limit = config.fit.n_init, config.fit.max_iter or 0
    sizes = [candidate.parameter_bytes(d) for candidate in model.candidates()]
    history = sum(8 * limit * (candidate.n_components[0] + 9) for candidate in model.candidates())
    known = 8 * (2 * d * d if config.preprocess or model.second_moments == "full" else 2 * d) + 8 * sample_rows * (
        d + 4
    )
    state = known + runs * ((1 + KEPT[config.fit.method]) * sum(sizes) + history)
    kept = limit + 1 if output.keep_iterations == "all" else sum(t <= limit for t in set(output.keep_iterations))
    refit = 2 if config.select.heldout else 1
    return Disk(
        checkpoints=(output.keep_checkpoints + 1) * state,
        iterations=kept * refit * runs * sum(sizes),
        models=2 * (sum(sizes) + history + len(sizes) * known),  # whole under one name before another is given up
        labels=chunks.n_rows * (12 + 8 * output.top_k) if output.labels else 0,
    )


def refuse_full(directory: RunDirectory, planned: Disk) -> None:
    """Raise StorageError unless there is room; what is in the directory will be replaced, or is a part of it."""
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
