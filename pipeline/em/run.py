"""The state of one restart: a value that each pass replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.em.accumulate import Accumulator
from pipeline.models.base import LatentModel, Partial


@stored
class Entry(NamedTuple):
    """One iteration: a pass over all rows, or an epoch over the blocks.

    Attributes
    ----------
    objective : float
        At the E-step, total nats (K-means: minus the inertia).
    weight : float
        Sum of the rows' weights.
    log_likelihood, entropy : float
        At the E-step, total nats; NaN if the model does not know it, or if blocks had different parameters. A model that knows
        a bound only has it in place of the log-likelihood.
    lower_bound : float
        F(q_t, theta_{t+1}), after the M-step; NaN for models without a bound.
    traced : mapping of str to array
        The model's own series, such as n_effective (k,), at the E-step.
    rows : int
        Rows read since the entry before, including rejected steps.
    phase : str
        em, squarem (the E-step at the end of an extrapolation step) or incremental.
    fisher_norm : float
        Length of the M-step, sqrt(nats per row); 0 exactly where EM moves nothing.
    rate : float
        Ratio of this length to the one before; NaN if unknown.
    remaining_gain : float
        Aitken's estimate, nats per row; NaN if unknown.
    computed : float
        Share of the pairs of a row and a component whose density the E-step computed; NaN if it cannot leave any out.
    left_out : float
        The largest possible responsibility of the others.
    """

    objective: float
    weight: float
    log_likelihood: float
    entropy: float
    lower_bound: float
    traced: Mapping[str, Array]
    rows: int
    phase: str
    fisher_norm: float
    rate: float
    remaining_gain: float
    computed: float = np.nan
    left_out: float = 0.0


@dataclass(frozen=True)
class Run:
    """One restart of one candidate: its model, parameters and history.

    Attributes
    ----------
    restart, candidate : int
    model : LatentModel
    params : object
        After the newest M-step.
    history : tuple of Entry
    resets : tuple of int
        Components that were reset, once for each reset.
    settled : bool
        Whether nothing was reset in the last iteration.
    label_hash : int or None
        Of the last hard labels.
    accumulator : Accumulator or None
        Statistics between passes; None before the first.
    read : int
        Rows read since the last entry of the history.
    bound : float
        Free energy + log prior after the last M-step, total nats; -inf if unknown.
    stop_reason : str or None
        None until it stops.
    final : Partial or None
        The E-step of the final parameters.
    refit : bool
        Whether this is the fit of the chosen model to all rows, including held-out ones.
    levels : tuple
        Of the search for its start (em/search.py).
    lengths : tuple of (int, float)
        Message lengths by number of components, after pruning (em/pruning.py).
    """

    restart: int
    model: LatentModel
    params: Any
    history: tuple[Entry, ...] = ()
    resets: tuple[int, ...] = ()
    settled: bool = True
    label_hash: int | None = None
    accumulator: Accumulator | None = None
    read: int = 0
    bound: float = -np.inf
    stop_reason: str | None = None
    final: Partial | None = None
    candidate: int = 0
    refit: bool = False
    levels: tuple[Any, ...] = ()
    lengths: tuple[tuple[int, float], ...] = field(default=())

    @property
    def objective(self) -> float:
        """Objective of the final parameters, else of the last E-step where it was known, total nats; -inf before."""
        if self.final is not None:
            return self.model.objective(self.final.totals, self.params)
        known = (entry.objective for entry in reversed(self.history) if not np.isnan(entry.objective))
        return next(known, -np.inf)

    @property
    def reported(self) -> float:
        """What is reported of the final parameters, total: log-likelihood or the bound below it in nats, else the objective with its sign, such as the inertia."""
        assert self.final is not None, "the run is finished"
        found = self.model.reported(self.final.totals, self.params)
        return self.model.words.sign * (self.objective if found is None else found)

    @property
    def log_likelihood(self) -> float:
        """Log-likelihood (or the bound) of the final parameters, else of the last E-step, total nats; NaN if unknown."""
        if self.final is None:
            return self.history[-1].log_likelihood if self.history else np.nan
        found = self.model.reported(self.final.totals, self.params)
        return np.nan if found is None else float(found)
