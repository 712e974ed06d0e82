#!/usr/bin/env python3
"""Measure what the project promises: ours and its peers side by side, in one run, with interleaved repeats.

    scripts/benchmark.py                          everything but spark; about an hour and 20 GiB of scratch space
    scripts/benchmark.py gaussian kmeans          some rows of the table
    scripts/benchmark.py --quick                  small sizes: tests this script, measures nothing
    scripts/benchmark.py --json results.jsonl     appends one JSON line a record, after one with the machine
    scripts/benchmark.py --write docs/performance.md  puts the table, and what it was measured on, between the two marks in the page;
                                                  with --json also the rows that the file has of this commit

Needs the `bench` extra (`pip install -e '.[bench]'`). Times are medians, and ratios those of medians. Peers have as many
threads as ours and the same BLAS kernels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import Group, Record, Setting, SkippedError
from benchmarks.machine import header, lines_of
from benchmarks.table import table, written

ROOT = Path(__file__).resolve().parents[1]
# name : module, and what it measures
GROUPS = {
    "gaussian": ("benchmarks.gaussian", "an EM pass of a Gaussian mixture, against scikit-learn"),
    "gemm": ("benchmarks.gaussian", "its matrix products, as a share of the GEMM peak"),
    "patches": ("benchmarks.patches", "a pass over real image patches, against scikit-learn"),
    "skipping": (
        "benchmarks.skipping",
        "a pass that leaves out what rounds to nothing, against the same with all pairs",
    ),
    "kmeans": ("benchmarks.kmeans", "a Lloyd pass, against scikit-learn, faiss and dask-ml"),
    "many": ("benchmarks.many", "K-means with 10,000 and 100,000 clusters, against faiss and flat"),
    "fit": ("benchmarks.patches", "a whole fit to image patches, against scikit-learn"),
    "search": ("benchmarks.search", "the search for a start, against the fit from it"),
    "quickstart": ("benchmarks.whole", "the README's first command, from an empty clone"),
    "small": ("benchmarks.small", "whole fits to few rows from Python, against scikit-learn"),
    "counts": ("benchmarks.counts", "a pass of a multinomial mixture, against scipy's sparse products"),
    "overhead": ("benchmarks.passes", "a pass over 10,000 chunks that cost nothing"),
    "workers": ("benchmarks.passes", "two workers against one"),
    "scheduler": ("benchmarks.whole", "the scheduler's CPU time in a pass on a thousand simulated workers"),
    "rows": ("benchmarks.passes", "time against rows, 10^5 to 10^8"),
    "restarts": ("benchmarks.out_of_core", "four restarts in one job against one, from disk"),
    "candidates": ("benchmarks.out_of_core", "eight models to choose from in one job against one, from disk"),
    "out_of_core": ("benchmarks.out_of_core", "cold passes over large stores in 1 GiB, against the machine's limits"),
    "spark": ("benchmarks.spark", "an iteration, against Spark MLlib; only when named, needs pyspark and java"),
}
ON_REQUEST = {"spark"}


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of the table; without any, all but spark")
    parser.add_argument("--list", action="store_true", help="say which rows there are, and end")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each timing (default 5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the script")
    parser.add_argument("--json", type=Path, help="file that records are appended to")
    parser.add_argument("--write", type=Path, help="Markdown page whose table is replaced")
    parser.add_argument("--folder", type=Path, help="where scratch data go; default: a temporary folder")
    parser.add_argument("--data", type=Path, help="folder of the real data; default: $EM_SHARED, else ../shared/data")
    parser.add_argument("--size", type=float, default=16.0, help="GiB of each out-of-core store (default 16)")
    parsed = parser.parse_args(words)
    unknown = set(parsed.rows) - GROUPS.keys()
    if unknown:
        parser.error(f"no rows named {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if parsed.rounds < 1:
        parser.error(f"--rounds: came as {parsed.rounds}, expected at least 1")
    return parsed


def real_data(given: Path | None) -> Path | None:
    """The folder of real data, found as the tests find it."""
    folder = given or Path(os.environ.get("EM_SHARED", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def measure(name: str, setting: Setting, out: Path | None) -> tuple[list[Record], bool]:
    """The records of one row of the table, and whether it came to its end; each is written as soon as it is there."""
    from pipeline.engine.memory import keep_freed_memory

    if name != "small":  # which measures the Python classes; the others stand for the command
        keep_freed_memory()
    group: Group = getattr(importlib.import_module(GROUPS[name][0]), name)
    records = []
    load = os.getloadavg()[0]  # of what else runs here, before we begin
    try:
        for one in group(setting):
            one["load_before"] = load
            records.append(one)
            write(one, out)
            print(table([one], titles=False), flush=True)
    except SkippedError as reason:
        print(f"{name}: skipped: {reason}", flush=True)
    except Exception:  # the other rows are still worth measuring
        traceback.print_exc()
        return records, False
    return records, True


def write(line: dict[str, Any], out: Path | None) -> None:
    """Append one JSON line."""
    if out is not None:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def of_commit(lines: Path, commit: str) -> list[Record]:
    """The records of a commit in a file of `write`, the last of each case and peer."""
    found: dict[tuple[str, str, str | None, str], Record] = {}
    here = False
    for line in lines.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if "machine" in one:
            here = one["machine"]["commit"] == commit and not one["quick"]
        elif here:
            found[one["row"], one["case"], one.get("peer"), one["measured"]] = one
    order = list(GROUPS)
    return sorted(found.values(), key=lambda one: order.index(one["row"]))


def main(words: list[str]) -> int:
    """Measure what was asked for; 1 if something failed. A missed target is a result, not a failure."""
    asked = arguments(words)
    if asked.list:
        print("\n".join(f"{name:12} {what}" for name, (_, what) in GROUPS.items()))
        return 0
    machine = header(ROOT)
    print("\n".join(lines_of(machine)), flush=True)
    write({"machine": machine, "quick": asked.quick}, asked.json)
    if asked.quick:
        print("quick: sizes that test the script; the figures mean nothing", flush=True)
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    whole = True
    for name in asked.rows or [name for name in GROUPS if name not in ON_REQUEST]:
        with tempfile.TemporaryDirectory(prefix="em-benchmark-", dir=asked.folder) as scratch:
            size = min(asked.size, 0.25) if asked.quick else asked.size
            setting = Setting(asked.rounds, asked.quick, Path(scratch), real_data(asked.data), size)
            # In a process of its own: the libraries that one peer loads are not to be in the way of the next row.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                try:
                    found, ended = alone.submit(measure, name, setting, asked.json).result()
                except BrokenProcessPool:
                    print(f"{name}: its process died; records until then are in --json", file=sys.stderr, flush=True)
                    found, ended = [], False
        records += found
        whole &= ended
    print("\n" + table(records))
    if asked.write is not None:
        every = records if asked.json is None else of_commit(asked.json, machine["commit"])
        asked.write.write_text(written(asked.write.read_text(encoding="utf-8"), machine, every), encoding="utf-8")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
