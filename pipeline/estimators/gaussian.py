"""A Gaussian mixture with scikit-learn's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.mixture import GaussianMixture as Peer

from pipeline.arrays.dtypes import Array
from pipeline.data.priors import features_of, read_prior, write_prior
from pipeline.errors import InputError
from pipeline.estimators.cells import is_named, is_xarray
from pipeline.estimators.fit import copied
from pipeline.estimators.mixture import MixtureEstimator, shaped
from pipeline.models.base import LatentModel
from pipeline.models.covariance import SHAPES, Shape, full_covariances
from pipeline.models.families.gaussian import Gaussian, GaussianSection
from pipeline.models.mixture import Mixture, MixtureParams
from pipeline.models.noise import NoisyMixture
from pipeline.outputs.model_store import load_model, read_model
from pipeline.outputs.run_directory import RunDirectory

FITTED = (
    *("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"),
    *("converged_", "n_iter_", "lower_bound_", "lower_bounds_", "n_features_in_", "feature_names_in_"),
)


class GaussianMixture(MixtureEstimator):
    """Mixture of Gaussians by EM: scikit-learn's `GaussianMixture` for rows in memory, in Dask or in xarray.

    Parameters that are not listed are scikit-learn's. Components that collapse are reset, as in the command.

    Parameters
    ----------
    init_params : {"kmeans", "k-means++", "k-means||", "random_from_data", "random", "near-mean"}
        Where to start from: a converged K-means, its initial centres, rows of X, or near the mean.
    method : {"em", "auto", "incremental"}
        "em" is the textbook's loop, which from equal starts gives scikit-learn's result to rounding. "auto" is the command's
        default: a search for a better start on up to 256 MiB of rows, and extrapolated iterations. "incremental" begins
        with blocks of rows.
    prior : None, "auto" or dict
        "auto" is the prior of Fraley and Raftery (2007); a dict is as in the config.
    noise : None or "uniform"
        "uniform": one more component, uniform over the box of the rows, with the share `noise_`. Rows for which it is the most probable
        have the label -2; `predict_proba` has its probability in no column, so that rows sum to less than 1.

    missing : bool
        Whether NaN is an entry that is not known; each fit begins with k-means|| then, not with scikit-learn's K-means.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_ : array, float64
        Shapes (k,), (k, d), and that of the covariance type.
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Objective of the fitted parameters, nats per row.
    lower_bounds_ : list of float
        Objective at each iteration, nats per row.
    stop_reason_ : str

    References
    ----------
    Dempster, Laird and Rubin (1977); Bishop (2006), sec. 9.2.
    """

    section = GaussianSection

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        method: str = "em",
        prior: Any = None,
        noise: str | None = None,
        missing: bool = False,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.method = method
        self.prior = prior
        self.noise = noise
        self.missing = missing

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, noise: Any = None, features: Any = None) -> Self:
        """Fit to all rows of X; as of the other classes, but for errors of the rows.

        Parameters
        ----------
        X, y, sample_weight, features
            As of the other classes.
        noise : array, shape (n, d) or (n, d, d), optional
            Known errors of the rows: variances of their entries, or covariances. Means and covariances are then those of the rows without
            their errors; `predict` and scores take rows as they are. [Bovy, Hogg and Roweis 2011]

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For parameters, rows or errors that cannot be used.
        """
        if noise is not None and (self.noise is not None or self.missing):
            raise ValueError(
                "noise: errors of rows are not for a mixture with noise or missing entries; leave one out."
            )
        if noise is not None and is_xarray(X) and (features is not None or not is_named(X)):
            raise ValueError("noise: is for rows of two dimensions, got cells of xarray. Stack them, or leave it out.")
        self._fit(X, y, sample_weight, noise=noise, features=features)
        return self

    def to_sklearn(self) -> Peer:
        """Return scikit-learn's estimator, fitted if this one is."""
        if self.noise is not None:
            raise ValueError("to_sklearn: scikit-learn has no mixture with noise; set noise to None and fit again.")
        names = set(Peer().get_params())
        start = self.init_params if self.init_params in ("kmeans", "k-means++", "random_from_data") else "random"
        peer = Peer(
            **{**{name: value for name, value in self.get_params().items() if name in names}, "init_params": start}
        )
        return copied(FITTED, self, peer)

    @classmethod
    def from_sklearn(cls, peer: Peer) -> Self:
        """Return the estimator of one of scikit-learn's, fitted if that is."""
        estimator: Self = copied(FITTED, peer, cls(**peer.get_params(deep=False)))
        return estimator

    def _supplied(self, n_features: int) -> dict[str, Array]:
        k, d = self.n_components, n_features
        found = {}
        if self.weights_init is not None:
            weights = shaped("weights", self.weights_init, (k,))
            if weights.min() < 0 or weights.max() > 1:
                raise ValueError(
                    "The parameter 'weights' should be in the range [0, 1], but got "
                    f"max value {weights.max():.5f}, min value {weights.min():.5f}"
                )
            if not np.isclose(weights.sum(), 1.0):
                raise ValueError(
                    f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
                )
            found["weights"] = weights
        if self.means_init is not None:
            found["means"] = shaped("means", self.means_init, (k, d))
        if self.precisions_init is not None:
            found["covariances"] = self._covariances_init(k, d)
        return found

    def _covariances_init(self, k: int, d: int) -> Array:
        """Inverses of precisions_init, which have to be positive definite."""
        kind, shape = self.covariance_type, self._shape()
        precisions = shaped(f"{kind} precision", self.precisions_init, shape.array_shape(k, d))
        if not shape.is_matrix:
            if not (precisions > 0).all():
                raise ValueError(f"'{kind} precision' should be positive")
            return 1.0 / precisions
        symmetric = np.allclose(precisions, np.swapaxes(precisions, -1, -2))
        if not (symmetric and (np.linalg.eigvalsh(precisions) > 0.0).all()):
            raise ValueError(f"'{kind} precision' should be symmetric, positive-definite")
        return np.linalg.inv(precisions)

    def _take(self, model: LatentModel, params: MixtureParams) -> None:
        super()._take(model, params)
        factors = params.theta.factors
        self.precisions_cholesky_ = factors
        if self._shape().is_matrix:
            self.precisions_ = factors @ np.swapaxes(factors, -1, -2)
        else:
            self.precisions_ = factors**2

    def _model(self) -> tuple[LatentModel, Any]:
        arrays = self._stored()
        mean = arrays["weights"] @ arrays["means"]  # that of the rows, where the fit has ended
        model = Mixture(Gaussian(len(arrays["weights"]), mean, self.covariance_type, self.reg_covar))
        if self.noise is not None:
            assert isinstance(self.model_, NoisyMixture)
            model = NoisyMixture.of(model, self.model_.low, self.model_.high)
        return model, model.params(**arrays)

    def _shape(self) -> Shape:
        return SHAPES[self.covariance_type]


