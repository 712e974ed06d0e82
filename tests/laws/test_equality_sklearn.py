"""The same numbers as scikit-learn, from the same start and after as many iterations; and float32 as good as it can be."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from pipeline.arrays.packing import pack
from pipeline.em.choice import criteria
from pipeline.kernels.choice import LIMITS, uses_simd
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep, Evidence
from tests.laws.common import (
    TYPES,
    assigned,
    chunks_of,
    close,
    examples,
    fit,
    gaussian,
    gaussian_mixture,
    kmeans,
    multinomial,
)
from tests.problems import count_problems, gaussian_problem, gaussian_problems, kmeans_problems, seeds
from tests.reference import full_covariances, gaussian_em, gaussian_log_joint, multinomial_log_joint

ROUNDING = 1e-28  # of an inertia of 0: squares of eps


def sklearn_mixture(problem, covariance_type, n_iter, reg_covar):
    """scikit-learn's mixture after n_iter M-steps from the problem's start."""
    start = problem["covariances"][covariance_type]
    model = GaussianMixture(
        n_components=problem["k"], covariance_type=covariance_type, tol=0, reg_covar=reg_covar, max_iter=n_iter,
        weights_init=problem["weights"], means_init=problem["means"],
        precisions_init=np.linalg.inv(start) if covariance_type in ("full", "tied") else 1 / start,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tol 0 never converges: that is the comparison
        return model.fit(problem["x"])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("covariance_type", TYPES)
@examples(30)
@given(problem=gaussian_problems(), n_iter=st.integers(1, 6), reg=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_gaussian_mixture_is_scikit_learns(covariance_type, ragged, problem, n_iter, reg):
    """Parameters, log-densities, labels, score, AIC and BIC agree to 1e-8, in one chunk and in many ragged ones."""
    x, bounds = problem["x"], problem["bounds"] if ragged else None
    model, params = gaussian(problem, covariance_type, reg_covar=reg)
    run, resets = fit(model, params, chunks_of(x, bounds), n_iter)
    assume(not resets)
    theirs = sklearn_mixture(problem, covariance_type, n_iter, reg)
    # scikit-learn's own diag and tied moments cancel: rows of 100 sd lose 1e4 eps of a narrow component's variance.
    narrow = run.params.theta.covariances.min() / x.var(axis=0).max() if covariance_type in ("diag", "tied") else 1.0
    assume(narrow > 1e-12)
    close(run.params.weights, theirs.weights_, 1e-8, "weights")
    size = max(np.abs(theirs.means_).max(), x.std(axis=0).max())  # the mean of K = 1 may be 0
    assert np.abs(run.params.theta.means - theirs.means_).max() <= 1e-8 * size
    close(run.params.theta.covariances, theirs.covariances_, 1e-8, "covariances")
    labels = [assigned(model, run.params, chunk.x) for chunk in chunks_of(x, bounds)]
    close(np.concatenate([label.score for label in labels]), theirs.score_samples(x), 1e-8, "log-densities")
    close(np.exp(np.concatenate([label.log_resp for label in labels])), theirs.predict_proba(x), 1e-6, "resp")
    resp = np.sort(theirs.predict_proba(x), axis=1)
    clear = resp[:, -1] - (resp[:, -2] if problem["k"] > 1 else 0.0) > 1e-6
    np.testing.assert_array_equal(np.concatenate([a.label for a in labels])[clear], theirs.predict(x)[clear])
    found = criteria(model, Evidence(len(x), 0.0, run.log_likelihood, 0.0), len(x))
    close([found["aic"], found["bic"]], [theirs.aic(x), theirs.bic(x)], 1e-8, "criteria")
    assert found["n_free_parameters"] == theirs._n_parameters()
    close(run.history[-1].log_likelihood / len(x), theirs.lower_bound_, 1e-8, "lower bound")


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(25)
@given(
    problem=gaussian_problems(),
    fixed=st.sampled_from([(), ("weights",), ("means",), ("covariances",)]),
    hard=st.booleans(),
)
def test_gaussian_mixture_is_the_textbooks(covariance_type, problem, fixed, hard):
    """With row weights, fixed parts and hard assignment too: parameters and history are those of the slow reference."""
    weight = problem["sample_weight"]
    options = {"reg_covar": 1e-6, "fixed": fixed, "assignment": "hard" if hard else "soft"}
    model, params = gaussian(problem, covariance_type, **options)
    run, resets = fit(model, params, chunks_of(problem["x"], None, weight), 3)
    start = problem["weights"], problem["means"], problem["covariances"][covariance_type], covariance_type
    expected = gaussian_em(problem["x"], *start, 3, 1e-6, weight, hard, fixed)
    assume(not resets and not expected.collapsed)
    for name in ("weights", "means", "covariances"):
        close(model.arrays(run.params)[name], getattr(expected, name), 1e-9, name)
    size = np.abs(expected.log_likelihood).max()
    for name in ("log_likelihood", "lower_bound", "entropy", "n_effective"):
        found = [entry.traced[name] if name == "n_effective" else getattr(entry, name) for entry in run.history]
        assert np.abs(found - getattr(expected, name)).max() <= 1e-9 * size, name
    close(run.log_likelihood, expected.final_log_likelihood, 1e-9)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tol", [0.0, 1e-4, 1e-2])
@examples(25)
@given(empty=st.integers(0, 1), data=st.data())
def test_kmeans_is_scikit_learns(tol, weighted, ragged, empty, data):
    """Labels, centres, inertia and number of iterations are those of Lloyd's there, an empty centre included."""
    problem = data.draw(kmeans_problems(empty=empty, generic=True))
    x, centers = problem["x"], problem["centers"]
    weight = problem["sample_weight"] + 0.05 if weighted else None  # there, an empty centre may take a row of weight 0
    model, params = kmeans(problem)
    bounds = problem["bounds"] if ragged else None
    run, _ = fit(model, params, chunks_of(x, bounds, weight), 300, tol)
    theirs = SklearnKMeans(len(centers), init=centers, n_init=1, algorithm="lloyd", tol=tol, max_iter=300)
    theirs.fit(x, sample_weight=weight)
    np.testing.assert_array_equal(assigned(model, run.params, x).label, theirs.labels_)
    close(run.params.centers, theirs.cluster_centers_, 1e-8)
    assert abs(-run.objective - theirs.inertia_) <= 1e-8 * theirs.inertia_ + ROUNDING * (problem["x"] ** 2).sum()
    # Centres that stand still by the sums may move by rounding in another order of summation: one more iteration.
    still = tol == 0 and "moved by 0 squared" in run.stop_reason
    stood = tol == 0 and len(run.history) > 1 and run.history[-2].fisher_norm < 1e-14  # the same the other way round
    assert -int(stood) <= theirs.n_iter_ - len(run.history) <= int(still)


