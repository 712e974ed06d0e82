"""The Student-t mixture against scipy's densities, a slow reference, and a Gaussian mixture."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import digamma, logsumexp
from scipy.stats import multivariate_t

from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.covariance import full_covariances
from pipeline.models.families.student_t import MOST, StudentT
from pipeline.models.mixture import Mixture
from tests.laws.common import TYPES, chunks_of, e_step, fit, gaussian_mixture, method


def rows(n: int = 400, seed: int = 0) -> np.ndarray:
    """Rows of two t distributions of 3 degrees of freedom, (n, 3)."""
    rng = np.random.default_rng(seed)
    u = rng.gamma(1.5, 1 / 1.5, size=n)
    return np.where(np.arange(n) < n // 2, 0.0, 5.0)[:, None] + rng.normal(size=(n, 3)) / np.sqrt(u)[:, None]


def started(x: np.ndarray, covariance_type: str = "full", **options) -> tuple[Mixture, object]:
    """A model of two components, and its start from the true labels."""
    model = Mixture(StudentT(2, x.mean(axis=0), covariance_type, 0.0, **options))
    return model, model.m_step(model.label_statistics(x, np.arange(len(x)) * 2 // len(x)), None)


def slow_em(x, weights, means, covariances, df, n_iter, covariance_type, shared, weight):
    """EM with scipy's densities and root finding, component by component. covariances : (k, d, d)."""
    d, k, history = x.shape[1], len(weights), []
    for _ in range(n_iter):
        log_joint = np.stack(
            [np.log(weights[j]) + multivariate_t(means[j], covariances[j], df[j]).logpdf(x) for j in range(k)], axis=1
        )
        history.append(weight @ logsumexp(log_joint, axis=1))
        r = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True)) * weight[:, None]
        gaps, scatters, old = [], [], means
        means = np.empty((k, d))
        for j in range(k):
            diff = x - old[j]
            delta = np.einsum("ni,ij,nj->n", diff, np.linalg.inv(covariances[j]), diff)
            u = (df[j] + d) / (df[j] + delta)
            log_u = digamma((df[j] + d) / 2) - np.log((df[j] + delta) / 2)
            means[j] = (r[:, j] * u) @ x / (r[:, j] @ u)
            diff = x - means[j]
            scatters.append((diff * (r[:, j] * u)[:, None]).T @ diff)
            gaps.append(r[:, j] @ (log_u - u))
        counts, gaps, scatters = r.sum(axis=0), np.array(gaps), np.array(scatters)
        weights = counts / counts.sum()
        covariances = scatters / counts[:, None, None]
        if covariance_type == "tied":
            covariances = np.repeat(scatters.sum(axis=0)[None] / counts.sum(), k, axis=0)
        elif covariance_type == "diag":
            covariances = covariances * np.eye(d)
        elif covariance_type == "spherical":
            covariances = np.trace(covariances, axis1=1, axis2=2)[:, None, None] * np.eye(d) / d
        by = np.full(k, gaps.sum() / counts.sum()) if shared else gaps / counts
        df = np.array([brentq(lambda v, c=c: np.log(v / 2) - digamma(v / 2) + 1 + c, 0.1, 1e5, xtol=1e-13) for c in by])
    return weights, means, covariances, df, history


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_equals_a_slow_reference(covariance_type, shared):
    """Eight iterations: parameters agree to 1e-8 of their size, log-likelihoods to 1e-12."""
    x = rows()
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    model, params = started(x, covariance_type, shared_df=shared)
    theta = params.theta
    wide = full_covariances(model.component.shape, theta.covariances, 2, 3)
    start = params.weights, theta.means, wide, np.broadcast_to(theta.df, 2)
    weights, means, covariances, df, history = slow_em(x, *start, 8, covariance_type, shared, weight)
    run, resets = fit(model, params, chunks_of(x, [0, 150, 400], weight), 8)
    assert not resets
    theta = run.params.theta
    np.testing.assert_allclose([entry.objective for entry in run.history], history, rtol=1e-12)
    np.testing.assert_allclose(run.params.weights, weights, rtol=1e-10)
    np.testing.assert_allclose(theta.means, means, atol=1e-10)
    np.testing.assert_allclose(np.broadcast_to(theta.df, 2), df, rtol=1e-8)
    found = full_covariances(model.component.shape, theta.covariances, 2, 3)
    np.testing.assert_allclose(found, covariances, atol=1e-10)


