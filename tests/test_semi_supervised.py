"""Rows whose component is known keep it: data.labels in a job, y with -1 in Python."""

import itertools
import warnings

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning

import pipeline
from tests.jobs import job, refused, results, write_config, write_rows

pytestmark = pytest.mark.full


def overlapping(n: int = 2400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of three overlapping classes of unequal size, (n, 2), and their classes."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    means = np.array([[0.0, 0.0], [1.4, 0.3], [0.4, 1.4]])
    spread = np.array([[1.0, 0.3], [0.5, 1.2], [0.9, 0.5]])
    return means[label] + spread[label] * rng.normal(size=(n, 2)), label


def some_known(label: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    """The labels of a share of the rows, -1 for the others."""
    return np.where(np.random.default_rng(seed).random(len(label)) < share, label, -1)


def slow_em(x, known, weights, means, covariances, n_iter):
    """EM by scipy's densities, in which a known row has one component: parameters, and log-likelihoods at the E-steps."""
    history, k = [], len(weights)
    free = (known[:, None] < 0) | (known[:, None] == np.arange(k))
    for _ in range(n_iter):
        densities = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
        log_joint = np.where(free, np.log(weights) + np.stack(densities, axis=1), -np.inf)
        history.append(logsumexp(log_joint, axis=1).sum())
        resp = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        weights = resp.mean(axis=0)
        means = (resp.T @ x) / resp.sum(axis=0)[:, None]
        diffs = [x - mean for mean in means]
        covariances = [(diff.T * r) @ diff / r.sum() for diff, r in zip(diffs, resp.T, strict=True)]
    return weights, means, np.array(covariances), history


def fit(folder, x, known, name="run", **changes):
    """The model of a job with known labels, and its run directory."""
    rows = write_rows(folder / f"{name}.zarr", x, 300)
    np.save(folder / f"{name}.npy", known)
    plain = {
        "data": {"labels": str(folder / f"{name}.npy")},
        "model": {"n_components": 3, "covariance_type": "full", "reg_covar": 0.0},
        "output": {"path": str(folder / name)},
    }
    run = pipeline.run(
        job(rows, **{key: {**plain.get(key, {}), **value} for key, value in {**plain, **changes}.items()})
    )
    return pipeline.open_run(run), run


def test_known_rows_as_in_a_slow_reference(tmp_path):
    """Twenty iterations from one start with a tenth of the rows known: equal to a slow EM to 1e-10."""
    x, label = overlapping()
    known = some_known(label, 0.1)
    start = {"weights": np.full(3, 1 / 3), "means": x[:3], "covariances": np.tile(np.eye(2), (3, 1, 1))}
    np.savez(tmp_path / "start.npz", **start)
    how = {"method": "em", "init": "explicit", "init_path": str(tmp_path / "start.npz"), "max_iter": 20, "tol": 0}
    model, _ = fit(tmp_path, x, known, fit=how)
    weights, means, covariances, history = slow_em(x, known, *start.values(), 20)
    np.testing.assert_allclose(model.weights.values, weights, rtol=1e-10)
    np.testing.assert_allclose(model.means.values, means, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.covariances.values, covariances, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.log_likelihood.values, history, rtol=1e-12)


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random", "near-mean"])
def test_all_known_is_the_supervised_estimate_after_one_iteration(init, tmp_path):
    """Whatever the start: one M-step gives the classes' own moments, and the next changes nothing."""
    x, label = overlapping()
    model, _ = fit(tmp_path, x, label, fit={"method": "em", "init": init, "max_iter": 1, "tol": 0})
    for k in range(3):
        own = x[label == k]
        np.testing.assert_allclose(model.weights.values[k], len(own) / len(x), rtol=1e-13)
        np.testing.assert_allclose(model.means.values[k], own.mean(axis=0), rtol=0, atol=1e-13)
        np.testing.assert_allclose(model.covariances.values[k], np.cov(own.T, bias=True), rtol=0, atol=1e-12)


def accuracy(found: np.ndarray, label: np.ndarray) -> float:
    """Of the best of all namings of the components."""
    return max(float(np.mean(np.array(order)[found] == label)) for order in itertools.permutations(range(3)))


def test_few_labels_on_overlapping_classes_beat_none():
    """With 5 % of the labels, those of the other rows are found more often than without, on average over ten data sets."""
    gains = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for seed in range(10):
            x, label = overlapping(800, seed)
            known = some_known(label, 0.05, 100 + seed)
            unknown = known < 0
            options = {"random_state": seed, "init_params": "k-means||", "max_iter": 300}
            alone = pipeline.GaussianMixture(3, **options).fit(x).predict(x)
            helped = pipeline.GaussianMixture(3, **options).fit(x, known).predict(x)
            # With labels the components have their names: no naming has to be looked for.
            gains.append(np.mean(helped[unknown] == label[unknown]) - accuracy(alone[unknown], label[unknown]))
    assert np.mean(gains) > 0.01, gains


@pytest.mark.parametrize("family", ["gaussian", "kmeans"])
def test_known_components_keep_their_names_in_search_and_moves(family, tmp_path):
    """Under auto, component k is class k, whatever its weight; labels.zarr has the known labels as they are."""
    import zarr

    x, label = overlapping()
    known = some_known(label, 0.05)
    more = {"family": "kmeans", "n_components": 5} if family == "kmeans" else {"n_components": 5}
    rows = write_rows(tmp_path / "x.zarr", x, 300)
    np.save(tmp_path / "known.npy", known)
    config = job(
        rows,
        data={"labels": str(tmp_path / "known.npy")},
        model=more if family == "kmeans" else {**more, "covariance_type": "full"},
        fit={"method": "auto", "max_iter": 30, "init": "k-means||"},
        output={"path": str(tmp_path / "run")},
    )
    run = pipeline.run(config)
    model = pipeline.open_run(run)
    location = model["centers" if family == "kmeans" else "means"].values
    for k in range(3):
        nearest = np.square(location - x[label == k].mean(axis=0)).sum(axis=1).argsort()[:3]
        assert k in nearest, "two components more may share a class, but its own is near"
    found = np.asarray(zarr.open_group(run / "labels.zarr", mode="r")["label"][...])
    assert (found[known >= 0] == known[known >= 0]).all()


@pytest.mark.slow
def test_workers_change_no_bit(tmp_path):
    """1, 2 and 4 threads: the same model.zarr and labels.zarr."""
    x, label = overlapping()
    known = some_known(label, 0.1)
    runs = [
        fit(tmp_path, x, known, f"run{workers}", engine={"workers": workers}, fit={"method": "auto", "max_iter": 20})[1]
        for workers in (1, 2, 4)
    ]
    assert results(runs[0]) == results(runs[1]) == results(runs[2])


def test_labels_that_cannot_be_are_refused(tmp_path):
    """A component that is not there, a label below -1, and pruning, which would rename components."""
    x, label = overlapping(300)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", np.where(label == 2, 7, label))
    path = write_config(tmp_path / "job.yaml", tmp_path / "x.npy", data={"labels": str(tmp_path / "labels.npy")},
                        output={"path": str(tmp_path / "run")})  # fmt: skip
    assert "label 7" in refused("run", path)
    np.save(tmp_path / "labels.npy", label - 5)
    assert "data.labels" in refused("run", path, "--overwrite")
    np.save(tmp_path / "labels.npy", label)
    said = refused("run", path, "--set", "select.pruning=true", "--set", "fit.method=auto", "--overwrite")
    assert "data.labels" in said


def test_components_have_the_names_of_labels_from_the_default_start():
    """With one known row in thirty, the component of every other row is that of its class."""
    label = np.arange(300) // 100
    x = np.random.default_rng(0).normal(size=(300, 2)) + 9.0 * np.eye(3, 2)[label]
    known = np.where(np.arange(300) % 30 == 0, label, -1)
    np.testing.assert_array_equal(pipeline.GaussianMixture(3, random_state=0).fit(x, known).predict(x), label)


def test_y_without_unknown_rows_is_ignored_as_by_scikit_learn():
    """Pipelines hand y to every step: a mixture takes labels only where some are -1."""
    x, label = overlapping(400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one = pipeline.GaussianMixture(3, random_state=0).fit(x, label)
        other = pipeline.GaussianMixture(3, random_state=0).fit(x)
    np.testing.assert_array_equal(one.means_, other.means_)
