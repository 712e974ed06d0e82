"""What the two mixtures share: scikit-learn's methods of a density over the rows of X."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pipeline.data.chunks import Chunks
from pipeline.em.run import Run
from pipeline.estimators.fit import Start, fitted, seed_of, value_errors
from pipeline.estimators.kmeans import KMeans
from pipeline.estimators.rows import Table, table_of
from pipeline.estimators.weights import column_of
from pipeline.jobconfig import Config, validate
from pipeline.models.base import Mixture
from pipeline.models.stats import Array


@dataclass(frozen=True)
class Assigned:
    """A function of rows: their `label`, `log_density` or `log_resp` under a model."""

    model: Mixture
    params: Any
    what: str

    def __call__(self, x: Any) -> Array:
        """(n,), or (n, k) for log_resp. x : (n, d)."""
        return np.concatenate([getattr(labels, self.what) for _, labels in self.model.assign(self.params, x)])


class MixtureEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """fit, predict and scores of a mixture; a subclass says which model its parameters are of."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to all rows of X.

        X : (n, d), an array, a Dask array, an xarray.DataArray of either; counts may be sparse too.  y : ignored.
        sample_weight : (n,) non-negative, or None for ones; 2 counts as the row twice.
        Raises ValueError for parameters or rows that cannot be used.
        """
        self._fit(X, sample_weight)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and the component of each row, (n,)."""
        table = self._fit(X, sample_weight)
        return self._assigned(table, "label")

    def predict(self, X: Any) -> Any:
        """The component that each row most probably belongs to, (n,) int64."""
        return self._assigned(self._table(X), "label")

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities, (n, k) float64: the probability of each component given the row."""
        return np.exp(self._assigned(self._table(X), "log_resp"))

    def score_samples(self, X: Any) -> Any:
        """log p(x) of each row, (n,) float64, nats."""
        return self._assigned(self._table(X), "log_density")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean of log p(x) over the rows, nats; weighted where weights are given."""
        table = self._table(X)
        scores, weight = self._assigned(table, "log_density"), column_of(sample_weight, table)
        return float(scores.mean() if weight is None else (scores * weight.values).sum() / weight.values.sum())

    def aic(self, X: Any) -> float:
        """2 p - 2 log L on the rows of X, for p free parameters; lower is better. [Akaike 1974]."""
        log_likelihood, _ = self._total(X)
        return 2.0 * self._n_parameters() - 2.0 * log_likelihood

    def bic(self, X: Any) -> float:
        """p log n - 2 log L on the n rows of X; lower is better. [Schwarz 1978]."""
        log_likelihood, n = self._total(X)
        return self._n_parameters() * float(np.log(n)) - 2.0 * log_likelihood

    def _n_parameters(self) -> int:
        """How many numbers are learned; scikit-learn's name for it."""
        return self._model()[0].n_free_parameters()

    @abstractmethod
    def _section(self) -> dict[str, Any]:
        """The config's model section."""

    @abstractmethod
    def _given(self, n_features: int) -> dict[str, Array]:
        """Initial parameters that the user gave, by the names that the models have for them; checked."""

    @abstractmethod
    def _take(self, params: Any) -> None:
        """Set the fitted attributes."""

    @abstractmethod
    def _kept(self) -> dict[str, Array]:
        """Fitted attributes by the names that the models have for them."""

    @abstractmethod
    def _model(self) -> tuple[Mixture, Any]:
        """The model of the fitted attributes, and its parameters."""

    @property
    def _starts_by_kmeans(self) -> bool:
        """Whether each restart begins with the labels of a K-means of its own, as scikit-learn's do."""
        return bool(self.init_params == "kmeans" and self.method == "em")

    def _config(self) -> Config:
        init = {"kmeans": "k-means||", "random_from_data": "random"}.get(self.init_params, self.init_params)
        fit = {name: getattr(self, name) for name in ("method", "n_init", "tol")}
        # Where the start is scikit-learn's, its generator goes there untouched.
        seed = 0 if self._starts_by_kmeans else seed_of(self.random_state)
        fit |= {"init": init, "max_iter": self.max_iter or 1, "random_state": seed}
        plain = {"model": self._section(), "fit": fit}
        return validate(plain, name=type(self).__name__).resolved()

    def _fit(self, X: Any, sample_weight: Any) -> Table:
        table = self._table(X, reset=True, least=2)
        with value_errors():
            config = self._config()
            column = column_of(sample_weight, table)
            weight, chunks = None if column is None else column.values, Chunks(table.source(), column)
            if self.n_components > chunks.n_rows:
                raise ValueError(
                    f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                    f"n_samples = {chunks.n_rows}"
                )
            run = fitted(config, chunks, self._start(table, weight), self.max_iter > 0, _Told(self))
        self._take(run.params)
        total = 1.0 if run.final is None else float(run.final.stats.sum_w.sum())
        self.lower_bounds_ = [entry.objective / total for entry in run.history]
        self.lower_bound_ = run.objective / total
        self.n_iter_ = len(run.history)
        self.stop_reason_ = run.stop_reason
        # The pass over the fitted parameters has seen what the last iteration gained.
        gained = self.lower_bound_ - self.lower_bounds_[-1] if run.history else np.inf
        self.converged_ = str(run.stop_reason).startswith("converged") or abs(gained) < self.tol
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
                f"tol, or check for degenerate data. ({run.stop_reason})",
                ConvergenceWarning,
                stacklevel=3,
            )
        return table

    def _start(self, table: Table, weight: Array | None) -> Start:
        """Where the restarts begin: at the last fit, or at what is given, the rest from K-means if that is asked for."""
        if self.warm_start and hasattr(self, "converged_"):
            return Start([self._kept()])
        given = self._given(table.x.shape[1])
        arrays = [given] if given else []
        if not self._starts_by_kmeans:
            return Start(arrays)
        rng = check_random_state(self.random_state)
        peers = [KMeans(self.n_components, n_init=1, random_state=rng) for _ in range(self.n_init)]
        return Start(arrays, [np.asarray(peer.fit(table.x, sample_weight=weight).labels_) for peer in peers])

    def _table(self, X: Any, reset: bool = False, least: int = 1, dense: bool = True) -> Table:
        if not reset:
            check_is_fitted(self)
        return table_of(self, X, reset, least, dense)

    def _assigned(self, table: Table, what: str) -> Any:
        columns = self.n_components if what == "log_resp" else None
        with value_errors():
            function = Assigned(*self._model(), what)
        found = table.map(function, columns, np.int32 if what == "label" else np.float64, "component")
        return found.astype(np.int64) if what == "label" else found

    def _total(self, X: Any) -> tuple[float, int]:
        scores = self.score_samples(X)
        return float(scores.sum()), scores.shape[0]

    def _labels_of(self, n_samples: int) -> tuple[Array, np.random.RandomState]:
        """How many rows of each component a sample has, (k,), and where further draws come from."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        rng = check_random_state(self.random_state)
        return rng.multinomial(n_samples, self.weights_ / self.weights_.sum()), rng


def shaped(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """The array, float64; ValueError, in scikit-learn's words, unless it has that shape."""
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array


class _Told:
    """Prints what `verbose` asks for, every `verbose_interval` iterations."""

    def __init__(self, estimator: Any) -> None:
        self._verbose, self._every = estimator.verbose, estimator.verbose_interval
        self._began = time.perf_counter()

    def __call__(self, runs: list[Run]) -> None:
        if not self._verbose:
            return
        for run in runs:
            t = len(run.history)
            if run.final is not None:
                print(f"Initialization {run.restart}: {run.stop_reason}")
            elif t % self._every == 0:
                entry = run.history[-1]
                gained = entry.objective / entry.n_effective.sum()
                seconds = time.perf_counter() - self._began
                print(f"Initialization {run.restart}, iteration {t}: {gained:.6f} nats per row  {seconds:.2f} s")
