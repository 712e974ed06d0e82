"""E-steps that leave out pairs of a row and a component: what that saves, what it costs where it saves nothing, and that it changes nothing.

CPU seconds of a pass of one thread, with and without; the share of the pairs whose density is computed, and of those that are needed, because
their responsibility does not round to nothing: with few components all densities are computed, and only moments left out. In float64 the largest relative difference of a row's log-density, and of the
log-likelihoods of ITERATIONS iterations, between leaving out and not, by the same kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import Record, Setting, record
from benchmarks.mixtures import draw, random_mixture, without_structure
from benchmarks.patches import PICTURES, all_rows, prepared
from pipeline.arrays.rows import Rows
from pipeline.data.patch import Patch
from pipeline.data.sources.images import ImagesSection
from pipeline.engine.blas import single_thread
from pipeline.kernels import gaussian, pruned, simd_sums
from pipeline.kernels.cpu import KERNELS
from pipeline.models.mixture import Mixture

Problem = tuple[Mixture, Any, np.ndarray]
K, FEW, ROWS, WARM_ITERATIONS, ITERATIONS = 200, 20, 2**15, 20, 5
OVERLAPPING_ROWS, NEEDED_ROWS = 2**17, 2048
NO_SLOWER, SAME = 0.97, 1e-12


def photographs(setting: Setting, init: str, k: int = K) -> Problem:
    """Patches of scikit-learn's photographs, of which most are easily told apart."""
    return _patches(setting, "photographs", setting.pick(4, 16), init, k)


def pictures(setting: Setting) -> Problem:
    """Patches of 400 pictures, of which each is near many components."""
    return _patches(setting, str(setting.real(PICTURES)), setting.pick(16, 80), "k-means||", K)


def _patches(setting: Setting, path: str, stride: int, init: str, k: int) -> Problem:
    """63 features, after some iterations."""
    source = ImagesSection(path=path, patch=Patch(size=(8, 8), stride=stride))
    chunks, model, params = prepared(source, [], setting.pick(k, min(k, 60)), init)
    x = all_rows(chunks)
    for _ in range(setting.pick(WARM_ITERATIONS, 2)):
        params = model.m_step(model.e_step(params, Rows(x), KERNELS).stats, params)
    return model, params, x


def drawn(setting: Setting, d: int, k: int) -> Problem:
    """Rows of a random mixture, from its own parameters."""
    mixture = random_mixture(d, k)
    return *mixture.model("full"), draw(mixture, setting.pick(ROWS, 2000))


def overlapping(setting: Setting) -> Problem:
    """Rows without structure: components that are nearly equal, of which nothing can be left out."""
    return without_structure(64, K, setting.pick(OVERLAPPING_ROWS, 2000))


# name: the problem, and how many times cheaper leaving out is at least
PROBLEMS: dict[str, tuple[Callable[[Setting], Problem], float | None]] = {
    f"photographs d=63 K={K}, from k-means||": (lambda setting: photographs(setting, "k-means||"), None),
    f"photographs d=63 K={K}, from random rows": (lambda setting: photographs(setting, "random"), None),
    f"pictures d=63 K={K}, from k-means||": (pictures, None),
    "random mixture d=64 K=200": (lambda setting: drawn(setting, 64, 200), None),
    "random mixture d=63 K=50": (lambda setting: drawn(setting, 63, 50), None),
    f"photographs d=63 K={FEW}, from k-means||": (lambda setting: photographs(setting, "k-means||", FEW), None),
    f"random mixture d=50 K={FEW}": (lambda setting: drawn(setting, 50, FEW), None),
    "random mixture d=32 K=5": (lambda setting: drawn(setting, 32, 5), None),
    f"without structure d=64 K={K}": (overlapping, NO_SLOWER),
}


def skipping(setting: Setting) -> Iterator[Record]:
    """Two records a problem; the second only where something is left out."""
    for name, (make, target) in PROBLEMS.items():
        with single_thread():
            model, params, x = make(setting)
            _, share = _seconds(model, params, x, True)
            _seconds(model, params, x, False)
            pairs = [[_seconds(model, params, x, one)[0] for one in (True, False)] for _ in range(setting.rounds)]
            few, every = (median(one) for one in zip(*pairs, strict=True))
            times = {"ours_s": few, "peer": "ours, all pairs", "peer_s": every, "rounds": setting.rounds, "n": len(x)}
            case = f"{name}, {np.fmin(share, 1.0):.2%} of the pairs, {_needed(model, params, x):.2%} needed"
            yield record("skipping", case, "all pairs / ours", every / few, target, **times)
            if share < 1:
                rows, totals = _differences(model, params, x)
                yield record("skipping", f"{name}, log-densities", "relative, largest", rows, SAME, "<=")
                yield record(
                    "skipping", f"{name}, {ITERATIONS} log-likelihoods", "relative, largest", totals, SAME, "<="
                )


def _needed(model: Mixture, params: Any, x: np.ndarray) -> float:
    """Share of the pairs whose responsibility does not round to nothing, of some rows."""
    some = x[:: -(-len(x) // NEEDED_ROWS)].astype(np.float64)
    log_joint = KERNELS.gaussian_log_joint(model.component._problem(params.theta, np.log(params.weights), False), some)
    return float((log_joint >= log_joint.max(axis=1, keepdims=True) - pruned.TAIL).mean())


def _never(problem: Any, *_: Any) -> None:
    """In place of `pruned_pass`: never leaves anything out."""


def _seconds(model: Mixture, params: Any, x: np.ndarray, leave_out: bool) -> tuple[float, float]:
    """CPU seconds of a pass with new parameters, and the share of the pairs that it computes."""
    if not leave_out:
        gaussian.pruned_pass, gaussian.LEAST_GATHERED = _never, sys.maxsize
    try:
        params = model.params(**{name: value.copy() for name, value in model.arrays(params).items()})
        began = time.process_time()
        share = model.e_step(params, Rows(x), KERNELS).evidence.skipped.share
        return time.process_time() - began, share
    finally:
        gaussian.pruned_pass, gaussian.LEAST_GATHERED = pruned.pruned_pass, simd_sums.LEAST_GATHERED


def _log_densities(model: Mixture, params: Any, x: np.ndarray) -> np.ndarray:
    """Of the rows in some iterations, (ITERATIONS, n)."""
    found = []
    for _ in range(ITERATIONS):
        step = model.e_step(params, Rows(x), KERNELS)
        found.append(step.score)
        params = model.m_step(step.stats, params)
    return np.stack(found)


def _differences(model: Mixture, params: Any, x: np.ndarray) -> tuple[float, float]:
    """Relative, of rows in the first iteration and of the log-likelihoods of all: between leaving pairs out and computing all."""
    own = pruned._Work.candidates, pruned._Work.pays
    found = []
    try:
        for candidates, pays in (own, (pruned._Work.all_pairs, lambda *_: True)):
            pruned._Work.candidates, pruned._Work.pays = candidates, pays
            found.append(_log_densities(model, params, x.astype(np.float64)))
    finally:
        pruned._Work.candidates, pruned._Work.pays = own
    few, every = found
    totals = few.sum(axis=1) / every.sum(axis=1)
    return float(np.abs(few[0] / every[0] - 1).max()), float(np.abs(totals - 1).max())
