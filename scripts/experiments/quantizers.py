#!/usr/bin/env python3
"""Product and residual quantisers of K-means (`model.parts`, `model.stages`) beside faiss's, on patches of two photographs.

    scripts/experiments/quantizers.py                       patches of 8 x 8, grey, of the photographs that scikit-learn brings
    scripts/experiments/quantizers.py --side 4 --stride 4   others

Each method is fitted to all rows and codes the same rows. The error is the mean squared error of a value, white being 1. faiss 1.x
(pip install faiss-cpu) gets all rows too: `ProductQuantizer` with its 25 iterations, and `ResidualQuantizer`, which chooses codes by a
beam: of 1, which is greedy as ours, and of 5, its default. Seconds are of CPU, of the fit and the codes. The second table has 10 bits a
row, where flat K-means of 1024 centres can be computed too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.jobconfig import validate
from pipeline.outputs.compressed import Compressed


def patches(side: int, stride: int) -> np.ndarray:
    """Patches of both photographs in grey, (n, side²) float32 from 0 to 1."""
    found = []
    for picture in load_sample_images().images:
        grey = picture.mean(axis=2) / 255
        every = np.lib.stride_tricks.sliding_window_view(grey, (side, side))[::stride, ::stride]
        found.append(every.reshape(-1, side * side))
    return np.ascontiguousarray(np.concatenate(found), np.float32)


def ours(x: np.ndarray, **model: Any) -> float:
    """The error of `em-pipeline run` and `compress`."""
    with TemporaryDirectory() as folder:
        here = Path(folder)
        np.save(here / "x.npy", x)
        config = {
            "data": {"source": "npy", "path": str(here / "x.npy")},
            "model": {"family": "kmeans", **model},
            "output": {"path": str(here / "run"), "labels": False},
        }
        run = pipeline.run(validate(config))
        codes = pipeline.compress(run, [], here / "codes")
        return Compressed(codes / "compress.zarr").figures.mean_squared_error


def of_faiss(x: np.ndarray, quantizer: Any) -> float:
    """The error of a faiss quantiser that is trained on all rows."""
    quantizer.cp.max_points_per_centroid = len(x)
    quantizer.train(x)
    return float(((quantizer.decode(quantizer.compute_codes(x)) - x) ** 2).mean())


def residual(d: int, stages: int, bits: int, beam: int) -> Any:
    """faiss's residual quantiser with a beam."""
    quantizer = faiss.ResidualQuantizer(d, stages, bits)
    quantizer.max_beam_size = beam
    return quantizer


def flat(x: np.ndarray, k: int) -> float:
    """The error of faiss's K-means, 25 iterations."""
    found = faiss.Kmeans(x.shape[1], k, niter=25, max_points_per_centroid=len(x), seed=1)
    found.train(x)
    return float(found.index.search(x, 1)[0].mean() / x.shape[1])


def line(name: str, bits: int, run: Callable[[], float]) -> None:
    """Run a method, and print its line."""
    began = time.process_time()
    error = run()
    print(
        f"{name:34} {bits:5d} {error:12.6f} {-10 * np.log10(error):8.2f} {time.process_time() - began:9.1f}", flush=True
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--stride", type=int, default=3)
    options = parser.parse_args()
    x = patches(options.side, options.stride)
    d = x.shape[1]
    head = f"{'method':34} {'bits':>5} {'mean sq. err':>12} {'PSNR, dB':>8} {'CPU, s':>9}"
    print(f"{len(x)} rows of {d} values, variance {x.var(axis=0).mean():.5f}\n\n{head}")
    for parts in (4, 8):
        line(f"parts: {parts}, 256 entries", 8 * parts, lambda p=parts: ours(x, parts=p, n_components=256))
        line(f"faiss PQ {parts} x 256", 8 * parts, lambda p=parts: of_faiss(x, faiss.ProductQuantizer(d, p, 8)))
    line("stages: 4, 256 entries", 32, lambda: ours(x, stages=4, n_components=256))
    for beam in (1, 5):
        line(f"faiss RQ 4 x 256, beam {beam}", 32, lambda b=beam: of_faiss(x, residual(d, 4, 8, b)))
    line("n_components: 256", 8, lambda: ours(x, n_components=256))
    line("faiss K-means 256", 8, lambda: flat(x, 256))
    print(f"\n{head}")
    line("parts: 2, 32 entries", 10, lambda: ours(x, parts=2, n_components=32))
    line("faiss PQ 2 x 32", 10, lambda: of_faiss(x, faiss.ProductQuantizer(d, 2, 5)))
    line("stages: 2, 32 entries", 10, lambda: ours(x, stages=2, n_components=32))
    line("faiss RQ 2 x 32, beam 1", 10, lambda: of_faiss(x, residual(d, 2, 5, 1)))
    line("n_components: 1024", 10, lambda: ours(x, n_components=1024))
    line("faiss K-means 1024", 10, lambda: flat(x, 1024))


if __name__ == "__main__":
    main()
