"""Noise of uniform density beside the components, against a slow reference; its label, its box, and what leaves it alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from scipy.special import logsumexp
from scipy.stats import multivariate_t

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.em.moves import improve, refine
from pipeline.em.pruning import pruned
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import MemoryRows
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.clusters import NOISE
from pipeline.models.covariance import full_covariances
from pipeline.models.families import FAMILIES
from pipeline.models.noise import START
from tests.jobs import command
from tests.laws.common import TYPES, chunks_of, e_step, fit, method, sum_over
from tests.reference import entropy_of, gaussian_covariances, gaussian_log_density


def rows(n: int = 200, seed: int = 0, d: int = 2) -> np.ndarray:
    """Two Gaussians, and noise in every tenth row, (n, d)."""
    rng = np.random.default_rng(seed)
    x = np.where(np.arange(n) % 2 == 0, -6.0, 6.0)[:, None] + rng.normal(size=(n, d))
    x[::10] = rng.uniform(-30.0, 30.0, (len(x[::10]), d))
    return x


def model_of(x: np.ndarray, k: int = 2, assignment: str = "soft", family: str = "gaussian", **options):
    """The model of a config section, about these rows."""
    section = FAMILIES[family].model_validate(
        {"n_components": k, "noise": "uniform", "reg_covar": 0.0, "family": family, **options}
    )
    return section.build(summary_of(sum_over(chunks_of(x), [ProfileJob("matrix", 50, 0)])[0], []), assignment)


def started(x: np.ndarray, **options):
    """The model and its start from the true labels."""
    model = model_of(x, **options)
    return model, model.m_step(model.label_statistics(x, np.arange(len(x)) % 2), None)


def slow_em(x, noise, weights, means, covariances, covariance_type, n_iter, weight, hard):
    """EM with a component more, of density 1 / volume, whose share is estimated as the others are."""
    log_volume, history = np.log(x.max(axis=0) - x.min(axis=0)).sum(), []
    for _ in range(n_iter):
        own = np.log((1.0 - noise) * weights) + gaussian_log_density(x, means, covariances, covariance_type)
        joint = np.column_stack([own, np.full(len(x), np.log(noise) - log_volume)])
        history.append(weight @ logsumexp(joint, axis=1))
        resp = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        resp = np.eye(3)[joint.argmax(axis=1)] if hard else resp
        entropy, resp = entropy_of(resp, weight), resp * weight[:, None]
        sizes = resp.sum(axis=0)
        noise, weights = sizes[-1] / sizes.sum(), sizes[:-1] / sizes[:-1].sum()
        means = resp[:, :-1].T @ x / sizes[:-1, None]
        covariances = gaussian_covariances(x, resp[:, :-1], means, covariance_type, 0.0)
    return noise, weights, means, covariances, history, entropy


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_equals_a_slow_reference(covariance_type, assignment):
    """Six iterations over weighted rows in ragged chunks: parameters, log-likelihoods and the entropy agree to 1e-10."""
    x = rows()
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    model, params = started(x, covariance_type=covariance_type, assignment=assignment)
    arrays = model.arrays(params)
    start = arrays["noise"], arrays["weights"], arrays["means"], arrays["covariances"]
    *expected, history, entropy = slow_em(x, *start, covariance_type, 6, weight, assignment == "hard")
    run, events = fit(model, params, chunks_of(x, [0, 150, 200], weight), 6)
    assert not events and arrays["noise"] == START
    for name, value in zip(["noise", "weights", "means", "covariances"], expected, strict=True):
        np.testing.assert_allclose(model.arrays(run.params)[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-12)
    assert run.history[-1].entropy == pytest.approx(entropy, rel=1e-9, abs=1e-9)
    assert float(run.params.noise) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_student_t_with_noise_has_scipy_densities(covariance_type):
    """Log-densities and responsibilities to 1e-10, from scipy's t and the constant."""
    x = rows()
    model, params = started(x, family="student-t", df=4.0, covariance_type=covariance_type)
    theta, tau = params.theta, params.noise
    wide = full_covariances(model.component.shape, theta.covariances, 2, 2)
    own = [multivariate_t(mean, sigma, 4.0).logpdf(x) for mean, sigma in zip(theta.means, wide, strict=True)]
    own = np.stack(own, axis=1) + np.log((1.0 - tau) * params.weights)
    joint = np.column_stack([own, np.full(len(x), np.log(tau) - np.log(np.ptp(x, axis=0)).sum())])
    (_, found), *_ = model.assign(params, x, KERNELS)
    np.testing.assert_allclose(found.score, logsumexp(joint, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.log_resp, (joint - logsumexp(joint, axis=1)[:, None])[:, :2], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.label, np.where(joint.argmax(axis=1) == 2, NOISE, joint.argmax(axis=1)))


def test_a_row_outside_the_box_is_noise_by_the_same_constant():
    """However far it is, its log-density is that of noise, and its label -2."""
    x = rows()
    model, params = started(x)
    far = np.array([[1e3, 0.0], [1e12, -1e12]])
    (_, found), *_ = model.assign(params, far, KERNELS)
    np.testing.assert_array_equal(found.label, [NOISE, NOISE])
    np.testing.assert_allclose(found.score, np.log(START) - np.log(np.ptp(x, axis=0)).sum(), rtol=1e-12)


def test_rows_of_a_known_component_are_no_noise():
    """They have no share of noise, whatever their density; and noise rows are neither outliers nor places for resets."""
    x = rows()
    model, params = started(x)
    known = Rows(x, None, 0, label=np.arange(len(x)) % 2)
    assert model.e_step(params, known, KERNELS).stats.noise == 0
    np.testing.assert_array_equal(model.predict(params, known, 0, KERNELS)["label"], known.label)
    run, _ = fit(model, params, chunks_of(x), 20)
    label = np.concatenate([found.label for _, found in model.assign(run.params, x, KERNELS)])
    noise = np.flatnonzero(label == NOISE)
    assert len(noise) > 10 and not np.isin(run.final.attached["outliers"].row, noise).any()


def test_moves_and_pruning_leave_noise_alone():
    """Of eight components two are left, beside the noise; a component of two clusters is split, for one that shares a cluster."""
    x = rows(1000)
    with ThreadPoolExecutor(1) as threads:
        memory = MemoryRows(x, None, threads, KERNELS, None, np.empty(0, dtype=int))
        model = model_of(x, 8, reg_covar=1e-6)
        start = model.m_step(model.label_statistics(x, np.arange(1000) % 8), None)
        found = pruned(model, refine(model, start, memory, Limits(50, 1e-6)).params, memory, 1000.0)
        assert found.model.n_components == 2 and found.params.noise == pytest.approx(0.1, abs=0.02)
        more = np.concatenate([x, x[::2] + np.array([0.0, 20.0])])
        memory = MemoryRows(more, None, threads, KERNELS, None, np.empty(0, dtype=int))
        model, i = model_of(more, 3), np.arange(1500)
        labels = np.where(i >= 1000, 0, np.where(i % 2 == 0, 0, 1 + i % 4 // 2))
        start = model.m_step(model.label_statistics(more, labels), None)
        run, moved = improve(refine(model, start, memory, Limits(50, 1e-6)), memory, Limits(50, 1e-6))
    assert moved and np.sort(run.params.theta.means[:, 1]) == pytest.approx([-6, 6, 14], abs=0.3)
    assert run.params.noise == pytest.approx(200 / 1500, abs=0.02)


def test_a_sample_has_noise_in_the_box():
    """Its share and label; all of it in the box."""
    x = rows()
    model, params = started(x)
    sample, label = model.sample(params, 2000, np.random.default_rng(0))
    assert (label == NOISE).mean() == pytest.approx(START, abs=0.02)
    noise = sample[label == NOISE]
    assert (noise >= model.low).all() and (noise <= model.high).all() and np.ptp(noise, axis=0).min() > 40


def test_free_parameters_and_criteria_count_it():
    """One more than without noise."""
    x = rows()
    model, params = started(x)
    assert model.n_free_parameters() == 1 + 1 + 2 * 2 + 2 * 3
    assert e_step(model, params, x).evidence.label_entropy > 0
    run, _ = fit(model, params, chunks_of(x), 30, method=method("auto", chunks_of(x)))
    assert (np.diff([entry.objective for entry in run.history]) >= -1e-9).all()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("steps", [[], [{"kind": "pca", "n_components": 2}]])
def test_a_job_says_its_share(tmp_path: Path, steps):
    """Labels of -2, the share in model.zarr, terminal, report and prediction; the box is that of the preprocessed rows."""
    x = rows(600, d=3)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "new.npy", np.concatenate([x[:100], [[1e4, 0.0, 0.0]]]))
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
        "preprocess": steps,
        "model": {"family": "gaussian", "n_components": [1, 2], "noise": "uniform"},
        "output": {"path": str(tmp_path / "run")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    assert json.loads(command("check", tmp_path / "job.yaml", "--json").out)["rows"] == 600
    shown = command("run", tmp_path / "job.yaml")
    assert shown.code == 0
    model = pipeline.open_run(tmp_path / "run")
    share = float(model.noise)
    assert model.sizes["component"] == 2 and share == pytest.approx(0.1, abs=0.03)
    assert f"noise {share:.2%}" in shown.out + shown.err
    label = zarr.open_group(tmp_path / "run" / "labels.zarr", mode="r")["label"][:]
    assert (label[::10] == NOISE).mean() > 0.8 and (label == NOISE).mean() < 0.15 and label.min() == NOISE
    page = (tmp_path / "run" / "report.html").read_text()
    assert "A mixture of 2 Gaussians and uniform noise" in page and "Noise" in page
    made = command("predict", tmp_path / "run", "--set", f"data.path={tmp_path}/new.npy", "--output", tmp_path / "new")
    assert made.code == 0 and "label -2; in training" in (tmp_path / "new" / "report.html").read_text()
    again = zarr.open_group(tmp_path / "new" / "labels.zarr", mode="r")["label"][:]
    np.testing.assert_array_equal(again, [*label[:100], NOISE])
    opened = pipeline.open_estimator(tmp_path / "run")
    np.testing.assert_array_equal(opened.predict(x), label)


def test_the_python_classes_take_it():
    """Label -2, the attribute noise_, probabilities without that of noise; warm starts go on from it."""
    x = rows()
    for cls in (pipeline.GaussianMixture, pipeline.estimator_of("student-t")):
        mixture = cls(2, noise="uniform", random_state=0, warm_start=True, max_iter=200).fit(x)
        label, share = mixture.predict(x), mixture.predict_proba(x)
        assert float(mixture.noise_) == pytest.approx((label == NOISE).mean(), abs=0.03)
        assert (share[label == NOISE].sum(axis=1) < 0.67).all() and share.sum(axis=1).max() <= 1 + 1e-12
        before = mixture.lower_bound_
        assert mixture.fit(x).lower_bound_ >= before - 1e-9
        assert mixture.sample(500)[1].min() == NOISE
    with pytest.raises(ValueError, match="to_sklearn: scikit-learn has no mixture with noise"):
        pipeline.GaussianMixture(2, noise="uniform").fit(x).to_sklearn()


def test_what_cannot_be_is_refused(tmp_path):
    """A family without noise; a feature of one value, a box without volume; standard errors."""
    with pytest.raises(InputError, match="noise"):
        validate({"model": {"family": "poisson", "noise": "uniform"}})
    flat = np.column_stack([rows(), np.ones(200)])
    with pytest.raises(ValueError, match=r"model\.noise: feature 2 has one value only"):
        pipeline.GaussianMixture(2, noise="uniform").fit(flat)
    np.save(tmp_path / "x.npy", rows())
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
        "model": {"noise": "uniform", "n_components": 2},
        "output": {"path": str(tmp_path / "run"), "standard_errors": True},
    }
    with pytest.raises(InputError, match=r"output\.standard_errors: got model\.noise, expected none"):
        pipeline.run(validate(config))
