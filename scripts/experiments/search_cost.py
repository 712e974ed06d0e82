#!/usr/bin/env python3
"""What the search for a start costs, and where it ends: CPU seconds of the search and of the whole fit, by the Python classes.

    scripts/experiments/search_cost.py blobs500 birch1 --seeds 3
    PYTHONPATH=EARLIER scripts/experiments/search_cost.py blobs500    the same of another commit's package

birch1, a2 and s1 are read from --data (default: $EM_SHARED, else ../shared/data); the centroid index is 0 if every cluster was found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from better_optima import SETS, centroid_index, clustering

from pipeline import GaussianMixture, KMeans
from pipeline.em.search import Search


def blobs(n: int, d: int, clusters: int, spread: float) -> np.ndarray:
    """Rows of spherical Gaussians, float32."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(clusters, d)) * spread
    return (means[rng.integers(clusters, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


PROBLEMS: dict[str, tuple[Any, int, type[Any]]] = {
    "blobs500": (lambda: blobs(5000, 16, 60, 3.0), 500, KMeans),
    "few": (lambda: blobs(5000, 2, 10, 5.0), 10, KMeans),
    "few-gaussian": (lambda: blobs(5000, 2, 10, 5.0), 10, GaussianMixture),
}


def measured(name: str, seeds: int, data: Path) -> Iterator[str]:
    """A line for each seed."""
    true = None
    if name in SETS:
        (x, true), k, family = clustering(data, name), SETS[name], KMeans
    else:
        make, k, family = PROBLEMS[name]
        x = make()
    spent, search = [0.0], Search.__call__

    def timed(self: Search, model: Any) -> Any:
        began = time.process_time()
        found = search(self, model)
        spent[0] = time.process_time() - began
        return found

    Search.__call__ = timed  # type: ignore[method-assign]  # measured from outside, so that earlier commits can be measured too
    for seed in range(-1, seeds):  # the first loads kernels
        init = {"init": "k-means||"} if family is KMeans else {"init_params": "k-means||"}
        began = time.process_time()
        fitted = family(k, method="auto", random_state=max(seed, 0), **init).fit(x)
        whole = time.process_time() - began
        end = f"inertia {fitted.inertia_:.7g}" if family is KMeans else f"{fitted.lower_bound_:.6f} nats a row"
        index = "" if true is None else f", centroid index {centroid_index(fitted.cluster_centers_, true)}"
        if seed >= 0:
            yield f"{name} seed {seed}: search {spent[0]:.2f} of {whole:.2f} CPU seconds, {fitted.n_iter_} iterations, {end}{index}"
    Search.__call__ = search  # type: ignore[method-assign]


def main() -> None:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+", choices=[*PROBLEMS, *SETS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2].parent / "shared" / "data")
    given = parser.parse_args()
    for name in given.problems:
        for line in measured(name, given.seeds, given.data):
            print(line, flush=True)


if __name__ == "__main__":
    main()
