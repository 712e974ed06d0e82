"""`sample` and `impute`: against conditional distributions written out, and as commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy.stats import kstest, multivariate_t, t

import pipeline
from pipeline import workflow
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.families.student_t import StudentT
from pipeline.models.mixture import Mixture
from pipeline.outputs.model_store import load_model, read_dataset
from tests.jobs import blobs, command, job


def stored(path: Path, name: str | None = None) -> np.ndarray:
    """An array of a store; by default its rows."""
    return zarr.open_group(path, mode="r")[name or ("imputed" if path.name == "impute.zarr" else "x")][:]


def slow_mean(row: np.ndarray, weights, means, covariances) -> tuple[np.ndarray, np.ndarray]:
    """The conditional mean and covariance of the missing entries of a row, by the definitions."""
    m = np.isnan(row)
    scores, centres, spreads = [], [], []
    for w, mu, s in zip(weights, means, covariances, strict=True):
        diff, oo = row[~m] - mu[~m], s[np.ix_(~m, ~m)]
        scores.append(np.log(w) - 0.5 * np.linalg.slogdet(2 * np.pi * oo)[1] - 0.5 * diff @ np.linalg.solve(oo, diff))
        gain = s[np.ix_(m, ~m)] @ np.linalg.inv(oo)
        centres.append(mu[m] + gain @ diff)
        spreads.append(s[np.ix_(m, m)] - gain @ s[np.ix_(~m, m)])
    share = np.exp(np.array(scores) - np.logaddexp.reduce(scores))
    mean = share @ np.array(centres)
    second = sum(r * (s + np.outer(c, c)) for r, s, c in zip(share, spreads, centres, strict=True))
    return mean, second - np.outer(mean, mean)


def full(model: Mixture, params) -> np.ndarray:
    """Covariances as matrices."""
    d = model.n_features
    return np.array(
        [np.diag(c) if np.ndim(c) == 1 else c * np.eye(d) if np.ndim(c) == 0 else c for c in params.theta.covariances]
    )


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_conditional_means_and_draws_are_those_of_the_mixture(covariance_type):
    """Means are exact for every pattern of missing entries; draws of one row have the conditional mean and covariance."""
    rng, k, d = np.random.default_rng(0), 3, 4
    a = rng.normal(size=(k, d, d))
    matrices = a @ a.swapaxes(1, 2) + 0.3 * np.eye(d)
    variances = np.diagonal(matrices, axis1=1, axis2=2)
    shapes = {"full": matrices, "diag": variances, "spherical": variances.mean(axis=1)}
    model = Mixture(Gaussian(k, np.zeros(d), covariance_type)).for_rows("missing")
    params = model.params(
        weights=np.array([0.5, 0.3, 0.2]), means=rng.normal(size=(k, d)), covariances=shapes[covariance_type]
    )
    x = rng.normal(size=(30, d))
    x[rng.random(x.shape) < 0.4] = np.nan
    x[np.isnan(x).all(axis=1), 0] = 0.5
    found = model.component.imputed(params.theta, np.log(params.weights), x)
    for row, filled in zip(x, found, strict=True):
        m = np.isnan(row)
        assert (filled[~m] == row[~m]).all()
        np.testing.assert_allclose(
            filled[m], slow_mean(row, params.weights, params.theta.means, full(model, params))[0], atol=1e-12
        )
    row, n = np.array([0.4, np.nan, -0.3, np.nan]), 20_000
    draw = rng.random(n), rng.normal(size=(n, d))
    drawn = model.component.imputed(params.theta, np.log(params.weights), np.tile(row, (n, 1)), draw)
    mean, covariance = slow_mean(row, params.weights, params.theta.means, full(model, params))
    scale = np.sqrt(np.diag(covariance))
    assert (np.abs(drawn[:, [1, 3]].mean(axis=0) - mean) < 5 * scale / np.sqrt(n)).all()
    assert (np.abs(np.cov(drawn[:, [1, 3]].T) - covariance) < 0.06 * np.outer(scale, scale)).all()


def test_under_student_ts_the_mean_is_theirs_and_draws_have_their_tails():
    """By responsibilities of t densities; a draw given one entry is a t of one more degree of freedom, wider the farther out that is."""
    rng, df = np.random.default_rng(0), np.array([2.0, 30.0])
    a = rng.normal(size=(2, 3, 3))
    scales, means = a @ a.swapaxes(1, 2) + 0.3 * np.eye(3), rng.normal(size=(2, 3))
    component = StudentT(2, np.zeros(3)).with_missing()
    theta = component.theta(means=means, scales=scales, df=df)
    x = rng.normal(size=(20, 3))
    x[:, 1:] = np.where(rng.random((20, 2)) < 0.5, np.nan, x[:, 1:])
    found = component.imputed(theta, np.log([0.6, 0.4]), x)
    for row, filled in zip(x, found, strict=True):
        m = np.isnan(row)
        joint, centres = np.log([0.6, 0.4]), np.zeros((2, m.sum()))
        for c in range(2):
            oo = scales[c][np.ix_(~m, ~m)]
            joint[c] += multivariate_t(means[c][~m], oo, df[c]).logpdf(row[~m])
            centres[c] = means[c][m] + scales[c][np.ix_(m, ~m)] @ np.linalg.solve(oo, row[~m] - means[c][~m])
        np.testing.assert_allclose(filled[m], np.exp(joint - np.logaddexp.reduce(joint)) @ centres, atol=1e-12)
    one = StudentT(1, np.zeros(2)).with_missing()
    theta = one.theta(means=np.zeros((1, 2)), scales=np.array([[[1.0, 0.6], [0.6, 1.0]]]), df=np.array([3.0]))
    draw = rng.random(4000), rng.normal(size=(4000, one.n_normal))
    drawn = one.imputed(theta, np.zeros(1), np.tile([4.0, np.nan], (4000, 1)), draw)[:, 1]
    expected = t(4.0, loc=0.6 * 4.0, scale=np.sqrt((3.0 + 16.0) / 4.0 * (1.0 - 0.36)))
    assert kstest(drawn, expected.cdf).pvalue > 0.01


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on standardized rows, and rows with missing entries."""
    folder = tmp_path_factory.mktemp("made")
    x = blobs() * [1.0, 20.0, 1.0] + [0.0, 300.0, 0.0]
    np.save(folder / "x.npy", x)
    workflow.run(
        job(folder / "x.npy", model={"covariance_type": "full"}, preprocess=[{"kind": "standardize"}]), folder / "run"
    )
    x[::3, 1] = np.nan
    x[1::5, [0, 2]] = np.nan
    x[7] = np.nan
    np.save(folder / "holes.npy", x)
    return folder


