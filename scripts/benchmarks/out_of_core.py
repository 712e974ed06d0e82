"""Rows that do not fit in memory: cold passes against what disk and cores allow, and restarts or candidates that share a read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import THREADS, Record, Setting, Timed, child_environment, record
from benchmarks.mixtures import RandomMixture, draw, random_mixture
from benchmarks.stores import WHAT, disk_bytes, drop_cache, write_store
from pipeline.data.chunks import Chunks
from pipeline.data.sources.zarr import ZarrSection
from pipeline.engine.blas import single_thread
from pipeline.engine.passes import Engine
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.lloyd import Lloyd

MEMORY = "1GiB"
MEMORY_MIB = 1024.0
# family, d, K: a pass's time over that of the scarcest resource, at most
CASES = {("gaussian", 16, 32): 1.1, ("kmeans", 64, 100): 1.25}
COLD_ROUNDS = 3
SHARED_GIB, SHARED_BYTES = 4.0, 1.01
RESTARTS, RESTARTS_CASE, RESTARTS_TIME = 4, (16, 20), 2.0
CANDIDATES = 16, (5, 10, 20, 40), ("full", "diag")  # d, K, types


def out_of_core(setting: Setting) -> Iterator[Record]:
    """Stores of setting.gib GiB, one at a time."""
    for (family, d, k), target in CASES.items():
        mixture, store = random_mixture(d, k), setting.folder / f"{family}.zarr"
        write_store(store, mixture, setting.gib)
        yield from _measured(setting, store, family, mixture, target)
        shutil.rmtree(store)


def _measured(setting: Setting, store: Path, family: str, mixture: RandomMixture, target: float) -> Iterator[Record]:
    k, d = mixture.means.shape
    case = f"{family} d={d} K={k} float32, {setting.gib:g} GiB, memory {MEMORY}"
    config = _config(store, family, k)
    found = _cold_passes(setting, config, _arrays(family, mixture))
    passed, read = Timed(found["pass_s"], None), Timed(found["read_s"], None)
    cores = (found["arithmetic_cpu_s"] + found["decode_cpu_s"]) / THREADS
    yield record(
        "out_of_core",
        case,
        "x the limit",
        passed.median / max(read.median, cores),
        target,
        "<=",
        rounds=len(passed.seconds),
        data=WHAT,
        **passed.fields("ours"),
        **read.fields("cold_read"),
        peer="cold read" if read.median > cores else f"CPU / {THREADS}",
        peer_s=max(read.median, cores),
        **found,
    )
    # PeakMemory looks twice a second at the passes alone; the whole job is looked at from outside, more often.
    job_mib, seconds = _whole_job(setting, config)
    yield record(
        "out_of_core",
        f"{case}, whole job",
        "MiB of PSS",
        max(job_mib, found["peak_pss_bytes"] / 2**20),
        MEMORY_MIB,
        "<=",
        job_mib=job_mib,
        passes_mib=found["peak_pss_bytes"] / 2**20,
        planned_mib=found["planned_peak_bytes"] / 2**20,
        job_s=seconds,
    )


def _arrays(family: str, mixture: RandomMixture) -> dict[str, np.ndarray]:
    return {"centers": mixture.means} if family == "kmeans" else mixture._asdict()


def _config(store: Path, family: str, k: int) -> dict[str, Any]:
    return {
        "data": {"source": "zarr", "path": str(store)},
        "model": {"family": family, "n_components": k},
        "fit": {"method": "em", "init": "random", "max_iter": 2, "tol": 0},
        "engine": {"memory": MEMORY, "workers": THREADS},
        "output": {"labels": False, "path": str(store.with_suffix(".run"))},
    }


def _cold_passes(setting: Setting, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    np.savez(setting.folder / "arrays.npz", **arrays)  # type: ignore[arg-type]  # its stub knows of allow_pickle only
    spec = setting.folder / "spec.json"
    rounds = min(setting.rounds, COLD_ROUNDS)
    contents = {"config": config, "arrays": str(setting.folder / "arrays.npz"), "rounds": rounds}
    spec.write_text(json.dumps(contents), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.cold_pass", str(spec)]
    done = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _whole_job(setting: Setting, config: dict[str, Any]) -> tuple[float, float]:
    """Peak PSS of `em-pipeline run`, MiB, and its seconds: profile, two iterations, last pass, report."""
    path = setting.folder / "job.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    watch = Path(__file__).resolve().parents[1] / "measure_memory"
    command = [sys.executable, str(watch), sys.executable, "-m", "pipeline", "run", str(path), "--overwrite"]
    began = time.perf_counter()
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    match = re.search(r"peak PSS (\d+) MiB", done.stderr)
    if done.returncode or match is None:
        raise RuntimeError(f"the job ended with exit code {done.returncode}:\n{done.stderr}")
    return float(match[1]), time.perf_counter() - began


def restarts(setting: Setting) -> Iterator[Record]:
    """Passes of K-means over a cold store: one read feeds all restarts."""
    d, k = RESTARTS_CASE
    mixture, gib = random_mixture(d, k), min(setting.gib, SHARED_GIB)
    model = Lloyd(k, mixture.weights @ mixture.means)
    starts = [draw(mixture, k, "float64", seed) for seed in range(RESTARTS)]
    jobs = [EStep(model, model.params_from_arrays({"centers": centers})) for centers in starts]
    case = f"K-means d={d} K={k} float32, {gib:g} GiB, {RESTARTS} restarts against 1"
    yield from _one_read(setting, "restarts", case, mixture, jobs, RESTARTS_TIME)


def candidates(setting: Setting) -> Iterator[Record]:
    """Passes of Gaussian mixtures over a cold store: one read feeds all models to choose from."""
    d, sizes, types = CANDIDATES
    gib = min(setting.gib, SHARED_GIB)
    jobs = [EStep(*random_mixture(d, k).model(shape)) for k in sizes for shape in types]
    case = f"d={d} float32, {gib:g} GiB, K={','.join(map(str, sizes))} x {','.join(types)} against the first alone"
    yield from _one_read(setting, "candidates", case, random_mixture(d, sizes[-1]), jobs, None)


def _one_read(
    setting: Setting, row: str, case: str, mixture: RandomMixture, jobs: list[EStep], limit: float | None
) -> Iterator[Record]:
    """Cold passes with all jobs and with the first alone, over a store of the mixture's rows."""
    store = setting.folder / f"{row}.zarr"
    write_store(store, mixture, min(setting.gib, SHARED_GIB))
    chunks = Chunks(ZarrSection(path=str(store)).open(), clean=True)  # as after the profiling pass
    engine = Engine(workers=THREADS)
    for job in jobs:
        job(chunks.load(0), KERNELS)  # compiles
    seconds: dict[int, list[float]] = {1: [], len(jobs): []}
    read: dict[int, int] = {}
    with single_thread():
        for _ in range(setting.rounds):
            for count in seconds:
                drop_cache(store)
                before, began = disk_bytes(), time.perf_counter()
                engine.sum_over(chunks, jobs[:count])
                seconds[count].append(time.perf_counter() - began)
                read[count] = disk_bytes() - before
    one, several = Timed(seconds[1], None), Timed(seconds[len(jobs)], None)
    details = {"data": WHAT, "bytes": read[len(jobs)], "bytes_of_1": read[1], "n": chunks.n_rows}
    times = {"rounds": setting.rounds, **several.fields("ours"), "peer": "ours, the first", **one.fields("peer")}
    yield record(row, case, "x the time", several.median / one.median, limit, "<=", **times, **details)
    yield record(row, case, "x the bytes", read[len(jobs)] / read[1], SHARED_BYTES, "<=", **details)
    shutil.rmtree(store)
