"""The Poisson mixture against a slow reference, and through every command: a family that is one file."""

import json

import numpy as np
import pytest
import yaml
from scipy.special import logsumexp
from scipy.stats import poisson

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.families.poisson import Poisson
from pipeline.models.mixture import Mixture
from tests.jobs import Interrupt, command, refused, results

pytestmark = pytest.mark.full


def counts(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a mixture of three, (n, 4), and their components."""
    rng = np.random.default_rng(seed)
    rates = np.array([[1.0, 5.0, 20.0, 0.5], [8.0, 2.0, 3.0, 6.0], [3.0, 12.0, 1.0, 2.0]])
    label = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return rng.poisson(rates[label]).astype(float), label


def slow_em(x: np.ndarray, weights: np.ndarray, rates: np.ndarray, n_iter: int, prior: float = 1.0):
    """EM by scipy's densities, row by row and component by component: weights, rates, log-likelihoods at the E-steps."""
    history = []
    for _ in range(n_iter):
        log_joint = np.log(weights) + np.stack([poisson.logpmf(x, rate).sum(axis=1) for rate in rates], axis=1)
        history.append(logsumexp(log_joint, axis=1).sum())
        resp = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        weights = resp.mean(axis=0)
        rates = np.stack([(r @ x + prior - 1.0) / r.sum() for r in resp.T])
    return weights, rates, history


@pytest.mark.parametrize("prior", [1.0, 1.5])
def test_poisson_equals_a_slow_reference(prior, tmp_path):
    """Twelve iterations from one start: weights, rates and log-likelihoods agree to 1e-10 of their size."""
    x, _ = counts()
    np.save(tmp_path / "x.npy", x)
    start = {"weights": np.array([0.2, 0.3, 0.5]), "rates": x[[5, 50, 500]] + 0.5}
    np.savez(tmp_path / "start.npz", **start)
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
        "model": {"family": "poisson", "n_components": 3, "concentration": prior},
        "fit": {"method": "em", "init": "explicit", "init_path": str(tmp_path / "start.npz"), "max_iter": 12, "tol": 0},
        "output": {"path": str(tmp_path / "run")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    model = pipeline.open_run(pipeline.run(pipeline.load_config(tmp_path / "job.yaml")))
    weights, rates, history = slow_em(x, start["weights"], start["rates"], 12, prior)
    np.testing.assert_allclose(model.weights.values, weights, rtol=1e-10)
    np.testing.assert_allclose(model.rates.values, rates, rtol=1e-10)
    np.testing.assert_allclose(model.log_likelihood.values, history, rtol=1e-12)
    assert model.rates.dims == ("component", "feature")
    assert model.attrs["n_free_parameters"] == 2 + 3 * 4


def test_poisson_through_every_command(tmp_path):
    """config, check, run, a stop, resume, status, predict, report and the Python API: with no line about Poisson elsewhere."""
    x, label = counts()
    np.save(tmp_path / "x.npy", x)
    template = command("config", "poisson").out
    assert "concentration" in template and "reg_covar" not in template
    plain = yaml.safe_load(template)
    plain["data"] = {"source": "npy", "path": str(tmp_path / "x.npy")}
    plain["model"]["n_components"] = 3
    plain["output"]["path"] = str(tmp_path / "run")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(plain))
    cost = json.loads(command("check", tmp_path / "job.yaml", "--json").out)
    assert cost["rows"] == len(x) and cost["seconds"] > 0
    whole = pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), listeners=[Interrupt("pass", 2)])
    assert command("resume", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)
    assert "Poisson" in command("status", tmp_path / "run").out
    assert command("predict", tmp_path / "run", "--output", tmp_path / "labels").code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "A mixture of 3 Poissons" in page and "Gaussian" not in page
    estimator = pipeline.open_estimator(tmp_path / "run")
    agree = max(np.mean(np.asarray(order)[estimator.predict(x)] == label) for order in _orders())
    assert agree > 0.95


def _orders():
    from itertools import permutations

    return permutations(range(3))


def test_standardized_counts_and_negative_ones_are_refused(tmp_path):
    """Counts stay counts: no preprocessing, and nothing below 0."""
    x, _ = counts(200)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "negative.npy", x - 3.0)
    plain = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
        "model": {"family": "poisson", "n_components": 2},
        "output": {"path": str(tmp_path / "run")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**plain, "preprocess": [{"kind": "standardize"}]}))
    assert "preprocess" in refused("run", tmp_path / "job.yaml")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(plain))
    assert "0 or more" in refused("run", tmp_path / "job.yaml", "--set", f"data.path={tmp_path / 'negative.npy'}")


def test_one_poisson_is_the_closed_form_and_samples_recover_it():
    """K = 1: the rate is the mean, and the log-likelihood scipy's; a sample of the mixture has the mixture's moments."""
    x, _ = counts()
    model = Mixture(Poisson(1, x.mean(axis=0)))
    params = model.m_step(model.label_statistics(x, np.zeros(len(x), dtype=int)), None)
    np.testing.assert_allclose(params.theta.rates[0], x.mean(axis=0), rtol=1e-13)
    found = EStep(model, params)(Rows(x), KERNELS)
    assert found.evidence.log_likelihood == pytest.approx(poisson.logpmf(x, x.mean(axis=0)).sum(), rel=1e-12)
    drawn, labels = model.sample(params, 40_000, np.random.default_rng(1))
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), rtol=0.05)
    assert not labels.any()
