"""Mixtures of factor analysers against scikit-learn, a slow reference with d x d matrices, and full Gaussians."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA, FactorAnalysis

import pipeline
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.engine.blas import single_thread
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.factor import FactorSection
from pipeline.models.mixture import Mixture
from tests.jobs import write_config
from tests.laws.common import chunks_of, e_step, fit, gaussian_mixture, method, same_bits, sum_over
from tests.test_factor_analysis import drawn
from tests.test_families import factors

RNG = np.random.default_rng
LAYOUTS = list(itertools.product(("diag", "spherical"), (False, True)))


def started(x: np.ndarray, k: int = 1, **options: Any) -> tuple[Mixture, Any]:
    """A model of these rows, and its start from labels that slice the rows by their first feature."""
    section = FactorSection.model_validate({"n_components": k, **options})
    model = section.build(summary_of(sum_over(chunks_of(x), [ProfileJob("variances", 200, 0)])[0], []), "soft")
    labels = np.empty(len(x), dtype=np.int64)
    labels[np.argsort(x[:, 0])] = np.arange(len(x)) * k // len(x)
    return model, model.m_step(model.label_statistics(x, labels), None)


def fitted(x: np.ndarray, k: int = 1, n_iter: int = 3000, tol: float = 1e-13, **options: Any) -> tuple[Mixture, Any]:
    """The model and its finished run."""
    model, params = started(x, k, **options)
    return model, fit(model, params, chunks_of(x), n_iter, tol, method("auto", chunks_of(x)))[0]


@pytest.mark.parametrize("rank", [1, 2])
def test_parameters_that_are_read_back_make_the_same_bits(rank: int) -> None:
    """After an M-step: the next E-step of a fit that is resumed is that of one that goes on."""
    x = factors(RNG(0))
    model, params = started(x, 8, rank=rank)
    params = model.m_step(e_step(model, params, x).stats, params)
    again = model.params_from_arrays({name: np.array(value, order="C") for name, value in model.arrays(params).items()})
    with single_thread():
        same_bits(e_step(model, again, x).stats, e_step(model, params, x).stats)


def slow_em(
    x: np.ndarray, start: Any, n_iter: int, noise_type: str, shared: bool, weight: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], np.ndarray, list[float]]:
    """EM with the inverse of each covariance (d, d), row by row for the factors. Ghahramani and Hinton 1996, eq. 13 to 18."""
    weights, k = start.weights, len(start.weights)
    means, loadings = list(start.theta.means), list(start.theta.loadings)
    (n, d), q, noise, history = x.shape, loadings[0].shape[1], start.theta.noise.copy(), []
    for _ in range(n_iter):
        log_joint = np.empty((n, k))
        for j in range(k):
            covariance = loadings[j] @ loadings[j].T + np.diag(noise[j])
            log_joint[:, j] = np.log(weights[j]) + multivariate_normal(means[j], covariance).logpdf(x)
        history.append(float(weight @ logsumexp(log_joint, axis=1)))
        r = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True)) * weight[:, None]
        left = np.empty((k, d))
        for j in range(k):
            beta = loadings[j].T @ np.linalg.inv(loadings[j] @ loadings[j].T + np.diag(noise[j]))
            xy, yy = np.zeros((d, 1 + q)), np.zeros((1 + q, 1 + q))
            for i in range(n):
                y = np.append(1.0, beta @ (x[i] - means[j]))
                xy += r[i, j] * np.outer(x[i], y)
                yy += r[i, j] * np.outer(y, y)
            yy[1:, 1:] += r[:, j].sum() * (np.eye(q) - beta @ loadings[j])
            slopes = xy @ np.linalg.inv(yy)
            means[j], loadings[j] = slopes[:, 0], slopes[:, 1:]
            left[j] = r[:, j] @ x**2 - np.einsum("dp,dp->d", slopes, xy)
        counts = r.sum(axis=0)
        weights = counts / counts.sum()
        noise = np.tile(left.sum(axis=0) / counts.sum(), (k, 1)) if shared else left / counts[:, None]
        if noise_type == "spherical":
            noise = np.repeat(noise.mean(axis=1, keepdims=True), d, axis=1)
    return weights, means, loadings, noise, history


@pytest.mark.parametrize(("noise_type", "shared"), LAYOUTS)
def test_five_iterations_are_those_of_a_slow_reference(noise_type: str, shared: bool) -> None:
    """Of three weighted components in two chunks: parameters and log-likelihoods agree to 1e-10."""
    x, weight = factors(RNG(0), 150) - 20.0, RNG(1).uniform(0.2, 2.0, 150)
    model, params = started(x, 3, rank=2, noise_type=noise_type, shared_noise=shared)
    weights, means, loadings, noise, history = slow_em(x, params, 5, noise_type, shared, weight)
    run, _ = fit(model, params, chunks_of(x, [0, 40, 150], weight), 5)
    np.testing.assert_allclose(run.params.weights, weights, rtol=1e-10)
    np.testing.assert_allclose(run.params.theta.means, means, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(run.params.theta.loadings, loadings, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(run.params.theta.noise, noise, rtol=1e-10)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-12)


def test_one_component_is_factor_analysis_and_probabilistic_principal_components() -> None:
    """Of scikit-learn: log-likelihoods of all rows agree to 1e-6, total nats, and covariances follow."""
    x = drawn()
    _, run = fitted(x, rank=2)
    peer = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x)
    assert run.log_likelihood == pytest.approx(len(x) * peer.score(x), abs=1e-6)
    theta = run.params.theta
    covariance = theta.loadings[0] @ theta.loadings[0].T + np.diag(theta.noise[0])
    np.testing.assert_allclose(covariance, peer.get_covariance(), atol=1e-4)
    _, run = fitted(x, rank=2, noise_type="spherical")
    principal = PCA(2, svd_solver="full").fit(x)
    # PCA divides by n - 1: its covariance is that of the maximum but for this factor
    mean, scale = principal.mean_, (len(x) - 1) / len(x)
    expected = multivariate_normal(mean, principal.get_covariance() * scale).logpdf(x).sum()
    assert run.log_likelihood == pytest.approx(expected, abs=1e-6)
    assert run.params.theta.noise_variances[0] == pytest.approx(principal.noise_variance_ * scale, rel=1e-6)


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_spherical_noise_of_all_factors_but_one_is_a_full_gaussian(k: int) -> None:
    """Any covariance is spherical noise at its least eigenvalue, plus d - 1 factors: the same optimum, and as many numbers."""
    x = RNG(3).normal(size=(300, 4)) @ RNG(4).normal(size=(4, 4)) + 6.0 * (np.arange(300) < 100)[:, None]
    model, run = fitted(x, k, rank=3, noise_type="spherical")
    theta = run.params.theta
    full = theta.loadings @ theta.loadings.transpose(0, 2, 1) + theta.noise[:, :, None] * np.eye(4)
    gaussian = gaussian_mixture(k, x.mean(axis=0), reg_covar=0.0)
    start = gaussian.params(weights=run.params.weights, means=theta.means, covariances=full)
    best, _ = fit(gaussian, start, chunks_of(x), 500, 1e-13)
    assert run.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-6)
    assert model.n_free_parameters() == gaussian.n_free_parameters()


def test_log_densities_keep_their_digits_where_the_noise_is_small() -> None:
    """Loadings 1e5 times the noise's standard deviation: each row's log-density agrees with that of its known noise to 1e-6."""
    x = factors(RNG(5), 20)
    model, params = started(x, rank=2)
    loadings, z, noise = (
        1e3 * RNG(6).normal(size=(6, 2)),
        RNG(7).normal(size=(20, 2)),
        1e-2 * RNG(8).normal(size=(20, 6)),
    )
    theta = model.component.theta(
        means=params.theta.means, loadings=loadings[None], noise_variances=np.full((1, 6), 1e-4)
    )
    density = model.component.log_joint(theta, np.zeros(1), params.theta.means + z @ loadings.T + noise, KERNELS)[:, 0]
    inner = np.eye(2) + loadings.T @ loadings / 1e-4  # in 50 digits it is the same to 1e-9
    across = noise - (noise @ loadings / 1e-4) @ np.linalg.inv(loadings.T @ loadings / 1e-4) @ loadings.T
    fitted_z = z + (noise @ loadings / 1e-4) @ np.linalg.inv(loadings.T @ loadings / 1e-4)
    squared = (across**2).sum(axis=1) / 1e-4 + (fitted_z**2).sum(axis=1)
    expected = -0.5 * (6 * np.log(2e-4 * np.pi) + np.linalg.slogdet(inner)[1] + squared)
    np.testing.assert_allclose(density, expected, atol=1e-6)


def test_noise_stays_above_its_floor_and_the_bound_never_falls() -> None:
    """A feature that two factors explain in full has the least noise that is allowed: a maximum under that bound."""
    x = factors(RNG(9), 200)
    x[:, 3] = x[:, 1]
    model, params = started(x, rank=2, noise_floor=1e-4)
    run, _ = fit(model, params, chunks_of(x), 60)
    noise = run.params.theta.noise_variances[0]
    assert noise.min() == pytest.approx(1e-4 * x.var(axis=0)[noise.argmin()], rel=1e-10)
    trace = np.array([entry.objective for entry in run.history])
    assert (np.diff(trace) >= -1e-12 * np.abs(trace).max()).all()


@pytest.mark.parametrize("fixed", ["weights", "means", "loadings", "noise_variances"])
def test_a_fixed_part_stays_and_the_others_are_best_beside_it(fixed: str) -> None:
    """The part has not one bit changed, the bound never falls, and near parameters of the other parts are not better."""
    x = factors(RNG(10), 200)
    model, params = started(x, 2, rank=1, fixed=[fixed])
    run, _ = fit(model, params, chunks_of(x), 15)
    before, after = model.arrays(params), model.arrays(run.params)
    assert [name for name in before if np.array_equal(before[name], after[name])] == [fixed]
    trace = np.array([entry.objective for entry in run.history])
    assert (np.diff(trace) > 0).all()
    stats = e_step(model, params, x).stats
    best, rng = model.m_step(stats, params), RNG(11)
    for _ in range(10):
        near = {
            n: v if n == fixed or n == "weights" else v * (1 + 1e-3 * rng.normal(size=v.shape))
            for n, v in model.arrays(best).items()
        }
        assert model.expected_log_joint(stats, model.params(**near)) < model.expected_log_joint(stats, best)


def test_nothing_of_d_by_d_is_made() -> None:
    """Of 3,000 features: profile, start, E-step, M-step and labels take less than a tenth of one matrix of d x d."""
    d, rng = 3000, RNG(12)
    x = (rng.normal(size=(128, 4)) @ rng.normal(size=(4, d)) + rng.normal(size=(128, d))).astype(np.float32)
    tracemalloc.start()
    model, params = started(x, 2, rank=4)
    totals = e_step(model, params, x).totals
    params = model.m_step(totals.stats, params)
    model.score_rows(params, x, KERNELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert totals.stats.component.nbytes == model.component.statistics_bytes() == 8 * 2 * (25 + 6 * d)
    assert peak < 0.2 * 8 * d * d, f"{peak / 2**20:.1f} MiB"


def test_as_many_factors_as_features_are_refused() -> None:
    """With the rank that would do."""
    with pytest.raises(InputError, match=r"model\.rank: got 6, expected fewer than the 6 features"):
        started(factors(RNG(0), 50), rank=6)


def test_candidates_of_several_ranks_have_names_of_their_own() -> None:
    """Rank and kind of noise are part of a candidate's name."""
    section = FactorSection.model_validate({"n_components": [2], "rank": [1, 2], "noise_type": ["diag", "spherical"]})
    names = [each.of_no_rows(6).label for each in section.candidates()]
    assert sorted(names) == ["k2-q1-diag", "k2-q1-spherical", "k2-q2-diag", "k2-q2-spherical"]


