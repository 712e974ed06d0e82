#!/usr/bin/env python3
"""Handwritten digits by codes of their patches: a linear classifier on `em-pipeline encode`, beside one on pixels.

    scripts/experiments/encoding_digits.py MNIST                    the folder of the four IDX files, gzipped or not
    scripts/experiments/encoding_digits.py MNIST --train 2000 --work /scratch/digits --picture codes.png
    scripts/experiments/encoding_digits.py MNIST --train 60000 --codes words-2 triangle-2 soft-2

The first --train digits of the training set train the classifier; all 10,000 of the test set, or the first --test, are classified. Two
models of 200 components are fitted to the patches of 6 x 6 pixels of the training digits, one patch in 2 x 2, without labels: K-means of
patches of equal contrast after ZCA, and a Gaussian mixture of variances after a PCA to 20 features. Codes are of all patches, pooled over
quadrants. The classifier is scikit-learn's RidgeClassifierCV on standardized features, its penalty by leave-one-out; pixels also as they are.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

import pipeline

KMEANS = """\
data: {{source: images, path: {work}/train, patch: {{size: [6, 6], stride: 2, contrast: 0.1}}}}
preprocess: [{{kind: zca, epsilon: 0.1}}]
model: {{family: kmeans, n_components: 200}}
fit: {{method: em, init: "k-means||", max_iter: 40, tol: 1.0e-4}}
engine: {{keep_decoded: true}}
output: {{path: {work}/kmeans, labels: false}}
"""
GAUSSIAN = """\
data: {{source: images, path: {work}/train, patch: {{size: [6, 6], stride: 2}}}}
preprocess: [{{kind: pca, n_components: 20}}]
model: {{family: gaussian, n_components: 200, covariance_type: diag, reg_covar: 1.0e-4}}
fit: {{method: em, init: "k-means||", max_iter: 40, tol: 1.0e-3}}
engine: {{keep_decoded: true}}
output: {{path: {work}/gaussian, labels: false}}
"""
CONFIGS = {"kmeans": KMEANS, "gaussian": GAUSSIAN}
CODES = [  # of which run, code, pool, grid
    ("kmeans", "words", None, (2,)),
    ("kmeans", "triangle", "sum", (1,)),
    ("kmeans", "triangle", "sum", (2,)),
    ("gaussian", "soft", "sum", (2,)),
    ("gaussian", "fisher", None, (1,)),
    ("gaussian", "fisher", None, (2,)),
]


def idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes, gzipped or not."""
    path = next(each for each in (folder / f"{name}.gz", folder / name) if each.exists())
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def write(pictures: np.ndarray, folder: Path) -> None:
    """Pictures as PNG, by number."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:05d}.png", compress_level=1)


def encoded(work: Path, run: str, code: str, pool: str | None, grid: tuple[int, ...]) -> list[np.ndarray]:
    """Codes of the digits of training and test, of all patches."""
    found = []
    for part in ("train", "test"):
        changes = [f"data.path={work / part}", "data.patch.stride=1"]
        output = work / f"{run}-{code}-{grid[-1]}-{part}"
        store = pipeline.encode(work / run, code, changes, output, pool=pool, grid=grid)
        found.append(xr.open_zarr(store, consolidated=False)["code"].values.astype(np.float32))
    return found


def error(train: np.ndarray, test: np.ndarray, labels: list[np.ndarray], standardized: bool = True) -> float:
    """The share of the test that a linear classifier gets wrong."""
    scaler = StandardScaler(with_std=standardized).fit(train)
    classifier = RidgeClassifierCV(alphas=np.logspace(0, 5, 11)).fit(scaler.transform(train), labels[0])
    return float((classifier.predict(scaler.transform(test)) != labels[1]).mean())


def draw(work: Path, digits: np.ndarray, path: Path) -> None:
    """The centres of K-means as patches, and four digits beside the words of their patches, each drawn by its centre's mean patch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from pipeline.data.patch import patch_basis
    from pipeline.outputs.model_store import load_model, read_dataset

    codes = xr.open_zarr(work / "kmeans-words-2-test" / "encode.zarr", consolidated=False)["code"].values
    _, params, affine = load_model(read_dataset(work / "kmeans" / "model.zarr"))
    patches = (params.centers @ affine.inverse() + affine.offset) @ patch_basis((6, 6)).T
    patches = patches.reshape(-1, 6, 6) / np.abs(patches).max(axis=1)[:, None, None]
    sheet = np.full((10 * 7 + 1, 20 * 7 + 1), np.nan)
    for k in range(200):
        sheet[k // 20 * 7 + 1 : k // 20 * 7 + 7, k % 20 * 7 + 1 : k % 20 * 7 + 7] = patches[k]
    figure = plt.figure(figsize=(12, 8.4), dpi=72, layout="constrained")
    grid = figure.add_gridspec(3, 4, height_ratios=[4, 1.6, 1.2])
    top = figure.add_subplot(grid[0, :])
    top.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    top.set_title(
        "200 centres of patches, by size; four digits, and how many patches of each quadrant are nearest to each centre"
    )
    top.axis("off")
    for i in range(4):
        above, below = figure.add_subplot(grid[1, i]), figure.add_subplot(grid[2, i])
        above.imshow(digits[i], cmap="gray")
        above.axhline(13.5, color="tab:blue", lw=1)
        above.axvline(13.5, color="tab:blue", lw=1)
        above.axis("off")
        below.imshow(codes[i].reshape(4, 200), aspect="auto", cmap="gray_r", vmax=6, interpolation="nearest")
        below.set_yticks(range(4), ["top left", "top right", "bottom left", "bottom right"] if i == 0 else [""] * 4)
        below.set_xlabel("centre")
    figure.savefig(path)


def main() -> int:
    """Print a line for each code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument(
        "--work", type=Path, help="a new folder for pictures, runs and codes; a temporary one by default"
    )
    names = [f"{code}-{grid[-1]}" for _, code, _, grid in CODES]
    parser.add_argument(
        "--codes", nargs="+", choices=names, default=names, help="all by default; Fisher codes of many digits are large"
    )
    parser.add_argument("--pixels", action="store_true", help="only classify pixels, without a fit")
    parser.add_argument("--picture", type=Path, help="also draw centres and words")
    options = parser.parse_args()
    if options.picture is not None and "words-2" not in options.codes:
        parser.error("--picture draws the words of --codes words-2")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        digits = (
            idx(options.mnist, "train-images-idx3-ubyte")[: options.train],
            idx(options.mnist, "t10k-images-idx3-ubyte")[: options.test],
        )
        labels = [
            idx(options.mnist, f"{part}-labels-idx1-ubyte")[: len(own)]
            for part, own in zip(("train", "t10k"), digits, strict=True)
        ]
        print(f"{'features':28} {'columns':>8} {'test error':>11} {'CPU s of codes':>15}")
        pixels = [own.reshape(len(own), -1).astype(np.float32) / 255 for own in digits]
        for name, standardized in (("pixels, standardized", True), ("pixels, as they are", False)):
            print(f"{name:28} {784:8} {error(*pixels, labels, standardized):10.2%} {0:15.0f}", flush=True)
        if options.pixels:
            return 0
        for part, own in zip(("train", "test"), digits, strict=True):
            write(own, work / part)
        chosen = [each for each, name in zip(CODES, names, strict=True) if name in options.codes]
        for config in (CONFIGS[run] for run in dict.fromkeys(run for run, *_ in chosen)):
            (work / "fit.yaml").write_text(config.format(work=work))
            pipeline.run(pipeline.load_config(work / "fit.yaml"))
        for run, code, pool, grid in chosen:
            began = time.process_time()
            found = encoded(work, run, code, pool, grid)
            took = time.process_time() - began
            name = f"{code}, {grid[-1]} x {grid[-1]} cells"
            print(f"{name:28} {found[0].shape[1]:8} {error(*found, labels):10.2%} {took:15.0f}", flush=True)
        if options.picture is not None:
            draw(work, digits[1], options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
