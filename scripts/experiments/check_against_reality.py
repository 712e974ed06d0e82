"""What `check` says against what `run` does: five jobs, each checked and then run in processes of their own.

    python scripts/experiments/check_against_reality.py [NAME ...]

Prints seconds of a pass (the median), of the start, of the labels and of all passes, predicted and seen, and the
plan's peak memory against the highest resident size of the process, looked at from outside twenty times a second
(PSS is the same where nothing else maps its libraries, and up to 115 MiB less where something does). Law: seen memory is at most the plan's, and at least 70 % of it.
Seconds on a machine that does other things in between say little: `check` and `run` of a job stand side by side,
and the ratio is what to look at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import psutil
import yaml

MIB = 2**20


def clusters(n: int, d: int, k: int, seed: int) -> np.ndarray:
    """Rows around k centres, (n, d) float32."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((k, d)).astype(np.float32)
    return rng.standard_normal((n, d), dtype=np.float32) + centers[rng.integers(k, size=n)]


def as_zarr(path: Path, x: np.ndarray, rows: int) -> str:
    """A zarr array of whole rows."""
    import zarr

    zarr.create_array(path, shape=x.shape, chunks=(rows, x.shape[1]), dtype=x.dtype)[:] = x
    return str(path)


def gaussian(folder: Path) -> dict[str, Any]:
    """A million rows of 16 features in zarr, full covariances, the textbook's loop."""
    path = as_zarr(folder / "x.zarr", clusters(1_000_000, 16, 32, 1), 65536)
    return {
        "data": {"source": "zarr", "path": path},
        "model": {"n_components": 32},
        "fit": {"method": "em", "init": "k-means++", "max_iter": 8, "tol": 0},
    }


def kmeans(folder: Path) -> dict[str, Any]:
    """Four million rows of 32 features in .npy, 100 clusters."""
    np.save(folder / "x.npy", clusters(4_000_000, 32, 100, 2))
    return {
        "data": {"source": "npy", "path": str(folder / "x.npy")},
        "model": {"family": "kmeans", "n_components": 100},
        "fit": {"method": "em", "init": "k-means++", "max_iter": 8, "tol": 0},
    }


def counts(folder: Path) -> dict[str, Any]:
    """Forty thousand documents over 5000 words, as a CSR matrix in zarr; k-means|| for a start."""
    import zarr
    from scipy import sparse

    n, words, rng = 40_000, 5000, np.random.default_rng(3)
    lengths = rng.poisson(60, size=n) + 1
    index = (words * rng.random(lengths.sum()) ** 3).astype(np.int32)
    rows = sparse.csr_array((np.ones(len(index), np.int32), index, np.append(0, np.cumsum(lengths))), shape=(n, words))
    rows.sum_duplicates()
    group = zarr.open_group(folder / "x.zarr", mode="w")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n, words]})
    for name in ("data", "indices", "indptr"):
        values = getattr(rows, name)
        group.create_array(name, shape=values.shape, chunks=(2**18,), dtype=values.dtype)[:] = values
    return {
        "data": {"source": "zarr", "path": str(folder / "x.zarr")},
        "model": {"family": "multinomial", "n_components": 20},
        "fit": {"method": "em", "max_iter": 8, "tol": 0},
    }


def images(folder: Path) -> dict[str, Any]:
    """Patches of 8 x 8 pixels of three smooth pictures, accelerated, after a search."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(4)
    for i in range(3):
        noise = rng.standard_normal((300, 400))
        scene = sum(gaussian_filter(noise, s) * s for s in (1, 3, 9))
        grey = (scene - scene.min()) / (scene.max() - scene.min())
        Image.fromarray((255 * grey).astype(np.uint8)).save(folder / f"{i}.png")
    return {
        "data": {"source": "images", "path": str(folder)},
        "model": {"n_components": 10},
        "fit": {"max_iter": 6, "tol": 0, "moves": "off"},
    }


def choosing(folder: Path) -> dict[str, Any]:
    """Four candidates with two restarts each, a tenth of the rows held out, standard errors."""
    path = as_zarr(folder / "x.zarr", clusters(500_000, 8, 6, 5), 65536)
    return {
        "data": {"source": "zarr", "path": path},
        "model": {"n_components": [4, 8], "covariance_type": ["full", "diag"]},
        "fit": {"method": "em", "init": "k-means++", "n_init": 2, "max_iter": 5, "tol": 0},
        "select": {"heldout": 0.1},
        "output": {"standard_errors": True},
    }


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    job.__name__: job for job in (gaussian, kmeans, counts, images, choosing)
}
# How a run's log calls the phases of a check.
EVENTS = {"profile": "profile", "start": "init", "search": "init", "labels": "labels"}


def command(*words: object) -> tuple[str, int]:
    """What a command in a process of its own prints, and its peak resident size, bytes."""
    started = [sys.executable, "-m", "pipeline", *map(str, words)]
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process, peak = subprocess.Popen(started, stdout=out, stderr=err), 0
        while process.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.05)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}: {err.read()[-2000:]}")
        return out.read(), peak


def compared(name: str) -> list[tuple[str, float, float]]:
    """(what, predicted, seen): MiB of memory, seconds of all else; of the passes their median and their sum."""
    with TemporaryDirectory() as scratch:
        folder, run = Path(scratch), Path(scratch) / "run"
        (folder / "data").mkdir()
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(JOBS[name](folder / "data")))
        said = json.loads(command("check", config, "--json")[0])
        _, peak = command("run", config, "--output", run)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    seen = {e["event"]: e["seconds"] for e in events if "seconds" in e}
    passes = [e for e in events if e["event"] == "pass"]
    steps = [e["seconds"] for e in passes if not e["final"] and not e["refit"]]
    rows = [
        ("peak memory", said["memory"]["peak"] / MIB, peak / MIB),
        ("a pass", said["seconds_per_pass"], float(np.median(steps))),
    ]
    phases = {phase["name"]: phase["seconds"] for phase in said["phases"]}
    first = phases.get("loading", 0.0)  # what is imported and compiled once is so when the start needs it
    for phase, event in EVENTS.items():
        if phase in phases:
            rows.append((phase, phases[phase] + (first if event == "init" else 0.0), seen[event]))
    for_all = sum(phases.get(name, 0.0) for name in ("iterations", "final pass", "refit"))
    return [*rows, ("all passes", for_all, sum(e["seconds"] for e in passes))]


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*JOBS, []], help="which jobs; all of them")
    print(f"{'job':10} {'what':14} {'predicted':>10} {'seen':>10} {'seen/predicted':>15}")
    for name in parser.parse_args().names or JOBS:
        for what, predicted, seen in compared(name):
            unit = "MiB" if what == "peak memory" else "s"
            print(f"{name:10} {what:14} {predicted:10.2f} {seen:10.2f} {seen / predicted:15.2f}  {unit}", flush=True)


if __name__ == "__main__":
    main()
