#!/usr/bin/env python3
"""How often a Gaussian mixture with noise finds the 15 clusters of S1 among uniform outliers.

    scripts/experiments/noise.py                    10 % noise, 20 seeds of the noise and of the fit
    scripts/experiments/noise.py --seeds 3          fewer
    scripts/experiments/noise.py --without          the same rows without model.noise

A job with default settings for each seed. Prints a line a seed: the centroid index (0: each true centroid is nearest to one mean, and the other
way round) [Fränti, Rezaei and Zhao 2014], the learned share of noise, and the shares of the noise rows and of the others with the label -2. Ends with 1 unless
every index is 0. Needs s1.data.gz and s1-cb.txt in $EM_SHARED/clustering, by default ../shared/data/clustering.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import pipeline
from pipeline.jobconfig import validate

NOISE = -2


def centroid_index(means: np.ndarray, centroids: np.ndarray) -> int:
    """How many centroids are nearest to no mean, or means to no centroid; the larger number. (k, d) each."""
    squared = ((means[:, None] - centroids[None]) ** 2).sum(axis=2)
    return max(len(squared) - len(set(squared.argmin(axis=axis).tolist())) for axis in (0, 1))


def with_noise(x: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and uniform noise over their box in random order, and which of them are noise."""
    rng = np.random.default_rng(seed)
    many = round(len(x) * share / (1.0 - share))
    rows = np.concatenate([x, rng.uniform(x.min(axis=0), x.max(axis=0), (many, x.shape[1]))])
    order = rng.permutation(len(rows))
    return rows[order], order >= len(x)


def main() -> int:
    """Fit each seed; return 0 if every centroid index is 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--without", action="store_true")
    asked = parser.parse_args()
    folder = Path(os.environ.get("EM_SHARED", "../shared/data")) / "clustering"
    x, centroids = np.loadtxt(folder / "s1.data.gz"), np.loadtxt(folder / "s1-cb.txt", delimiter=",")
    right = 0
    for seed in range(asked.seeds):
        rows, noise = with_noise(x, asked.share, seed)
        with tempfile.TemporaryDirectory() as place:
            np.save(Path(place) / "x.npy", rows)
            config = {
                "data": {"source": "npy", "path": f"{place}/x.npy"},
                "model": {"n_components": 15, "noise": None if asked.without else "uniform"},
                "fit": {"random_state": seed},
                "output": {"path": f"{place}/run", "labels": False},
            }
            model = pipeline.open_estimator(pipeline.run(validate(config)))
        label = model.predict(rows)
        index = centroid_index(model.means_, centroids)
        right += index == 0
        found = f"share {float(getattr(model, 'noise_', 0)):.3f}, label -2: {(label[noise] == NOISE).mean():.1%} of the noise, "
        print(
            f"seed {seed:2d}: centroid index {index}, {found}{(label[~noise] == NOISE).mean():.1%} of the others",
            flush=True,
        )
    print(f"centroid index 0 in {right} of {asked.seeds} seeds")
    return 0 if right == asked.seeds else 1


if __name__ == "__main__":
    sys.exit(main())
