"""The state of a job between two passes, as arrays and facts of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.arrays.packing import pack, unpack
from pipeline.data.chunks import Chunks
from pipeline.data.profile import DataSummary
from pipeline.em.run import Run
from pipeline.errors import StorageError, as_written
from pipeline.models.base import LatentModel
from pipeline.models.clusters import ClusterModel
from pipeline.outputs.checkpoint import State, generations, read

LAYOUT = 5  # of checkpoints; raised when what they hold is laid out in another way


def pack_state(summary: DataSummary, runs: Sequence[Run], computed: Mapping[str, Any]) -> State:
    """Return all that resuming needs, and nothing that depends on when or where the job ran.

    computed : what a resumed job must compute too, as plain values.
    """
    packed = pack({"summary": summary, "runs": [_plain(run) for run in runs]})
    return State(packed.arrays, {"layout": LAYOUT, "computed": computed, "state": packed.structure})


def _plain(run: Run) -> dict[str, Any]:
    """A run by its fields, with parameters by name. The E-step of final parameters is computed again."""
    fields = {name: value for name, value in vars(run).items() if name not in ("model", "params", "final")}
    return {**fields, "params": run.model.arrays(run.params)}


def as_read_before(chunks: Chunks, checkpoints: Path, warn: Callable[[str], None]) -> Chunks:
    """Return the chunks, each of which must be as the run has read it: the newest checkpoint that can be read says how.

    warn : called with a sentence if there are checkpoints, and none can be read.
    """
    found = generations(checkpoints)
    for path in reversed(found):
        with suppress(StorageError):
            summary: DataSummary = _content(read(path))["summary"]
            return chunks.compared(summary.checksums)
    if found:
        warn(f"{checkpoints}: no checkpoint can be read, so nothing says whether each chunk is as the run has read it")
    return chunks


@as_written("checkpoint")
def unpack_state(state: State, models: Any) -> tuple[DataSummary, list[Run]]:
    """Return the profile's statistics and the restarts of all candidates; finished ones are evaluated again.

    models : maps the statistics to the model of each candidate.
    Raises StorageError for the state of another version.
    """
    found = _content(state)
    summary = found["summary"]
    by_candidate: Sequence[LatentModel] = models(summary) if found["runs"] else []
    return summary, [_run(fields, by_candidate[fields["candidate"]]) for fields in found["runs"]]


def _content(state: State) -> dict[str, Any]:
    """What `pack_state` has packed."""
    if state.facts.get("layout") != LAYOUT:
        raise StorageError(
            f"checkpoint: got layout {state.facts.get('layout', 1)}, expected {LAYOUT}: another version of em-pipeline wrote "
            "it. Resume with that version, or start again with `em-pipeline run --overwrite`."
        )
    with as_written("checkpoint"):
        found: dict[str, Any] = unpack(state.facts["state"], state.arrays)
        if not isinstance(found["summary"], DataSummary):
            raise TypeError(f"got {type(found['summary']).__name__} for the profile")
        return found


def _run(fields: dict[str, Any], model: LatentModel) -> Run:
    params = fields.pop("params")
    if isinstance(model, ClusterModel):  # some components may have been pruned
        model = model.with_components(len(params[model.location]))
    return Run(model=model, params=model.params_from_arrays(params), **fields)