@pytest.mark.parametrize("df", [0.3, 1.0, 7.5, 40.0, 3e4])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_densities_are_scipys(covariance_type, df):
    """log p(x | k) to 1e-10, from the Cauchy distribution and below to nearly normal ones."""
    x = rows(60)
    model, params = started(x, covariance_type, df=df)
    covariances = full_covariances(model.component.shape, params.theta.covariances, 2, 3)
    found = model.component.log_joint(params.theta, np.zeros(2), x, KERNELS)
    for j in range(2):
        expected = multivariate_t(params.theta.means[j], covariances[j], df).logpdf(x)
        np.testing.assert_allclose(found[:, j], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_many_degrees_of_freedom_are_a_gaussian_mixture(covariance_type):
    """The same parameters after five iterations, and a bound that is still tight."""
    x = rows()
    model, params = started(x, covariance_type, df=1e12)
    gaussian = gaussian_mixture(2, x.mean(axis=0), covariance_type, reg_covar=0.0)
    start = gaussian.params(weights=params.weights, means=params.theta.means, covariances=params.theta.covariances)
    run, _ = fit(model, params, chunks_of(x), 5)
    limit, _ = fit(gaussian, start, chunks_of(x), 5)
    np.testing.assert_allclose(run.params.theta.means, limit.params.theta.means, atol=1e-8)
    np.testing.assert_allclose(run.params.theta.covariances, limit.params.theta.covariances, rtol=1e-8)
    assert run.log_likelihood == pytest.approx(limit.log_likelihood, rel=1e-11)
    assert model.bound(run.final.totals, run.params) == pytest.approx(run.log_likelihood, rel=1e-12)


def test_one_component_recovers_what_rows_were_drawn_from():
    """20,000 rows: the degrees of freedom within 5 %, and a normal sample has as many as are ever learned, or nearly."""
    truth = Mixture(StudentT(1, np.zeros(2)))
    cov = np.array([[[2.0, 0.6], [0.6, 1.0]]])
    drawn_from = truth.params(weights=np.ones(1), means=np.array([[1.0, -2.0]]), covariances=cov, df=np.array([4.0]))
    x, _ = truth.sample(drawn_from, 20_000, np.random.default_rng(0))
    start = truth.m_step(truth.label_statistics(x, np.zeros(len(x), dtype=int)), None)
    run, _ = fit(truth, start, chunks_of(x), 60, 1e-9, method("auto", chunks_of(x)))
    theta = run.params.theta
    assert theta.df[0] == pytest.approx(4.0, rel=0.05)
    np.testing.assert_allclose(theta.covariances, cov, atol=0.06)
    np.testing.assert_allclose(theta.means[0], [1.0, -2.0], atol=0.04)
    uniform = np.random.default_rng(1).uniform(size=(2000, 2))  # lighter tails than the Gaussian
    start = truth.m_step(truth.label_statistics(uniform, np.zeros(2000, dtype=int)), None)
    run, _ = fit(truth, start, chunks_of(uniform), 200, 0.0, method("auto", chunks_of(uniform)))
    assert 1e3 < run.params.theta.df[0] <= MOST


def test_outliers_hardly_move_it():
    """One row in twenty at a distance of 1000: the location moves by less than 0.2, where the mean moves by 50."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x[::20] = 1000.0 * rng.choice([-1.0, 1.0, 1.0], size=(20, 3))
    model = Mixture(StudentT(1, x.mean(axis=0)))
    params = model.m_step(model.label_statistics(x, np.zeros(400, dtype=int)), None)
    run, _ = fit(model, params, chunks_of(x), 60)
    assert np.abs(run.params.theta.means).max() < 0.2 < np.abs(x.mean(axis=0)).min()
    assert run.params.theta.df[0] < 2


def test_rows_in_float32_and_sparse_weights():
    """float32 rows give the same sums to float32's rounding; rows of weight 0 may hold anything finite."""
    x = rows()
    model, params = started(x)
    wide, narrow = e_step(model, params, x), e_step(model, params, x.astype(np.float32))
    assert narrow.evidence.log_likelihood == pytest.approx(wide.evidence.log_likelihood, rel=1e-6)
    np.testing.assert_allclose(narrow.stats.component.sum_u, wide.stats.component.sum_u, rtol=1e-5)
    far, weight = np.concatenate([x, np.full((1, 3), 1e200)]), np.append(np.ones(len(x)), 0.0)
    found = e_step(model, params, far, None, weight)
    np.testing.assert_allclose(found.stats.component.gap, wide.stats.component.gap, rtol=1e-12)
    assert found.evidence.entropy == pytest.approx(wide.evidence.entropy, rel=1e-12)


def test_fixed_degrees_of_freedom_are_kept_and_not_counted():
    """`df: 4` stays 4 and is no free parameter; a start with another number is refused, by name."""
    x = rows()
    model, params = started(x, fixed=("df",), df=4.0)
    run, _ = fit(model, params, chunks_of(x), 5)
    assert (run.params.theta.df == 4.0).all()
    learned = Mixture(StudentT(2, x.mean(axis=0))).n_free_parameters()
    assert model.n_free_parameters() == learned - 2
    assert Mixture(StudentT(2, x.mean(axis=0), shared_df=True)).n_free_parameters() == learned - 1
    arrays = model.arrays(run.params)
    with pytest.raises(InputError, match=r"initial df: got 5, expected model\.df: 4"):
        model.params_from_arrays({**arrays, "df": np.full(2, 5.0)})
    with pytest.raises(InputError, match="df: got 0"):
        model.params_from_arrays({**arrays, "df": np.zeros(2)})


def test_collapsed_components_are_reset_with_the_degrees_of_freedom_of_the_component_that_is_cut():
    """A component on equal rows becomes half of the other, which keeps its degrees of freedom."""
    x = rows()
    x[:200] = x[0]
    model, params = started(x)
    start = model.params(
        **{**model.arrays(params), "scales": np.tile(np.eye(3), (2, 1, 1)), "df": np.array([3.0, 3.0])}
    )
    partial = EStep(model, start, model.attachments)(Rows(x), KERNELS)
    new = model.m_step(partial.stats, start)
    for _ in range(40):
        if model.collapsed(new, partial.stats.sum_w):
            break
        partial = EStep(model, new, model.attachments)(Rows(x), KERNELS)
        new = model.m_step(partial.stats, new)
    reset, done = model.reset(new, start, partial.stats, partial.attached, ())
    assert [each.done for each in done] == [True]
    moved = done[0].component
    assert reset.theta.df[moved] == reset.theta.df[1 - moved] == new.theta.df[1 - moved]


def test_config_says_what_is_learned():
    """df and shared_df reach the model; standard errors are refused."""
    section = validate({"model": {"family": "student-t", "df": 3}, "output": {"path": "x"}}).model
    component = section.of_no_rows(2).component
    assert component.df == 3.0 and component.fixed == ("df",)
    with pytest.raises(InputError, match="standard_errors"):
        validate({"model": {"family": "student-t"}, "output": {"path": "x", "standard_errors": True}})
