"""An EM pass of a Gaussian mixture, E-step and M-step, in memory: against scikit-learn, and against the GEMM peak."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    interleaved,
    one_pass,
    record,
    relative,
)
from benchmarks.mixtures import draw, random_mixture, without_structure
from pipeline.data.chunks import Chunks
from pipeline.data.source import TARGET_BYTES

CHUNKS = 8
# covariance type, d, K, dtype: at least so many times faster than scikit-learn
CASES = {
    ("full", 2, 10, "float32"): 100.0,
    ("full", 8, 32, "float32"): 50.0,
    ("full", 16, 64, "float32"): 18.0,
    ("full", 64, 200, "float32"): 5.0,
    ("full", 2, 10, "float64"): 50.0,
    ("full", 8, 32, "float64"): 25.0,
    ("full", 16, 64, "float64"): 12.0,
    ("full", 64, 200, "float64"): 5.0,
    **{(kind, 64, 200, dtype): 5.0 for dtype in ("float32", "float64") for kind in ("diag", "spherical", "tied")},
}
GEMM_SHARE = 75.0  # %
GEMM_SIZE = 4096


def n_rows(d: int, dtype: str, setting: Setting) -> int:
    """CHUNKS chunks of the project's size; few rows in a quick run."""
    return setting.pick(CHUNKS * TARGET_BYTES // (d * np.dtype(dtype).itemsize), 20_000)


def scikit_learn(x: np.ndarray, covariance_type: str, params: Any) -> Way:
    """scikit-learn's E-step and M-step of one iteration of `GaussianMixture.fit`; returns log p(X) / n.

    params : weights, means and covariances where the iteration starts.
    """
    from sklearn.mixture import GaussianMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    peer = GaussianMixture(len(params.weights), covariance_type=covariance_type)
    precisions = _compute_precision_cholesky(params.theta.covariances, covariance_type)
    arrays = [params.weights, params.theta.means, params.theta.covariances, precisions]
    weights, means, covariances, precisions = (np.asarray(array, x.dtype) for array in arrays)

    def run() -> float:
        peer.weights_, peer.means_, peer.covariances_ = weights, means, covariances
        peer.precisions_cholesky_ = precisions
        log_likelihood, log_resp = peer._e_step(x)
        peer._m_step(x, log_resp)
        return float(log_likelihood)

    return Way(run, openmp=THREADS)


def gaussian(setting: Setting) -> Iterator[Record]:
    """Passes over rows of a random mixture, from its own parameters."""
    for (kind, d, k, dtype), target in CASES.items():
        mixture = random_mixture(d, k)
        x = draw(mixture, n_rows(d, dtype, setting) // (2 if d > 16 else 1), dtype)  # or a round takes minutes
        model, params = mixture.model(kind)
        peer = faster_blas(scikit_learn(x, kind, params))
        ways = {"ours": one_pass(Chunks(InMemory(x), clean=True), model, params), "scikit-learn": peer}
        times = interleaved(ways, setting.rounds)
        details = {**per_row(times, len(x), k), "peer_blas_threads": peer.blas}
        yield compared("gaussian", f"{kind} d={d} K={k} {dtype}", times, "scikit-learn", target, **details)


def per_row(times: dict[str, Any], n: int, k: int) -> Record:
    """Wall ns per row and component, and how far apart the two log-likelihoods are."""
    ours, peer = times["ours"], times["scikit-learn"]
    return {
        "n": n,
        "ours_ns": ours.median / n / k * 1e9,
        "peer_ns": peer.median / n / k * 1e9,
        "log_likelihoods_apart": relative(ours.result.evidence.log_likelihood / n, peer.result),
    }


def gemm(setting: Setting) -> Iterator[Record]:
    """The pass's matrix products as a share of the rate at which this machine multiplies matrices, on rows that need them all."""
    d, k = 64, 200
    n = n_rows(d, "float32", setting)
    model, params, x = without_structure(d, k, n)
    ways = {
        "ours": one_pass(Chunks(InMemory(x), clean=True), model, params),
        "sgemm": _sgemm(setting.pick(GEMM_SIZE, 512)),
    }
    times = interleaved(ways, setting.rounds)
    peak = times["sgemm"].result / min(times["sgemm"].seconds)
    p = d * (d + 1) // 2 + d + 1
    rate = 2 * 2 * n * p * k / times["ours"].median
    yield record(
        "gemm",
        f"full d={d} K={k} float32",
        "% of GEMM peak",
        100 * rate / peak,
        GEMM_SHARE,
        rounds=setting.rounds,
        n=n,
        **times["ours"].fields("ours"),
        peer="sgemm, 2 threads",
        **times["sgemm"].fields("peer"),
        gflops=rate / 1e9,
        peak_gflops=peak / 1e9,
    )


def _sgemm(size: int) -> Way:
    """THREADS square products at once, each of one BLAS thread; returns their flops."""
    rng = np.random.default_rng(0)
    operands = [tuple(rng.standard_normal((3, size, size), dtype=np.float32)) for _ in range(THREADS)]
    pool = ThreadPoolExecutor(THREADS)

    def run() -> float:
        list(pool.map(lambda abc: np.matmul(abc[0], abc[1], out=abc[2]), operands))
        return THREADS * 2.0 * size**3

    return Way(run)