def open_prior(path: str) -> GaussianMixture:
    """Return the mixture of patches in a file of another program, as of `pipeline.data.priors`: of pixels, or of the features without their mean."""
    arrays = features_of(read_prior(path))
    k, d = arrays["means"].shape
    model = Mixture(Gaussian(k, arrays["weights"] @ arrays["means"], "full"))
    estimator = GaussianMixture(k)
    estimator._take(model, model.params_from_arrays(arrays))
    estimator.n_features_in_, estimator.n_iter_, estimator.converged_ = d, 0, True
    return estimator


def save_prior(path: str | Path, output: str | Path) -> Path:
    """Write the mixture of patches of a run for another program; return the file.

    Parameters
    ----------
    path : str or Path
        Of a run of a Gaussian mixture on patches in grey, without `preprocess` and `data.patch.contrast`.
    output : str or Path
        ``.mat``: the struct `GS` of the EPLL code (Zoran and Weiss 2011). ``.npz``: `mu` (k, d), `cov` (k, d, d) and
        `weights` (k,) for deepinv's `GaussianMixtureModel`. ``.fits``: Jolideco's table of `weights`, `means` and `covariances`, by astropy. All are of
        pixels from 0 to 1.

    Raises
    ------
    InputError
        If the run is of another kind, or the layout is not known.
    """
    stored = read_model(RunDirectory(path).model)
    model, params, affine = load_model(stored)
    data = stored.attrs["data"]
    refused = {
        f"a run of a {model.words.name}": not (isinstance(model, Mixture) and isinstance(model.component, Gaussian)),
        "rows that are no patches": data.get("kind") != "patch",
        "patches in colour": data.get("channels", 1) != 1,
        "patches of a volume": len(data.get("size", (0, 0))) != 2,
        "data.patch.contrast": data.get("contrast") is not None,
        "preprocess": affine is not None,
    }
    for what, is_so in refused.items():
        if is_so:
            raise InputError(
                f"save_prior: got {what}, expected a Gaussian mixture of grey patches in the pixels' own scale. Fit one."
            )
    k, d = params.theta.means.shape
    arrays = {
        "weights": params.weights,
        "means": params.theta.means,
        "covariances": full_covariances(model.component.shape, params.theta.covariances, k, d),
    }
    write_prior(Path(output), arrays, (data["size"][0], data["size"][1]), data["remove_mean"])
    return Path(output)
