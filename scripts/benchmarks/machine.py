"""What a figure was measured on: without it, it means nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.common import THREADS
from pipeline.kernels.cpu import KERNELS

OURS = ["em-pipeline", "numpy", "scipy", "numba", "dask", "distributed", "zarr", "numcodecs"]
PEERS = ["scikit-learn", "faiss-cpu", "dask-ml", "pyspark"]


def header(root: Path) -> dict[str, Any]:
    """Date, machine, versions, kernels, threads, and the commit that is checked out at `root`."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _git(root, "rev-parse", "HEAD") + ("+changes" if _git(root, "status", "--porcelain") else ""),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": dict(_caches()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": THREADS,
        "kernels": KERNELS.identity(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def lines_of(machine: dict[str, Any]) -> Iterator[str]:
    """The header for people."""
    for name, value in machine.items():
        inner = value.items() if isinstance(value, dict) else []
        text = ", ".join(value) if isinstance(value, list) else ", ".join(f"{a} {b}" for a, b in inner) or value
        yield f"{name:11} {text}"


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return names[0] if names else platform.processor()


def _caches() -> Iterator[tuple[str, str]]:
    for place in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((place / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size"))
        yield f"L{level}{'' if kind == 'Unified' else kind[0].lower()}", size


def _versions() -> Iterator[tuple[str, str]]:
    for name in OURS + PEERS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "absent"
