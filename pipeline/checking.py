"""The cost of a job before it runs: counted from shapes and timed on a few chunks; nothing is written.

Each worker reads five neighbouring chunks as a shard of a pass does, ahead of its arithmetic. The first compiles kernels
and is discarded, the last is only waited for: the time between the arrivals of the second and the last is that of three.
Where whole chunks would take too long, the first rows of one chunk are timed, and where even one iteration on few rows
would, it is counted from shapes: see timed.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.data.profile import DataSummary, Profile, summary_of, with_box
from pipeline.data.user_start import UserStart
from pipeline.em.heldout import OnTheOthers, Units
from pipeline.em.pruning import most_pruning_reads
from pipeline.em.run import Run
from pipeline.em.search import EFFORT, most_reads, searched
from pipeline.engine.memory import Plan
from pipeline.engine.passes import ChunkFunction, Engine
from pipeline.engine.reading import worth_ahead
from pipeline.engine.tree import shard_level
from pipeline.fitting.driver import Driver, for_report
from pipeline.fitting.plan import JobPlan, moves_of
from pipeline.fitting.sink import NoSink
from pipeline.jobconfig import Config
from pipeline.models.base import EStep, LatentModel
from pipeline.models.books import Quantizer
from pipeline.models.clusters import ClusterModel
from pipeline.models.mixture import Mixture
from pipeline.models.starts import hard_start, in_step
from pipeline.outputs.labels import BLOCK_ROWS, LabelBlock
from pipeline.outputs.plan import of_data, of_memory
from pipeline.timed import (
    SPEED,
    Deadline,
    Few,
    FirstRows,
    TimedRows,
    TimedShard,
    few,
    row_operations,
    step_operations,
    warmed,
)

TIMED_CHUNKS = 3
LEAST_SECONDS = 0.2  # of timed work for each worker: chunks that take less are timed more of
MOST_CHUNKS = 200
SECONDS = 20.0  # in which to answer, and the time before it, such as that of imports


@dataclass(frozen=True)
class Phase:
    """One kind of work. passes : over the data, at most.  seconds : in all, at most.  note : what else is known."""

    name: str
    passes: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """The cost of a job, in bytes and seconds.

    seconds_per_pass : of one iteration of all fits.  read_seconds : of reading alone in a pass.
    overhead_seconds : of a pass besides reading and arithmetic.  memory : the plan's fields and its peak.
    exact_in_float32 : of float64 rows, whether float32 represents all sampled values exactly; None for others.
    basis : what an iteration was timed on: whole "chunks", some "rows" of a chunk, or nothing but "shapes".
    """

    rows: int
    features: int
    dtype: str
    chunks: int
    chunk_bytes: int
    pass_bytes: int
    objects: int
    tasks: int
    workers: int
    fits: int
    candidates: int
    memory: dict[str, Any]
    seconds_per_pass: float
    read_seconds: float
    overhead_seconds: float
    exact_in_float32: bool | None
    phases: list[Phase]
    basis: str = "chunks"
    advice: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """For max_iter iterations and all other phases."""
        return sum(phase.seconds for phase in self.phases)

    def facts(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self) | {"seconds": self.seconds}


@dataclass(frozen=True)
class Labelling:
    """Job: labels of a chunk, which are discarded."""

    task: LabelBlock

    def __call__(self, chunk: Rows, kernels: Any) -> int:
        self.task.of_rows(chunk, 0, chunk.x.shape[0], kernels)
        return 0


class _EmptyChunks(Chunks):
    """Chunks without rows: a pass over them costs neither reading nor arithmetic."""

    chunk_bytes = 0

    def load(self, i: int) -> Rows:
        return Rows(np.empty((0, 0)), None, 0)


def _nothing(chunk: Any, kernels: Any) -> int:
    return 0


class Timer:
    """Times jobs on a few chunks, with the engine of the run.

    ids, first : the timed chunks, and the first one of each worker.  overhead, loading : seconds of a pass over empty chunks, and of the first.
    read_seconds : of a pass that only reads; 0 until it is known.  basis : of the last estimate, as in `Cost`.
    """

    def __init__(self, engine: Engine, chunks: Chunks, ahead: bool) -> None:
        """chunks : unmapped rows.  ahead : whether there is memory to read ahead."""
        self.read_seconds, self.basis = 0.0, "chunks"
        self.engine, self.raw, self._ahead = engine, chunks, ahead and worth_ahead(chunks)
        shards = self._shards(TIMED_CHUNKS)
        self.ids, self.first = sorted({i for shard in shards for i in shard}), sorted({shard[0] for shard in shards})
        self.loading, self.overhead = (self._seconds_of_nothing() for _ in range(2))

    def _shards(self, timed: int) -> list[tuple[int, ...]]:
        n, w = self.raw.n_chunks, self.engine.workers
        return [tuple((j * n // w + i) % n for i in range(timed + 2)) for j in range(w)]

    def _seconds_of_nothing(self) -> float:
        nothing = _EmptyChunks(self.raw.source)
        began = time.perf_counter()
        self.engine.sum_over(nothing, [_nothing])
        return time.perf_counter() - began

    def rows_of(self, ids: Sequence[int], most: int) -> int:
        """Return the rows of some chunks. most : those of one that count."""
        return int(np.minimum(np.diff(self.raw.source.bounds)[list(ids)], most).sum())

    def sum_over(self, chunks: Chunks, ids: Sequence[int]) -> Callable[[Sequence[ChunkFunction]], list[Any]]:
        """Return a function that sums jobs over some chunks."""
        return lambda jobs: self.engine.sum_over(chunks, jobs, ids)

    def pass_seconds(self, chunks: Chunks, jobs: Sequence[ChunkFunction], allowed: float) -> float:
        """Return the estimated time of a pass of these jobs over all chunks. allowed : seconds to find it in, about."""
        self.basis, chunk = "chunks", 0.0
        if jobs:
            timing = TimedRows(chunks, jobs, allowed / 2)
            chunk = float(np.mean(list(self.engine.map_in_order(timing, [(i,) for i in self.first]))))
        if chunk * (TIMED_CHUNKS - 1) > allowed / 2:
            self.basis = "rows"
            return self._of_rows(chunks, chunk / (chunks.n_rows / chunks.n_chunks)) + self.read_seconds
        return self._of_rows(chunks, self._timed_row(chunks, jobs, allowed))

    def _timed_row(self, chunks: Chunks, jobs: Sequence[ChunkFunction], allowed: float) -> float:
        """Seconds of a worker for a row, reading included."""
        timed, until = TIMED_CHUNKS, time.perf_counter() + allowed
        while True:
            timing = TimedShard(chunks, jobs, self._ahead, allowed)
            found = list(self.engine.map_in_order(timing, self._shards(timed)))
            spent = float(np.mean([seconds for seconds, _ in found]))
            enough = spent >= LEAST_SECONDS or time.perf_counter() > until
            if enough or timed >= min(MOST_CHUNKS, max(TIMED_CHUNKS, chunks.n_chunks)):
                return float(np.mean([seconds / rows for seconds, rows in found]))
            timed = min(MOST_CHUNKS, chunks.n_chunks, int(timed * 1.2 * LEAST_SECONDS / max(spent, 1e-4)) + 1)

    def from_shapes(self, row: float) -> float:
        """Return the estimated time of a pass, from the seconds of a worker for the arithmetic of a row."""
        return self._of_rows(self.raw, row) + self.read_seconds

    def _of_rows(self, chunks: Chunks, row: float) -> float:
        """Seconds of a pass, from those of a worker for a row."""
        n, workers = chunks.n_chunks, self.engine.workers
        shards, width = tasks_of(n, workers, row * chunks.n_rows / n)
        longest = min(-(-shards // workers) * width, n)  # chunks that the busiest worker computes
        return row * chunks.n_rows * longest / n + self.overhead


def tasks_of(n_chunks: int, workers: int, chunk_seconds: float) -> tuple[int, int]:
    """Return the tasks of a pass, and the chunks of each.

    >>> tasks_of(n_chunks=100, workers=2, chunk_seconds=0.1)
    (100, 1)
    """
    width = 1 << shard_level(n_chunks, workers, chunk_seconds)
    return -(-n_chunks // width), width


def from_shapes(chunks: Chunks, planned: Plan) -> list[str]:
    """Return what is known before anything is timed, in words, and what is done now."""
    source = chunks.source
    rows = chunks.n_rows, chunks.n_features, str(source.dtype)
    return [
        of_data(*rows, chunks.pass_bytes(), chunks.n_chunks, chunks.chunk_bytes),
        of_memory(planned._asdict() | {"peak": planned.peak}),
        f"timing    a few chunks, within about {SECONDS:.0f} s",
    ]


def cost(
    plan: JobPlan, chunks: Chunks, engine: Engine, planned: Plan, user: UserStart, began: float | None = None
) -> Cost:
    """Count and time a job.

    Parameters
    ----------
    plan : JobPlan
    chunks : Chunks
        Before preprocessing.
    engine : Engine
    planned : Plan
        Of memory.
    user : UserStart
    began : float, optional
        time.perf_counter() when the user began to wait: the answer is due SECONDS later. Now by default.

    Raises
    ------
    InputError
        As a run would, for what the timed chunks show.
    """
    spent = 0.0 if began is None else time.perf_counter() - began
    deadline = Deadline(max(SECONDS - spent, SECONDS / 2))
    config, timer = plan.config, Timer(engine, chunks, planned.ahead)
    units = Units.of(chunks.source, config.select.heldout, config.fit.random_state)
    looking: list[ChunkFunction] = [plan.profile_job(), *plan.sampling()]
    now = time.perf_counter()
    profile: Profile = timer.sum_over(chunks, timer.first)(looking[:1])[0]
    cold = timer.loading + time.perf_counter() - now  # libraries are loaded in the profile, once
    if (time.perf_counter() - now) * (TIMED_CHUNKS + 2) < deadline.share(0.1):
        profile = timer.sum_over(chunks, timer.ids)(looking[:1])[0]
    profile.check(config.data.bad_rows)
    summary = summary_of(profile, config.preprocess, user.earlier, chunks.source)
    driver = Driver(config, chunks, engine, plan, NoSink()).after_profile(summary)
    mapped = driver.chunks
    summary = with_box(summary, timer.sum_over(mapped, timer.first)) if config.model.needs_box else summary
    timer.read_seconds = timer.pass_seconds(mapped, [], deadline.share(0.1))
    phases = [Phase("profile", 1, cold + timer.pass_seconds(chunks, _wrapped(looking, units), deadline.share(0.1)))]
    whole = config.fit.init in ("explicit", "run") or config.data.labels is not None or config.model.by_unit
    found = few(plan.models * config.fit.n_init, mapped, len(timer.first), deadline.share(0.3) * engine.workers)
    if found is not None:
        found = found._replace(share=1.0) if whole else found
        # Nothing is held out of the few chunks that parameters come from: it might be all of them.
        sums = timer.sum_over(FirstRows.of(mapped, found.rows), timer.first)
        runs, start, loading = _starts(driver, timer, summary, user, sums, found)
        phases += [loading] if plan.searches else [loading, start]
        runs, m_step_seconds = warmed(runs, sums, summary.n_rows, deadline.share(0.3))
        models, m_step_seconds = config.models(summary), m_step_seconds / found.share
        warm = [found.grown(run, models[run.candidate]) for run in runs]
        steps = [EStep(run.model, run.params, run.model.attachments) for run in warm]
        iteration = timer.pass_seconds(mapped, _wrapped(steps, units), deadline.share(0.4)) + m_step_seconds
        basis = timer.basis
        last = [EStep(run.model, run.params, (*run.model.attachments, *for_report(config, run.model))) for run in warm]
        final = timer.pass_seconds(mapped, _wrapped(last, units), deadline.share(0.5))
    else:
        warm, basis, n_init = [], "shapes", config.fit.n_init
        row = n_init * sum(row_operations(model, mapped) for model in plan.models) / SPEED
        iteration = timer.from_shapes(row) + n_init * sum(map(step_operations, plan.models)) / SPEED
        final = timer.from_shapes(2 * row)  # the rows of each component for the report take about as long
        phases += [] if plan.searches else [Phase("start", 1, iteration)]
    n_fits = len(warm) or config.fit.n_init * len(plan.models)
    if plan.searches:
        models = [run.model for run in warm] or [model for model in plan.models for _ in range(config.fit.n_init)]
        phases.append(_search(plan, models, (iteration - timer.overhead) / n_fits))
    limit = config.fit.max_iter or 0
    note = f"{n_fits} fits share each read" if n_fits > 1 else ""
    phases.append(Phase("iterations", limit, limit * iteration, note))
    phases.append(Phase("final pass", 1, final))
    if units is not None:
        one = (limit * iteration + final) / n_fits
        least = (limit + 1) * timer.read_seconds
        phases.append(Phase("refit", limit + 1, max(one, least), "the chosen model, on all rows"))
    largest = max(warm, key=lambda run: run.model.sizes.get("component", 0), default=None)
    if config.output.standard_errors:
        spent = iteration / n_fits
        if largest is not None:
            products = largest.model.score_products(largest.params, config.output.standard_errors is True)
            spent = timer.pass_seconds(mapped, [products], deadline.share(0.5))
        phases.append(Phase("standard errors", 1, spent))
    if config.output.labels:
        phases.append(_labels(config, mapped, timer, largest, iteration / n_fits, deadline.share(0.8)))
    return Cost(
        rows=chunks.n_rows,
        features=chunks.n_features,
        dtype=str(chunks.source.dtype),
        chunks=chunks.n_chunks,
        chunk_bytes=chunks.chunk_bytes,
        pass_bytes=chunks.pass_bytes(),
        objects=len(chunks.source.object_sizes()),
        tasks=tasks_of(chunks.n_chunks, engine.workers, iteration * engine.workers / chunks.n_chunks)[0],
        workers=engine.workers,
        fits=n_fits,
        candidates=len(plan.models),
        memory=planned._asdict() | {"peak": planned.peak},
        seconds_per_pass=iteration,
        read_seconds=timer.read_seconds,
        overhead_seconds=timer.overhead,
        exact_in_float32=_exact_in_float32(chunks, profile),
        phases=[phase for phase in phases if phase.passes or phase.seconds],
        basis=basis,
    )


def _wrapped(jobs: Sequence[Any], units: Units | None) -> list[Any]:
    return list(jobs) if units is None else [OnTheOthers(job, units) for job in jobs]


def _starts(
    driver: Driver, timer: Timer, summary: DataSummary, user: UserStart, sums: Callable[..., list[Any]], found: Few
) -> tuple[list[Run], Phase, Phase]:
    """Starts from one chunk of each worker, or its first rows.

    Also the phase of such a start on all rows, and the time of the first one for importing libraries and loading or compiling kernels.
    """
    config, passes, reading, spent = driver.config, 0, 0.0, []
    # Few chunks need not have every word, nor every label.
    init = "random" if config.fit.init == "labels" else config.fit.init
    small = config.model_copy(
        update={"model": config.model.for_few_rows(), "fit": config.fit.model_copy(update={"init": init})}
    )
    models, driver = [found.less(model) for model in small.models(summary)], replace(driver, config=small)

    def counted(jobs: Any) -> list[Any]:
        nonlocal passes, reading
        passes, since = passes + 1, time.perf_counter()
        added = sums(jobs)
        reading += time.perf_counter() - since
        return added

    for _ in range(2):
        passes, reading, began = 0, 0.0, time.perf_counter()
        starts = in_step(driver.startings(models, summary, user._replace(labels=None)), counted)
        spent.append(time.perf_counter() - began)
    runs = [Run(r, models[i], params, candidate=i) for i, each in enumerate(starts) for r, params in enumerate(each)]
    loading = Phase("loading", 0, max(0.0, spent[0] - spent[1]), "libraries and kernels, once")
    if user.labels is not None:
        labels = [hard_start(model, None, user.labels) for model in models if isinstance(model, ClusterModel)]
        return runs, Phase("start", 1, timer.pass_seconds(driver.chunks, labels, 1.0)), loading
    on_all = reading * timer.raw.n_rows / timer.rows_of(timer.first, found.rows) / found.share + passes * timer.overhead
    return runs, Phase("start", passes, on_all + spent[1] - reading), loading


def _search(plan: JobPlan, models: Sequence[LatentModel], one: float) -> Phase:
    """The search for a start. one : seconds of a pass of one fit over all rows, with the same arithmetic."""
    config, in_memory, rows = plan.config, max(plan.search_rows), 0.0
    for model in models:
        assert isinstance(model, ClusterModel | Quantizer)
        moves, budget = moves_of(config, model, in_memory)
        for each, some, part in searched(model, config.fit.init, plan.sparse, in_memory, EFFORT[config.fit.effort]):
            # K-means has one product with the centres, where an E-step and its moments take two with about all parameters.
            products = 1 if each is model or isinstance(model, Quantizer) or model.of_centers else 2
            share = each.row_operations() / (products * model.row_operations())
            rows += share * most_reads(each, some, plan.n_rows, moves, part)
        if config.select.pruning:  # with fewer components a pass costs less: on average half
            assert isinstance(model, Mixture)
            rows += most_pruning_reads(model, in_memory, budget) / 2
    return Phase("search", 0, rows / plan.n_rows * one, f"for a start, on {in_memory} rows in memory")


def _labels(config: Config, chunks: Chunks, timer: Timer, run: Run | None, other: float, allowed: float) -> Phase:
    """The labels pass. Blocks of labels end inside chunks, which are then read once more. other : seconds if nothing is timed."""
    bounds, starts = chunks.source.bounds, np.arange(0, chunks.n_rows, BLOCK_ROWS)
    stops = np.minimum(starts + BLOCK_ROWS, chunks.n_rows)
    reads = (np.searchsorted(bounds, stops, side="left") - np.searchsorted(bounds, starts, side="right") + 1).sum()
    twice = int(reads) - chunks.n_chunks
    seconds = other
    if run is not None:
        top_k = min(config.output.top_k, run.model.sizes.get("component", 0))
        task = LabelBlock(chunks, run.model, run.params, top_k, config.data.bad_rows != "error")
        seconds = timer.pass_seconds(chunks, [Labelling(task)], allowed)
    seconds += twice * timer.read_seconds / chunks.n_chunks
    busy = -(-len(starts) // timer.engine.workers) * timer.engine.workers / len(starts)
    return Phase("labels", 1, seconds * busy, f"{twice} chunks are read twice" if twice > 0 else "")


def _exact_in_float32(chunks: Chunks, profile: Profile) -> bool | None:
    """Whether float32 represents the sample of float64 rows exactly."""
    x = profile.sample.x
    if chunks.source.sparse or profile.low.dtype != np.float64:
        return None
    with np.errstate(over="ignore"):
        return bool((x == x.astype(np.float32)).all())
