"""`encode`: every code against its definition, row by row; units over chunks, cells and bad rows; scikit-image's Fisher vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pipeline
from pipeline import workflow
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.codes import KINDS, Code
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.lloyd import Centers, Lloyd
from pipeline.models.mixture import Mixture
from pipeline.outputs.model_store import load_model, read_dataset
from tests.jobs import blobs, command, job, write_rows

K, D = 3, 4


def gaussians(covariance_type: str = "diag") -> tuple[Mixture, object]:
    """A mixture of Gaussians far from the origin."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(K, D, D))
    matrices = a @ a.swapaxes(1, 2) + 0.3 * np.eye(D)
    variances = np.diagonal(matrices, axis1=1, axis2=2)
    shapes = {"full": matrices, "tied": matrices[0], "diag": variances, "spherical": variances.mean(axis=1)}
    model = Mixture(Gaussian(K, np.full(D, 50.0), covariance_type))
    means = 50.0 + rng.normal(size=(K, D))
    return model, model.params(weights=np.array([0.5, 0.3, 0.2]), means=means, covariances=shapes[covariance_type])


def slow(name: str, x: np.ndarray, model, params) -> np.ndarray:
    """The code of each row, or of all rows as one unit, by the definitions."""
    centres = params.centers if isinstance(params, Centers) else params.theta.means
    z = np.array([[np.sqrt(((row - c) ** 2).sum()) for c in centres] for row in x])
    share, label = np.zeros((len(x), K)), z.argmin(axis=1)
    precisions = []
    if not isinstance(params, Centers):
        for k in range(K):
            s = params.theta.covariances
            s = s if s.ndim == 2 and s.shape == (D, D) else s[k]
            s = s * np.eye(D) if np.ndim(s) == 0 else np.diag(s) if np.ndim(s) == 1 else s
            precisions.append(np.linalg.inv(s))
            diff = x - centres[k]
            distance = np.einsum("nd,de,ne->n", diff, precisions[k], diff)
            share[:, k] = params.weights[k] * np.sqrt(np.linalg.det(precisions[k])) * np.exp(-0.5 * distance)
        share /= share.sum(axis=1, keepdims=True)
        label = share.argmax(axis=1)
    hard = np.eye(K)[label]
    if name in ("hard", "soft", "distances", "triangle"):
        triangle = np.array([[max(0.0, row.mean() - each) for each in row] for row in z])
        return {"hard": hard, "soft": share, "distances": z, "triangle": triangle}[name]
    if name == "words":
        return hard.sum(axis=0)
    if name == "vlad":
        sums = np.zeros((K, D))
        for row, own in zip(x, label, strict=True):
            sums[own] += row - centres[own]
        return sums.ravel() / np.linalg.norm(sums)
    first, second = np.zeros((K, D)), np.zeros((K, D))
    for row, r in zip(x, share, strict=True):
        for k in range(K):
            u = _whitened(row - centres[k], precisions[k])
            first[k] += r[k] * u / (len(x) * np.sqrt(params.weights[k]))
            second[k] += r[k] * (u**2 - 1) / (len(x) * np.sqrt(2 * params.weights[k]))
    vector = np.concatenate([first.ravel(), second.ravel()])
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return vector / np.linalg.norm(vector)


