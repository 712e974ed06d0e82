#!/usr/bin/env python3
"""Reads of all rows until within 1e-3 nats a row of plain EM's limit, by method: the table of docs/algorithms.md.

Overlapping Gaussian clusters in memory, full covariances, several seeds; every method begins at the same start as EM.
Each read of a block, and of an extrapolation step that is rejected, counts as its share of the rows; looking at the log-likelihood
to see whether the goal is reached does not. A run that ends lower than the goal is a miss.

    scripts/experiments/fewer_passes.py [--seeds 8] [--rows 4000]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from pipeline.arrays.rows import Rows
from pipeline.em.accumulate import Method, method_of
from pipeline.em.loop import RejectedEvent, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.blas import single_thread
from pipeline.engine.tree import tree_sum
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture

CHUNKS = 20
GOAL, TOL = 1e-3, 1e-3  # nats per row
LONGEST = 1000  # iterations; a goal that is not reached by then never is
METHODS = {
    "em": ("em", 1),
    "auto (squarem)": ("auto", 1),
    "incremental, 5 blocks": ("incremental", 5),
    "incremental, 10 blocks": ("incremental", 10),
    "incremental, 20 blocks": ("incremental", 20),
}


class Problem(NamedTuple):
    """Rows, in chunks, and where EM begins."""

    chunks: list[Rows]
    whole: Rows
    model: Mixture
    start: Any


def problem(seed: int, n: int, d: int = 4, k: int = 6) -> Problem:
    """Clusters whose means are about two deviations apart; random rows as the first means."""
    rng = np.random.default_rng([seed, 7])
    means = rng.normal(scale=1.4, size=(k, d))
    mixing = np.eye(d) + 0.3 * rng.normal(size=(k, d, d))
    label = rng.choice(k, size=n, p=rng.dirichlet(np.full(k, 4.0)))
    x = means[label] + np.einsum("nij,nj->ni", mixing[label], rng.normal(size=(n, d)))
    model, means = Mixture(Gaussian(k, x.mean(axis=0))), x[rng.choice(n, k, replace=False)]
    start = model.params(weights=np.full(k, 1 / k), means=means, covariances=np.tile(np.cov(x.T), (k, 1, 1)))
    edges = np.linspace(0, n, CHUNKS + 1).astype(int)
    chunks = [Rows(x[a:b], start=int(a)) for a, b in pairwise(edges)]
    return Problem(chunks, Rows(x), model, start)


class Reads:
    """Sums over chunks, and how many rows that has read."""

    def __init__(self, chunks: Sequence[Rows], method: Method) -> None:
        self.chunks, self.method, self.rows = chunks, method, 0

    def __call__(self, jobs: Sequence[EStep], block: int | None = None) -> list[Any]:
        """What Engine.sum_over does."""
        ids = range(len(self.chunks)) if block is None else self.method.blocks[block]
        self.rows += sum(len(self.chunks[i].x) for i in ids)
        return [tree_sum((job(self.chunks[i], KERNELS) for i in ids), lambda a, b: a + b) for job in jobs]


class Outcome(NamedTuple):
    """needed : passes to the goal, inf if never.  stopped : passes until `converged`.  above : nats per row beyond the limit."""

    needed: float
    stopped: float
    above: float
    rejected: int


def outcome(p: Problem, method: Method, limit: float) -> Outcome:
    """One run to its end; limit : nats per row."""
    n = sum(len(chunk.x) for chunk in p.chunks)
    reads, look = Reads(p.chunks if method.blocks else [p.whole], method), Reads([p.whole], method)
    needed, stopped, rejected = np.inf, np.nan, 0
    for runs, events in em([Run(0, p.model, p.start)], reads, Limits(3000, TOL), n, method):
        rejected += sum(isinstance(event, RejectedEvent) for event in events)
        if runs[0].final is None:
            stopped = reads.rows / n
    reads.rows = 0
    for endless, _ in em([Run(0, p.model, p.start)], reads, Limits(LONGEST, 0.0), n, method):
        if endless[0].accumulator.fallback:
            continue  # an extrapolation step that may be rejected
        if look([EStep(p.model, endless[0].params)])[0].evidence.log_likelihood / n >= limit - GOAL:
            needed = reads.rows / n
            break
    return Outcome(needed, stopped, runs[0].log_likelihood / n - limit, rejected)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4000)
    options = parser.parse_args()
    found: dict[str, list[Outcome]] = {name: [] for name in METHODS}
    with single_thread():
        for seed in range(options.seeds):
            p = problem(seed, options.rows)
            *_, (runs, _) = em([Run(0, p.model, p.start)], Reads([p.whole], Method()), Limits(3000, 1e-9), options.rows)
            limit = runs[0].log_likelihood / options.rows
            for name, (kind, blocks) in METHODS.items():
                edges = np.linspace(0, options.rows, CHUNKS + 1).astype(int)
                found[name].append(outcome(p, method_of(kind, edges, seed, blocks), limit))
    print(
        "| method | passes to the goal: median | of EM's: median | never | until it stops: median | misses | rejected steps |"
    )
    print("|---|---|---|---|---|---|---|")
    plain = np.array([o.needed for o in found["em"]])
    for name, outcomes in found.items():
        needed = np.array([o.needed for o in outcomes])
        figures = [
            f"{np.median(needed):.0f}",
            f"{np.median(needed / plain):.2f}",
            f"{np.isinf(needed).sum()}",
            f"{np.median([o.stopped for o in outcomes]):.0f}",
            f"{sum(o.above < -GOAL for o in outcomes)}",
            f"{sum(o.rejected for o in outcomes)}",
        ]
        print(f"| {name} | {' | '.join(figures)} |")
        ends = ", ".join(f"{o.above:.1e}" for o in outcomes)
        print(
            f"{name}: passes {', '.join(f'{o.needed:.0f}' for o in outcomes)}; above the limit {ends}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
