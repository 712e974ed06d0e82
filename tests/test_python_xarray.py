"""xarray of any number of dimensions in the Python classes: against the table stacked by hand, back on its coordinates."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import xarray as xr
from sklearn.mixture import GaussianMixture as Peer

from pipeline import GaussianMixture, KMeans
from pipeline.arrays.rows import Rows
from pipeline.config import Preprocess
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.sources.xarray import XarraySection
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from tests.test_xarray import dataset, stacked, written

ROWS = ("time", "lat", "lon")


def lazy(ds: xr.Dataset) -> xr.Dataset:
    """The same in Dask chunks of which no order of rows follows all."""
    return ds.chunk({"time": 4, "lat": 3, "level": 1})


def mixture(**options) -> GaussianMixture:
    """Two components from means that are supplied, so that the order of rows decides nothing."""
    return GaussianMixture(2, means_init=[[0, 0, 0], [6, 6, -6]], init_params="random", tol=1e-6, **options)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_dataset_is_the_table_stacked_by_hand(chunked):
    """Parameters, labels, probabilities and scores are those of the stacked table, with weights along one dimension."""
    ds = dataset()
    table, weight = stacked(ds, ROWS), np.cos(np.deg2rad(ds.lat))
    each = weight.broadcast_like(ds["ps"]).transpose(*ROWS).values.ravel()
    by_hand = mixture().fit(table, sample_weight=each)
    x = lazy(ds) if chunked else ds
    fitted = mixture().fit(x, sample_weight=weight, features=["level"])
    np.testing.assert_allclose(fitted.means_, by_hand.means_, rtol=1e-6)
    assert fitted.feature_names_in_.tolist() == ["u 500", "u 850", "ps"]
    labels, shares = fitted.predict(x), fitted.predict_proba(x)
    assert labels.dims == ROWS and shares.dims == (*ROWS, "component") and (labels.chunks is not None) == chunked
    for dim in ROWS:
        xr.testing.assert_equal(labels[dim], ds[dim])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows without names
        np.testing.assert_array_equal(labels.values.ravel(), by_hand.predict(table))
        np.testing.assert_allclose(shares.values.reshape(-1, 2), by_hand.predict_proba(table), atol=1e-6)
        assert fitted.score(x, sample_weight=weight) == pytest.approx(by_hand.score(table, sample_weight=each))
        assert fitted.bic(x) == pytest.approx(by_hand.bic(table))
    found = fitted.to_xarray()
    assert found["mean"].dims == ("component", "variable", "level")
    np.testing.assert_allclose(found["mean"].sel(variable="u", level=850), fitted.means_[:, 1])
    assert np.isnan(found["mean"].sel(variable="ps", level=850)).all()


def test_the_classes_of_scikit_learn_and_ours_agree_on_a_dataset():
    """From the same seed, scikit-learn's mixture of the stacked table."""
    ds = dataset(1)
    peer = Peer(2, random_state=0).fit(stacked(ds, ROWS))
    ours = GaussianMixture(2, random_state=0).fit(ds, features="level")
    np.testing.assert_allclose(ours.means_, peer.means_, rtol=1e-6)
    np.testing.assert_array_equal(ours.predict(ds).values.ravel(), peer.predict(stacked(ds, ROWS)))


@pytest.mark.parametrize("chunked", [False, True])
def test_cells_without_values_are_left_out(chunked):
    """NaN in all features: no row of the fit, label -1, score NaN; NaN in some is refused with its cell."""
    ds = dataset()
    masked = ds.where(ds.lon != 90.0)
    rest, x = ds.sel(lon=[0.0, 180.0, 270.0]), lazy(masked) if chunked else masked
    table = stacked(rest, ROWS)
    by_hand = mixture().fit(table)
    fitted = mixture().fit(x, features=["level"])
    np.testing.assert_allclose(fitted.means_, by_hand.means_, rtol=1e-6)
    labels = fitted.predict(x)
    assert (labels.sel(lon=90.0) == -1).all() and (labels.sel(lon=0.0) >= 0).all()
    assert np.isnan(fitted.score_samples(x).sel(lon=90.0)).all()
    ones = xr.ones_like(ds.time, dtype=float)
    assert fitted.score(x) == pytest.approx(by_hand.score(table)) == fitted.score(x, sample_weight=ones)
    assert fitted.bic(x) == pytest.approx(by_hand.bic(table))
    centers = KMeans(2, init=[[0, 0, 0], [6, 6, -6]]).fit(x, features=["level"])
    np.testing.assert_allclose(centers.cluster_centers_, by_hand.means_, atol=1e-2)
    assert (centers.labels_.sel(lon=90.0) == -1).all()
    assert centers.score(x) == pytest.approx(-centers.inertia_) == centers.score(x, sample_weight=ones)
    assert set(centers.to_xarray()["center"].dims) == {"component", "variable", "level"}
    torn = masked.copy()
    torn["ps"] = masked["ps"].where(masked.time != masked.time[5], drop=False)
    with pytest.raises(ValueError, match="NaN or inf in some features of the cell"):
        mixture().fit(lazy(torn) if chunked else torn, features=["level"])


