#!/usr/bin/env python3
"""What passes cost beside their arithmetic: tasks without rows on many simulated workers.

    scripts/experiments/many_workers.py [--chunks 300000] [--workers 100 1000] [--bytes 0 3400000] [--passes 2]

The scheduler of distributed is a process of its own, with nothing but that to do: its CPU time is measured. Workers are objects in a few
processes, one thread each: their messages and state machines are real, a process for each, its monitors and the network are not. A chunk holds nothing and takes no
time to read, but is said to take --seconds, so that tasks are as many as in a pass in which it does. Printed are tasks,
CPU seconds of the scheduler, and of driver and workers together, and what workers sent one another.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from distributed import Client, Worker

from pipeline.arrays.rows import Rows
from pipeline.engine import waiting
from pipeline.engine.passes import SLOWEST, Engine
from pipeline.engine.waiting import Cluster

IN_PROCESS = 250  # workers: each has some twenty sockets and more
# What each worker's own machine would do beside: a profile of its threads, looks at memory, disk and the interpreter's lock.
BESIDE = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.system-monitor.gil.enabled": False,
}


class Nowhere:
    """A source of no Dask array."""

    def blocks(self) -> None:
        """None."""


NOWHERE = Nowhere()


class Nothing:
    """Chunks that hold nothing. seconds : what one is said to take."""

    def __init__(self, n_chunks: int, seconds: float) -> None:
        self.n_chunks, self.chunk_bytes, self.source = n_chunks, int(seconds * SLOWEST), NOWHERE

    def load(self, i: int) -> Rows:
        """No rows."""
        return _EMPTY


_EMPTY = Rows(np.empty((0, 1)))


class Statistics:
    """A job that returns so many bytes for a shard's first chunk; the others add in place."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, chunk: Any, kernels: Any) -> Any:
        """Zeros."""
        return Zeros(np.zeros(max(1, self.size // 8)))


class Zeros:
    """Adds in no time within a shard, and as an array between two."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __sizeof__(self) -> int:
        return int(self.values.nbytes)

    def __add__(self, other: "Zeros") -> "Zeros":
        return Zeros(self.values + other.values)

    def __iadd__(self, other: "Zeros") -> "Zeros":
        return self


class Counting(Cluster):
    """A cluster that says how many tasks a pass has."""

    tasks = 0

    def compute(self, graph: Any, *rest: Any) -> Any:
        """As in passes."""
        self.tasks = len(graph)
        return super().compute(graph, *rest)


def workers(address: str, count: int, folder: str) -> None:
    """Workers in this process, until it is ended."""
    _quietly()

    async def run() -> None:
        own = {"nthreads": 1, "dashboard": False, "memory_limit": 0, "local_directory": folder}
        await asyncio.gather(*(Worker(address, host="127.0.0.1", **own) for _ in range(count)))
        await asyncio.Event().wait()

    asyncio.run(run())


def _quietly() -> None:
    """Settings of every process of the simulation but the scheduler's."""
    logging.disable(logging.ERROR)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    dask.config.set({"distributed.comm.timeouts.connect": "600s"} | BESIDE)


@contextlib.contextmanager
def cluster(n_workers: int) -> Iterator[tuple[Client, psutil.Process, list[psutil.Process]]]:
    """Client, process of the scheduler, and processes of workers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        program = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
        scheduler, started = subprocess.Popen(program, stderr=subprocess.DEVNULL), []
        try:
            while not file.exists() or not file.read_text().endswith("}"):
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            for first in range(0, n_workers, IN_PROCESS):
                given = address, min(IN_PROCESS, n_workers - first), folder
                started.append(get_context("spawn").Process(target=workers, args=given))
                started[-1].start()
            with Client(address) as client:
                client.wait_for_workers(n_workers)
                yield client, psutil.Process(scheduler.pid), [psutil.Process(one.pid) for one in started]
        finally:
            for one in [*started, scheduler]:
                one.terminate()
            scheduler.wait()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=300_000, help="in a pass")
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000], help="simulated, one thread each")
    parser.add_argument("--bytes", type=int, nargs="+", default=[0], help="of the statistics of a shard")
    parser.add_argument(
        "--passes", type=int, default=2, help="of which each is printed; sizes are known after the first"
    )
    parser.add_argument("--seconds", type=float, default=0.1, help="that a chunk is said to take")
    options = parser.parse_args()
    _quietly()
    waiting.ANSWER = 600.0  # all workers in one process: they are slow to answer, and not dead
    print("| workers | bytes of statistics | pass | tasks | scheduler CPU s | others CPU s | seconds | MB sent |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for n_workers in options.workers:
        with cluster(n_workers) as (client, scheduler, others):
            for size in options.bytes:
                counting, chunks = Counting(client), Nothing(options.chunks, options.seconds)
                engine = Engine(counting, n_workers, ahead=False)
                engine._seen = chunks.source  # nothing to look at
                for number in range(options.passes):
                    engine._seconds.clear()
                    sent, before = sent_bytes(client), measured(scheduler, others)
                    engine.sum_over(chunks, [Statistics(size)])  # type: ignore[arg-type]
                    handed, rest, took = np.subtract(measured(scheduler, others), before)
                    said = f"{counting.tasks} | {handed:.1f} | {rest:.1f} | {took:.0f} | {(sent_bytes(client) - sent) / 1e6:.1f}"
                    print(f"| {n_workers} | {size} | {number} | {said} |", flush=True)
    return 0


def measured(scheduler: psutil.Process, others: list[psutil.Process]) -> list[float]:
    """CPU seconds of the scheduler and of all other processes, and the time."""
    own, theirs = (sum(sum(one.cpu_times()[:2]) for one in some) for some in ([scheduler], [psutil.Process(), *others]))
    return [own, theirs, time.perf_counter()]


def sent_bytes(client: Client) -> int:
    """What workers have sent one another."""
    return int(sum(client.run(_sent).values()))


def _sent(dask_worker: Worker) -> int:
    return int(dask_worker.transfer_outgoing_bytes_total)


if __name__ == "__main__":
    sys.exit(main())
