#!/usr/bin/env python3
"""What passes cost beside their arithmetic: tasks without rows on many simulated workers.

    scripts/experiments/many_workers.py [--chunks 1000000] [--workers 10 100 1000] [--bytes 0 3400000] [--passes 1]

Workers are objects of distributed in this one process (LocalCluster(processes=False)), one thread each: their scheduler,
their messages and their state machines are real, processes and network are not. A chunk holds nothing and takes no time
to read; a shard's statistics have the number of bytes asked for. A chunk is said to take --seconds, so that shards are
as large as in a pass in which it does. Printed are tasks, seconds, milliseconds of CPU a task (driver, scheduler and workers
together, without the empty chunks), what workers sent one another, and how the memory of the process grew.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from distributed import Client, LocalCluster

from pipeline.arrays.rows import Rows
from pipeline.engine import waiting
from pipeline.engine.passes import Engine
from pipeline.engine.waiting import Cluster


class Nowhere:
    """A source of no Dask array."""

    def blocks(self) -> None:
        """None."""


NOWHERE = Nowhere()


class Nothing:
    """Chunks that hold nothing. seconds : what one is said to take."""

    def __init__(self, n_chunks: int, seconds: float) -> None:
        self.n_chunks, self.seconds, self.source = n_chunks, seconds, NOWHERE

    def chunk_bytes(self) -> int:
        """So that a shard is as large as if chunks took the time."""
        from pipeline.engine.passes import SLOWEST

        return int(self.seconds * SLOWEST)

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
        return _zeros(self.size)


def _zeros(size: int) -> Any:
    return Zeros(np.zeros(max(1, size // 8)))


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


def sent(dask_worker: Any) -> int:
    """Bytes that a worker has sent to others so far."""
    return int(dask_worker.transfer_outgoing_bytes_total)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000, help="in a pass")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000], help="simulated, one thread each")
    parser.add_argument("--bytes", type=int, nargs="+", default=[0], help="of the statistics of a shard")
    parser.add_argument("--passes", type=int, default=1, help="timed, after a short one that is not")
    parser.add_argument("--seconds", type=float, default=0.1, help="that a chunk is said to take")
    options = parser.parse_args()
    empty = seconds_of_an_empty_chunk()
    print(f"an empty chunk: {1e6 * empty:.1f} µs of CPU\n")
    warnings.simplefilter("ignore")
    waiting.ANSWER = 600.0  # all of them in one process: it is slow to answer, and not dead
    dask.config.set({"distributed.comm.timeouts.connect": "600s"})
    print(
        "| workers | bytes of statistics | tasks a pass | seconds a pass | CPU ms a task | MB sent a pass | MiB grown |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for workers in options.workers:
        chunks: Any = Nothing(options.chunks, options.seconds)
        settings = {"n_workers": workers, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        with LocalCluster(**settings, silence_logs=50, memory_limit=None) as cluster, Client(cluster) as client:
            client.wait_for_workers(workers, timeout=300)
            for size in options.bytes:
                engine = Engine(Cluster(client), workers)
                engine._seen = chunks.source  # nothing to look at
                process, seconds, cpu, moved = psutil.Process(), [], [], []
                before = process.memory_info().rss
                engine.sum_over(Nothing(1000, options.seconds), [Statistics(size)])  # type: ignore[arg-type]
                for _ in range(options.passes):
                    engine._seconds.clear()
                    began, busy, out = time.perf_counter(), time.process_time(), sum(client.run(sent).values())
                    engine.sum_over(chunks, [Statistics(size)])
                    seconds.append(time.perf_counter() - began)
                    cpu.append(time.process_time() - busy)
                    moved.append(sum(client.run(sent).values()) - out)
                tasks = 2 * shards_of(engine, chunks) + 1
                took = statistics.median(seconds)
                grown = (process.memory_info().rss - before) / 2**20
                each = (statistics.median(cpu) - empty * options.chunks) / tasks
                print(
                    f"| {workers} | {size} | {tasks} | {took:.2f} | {1000 * each:.2f} | "
                    f"{statistics.median(moved) / 1e6:.1f} | {grown:.0f} |",
                    flush=True,
                )
    return 0


def seconds_of_an_empty_chunk(n: int = 100_000) -> float:
    """CPU of one in a loop of many, in this thread: it is no part of what tasks cost."""
    chunks: Any = Nothing(n, 1e-6)
    began = time.process_time()
    Engine().sum_over(chunks, [Statistics(0)])
    return (time.process_time() - began) / n


def shards_of(engine: Engine, chunks: Any) -> int:
    """How many shards a pass has."""
    from pipeline.engine.tree import shard_level

    width = 1 << shard_level(chunks.n_chunks, engine.workers, chunks.seconds)
    return -(-chunks.n_chunks // width)


if __name__ == "__main__":
    sys.exit(main())
