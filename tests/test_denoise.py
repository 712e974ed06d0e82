"""`denoise`: against a slow EPLL in plain pixels, and as a command with its files, report, errors and a resumed job."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline import workflow
from pipeline.applying import denoising, epll
from pipeline.applying.beside import beside
from pipeline.applying.epll import PatchPrior
from pipeline.data.patch import patch_basis
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture
from pipeline.outputs import model_store
from pipeline.outputs.denoised import BAND, likeness
from pipeline.outputs.run_directory import RunDirectory
from tests.jobs import command


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Overlapping bright rectangles, (height, width) bytes."""
    rng, picture = np.random.default_rng(seed), np.full((height, width), 90.0)
    for _ in range(12):
        top, left = rng.integers(height - 4), rng.integers(width - 4)
        picture[top : top + rng.integers(6, 20), left : left + rng.integers(6, 20)] = rng.integers(20, 235)
    return picture.astype(np.uint8)


def mixture(k: int, d: int, covariance_type: str = "full", seed: int = 0) -> tuple[Mixture, object]:
    """A mixture of patches for rows with errors, and its parameters: directions of quickly falling variances."""
    rng = np.random.default_rng(seed)
    bases = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    full = bases * (rng.uniform(0.01, 0.3, (k, 1, 1)) * 0.5 ** np.arange(d)) @ bases.swapaxes(1, 2) + 1e-5 * np.eye(d)
    means, variances = 0.03 * rng.normal(size=(k, d)), np.diagonal(full, axis1=1, axis2=2)
    shapes = {"full": full, "tied": full.mean(axis=0), "diag": variances, "spherical": variances.mean(axis=1)}
    model = Mixture(Gaussian(k, np.zeros(d), covariance_type)).for_rows("errors")
    return model, model.params(weights=rng.dirichlet(np.ones(k)), means=means, covariances=shapes[covariance_type])


def slow_epll(noisy: np.ndarray, sigma: float, prior: PatchPrior, betas=None, start=None, seen=None) -> np.ndarray:
    """Zoran and Weiss (2011), patch by patch, by the definitions. seen : (pixels, pixels), what the picture became before noise."""
    (p, q), (height, width) = prior.size, noisy.shape
    theta, found = prior.params.theta, (noisy if start is None else start).astype(np.float64)
    seen = np.eye(noisy.size) if seen is None else seen
    k, d = theta.means.shape
    basis = np.eye(p * q) if prior.basis is None else prior.basis
    covariances = np.broadcast_to(theta.covariances, (k, d, d)) if theta.covariances.ndim == 2 else theta.covariances
    for beta in np.array([1, 4, 8, 16, 32]) / sigma**2 if betas is None else betas:
        total, count = np.zeros_like(found), np.zeros_like(found)
        for i in range(height - p + 1):
            for j in range(width - q + 1):
                patch = found[i : i + p, j : j + q].ravel()
                mean = 0.0 if prior.basis is None else patch.mean()
                z = (patch - mean) @ basis
                scores = [
                    np.log(w) - 0.5 * np.linalg.slogdet(s + np.eye(d) / beta)[1]
                    - 0.5 * (z - m) @ np.linalg.solve(s + np.eye(d) / beta, z - m)
                    for w, m, s in zip(prior.params.weights, theta.means, covariances, strict=True)
                ]  # fmt: skip
                best = int(np.argmax(scores))
                s, m = covariances[best], theta.means[best]
                clean = np.linalg.solve(s + np.eye(d) / beta, s @ z + m / beta)
                total[i : i + p, j : j + q] += (basis @ clean + mean).reshape(p, q)
                count[i : i + p, j : j + q] += 1
        known = seen.T @ noisy.ravel() / sigma**2 + beta * (total / count).ravel()
        found = np.linalg.solve(seen.T @ seen / sigma**2 + beta * np.eye(noisy.size), known).reshape(noisy.shape)
    return found


BETAS = [50, 100, 200, 400, 800, 1600, 3200]  # of the paper's program for blurred pictures


