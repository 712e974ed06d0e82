"""The von Mises-Fisher mixture and spherical K-means against scipy, exact constants and slow references."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import brentq
from scipy.special import iv, logsumexp
from scipy.stats import vonmises_fisher
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.kernels.nearest import scale_rows
from pipeline.models.base import EStep
from pipeline.models.clusters import NoRows
from pipeline.models.families.spherical_kmeans import SphericalKMeans
from pipeline.models.families.vmf import MOST, VonMisesFisher, concentration_of, mean_cosine
from pipeline.models.mixture import Mixture
from tests.jobs import job, refused, write_config
from tests.laws.common import assigned, chunks_of, e_step, fit
from tests.test_families import directions, documents

RNG = np.random.default_rng


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def vmf(k: int, d: int) -> Mixture:
    """A mixture of k in d dimensions."""
    return Mixture(VonMisesFisher(k, d))


@pytest.mark.parametrize("kappa", [0.01, 3.0, 80.0])
@pytest.mark.parametrize("d", [2, 3, 7, 40, 60])
def test_densities_are_scipys(d, kappa):
    """log p(x) to 1e-10, of rows of any length, dense and sparse."""
    rng = RNG(0)
    mu, x = unit(rng.normal(size=(1, d))), rng.normal(size=(20, d))
    model = vmf(1, d)
    params = model.params(weights=np.ones(1), directions=mu, concentrations=np.array([kappa]))
    expected = vonmises_fisher(mu[0], kappa).logpdf(unit(x))
    for rows in (x, 1e3 * x, sp.csr_array(x)):
        np.testing.assert_allclose(model.log_joint(params, rows, KERNELS)[:, 0], expected, rtol=1e-10)


EXACT = [
    (768, 50.0, 1457.096968143509),
    (768, 2000.0, 246.690576463844),
    (3000, 1000.0, 7590.751525731296),
    (3000, 0.5, 7749.30494690934),
]


@pytest.mark.parametrize(("d", "kappa", "expected"), EXACT)
def test_constants_of_thousands_of_dimensions(d, kappa, expected):
    """log C_d(kappa) to 13 digits of 30-digit arithmetic, where the Bessel function itself is beyond float64."""
    found = VonMisesFisher(1, d)._log_scale(np.array([kappa]))[0]
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("d", [2, 3, 10, 49, 50, 51, 4000])
def test_concentrations_follow_from_mean_cosines(d):
    """From nearly even to nearly one direction, to 1e-8; a mean cosine of 1 ends at the most."""
    for kappa in np.array([1e-3, 0.1, 1.0, 10.0, 1e3, 5e4]) * d:
        mean, slope = mean_cosine(np.array([kappa]), d)
        assert concentration_of(mean, d)[0] == pytest.approx(kappa, rel=1e-8)
        above = mean_cosine(np.array([kappa * (1 + 1e-4)]), d)[0]
        assert slope[0] == pytest.approx((above[0] - mean[0]) / (1e-4 * kappa), rel=2e-3, abs=2e-15)
    assert concentration_of(np.ones(1), d)[0] == pytest.approx(MOST * d)


def slow_em(x, weights, mu, kappa, n_iter):
    """EM with scipy's densities, and each concentration by bracketing the ratio of Bessel functions."""
    d, history = x.shape[1], []
    for _ in range(n_iter):
        densities = [vonmises_fisher(m, c).logpdf(x) for m, c in zip(mu, kappa, strict=True)]
        log_joint = np.log(weights) + np.stack(densities, axis=1)
        history.append(logsumexp(log_joint, axis=1).sum())
        r = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        sums = r.T @ x
        length = np.linalg.norm(sums, axis=1)
        weights, mu = r.mean(axis=0), sums / length[:, None]
        means = length / r.sum(axis=0)
        kappa = [brentq(lambda c, a=a: iv(d / 2, c) / iv(d / 2 - 1, c) - a, 1e-6, 600, xtol=1e-13) for a in means]
    return weights, mu, np.array(kappa), history


