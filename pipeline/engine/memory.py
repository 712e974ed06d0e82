"""How much memory a job takes, known before it runs; it decides how many tasks run at once and nothing else."""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline.errors import InputError

MIB = 2**20
# This process without data: libraries 265 MiB, the report's 45, a compiler that stays for the first job 95, what searches
# and statistics leave behind the rest. Measured as resident size, which PSS is where nobody else maps the same libraries.
IMPORTS = 520 * MIB
WORKER_IMPORTS = 230 * MIB  # one embedded worker process
FREED_BYTES = 64 * MIB
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Plan(NamedTuple):
    """A predicted use of memory. All in bytes; workers : tasks at a time.

    per_task : one task's peak.  fixed : what does not grow with workers.  limit : what the job may use.
    ahead : whether a task reads its next chunk while one computes.  wanted : tasks at a time without the limit.
    """

    workers: int
    per_task: int
    fixed: int
    limit: int
    ahead: bool
    wanted: int

    @property
    def peak(self) -> int:
        """Predicted peak of the whole job on this machine, bytes; kept chunks come on top, up to the limit."""
        return self.fixed + self.workers * self.per_task

    @property
    def spare(self) -> int:
        """What the limit leaves for kept chunks, bytes."""
        return self.limit - self.peak


def task_bytes(chunk_bytes: int, n_rows: int, stats_bytes: int, tile_bytes: int, n_partials: int) -> int:
    """Peak of one task: a chunk while it is decoded, preprocessed and cut, tiles, and the statistics of a shard.

    Decoding holds the stored bytes, the decoded chunk and its copy; each of the chunk's n_rows has a label, a score and
    a density; stats_bytes are those of all jobs, of which n_partials are held at a time.
    """
    return 3 * chunk_bytes + 24 * n_rows + 2 * tile_bytes + stats_bytes * n_partials


def plan(
    limit: int | str, workers: int | str, per_task: int, chunk_bytes: int, driver_bytes: int, processes: bool
) -> Plan:
    """How many tasks may run at once within `limit` bytes, and whether there is room for one more chunk in each.

    Raises InputError, with advice, when not even one fits.
    """
    wanted = cores() if workers == "auto" else int(workers)
    allowed = int(0.6 * psutil.virtual_memory().available) if limit == "auto" else int(limit)
    fixed = IMPORTS + driver_bytes
    each = per_task + (WORKER_IMPORTS if processes else 0)
    fitting = (allowed - fixed) // each
    if fitting < 1:
        raise InputError(
            f"engine.memory: {allowed / MIB:.0f} MiB, but one task needs {each / MIB:.0f} MiB beside {fixed / MIB:.0f} MiB "
            "for the job itself. Raise engine.memory, store the data in smaller chunks, or lower model.n_components."
        )
    running = min(wanted, fitting)
    ahead = fixed + running * (each + chunk_bytes) <= allowed
    return Plan(running, each + chunk_bytes * ahead, fixed, allowed, ahead, wanted)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def keep_freed_memory() -> None:
    """Let the C library give freed arrays out again, up to FREED_BYTES a thread, instead of returning them to the system.

    Statistics of (64, 200) and decoded chunks would otherwise be new pages for every chunk, whose first touch costs
    more than adding them (glibc's mallopt; elsewhere nothing happens).
    """
    with suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        c_library.mallopt(M_TRIM_THRESHOLD, FREED_BYTES)


def job_pss() -> int:
    """Proportional set size of this process and its children now, bytes (Linux; resident size elsewhere)."""
    me = psutil.Process()
    return sum(_pss(process) for process in [me, *me.children(recursive=True)])


def _pss(process: psutil.Process) -> int:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        return 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    except (OSError, StopIteration):
        try:
            return int(process.memory_info().rss)
        except psutil.Error:  # it ended while we looked
            return 0


class PeakMemory:
    """The highest job_pss() of a `with` block, looked at twice a second from a thread beside it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, job_pss())
            if self._done.wait(0.5):
                return
