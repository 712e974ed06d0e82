#!/usr/bin/env python3
"""Denoising by a mixture of patches (`em-pipeline denoise`) beside BM3D and non-local means, on pictures that it was not fitted to.

    scripts/experiments/denoising.py PICTURES                      the last 20 by name are the test; the others are fitted to
    scripts/experiments/denoising.py PICTURES --run runs/patches   with a mixture that is there already
    scripts/experiments/denoising.py PICTURES --sigmas 25 --test 5

PICTURES is a folder of photographs, which are made grey. The mixture has 200 Gaussians with full covariances of 8 x 8 patches
without their mean, one patch in 7 x 7. Noise is Gaussian, of a fixed seed for each picture, neither rounded nor cut to 0 to 255;
each method is told its level, but for --estimate. PSNR is the mean over pictures, in decibels, of results cut to 0 to 255. Seconds are of CPU, mean
of the pictures. Peers: bm3d.bm3d of PyPI (Mäkinen, Azzari and Foi 2020), and skimage.restoration.denoise_nl_means with the
settings of scikit-image's gallery (patches of 5, distance 6, h = 0.8 sigma, fast_mode false with sigma given).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import pipeline
from pipeline.outputs.denoised import likeness

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".pgm"}


def fitted(training: list[Path], options: argparse.Namespace) -> Path:
    """The run directory of the mixture."""
    folder, run = options.work / "training", options.work / "run"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in training:
        if not (folder / picture.name).exists():
            (folder / picture.name).symlink_to(picture.resolve())
    config = options.work / "fit.yaml"
    config.write_text(
        f"""\
data: {{source: images, path: {folder}, patch: {{size: [8, 8], stride: {options.stride}, remove_mean: true}}}}
model: {{family: gaussian, n_components: {options.components}, covariance_type: full}}
fit: {{method: incremental, init: "k-means||", max_iter: {options.iterations}, tol: 1.0e-2, moves: "off"}}
output: {{path: {run}, labels: false}}
"""
    )
    return pipeline.run(pipeline.load_config(config))


def write_noisy(pictures: list[Path], sigma: float, folder: Path) -> None:
    """Grey pictures with noise, as TIFF of 32 bits in which white is 255, and without it as PNG in `clean`."""
    for kind in ("noisy", "clean"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        grey = np.asarray(Image.open(picture).convert("L"))
        noise = sigma * np.random.default_rng(i).standard_normal(grey.shape)
        Image.fromarray((grey + noise).astype(np.float32)).save(folder / "noisy" / f"{picture.stem}.tif")
        Image.fromarray(grey).save(folder / "clean" / f"{picture.stem}.png")


def by_mixture(run: Path, folder: Path, sigma: float | None) -> list[dict[str, str]]:
    """The lines of pictures.csv."""
    out = folder / ("mixture" if sigma is not None else "mixture-estimated")
    changes = [f"data.path={folder / 'noisy'}", "data.patch.range={32: 255}"]
    pipeline.denoise(run, changes, out, sigma, folder / "clean")
    with (out / "pictures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """By PyPI's bm3d, pixels from 0 to 1."""
    import bm3d as peer

    return np.asarray(peer.bm3d(noisy, sigma_psd=sigma))


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """By scikit-image, pixels from 0 to 1."""
    from skimage.restoration import denoise_nl_means

    return np.asarray(
        denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, fast_mode=False, patch_size=5, patch_distance=6)
    )


def by_peer(
    method: Callable[[np.ndarray, float], np.ndarray], names: list[str], folder: Path, sigma: float
) -> np.ndarray:
    """PSNR, SSIM and seconds of each picture, (n, 3)."""
    found = []
    for name in names:
        noisy = np.asarray(Image.open(folder / "noisy" / f"{name}.tif"), np.float64) / 255
        clean = np.asarray(Image.open(folder / "clean" / f"{name}.png"), np.float32) / np.float32(255)
        began = time.process_time()
        result = method(noisy, sigma / 255)
        seconds = time.process_time() - began
        found.append([*likeness(result, clean), seconds])
    return np.array(found, dtype=float)


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="folder of photographs")
    parser.add_argument("--test", type=int, default=20, help="how many of them, the last by name")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    parser.add_argument("--estimate", action="store_true", help="also without the mixture being told the level")
    parser.add_argument("--run", type=Path, help="a finished run, in place of a fit")
    parser.add_argument("--components", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--stride", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=["bm3d", "non_local_means"])
    parser.add_argument("--work", type=Path, default=Path("runs/denoising"))
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Fit, add noise, remove it, and print a table."""
    options = arguments(words)
    pictures = sorted(path for path in options.pictures.iterdir() if path.suffix.lower() in SUFFIXES)
    training, test = pictures[: -options.test], pictures[-options.test :]
    run = options.run or fitted(training, options)
    names = [picture.stem for picture in test]
    print(f"{len(test)} pictures, {names[0]} to {names[-1]}")
    print(f"{'sigma':>6} {'method':24} {'PSNR':>7} {'SSIM':>7} {'s':>7}   estimated", flush=True)
    peers = {"bm3d": bm3d, "non_local_means": non_local_means}
    for sigma in options.sigmas:
        folder = options.work / f"sigma-{sigma:g}"
        write_noisy(test, sigma, folder)
        noisy = by_peer(lambda pixels, _: pixels, names, folder, sigma)
        print(f"{sigma:6g} {'noisy':24} {noisy[:, 0].mean():7.2f} {noisy[:, 1].mean():7.3f}", flush=True)
        for told in (sigma, None) if options.estimate else (sigma,):
            lines = by_mixture(run, folder, told)
            found = np.array([[float(one[key]) for key in ("psnr", "ssim", "seconds", "sigma")] for one in lines])
            means, label = found.mean(axis=0), "mixture" if told is not None else "mixture, level estimated"
            levels = "" if told is not None else f"{found[:, 3].min():.2f} to {found[:, 3].max():.2f}"
            print(f"{sigma:6g} {label:24} {means[0]:7.2f} {means[1]:7.3f} {means[2]:7.2f}   {levels}", flush=True)
        for name in options.peers:
            means = by_peer(peers[name], names, folder, sigma).mean(axis=0)
            print(f"{sigma:6g} {name:24} {means[0]:7.2f} {means[1]:7.3f} {means[2]:7.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
