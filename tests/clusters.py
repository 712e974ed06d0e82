"""Clusters for tests, as docs/clusters.md says to start them: a scheduler and workers on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """That of a process which finds the package."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class Cluster(NamedTuple):
    """A scheduler and two workers, as the README says to start them."""

    address: str
    file: Path
    processes: list[subprocess.Popen[bytes]]


@contextmanager
def cluster(
    folder: Path,
    workers: int = 2,
    nannies: bool = True,
    faults: bool = False,
    host: str = "127.0.0.1",
    options: tuple[str, ...] = (),
) -> Iterator[Cluster]:
    """Workers of one thread each; all processes are ended by their own handles, frozen or not.

    faults : whether workers do as the files of this folder say (tests/faults.py).  options : for scheduler and workers.
    """
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((folder / "dask.log").open("ab"))
            process = subprocess.Popen([*dask, *words], stdout=log, stderr=log, env=environment(), cwd=folder)
            stack.callback(_end, process)
            return process

        # --no-dashboard alone leaves their HTTP servers on every address of the machine.
        where = ["--host", host, "--dashboard-address", "127.0.0.1:0"]
        processes = [start("scheduler", *where, *options, "--port", "0", "--scheduler-file", str(file))]
        eventually(file.exists, 60)
        time.sleep(0.2)
        words = ["worker", *where, *options, "--scheduler-file", str(file), "--nthreads", "1"]
        words += ["--nanny" if nannies else "--no-nanny", *(["--preload", "tests.faults"] if faults else [])]
        processes += [start(*words) for _ in range(workers)]
        yield Cluster(json.loads(file.read_text())["address"], file, processes)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, which may be frozen, or have nobody left who would end them."""
    family = []
    with suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for child in family:
        with suppress(psutil.Error):
            child.kill()


def eventually(what: Callable[[], Any], seconds: float) -> Any:
    """What becomes true, within a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not in {seconds} s"
        time.sleep(0.05)
    return found


def computing(cluster: Cluster) -> list[psutil.Process]:
    """The processes that compute: those that nannies started, or the workers themselves.

    One that does not listen yet is left out: a nanny whose worker dies while it starts gives up.
    """
    found = []
    for process in cluster.processes[1:]:
        worker = psutil.Process(process.pid)
        with suppress(psutil.Error):
            started = [p for p in worker.children() if "spawn_main" in " ".join(p.cmdline())]
            nannied = "--nanny" in worker.cmdline()
            found += [p for p in (started if nannied else [worker]) if addresses([p])]
    return found


def addresses(processes: list[psutil.Process]) -> set[str]:
    """Where these processes and their children listen."""
    family = {p.pid: p for parent in processes for p in [parent, *parent.children(recursive=True)]}
    found: set[str] = set()
    for process in family.values():
        try:
            found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found
