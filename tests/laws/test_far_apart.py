"""Narrow clusters far apart, fill values and equal rows: the answer has its digits, against exact rational numbers."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.data.profile import ProfileJob, summary_of
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.clusters import reference
from pipeline.models.families.student_t import StudentT
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from tests.laws.common import TYPES, chunks_of, close, e_step, fit, gaussian_mixture, method, start, sum_over

METHODS = ["em", "auto", "incremental"]


def bursts(n: int = 200):
    """Two bursts of events, 1 s wide and 3.5 years apart, and whose rows are whose."""
    label = np.arange(n) % 2
    return (1.6e9 + np.array([0, 1.1e8])[label] + np.random.default_rng(0).normal(size=n))[:, None], label


def exact(x, label):
    """Means and variances of labelled rows of one feature, from rational numbers."""
    found = []
    for k in np.unique(label):
        rows = [Fraction(float(value)) for value in x[label == k, 0]]
        mean = sum(rows) / len(rows)
        found.append((float(mean), float(sum((row - mean) ** 2 for row in rows) / len(rows))))
    return np.array(found).T


def summary(x):
    """What the profile tells of rows."""
    profile = sum_over(chunks_of(x), [ProfileJob("matrix", 500, 0)])[0]
    return summary_of(profile, [])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_narrow_clusters_far_apart_keep_their_digits(covariance_type, name):
    """From starts in the clusters, with wide covariances: means and variances to rounding of the rows, no reset."""
    x, label = bursts()
    chunks = chunks_of(x, [0, 37, 90, 141, 200])
    model = gaussian_mixture(2, x.mean(axis=0).astype(np.float32).astype(np.float64), covariance_type)
    wide = model.component.start_at(x[:2], summary(x))
    params = model.params(weights=np.full(2, 0.5), **model.component.arrays(wide))
    run, events = fit(model, params, chunks, 12, 1e-12, method(name, chunks, n_blocks=2))
    means, variances = exact(x, label)
    expected = np.full(2, variances.mean()) if covariance_type == "tied" else variances
    assert not events
    close(run.params.theta.means[:, 0], means, 1e-15)
    close(np.broadcast_to(run.params.theta.covariances.ravel(), 2), expected + 1e-6, 1e-9)
    score = -0.5 * (1 + np.log(2 * np.pi * (expected + 1e-6))).mean() - np.log(2)
    close(run.final.evidence.log_likelihood / len(x), score, 1e-6)


def test_a_t_mixture_keeps_them_too():
    """Gaussian in all but name: at 1e6 degrees of freedom the scales are variances."""
    x, label = bursts()
    for covariance_type in TYPES:
        gaussian = gaussian_mixture(2, x.mean(axis=0), covariance_type).component
        fixed = (*gaussian.fixed, "df")
        model = Mixture(StudentT(**{**vars(gaussian), "fixed": fixed}, df=1e6))
        wide = model.component.start_at(x[:2], summary(x))
        params = model.params(weights=np.full(2, 0.5), **model.component.arrays(wide))
        run, events = fit(model, params, chunks_of(x, [0, 90, 200]), 8)
        variances = exact(x, label)[1]
        expected = np.full(2, variances.mean()) if covariance_type == "tied" else variances
        assert not events
        close(np.broadcast_to(run.params.theta.scales.ravel(), 2), expected, 1e-4)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
@pytest.mark.parametrize("far", [1e12, 1e20])
def test_fill_values_do_not_take_the_digits_of_other_rows(far, covariance_type):
    """Three of 403 rows are at 1e12 or 1e20: the other clusters are found as without them."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [200, 200, 3])
    x = (np.array([0.0, 30.0, far])[label] + np.array([1, 1, far / 1e3])[label] * rng.normal(size=403))[:, None]
    [model] = validate({"model": {"n_components": 3, "covariance_type": covariance_type}}).models(summary(x))
    arrays = {"weights": np.full(3, 1 / 3), "means": np.array([[3.0], [26.0], [far]])}
    shape = model.fields["covariances"].shape({"component": 3, "feature": 1, "feature_2": 1})
    squares = np.array([1.0, 1.0, (far / 1e3) ** 2]).reshape(shape)
    params = model.params_from_arrays({**arrays, "covariances": squares})
    run, events = fit(model, params, chunks_of(x, [0, 150, 403]), 20)
    means, variances = exact(x, label)
    assert not events
    close(run.params.theta.means[:, 0], means, 1e-13)
    close(run.params.theta.covariances.ravel() / variances, 1.0 + 1e-6 / variances, 1e-9)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_a_quarter_of_all_rows_equal_is_a_cluster(covariance_type):
    """Zero-inflated rows: one component is at 0 with a variance of reg_covar; few equal rows are still a collapse."""
    rng, label = np.random.default_rng(0), np.arange(200) % 4
    x = np.array([0.0, 10, 20, 30])[label][:, None] + rng.normal(size=(200, 2))
    x[label == 0] = 0.0
    model = gaussian_mixture(4, x.mean(axis=0), covariance_type)
    params = model.m_step(model.label_statistics(x, label), None)
    run, events = fit(model, params, chunks_of(x), 10)
    assert not events
    counts = model.counts(run.final.stats)
    assert counts[0] == 50 and not model.collapsed(run.params, counts)
    close(run.params.theta.means[0], np.zeros(2), 1e-15)
    close(np.max(run.params.theta.covariances[0]), 1e-6, 1e-9)
    few = np.where(np.arange(4) == 0, 10.0, counts)
    assert [k for k, _ in model.collapsed(run.params, few)] == [0]


