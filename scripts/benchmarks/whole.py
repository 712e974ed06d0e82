"""Whole commands in processes of their own: the README's first from an empty clone, and passes on a thousand simulated workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Record, Setting, record

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART_SECONDS, SCHEDULER_SECONDS = 75.0, 10.0
WORKERS, CHUNKS, PASSES = 1000, 300_000, 2


def quickstart(setting: Setting) -> Iterator[Record]:
    """`scripts/quickstart` of the commit that is checked out, from a clone without environment, bytecode or compiled kernels."""
    clone = setting.folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    began = time.perf_counter()
    home = {**os.environ, "HOME": str(setting.folder), "XDG_CACHE_HOME": str(setting.folder / "cache")}
    subprocess.run([clone / "scripts" / "quickstart"], env=home, cwd=clone, stdout=subprocess.DEVNULL, check=True)
    took = time.perf_counter() - began
    yield record("quickstart", "from an empty clone", "s", took, QUICKSTART_SECONDS, "<=", ours_s=took)


def scheduler(setting: Setting) -> Iterator[Record]:
    """CPU seconds of the scheduler's process in the last of some passes over chunks that cost nothing."""
    workers, chunks = setting.pick(WORKERS, 10), setting.pick(CHUNKS, 1000)
    script = ROOT / "scripts" / "experiments" / "many_workers.py"
    options = ["--workers", str(workers), "--chunks", str(chunks), "--passes", str(PASSES)]
    done = subprocess.run([sys.executable, script, *options], stdout=subprocess.PIPE, text=True, check=True)
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("| ").split("|")]
    tasks, seconds = int(cells[3]), float(cells[4])
    case = f"{workers} simulated workers, {chunks} chunks, {tasks} tasks a pass"
    yield record("scheduler", case, "s of the scheduler's CPU", seconds, SCHEDULER_SECONDS, "<=", tasks=tasks)