@pytest.mark.slow
def test_4096_features_of_ten_components_and_eight_factors_take_less_than_2_gib(tmp_path: Path) -> None:
    """A run of all steps, with what its processes take measured from outside; one matrix of d x d a component would be 1.3 GiB."""
    rng = RNG(13)
    loadings, kind = rng.normal(size=(10, 4096, 8)).astype(np.float32), rng.integers(10, size=10_000)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10_000, 4096))
    for rows in np.array_split(np.arange(10_000), 20):
        z = rng.normal(size=(500, 8)).astype(np.float32)
        x[rows] = (
            np.einsum("ndq,nq->nd", loadings[kind[rows]], z) + rng.normal(size=(500, 4096)) + 3.0 * kind[rows, None]
        )
    x.flush()
    model = {"family": "factor", "n_components": 10, "rank": 8}
    config = write_config(
        tmp_path / "job.yaml",
        tmp_path / "x.npy",
        model=model,
        engine={"memory": "1500MiB"},
        fit={"method": "auto", "init": "k-means||", "max_iter": 4},
    )
    measure = Path(__file__).parents[1] / "scripts" / "measure_memory"
    job = [sys.executable, "-m", "pipeline", "run", str(config), "--output", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, measure, *job], capture_output=True, text=True, check=True)
    [peak] = re.findall(r"peak PSS (\d+) MiB", done.stderr)
    assert int(peak) < 2048
    found = pipeline.open_run(tmp_path / "run")
    assert found.loadings.shape == (10, 4096, 8)
