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


def folder_of(folder: Path, label: str, restart: int, refit: bool) -> Path:
    """The folder of the iterations of one restart of the candidate with this label."""
    return folder / f"{label}-{restart}{'-refit' if refit else ''}"


def stored_iterations(folder: Path) -> dict[int, Path]:
    """The iterations of one restart: number to parameters, for `checkpoint.read`, in order; empty where there are none."""
    return {checkpoint.number(path): path for path in checkpoint.generations(folder)}


def store_iterations(
    folder: Path, before: Sequence[Run | None], after: Sequence[Run], wanted: Literal["all"] | Sequence[int]
) -> None:
    """Store the parameters of each run that has come to a wanted iteration. before : the runs a pass ago, None at the start.

    A resumed job writes the same bytes again. Raises StorageError when the disk does not take it.
    """
    for old, run in zip(before, after, strict=True):
        t = len(run.history)
        if (old is None or len(old.history) < t) and (wanted == "all" or t in wanted):
            facts = {"candidate": run.candidate, "restart": run.restart, "refit": run.refit, "iteration": t}
            place = folder_of(folder, run.model.label, run.restart, run.refit)
            checkpoint.save(place, t, checkpoint.State(run.model.arrays(run.params), facts), keep=None)