@examples(100)
@given(problem=kmeans_problems(empty=3, generic=True))
def test_kmeans_with_several_empty_centres_is_scikit_learns(problem):
    """Three centres without rows: the same rows are taken, the same inertia and iterations."""
    model, params = kmeans(problem)
    run, events = fit(model, params, chunks_of(problem["x"]), 300, 1e-4)
    theirs = SklearnKMeans(problem["k"], init=problem["centers"], n_init=1, algorithm="lloyd").fit(problem["x"])
    assert len(events) >= 3
    assert abs(-run.objective - theirs.inertia_) <= 1e-8 * theirs.inertia_ + ROUNDING * (problem["x"] ** 2).sum()
    assert len(run.history) == theirs.n_iter_


@examples(100)
@given(problem=count_problems())
def test_multinomial_log_densities_are_those_of_the_dense_loop(problem):
    """log p(x) of CSR rows, of the same rows dense, and with zeros stored, is the loop over words."""
    log_prob = problem["log_prob"].copy()
    if problem["v"] > 2:  # a word that the first topic cannot produce
        log_prob[0, 1] = -np.inf
        log_prob[0] -= np.log(np.exp(log_prob[0]).sum())
    model, params = multinomial({**problem, "log_prob": log_prob})
    expected = multinomial_log_joint(problem["counts"], problem["weights"], log_prob)
    zeros = sp.csr_array(problem["counts"] + 1)
    zeros.data = zeros.data - 1
    for rows in (sp.csr_array(problem["counts"]), problem["counts"], zeros, problem["counts"].astype(np.float32)):
        close(model.log_joint(params, rows, KERNELS), expected, 1e-12)


