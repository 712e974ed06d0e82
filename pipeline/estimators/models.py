"""Models in JAX from Python: `fit` and `check_model`, without a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.em.run import Run
from pipeline.errors import InputError
from pipeline.estimators.cells import is_xarray
from pipeline.estimators.fit import Start, fitted_with_errors
from pipeline.estimators.rows import column_of, input_rows
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.autodiff.declare import JaxModel


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes
    ----------
    parameters : dict of str to array
        By name, float64.
    standard_errors : dict of str to array, or None
        From the observed information, if they were asked for.
    log_likelihood : float
        Of all rows, nats.
    bic : float
    n_iter, n_passes : int
        Iterations, and reads of all rows by these, including rejected steps and the last evaluation.
    converged : bool
    stop_reason : str
    log_likelihoods : array, shape (n_iter,)
    """

    parameters: Mapping[str, Array]
    standard_errors: Mapping[str, Array] | None
    log_likelihood: float
    bic: float
    n_iter: int
    n_passes: int
    converged: bool
    stop_reason: str
    log_likelihoods: Array
    _run: Run
    _features: Sequence[str] | None = None

    def score_samples(self, rows: Any) -> Any:
        """Return log p(x) of each row, shape (n,), of the kind of rows. rows : as for `fit`."""
        return self._predicted(rows, self._run.model.words.score)

    def predict(self, rows: Any) -> Any:
        """Return the label of highest probability of each row, shape (n,). Raises InputError for a model without labels."""
        if "label" not in self._run.model.row_arrays(0):
            raise InputError(f"predict: {self._run.model.family} has no labels. Use score_samples.")
        return self._predicted(rows, "label")

    def _predicted(self, rows: Any, name: str) -> Any:
        table = input_rows(_Rows(), rows, reset=True, features=self._features if is_xarray(rows) else None)
        dtype = self._run.model.row_arrays(0)[name].dtype
        return table.map(_Predicted(self._run, name), None, np.dtype(dtype), name)


@dataclass(frozen=True)
class _Predicted:
    """A function of rows: what a model says of them under a name."""

    run: Run
    name: str

    def __call__(self, x: Array) -> Array:
        return self.run.model.predict(self.run.params, Rows(x), 0, KERNELS)[self.name]


class _Rows(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the checks of rows ask for conventions and names."""


def fit(
    model: JaxModel,
    rows: Any,
    *,
    sample_weight: Any = None,
    features: Sequence[str] | None = None,
    start: Mapping[str, Any] | None = None,
    fixed: Sequence[str] = (),
    method: str = "auto",
    n_init: int = 1,
    max_iter: int | None = None,
    tol: float | None = None,
    random_state: int = 0,
    standard_errors: bool = False,
    on_pass: Callable[[Sequence[Run]], None] = lambda runs: None,
) -> Fitted:
    """Fit a model in JAX to all rows.

    Parameters
    ----------
    model : JaxModel
    rows : array, Dask array or table, shape (n, d), or xarray.DataArray or Dataset of any number of dimensions
        A Dask array is read chunk by chunk, by the workers of the current Client if there is one.
    sample_weight : array, shape (n,), optional
        Non-negative weights of the rows.
    features : sequence of str, optional
        Of xarray: dimensions whose entries are features, with the variables of a Dataset; all other dimensions are rows.
    start : mapping of str to array, optional
        Initial values of all parameters; by default the model's own start, or random draws.
    fixed : sequence of str
        Parameters that stay at their initial values.
    method : {"auto", "em", "newton", "gradient", "incremental"}
    n_init, max_iter, tol, random_state
        As in the config's section fit.
    standard_errors : bool
        Whether a further pass computes them.
    on_pass : callable
        Called with the runs after each pass.

    Returns
    -------
    Fitted

    Raises
    ------
    InputError, ValueError
        For a model, options or rows that cannot be used.
    """
    refuse_other(model)
    section = type(model).section(fixed=list(fixed), **vars(model))
    table = input_rows(_Rows(), rows, reset=True, features=features)
    options = {"method": method, "n_init": n_init, "max_iter": max_iter, "tol": tol, "random_state": random_state}
    config = validate(
        {"model": section, "fit": {"init": "random", **options}, "data": {"bad_rows": table.bad_rows}}, name="fit"
    ).resolved()
    chunks = Chunks(table.source(), column_of(sample_weight, table))
    arrays = [{name: np.asarray(value, dtype=np.float64) for name, value in start.items()}] if start else []
    run, errors = fitted_with_errors(config, chunks, Start(arrays), on_pass, standard_errors)
    assert run.final is not None
    weight, read = run.final.evidence.weight, sum(entry.rows for entry in run.history)
    free = run.model.n_free_parameters()
    return Fitted(
        run.model.arrays(run.params),
        errors,
        run.log_likelihood,
        free * float(np.log(weight)) - 2.0 * run.log_likelihood,
        len(run.history),
        1 + round(read / chunks.n_rows),
        str(run.stop_reason).startswith("converged"),
        str(run.stop_reason),
        np.array([entry.log_likelihood for entry in run.history]),
        run,
        features,
    )


def refuse_other(model: Any) -> None:
    """Raise InputError unless this is an instance of a subclass of JaxModel."""
    if not isinstance(model, JaxModel) or type(model) is JaxModel:
        raise InputError(f"got {model!r:.60}, expected an instance of a subclass of pipeline.JaxModel: MyModel().")
