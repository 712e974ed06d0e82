#!/usr/bin/env python3
"""The BSDS300 benchmark of densities of natural patches: log-likelihoods of Gaussian and t mixtures beside published ones.

    scripts/experiments/bsds300.py TRAIN TEST                      two folders of pictures; --work FOLDER holds rows and runs
    scripts/experiments/bsds300.py TRAIN --hold-out 20             the last 20 pictures by name are the test
    scripts/experiments/bsds300.py TRAIN TEST --fits gaussian:50 student-t:200 --train-rows 2000000

Rows as of Uria, Murray and Larochelle [2013, RNADE]: 8 x 8 patches of grey pictures at random places, uniform noise of one
grey level added and divided by 256, the patch's mean removed and its last pixel dropped: 63 features; nats a patch. They
are written to zarr and fitted out of core, as `em-pipeline run` does. In an orthonormal basis of patches without mean a
log-density is lower by log 8: the pixels that are left are a linear map of it with determinant 1/8, which is computed.

`model.reg_covar` is 1e-9 by default. A flat patch, such as a sky that is overexposed, has the noise's variance alone, 1.3e-6
= 1 / (12 x 256²). em-pipeline's default of 1e-6, as scikit-learn's, would nearly double it: for a component of such patches
0.3 nats for each of 63 features. 1e-9 costs 63 x 1e-9 / 1.3e-6 / 2 = 0.02 nats there, and keeps covariances invertible.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from PIL import Image

import pipeline

SIDE, LEVELS, D = 8, 256, 63
CHUNK_ROWS = 25_000
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".pgm"}
PUBLISHED = {
    "one Gaussian (Tang et al. 2012)": 96.67,
    "MADE MoG (Papamakarios et al. 2017)": 148.85,
    "mixture of 200 Gaussians (Zoran and Weiss 2012)": 152.8,
    "Real NVP (Papamakarios et al. 2017)": 153.28,
    "FFJORD (Grathwohl et al. 2019)": 157.40,
}


def pictures_in(folder: Path) -> list[Path]:
    """Pictures of a folder by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise SystemExit(f"{folder}: got no pictures, expected at least one ({', '.join(sorted(PICTURES))}).")
    return found


