"""EM never lowers its objective, and the free energy is a lower bound that each E-step makes tight."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import logsumexp

from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.kernels.cpu import KERNELS
from tests.laws.common import (
    FAMILIES,
    TYPES,
    any_problem,
    assigned,
    cases,
    chunks_of,
    close,
    e_step,
    examples,
    fit,
    follow,
    gaussian,
    kmeans,
    moment_rounding,
    multinomial,
    never_falls,
    objectives,
    same_bits,
    sum_over,
)
from tests.problems import count_problems, gaussian_problem, gaussian_problems, kmeans_problems
from tests.reference import kmeans_lloyd, multinomial_em

FIXED = [(), ("weights",), ("means",), ("covariances",), ("weights", "covariances"), ("weights", "means")]


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("covariance_type", TYPES)
@examples(50)
@given(problem=gaussian_problems(), fixed=st.sampled_from(FIXED), weighted=st.booleans())
def test_gaussian_objective_never_falls(covariance_type, assignment, problem, fixed, weighted):
    """With reg_covar = 0, soft or hard, any parts fixed, weights or none: it rises or stays."""
    model, params = gaussian(problem, covariance_type, assignment=assignment, reg_covar=0.0, fixed=fixed)
    weight = problem["sample_weight"] if weighted else None
    runs, resets = follow(model, params, chunks_of(problem["x"], None, weight), 8)
    assume(not resets)
    never_falls(runs)
    for part in fixed:
        assert np.array_equal(model.arrays(runs[-1].params)[part], model.arrays(params)[part])


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("concentration", [1.0, 1.1, 3.0])
@examples(50)
@given(problem=count_problems(), fixed=st.sampled_from([(), ("weights",)]))
def test_multinomial_objective_never_falls(concentration, assignment, problem, fixed):
    """Log-likelihood plus the Dirichlet's log density never falls, soft or hard, weights fixed or not."""
    model, params = multinomial(problem, concentration=concentration, assignment=assignment, fixed=fixed)
    run, resets = fit(model, params, chunks_of(problem["counts"], None, problem["sample_weight"]), 8)
    assume(not resets)
    never_falls([run])


@examples(300)
@given(empty=st.integers(0, 2), data=st.data())
def test_inertia_never_rises(empty, data):
    """Lloyd's iterations never raise the inertia, with weights, ties and centres that start empty."""
    settled(data.draw(kmeans_problems(empty=empty)))


@examples(100)
@given(problem=kmeans_problems(generic=True))
def test_inertia_is_that_of_the_reference(problem):
    """Without ties, which rounding breaks in either way."""
    objective, rounding = settled(problem)
    expected = kmeans_lloyd(problem["x"], problem["centers"], 50, 0.0, problem["sample_weight"]).inertia
    assert abs(-objective - expected) <= 1e-10 * expected + rounding


def settled(problem):
    """The objective after Lloyd's iterations, which never fell, and its rounding."""
    model, params = kmeans(problem)
    run, _ = fit(model, params, chunks_of(problem["x"], None, problem["sample_weight"]), 50)
    rounding = 1e-28 * float(
        problem["sample_weight"] @ (problem["x"] ** 2).sum(axis=1)
    )  # of squared differences, each by eps²
    never_falls([run], rounding=rounding)
    assert run.objective <= 0
    return run.objective, rounding


def test_a_fall_under_reg_covar_is_recorded():
    """With a large reg_covar the log-likelihood may fall: the history shows it, and the run goes on to its end."""
    fallen = 0
    for seed in range(40):
        problem = gaussian_problem(seed, k=3, d=2)
        model, params = gaussian(problem, "full", reg_covar=0.5 * float(problem["scale"].min()) ** 2)
        run, resets = fit(model, params, chunks_of(problem["x"]), 12)
        assert len(run.history) == 12
        assert run.stop_reason.startswith("stopped: max_iter = 12 iterations reached")
        fallen += bool((np.diff(objectives(run)) < -1e-9).any() and not resets)
    assert fallen > 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(30)
@given(data=st.data())
def test_log_likelihood_is_free_energy_plus_gap(family, weighted, data):
    """KL = 0 after a soft E-step, and lower_bound[t] <= log_likelihood[t + 1]: the gap is never negative."""
    options = {} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight, _ = data.draw(cases(family, **options))
    weight = weight if weighted else None
    run, resets = fit(model, params, chunks_of(x, None, weight), 5)
    assume(not resets)
    current, worst = params, 0.0
    for entry in run.history:
        totals = e_step(model, current, x, None, weight).totals
        total = totals.evidence.weight
        assert abs(totals.stats.sum_w.sum() - total) <= 1e-12 * total
        slack = 1e-11 * (abs(entry.log_likelihood) + total) + moment_rounding(model, current, total)
        assert abs(model.bound(totals, current) - entry.log_likelihood) <= slack
        assert abs(totals.evidence.log_likelihood - entry.log_likelihood) <= slack
        current = model.m_step(totals.stats, current)
        slack += moment_rounding(model, current, total)
        assert abs(model.bound(totals, current) - entry.lower_bound) <= slack
        worst = max(worst, slack)
    after = np.array([*(entry.log_likelihood for entry in run.history[1:]), run.log_likelihood])
    bounds = np.array([entry.lower_bound for entry in run.history])
    before = np.array([entry.log_likelihood for entry in run.history])
    assert (after - bounds >= -worst).all()
    if model.log_prior(current) == 0:
        assert (bounds - before >= -worst).all()


