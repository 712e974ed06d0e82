"""Missing entries: slow references for each family, today's bits where nothing is missing, and a job from config to report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import yaml
import zarr
from scipy.optimize import brentq
from scipy.special import digamma, gammaln, logsumexp
from scipy.stats import multivariate_normal, multivariate_t

import pipeline
from pipeline.arrays.packing import pack
from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families import FAMILIES
from tests.jobs import Interrupt, command, results
from tests.laws.common import TYPES, assigned, chunks_of, e_step, fit, gaussian_mixture, sum_over
from tests.reference import full_covariances, of_type
from tests.test_hmm import all_paths


def rows(n: int = 120, share: float = 0.3, seed: int = 0) -> np.ndarray:
    """Two Gaussians of correlated features, in which some entries are missing, (n, 3)."""
    rng = np.random.default_rng(seed)
    x = np.where(np.arange(n) % 2 == 0, -3.0, 3.0)[:, None] + rng.normal(size=(n, 3)) @ np.array(
        [[1, 0.8, 0], [0, 0.6, 0.5], [0, 0, 0.7]]
    )
    return with_gaps(x, share, rng)


def with_gaps(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The rows without some entries, at least one of each row is there."""
    gaps = rng.random(x.shape) < share
    gaps[np.arange(len(x)), rng.integers(x.shape[1], size=len(x))] = False
    return np.where(gaps, np.nan, x)


def started(x: np.ndarray, k: int = 2, **options):
    """The model of a config section for rows with missing entries, and its start from labels."""
    options = {"n_components": k, **options}
    if options["family"] in ("gaussian", "student-t"):
        options.setdefault("reg_covar", 0.0)
    section = FAMILIES[options["family"]].model_validate(options)
    profile = sum_over(chunks_of(x, [0, 50, len(x)]), [ProfileJob(section.second_moments, 50, 0)])[0]
    model = section.build(summary_of(profile, []), "soft").for_rows("missing")
    return model, model.m_step(model.label_statistics(model.plain(x), np.arange(len(x)) % k), None)


def expected(x, means, covariances, df=None):
    """log p (n, k), rows (n, k, d), their covariances (n, k, d, d), E u and E log u (n, k), a row and a component at a time."""
    (n, d), k = x.shape, len(means)
    rows, spread, joint = np.empty((n, k, d)), np.zeros((n, k, d, d)), np.empty((n, k))
    u, log_u = np.ones((n, k)), np.zeros((n, k))
    for i in range(n):
        o, m = np.flatnonzero(~np.isnan(x[i])), np.flatnonzero(np.isnan(x[i]))
        for j in range(k):
            s, mean = covariances[j], means[j]
            of = s[np.ix_(o, o)]
            own = multivariate_normal(mean[o], of) if df is None else multivariate_t(mean[o], of, df[j])
            joint[i, j] = own.logpdf(x[i, o])
            if df is not None:
                delta = (x[i, o] - mean[o]) @ np.linalg.solve(of, x[i, o] - mean[o])
                u[i, j] = (df[j] + len(o)) / (df[j] + delta)
                log_u[i, j] = digamma((df[j] + len(o)) / 2) - np.log((df[j] + delta) / 2)
            slope = s[np.ix_(m, o)] @ np.linalg.inv(of)
            rows[i, j, o], rows[i, j, m] = x[i, o], mean[m] + slope @ (x[i, o] - mean[o])
            spread[i, j][np.ix_(m, m)] = s[np.ix_(m, m)] - slope @ s[np.ix_(o, m)]
    return joint, rows, spread, u, log_u


def moments(resp, u, rows, spread, covariance_type):
    """Means and covariances of components. resp, u : (n, k)."""
    counts = resp * u
    means = np.einsum("nk,nkd->kd", counts, rows) / counts.sum(axis=0)[:, None]
    diff = rows - means
    seconds = np.einsum("nk,nkij->kij", resp, spread) + np.einsum("nk,nki,nkj->kij", counts, diff, diff)
    return means, of_type(seconds, resp.sum(axis=0), covariance_type)


