#!/usr/bin/env python3
"""Odd rows planted in three data sets: `em-pipeline outliers` beside scikit-learn's IsolationForest and LocalOutlierFactor.

    scripts/experiments/outliers.py

Of each data set half of the rows train all methods; the other half, and 1 % of odd rows, are scored. The area under the ROC curve is
of odd rows against the others; the rate is the share of the others that `outliers --rate 0.01` flags. Peers have scikit-learn's
defaults (LocalOutlierFactor with novelty=True).

    blobs      20 Gaussian clusters in 10 dimensions; odd: the same rows with each feature taken from another row
    digits     scikit-learn's 1,797 digits, 30 principal components; odd: digits upside down
    patches    40,000 patches of 8 x 8 of a photograph without their mean; odd: the same patches with noise of 0.1
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr
from sklearn.datasets import load_digits, load_sample_image
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

import pipeline
from pipeline.data.patch import patch_basis
from pipeline.jobconfig import validate

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


def blobs(rng: np.random.Generator) -> Split:
    """Training rows, other rows, odd rows."""
    x = rng.normal(size=(40_000, 10)) + 4.0 * rng.normal(size=(20, 10))[rng.integers(20, size=40_000)]
    odd = np.stack([rng.permutation(column) for column in x.T], axis=1)[:200]
    return x[:20_000], x[20_000:], odd


def digits(rng: np.random.Generator) -> Split:
    """Training rows, other rows, odd rows."""
    pictures = rng.permutation(load_digits().data)
    train, rest = pictures[:900], pictures[900:]
    pca = PCA(30, random_state=0).fit(train)
    odd = rest[:60].reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)
    return pca.transform(train), pca.transform(rest), pca.transform(odd)


def patches(rng: np.random.Generator) -> Split:
    """Training rows, other rows, odd rows."""
    grey = load_sample_image("china.jpg").mean(axis=2) / 255
    windows = np.lib.stride_tricks.sliding_window_view(grey, (8, 8)).reshape(-1, 64)
    x = windows[rng.choice(len(windows), 40_000, replace=False)]
    odd = x[20_000:20_200] + 0.1 * rng.normal(size=(200, 64))
    basis = patch_basis((8, 8))
    return x[:20_000] @ basis, x[20_000:] @ basis, odd @ basis


def ours(split: Split, k: int, folder: Path) -> tuple[np.ndarray, float]:
    """Scores, higher for odder rows, and the share of the others that is flagged."""
    train, rest, odd = split
    np.save(folder / "train.npy", train)
    np.save(folder / "new.npy", np.concatenate([rest, odd]))
    config = {
        "data": {"source": "npy", "path": str(folder / "train.npy")},
        "model": {"family": "gaussian", "n_components": k},
        "fit": {"max_iter": 30},
    }
    run = pipeline.run(validate(config), folder / "run")
    store = pipeline.outliers(run, [f"data.path={folder / 'new.npy'}"], folder / "out", rate=0.01)
    found = zarr.open_group(store, mode="r")
    return -np.asarray(found["log_density"]), float((np.asarray(found["outlier"])[: len(rest)] == 1).mean())


def main() -> int:
    """Print a line for each data set."""
    print(f"{'data':10} {'ours':>8} {'IsolationForest':>16} {'LocalOutlierFactor':>19}   rate (asked 0.01)")
    for name, make, k in (("blobs", blobs, 20), ("digits", digits, 10), ("patches", patches, 30)):
        split = make(np.random.default_rng(0))
        train, rest, odd = split
        new, truth = np.concatenate([rest, odd]), np.repeat([0, 1], [len(rest), len(odd)])
        with tempfile.TemporaryDirectory() as folder:
            scores, rate = ours(split, k, Path(folder))
        areas = [roc_auc_score(truth, scores)]
        for peer in (IsolationForest(random_state=0), LocalOutlierFactor(novelty=True)):
            areas.append(roc_auc_score(truth, -peer.fit(train).score_samples(new)))
        print(f"{name:10} {areas[0]:8.4f} {areas[1]:16.4f} {areas[2]:19.4f}   {rate:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
