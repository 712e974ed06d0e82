#!/usr/bin/env python3
"""Whether two versions of the package compute the same bits: a fixed table of jobs, and what each leaves in its stores.

    scripts/experiments/same_bits.py run FOLDER         runs every job with the package that is installed (or --only NAME)
    scripts/experiments/same_bits.py compare A B        compares model.zarr, candidates.zarr and labels.zarr, array by array

The jobs cross families, covariance types, methods, starts, grids, held-out rows, weights and sources, on small data in
chunks of 32 KiB, so that sums follow a tree of some depth. Arrays that were renamed are compared under their new names.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import pkgutil
import shutil
import struct
import sys
import time
import traceback
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 2**15
TYPES = ("full", "tied", "diag", "spherical")
RENAMED = {
    "left": "remaining_gain",
    "misfits": "outliers",
    "misfit_row": "outlier_row",
    "misfit_log_density": "outlier_log_density",
    "misfit_squared_distance": "outlier_squared_distance",
    "misfit_word": "outlier_word",
    "misfit_count": "outlier_count",
    "exemplars": "representatives",
    "prior_mean": "model.component.prior.mean",
    "prior_scale": "model.component.prior.scale",
    "exemplar_row": "representative_row",
    "exemplar_responsibility": "representative_responsibility",
}
ATTRIBUTES = (
    "family",
    "n_iter",
    "converged",
    "final_log_likelihood",
    "final_inertia",
    "aic",
    "bic",
    "icl",
    "order",
    "heldout",
)


def make_data(folder: Path) -> dict[str, str]:
    """Small inputs of each kind, the same each time; their paths by name."""
    import zarr
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20)
    means = 3.0 * rng.normal(size=(5, 4))
    mixing = np.eye(4) + 0.4 * rng.normal(size=(5, 4, 4))
    label = rng.choice(5, size=6000, p=[0.35, 0.25, 0.2, 0.15, 0.05])
    x = means[label] + np.einsum("nij,nj->ni", mixing[label], rng.normal(size=(6000, 4))) + [5.0, 0.0, -3.0, 100.0]
    np.save(folder / "rows.npy", x)
    np.save(folder / "rows32.npy", x.astype(np.float32))
    wide = rng.normal(size=(3000, 20)) + 2.0 * rng.normal(size=(4, 20))[rng.integers(4, size=3000)]
    np.save(folder / "wide.npy", wide.astype(np.float32))
    np.save(folder / "weights.npy", rng.uniform(0.1, 3.0, 6000) * (rng.uniform(size=6000) > 0.1))
    np.save(folder / "labels.npy", np.where(rng.uniform(size=6000) < 0.9, label, -1))
    np.savez(folder / "start.npz", weights=np.full(5, 0.2), means=x[:5], covariances=np.tile(np.cov(x.T), (5, 1, 1)))
    np.savez(folder / "centers.npz", centers=x[:5])
    bad = x.copy()
    bad[[7, 4000]] = np.nan
    np.save(folder / "bad.npy", bad)
    array = zarr.create_array(folder / "rows.zarr", shape=x.shape, chunks=(500, 4), dtype=x.dtype, overwrite=True)
    array[:] = x
    np.savetxt(folder / "rows.csv", x[:2000], delimiter=",", header="a,b,c,d", comments="")
    pixels = rng.integers(0, 255, size=(300, 6, 6)).astype(np.uint8)
    with gzip.open(folder / "images.idx.gz", "wb") as stream:
        stream.write(struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes())
    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(3):
        grid = np.add.outer(np.sin(np.arange(60) / (3 + i)), np.cos(np.arange(50) / (2 + i)))
        picture = 120 + 60 * grid + rng.normal(scale=9.0, size=grid.shape)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / "pictures" / f"{i}.png")
    topics = rng.dirichlet(np.full(60, 0.2), size=4)
    lines = []
    for document in range(1200):
        counts = rng.multinomial(rng.integers(5, 60), topics[rng.integers(4)])
        lines += [f"{document + 1} {word + 1} {count}" for word, count in enumerate(counts) if count]
    (folder / "docword.txt").write_text("\n".join(["1200", "60", str(len(lines)), *lines]) + "\n")
    (folder / "vocabulary.txt").write_text("\n".join(f"word{i}" for i in range(60)) + "\n")
    return {path.name: str(path) for path in folder.iterdir()}


def jobs(at: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Every job by name: sections of its config."""
    rows = {"source": "npy", "path": at["rows.npy"]}
    narrow = {"source": "npy", "path": at["rows32.npy"]}
    words = {"source": "docword", "path": at["docword.txt"], "vocabulary": at["vocabulary.txt"]}
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, data: Any, model: Any, fit: Any = None, **more: Any) -> None:
        found[name] = {"data": data, "model": model, "fit": {"max_iter": 12, **(fit or {})}, **more}

    for kind, method, init in product(TYPES, ("em", "auto", "incremental"), ("k-means||", "random")):
        model = {"n_components": 5, "covariance_type": kind}
        add(f"gaussian-{kind}-{method}-{init}", rows, model, {"method": method, "init": init})
    for kind in TYPES:
        model = {"n_components": 4, "covariance_type": kind}
        add(f"float32-{kind}", narrow, model, {"method": "auto"})
        add(f"hard-{kind}", rows, model, {"method": "em", "assignment": "hard"})
        add(f"prior-{kind}", rows, {**model, "prior": "auto"}, {"method": "auto"})
        add(f"wide-{kind}", {"source": "npy", "path": at["wide.npy"]}, model, {"method": "em", "n_init": 2})
        add(f"weights-{kind}", {**rows, "weights": at["weights.npy"]}, model, {"method": "auto"})
    for method, init in product(("em", "auto"), ("k-means||", "k-means++", "random", "near-mean")):
        add(f"kmeans-{method}-{init}", rows, {"family": "kmeans", "n_components": 6}, {"method": method, "init": init})
    for method, init in product(("em", "auto", "incremental"), ("k-means||", "k-means++", "random", "near-mean")):
        model = {"family": "multinomial", "n_components": 4}
        add(f"multinomial-{method}-{init}", words, model, {"method": method, "init": init})
    five = {"n_components": 5}
    for init, path in (("explicit", "start.npz"), ("labels", "labels.npy")):
        for method in ("em", "auto"):
            add(f"{init}-{method}", rows, five, {"method": method, "init": init, "init_path": at[path]})
    add("kmeans-explicit", rows, {"family": "kmeans", **five}, {"init": "explicit", "init_path": at["centers.npz"]})
    add("kmeans-labels", rows, {"family": "kmeans", **five}, {"init": "labels", "init_path": at["labels.npy"]})
    for init in ("k-means++", "near-mean"):
        add(f"gaussian-{init}", rows, five, {"method": "em", "init": init})
    for part in ("weights", "means", "covariances"):
        add(f"fixed-{part}", rows, {**five, "fixed": [part]}, {"method": "auto"})
    add("multinomial-hard", words, {"family": "multinomial", **five}, {"assignment": "hard"})
    add("multinomial-prior", words, {"family": "multinomial", **five, "prior": {"weights": 2.0}}, {"method": "auto"})
    add("multinomial-fixed", words, {"family": "multinomial", **five, "fixed": ["weights"]}, {"method": "auto"})
    add("multinomial-plain", words, {"family": "multinomial", **five, "concentration": 1.0}, {"method": "em"})
    grid = {"n_components": [2, 3, 5], "covariance_type": ["full", "diag"]}
    add("grid-bic", rows, grid, {"method": "auto", "n_init": 2})
    add("grid-heldout", rows, grid, {"method": "em"}, select={"criterion": "heldout", "heldout": 0.2})
    add("grid-icl-multinomial", words, {"family": "multinomial", "n_components": [2, 4]}, select={"criterion": "icl"})
    add(
        "heldout-pictures",
        {"source": "images", "path": at["pictures"]},
        {"n_components": 3},
        {"method": "em"},
        select={"heldout": 0.4},
    )
    add("restarts", rows, five, {"method": "auto", "n_init": 3, "random_state": 7})
    add("pruning", rows, {"n_components": 8}, {"method": "auto"}, select={"annihilation": True})
    add("errors", rows, {"n_components": 3}, {"method": "em"}, output={"standard_errors": True, "top_k": 2})
    add("bad-rows", {"source": "npy", "path": at["bad.npy"], "bad_rows": "drop"}, five, {"method": "em"})
    add("zarr", {"source": "zarr", "path": at["rows.zarr"]}, five, {"method": "auto"})
    add("csv", {"source": "csv", "path": at["rows.csv"]}, five, {"method": "auto"})
    add(
        "idx",
        {"source": "idx", "path": at["images.idx.gz"]},
        {"n_components": 3, "covariance_type": "diag"},
        {"method": "em"},
    )
    add("digits", {"source": "bundled", "path": "digits"}, {"family": "kmeans", "n_components": 10})
    patch = {"size": [4, 4], "stride": 2, "contrast": 0.05}
    add(
        "pictures",
        {"source": "images", "path": at["pictures"], "patch": patch},
        {"n_components": 4},
        {"method": "auto"},
    )
    mixture = {"weights": [0.5, 0.5], "means": [[0, 0], [4, 4]], "covariances": [1.0, 2.0]}
    add(
        "synthetic",
        {"source": "synthetic", "n_rows": 9000, "mixture": mixture},
        {"n_components": 2},
        {"method": "auto"},
    )
    for steps in ([{"kind": "standardize"}], [{"kind": "pca", "n_components": 3, "whiten": True}], [{"kind": "zca"}]):
        add(f"preprocess-{steps[0]['kind']}", rows, five, {"method": "auto"}, preprocess=steps)
    add(
        "kmeans-pca",
        {"source": "npy", "path": at["wide.npy"]},
        {"family": "kmeans", **five},
        preprocess=[{"kind": "pca", "n_components": 8}],
    )
    return found


