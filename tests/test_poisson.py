"""The Poisson mixture against a slow reference; its laws are in the table of tests/test_families.py."""

import numpy as np
import pytest
import yaml
from scipy.special import logsumexp
from scipy.stats import poisson

import pipeline
from tests.jobs import refused

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
