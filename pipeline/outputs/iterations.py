"""Parameters of chosen iterations, to be looked at or replayed: each a small immutable checkpoint of its own.

`iterations/k10-full-0/gen-000003` has those of restart 0 after three iterations, `k10-full-0-refit` those of the chosen
model's refit; components are in the order that they had then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.em.run import Run
from pipeline.outputs import checkpoint
from pipeline.outputs.candidates import name_of


def folder_of(folder: Path, name: str, restart: int, refit: bool) -> Path:
    """Where the iterations of one restart of the candidate of this name are kept."""
    return folder / f"{name}-{restart}{'-refit' if refit else ''}"


def kept_iterations(folder: Path) -> dict[int, Path]:
    """What is kept of one restart: iteration to its parameters, for `checkpoint.read`, in order; nothing where none is."""
    return {checkpoint.number(path): path for path in checkpoint.generations(folder)}


def keep_iterations(
    folder: Path, before: Sequence[Run | None], after: Sequence[Run], wanted: Literal["all"] | Sequence[int]
) -> None:
    """Keep the parameters of each run that has come to a wanted iteration. before : the runs a pass ago, None at the start.

    A job that goes on from before writes the same bytes again. Raises StorageError when the disk does not take it.
    """
    for old, run in zip(before, after, strict=True):
        t = len(run.history)
        if (old is None or len(old.history) < t) and (wanted == "all" or t in wanted):
            facts = {"candidate": run.candidate, "restart": run.restart, "refit": run.refit, "iteration": t}
            place = folder_of(folder, name_of(run.model), run.restart, run.refit)
            checkpoint.save(place, t, checkpoint.State(run.model.arrays(run.params), facts), keep=None)
