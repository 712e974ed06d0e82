#!/usr/bin/env python3
"""What an E-step that leaves out pairs of a row and a component saves, and that it changes nothing.

    scripts/experiments/skipped_pairs.py                 all data sets
    scripts/experiments/skipped_pairs.py photographs     some of them; --rounds for more repeats

A line a data set: the share of the pairs whose density was computed; CPU seconds of a pass of one thread with and without
leaving out, in turn, medians, and of scikit-learn's E-step and M-step; then, in float64 and by the same kernels, the largest
relative difference of a row's log-density, and of the log-likelihoods of five iterations, between leaving out and not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gaussian import scikit_learn
from benchmarks.mixtures import draw, random_mixture

from pipeline.arrays.rows import Rows
from pipeline.data.patch import Patch
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.sources.images import ImagesSection
from pipeline.engine.blas import single_thread
from pipeline.engine.passes import Engine
from pipeline.kernels import gaussian, pruned
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture
from pipeline.models.starts import in_step, starting

K, SIDE, ITERATIONS = 200, 8, 20
ROWS = 2**15  # that are timed


def photographs(init: str) -> tuple[Mixture, Any, np.ndarray]:
    """33,390 patches of scikit-learn's photographs, 63 features, after 20 iterations."""
    chunks = ImagesSection(path="photographs", patch=Patch(size=(SIDE, SIDE), stride=4)).open_chunks()
    engine = Engine()
    summary = summary_of(engine.sum_over(chunks, [ProfileJob("matrix", 20_000, 0)])[0], [])
    model = Mixture(Gaussian(K, summary.mean.astype(np.float32).astype(np.float64)))
    jobs: Callable[[Any], Any] = lambda wanted: engine.sum_over(chunks, wanted)  # noqa: E731
    ((params,),) = in_step([starting(model, init, 1, 0, summary, KERNELS)], jobs)
    x = np.concatenate([chunks.load(i).x for i in range(chunks.n_chunks)])
    for _ in range(ITERATIONS):
        params = model.m_step(model.e_step(params, Rows(x), KERNELS).stats, params)
    return model, params, x


def drawn(d: int, k: int) -> tuple[Mixture, Any, np.ndarray]:
    """Rows of a random mixture, from its own parameters."""
    mixture = random_mixture(d, k)
    return *mixture.model("full"), draw(mixture, ROWS, "float32")


def overlapping() -> tuple[Mixture, Any, np.ndarray]:
    """Rows without structure: components that are nearly equal, of which nothing can be left out."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(K, 64, 128)) / np.sqrt(128)
    model = Mixture(Gaussian(K, np.zeros(64)))
    covariances = 0.1 * roots @ np.swapaxes(roots, 1, 2) + np.eye(64)
    params = model.params(weights=np.full(K, 1 / K), means=0.05 * rng.normal(size=(K, 64)), covariances=covariances)
    return model, params, rng.normal(size=(4 * ROWS, 64)).astype(np.float32)


SETS: dict[str, Callable[[], tuple[Mixture, Any, np.ndarray]]] = {
    "photographs": lambda: photographs("k-means||"),
    "photographs-random-start": lambda: photographs("random"),
    "mixture-64-200": lambda: drawn(64, 200),
    "mixture-63-50": lambda: drawn(63, 50),
    "overlapping-64-200": overlapping,
}


def without(problem: Any, *_: Any) -> None:
    """In place of `pruned_pass`: never leaves anything out."""


def seconds(model: Mixture, params: Any, x: np.ndarray, leave_out: bool) -> tuple[float, float]:
    """CPU seconds of a pass with new parameters, and the share of the pairs that it computes."""
    gaussian.pruned_pass = pruned.pruned_pass if leave_out else without
    params = model.params(**{name: value.copy() for name, value in model.arrays(params).items()})
    began = time.process_time()
    share = model.e_step(params, Rows(x), KERNELS).evidence.skipped.share
    return time.process_time() - began, share


def log_likelihoods(model: Mixture, params: Any, x: np.ndarray) -> Iterator[np.ndarray]:
    """Log-densities of the rows in five iterations."""
    for _ in range(5):
        found = model.e_step(params, Rows(x), KERNELS)
        yield found.score
        params = model.m_step(found.stats, params)


def difference(model: Mixture, params: Any, x: np.ndarray) -> tuple[float, float]:
    """Relative, in float64, between passes that leave pairs out and passes by the same kernels that compute all."""
    gaussian.pruned_pass, left = pruned.pruned_pass, []
    own = pruned._Work.candidates, pruned._Work.pays
    for candidates, pays in (own, (pruned._Work.all_pairs, lambda *_: True)):
        pruned._Work.candidates, pruned._Work.pays = candidates, pays
        left.append(np.stack(list(log_likelihoods(model, params, x.astype(np.float64)))))
    pruned._Work.candidates, pruned._Work.pays = own
    few, every = left
    totals = few.sum(axis=1) / every.sum(axis=1)
    return float(np.abs(few[0] / every[0] - 1).max()), float(np.abs(totals - 1).max())


def main(words: list[str]) -> int:
    """Print the table."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(words)
    print(
        f"{'rows':26} {'share':>7} {'with':>8} {'without':>8} {'ratio':>6} {'scikit-learn':>13} {'ratio':>6}   differences"
    )
    for name in options.sets or SETS:
        with single_thread():
            model, params, rows = SETS[name]()
            x = rows[: 4 * ROWS if name.startswith("overlapping") else ROWS]
            _, share = seconds(model, params, x, True)
            seconds(model, params, x, False)
            pairs = [[seconds(model, params, x, one)[0] for one in (True, False)] for _ in range(options.rounds)]
            peer, of_peer = scikit_learn(x[:ROWS], "full", params), []
            for _ in range(2):
                began = time.process_time()
                peer.run()
                of_peer.append((time.process_time() - began) * len(x) / min(len(x), ROWS))
            few, every = (median(one) for one in zip(*pairs, strict=True))
            ratio = median(b / a for a, b in pairs)
            apart = difference(model, params, rows) if share < 1 else (0.0, 0.0)
        print(
            f"{name:26} {share:7.4f} {few:8.3f} {every:8.3f} {ratio:6.2f} {median(of_peer):13.3f} "
            f"{median(of_peer) / few:6.1f}   {apart[0]:.1e}, {apart[1]:.1e}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
