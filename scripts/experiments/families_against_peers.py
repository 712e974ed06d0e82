#!/usr/bin/env python3
"""CPU seconds of a pass of each family beside its peer's, on the same rows from the same start, in turns, on one thread.

    scripts/experiments/families_against_peers.py                        all but lda
    scripts/experiments/families_against_peers.py columns errors         some
    scripts/experiments/families_against_peers.py lda docword.kos.txt.gz

Peers (pip install hmmlearn stepmix faiss-cpu astroML gensim): hmmlearn (hmm_against_hmmlearn.py), scikit-learn's and gensim's topics
(lda_against_scikit_learn.py), scikit-learn's FactorAnalysis, StepMix, faiss and astroML's XDGMM. A pass is an E-step and an M-step over rows
in memory; of a peer that only fits, it is the time of a fit over its iterations. Ends with 1 where a result differs that must not.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.em.accumulate import method_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.tree import tree_sum
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families import FAMILIES

ROUNDS, CHUNK = 5, 2**16


class Ours:
    """A model of this package over rows in chunks, from labels that know nothing of the clusters. what : "missing", "errors" or none."""

    def __init__(self, x: np.ndarray, section: dict[str, Any], what: str = "", features: int | None = None) -> None:
        """x : (n, d).  section : of the model.  features : before columns of errors."""
        self.chunks = [Rows(x[a : a + CHUNK], None, a) for a in range(0, len(x), CHUNK)]
        found = FAMILIES[section["family"]].model_validate(section)
        profiles = (ProfileJob(found.second_moments, 200, 0, features)(chunk, KERNELS) for chunk in self.chunks)
        model = found.build(summary_of(tree_sum(profiles, lambda a, b: a + b), []), found.assignments[0])
        self.model = model.for_rows(what) if what else model
        first = self.model.starts_as or self.model
        order = np.argsort(np.argsort(np.nan_to_num(x[:, 0])))
        labels = order * self.model.n_components // len(x)
        params = first.m_step(first.label_statistics(first.plain(x), labels), None)
        self.params = params if first is self.model else self.model.started(params)
        self.start = self.params

    def evaluate(self, jobs: list[Any]) -> list[Any]:
        """What a pass of the engine does."""
        return [tree_sum((job(chunk, KERNELS) for chunk in self.chunks), lambda a, b: a + b) for job in jobs]

    def step(self) -> Any:
        """One pass; returns the sum of scores."""
        found = tree_sum(
            (self.model.e_step(self.params, chunk, KERNELS) for chunk in self.chunks),
            lambda a, b: a._replace(stats=a.stats + b.stats, evidence=a.evidence + b.evidence),
        )
        self.params = self.model.m_step(found.stats, self.params)
        return found.evidence.log_likelihood

    def fit(self, method: str, limit: int, tol: float) -> Run:
        """The finished run from the start."""
        bounds = np.array([0, *np.cumsum([chunk.n for chunk in self.chunks])])
        run = Run(0, self.model, self.start)
        *_, ([run], _) = em([run], self.evaluate, Limits(limit, tol), int(bounds[-1]), method_of(method, bounds, 0))
        return run


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and the result."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = action()
    return time.process_time() - began, found


def in_turns(what: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any], per: int = 1) -> None:
    """Print the medians of CPU seconds a pass, and their ratio. per : passes in a call of the peer."""
    ours()
    seconds = np.array([[timed(ours)[0], timed(theirs)[0] / per] for _ in range(ROUNDS)])
    mine, other = np.median(seconds, axis=0)
    print(f"{what:52} {mine:8.3f} CPU s a pass, {peer} {other:8.3f}: {other / mine:6.1f} times", flush=True)


def factor() -> bool:
    """K = 1: factor analysis, beside scikit-learn's by singular value decompositions."""
    from sklearn.decomposition import FactorAnalysis

    rng, n, d, q = np.random.default_rng(0), 20_000, 64, 4
    x = rng.normal(size=(n, q)) @ rng.normal(size=(q, d)) + rng.normal(size=(n, d)) * rng.uniform(0.5, 2.0, d)
    own, peer = (
        Ours(x, {"family": "factor", "n_components": 1, "rank": q}),
        FactorAnalysis(q, svd_method="lapack", max_iter=5, tol=0.0),
    )
    in_turns(f"factor, n={n} d={d} q={q} K=1", own.step, "FactorAnalysis", lambda: peer.fit(x), 5)
    run, best = own.fit("auto", 100, 1e-9), FactorAnalysis(q, svd_method="lapack", max_iter=500, tol=1e-8).fit(x)
    apart = run.log_likelihood / n - best.score(x)
    print(f"  nats a row over FactorAnalysis: {apart:.1e}, in {len(run.history)} passes; it took {best.n_iter_}")
    return apart > -1e-6


