"""Very many clusters: whole fits of K-means with K = 10,000 against faiss, and hierarchical ones against flat ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import numpy as np

from benchmarks.common import THREADS, Record, Setting, Way, compared, interleaved, record
from benchmarks.mixtures import draw, random_mixture
from pipeline import KMeans

ROWS, CLUSTERS = 10**6, 1000  # in rows without more structure than this, centres far outnumber what there is to find
D, LEVELS, ITERATIONS, FAISS_TARGET, FLAT_TARGET = 128, (100, 100), 10, 3.0, 1.05
MOST_D, MOST_LEVELS, MOST_SECONDS = 32, (1000, 100), 600.0


def many(setting: Setting) -> Iterator[Record]:
    """One round each."""
    warnings.simplefilter("ignore")  # fits that stop at max_iter
    d, levels = setting.pick(D, 8), setting.pick(LEVELS, (4, 4))
    k, x = int(np.prod(levels)), _rows(setting, d)
    start = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    ways = {
        "ours": Way(lambda: KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, method="em").fit(x)),
        "faiss": Way(lambda: _faiss(x, start), THREADS, THREADS),
    }
    times = interleaved(ways, 1, warm=False)
    flat, theirs = times["ours"].result.inertia_, times["faiss"].result
    case, details = f"n={len(x):.0e} d={d} float32, K={k}, {ITERATIONS} iterations", {"n": len(x), "inertia": flat}
    yield compared("many", case, times, "faiss", FAISS_TARGET, **details, peer_inertia=theirs)
    # On threads of their own, as for the row above: flat iterations were ITERATIONS, these go on until they converge.
    began = time.perf_counter()
    found = KMeans(levels=levels, random_state=0).fit(x).inertia_
    took = {"ours_s": time.perf_counter() - began}
    yield record("many", f"the same, levels {list(levels)}", "inertia / flat", found / flat, FLAT_TARGET, "<=", **took)
    d, levels = MOST_D, setting.pick(MOST_LEVELS, (8, 4))
    x, began = _rows(setting, d), time.perf_counter()
    ended = KMeans(levels=levels, random_state=0).fit(x)
    took["ours_s"] = time.perf_counter() - began
    case = f"n={len(x):.0e} d={d} float32, levels {list(levels)}, to the end"
    details = {"inertia": ended.inertia_, "n_iter": ended.n_iter_}
    yield record("many", case, "s", took["ours_s"], MOST_SECONDS, "<=", **took, **details)


def _rows(setting: Setting, d: int) -> np.ndarray:
    return draw(random_mixture(d, setting.pick(CLUSTERS, 10)), setting.pick(ROWS, 5000))


def _faiss(x: np.ndarray, start: np.ndarray) -> float:
    """The inertia at the end, of as many iterations from the same centres, of all rows."""
    import faiss

    made = faiss.Kmeans(
        x.shape[1], len(start), niter=ITERATIONS, max_points_per_centroid=len(x), min_points_per_centroid=1
    )
    made.train(x, init_centroids=start)
    return float(made.obj[-1])
