#!/usr/bin/env python3
"""Pictures restored by a mixture of patches (`em-pipeline denoise`) beside other methods, on pictures that it was not fitted to.

    scripts/experiments/denoising.py PICTURES                      the last 20 by name are the test; the others are fitted to
    scripts/experiments/denoising.py PICTURES --run runs/patches   with a mixture that is there already
    scripts/experiments/denoising.py PICTURES --sigmas 25 --test 5
    scripts/experiments/denoising.py PICTURES --task missing       pixels that are lost, in place of noise
    scripts/experiments/denoising.py PICTURES --task blur          pictures behind a blur and noise

PICTURES is a folder of photographs, which are made grey. The mixture has 200 Gaussians with full covariances of 8 x 8 patches
without their mean, one patch in 7 x 7. Noise is Gaussian, of a fixed seed for each picture, neither rounded nor cut to 0 to 255;
each method is told its level, but for --estimate. PSNR is the mean over pictures, in decibels, of results cut to 0 to 255. Seconds are of CPU, mean
of the pictures.

    noise      peers: bm3d.bm3d of PyPI (Mäkinen, Azzari and Foi 2020), and skimage.restoration.denoise_nl_means with the settings of
               scikit-image's gallery (patches of 5, distance 6, h = 0.8 sigma, fast_mode false with sigma given)
    missing    a share of the pixels is lost, each by itself; the others have no noise, and the mixture is told 1. Peer: inpaint_biharmonic
    blur       gaussian: of deviation 1.6 pixels (25 x 25), noise sqrt(2). motion: a line of 9 pixels down the diagonal, noise 2.55. Pictures are cut to
               what the blur of the photograph determines, and the outer 16 pixels do not count: no method knows what is beyond the
               edge. Peers: richardson_lucy of 30 iterations and unsupervised_wiener, as in scikit-image's gallery
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

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


def write(pictures: list[Path], folder: Path, sigma: float, lost: float = 0.0, blur: np.ndarray | None = None) -> None:
    """Damaged grey pictures as TIFF of 32 bits in which white is 255 in `noisy`, PNG in `clean`, and what the command needs beside them."""
    for kind in ("noisy", "clean", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if blur is not None:
        np.save(folder / "blur.npy", blur)
    for i, picture in enumerate(pictures):
        grey, rng = np.asarray(Image.open(picture).convert("L")), np.random.default_rng(i)
        seen = grey
        if blur is not None:
            half = len(blur) // 2
            seen, grey = fftconvolve(grey.astype(float), blur, mode="valid"), grey[half:-half, half:-half]
        noisy = seen + sigma * rng.standard_normal(seen.shape) if sigma else seen.astype(float)
        missing = rng.random(grey.shape) < lost
        Image.fromarray(np.where(missing, 0, noisy).astype(np.float32)).save(folder / "noisy" / f"{picture.stem}.tif")
        Image.fromarray(grey).save(folder / "clean" / f"{picture.stem}.png")
        Image.fromarray(255 * missing.astype(np.uint8)).save(folder / "masks" / f"{picture.stem}.png")


def by_mixture(run: Path, folder: Path, sigma: float | None, edge: int = 0, **more: Path) -> np.ndarray:
    """PSNR, SSIM, seconds and the noise level of each picture, (n, 4). edge : pixels that do not count.  more : of `denoise`."""
    out = folder / ("mixture" if sigma is not None else "mixture-estimated")
    changes = [f"data.path={folder / 'noisy'}", "data.patch.range={32: 255}"]
    pipeline.denoise(run, changes, out, sigma, folder / "clean", **more)
    with (out / "pictures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = np.array([[float(one[key]) for key in ("psnr", "ssim", "seconds", "sigma")] for one in lines])
    for i, one in enumerate(lines if edge else ()):
        pixels = np.asarray(Image.open(out / one["file"])) / np.float32(255)
        found[i, :2] = inner(pixels, of_clean(folder, Path(one["picture"]).stem), edge)
    return found


def of_clean(folder: Path, name: str) -> np.ndarray:
    """A clean picture, from 0 to 1."""
    return np.asarray(Image.open(folder / "clean" / f"{name}.png"), np.float32) / np.float32(255)


def inner(found: np.ndarray, clean: np.ndarray, edge: int) -> tuple[float, float]:
    """PSNR and SSIM without the outer pixels."""
    part = slice(edge, -edge or None), slice(edge, -edge or None)
    psnr, ssim = likeness(found[part], clean[part])
    return psnr, np.nan if ssim is None else ssim


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


def biharmonic(damaged: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """By scikit-image, pixels from 0 to 1."""
    from skimage.restoration import inpaint_biharmonic

    return np.asarray(inpaint_biharmonic(damaged, missing))


def richardson_lucy(damaged: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """By scikit-image, pixels from 0 to 1."""
    from skimage.restoration import richardson_lucy as peer

    return np.asarray(peer(damaged.clip(0, 1), blur, num_iter=30))


def unsupervised_wiener(damaged: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """By scikit-image, pixels from 0 to 1."""
    from skimage.restoration import unsupervised_wiener as peer

    return np.asarray(peer(damaged, blur, rng=0)[0])


PEERS: dict[str, dict[str, Callable[[np.ndarray, Any], np.ndarray]]] = {  # by task; of noise they take its level
    "noise": {"bm3d": bm3d, "non_local_means": non_local_means},
    "missing": {"biharmonic": biharmonic},
    "blur": {"richardson_lucy": richardson_lucy, "unsupervised_wiener": unsupervised_wiener},
}


def by_peer(
    method: Callable[[np.ndarray, Any], np.ndarray],
    names: list[str],
    folder: Path,
    known: Callable[[str], Any],
    edge: int = 0,
) -> np.ndarray:
    """PSNR, SSIM and seconds of each picture, (n, 3). known : what the method is told of a picture."""
    found = []
    for name in names:
        noisy = np.asarray(Image.open(folder / "noisy" / f"{name}.tif"), np.float64) / 255
        told = known(name)
        began = time.process_time()
        result = method(noisy, told)
        seconds = time.process_time() - began
        found.append([*inner(result, of_clean(folder, name), edge), seconds])
    return np.array(found, dtype=float)


def motion() -> np.ndarray:
    """A line of 9 pixels down the diagonal."""
    return np.eye(9) / 9


def gaussian() -> np.ndarray:
    """Of deviation 1.6, 25 x 25."""
    one = np.exp(-0.5 * (np.arange(-12, 13) / 1.6) ** 2)
    return np.outer(one, one) / one.sum() ** 2


BLURS = {"gaussian": (gaussian, 2**0.5), "motion": (motion, 2.55)}  # and the noise behind them
EDGE = 16  # pixels of pictures behind a blur that do not count


def show(case: str, method: str, found: np.ndarray, more: str = "") -> None:
    """Print a line: means over pictures of PSNR, SSIM and, but for the damaged pictures, seconds."""
    psnr, ssim, seconds = found.mean(axis=0)[:3]
    spent = "" if method == DAMAGED else f"{seconds:7.2f}"
    print(f"{case:>8} {method:24} {psnr:7.2f} {ssim:7.3f} {spent:>7}   {more}", flush=True)


DAMAGED = "damaged"


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="folder of photographs")
    parser.add_argument("--test", type=int, default=20, help="how many of them, the last by name")
    parser.add_argument("--task", choices=PEERS, default="noise")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.5], help="of pixels that are lost")
    parser.add_argument("--blurs", nargs="+", choices=BLURS, default=list(BLURS))
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    parser.add_argument("--estimate", action="store_true", help="also without the mixture being told the level")
    parser.add_argument("--run", type=Path, help="a finished run, in place of a fit")
    parser.add_argument("--components", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--stride", type=int, default=7)
    parser.add_argument("--peers", nargs="*", help="by default all of the task")
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
    print(f"{options.task:>8} {'method':24} {'PSNR':>7} {'SSIM':>7} {'s':>7}   estimated", flush=True)
    TASKS[options.task](options, run, test, names)
    return 0


def noise(options: argparse.Namespace, run: Path, test: list[Path], names: list[str]) -> None:
    """Noise of each level."""
    for sigma in options.sigmas:
        folder, case = options.work / f"sigma-{sigma:g}", f"{sigma:g}"
        write(test, folder, sigma)
        show(case, DAMAGED, by_peer(lambda pixels, _: pixels, names, folder, str))
        for told in (sigma, None) if options.estimate else (sigma,):
            found = by_mixture(run, folder, told)
            levels = "" if told is not None else f"{found[:, 3].min():.2f} to {found[:, 3].max():.2f}"
            show(case, "mixture" if told is not None else "mixture, level estimated", found, levels)
        peers(options, case, names, folder, lambda _, level=sigma / 255: level)


def missing(options: argparse.Namespace, run: Path, test: list[Path], names: list[str]) -> None:
    """Each share of lost pixels."""
    for share in options.shares:
        folder, case = options.work / f"missing-{share:g}", f"{share:g}"
        write(test, folder, 0.0, lost=share)

        def mask(name: str, masks: Path = folder / "masks") -> np.ndarray:
            return np.asarray(Image.open(masks / f"{name}.png")) > 0

        show(case, DAMAGED, by_peer(lambda pixels, _: pixels, names, folder, str))
        show(case, "mixture", by_mixture(run, folder, 1.0, mask=folder / "masks"))
        peers(options, case, names, folder, mask)


def blur(options: argparse.Namespace, run: Path, test: list[Path], names: list[str]) -> None:
    """Each blur, with its noise."""
    for case in options.blurs:
        (made, sigma), folder = BLURS[case], options.work / f"blur-{case}"
        kernel = made()
        write(test, folder, sigma, blur=kernel)
        show(case, DAMAGED, by_peer(lambda pixels, _: pixels, names, folder, str, EDGE))
        show(case, "mixture", by_mixture(run, folder, sigma, EDGE, kernel=folder / "blur.npy"))
        peers(options, case, names, folder, lambda _, own=kernel: own, EDGE)


def peers(
    options: argparse.Namespace, case: str, names: list[str], folder: Path, known: Callable[[str], Any], edge: int = 0
) -> None:
    """A line for each peer."""
    for name, method in PEERS[options.task].items():
        if options.peers is None or name in options.peers:
            show(case, name, by_peer(method, names, folder, known, edge))


TASKS = {"noise": noise, "missing": missing, "blur": blur}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
