"""Conjugate priors: the M-step is the posterior mode, the objective never falls, and few rows do no harm."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize

from pipeline.data.profile import ProfileJob, summary_of
from pipeline.jobconfig import validate
from pipeline.models.families.gaussian import GaussianStats
from pipeline.models.mixture import MixtureStats
from tests.laws.common import (
    TYPES,
    chunks_of,
    close,
    close_params,
    e_step,
    examples,
    fit,
    gaussian,
    multinomial,
    sum_over,
)
from tests.laws.test_degenerate import INITS, is_sound, odd_rows, whole_job
from tests.problems import count_problems, gaussian_problem, gaussian_problems, seeds
from tests.reference import full_covariances

FIXED = [(), ("weights",), ("means",), ("covariances",), ("weights", "means"), ("weights", "covariances")]
PRIORS = [
    "auto",
    {"weights": 2.5},
    {"shrinkage": 0.0},
    {"shrinkage": 3.0, "scale": 0.0},
    {"weights": 1.3, "shrinkage": 2.0, "dof": 0.5, "scale": 0.3},
    {"weights": 4.0, "shrinkage": 40.0, "dof": 50.0, "scale": 20.0},
]


def known_of(x, weight=None):
    """What a profiling pass learns of rows in memory."""
    return summary_of(sum_over(chunks_of(x, None, weight), [ProfileJob("matrix", 100, 0)])[0], [])


def with_prior(problem, covariance_type, prior, weight=None, **options):
    """A model as a job builds it, and its parameters at the problem's start."""
    options = {"reg_covar": 0.0, **options}
    assignment = options.pop("assignment", "soft")
    asked = {"n_components": problem["k"], "covariance_type": covariance_type, "prior": prior, **options}
    [model] = validate({"model": asked, "fit": {"assignment": assignment}}).models(known_of(problem["x"], weight))
    start = {name: problem[name] for name in ("weights", "means")}
    return model, model.params_from_arrays({**start, "covariances": problem["covariances"][covariance_type]})


def log_density(model, params):
    """The prior's log density by scipy, term by term. As Fraley and Raftery, diag and spherical have inverse gammas."""
    prior, d, kind = model.component.prior, model.n_features, model.component.covariance_type
    full = full_covariances(params.theta.covariances, kind, model.n_components, d)
    value = (model.weight_concentration - 1.0) * np.log(params.weights).sum() if "weights" not in model.fixed else 0.0
    if prior.shrinkage > 0:
        for mean, covariance in zip(params.theta.means, full, strict=True):
            value += stats.multivariate_normal.logpdf(mean, prior.mean, covariance / prior.shrinkage)
    if prior.scale is None:
        return value
    for covariance in full[:1] if kind == "tied" else full:
        if kind in ("full", "tied"):
            # scipy's inverse Wishart wants d degrees of freedom or more; the mode wants none
            log_det = np.linalg.slogdet(covariance)[1]
            value -= 0.5 * (prior.dof + d + 1) * log_det + 0.5 * np.trace(np.linalg.inv(covariance) @ prior.scale)
        elif kind == "diag":
            value += stats.invgamma.logpdf(np.diag(covariance), prior.dof / 2, scale=np.diag(prior.scale) / 2).sum()
        else:
            value += stats.invgamma.logpdf(covariance[0, 0], prior.dof / 2, scale=np.trace(prior.scale) / d / 2)
    return value


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("covariance_type", TYPES)
@examples(40)
@given(prior=st.sampled_from(PRIORS), fixed=st.sampled_from(FIXED), data=st.data())
def test_objective_never_falls(covariance_type, assignment, prior, fixed, data):
    """Under any prior, parts fixed or not, weights or none, many rows or two a component, reg_covar or none."""
    bounded = prior == "auto" or prior.get("scale") != 0
    n = data.draw(st.none() | st.integers(12, 29), label="rows") if bounded else None
    problem = data.draw(gaussian_problems(n=n))
    weight = problem["sample_weight"] if data.draw(st.booleans(), label="weighted") else None
    floored = bounded and data.draw(st.booleans(), label="reg_covar")
    reg_covar = 1e-3 * float(problem["scale"].min()) ** 2 if floored else 0.0
    options = {"assignment": assignment, "fixed": list(fixed), "reg_covar": reg_covar}
    model, params = with_prior(problem, covariance_type, prior, weight, **options)
    run, resets = fit(model, params, chunks_of(problem["x"], None, weight), 10)
    assume(not resets)
    trace = np.array([*(entry.objective for entry in run.history), run.objective])
    assert np.isfinite(trace).all()
    falls = np.maximum(-np.diff(trace), 0.0)
    assert (falls <= 1e-12 * np.abs(trace).max()).all(), f"falls by {falls.max():.3g} of {np.abs(trace).max():.3g}"
    for part in fixed:
        assert np.array_equal(model.arrays(run.params)[part], model.arrays(params)[part])


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(30)
@given(prior=st.sampled_from(PRIORS), one=gaussian_problems(), seed=seeds)
def test_log_prior_is_the_written_out_density(covariance_type, prior, one, seed):
    """Between any two sets of parameters it moves by as much as scipy's densities: the constant alone differs."""
    other, rng = dict(one), np.random.default_rng(seed)
    other["means"] = one["means"] + one["scale"] * rng.normal(size=one["means"].shape)
    other["weights"] = rng.dirichlet(np.full(one["k"], 3.0))
    other["covariances"] = {name: value * rng.uniform(0.2, 5.0) for name, value in one["covariances"].items()}
    model, first = with_prior(one, covariance_type, prior)
    second = with_prior(other, covariance_type, prior)[1]
    moved = model.log_prior(second) - model.log_prior(first)
    expected = log_density(model, second) - log_density(model, first)
    size = abs(log_density(model, first)) + abs(log_density(model, second)) + abs(model.log_prior(first))
    assert abs(moved - expected) <= 1e-9 * size


