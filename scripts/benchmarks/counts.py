"""One EM pass of a multinomial mixture over KOS tiled to 200,000 documents, against two sparse products of scipy."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.common import THREADS, InMemory, Record, Setting, Way, compared, interleaved, one_pass, relative
from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.data.sources.docword import DocwordSection
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.multinomial import Multinomial
from pipeline.models.mixture import Mixture

K, DOCUMENTS, WARM_ITERATIONS, TARGET = 50, 200_000, 10, 3.0
Sums = tuple[np.ndarray, np.ndarray, float]


def kos(path: Path, cache: Path) -> sp.csr_array:
    """The counts of KOS, as a job reads them. cache : where the converted copy goes."""
    source = DocwordSection(path=str(path), cache=str(cache)).open()
    return sp.csr_array(sp.vstack([source.read(i) for i in range(source.n_chunks)], format="csr"))


def e_step(x: sp.csr_array, log_weights: np.ndarray, log_prob: np.ndarray) -> Sums:
    """Soft counts, expected counts, log-likelihood without coefficients. x : (n, v) float64.  log_prob : (k, v)."""
    resp = x @ log_prob.T
    resp += log_weights
    peak = resp.max(axis=1, keepdims=True)
    np.exp(resp - peak, out=resp)
    total = resp.sum(axis=1, keepdims=True)
    resp /= total
    return resp.sum(axis=0), x.T @ resp, float(np.sum(peak + np.log(total)))


def counts(setting: Setting) -> Iterator[Record]:
    """The reference never makes the counts dense; its products use one thread, or two over halves of the rows."""
    once = kos(setting.real("bow/docword.kos.txt.gz"), setting.folder / "kos")
    n, v = setting.pick(DOCUMENTS, 7_000), once.shape[1]
    x = sp.csr_array(sp.vstack([once] * -(-n // once.shape[0]), format="csr")[:n])
    model = Mixture(Multinomial(K, v))
    labels = np.random.default_rng(0).integers(0, K, once.shape[0])
    params = model.m_step(model.label_statistics(once, labels, None), None)
    for _ in range(WARM_ITERATIONS):  # responsibilities as they are in the middle of a fit
        params = model.m_step(model.e_step(params, Rows(once), KERNELS).stats, params)
    real = x.astype(np.float64)  # what the reference would hold
    parts = [real[part] for part in np.array_split(np.arange(n), THREADS)]
    log_weights, pool = np.log(params.weights), ThreadPoolExecutor(THREADS)

    def plain() -> Sums:
        return e_step(real, log_weights, params.theta.log_prob)

    def threaded() -> Sums:
        found = pool.map(lambda part: e_step(part, log_weights, params.theta.log_prob), parts)
        return reduce(lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]), found)

    ways = {
        "ours": one_pass(Chunks(InMemory(x), clean=True), model, params),
        "scipy, 1 thread": Way(plain),
        "scipy, 2 threads": Way(threaded),
    }
    times = interleaved(ways, setting.rounds)
    found = times["ours"].result
    apart = relative(
        found.evidence.log_likelihood - found.stats.component.log_coefficient, times["scipy, 1 thread"].result[2]
    )
    for peer, target in (("scipy, 1 thread", TARGET), ("scipy, 2 threads", None)):
        yield compared(
            "counts",
            f"multinomial K={K}, {n} documents, against {peer}",
            times,
            peer,
            target,
            n=n,
            words=v,
            stored=int(x.nnz),
            ours_us_per_document=times["ours"].median / n * 1e6,
            log_likelihoods_apart=apart,
        )
