"""The Python API: scikit-learn's conventions, its results from its seeds, and the same results for every kind of X."""

from __future__ import annotations

import pickle
import warnings

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.cluster
import sklearn.mixture
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

import pipeline
from pipeline import GaussianMixture, KMeans, MultinomialMixture
from pipeline.estimators.runs import as_sklearn
from pipeline.workflow import run
from tests.jobs import blobs, job
from tests.laws.common import TYPES, close, examples
from tests.problems import count_problem, seeds

RANDOM_ROWS = (
    "its start is drawn from rows, of which a repeated one is two; scikit-learn expects its own KMeans to fail it too"
)
NO_CLASSIFIER = "the check asks a classifier's tags of whatever has predict_proba and takes sparse rows"
EXPECTED = {
    GaussianMixture: {"check_sample_weight_equivalence_on_dense_data": RANDOM_ROWS},
    KMeans: {
        "check_sample_weight_equivalence_on_dense_data": RANDOM_ROWS,
        "check_sample_weight_equivalence_on_sparse_data": RANDOM_ROWS,
    },
    MultinomialMixture: {
        "check_sample_weight_equivalence_on_dense_data": RANDOM_ROWS,
        "check_sample_weight_equivalence_on_sparse_data": RANDOM_ROWS,
        "check_estimator_sparse_array": NO_CLASSIFIER,
        "check_estimator_sparse_matrix": NO_CLASSIFIER,
    },
}
ALL = [GaussianMixture, KMeans, MultinomialMixture]


@pytest.fixture(autouse=True)
def unconverged():
    """Few iterations are enough here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def rows(n: int = 300) -> np.ndarray:
    """Blobs, as counts of 0 or more."""
    return np.round(np.abs(blobs(n)))


def small(kind: type, **changes: object):
    """An estimator of three components."""
    return kind(3, random_state=0, max_iter=10, **changes)


# --- conventions


@pytest.mark.full
@pytest.mark.parametrize("kind", ALL)
def test_conventions_of_scikit_learn(kind):
    """Its own checks of an estimator, but for those that cannot hold."""
    estimator = kind(2, n_init=2, max_iter=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = check_estimator(estimator, expected_failed_checks=EXPECTED[kind], on_fail=None, on_skip=None)
    failed = {each["check_name"] for each in outcomes if each["exception"] and each["status"] != "skipped"}
    assert failed == set(EXPECTED[kind]) and len(outcomes) > 40


@pytest.mark.parametrize("kind", ALL)
def test_a_pickled_estimator_is_the_same_and_a_clone_is_not_fitted(kind):
    """Labels and scores after a round trip; parameters alone after cloning."""
    x = rows()
    fitted = small(kind).fit(x)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
    assert again.score(x) == fitted.score(x)
    assert clone(fitted).get_params() == fitted.get_params() and not hasattr(clone(fitted), "n_iter_")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tol": -1.0}, "tol"),
        ({"n_init": 0}, "n_init"),
        ({"method": "annealing"}, "method"),
        ({"max_iter": -1}, "max_iter"),
    ],
)
def test_a_parameter_that_cannot_be_is_a_value_error_that_names_it(kind, changes, message):
    """scikit-learn's convention: when fitted, not when made."""
    with pytest.raises(ValueError, match=message):
        small(kind).set_params(**changes).fit(rows())


# --- equal to scikit-learn


@given(seeds, st.sampled_from(TYPES))
@examples(12)
def test_the_same_random_state_gives_scikit_learns_mixture(seed, covariance_type):
    """Starts, iterations and results, and what is computed of other rows."""
    x, y = blobs(250, 3, seed % 1000), blobs(40, 3, seed % 1000 + 1)
    asked = {"covariance_type": covariance_type, "random_state": seed % 2**31, "max_iter": 40}
    ours = GaussianMixture(3, **asked).fit(x)
    theirs = sklearn.mixture.GaussianMixture(3, **asked).fit(x)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        close(getattr(ours, name), getattr(theirs, name), 1e-7, name)
    np.testing.assert_array_equal(ours.predict(y), theirs.predict(y))
    close(ours.predict_proba(y), theirs.predict_proba(y), 1e-6, "responsibilities")
    for name in ("score", "aic", "bic", "score_samples"):
        close(np.asarray(getattr(ours, name)(y)), np.asarray(getattr(theirs, name)(y)), 1e-6, name)
    assert ours.n_iter_ == theirs.n_iter_