def test_the_command_fills_in_the_data_s_own_units(made, tmp_path):
    """Standardized rows are mapped back; a draw depends on seed and row alone; an interrupted job leaves nothing to do twice."""
    options = ["--set", f"data.path={made / 'holes.npy'}"]
    assert command("impute", made / "run", *options, "--output", tmp_path / "mean").code == 0
    found, x = stored(tmp_path / "mean" / "impute.zarr"), np.load(made / "holes.npy")
    _, params, affine = load_model(read_dataset(made / "run" / "model.zarr"))
    for row, filled in zip(x, found, strict=True):
        m = np.isnan(row)
        if m.all():
            assert np.isnan(filled).all()
            continue
        scaled = (row - affine.offset) * affine.matrix
        mean, _ = slow_mean(scaled, params.weights, params.theta.means, params.theta.covariances)
        np.testing.assert_allclose(
            filled[m],
            (mean / affine.matrix + affine.offset)[m] if m.sum() == 3 else mean / affine.matrix[m] + affine.offset[m],
            rtol=1e-9,
        )
        assert (filled[~m] == row[~m]).all()
    changes = [f"data.path={made / 'holes.npy'}"]
    draws = [
        stored(pipeline.impute(made / "run", changes, tmp_path / f"d{i}", draws=True, seed=i // 2)) for i in range(3)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2])[np.isnan(x) & ~np.isnan(x).all(axis=1)[:, None]].all()
    assert workflow.resume(tmp_path / "d0") == tmp_path / "d0"
    assert "finished" in command("status", tmp_path / "d0").out


def test_a_feature_from_the_others_is_the_regression(made, tmp_path):
    """What is stored for it has no influence, and the result is the conditional mean."""
    found = stored(pipeline.impute(made / "run", [f"data.path={made / 'x.npy'}"], tmp_path / "out", ["1"]))
    x = np.load(made / "x.npy")
    _, params, affine = load_model(read_dataset(made / "run" / "model.zarr"))
    for row, filled in zip(x[:20], found[:20], strict=True):
        scaled = np.where([False, True, False], np.nan, (row - affine.offset) * affine.matrix)
        [mean], _ = slow_mean(scaled, params.weights, params.theta.means, params.theta.covariances)
        assert filled[1] == pytest.approx(mean / affine.matrix[1] + affine.offset[1], rel=1e-9)
        assert (filled[[0, 2]] == row[[0, 2]]).all()


def test_draws_of_rows_have_the_model_s_moments_and_units(made, tmp_path):
    """The same seed gives the same rows; labels are the components; block by block all rows are there."""
    done = command("sample", made / "run", "--rows", "4000", "--seed", "3", "--output", tmp_path / "a")
    assert done.code == 0 and "sample.zarr" in done.out
    x, label = stored(tmp_path / "a" / "sample.zarr"), stored(tmp_path / "a" / "sample.zarr", "label")
    data = np.load(made / "x.npy")
    model, params, _ = load_model(read_dataset(made / "run" / "model.zarr"))
    assert x.shape == (4000, 3) and np.abs(np.bincount(label, minlength=3) / 4000 - params.weights).max() < 0.04
    assert (np.abs(x.mean(axis=0) - data.mean(axis=0)) < 0.1 * data.std(axis=0)).all()
    np.testing.assert_allclose(np.cov(x.T), np.cov(data.T), atol=0.1 * data.std(axis=0).max() ** 2)
    assert (stored(pipeline.sample(made / "run", 4000, tmp_path / "b", seed=3)) == x).all()
    own = (x - data.mean(axis=0)) / data.std(axis=0)
    assert (model.log_joint(params, own, KERNELS).argmax(axis=1) == label).mean() > 0.6


def test_patches_are_drawn_on_a_sheet(tmp_path):
    """The sheet has a tile for each row that is shown."""
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "a.png")
    data = {"source": "images", "path": str(tmp_path / "a.png"), "patch": {"size": [4, 4]}}
    workflow.run(job(tmp_path / "a.npy", data=data, output={"labels": False}), tmp_path / "run")
    pipeline.sample(tmp_path / "run", 30, tmp_path / "out")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 100


def test_draws_that_were_stopped_are_resumed(tmp_path, monkeypatch):
    """Wherever a process ends, `resume` leaves the store and the sheet of one that nothing stopped; of a finished one, nothing is drawn again."""
    from PIL import Image

    from pipeline.applying import sampling

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "a.png")
    data = {"source": "images", "path": str(tmp_path / "a.png"), "patch": {"size": [4, 4]}}
    run = workflow.run(job(tmp_path / "a.npy", data=data, output={"labels": False}), tmp_path / "run")
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 8 * 15 * 10)
    whole = pipeline.sample(run, 30, tmp_path / "whole", seed=1)
    blocks = sampling.Draws.blocks

    def stops(draws, rows):
        for i, block in enumerate(blocks(draws, rows)):
            if i == 2:
                raise KeyboardInterrupt
            yield block

    for name, place, ends in (("rows", sampling.Draws, ("blocks", stops)), ("sheet", sampling, ("_draw_sheet", None))):
        with monkeypatch.context() as patched:
            patched.setattr(place, *ends)
            with pytest.raises((KeyboardInterrupt, TypeError)):
                pipeline.sample(run, 30, tmp_path / name, seed=1)
        assert (tmp_path / name / "sample.zarr").exists() == (name == "sheet")
        assert workflow.resume(tmp_path / name) == tmp_path / name
        for array in ("x", "label"):
            assert (stored(tmp_path / name / "sample.zarr", array) == stored(whole, array)).all()
        assert (tmp_path / name / "sheet.png").read_bytes() == (tmp_path / "whole" / "sheet.png").read_bytes()
    monkeypatch.setattr(sampling.Draws, "blocks", None)
    assert workflow.resume(tmp_path / "whole") == tmp_path / "whole"


