"""The fit of a Python class: the driver's own profile, starts and iterations, without a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunks
from pipeline.data.column import MemoryColumn
from pipeline.data.earlier import Earlier
from pipeline.data.user_start import UserStart
from pipeline.em.choice import best_run
from pipeline.em.run import Run
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import current_engine
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.fitting.driver import Driver
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.fitting.sink import NoSink
from pipeline.jobconfig import Config
from pipeline.models.base import LatentModel
from pipeline.models.clusters import ClusterModel
from pipeline.models.starts import from_hard, hard_start

OnPass = Callable[[Sequence[Run]], bool | None]  # called with the runs after each pass: whether the fit is to end


class Start(NamedTuple):
    """What the user, or a class itself, supplies of the starts.

    Attributes
    ----------
    arrays : sequence of mapping
        Parameters by name, for each restart, or once for all; those that are missing come from labels, or as fit.init says.
    labels : sequence of array, shape (n,)
        Of all rows, for each restart.
    """

    arrays: Sequence[Mapping[str, Array]] = ()
    labels: Sequence[Array] = ()


def fitted(
    config: Config, chunks: Chunks, start: Start, iterate: bool, on_pass: OnPass, earlier: Earlier | None = None
) -> Run:
    """Return the best of the restarts.

    Rows that are a Dask array are read by the current client's workers; all others on threads of this process, as many as the
    memory plan allows.

    Parameters
    ----------
    config : Config
    chunks : Chunks
    start : Start
    iterate : bool
        Whether there are iterations; without them the run is the first start.
    on_pass : callable
    earlier : Earlier or None
        With the statistics of rows that count beside these.
    """
    with single_thread():
        return _fitted(config, chunks, start, iterate, on_pass, earlier)[0]


def fitted_with_errors(
    config: Config, chunks: Chunks, start: Start, on_pass: OnPass, wanted: bool
) -> tuple[Run, dict[str, Array] | None]:
    """Return the best of the restarts, and the standard errors of its parameters if they are wanted: one more pass."""
    with single_thread():
        run, driver = _fitted(config, chunks, start, True, on_pass)
        if not wanted:
            return run, None
        job = run.model.score_products(run.params, True)
        return run, job.errors(driver.sums()([job])[0])


def _fitted(
    config: Config, chunks: Chunks, start: Start, iterate: bool, on_pass: OnPass, earlier: Earlier | None = None
) -> tuple[Run, Driver]:
    plan = plan_job(config, chunks)
    engine = None if chunks.source.blocks() is None else current_engine()
    if engine is None:
        planned = memory_plan(plan, chunks, imports=0)
        engine = Engine(workers=min(planned.workers, chunks.n_chunks), ahead=planned.ahead)
    driver, summary, sample = Driver(config, chunks, engine, plan, NoSink(on_pass)).profiled(earlier)
    [model] = config.models(summary)
    if start.labels and isinstance(model, ClusterModel):
        jobs = [hard_start(model, None, MemoryColumn(labels)) for labels in start.labels]
        params = from_hard(model, driver.sums()(jobs))
    elif start.arrays and set(start.arrays[0]) == set(model.fields):
        params = [None] * len(start.arrays)
    else:
        params = [run.params for run in driver.starts(summary, UserStart(), sample)]
    runs = [Run(i, model, _with(model, each, start.arrays, i)) for i, each in enumerate(params)]
    del params  # so that only the iterations hold them
    return (best_run(driver.advance(summary, runs)) if iterate else runs[0]), driver


def _with(model: LatentModel, params: Any, supplied: Sequence[Mapping[str, Array]], restart: int) -> Any:
    """Parameters in which those that are supplied for the restart are as supplied. params : None where all are."""
    if not supplied:
        return params
    own = {} if params is None else model.arrays(params)
    return model.params_from_arrays({**own, **supplied[restart % len(supplied)]})


def copied(names: Sequence[str], source: Any, target: Any) -> Any:
    """The target, with those of the named attributes that the source has."""
    for name in names:
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    return target


def seed_of(random_state: Any) -> int:
    """The seed of a fit from scikit-learn's random_state: an integer is itself."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


@contextmanager
def value_errors() -> Iterator[None]:
    """A context in which a refusal is the ValueError that scikit-learn's conventions ask for."""
    try:
        yield
    except InputError as error:
        raise ValueError(str(error)) from error


class Progress:
    """Prints what `verbose` asks for, every `verbose_interval` iterations."""

    def __init__(self, estimator: Any) -> None:
        self._verbose, self._every = estimator.verbose, estimator.verbose_interval
        self._began = time.perf_counter()

    def __call__(self, runs: Sequence[Run]) -> None:
        if not self._verbose:
            return
        for run in runs:
            t = len(run.history)
            if run.final is not None:
                print(f"Initialization {run.restart}: {run.stop_reason}")
            elif t % self._every == 0:
                objective = run.history[-1].objective / run.history[-1].weight
                seconds = time.perf_counter() - self._began
                print(f"Initialization {run.restart}, iteration {t}: {objective:.6f} nats per row  {seconds:.2f} s")