def soft_rows(problem, rng):
    """Random responsibilities (n, k), some components with next to nothing; weighted statistics come from them."""
    resp = rng.dirichlet(np.full(problem["k"], 0.3), size=problem["n"])
    return resp * problem["sample_weight"][:, None]


def statistics(model, x, resp):
    """Statistics of given responsibilities, by the definition. resp : (n, k), times row weights."""
    diff = x - model.shift
    outer = np.einsum("nk,ni,nj->kij", resp, diff, diff)
    i, j = np.tril_indices(x.shape[1])
    diagonal = np.diagonal(outer, axis1=1, axis2=2)
    kinds = {"full": outer[:, i, j], "tied": outer.sum(axis=0), "diag": diagonal, "spherical": diagonal.sum(axis=1)}
    return MixtureStats(resp.sum(axis=0), GaussianStats(resp.T @ diff, kinds[model.component.covariance_type]))


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(30)
@given(prior=st.sampled_from([PRIORS[0], *PRIORS[4:]]), problem=gaussian_problems(max_offset=10.0), seed=seeds)
def test_m_step_is_the_table_of_fraley_and_raftery(covariance_type, prior, problem, seed):
    """MAP estimates from any responsibilities are the closed forms of models/prior.py, written out row by row."""
    rng = np.random.default_rng(seed)
    model, params = with_prior(problem, covariance_type, prior, problem["sample_weight"])
    resp, x, k, d = soft_rows(problem, rng), problem["x"], problem["k"], problem["d"]
    new = model.m_step(statistics(model, x, resp), params)
    prior, n, a = model.component.prior, resp.sum(axis=0), model.weight_concentration
    kappa, nu = prior.shrinkage, prior.dof
    scatter = []
    for c in range(k):
        mean = resp[:, c] @ x / n[c]
        close(new.theta.means[c], (n[c] * mean + kappa * prior.mean) / (kappa + n[c]), 1e-10, "means")
        within = sum(r * np.outer(row - mean, row - mean) for r, row in zip(resp[:, c], x, strict=True))
        away = mean - prior.mean
        scatter.append(within + kappa * n[c] / (kappa + n[c]) * np.outer(away, away))
    scatter = np.array(scatter)
    diagonal = np.diagonal(scatter, axis1=1, axis2=2)
    expected = {
        "full": lambda: (prior.scale + scatter) / (nu + n + d + 2)[:, None, None],
        "tied": lambda: (prior.scale + scatter.sum(axis=0)) / (nu + n.sum() + d + k + 1),
        "diag": lambda: (np.diag(prior.scale) + diagonal) / (nu + n + 3)[:, None],
        "spherical": lambda: (np.trace(prior.scale) / d + diagonal.sum(axis=1)) / (nu + (n + 1) * d + 2),
    }[covariance_type]()
    deviation = problem["scale"] if covariance_type != "spherical" else 1.0
    if covariance_type in ("full", "tied"):
        deviation = np.outer(deviation, deviation)
    elif covariance_type == "diag":
        deviation = deviation**2
    close(new.theta.covariances / deviation, expected / deviation, 1e-9, "covariances")
    close(new.weights, (n + a - 1) / (n.sum() + k * (a - 1)), 1e-12, "weights")


