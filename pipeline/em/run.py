"""The state of one restart: a value that each pass replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.models.base import Model
from pipeline.models.stats import Array, Partial


class Entry(NamedTuple):
    """What one iteration left behind.

    objective : at the E-step, what the iterations raise (K-means: minus the inertia), total nats
    log_likelihood, entropy : at the E-step, total nats; NaN for K-means
    lower_bound : F(q_t, theta_{t+1}), after the M-step; NaN for K-means
    n_effective : (k,) soft counts at the E-step.  rows : rows read.  phase : which part of the fit this was
    fisher_norm : length of the M-step, sqrt(nats per row), 0 exactly where EM moves nothing
    rate : of that length to the one before; left : nats per row still to gain, by Aitken; NaN while unknown, and for K-means
    """

    objective: float
    log_likelihood: float
    entropy: float
    lower_bound: float
    n_effective: Array
    rows: int
    phase: str
    fisher_norm: float
    rate: float
    left: float


@dataclass(frozen=True)
class Run:
    """One restart of one candidate: its model, parameters and history so far.

    candidate : which of the models to choose from.  refit : the chosen one once more, on the held-out rows as well.
    resets : (k,) how often each component was reset.  settled : no reset in the last iteration.
    label_key : key of the last hard labels (K-means), None before the first pass.
    stop_reason : why it stopped, None while it goes on.  final : the E-step of the stored parameters.
    rungs : of the search that found its start (em/search.py).
    """

    restart: int
    model: Model
    params: Any
    history: tuple[Entry, ...] = ()
    resets: Array | None = None
    settled: bool = True
    label_key: int | None = None
    stop_reason: str | None = None
    final: Partial | None = None
    candidate: int = 0
    refit: bool = False
    rungs: tuple[Any, ...] = ()

    @property
    def objective(self) -> float:
        """That of the stored parameters once finished, else of the last E-step; -inf before the first."""
        if self.final is not None:
            return self.model.objective(self.final.stats, self.params)
        return self.history[-1].objective if self.history else -np.inf

    @property
    def log_likelihood(self) -> float:
        """Total nats, of the stored parameters once finished, else of the last E-step; mixtures only."""
        return float(self.final.stats.log_likelihood) if self.final is not None else self.history[-1].log_likelihood
