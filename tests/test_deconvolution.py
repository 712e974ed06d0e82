"""Rows with known errors: extreme deconvolution against a slow reference, and a job from config to report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import pipeline
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families import FAMILIES
from tests.jobs import Interrupt, command, results
from tests.laws.common import TYPES, chunks_of, e_step, fit, method, sum_over
from tests.reference import full_covariances, of_type


def rows(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two narrow Gaussians in three dimensions, seen with errors of known variances, which differ by row and entry: rows and variances."""
    rng = np.random.default_rng(seed)
    variances = rng.gamma(1.0, 2.0, (n, 3))
    true = np.where(np.arange(n) % 2 == 0, -3.0, 3.0)[:, None] + rng.normal(size=(n, 3)) * [1.0, 0.3, 0.5]
    return true + rng.normal(size=(n, 3)) * np.sqrt(variances), variances


def matrices(n: int, seed: int = 1) -> np.ndarray:
    """Covariances of errors, (n, 3, 3); of some rows singular, of one 0."""
    a = np.random.default_rng(seed).normal(size=(n, 3, 3))
    a[::3, :, 0] = 0.0
    a[5] = 0.0
    return a @ np.swapaxes(a, 1, 2)


def started(x: np.ndarray, noise: np.ndarray, **options):
    """The model of a config section, its start from labels, and the rows with their errors behind them."""
    section = FAMILIES["gaussian"].model_validate({"n_components": 2, "reg_covar": 0.0, **options})
    wide = np.concatenate([x, noise.reshape(len(x), -1)], axis=1)
    profile = sum_over(chunks_of(wide, [0, 30, len(x)]), [ProfileJob("matrix", 50, 0, 3)])[0]
    model = section.build(summary_of(profile, []), "soft").for_rows("errors")
    np.testing.assert_allclose(profile.covariance, np.cov(x.T, bias=True), rtol=1e-10)
    return model, model.m_step(model.label_statistics(x, np.arange(len(x)) % 2), None), wide


def slow_em(x, noise, weights, means, covariances, covariance_type, n_iter, weight):
    """Bovy, Hogg and Roweis (2011), eq. 16 and 17, a row and a component at a time. noise, covariances : (n, d, d), (k, d, d)."""
    (n, d), k, history = x.shape, len(weights), []
    for _ in range(n_iter):
        b, big_b, joint = np.empty((n, k, d)), np.empty((n, k, d, d)), np.empty((n, k))
        for i in range(n):
            for j in range(k):
                total = covariances[j] + noise[i]
                joint[i, j] = np.log(weights[j]) + multivariate_normal(means[j], total).logpdf(x[i])
                slope = covariances[j] @ np.linalg.inv(total)
                b[i, j] = means[j] + slope @ (x[i] - means[j])
                big_b[i, j] = covariances[j] - slope @ covariances[j]
        history.append(weight @ logsumexp(joint, axis=1))
        q = np.exp(joint - logsumexp(joint, axis=1)[:, None]) * weight[:, None]
        counts = q.sum(axis=0)
        weights, means = counts / counts.sum(), np.einsum("nk,nkd->kd", q, b) / counts[:, None]
        diff = means - b
        sums = np.einsum("nk,nki,nkj->kij", q, diff, diff) + np.einsum("nk,nkij->kij", q, big_b)
        covariances = of_type(sums, counts, covariance_type)
    return weights, means, covariances, history


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["variances", "covariances"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_equals_a_slow_reference(covariance_type, errors):
    """Three iterations of weighted rows in ragged chunks: parameters and log-likelihoods agree to 1e-8; the bound is tight."""
    x, variances = rows()
    noise = variances if errors == "variances" else matrices(len(x))
    full = variances[:, :, None] * np.eye(3) if errors == "variances" else noise
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    model, params, wide = started(x, noise, covariance_type=covariance_type)
    start = full_covariances(params.theta.covariances, covariance_type, 2, 3)
    *expected, history = slow_em(x, full, params.weights, params.theta.means, start, covariance_type, 3, weight)
    run, events = fit(model, params, chunks_of(wide, [0, 30, len(x)], weight), 3)
    assert not events
    theta = run.params.theta
    found = run.params.weights, theta.means, full_covariances(theta.covariances, covariance_type, 2, 3)
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-10)
    totals = run.final.totals
    assert model.bound(totals, run.params) == pytest.approx(totals.evidence.log_likelihood, rel=1e-11)


@pytest.mark.parametrize("how", ["em", "auto"])
def test_the_likelihood_never_falls_and_the_true_widths_are_found(how):
    """Of 3,000 rows whose errors are several times as wide as the clusters."""
    x, variances = rows(3000)
    model, params, wide = started(x, variances, covariance_type="diag")
    chunks = chunks_of(wide, [0, 1000, 3000])
    run, _ = fit(model, params, chunks, 60, method=method(how, chunks))
    history = np.array([*(entry.objective for entry in run.history), run.objective])
    assert (np.diff(history) >= -1e-12 * np.abs(history).max()).all()
    if how == "auto":
        np.testing.assert_allclose(np.sqrt(run.params.theta.covariances), [[1.0, 0.3, 0.5]] * 2, atol=0.12)