@pytest.mark.parametrize("family", TYPES)
@examples(60)
@given(data=st.data())
def test_gap_is_the_divergence_written_out(family, data):
    """log p(X) - F(q, theta) for an old q is sum_n KL(q_n || p(z | x_n, theta)), summed term by term."""
    model, params, x, weight, _ = data.draw(cases(family, reg_covar=0.0))
    partial = e_step(model, params, x, None, weight)
    new = model.m_step(partial.stats, params)
    assume(not model.collapsed(new, partial.stats.sum_w))
    q, p = (assigned(model, each, x).log_resp for each in (params, new))
    divergence = float(weight @ np.where(np.exp(q) > 0, np.exp(q) * (q - p), 0.0).sum(axis=1))
    after = e_step(model, new, x, None, weight).evidence.log_likelihood
    gap = after - model.bound(partial.totals, new)
    slack = 1e-10 * (abs(after) + weight.sum()) + moment_rounding(model, new, weight.sum())
    assert abs(gap - divergence) <= slack
    assert divergence >= -1e-12 * weight.sum()


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(40)
@given(data=st.data())
def test_entropy_and_log_likelihood_are_those_of_the_responsibilities(family, data):
    """The sums that travel are log-sum-exp and -sum r log r of the responsibilities that prediction gives."""
    model, params, x, weight, _ = data.draw(cases(family))
    evidence = e_step(model, params, x, None, weight).evidence
    log_joint = model.log_joint(params, x, KERNELS)
    log_resp = log_joint - logsumexp(log_joint, axis=1, keepdims=True)
    terms = np.where(np.exp(log_resp) > 0, np.exp(log_resp) * log_resp, 0.0)
    close(evidence.log_likelihood, weight @ logsumexp(log_joint, axis=1), 1e-12)
    assert evidence.label_entropy == evidence.entropy
    assert abs(evidence.entropy + weight @ terms.sum(axis=1)) <= 1e-12 * weight.sum() * model.n_components


@pytest.mark.parametrize("concentration", [1.0, 1.1, 2.5])
@pytest.mark.parametrize("weighted", [False, True])
@examples(20)
@given(problem=count_problems(), n_iter=st.integers(1, 5))
def test_multinomial_equals_the_slow_dense_reference(concentration, weighted, problem, n_iter):
    """CSR rows in ragged chunks give the parameters and objectives of dense loops over every word."""
    # Maximum likelihood comes close to probabilities that underflow, and there it magnifies rounding.
    n_iter = min(n_iter, 3) if concentration == 1.0 else n_iter
    weight = problem["sample_weight"] if weighted else None
    expected = multinomial_em(problem["counts"], problem["weights"], problem["log_prob"], n_iter, concentration, weight)
    model, params = multinomial(problem, concentration=concentration)
    run, resets = fit(model, params, chunks_of(sp.csr_array(problem["counts"]), problem["bounds"], weight), n_iter)
    assume(not resets)
    close(run.params.weights, expected.weights, 1e-10)
    close(np.exp(run.params.theta.log_prob), np.exp(expected.log_prob), 1e-10)
    close(objectives(run), [*expected.objective, expected.final_objective], 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_tol_is_strict_and_zero_never_stops_early(family):
    """tol = 0 runs all iterations of a mixture, and any tol above the last move stops it there."""
    model, params, x, _ = any_problem(family, 7)
    chunks = chunks_of(x)
    run, _ = fit(model, params, chunks, 30)
    if family == "kmeans":
        assert run.stop_reason.startswith("converged: no label changed")
        return
    assert len(run.history) == 30
    trace = objectives(run)[:-1]
    totals = np.array([entry.weight for entry in run.history[1:]])  # as the loop divides, to the bit
    moves = np.abs(np.diff(trace)) / totals
    tol = float(moves[3])
    first = int(np.flatnonzero(moves < tol)[0])
    stopped, _ = fit(model, params, chunks, 30, tol)
    assert len(stopped.history) == first + 2
    assert stopped.stop_reason.startswith("converged")


def test_restarts_share_passes_and_do_not_touch_each_other():
    """Runs advanced together end as each would alone, to the last bit."""
    problem = gaussian_problem(3, k=3)
    model, params = gaussian(problem, "full")
    arrays = model.arrays(params)
    other = model.params(**arrays | {"weights": arrays["weights"][::-1].copy(), "means": arrays["means"] + 0.1})
    chunks = chunks_of(problem["x"], [0, 50, problem["n"]])
    together = list(
        em([Run(0, model, params), Run(1, model, other)], lambda jobs: sum_over(chunks, jobs), Limits(9, 1e-4), 1)
    )[-1][0]
    for run, start in zip(together, (params, other), strict=True):
        alone, _ = fit(model, start, chunks, 9, 1e-4)
        assert alone.objective == run.objective
        same_bits(model.arrays(run.params), model.arrays(alone.params))