def slow_em(x, weights, means, covariances, covariance_type, n_iter, weight, df=None):
    """Little and Rubin's EM; with df (k,), Liu and Rubin's of t distributions. covariances : (k, d, d)."""
    history = []
    for _ in range(n_iter):
        log_density, rows, spread, u, log_u = expected(x, means, covariances, df)
        joint = np.log(weights) + log_density
        history.append(weight @ logsumexp(joint, axis=1))
        resp = np.exp(joint - logsumexp(joint, axis=1)[:, None]) * weight[:, None]
        weights = resp.sum(axis=0) / resp.sum()
        means, covariances = moments(resp, u, rows, spread, covariance_type)
        if df is not None:
            gaps = (resp * (log_u - u)).sum(axis=0) / resp.sum(axis=0)
            df = np.array([brentq(lambda v, g=g: np.log(v / 2) - digamma(v / 2) + 1 + g, 0.1, 1e6) for g in gaps])
    return *((weights, means, covariances) if df is None else (weights, means, covariances, df)), history


@pytest.mark.parametrize(
    ("family", "covariance_type"),
    [
        *(("gaussian", each) for each in TYPES),
        ("student-t", "full"),
        *(pytest.param("student-t", each, marks=pytest.mark.slow) for each in TYPES if each != "full"),
    ],
)
def test_moments_equal_a_slow_reference(family, covariance_type):
    """Four iterations of weighted rows in ragged chunks: parameters and log-likelihoods agree to 1e-10; the bound is tight and rises."""
    x = rows()
    if family == "student-t":
        x /= np.sqrt(np.random.default_rng(2).gamma(1.5, 1 / 1.5, len(x)))[:, None]
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    model, params = started(x, family=family, covariance_type=covariance_type)
    wide = full_covariances(params.theta.covariances, covariance_type, 2, 3)
    start = x, params.weights, params.theta.means, wide, covariance_type, 4, weight
    *right, history = slow_em(*start, getattr(params.theta, "df", None))
    run, events = fit(model, params, chunks_of(x, [0, 50, len(x)], weight), 4)
    assert not events
    theta = run.params.theta
    found = run.params.weights, theta.means, full_covariances(theta.covariances, covariance_type, 2, 3)
    for value, reference in zip((*found, *([theta.df] if family == "student-t" else [])), right, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-10)
    totals = run.final.totals
    assert model.bound(totals, run.params) == pytest.approx(totals.evidence.log_likelihood, rel=1e-11)
    assert model.bound(totals, model.m_step(totals.stats, run.params)) > totals.evidence.log_likelihood


