"""The slow references agree with scikit-learn, with scipy and with closed forms, so that they can be trusted."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy.stats import multinomial
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from tests.problems import (
    count_problem,
    covariance_types,
    gaussian_problem,
    kmeans_problem,
    ragged_bounds,
    seeds,
)
from tests.reference import (
    dirichlet_log_prior,
    full_covariances,
    gaussian_em,
    gaussian_n_parameters,
    kmeans_lloyd,
    multinomial_em,
)

TYPES = ["full", "tied", "diag", "spherical"]
examples = settings(max_examples=25, deadline=None, derandomize=True)


def close(a, b, tolerance=1e-8):
    """|a - b| <= tolerance * max|b|, for whole arrays."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def start(problem, covariance_type):
    """What EM starts from: weights, means, covariances, covariance_type."""
    return problem["weights"], problem["means"], problem["covariances"][covariance_type], covariance_type


def precisions(covariances, covariance_type):
    """The inverse covariances, in scikit-learn's shape for the type."""
    return np.linalg.inv(covariances) if covariance_type in ("full", "tied") else 1 / covariances


def sklearn_mixture(x, weights, means, covariances, covariance_type, n_iter, reg_covar):
    """scikit-learn's mixture after n_iter M-steps from the same start."""
    model = GaussianMixture(
        n_components=len(weights), covariance_type=covariance_type, tol=0, reg_covar=reg_covar, max_iter=n_iter,
        weights_init=weights, means_init=means, precisions_init=precisions(covariances, covariance_type),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tol 0 never converges: that is the comparison
        return model.fit(x)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples
@given(seed=seeds)
def test_gaussian_em_equals_scikit_learn(covariance_type, seed):
    """n M-steps from the same start give scikit-learn's parameters, score, AIC and BIC, for each type."""
    problem = gaussian_problem(seed)
    x, n_iter = problem["x"], 1 + seed % 6
    ours = gaussian_em(x, *start(problem, covariance_type), n_iter, reg_covar=1e-6)
    assume(not ours.collapsed)
    theirs = sklearn_mixture(x, *start(problem, covariance_type), n_iter, reg_covar=1e-6)
    close(ours.weights, theirs.weights_)
    close(ours.means, theirs.means_)
    close(ours.covariances, theirs.covariances_)
    close(ours.log_likelihood[-1] / len(x), theirs.lower_bound_)
    close(ours.final_log_likelihood / len(x), theirs.score(x))
    n_parameters = gaussian_n_parameters(problem["k"], problem["d"], covariance_type)
    close(-2 * ours.final_log_likelihood + 2 * n_parameters, theirs.aic(x))
    close(-2 * ours.final_log_likelihood + np.log(len(x)) * n_parameters, theirs.bic(x))


def textbook_problem():
    """Rows and starting means whose log-likelihoods are known: see the test."""
    rng = np.random.RandomState(1)  # the table was made with this generator
    true_means = 2.0 * np.array([(-1, 1), (1, -1), (2, 2)])
    x = np.empty((300, 2))
    for row in x:
        component = rng.choice(3, 1)[0]
        row[:] = rng.randn(2, 1)[:, 0] + true_means[component]
    means = (x.mean(axis=0)[:, None] + 0.01 * x.std(axis=0)[:, None] * rng.randn(2, 3)).T
    return x, means


def test_gaussian_em_tells_of_collapse():
    """A component that ends with fewer rows than it needs is reported, not compared."""
    problem = gaussian_problem(2870321)
    assert gaussian_em(problem["x"], *start(problem, "full"), 3, reg_covar=1e-6).collapsed
    assert not gaussian_em(problem["x"], *start(problem, "tied"), 3, reg_covar=1e-6).collapsed


def test_gaussian_em_reproduces_the_textbook_table():
    """Five log-likelihoods from another implementation are reproduced to 1e-8, with covariances fixed at the identity."""
    x, means = textbook_problem()
    fit = gaussian_em(x, np.full(3, 1 / 3), means, np.stack([np.eye(2)] * 3), "full", 5, fixed=("covariances",))
    table = [-2668.2486295, -2620.135489, -2065.275901, -1239.153363, -1167.625359]
    np.testing.assert_allclose(fit.log_likelihood, table, rtol=1e-8)
    np.testing.assert_array_equal(fit.covariances, np.stack([np.eye(2)] * 3))


@examples
@given(seed=seeds, covariance_type=covariance_types)
def test_gaussian_free_energy_never_falls(seed, covariance_type):
    """Without reg_covar: log_likelihood[t] <= lower_bound[t] <= log_likelihood[t+1], with row weights too."""
    problem = gaussian_problem(seed)
    fit = gaussian_em(problem["x"], *start(problem, covariance_type), 4, sample_weight=problem["sample_weight"])
    assume(not fit.collapsed)
    after = np.append(fit.log_likelihood[1:], fit.final_log_likelihood)
    slack = 1e-12 * np.abs(fit.log_likelihood).max()
    assert (fit.lower_bound >= fit.log_likelihood - slack).all()
    assert (after >= fit.lower_bound - slack).all()


@examples
@given(seed=seeds, covariance_type=covariance_types)
def test_gaussian_row_weights_count_rows(seed, covariance_type):
    """Weight 2 is the row twice, weight 0 the row left out."""
    problem = gaussian_problem(seed)
    times = np.random.default_rng(seed).integers(0, 3, size=problem["n"])
    weighted = gaussian_em(problem["x"], *start(problem, covariance_type), 2, 1e-6, sample_weight=times)
    repeated = gaussian_em(np.repeat(problem["x"], times, axis=0), *start(problem, covariance_type), 2, 1e-6)
    assume(not weighted.collapsed)
    close(weighted.weights, repeated.weights)
    close(weighted.means, repeated.means)
    close(weighted.covariances, repeated.covariances)
    close(weighted.final_log_likelihood, repeated.final_log_likelihood)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_gaussian_one_component_is_the_closed_form(covariance_type):
    """K = 1 gives the data's mean and covariance after one iteration, from any start."""
    problem = gaussian_problem(7, k=1, d=3)
    x = problem["x"]
    fit = gaussian_em(x, *start(problem, covariance_type), 1)
    covariance = np.cov(x.T, ddof=0)
    expected = {
        "full": covariance[None],
        "tied": covariance,
        "diag": np.diag(covariance)[None],
        "spherical": np.array([np.diag(covariance).mean()]),
    }
    close(fit.means[0], x.mean(axis=0))
    close(fit.covariances, expected[covariance_type])
    close(fit.n_effective, [[len(x)]])


@pytest.mark.parametrize("part", ["weights", "means", "covariances"])
def test_gaussian_fixed_parts_stay(part):
    """What is held is what was given, bit for bit, and the rest moves."""
    problem = gaussian_problem(11, k=3, d=2)
    fit = gaussian_em(problem["x"], *start(problem, "full"), 2, reg_covar=1e-3, fixed=(part,))
    given_ = {"weights": problem["weights"], "means": problem["means"], "covariances": problem["covariances"]["full"]}
    for name, value in given_.items():
        assert np.array_equal(getattr(fit, name), value) == (name == part)


@examples
@given(seed=seeds)
def test_hard_em_with_equal_spheres_is_kmeans(seed):
    """Weights equal, one fixed spherical covariance: the centres of hard EM are those of K-means."""
    problem = kmeans_problem(seed)
    k, n_iter = problem["k"], 3
    hard = gaussian_em(
        problem["x"], np.full(k, 1 / k), problem["centers"], np.full(k, 2.0), "spherical", n_iter,
        hard=True, fixed=("weights", "covariances"),
    )  # fmt: skip
    assume(not hard.collapsed)
    lloyd = kmeans_lloyd(problem["x"], problem["centers"], max_iter=n_iter, tol=0)
    close(hard.means, lloyd.centers)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("tol", [0.0, 1e-2])
@examples
@given(seed=seeds)
def test_kmeans_equals_scikit_learn(seed, tol, empty, weighted):
    """Labels, centres, inertia and n_iter are those of KMeans(algorithm="lloyd"), an empty centre included."""
    problem = kmeans_problem(seed, empty=empty)
    x, centers = problem["x"], problem["centers"]
    # scikit-learn lets an empty centre take a row of weight 0, which leaves it empty: no zeros in a comparison.
    row_weight = problem["sample_weight"] + 0.05 if weighted else None
    ours = kmeans_lloyd(x, centers, tol=tol, sample_weight=row_weight)
    theirs = KMeans(len(centers), init=centers, n_init=1, algorithm="lloyd", tol=tol).fit(x, sample_weight=row_weight)
    # Centres that stand still by the sums may move by rounding in another order of summation: one more iteration.
    slack = int(tol == 0 and not ours.strict)
    assert 0 <= theirs.n_iter_ - ours.n_iter <= slack
    assert ours.n_relocated >= empty
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    close(ours.centers, theirs.cluster_centers_)
    close(ours.inertia, theirs.inertia_)


@examples
@given(seed=seeds)
def test_kmeans_equals_scikit_learn_with_several_empty_centres(seed):
    """The rows taken by several empty centres are scikit-learn's; which of them takes which is ours to order."""
    problem = kmeans_problem(seed, empty=3)
    x, centers = problem["x"], problem["centers"]
    ours = kmeans_lloyd(x, centers, tol=0)
    theirs = KMeans(len(centers), init=centers, n_init=1, algorithm="lloyd", tol=0).fit(x)
    assert 0 <= theirs.n_iter_ - ours.n_iter <= int(not ours.strict)
    assert ours.n_relocated >= 3
    close(ours.inertia, theirs.inertia_)


def test_kmeans_empty_centre_takes_the_farthest_row():
    """An empty centre takes the farthest row, ties to the lowest, and the row leaves its old cluster."""
    x = np.array([[0.0], [1.0], [5.0], [-5.0], [100.0]])
    fit = kmeans_lloyd(x, np.array([[0.0], [100.0], [1e6]]), max_iter=1, tol=0)
    np.testing.assert_allclose(fit.centers, [[-4 / 3], [100.0], [5.0]])
    assert fit.n_relocated == 1


def test_kmeans_empty_centre_passes_by_rows_of_weight_0():
    """A row of weight 0 is as good as absent: an empty centre takes the farthest row that counts."""
    x = np.array([[0.0], [1.0], [5.0], [-70.0], [100.0]])
    fit = kmeans_lloyd(x, np.array([[0.0], [100.0], [1e6]]), max_iter=1, sample_weight=[1, 1, 1, 0, 1])
    np.testing.assert_allclose(fit.centers, [[0.5], [100.0], [5.0]])


def test_kmeans_of_equal_rows_has_no_centre_at_the_origin():
    """More centres than different rows: the spare ones go to the biggest cluster, never to the origin."""
    fit = kmeans_lloyd(np.full((6, 2), 3.0), np.array([[3.0, 3.0], [9.0, 9.0], [8.0, 8.0]]))
    np.testing.assert_array_equal(fit.centers, np.full((3, 2), 3.0))
    assert fit.inertia == 0


@examples
@given(seed=seeds)
def test_multinomial_log_likelihood_equals_scipy(seed):
    """The log-likelihood, its multinomial coefficient included, is that of scipy.stats.multinomial."""
    problem = count_problem(seed)
    counts, weights, row_weight = problem["counts"], problem["weights"], problem["sample_weight"]
    fit = multinomial_em(counts, weights, problem["log_prob"], 1, sample_weight=row_weight)
    density = np.stack(
        [multinomial.pmf(counts, counts.sum(axis=1), np.exp(topic)) for topic in problem["log_prob"]], axis=1
    )
    close(fit.log_likelihood[0], row_weight @ np.log(density @ weights))


@pytest.mark.parametrize("concentration", [1.0, 1.1, 3.0])
@examples
@given(seed=seeds)
def test_multinomial_objective_never_falls(seed, concentration):
    """Log-likelihood plus log prior never falls; a concentration of 1 is maximum likelihood."""
    problem = count_problem(seed)
    fit = multinomial_em(
        problem["counts"], problem["weights"], problem["log_prob"], 6, concentration, problem["sample_weight"]
    )
    trace = np.append(fit.objective, fit.final_objective)
    assert (np.diff(trace) >= -1e-12 * np.abs(trace).max()).all()
    if concentration == 1:
        np.testing.assert_array_equal(fit.objective, fit.log_likelihood)


def test_multinomial_one_component_is_the_closed_form():
    """K = 1: theta is proportional to the total counts + concentration - 1."""
    problem = count_problem(3, k=1)
    fit = multinomial_em(problem["counts"], problem["weights"], problem["log_prob"], 1, 1.5)
    totals = problem["counts"].sum(axis=0) + 0.5
    close(fit.log_prob[0], np.log(totals / totals.sum()))
    close(fit.final_objective - fit.final_log_likelihood, dirichlet_log_prior(fit.log_prob, 1.5))


@examples
@given(seed=seeds)
def test_multinomial_row_weights_count_rows(seed):
    """Weight 2 is the document twice, weight 0 the document left out."""
    problem = count_problem(seed)
    times = np.random.default_rng(seed).integers(0, 3, size=problem["n"])
    times[0] = 1
    start_ = problem["weights"], problem["log_prob"], 3
    weighted = multinomial_em(problem["counts"], *start_, sample_weight=times)
    repeated = multinomial_em(np.repeat(problem["counts"], times, axis=0), *start_)
    close(weighted.weights, repeated.weights)
    close(weighted.log_prob, repeated.log_prob)
    close(weighted.objective, repeated.objective)


@examples
@given(seed=seeds)
def test_problems_are_what_they_promise(seed):
    """Offsets stay within the bound, starts are proper, some rows weigh nothing, chunks cover all rows."""
    problem = gaussian_problem(seed)
    x, n, d, k = (problem[name] for name in ("x", "n", "d", "k"))
    assert x.shape == (n, d)
    assert (np.abs(x.mean(axis=0)) / x.std(axis=0) <= 100 * (1 + 1e-9)).all()
    assert np.isclose(problem["weights"].sum(), 1)
    for covariance_type in TYPES:
        full = full_covariances(problem["covariances"][covariance_type], covariance_type, k, d)
        assert full.shape == (k, d, d)
        assert (np.linalg.eigvalsh(full) > 0).all()
    assert (problem["sample_weight"] >= 0).all()
    assert problem["sample_weight"].sum() > 0
    counts = count_problem(seed)["counts"]
    assert (counts.sum(axis=1) > 0).all()
    bounds = ragged_bounds(np.random.default_rng(seed), n)
    assert bounds[0] == 0
    assert bounds[-1] == n
    assert (np.diff(bounds) > 0).all()