def run(folder: Path, only: str | None) -> int:
    """Run the jobs into folder/<name>; how many failed."""
    import pipeline.data

    names = [module.name for module in pkgutil.walk_packages(pipeline.data.__path__, "pipeline.data.")]
    for module in map(importlib.import_module, names):  # small chunks: what is compared is also the order of sums
        if hasattr(module, "TARGET_BYTES"):
            module.TARGET_BYTES = CHUNK_BYTES

    failed = 0
    every = jobs(make_data(folder / "data"))
    (folder / "config.yaml").write_text("{}\n")
    for name, plain in every.items():
        if only is not None and only not in name:
            continue
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        plain = {
            **plain,
            "engine": {"workers": 2, "memory": "4GiB"},
            "output": {**plain.get("output", {}), "path": str(target)},
        }
        path = folder / "job.yaml"
        path.write_text(json.dumps(plain))  # JSON is YAML
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipeline.run(pipeline.load_config(path), overwrite=True)
            print(f"{name:40} {time.perf_counter() - began:6.1f} s", flush=True)
        except Exception:
            failed += 1
            print(f"{name:40} FAILED\n{traceback.format_exc()}", flush=True)
    return failed


def compare(one: Path, other: Path) -> int:
    """Print what differs; how many jobs do."""
    differ = 0
    names = sorted(path.parent.name for path in one.glob("*/model.zarr"))
    for name in names:
        found = [
            line
            for store in ("model.zarr", "candidates.zarr", "labels.zarr")
            for line in _stores(one / name / store, other / name / store)
        ]
        differ += bool(found)
        for line in found:
            print(f"{name}: {line}")
    print(f"{len(names)} jobs, {differ} differ")
    return differ


