"""The implementations of a Gaussian E-step give the same statistics, whichever computes a component."""

from unittest import mock

import numpy as np
import pytest

from pipeline.arrays.rows import Rows
from pipeline.kernels import choice, pruned
from pipeline.kernels.cpu import KERNELS
from tests.laws.common import TYPES, assigned, gaussian_mixture
from tests.reference import gaussian_log_joint

NOWHERE, EVERYWHERE = (-1.0, -1.0), (np.inf, np.inf)


def problem(covariance_type, d, k, dtype, seed=0, n=700):
    """Overlapping components of moderate condition, their model and parameters, and rows drawn from them."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d))
    roots = rng.normal(size=(k, d, d)) / np.sqrt(d)
    full = roots @ np.swapaxes(roots, 1, 2) * 0.5 + 0.5 * np.eye(d)
    narrow = {
        "full": full,
        "tied": full.mean(axis=0),
        "diag": np.diagonal(full, axis1=1, axis2=2).copy(),
        "spherical": np.trace(full, axis1=1, axis2=2) / d,
    }
    x = (means[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(dtype)
    model = gaussian_mixture(k, x.mean(axis=0, dtype=np.float64), covariance_type)
    params = model.params(weights=rng.dirichlet(np.ones(k)), means=means, covariances=narrow[covariance_type])
    return model, params, x, rng.random(n)


def e_step(model, params, x, weight):
    """Statistics, evidence and log p(x) of rows."""
    found = model.e_step(params, Rows(x, weight), KERNELS)
    return found.stats, found.evidence, found.score


def reach_of(model, params):
    """(k,) c_k."""
    return model.component._problem(params.theta, np.log(params.weights), False).reach


def statistics(model, params, x, weight, most_simd, limits):
    """The E-step by the implementations that these settings allow. limits : by bytes of a number."""
    table = {dtype: limits.get(dtype.itemsize, NOWHERE) for dtype in choice.LIMITS}
    with mock.patch.multiple(choice, MOST_SIMD_FEATURES=most_simd, FEW_COMPONENTS=0, LIMITS=table):
        return e_step(model, params, x, weight)


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-3)])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (5, 3), (16, 4), (20, 9), (63, 2)])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_implementations_agree(covariance_type, d, k, dtype, tolerance, assignment):
    """SIMD, GEMM, Cholesky and a mixture of the last two give one answer, to the dtype's rounding."""
    model, params, x, weight = problem(covariance_type, d, k, dtype)
    model = gaussian_mixture(k, model.shift, covariance_type, assignment=assignment)
    reach = reach_of(model, params)
    between = (float(np.median(reach)), float(np.quantile(reach, 0.25)))
    expected, evidence, density = statistics(model, params, x.astype(np.float64), weight, 0, {})
    settings = [
        (d, {}),
        (0, {4: EVERYWHERE, 8: EVERYWHERE}),
        (0, {8: EVERYWHERE}),
        (0, {}),
        (0, {4: between, 8: between}),
    ]
    for most_simd, limits in [*settings, (0, {4: between, 8: EVERYWHERE})]:
        found, other, log_norm = statistics(model, params, x, weight, most_simd, limits)
        np.testing.assert_allclose(log_norm, density, rtol=0, atol=tolerance * (d + np.abs(density).max()))
        values = [
            (found.sum_w, expected.sum_w),
            (found.component.sum_x, expected.component.sum_x),
            (found.component.sum_xx, expected.component.sum_xx),
            (other.log_likelihood, evidence.log_likelihood),
            (other.entropy, evidence.entropy),
        ]
        for a, b in values:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1 + np.abs(b).max()))


@mock.patch.object(pruned, "might_pay", lambda *_: False)
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize(("d", "k"), [(24, 2), (30, 7), (63, 40)])
def test_rows_that_are_gathered_count_as_others(d, k, dtype, tolerance, assignment):
    """By SIMD, of clusters that are apart: rows in order fill tiles of one component, mixed ones are gathered; and none is lost or doubled.

    Some have weight 0, some are in the middle, and some components have no row.
    """
    rng = np.random.default_rng(k)
    means, label = rng.normal(size=(k, d)) * 4, np.sort(rng.integers(max(2, k - 1), size=5000))
    x = (means[label] + rng.normal(size=(5000, d))).astype(dtype)
    middle = 0.5 if assignment == "soft" else 0.4  # a tie would be decided by rounding
    x[::97] = middle * means[0] + (1 - middle) * means[1]
    weight = rng.integers(0, 3, size=5000) * 0.5
    model = gaussian_mixture(k, x.mean(axis=0, dtype=np.float64), "full", assignment=assignment)
    params = model.params(weights=np.full(k, 1 / k), means=means, covariances=np.tile(np.eye(d), (k, 1, 1)))
    log_joint = gaussian_log_joint(
        x.astype(np.float64), np.full(k, 1 / k), means, np.tile(np.eye(d), (k, 1, 1)), "full"
    )
    resp = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    resp = np.eye(k)[log_joint.argmax(axis=1)] if assignment == "hard" else resp / resp.sum(axis=1, keepdims=True)
    expected = model.component.statistics(params.theta, x, resp * weight[:, None])
    for order in (np.arange(5000), rng.permutation(5000)):
        found, _, _ = e_step(model, params, x[order], weight[order])
        np.testing.assert_allclose(found.sum_w, (resp * weight[:, None]).sum(axis=0), rtol=1e-6, atol=1e-9)
        for name in ("sum_x", "sum_xx"):
            value, exact = getattr(found.component, name), getattr(expected, name)
            assert np.abs(value - exact).max() <= tolerance * np.abs(exact).max()


