"""A class with scikit-learn's methods for any family: made from its config section and the schema of its parameters."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pipeline.arrays.dtypes import Array
from pipeline.data.checked import checked_errors, unmasked
from pipeline.data.chunks import Chunks
from pipeline.data.column import MemoryColumn
from pipeline.data.earlier import Earlier, Statistics
from pipeline.data.units import UnitSource, starts_of
from pipeline.em.run import Run
from pipeline.estimators.callbacks import CallbackSupportMixin, called_back, with_callbacks
from pipeline.estimators.cells import is_xarray, on_dimensions
from pipeline.estimators.configs import config_of
from pipeline.estimators.fit import Progress, Start, fitted, seed_of, value_errors
from pipeline.estimators.rows import InputRows, column_of, input_rows, mean_of
from pipeline.jobconfig import Config
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import LatentModel
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture
from pipeline.models.schema import selected
from pipeline.outputs.earlier import start_of

# What every class takes beside the options of its family, with defaults: scikit-learn's names wherever it has one.
FIT_OPTIONS: dict[str, Any] = {
    "tol": 1e-3,
    "max_iter": 100,
    "n_init": 1,
    "init_params": "k-means||",
    "random_state": None,
    "warm_start": False,
    "verbose": 0,
    "verbose_interval": 10,
    "method": "em",
    "missing": False,
}


@dataclass(frozen=True)
class Predicted:
    """A function of rows: one array of what a model says of them, such as their labels."""

    model: Any
    params: Any
    what: str

    def __call__(self, x: Any) -> Array:
        """Return (n,), or (n, k) for log_resp. x : (n, d)."""
        if self.what == "score":
            return self.model.score_rows(self.params, x, KERNELS)
        return np.concatenate([getattr(found, self.what) for _, found in self.model.assign(self.params, x, KERNELS)])


class MixtureEstimator(CallbackSupportMixin, DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """fit, predict and scores of a model of any family; a subclass says which.

    Attributes
    ----------
    section : type of ClusterSection
        The config section of the family.
    attributes : mapping of str to str
        Fields of the parameters whose fitted attributes have other names than the field and an underscore.
    """

    section: ClassVar[type[ClusterSection]]
    attributes: ClassVar[Mapping[str, str]] = {}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Self:
        """Fit to all rows of X.

        Parameters
        ----------
        X : array, Dask array or table, shape (n, d), or xarray.DataArray or Dataset of any number of dimensions
            Counts may be sparse too.
        y : array of int, shape (n,), optional
            The component of each row that is known, -1 for the others: these rows keep their component. Without a -1, y is
            ignored, as by scikit-learn's mixtures.
        sample_weight : array, shape (n,), optional
            Non-negative weights of the rows; 2 counts as the row twice. With xarray, y and weights may lie on some of the rows' dimensions.
        features : sequence of str, optional
            Of xarray: dimensions whose entries are features, with the variables of a Dataset; all other dimensions are rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For parameters or rows that cannot be used.
        """
        self._fit(X, y, sample_weight, features=features)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Self:
        """Fit to the rows of X and, by their statistics, to those of earlier calls, which are not read again.

        The first call is `fit`. A later one starts from the parameters so far. In its iterations, the statistics of the earlier rows
        stay as they were under those parameters, and those of X are computed again: the result is near that of a fit to all
        rows if these are alike, and depends on the order of the calls otherwise. [Neal and Hinton 1998]

        Parameters
        ----------
        X, y, sample_weight, features
            As of `fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As `fit`, and for a model of your own without `statistics`.
        """
        earlier: Statistics | None = getattr(self, "statistics_", None)
        if earlier is not None and not earlier.model.knows_bound:
            raise ValueError(
                f"partial_fit: the statistics of a {earlier.model.words.name} do not say what other parameters would cost "
                "its rows. Use fit, with all rows."
            )
        self._fit(X, y, sample_weight, earlier, features=features)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None, *, features: Any = None) -> Any:
        """Fit, and return the component of each row, shape (n,). Parameters as for `fit`."""
        table = self._fit(X, y, sample_weight, features=features)
        return self._predicted(table, "label")

    def predict(self, X: Any) -> Any:
        """Return the component that each row most probably belongs to, shape (n,), int64."""
        return self._predicted(self._table(X), "label")

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each component given the row, shape (n, k), float64."""
        return np.exp(self._predicted(self._table(X), "log_resp"))

    def score_samples(self, X: Any) -> Any:
        """Return log p(x) of each row, shape (n,), float64, nats."""
        return self._predicted(self._table(X), "score")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean of log p(x) over the rows, nats; weighted where weights are given."""
        table = self._table(X)
        scores, weight = self._predicted(table, "score"), column_of(sample_weight, table)
        return float(scores.mean()) if weight is None else mean_of(table, scores, weight)

    def aic(self, X: Any) -> float:
        """Return 2 p - 2 log L on the rows of X, for p free parameters; lower is better. [Akaike 1974]."""
        log_likelihood, _ = self._total(X)
        return 2.0 * self._n_parameters() - 2.0 * log_likelihood

    def bic(self, X: Any) -> float:
        """Return p log n - 2 log L on the n rows of X; lower is better. [Schwarz 1978]."""
        log_likelihood, n = self._total(X)
        return self._n_parameters() * float(np.log(n)) - 2.0 * log_likelihood

    def sample(self, n_samples: int = 1) -> tuple[Any, Array]:
        """Return rows drawn from the fitted model, shape (n_samples, d), and their components, shape (n_samples,)."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        model, params = self._model()
        if not isinstance(model, Mixture):
            raise ValueError(f"sample: a {model.words.name} cannot be sampled from.")
        return model.sample(params, n_samples, check_random_state(self.random_state))

    def to_xarray(self) -> Any:
        """Return the parameters as an xarray.Dataset; after a fit to xarray, locations lie on its variables and coordinates too."""
        check_is_fitted(self)
        model, params = self._model()
        named = {name: (model.fields[name].dims, value) for name, value in model.arrays(params).items()}
        return on_dimensions(named, getattr(self, "feature_index_", None), model.words.location)

    def _n_parameters(self) -> int:
        """How many numbers are learned; scikit-learn's name for it."""
        return self._model()[0].n_free_parameters()

    def _section(self) -> dict[str, Any]:
        """The config's model section."""
        given = {name: getattr(self, name) for name in self.section.model_fields if hasattr(self, name)}
        return {"family": self.section.model_fields["family"].default, **given}

    def _supplied(self, n_features: int) -> dict[str, Array]:
        """Initial parameters that the user supplied, by the names of the schema."""
        names = {name: getattr(self, f"{self._attribute(name)[:-1]}_init", None) for name in self._fields()}
        return {name: np.asarray(value, dtype=np.float64) for name, value in names.items() if value is not None}

    def _attribute(self, field: str) -> str:
        """The fitted attribute of a field."""
        return self.attributes.get(field, f"{field}_")

    def _fields(self) -> list[str]:
        return [*self.section.parameter_names(), *(["noise"] if getattr(self, "noise", None) else [])]

    @classmethod
    def of_model(cls, model: LatentModel, params: Any, attrs: Mapping[str, Any]) -> Self:
        """Return a fitted estimator. attrs : of model.zarr."""
        options = set(inspect.signature(cls).parameters)
        estimator = cls(**{name: value for name, value in model.facts().items() if name in options})
        estimator._take(model, params)
        estimator.converged_ = attrs["converged"]
        final = attrs.get(f"final_{model.words.series}")
        if final is None:  # with statistics of earlier rows, it is a bound
            final = model.words.sign * next(each["objective"] for each in attrs["restarts"] if each["chosen"])
        estimator.lower_bound_ = model.words.sign * final / attrs["total_weight"]
        return estimator

    def _take(self, model: LatentModel, params: Any) -> None:
        """Set the fitted attributes."""
        self.model_ = model
        for name, value in model.arrays(params).items():
            setattr(self, self._attribute(name), value)

    def _stored(self) -> dict[str, Array]:
        """Fitted attributes by the names of the schema."""
        names = self.model_.fields if hasattr(self, "model_") else self._fields()
        return {name: np.asarray(getattr(self, self._attribute(name)), np.float64) for name in names}

    def _model(self) -> tuple[LatentModel, Any]:
        """The model of the fitted attributes, and its parameters."""
        return self.model_, self.model_.params(**self._stored())

    def _config(self, as_peer: bool, bad_rows: str = "error") -> Config:
        """The config of the fit. as_peer : whether each restart begins with a K-means of its own, as scikit-learn's do."""
        init = {"kmeans": "k-means||", "random_from_data": "random"}.get(self.init_params, self.init_params)
        fit = {name: getattr(self, name) for name in ("method", "n_init", "tol")}
        # Where the start is scikit-learn's, its generator goes there untouched.
        seed = 0 if as_peer else seed_of(self.random_state)
        section = self._section()
        fit |= {} if _adapts(section) else {"init": init}
        fit |= {"max_iter": self.max_iter or 1, "random_state": seed}
        return config_of(type(self).__name__, data={"bad_rows": bad_rows}, model=section, fit=fit)

    @property
    def _missing(self) -> bool:
        """Whether NaN is an entry that is not known."""
        return bool(getattr(self, "missing", False))

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        statistics: Statistics | None = None,
        noise: Any = None,
        features: Any = None,
        lengths: Any = None,
    ) -> InputRows:
        """Fit. statistics : of earlier rows, which count beside these.  noise : errors of the rows.  lengths : of sequences."""
        table = self._table(X, statistics is None, 1 if statistics else 2, features)
        with value_errors():
            labels, column = _labels(y, table), column_of(sample_weight, table)
            if labels is not None and not self.section.takes_labels:
                raise ValueError("y: rows do not belong to one component. Leave it out.")
            # The clusters of a K-means of all rows would not have the numbers of the known labels.
            as_peer = self.init_params == "kmeans" and self.method == "em" and labels is None and statistics is None
            as_peer = as_peer and not (_adapts(self._section()) or self._missing or noise is not None)
            as_peer = as_peer and not (table.masks and table.lazy)
            config = self._config(as_peer, "missing" if self._missing else table.bad_rows)
            config.model.refuse_features(getattr(self, "feature_names_in_", None), table.x.shape[1])
            errors = None if noise is None else MemoryColumn(checked_errors(np.asarray(noise), 0, table.x.shape))
            source = table.source()
            if self.section.by_unit:
                source = UnitSource(
                    source, starts_of(lengths, table.in_memory("a model of sequences").shape[0]), whole=True
                )
            chunks = Chunks(source, column, labels=labels, missing=self._missing, noise=errors)
            k = config.model.largest
            if k > chunks.n_rows and statistics is None:
                raise ValueError(
                    f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {chunks.n_rows}"
                )
            start, earlier = Start(), None
            if statistics is not None:
                earlier = Earlier(statistics.unordered(self._stored()), None, statistics)
            elif config.earlier_run is not None:
                earlier = start_of(config, chunks).earlier
            else:
                start = self._start(table, None if column is None else column.values, as_peer)
            if earlier is not None:
                start = Start([earlier.arrays])
            metadata = None if sample_weight is None else {"sample_weight": sample_weight}
            with called_back(self, self._state, Progress(self), X=X, y=y, metadata=metadata) as on_pass:
                run = fitted(config, chunks, start, self.max_iter > 0, on_pass, earlier)
        order = None if statistics is None else statistics.order
        params = run.params
        if order is not None:  # that of the run that it was opened from
            params = run.model.params(**selected(run.model.fields, run.model.arrays(params), order))
        self._take(run.model, params)
        self.statistics_ = None if run.final is None else Statistics.of(run.model, run.params, run.final.totals, order)
        total = 1.0 if run.final is None else run.final.evidence.weight
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

    def _state(self, run: Run) -> dict[str, Any]:
        """Fitted attributes of a run that goes on."""
        other = copy.copy(self)
        other._take(run.model, run.params)
        other.n_iter_, other.converged_ = len(run.history), False
        return {name: value for name, value in vars(other).items() if name.endswith("_") and not name.startswith("_")}

    def _start(self, table: InputRows, weight: Array | None, as_peer: bool) -> Start:
        """Where the restarts begin: at the last fit, or at what is supplied, the rest from K-means if that is asked for."""
        if self.warm_start and hasattr(self, "converged_"):
            return Start([self._stored()])
        supplied = self._supplied(table.x.shape[1])
        arrays = [supplied] if supplied else []
        if not as_peer:
            return Start(arrays)
        from pipeline.estimators.kmeans import KMeans

        rng = check_random_state(self.random_state)
        peers = [KMeans(self.n_components, n_init=1, random_state=rng) for _ in range(self.n_init)]
        return Start(arrays, [np.asarray(peer.fit(table.x, sample_weight=weight).labels_) for peer in peers])

    def _takes(self) -> Any:
        """The section that says which rows are taken: its class, unless that differs by option."""
        return self.section

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        section = self._takes()
        tags.input_tags.sparse = section.sparse
        tags.input_tags.positive_only = section.counts
        return tags

    def _table(self, X: Any, reset: bool = False, least: int = 1, features: Any = None) -> InputRows:
        if not reset:
            check_is_fitted(self)
        counts, missing = self._takes().counts, self._missing
        return input_rows(self, X, reset, least, dense=False, counts=counts, missing=missing, features=features)

    def _model_of_rows(self) -> tuple[LatentModel, Any]:
        """The model for rows as they are taken, with missing entries or not, and its parameters."""
        model, params = self._model()
        if self._missing and isinstance(model, Mixture) and not model.incomplete:
            model = model.for_rows("missing")
        return model, params

    def _predicted(self, table: InputRows, what: str) -> Any:
        columns = self.n_components if what == "log_resp" else None
        with value_errors():
            function = Predicted(*self._model_of_rows(), what)
        found = table.map(function, columns, np.int32 if what == "label" else np.float64, "component")
        return found.astype(np.int64) if what == "label" else found

    def _total(self, X: Any) -> tuple[float, int]:
        if "bic" not in self.section.criteria:
            raise ValueError(f"aic, bic: the {self.section.words.name} has a bound only. Compare score on other rows.")
        scores = self.score_samples(X)
        return float(scores.sum()), int(scores.count()) if is_xarray(X) else scores.shape[0]


def _labels(y: Any, table: InputRows) -> MemoryColumn | None:
    """Known components, where y has a -1 for those that are not; else y means nothing to a mixture."""
    if y is None:
        return None
    labels = np.asarray(table.one_each("y", unmasked("y", y)))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not (labels == -1).any():
        return None
    if len(labels) != table.x.shape[0]:
        raise ValueError(f"y: got {len(labels)} labels, expected one for each of the {table.x.shape[0]} rows.")
    return MemoryColumn(labels.astype(np.int64))


def _adapts(section: Mapping[str, Any]) -> bool:
    """Whether the prior is made of a run, from whose parameters the fit then starts."""
    prior = section.get("prior")
    return isinstance(prior, Mapping) and prior.get("from_run") is not None


def shaped(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return the array, float64. Raises ValueError, in scikit-learn's words, unless it has that shape."""
    array = np.array(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array