def test_what_cannot_be_done_is_refused(made, tmp_path):
    """Each refusal says what was found."""
    rows = [f"data.path={made / 'x.npy'}"]
    for features, said in ((["3"], "feature '3'"), (["0", "1", "2"], "all features"), (["height"], "feature 'height'")):
        with pytest.raises(InputError, match=said):
            pipeline.impute(made / "run", rows, tmp_path / "no", features)
    with pytest.raises(InputError, match="no output"):
        pipeline.impute(made / "run", rows)
    with pytest.raises(InputError, match="got 0 rows"):
        pipeline.sample(made / "run", 0, tmp_path / "no")
    np.save(tmp_path / "units.npy", np.zeros(len(np.load(made / "x.npy"))))
    chain = {"model": {"family": "hmm"}, "data": {"units": str(tmp_path / "units.npy")}, "output": {"labels": False}}
    workflow.run(job(made / "x.npy", **chain), tmp_path / "chain")
    with pytest.raises(InputError, match="got a run of a hidden Markov model, which has no conditional means"):
        pipeline.impute(tmp_path / "chain", rows, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    pipeline.sample(made / "run", 5, tmp_path / "there")
    with pytest.raises(InputError, match="results of another command"):
        pipeline.sample(made / "run", 5, tmp_path / "there")
