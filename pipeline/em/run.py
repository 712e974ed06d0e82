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
    """One iteration: a pass over all rows, or an epoch of passes over the blocks, at its last one.

    Attributes
    ----------
    objective : float
        At the E-step, what the iterations raise (K-means: minus the inertia), total nats.
    weight : float
        The sum of the rows' weights, which totals are divided by to be per row.
    log_likelihood, entropy : float
        At the E-step, total nats; NaN where the model does not know it, and where blocks had different parameters.
    lower_bound : float
        F(q_t, theta_{t+1}), after the M-step; NaN for models without a bound.
    traced : mapping of str to array
        The model's own series, such as n_effective (k,), at the E-step.
    rows : int
        Rows read since the entry before, those of rejected steps included.
    phase : str
        em, squarem (the E-step was at the end of an extrapolation step) or incremental.
    fisher_norm : float
        Length of the M-step, sqrt(nats per row), 0 exactly where EM moves nothing.
    rate : float
        Of that length to the one before; NaN while it is not known.
    remaining_gain : float
        Nats per row still to gain, by Aitken; NaN while it is not known.
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


@dataclass(frozen=True)
class Run:
    """One restart of one candidate: its model, parameters and history so far.

    Attributes
    ----------
    restart, candidate : int
        Which restart of which of the models to choose from.
    model : LatentModel
    params : object
        Its parameters, of the newest M-step.
    history : tuple of Entry
    resets : tuple of int
        Every component that was reset, once for each time.
    settled : bool
        Whether nothing was reset in the last iteration.
    label_hash : int or None
        Hash of the last hard labels; None where there are none.
    accumulator : Accumulator or None
        Statistics stored between passes; None before the first.
    read : int
        Rows read since the last entry of the history.
    bound : float
        Free energy + log prior after the last M-step, total nats; -inf where it is not known.
    stop_reason : str or None
        Why it stopped; None while it goes on.
    final : Partial or None
        The E-step of the final parameters.
    refit : bool
        Whether this is the chosen model once more, on the held-out rows as well.
    levels : tuple
        Of the search that found its start (em/search.py).
    lengths : tuple of (int, float)
        Message lengths by number of components, where components were pruned (em/pruning.py).
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
        """That of the final parameters once finished, else of the last E-step where it was known; -inf before."""
        if self.final is not None:
            return self.model.objective(self.final.totals, self.params)
        known = (entry.objective for entry in reversed(self.history) if not np.isnan(entry.objective))
        return next(known, -np.inf)

    @property
    def log_likelihood(self) -> float:
        """Total nats, of the final parameters once finished, else of the last E-step; NaN where it is not known."""
        if self.final is None:
            return self.history[-1].log_likelihood if self.history else np.nan
        found = self.final.evidence.log_likelihood
        return np.nan if found is None else float(found)