def float32_problem(seed, d, k, condition):
    """Rows of a mixture in float32 with covariances of a given condition, and parameters that fit them."""
    rng = np.random.default_rng(seed)
    factors = []
    for _ in range(k):
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
        spectrum = np.geomspace(1.0, condition, d) ** -0.5
        factors.append(rotation * spectrum)
    means = rng.normal(size=(k, d)) + rng.uniform(-100, 100, size=d)
    x = np.concatenate(
        [m + rng.normal(size=(100, d)) * 10 ** rng.uniform(-1, 1) @ f.T for m, f in zip(means, factors, strict=True)]
    )
    return x.astype(np.float32), np.full(k, 1 / k), means, np.stack([f @ f.T for f in factors])


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6, 1e8])
@examples(20)
@given(d=st.integers(2, 32), k=st.integers(1, 4), seed=seeds)
@example(d=19, k=4, seed=85)
def test_float32_log_densities_are_those_of_float64(condition, covariance_type, d, k, seed):
    """On the same rows and parameters, at 100 sd from the origin.

    Within 1e-5 (d + Mahalanobis^2) nats; by matrix products, which cancel terms of size c_k, within eps c_k more.
    """
    x, weights, means, full = float32_problem(seed, d, k, condition)
    narrow = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2),
        "spherical": np.diagonal(full, axis1=1, axis2=2).mean(axis=1),
    }
    covariances = narrow[covariance_type]
    model = gaussian_mixture(k, x.mean(axis=0).astype(np.float64), covariance_type, reg_covar=0.0)
    params = model.params_from_arrays({"weights": weights, "means": means, "covariances": covariances})
    low, high = (model.log_joint(params, rows, KERNELS) for rows in (x, x.astype(np.float64)))
    expanded = full_covariances(covariances, covariance_type, k, d)
    mahalanobis = -2 * (high - np.log(weights)) - d * np.log(2 * np.pi) - np.linalg.slogdet(expanded)[1]
    problem = model.component._problem(params.theta, np.log(weights), False)
    products = np.zeros(k, dtype=bool) if uses_simd(problem) else problem.reach <= LIMITS[np.dtype(np.float32)][0]
    cancelled = np.where(products, np.finfo(np.float32).eps * problem.reach, 0.0)
    assert (np.abs(low - high) <= 1e-5 * (d + mahalanobis) + cancelled).all()
    close(high, gaussian_log_joint(x.astype(np.float64), weights, means, covariances, covariance_type), 1e-7)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float16", "float32"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_any_dtype_gives_the_sums_of_its_values(covariance_type, dtype):
    """Rows of integers and short floats are computed on as the numbers they are."""
    problem = gaussian_problem(3, d=3, k=2, max_offset=5.0)
    rows = np.clip(np.round((problem["x"] / problem["scale"] + 10) * 5), 0, 255).astype(dtype)
    model = gaussian_mixture(2, rows.mean(axis=0, dtype=np.float64), covariance_type)
    wide = {
        "full": np.eye(3) * [[[20.0]], [[30.0]]],
        "tied": 25 * np.eye(3),
        "diag": np.full((2, 3), 25.0),
        "spherical": np.full(2, 25.0),
    }
    start = {"weights": np.full(2, 0.5), "means": rows[:2].astype(float), "covariances": wide[covariance_type]}
    params = model.params_from_arrays(start)
    low, high = (
        pack(EStep(model, params)(chunks_of(x)[0], KERNELS).totals).arrays for x in (rows, rows.astype(np.float64))
    )
    for name, value in high.items():
        assert np.abs(low[name] - value).max() <= 1e-5 * (np.abs(value).max() + len(rows) * 25), name
