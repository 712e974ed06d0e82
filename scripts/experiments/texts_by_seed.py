#!/usr/bin/env python3
"""Whether the search for a mixture of multinomials ends in the same optimum with other seeds.

    scripts/experiments/texts_by_seed.py docword.kos.txt.gz              the texts of a UCI bag of words, and two more sets
    scripts/experiments/texts_by_seed.py docword.kos.txt.gz --seeds 3    fewer fits

The two other sets: scikit-learn's 1,797 digits, whose 64 pixels are counts to 16, and 5,000 documents drawn from 20 multinomials of
2,000 words, whose weights fall from 1 to 1/20. Prints the log-likelihood of each fit, in nats a document from the best, and that of
EM from the words' true probabilities.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.datasets import load_digits

import pipeline


def drawn(k: int = 20, n: int = 5000, words: int = 2000, ratio: float = 20.0) -> tuple[sp.csr_array, np.ndarray]:
    """Documents of known multinomials, and the logarithms of these."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(words, 0.1), size=k) * 0.3 + rng.dirichlet(np.full(words, 0.1)) * 0.7
    weights = ratio ** -np.linspace(0.0, 1.0, k)
    label = rng.choice(k, n, p=weights / weights.sum())
    lengths = rng.integers(20, 200, n)
    counts = np.stack([rng.multinomial(m, shares[j]) for m, j in zip(lengths, label, strict=True)])
    return sp.csr_array(counts.astype(np.float64)), np.log(shares)


def fits(name: str, x: Any, k: int, seeds: int, truth: np.ndarray | None = None) -> None:
    """A line for one set of documents."""
    found, seconds = [], []
    for seed in range(seeds):
        began = time.process_time()
        found.append(pipeline.MultinomialMixture(k, method="auto", random_state=seed).fit(x).score(x))
        seconds.append(time.process_time() - began)
    best = max(found)
    from_truth = ""
    if truth is not None:
        start = pipeline.MultinomialMixture(k, method="em", tol=1e-6, max_iter=1000, feature_log_prob_init=truth)
        from_truth = f"{start.fit(x).score(x) - best:+.4f}"
    cells = ", ".join(f"{value - best:+.4f}" for value in found)
    print(f"| {name} | {k} | {best:.4f} | {cells} | {from_truth} | {np.mean(seconds):.1f} |", flush=True)


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docword", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    words = parser.parse_args()
    print(
        "| documents | K | best, nats a document | each seed from it | from the truth | CPU seconds |\n|---|---|---|---|---|---|"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits("digits", load_digits().data, 10, words.seeds)
        documents, truth = drawn()
        fits("drawn", documents, 20, words.seeds, truth)
        document, word, count = np.loadtxt(words.docword, dtype=np.int64, skiprows=3).T
        x = sp.csr_array((count.astype(np.float64), (document - 1, word - 1)))
        for k in (5, 20):
            fits(words.docword.name, x, k, words.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
