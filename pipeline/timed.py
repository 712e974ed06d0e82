"""What `check` times: some chunks, else the first rows of a chunk; else it counts from shapes. It has to answer soon.

An E-step and its statistics take about 4 operations a row and free parameter: a product with all parameters, and one for the
sums. An M-step takes about d operations a parameter: a Cholesky factor of (d, d) for the d²/2 of a covariance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.em.loop import TEXTBOOK, advance, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.passes import ChunkFunction
from pipeline.engine.reading import in_turn
from pipeline.models import schema
from pipeline.models.base import EStep, LatentModel
from pipeline.models.clusters import ClusterModel

SPEED = 1e10  # operations a second of a core, about
WARM_ITERATIONS = 10  # of EM: components narrow, and may then need a slower implementation than at the start
LEAST_SECONDS = 0.5  # of a part: timed in less, an estimate would be worth little
LEAST_ROWS = 64  # that are timed
PASSES = 10  # over the few rows that a start and some iterations take, about
ROWS_EACH = 8  # times those below which a component is collapsed


class Deadline:
    """When to have answered."""

    def __init__(self, seconds: float) -> None:
        self._at = time.perf_counter() + seconds

    def share(self, part: float) -> float:
        """Return this part of the seconds that are left; LEAST_SECONDS if it is less."""
        return max(part * (self._at - time.perf_counter()), LEAST_SECONDS)


@dataclass(frozen=True)
class FirstRows(Chunks):
    """Chunks of which only the first rows are seen. most : rows of a chunk."""

    most: int = 0

    @classmethod
    def of(cls, chunks: Chunks, most: int) -> FirstRows:
        """Return the first rows of each chunk."""
        return cls(**{each.name: getattr(chunks, each.name) for each in fields(Chunks)}, most=most)

    def load(self, i: int) -> Rows:
        """Read chunk i; return its first rows."""
        return first_rows(super().load(i), self.most)


def first_rows(rows: Rows, n: int) -> Rows:
    """Return the first n rows with their columns."""
    if n >= rows.n:
        return rows
    weight, bad, label = (None if column is None else column[:n] for column in (rows.weight, rows.bad, rows.label))
    units = None if rows.units is None else rows.units[rows.units < n]
    return replace(rows, x=rows.x[:n], weight=weight, bad=bad, label=label, units=units)


@dataclass(frozen=True)
class TimedShard:
    """Task: seconds and rows of jobs on consecutive chunks, without the first and the last."""

    chunks: Chunks
    jobs: Sequence[ChunkFunction]
    ahead: bool
    allowed: float = np.inf  # seconds, after which one timed chunk is enough

    def __call__(self, *ids: Any) -> tuple[float, int]:
        """Return seconds between the arrivals of the second and the last chunk, and rows of those between."""
        *ids, kernels = ids  # type: ignore[assignment]
        arrivals, rows, total, began = [], 0, None, time.perf_counter()
        for chunk in in_turn(self.chunks.load, ids, self.ahead):
            arrivals.append(time.perf_counter())
            if len(arrivals) == len(ids) or (len(arrivals) > 2 and arrivals[-1] - began > self.allowed):
                break
            found = [job(chunk, kernels) for job in self.jobs]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
            rows += chunk.x.shape[0] if len(arrivals) > 1 else 0
        return arrivals[-1] - arrivals[1], rows


@dataclass(frozen=True)
class TimedRows:
    """Task: the seconds of jobs on a chunk, from those on some of its rows.

    Jobs take the same time for each row and some time for each chunk: two numbers of rows tell both.
    """

    chunks: Chunks
    jobs: Sequence[ChunkFunction]
    allowed: float  # seconds, about

    def __call__(self, i: int, kernels: Any) -> float:
        """Return the seconds that the whole chunk would take, without reading it."""
        chunk = self.chunks.load(i)
        least = min(LEAST_ROWS, chunk.n)
        self._seconds(chunk, least, kernels)  # compiles
        few = self._seconds(chunk, least, kernels)
        more = min(max(int(least * self.allowed / (2 * max(few, 1e-6))), 4 * least), chunk.n)
        if more < 2 * least:
            return few * chunk.n / least
        many = self._seconds(chunk, more, kernels)
        row = max(many - few, 0.0) / (more - least)
        return many + row * (chunk.n - more)

    def _seconds(self, chunk: Rows, n: int, kernels: Any) -> float:
        rows, began = first_rows(chunk, n), time.perf_counter()
        for job in self.jobs:
            job(rows, kernels)
        return time.perf_counter() - began


def row_operations(model: LatentModel, chunks: Chunks) -> float:
    """Return about how many operations an E-step and its statistics take for a row."""
    dense = model.row_operations() if isinstance(model, ClusterModel) else 4.0 * model.n_free_parameters()
    if not chunks.source.sparse:
        return dense
    entries = chunks.pass_bytes() / chunks.n_rows / 12  # of a row: a value and an index each
    return dense * min(1.0, entries / chunks.n_features)


def step_operations(model: LatentModel) -> float:
    """Return about how many operations an M-step takes."""
    return float(model.n_free_parameters() * model.sizes.get("feature", 1))


class Few(NamedTuple):
    """What parameters come from: rows of each of some chunks, and components of those of the model, as a share."""

    rows: int
    share: float

    def less(self, model: LatentModel) -> LatentModel:
        """Return the model with this share of its components."""
        k = model.sizes.get("component", 0)
        if self.share == 1.0 or not isinstance(model, ClusterModel):
            return model
        return cast(LatentModel, model.with_components(max(1, int(k * self.share))))

    def grown(self, run: Run, model: LatentModel) -> Run:
        """Return the run with all components: each is there as often as it takes."""
        if run.model is model or not isinstance(model, ClusterModel):
            return run
        repeated = np.arange(model.sizes["component"]) % run.model.sizes["component"]
        arrays = schema.selected(run.model.fields, run.model.arrays(run.params), repeated)
        return Run(run.restart, model, model.params_from_arrays(schema.normalized(model.fields, arrays)))


def few(models: Sequence[LatentModel], chunks: Chunks, n_chunks: int, seconds: float) -> Few | None:
    """Return what parameters come from, within about `seconds` of one core; None if not even LEAST_ROWS rows can be timed.

    Components that have too few rows collapse, and arithmetic with collapsed ones takes longer: rather fewer components.
    """
    whole = int(np.diff(chunks.source.bounds).max())
    row = sum(row_operations(model, chunks) for model in models) / SPEED
    step = sum(map(step_operations, models)) / SPEED
    if PASSES * (step + LEAST_ROWS * row) > seconds:
        return None
    fitting = (seconds / PASSES - step) / (row * n_chunks)
    if fitting >= whole:
        return Few(whole, 1.0)
    needed = ROWS_EACH * max(_least(model) for model in models) / n_chunks
    share = min(1.0, (fitting / needed) ** 0.5)
    return Few(min(whole, int(fitting / share)), share)


def _least(model: LatentModel) -> int:
    return model.sizes["component"] * model.least_rows if isinstance(model, ClusterModel) else LEAST_ROWS


def warmed(runs: list[Run], sums: Callable[..., list[Any]], n_rows: int, allowed: float) -> tuple[list[Run], float]:
    """The runs after some iterations on some chunks, and the seconds of their M-steps. allowed : seconds, about."""
    limits, until, warm = Limits(WARM_ITERATIONS, 0.0), time.perf_counter() + allowed, runs
    for current, _ in em(runs, sums, limits, n_rows):
        warm = current
        if time.perf_counter() > until:
            break
    rest = [run for run in warm if run.final is None]
    jobs = [EStep(run.model, run.params, run.model.attachments) for run in rest]
    finals = iter(sums(jobs) if jobs else [])
    partials = [next(finals) if run.final is None else run.final for run in warm]
    began = time.perf_counter()
    for run, partial in zip(warm, partials, strict=True):
        advance(replace(run, stop_reason=None, final=None), partial, limits, n_rows, TEXTBOOK)
    return warm, time.perf_counter() - began
