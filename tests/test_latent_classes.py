"""Bernoulli and categorical mixtures against slow references and StepMix: latent class analysis."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp

from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.clusters import NoRows
from pipeline.models.families import FAMILIES
from pipeline.models.families.bernoulli import Bernoulli
from pipeline.models.families.categorical import Categorical
from pipeline.models.mixture import Mixture
from tests.jobs import job, refused, write_config
from tests.laws.common import chunks_of, e_step, fit
from tests.test_families import answers, codes

MANY = np.array([2, 4, 4, 2, 4, 4])
RNG = np.random.default_rng


def bernoulli(concentration: float = 1.0, k: int = 3) -> Mixture:
    """Of eight features."""
    return Mixture(Bernoulli(k, np.full(8, 0.5), concentration))


def categorical(concentration: float = 1.0, k: int = 3) -> Mixture:
    """Of six columns."""
    return Mixture(Categorical(k, np.zeros(6), MANY, concentration))


def slow_em(x, weights, tables, n_iter, prior, many):
    """EM row by row, column by column. tables : (k, d, m) probabilities of each category."""
    n, (k, d, m) = len(x), tables.shape
    history = []
    for _ in range(n_iter):
        log_joint = np.zeros((n, k))
        for i in range(n):
            for c in range(k):
                log_joint[i, c] = np.log(weights[c]) + sum(np.log(tables[c, j, int(x[i, j])]) for j in range(d))
        history.append(logsumexp(log_joint, axis=1).sum())
        r = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        weights, tables = r.mean(axis=0), np.zeros((k, d, m))
        for j in range(d):
            for value in range(many[j]):
                tables[:, j, value] = r[x[:, j] == value].sum(axis=0) + prior - 1.0
        tables /= tables.sum(axis=2, keepdims=True)
    return weights, tables, history


@pytest.mark.parametrize("prior", [1.0, 1.5])
def test_both_equal_a_slow_reference(prior):
    """Five iterations from one start: parameters and log-likelihoods agree to 1e-10; a Bernoulli is a categorical of two."""
    rng = RNG(1)
    weights = np.array([0.2, 0.3, 0.5])
    x, p = answers(RNG(0), 150), rng.uniform(0.2, 0.8, (3, 8))
    expected = slow_em(x, weights, np.stack([1 - p, p], axis=2), 5, prior, np.full(8, 2))
    model = bernoulli(prior)
    for rows in (x, sp.csr_array(x)):
        run, _ = fit(model, model.params(weights=weights, probabilities=p), chunks_of(rows, [0, 40, 150]), 5)
        np.testing.assert_allclose(run.params.weights, expected[0], rtol=1e-10)
        np.testing.assert_allclose(run.params.theta.probabilities, expected[1][:, :, 1], rtol=1e-10)
        np.testing.assert_allclose([entry.log_likelihood for entry in run.history], expected[2], rtol=1e-12)
    x, tables = codes(RNG(0), 150), rng.uniform(0.2, 0.8, (3, 6, 4)) * (np.arange(4) < MANY[:, None])
    tables /= tables.sum(axis=2, keepdims=True)
    expected = slow_em(x, weights, tables, 5, prior, MANY)
    model = categorical(prior)
    run, _ = fit(model, model.params(weights=weights, probabilities=tables), chunks_of(x, [0, 40, 150]), 5)
    np.testing.assert_allclose(run.params.weights, expected[0], rtol=1e-10)
    np.testing.assert_allclose(run.params.theta.probabilities, expected[1], rtol=1e-10)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], expected[2], rtol=1e-12)


@pytest.mark.parametrize("measurement", ["bernoulli", "categorical"])
def test_stepmix_ends_at_the_same_parameters(measurement):
    """From StepMix's parameters after one iteration, ours after nine more are its own after ten, to 1e-8."""
    stepmix = pytest.importorskip("stepmix.stepmix")
    x = (answers if measurement == "bernoulli" else codes)(RNG(0))

    def theirs(n_iter):
        found = stepmix.StepMix(
            3, measurement=measurement, max_iter=n_iter, abs_tol=1e-300, rel_tol=0, random_state=0, progress_bar=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            found.fit(x)
        parameters = found.get_parameters()
        tables = parameters["measurement"]["pis"]
        if measurement == "categorical":
            tables = np.where(np.arange(4) < MANY[:, None], tables.reshape(3, 6, 4), 0.0)
        return parameters["weights"], tables, found.score(x) * len(x)

    model = bernoulli() if measurement == "bernoulli" else categorical()
    (weights, tables, _), (expected_weights, expected, score) = theirs(1), theirs(10)
    run, _ = fit(model, model.params_from_arrays({"weights": weights, "probabilities": tables}), chunks_of(x), 9)
    np.testing.assert_allclose(run.params.weights, expected_weights, rtol=1e-8)
    np.testing.assert_allclose(run.params.theta.probabilities, expected, atol=1e-8)
    assert run.log_likelihood == pytest.approx(score, rel=1e-10)


def test_free_numbers_are_counted_by_column():
    """A column of m categories has m - 1, which StepMix counts too; the last of a short column is no parameter."""
    assert bernoulli().n_free_parameters() == 2 + 3 * 8
    assert categorical().n_free_parameters() == 2 + 3 * int((MANY - 1).sum())


def test_a_value_that_is_no_code_is_named_by_its_row():
    """Of a positive weight it is refused; of weight 0 it may hold anything."""
    for model, x, wrong in (
        (bernoulli(), answers(RNG(0)), 2.0),
        (bernoulli(), sp.csr_array(answers(RNG(0))), 0.5),
        (categorical(), codes(RNG(0)), 4.0),
        (categorical(), codes(RNG(0)), 1.5),
        (categorical(), codes(RNG(0)), -1.0),
    ):
        n = x.shape[0]
        params = model.m_step(model.label_statistics(x, np.arange(n) % 3), None)
        bad = x.toarray() if sp.issparse(x) else x.copy()
        bad[7, 1] = wrong
        bad = sp.csr_array(bad) if sp.issparse(x) else bad
        weight = np.ones(n)
        weight[7] = 0.0
        found, expected = (e_step(model, params, rows, None, weight).evidence.log_likelihood for rows in (bad, x))
        assert found == pytest.approx(expected, rel=1e-14)
        with pytest.raises(InputError, match=r"row 7: .*must be"):
            e_step(model, params, bad)


def test_a_category_that_no_row_of_a_class_has_is_impossible_there_without_a_prior():
    """With concentration 1 its probability is 0, the bound stays finite, and a new row with it is refused."""
    x = codes(RNG(0))
    model = categorical(1.0, k=1)
    params = model.m_step(model.label_statistics(x[x[:, 1] < 3], np.zeros(int((x[:, 1] < 3).sum()), int)), None)
    assert params.theta.probabilities[0, 1, 3] == 0.0
    known = e_step(model, params, x[x[:, 1] < 3])
    assert model.bound(known.totals, params) == pytest.approx(known.evidence.log_likelihood, rel=1e-12)
    with pytest.raises(InputError, match=r"raise model\.concentration"):
        e_step(model, params, x)


def test_the_number_of_categories():
    """From the largest code of each column, from a number, or from a list, whose length must fit."""
    section = FAMILIES["categorical"]
    summary = NoRows(6)
    summary.high = MANY - 1.0
    assert section().build(summary, "soft").component.categories.tolist() == MANY.tolist()
    assert section(n_categories=7).build(summary, "soft").component.categories.tolist() == [7] * 6
    with pytest.raises(InputError, match=r"got 2 numbers, expected one for each of the 6 columns"):
        section(n_categories=[2, 3]).build(summary, "soft")
    summary.high = np.array([1.0, 1e9, 1, 1, 1, 1])
    with pytest.raises(InputError, match=r"column 1: got the code 1e\+09"):
        section().build(summary, "soft")


def test_wrong_tables_are_refused():
    """Probabilities of categories that are not there, or that do not sum to 1; of a Bernoulli, outside 0 to 1."""
    model = categorical()
    even = np.tile((np.arange(4) < MANY[:, None]) / MANY[:, None], (3, 1, 1))
    start = {"weights": np.full(3, 1 / 3)}
    model.params_from_arrays({**start, "probabilities": even})
    with pytest.raises(InputError, match="category that is not there"):
        model.params_from_arrays({**start, "probabilities": np.full((3, 6, 4), 0.25)})
    with pytest.raises(InputError, match="numbers from 0 to 1"):
        bernoulli().params_from_arrays({**start, "probabilities": np.full((3, 8), 1.5)})


def test_preprocessing_and_other_values_are_refused_by_the_job(tmp_path):
    """Codes stay codes; a table of other numbers ends the job with the row."""
    np.save(tmp_path / "x.npy", codes(RNG(0), 60) + 0.5)
    model = {"family": "categorical", "n_components": 2}
    output = {"path": str(tmp_path / "run")}
    path = write_config(tmp_path / "job.yaml", tmp_path / "x.npy", model=model, output=output)
    assert "row 0" in refused("run", path)
    with pytest.raises(InputError, match="preprocess"):
        job(tmp_path / "x.npy", model=model, preprocess=[{"kind": "standardize"}])


def test_samples_have_the_shares_of_the_tables():
    """Of 20,000 rows, each category's share is its probability within 0.02."""
    model = categorical(k=1)
    tables = RNG(3).dirichlet(np.ones(4), 6)[None] * (np.arange(4) < MANY[:, None])
    tables /= tables.sum(axis=2, keepdims=True)
    x, _ = model.sample(model.params(weights=np.ones(1), probabilities=tables), 20_000, RNG(0))
    shares = np.stack([np.bincount(column.astype(int), minlength=4) / len(x) for column in x.T])
    np.testing.assert_allclose(shares, tables[0], atol=0.02)
    assert np.isfinite(model.log_joint(model.params(weights=np.ones(1), probabilities=tables), x, KERNELS)).all()