def patches(picture: Path, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows of one picture, (n, D) float32."""
    grey = np.asarray(Image.open(picture).convert("L"))
    top = rng.integers(grey.shape[0] - SIDE + 1, size=n)
    left = rng.integers(grey.shape[1] - SIDE + 1, size=n)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (SIDE, SIDE))
    values = (windows[top, left].reshape(n, -1) + rng.random((n, SIDE * SIDE))) / LEVELS
    return (values - values.mean(axis=1, keepdims=True))[:, :D].astype(np.float32)


def all_patches(pictures: list[Path], n: int, seed: int) -> np.ndarray:
    """n rows in random order, the same number of each picture but for one. (n, D) float32."""
    rng = np.random.default_rng(seed)
    counts = np.diff(np.linspace(0, n, len(pictures) + 1).astype(int))
    rows = np.concatenate([patches(one, count, rng) for one, count in zip(pictures, counts, strict=True)])
    return rng.permutation(rows)


def stored(path: Path, pictures: list[Path], n: int, seed: int) -> Path:
    """A zarr array of the rows, written unless it is there."""
    if not path.exists():
        rows = all_patches(pictures, n, seed)
        array = zarr.create_array(path, shape=rows.shape, chunks=(min(CHUNK_ROWS, n), D), dtype="f4", overwrite=True)
        array[:] = rows
    return path


def orthonormal_constant() -> float:
    """Log-density in pixel coordinates minus that in an orthonormal basis of patches without mean, nats."""
    basis = np.linalg.svd(np.eye(SIDE * SIDE) - 1.0 / SIDE**2)[0][:, :D]
    return -float(np.linalg.slogdet(basis[:D])[1])


def config_of(name: str, train: Path, run: Path, options: argparse.Namespace) -> pipeline.Config:
    """The job of one fit, such as gaussian:200."""
    family, k = name.split(":")
    path = run.with_suffix(".yaml")
    path.write_text(
        f"""\
data: {{source: zarr, path: {train}}}
model: {{family: {family}, n_components: {k}, covariance_type: full, reg_covar: {options.reg_covar}}}
fit: {{method: {options.method}, moves: "off", init: "{options.init}", max_iter: {options.iterations}, tol: {options.tol}}}
engine: {{workers: {options.workers}, memory: {options.memory}}}
output: {{path: {run}, labels: false}}
"""
    )
    return pipeline.load_config(path, options.set)


def log_likelihoods(run: Path, rows: Path) -> Iterator[np.ndarray]:
    """Of each row, nats, chunk by chunk."""
    estimator, array = pipeline.open_estimator(run), zarr.open_array(rows, mode="r")
    for start in range(0, array.shape[0], CHUNK_ROWS):
        yield estimator.score_samples(np.asarray(array[start : start + CHUNK_ROWS], dtype=np.float64))


def fitted(name: str, train: Path, test: Path, options: argparse.Namespace) -> str:
    """Fit, or continue a fit that was stopped; one line of the table."""
    run = options.work / f"{name.replace(':', '-')}-{options.train_rows}"
    began, before = time.perf_counter(), time.process_time()
    if (run / "config.yaml").exists():
        pipeline.resume(run)
    else:
        pipeline.run(config_of(name, train, run, options), overwrite=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - before
    found = pipeline.open_run(run)
    scores = np.concatenate(list(log_likelihoods(run, test)))
    error = scores.std() / np.sqrt(len(scores))
    train_score = float(found.log_likelihood[-1]) / options.train_rows
    return (
        f"{name:16} {found.sizes['iteration']:5} {cpu:8.0f} {seconds:8.0f} {train_score:10.2f} {scores.mean():10.2f} "
        f"± {error:.2f}   {found.attrs['stop_reason']}"
    )


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="folder of pictures")
    parser.add_argument("test", type=Path, nargs="?", help="folder of other pictures")
    parser.add_argument("--hold-out", type=int, default=0, help="without TEST: how many of TRAIN's, the last by name")
    parser.add_argument("--fits", nargs="+", default=["gaussian:1", "gaussian:50", "student-t:50", "gaussian:200"])
    parser.add_argument("--train-rows", type=int, default=1_000_000)
    parser.add_argument("--test-rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0, help="of places and noise")
    parser.add_argument("--work", type=Path, default=Path("runs/bsds300"), help="folder of rows and runs")
    parser.add_argument("--reg-covar", type=float, default=1e-9)
    parser.add_argument("--method", default="incremental")
    parser.add_argument("--init", default="k-means||")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--tol", type=float, default=1e-2, help="nats a patch")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the config")
    parsed = parser.parse_args(words)
    if (parsed.test is None) == (parsed.hold_out == 0):
        parser.error("test: got both or neither of TEST and --hold-out. Give one.")
    return parsed


def main(words: list[str]) -> int:
    """Write the rows, fit, and print a table."""
    options = arguments(words)
    options.work.mkdir(parents=True, exist_ok=True)
    training = pictures_in(options.train)
    if options.test is None:
        training, testing = training[: -options.hold_out], training[-options.hold_out :]
    else:
        testing = pictures_in(options.test)
    train = stored(options.work / f"train-{options.train_rows}.zarr", training, options.train_rows, options.seed)
    test = stored(options.work / f"test-{options.test_rows}.zarr", testing, options.test_rows, options.seed + 1)
    print(
        f"training: {options.train_rows} patches of {len(training)} pictures, {training[0].name} to {training[-1].name}"
    )
    print(f"test:     {options.test_rows} patches of {len(testing)} pictures, {testing[0].name} to {testing[-1].name}")
    print(
        f"nats a patch; in an orthonormal basis {orthonormal_constant():.6f} lower (log 8 = {np.log(8):.6f})",
        flush=True,
    )
    for name, value in PUBLISHED.items():
        print(f"published, on the test pictures of BSDS300: {name:50} {value:7.2f}")
    print(f"{'fit':16} {'iter.':>5} {'CPU s':>8} {'s':>8} {'training':>10} {'test':>10}", flush=True)
    for name in options.fits:
        print(fitted(name, train, test, options), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
