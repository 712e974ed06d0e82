"""The memory of a job, predicted before it runs. It decides how many tasks run at once, and nothing else."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline.errors import InputError

MIB = 2**20
# This process without data. Measured as resident size, which is PSS where no other process maps the libraries: jobs on 0.1 MB of
# rows peak at 238 to 253 MiB, and at 280 to 322 where kernels are compiled.
IMPORTS = 330 * MIB
UNRETURNED = 80 * MIB  # at most, of what searches and statistics have freed
WORKER_IMPORTS = 230 * MIB  # of one local worker process
SMALLER_CHUNKS = "store the data in smaller chunks"
FREED_BYTES = 64 * MIB  # that stay with the C library
MAPPED_BYTES = 32 * MIB  # the smallest array with pages of its own; glibc allows no more
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Plan(NamedTuple):
    """Predicted memory, in bytes.

    Attributes
    ----------
    workers : int
        Tasks at a time.
    per_task : int
        Peak of one task.
    fixed : int
        What does not grow with workers.
    limit : int
        What the job may use.
    ahead : bool
        Whether a task reads its next chunk while it computes.
    wanted : int
        Tasks at a time without the limit.
    """

    workers: int
    per_task: int
    fixed: int
    limit: int
    ahead: bool
    wanted: int

    @property
    def peak(self) -> int:
        """Predicted peak of the job on this machine, bytes; cached chunks are added, up to the limit."""
        return self.fixed + self.workers * self.per_task

    @property
    def spare(self) -> int:
        """Bytes for cached chunks within the limit."""
        return self.limit - self.peak


def task_bytes(chunk_bytes: int, n_rows: int, stats_bytes: int, tile_bytes: int, n_partials: int) -> int:
    """Return the peak of one task, bytes: a chunk while it is decoded and preprocessed, tiles, and statistics.

    Parameters
    ----------
    chunk_bytes : int
        Of a decoded chunk; stored bytes and a copy make three times as much during decoding.
    n_rows : int
        Rows of a chunk; each has a label, a score and a density of 8 bytes.
    stats_bytes : int
        Statistics of all functions of a pass; n_partials of them are in memory at a time.
    tile_bytes : int
        Working arrays of a tile.
    n_partials : int
    """
    return 3 * chunk_bytes + 24 * n_rows + 2 * tile_bytes + stats_bytes * n_partials


def plan(
    limit: int | str,
    workers: int | str,
    per_task: int,
    chunk_bytes: int,
    driver_bytes: int,
    processes: bool,
    imports: int = IMPORTS,
    advice: str = SMALLER_CHUNKS,
) -> Plan:
    """Decide how many tasks may run at once within a limit, and whether each may read one chunk ahead.

    Parameters
    ----------
    limit : int or "auto"
        Bytes that the job may use; "auto" is 0.6 of those available now.
    workers : int or "auto"
        Tasks at a time; "auto" is the number of cores.
    per_task, chunk_bytes, driver_bytes : int
        Bytes of a task, of a chunk, and of this process besides tasks.
    processes : bool
        Whether each task has a worker process on this machine.
    imports : int
        Bytes of this process before it reads a row; 0 if it is a user's program.
    advice : str
        What would make a chunk smaller, for the refusal.

    Raises
    ------
    InputError
        With advice, if not even one task fits.
    """
    wanted = cores() if workers == "auto" else int(workers)
    allowed = int(0.6 * psutil.virtual_memory().available) if limit == "auto" else int(limit)
    fixed = imports + driver_bytes
    each = per_task + (WORKER_IMPORTS if processes else 0)
    fitting = (allowed - fixed) // each
    if fitting < 1:
        raise InputError(
            f"engine.memory: got {allowed / MIB:.0f} MiB, but one task needs {each / MIB:.0f} MiB beside {fixed / MIB:.0f} MiB "
            f"for the job itself. Raise engine.memory, {advice}, or lower model.n_components."
        )
    running = min(wanted, fitting)
    ahead = fixed + running * (each + chunk_bytes) <= allowed
    return Plan(running, each + chunk_bytes * ahead, fixed, allowed, ahead, wanted)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def keep_freed_memory() -> None:
    """Let the C library reuse freed arrays, up to FREED_BYTES a thread, instead of returning them to the system.

    Otherwise statistics of d = 64, K = 200 and decoded chunks would be new pages for every chunk, whose first touch costs
    more than adding them. It calls glibc's mallopt, a setting of the whole process: for the command and the workers
    that it started. Without mallopt it does nothing.
    """
    with suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        c_library.mallopt(M_TRIM_THRESHOLD, FREED_BYTES)


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """A block of imports in which Python does not search for garbage, nor later among what they made, which stays.

    The searches take a tenth of the CPU time of a small job. For the command only: it does nothing in a process in which NumPy is loaded,
    which has objects of its own.
    """
    if "numpy" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def job_pss() -> int:
    """Return the proportional set size of this process and its children, bytes (Linux; resident size elsewhere)."""
    me = psutil.Process()
    return sum(_pss(process) for process in [me, *me.children(recursive=True)])


def _pss(process: psutil.Process) -> int:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        return 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    except (OSError, StopIteration):
        try:
            return int(process.memory_info().rss)
        except psutil.Error:  # it has ended meanwhile
            return 0


class PeakMemory:
    """The highest job_pss() of a `with` block, measured twice a second by a thread."""

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
