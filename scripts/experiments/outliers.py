#!/usr/bin/env python3
"""Odd rows planted in three data sets: `em-pipeline outliers` beside scikit-learn's IsolationForest and LocalOutlierFactor.

    scripts/experiments/outliers.py
    scripts/experiments/outliers.py --rates --seeds 10 --data digits      rates of false alarms alone, means of 10 splits

Of each data set half of the rows train all methods; the other half, and 1 % of odd rows, are scored. The area under the ROC curve is
of odd rows against the others. Rates are the shares of the others that `outliers --rate 0.01` flags, where the threshold is

    training    of the rows that the model was fitted to
    held out    of a fifth of the training rows, which were held out: select: {heldout: 0.2, refit: false}
    others      of a prediction for half of the other rows (--calibration), of which only the other half counts

Peers have scikit-learn's defaults (LocalOutlierFactor with novelty=True).

    blobs      20 Gaussian clusters in 10 dimensions; odd: the same rows with each feature taken from another row
    digits     scikit-learn's 1,797 digits, 30 principal components; odd: digits upside down
    patches    40,000 patches of 8 x 8 of a photograph without their mean; odd: the same patches with noise of 0.1
"""

from __future__ import annotations

import argparse
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


def ours(split: Split, k: int, folder: Path) -> tuple[np.ndarray, list[float]]:
    """Scores, higher for odder rows, and the shares of the others that are flagged: by training, held-out and other rows."""
    train, rest, odd = split
    half = len(rest) // 2
    for name, rows in (("train", train), ("new", np.concatenate([rest, odd])), ("others", rest[:half])):
        np.save(folder / f"{name}.npy", rows)
    config = {
        "data": {"source": "npy", "path": str(folder / "train.npy")},
        "model": {"family": "gaussian", "n_components": k},
        "fit": {"max_iter": 30},
    }
    run = pipeline.run(validate(config), folder / "run")
    held_out = pipeline.run(validate({**config, "select": {"heldout": 0.2, "refit": False}}), folder / "held-out")
    others = pipeline.predict(run, [f"data.path={folder / 'others.npy'}"], folder / "others").parent
    rates = []
    for i, (model, calibration) in enumerate(((run, None), (held_out, None), (run, others))):
        new = [f"data.path={folder / 'new.npy'}"]
        store = pipeline.outliers(model, new, folder / f"out{i}", rate=0.01, calibration=calibration)
        found = zarr.open_group(store, mode="r")
        flags = np.asarray(found["outlier"])[: len(rest)] == 1
        rates.append(float(flags[half if calibration else 0 :].mean()))
        if i == 0:
            scores = -np.asarray(found["log_density"])
    return scores, rates


def main() -> int:
    """Print a line for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--rates", action="store_true", help="leave the other methods out")
    parser.add_argument("--seeds", type=int, default=1, help="splits, of which means are printed")
    options = parser.parse_args()
    peers = [] if options.rates else [IsolationForest(random_state=0), LocalOutlierFactor(novelty=True)]
    names = ["ours", *(type(peer).__name__ for peer in peers)]
    print(f"{'data':10}" + "".join(f"{name:>20}" for name in names) + "   rate (0.01): training, held out, others")
    for name in options.data:
        make, k = DATA[name]
        areas, rates = [], []
        for seed in range(options.seeds):
            split = make(np.random.default_rng(seed))
            train, rest, odd = split
            new, truth = np.concatenate([rest, odd]), np.repeat([0, 1], [len(rest), len(odd)])
            with tempfile.TemporaryDirectory() as folder:
                scores, found = ours(split, k, Path(folder))
            others = [-peer.fit(train).score_samples(new) for peer in peers]
            areas.append([roc_auc_score(truth, each) for each in (scores, *others)])
            rates.append(found)
        area = "".join(f"{each:20.4f}" for each in np.mean(areas, axis=0))
        print(f"{name:10}{area}   " + " ".join(f"{each:.4f}" for each in np.mean(rates, axis=0)), flush=True)
    return 0


DATA = {"blobs": (blobs, 20), "digits": (digits, 10), "patches": (patches, 30)}

if __name__ == "__main__":
    sys.exit(main())
