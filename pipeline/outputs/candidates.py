"""The choice among finished candidates: a table of criteria, the best of them, and the others in candidates.zarr.

A group of candidates.zarr has the layout of model.zarr and is named for its model: k10-full, or k10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.em.run import Run
from pipeline.models.clusters import ClusterModel as Model
from pipeline.outputs.model_store import best_run, criteria, held_out, restarts

_SIGN = {"bic": 1, "aic": 1, "icl": 1, "heldout": -1}  # of what is to be low


@dataclass(frozen=True)
class Choice:
    """restarts : all runs of each candidate.  table : what is said of the best of them.  chosen : which candidate."""

    restarts: list[list[Run]]
    table: list[dict[str, Any]]
    chosen: int

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The table where there was something to choose or something held out, else nothing."""
        return self.table if len(self.table) > 1 or "heldout" in self.table[0] else []

    def refit(self) -> Run:
        """The chosen model, to go on from where it stopped with the rows that were held out as well."""
        run = best_run(self.restarts[self.chosen])
        return Run(run.restart, run.model, run.params, candidate=run.candidate, refit=True)


def choose(runs: Sequence[Run], criterion: str, total: float) -> Choice:
    """The candidate that a criterion prefers, ties to the first; of each candidate its best restart stands.

    One with a collapsed component is chosen only where all have some: the highest likelihoods are degenerate ones.
    runs : finished, of all candidates in order.  total : sum of the weights that they were fitted to.
    """
    by_candidate = [list(group) for _, group in groupby(runs, key=lambda run: run.candidate)]
    table = [_entry(best_run(group), group, total) for group in by_candidate]
    # K-means has no criterion, and one candidate only.
    rank = [(entry["collapsed"] > 0, _SIGN[criterion] * entry.get(criterion, 0.0)) for entry in table]
    chosen = min(range(len(table)), key=rank.__getitem__)
    table = [{**entry, "criterion": criterion, "chosen": i == chosen} for i, entry in enumerate(table)]
    return Choice(by_candidate, table, chosen)


def _entry(run: Run, group: Sequence[Run], total: float) -> dict[str, Any]:
    model, final = run.model, run.final
    assert final is not None
    entry: dict[str, Any] = {"name": name_of(model), "n_components": model.n_components}
    component = getattr(model, "component", None)
    if hasattr(component, "covariance_type"):
        entry["covariance_type"] = component.covariance_type
    entry |= criteria(model, final.evidence, total)
    if "held_out" in final.attached:
        entry |= held_out(final.attached["held_out"])
    ended = {"n_iter": len(run.history), "stop_reason": run.stop_reason, "restarts": restarts(group, run)}
    return {**entry, "total_weight": total, "collapsed": _collapsed(run), **ended}


def _collapsed(run: Run) -> int:
    """How many components a finished run ended with that are collapsed."""
    assert run.final is not None
    return len(run.model.collapsed(run.params, run.model.counts(run.final.stats)))


def name_of(model: Model) -> str:
    """What a candidate is called: k10-full, or k10 where there are no covariances."""
    return candidate_name(model.n_components, getattr(getattr(model, "component", None), "covariance_type", None))


def candidate_name(n_components: int, covariance_type: str | None) -> str:
    """The same, where there are numbers and no model."""
    return f"k{n_components}-{covariance_type}" if covariance_type else f"k{n_components}"
