"""Tests of a user's model: what every fit relies on, on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.em.accumulate import method_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.errors import InputError
from pipeline.estimators.models import refuse_other
from pipeline.kernels.cpu import KERNELS
from pipeline.models.autodiff.compiled import shapes_of
from pipeline.models.autodiff.declare import JaxModel
from pipeline.models.base import EStep

N_ROWS, MOST_FEATURES = 200, 4
ITERATIONS = 30
STEP = 1e-4  # of finite differences
LEAST = 1e-3  # of a derivative, a row: smaller ones are compared with this
CLOSE = 1e-5  # relative: how near finite differences have to be
ROUNDING = 1e-10  # relative

Failure = str | None


def check_model(model: JaxModel | type[JaxModel], rows: Any = None, random_state: int = 0) -> list[str]:
    """Test a model: shapes, supports, derivatives, statistics that add, and that no method lowers the likelihood.

    Parameters
    ----------
    model : JaxModel, or a subclass whose options all have defaults
    rows : array, shape (n, d), optional
        Rows that are possible under the model; the first 200 are used. By default normal, positive or whole numbers are drawn, with up to
        4 features, and the first kind that the model takes is used.
    random_state : int

    Returns
    -------
    list of str
        What was found, a line for each test.

    Raises
    ------
    InputError
        With a line for each test that fails.
    """
    model = model() if isinstance(model, type) and issubclass(model, JaxModel) else model
    refuse_other(model)
    rng = np.random.default_rng(random_state)
    x = _drawn(model, rng) if rows is None else np.asarray(rows, dtype=np.float64)[:N_ROWS]
    passed: list[str] = []
    failed: list[str] = []
    for name, found, failure in _tests(model, x, rng):
        (failed if failure else passed).append(f"{name}: {failure or found}")
    if failed:
        raise InputError("\n".join([f"{type(model).__name__}: {len(failed)} tests fail. Correct the model.", *failed]))
    return passed


def _built(model: JaxModel, x: Array, method: str) -> Any:
    summary: Any = SimpleNamespace(mean=x.mean(axis=0), sample=SimpleNamespace(x=x))
    return type(model).section(**vars(model)).build_for(summary, "soft", method)


def _drawn(model: JaxModel, rng: np.random.Generator) -> Array:
    """Rows of the first kind that are possible. Raises InputError if none is."""
    kinds: dict[str, Callable[[int, int], Array]] = {
        "normal": lambda n, d: rng.normal(size=(n, d)),
        "positive": lambda n, d: rng.exponential(size=(n, d)) + 0.1,
        "whole": lambda n, d: rng.integers(6, size=(n, d)).astype(float),
        "zeros and ones": lambda n, d: rng.integers(2, size=(n, d)).astype(float),
    }
    said = InputError("no rows")
    for d in range(1, MOST_FEATURES + 1):
        for draw in kinds.values():
            x = draw(N_ROWS, d)
            try:
                built = _built(model, x, "gradient")
                start = built.start(SimpleNamespace(sample=SimpleNamespace(x=x)), np.random.default_rng(0))
                EStep(built, start)(Rows(x), KERNELS)
            except InputError as error:
                said = error
                continue
            return x
    raise InputError(
        f"check_model: {type(model).__name__} takes none of the rows that were drawn, the last because of: {said} Give rows."
    )


def _tests(model: JaxModel, x: Array, rng: np.random.Generator) -> Iterator[tuple[str, str, Failure]]:
    """Yield name, finding and failure of each test."""
    d = x.shape[1]
    shapes = shapes_of(model, d)
    yield "shapes", f"{shapes.n_labels or 'no'} labels, {shapes.n_sums} sums of statistics", None
    built = _built(model, x, "newton")
    layout, problems = built.layout, []
    for _ in range(5):
        arrays = layout.from_real(rng.normal(size=layout.size))
        problems += [field.support.problem(name, arrays[name]) for name, field in layout.fields.items()]
    wrong = next(filter(None, problems), None)
    yield "supports hold", f"{layout.size} free numbers", wrong
    start = built.start(SimpleNamespace(sample=SimpleNamespace(x=x)), np.random.default_rng(0))
    yield from _derivatives(built, start, x)
    yield _adding(model, start, x)
    ends = {}
    for method in type(model).section.methods:
        if method != "incremental":
            run, fall = _fit(_built(model, x, method), start, x, method)
            ends[method] = run.objective
            failure = f"it falls by {fall:.3g} of its size; is m_step a maximum?" if fall > ROUNDING else None
            yield (
                f"the likelihood never falls ({method})",
                f"{run.objective:.6f} after {len(run.history)} iterations",
                failure,
            )


def _derivatives(built: Any, start: Any, x: Array) -> Iterator[tuple[str, str, Failure]]:
    """Compare derivatives near the start, where they are not 0, with central differences."""

    def at(u: Array) -> Any:
        return EStep(built, built.params(**built.layout.from_real(u)))(Rows(x), KERNELS)

    u = start.u + 0.3 * np.cos(np.arange(len(start.u)))
    here = at(u)
    near = [[at(u + sign * STEP * e) for sign in (1, -1)] for e in np.eye(len(start.u))]
    slopes = np.array([(a.evidence.log_likelihood - b.evidence.log_likelihood) / (2 * STEP) for a, b in near])
    curves = np.array([(a.stats.gradient - b.stats.gradient) / (2 * STEP) for a, b in near])
    for name, exact, found in (
        ("the gradient", here.stats.gradient, slopes),
        ("second derivatives", here.stats.observed, curves),
    ):
        size = max(float(np.abs(exact).max()), LEAST * len(x))
        error = np.abs(exact - found).max(axis=-1 if exact.ndim > 1 else None) / size
        worst = int(np.argmax(np.abs(exact - found).reshape(len(start.u), -1).max(axis=1)))
        failure = None
        if float(np.max(error)) > CLOSE:
            failure = f"with respect to {built.layout.place(worst)} it differs by {np.max(error):.3g} of its size from finite differences"
        yield f"{name} agrees with finite differences", f"to {np.max(error):.1e} of its size", failure


def _adding(model: JaxModel, start: Any, x: Array) -> tuple[str, str, Failure]:
    """Compare sums over two parts with those over all rows."""
    built, half = _built(model, x, "auto"), len(x) // 3
    job = EStep(built, built.params(**start.arrays))
    whole, parts = job(Rows(x), KERNELS), job(Rows(x[:half]), KERNELS) + job(Rows(x[half:], start=half), KERNELS)
    worst = 0.0
    for a, b in zip(vars(whole.stats).values(), vars(parts.stats).values(), strict=True):
        if a is not None:
            worst = max(worst, float(np.abs(np.subtract(a, b)).max() / max(1.0, float(np.abs(a).max()))))
    failure = (
        f"those of two parts differ from those of all rows by {worst:.3g} of their size" if worst > ROUNDING else None
    )
    return "statistics add", f"to {worst:.1e} of their size", failure


def _fit(built: Any, start: Any, x: Array, method: str) -> tuple[Run, float]:
    """A short fit, and the largest fall of the objective, relative to its size."""

    def evaluate(jobs: Any) -> list[Any]:
        return [job(Rows(x), KERNELS) for job in jobs]

    begin, way = Run(0, built, built.params(**start.arrays)), method_of(method, np.array([0, len(x)]), 0)
    *_, ([run], _) = em([begin], evaluate, Limits(ITERATIONS, 1e-10), len(x), way)
    values = np.array([*(entry.objective for entry in run.history), run.objective])
    falls = -np.diff(values) / np.maximum(1.0, np.abs(values[:-1]))
    return run, float(max(0.0, falls.max(initial=0.0)))