@mock.patch.object(choice, "FEW_COMPONENTS", 0)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_components_beyond_the_limits_are_not_computed_by_gemm_in_float32(covariance_type):
    """Far from the others and narrow, so that c_k is huge in float32: the log-densities are still those of float64."""
    model, params, x, weight = problem(covariance_type, 20, 3, np.float32)
    means = params.theta.means.copy()
    means[1] += 1e4
    params = model.params(**model.arrays(params) | {"means": means})
    x[:200] += np.float32(1e4)
    reach = reach_of(model, params)
    assert reach.max() > choice.LIMITS[np.dtype(np.float32)][0]
    log_norm = e_step(model, params, x, weight)[-1]
    exact = gaussian_log_joint(x.astype(np.float64), *model.arrays(params).values(), covariance_type)
    peak = exact.max(axis=1)
    expected = peak + np.log(np.exp(exact - peak[:, None]).sum(axis=1))
    np.testing.assert_allclose(log_norm, expected, rtol=0, atol=1e-5 * (20 + np.abs(expected).max()))


@pytest.mark.parametrize("covariance_type", TYPES)
def test_float32_densities_by_gemm_are_within_the_stated_bound(covariance_type):
    """10 eps c_k max(1, d/8) nats of float64 on the same rows and parameters (docs/performance.md)."""
    for seed in range(20):
        d = 17 + 3 * seed % 40
        model, params, x, weight = problem(covariance_type, d, 4, np.float32, seed)
        reach = reach_of(model, params)
        low = statistics(model, params, x, weight, 0, {4: EVERYWHERE})[-1]
        high = statistics(model, params, x.astype(np.float64), weight, 0, {})[-1]
        bound = 10 * np.finfo(np.float32).eps * reach.max() * max(1.0, d / 8)
        assert np.abs(low - high).max() <= bound


@mock.patch.object(choice, "FEW_COMPONENTS", 0)
@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [5, 20, 140])
def test_each_component_is_computed_once(d, dtype, covariance_type):
    """Each component's density and moments have one implementation; many features of full covariances never GEMM."""
    model, params, _, _ = problem(covariance_type, d, 6, dtype, n=300)
    means = params.theta.means.copy()
    means[2] += 3e3
    params = model.params(**model.arrays(params) | {"means": means})
    shares = model.implementations(params, np.dtype(dtype), KERNELS)
    assert np.array(list(shares.values())).sum(axis=0).tolist() == [6, 6]
    assert ("SIMD" in shares) == (d == 5)
    if d == 140 and covariance_type == "full":
        assert shares == {"Cholesky": [6, 6]}
    if d == 20 and dtype == np.float32 and covariance_type in ("full", "diag"):
        assert shares["GEMM in float32"] == [5, 5]
        assert shares["GEMM in float64"] == [1, 0] and shares["Cholesky"] == [
            0,
            1,
        ]  # its moments are beyond float64 too


def test_few_components_of_full_covariances_are_computed_by_simd():
    """Up to MOST_PAIR_FEATURES features, and up to FEW_COMPONENTS components above MOST_SIMD_FEATURES."""
    for d, k in ((17, 50), (128, 2), (17, 51), (129, 2)):
        model, params, _, _ = problem("full", d, k, np.float32, n=300)
        assert ("SIMD" in model.implementations(params, np.dtype(np.float32), KERNELS)) == (k <= 50 and d <= 128)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("d", [3, 16, 20])
def test_densities_alone_are_those_of_an_e_step(d, covariance_type):
    """Labels and representatives use the same implementations: their log-densities are the E-step's, to float64 rounding."""
    model, params, x, weight = problem(covariance_type, d, 5, np.float64)
    log_norm, labels = e_step(model, params, x, weight)[-1], assigned(model, params, x)
    np.testing.assert_allclose(labels.score, log_norm, rtol=0, atol=1e-12 * (d + np.abs(log_norm).max()))
    exact = gaussian_log_joint(x, *model.arrays(params).values(), covariance_type)
    assert (labels.label == exact.argmax(axis=1)).mean() > 0.99
