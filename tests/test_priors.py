"""Mixtures of patches in the files of other programs: densities there are those of the run, and come back."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import pipeline
from pipeline import workflow
from pipeline.data.patch import patch_basis
from pipeline.data.priors import read_prior
from pipeline.errors import InputError
from pipeline.jobconfig import validate


def config(folder: Path, mean_free: bool, **changes: dict[str, object]) -> object:
    """Of a mixture of 3 x 3 patches of a picture of noise that is smooth along rows."""
    path = folder / "photo.png"
    if not path.exists():
        noise = np.random.default_rng(0).normal(size=(40, 30)).cumsum(axis=1)
        Image.fromarray(np.clip(128 + 20 * noise, 0, 255).astype(np.uint8)).save(path)
    sections = {
        "data": {"source": "images", "path": str(path), "patch": {"size": [3, 3], "remove_mean": mean_free}},
        "model": {"family": "gaussian", "n_components": 2},
        "fit": {"method": "em", "max_iter": 4, "init": "k-means++"},
        "output": {"labels": False},
    }
    return validate({name: {**section, **changes.get(name, {})} for name, section in sections.items()})


def patches(folder: Path) -> np.ndarray:
    """Of the picture, (n, 3, 3) from 0 to 1."""
    pixels = np.asarray(Image.open(folder / "photo.png"), float) / 255
    return np.lib.stride_tricks.sliding_window_view(pixels, (3, 3)).reshape(-1, 3, 3)[::50]


def log_density(weights, means, covariances, x) -> np.ndarray:
    """Of a mixture of normal distributions, which may be flat in some directions."""
    each = [multivariate_normal(m, s, allow_singular=True).logpdf(x) for m, s in zip(means, covariances, strict=True)]
    return logsumexp(np.log(weights)[:, None] + each, axis=0)


@pytest.mark.parametrize("mean_free", [True, False])
def test_densities_there_are_those_of_the_run(tmp_path, mean_free):
    """In .mat of pixels by column, in .npz by row, where the mean of a patch has its own normal distribution; both come back."""
    run = workflow.run(config(tmp_path, mean_free), tmp_path / "run")
    pixels = patches(tmp_path)
    by_row, by_column = pixels.reshape(-1, 9), pixels.swapaxes(1, 2).reshape(-1, 9)
    x = by_row @ patch_basis((3, 3)) if mean_free else by_row
    expected = pipeline.open_estimator(run).score_samples(x)
    stored = loadmat(pipeline.save_prior(run, tmp_path / "prior.mat"))["GS"][0, 0]
    assert (
        stored["means"].shape == (9, 2) and stored["covs"].shape == (9, 9, 2) and stored["mixweights"].shape == (2, 1)
    )
    assert stored["nmodels"] == 2 and stored["dim"] == 9
    centred = by_column - by_column.mean(axis=1, keepdims=True) if mean_free else by_column
    found = log_density(stored["mixweights"][:, 0], stored["means"].T, stored["covs"].transpose(2, 0, 1), centred)
    flat = stored["covs"].sum(axis=(0, 1)) / 9  # the variance of three times the mean of a patch
    if mean_free:
        np.testing.assert_allclose(flat, 1e-4, rtol=1e-6)
        found -= multivariate_normal(0, flat[0]).logpdf(0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for k in range(2):
        np.linalg.cholesky(stored["covs"][:, :, k].astype(np.float32))  # there is one, as Jolideco asks for
        identity = stored["covs"][:, :, k] @ stored["invcovs"][:, :, k]
        np.testing.assert_allclose(identity, np.eye(9), atol=1e-6)
    with np.load(pipeline.save_prior(run, tmp_path / "prior.npz")) as stored:
        found = log_density(stored["weights"], stored["mu"], stored["cov"], by_row)
    if mean_free:
        found -= multivariate_normal(1.5, 9 / 12).logpdf(by_row.sum(axis=1) / 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(pipeline.open_estimator(tmp_path / "prior.mat").score_samples(x), expected, rtol=1e-6)
    labels = pipeline.open_estimator(run).predict(x)
    assert (pipeline.open_estimator(tmp_path / "prior.mat").predict(x) == labels).all()


@pytest.mark.parametrize("mean_free", [True, False])
def test_a_table_in_fits_has_the_columns_of_jolideco(tmp_path, mean_free):
    """As astropy reads it into a Table: pixels row by row, the densities of the run; what is opened again is the same mixture."""
    table = pytest.importorskip("astropy.table").Table
    run = workflow.run(config(tmp_path, mean_free), tmp_path / "run")
    by_row = patches(tmp_path).reshape(-1, 9)
    x = by_row @ patch_basis((3, 3)) if mean_free else by_row
    expected = pipeline.open_estimator(run).score_samples(x)
    path = pipeline.save_prior(run, tmp_path / "prior.fits")
    stored = table.read(path)
    assert stored.colnames == ["weights", "means", "covariances"] and stored.meta["PNPTYPE"] == "subtract-mean"
    assert stored["means"].shape == (2, 9) and stored["covariances"].shape == (2, 9, 9)
    centred = by_row - by_row.mean(axis=1, keepdims=True) if mean_free else by_row
    found = log_density(*(np.asarray(stored[name]) for name in stored.colnames), centred)
    if mean_free:
        found -= multivariate_normal(0, 1e-4).logpdf(0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(pipeline.open_estimator(path).score_samples(x), expected, rtol=1e-9)
    stored.write(tmp_path / "theirs.fits")
    np.testing.assert_allclose(pipeline.open_estimator(tmp_path / "theirs.fits").score_samples(x), expected, rtol=1e-9)


def test_other_tables_in_fits_are_refused(tmp_path, monkeypatch):
    """Patches divided by their mean, a file without a table, with other columns, damaged, or without astropy: each refusal says which."""
    fits = pytest.importorskip("astropy.io.fits")
    run = workflow.run(config(tmp_path, True), tmp_path / "run")
    path = pipeline.save_prior(run, tmp_path / "prior.fits")
    with fits.open(path) as units:
        units[1].header["PNPTYPE"] = "std-subtract-mean"
        units.writeto(tmp_path / "divided.fits")
        units[1].columns["means"].name = "mu"
        units[1].header["PNPTYPE"] = "subtract-mean"
        units.writeto(tmp_path / "renamed.fits")
    fits.PrimaryHDU(np.ones((3, 3))).writeto(tmp_path / "picture.fits")
    (tmp_path / "cut.fits").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "damaged.fits").write_bytes(b"no table" * 30)
    (tmp_path / "packed.fits").write_bytes(gzip.compress(path.read_bytes()))
    rows = "NAXIS2  = {:20}".format
    (tmp_path / "declared.fits").write_bytes(path.read_bytes().replace(rows(2).encode(), rows(10**9).encode()))
    for name, said in (
        ("divided", "std-"),
        ("renamed", "means"),
        ("picture", "no table"),
        ("cut", "cannot be read"),
        ("declared", "truncated"),
        ("damaged", "no FITS file"),
        ("packed", "no FITS file"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.open_estimator(tmp_path / f"{name}.fits")
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    for action in (pipeline.open_estimator, lambda where: pipeline.save_prior(run, where)):
        with pytest.raises(InputError, match=r"em-pipeline\[fits\]"):
            action(path)


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".fits"])
def test_a_fit_begins_with_it(tmp_path, suffix):
    """`fit.init: explicit`: with all parameters fixed the run has those of the first, also with fewer features than pixels."""
    if suffix == ".fits":
        pytest.importorskip("astropy")
    run = workflow.run(config(tmp_path, True), tmp_path / "run")
    prior = pipeline.save_prior(run, tmp_path / f"prior{suffix}")
    changes = {
        "model": {"fixed": ["weights", "means", "covariances"]},
        "fit": {"init": "explicit", "init_path": str(prior), "max_iter": 1},
    }
    again = workflow.run(config(tmp_path, True, **changes), tmp_path / "again")
    for name in ("weights", "means", "covariances"):
        a, b = (pipeline.open_run(one)[name].values for one in (run, again))
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    out = pipeline.denoise(again, [], tmp_path / "out", 10.0)
    assert (out / "pictures" / "photo.png").exists()


def test_other_layouts_are_refused(tmp_path):
    """Each refusal says what was found; a struct without means, as some were released, has means of 0."""
    run = workflow.run(config(tmp_path, True), tmp_path / "run")
    savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    savemat(tmp_path / "odd.mat", {"GMM": {"covs": np.eye(5)[:, :, None], "mixweights": 1.0}})
    savemat(tmp_path / "no-means.mat", {"GMM": {"covs": np.eye(4)[:, :, None], "mixweights": 1.0}})
    np.savez(tmp_path / "other.npz", means=np.ones((2, 3)))
    (tmp_path / "damaged.mat").write_bytes(b"no matrix" * 30)
    for name, said in (
        ("other.mat", "no struct"),
        ("odd.mat", "square"),
        ("other.npz", "mu"),
        ("damaged.mat", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.open_estimator(tmp_path / name)
    found = read_prior(str(tmp_path / "no-means.mat"))
    assert (found["means"] == 0).all() and found["covariances"].shape == (1, 4, 4)
    with pytest.raises(InputError, match=r"got \.pt"):
        pipeline.save_prior(run, tmp_path / "prior.pt")
    changes = {"fit": {"init": "explicit", "init_path": str(tmp_path / "no-means.mat")}}
    with pytest.raises(InputError, match=r"4 pixels, expected 3 x 3"):
        workflow.run(config(tmp_path, True, **changes), tmp_path / "no")
    kmeans = workflow.run(config(tmp_path, True, model={"family": "kmeans"}), tmp_path / "kmeans")
    with pytest.raises(InputError, match="K-means"):
        pipeline.save_prior(kmeans, tmp_path / "k.mat")
