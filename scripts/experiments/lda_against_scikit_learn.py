#!/usr/bin/env python3
"""Latent Dirichlet allocation beside scikit-learn's batch LatentDirichletAllocation, and gensim's LdaModel where it is installed (pip install gensim): perplexity
per word of held-out documents, and CPU.

    scripts/experiments/lda_against_scikit_learn.py docword.kos.txt.gz                 20 topics, 3 seeds
    scripts/experiments/lda_against_scikit_learn.py docword.kos.txt.gz --passes 30     fewer passes each

Every tenth document is held out. Both fits make the same number of passes; ours begin with `fit.init: random`, as scikit-learn's do.
Topics of both are scored in two ways, by one program for both: the mean-field bound of held-out documents, under the model's own alpha; and
document completion, where the shares of topics come from every other word of a document and the rest is scored, which no bound favours.
CPU seconds are those of this process and one thread, for a pass. Ends with 1 where ours is worse on the mean of the seeds than a peer.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import LatentDirichletAllocation

from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.sources.docword import DocwordSection
from pipeline.em.accumulate import method_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.kernels.base import TopicsProblem
from pipeline.kernels.counts import log_coefficients
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.lda import LatentDirichlet
from pipeline.models.starts import in_step, starting

EVERY = 10  # documents, of which one is held out


class Fit(NamedTuple):
    """alpha : (k,).  log_prob : (k, v).  seconds : of CPU, a pass."""

    alpha: np.ndarray
    log_prob: np.ndarray
    seconds: float


def ours(x: sp.csr_array, k: int, passes: int, seed: int, prior: float | None, method: str) -> Fit:
    """This program's fit, in one thread."""
    model = LatentDirichlet(k, x.shape[1], prior=prior)
    profile = ProfileJob("none", 2000, seed)(Rows(x), KERNELS)

    def evaluate(jobs: list) -> list:
        return [job(Rows(x), KERNELS) for job in jobs]

    [[params]] = in_step([starting(model, "random", 1, seed, summary_of(profile, []), KERNELS)], evaluate)
    model.e_step(params, Rows(x[:50]), KERNELS)  # compiles
    began = time.process_time()
    way = method_of(method, np.array([0, x.shape[0]]), seed)
    *_, ([run], _) = em([Run(0, model, params)], evaluate, Limits(passes, 0.0), x.shape[0], way)
    seconds = (time.process_time() - began) / (len(run.history) + 1)
    return Fit(run.params.alpha, run.params.log_prob, seconds)


def scikit_learns(x: sp.csr_array, k: int, passes: int, seed: int) -> Fit:
    """The peer's fit with its defaults, by full batches."""
    peer = LatentDirichletAllocation(k, learning_method="batch", max_iter=passes, random_state=seed, n_jobs=1)
    began = time.process_time()
    peer.fit(sp.csr_matrix(x))
    seconds = (time.process_time() - began) / passes
    prob = peer.components_ / peer.components_.sum(axis=1, keepdims=True)
    return Fit(np.full(k, peer.doc_topic_prior_), np.log(prob), seconds)


def gensims(x: sp.csr_array, k: int, passes: int, seed: int) -> Fit:
    """gensim's fit by full batches, with alpha learned."""
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel

    corpus = Sparse2Corpus(sp.csc_matrix(x.T), documents_columns=True)
    words = {j: str(j) for j in range(x.shape[1])}
    options = {"chunksize": x.shape[0], "update_every": 0, "eval_every": None, "alpha": "auto", "eta": 1.0 / k}
    began = time.process_time()
    peer = LdaModel(list(corpus), k, words, passes=passes, random_state=seed, dtype=np.float64, **options)
    seconds = (time.process_time() - began) / passes
    return Fit(peer.alpha, np.log(np.maximum(peer.get_topics(), np.finfo(float).tiny)), seconds)


def perplexities(fit: Fit, x: sp.csr_array) -> tuple[float, float]:
    """By the bound, and by document completion, of documents."""
    problem = TopicsProblem(fit.alpha, np.asfortranarray(fit.log_prob), 1e-8, shares=True)
    bound = KERNELS.topics_pass(problem, x, None).bound - log_coefficients(x)
    seen, rest = halves(x)
    shares = KERNELS.topics_pass(problem, seen, None).shares
    rows, words = rest.nonzero()
    prob = np.einsum("nk,nk->n", shares[rows], np.exp(fit.log_prob[:, words]).T)
    return float(np.exp(-bound.sum() / x.sum())), float(np.exp(-(rest.data @ np.log(prob)) / rest.sum()))


def halves(x: sp.csr_array) -> tuple[sp.csr_array, sp.csr_array]:
    """Every other word of each document, in the order of the vocabulary, and the others."""
    ends = np.cumsum(x.data)
    before = np.concatenate([[0], ends[:-1]])
    odd = (ends + 1) // 2 - (before + 1) // 2  # words at even places of all words in a row
    parts = [sp.csr_array((part, x.indices.copy(), x.indptr.copy()), shape=x.shape) for part in (odd, x.data - odd)]
    for part in parts:
        part.eliminate_zeros()
    return parts[0], parts[1]


def main() -> int:
    """Print a line for each fit, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--topics", type=int, default=20)
    parser.add_argument("--passes", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = DocwordSection(path=str(options.path), cache=folder).open()
        x = sp.csr_array(sp.vstack([source.read(i) for i in range(source.n_chunks)], format="csr"))
    x = x[np.diff(x.indptr) > 0]
    out = np.arange(x.shape[0]) % EVERY == 0
    train, test, k = x[~out], x[out], options.topics
    peers = {"scikit-learn": scikit_learns, "gensim": gensims if importlib.util.find_spec("gensim") else None}
    ways = {
        **{name: partial(peer, train, k, options.passes) for name, peer in peers.items() if peer},
        "alpha = 1/K, em": lambda seed: ours(train, k, options.passes, seed, 1.0 / k, "em"),
        "alpha learned, em": lambda seed: ours(train, k, options.passes, seed, None, "em"),
        "alpha learned, auto": lambda seed: ours(train, k, options.passes, seed, None, "auto"),
    }
    print(
        f"{train.shape[0]} documents, {test.shape[0]} held out, {k} topics, {options.passes} passes; perplexity per word"
    )
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for seed in range(options.seeds):
        for name, way in ways.items():
            fit = way(seed)
            found[name].append((*perplexities(fit, test), fit.seconds))
            bound, completed, seconds = found[name][-1]
            print(
                f"seed {seed}  {name:20}  bound {bound:8.1f}  completion {completed:8.1f}  {seconds:.3f} CPU s a pass",
                flush=True,
            )
    means = {name: np.mean(lines, axis=0) for name, lines in found.items()}
    for name, mean in means.items():
        print(f"mean    {name:20}  bound {mean[0]:8.1f}  completion {mean[1]:8.1f}  {mean[2]:.3f} CPU s a pass")
    best, others = means["alpha learned, auto"], [means[name] for name in peers if name in means]
    return int(any((best[:2] > other[:2]).any() for other in others))


if __name__ == "__main__":
    sys.exit(main())
