"""scikit-learn's callbacks (`sklearn.callback`, from 1.9) in the fits of the classes: a task for each iteration, at whose end one may stop the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.em.choice import best_run
from pipeline.em.run import Run
from pipeline.estimators.fit import OnPass

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn below 1.9 has none

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: there is no `set_callbacks`."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method."""
        return method


__all__ = ["CallbackSupportMixin", "called_back", "with_callbacks"]


@contextmanager
def called_back(
    estimator: Any, state: Callable[[Run], Mapping[str, Any]], then: OnPass, **data: Any
) -> Iterator[OnPass]:
    """Context of a fit with what is called after each pass: `then`, and a task of the callbacks for each iteration.

    Parameters
    ----------
    estimator : estimator
        With `max_iter`, and perhaps callbacks.
    state : callable
        Returns the fitted attributes of a run, for callbacks that ask for a fitted estimator.
    then : callable
    **data
        X, y and metadata, which are passed to the callbacks.
    """
    if not getattr(estimator, "_skl_callbacks", None):
        yield then
        return
    best: Run | None = None
    done = 0
    root = estimator._init_callback_context(max_subtasks=estimator.max_iter)
    root.call_on_fit_task_begin(estimator=estimator, **data)

    def attributes() -> Mapping[str, Any] | None:
        return None if best is None else state(best)

    def told(runs: Sequence[Run]) -> bool:
        nonlocal best, done
        then(runs)
        stop, best, now = False, best_run(runs), max(len(run.history) for run in runs)
        for _ in range(done, now):  # none in the pass over the final parameters
            task = root.subcontext(task_name="iteration")
            task.call_on_fit_task_begin(estimator=estimator, **data)
            stop |= bool(task.call_on_fit_task_end(estimator=estimator, reconstruction_attributes=attributes, **data))
        done = now
        return stop

    yield told
    root.call_on_fit_task_end(estimator=estimator, reconstruction_attributes=attributes, **data)
