"""The state of one restart: a value that each pass replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.em.folds import Fold
from pipeline.models.base import Model
from pipeline.models.stats import Partial


class Entry(NamedTuple):
    """What one iteration left behind: a pass over all rows, or a sweep through the blocks, at its last one.

    objective : at the E-step, what the iterations raise (K-means: minus the inertia), total nats; NaN for stepwise sweeps
    log_likelihood, entropy : at the E-step, total nats; NaN for K-means, and where blocks had different parameters
    lower_bound : F(q_t, theta_{t+1}), after the M-step; NaN for K-means
    n_effective : (k,) soft counts at the E-step.  rows : read since the entry before, those of refused leaps included
    phase : em, squarem (the E-step was at the end of a leap), incremental or stepwise
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
    fold : what is kept between passes, None before the first.  read : rows read since the last entry of history.
    bound : free energy + log prior after the last M-step, total nats; -inf where it is not known.
    stop_reason : why it stopped, None while it goes on.  final : the E-step of the stored parameters.
    rungs : of the search that found its start (em/search.py).  lengths : of the messages by number of components, where
    these were annihilated (em/annihilation.py).
    """

    restart: int
    model: Model
    params: Any
    history: tuple[Entry, ...] = ()
    resets: Array | None = None
    settled: bool = True
    label_key: int | None = None
    fold: Fold | None = None
    read: int = 0
    bound: float = -np.inf
    stop_reason: str | None = None
    final: Partial | None = None
    candidate: int = 0
    refit: bool = False
    rungs: tuple[Any, ...] = ()
    lengths: tuple[tuple[int, float], ...] = ()

    @property
    def objective(self) -> float:
        """That of the stored parameters once finished, else of the last E-step where it was known; -inf before."""
        if self.final is not None:
            return self.model.objective(self.final.stats, self.params)
        known = (entry.objective for entry in reversed(self.history) if not np.isnan(entry.objective))
        return next(known, -np.inf)

    @property
    def log_likelihood(self) -> float:
        """Total nats, of the stored parameters once finished, else of the last E-step; mixtures only."""
        if self.final is not None:
            return float(self.final.stats.log_likelihood)
        return self.history[-1].log_likelihood if self.history else np.nan
