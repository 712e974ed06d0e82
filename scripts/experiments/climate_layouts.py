"""One dataset in several stores: netCDF, and zarr stored by time, by space and transposed; and repeated along the months.

    python scripts/experiments/climate_layouts.py [--data FOLDER] [--repeat 200] [--memory 1GiB]

Fits eight Gaussians to u, v and z of the ERA-Interim sample with cells weighted by their area, from a config, and compares
labels on their coordinates, components matched by the cells that they share; and with those of scikit-learn's GaussianMixture with our
parameters on the table stacked by hand. With --repeat, the same months that many times over, as one zarr store: labels again, and the peak memory of
the process seen from outside (PSS as the job logs it) beside the plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr
import yaml
from scipy.optimize import linear_sum_assignment

import pipeline

ROOT = Path(__file__).resolve().parents[2]
K = 8
LAYOUTS = {
    "zarr by time": (("month", "level", "latitude", "longitude"), {"month": 1}),
    "zarr by space": (("month", "level", "latitude", "longitude"), {"latitude": 61, "longitude": 120}),
    "zarr transposed": (("longitude", "latitude", "level", "month"), {"longitude": 60}),
}


def fit(path: Path, out: Path, memory: str, **options: Any) -> tuple[xr.DataArray, float]:
    """Run a config of the command; return labels and seconds."""
    config = {
        "data": {
            "source": "xarray",
            "path": str(path),
            "variables": ["u", "v", "z"],
            "features": ["level"],
            "samples": ["month", "latitude", "longitude"],  # rows in one order, so that all fits begin alike
            "weights": "cos(latitude)",
        },
        "preprocess": [{"kind": "standardize"}],
        "model": {"family": "gaussian", "n_components": K},
        "fit": {"max_iter": 300, "tol": 1e-6, **options},
        "engine": {"memory": memory},
        "output": {"path": str(out)},
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    began = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).with_name("em-pipeline")), "run", str(file)], check=True, capture_output=True
    )
    return xr.open_zarr(out / "labels.zarr", consolidated=False).label.load(), time.perf_counter() - began


def matched(ours: xr.DataArray, other: xr.DataArray) -> float:
    """Share of cells with the same label, components matched."""
    a, b = ours.values.reshape(-1), other.transpose(*ours.dims).values.reshape(-1)
    counts = np.zeros((K, K))
    np.add.at(counts, (a, b), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(a))


def by_scikit_learn(dataset: xr.Dataset, out: Path) -> float:
    """Share of cells that scikit-learn labels alike, with our parameters, in the table stacked by hand."""
    from sklearn.mixture import GaussianMixture

    names = [dataset[name].transpose("month", "latitude", "longitude", "level") for name in ("u", "v", "z")]
    x = np.concatenate([each.values.reshape(-1, each.sizes["level"]) for each in names], axis=1)
    model = pipeline.open_run(out)
    x = (x - model["preprocess_offset"].values) @ np.linalg.inv(model["preprocess_inverse"].values)
    peer = GaussianMixture(K)
    peer.weights_, peer.means_ = model["weights"].values, model["means"].values
    peer.covariances_ = model["covariances"].values
    peer.precisions_cholesky_ = np.array([np.linalg.cholesky(np.linalg.inv(c)) for c in peer.covariances_])
    label = xr.open_zarr(out / "labels.zarr", consolidated=False).label.values.reshape(-1)
    return float((peer.predict(x) == label).mean())


def main() -> None:
    """Print a line for each store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "climate")
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--memory", default="1GiB")
    chosen = parser.parse_args()
    netcdf = chosen.data / "eraint_uvz.nc"
    dataset = xr.open_dataset(netcdf, engine="scipy").load().drop_encoding()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first, seconds = fit(netcdf, folder / "netcdf", chosen.memory)
        print(
            f"netCDF: {first.size} cells, {seconds:.1f} s; scikit-learn labels {by_scikit_learn(dataset, folder / 'netcdf'):.6f} of them alike"
        )
        for name, (dims, chunks) in LAYOUTS.items():
            path = folder / f"{name.replace(' ', '-')}.zarr"
            ordered = dataset.transpose(*dims)
            stored = tuple(chunks.get(dim, ordered.sizes[dim]) for dim in dims)
            ordered.to_zarr(
                path, encoding={each: {"chunks": stored} for each in ordered}, zarr_format=3, consolidated=False
            )
            labels, seconds = fit(path, folder / name.replace(" ", "-"), chosen.memory)
            print(f"{name}: {seconds:.1f} s, {matched(first, labels):.6f} of the labels alike", flush=True)
        if chosen.repeat:
            path = folder / "many.zarr"
            for i in range(chosen.repeat):
                part = dataset.assign_coords(month=dataset.month + 12 * i).astype("float32")
                encoding = {each: {"chunks": (1, 3, 241, 480)} for each in part} if not i else None
                part.to_zarr(
                    path,
                    zarr_format=3,
                    consolidated=False,
                    **({"encoding": encoding} if not i else {"append_dim": "month"}),
                )
            labels, seconds = fit(path, folder / "many", chosen.memory, max_iter=20)
            events = [json.loads(line) for line in (folder / "many" / "events.jsonl").read_text().splitlines()]
            plan = next(event["plan"]["peak"] for event in events if event["event"] == "start")
            peak = next(event["peak_pss"] for event in events if event["event"] == "finished")
            size = sum(each.nbytes for each in dataset.values()) * chosen.repeat / 2
            print(
                f"{chosen.repeat} times ({size / 1e9:.1f} GB as float32): {seconds:.1f} s, {matched(first, labels.isel(month=slice(0, 2))):.6f} of the "
                f"first months' labels alike; memory planned {plan / 2**20:.0f} MiB, seen {peak / 2**20:.0f} MiB"
            )


if __name__ == "__main__":
    main()