@pytest.mark.parametrize("fixed", [(), ("means",), ("weights", "covariances")])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_m_step_is_where_a_numerical_search_ends(covariance_type, fixed):
    """BFGS on expected log joint + log prior, both by scipy's densities, ends at the M-step's parameters."""
    problem = gaussian_problem(11, n=60, d=2, k=2, max_offset=1.0)
    problem["x"] = problem["x"] / problem["scale"]
    problem["means"] = problem["means"] / problem["scale"]
    one = np.array([[1.0, 0.3], [0.3, 0.7]])
    full = np.stack([one, 1.5 * one])
    types = {"full": full, "tied": one, "diag": np.array([[1.0, 0.7], [1.5, 1.0]]), "spherical": np.array([1.0, 0.7])}
    problem["covariances"] = types
    model, params = with_prior(problem, covariance_type, PRIORS[4], fixed=list(fixed))
    x, k, d = problem["x"], 2, 2
    resp = soft_rows(problem, np.random.default_rng(1))
    lower = np.tril_indices(d)

    def covariances_of(free):
        if covariance_type in ("diag", "spherical"):
            return np.exp(free).reshape(types[covariance_type].shape)
        factors = []
        for values in free.reshape(-1, 3):
            factor = np.zeros((d, d))
            factor[lower] = values
            factor[np.diag_indices(d)] = np.exp(np.diag(factor))
            factors.append(factor @ factor.T)
        return np.stack(factors) if covariance_type == "full" else factors[0]

    sizes = {"full": 6, "tied": 3, "diag": 4, "spherical": 2}

    def params_of(free):
        logit, means, rest = np.split(free, [k - 1, k - 1 + k * d])
        weights = np.exp([*logit, 0.0]) / np.exp([*logit, 0.0]).sum()
        return model.params(
            weights=params.weights if "weights" in fixed else weights,
            means=params.theta.means if "means" in fixed else means.reshape(k, d),
            covariances=params.theta.covariances if "covariances" in fixed else covariances_of(rest),
        )

    def negative(free):
        found = params_of(free)
        full = full_covariances(found.theta.covariances, covariance_type, k, d)
        joint = np.stack(
            [stats.multivariate_normal.logpdf(x, m, s) for m, s in zip(found.theta.means, full, strict=True)]
        )
        return -float((resp.T * (joint + np.log(found.weights)[:, None])).sum()) - log_density(model, found)

    start = np.concatenate([np.zeros(k - 1), params.theta.means.ravel(), np.zeros(sizes[covariance_type])])
    found = params_of(minimize(negative, start, method="BFGS", options={"gtol": 1e-6}).x)
    new = model.m_step(statistics(model, x, resp), params)
    close_params(model, new, found, 1e-5)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(20)
@given(problem=gaussian_problems())
def test_weight_two_is_the_row_twice(covariance_type, problem):
    """Pseudo-rows are counted in the weights of rows."""
    weight = 1.0 + (np.arange(problem["n"]) % 2)
    model, params = with_prior(problem, covariance_type, PRIORS[4], weight)
    repeated = {**problem, "x": np.repeat(problem["x"], weight.astype(int), axis=0)}
    other, _ = with_prior(repeated, covariance_type, PRIORS[4])
    one, resets = fit(model, params, chunks_of(problem["x"], None, weight), 3)
    two, _ = fit(other, params, chunks_of(repeated["x"]), 3)
    assume(not resets)
    close_params(model, one.params, two.params, 1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(20)
@given(problem=gaussian_problems(max_offset=5.0), data=st.data())
def test_units_of_the_features_do_not_matter(covariance_type, problem, data):
    """The defaults come from the data: in other units (one for all where spherical) the fit is the same, in those units."""
    many = 1 if covariance_type == "spherical" else problem["d"]
    unit = 2.0 ** np.array(data.draw(st.lists(st.integers(-6, 6), min_size=many, max_size=many)))
    both = np.outer(unit, unit) if covariance_type in ("full", "tied") else unit**2
    both = both[0] if covariance_type == "spherical" else both
    covariances = problem["covariances"][covariance_type]
    scaled = {**problem, "x": problem["x"] * unit, "means": problem["means"] * unit}
    scaled["covariances"] = {covariance_type: covariances * both}
    one, resets = fit(*with_prior(problem, covariance_type, "auto"), chunks_of(problem["x"]), 5)
    two, _ = fit(*with_prior(scaled, covariance_type, "auto"), chunks_of(scaled["x"]), 5)
    assume(not resets)
    deviation = problem["x"].std(axis=0)
    close(two.params.weights, one.params.weights, 1e-6)
    close(two.params.theta.means / unit / deviation, one.params.theta.means / deviation, 1e-6)


def test_a_prior_of_the_asked_k_serves_any_k():
    """A search that replaces n_components keeps the prior as it was fixed, and the M-step stays the mode."""
    problem = gaussian_problem(5, k=4, d=3)
    for covariance_type in TYPES:
        model, params = with_prior(problem, covariance_type, "auto")
        for k in (1, 2, 6):
            other = model.with_components(k)
            assert other.component.prior is model.component.prior
            weights, means = np.full(k, 1 / k), problem["x"][:k]
            covariances = params.theta.covariances
            if covariance_type != "tied":
                covariances = np.stack([params.theta.covariances[0]] * k)
            start = other.params(weights=weights, means=means, covariances=covariances)
            run, resets = fit(other, start, chunks_of(problem["x"]), 6)
            trace = [entry.objective for entry in run.history]
            assert not resets and (np.diff(trace) >= -1e-12 * abs(trace[-1])).all()


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_few_rows_are_no_collapse_under_a_prior(covariance_type):
    """A component of two equal rows is reset for ever without a prior; with one it stays, and its width is the prior's."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 3)), np.full((2, 3), 30.0)])
    problem = {"x": x, "k": 2, "weights": np.array([0.99, 0.01]), "means": np.stack([x[0] * 0, x[-1]])}
    wide = {"full": np.stack([np.eye(3)] * 2), "diag": np.ones((2, 3)), "spherical": np.ones(2)}
    problem["covariances"] = wide
    _, events = fit(*gaussian(problem, covariance_type, reg_covar=0.0), chunks_of(x), 5)
    assert events
    model, params = with_prior(problem, covariance_type, "auto")
    run, events = fit(model, params, chunks_of(x), 30)
    assert not events
    close(run.params.theta.means[1], np.full(3, 30.0), 0.01)
    close(run.final.stats.sum_w, [200.0, 2.0], 1e-6)
    full = full_covariances(run.params.theta.covariances, covariance_type, 2, 3)
    assert np.linalg.eigvalsh(full[1]).min() > 1e-3


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_without_a_row_is_reset_under_a_prior_too(covariance_type):
    """It would sit at the data's mean with weight 0 for good; reset, it takes part."""
    x = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0], [9, 9]], 100, axis=0)
    problem = {"x": x, "k": 2, "weights": np.array([0.5, 0.5]), "means": np.array([[4.0, 4.0], [1e4, 1e4]])}
    problem["covariances"] = {"full": np.stack([np.eye(2)] * 2), "tied": np.eye(2)}
    problem["covariances"] |= {"diag": np.ones((2, 2)), "spherical": np.ones(2)}
    model, params = with_prior(problem, covariance_type, "auto")
    run, events = fit(model, params, chunks_of(x), 60)
    assert [(event.reset.component, event.reset.done) for event in events][:1] == [(1, True)]
    assert run.final.stats.sum_w.min() > 2


