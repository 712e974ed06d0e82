"""The state of a job between two passes, as the arrays and facts of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.data.preprocess import Affine
from pipeline.data.profile import DataSummary as Known
from pipeline.em.folds import Fold
from pipeline.em.run import Entry, Run
from pipeline.em.search import Rung
from pipeline.models.base import Mixture, Model
from pipeline.models.stats import Array, LowestRows, Rows
from pipeline.outputs.checkpoint import State

_SERIES = (
    "objective",
    "log_likelihood",
    "entropy",
    "lower_bound",
    "n_effective",
    "rows",
    "fisher_norm",
    "rate",
    "left",
)


def pack(known: Known, runs: Sequence[Run]) -> State:
    """Everything that resuming needs; nothing that depends on when or where it ran."""
    arrays: dict[str, Array] = {"known/mean": known.mean, "known/covariance": known.covariance}
    arrays |= {f"known/sample/{name}": getattr(known.sample, name) for name in ("score", "row", "weight", "label")}
    arrays |= {f"known/sample/x/{name}": value for name, value in _rows_to_arrays(known.sample.x).items()}
    if known.affine is not None:
        arrays |= {"known/offset": known.affine.offset, "known/matrix": known.affine.matrix}
    facts: dict[str, Any] = {
        "known": {"n_rows": known.n_rows, "n_bad": known.n_bad, "total": known.total, "limit": known.sample.limit},
        "runs": [],
    }
    for i, run in enumerate(runs):
        at = f"runs/{i}"
        arrays |= {f"{at}/params/{name}": value for name, value in run.params.arrays().items()}
        if run.resets is not None:
            arrays[f"{at}/resets"] = run.resets
        if run.history:
            arrays |= {f"{at}/history/{s}": np.array([getattr(entry, s) for entry in run.history]) for s in _SERIES}
        arrays[f"{at}/bound"] = np.array(run.bound)
        fold = run.fold
        if fold is not None and fold.kept:
            named = [vars(stats) for blocks in (*fold.kept, fold.back) for stats in blocks]
            arrays |= {f"{at}/fold/{name}": np.stack([fields[name] for fields in named]) for name in named[0]}
        facts["runs"].append(
            {
                "fold": None if fold is None else _fold_facts(fold),
                "read": run.read,
                "restart": run.restart,
                "candidate": run.candidate,
                "refit": run.refit,
                "settled": run.settled,
                # 64 bits do not fit JSON's numbers
                "label_key": None if run.label_key is None else str(run.label_key),
                "stop_reason": run.stop_reason,
                "rungs": [list(rung) for rung in run.rungs],
                "lengths": [list(length) for length in run.lengths],
                "phases": [entry.phase for entry in run.history],
            }
        )
    return State(arrays, facts)


def unpack_known(state: State) -> Known:
    """What was known of the rows."""
    arrays, facts = state.arrays, state.facts["known"]
    affine = Affine(arrays["known/offset"], arrays["known/matrix"]) if "known/offset" in arrays else None
    score, row, weight, label = (arrays[f"known/sample/{name}"] for name in ("score", "row", "weight", "label"))
    x = _rows_from_arrays({n.rpartition("/")[2]: a for n, a in arrays.items() if n.startswith("known/sample/x/")})
    sample = LowestRows(facts["limit"], score, row, x, weight, label)
    moments = arrays["known/mean"], arrays["known/covariance"]
    return Known(affine, *moments, sample, facts["n_rows"], facts["n_bad"], facts["total"])


def unpack_runs(state: State, models: Sequence[Model]) -> list[Run]:
    """The restarts of all candidates, ready to go on; finished ones are evaluated again, which costs no extra read.

    models : one for each candidate.
    """
    return [_unpack_run(state, models, facts, f"runs/{i}") for i, facts in enumerate(state.facts["runs"])]


def _unpack_run(state: State, models: Sequence[Model], facts: dict[str, Any], at: str) -> Run:
    candidate = facts["candidate"]
    model = models[candidate]
    named = {n.rpartition("/")[2]: a for n, a in state.arrays.items() if n.startswith(f"{at}/params/")}
    if isinstance(model, Mixture) and len(named["weights"]) != model.n_components:  # some were annihilated
        model = replace(model, n_components=len(named["weights"]))  # type: ignore[type-var]
    history = tuple(_entry(state, at, t, phase) for t, phase in enumerate(facts["phases"]))
    return Run(
        fold=_unpack_fold(state, model, at, facts["fold"]),
        read=facts["read"],
        bound=state.arrays[f"{at}/bound"].item(),
        restart=facts["restart"],
        model=model,
        params=model.params_from_arrays(named),
        history=history,
        resets=state.arrays.get(f"{at}/resets"),
        settled=facts["settled"],
        label_key=None if facts["label_key"] is None else int(facts["label_key"]),
        stop_reason=facts["stop_reason"],
        rungs=tuple(Rung(*rung) for rung in facts["rungs"]),
        lengths=tuple((k, length) for k, length in facts.get("lengths", ())),
        candidate=candidate,
        refit=facts["refit"],
    )


def _fold_facts(fold: Fold) -> dict[str, Any]:
    """Everything but the statistics. kept, back : of how many blocks."""
    return {"kind": fold.kind, "steps": fold.steps, "kept": [*map(len, fold.kept)], "back": len(fold.back)}


def _unpack_fold(state: State, model: Model, at: str, facts: dict[str, Any] | None) -> Fold | None:
    if facts is None:
        return None
    path = f"{at}/fold/"
    named = {n.removeprefix(path): a for n, a in state.arrays.items() if n.startswith(path)}
    found, start = [], 0
    for size in (*facts["kept"], facts["back"]):
        blocks = []
        for i in range(start, start + size):
            assert isinstance(model, Mixture)
            blocks.append(model.stats_from_arrays({name: array[i] for name, array in named.items()}))
        found.append(tuple(blocks))
        start += size
    return Fold(facts["kind"], facts["steps"], tuple(found[:-1]), found[-1])


def _entry(state: State, at: str, t: int, phase: str) -> Entry:
    values = {name: state.arrays[f"{at}/history/{name}"][t] for name in _SERIES}
    scalars = {name: value.item() for name, value in values.items() if name != "n_effective"}
    return Entry(**scalars, n_effective=values["n_effective"], phase=phase)


def _rows_to_arrays(x: Rows) -> dict[str, Array]:
    if sp.issparse(x):
        return {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape)}
    return {"dense": x}


def _rows_from_arrays(arrays: dict[str, Array]) -> Rows:
    if "dense" in arrays:
        return arrays["dense"]
    return sp.csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))
