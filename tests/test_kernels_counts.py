"""The multinomial kernels on sparse counts against dense loops."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import gammaln, logsumexp

from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.kernels.base import CountsProblem
from pipeline.kernels.counts import TILE, log_coefficients
from pipeline.kernels.cpu import KERNELS
from tests.laws.common import multinomial_mixture, same_bits

SIZES = [(1, 1, 1), (TILE - 1, 30, 4), (2 * TILE + 3, 50, 13), (40, 700, 50), (20, 60, 300)]


def problem(n, v, k, dtype=np.int32, seed=0):
    """Counts with empty documents, parameters, and weights with zeros."""
    rng = np.random.default_rng([seed, n, v, k])
    counts = rng.poisson(rng.exponential(1.0, size=(1, v)), size=(n, v)) * (rng.random((n, 1)) > 0.1)
    log_prob = np.log(rng.dirichlet(np.ones(v), size=k))
    log_weights = np.log(rng.dirichlet(np.ones(k)))
    return counts.astype(dtype), log_weights, log_prob, rng.uniform(0.1, 3.0, n) * (rng.random(n) > 0.2)


def coefficients(counts):
    """(n,) log multinomial coefficients by the gamma function."""
    x = counts.astype(np.float64)
    return gammaln(x.sum(axis=1) + 1) - gammaln(x + 1).sum(axis=1)


def run(counts, log_weights, log_prob, weight, hard=False, least=0.0):
    """log_norm without the coefficients, sum_w, sum_x and entropy of a pass."""
    problem = CountsProblem(log_weights, log_prob, hard, least)
    found = KERNELS.counts_pass(problem, sp.csr_array(counts), weight)
    own = coefficients(counts)
    assert np.isclose(found.log_coefficient, weight @ own, rtol=1e-12)
    return found.log_norm - own, found.sum_w, found.sum_x, found.entropy


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize(("n", "v", "k"), SIZES)
def test_log_joint_is_the_dense_product(n, v, k, dtype):
    """Every log joint density is the sum over all words, empty documents included."""
    counts, log_weights, log_prob, _ = problem(n, v, k, dtype)
    found = KERNELS.counts_log_joint(CountsProblem(log_weights, log_prob), sp.csr_array(counts))
    expected = counts.astype(np.float64) @ log_prob.T + log_weights + coefficients(counts)[:, None]
    assert np.allclose(found, expected, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize(("n", "v", "k"), SIZES)
def test_a_pass_is_the_dense_e_step(n, v, k):
    """Log-densities, soft counts, expected counts and entropy are those of the textbook, computed densely."""
    counts, log_weights, log_prob, weight = problem(n, v, k)
    log_norm, sum_w, sum_x, entropy = run(counts, log_weights, log_prob, weight)
    joint = counts @ log_prob.T + log_weights
    expected = logsumexp(joint, axis=1)
    resp = np.exp(joint - expected[:, None])
    assert np.allclose(log_norm, expected, rtol=1e-13, atol=1e-12)
    assert np.allclose(sum_w, weight @ resp, rtol=1e-11, atol=1e-14)
    assert np.allclose(sum_x, (resp * weight[:, None]).T @ counts, rtol=1e-11, atol=1e-13)
    assert np.isclose(entropy, -(weight @ np.where(resp > 0, resp * (joint - expected[:, None]), 0).sum(axis=1)))


@pytest.mark.parametrize(("n", "v", "k"), SIZES)
def test_what_is_left_out_is_below_the_least(n, v, k):
    """Leaving out tiny responsibilities moves no expected count by more than words x least."""
    counts, log_weights, log_prob, weight = problem(n, v, k)
    exact, fewer = (run(counts, log_weights, log_prob, weight, least=least)[2] for least in (0.0, 1e-6))
    assert (np.abs(exact - fewer) <= 1e-6 * counts.sum(axis=0) + 1e-12).all()


def test_hard_assignment_takes_the_first_of_equal_components():
    """All weight goes to the lowest of the components at the peak."""
    counts, log_weights, log_prob, weight = problem(50, 20, 3)
    twice = np.concatenate([log_prob, log_prob])
    _, sum_w, sum_x, entropy = run(counts, np.tile(log_weights, 2), twice, weight, hard=True)
    own = (counts @ log_prob.T + log_weights).argmax(axis=1)
    assert np.allclose(sum_w, np.bincount(own, weights=weight, minlength=6))
    assert np.allclose(sum_x[:3], [weight[own == k] @ counts[own == k] for k in range(3)])
    assert not sum_x[3:].any()
    assert entropy == 0.0


def test_impossible_documents_have_density_0_and_add_nothing():
    """A document with a word that no component has gets -inf; with weight 0 it does no harm, else it is refused by row."""
    counts = np.array([[1, 2, 0], [0, 1, 1], [3, 0, 0]])
    with np.errstate(divide="ignore"):
        log_prob = np.log(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    log_norm, sum_w, sum_x, entropy = run(counts, np.log([0.5, 0.5]), log_prob, np.ones(3))
    assert np.isneginf(log_norm).tolist() == [False, True, False]
    assert np.isclose(sum_w.sum(), 2.0)
    assert np.isclose(sum_x.sum(), 6.0)
    assert np.isfinite(entropy)
    model, rows = multinomial_mixture(2, 3, 1.0), sp.csr_array(counts)
    params = model.params(weights=np.array([0.5, 0.5]), log_prob=log_prob)
    with pytest.raises(InputError, match="row 101: log-density -inf"):
        model.e_step(params, Rows(rows, start=100), KERNELS)
    evidence = model.e_step(params, Rows(rows, np.array([1.0, 0.0, 1.0]), 100), KERNELS).evidence
    others = logsumexp(model.log_joint(params, rows[[0, 2]], KERNELS), axis=1).sum()
    assert np.isclose(evidence.log_likelihood, others, rtol=1e-12)


def test_stored_zeros_and_dense_rows_change_nothing():
    """A zero that is stored is no word, even where its word is impossible; the caller's matrix stays as it is."""
    counts = np.array([[1.0, 2.0, 0.0], [4.0, 1.0, 0.0]])
    stored = sp.csr_array((np.append(counts[0], counts[1]), np.tile(np.arange(3), 2), [0, 3, 6]), shape=(2, 3))
    with np.errstate(divide="ignore"):
        log_prob = np.log(np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]))
    model = multinomial_mixture(2, 3, 1.0)
    params = model.params(weights=np.array([0.3, 0.7]), log_prob=log_prob)
    expected = model.e_step(params, Rows(sp.csr_array(counts)), KERNELS)
    for rows in (stored, counts):
        same_bits(model.e_step(params, Rows(rows), KERNELS), expected)
    assert stored.nnz == 6


def test_log_coefficients_of_small_large_and_fractional_counts():
    """log n! - sum log x!, by table or by the gamma function."""
    counts = np.array([[0, 0, 0], [1, 2, 3], [1023, 1024, 1], [10**6, 5, 0], [0.5, 2.25, 0]], dtype=np.float64)
    expected = [gammaln(row.sum() + 1) - sum(math.lgamma(c + 1) for c in row) for row in counts]
    assert np.allclose(log_coefficients(counts), expected, rtol=1e-12)