def _stores(one: Path, other: Path) -> list[str]:
    import zarr

    if not one.exists():
        return []
    if not other.exists():
        return [f"{other.name} is missing"]
    a, b = zarr.open_group(one, mode="r"), zarr.open_group(other, mode="r")
    lines = _groups(a, b, one.name)
    for group, _ in a.groups():
        lines += (
            _groups(a[group], b[group], f"{one.name}/{group}") if group in b else [f"{one.name}/{group} is missing"]
        )
    return lines


def _groups(a: Any, b: Any, where: str) -> list[str]:
    lines = []
    for name, array in a.arrays():
        new = name if name in b else RENAMED.get(name, name)
        if new not in b:
            lines.append(f"{where}: {name} is gone")
            continue
        x, y = np.asarray(array[...]), np.asarray(b[new][...])
        if x.dtype.kind in "OUT":
            same = x.tolist() == y.tolist()
        else:
            same = x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y, equal_nan=True)
        if not same:
            apart = (
                np.nanmax(np.abs(x - y)) / max(np.nanmax(np.abs(x)), 1e-300)
                if x.shape == y.shape and x.dtype.kind == "f"
                else np.nan
            )
            lines.append(f"{where}: {name} differs, {apart:.2g} of the largest entry")
    for name in ATTRIBUTES:
        if name in a.attrs and a.attrs[name] != b.attrs.get(name):
            lines.append(f"{where}: attribute {name} was {a.attrs[name]!r:.60}, is {b.attrs.get(name)!r:.60}")
    return lines


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--only", help="jobs whose names have this in them")
    comparing = commands.add_parser("compare")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    words = parser.parse_args()
    return min(
        1, run(words.folder.resolve(), words.only) if words.command == "run" else compare(words.one, words.other)
    )


if __name__ == "__main__":
    sys.exit(main())