def test_vmf_equals_a_slow_reference():
    """Eight iterations on rows of any length, dense and sparse: parameters to 1e-9, log-likelihoods to 1e-12."""
    x = directions(RNG(0))
    start = np.array([0.2, 0.3, 0.5]), unit(x[:3]), np.array([1.0, 3.0, 9.0])
    weights, mu, kappa, history = slow_em(unit(x), *start, 8)
    model = vmf(3, 5)
    for rows in (x, sp.csr_array(x)):
        params = model.params(weights=start[0], directions=start[1], concentrations=start[2])
        run, _ = fit(model, params, chunks_of(rows, [0, 100, 400]), 8)
        np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-12)
        np.testing.assert_allclose(run.params.weights, weights, rtol=1e-9)
        np.testing.assert_allclose(run.params.theta.directions, mu, atol=1e-9)
        np.testing.assert_allclose(run.params.theta.concentrations, kappa, rtol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_spherical_kmeans_equals_a_slow_reference(sparse):
    """Iterations from three rows: labels, centres and the sum of cosine distances, to the last row."""
    x = documents(RNG(0)).toarray() if sparse else directions(RNG(0))
    rows, centers = unit(x), unit(x[:3])
    model = SphericalKMeans(3, np.zeros(x.shape[1]), 1.0)
    run, resets = fit(model, model.params(centers=centers), chunks_of(sp.csr_array(x) if sparse else x, [0, 9, 400]), 6)
    assert not resets
    for entry in run.history:
        cosine = rows @ centers.T
        label = cosine.argmax(axis=1)
        assert -entry.objective == pytest.approx((1.0 - cosine.max(axis=1)).sum(), rel=1e-12)
        centers = unit(np.stack([rows[label == j].sum(axis=0) for j in range(3)]))
    np.testing.assert_allclose(run.params.centers, centers, atol=1e-12)
    np.testing.assert_array_equal(assigned(model, run.params, x).label, (rows @ centers.T).argmax(axis=1))


def test_rows_are_scaled_in_float64():
    """Of any length and layout, as NumPy does, to the last digit; of rows without direction the first of weight is named."""
    x = directions(RNG(0), 60) * 1e-30
    for rows in (x, np.asfortranarray(x), x.astype(np.float32)):
        found = np.empty(x.shape, rows.dtype)
        assert scale_rows(np.ascontiguousarray(rows), np.ones(60), found) == -1
        np.testing.assert_allclose(found, unit(rows.astype(np.float64)), rtol=2 * np.finfo(rows.dtype).eps)
    x[[11, 30, 40]], weight = 0.0, np.ones(60)
    weight[11] = 0.0
    model = SphericalKMeans(3, np.zeros(5), 1.0)
    with pytest.raises(InputError, match="row 1030: It is all zeros"):
        model.e_step(model.params(centers=unit(x[:3])), Rows(x, weight, 1000), KERNELS)


def test_one_concentrated_hard_component_each_is_spherical_kmeans():
    """Hard EM with equal, fixed weights and concentrations has the centres of spherical K-means, each iteration."""
    x = directions(RNG(1))
    component = VonMisesFisher(3, 5, ("concentrations",))
    mixture = Mixture(component, "hard", fixed_weights=True)
    params = mixture.params(weights=np.full(3, 1 / 3), directions=unit(x[:3]), concentrations=np.full(3, 7.0))
    run, _ = fit(mixture, params, chunks_of(x), 5)
    model = SphericalKMeans(3, np.zeros(5), 1e-9)
    other, _ = fit(model, model.params(centers=unit(x[:3])), chunks_of(x), 5)
    np.testing.assert_allclose(run.params.theta.directions, other.params.centers, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_of_zeros_are_refused_unless_they_have_no_weight(sparse):
    """The message names the row, and what to do."""
    x = directions(RNG(0))
    x[7] = 0.0
    weight = np.ones(len(x))
    weight[7] = 0.0
    rows = sp.csr_array(x) if sparse else x
    for model in (vmf(2, 5), SphericalKMeans(2, np.zeros(5), 1.0)):
        params = model.start_at(x[:2], NoRows(5))
        with pytest.raises(InputError, match=r"row 7: .*all zeros, and has no direction"):
            e_step(model, params, rows)
        expected = e_step(model, params, np.delete(x, 7, axis=0)).totals
        found = e_step(model, params, rows, None, weight).totals
        np.testing.assert_allclose(model.counts(found.stats), model.counts(expected.stats), rtol=1e-12)
        assert model.objective(found, params) == pytest.approx(model.objective(expected, params), rel=1e-12)


def test_rows_of_one_direction_are_a_collapsed_component():
    """It is reset, not made infinitely narrow; K-means moves an empty centre to the row farthest from its own."""
    x = directions(RNG(0))
    x[:50] = x[0] * np.arange(1, 51)[:, None]
    model = vmf(2, 5)
    params = model.m_step(model.label_statistics(x, (np.arange(400) >= 50).astype(int)), None)
    assert [k for k, why in model.collapsed(params, np.array([50.0, 350.0]))] == [0]
    spheres = SphericalKMeans(3, np.zeros(5), 1.0)
    for rows in (x, sp.csr_array(x)):
        start = spheres.params(centers=unit(np.stack([x[60], x[60], x[61]])))
        partial = EStep(spheres, start, spheres.attachments)(Rows(rows), KERNELS)
        new, done = spheres.reset(spheres.m_step(partial.stats, start), start, partial.stats, partial.attached, ())
        assert [(each.component, each.done) for each in done] == [(1, True)]
        np.testing.assert_allclose(np.linalg.norm(new.centers, axis=1), 1.0)
        np.testing.assert_allclose(new.centers[1], unit(x)[partial.attached["outliers"].row[0]], atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize("family", ["vmf", "spherical-kmeans"])
def test_the_search_finds_directions_of_rows_of_any_length(family):
    """Three directions, rows of length 0.001 to 1000: the default method separates them, where distances would not."""
    rng = RNG(0)
    label = np.arange(600) % 3
    x = (np.eye(3)[label] @ unit(rng.normal(size=(3, 30))) + 0.05 * rng.normal(size=(600, 30))) * 10 ** rng.uniform(
        -3, 3, (600, 1)
    )
    for rows in (x, sp.csr_array(x)):
        estimator = pipeline.estimator_of(family)(3, random_state=0, method="auto").fit(rows)
        found = estimator.predict(rows)
        assert len({(a, b) for a, b in zip(found.tolist(), label.tolist(), strict=True)}) == 3


@pytest.mark.full
@pytest.mark.parametrize("family", ["vmf", "spherical-kmeans"])
@pytest.mark.parametrize("kind", ["center", "standardize", "pca"])
def test_directions_of_preprocessed_rows(family, kind, tmp_path):
    """A job of the rows that a step makes is one of these rows."""
    x = directions(RNG(0), 100)
    map_ = {"center": StandardScaler(with_std=False), "standardize": StandardScaler(), "pca": PCA()}[kind]
    np.save(tmp_path / "raw.npy", x)
    np.save(tmp_path / "made.npy", map_.fit_transform(x))
    model, fit = {"family": family, "n_components": 2}, {"init": "k-means||", "method": "em"}
    made = pipeline.run(job(tmp_path / "made.npy", model=model, fit=fit), tmp_path / "made")
    raw = pipeline.run(job(tmp_path / "raw.npy", model=model, fit=fit, preprocess=[{"kind": kind}]), tmp_path / "raw")
    found, expected = pipeline.open_run(raw), pipeline.open_run(made)
    name = f"final_{'inertia' if family == 'spherical-kmeans' else 'log_likelihood'}"
    assert found.attrs[name] == pytest.approx(expected.attrs[name], rel=1e-9)


def test_a_job_refuses_rows_of_zeros(tmp_path):
    """By their number, with advice."""
    x = directions(RNG(0), 60)
    x[5] = 0.0
    np.save(tmp_path / "x.npy", x)
    model, output = {"family": "vmf", "n_components": 2}, {"path": str(tmp_path / "run")}
    assert "row 5" in refused(
        "run", write_config(tmp_path / "job.yaml", tmp_path / "x.npy", model=model, output=output)
    )
