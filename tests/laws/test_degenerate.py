"""Odd data: every run ends with finite numbers, the same ones each time, and says what happened; or refuses in words."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import KMeans
from pipeline.arrays.rows import Rows
from pipeline.config import Preprocess
from pipeline.data.chunks import Chunks
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.clusters import MAX_RESETS
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from tests.laws.common import (
    EPS,
    TYPES,
    ArraySource,
    chunks_of,
    close,
    examples,
    fit,
    gaussian_mixture,
    multinomial_mixture,
    same_bits,
    start,
    sum_over,
)
from tests.problems import seeds

INITS = ["k-means||", "k-means++", "random", "near-mean"]


def profiled(x, weight=None):
    """A checked profile of rows in memory."""
    scatter = "none" if sp.issparse(x) else "matrix"
    profile = sum_over(chunks_of(x, None, weight), [ProfileJob(scatter, 500, 0)])[0]
    profile.check("error")
    return profile


def whole_job(make, x, init, weight=None, n_iter=15):
    """Profile, start and fit, as the workflow does; the run and its events."""
    known = summary_of(profiled(x, weight), [])
    model = make(known)
    chunks = chunks_of(x, None, weight)
    [params] = start(model, init, 1, 0, known, chunks)
    return fit(model, params, chunks, n_iter)


def is_sound(run, events, k):
    """Finite parameters and history, weights that sum to 1, at most three resets done for each component."""
    for name, value in run.model.arrays(run.params).items():
        assert np.isfinite(np.exp(value) if name == "log_prob" else value).all(), name
        if name == "weights":
            close(value.sum(), 1.0, 1e-12)
            assert (value >= 0).all()
    for entry in run.history:
        assert np.isfinite(entry.objective)
        assert (entry.traced["n_effective"] >= 0).all()
    assert np.isfinite(run.objective)
    done = np.bincount([e.reset.component for e in events if e.reset.done], minlength=k)
    if isinstance(run.model, Mixture):
        assert (done <= MAX_RESETS).all()
    assert all(e.reset.reason for e in events)


@st.composite
def odd_rows(draw):
    """(rows, k) that are few, repeated, constant in some features, or on a line."""
    n, d = draw(st.integers(1, 19), label="n"), draw(st.integers(1, 4), label="d")
    numbers = hnp.arrays(np.int64, (n, d), elements=st.integers(-3000, 3000), fill=st.nothing())
    x = draw(numbers) / 1000 * 10.0 ** draw(st.integers(-3, 3)) + 10.0 ** draw(st.integers(-2, 3))
    if draw(st.integers(0, 4), label="few distinct rows") > 2:
        x = x[np.array(draw(st.lists(st.integers(0, max(0, n // 4 - 1)), min_size=n, max_size=n)))]
    if draw(st.integers(0, 9), label="a constant feature") > 6:
        x[:, draw(st.integers(0, d - 1))] = 0.1
    if draw(st.integers(0, 9), label="all on one line") > 7:
        x[:] = x[:, :1]
    if draw(st.integers(0, 9), label="one row") > 8:
        x[:] = x[0]
    return x, draw(st.integers(1, n), label="k")


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("init", INITS)
@examples(20)
@given(rows=odd_rows(), assignment=st.sampled_from(["soft", "hard"]), weighted=st.integers(0, 4))
def test_odd_rows_end_in_a_sound_mixture(covariance_type, init, rows, assignment, weighted):
    """K up to N, repeated rows, constant features, lines: no NaN, no warning, the same bits when run again."""
    x, k = rows
    weight = np.where(np.arange(len(x)) % 3 == 1, 0.0, 1.5) if weighted == 4 else None
    if weight is not None:
        k = min(k, int((weight > 0).sum()))

    def make(known):
        return gaussian_mixture(k, known.mean, covariance_type, assignment=assignment)

    run, events = whole_job(make, x, init, weight)
    is_sound(run, events, k)
    same_bits(whole_job(make, x, init, weight)[0].params, run.params)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(60)
@given(rows=odd_rows(), init=st.sampled_from(INITS))
def test_without_reg_covar_odd_rows_are_fitted_or_refused(covariance_type, rows, init):
    """reg_covar = 0 on singular data: a sound fit, or an InputError that says what to raise or remove."""
    x, k = rows
    try:
        run, events = whole_job(lambda known: gaussian_mixture(k, known.mean, covariance_type, reg_covar=0.0), x, init)
    except InputError as error:
        assert "positive definite" in str(error) and "reg_covar" in str(error)
        return
    is_sound(run, events, k)


@pytest.mark.parametrize("init", INITS)
@examples(100)
@given(rows=odd_rows())
def test_odd_rows_end_in_sound_centres(init, rows):
    """K-means on the same rows: finite centres among the rows' range, never at an origin outside of it."""
    x, k = rows
    run, events = whole_job(lambda known: Lloyd(k, known.mean, float(known.variance.mean())), x, init)
    is_sound(run, events, k)
    if init != "near-mean":
        slack = 1e-9 * np.abs(x).max()
        assert (run.params.centers >= x.min(axis=0) - slack).all()
        assert (run.params.centers <= x.max(axis=0) + slack).all()
    if k >= len(np.unique(x, axis=0)) and init in ("k-means||", "k-means++"):
        assert -run.objective <= 1e-20 * (1 + np.abs(x).max() ** 2)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("concentration", [1.0, 1.1])
