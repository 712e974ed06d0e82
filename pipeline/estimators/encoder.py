"""Codes of rows and of units as a step of scikit-learn's pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError
from pipeline.estimators.fit import value_errors
from pipeline.estimators.rows import input_rows
from pipeline.estimators.runs import open_estimator
from pipeline.kernels.cpu import KERNELS
from pipeline.models.codes import OF_UNITS, Code


class Encoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Rows, or units of rows, as features by the components of a model: a transformer of scikit-learn.

    Parameters
    ----------
    model : estimator, Pipeline that ends with one, or path of a run
        Of this package. One that is not fitted is fitted by `fit`; one that is, is used as it is.
    code : {"hard", "soft", "triangle", "distances", "words", "vlad", "fisher"}
        As `pipeline.models.codes` defines them. The last three are of units.
    pool : {"sum", "mean", "max"}, optional
        Pools one of the first four codes over the rows of a unit.
    grid : sequence of int
        Cuts units into g x g cells, for each g, whose codes follow each other.

    Attributes
    ----------
    model_ : estimator or Pipeline
        The fitted model.
    """

    def __init__(self, model: Any, code: str = "triangle", pool: str | None = None, grid: Sequence[int] = (1,)) -> None:
        self.model, self.code, self.pool, self.grid = model, code, pool, grid

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model to all rows, unless it is fitted.

        Parameters
        ----------
        X : array, Dask array or table, shape (n, d), or xarray
            For codes of units a sequence of arrays, one a unit: rows (m, d), or with a grid (down, across, d).
        y : object
            Not used.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the model has no such code, or the rows cannot be used.
        """
        model = open_estimator(self.model) if isinstance(self.model, (str, Path)) else self.model
        try:
            check_is_fitted(model)
        except NotFittedError:
            with value_errors():
                rows = np.concatenate([unit for unit, _ in _units(X, max(self.grid) > 1)]) if self._of_units else X
            model = clone(model).fit(rows)
        self.model_ = model
        self.n_features_in_ = model.n_features_in_
        self._code()
        return self

    def transform(self, X: Any) -> Any:
        """Return codes of rows, (n, width), in the kind of X; of units an array (n_units, width). X : as of `fit`."""
        check_is_fitted(self)
        code = self._code()
        if not code.of_units:
            table = input_rows(self, X, reset=False, dense=False)
            return table.map(lambda x: code.rows(self._mapped(x), KERNELS), code.width, np.float64, "column")
        found = []
        with value_errors():
            for rows, place in _units(X, max(code.grid) > 1):
                if rows.shape[1] != self.n_features_in_:
                    raise InputError(
                        f"X: got a unit of {rows.shape[1]} features, expected {self.n_features_in_}, as the model was fitted to."
                    )
                sums = code.zeros(1)
                code.add(sums, self._mapped(rows), None, np.zeros(len(rows), np.int64), place, KERNELS)
                found.append(code.finish(sums))
        return np.concatenate(found) if found else np.empty((0, code.width))

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of columns, (width,) of str: code, component, part and feature, cell. input_features : not used."""
        check_is_fitted(self)
        return np.array(self._code().names(), object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse, tags.requires_fit = True, True
        return tags

    @property
    def _of_units(self) -> bool:
        return self.pool is not None or self.code in OF_UNITS

    def _code(self) -> Code:
        last = self.model_.steps[-1][1] if isinstance(self.model_, Pipeline) else self.model_
        with value_errors():
            if not hasattr(last, "_model"):
                raise InputError(f"model: got {type(last).__name__}, expected an estimator of this package.")
            model, params = last._model()
            return Code(self.code, model, params, self.pool, tuple(self.grid))

    def _mapped(self, x: Any) -> Any:
        """Rows after the steps before the model."""
        return self.model_[:-1].transform(x) if isinstance(self.model_, Pipeline) else x


def _units(X: Any, on_grid: bool) -> Iterator[tuple[Array, Array | None]]:
    """Yield the rows of each unit, (m, d), and where they are; None without a grid. Raises InputError for other shapes."""
    for i, each in enumerate(X):
        unit = np.asarray(each)
        if unit.ndim not in ((3,) if on_grid else (2, 3)) or 0 in unit.shape:
            shape = "(down, across, d)" if on_grid else "(m, d) or (down, across, d)"
            raise InputError(
                f"X: unit {i} has the shape {unit.shape}, expected rows, {shape}. Give an array for each unit."
            )
        place = None
        if unit.ndim == 3:
            place = (np.indices(unit.shape[:2]).reshape(2, -1).T + 0.5) / unit.shape[:2]
        yield unit.reshape(-1, unit.shape[-1]), place
