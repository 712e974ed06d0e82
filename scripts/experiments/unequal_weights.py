#!/usr/bin/env python3
"""Whether the search finds every component of known mixtures with unequal weights: against EM begun at the truth.

    scripts/experiments/unequal_weights.py optima --draws 3         every kind of the table, K known
    scripts/experiments/unequal_weights.py optima --kinds 5,12      some kinds: those whose name begins so
    scripts/experiments/unequal_weights.py grids --draws 20         which K a grid and pruning choose: 4 features, K = 5, 12, 20
    scripts/experiments/unequal_weights.py grids --kinds pruning    the same of pruning alone
    scripts/experiments/unequal_weights.py resets --draws 3         plain EM from random rows: what reset components have later

A kind is named d,K,n,ratio: rows in d dimensions from K full Gaussians, whose weights fall from 1 to 1/ratio and whose scales differ by
up to 4. The means are as far apart as makes the truth's own labels wrong for about 4 % of the rows. Nats are a row, against EM
from the true parameters on the same rows; a component is missed as the centroid index counts it, and `truth` says how many EM from the
truth itself misses. Grids are of the nine K from 4 below the true one to 4 above it, on 20,000 rows with weights of 1 to 1/20; pruning
begins with the largest. A choice of another K is right where the criterion of the chosen fit is better than that of EM from the truth:
BIC, or the message length of pruning. Resets are of rows that many components fit badly, Gaussians of one shape whose scale varies from row to row as
that of patches of pictures does: 20 features, K = 100, n = 20,000.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.stats import multivariate_normal

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import MemoryRows
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS

KINDS = ["2,10,20000,100", "5,12,20000,100", "50,5,10000,100", "20,10,15000,100", "20,10,15000,30", "50,10,20000,10", "10,20,20000,10", "2,30,30000,20", "3,50,30000,20", "8,8,8000,50"]  # fmt: skip
OVERLAP = 0.04


def draw(kind: str, seed: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of a kind, and the true weights, means and covariances."""
    d, k, n, ratio = (int(part) for part in kind.split(","))
    rng = np.random.default_rng([seed, d, k, n, ratio])
    weights = ratio ** -np.linspace(0.0, 1.0, k)
    weights = rng.permutation(weights / weights.sum())
    directions = rng.normal(size=(k, d))
    factors = rng.normal(size=(k, d, d)) / np.sqrt(d) * 0.5 + np.eye(d)
    factors *= 2.0 ** rng.uniform(-1.0, 1.0, size=(k, 1, 1))
    covariances = factors @ factors.swapaxes(1, 2)
    label = rng.choice(k, size=n, p=weights)
    noise = np.einsum("nij,nj->ni", factors[label], rng.normal(size=(n, d)))
    low, high = 0.0, 100.0
    some = slice(0, 4000)
    for _ in range(20):
        scale = 0.5 * (low + high)
        found = log_joint(scale * directions[label[some]] + noise[some], weights, scale * directions, covariances)
        wrong = (found.argmax(axis=1) != label[some]).mean()
        low, high = (scale, high) if wrong > OVERLAP else (low, scale)
    return scale * directions[label] + noise, (weights, scale * directions, covariances)