@examples(60)
@given(most=st.sampled_from([1, 5, 80]), sparse=st.booleans(), data=st.data())
def test_odd_counts_end_in_sound_topics(init, concentration, most, sparse, data):
    """Empty documents, unused words, K up to N, sparse or dense: finite topics, or a document named and refused."""
    n, v = data.draw(st.integers(1, 19), label="n"), data.draw(st.integers(1, 7), label="v")
    counts = data.draw(hnp.arrays(np.int64, (n, v), elements=st.integers(0, most), fill=st.nothing()))
    counts[:, data.draw(hnp.arrays(bool, v, elements=st.integers(0, 4).map(lambda i: i == 4), fill=st.nothing()))] = 0
    k = data.draw(st.integers(1, n), label="k")
    rows = sp.csr_array(counts) if sparse else counts.astype(np.float64)
    try:
        run, events = whole_job(lambda known: multinomial_mixture(k, v, concentration), rows, init)
    except InputError as error:
        assert concentration == 1.0 and "concentration" in str(error)
        return
    is_sound(run, events, k)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_as_many_components_as_rows_ends(covariance_type):
    """K = N: every component is reset three times at most, then stays, and says so with done = False."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    run, events = whole_job(lambda known: gaussian_mixture(6, known.mean, covariance_type), x, "k-means||", n_iter=40)
    is_sound(run, events, 6)
    assert len(run.history) == 40 or run.stop_reason.startswith("converged")
    if covariance_type != "tied":
        for component in {event.reset.component for event in events}:
            mine = [event.reset.done for event in events if event.reset.component == component]
            assert mine == sorted(mine, reverse=True), "once it stays, it stays"


def test_very_many_empty_centres_move_in_more_than_one_iteration():
    """Of 100 empty centres in 2,100 features 64 move at once, the others in the next iteration: none stays empty."""
    x = np.random.default_rng(0).normal(size=(260, 2100)).astype(np.float32)
    start = np.concatenate([x[:20], 1e3 + np.arange(100.0)[:, None] + np.zeros(2100)])
    given = {"init": start, "n_init": 1, "method": "em", "tol": 0}
    with pytest.warns(UserWarning, match="84"):
        KMeans(120, **given, max_iter=1).fit(x)
    assert len(np.unique(KMeans(120, **given, max_iter=2).fit(x).labels_)) == 120


def test_an_empty_component_with_fixed_covariances_is_reset():
    """Means alone are learned and one starts beyond reach: it is reset and takes part."""
    x = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0], [9, 9]], 100, axis=0)
    model = gaussian_mixture(2, x.mean(axis=0), "spherical", fixed=("covariances",))
    arrays = {"weights": [0.5, 0.5], "means": [[4.0, 4.0], [1e4, 1e4]], "covariances": [1.0, 1.0]}
    run, events = fit(model, model.params_from_arrays(arrays), chunks_of(x), 30)
    assert [(event.iteration, event.reset.component, event.reset.done) for event in events] == [(0, 1, True)]
    close(np.sort(run.params.theta.means[:, 0]), [x[:100, 0].mean(), x[100:, 0].mean()], 0.01)


def unit(model):
    """Parameters at the reference point with unit covariances: an M-step from there mends nothing."""
    rows = np.tile(model.shift, (model.n_components, 1))
    return model.params(weights=np.full(2, 0.5), **model.component.arrays(model.component.start_at(rows, None)))


def test_a_cluster_of_equal_rows_collapses_even_without_reg_covar():
    """Ten copies of a row leave a width of rounding only: that is a collapse, not an infinite likelihood."""
    rng = np.random.default_rng(0)
    for d in (1, 2, 3):
        copies = np.tile(rng.normal(size=d) * 100, (10, 1))
        x = np.concatenate([rng.normal(size=(200, d)), copies])
        for covariance_type in ("full", "diag", "spherical"):
            model = gaussian_mixture(2, x.mean(axis=0), covariance_type, reg_covar=0.0)
            new = model.m_step(model.label_statistics(x, np.repeat([0, 1], [200, 10])), unit(model))
            assert [k for k, _ in model.collapsed(new, np.array([200.0, 10.0]))] == [1]


def test_centres_emptied_by_relocation_are_never_lost():
    """Weighted rows leave a cluster one by one until rounding is all that is left: no centre at 0 / 0 or 1e-17 / 1e-17."""
    x = np.array([[0.0], [0.3], [100.0], [100.7], [101.9]])
    weight = np.array([1.0, 1.0, 0.1, 0.2, 0.3])
    model = Lloyd(5, np.array([20.0]))
    arrays = {"centers": [[0.1], [60.0], [1e5], [2e5], [3e5]]}
    run, events = fit(model, model.params_from_arrays(arrays), chunks_of(x, None, weight), 20)
    is_sound(run, events, 5)
    assert ((run.params.centers >= 0) & (run.params.centers <= 101.9)).all()
    assert -run.objective <= 1e-20


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", ["kmeans", *TYPES])
@examples(25)
@given(seed=seeds, power=st.integers(-320, 307))
def test_sizes_near_the_ends_of_a_dtype_are_refused_or_right(family, dtype, seed, power):
    """Rows of size 10^power: the answer of the same rows at size 1, scaled; or the error of the profile."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(60, 2)) + np.repeat([[0.0, 0], [9, 9]], 30, axis=0)
    if dtype == "float32":
        power = power % 80 - 42
    plain = np.round(plain * 64) / 64
    with np.errstate(over="ignore", under="ignore"):
        size = 10.0**power
        x = (plain * size).astype(dtype)
    if not np.isfinite(x).all() or size == 0:
        return
    back = x.astype(np.float64) / size  # what is left of the rows in that dtype

    def fitted(rows):
        if family == "kmeans":
            return whole_job(lambda known: Lloyd(2, known.mean, float(known.variance.mean())), rows, "k-means++")
        return whole_job(
            lambda known: gaussian_mixture(2, known.mean, family, reg_covar=0.0), rows, "k-means++", n_iter=5
        )

    try:
        run, events = fitted(x)
    except InputError as error:
        assert "flow" in str(error) and "Rescale" in str(error)
        assert not 1e-12 < size < 1e12
        return
    expected, _ = fitted(back.astype(dtype) if size > 1e-30 else back)
    is_sound(run, events, 2)
    here, there = (np.sort(one.model.arrays(one.params)[one.model.location][:, 0]) for one in (run, expected))
    close(here / size, there, 1e-9 if dtype == "float64" else 2e-5)


