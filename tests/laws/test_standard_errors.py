"""Standard errors of weights and means: the empirical information, against closed forms, differences and simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import helmert
from scipy.special import logsumexp

from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models import information, schema
from pipeline.models.covariance import from_covariance
from pipeline.models.information import ScoreProducts
from tests.laws.common import EPS, TYPES, chunks_of, close, examples, fit, gaussian, gaussian_mixture, sum_over
from tests.problems import gaussian_problem, gaussian_problems


def products(model, params, x, weight=None, bounds=None, covariances=True):
    """The job, and its sum over rows in memory."""
    job = ScoreProducts(model, params, covariances)
    return job, sum_over(chunks_of(x, bounds, weight), [job])[0]


def errors(model, params, x, weight=None, covariances=True):
    """Standard errors by name."""
    asked, found = products(model, params, x, weight, None, covariances)
    return asked.errors(found)


def log_density(model, x, weights, means, covariances):
    """(n,) log p(x) under given parameters."""
    params = model.params(weights=weights, means=means, covariances=covariances)
    return logsumexp(model.log_joint(params, x, KERNELS), axis=1)


def directions_of(model, params, parts):
    """Where weights, means and covariances can go, one step at a time."""
    zero = {name: np.zeros_like(value) for name, value in model.arrays(params).items()}
    steps = {"weights": list(helmert(model.n_components)) if model.n_components > 1 else []}
    steps["means"] = list(np.eye(zero["means"].size).reshape(-1, *zero["means"].shape))
    shape = zero["covariances"].shape
    every = np.eye(zero["covariances"].size).reshape(-1, *shape)
    if model.component.covariance_type in ("full", "tied"):
        lower = np.tri(shape[-1]).astype(bool)
        every = [(e + np.swapaxes(e, -1, -2)) for e in every if (e.astype(bool) & lower).any()]
    steps["covariances"] = list(every)
    return [{**zero, part: step} for part in parts for step in steps[part]]


def covariance_by_differences(model, params, x, weight, parts):
    """Inverse of sum w s sᵀ with scores by central differences, and the directions that they are taken in."""
    directions, step, scores = directions_of(model, params, parts), 1e-5, []
    for towards in directions:
        ahead, behind = (
            log_density(model, x, *(value + h * towards[name] for name, value in model.arrays(params).items()))
            for h in (step, -step)
        )
        scores.append((ahead - behind) / (2 * step))
    return np.linalg.inv((np.array(scores) * weight) @ np.array(scores).T), directions


@pytest.mark.parametrize(
    "parts", [("weights", "means", "covariances"), ("weights", "means"), ("weights", "covariances"), ("means",)]
)
@pytest.mark.parametrize("covariance_type", TYPES)
@examples(12)
@given(k=st.integers(2, 3), data=st.data())
def test_errors_are_those_of_scores_by_differences(covariance_type, parts, k, data):
    """Not only at an optimum: the matrix is the product of each row's gradient with itself, in the rows' weights."""
    problem = data.draw(gaussian_problems(n=600, k=k, max_d=3, max_offset=3.0, generic=True))
    k, d = problem["k"], problem["d"]
    # Components apart: of nearly equal ones, differences could not tell the scores.
    problem["x"] = problem["x"] / problem["scale"]
    problem["means"] = problem["x"].mean(axis=0) + 1.6 * (np.arange(k)[:, None] - (k - 1) / 2)
    tilt, sizes = np.eye(d) + 0.3 * np.ones((d, d)), np.array([1.0, 0.7, 0.5])[:k]
    types = {"full": sizes[:, None, None] * tilt, "tied": tilt, "diag": np.tile(sizes[:, None], d), "spherical": sizes}
    problem["covariances"] = types
    fixed = tuple({"weights", "means"} - set(parts))
    model, params = gaussian(problem, covariance_type, fixed=fixed)
    weight = problem["sample_weight"]
    covariance, directions = covariance_by_differences(model, params, problem["x"], weight, parts)
    found = errors(model, params, problem["x"], weight, "covariances" in parts)
    wanted = [part for part in parts if part != "covariances"]
    assert set(found) == set(wanted)
    for part in wanted:
        along = np.array([towards[part].ravel() for towards in directions])
        expected = np.sqrt(np.einsum("ij,ia,aj->j", along, covariance, along))
        close(found[part].ravel() / expected, np.ones(len(expected)), 1e-4)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(20)
@given(problem=gaussian_problems(k=1, n=200, max_d=3))
def test_of_one_component_they_are_deviation_over_root_n(covariance_type, problem):
    """sigma / sqrt(n), n the sum of weights; rows are turned, or made round, as narrower covariances suppose them, and
    mirrored, so that they are symmetric as a Gaussian's: then learned covariances change nothing.
    """
    x, weight = problem["x"], problem["sample_weight"]
    mean = np.average(x, axis=0, weights=weight)
    x, weight = np.concatenate([x, 2 * mean - x]), np.tile(weight, 2)
    covariance = np.cov(x.T, aweights=weight, ddof=0).reshape(problem["d"], problem["d"])
    if covariance_type in ("diag", "spherical"):
        values, turn = np.linalg.eigh(covariance)
        turn = turn / np.sqrt(values) if covariance_type == "spherical" else turn
        x, mean = (x - mean) @ turn, 0.0 * mean
        covariance = turn.T @ covariance @ turn
    model = gaussian_mixture(1, mean, covariance_type, reg_covar=0.0)
    shape = model.component.shape
    start = {"weights": np.ones(1), "means": mean[None], "covariances": from_covariance(shape, covariance, 1)}
    deviation = np.sqrt(np.diagonal(covariance))
    for covariances in (False, True):
        found = errors(model, model.params_from_arrays(start), x, weight, covariances)
        close(found["means"][0] / deviation, np.full(len(mean), 1 / np.sqrt(weight.sum())), 1e-6)
        assert found["weights"].tolist() == [0.0]


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(20)
@given(problem=gaussian_problems())
def test_products_add(covariance_type, problem):
    """Ragged chunks sum to the whole to rounding; weight 2 is the row twice, weight 0 the row left out."""
    model, params = gaussian(problem, covariance_type)
    x, weight = problem["x"], np.arange(problem["n"]) % 3
    whole = products(model, params, x, weight.astype(float))[1]
    size = np.sqrt(np.outer(np.diagonal(whole), np.diagonal(whole)))
    for other in (
        products(model, params, x, weight.astype(float), problem["bounds"])[1],
        products(model, params, np.repeat(x, weight, axis=0))[1],
    ):
        assert (np.abs(other - whole) <= 64 * EPS * len(x) * size).all()


def test_they_are_close_to_the_curvature_of_the_log_likelihood():
    """At the optimum of 20,000 rows from the model, with fixed covariances, a numerical Hessian says nearly the same."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(6000, 1)), 2.5 + rng.normal(size=(14000, 1))])
    model = gaussian_mixture(2, x.mean(axis=0), "spherical", fixed=("covariances",))
    start = {"weights": [0.3, 0.7], "means": [[0.0], [2.5]], "covariances": [1.0, 1.0]}
    run, _ = fit(model, model.params_from_arrays(start), chunks_of(x), 300, 1e-12)

    def value(free):
        weights, means = np.array([free[0], 1 - free[0]]), free[1:, None]
        return log_density(model, x, weights, means, run.params.theta.covariances).sum()

    at, step = np.array([run.params.weights[0], *run.params.theta.means[:, 0]]), 1e-3
    steps = step * np.eye(3)
    hessian = np.array(
        [[value(at + a + b) - value(at + a - b) - value(at - a + b) + value(at - a - b) for a in steps] for b in steps]
    ) / (4 * step**2)
    expected = np.sqrt(np.diagonal(np.linalg.inv(-hessian)))
    found = errors(model, run.params, x, None, False)
    close([found["weights"][0], *found["means"][:, 0]], expected, 0.03)
    close(found["weights"][1], found["weights"][0], 1e-9)