@pytest.mark.parametrize(
    ("noise_type", "shared_noise", "k"),
    [
        ("diag", False, 2),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("spherical", False, 2),
                ("diag", True, 2),
                ("spherical", True, 2),
                ("diag", False, 1),
                ("spherical", False, 1),
            )
        ),
    ],
)
def test_factor_analysers_equal_a_slow_reference(noise_type, shared_noise, k):
    """Rows beside their factors are Gaussian, of which the factors are never there: three regressions on these, and their noise, to 1e-10."""
    rng = np.random.default_rng(0)
    x = 3.0 * rng.normal(size=(2, 5))[np.arange(90) % 2] + rng.normal(size=(90, 2)) @ rng.normal(size=(2, 5))
    x, weight = with_gaps(x + 0.5 * rng.normal(size=(90, 5)), 0.3, rng), rng.uniform(0.5, 2.0, 90)
    model, params = started(x, k, family="factor", rank=2, noise_type=noise_type, shared_noise=shared_noise)
    with_factors = np.concatenate([x, np.full((90, 2), np.nan)], axis=1)
    for _ in range(3):
        theta = params.theta
        sigma = theta.loadings @ theta.loadings.swapaxes(1, 2) + theta.noise[:, :, None] * np.eye(5)
        across = theta.loadings.swapaxes(1, 2)
        wide = np.stack([np.block([[s, a.T], [a, np.eye(2)]]) for s, a in zip(sigma, across, strict=True)])
        means = np.concatenate([theta.means, np.zeros((k, 2))], axis=1)
        log_density, each, spread, _, _ = expected(with_factors, means, wide)
        joint = np.log(params.weights) + log_density
        resp = np.exp(joint - logsumexp(joint, axis=1)[:, None]) * weight[:, None]
        found = e_step(model, params, x, [0, 40, 90], weight)
        assert found.evidence.log_likelihood == pytest.approx(weight @ logsumexp(joint, axis=1), rel=1e-12)
        bound = model.bound(found.totals, params)
        assert bound == pytest.approx(found.evidence.log_likelihood, rel=1e-11)
        after = model.m_step(found.stats, params)
        left = np.empty((k, 5))
        for c in range(k):
            both = np.concatenate([each[:, c], np.ones((90, 1))], axis=1)
            second = (both * resp[:, c, None]).T @ both
            second[:7, :7] += np.einsum("n,nij->ij", resp[:, c], spread[:, c])
            slopes = np.linalg.solve(second[5:, 5:], second[5:, :5]).T
            np.testing.assert_allclose(after.theta.loadings[c], slopes[:, :2], rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(after.theta.means[c], slopes[:, 2], rtol=1e-10, atol=1e-10)
            left[c] = np.diagonal(second[:5, :5] - slopes @ second[5:, :5])
        noise = left.sum(axis=0) / resp.sum() if shared_noise else left / resp.sum(axis=0)[:, None]
        noise = noise.mean(axis=-1) if noise_type == "spherical" else noise
        np.testing.assert_allclose(after.theta.noise_variances, noise, rtol=1e-10)
        assert model.bound(found.totals, after) > bound
        imputed = model.component.imputed(theta, np.log(params.weights), x)
        right = np.einsum("nk,nkd->nd", resp / weight[:, None], each[:, :, :5])
        np.testing.assert_allclose(imputed, right, rtol=1e-10, atol=1e-10)
        params = after
    component, row = model.component, np.tile(np.where(np.arange(5) < 2, np.nan, x[0]), (20_000, 1))
    row[:, 2:] = np.nan_to_num(row[:, 2:])
    draw = np.zeros(20_000), rng.normal(size=(20_000, component.n_normal))  # of the first component
    drawn = component.imputed(theta, np.log(params.weights), row, draw)[:, :2]
    _, each, spread, _, _ = expected(row[:1], theta.means, sigma)
    scale = np.sqrt(np.diagonal(spread[0, 0])[:2])
    assert (np.abs(drawn.mean(axis=0) - each[0, 0, :2]) < 5 * scale / np.sqrt(20_000)).all()
    assert (np.abs(np.cov(drawn.T) - spread[0, 0][:2, :2]) < 0.06 * np.outer(scale, scale)).all()


@pytest.mark.parametrize(
    "covariance_type", ["full", *(pytest.param(each, marks=pytest.mark.slow) for each in TYPES if each != "full")]
)
def test_emissions_of_a_chain_equal_a_slow_reference(covariance_type):
    """All paths of sequences of four rows, one by one: log-likelihood, transitions and moments to 1e-10; the bound is tight."""
    x = rows(80)
    emission = {"family": "gaussian", "covariance_type": covariance_type, "reg_covar": 0.0}
    model, params = started(x, family="hmm", emission=emission)
    initial, transitions = np.array([0.3, 0.7]), np.array([[0.8, 0.2], [0.4, 0.6]])
    params = replace(params, start_probabilities=initial, transitions=transitions)
    wide = full_covariances(params.theta.covariances, covariance_type, 2, 3)
    log_density, each, spread, u, _ = expected(x, params.theta.means, wide)
    paths = [all_paths(log_density[i : i + 4], initial, transitions) for i in range(0, 80, 4)]
    found = e_step(model, params, x, [0, 12, 80], unit=4)
    assert found.evidence.log_likelihood == pytest.approx(sum(path["log"] for path in paths), rel=1e-12)
    assert model.bound(found.totals, params) == pytest.approx(found.evidence.log_likelihood, rel=1e-11)
    after = model.m_step(found.stats, params)
    resp = np.concatenate([path["states"] for path in paths])
    means, covariances = moments(resp, u, each, spread, covariance_type)
    np.testing.assert_allclose(after.theta.means, means, rtol=1e-10)
    found = full_covariances(after.theta.covariances, covariance_type, 2, 3)
    np.testing.assert_allclose(found, covariances, rtol=1e-10, atol=1e-10)
    pairs = sum(path["pairs"] for path in paths)
    np.testing.assert_allclose(after.transitions, pairs / pairs.sum(axis=1)[:, None], rtol=1e-10)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_rows_of_known_components_keep_them(covariance_type):
    """With missing entries too: soft counts are those of the labels, and the bound is the log-likelihood."""
    x, label = rows(), np.arange(120) % 2
    model, params = started(x, family="gaussian", covariance_type=covariance_type)
    found = model.e_step(params, Rows(x, label=label), KERNELS)
    np.testing.assert_allclose(found.stats.sum_w, [60.0, 60.0])
    bound = model.expected_log_joint(found.stats, params) + found.evidence.entropy
    assert bound == pytest.approx(found.evidence.log_likelihood, rel=1e-11)


def log_density(family: str, theta, x: np.ndarray) -> np.ndarray:
    """log p of each entry, (n, k, d), 0 where it is missing."""
    value = np.nan_to_num(x)[:, None]
    if family == "poisson":
        terms = value * np.log(theta.rates) - theta.rates - gammaln(value + 1)
    elif family == "bernoulli":
        terms = np.log(np.where(value == 1, theta.probabilities, 1 - theta.probabilities))
    else:
        table = np.log(np.where(theta.probabilities > 0, theta.probabilities, 1.0))
        terms = np.stack([table[:, j, np.nan_to_num(x[:, j]).astype(int)].T for j in range(x.shape[1])], axis=2)
    return np.where(np.isnan(x)[:, None], 0.0, terms)


@pytest.mark.parametrize("family", ["poisson", "bernoulli", "categorical"])
def test_independent_features_leave_missing_cells_out(family):
    """Three iterations: log-likelihoods and parameters from the cells that are there, column by column, to 1e-10."""
    rng = np.random.default_rng(0)
    kind = np.arange(90) % 2
    x = {
        "poisson": lambda: rng.poisson(np.array([[2.0, 9.0, 4.0], [8.0, 1.0, 4.0]])[kind]),
        "bernoulli": lambda: rng.random((90, 3)) < np.array([[0.2, 0.9, 0.5], [0.8, 0.1, 0.4]])[kind],
        "categorical": lambda: rng.integers(0, [2, 3, 4], (90, 3)) * (1 - kind[:, None]) + kind[:, None],
    }[family]()
    x = with_gaps(x.astype(float), 0.3, rng)
    model, params = started(x, family=family, concentration=1.5)
    for _ in range(3):
        theta = params.theta
        joint = np.log(params.weights) + log_density(family, theta, x).sum(axis=2)
        found = e_step(model, params, x, [0, 40, 90])
        assert found.evidence.log_likelihood == pytest.approx(logsumexp(joint, axis=1).sum(), rel=1e-12)
        resp = np.exp(joint - logsumexp(joint, axis=1)[:, None])
        bound = model.bound(found.totals, params)
        assert bound == pytest.approx(found.evidence.log_likelihood, rel=1e-12)
        after = model.m_step(found.stats, params)
        there, value = ~np.isnan(x), np.nan_to_num(x)
        counts, sums = resp.T @ there, resp.T @ value
        if family == "poisson":
            np.testing.assert_allclose(after.theta.rates, (sums + 0.5) / counts, rtol=1e-10)
        elif family == "bernoulli":
            np.testing.assert_allclose(after.theta.probabilities, (sums + 0.5) / (counts + 1.0), rtol=1e-10)
        else:
            each = np.stack([resp.T @ ((value == c) & there) for c in range(4)], axis=2)
            each += 0.5 * (np.arange(4) < np.array([2, 3, 4])[:, None])
            np.testing.assert_allclose(after.theta.probabilities, each / each.sum(axis=2, keepdims=True), rtol=1e-10)
        assert model.bound(found.totals, after) + model.log_prior(after) >= bound + model.log_prior(params)
        params = after


@pytest.mark.parametrize("family", ["poisson", "bernoulli", "categorical"])
def test_a_component_without_any_entry_of_a_feature_has_lengths(family):
    """Without a prior, what such a component says of the feature counts nothing: the other entries have the length of their own."""
    rng = np.random.default_rng(0)
    x, resp = (rng.random((60, 3)) < 0.5).astype(float), np.eye(2)[np.arange(60) % 2]
    x[::2, 0] = np.nan
    component = started(x, family=family, concentration=1.0)[0].component

    def change_squares(x: np.ndarray) -> float:
        all_of, some = (component.statistics(None, x[:n], resp[:n]) for n in (60, 15))
        theta = component.m_step(all_of, resp.sum(axis=0), None)
        return component.change_squares(some, resp[:15].sum(axis=0), all_of, resp.sum(axis=0), theta)[0]

    alone = x.copy()
    alone[1::2, 0] = np.nan
    others, of_the_feature = change_squares(alone), change_squares(np.where(np.arange(3) > 0, np.nan, x))
    assert others > 0 and of_the_feature > 0
    assert change_squares(x) == pytest.approx(others + of_the_feature, rel=1e-12)


@pytest.mark.parametrize(
    "family", ["gaussian", "student-t", "factor", "poisson", "bernoulli", "categorical", "columns"]
)
def test_the_same_bits_where_nothing_is_missing(family):
    """Statistics, parameters and labels of the model for missing entries are those of the model without."""
    x = (np.random.default_rng(0).random((300, 3)) < 0.4).astype(float)
    options = {
        "gaussian": {"reg_covar": 0.0},
        "student-t": {"reg_covar": 0.0},
        "factor": {"rank": 1},
        "columns": {"columns": {"0": "gaussian", "1": "bernoulli", "2": "poisson"}, "reg_covar": 0.01},
    }.get(family, {})
    if options:
        x[:, : 1 if family == "columns" else 3] += np.random.default_rng(1).normal(size=(300, 1))
    model, params = started(x, family=family, **options)
    plain = FAMILIES[family].model_validate({"family": family, "n_components": 2, **options})
    plain = plain.build(summary_of(sum_over(chunks_of(x, [0, 50, 300]), [ProfileJob("matrix", 50, 0)])[0], []), "soft")
    one, other = (fit(m, params, chunks_of(x, [0, 120, 300]), 3)[0] for m in (model, plain))
    for name, value in pack(other.params).arrays.items():
        assert pack(one.params).arrays[name].tobytes() == value.tobytes(), name
    assert one.log_likelihood == other.log_likelihood
    (_, here), *_ = model.assign(one.params, x, KERNELS)
    (_, there), *_ = plain.assign(other.params, x, KERNELS)
    assert here.score.tobytes() == there.score.tobytes()


def test_labels_of_many_components_are_those_of_highest_density():
    """Where most pairs of whole rows and components are left out, rows with missing entries have all of theirs."""
    rng = np.random.default_rng(0)
    means, label = 5.0 * rng.normal(size=(64, 48)), rng.integers(64, size=1000)
    x = means[label] + rng.normal(size=(1000, 48))
    x[::50, 0] = np.nan
    model = gaussian_mixture(64, np.zeros(48)).for_rows("missing")
    params = model.params(weights=np.full(64, 1 / 64), means=means, covariances=np.tile(np.eye(48), (64, 1, 1)))
    np.testing.assert_array_equal(assigned(model, params, x).label, label)
    np.testing.assert_array_equal(model.most_probable(params, x, KERNELS), label)


def test_the_profile_is_of_the_entries_that_are_there():
    """Means, variances and extremes of each feature; the covariance is positive semidefinite, in any chunking."""
    x = rows(200)
    found = sum_over(chunks_of(x, [0, 1, 77, 200]), [ProfileJob("matrix", 20, 0)])[0]
    np.testing.assert_allclose(found.mean, np.nanmean(x, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, np.nanvar(x, axis=0), rtol=1e-10)
    np.testing.assert_array_equal([found.low, found.high], [np.nanmin(x, axis=0), np.nanmax(x, axis=0)])
    assert found.n_missing == np.isnan(x).sum() and np.linalg.eigvalsh(found.covariance).min() > 0
    variances = sum_over(chunks_of(x, [0, 99, 200]), [ProfileJob("variances", 20, 0)])[0]
    np.testing.assert_allclose(variances.variance, found.variance, rtol=1e-12)


def test_columns_without_width_far_away_keep_their_digits():
    """Gaussian columns with missing entries, 1e6 from the mean of all rows: a variance of 1e-6 is that of the entries that are there."""
    rng = np.random.default_rng(0)
    x = with_gaps(np.where(np.arange(400) % 2, 1e6, -1e6)[:, None] + 1e-3 * rng.normal(size=(400, 2)), 0.3, rng)
    model, params = started(x, family="columns", columns={"0": "gaussian", "1": "gaussian"}, reg_covar=0.0)
    run = fit(model, params, chunks_of(x, [0, 150, 400]), 4)[0]
    for k, own in enumerate((x[::2], x[1::2])):
        np.testing.assert_allclose(run.params.theta.parts["gaussian"].covariances[k], np.nanvar(own, axis=0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", [{"family": "gaussian"}, {"family": "student-t"}, {"family": "factor", "rank": 1}])
def test_a_job_with_missing_entries(model: dict[str, Any], tmp_path: Path):
    """check, run, a stop, resume with the same bytes, predict, report; a row of nothing has no label; the search finds the clusters."""
    x = rows(600, 0.25)
    x[7] = np.nan
    np.save(tmp_path / "x.npy", x)
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy"), "bad_rows": "missing"},
        "preprocess": [{"kind": "standardize"}],
        "model": {**model, "n_components": [1, 2]},
        "fit": {"max_iter": 30, "tol": 1e-6},
        "select": {"heldout": 0.1},
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
    assert label[7] == -1
    own = np.delete(label == label[0], 7)
    assert max(own.mean(), 1 - own.mean()) < 0.6 and (own == np.delete(np.arange(600) % 2 == 0, 7)).mean() > 0.95
    warnings = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    said = " ".join(event.get("message", "") for event in warnings)
    assert "entries are missing" in said and "nothing but missing entries" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        FAMILIES[model["family"]].words.title.format(k=2) in page
        and ">nan<" not in page.lower()
        and '"nan' not in page.lower()
    )
    assert command("predict", tmp_path / "run", "--output", tmp_path / "new").code == 0
    opened = pipeline.open_estimator(tmp_path / "run")
    np.testing.assert_array_equal(opened.predict(np.delete(x, 7, axis=0)), np.delete(label, 7))


def test_a_model_of_whole_rows_predicts_rows_with_missing_entries(tmp_path):
    """predict with data.bad_rows: missing."""
    x = rows(200, 0.0)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "new.npy", rows(200, 0.3))
    data = {"source": "npy", "path": str(tmp_path / "x.npy")}
    run = pipeline.run(
        validate({"data": data, "model": {"n_components": 2}, "output": {"path": str(tmp_path / "run")}})
    )
    changed = [f"data.path={tmp_path}/new.npy", "data.bad_rows=missing"]
    found = zarr.open_group(pipeline.predict(run, changed, tmp_path / "new"), mode="r")["label"][:]
    assert (found == found[0]).mean() < 0.6 and ((found == found[0]) == (np.arange(200) % 2 == 0)).mean() > 0.95


def test_the_python_classes_take_missing_entries():
    """In memory and Dask; without `missing` NaN is refused; whole rows get today's parameters."""
    x = rows(400)
    mixture = pipeline.GaussianMixture(2, missing=True, random_state=0).fit(x)
    right = mixture.predict(x) == mixture.predict(x)[0]
    assert (right == (np.arange(400) % 2 == 0)).mean() > 0.95 and np.isfinite(mixture.score(x))
    lazy = pipeline.GaussianMixture(2, missing=True, random_state=0).fit(da.from_array(x, chunks=(150, 3)))
    np.testing.assert_array_equal(np.asarray(lazy.predict(da.from_array(x, chunks=(150, 3)))), lazy.predict(x))
    with pytest.raises(ValueError, match="NaN"):
        pipeline.GaussianMixture(2, random_state=0).fit(x)
    counts = with_gaps(np.random.default_rng(0).poisson(3.0, (200, 4)).astype(float), 0.2, np.random.default_rng(1))
    rates = pipeline.PoissonMixture(1, missing=True, random_state=0).fit(counts).rates_
    np.testing.assert_allclose(rates[0], np.nanmean(counts, axis=0), rtol=1e-9)
    whole = rows(200, 0.0)
    one, other = (
        pipeline.GaussianMixture(2, missing=m, init_params="k-means||", random_state=0) for m in (True, False)
    )
    assert one.fit(whole).means_.tobytes() == other.fit(whole).means_.tobytes()
    assert np.isfinite(one.partial_fit(x).means_).all()  # more rows, with missing entries
    with pytest.raises(ValueError, match="the earlier ones were whole"):
        pipeline.PoissonMixture(1, missing=True).fit(np.nan_to_num(counts)).partial_fit(counts)
    chain = pipeline.HiddenMarkovModel(2, missing=True, random_state=0).fit(whole)
    right = chain.predict(x) == chain.predict(x)[0]
    assert (right == (np.arange(400) % 2 == 0)).mean() > 0.95


def test_what_cannot_be_is_refused(tmp_path):
    """Families of whole rows, steps that mix features, noise, standard errors; inf; a feature that is never there."""
    missing = {"source": "npy", "path": "x.npy", "bad_rows": "missing"}
    for model in ("kmeans", "lda", "vmf"):
        with pytest.raises(
            InputError,
            match=r"needs whole rows.*bernoulli, categorical, columns, factor, gaussian, hmm, poisson, student-t",
        ):
            validate({"data": missing, "model": {"family": model}})
    units = {**missing, "units": "units.npy"}
    with pytest.raises(InputError, match="family hmm needs whole rows"):
        validate({"data": units, "model": {"family": "hmm", "emission": "vmf"}})
    assert validate({"data": units, "model": {"family": "hmm"}}).model.takes_missing
    with pytest.raises(InputError, match="pca and zca mix the features"):
        validate({"data": missing, "preprocess": [{"kind": "pca"}]})
    with pytest.raises(InputError, match=r"model\.noise needs whole rows"):
        validate({"data": missing, "model": {"noise": "uniform"}})
    with pytest.raises(InputError, match="standard errors are of whole rows"):
        validate({"data": missing, "output": {"standard_errors": True}})
    x = rows(50)
    for value, message in ((np.inf, "row 3 holds inf"), (np.nan, "feature 1 is missing in every row")):
        wrong = x.copy()
        wrong[3, 0] = 1.0
        wrong[3 if value == np.inf else slice(None), 1] = value
        wrong[np.isnan(wrong).all(axis=1), 0] = 1.0
        np.save(tmp_path / "x.npy", wrong)
        with pytest.raises(InputError, match=message):
            pipeline.run(
                validate(
                    {"data": {**missing, "path": str(tmp_path / "x.npy")}, "output": {"path": str(tmp_path / "run")}}
                ),
                overwrite=True,
            )
