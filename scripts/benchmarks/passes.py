"""The engine alone: what a pass costs without data or arithmetic, with 1 and 2 workers, and over 10^5 to 10^8 rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.common import THREADS, Record, Setting, Way, interleaved, one_pass, record
from benchmarks.mixtures import draw, random_mixture
from pipeline.arrays.rows import LowestRows
from pipeline.config import EngineSection as EngineConfig
from pipeline.data.chunks import Chunks
from pipeline.data.source import Source, even_bounds, rows_per_target
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine
from pipeline.engine.passes import Engine
from pipeline.models.base import Evidence, Partial
from pipeline.models.families.gaussian import GaussianStats
from pipeline.models.mixture import MixtureStats

SCHEDULERS = {"threads": "threads", "processes": "local"}  # as in engine.scheduler
EMPTY_CHUNKS = 10_000
# d, K and where: seconds at most, for EMPTY_CHUNKS chunks
OVERHEAD = {
    (16, 20, "threads"): 0.5,
    (16, 20, "processes"): 1.0,
    (64, 200, "threads"): 3.0,
    (64, 200, "processes"): 3.0,
}
WORKERS_CASE, WORKERS_CHUNKS, SPEED_UP = (16, 64), 32, 1.9
ROWS_CASE, SLOPE, SLOPE_OFF = (16, 64), 1.0, 0.03


@cache
def _block(d: int, k: int) -> np.ndarray:
    """One chunk of rows, made once in each process, with the bits of all others. (n, d) float32."""
    with single_thread():
        return draw(random_mixture(d, k), rows_per_target(d, 4))


class Repeated(Source):
    """The same chunk of a random mixture again and again: rows without a disk, in any process. n_rows in all."""

    stored = False  # they do not change: no checksums

    def __init__(self, d: int, k: int, n_rows: int) -> None:
        """d, k : of the mixture."""
        self.n_features, self.dtype, self._k = d, np.dtype(np.float32), k
        self.bounds = even_bounds(n_rows, rows_per_target(d, 4))

    def read(self, i: int) -> np.ndarray:
        """Chunk i, see `Source.read`."""
        return _block(self.n_features, self._k)[: int(self.bounds[i + 1] - self.bounds[i])]


class Nothing(Source):
    """Chunks of one row."""

    stored = False

    def __init__(self, n_chunks: int) -> None:
        """n_chunks : of them."""
        self.n_features, self.dtype, self.bounds = 1, np.dtype(np.float32), even_bounds(n_chunks, 1)

    def read(self, i: int) -> np.ndarray:
        """Chunk i, see `Source.read`."""
        return np.zeros((1, 1), np.float32)


def _partial(d: int, k: int) -> Partial:
    """What an E-step of a full Gaussian mixture returns, without meaning; its own arrays, which sums are formed in."""
    zeros = [np.zeros(shape) for shape in [(k,), (k, d), (k, d * (d + 1) // 2)]]
    stats = MixtureStats(zeros[0], GaussianStats(zeros[1], zeros[2]))
    n_worst = min(k, 8)
    row = np.arange(n_worst)
    worst = LowestRows(n_worst, row / 1.0, row, np.full((n_worst, d), 0.0), np.ones(n_worst), row)
    return Partial(stats, Evidence(0.0, 0.0, 0.0, 0.0), {"worst_rows": worst})


@dataclass(frozen=True)
class EmptyHanded:
    """Job: an E-step's result at no cost. d, k : its size."""

    d: int
    k: int

    def __call__(self, chunk: Any, kernels: Any) -> Partial:
        """New for every chunk."""
        return _partial(self.d, self.k)


def overhead(setting: Setting) -> Iterator[Record]:
    """A pass over many chunks that cost nothing: loading, calling, adding statistics, and the graph."""
    n_chunks = setting.pick(EMPTY_CHUNKS, 200)
    chunks = Chunks(Nothing(n_chunks), clean=True)
    for (d, k, where), target in OVERHEAD.items():
        with (
            single_thread(),
            open_engine(EngineConfig(scheduler=SCHEDULERS[where], workers=THREADS), THREADS) as engine,
        ):
            job = EmptyHanded(d, k)
            ways = {"ours": Way(lambda engine=engine, job=job: engine.sum_over(chunks, [job]))}  # type: ignore[misc]
            timed = interleaved(ways, setting.rounds)["ours"]
        yield record(
            "overhead",
            f"statistics d={d} K={k}, {n_chunks} chunks, {THREADS} {where}",
            "s",
            timed.median,
            target,
            "<=",
            rounds=setting.rounds,
            **timed.fields("ours"),
            ours_us_per_chunk=timed.median / n_chunks * 1e6,
            statistics_bytes=_partial(d, k).stats.nbytes,
        )


def workers(setting: Setting) -> Iterator[Record]:
    """The same compute-bound pass with 1 and with THREADS workers."""
    (d, k), n_chunks = WORKERS_CASE, setting.pick(WORKERS_CHUNKS, 4)
    chunks = Chunks(Repeated(d, k, n_chunks * len(_block(d, k))), clean=True)
    model, params = random_mixture(d, k).model()
    for where, scheduler in SCHEDULERS.items():
        with ExitStack() as opened:
            opened.enter_context(single_thread())
            engines = {
                count: opened.enter_context(open_engine(EngineConfig(scheduler=scheduler, workers=count), count))
                for count in (1, THREADS)
            }
            ways = {f"{count}": one_pass(chunks, model, params, engine) for count, engine in engines.items()}
            times = interleaved(ways, setting.rounds)
        one, all_of_them = times["1"], times[f"{THREADS}"]
        yield record(
            "workers",
            f"{where}, full d={d} K={k} float32",
            "speed-up",
            one.median / all_of_them.median,
            SPEED_UP,
            rounds=setting.rounds,
            n=chunks.n_rows,
            **all_of_them.fields("ours"),
            peer="ours, 1 worker",
            **one.fields("peer"),
        )


def rows(setting: Setting) -> Iterator[Record]:
    """How a pass's time grows with its rows: the slope of log seconds over log rows, least squares.

    One worker: a pass of fewer chunks than workers leaves some idle, which says nothing of the cost of a row.
    """
    d, k = ROWS_CASE
    model, params = random_mixture(d, k).model()
    sizes = [round(10**power) for power in np.arange(5, setting.pick(8.0, 6.0) + 0.1, 0.5)]
    engine = Engine(workers=1)
    seconds, low, high = [], [], []
    for n in sizes:
        way = one_pass(Chunks(Repeated(d, k, n), clean=True), model, params, engine)
        # Small sizes are repeated more, the largest once: they have all the rows to average over.
        timed = interleaved({"ours": way}, max(1, min(setting.rounds, int(1e8 / n))), warm=n <= 1e6)["ours"]
        seconds.append(timed.median)
        low.append(min(timed.seconds))
        high.append(max(timed.seconds))
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    yield record(
        "rows",
        f"full d={d} K={k} float32, {sizes[0]:.0e} to {sizes[-1]:.0e} rows, 1 worker",
        "|slope - 1|",
        abs(slope - SLOPE),
        SLOPE_OFF,
        "<=",
        rounds=setting.rounds,
        slope=slope,
        n=sizes,
        ours_s=seconds[-1],
        seconds=seconds,
        seconds_min=low,
        seconds_max=high,
    )
