#!/usr/bin/env python3
"""Hidden Markov models beside hmmlearn (pip install hmmlearn), from the same start: log-likelihood of every iteration, parameters, Viterbi, CPU.

    scripts/experiments/hmm_against_hmmlearn.py                 200 sequences, 10 iterations
    scripts/experiments/hmm_against_hmmlearn.py --units 5000    more

Emissions: Gaussians of four covariance types without a floor, Poisson and categorical. Ends with 1 where anything differs by more than 1e-6
of its size, or where a path differs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

import numpy as np
from hmmlearn.hmm import CategoricalHMM, GaussianHMM, PoissonHMM

from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.hmm import HmmSection

K, D, CODES = 3, 3, 5


def drawn(units: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and lengths of sequences with sticky states."""
    lengths = rng.integers(5, 60, units)
    transitions, states = 0.8 * np.eye(K) + 0.2 / K, []
    for length in lengths:
        state = int(rng.integers(K))
        for _ in range(length):
            states.append(state)
            state = int(rng.choice(K, p=transitions[state]))
    at, n = np.array(states), len(states)
    if kind == "gaussian":
        return 2.0 * rng.normal(size=(K, D))[at] + rng.normal(size=(n, D)), lengths
    if kind == "poisson":
        return rng.poisson(rng.gamma(2.0, 3.0, (K, D))[at]).astype(float), lengths
    below = np.cumsum(rng.dirichlet(np.full(CODES, 0.5), K), axis=1)[at]
    return np.minimum((rng.random((n, 1)) > below).sum(axis=1), CODES - 1)[:, None].astype(float), lengths


def peer(kind: str, covariance_type: str, model: Any, params: Any) -> Any:
    """hmmlearn's model at the same parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "gaussian":
            zero = {"covars_prior": 0.0, "covars_weight": 0.0, "min_covar": 0.0}
            found = GaussianHMM(K, covariance_type, init_params="", params="stmc", **zero)
            found.means_, found.n_features = params.theta.means.copy(), D
            found.covars_ = params.theta.covariances.copy()
        elif kind == "poisson":
            found = PoissonHMM(K, init_params="", lambdas_prior=0.0, lambdas_weight=0.0)
            found.lambdas_ = params.theta.rates.copy()
        else:
            found = CategoricalHMM(K, init_params="", n_features=CODES)
            found.emissionprob_ = emissions(model, params)
    found.startprob_, found.transmat_ = params.start_probabilities.copy(), params.transitions.copy()
    found.n_iter, found.tol = 1, -np.inf
    return found


def emissions(model: Any, params: Any) -> np.ndarray:
    """(k, codes) probabilities of one categorical column."""
    codes = np.arange(CODES, dtype=float)[:, None]
    return np.exp(model.component.log_joint(params.theta, np.zeros(K), codes, KERNELS)).T


def compared(kind: str, covariance_type: str, units: int, iterations: int) -> bool:
    """Print the largest differences and CPU seconds of one kind of emissions; whether all are below 1e-6."""
    rng = np.random.default_rng(0)
    x, lengths = drawn(units, kind, rng)
    starts = np.cumsum([0, *lengths[:-1]])
    options = {"covariance_type": covariance_type, "reg_covar": 0.0} if kind == "gaussian" else {}
    options |= {"concentration": 1.0} if kind == "categorical" else {}
    section = HmmSection.model_validate({"n_components": K, "emission": {"family": kind, **options}})
    profile = ProfileJob(section.second_moments, 50, 0)(Rows(x), KERNELS)
    model = section.build(summary_of(profile, []), "soft")
    params = model.m_step(model.label_statistics(x, (np.argsort(np.argsort(x[:, 0])) * K) // len(x)), None)
    other = peer(kind, covariance_type, model, params)
    rows, plain = Rows(x, units=starts), x if kind == "gaussian" else x.astype(int)
    model.e_step(params, rows, KERNELS)  # compiles
    apart, seconds = 0.0, [0.0, 0.0]
    for _ in range(iterations):
        began = time.process_time()
        found = model.e_step(params, rows, KERNELS)
        new = model.m_step(found.stats, params)
        between = time.process_time()
        other.fit(plain, lengths)
        seconds[0] += between - began
        seconds[1] += time.process_time() - between
        apart = max(apart, abs(other.monitor_.history[-1] / found.evidence.log_likelihood - 1.0))
        params = new
        pairs = [(params.start_probabilities, other.startprob_), (params.transitions, other.transmat_)]
        if kind == "gaussian":
            full = {"full": other._covars_, "tied": other._covars_, "diag": other._covars_, "spherical": other._covars_}
            theirs = full[covariance_type]
            ours = params.theta.covariances
            pairs += [
                (params.theta.means, other.means_),
                (ours, theirs.reshape(ours.shape) if theirs.size == ours.size else theirs[:, 0]),
            ]
        elif kind == "poisson":
            pairs += [(params.theta.rates, other.lambdas_)]
        else:
            pairs += [(emissions(model, params), other.emissionprob_)]
        apart = max([apart, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)])
    path = model.predict(params, rows, 0, KERNELS)["label"]
    same = (path == other.predict(plain, lengths)).mean()
    each = [one / iterations for one in seconds]
    print(
        f"{kind:12} {covariance_type:10} largest difference {apart:.1e}  equal paths {same:.4%}  CPU s an iteration {each[0]:.4f}, hmmlearn {each[1]:.4f}",
        flush=True,
    )
    return apart < 1e-6 and same == 1.0


def main() -> int:
    """Compare every kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    kinds = [("gaussian", kind) for kind in ("full", "tied", "diag", "spherical")] + [
        ("poisson", ""),
        ("categorical", ""),
    ]
    return int(not all([compared(*kind, options.units, options.iterations) for kind in kinds]))


if __name__ == "__main__":
    sys.exit(main())
