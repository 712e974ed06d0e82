"""Worked examples: the table of log-likelihoods below, and a generative model that must come out again."""

import numpy as np
import pytest

from pipeline.jobconfig import validate
from pipeline.workflow import open_run
from pipeline.workflow import run as run_job
from tests.laws.common import TYPES, chunks_of, close, e_step, fit, gaussian_mixture
from tests.reference import gaussian_em

TABLE = [-2668.2486295, -2620.135489, -2065.275901, -1239.153363, -1167.625359]  # nats, at the E-step of t = 0 … 4


def textbook_rows():
    """The 300 rows and the starting means of the table."""
    rng = np.random.RandomState(1)  # the table was made with this generator
    true_means = 2.0 * np.array([(-1, 1), (1, -1), (2, 2)])
    x = np.empty((300, 2))
    for row in x:
        component = rng.choice(3, 1)[0]
        row[:] = rng.randn(2, 1)[:, 0] + true_means[component]
    return x, (x.mean(axis=0)[:, None] + 0.01 * x.std(axis=0)[:, None] * rng.randn(2, 3)).T


@pytest.mark.parametrize("bounds", [None, [0, 1, 7, 100, 299, 300]])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_the_table_is_reproduced(covariance_type, bounds):
    """Weights and means learned, Sigma = I fixed in any of the four types, one chunk or five: the table to 1e-8."""
    x, means = textbook_rows()
    identity = {"full": np.stack([np.eye(2)] * 3), "tied": np.eye(2), "diag": np.ones((3, 2)), "spherical": np.ones(3)}
    model = gaussian_mixture(3, x.mean(axis=0), covariance_type, fixed=("covariances",))
    start = {"weights": np.full(3, 1 / 3), "means": means, "covariances": identity[covariance_type]}
    run, resets = fit(model, model.params_from_arrays(start), chunks_of(x, bounds), 5)
    assert not resets
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], TABLE, rtol=1e-8)
    np.testing.assert_array_equal(run.params.theta.covariances, identity[covariance_type])
    assert np.ptp(run.params.weights) > 0.001


@pytest.mark.full
def test_the_table_is_reproduced_from_a_config(tmp_path):
    """The same through the job: rows in a file, an explicit start in another, model.zarr's history to 1e-8."""
    x, means = textbook_rows()
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "start.npz", weights=np.full(3, 1 / 3), means=means, covariances=np.ones(3))
    config = validate(
        {
            "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
            "model": {"n_components": 3, "covariance_type": "spherical", "fixed": ["covariances"]},
            "fit": {"init": "explicit", "init_path": str(tmp_path / "start.npz"), "max_iter": 5, "tol": 0},
            "output": {"path": str(tmp_path / "run")},
        }
    )
    history = open_run(run_job(config)).log_likelihood.values
    np.testing.assert_allclose(history, TABLE, rtol=1e-8)


def test_fixed_uniform_weights_stay():
    """The same start with fixed weights too: the slow reference's history, and weights of exactly 1/3."""
    x, means = textbook_rows()
    fixed = ("weights", "covariances")
    model = gaussian_mixture(3, x.mean(axis=0), "full", fixed=fixed)
    start = {"weights": np.full(3, 1 / 3), "means": means, "covariances": np.stack([np.eye(2)] * 3)}
    run, _ = fit(model, model.params_from_arrays(start), chunks_of(x), 5)
    expected = gaussian_em(x, *start.values(), "full", 5, fixed=fixed)
    close([entry.log_likelihood for entry in run.history], expected.log_likelihood, 1e-12)
    assert run.history[0].log_likelihood == pytest.approx(TABLE[0], rel=1e-8)
    np.testing.assert_array_equal(run.params.weights, start["weights"])


def test_a_known_generative_model_is_recovered():
    """20,000 rows of two Gaussians: weights, means and covariances come back within five standard errors."""
    rng = np.random.default_rng(0)
    n = 20_000
    weights, means = np.array([2 / 3, 1 / 3]), np.array([(-2.0, 0.0), (2.0, 0.0)])
    covariances = np.array([np.diag([1.0, 9.0]), [[1.0, 0.8], [0.8, 1.0]]])
    label = (rng.random(n) >= weights[0]).astype(int)
    x = means[label] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[label], rng.standard_normal((n, 2)))
    model = gaussian_mixture(2, x.mean(axis=0))
    pooled = np.stack([np.cov(x.T, ddof=0)] * 2)
    start = {"weights": np.full(2, 0.5), "means": x.mean(axis=0) + np.array([[-1.0, 0], [1, 0]]), "covariances": pooled}
    run, _ = fit(model, model.params_from_arrays(start), chunks_of(x, [0, 9000, 20_000]), 200, 1e-9)
    assert run.stop_reason.startswith("converged")
    found = model.arrays(run.params)
    # Standard errors with full knowledge of the labels, twice over for what overlap costs.
    size = n * weights
    assert (np.abs(found["weights"] - weights) <= 5 * 2 * np.sqrt(weights.prod() / n)).all()
    deviations = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    assert (np.abs(found["means"] - means) <= 5 * 2 * deviations / np.sqrt(size)[:, None]).all()
    scale = np.einsum("ki,kj->kij", deviations, deviations)
    assert (np.abs(found["covariances"] - covariances) <= 5 * 2 * scale * np.sqrt(2 / size)[:, None, None]).all()
    truth = model.params_from_arrays({"weights": weights, "means": means, "covariances": covariances})
    assert run.log_likelihood >= e_step(model, truth, x).evidence.log_likelihood
