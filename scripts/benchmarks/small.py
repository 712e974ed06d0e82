"""Whole fits of the Python classes to few rows in memory, against scikit-learn's from the same random_state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import sklearn.cluster
import sklearn.mixture

import pipeline
from benchmarks.common import THREADS, Record, Setting, Timed, Way, interleaved, record

ROWS = (1000, 10_000)
ROUNDS = 20  # times those asked for: a fit takes some milliseconds
MORE_MS = {"KMeans": 2.0, "GaussianMixture": 5.0}  # that ours may take for the fewest rows
# name, features, components, ours, the peer
CASES: list[tuple[str, int, int, Callable[..., Any], Callable[..., Any]]] = [
    ("GaussianMixture", 4, 3, pipeline.GaussianMixture, sklearn.mixture.GaussianMixture),
    ("GaussianMixture", 16, 8, pipeline.GaussianMixture, sklearn.mixture.GaussianMixture),
    ("KMeans", 4, 3, pipeline.KMeans, sklearn.cluster.KMeans),
    ("KMeans", 16, 8, pipeline.KMeans, sklearn.cluster.KMeans),
]


def small(setting: Setting) -> Iterator[Record]:
    """Defaults, after one fit of each in the process. Value: milliseconds that ours takes more."""
    from sklearn.datasets import make_blobs

    warnings.simplefilter("ignore")  # fits that stop at max_iter
    for n in setting.pick(ROWS, ROWS[:1]):
        for name, d, k, ours, peer in CASES:
            x, _ = make_blobs(n, d, centers=k, cluster_std=3.0, random_state=0)
            ways = {
                "ours": Way(lambda x=x, k=k, made=ours: made(k, random_state=0).fit(x), THREADS, THREADS),
                "scikit-learn": Way(lambda x=x, k=k, made=peer: made(k, random_state=0).fit(x), THREADS, THREADS),
                "scikit-learn, one thread": Way(lambda x=x, k=k, made=peer: made(k, random_state=0).fit(x)),
            }
            times = interleaved(ways, setting.pick(ROUNDS * setting.rounds, 1))
            fastest = min((way for way in ways if way != "ours"), key=lambda way: times[way].median)
            yield _more(f"{name} n={n} d={d} K={k}", times, fastest, MORE_MS[name] if n == ROWS[0] else None)


def _more(case: str, times: dict[str, Timed], peer: str, target: float | None) -> Record:
    ours, theirs = times["ours"], times[peer]
    spread = {"rounds": len(ours.seconds), **ours.fields("ours"), "peer": peer, **theirs.fields("peer")}
    more = 1e3 * (ours.median - theirs.median)
    return record("small", case, "ms more than peer", more, target, "<=", **spread, n_iter=ours.result.n_iter_)