@pytest.mark.parametrize("chunked", [False, True])
def test_known_labels_lie_on_the_grid(chunked):
    """Labels of cells as an array of their shape; cells without values have none."""
    ds = dataset().where(dataset().lon != 90.0)
    y = xr.where(ds.lat > 10, 0, -1)
    fitted = mixture().fit(lazy(ds) if chunked else ds, y, features=["level"])
    assert (fitted.predict(ds).sel(lon=0.0, lat=60.0) == 0).all()
    by_hand = mixture().fit(*(each for each in (stacked(ds.dropna("lon"), ROWS),)), np.tile(y.values.repeat(3), 6))
    np.testing.assert_allclose(fitted.means_, by_hand.means_, rtol=1e-6)


def test_an_array_of_three_dimensions_and_one_of_two_the_other_way():
    """A DataArray has features along the named dimension; a later fit to plain rows forgets it."""
    array = dataset()["u"]
    fitted = KMeans(2, n_init=1, random_state=0).fit(array, features=["level"])
    assert fitted.labels_.dims == ROWS and not hasattr(fitted, "feature_names_in_")
    flat = array.stack(row=ROWS).reset_index("row", drop=True)  # (level, row)
    turned = KMeans(2, n_init=1, random_state=0).fit(flat, features=["level"])
    np.testing.assert_array_equal(turned.labels_.values, fitted.labels_.values.ravel())
    assert turned.predict(array).dims == ROWS
    plain = turned.fit(flat.values.T)
    assert "center" not in plain.to_xarray()
    np.testing.assert_array_equal(plain.labels_, fitted.labels_.values.ravel())


@pytest.mark.parametrize(
    ("x", "options", "said"),
    [
        (dataset()["u"], {}, r"Pass features=\[…\], the dimensions whose entries are features"),
        (dataset(), {"features": ["levl"]}, "features: X has no dimension 'levl'; did you mean level"),
        (dataset(), {}, "Add to features, or leave one out"),
        (dataset()[["ps"]], {"features": list(ROWS)}, "expected at least one other for the rows"),
        (dataset()[[]], {}, r"dataset\[\['u', 'v'\]\]"),
        (dataset().assign(when=dataset().time), {"features": ["level"]}, "variables: when has times"),
        (np.ones((5, 2)), {"features": ["level"]}, "expected an xarray.Dataset or DataArray. Leave it out"),
        (dataset(), {"features": ["level"], "sample_weight": np.ones(120)}, r"expected \(6, 5, 4\)"),
        (dataset(), {"features": ["level"], "sample_weight": dataset().level}, "has the dimension 'level'"),
        (dataset(), {"features": ["level"], "sample_weight": dataset().lat[1:]}, "its coordinates are not those of X"),
        (dataset(), {"features": ["level"], "noise": np.ones((120, 3))}, "Stack them, or leave it out"),
    ],
)
def test_what_cannot_be_rows_is_refused(x, options, said):
    """One sentence that says what to write."""
    with pytest.raises(ValueError) as error:
        GaussianMixture(2).fit(x, **options)
    assert re.search(said, str(error.value)), error.value


def test_features_are_standardized_by_variable(tmp_path):
    """Mean 0 and variance 1 over all entries of each variable, whatever they are at one level; without variables it is refused."""
    ds = dataset()
    ds["u"] = ds.u * xr.DataArray([1.0, 100.0], dims="level") + 7.0
    path = str(written(ds, tmp_path / "x.zarr"))
    source = XarraySection(path=path, variables=["u", "ps"], features=["level"]).open()
    x = np.concatenate([source.read(i) for i in range(source.n_chunks)])
    profile = ProfileJob("matrix", 10, 0)(Rows(x), KERNELS)
    by, pca = (Preprocess.model_validate(each) for each in ({"kind": "standardize", "by": "variable"}, {"kind": "pca"}))
    mapped = summary_of(profile, [by], source=source).affine.apply(x)
    u, ps = mapped[:, :2], mapped[:, 2]
    np.testing.assert_allclose([u.mean(), u.var(), ps.mean(), ps.var()], [0, 1, 0, 1], atol=1e-10)
    assert u[:, 0].var() < 1e-2 < 1.0 < u[:, 1].var()
    rotated = summary_of(profile, [by, pca], source=source).affine.apply(x)
    np.testing.assert_allclose(
        np.square(rotated).sum(axis=1), np.square(mapped - mapped.mean(axis=0)).sum(axis=1), rtol=1e-9
    )
    for steps, given in (([by], None), ([pca, by], source)):
        with pytest.raises(InputError, match="by: variable, but the features are of no variables"):
            summary_of(profile, steps, source=given)
    with pytest.raises(InputError, match="is for kind: standardize"):
        validate({"preprocess": [{"kind": "pca", "by": "variable"}]})
