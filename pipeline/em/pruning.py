"""The number of components: those that too few rows support are pruned, one at a time.

A component needs more rows than half its T parameters: weights follow w_k ∝ max(0, N_k - T/2), and a component with weight 0
is pruned. So is one near collapse, which may gain without bound. After convergence, the message length of K components is

    L(K) = T/2 Σ_k log(n w_k / 12) + K/2 log(n / 12) + K (T + 1)/2 - log p(x)

Then there is one component less, by the removal or merge that costs least, and so on down to one. The smallest K wins whose message is at
most 5 nats longer than the shortest: a factor of 150 in probability, from which on evidence is very strong [Kass and Raftery 1995].
Where many places are tried for it, a component of a dozen rows, whose parameters cost next to nothing, gains a few nats by chance.

A length says nothing about K where the fit is a poor optimum, so each K begins with moves, until its message is longer than that
of the K above it for the third time in a row: from there down the clusters themselves are merged.
[Figueiredo and Jain 2002, eq. 15-17. Here all components are updated together, on rows in memory that stand for n. The paper
removes the smallest component, which may be a cluster of its own while two components share a larger one, and makes no moves.]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.em.merging import SearchRows, narrowed, only, parameters_of_one
from pipeline.em.moves import improve, most_passes, refine
from pipeline.em.search import STEPS as MOVES
from pipeline.em.search import move_budget, move_reads
from pipeline.em.splits import MARGIN
from pipeline.em.stopping import Limits
from pipeline.errors import SingularCovariance
from pipeline.models.base import EStep
from pipeline.models.mixture import Mixture

STEPS = 100  # of EM with one number of components, at most
TOL = 1e-5  # nats a row
PASSES = 4  # over all rows in memory: so many may be read with one number of components before its last round of moves begins
ENOUGH = 5.0  # nats by which a message has to be shorter, for more components to win
RISES = 3  # of the message length in a row, after which no more moves are made


class Pruned(NamedTuple):
    """Model and parameters with as many components as win. lengths : (components, nats), the largest number first."""

    model: Mixture
    params: Any
    lengths: list[tuple[int, float]]


def pruned(model: Mixture, params: Any, rows: SearchRows, of: float, budget: float = 0.0) -> Pruned:
    """Prune to the smallest number of components whose message is at most ENOUGH longer than the shortest.

    Parameters
    ----------
    model : Mixture
        With the largest number of components.
    params : Any
    rows : SearchRows
    of : float
        Total weight of all rows, which those in memory stand for.
    budget : float
        Rows that may be read for each number of components before its last round of moves begins. No moves are made with 0.

    Returns
    -------
    Pruned
    """
    total = float(rows.n_rows if rows.weight is None else rows.weight.sum())
    price = parameters_of_one(model) / 2.0
    best, shortest, lengths = (model, params), np.inf, []
    before, rises = np.inf, 0
    while True:
        if budget > 0 and rises < RISES and model.n_components > 1:
            params = _moved(model, params, rows, budget)
        k = model.n_components
        model, params, per_row = _settled(model, params, rows, price * total / of)
        if model.n_components < k:
            continue
        length = _message_length(model.shares(params, None), price, of) - of * per_row
        lengths.append((model.n_components, float(length)))
        before, rises = length, rises + 1 if length > before else 0
        if length <= shortest + ENOUGH:
            best, shortest = (model, params), min(length, shortest)
        if k == 1:
            return Pruned(*best, lengths)
        model, params = narrowed(model, params, k - 1, rows)


def budget_of(n_rows: int, effort: float) -> float:
    """Return how many rows may be read with one number of components before its last round of moves begins."""
    return move_budget(PASSES, n_rows, effort)


def most_pruning_reads(model: Mixture, n_rows: int, budget: float) -> float:
    """Return how many rows pruning reads at most."""
    moves = n_rows * most_passes(MOVES) + move_reads(model, n_rows, budget) if budget > 0 else 0.0
    return model.n_components * (n_rows * (STEPS + 3.0) + moves)


def _moved(model: Mixture, params: Any, rows: SearchRows, budget: float) -> Any:
    """Parameters of as many components, of a better optimum if moves lead to one."""
    limits = Limits(MOVES, model.search.tol)
    try:
        run = refine(model, params, rows, limits)
    except SingularCovariance:
        return params
    return improve(run, rows, limits, budget)[0].params


def _message_length(shares: Array, price: float, of: float) -> float:
    """Message length without the rows, nats; `price` is T/2."""
    k = len(shares)
    return float(price * np.log(of * shares / 12.0).sum() + 0.5 * k * np.log(of / 12.0) + k * (price + 0.5))


def _settled(model: Mixture, params: Any, rows: SearchRows, threshold: float) -> tuple[Mixture, Any, float]:
    """Run EM in which each component gives up `threshold` rows, until it has settled, or one has too few and is pruned.

    Returns the model, its parameters and the log-likelihood, nats per row of weight; of the components before where one is pruned.
    """
    before, steps = -np.inf, 0
    while True:
        partial = rows.sum_over([EStep(model, params)])[0]
        sum_w = model.counts(partial.stats)
        total = model.rows_of(partial.stats)
        objective: float = partial.evidence.log_likelihood / total
        poorest = int(sum_w.argmin())
        if sum_w[poorest] <= max(threshold, MARGIN * model.least_rows) and model.n_components > 1:
            return *only(model, params, np.delete(np.arange(model.n_components), poorest)), objective
        paid = sum_w - threshold if model.n_components > 1 else sum_w
        value = objective - threshold * np.log(params.weights).sum() / total
        if abs(value - before) < TOL or steps == STEPS - 1:
            return model, params, objective
        before, steps = value, steps + 1
        arrays = model.arrays(model.m_step(partial.stats, params))
        params = model.params_from_arrays({**arrays, "weights": paid / paid.sum()})
