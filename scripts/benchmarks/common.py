"""What the groups share: a setting, interleaved timing, records, and rows in memory as the engine reads them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from pipeline.data.chunks import Chunks
from pipeline.data.source import TARGET_BYTES, Source
from pipeline.engine.passes import Engine
from pipeline.models.base import EStep

THREADS = 2  # of ours and of every peer
MIN_CHUNKS = 8
STEADY = 1.5
Record = dict[str, Any]
T = TypeVar("T")


class SkippedError(Exception):
    """A group cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """How to measure. rounds : repeats of each timing.  quick : sizes that only test the scripts.
    folder : scratch space.  data : the folder of real data, or None.  gib : size of an out-of-core store, GiB.
    """

    rounds: int
    quick: bool
    folder: Path
    data: Path | None
    gib: float

    def pick(self, full: T, quick: T) -> T:
        """`full`, or `quick` when the run is a quick one."""
        return quick if self.quick else full

    def real(self, name: str) -> Path:
        """A file or folder of the real data."""
        if self.data is None or not (self.data / name).exists():
            raise SkippedError(f"there is no {name} in the data folder ({self.data}); give --data")
        return self.data / name


Group = Callable[[Setting], Iterator[Record]]


class Way(NamedTuple):
    """One way of computing something. run : one call.  blas, openmp : threads that each of its threads may use."""

    run: Callable[[], Any]
    blas: int = 1
    openmp: int = 1


def faster_blas(way: Way) -> Way:
    """A peer's way with one or with THREADS BLAS threads, whichever is faster in one trial.

    Two threads that spin for each other in many small products lose to one, above all where a core is busy elsewhere.
    """
    trials = {threads: way._replace(blas=threads) for threads in (1, THREADS)}
    times = interleaved({str(threads): trial for threads, trial in trials.items()}, 1, warm=False)
    return min(trials.values(), key=lambda trial: times[str(trial.blas)].median)


class Timed(NamedTuple):
    """Seconds of each round, and what the last call returned."""

    seconds: list[float]
    result: Any

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    def fields(self, name: str) -> Record:
        """Median and spread, seconds, as fields of a record."""
        return {f"{name}_s": self.median, f"{name}_min_s": min(self.seconds), f"{name}_max_s": max(self.seconds)}


def interleaved(ways: Mapping[str, Way], rounds: int, warm: bool = True) -> dict[str, Timed]:
    """Each way in turn, `rounds` times over, so that what else the machine does falls on all alike.

    warm : whether each is called once before, untimed, so that nothing is compiled or loaded in a timing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for turn in range(-1 if warm else 0, rounds):
        for name, way in ways.items():
            results.pop(name, None)
            gc.collect()  # what the one before left is not this one's to clear
            with threadpool_limits({"blas": way.blas, "openmp": way.openmp}):
                began = time.perf_counter()
                results[name] = way.run()
                took = time.perf_counter() - began
            if turn >= 0:
                seconds[name].append(took)
    return {name: Timed(seconds[name], results[name]) for name in ways}


def record(
    row: str, case: str, measured: str, value: float, target: float | None = None, sense: str = ">=", **details: Any
) -> Record:
    """One line of the table. measured : what `value` is, with its unit.  sense : >= or <=, of the target."""
    met = None if target is None else bool(value >= target if sense == ">=" else value <= target)
    return {
        "row": row,
        "case": case,
        "measured": measured,
        "value": value,
        "target": target,
        "sense": sense,
        "met": met,
        **details,
    }


def compared(
    row: str, case: str, times: Mapping[str, Timed], peer: str, target: float | None, **details: Any
) -> Record:
    """A record of median(peer) / median(ours). times : by name, "ours" among them.

    steady : whether no round took STEADY times as long as another; where one did, something else used the machine.
    """
    ours, theirs = times["ours"], times[peer]
    details["steady"] = all(max(t.seconds) < STEADY * min(t.seconds) for t in (ours, theirs))
    spread = {"rounds": len(ours.seconds), **ours.fields("ours"), "peer": peer, **theirs.fields("peer")}
    return record(row, case, "peer / ours", theirs.median / ours.median, target, **spread, **details)


class InMemory(Source):
    """Rows of an array, dense or CSR, in chunks of TARGET_BYTES, or of an eighth of the rows where those are fewer."""

    stored = False  # a pass after the profile makes no checksums

    def __init__(self, x: Any) -> None:
        """x : (n, d)."""
        self.n_features, self.dtype, self.sparse = x.shape[1], x.dtype, sp.issparse(x)
        stored = x.data.nbytes + x.indices.nbytes if self.sparse else x.nbytes
        parts = max(MIN_CHUNKS, round(stored / TARGET_BYTES))
        self.bounds = np.linspace(0, x.shape[0], parts + 1).astype(np.int64)
        self._parts = [x[a:b] for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def read(self, i: int) -> Any:
        """Chunk i, see `Source.read`."""
        return self._parts[i]


def one_pass(chunks: Chunks, model: Any, params: Any, engine: Engine | None = None) -> Way:
    """E-step over all chunks, as a job runs it, and M-step; returns the sums. On THREADS threads by default."""
    chosen = engine or Engine(workers=THREADS)

    def run() -> Any:
        partial = chosen.sum_over(chunks, [EStep(model, params, model.attachments)])[0]
        model.m_step(partial.stats, params)
        return partial

    return Way(run)


def fitted(engine: Engine, chunks: Chunks, model: Any, params: Any, n_iter: int) -> Any:
    """The finished run of `n_iter` iterations in memory, and its last evaluation (`pipeline.em.loop.em`)."""
    from pipeline.em.loop import em
    from pipeline.em.run import Run
    from pipeline.em.stopping import Limits

    evaluate = lambda jobs: engine.sum_over(chunks, jobs)  # noqa: E731
    *_, (runs, _) = em([Run(0, model, params)], evaluate, Limits(n_iter, 0.0), chunks.n_rows)
    return runs[0]


def relative(a: float, b: float) -> float:
    """How far a is from b, as a share of b."""
    return abs(a - b) / abs(b)


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports these scripts and the package beside them."""
    scripts = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(scripts), str(scripts.parent)])}
