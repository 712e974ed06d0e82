"""The fit of an estimator: a job's own profile, start and loop, without a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from pipeline.data.chunks import Chunks
from pipeline.data.column import MemoryColumn as HeldColumn
from pipeline.data.user_start import UserStart as Given
from pipeline.em.run import Run
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import current_engine
from pipeline.engine.memory import cores
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.fitting import iterations
from pipeline.job import Work
from pipeline.jobconfig import Config
from pipeline.models.base import Model
from pipeline.models.init import HardStart, from_hard
from pipeline.models.stats import Array
from pipeline.outputs.model_store import best_run
from pipeline.starting import models_of, profiled, starts

Tell = Callable[[list[Run]], None]  # told of the runs after each pass


class Start(NamedTuple):
    """What is given of the starts. labels : (n,) of all rows, for each restart.

    arrays : parameters by name, for each restart, or once for all; those that are missing come from labels, or as fit.init says.
    """

    arrays: Sequence[Mapping[str, Array]] = ()
    labels: Sequence[Array] = ()


def fitted(config: Config, chunks: Chunks, start: Start, iterate: bool, tell: Tell) -> Run:
    """The best of the restarts.

    iterate : whether there are iterations; without them the run is the first start.
    Rows that are a Dask array are read by the current client's workers; all others on threads of this process.
    """
    engine = None if chunks.source.blocks() is None else current_engine()
    with single_thread():
        engine = engine or Engine(workers=min(cores(), chunks.n_chunks))
        work, known, drawn = profiled(Work(config, chunks, engine, None))
        [model] = models_of(config, known)
        if start.labels:
            jobs = [HardStart(model, None, HeldColumn(labels)) for labels in start.labels]
            params = from_hard(model, work.sums()(jobs))
        elif start.arrays and set(start.arrays[0]) == _names(model):
            params = [None] * len(start.arrays)
        else:
            params = [run.params for run in starts(work, known, Given(), drawn)]
        runs = [Run(i, model, _with(model, each, start.arrays, i)) for i, each in enumerate(params)]
        if not iterate:
            return runs[0]
        for current, _ in iterations(work, known, runs, [0], exemplars=False):
            runs = current
            tell(runs)
    return best_run(runs)


def _with(model: Model, params: Any, given: Sequence[Mapping[str, Array]], restart: int) -> Any:
    """Parameters in which those that are given for the restart are as given. params : None where all are."""
    if not given:
        return params
    own = {} if params is None else params.arrays()
    return model.params_from_arrays({**own, **given[restart % len(given)]})


def _names(model: Model) -> set[str]:
    """Names of all parameters of a family."""
    own = {
        "kmeans": {"centers"},
        "gaussian": {"weights", "means", "covariances"},
        "multinomial": {"weights", "log_prob"},
    }
    return own[model.family]


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