def _whitened(diff: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The lower Cholesky factor of the covariance, solved: for variances, division by deviations."""
    return np.linalg.solve(np.linalg.cholesky(np.linalg.inv(precision)), diff)


def of_one_unit(code: Code, x: np.ndarray, step: int) -> np.ndarray:
    """The code of all rows as one unit, added by parts."""
    sums = code.zeros(1)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        code.add(sums, part, None, np.zeros(len(part), int), None, KERNELS)
    return code.finish(sums)[0]


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("name", list(KINDS))
def test_codes_are_what_they_are_defined_as(name, covariance_type):
    """Of rows, and of units added by parts of any size."""
    model, params = gaussians(covariance_type)
    x = 50.0 + 1.5 * np.random.default_rng(1).normal(size=(40, D))
    code, expected = Code(name, model, params), slow(name, x, model, params)
    if code.of_units:
        for step in (7, 40):
            np.testing.assert_allclose(of_one_unit(code, x, step), expected, rtol=1e-8, atol=1e-8)
    else:
        np.testing.assert_allclose(code.rows(x, KERNELS), expected, rtol=1e-8, atol=1e-8)
        for pool in ("sum", "mean", "max"):
            pooled = of_one_unit(Code(name, model, params, pool), x, 7)
            np.testing.assert_allclose(pooled, getattr(expected, pool)(axis=0), rtol=1e-8, atol=1e-8)
    assert len(code.names()) == len(set(code.names())) == code.width


@pytest.mark.parametrize("name", ["hard", "triangle", "distances", "words", "vlad"])
def test_codes_of_k_means(name):
    """K-means has the same codes, but for those that need responsibilities."""
    x = 50.0 + 1.5 * np.random.default_rng(1).normal(size=(40, D))
    model, params = Lloyd(K, np.full(D, 50.0)), Centers(x[:K].copy())
    code = Code(name, model, params)
    found = of_one_unit(code, x, 7) if code.of_units else code.rows(x, KERNELS)
    np.testing.assert_allclose(found, slow(name, x, model, params), rtol=1e-8, atol=1e-7)
    for needs_more in ("soft", "fisher"):
        with pytest.raises(InputError, match="has no responsibilities"):
            Code(needs_more, model, params)


def test_the_encoder_is_a_transformer_of_scikit_learn(tmp_path):
    """Codes of its rows and units are those of its model, which it fits where it is not; runs and their preprocessing too."""
    x = np.random.default_rng(1).normal(size=(6, 5, 4, D))
    mixture = pipeline.GaussianMixture(K, covariance_type="diag", random_state=0)
    fitted = clone(mixture).fit(x.reshape(-1, D))
    encoder = pipeline.Encoder(mixture, "fisher", grid=(1, 2)).fit(x)
    code = Code("fisher", *fitted._model(), grid=(1, 2))
    found = encoder.transform(list(x))
    assert encoder.get_feature_names_out().tolist() == code.names() and found.shape == (6, code.width)
    np.testing.assert_allclose(
        found[3, : code.width // 5], of_one_unit(Code("fisher", *fitted._model()), x[3].reshape(-1, D), 9)
    )
    last = x[3, 2:, 2:].reshape(-1, D)
    np.testing.assert_allclose(found[3, -code.width // 5 :], of_one_unit(Code("fisher", *fitted._model()), last, 9))
    rows = x.reshape(-1, D)
    of_rows = pipeline.Encoder(fitted, "soft").fit(rows)
    assert of_rows.model_ is fitted
    np.testing.assert_allclose(of_rows.transform(rows), fitted.predict_proba(rows), atol=1e-12)
    means = pipeline.KMeans(K, random_state=0)
    np.testing.assert_allclose(
        pipeline.Encoder(means, "distances").fit_transform(rows), means.fit_transform(rows), atol=1e-7
    )
    steps = make_pipeline(StandardScaler(), pipeline.KMeans(K, random_state=0))
    scaled = StandardScaler().fit_transform(rows)
    expected = pipeline.Encoder(pipeline.KMeans(K, random_state=0)).fit_transform(scaled)
    np.testing.assert_allclose(pipeline.Encoder(steps).fit_transform(rows), expected, atol=1e-12)
    for made, said in (
        (pipeline.Encoder(means.fit(rows), "fisher"), "has no responsibilities"),
        (pipeline.Encoder(mixture, "words", grid=(2,)), r"expected rows, \(down, across, d\)"),
        (pipeline.Encoder(StandardScaler().fit(rows)), "estimator of this package"),
    ):
        with pytest.raises(ValueError, match=said):
            made.fit(rows[None])


def test_fisher_vectors_are_those_of_scikit_image():
    """For variances: but for the gradient by weights, which is left out, the sign of the second part, and so the length."""
    fisher_vector = pytest.importorskip("skimage.feature").fisher_vector
    model, params = gaussians()
    x = 50.0 + 1.5 * np.random.default_rng(1).normal(size=(40, D))
    peer = GaussianMixture(K, covariance_type="diag")
    peer.weights_, peer.means_, peer.covariances_ = params.weights, params.theta.means, params.theta.covariances
    peer.precisions_cholesky_ = params.theta.covariances**-0.5
    first, second = np.split(fisher_vector(x, peer, improved=True)[K:], 2)
    expected = np.concatenate([first, -second])
    found = of_one_unit(Code("fisher", model, params), x, 40)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of different sizes, and runs on their patches: a Gaussian mixture, and K-means of whitened patches."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i, size in enumerate([(9, 7), (8, 12), (11, 10), (7, 7), (10, 9), (9, 13)]):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / "photos" / f"{i}.png")
    data = {"source": "images", "path": str(folder / "photos"), "patch": {"size": [3, 3]}}
    workflow.run(job(folder / "x.npy", data=data), folder / "gaussian")
    whitened = {"model": {"family": "kmeans"}, "preprocess": [{"kind": "zca", "epsilon": 0.1}]}
    workflow.run(job(folder / "x.npy", data=data, **whitened), folder / "kmeans")
    return folder


def patches(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The mean-free 3 x 3 patches of a picture in their basis, and where they are, each position for itself."""
    grey = np.asarray(Image.open(path), np.float32) / np.float32(255)
    down, across = grey.shape[0] - 2, grey.shape[1] - 2
    cut = [grey[i : i + 3, j : j + 3].ravel() for i in range(down) for j in range(across)]
    at = [((2 * i + 1) / (2 * down), (2 * j + 1) / (2 * across)) for i in range(down) for j in range(across)]
    return np.array(cut) @ pipeline.data.sources.images.patch_basis((3, 3)), np.array(at)


@pytest.mark.full
def test_triangle_codes_of_quadrants_are_pooled_as_by_coates(pictures, tmp_path):
    """Sums of the command, over whitened patches, are those of each picture and quadrant; names and columns are kept."""
    options = ["--as", "triangle", "--pool", "sum", "--grid", "1", "--grid", "2"]
    rows = ["--set", f"data.path={pictures / 'photos'}"]
    assert command("encode", pictures / "kmeans", *rows, *options, "--output", tmp_path / "out").code == 0
    found = xr.open_zarr(tmp_path / "out" / "encode.zarr", consolidated=False)
    assert found["unit"].values.tolist() == [f"{i}.png" for i in range(6)]
    assert found["column"].values[[0, 3, 14]].tolist() == [
        "triangle_0",
        "triangle_0_in_2x2_0_0",
        "triangle_2_in_2x2_1_1",
    ]
    _, params, affine = load_model(read_dataset(pictures / "kmeans" / "model.zarr"))
    for i, name in enumerate(found["unit"].values):
        x, at = patches(pictures / "photos" / str(name))
        z = np.linalg.norm(affine.apply(x)[:, None] - params.centers, axis=2)
        code = np.maximum(0, z.mean(axis=1, keepdims=True) - z)
        quadrants = [
            code[((at[:, 0] >= 0.5) == bool(v)) & ((at[:, 1] >= 0.5) == bool(h))].sum(axis=0)
            for v in (0, 1)
            for h in (0, 1)
        ]
        np.testing.assert_allclose(found["code"][i], [*code.sum(axis=0), *np.ravel(quadrants)], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["words", "vlad", "fisher"])
def test_units_of_a_column_are_those_of_pictures(pictures, tmp_path, code):
    """The command gives the same for pictures, and for their patches in a table of other chunks with a column of units."""
    parts = [patches(pictures / "photos" / f"{i}.png")[0] for i in range(6)]
    x = np.concatenate(parts).astype(np.float32)
    write_rows(tmp_path / "x.zarr", x, rows=17)
    np.save(tmp_path / "unit.npy", np.repeat(np.arange(6) * 10, [len(part) for part in parts]))
    like = job(tmp_path / "x.zarr", fit={"max_iter": 6, "init": "run", "init_path": str(pictures / "gaussian")})
    workflow.run(like, tmp_path / "run")
    photos = [f"data.path={pictures / 'photos'}"]
    expected = xr.open_zarr(pipeline.encode(pictures / "gaussian", code, photos, tmp_path / "a"), consolidated=False)
    model, params, _ = load_model(read_dataset(pictures / "gaussian" / "model.zarr"))
    of_parts = Code(code, model, params)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(expected["code"][i], of_one_unit(of_parts, part, 1000), atol=1e-5)
    units = tmp_path / "unit.npy"
    table = pipeline.encode(tmp_path / "run", code, [], tmp_path / "b", units=units, form="csv")
    import pandas as pd

    found = pd.read_csv(table)
    model, params, _ = load_model(read_dataset(tmp_path / "run" / "model.zarr"))
    of_parts = Code(code, model, params)
    assert list(found) == ["unit", "first_row", *of_parts.names()]
    assert found["first_row"].tolist() == np.cumsum([0, *map(len, parts[:-1])]).tolist()
    for i, part in enumerate(parts):
        np.testing.assert_allclose(found.iloc[i, 2:], of_one_unit(of_parts, part, 1000), atol=1e-5)
    assert workflow.resume(tmp_path / "b") == tmp_path / "b"


@pytest.mark.full
def test_codes_of_rows_and_bad_rows(tmp_path):
    """Codes of rows are written as labels are; rows with NaN are NaN there, and are left out of units."""
    x = blobs(300)
    np.save(tmp_path / "x.npy", x)
    workflow.run(job(tmp_path / "x.npy"), tmp_path / "run")
    x[5] = np.nan
    np.save(tmp_path / "new.npy", x)
    np.save(tmp_path / "unit.npy", np.arange(300) // 10)
    rows = [f"data.path={tmp_path / 'new.npy'}"]
    drop = [*rows, "data.bad_rows=drop"]
    store = pipeline.encode(tmp_path / "run", "soft", drop, tmp_path / "soft")
    found = xr.open_zarr(store, consolidated=False)["code"].values
    assert np.isnan(found[5]).all() and not np.isnan(np.delete(found, 5, axis=0)).any()
    model, params, _ = load_model(read_dataset(tmp_path / "run" / "model.zarr"))
    np.testing.assert_allclose(found[6:], np.exp(np.concatenate([p.log_resp for _, p in model.assign(params, x[6:], KERNELS)])), atol=1e-6)  # fmt: skip
    units = tmp_path / "unit.npy"
    store = pipeline.encode(tmp_path / "run", "soft", drop, tmp_path / "units", pool="mean", units=units)
    of_units = xr.open_zarr(store, consolidated=False)["code"].values
    np.testing.assert_allclose(of_units, np.nanmean(found.reshape(30, 10, 3), axis=1), atol=1e-6)
    for asked, said in (
        (("words", rows, {"units": units}), "row 5 holds NaN"),
        (("words", drop, {}), "no parts of pictures"),
        (("vlad", drop, {"units": units, "grid": (2,)}), "units are no pictures"),
        (("vlad", drop, {"pool": "sum", "units": units}), "has its own"),
        (("soft", drop, {"grid": (2,)}), "is a code of rows"),
        (("soft", drop, {"units": units}), "is a code of rows"),
        (("softer", drop, {}), "expected one of hard"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.encode(tmp_path / "run", asked[0], asked[1], tmp_path / "no", **asked[2])


@pytest.mark.full
def test_models_without_a_code_are_refused(tmp_path):
    """Counts have no centres among rows, and Student-t distributions no Fisher vectors here."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).poisson(3.0, (200, 3)))
    workflow.run(job(tmp_path / "x.npy", model={"family": "poisson"}), tmp_path / "run")
    for code, said in (("triangle", "no centres"), ("fisher", "no centres")):
        with pytest.raises(InputError, match=said):
            pipeline.encode(tmp_path / "run", code, [], tmp_path / "no")
    workflow.run(job(tmp_path / "x.npy", model={"family": "student-t"}), tmp_path / "t")
    with pytest.raises(InputError, match="which are of normal distributions"):
        pipeline.encode(tmp_path / "t", "fisher", [], tmp_path / "no")