def log_joint(x: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Log joint densities, (n, k)."""
    parts = zip(weights, means, covariances, strict=True)
    return np.stack([np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in parts], axis=1)


def missed(found: np.ndarray, true: np.ndarray) -> int:
    """The centroid index. [Fränti and Sieranoja 2018]."""
    distance = ((found[:, None] - true) ** 2).sum(axis=2)
    return len(true) - min(len(np.unique(distance.argmin(axis=axis))) for axis in (0, 1))


def from_truth(x: np.ndarray, truth: Any) -> Any:
    """EM begun at the true parameters."""
    weights, means, covariances = truth
    start = {"weights_init": weights, "means_init": means, "precisions_init": np.linalg.inv(covariances)}
    return pipeline.GaussianMixture(len(weights), tol=1e-6, max_iter=2000, **start).fit(x)


def optima(kinds: list[str], draws: int, **options: Any) -> None:
    """`auto` against the truth. options : of the fits."""
    print(
        "| d, K, n, largest : smallest weight | nats a row | missed (truth) | CPU seconds |\n|---|---|---|---|",
        flush=True,
    )
    for kind in kinds:
        nats, misses, seconds = [], [], []
        for seed in range(draws):
            x, truth = draw(kind, seed)
            best = from_truth(x, truth)
            began = time.process_time()
            found = pipeline.GaussianMixture(len(truth[0]), method="auto", random_state=seed, **options).fit(x)
            seconds.append(time.process_time() - began)
            nats.append(found.score(x) - best.score(x))
            misses.append(f"{missed(found.means_, truth[1])} ({missed(best.means_, truth[1])})")
        cells = " | ".join([", ".join(f"{v:+.4f}" for v in nats), ", ".join(misses), f"{np.mean(seconds):.1f}"])
        print(f"| {kind} | {cells} |", flush=True)


def grids(kinds: list[str], draws: int) -> None:
    """K chosen by BIC and by pruning, against the criterion of EM from the truth."""
    print(
        "| K | by | K chosen | right | its criterion less that of EM from the truth, where K is another | CPU seconds |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for k in (5, 12, 20):
        for by in (by for by in ("BIC", "pruning") if by.startswith(tuple(kinds))):
            model, select = (
                ({"n_components": k + 4}, {"pruning": True})
                if by == "pruning"
                else ({"n_components": [*range(max(2, k - 4), k + 5)]}, {})
            )
            chosen, apart, right, seconds = [], [], 0, []
            for seed in range(draws):
                x, truth = draw(f"4,{k},20000,20", seed)
                best = from_truth(x, truth)
                began = time.process_time()
                attrs = job(x, model, select, seed)
                seconds.append(time.process_time() - began)
                chosen.append(attrs["n_components"])
                if by == "pruning":
                    gap = dict(attrs["message_lengths"])[chosen[-1]] - message_length(best, x)
                else:
                    gap = attrs["bic"] - best.bic(x)
                right += chosen[-1] == k or gap < 0
                apart += [f"{chosen[-1]}: {gap:+.0f}"] if chosen[-1] != k else []
            print(
                f"| {k} | {by} | {', '.join(map(str, chosen))} | {right} of {draws} | {', '.join(apart)} | {np.mean(seconds):.1f} |",
                flush=True,
            )


def message_length(of: Any, x: np.ndarray) -> float:
    """Figueiredo and Jain's equation 15, nats."""
    (n, d), w = x.shape, of.weights_
    k, t = len(w), d + d * (d + 1) / 2
    return float(t / 2 * np.log(n * w / 12).sum() + k / 2 * np.log(n / 12) + k * (t + 1) / 2 - n * of.score(x))


def job(x: np.ndarray, model: dict[str, Any], select: dict[str, Any], seed: int) -> dict[str, Any]:
    """The attributes of the model of a job."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/rows.npy", x)
        data, output = {"source": "npy", "path": f"{folder}/rows.npy"}, {"path": f"{folder}/run", "labels": False}
        config = {"data": data, "model": model, "select": select, "fit": {"random_state": seed}, "output": output}
        return pipeline.open_run(pipeline.run(validate(config))).attrs


def resets(draws: int) -> None:
    """Effective rows of reset components, ten iterations later."""
    print(
        "| seed | resets | at least the collapse limit ten iterations later | collapsed at the end | nats a row |",
        flush=True,
    )
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        factor = rng.normal(size=(20, 20)) * np.linspace(3, 0.3, 20)
        x = np.exp(rng.normal(size=(20_000, 1))) * (rng.normal(size=(20_000, 20)) @ factor)
        summary = summary_of(ProfileJob("matrix", 2000, seed)(Rows(x), KERNELS), [])
        [model] = validate({"model": {"n_components": 100}}).models(summary)
        start = model.start_at(x[rng.choice(len(x), 100, replace=False)], summary)
        done, run = [], Run(0, model, start)
        with ThreadPoolExecutor(2) as threads:
            rows = MemoryRows(x, None, threads)
            for (now,), events in em([run], rows.sum_over, Limits(60, 0.0), len(x)):
                done += [(event.iteration, event.reset.component) for event in events if event.reset.done]
                run = now
        counts = np.array([entry.traced["n_effective"] for entry in run.history])
        later = [counts[i + 10, k] >= model.least_rows for i, k in done if i + 10 < len(counts)]
        ended = len(model.collapsed(run.params, model.counts(run.final.stats)))
        print(
            f"| {seed} | {len(done)} | {sum(later)} of {len(later)} | {ended} | {run.objective / len(x):.4f} |",
            flush=True,
        )


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["optima", "grids", "resets"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--n-init", type=int, default=1, help="restarts, of the fits of optima")
    parser.add_argument("--tol", type=float, default=1e-3, help="nats a row, of the fits of optima")
    parser.add_argument("--max-iter", type=int, default=100, help="iterations of the fits of optima at most")
    parser.add_argument("--kinds", nargs="*", default=[""])
    words = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.startswith(tuple(words.kinds))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if words.what == "optima":
            optima(kinds, words.draws, n_init=words.n_init, tol=words.tol, max_iter=words.max_iter)
        elif words.what == "grids":
            grids(words.kinds, words.draws)
        else:
            resets(words.draws)
    return 0


if __name__ == "__main__":
    sys.exit(main())