def test_rows_without_errors_are_those_of_a_gaussian_mixture():
    """Errors of 0, or none: log-densities and the next parameters to 1e-9."""
    x, _ = rows()
    model, params, wide = started(x, np.zeros((80, 3)))
    (_, found), *_ = model.assign(params, wide, KERNELS)
    (_, plain), *_ = model.assign(params, x, KERNELS)
    np.testing.assert_allclose(found.score, plain.score, rtol=1e-9)
    after, bare = (model.m_step(e_step(model, params, each).stats, params).theta for each in (wide, x))
    np.testing.assert_allclose(after.covariances, bare.covariances, rtol=1e-9, atol=1e-9)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("errors", ["variances", "covariances"])
def test_a_job_with_errors(tmp_path: Path, errors):
    """check, run, a stop, resume with the same bytes, report, predict with errors of other rows and without; PCA maps errors too."""
    x, variances = rows(600)
    noise = variances if errors == "variances" else matrices(600) * 3.0
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "new.npy", x[:90])
    np.save(tmp_path / "noise.npy", noise)
    np.save(tmp_path / "new-noise.npy", noise[:90])
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy"), "noise": str(tmp_path / "noise.npy")},
        "preprocess": [{"kind": "standardize"}] if errors == "variances" else [{"kind": "pca", "n_components": 2}],
        "model": {"family": "gaussian", "n_components": 2, "covariance_type": "diag"},
        "fit": {"max_iter": 30, "tol": 1e-6},
        "output": {"path": str(tmp_path / "run")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    assert json.loads(command("check", tmp_path / "job.yaml", "--json").out)["rows"] == 600
    whole = pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), listeners=[Interrupt("pass", 2)])
    assert command("resume", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)
    label = zarr.open_group(tmp_path / "run" / "labels.zarr", mode="r")["label"][:]
    right = ((label == label[0]) == (np.arange(600) % 2 == 0)).mean()
    assert right > 0.9
    assert "A mixture of 2 Gaussians" in (tmp_path / "run" / "report.html").read_text()
    sets = ["--set", f"data.path={tmp_path}/new.npy", "--set"]
    with_errors = command(
        "predict", tmp_path / "run", *sets, f"data.noise={tmp_path}/new-noise.npy", "--output", tmp_path / "a"
    )
    assert (
        with_errors.code == 0
        and command("predict", tmp_path / "run", *sets, "data.noise=null", "--output", tmp_path / "b").code == 0
    )
    found = [zarr.open_group(tmp_path / name / "labels.zarr", mode="r") for name in "ab"]
    np.testing.assert_array_equal(found[0]["label"][:], label[:90])
    assert np.median(np.abs(found[0]["log_density"][:] - found[1]["log_density"][:])) > 0.1


def test_the_python_class_takes_errors():
    """fit(X, noise=…) finds the widths without the errors; the noise of a mixture, which is another thing, is refused beside it."""
    x, variances = rows(2000)
    mixture = pipeline.GaussianMixture(2, covariance_type="diag", method="auto", random_state=0)
    mixture.fit(x, noise=variances)
    np.testing.assert_allclose(np.sqrt(mixture.covariances_), [[1.0, 0.3, 0.5]] * 2, atol=0.15)
    assert (np.abs(mixture.means_) > 2.7).all() and mixture.predict(x).max() == 1
    with pytest.raises(ValueError, match=r"expected \(2000, 3\) or \(2000, 3, 3\)"):
        mixture.fit(x, noise=variances[:, :2])
    with pytest.raises(ValueError, match="noise: errors of rows are not for a mixture with noise or missing entries"):
        pipeline.GaussianMixture(2, noise="uniform").fit(x, noise=variances)


def test_what_cannot_be_is_refused(tmp_path):
    """Other families and options beside; errors of another shape, below 0, or not finite; another order of numbers in the file."""
    x, variances = rows(50)
    np.save(tmp_path / "x.npy", x)
    data = {"source": "npy", "path": str(tmp_path / "x.npy"), "noise": str(tmp_path / "noise.npy")}
    for more in (
        {"model": {"family": "kmeans"}},
        {"model": {"noise": "uniform"}},
        {"output": {"standard_errors": True}},
    ):
        with pytest.raises(InputError, match=r"data\.noise: known errors of rows are for family gaussian"):
            validate({"data": data, **more})
    bad = variances.copy()
    bad[7, 1] = -1.0
    gap = variances.copy()
    gap[3, 0] = np.nan
    skew = matrices(50)
    skew[4, 0, 1] += 1.0
    for noise, message in (
        (
            variances[:, :2],
            r"expected real numbers for each of the 50 rows of the data, shape \(50, 3\) or \(50, 3, 3\)",
        ),
        (bad, r"data\.noise: row 7 has a variance below 0"),
        (gap, r"data\.noise: row 3 has a number that is not finite"),
        (skew, r"data\.noise: row 4 has no covariance: not symmetric"),
        (np.asfortranarray(variances), "stored column by column"),
    ):
        np.save(tmp_path / "noise.npy", noise)
        with pytest.raises(InputError, match=message):
            pipeline.run(
                validate({"data": data, "model": {"n_components": 2}, "output": {"path": str(tmp_path / "run")}}),
                overwrite=True,
            )
