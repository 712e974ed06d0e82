#!/usr/bin/env python3
"""Where default jobs end, against the truth and against scikit-learn's runs.

    scripts/experiments/better_optima.py clusters --seeds 20    every true cluster found? S1, S2, A1, A2, dim032, Birch1
    scripts/experiments/better_optima.py inertia                MNIST, K-means, K = 20 and 100, against 20 runs of scikit-learn
    scripts/experiments/better_optima.py likelihood             patches and MNIST, full covariances, against 10 runs
    scripts/experiments/better_optima.py reads                  reads until within 1e-3 nats a row of plain EM's limit

Real data are read from --data (default: $EM_SHARED, else ../shared/data). scikit-learn's mixtures are started by its own
K-means and then fitted by our plain EM, which is the same to 1e-8 (tests/laws/test_equality_sklearn.py) and takes less of a night; one
run of each is scikit-learn's own, for its time.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pipeline
from pipeline.jobconfig import validate

NEAR = 1e-3  # nats a row
SETS = {"s1": 15, "s2": 15, "a1": 20, "a2": 35, "dim032": 16, "birch1": 100}
RUNS_KMEANS, RUNS_MIXTURE = 20, 10


def fitted(folder: Path, x: np.ndarray, model: dict[str, Any], fit: dict[str, Any]) -> tuple[Any, float]:
    """The model of a job on these rows, and its seconds from config to report."""
    np.save(folder / "rows.npy", x)
    config = {
        "data": {"source": "npy", "path": str(folder / "rows.npy")},
        "model": model,
        "fit": fit,
        "output": {"path": str(folder / "run"), "labels": False},
    }
    began = time.perf_counter()
    run = pipeline.run(validate(config), overwrite=True)
    return pipeline.open_run(run), time.perf_counter() - began


def centroid_index(found: np.ndarray, true: np.ndarray) -> int:
    """Centroids that no other set's centroid is nearest to, the larger of both ways. [Fränti and Sieranoja 2018]."""
    distance = ((found[:, None] - true) ** 2).sum(axis=2)
    return len(true) - min(len(np.unique(distance.argmin(axis=axis))) for axis in (0, 1))