def slow_fill(picture: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Missing pixels as means of the known ones in the first square with some, of 3, 5, 9, 17 pixels; edges are repeated."""
    found = picture.copy()
    for i, j in np.argwhere(missing):
        reach, inside = 1, np.empty(0)
        while not len(inside):
            around = slice(i, i + 2 * reach + 1), slice(j, j + 2 * reach + 1)
            inside = np.pad(picture, reach, "edge")[around][~np.pad(missing, reach, "edge")[around]]
            reach *= 2
        found[i, j] = inside.mean(dtype=np.float64)
    return found


def test_missing_pixels_are_those_of_infinite_variance():
    """Known pixels count as before, missing ones not at all, whatever is stored there; noise is removed beside it."""
    size, rng = (4, 3), np.random.default_rng(4)
    model, params = mixture(3, 11)
    prior, noisy = PatchPrior(model, params, size, patch_basis(size)), rng.random((9, 11)).astype(np.float32)
    missing = rng.random(noisy.shape) < 0.7
    missing[2:8, 2:9] = True
    found = epll.inpainted(noisy, 0.1, prior, KERNELS, missing)
    start = epll._filled(noisy, 1 - missing.astype(np.float32))
    np.testing.assert_allclose(start, slow_fill(noisy, missing), rtol=1e-5)
    seen = np.diag(1.0 - missing.ravel())
    np.testing.assert_allclose(found, slow_epll(noisy, 0.1, prior, BETAS, start, seen), atol=2e-5)
    other = np.where(missing, np.float32(0.7), noisy)
    assert (epll.inpainted(other, 0.1, prior, KERNELS, missing) == found).all()


def test_a_blur_is_undone_by_the_normal_equations():
    """The Fourier transform solves them for the picture and its mirror images, written out as a matrix."""
    size, rng = (4, 3), np.random.default_rng(5)
    model, params = mixture(3, 11)
    prior, noisy = PatchPrior(model, params, size, patch_basis(size)), rng.random((8, 9)).astype(np.float32)
    half = rng.random((2, 3))
    blur = np.array([[half[abs(i), abs(j)] for j in range(-2, 3)] for i in range(-1, 2)])  # as mirror images need it
    blur /= blur.sum()
    seen = np.zeros((72, 72))
    for i in range(8):
        for j in range(9):
            for a in range(-1, 2):
                for b in range(-2, 3):
                    y, x = (i + a) % 16, (j + b) % 18
                    seen[i * 9 + j, min(y, 15 - y) * 9 + min(x, 17 - x)] += blur[a + 1, b + 2]
    found = epll.deblurred(noisy, 0.05, prior, KERNELS, blur)
    np.testing.assert_allclose(found, slow_epll(noisy, 0.05, prior, BETAS, None, seen), atol=2e-5)


@pytest.mark.parametrize(("size", "mean_free"), [((4, 3), True), ((3, 3), False)])
def test_epll_is_the_published_one(size, mean_free):
    """Half-quadratic splitting over all overlapping patches, with and without the mean of patches in the model."""
    basis = patch_basis(size) if mean_free else None
    model, params = mixture(3, size[0] * size[1] - mean_free)
    prior, noisy = PatchPrior(model, params, size, basis), np.random.default_rng(1).random((9, 11)).astype(np.float32)
    found = epll.denoised(noisy, 0.1, prior, KERNELS)
    assert np.abs(found - noisy).max() > 0.05
    np.testing.assert_allclose(found, slow_epll(noisy, 0.1, prior), atol=1e-5)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_the_filter_of_each_covariance_type(covariance_type):
    """mu + V (V + v)⁻¹ (x - mu), of the component that the label names."""
    model, params = mixture(3, 5, covariance_type)
    rng, v = np.random.default_rng(2), 0.02
    x, labels = rng.normal(size=(40, 5)), rng.integers(3, size=40)
    found = model.component.expected(model.blurred(params, v).theta, x, labels, v)
    for row, label, clean in zip(x, labels, found, strict=True):
        own = params.theta.covariances if covariance_type == "tied" else params.theta.covariances[label]
        full = {0: own * np.eye(5), 1: np.diag(np.ravel(own)), 2: own}[0 if np.ndim(own) == 0 else np.ndim(own)]
        mu = params.theta.means[label]
        np.testing.assert_allclose(clean, mu + full @ np.linalg.solve(full + v * np.eye(5), row - mu), atol=1e-12)


def test_the_most_probable_component_is_that_of_all_densities():
    """Where bounds rule out most pairs, the component that is left has the highest density."""
    model, params = mixture(64, 48)
    blurred = model.blurred(params, 1e-3)
    x = model.sample(params, 600, np.random.default_rng(3))[0].astype(np.float32)
    near = model.component.near_log_joint(blurred.theta, np.log(params.weights), x, 0, KERNELS)
    assert np.isinf(near).mean() > 0.9
    every = model.log_joint(blurred, x, KERNELS)
    labels = model.most_probable(blurred, x, KERNELS)
    np.testing.assert_allclose(every[np.arange(600), labels], every.max(axis=1), atol=0.01)


def test_psnr_and_ssim_are_those_of_their_definitions():
    """By loops over windows; bands give what the whole picture does."""
    rng = np.random.default_rng(4)
    clean = rng.random((BAND + 20, 14)).astype(np.float32)
    found = clean + 0.1 * rng.standard_normal(clean.shape).astype(np.float32)
    cut = np.clip(found, 0, 1).astype(np.float64)
    at = np.arange(-5, 6)
    window = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for i in range(clean.shape[0] - 10):
        for j in range(clean.shape[1] - 10):
            a, b = cut[i : i + 11, j : j + 11], clean[i : i + 11, j : j + 11].astype(np.float64)
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    psnr, ssim = likeness(found, clean)
    assert psnr == pytest.approx(10 * np.log10(1 / np.mean((cut - clean) ** 2)), rel=1e-9)
    assert ssim == pytest.approx(np.mean(values), rel=1e-9)
    assert likeness(clean, clean)[0] == np.inf and likeness(clean[:9], clean[:9])[1] is None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on patches of two scenes; `noisy` and `clean` folders of two others, one of them in colour."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("training", "noisy", "clean"):
        (folder / kind).mkdir()
    for i in range(2):
        Image.fromarray(scene(70, 60, i)).save(folder / "training" / f"{i}.png")
    rng = np.random.default_rng(5)
    grey, colour = scene(48, 40, 7), np.stack([scene(40, 44, 8 + i) for i in range(3)], axis=2)
    for name, pixels in (("grey", grey), ("colour", colour)):
        noisy = np.clip(pixels + 20 * rng.standard_normal(pixels.shape), 0, 255).round().astype(np.uint8)
        Image.fromarray(noisy).save(folder / "noisy" / f"{name}.png")
        Image.fromarray(pixels).save(folder / "clean" / f"{name}.png")
    config = {
        "data": {"source": "images", "path": str(folder / "training"), "patch": {"size": [4, 4]}},
        "model": {"family": "gaussian", "n_components": 4},
        "fit": {"method": "em", "max_iter": 8, "init": "k-means++"},
        "output": {"labels": False},
    }
    workflow.run(validate(config), folder / "run")
    return folder


def pixels(path: Path) -> np.ndarray:
    """Of a file."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def table(out: Path) -> dict[str, dict[str, str]]:
    """pictures.csv by the name of the picture."""
    with (out / "pictures.csv").open(newline="") as file:
        return {line["picture"]: line for line in csv.DictReader(file)}


def test_the_command_writes_pictures_figures_and_a_page(made, tmp_path):
    """Both pictures are better than before, in colour each channel as if it were grey; the page and the log have the figures."""
    out = tmp_path / "out"
    options = ["--set", f"data.path={made / 'noisy'}", "--clean", made / "clean", "--sigma", "20"]
    done = command("denoise", made / "run", *options, "--output", out)
    assert done.code == 0 and "grey.png denoised" in done.err and "2 pictures: mean PSNR" in done.err
    found = table(out)
    assert set(found) == {"grey.png", "colour.png"}
    for line in found.values():
        assert float(line["psnr"]) > float(line["psnr_noisy"]) + 3 and float(line["ssim"]) > float(line["ssim_noisy"])
    colour = pixels(out / "pictures" / "colour.png")
    red = tmp_path / "red"
    red.mkdir()
    Image.fromarray(pixels(made / "noisy" / "colour.png")[:, :, 0]).save(red / "colour.png")
    pipeline.denoise(made / "run", [f"data.path={red}"], tmp_path / "of-red", 20.0)
    assert (pixels(tmp_path / "of-red" / "pictures" / "colour.png") == colour[:, :, 0]).all()
    assert table(tmp_path / "of-red")["colour.png"]["psnr"] == ""
    page = (out / "report.html").read_text()
    assert "2 pictures without noise" in page and "data:image/png" in page and "PSNR before" in page
    assert pixels(out / "sheet.png").shape == (40 + 48 + 6, 3 * 44 + 2 * 6, 3)


def test_a_stopped_job_goes_on_and_a_finished_one_does_nothing(made, tmp_path, monkeypatch):
    """Pictures that are there with their line stay as they are; the level of noise is estimated within a tenth and logged."""
    out, changes = tmp_path / "out", [f"data.path={made / 'noisy'}"]
    pipeline.denoise(made / "run", changes, out)
    levels = {name: float(line["sigma"]) for name, line in table(out).items()}
    assert all(abs(level - 20) < 2 for level in levels.values())
    assert "noise_level" in (out / "events.jsonl").read_text()
    grey = out / "pictures" / "grey.png"
    before, lines = grey.read_bytes(), (out / "pictures.csv").read_text()
    for name in ("report.html", "sheet.png"):
        (out / name).unlink()
    grey.unlink()
    workflow.resume(out)
    assert grey.read_bytes() == before and (out / "report.html").exists() and (out / "sheet.png").exists()
    assert (out / "pictures.csv").read_text().count("colour.png") == lines.count("colour.png")
    monkeypatch.setattr(denoising, "_pictures", lambda *_: pytest.fail("all pictures are there"))
    workflow.resume(out)


def test_pieces_of_a_picture_are_those_of_the_whole(made, monkeypatch):
    """A picture in nine pieces, each with the margin that it depends on, is that in one piece, to rounding."""
    config = validate(
        {"data": {"source": "images", "path": str(made / "noisy/grey.png")}, "model": {"family": "gaussian"}}
    )
    source, (model, params) = config.data.open(), mixture(3, 15)
    prior = PatchPrior(model, params, (4, 4), patch_basis((4, 4)))
    task = denoising.DenoisePiece(source, prior)

    def whole() -> np.ndarray:
        found = np.full((48, 40), np.nan, np.float32)
        for piece in denoising._pieces(source, 0, 0.08, prior.margin, denoising.SIDE):
            _, found[piece.core], _ = task(piece, KERNELS)
        return found

    at_once = whole()
    monkeypatch.setattr(denoising, "SIDE", 16)
    assert len(list(denoising._pieces(source, 0, 0.08, prior.margin, denoising.SIDE))) == 9
    np.testing.assert_allclose(whole(), at_once, atol=1e-5)


def test_masks_and_kernels_by_the_command(made, tmp_path):
    """Filled in and sharpened pictures are nearer to the clean ones; a lone mask is that of all pictures; colour by channel."""
    harmed = tmp_path / "harmed"
    harmed.mkdir()
    rng = np.random.default_rng(6)
    missing = rng.random((48, 40)) < 0.3
    clean = pixels(made / "clean" / "grey.png")
    Image.fromarray(np.where(missing, 0, clean)).save(harmed / "grey.png")
    Image.fromarray((255 * missing).astype(np.uint8)).save(tmp_path / "mask.png")
    options = ["--set", f"data.path={harmed}", "--clean", made / "clean", "--sigma", "1"]
    filled = tmp_path / "filled"
    assert command("denoise", made / "run", *options, "--mask", tmp_path / "mask.png", "--output", filled).code == 0
    found = table(filled)["grey.png"]
    assert float(found["psnr"]) > float(found["psnr_noisy"]) + 8
    (filled / "pictures" / "grey.png").rename(tmp_path / "before.png")
    workflow.resume(filled)
    assert (filled / "pictures" / "grey.png").read_bytes() == (tmp_path / "before.png").read_bytes()
    np.save(tmp_path / "blur.npy", np.ones((3, 5)))
    padded = np.pad(clean.astype(float), ((1, 1), (2, 2)), "symmetric")
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (3, 5)).mean(axis=(2, 3))
    Image.fromarray(np.rint(blurred).astype(np.uint8)).save(harmed / "grey.png")
    assert (
        command(
            "denoise", made / "run", *options, "--kernel", tmp_path / "blur.npy", "--output", tmp_path / "sharp"
        ).code
        == 0
    )
    found = table(tmp_path / "sharp")["grey.png"]
    assert float(found["psnr"]) > float(found["psnr_noisy"]) + 3
    np.save(tmp_path / "even.npy", np.ones((2, 5)))
    for given, said in (
        ({"sigma": None, "mask": tmp_path / "mask.png"}, "no --sigma"),
        ({"sigma": 1.0, "kernel": tmp_path / "even.npy"}, r"got \(2, 5\)"),
        ({"sigma": 1.0, "kernel": tmp_path / "mask.png"}, "cannot be read"),
        ({"sigma": 1.0, "kernel": tmp_path / "blur.npy", "mask": tmp_path / "mask.png"}, "one of them"),
        ({"sigma": 1.0, "mask": made / "noisy" / "colour.png"}, "40 x 44 pixels"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.denoise(made / "run", [f"data.path={harmed}"], tmp_path / "no", **given)


def test_pictures_of_one_name_are_told_apart_by_their_folders(made, tmp_path):
    """Each is compared with that of the same folder inside, whatever the suffix; where no folder inside has it, with that of its name alone."""
    for folder, seed in (("one", 7), ("two", 9)):
        for kind in ("noisy", "clean"):
            (tmp_path / kind / folder).mkdir(parents=True)
        Image.fromarray(scene(48, 40, seed)).save(tmp_path / "noisy" / folder / "a.png")
        Image.fromarray(scene(48, 40, seed)).save(tmp_path / "clean" / folder / "a.tif")
    changes = [f"data.path={tmp_path / 'noisy'}/*/a.png"]
    out = pipeline.denoise(made / "run", changes, tmp_path / "out", 20.0, f"{tmp_path / 'clean'}/*/a.tif")
    assert {line["psnr_noisy"] for line in table(out).values()} == {"inf"}
    (tmp_path / "clean" / "one" / "a.tif").rename(tmp_path / "clean" / "a.tif")
    config = validate({"data": {"source": "images", "path": "x"}, "model": {"family": "gaussian"}})
    noisy = config.data.model_copy(update={"path": changes[0].partition("=")[2]}).open()
    found = beside(noisy, config, "clean", f"{tmp_path / 'clean'}/**/a.tif")
    assert [source.pictures()[0][number] for source, number in found] == ["a.tif", "two/a.tif"]


def test_what_cannot_be_denoised_is_refused(made, tmp_path):
    """Each refusal says what was found; nothing is written."""
    noisy, run = f"data.path={made / 'noisy'}", made / "run"
    alone = tmp_path / "alone"
    alone.mkdir()
    Image.fromarray(scene(48, 40)).save(alone / "grey.png")
    for changes, options, said in (
        ([noisy], {"sigma": 0.0}, "sigma 0"),
        ([noisy, "data.patch.size=[2, 8]"], {}, "data.patch.size"),
        ([noisy, "model.n_components=3"], {}, "model.n_components"),
        ([noisy], {"clean": alone}, "has no picture colour"),
        ([f"data.path={alone}"], {"clean": made / "training"}, "has no picture grey"),
        ([f"data.path={alone}"], {"output": None}, "--output"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.denoise(run, changes, **{"output": tmp_path / "no", **options})
    assert not (tmp_path / "no").exists()


def test_runs_of_other_models_are_refused(made, monkeypatch):
    """K-means has no covariances, noise no filter, and preprocessed pixels have other errors."""
    data = {"source": "images", "path": str(made / "training"), "patch": {"size": [4, 4]}}
    for model, said in (
        ({"family": "kmeans", "n_components": 2}, "family kmeans"),
        ({"family": "gaussian", "noise": "uniform"}, "model.noise"),
    ):
        with pytest.raises(InputError, match=said):
            denoising._prior(RunDirectory(made / "run"), validate({"data": data, "model": model}))
    stored = model_store.load_model
    monkeypatch.setattr(model_store, "load_model", lambda found: (*stored(found)[:2], "an affine map"))
    with pytest.raises(InputError, match="preprocess"):
        denoising._prior(RunDirectory(made / "run"), validate({"data": data, "model": {"family": "gaussian"}}))