def columns() -> bool:
    """Columns of three kinds, whole and with missing cells, beside StepMix."""
    import pandas as pd
    from stepmix.stepmix import StepMix

    rng, n, k = np.random.default_rng(0), 100_000, 4
    kind = rng.integers(k, size=n)
    codes = np.minimum((rng.random((n, 1)) > (rng.dirichlet(np.ones(3), k) @ np.tri(3).T)[kind]).sum(axis=1), 2)
    yes = rng.random((n, 2)) < rng.uniform(0.1, 0.9, (k, 2))[kind]
    whole = np.column_stack([rng.normal(size=(k, 4))[kind] * 2 + rng.normal(size=(n, 4)), yes, codes])
    kinds = ["gaussian"] * 4 + ["bernoulli"] * 2 + ["categorical"]
    section = {"family": "columns", "n_components": k, "columns": {str(j): each for j, each in enumerate(kinds)}}
    for what in ("", "missing"):
        x = np.where(rng.random(whole.shape) < 0.2, np.nan, whole) if what else whole
        x = x[~np.isnan(x).all(axis=1)]
        frame, nan = pd.DataFrame(x, columns=[f"c{j}" for j in range(7)]), "_nan" if what else ""
        models = {"gaussian_diag": 4, "binary": 2, "categorical": 1}
        measurement = {name: {"model": name + nan, "n_columns": m} for name, m in models.items()}
        options = {"abs_tol": 1e-300, "rel_tol": 0, "random_state": 0, "progress_bar": 0, "max_iter": 5}
        peer, own = StepMix(k, measurement=measurement, **options), Ours(x, section, what)
        in_turns(f"columns, n={len(x)} d=7 K={k} {what}", own.step, "StepMix", lambda: peer.fit(frame), 5)  # noqa: B023  called here
    return True


def spherical() -> bool:
    """Spherical K-means beside faiss, from the same centres: the same objective after ten passes, to float32."""
    import faiss

    faiss.omp_set_num_threads(1)
    rng, n, d, k = np.random.default_rng(0), 2**18, 64, 100
    x = (2.0 * rng.normal(size=(k, d))[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    own = Ours(x, {"family": "spherical-kmeans", "n_components": k})
    first = np.ascontiguousarray(own.model.arrays(own.params)[own.model.location], np.float32)

    def theirs(passes: int) -> Any:
        options = {"spherical": True, "niter": passes, "max_points_per_centroid": n, "min_points_per_centroid": 1}
        peer = faiss.Kmeans(d, k, **options)
        peer.train(x, init_centroids=first)
        return peer

    in_turns(f"spherical-kmeans, n={n} d={d} K={k}", own.step, "faiss", lambda: theirs(5), 5)
    own.params, centers = own.start, theirs(10).centroids
    for _ in range(10):
        own.step()
    mine = own.model.arrays(own.params)[own.model.location]
    cosines = [float((x @ np.asarray(each, np.float32).T).max(axis=1).mean()) for each in (mine, centers)]
    print(f"  mean cosine after 10 passes: {cosines[0]:.6f}, faiss {cosines[1]:.6f}")
    return cosines[0] > cosines[1] - 1e-4


def errors() -> bool:
    """Rows with known errors: monotone at 10^6 rows; beside astroML's XDGMM on 20,000."""
    rng, d, k = np.random.default_rng(0), 3, 5
    means = 4.0 * rng.normal(size=(k, d))

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        variance = rng.gamma(2.0, 0.5, (n, d))
        return means[rng.integers(k, size=n)] + rng.normal(size=(n, d)) * np.sqrt(1.0 + variance), variance

    x, variance = drawn(20_000)
    section = {"family": "gaussian", "n_components": k, "reg_covar": 0.0}
    full = variance[:, :, None] * np.eye(d)
    own = Ours(np.column_stack([x, full.reshape(len(x), -1)]), section, "errors", d)
    good = True
    try:
        from astroML.density_estimation import XDGMM
    except ImportError:
        print("errors: without astroML, which is not installed")
    else:
        peer, theta = XDGMM(k), own.params.theta
        peer.mu, peer.V, peer.alpha = theta.means.copy(), theta.covariances.copy(), own.params.weights.copy()
        for _ in range(5):
            own.step()
            peer._EMstep(x, full)
        pairs = (
            (own.params.theta.means, peer.mu),
            (own.params.theta.covariances, peer.V),
            (own.params.weights, peer.alpha),
        )
        apart = max(float(np.abs(a - b).max()) for a, b in pairs)
        in_turns(f"errors (XD), n={len(x)} d={d} K={k}", own.step, "XDGMM", lambda: peer._EMstep(x, full))
        print(f"  largest difference of a parameter after 5 passes: {apart:.1e}")
        good = apart < 1e-8
    x, variance = drawn(10**6)
    own = Ours(np.column_stack([x, variance]), section, "errors", d)
    seconds, run = timed(lambda: own.fit("auto", 8, 0.0))
    trace = np.array([*(entry.objective for entry in run.history), run.objective])
    low, passes = float(np.diff(trace).min()), len(run.history) + 1
    print(
        f"errors (XD), n=10^6: {passes} passes, {seconds / passes:.2f} CPU s each; smallest gain {low:.2e} nats in all"
    )
    return good and low >= -1e-12 * np.abs(trace).max()


def hmm() -> bool:
    """Every kind of emissions beside hmmlearn."""
    import hmm_against_hmmlearn as script

    sys.argv[1:] = ["--units", "2000"]
    return script.main() == 0


def lda(path: str) -> bool:
    """Topics of a word-count file beside scikit-learn and gensim."""
    import lda_against_scikit_learn as script

    sys.argv[1:] = [path, "--passes", "30", "--seeds", "2"]
    return script.main() == 0


if __name__ == "__main__":
    every = {"factor": factor, "columns": columns, "spherical": spherical, "errors": errors, "hmm": hmm}
    names = sys.argv[1:]
    with threadpool_limits(1):
        if names[:1] == ["lda"]:
            sys.exit(int(not lda(names[1])))
        sys.exit(int(not all([every[name]() for name in names or every])))