def test_a_generator_as_random_state_is_used_as_scikit_learn_uses_it():
    """It is drawn from by the start alone, restart after restart."""
    x = blobs(250, 3)
    for ours, theirs in ((GaussianMixture, sklearn.mixture.GaussianMixture), (KMeans, sklearn.cluster.KMeans)):
        found, wanted = (kind(4, random_state=np.random.RandomState(7), n_init=1).fit(x) for kind in (ours, theirs))
        np.testing.assert_array_equal(found.predict(x), wanted.predict(x))
        assert found.n_iter_ == wanted.n_iter_


@given(seeds, st.sampled_from(["k-means++", "random"]), st.booleans(), st.booleans())
@examples(16)
def test_the_same_random_state_gives_scikit_learns_k_means(seed, init, weighted, sparse):
    """Labels, centres, inertia, iterations and distances, of dense and sparse rows."""
    x = blobs(250, 4, seed % 1000)
    weight = np.random.default_rng(seed).uniform(0.1, 2.0, len(x)) if weighted else None
    asked = {"init": init, "n_init": 1, "random_state": seed % 2**31}
    theirs = sklearn.cluster.KMeans(4, **asked).fit(x, sample_weight=weight)
    given_rows = sp.csr_array(x) if sparse else x
    if sparse:  # it draws other rows where x is not centred
        asked = {"init": theirs.cluster_centers_, "n_init": 1}
        theirs = sklearn.cluster.KMeans(4, **asked).fit(x, sample_weight=weight)
    ours = KMeans(4, **asked).fit(given_rows, sample_weight=weight)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    close(ours.cluster_centers_, theirs.cluster_centers_, 1e-9, "centres")
    assert ours.n_iter_ == theirs.n_iter_ and ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    close(ours.transform(given_rows), theirs.transform(x), 1e-6, "distances")
    assert ours.score(x, sample_weight=weight) == pytest.approx(theirs.score(x, sample_weight=weight), rel=1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_there_and_back(covariance_type):
    """to_sklearn predicts the same, and from_sklearn of it is the same estimator."""
    x = blobs()
    ours = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(x)
    theirs, back = ours.to_sklearn(), GaussianMixture.from_sklearn(ours.to_sklearn())
    assert type(theirs) is sklearn.mixture.GaussianMixture
    close(theirs.score_samples(x), ours.score_samples(x), 1e-8, "score_samples")
    np.testing.assert_array_equal(back.score_samples(x), ours.score_samples(x))
    assert back.get_params() == ours.get_params()


def test_there_and_back_for_k_means_and_counts():
    """The same labels; of counts, the classifier with that rule."""
    x = rows()
    ours = small(KMeans).fit(x)
    np.testing.assert_array_equal(ours.to_sklearn().predict(x), ours.predict(x))
    np.testing.assert_array_equal(KMeans.from_sklearn(ours.to_sklearn()).predict(x), ours.predict(x))
    counts = small(MultinomialMixture).fit(x)
    close(counts.to_sklearn().predict_proba(x), counts.predict_proba(x), 1e-9, "responsibilities")


# --- kinds of X


@pytest.mark.parametrize("kind", ALL)
def test_a_dask_array_gives_lazy_results_with_its_chunks(kind):
    """Chunks of any size, an empty one and several of features among them: the results of the rows themselves."""
    x = rows()
    lazy = da.from_array(x, chunks=((120, 0, 130, 50), (2, 1)))
    start = {"init": x[:3]} if kind is KMeans else {"init_params": "random"}
    fitted = small(kind, **start).fit(lazy)
    labels = fitted.predict(lazy)
    assert (
        isinstance(labels, da.Array)
        and labels.chunks == ((120, 0, 130, 50),)
        and labels.dtype == fitted.predict(x).dtype
    )
    np.testing.assert_array_equal(labels.compute(), fitted.predict(x))
    wide = fitted.transform if kind is KMeans else fitted.predict_proba
    assert wide(lazy).chunks == ((120, 0, 130, 50), (3,))
    np.testing.assert_allclose(wide(lazy).compute(), wide(x), rtol=1e-12)
    assert fitted.score(lazy) == pytest.approx(fitted.score(x), rel=1e-12)
    alone = small(kind, **start).fit(da.from_array(x, chunks=(300, 3)))
    assert alone.score(x) == pytest.approx(fitted.score(x), rel=1e-9)


def test_a_dask_array_uses_the_current_client_and_gives_the_same_bits():
    """On workers of a client as on threads, persisted or not."""
    from distributed import Client, get_task_stream

    lazy = da.from_array(blobs(900), chunks=(100, 3))
    alone = GaussianMixture(3, init_params="random", random_state=0, max_iter=5).fit(lazy)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
        for x in (lazy, lazy.persist()):
            with get_task_stream(client) as ran:
                fitted = clone(alone).fit(x)
            np.testing.assert_array_equal(fitted.means_, alone.means_)
            assert fitted.lower_bound_ == alone.lower_bound_
            assert len(ran.data) > 9 * 6  # blocks and passes: it was there that they were computed


@pytest.mark.parametrize("lazy", [False, True])
def test_an_xarray_gives_named_results(lazy):
    """The row dimension and its coordinates; feature names are remembered, and compared."""
    x = rows()
    named = xr.DataArray(
        da.from_array(x, chunks=(100, 3)) if lazy else x,
        dims=("time", "channel"),
        coords={"time": np.arange(300) * 2, "channel": ["red", "green", "blue"]},
    )
    fitted = GaussianMixture(3, random_state=0, init_params="random").fit(named)
    assert fitted.feature_names_in_.tolist() == ["red", "green", "blue"]
    labels, shares = fitted.predict(named), fitted.predict_proba(named)
    assert labels.dims == ("time",) and (labels.time == named.time).all() and shares.dims == ("time", "component")
    assert (labels.chunks is not None) == lazy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows without names
        np.testing.assert_array_equal(labels.values, fitted.predict(x))
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(named.assign_coords(channel=["cyan", "magenta", "yellow"]))


def test_counts_stay_sparse():
    """The same mixture from sparse rows as from dense ones, and from weights as from repeated rows."""
    x = count_problem(3, n=100)["counts"]
    start = small(MultinomialMixture).fit(x)
    again = MultinomialMixture(
        3, max_iter=10, weights_init=start.weights_, feature_log_prob_init=start.feature_log_prob_
    )
    dense, sparse = clone(again).fit(x), clone(again).fit(sp.csr_matrix(x))
    np.testing.assert_allclose(sparse.feature_log_prob_, dense.feature_log_prob_, rtol=1e-12)
    twice = clone(again).fit(np.repeat(x, 2, axis=0))
    close(clone(again).fit(x, sample_weight=2.0).feature_log_prob_, twice.feature_log_prob_, 1e-9, "weight 2")
    np.testing.assert_array_equal(sparse.predict(sp.csr_array(x)), dense.predict(x))


def test_k_means_refuses_what_it_cannot_do():
    """An algorithm that it does not know, and a callable that would need all of a Dask array."""
    with pytest.raises(ValueError, match="algorithm"):
        small(KMeans, algorithm="hamerly").fit(rows())
    with pytest.raises(ValueError, match="callable"):
        small(KMeans, init=lambda x, k, random_state: x[:k]).fit(da.from_array(rows(), chunks=(100, 3)))


@pytest.mark.parametrize("kind", [GaussianMixture, MultinomialMixture])
def test_a_warm_start_goes_on(kind):
    """Ten iterations, or two and eight: the same parameters."""
    x, start = rows(), {"init_params": "random", "tol": 0.0}
    whole = small(kind, **start).fit(x)
    parts = small(kind, **start).set_params(max_iter=2, warm_start=True).fit(x).set_params(max_iter=8).fit(x)
    close(parts.weights_, whole.weights_, 1e-9, "weights")
    assert parts.lower_bound_ == pytest.approx(whole.lower_bound_, rel=1e-12)


def test_samples_have_the_moments_of_the_mixture():
    """Of 20,000 rows, whatever the shape; and counts sum to what was asked for."""
    x = blobs(400)
    for covariance_type in TYPES:
        fitted = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(x)
        drawn, component = fitted.sample(20_000)
        assert drawn.shape == (20_000, 3) and np.bincount(component, minlength=3) == pytest.approx(
            20_000 * fitted.weights_, rel=0.1
        )
        close(drawn.mean(axis=0), fitted.weights_ @ fitted.means_, 0.1, "mean")
        assert fitted.score(drawn) == pytest.approx(fitted.score(x), abs=0.1)
    counts, _ = small(MultinomialMixture).fit(rows()).sample(50, n_counts=17)
    assert sp.issparse(counts) and (counts.sum(axis=1) == 17).all()


def test_the_default_job_of_the_command_ends_no_lower():
    """method auto searches for its start."""
    x = blobs(400, 2)
    em = GaussianMixture(5, random_state=0).fit(x)
    auto = GaussianMixture(5, random_state=0, method="auto").fit(x)
    assert auto.lower_bound_ > em.lower_bound_ - 1e-3


# --- runs and exports


@pytest.mark.parametrize("kind", ["gaussian", "pca", "kmeans", "multinomial"])
def test_the_estimator_of_a_run_and_its_exports_give_the_runs_labels(tmp_path, kind):
    """Also of preprocessed rows; in ONNX, in scikit-learn's classes alone, and by NumPy from a start that is given."""
    import onnxruntime

    x = rows(200)
    np.save(tmp_path / "x.npy", x)
    changes = {"preprocess": [{"kind": "pca", "n_components": 2, "whiten": True}]} if kind == "pca" else {}
    model = {"family": "gaussian" if kind == "pca" else kind, "covariance_type": "full"}
    path = run(job(tmp_path / "x.npy", model=model, fit={"max_iter": 5, "init": "random"}, **changes), tmp_path / "run")
    labels = xr.open_zarr(path / "labels.zarr", consolidated=False).label.values
    assert ("log_jacobian" in pipeline.open_run(path).attrs) == (kind != "pca"), "PCA drops dimensions"
    ours = pipeline.open_estimator(path)
    np.testing.assert_array_equal(ours.predict(x), labels)
    np.testing.assert_array_equal(as_sklearn(ours).predict(x), labels)
    session = onnxruntime.InferenceSession(
        pipeline.to_onnx(ours).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(np.ravel(session.run(None, {"X": x})[0]), labels)
    np.savez(tmp_path / "start.npz", **pipeline.to_numpy(ours[-1] if kind == "pca" else ours))
    with np.load(tmp_path / "start.npz") as arrays:
        found = predicted_by_numpy(dict(arrays), ours[:-1].transform(x) if kind == "pca" else x)
    np.testing.assert_array_equal(found, labels)


def predicted_by_numpy(arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The most probable component by the formulas alone."""
    if "centers" in arrays:
        return ((x[:, None] - arrays["centers"]) ** 2).sum(axis=2).argmin(axis=1)
    if "log_prob" in arrays:
        return (x @ arrays["log_prob"].T + np.log(arrays["weights"])).argmax(axis=1)
    variances = np.stack(
        [np.broadcast_to(np.diag(c) if c.ndim == 1 else c, (x.shape[1],) * 2) for c in arrays["covariances"]]
    )
    apart = x[:, None] - arrays["means"]
    distance = np.einsum("nki,kij,nkj->nk", apart, np.linalg.inv(variances), apart)
    return (np.log(arrays["weights"]) - 0.5 * (np.linalg.slogdet(variances)[1] + distance)).argmax(axis=1)
