"""What the search for a start costs: CPU seconds beside those of the fit from it, and of a fit without it, of the Python classes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.common import Record, Setting, SkippedError, record
from benchmarks.mixtures import draw, random_mixture
from benchmarks.mnist import pictures
from benchmarks.patches import all_rows
from pipeline import GaussianMixture, KMeans
from pipeline.data.patch import Patch
from pipeline.data.sources.images import ImagesSection
from pipeline.em.search import Search

MOST = 2.0  # of the search over the fit
Fit = tuple[type[Any], int, dict[str, Any]]  # the class, K, further arguments


def blobs(n: int, d: int, clusters: int) -> np.ndarray:
    """Rows of spherical Gaussians, (n, d) float32."""
    rng = np.random.default_rng(0)
    means = 5.0 * rng.normal(size=(clusters, d))
    return (means[rng.integers(clusters, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def _photographs(setting: Setting) -> np.ndarray:
    return all_rows(ImagesSection(path="photographs", patch=Patch(size=(8, 8), stride=2)).open_chunks())


PROBLEMS: dict[str, tuple[Callable[[Setting], np.ndarray], Fit]] = {
    "blobs n=5e3 d=2": (lambda _: blobs(5000, 2, 10), (GaussianMixture, 10, {})),
    "the same rows": (lambda _: blobs(5000, 2, 10), (KMeans, 10, {})),
    "60 blobs n=5e3 d=16": (lambda _: blobs(5000, 16, 60), (KMeans, 500, {})),
    "mixture n=2e4 d=10": (lambda _: draw(random_mixture(10, 20), 20_000), (GaussianMixture, 20, {})),
    "100 blobs n=1e5 d=2": (lambda _: blobs(100_000, 2, 100), (KMeans, 100, {})),
    "mixture n=1e5 d=8": (lambda _: draw(random_mixture(8, 32), 100_000), (GaussianMixture, 32, {})),
    "mixture n=1e5 d=16": (
        lambda _: draw(random_mixture(16, 16), 100_000),
        (GaussianMixture, 16, {"covariance_type": "diag"}),
    ),
    "patches n=1.3e5 d=63": (_photographs, (GaussianMixture, 20, {})),
    "MNIST n=6e4 d=784": (lambda setting: pictures(setting).astype(np.float32), (KMeans, 20, {})),
    "blobs n=1e6 d=2": (lambda _: blobs(10**6, 2, 10), (GaussianMixture, 10, {})),
    "mixture n=1e6 d=16": (lambda _: draw(random_mixture(16, 64), 10**6), (KMeans, 64, {})),
    "mixture n=1e6 d=8": (lambda _: draw(random_mixture(8, 20), 10**6), (GaussianMixture, 20, {})),
}


def search(setting: Setting) -> Iterator[Record]:
    """One fit each, after one of the same class in the process."""
    warnings.simplefilter("ignore")  # fits that stop at max_iter
    for made in (GaussianMixture, KMeans):  # loads kernels
        made(2, method="auto", random_state=0, **_start(made)).fit(blobs(500, 2, 2))
    for name, (rows, (made, k, arguments)) in PROBLEMS.items():
        try:
            x = rows(setting)[:: setting.pick(1, 20)]
        except SkippedError as reason:
            print(f"search: without {name}: {reason}", flush=True)
            continue
        k, case = min(k, len(x) // 5), f"{made.__name__} K={k}, {name}"
        of_search, whole, fitted = measured(made, k, {"method": "auto", **arguments}, x)
        _, plain, other = measured(made, k, {"method": "em", **arguments}, x)
        details = {"n": len(x), "n_iter": fitted.n_iter_, "objective": _objective(fitted)}
        times = {"ours_s": of_search, "peer": "the fit from it", "peer_s": whole - of_search}
        yield record(
            "search", case, "x the fit from it", of_search / (whole - of_search), MOST, "<=", **times, **details
        )
        details |= {"peer_n_iter": other.n_iter_, "peer_objective": _objective(other)}
        times = {"ours_s": whole, "peer": "a fit without search", "peer_s": plain}
        yield record("search", f"{case}, with the fit", "x a fit without", whole / plain, None, **times, **details)


def _objective(fitted: Any) -> float:
    """Nats a row, or the inertia."""
    return float(fitted.inertia_ if isinstance(fitted, KMeans) else fitted.lower_bound_)


def measured(made: type[Any], k: int, arguments: dict[str, Any], x: np.ndarray) -> tuple[float, float, Any]:
    """CPU seconds of the search and of all, and the fitted estimator. Measured from outside, so that it is in no code of users."""
    spent, own = [0.0], Search.__call__

    def timed(self: Search, model: Any) -> Any:
        began = time.process_time()
        found = own(self, model)
        spent[0] = time.process_time() - began
        return found

    Search.__call__ = timed  # type: ignore[method-assign]
    try:
        began = time.process_time()
        fitted = made(k, random_state=0, **_start(made), **arguments).fit(x)
        return spent[0], time.process_time() - began, fitted
    finally:
        Search.__call__ = own  # type: ignore[method-assign]


def _start(made: type[Any]) -> dict[str, str]:
    return {"init" if made is KMeans else "init_params": "k-means||"}
