"""A sparse AnnData file of a million cells: the bytes that a pass reads, and the peak memory of a job beside its plan.

    python scripts/experiments/anndata_pass.py [--rows 1000000] [--genes 2000] [--density 0.01] [--memory 1GiB]

Writes counts of two kinds of cells in anndata's layout by h5py, reads them once chunk by chunk and compares what this process has read
(rchar of /proc/self/io) with what is stored, then runs a multinomial mixture by the command.
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
import yaml

from pipeline.jobconfig import load_config

BLOCK = 100_000  # rows


def write(path: Path, n: int, d: int, density: float) -> None:
    """Write n x d counts; half of the cells have most of their counts in the first half of the genes."""
    rng, each = np.random.default_rng(0), max(1, round(d * density))
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n, d]})
        group["indptr"] = np.arange(n + 1, dtype=np.int64) * each
        data = group.create_dataset("data", (n * each,), np.float32, chunks=True)
        indices = group.create_dataset("indices", (n * each,), np.int32, chunks=True)
        for start in range(0, n, BLOCK):
            rows = min(BLOCK, n - start)
            genes = np.sort(rng.beta(1, 2, (rows, each)) * d, axis=1).astype(np.int32)
            odd = np.arange(start, start + rows) % 2 == 1
            genes[odd] = d - 1 - genes[odd, ::-1]
            at = slice(start * each, (start + rows) * each)
            indices[at], data[at] = genes.reshape(-1), rng.integers(1, 6, rows * each)
        for name, size in {"obs": n, "var": d}.items():
            table = file.create_group(name)
            table.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            table.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
            table.create_dataset("_index", data=np.array([f"{name}{i}" for i in range(size)], "S"))


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    """Print what is stored, what a pass reads, and the memory of a job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--components", type=int, default=10)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="em-pipeline-") as scratch:
        path, out, job = (Path(scratch, name) for name in ("cells.h5ad", "run", "job.yaml"))
        write(path, asked.rows, asked.genes, asked.density)
        config = {
            "data": {"source": "anndata", "path": str(path)},
            "model": {"family": "multinomial", "n_components": asked.components},
            "fit": {"method": "em", "init": "random", "max_iter": 3, "tol": 0},
            "engine": {"memory": asked.memory},
            "output": {"path": str(out)},
        }
        job.write_text(yaml.safe_dump(config))
        source = load_config(job).data.open()
        stored, before, began = sum(source.object_sizes()), bytes_read(), time.perf_counter()
        entries = sum(source.read(i).nnz for i in range(source.n_chunks))
        read, seconds = bytes_read() - before, time.perf_counter() - began
        print(f"{source.n_rows:,} x {source.n_features:,}, {entries:,} entries, {source.n_chunks} chunks")
        print(f"stored {stored:,} bytes; a pass reads {read:,}, {read / stored:.3f} times as many, in {seconds:.1f} s")
        subprocess.run(
            [str(Path(sys.executable).with_name("em-pipeline")), "run", str(job)], check=True, capture_output=True
        )
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        plan = next(each["plan"] for each in events if each["event"] == "start")
        passes = [each for each in events if each["event"] == "pass"]
        peak = max(each.get("peak_pss", 0) for each in events)
        print(f"job: {len(passes)} passes of {passes[-1]['seconds']:.1f} s, {passes[-1]['bytes_read']:,} bytes each")
        print(f"memory: {asked.memory} allowed, {plan['peak']:,} planned, {peak:,} at the peak")


if __name__ == "__main__":
    main()
