"""`compress` and `decompress`: codes are those of the nearest centres, and what is restored is the centres, in few bits."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipeline import workflow
from pipeline.arrays.bits import packed, unpacked
from pipeline.data.patch import assembled
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.outputs import labels
from pipeline.outputs.compressed import Compressed
from pipeline.outputs.model_store import load_model, read_dataset
from tests.jobs import blobs, command, job


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_numbers_come_back_from_their_bits(widths, n, seed):
    """Any numbers of any widths, in as many bytes as their bits fill."""
    rng = np.random.default_rng(seed)
    numbers = np.stack([rng.integers(0, 2**width, n) for width in widths], axis=1)
    data = packed(numbers, widths)
    assert len(data) == -(-n * sum(widths) // 8)
    text = "".join(f"{value:0{width}b}" for row in numbers for value, width in zip(row, widths, strict=True))
    assert "".join(f"{byte:08b}" for byte in data)[: len(text)] == text
    assert (unpacked(data, n, widths) == numbers).all()


@given(st.integers(4, 13), st.integers(3, 11), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_patches_that_cover_a_picture_make_it_again(height, width, stride, channels):
    """Patches of 4 x 3, cut one by one, give the picture; other values are averaged pixel by pixel."""
    picture = np.random.default_rng(0).random((height, width, channels))
    tops = [*range(0, height - 4, stride), height - 4]
    lefts = [*range(0, width - 3, stride), width - 3]
    patches = np.array([picture[y : y + 4, x : x + 3].ravel() for y in tops for x in lefts])
    np.testing.assert_allclose(assembled(patches, (height, width), (4, 3), stride), picture, rtol=1e-12)
    noise = np.random.default_rng(1).random(patches.shape)
    slow, count = np.zeros_like(picture), np.zeros_like(picture)
    for patch, (y, x) in zip(noise, [(y, x) for y in tops for x in lefts], strict=True):
        slow[y : y + 4, x : x + 3] += patch.reshape(4, 3, channels)
        count[y : y + 4, x : x + 3] += 1
    np.testing.assert_allclose(assembled(noise, (height, width), (4, 3), stride), slow / count, rtol=1e-12)


def fit_rows(folder: Path, dtype: str, **changes: object) -> tuple[Path, np.ndarray]:
    """A run of K-means with five centres on rows far from the origin, and the rows."""
    x = (100 + 3 * blobs(2500)).astype(dtype)
    np.save(folder / "x.npy", x)
    changes = {"model": {"family": "kmeans", "n_components": 5}, "output": {"labels": False}, **changes}
    return workflow.run(job(folder / "x.npy", **changes), folder / "run"), x


@pytest.mark.parametrize(
    ("dtype", "preprocess"),
    [
        ("uint8", [{"kind": "standardize"}]),
        pytest.param("float64", [], marks=pytest.mark.slow),
        pytest.param("float32", [{"kind": "standardize"}], marks=pytest.mark.slow),
    ],
)
def test_rows_come_back_as_their_nearest_centres(tmp_path, dtype, preprocess):
    """By a loop over rows; three bits a row; the error is that of the restored rows."""
    run, x = fit_rows(tmp_path, dtype, preprocess=preprocess)
    out = pipeline.compress(run, [], tmp_path / "codes")
    _, params, affine = load_model(read_dataset(run / "model.zarr"))
    mapped = x.astype(float) if affine is None else affine.apply(x)
    label = np.array([((row - params.centers) ** 2).sum(axis=1).argmin() for row in mapped])
    raw = params.centers if affine is None else params.centers @ affine.inverse() + affine.offset
    restored = pipeline.decompress(out, [], tmp_path / "rows")
    got = xr.open_zarr(restored / "decompress.zarr", consolidated=False).x
    assert got.dtype == np.result_type(x.dtype, np.float32)
    np.testing.assert_allclose(got.values, raw[label], rtol=1e-6)
    figures = Compressed(out / "compress.zarr").figures
    assert figures.bits == 3 and figures.ratio == pytest.approx(3 * 8 * x.dtype.itemsize / 3)
    assert figures.mean_squared_error == pytest.approx(((x - raw[label]) ** 2).mean(), rel=1e-5)
    assert xr.open_zarr(out / "compress.zarr", consolidated=False).code.shape == (3, 128 * 3)
    page = (out / "report.html").read_text()
    assert "the 5 centres" in page and "1 bits a value" in page


def photographs(folder: Path, colour: bool) -> dict[str, np.ndarray]:
    """Smooth pictures of odd sizes."""
    folder.mkdir()
    found = {}
    for name, (height, width) in {"a": (37, 50), "b": (24, 41)}.items():
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(y / (5 + i)) * np.cos(x / (7 - i)) for i in range(3 if colour else 1)]
        pixels = np.rint(127 + 90 * np.stack(waves, axis=2)).astype(np.uint8)
        found[name] = pixels if colour else pixels[:, :, 0]
        Image.fromarray(found[name]).save(folder / f"{name}.png")
    return found


def fit_pictures(folder: Path, colour: bool, **patch: object) -> tuple[Path, dict[str, np.ndarray]]:
    """A run of K-means on patches, and the pictures."""
    pictures = photographs(folder / "photos", colour)
    cut = {"size": [4, 4], "channels": "rgb" if colour else "grey", **patch}
    config = {
        "data": {"source": "images", "path": str(folder / "photos"), "patch": cut},
        "model": {"family": "kmeans", "n_components": 20},
        "fit": {"method": "em", "max_iter": 5, "init": "k-means++"},
        "output": {"labels": False},
    }
    return workflow.run(validate(config), folder / "run"), pictures


@pytest.mark.parametrize(
    ("colour", "remove_mean", "stride"),
    [
        (False, False, None),
        (True, True, 3),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((False, True, None), (True, False, 3), (False, True, 3))
        ),
    ],
)
def test_pictures_come_back_whole(tmp_path, colour, remove_mean, stride):
    """Patch by patch: the nearest centre, and the mean in 8 bits, averaged where patches overlap; without the run and the data."""
    run, pictures = fit_pictures(tmp_path, colour, remove_mean=remove_mean)
    changes = [] if stride is None else [f"data.patch.stride={stride}"]
    out, step = pipeline.compress(run, changes, tmp_path / "codes"), stride or 4
    _, params, _ = load_model(read_dataset(run / "model.zarr"))
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "photos")
    restored = pipeline.decompress(out, [], tmp_path / "pictures")
    c, errors = 3 if colour else 1, []
    basis = pipeline.data.patch.patch_basis((4, 4), c) if remove_mean else np.eye(16 * c)
    for name, pixels in pictures.items():
        whole = pixels.reshape(*pixels.shape[:2], c).astype(np.float32)
        whole /= np.float32(255)  # as it is read, since means may lie halfway between two codes
        total, count = np.zeros(whole.shape), np.zeros(whole.shape)
        for y in [*range(0, whole.shape[0] - 4, step), whole.shape[0] - 4]:
            for x in [*range(0, whole.shape[1] - 4, step), whole.shape[1] - 4]:
                patch = whole[y : y + 4, x : x + 4]
                entry = params.centers[((patch.ravel() @ basis - params.centers) ** 2).sum(axis=1).argmin()]
                found = (entry @ basis.T).reshape(4, 4, c)
                if remove_mean:
                    found = found + np.rint(255 * patch.mean(axis=(0, 1), dtype=np.float64)) / 255
                errors.append(((found - patch) ** 2).mean())
                total[y : y + 4, x : x + 4] += found
                count[y : y + 4, x : x + 4] += 1
        expected = np.clip(255 * total / count, 0, 255).reshape(pixels.shape)
        got = np.asarray(Image.open(restored / "pictures" / f"{name}.png"), float)
        assert np.abs(got - expected).max() < 0.502
    figures = Compressed(out / "compress.zarr").figures
    bits = 5 + 8 * c * remove_mean
    assert figures.bits == bits and figures.rows == len(errors)
    assert figures.ratio == pytest.approx(8 * sum(p.size for p in pictures.values()) / (bits * len(errors)))
    assert figures.psnr == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-3)
    assert "data:image/png" in (out / "report.html").read_text()


def test_a_stopped_job_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    """Codes after the second of three blocks, rows after the first, and a picture that is missing."""
    run, _ = fit_rows(tmp_path, "float32")
    whole = pipeline.compress(run, [], tmp_path / "whole")
    monkeypatch.setattr("pipeline.applying.compressing.BLOCK_ROWS", 1024)
    once = pipeline.compress(run, [], tmp_path / "once")
    calls = []
    add = labels._Blocks.add

    def stop(self, block, files):
        add(self, block, files)
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(labels._Blocks, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(run, [], tmp_path / "stopped")
    assert not (tmp_path / "stopped/compress.zarr").exists()
    workflow.resume(tmp_path / "stopped")
    assert len(calls) == 3
    for path in sorted(once.rglob("compress.zarr/**/*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(once)).read_bytes()
    a, b = (Compressed(one / "compress.zarr").rows(0, 2500) for one in (whole, once))
    assert (a == b).all()
    rows = pipeline.decompress(whole, [], tmp_path / "rows")
    shutil.rmtree(rows / "decompress.zarr")
    workflow.resume(rows)
    assert (xr.open_zarr(rows / "decompress.zarr", consolidated=False).x.values == a).all()


def test_whole_pictures_are_compared_with_the_originals(tmp_path):
    """PSNR and SSIM of the files, beside the folder that was compressed; overlapping patches are averaged, so it is above that of patches."""
    run, pictures = fit_pictures(tmp_path, True)
    out, restored = pipeline.compress(run, ["data.patch.stride=2"], tmp_path / "codes"), tmp_path / "restored"
    done = command("decompress", out, "--original", tmp_path / "photos", "--output", restored)
    assert done.code == 0 and "2 pictures: mean PSNR" in done.err and "->" not in done.err
    with (restored / "pictures.csv").open(newline="") as file:
        lines = {line["picture"]: line for line in csv.DictReader(file)}
    for name, clean in pictures.items():
        found = np.asarray(Image.open(restored / "pictures" / f"{name}.png"), float)
        expected = 10 * np.log10(255**2 / np.square(found - clean).mean())
        assert float(lines[f"{name}.png"]["psnr"]) == pytest.approx(expected, abs=1e-4)
        assert (
            expected > Compressed(out / "compress.zarr").figures.psnr and 0.5 < float(lines[f"{name}.png"]["ssim"]) < 1
        )
    before = (restored / "pictures.csv").read_bytes()
    for left in ("pictures.csv", "pictures/b.png"):
        (restored / left).unlink()
        assert command("resume", restored).code == 0 and (restored / "pictures.csv").read_bytes() == before
    (tmp_path / "photos" / "b.png").rename(tmp_path / "photos" / "c.png")
    with pytest.raises(InputError, match="has no picture b"):
        pipeline.decompress(out, [], tmp_path / "no", original=tmp_path / "photos")
    rows, _ = fit_rows(tmp_path / "photos", "float32")
    codes = pipeline.compress(rows, [], tmp_path / "codes-of-rows")
    with pytest.raises(InputError, match="codes of rows"):
        pipeline.decompress(codes, [], tmp_path / "no", original=tmp_path / "photos")


def test_the_commands_say_what_they_did(tmp_path):
    """Rate and distortion on the screen; a finished directory is not touched by another command."""
    run, _ = fit_pictures(tmp_path, False)
    out, restored = tmp_path / "codes", tmp_path / "restored"
    done = command("compress", run, "--output", out)
    assert done.code == 0 and "PSNR" in done.err and "13 bits" in done.err
    done = command("decompress", out, "--output", restored)
    assert done.code == 0 and "restored 2 of 2 pictures" in done.err
    (restored / "pictures" / "b.png").unlink()
    assert command("resume", restored).code == 0 and (restored / "pictures" / "b.png").exists()
    done = command("decompress", out, "--output", out)
    assert done.code == 2 and "--output" in done.err


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    """A store of a stranger writes no file elsewhere."""
    run, _ = fit_pictures(tmp_path, False)
    out = pipeline.compress(run, [], tmp_path / "codes")
    names = zarr.open_group(out / "compress.zarr", mode="r+")["picture"]
    names[0] = "../outside.png"
    with pytest.raises(StorageError, match="lead out"):
        pipeline.decompress(out, [], tmp_path / "restored")
    assert not (tmp_path / "outside.png").exists() and not (tmp_path / "restored").exists()


def test_what_cannot_be_compressed_is_refused(tmp_path):
    """Each refusal says what was found, and what is valid."""
    run, _ = fit_rows(tmp_path, "float32")
    x = np.load(tmp_path / "x.npy")
    x[7, 1] = np.nan
    np.save(tmp_path / "bad.npy", x)
    mixture = workflow.run(job(tmp_path / "x.npy"), tmp_path / "mixture")
    for path, changes, said in (
        (run, ["model.n_components=3"], "model.n_components"),
        (run, [f"data.path={tmp_path / 'bad.npy'}"], "row 7 holds NaN"),
        (run, ["data.bad_rows=drop"], "bad_rows: drop"),
        (mixture, [], "Gaussian mixture"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.compress(path, changes, tmp_path / "no")
    with pytest.raises(InputError, match=r"compress\.zarr: is not there"):
        pipeline.decompress(run, [], tmp_path / "no")
    out = pipeline.compress(run, [], tmp_path / "codes")
    with pytest.raises(InputError, match=r"got data\.path"):
        pipeline.decompress(out, ["data.path=x.npy"], tmp_path / "no")