def test_moments_about_different_points_add():
    """Of two parts of the rows about points of their own, and about the shift: the moments of all rows, times a number too."""
    rng = np.random.default_rng(0)
    for covariance_type in TYPES:
        x = np.repeat([[0.0, 0, 0], [100, 50, 25]], 30, axis=0) + rng.normal(size=(60, 3))
        model = gaussian_mixture(2, np.zeros(3), covariance_type)
        params = model.m_step(model.label_statistics(x, np.arange(60) // 30), None)
        theta = params.theta

        def about(by, part, params=params, model=model):
            return e_step(model, replace(params, theta=replace(params.theta, by=by)), part).stats

        whole = about(None, x)
        for first, second in [(theta.means, theta.means + 0.5), (theta.means, None), (None, theta.means)]:
            total = about(first, x[:25]) + about(second, x[25:])
            found = model.m_step(3.0 * total, params).theta
            expected = model.m_step(whole, params).theta
            close(found.means, expected.means, 1e-12)
            close(found.covariances, expected.covariances, 1e-10)
            close(model.expected_log_joint(total, params), model.expected_log_joint(whole, params), 1e-10)


@pytest.mark.parametrize(("dtype", "far"), [("float32", 1e6), ("float32", 1e7), ("float64", 1e12), ("float64", 1e20)])
def test_labels_of_k_means_are_those_of_its_inertia(dtype, far):
    """Clusters 10 apart and three rows far away: each row's label is its exactly nearest centre, whatever the reference."""
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0.0], [10.0, 10.0], [far, far]])
    x = (centers[np.repeat([0, 1, 2], [60, 60, 3])] + rng.normal(0, 0.5, (123, 2))).astype(dtype)
    squares = [
        [sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(row, c, strict=True)) for c in centers]
        for row in x
    ]
    nearest = np.array([min(range(3), key=row.__getitem__) for row in squares])
    inertia = float(sum(min(row) for row in squares))
    for shift in (np.zeros(2), x.mean(axis=0, dtype=np.float64), centers.mean(axis=0)):
        label, squared = KERNELS.nearest(x, centers, shift)
        assert (label == nearest).all()
        close(squared.sum(), inertia, 1e-12)
        sums = KERNELS.lloyd_pass(x, None, centers, shift)
        assert (sums.sum_w == np.bincount(nearest)).all()
        close(sums.inertia, inertia, 1e-12)


def test_k_means_is_right_about_a_reference_among_the_rows():
    """The reference point is the mean, but among most rows where fill values have drawn the mean away."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(500, 2)), 10 + rng.normal(size=(500, 2))])
    assert (reference(summary(x)) == summary(x).mean).all()
    filled = np.concatenate([x, np.full((3, 2), 1e20)])
    known = summary(filled)
    assert (np.abs(reference(known)) < 12).all()
    model = Lloyd(3, reference(known))
    [params] = start(model, "k-means||", 1, 0, known, chunks_of(filled))
    run, _ = fit(model, params, chunks_of(filled), 20)
    label = np.repeat([0, 1, 2], [500, 500, 3])
    expected = [filled[label == k].mean(axis=0) for k in range(3)]
    close(run.params.centers[np.argsort(run.params.centers[:, 0])], expected, 0.2)


@given(
    arrays(
        np.float64, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=st.sampled_from([0.0, 1.0, 2.0, 1e8])
    ),
    st.sampled_from([0.0, 1.0, 1e7, 1e13]),
)
def test_the_mean_is_taken_where_it_is_among_the_rows(sample, shift):
    """Whether quantiles are formed or not: the mean unless it is 1e5 ranges of nine tenths of the rows from their median."""
    mean = sample.mean(axis=0) + shift
    low, middle, high = np.quantile(sample, [0.05, 0.5, 0.95], axis=0)
    far = ((np.abs(mean - middle) > 1e5 * (high - low)) & (high > low)).any()
    found = reference(SimpleNamespace(mean=mean, sample=SimpleNamespace(x=sample), n_missing=0))
    np.testing.assert_array_equal(found, middle if far else mean)