@pytest.mark.parametrize("covariance_type", TYPES)
def test_constant_features_are_sound_under_a_prior(covariance_type):
    """reg_covar is part of the scale: a feature that never varies leaves a covariance that can be factored."""
    problem = gaussian_problem(3, k=2, d=3)
    problem["x"][:, 1] = 7.0
    model, params = with_prior(problem, covariance_type, "auto", reg_covar=1e-6)
    run, _ = fit(model, params, chunks_of(problem["x"]), 5)
    assert np.isfinite(run.objective) and np.isfinite(run.params.theta.factors).all()


@pytest.mark.parametrize("fixed", [(), ("weights",)])
@examples(40)
@given(problem=count_problems(), a=st.floats(1.0, 4.0))
def test_a_multinomials_weights_have_a_prior_too(fixed, problem, a):
    """Weights are N_k + a - 1 over their sum, unless fixed; the objective never falls."""
    model, params = multinomial(problem, weight_concentration=a, fixed=fixed)
    found = e_step(model, params, problem["counts"]).stats
    expected = problem["weights"] if fixed else (found.sum_w + a - 1) / (problem["n"] + problem["k"] * (a - 1))
    close(model.m_step(found, params).weights, expected, 1e-12)
    run, resets = fit(model, params, chunks_of(problem["counts"]), 8)
    assume(not resets)
    trace = np.array([*(entry.objective for entry in run.history), run.objective])
    assert (np.diff(trace) >= -1e-12 * np.abs(trace).max()).all()


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(25)
@given(
    rows=odd_rows(),
    prior=st.sampled_from([PRIORS[0], PRIORS[1], PRIORS[4]]),
    assignment=st.sampled_from(["soft", "hard"]),
    init=st.sampled_from(INITS),
)
def test_odd_rows_end_in_a_sound_mixture(covariance_type, rows, prior, assignment, init):
    """K up to N, repeated rows, constant features, lines: finite, no warning; only what has no row is reset, or is lost in rounding."""
    x, k = rows
    asked = {"n_components": k, "covariance_type": covariance_type, "prior": prior}
    config = validate({"model": asked, "fit": {"assignment": assignment}})
    run, events = whole_job(lambda known: config.models(known)[0], x, init)
    is_sound(run, events, k)
    assert np.isfinite(run.params.theta.factors).all()
    assert all("fewer than 1" in event.reset.reason or "rounding" in event.reset.reason for event in events)
