"""Passes over a store that is not in the page cache, within a memory limit, in a process of their own.

    python -m benchmarks.cold_pass SPEC.json

SPEC: config (of a job), arrays (.npz of the parameters), rounds. Source, memory plan and engine are those of
`pipeline.workflow`. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stores import drop_cache, read_all
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import PeakMemory
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.job import engine_for
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture

SAMPLE = 16  # chunks whose CPU time stands for all


def job_of(family: str, arrays: dict[str, np.ndarray]) -> EStep:
    """The E-step of a model about the mean of its centres."""
    model: Any
    if family == "kmeans":
        model = Lloyd(len(arrays["centers"]), arrays["centers"].mean(axis=0))
    else:
        model = Mixture(Gaussian(len(arrays["weights"]), arrays["weights"] @ arrays["means"]))
    return EStep(model, model.params_from_arrays(arrays), model.attachments)


def cpu_seconds(function: Callable[[Any], Any], arguments: list[Any]) -> float:
    """CPU seconds of this process, all its threads, for one call."""
    began = time.process_time()
    for argument in arguments:
        function(argument)
    return (time.process_time() - began) / len(arguments)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds: cold passes, cold reading alone, CPU of arithmetic and of reading and decoding warm chunks."""
    config = validate(spec["config"]).resolved()
    store = Path(spec["config"]["data"]["path"])
    with np.load(spec["arrays"]) as stored:
        job = job_of(config.model.family, dict(stored))
    checksums = np.empty((0, 2), np.int64)  # a chunk is compared in the first pass, not in those that are timed
    chunks = config.data.open_chunks().after_profile(affine=None, n_bad=0, checksums=checksums)
    plan = memory_plan(plan_job(config, chunks), chunks)
    sample = [int(i) for i in np.linspace(0, chunks.n_chunks - 1, min(SAMPLE, chunks.n_chunks))]
    peak, cpu = 0, 0.0
    passes: list[float] = []
    reads: list[float] = []
    with single_thread(), engine_for(config, plan) as engine:
        job(chunks.load(0), KERNELS)  # compiles
        for i in sample:
            chunks.load(i)  # into the page cache
        decode = cpu_seconds(chunks.source.read, sample)
        arithmetic = float(np.mean([cpu_seconds(lambda rows: job(rows, KERNELS), [chunks.load(i)]) for i in sample]))
        engine.sum_over(chunks, [job])
        for _ in range(spec["rounds"]):
            drop_cache(store)
            began = time.perf_counter()
            read_all(store)
            reads.append(time.perf_counter() - began)
            drop_cache(store)
            before, began = time.process_time(), time.perf_counter()
            with PeakMemory() as memory:
                engine.sum_over(chunks, [job])
            passes.append(time.perf_counter() - began)
            cpu, peak = time.process_time() - before, max(peak, memory.bytes)
    return {
        "n_chunks": chunks.n_chunks,
        "n": chunks.n_rows,
        "workers": plan.workers,
        "planned_peak_bytes": plan.peak,
        "peak_pss_bytes": peak,
        "pass_s": passes,
        "pass_cpu_s": cpu,
        "read_s": reads,
        "arithmetic_cpu_s": arithmetic * chunks.n_chunks,
        "decode_cpu_s": decode * chunks.n_chunks,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