def test_overflow_is_an_error_and_not_a_warning():
    """Values whose squares overflow are refused by the profile, chunk by chunk, without a RuntimeWarning."""
    for values in ([1e200, -1e200], [1e308, -1e308], [1e155, 0.0]):
        x = np.repeat(np.array(values), 50)[:, None]
        for bounds in (None, [0, 50, 100], [0, 10, 100]):
            profile = sum_over(chunks_of(x, bounds), [ProfileJob("matrix", 10, 0)])[0]
            with pytest.raises(InputError, match="overflow"):
                profile.check("error")


def test_bad_rows_are_absent():
    """Rows with NaN or inf, dropped: the fit is that of the other rows, and their numbers keep their meaning."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2)) + np.repeat([[0.0, 0], [9, 9], [0, 9]], 30, axis=0)
    spoilt = x.copy()
    spoilt[[4, 50]] = [[np.nan, 1.0], [np.inf, -np.inf]]
    chunks = Chunks(ArraySource(spoilt, [0, 33, 90]))
    loaded = [chunks.load(i) for i in range(2)]
    kept = np.delete(x, [4, 50], axis=0)
    for model in (Lloyd(3, kept.mean(axis=0)), gaussian_mixture(3, kept.mean(axis=0))):
        arrays = {"centers": kept[[0, 40, 80]], "means": kept[[0, 40, 80]], "weights": np.full(3, 1 / 3)}
        params = model.params_from_arrays({**arrays, "covariances": np.stack([np.eye(2)] * 3)})
        dropped, _ = fit(model, params, loaded, 20)
        alone, _ = fit(model, params, chunks_of(kept), 20)
        close(*(model.arrays(run.params)[model.location] for run in (dropped, alone)), 1e-12)
        assert len(dropped.history) == len(alone.history)
        assert not set(dropped.final.attached["representatives"].row.ravel().tolist()) & {4, 50}


@examples(60)
@given(rows=odd_rows(), kind=st.sampled_from(["standardize", "pca", "zca", "center"]), whiten=st.booleans())
def test_preprocessing_of_odd_rows_is_finite_or_refused(rows, kind, whiten):
    """Constant features, lines and repeated rows: finite rows in the models' space, or an InputError."""
    x, _ = rows
    options = {"whiten": whiten} if kind == "pca" else {}
    try:
        known = summary_of(profiled(x), [Preprocess.model_validate({"kind": kind, **options})])
    except InputError as error:
        assert "vary" in str(error)
        return
    mapped = known.affine.apply(x)
    assert np.isfinite(mapped).all()
    assert np.isfinite(known.mean).all() and np.isfinite(known.covariance).all()
    # A mean is known to some eps of the values, and the map stretches what it is off by.
    off = 64 * EPS * np.abs(x).max() * np.abs(known.affine.full_matrix()).sum(axis=0).max()
    assert np.abs(mapped.mean(axis=0) - known.mean).max() <= off + 1e-9 * np.abs(mapped).max()


def test_a_profile_of_no_weight_is_refused():
    """All weights 0: the error says that no row counts."""
    x = np.ones((4, 2))
    profile = ProfileJob("matrix", 3, 0)(Rows(x, np.zeros(4)), KERNELS)
    with pytest.raises(InputError, match="positive weight"):
        profile.check("error")
