#!/usr/bin/env python3
"""A prior of ours in other programs: deepinv's EPLL beside `em-pipeline denoise`, and the log-densities of deepinv and of Jolideco.

    scripts/experiments/prior_elsewhere.py RUN NOISY CLEAN --sigma 25

RUN is of a Gaussian mixture of square grey patches without their mean, NOISY and CLEAN are one grey picture. It needs deepinv, jolideco and torch, which
no extra installs: pip install deepinv jolideco. The exported mixture is of whole patches: a normal density of their means comes to that of the
run, so that log-densities of patches without their mean differ by one number. Jolideco computes in float32, and its weights of pixels are set to 1.
Seconds are of CPU, on one thread for deepinv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from scipy.special import logsumexp

import pipeline
from pipeline.data.patch import patch_basis


def grey(path: Path) -> np.ndarray:
    """A picture from 0 to 1."""
    return np.asarray(Image.open(path).convert("L"), float) / 255


def psnr(picture: np.ndarray, clean: np.ndarray) -> float:
    """Decibels, of values cut to 0 to 1."""
    return float(-10 * np.log10(np.square(picture.clip(0, 1) - clean).mean()))


def main() -> None:
    """Print how far log-densities and pictures are apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--sigma", type=float, default=25)
    chosen = parser.parse_args()
    import deepinv
    import torch

    noisy, clean, sigma = grey(chosen.noisy), grey(chosen.clean), chosen.sigma / 255
    with TemporaryDirectory() as scratch:
        prior = np.load(pipeline.save_prior(chosen.run, Path(scratch) / "prior.npz"))
        (Path(scratch) / "jolideco-gmm-library-index.json").write_text(json.dumps([]))
        os.environ["JOLIDECO_GMM_LIBRARY"] = scratch  # it reads the list of its own priors when it is imported
        from jolideco.priors.patches.gmm import GaussianMixtureModel

        jolideco = GaussianMixtureModel.read(str(pipeline.save_prior(chosen.run, Path(scratch) / "prior.mat")))
        made = pipeline.denoise(chosen.run, [f"data.path={chosen.noisy}"], Path(scratch) / "out", sigma=chosen.sigma)
        ours = grey(made / "pictures" / f"{chosen.noisy.stem}.png")
        with (made / "pictures.csv").open() as file:
            seconds = float(next(csv.DictReader(file))["seconds"])
    k, d = prior["mu"].shape
    side = round(d**0.5)
    windows = np.lib.stride_tricks.sliding_window_view(clean, (side, side)).reshape(-1, d)[::97]
    centred = windows - windows.mean(axis=1, keepdims=True)
    torch.set_num_threads(1)

    def mixture(dtype: torch.dtype) -> deepinv.optim.utils.GaussianMixtureModel:
        found = deepinv.optim.utils.GaussianMixtureModel(k, d).to(dtype)
        found.set_weights(torch.tensor(prior["weights"], dtype=dtype))
        found.mu.data = torch.tensor(prior["mu"], dtype=dtype)
        found.set_cov(torch.tensor(prior["cov"], dtype=dtype))
        return found

    ours_of = pipeline.open_estimator(chosen.run).score_samples(centred @ patch_basis((side, side)))
    jolideco.__dict__["pixel_weights_numpy"] = 1.0
    by_column = centred.reshape(-1, side, side).swapaxes(1, 2).reshape(-1, d)
    for name, theirs in (
        ("deepinv", -mixture(torch.float64)(torch.tensor(centred)).detach().numpy()),
        ("Jolideco", logsumexp(jolideco.estimate_log_prob_numpy(by_column), axis=1)),
    ):
        apart = theirs - ours_of
        print(
            f"{name}: log-densities of {len(centred)} patches are apart by {apart.mean():.6f}, the same to {np.abs(apart - apart.mean()).max():.1e}"
        )
    epll = deepinv.optim.EPLL(GMM=mixture(torch.float32), n_components=k, pretrained=None, patch_size=side)
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(sigma))
    began = time.process_time()
    found = epll(torch.tensor(noisy, dtype=torch.float32)[None, None], physics, sigma=sigma, batch_size=20_000)
    spent, found = time.process_time() - began, found.detach().numpy()[0, 0]
    print(
        f"PSNR {psnr(noisy, clean):.2f} -> deepinv {psnr(found, clean):.2f} dB in {spent:.1f} s, ours {psnr(ours, clean):.2f} dB in {seconds:.1f} s"
    )
    print(
        f"the pictures are apart by {255 * np.sqrt(np.square(found - ours).mean()):.2f} grey levels (root of the mean square)"
    )


if __name__ == "__main__":
    main()
