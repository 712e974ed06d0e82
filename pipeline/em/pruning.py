"""How many components, from more than enough: those that too few rows support are pruned, one at a time.

Each component has to pay for its T parameters: weights follow w_k ∝ max(0, N_k - T/2), and one that comes to 0 is gone. Where
that has settled, the message length

    L(K) = T/2 Σ_k log(n w_k / 12) + K/2 log(n / 12) + K (T + 1)/2 - log p(x)

says how good K components are; then the one that is least missed is left out, down to one. The shortest message wins.
[Figueiredo and Jain 2002, eq. 15-17; here all components move together, on rows in memory that stand for n. They leave out the
smallest one, which may be a cluster of its own while a larger one is shared by two: 2 of 10 data sets of 7 clusters then kept
9 and 12 of 12]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.em.moves import MemoryRows, RemovalCosts, only
from pipeline.models.base import EStep
from pipeline.models.mixture import Mixture

STEPS = 100  # of EM with one number of components, at most
TOL = 1e-5  # nats a row


class Pruned(NamedTuple):
    """The model and parameters of the shortest message. lengths : (components, nats) of all that settled, the most first."""

    model: Mixture
    params: Any
    lengths: list[tuple[int, float]]


def pruned(model: Mixture, params: Any, rows: MemoryRows, of: float) -> Pruned:
    """From the given components to as many as the rows support.

    of : total weight of all rows, which those in memory stand for.
    """
    total = float(rows.n_rows if rows.weight is None else rows.weight.sum())
    price = _price(model) / 2.0
    best, shortest, lengths = (model, params), np.inf, []
    while True:
        model, params, per_row = _settled(model, params, rows, price * total / of)
        length = _message_length(params.weights, price, of) - of * per_row
        lengths.append((model.n_components, float(length)))
        if length < shortest:
            best, shortest = (model, params), length
        if model.n_components == 1:
            return Pruned(*best, lengths)
        costs = rows.sum_over([RemovalCosts(model, params)])[0][0]
        model, params = only(model, params, np.delete(np.arange(model.n_components), costs.argmin()))


def _price(model: Mixture) -> int:
    """T, how many parameters one component has beside its weight."""
    return model.with_components(2).n_free_parameters() - model.with_components(1).n_free_parameters() - 1


def _message_length(weights: Array, price: float, of: float) -> float:
    """Nats of all but the rows themselves; `price` is T/2."""
    k = len(weights)
    return float(price * np.log(of * weights / 12.0).sum() + 0.5 * k * np.log(of / 12.0) + k * (price + 0.5))


def _settled(model: Mixture, params: Any, rows: MemoryRows, threshold: float) -> tuple[Mixture, Any, float]:
    """EM in which a component pays `threshold` rows and one that cannot is left out; model, parameters and
    log-likelihood, nats a row of weight.
    """
    before, objective = -np.inf, -np.inf
    for step in range(STEPS):
        partial = rows.sum_over([EStep(model, params)])[0]
        sum_w = model.counts(partial.stats)
        total = sum_w.sum()
        objective = partial.evidence.log_likelihood / total
        poorest = int(sum_w.argmin())
        if sum_w[poorest] <= threshold and model.n_components > 1:
            model, params = only(model, params, np.delete(np.arange(model.n_components), poorest))
            before = -np.inf
            continue
        paid = sum_w - threshold if model.n_components > 1 else sum_w
        value = objective - threshold * np.log(params.weights).sum() / total
        if abs(value - before) < TOL or step == STEPS - 1:
            break
        before = value
        arrays = model.arrays(model.m_step(partial.stats, params))
        params = model.params_from_arrays({**arrays, "weights": paid / paid.sum()})
    return model, params, objective
