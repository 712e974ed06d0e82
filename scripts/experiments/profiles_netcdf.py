"""A netCDF file of profiles, far larger than the memory that a job may take: the bytes that a pass reads, and the peak memory beside the plan.

    python scripts/experiments/profiles_netcdf.py [--gigabytes 5] [--memory 1GiB] [--work FOLDER]

Writes temperatures at 100 depths of eight kinds of water by h5py, in netCDF 4's layout (compressed, 10,000 profiles a chunk), and fits eight
Gaussians to their leading principal components by the command: the way in which oceanographers classify profiles (Maze et al. 2017).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import xarray as xr
import yaml
from sklearn.metrics import adjusted_rand_score

KINDS, DEPTHS, BLOCK = 8, 100, 10_000


def write(path: Path, n: int) -> None:
    """Write n profiles; profile i is of kind i mod KINDS."""
    rng = np.random.default_rng(0)
    depth = np.linspace(0, 2000, DEPTHS)
    top, scale = rng.uniform(5, 28, KINDS), rng.uniform(100, 900, KINDS)
    with h5py.File(path, "w") as file:
        places = file.create_dataset("depth", data=depth.astype(np.float32))
        profiles = file.create_dataset("profile", data=np.arange(n, dtype=np.int64))
        profiles.make_scale("profile")
        places.make_scale("depth")
        stored = file.create_dataset(
            "temperature", (n, DEPTHS), np.float32, chunks=(BLOCK, DEPTHS), compression="gzip", compression_opts=1
        )
        stored.dims[0].attach_scale(profiles)
        stored.dims[1].attach_scale(places)
        for start in range(0, n, BLOCK):
            kind = np.arange(start, min(start + BLOCK, n)) % KINDS
            amplitude = top[kind] + rng.normal(size=len(kind))
            reach = scale[kind] * np.exp(0.1 * rng.normal(size=len(kind)))
            values = 2 + amplitude[:, None] * np.exp(-depth / reach[:, None])
            # Two decimals, as profiles are kept: noise in the last bits would not compress.
            stored[start : start + len(kind)] = np.round(values + 0.05 * rng.normal(size=values.shape), 2)


def main() -> None:
    """Print size, time, memory and how well the kinds are found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--work", type=Path)
    chosen = parser.parse_args()
    n = round(chosen.gigabytes * 1e9 / (4 * DEPTHS))
    with TemporaryDirectory(dir=chosen.work) as scratch:
        path, out = Path(scratch) / "profiles.nc", Path(scratch) / "run"
        write(path, n)
        config = {
            "data": {
                "source": "xarray",
                "path": str(path),
                "variables": ["temperature"],
                "features": ["depth"],
                "engine": "h5netcdf",
            },
            "preprocess": [{"kind": "pca", "n_components": 8}],
            "model": {"family": "gaussian", "n_components": KINDS},
            "engine": {"memory": chosen.memory},
            "output": {"path": str(out)},
        }
        file = out.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config))
        began = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("em-pipeline")), "run", str(file)], check=True)
        seconds = time.perf_counter() - began
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        plan = next(event["plan"]["peak"] for event in events if event["event"] == "start")
        peak = next(event["peak_pss"] for event in events if event["event"] == "finished")
        passes = sum(event["event"] == "pass" for event in events)
        label = xr.open_zarr(out / "labels.zarr", consolidated=False).label.values
        agree = adjusted_rand_score(np.arange(n) % KINDS, label)
        print(
            f"{n} profiles x {DEPTHS}, {n * DEPTHS * 4 / 1e9:.2f} GB, {path.stat().st_size / 1e9:.2f} stored: {seconds:.0f} s with {passes} passes; "
            f"memory planned {plan / 2**20:.0f} MiB, seen {peak / 2**20:.0f} MiB; adjusted Rand index with the kinds {agree:.4f}"
        )


if __name__ == "__main__":
    main()
