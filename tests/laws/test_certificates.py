"""The Fisher norm of an M-step, and what it says of the way that is left."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy, multivariate_normal

from tests.laws.common import (
    FAMILIES,
    TYPES,
    cases,
    chunks_of,
    e_step,
    examples,
    fit,
    gaussian,
    method,
    multinomial,
)
from tests.problems import count_problem, count_problems, gaussian_problem, gaussian_problems, seeds
from tests.reference import full_covariances

WORDS = 7.0  # of each document, where documents are as long


def nearby(rng, params, model, size):
    """Parameters that differ in every part by about `size` of their scale."""
    theta = params.theta
    if model.family == "multinomial":
        words = np.exp(theta.log_prob) * np.exp(size * rng.normal(size=theta.log_prob.shape))
        weights = params.weights * np.exp(size * rng.normal(size=params.weights.shape))
        return model.params(weights=weights / weights.sum(), log_prob=np.log(words / words.sum(axis=1)[:, None]))
    kind, d = model.component.covariance_type, model.n_features
    weights = params.weights * np.exp(size * rng.normal(size=params.weights.shape))
    full = full_covariances(theta.covariances, kind, model.n_components, d)
    widths = np.sqrt(np.diagonal(full, axis1=1, axis2=2))
    means = theta.means + size * widths * rng.normal(size=widths.shape)
    if kind in ("full", "tied"):
        wide = np.sqrt(np.diagonal(theta.covariances, axis1=-2, axis2=-1))  # a step is small in units of the features
        turn = rng.normal(size=(*theta.covariances.shape[:-2], d, d))
        tilt = np.eye(d) + size * turn * wide[..., :, None] / wide[..., None, :]
        covariances = tilt @ theta.covariances @ np.swapaxes(tilt, -1, -2)
    else:
        covariances = theta.covariances * np.exp(size * rng.normal(size=theta.covariances.shape))
    return model.params(weights=weights / weights.sum(), means=means, covariances=covariances)


def normal_divergence(mean, covariance, other_mean, other_covariance):
    """KL of two normals: scipy's log densities at Gauss-Hermite nodes, which are exact for quadratics."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    d = len(mean)
    grid = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    w = np.prod(np.stack(np.meshgrid(*[weights] * d, indexing="ij"), axis=-1).reshape(-1, d), axis=1)
    x = mean + grid @ np.linalg.cholesky(covariance).T
    log_ratio = multivariate_normal(mean, covariance).logpdf(x) - multivariate_normal(
        other_mean, other_covariance
    ).logpdf(x)
    return float(w @ np.atleast_1d(log_ratio) / w.sum())


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(15)
@given(seed=seeds, data=st.data())
def test_half_the_square_is_the_divergence_of_the_complete_data(family, seed, data):
    """For small steps: KL(p(x, z | θ) || p(x, z | θ + Δ)) per row, by scipy."""
    rng = np.random.default_rng(seed)
    total = 1000.0
    if family == "multinomial":
        problem = data.draw(count_problems())
        model, params = multinomial(problem)
        new = nearby(rng, params, model, 1e-4)
        counts, words, others = total * params.weights, np.exp(params.theta.log_prob), np.exp(new.theta.log_prob)
        totals = e_step(model, params, sp.csr_array(problem["counts"])).totals
        component = replace(totals.stats.component, sum_x=WORDS * counts[:, None] * words)
        parts = [WORDS * entropy(p, q) for p, q in zip(words, others, strict=True)]
    else:
        problem = data.draw(gaussian_problems(max_d=3))
        model, params = gaussian(problem, family)
        new = nearby(rng, params, model, 1e-4)
        counts, totals = total * params.weights, e_step(model, params, problem["x"]).totals
        component = totals.stats.component
        shape = family, model.n_components, model.n_features
        here, there = (
            zip(theta.means, full_covariances(theta.covariances, *shape), strict=True)
            for theta in (params.theta, new.theta)
        )
        parts = [normal_divergence(*one, *other) for one, other in zip(here, there, strict=True)]
    totals = replace(totals, stats=replace(totals.stats, sum_w=counts, component=component))
    divergence = entropy(params.weights, new.weights) + params.weights @ parts
    assert np.isclose(0.5 * model.fisher_norm(totals, params, new) ** 2, divergence, rtol=5e-3, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
@examples(10)
@given(data=st.data())
def test_zero_exactly_where_nothing_moves(family, data):
    """No step, no length, to the bit; and any part that moves has one."""
    model, params, x, weight, _ = data.draw(cases(family))
    totals, arrays = e_step(model, params, x, None, weight).totals, model.arrays(params)
    assert model.fisher_norm(totals, params, params) == 0.0
    for name, value in arrays.items():
        if name == "weights":
            continue  # they sum to 1: they move with the others below
        moved = value * (1 + 1e-6) if name not in ("means", "centers") else value + 1e-6 * (1 + np.abs(value))
        assert model.fisher_norm(totals, params, model.params(**arrays | {name: moved})) > 0
    if model.n_components > 1 and "weights" in arrays:
        new = model.params(**arrays | {"weights": arrays["weights"][::-1].copy()})
        assert (model.fisher_norm(totals, params, new) > 0) == bool((new.weights != params.weights).any())


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
def test_zero_at_a_fixed_point(family):
    """One component: the first M-step is the answer, and the second moves it by rounding only."""
    if family == "multinomial":
        problem = count_problem(1, k=1)
        (model, params), x = multinomial(problem), sp.csr_array(problem["counts"])
    else:
        problem = gaussian_problem(1, k=1)
        (model, params), x = gaussian(problem, family), problem["x"]
    run, _ = fit(model, params, chunks_of(x), 3)
    norms = [entry.fisher_norm for entry in run.history]
    assert norms[0] > 1e-3 and max(norms[1:]) < 1e-9
    assert run.history[-1].remaining_gain < 1e-15


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(10)
@given(data=st.data())
def test_the_norm_of_a_change_of_statistics_is_that_of_the_step_it_makes(family, data):
    """change_norm(δ) is the limit of fisher_norm(M(S), M(S + ε δ)) / ε, with parts fixed or not."""
    fixed = [(), ("weights",)] if family == "multinomial" else [(), ("means",), ("weights", "covariances")]
    options = {} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight, _ = data.draw(cases(family, fixed=st.sampled_from(fixed), **options))
    half = x.shape[0] // 2
    totals = e_step(model, params, x, None, weight).totals
    params = model.m_step(totals.stats, params)
    assume(not model.collapsed(params, totals.stats.sum_w))
    change = e_step(model, params, x[:half], None, weight[:half]).totals
    small = 1e-6
    step = model.fisher_norm(totals, params, model.m_step(totals.stats + change.stats * small, params)) / small
    assert np.isclose(model.change_norm(change, totals, params), step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(3)
@given(data=st.data())
def test_what_is_left_is_what_plain_em_still_gains(family, data):
    """In the end, when one direction is left, the estimate is right within a factor of two; half the square of the norm is below."""
    options = {"concentration": 1.5} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, *_ = data.draw(cases(family, **options))
    assume(model.n_components > 1)
    run, resets = fit(model, params, chunks_of(x), 300)
    assume(not resets and run.history[-1].fisher_norm < 1e-6)
    total = run.history[-1].weight
    remains = np.array([run.objective - entry.objective for entry in run.history]) / total
    left = np.array([entry.remaining_gain for entry in run.history])
    half_square = 0.5 * np.array([entry.fisher_norm for entry in run.history]) ** 2
    known = np.flatnonzero((remains < 1e-5) & (remains > 1e-9) & np.isfinite(left))
    assume(len(known) > 3)
    assert (half_square[known] <= 1.05 * remains[known]).all()
    late = known[-1]
    assert 0.5 * remains[late] <= left[late] <= 2.0 * remains[late]


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(8)
@given(digits=st.integers(2, 5), data=st.data())
def test_converged_means_that_plain_em_has_nothing_left_to_do(family, digits, data):
    """A tenth of tol left by the certificate at most, the Fisher norm below sqrt(2) times its root, and plain EM from there stops at once."""
    tol = 10.0**-digits
    options = {} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight, _ = data.draw(cases(family, **options))
    chunks = chunks_of(x, None, weight)
    run, events = fit(model, params, chunks, 1000, tol, method("auto", chunks))
    assume(not any(hasattr(event, "reset") for event in events))
    assume(run.stop_reason.startswith("converged"))  # five spheres for one cluster may take more than 1,000 iterations
    last = run.history[-1]
    left = tol / 10
    assert last.remaining_gain < left or last.fisher_norm < 1e-4 * np.sqrt(2 * left)
    assert last.fisher_norm < np.sqrt(2 * left)
    again, _ = fit(model, run.params, chunks, 50, tol)
    assert len(again.history) == 2 and again.stop_reason.startswith("converged")
    assert last.remaining_gain in (0, np.inf) or f"{last.remaining_gain:.2g} nats per row are left" in run.stop_reason


def test_a_plateau_is_not_an_end():
    """From means that are almost the same, plain EM stops at once; a certified run sees that its steps grow."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(300, 2)) - 4, rng.normal(size=(300, 2)) + 4])
    model, _ = gaussian({**gaussian_problem(0, n=600, d=2, k=2), "x": x}, "spherical")
    means = x.mean(axis=0) + 1e-3 * rng.normal(size=(2, 2))
    start = model.params(weights=np.full(2, 0.5), means=means, covariances=np.full(2, x.var()))
    chunks = chunks_of(x)
    stuck, _ = fit(model, start, chunks, 200, 1e-3)
    freed, _ = fit(model, start, chunks, 200, 1e-3, method("auto", chunks))
    assert len(stuck.history) < 5 and freed.stop_reason.startswith("converged")
    assert (freed.log_likelihood - stuck.log_likelihood) / len(x) > 0.3


def test_a_slow_climb_is_not_an_end():
    """Of two clusters that overlap, plain EM to its end gains less than a tenth of tol more.

    There were 63 tol to gain where the certificate first said less than tol: the rate rises late.
    """
    rng = np.random.default_rng(11)
    x = rng.normal(size=(1000, 2)) + 2.0 * rng.integers(2, size=(1000, 1))
    model, _ = gaussian({**gaussian_problem(0, n=1000, d=2, k=2), "x": x}, "full")
    start = model.params(weights=np.full(2, 0.5), means=x[:2], covariances=np.tile(np.cov(x.T), (2, 1, 1)))
    chunks = chunks_of(x)
    ended, _ = fit(model, start, chunks, 1000, 1e-3, method("auto", chunks))
    limit, _ = fit(model, ended.params, chunks, 20_000, 1e-13)
    assert (limit.log_likelihood - ended.log_likelihood) / len(x) < 1e-4
