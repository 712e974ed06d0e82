"""Real image patches: one EM pass of 200 components over 8 x 8 patches, and a whole fit, against scikit-learn."""

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
STRIDE = 11  # of 400 pictures of 180 x 180 pixels: 102,400 patches
K_PASS, WARM_ITERATIONS, PASS_TARGET = 200, 5, 4.0
K_FIT, FIT_FEATURES, FIT_ITERATIONS, FIT_ROUNDS, FIT_TARGET = 50, 16, 30, 2, 15.0
SAME_FIT = 1e-6  # of the log-likelihoods at the end of both fits, relative
SAMPLE = 20_000


def prepared(data: DataSection, steps: list[Preprocess], k: int) -> tuple[Chunks, Mixture, Any]:
    """Preprocessed rows in memory, a model of k components, and a start from random rows.

    Components so begin wide: those of a k-means start may hold a few rows, which we reset and scikit-learn does not.
    """
    engine = Engine(workers=THREADS)
    stored = data.open_chunks()
    summary: DataSummary = summary_of(engine.sum_over(stored, [ProfileJob("matrix", SAMPLE, 0)])[0], steps)
    stored = replace(stored, affine=summary.affine)
    chunks = Chunks(InMemory(np.concatenate([stored.load(i).x for i in range(stored.n_chunks)])), clean=True)
    model = Mixture(Gaussian(k, summary.mean.astype(np.float32).astype(np.float64)))  # as a job rounds it
    (start,) = in_step([starting(model, "random", 1, 0, summary, KERNELS)], lambda jobs: engine.sum_over(chunks, jobs))
    return chunks, model, start[0]


def all_rows(chunks: Chunks) -> np.ndarray:
    """(n, d)."""
    return np.concatenate([chunks.load(i).x for i in range(chunks.n_chunks)])


def patches(setting: Setting) -> Iterator[Record]:
    """A pass from the parameters of a few iterations, where components are as ill-conditioned as they become."""
    data = ImagesSection(
        path=str(setting.real(PICTURES)),
        patch=Patch(size=(8, 8), stride=setting.pick(STRIDE, 40), remove_mean=True),
    )
    k = setting.pick(K_PASS, 20)
    with single_thread():
        chunks, model, start = prepared(data, [], k)
        params = fitted(Engine(workers=THREADS), chunks, model, start, WARM_ITERATIONS).params
    x = all_rows(chunks)
    peer = faster_blas(scikit_learn(x, "full", params))
    ways = {"ours": one_pass(chunks, model, params), "scikit-learn": peer}
    times = interleaved(ways, setting.rounds)
    yield compared(
        "patches",
        f"full d={x.shape[1]} K={k} {x.dtype}, patches",
        times,
        "scikit-learn",
        PASS_TARGET,
        **per_row(times, len(x), k),
        **implementation_shares(model, params, x.dtype),
        peer_blas_threads=peer.blas,
    )


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
        chunks, model, start = prepared(ImagesSection(path="photographs", patch=patch), steps, K_FIT)
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
