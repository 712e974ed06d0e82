"""K-means with scikit-learn's names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans as Peer
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunks
from pipeline.data.earlier import Earlier, Statistics
from pipeline.em.run import Run
from pipeline.estimators.callbacks import CallbackSupportMixin, called_back, with_callbacks
from pipeline.estimators.cells import on_dimensions
from pipeline.estimators.configs import config_of
from pipeline.estimators.fit import OnPass, Start, copied, fitted, seed_of, value_errors
from pipeline.estimators.rows import InputRows, column_of, input_rows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.clusters import ClusterModel
from pipeline.models.hierarchy import Grouped, Hierarchy
from pipeline.models.lloyd import Centers, Lloyd

N_CLUSTERS = 8  # if it is left out, as in scikit-learn
FITTED = ("cluster_centers_", "labels_", "inertia_", "n_iter_", "n_features_in_", "feature_names_in_")


@dataclass(frozen=True)
class Nearest:
    """A function of rows: their nearest centre (part 0), or the squared distance to it (part 1)."""

    model: Lloyd
    params: Centers
    part: int

    def __call__(self, x: Array) -> Array:
        """(n,). x : (n, d)."""
        return self.model.nearest(self.params, x, KERNELS)[self.part]


@dataclass(frozen=True)
class Distances:
    """A function of rows: their distance from each centre."""

    centers: Array

    def __call__(self, x: Array) -> Array:
        """(n, k). x : (n, d)."""
        return euclidean_distances(x, self.centers)


class KMeans(CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """K-means by Lloyd's algorithm: scikit-learn's `KMeans` for rows in memory, in Dask or in xarray.

    Parameters that are not listed are scikit-learn's.

    Parameters
    ----------
    init : {"k-means++", "k-means||", "random"}, callable, or array of shape (k, d)
    copy_x : bool
        Has no effect: X is never written to.
    algorithm : {"lloyd", "elkan"}
        Has no effect on the result; distances that bounds exclude are skipped with either, where there are many of them.
    method : {"em", "auto"}
        "em" is Lloyd's algorithm from `init`; "auto", the command's default, searches for a better start.
    levels : tuple of two int, optional
        Hierarchical K-means: (1000, 100) has 100,000 centres in 1000 groups, and a row is compared with the centres of few groups.
        `n_clusters` is then their product, or left out, and `init` a name.

    Attributes
    ----------
    cluster_centers_ : array, shape (k, d)
    upper_centers_ : array, shape (levels[0], d)
        With `levels`: the centres of the groups.
    group_ : array, shape (k,)
        With `levels`: the group of each centre.
    labels_ : array, shape (n,)
        Of the kind of X.
    inertia_ : float
    n_iter_ : int
    stop_reason_ : str

    References
    ----------
    Lloyd (1982); Arthur and Vassilvitskii (2007).
    """

    def __init__(
        self,
        n_clusters: int = N_CLUSTERS,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        method: str = "em",
        levels: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.method = method
        self.levels = levels

    @classmethod
    def of_model(cls, model: ClusterModel, params: Any, attrs: Mapping[str, Any]) -> Self:
        """Return a fitted estimator. attrs : of model.zarr."""
        estimator = cls(model.n_components)
        estimator.cluster_centers_, estimator.inertia_ = params.centers, attrs["final_inertia"]
        if isinstance(params, Grouped):
            groups = len(params.upper_centers)
            estimator.levels, estimator.group_ = (groups, model.n_components // groups), params.group
            estimator.upper_centers_ = params.upper_centers
        return estimator

    def _stored(self) -> dict[str, Array]:
        """Fitted attributes by the names of the schema."""
        centers = {"centers": np.asarray(self.cluster_centers_)}
        return (
            centers if self.levels is None else {**centers, "group": self.group_, "upper_centers": self.upper_centers_}
        )

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Self:
        """Fit to all rows of X.

        Parameters
        ----------
        X : array, Dask array or table, shape (n, d), or xarray.DataArray or Dataset of any number of dimensions
            Sparse rows are made dense, some at a time.
        y : ignored
        sample_weight : array, shape (n,), optional
            Non-negative weights of the rows; with xarray, they may lie on some of the rows' dimensions.
        features : sequence of str, optional
            Of xarray: dimensions whose entries are features, with the variables of a Dataset; all other dimensions are rows.

        Raises
        ------
        ValueError
            For parameters or rows that cannot be used.
        """
        return self._fit(X, sample_weight, None, features)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Self:
        """Fit to the rows of X and, by their sums, to those of earlier calls, which are not read again.

        The first call is `fit`. In a later one the rows of earlier calls stay in their clusters, whose centres move; `labels_` is of
        the rows of X, and `inertia_` of all rows. Parameters and errors are those of `fit`. [MacQueen 1967]
        """
        return self._fit(X, sample_weight, getattr(self, "statistics_", None), features)

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(self, X: Any, sample_weight: Any, statistics: Statistics | None, features: Any) -> Self:
        """Fit. statistics : of earlier rows, which count beside these."""
        table = input_rows(self, X, reset=statistics is None, features=features)
        with value_errors():
            column = column_of(sample_weight, table)
            chunks = Chunks(table.source(), column)
            k = self._n_centers()
            if k > chunks.n_rows and statistics is None:
                raise ValueError(f"n_samples={chunks.n_rows} should be >= n_clusters={k}.")
            metadata = None if sample_weight is None else {"sample_weight": sample_weight}
            shown = _print if self.verbose else _silent
            with called_back(self, self._state, shown, X=X, metadata=metadata) as on_pass:
                run = self._best(chunks, table, None if column is None else column.values, statistics, on_pass)
        assert run.final is not None
        order = np.arange(k) if statistics is None or statistics.order is None else statistics.order
        centers = run.params.centers[order]
        self.statistics_ = Statistics.of(run.model, run.params, run.final.totals, order)
        self.cluster_centers_ = centers.astype(table.x.dtype, copy=False)
        if isinstance(run.params, Grouped):
            self.group_, self.upper_centers_ = run.params.group[order], run.params.upper_centers
        self.inertia_ = float(run.final.stats.inertia)
        self.n_iter_ = len(run.history)
        self.stop_reason_ = run.stop_reason
        self.labels_ = self._labels(table, centers)
        if (
            not table.lazy
            and statistics is None
            and (found := len(np.unique(table.one_each("labels_", self.labels_)))) < k
        ):
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({k}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Any:
        """Fit, and return the nearest centre of each row, shape (n,)."""
        return self.fit(X, sample_weight=sample_weight, features=features).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Any:
        """Fit, and return the distances to the centres, shape (n, k)."""
        return self.fit(X, sample_weight=sample_weight, features=features).transform(X)

    def predict(self, X: Any) -> Any:
        """Return the nearest centre of each row, shape (n,), int32; ties go to the lowest."""
        return self._labels(self._table(X), self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def transform(self, X: Any) -> Any:
        """Return the distances to the centres, shape (n, k)."""
        table = self._table(X)
        return table.map(Distances(self.cluster_centers_), len(self.cluster_centers_), table.x.dtype, "cluster")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the sum of squared distances to the nearest centres, weighted by `sample_weight`."""
        table = self._table(X)
        squared = table.map(self._nearest(self.cluster_centers_, 1), None, np.float64, "cluster")
        weight = column_of(sample_weight, table)
        if weight is None:
            return -float(squared.sum())
        return -float(np.nansum(table.one_each("distances", squared) * weight.values))

    def to_xarray(self) -> Any:
        """Return the centres as an xarray.Dataset; after a fit to xarray, on its variables and coordinates too."""
        check_is_fitted(self)
        centers = {"centers": (("component", "feature"), np.asarray(self.cluster_centers_, np.float64))}
        return on_dimensions(centers, getattr(self, "feature_index_", None), "center")

    def to_sklearn(self) -> Peer:
        """Return scikit-learn's estimator, fitted if this one is. It compares rows with all centres, also where there are `levels`."""
        asked = {name: value for name, value in self.get_params().items() if name not in ("method", "levels")}
        asked["n_clusters"] = self._n_centers()
        peer = Peer(
            **{**asked, "init": "k-means++" if isinstance(self.init, str) and self.init == "k-means||" else self.init}
        )
        if hasattr(self, "cluster_centers_"):
            peer._n_threads = 1  # it predicts with as many as it was fitted with
        return copied(FITTED, self, peer)

    @classmethod
    def from_sklearn(cls, peer: Peer) -> Self:
        """Return the estimator of one of scikit-learn's, fitted if that is."""
        estimator: Self = copied(FITTED, peer, cls(**peer.get_params(deep=False)))
        return estimator

    @property
    def _n_features_out(self) -> int:
        """Columns of `transform`."""
        return int(self.cluster_centers_.shape[0])

    def _model(self, centers: Array | None = None) -> tuple[Lloyd, Centers]:
        """The model of the fitted centres, or of these, and its parameters."""
        centers = np.asarray(self.cluster_centers_ if centers is None else centers, np.float64)
        k, shift = len(centers), centers.mean(axis=0)
        if self.levels is None:
            return Lloyd(k, shift), Centers(centers)
        return Hierarchy(k, shift, groups=len(self.upper_centers_)), Grouped.of(
            centers, self.group_, self.upper_centers_
        )

    def _n_centers(self) -> int:
        """Number of centres: the product of the levels, where there are any."""
        if self.levels is None:
            return int(self.n_clusters)
        k = int(np.prod(self.levels))
        if self.n_clusters not in (N_CLUSTERS, k):
            raise ValueError(
                f"n_clusters: got {self.n_clusters}, but levels {self.levels} make {k}. Leave n_clusters out."
            )
        return k

    def _state(self, run: Run) -> dict[str, Any]:
        """Fitted attributes of a run that goes on."""
        found = {"cluster_centers_": run.params.centers, "n_iter_": len(run.history)}
        if isinstance(run.params, Grouped):
            found |= {"group_": run.params.group, "upper_centers_": run.params.upper_centers}
        return found

    def _best(
        self, chunks: Chunks, table: InputRows, weight: Array | None, statistics: Statistics | None, on_pass: OnPass
    ) -> Run:
        k, named = self._n_centers(), isinstance(self.init, str)
        if self.algorithm not in ("lloyd", "elkan"):
            raise ValueError(f"algorithm: got {self.algorithm!r}, expected lloyd or elkan.")
        self._n_init = 1 if statistics else self._restarts()
        fit = {"method": self.method, "max_iter": self.max_iter, "tol": self.tol, "n_init": self._n_init}
        earlier = None
        if statistics is not None:
            earlier = Earlier(statistics.unordered(self._stored()), None, statistics)
            fit["init"], start = "random", Start([earlier.arrays])
        elif self.levels is not None and not named:
            raise ValueError(
                "init: got centres or a callable, expected a name with levels: k-means++, k-means|| or random."
            )
        elif named and (table.lazy or self.levels or self.method != "em" or self.init not in ("k-means++", "random")):
            fit |= {"init": self.init, "random_state": seed_of(self.random_state)}
            start = Start()
        else:
            fit["init"] = "random"
            start = Start([{"centers": centers} for centers in self._centers(table, weight)])
        model, data = {"family": "kmeans", "n_components": k, "levels": self.levels}, {"bad_rows": table.bad_rows}
        config = config_of("KMeans", data=data, model=model, fit=fit)
        return fitted(config, chunks, start, True, on_pass, earlier)

    def _restarts(self) -> int:
        """Return n_init; as in scikit-learn, auto is 1 for k-means++ and user-supplied centres, 10 for others."""
        if not isinstance(self.init, str) and not callable(self.init):
            if self.n_init not in ("auto", 1):
                warnings.warn(
                    "Explicit initial center position passed: performing only one init in KMeans instead of "
                    f"n_init={self.n_init}.",
                    RuntimeWarning,
                    stacklevel=5,
                )
            return 1
        if isinstance(self.n_init, str) and self.n_init == "auto":
            return 10 if callable(self.init) or self.init == "random" else 1
        return int(self.n_init)

    def _centers(self, table: InputRows, weight: Array | None) -> list[Array]:
        """Initial centres of each restart, (k, d): user-supplied, or drawn as scikit-learn draws them."""
        rng, k, x = check_random_state(self.random_state), self._n_centers(), table.x
        found = []
        for _ in range(self._n_init):
            if callable(self.init):
                if table.lazy:
                    raise ValueError(
                        "init: got a callable and a Dask array, expected rows in memory. Pass an array of centres."
                    )
                centers = np.array(self.init(x, k, random_state=rng), dtype=np.float64)
            elif not isinstance(self.init, str):
                centers = np.array(self.init, dtype=np.float64)
            elif self.init == "random":
                share = np.ones(x.shape[0]) if weight is None else weight
                centers = _dense(x[rng.choice(x.shape[0], size=k, replace=False, p=share / share.sum())])
            else:
                shift = 0.0 if sp.issparse(x) else x.mean(axis=0)  # distances far from the origin would cancel
                with config_context(skip_parameter_validation=True):  # which takes as long as an iteration
                    drawn = kmeans_plusplus(x - shift, k, sample_weight=weight, random_state=rng)[0]
                centers = shift + _dense(drawn)
            found.append(_checked(centers, k, x.shape[1]))
        return found

    def _table(self, X: Any) -> InputRows:
        check_is_fitted(self)
        return input_rows(self, X, reset=False)

    def _nearest(self, centers: Array, part: int) -> Nearest:
        return Nearest(*self._model(centers), part)

    def _labels(self, table: InputRows, centers: Array) -> Any:
        return table.map(self._nearest(centers, 0), None, np.int32, "cluster")


def _dense(x: Any) -> Array:
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)


def _checked(centers: Array, k: int, d: int) -> Array:
    """The centres; ValueError, in scikit-learn's words, unless they are (k, d)."""
    if centers.ndim != 2 or centers.shape[0] != k:
        raise ValueError(f"The shape of the initial centers {centers.shape} does not match the number of clusters {k}.")
    if centers.shape[1] != d:
        raise ValueError(
            f"The shape of the initial centers {centers.shape} does not match the number of features of the data {d}."
        )
    return centers


def _silent(runs: Sequence[Run]) -> None:
    """Print nothing."""


def _print(runs: Sequence[Run]) -> None:
    """Print the inertia of each restart after each pass, and how it ended."""
    for run in runs:
        if run.final is not None:
            print(f"Restart {run.restart} after iteration {len(run.history)}: {run.stop_reason}")
        elif len(run.history) == 1:
            print("Initialization complete")
        if run.final is None:
            print(f"Iteration {len(run.history) - 1}, inertia {-run.history[-1].objective:.6g}.")
