"""Parameters of chosen iterations: each is a small immutable checkpoint.

`iterations/k10-full-0/gen-000003` has those of restart 0 after three iterations, `k10-full-0-refit` those of the chosen
model's refit; components are in the order of that iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.em.run import Run
from pipeline.outputs import checkpoint


def folder_of(folder: Path, label: str, restart: int, refit: bool) -> Path:
    """Return the folder of the iterations of one restart of a candidate."""
    return folder / f"{label}-{restart}{'-refit' if refit else ''}"


def stored_iterations(folder: Path) -> dict[int, Path]:
    """Return the stored iterations of one restart in order: number to path, for `checkpoint.read`."""
    return {checkpoint.number(path): path for path in checkpoint.generations(folder)}


def store_iterations(
    folder: Path, before: Sequence[Run | None], after: Sequence[Run], wanted: Literal["all"] | Sequence[int]
) -> None:
    """Store the parameters of each run that has reached a wanted iteration. before : the runs a pass ago, None at the start.

    A resumed job writes the same bytes again. Raises StorageError if they cannot be written.
    """
    for old, run in zip(before, after, strict=True):
        t = len(run.history)
        if (old is None or len(old.history) < t) and (wanted == "all" or t in wanted):
            facts = {"candidate": run.candidate, "restart": run.restart, "refit": run.refit, "iteration": t}
            place = folder_of(folder, run.model.label, run.restart, run.refit)
            checkpoint.save(place, t, checkpoint.State(run.model.arrays(run.params), facts), keep=None)