def clustering(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and true centroids of a benchmark set."""
    if name == "dim032":
        with gzip.open(data / "clustering/dim032.txt.gz", "rt") as file:
            x = np.loadtxt(file, skiprows=1)
        return x, x.reshape(16, 64, 32).mean(axis=1)
    with gzip.open(data / f"clustering/{name}.data.gz", "rt") as file:
        x = np.loadtxt(file)
    with gzip.open(data / f"clustering/{name}.labels0.gz", "rt") as file:
        label = np.loadtxt(file).astype(int)
    return x, np.stack([x[label == k].mean(axis=0) for k in np.unique(label[label > 0])])


def clusters(data: Path, folder: Path, seeds: int) -> Iterator[str]:
    """Default settings and K: how often the centroid index is 0."""
    for name, k in SETS.items():
        x, true = clustering(data, name)
        for family, part in (("kmeans", "centers"), ("gaussian", "means")):
            found, seconds = [], []
            for seed in range(seeds):
                model, took = fitted(folder, x, {"family": family, "n_components": k}, {"random_state": seed})
                found.append(centroid_index(model[part].values, true))
                seconds.append(took)
            hits = found.count(0)
            yield f"{name:7} {family:8} index 0 in {hits} of {seeds}, worst {max(found)}; {np.median(seconds):.1f} s a job"


def inertia(data: Path, folder: Path, seeds: int) -> Iterator[str]:
    """MNIST: our inertia against the best of scikit-learn's runs, and our time against five of them."""
    from sklearn.cluster import KMeans

    x = mnist(data)
    for k in (20, 100):
        ends, times = [], []
        for seed in range(RUNS_KMEANS):
            began = time.perf_counter()
            ends.append(float(KMeans(k, n_init=1, random_state=seed).fit(x).inertia_))
            times.append(time.perf_counter() - began)
        yield f"MNIST K={k} scikit-learn: best {min(ends):.8g}, median {np.median(ends):.8g}; 5 runs {5 * np.median(times):.1f} s"
        for seed in range(seeds):
            model, took = fitted(folder, x, {"family": "kmeans", "n_components": k}, {"random_state": seed})
            ours = model.attrs["final_inertia"]
            yield f"MNIST K={k} seed {seed}: {ours:.8g}, {ours / min(ends) - 1:+.2e} of the best, {took:.1f} s"


def mnist(data: Path) -> np.ndarray:
    """(60000, 784) float32 pixels."""
    with gzip.open(data / "mnist/train-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784).astype(np.float32)


def principal(x: np.ndarray, d: int) -> np.ndarray:
    """Rows in their first d principal components, float32."""
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    vectors = np.linalg.eigh(centred.T @ centred / len(x))[1][:, ::-1][:, :d]
    return (centred @ vectors).astype(np.float32)


def patches() -> np.ndarray:
    """531,720 patches of 8 x 8 pixels without their means, (n, 63) float32."""
    from pipeline.data.sources.images import ImagesSection

    source = ImagesSection(path="photographs").open()
    return np.concatenate([source.read(i) for i in range(source.n_chunks)])


def likelihood(data: Path, folder: Path, seeds: int) -> Iterator[str]:
    """Final log-likelihood a row, full covariances: ours against the best of scikit-learn's without a collapse."""
    x = patches()
    yield from _likelihood("MNIST, PCA 50", principal(mnist(data), 50), 20, folder, seeds)
    yield from _likelihood("patches, PCA 16", principal(x, 16), 50, folder, seeds)
    yield from _likelihood("patches, 63 features", x, 100, folder, seeds)


def _likelihood(what: str, x: np.ndarray, k: int, folder: Path, seeds: int) -> Iterator[str]:
    from sklearn.cluster import KMeans

    ends = []
    for seed in range(RUNS_MIXTURE):
        np.save(folder / "labels.npy", KMeans(k, n_init=1, random_state=seed).fit(x).labels_)
        fit = {"method": "em", "init": "labels", "init_path": str(folder / "labels.npy")}
        model, _ = fitted(folder, x, {"n_components": k}, fit)
        least = float(model["n_effective"].values[-1].min())
        if least >= x.shape[1] + 1:
            ends.append(model.attrs["final_log_likelihood"] / len(x))
    theirs = scikit_learn_seconds(x, k)
    yield f"{what} K={k} scikit-learn: best {max(ends):.6f}, worst {min(ends):.6f} of {len(ends)}; one run {theirs:.1f} s"
    for seed in range(seeds):
        model, took = fitted(folder, x, {"n_components": k}, {"random_state": seed})
        ours = model.attrs["final_log_likelihood"] / len(x)
        yield f"{what} K={k} seed {seed}: {ours:.6f}, {ours - max(ends):+.6f} of the best, {took:.1f} s; {model.attrs['stop_reason']}"


def scikit_learn_seconds(x: np.ndarray, k: int) -> float:
    """Seconds of one default run of scikit-learn's GaussianMixture."""
    from sklearn.mixture import GaussianMixture

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged in 100 iterations
        GaussianMixture(k, random_state=0).fit(x)
    return time.perf_counter() - began


def reads(data: Path, folder: Path, seeds: int) -> Iterator[str]:
    """From the same starts: passes of plain EM and of the default, all rows counted, until within NEAR of EM's limit."""
    problems = {"overlapping blobs": (overlapping(), 8), "patches, PCA 16": (principal(patches(), 16), 20)}
    for what, (x, k) in problems.items():
        for begins in ("by fit.init", "given"):
            shares = []
            for seed in range(seeds):
                fit = {"random_state": seed} if begins == "by fit.init" else _given(folder / "start.npz", x, k, seed)
                plain, _ = fitted(
                    folder, x, {"n_components": k}, {**fit, "method": "em", "max_iter": 3000, "tol": 1e-8}
                )
                ours, _ = fitted(folder, x, {"n_components": k}, {**fit, "max_iter": 300, "tol": 1e-5})
                limit = plain.attrs["final_log_likelihood"] / len(x) - NEAR
                theirs, mine = _passes(plain, limit, len(x)), _passes(ours, limit, len(x))
                searched = sum(level["read"] for level in ours.attrs["search"]) / len(x)
                shares.append((searched + mine) / theirs)
                end = ours.attrs["final_log_likelihood"] / len(x) - limit - NEAR
                yield (
                    f"{what}, start {seed} {begins}: EM {theirs:.0f} passes, ours {searched:.2f} + {mine:.0f}; "
                    f"it ends {end:+.5f} from EM's limit"
                )
            yield f"{what}, starts {begins}: median {np.median(shares):.3f} of EM's reads; {sum(np.isinf(shares))} misses of {seeds}"


def _given(path: Path, x: np.ndarray, k: int, seed: int) -> dict[str, Any]:
    """fit, from rows drawn by the seed as means, with the covariance of all rows."""
    rng = np.random.default_rng(seed)
    means = x[rng.choice(len(x), k, replace=False)].astype(np.float64)
    np.savez(path, weights=np.full(k, 1.0 / k), means=means, covariances=np.stack([np.cov(x.T)] * k))
    return {"init": "explicit", "init_path": str(path)}


def _passes(model: Any, limit: float, n: int) -> float:
    """Passes up to the first E-step at or above a log-likelihood a row; inf if there is none."""
    values = np.append(model["log_likelihood"].values, model.attrs["final_log_likelihood"]) / n
    rows = np.append(model["rows"].values, n)
    reached = np.flatnonzero(values >= limit)
    return float(rows[: reached[0] + 1].sum() / n) if len(reached) else np.inf


def overlapping() -> np.ndarray:
    """50,000 rows of 8 Gaussians in 3 dimensions that overlap."""
    rng = np.random.default_rng(0)
    means = 1.5 * rng.normal(size=(8, 3))
    factors = rng.normal(scale=0.6, size=(8, 3, 3)) + 0.5 * np.eye(3)
    label = rng.integers(8, size=50_000)
    return means[label] + np.einsum("nij,nj->ni", factors[label], rng.normal(size=(50_000, 3)))


def main() -> int:
    """What was asked for."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = {"clusters": clusters, "inertia": inertia, "likelihood": likelihood, "reads": reads}
    parser.add_argument("what", choices=experiments)
    parser.add_argument("--seeds", type=int, default=8, help="of ours (default 8)")
    parser.add_argument("--data", type=Path, help="folder of the real data")
    given = parser.parse_args()
    shared = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    data = given.data or Path(os.environ.get("EM_SHARED", shared))
    with tempfile.TemporaryDirectory() as folder:
        for line in experiments[given.what](data, Path(folder), given.seeds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
