"""A Lloyd pass in memory, over rows without structure, patches of pictures and MNIST, against scikit-learn, faiss and dask-ml."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.common import (
    THREADS,
    InMemory,
    Record,
    Setting,
    Way,
    compared,
    faster_blas,
    fitted,
    interleaved,
    one_pass,
)
from benchmarks.mnist import pictures
from benchmarks.patches import PICTURES, STRIDE, all_rows
from pipeline.data.chunks import Chunks
from pipeline.data.patch import Patch
from pipeline.data.sources.images import ImagesSection
from pipeline.engine.passes import Engine
from pipeline.models.lloyd import Lloyd

# d, K, rows: at least so many times faster than scikit-learn
CASES = {(64, 200, 2**20): 1.3, (64, 1000, 2**19): 1.3, (8, 20, 2**23): 1.5}
PATCHES = {1000: 3.0}  # K: the same, after ITERATIONS from random rows
MNIST = {100: 8.0, 979: 5.0}
ITERATIONS = 10
QUICK_ROWS = 2**15


def ours(x: np.ndarray, centers: np.ndarray) -> Way:
    """E-step and M-step through the engine."""
    return one_pass(*_problem(x, centers))


def _problem(x: np.ndarray, centers: np.ndarray) -> tuple[Chunks, Lloyd, Any]:
    """Rows as the engine reads them, the model, and its parameters."""
    model = Lloyd(len(centers), x.mean(axis=0, dtype=np.float64))
    params = model.params_from_arrays({"centers": centers.astype(np.float64)})
    return Chunks(InMemory(x), clean=True), model, params


def scikit_learn(x: np.ndarray, centers: np.ndarray) -> Way:
    """The call that KMeans(algorithm="lloyd") makes once an iteration, under the BLAS limit that it sets."""
    from sklearn.cluster._kmeans import lloyd_iter_chunked_dense

    k = len(centers)
    weight, label = np.ones(len(x), np.float32), np.zeros(len(x), np.int32)
    new, in_clusters, moved = np.zeros_like(centers), np.zeros(k, np.float32), np.zeros(k, np.float32)
    arguments = (x, weight, centers, new, in_clusters, label, moved, THREADS)
    return Way(lambda: lloyd_iter_chunked_dense(*arguments), blas=1, openmp=THREADS)


def faiss_search(x: np.ndarray, centers: np.ndarray) -> Way:
    """The nearest centres by faiss's exact index, without the sums: what a pass of faiss.Kmeans takes at least."""
    import faiss

    def run() -> object:
        index = faiss.IndexFlatL2(x.shape[1])
        index.add(centers)
        return index.search(x, 1)

    return Way(run, openmp=THREADS)


def dask_ml(x: np.ndarray, centers: np.ndarray) -> Way:
    """The body of the loop in dask_ml.cluster.k_means._kmeans_single_lloyd, on blocks of the project's size."""
    import dask
    import dask.array as da
    from dask_ml.cluster.k_means import _centers_dense
    from dask_ml.metrics import pairwise_distances_argmin_min

    (n, d), k = x.shape, len(centers)
    rows = -(-n // InMemory(x).n_chunks)
    blocks = da.from_array(x, chunks=(rows, d)).persist()

    def run() -> object:
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            label, _ = pairwise_distances_argmin_min(
                blocks, centers, metric="euclidean", metric_kwargs={"squared": True}
            )
            label = label.astype(np.int32)
            sums = da.blockwise(
                _centers_dense,
                "ij",
                blocks,
                "ij",
                label,
                "i",
                k,
                None,
                "i",
                adjust_chunks={"i": k, "j": d},
                dtype=x.dtype,
            )
            total = da.from_delayed(sum(sums.to_delayed().flatten()), (k, d), x.dtype)
            return (total / da.maximum(da.bincount(label, minlength=k), 1)[:, None]).compute()

    return Way(run)


PEERS: dict[str, Callable[[np.ndarray, np.ndarray], Way]] = {
    "scikit-learn": scikit_learn,
    "faiss (search)": lambda x, centers: faster_blas(faiss_search(x, centers)),
    "dask-ml": dask_ml,
}


def kmeans(setting: Setting) -> Iterator[Record]:
    """Float32 rows: without structure, centres drawn from them; and patches and pictures of digits, with centres on their way."""
    for (d, k, n_full), target in CASES.items():
        n = setting.pick(n_full, QUICK_ROWS)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d), dtype=np.float32)
        centers = x[rng.choice(n, k, replace=False)]
        yield from _against_peers(setting, f"d={d} K={k} float32", x, centers, target)
    patch = Patch(size=(8, 8), stride=setting.pick(STRIDE, 40), remove_mean=False)
    patches = all_rows(ImagesSection(path=str(setting.real(PICTURES)), patch=patch).open_chunks())
    real = {"patches": (patches, PATCHES), "MNIST": (pictures(setting).astype(np.float32), MNIST)}
    for name, (x, targets) in real.items():
        for k, target in targets.items():
            start = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
            run = fitted(Engine(workers=THREADS), *_problem(x, start), setting.pick(ITERATIONS, 1))
            centers = run.params.centers.astype(np.float32)
            yield from _against_peers(setting, f"{name} d={x.shape[1]} K={k} float32", x, centers, target)


def _against_peers(setting: Setting, case: str, x: np.ndarray, centers: np.ndarray, target: float) -> Iterator[Record]:
    """A record for each peer. target : against scikit-learn."""
    ways = {"ours": ours(x, centers), **_installed(x, centers)}
    times = interleaved(ways, setting.rounds)
    ns = {name: timed.median / len(x) / len(centers) * 1e9 for name, timed in times.items()}  # per row and centre
    for peer in [name for name in ways if name != "ours"]:
        wanted = target if peer == "scikit-learn" else None
        yield compared("kmeans", case, times, peer, wanted, n=len(x), ns=ns)


def _installed(x: np.ndarray, centers: np.ndarray) -> dict[str, Way]:
    """The peers that there are; one that is not installed is said so."""
    found = {}
    for name, make in PEERS.items():
        try:
            found[name] = make(x, centers)
        except ImportError as error:
            print(f"kmeans: without {name}: {error}", file=sys.stderr)
    return found
