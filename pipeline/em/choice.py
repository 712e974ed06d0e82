"""The choice among finished runs: the best restart of each candidate, a table of criteria, and the chosen candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.em.heldout import HeldOut
from pipeline.em.run import Run
from pipeline.models.base import Evidence, LatentModel
from pipeline.models.clusters import ClusterModel

# Of what is to be low.
_SIGN = {"bic": 1, "aic": 1, "icl": 1, "heldout": -1, "silhouette": -1, "davies_bouldin": 1, "calinski_harabasz": -1}


def best_run(runs: Sequence[Run]) -> Run:
    """Return the restart with the highest final objective; ties go to the first."""
    return max(runs, key=lambda run: run.objective)


def criteria(model: LatentModel, evidence: Evidence, total: float) -> dict[str, float]:
    """Return information criteria in nats, lower is better; n is the sum of weights. Empty without a likelihood.

    BIC = p log n - 2 log L [Schwarz 1978]; AIC = 2p - 2 log L [Akaike 1974]; ICL = BIC + 2 entropy of the labels [Biernacki
    et al. 2000]
    """
    if evidence.log_likelihood is None:
        return {}
    p, log_likelihood = model.n_free_parameters(), float(evidence.log_likelihood)
    bic = p * float(np.log(total)) - 2.0 * log_likelihood
    found = {"final_log_likelihood": log_likelihood, "aic": 2.0 * p - 2.0 * log_likelihood, "bic": bic}
    if evidence.label_entropy is not None:
        found["icl"] = bic + 2.0 * float(evidence.label_entropy)
    return {**found, "n_free_parameters": p}


def held_out(rows: HeldOut) -> dict[str, float]:
    """Return the results on held-out rows.

    heldout : log-likelihood, nats per row; higher is better.  heldout_perplexity : of bags of words, exp(-nats per word), without
    the multinomial coefficients.
    """
    found = {
        "heldout": rows.log_likelihood / rows.weight if rows.weight else float("nan"),
        "heldout_weight": rows.weight,
    }
    if rows.words:
        assert rows.log_coefficient is not None
        found["heldout_perplexity"] = float(np.exp((rows.log_coefficient - rows.log_likelihood) / rows.words))
    return found


def restarts(runs: Sequence[Run], chosen: Run) -> list[dict[str, Any]]:
    """Return how each restart ended."""
    return [
        {
            "restart": run.restart,
            "objective": run.objective,
            "n_iter": len(run.history),
            "stop_reason": run.stop_reason,
            "chosen": run.restart == chosen.restart,
        }
        for run in runs
    ]


@dataclass(frozen=True)
class Choice:
    """restarts : all runs of each candidate.  table : the criteria of the best run of each.  chosen : index of the candidate."""

    restarts: list[list[Run]]
    table: list[dict[str, Any]]
    chosen: int

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The table if there was a choice or rows were held out, else empty."""
        return self.table if len(self.table) > 1 or "heldout" in self.table[0] else []

    @property
    def others(self) -> list[list[Run]]:
        """All runs of the candidates that were not chosen."""
        return [runs for i, runs in enumerate(self.restarts) if i != self.chosen]

    def refit(self) -> Run:
        """Return the chosen model as a run that goes on from its end, with the held-out rows too."""
        run = best_run(self.restarts[self.chosen])
        return Run(run.restart, run.model, run.params, candidate=run.candidate, refit=True)


def choose(runs: Sequence[Run], criterion: str, total: float) -> Choice:
    """Return the candidate with the best criterion, ties to the first; the best restart of each candidate counts.

    A candidate with a collapsed component is chosen only if all have one: the highest likelihoods are degenerate.

    Parameters
    ----------
    runs : sequence of Run
        Finished, of all candidates in order.
    criterion : str
        One of select.criterion.
    total : float
        Sum of the weights of the fitted rows.
    """
    by_candidate = [list(group) for _, group in groupby(runs, key=lambda run: run.candidate)]
    table = [_entry(best_run(group), group, total) for group in by_candidate]
    # One cluster has no separation. Where no entry has the criterion, there is one candidate only.
    rank = [
        (entry["collapsed"] > 0, _SIGN[criterion] * entry[criterion] if criterion in entry else np.inf)
        for entry in table
    ]
    chosen = min(range(len(table)), key=rank.__getitem__)
    table = [{**entry, "criterion": criterion, "chosen": i == chosen} for i, entry in enumerate(table)]
    return Choice(by_candidate, table, chosen)


def _entry(run: Run, group: Sequence[Run], total: float) -> dict[str, Any]:
    model, final = run.model, run.final
    assert final is not None
    entry: dict[str, Any] = {"name": model.label, **model.facts(), **criteria(model, final.evidence, total)}
    if final.evidence.log_likelihood is None:
        entry[f"final_{model.words.series}"] = run.reported
    if "held_out" in final.attached:
        entry |= held_out(final.attached["held_out"])
    if "separation" in final.attached:
        entry |= final.attached["separation"].measures(run.params.centers)
    collapsed = len(model.collapsed(run.params, model.counts(final.stats))) if isinstance(model, ClusterModel) else 0
    ended = {"n_iter": len(run.history), "stop_reason": run.stop_reason, "restarts": restarts(group, run)}
    return {**entry, "total_weight": total, "collapsed": collapsed, **ended}
