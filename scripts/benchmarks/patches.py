"""Real image patches: EM passes over 8 x 8 patches, and a whole fit, against scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
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
    record,
    relative,
)
from benchmarks.gaussian import per_row, scikit_learn
from pipeline.config import Preprocess
from pipeline.data.chunks import Chunks
from pipeline.data.patch import Patch
from pipeline.data.profile import DataSummary, ProfileJob, summary_of
from pipeline.data.section import DataSection
from pipeline.data.sources.images import ImagesSection
from pipeline.engine.blas import single_thread
from pipeline.engine.passes import Engine
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture
from pipeline.models.starts import in_step, starting

PICTURES = "images/train400"
STRIDE = 8  # of 400 pictures of 180 x 180 pixels: 193,600 patches
WARM_ITERATIONS = 20  # from a start by k-means||: components are as ill-conditioned as they become
# principal components (0: none), K: at least so many times faster than scikit-learn
PASSES = {(0, 200): 20.0, (0, 1000): 20.0, (16, 64): 60.0}
GROWTH = (0, 200), (0, 1000), 2.5  # a pass of the second over all rows costs at most so many times one of the first
PEER_COMPONENTS = 200  # with more, the peer's pass takes minutes: both are compared on as many rows fewer
FIT_TARGET = 40.0
K_FIT, FIT_FEATURES, FIT_ITERATIONS, FIT_ROUNDS = 50, 16, 30, 2
SAME_FIT = 1e-6  # of the log-likelihoods at the end of both fits, relative
SAMPLE = 20_000


def prepared(data: DataSection, steps: list[Preprocess], k: int, init: str) -> tuple[Chunks, Mixture, Any]:
    """Preprocessed rows in memory, a model of k components, and a start by `init`."""
    engine = Engine(workers=THREADS)
    stored = data.open_chunks()
    summary: DataSummary = summary_of(engine.sum_over(stored, [ProfileJob("matrix", SAMPLE, 0)])[0], steps)
    stored = replace(stored, affine=summary.affine)
    chunks = Chunks(InMemory(np.concatenate([stored.load(i).x for i in range(stored.n_chunks)])), clean=True)
    model = Mixture(Gaussian(k, summary.mean.astype(np.float32).astype(np.float64)))  # as a job rounds it
    (start,) = in_step([starting(model, init, 1, 0, summary, KERNELS)], lambda jobs: engine.sum_over(chunks, jobs))
    return chunks, model, start[0]


def all_rows(chunks: Chunks) -> np.ndarray:
    """(n, d)."""
    return np.concatenate([chunks.load(i).x for i in range(chunks.n_chunks)])


def patches(setting: Setting) -> Iterator[Record]:
    """Passes from the parameters of a few iterations, and what five times as many components cost."""
    patch = Patch(size=(8, 8), stride=setting.pick(STRIDE, 40), remove_mean=True)
    data, seconds = ImagesSection(path=str(setting.real(PICTURES)), patch=patch), {}
    for (n_principal, k_full), target in PASSES.items():
        k = setting.pick(k_full, k_full // 10)
        steps = [Preprocess(kind="pca", n_components=n_principal)] if n_principal else []
        with single_thread():
            chunks, model, start = prepared(data, steps, k, "k-means||")
            params = fitted(Engine(workers=THREADS), chunks, model, start, setting.pick(WARM_ITERATIONS, 2)).params
        whole = interleaved({"ours": one_pass(chunks, model, params)}, setting.rounds)
        seconds[n_principal, k_full] = whole["ours"].median
        x = np.ascontiguousarray(all_rows(chunks)[:: -(-k // PEER_COMPONENTS)])
        peer = faster_blas(scikit_learn(x, "full", params))
        ours = one_pass(Chunks(InMemory(x), clean=True), model, params)
        times = interleaved({"ours": ours, "scikit-learn": peer}, setting.rounds)
        yield compared(
            "patches",
            f"full d={x.shape[1]} K={k} {x.dtype}, {len(x)} patches",
            times,
            "scikit-learn",
            target,
            **per_row(times, len(x), k),
            **implementation_shares(model, params, x.dtype),
            all_rows_s=seconds[n_principal, k_full],
            pairs_computed=times["ours"].result.evidence.skipped.share,
            peer_blas_threads=peer.blas,
        )
    few, many, limit = GROWTH
    growth = seconds[many] / seconds[few]
    yield record("patches", f"a pass of K={many[1]} over one of K={few[1]}", "x the time", growth, limit, "<=")


def implementation_shares(model: Mixture, params: Any, dtype: Any) -> Record:
    """Percent of the components whose densities, and whose moments, each implementation computes."""
    found = {}
    for name, (densities, moments) in model.implementations(params, np.dtype(dtype), KERNELS).items():
        found[f"densities_by_{name}_%"] = 100 * densities / model.n_components
        found[f"moments_by_{name}_%"] = 100 * moments / model.n_components
    return found


def fit(setting: Setting) -> Iterator[Record]:
    """A whole fit of FIT_ITERATIONS iterations to the patches of scikit-learn's two photographs, from one start.

    Both fits are judged by one float64 E-step: what scikit-learn says of float32 rows is itself off by 1e-6.
    """
    patch = Patch(size=(8, 8), stride=setting.pick(1, 3), remove_mean=True)
    steps = [Preprocess(kind="pca", n_components=FIT_FEATURES)]
    with single_thread():
        # From random rows components begin wide: those of k-means may hold a few rows, which we reset and the peer does not.
        chunks, model, start = prepared(ImagesSection(path="photographs", patch=patch), steps, K_FIT, "random")
        one_pass(chunks, model, start).run()  # compiles the kernels: no fit is run twice for that
    n, n_iter = chunks.n_rows, setting.pick(FIT_ITERATIONS, 3)
    ours = Way(lambda: fitted(Engine(workers=THREADS), chunks, model, start, n_iter))
    x = all_rows(chunks)
    blas = faster_blas(scikit_learn(x, "full", start)).blas
    ways = {
        "ours": ours,
        "scikit-learn": _scikit_learn_fit(x, start, model.component.reg_covar, n_iter)._replace(blas=blas),
    }
    times = interleaved(ways, min(setting.rounds, FIT_ROUNDS), warm=False)
    run, judge = times["ours"].result, Chunks(InMemory(x.astype(np.float64)), clean=True)
    with single_thread():
        reached = [
            one_pass(judge, model, params).run().evidence.log_likelihood / n
            for params in (run.params, model.params(**times["scikit-learn"].result))
        ]
    apart = relative(*reached)
    yield compared(
        "fit",
        f"full d={FIT_FEATURES} K={K_FIT}, {n} patches, {n_iter} iterations",
        times,
        "scikit-learn",
        FIT_TARGET,
        n=n,
        log_likelihood_per_row=reached[0],
        peer_log_likelihood_per_row=reached[1],
        log_likelihoods_apart=apart,
        peer_blas_threads=blas,
        resets=len(run.resets),  # of collapsed components, which no peer does: 0, or the fits are not the same
        same_fit=bool(apart <= SAME_FIT),
        reaches_peer=bool(reached[0] >= reached[1] - SAME_FIT * abs(reached[1])),
    )


def _scikit_learn_fit(x: np.ndarray, start: Any, reg_covar: float, n_iter: int) -> Way:
    """`GaussianMixture.fit`; returns its weights, means and covariances, float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    weights, means, precisions = (
        array.astype(x.dtype) for array in (start.weights, start.theta.means, np.linalg.inv(start.theta.covariances))
    )

    def run() -> dict[str, np.ndarray]:
        peer = GaussianMixture(
            len(weights),
            max_iter=n_iter,
            tol=0.0,
            reg_covar=reg_covar,
            weights_init=weights,
            means_init=means,
            precisions_init=precisions,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # tol = 0 never converges
            peer.fit(x)
        fitted_ = {"weights": peer.weights_, "means": peer.means_, "covariances": peer.covariances_}
        return {name: array.astype(np.float64) for name, array in fitted_.items()}

    return Way(run, openmp=THREADS)
