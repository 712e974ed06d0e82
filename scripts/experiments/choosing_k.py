#!/usr/bin/env python3
"""How often a job with default settings finds the number of components that rows were drawn from.

    scripts/experiments/choosing_k.py                          K = 2 … 12 on rows of 7 Gaussians, 20 seeds
    scripts/experiments/choosing_k.py --seeds 3 --rows 20000   fewer and smaller
    scripts/experiments/choosing_k.py --pruning                one fit that begins with 12 components, by message length
    scripts/experiments/choosing_k.py --set fit.n_init=3       any setting of the config; repeatable

Random full covariances; each mean lies 3 deviations from one mean and at least so far from all others, a deviation
being that of the two components' average covariance in the direction between them. Prints a line a seed, with the BIC
that the true parameters have: a choice with a lower one is not a miss of the search. Ends with 1 below 95 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import pipeline

K, D, APART = 7, 5, 3.0
CANDIDATES = list(range(2, 13))
ENOUGH = 0.95


class Truth(NamedTuple):
    """weights : (K,).  means : (K, D).  covariances : (K, D, D)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def truth(rng: np.random.Generator) -> Truth:
    """A mixture whose nearest means are APART deviations apart."""
    covariances = np.stack([covariance(rng) for _ in range(K)])
    means = [np.zeros(D)]
    while len(means) < K:
        k, near = len(means), int(rng.integers(len(means)))
        step = rng.standard_normal(D)
        step *= APART / deviations(step, covariances[k], covariances[near])
        place = means[near] + step
        # Rounding: the one that it was placed by is as far as it should be.
        if all(deviations(place - m, covariances[k], covariances[j]) > APART - 1e-9 for j, m in enumerate(means)):
            means.append(place)
    return Truth(rng.dirichlet(np.full(K, 10.0)), np.stack(means), covariances)


def covariance(rng: np.random.Generator) -> np.ndarray:
    """A random rotation of deviations between 0.5 and 2. (D, D)."""
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return (rotation * rng.uniform(0.5, 2.0, D) ** 2) @ rotation.T


def deviations(apart: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Length of a difference of means in deviations of the average covariance."""
    return float(np.sqrt(apart @ np.linalg.solve((one + other) / 2, apart)))


def drawn(rng: np.random.Generator, of: Truth, n: int) -> np.ndarray:
    """n rows of a mixture, (n, D)."""
    label = rng.choice(K, n, p=of.weights)
    factors = np.linalg.cholesky(of.covariances)
    return of.means[label] + np.einsum("nij,nj->ni", factors[label], rng.standard_normal((n, D)))


def true_bic(of: Truth, x: np.ndarray) -> float:
    """BIC of the parameters that the rows were drawn from."""
    parts = zip(of.weights, of.means, of.covariances, strict=True)
    log_joint = [np.log(w) + multivariate_normal(mean, cov).logpdf(x) for w, mean, cov in parts]
    free = K - 1 + K * D + K * D * (D + 1) / 2
    return float(free * np.log(len(x)) - 2 * logsumexp(log_joint, axis=0).sum())


def chosen(folder: Path, x: np.ndarray, settings: list[str]) -> dict[str, Any]:
    """The attributes of the model that a job with default settings chooses."""
    np.save(folder / "rows.npy", x)
    config = {
        "data": {"source": "npy", "path": str(folder / "rows.npy")},
        "model": {"n_components": CANDIDATES},
        "output": {"path": str(folder / "run"), "labels": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = pipeline.run(pipeline.load_config(folder / "config.yaml", settings))
    return pipeline.open_run(run).attrs


def main() -> int:
    """All seeds; 0 if K was found in enough of them."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many data sets (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each (default 100,000)")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="settings")
    parser.add_argument("--pruning", action="store_true", help="the most components, of which some are pruned")
    options = parser.parse_args()
    if options.pruning:
        options.settings += [f"model.n_components={CANDIDATES[-1]}", "select.pruning=true"]
    hits = 0
    for seed in range(options.first, options.first + options.seeds):
        rng = np.random.default_rng(seed)
        of = truth(rng)
        x = drawn(rng, of, options.rows)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            attrs = chosen(Path(folder), x, [*options.settings, f"fit.random_state={seed}"])
        seconds = time.perf_counter() - began
        k, limit = attrs["n_components"], true_bic(of, x)
        hits += k == K
        entries = attrs.get("candidates", [attrs])
        table = "  ".join(f"{entry['n_components']}:{entry['bic'] - limit:+.0f}" for entry in entries)
        print(f"seed {seed}: K = {k}{'' if k == K else '  MISS'}  {seconds:.1f} s  BIC - BIC of the truth  {table}")
    print(f"K = {K} in {hits} of {options.seeds}")
    return 0 if hits >= ENOUGH * options.seeds else 1


if __name__ == "__main__":
    sys.exit(main())