def test_without_information_there_is_no_error():
    """Fewer rows than parameters: NaN for all. A component of weight 0: NaN for it, the others as if it were not there."""
    problem = gaussian_problem(1, k=2, d=3)
    model, params = gaussian(problem, "diag")
    found = errors(model, params, problem["x"][:5])
    assert np.isnan(found["weights"]).all() and np.isnan(found["means"]).all()
    expected = errors(model, params, problem["x"])
    wide = model.with_components(3)
    arrays = schema.selected(model.fields, model.arrays(params), np.array([0, 1, 0]))
    found = errors(wide, wide.params(**arrays | {"weights": np.array([*params.weights, 0.0])}), problem["x"])
    close(found["weights"][:2], expected["weights"], 1e-9)
    close(found["means"][:2], expected["means"], 1e-9)
    assert np.isnan(found["weights"][2]) and np.isnan(found["means"][2]).all()


def test_a_matrix_too_large_is_refused_before_the_run():
    """The bound is stated in the error, with what to do; just below, the bytes are those of the matrix."""
    k = int(np.sqrt(information.MOST_BYTES / 8)) // 16

    def nbytes(n_components, d, fully):
        return gaussian_mixture(n_components, np.zeros(d)).score_products(None, fully).nbytes

    assert nbytes(k, 15, False) == 8 * (16 * k) ** 2
    assert nbytes(2, 3, True) == 8 * (2 * (1 + 3 + 6)) ** 2
    with pytest.raises(InputError, match=r"standard_errors.*MiB.*n_components"):
        nbytes(k + 1, 15, False)
    with pytest.raises(InputError, match="given-covariances"):
        nbytes(k, 15, True)


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [("covariances",), ()])
def test_they_are_the_spread_over_simulated_data_sets(fixed):
    """Estimates of 300 data sets from the model spread as the errors say; those of given covariances, learned, say less."""
    truth = {"weights": np.array([0.35, 0.65]), "means": np.array([[0.0, 0.0], [3.0, 1.0]])}
    truth["covariances"] = np.stack([np.array([[1.0, 0.4], [0.4, 0.8]]), np.eye(2)])
    roots = np.linalg.cholesky(truth["covariances"])
    estimates, said, given = [], [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        z = (rng.random(1500) > truth["weights"][0]).astype(int)
        x = truth["means"][z] + np.einsum("nij,nj->ni", roots[z], rng.normal(size=(1500, 2)))
        model = gaussian_mixture(2, x.mean(axis=0), fixed=fixed)
        run, _ = fit(model, model.params_from_arrays(truth), chunks_of(x), 200, 1e-7)
        estimates.append([run.params.weights[0], *run.params.theta.means.ravel()])
        for stated, covariances in ((said, not fixed), (given, False)):
            found = errors(model, run.params, x, None, covariances)
            stated.append([found["weights"][0], *found["means"].ravel()])
    spread = np.std(estimates, axis=0)
    # The spread of 300 is itself known to 4 %.
    np.testing.assert_allclose(spread / np.mean(said, axis=0), 1.0, atol=0.13)
    if not fixed:
        assert (spread / np.mean(given, axis=0)).max() > 1.2
