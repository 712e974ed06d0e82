"""The number of components: those that too few rows support are pruned, one at a time.

A component needs more rows than half its T parameters: weights follow w_k ∝ max(0, N_k - T/2), and a component with weight 0
is pruned. After convergence, the message length of K components is

    L(K) = T/2 Σ_k log(n w_k / 12) + K/2 log(n / 12) + K (T + 1)/2 - log p(x)

Then the least needed component is removed, and so on down to one. The K with the shortest message wins.
[Figueiredo and Jain 2002, eq. 15-17. Here all components are updated together, on rows in memory that stand for n. The paper
removes the smallest component, which may be a cluster of its own while two components share a larger one: 2 of 10 data sets
of 7 clusters then ended with 9 and 12 components of 12.]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.em.merging import RemovalCosts, SearchRows, only
from pipeline.models.base import EStep
from pipeline.models.mixture import Mixture

STEPS = 100  # of EM with one number of components, at most
TOL = 1e-5  # nats a row


class Pruned(NamedTuple):
    """Model and parameters with the shortest message. lengths : (components, nats), the largest number first."""

    model: Mixture
    params: Any
    lengths: list[tuple[int, float]]


def pruned(model: Mixture, params: Any, rows: SearchRows, of: float) -> Pruned:
    """Prune to the number of components with the shortest message.

    of : total weight of all rows, which those in memory stand for.
    """
    total = float(rows.n_rows if rows.weight is None else rows.weight.sum())
    price = _price(model) / 2.0
    best, shortest, lengths = (model, params), np.inf, []
    while True:
        model, params, per_row = _settled(model, params, rows, price * total / of)
        length = _message_length(model.shares(params, None), price, of) - of * per_row
        lengths.append((model.n_components, float(length)))
        if length < shortest:
            best, shortest = (model, params), length
        if model.n_components == 1:
            return Pruned(*best, lengths)
        costs = rows.sum_over([RemovalCosts(model, params)])[0].cost
        model, params = only(model, params, np.delete(np.arange(model.n_components), costs.argmin()))


def _price(model: Mixture) -> int:
    """T, the number of parameters of one component beside its weight."""
    return model.with_components(2).n_free_parameters() - model.with_components(1).n_free_parameters() - 1


def _message_length(shares: Array, price: float, of: float) -> float:
    """Message length without the rows, nats; `price` is T/2."""
    k = len(shares)
    return float(price * np.log(of * shares / 12.0).sum() + 0.5 * k * np.log(of / 12.0) + k * (price + 0.5))


def _settled(model: Mixture, params: Any, rows: SearchRows, threshold: float) -> tuple[Mixture, Any, float]:
    """Run EM in which each component gives up `threshold` rows and one that cannot is pruned.

    Returns the model, its parameters and the log-likelihood, nats per row of weight.
    """
    before, steps = -np.inf, 0
    while True:
        partial = rows.sum_over([EStep(model, params)])[0]
        sum_w = model.counts(partial.stats)
        total = model.rows_of(partial.stats)
        objective: float = partial.evidence.log_likelihood / total
        poorest = int(sum_w.argmin())
        if sum_w[poorest] <= threshold and model.n_components > 1:
            model, params = only(model, params, np.delete(np.arange(model.n_components), poorest))
            before = -np.inf
            continue
        paid = sum_w - threshold if model.n_components > 1 else sum_w
        value = objective - threshold * np.log(params.weights).sum() / total
        if abs(value - before) < TOL or steps == STEPS - 1:
            return model, params, objective
        before, steps = value, steps + 1
        arrays = model.arrays(model.m_step(partial.stats, params))
        params = model.params_from_arrays({**arrays, "weights": paid / paid.sum()})
