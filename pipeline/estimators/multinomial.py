"""A multinomial mixture of counts with the names that scikit-learn would give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.naive_bayes import MultinomialNB
from sklearn.utils.validation import check_is_fitted, check_non_negative

from pipeline.arrays.dtypes import Array
from pipeline.estimators.mixture import MixtureEstimator, shaped
from pipeline.estimators.rows import Table
from pipeline.models.base import Mixture
from pipeline.models.multinomial import Multinomial, MultinomialParams


class MultinomialMixture(MixtureEstimator):
    """Mixture of multinomials over rows of counts, dense or sparse (which stay so), by EM.

    concentration : of the Dirichlet prior on the features of each component; counts + concentration - 1.
    weights_init : (k,).  feature_log_prob_init : (k, d), rows whose exponentials sum to 1.
    init_params : k-means||, k-means++, random or near-mean.
    tol, max_iter, n_init, random_state, warm_start, verbose, verbose_interval, method : as in GaussianMixture.

    Fitted attributes: weights_ (k,), feature_log_prob_ (k, d), named as in scikit-learn's MultinomialNB; converged_,
    n_iter_, lower_bound_ (nats per row, with the log prior), lower_bounds_, stop_reason_.
    [Nigam, McCallum, Thrun and Mitchell 2000]
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        concentration: float = 1.1,
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "k-means||",
        weights_init: Any = None,
        feature_log_prob_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        method: str = "em",
    ) -> None:
        self.n_components = n_components
        self.concentration = concentration
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.feature_log_prob_init = feature_log_prob_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.method = method

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        return tags

    def sample(self, n_samples: int = 1, n_counts: int = 100) -> tuple[sp.csr_array, Array]:
        """Rows of n_counts counts each, (n_samples, d) CSR, and their components, (n_samples,)."""
        counts, rng = self._labels_of(n_samples)
        theta = np.exp(self.feature_log_prob_)
        rows = [rng.multinomial(n_counts, p / p.sum(), int(count)) for p, count in zip(theta, counts, strict=True)]
        return sp.csr_array(np.vstack(rows)), np.repeat(np.arange(len(counts)), counts)

    def to_sklearn(self) -> MultinomialNB:
        """The classifier of scikit-learn with the same rule: its classes are the components, its probabilities their
        responsibilities. Only of a fitted mixture.
        """
        check_is_fitted(self)
        peer = MultinomialNB(alpha=self.concentration - 1.0)
        with np.errstate(divide="ignore"):
            peer.class_log_prior_ = np.log(self.weights_)
        peer.feature_log_prob_ = self.feature_log_prob_
        peer.classes_ = np.arange(len(self.weights_))
        peer.n_features_in_ = self.n_features_in_
        return peer

    def _table(self, X: Any, reset: bool = False, least: int = 1, dense: bool = False) -> Table:
        table = super()._table(X, reset, least, dense)
        if not table.lazy:
            check_non_negative(table.x, type(self).__name__)
        return table

    def _section(self) -> dict[str, Any]:
        return {"family": "multinomial", "n_components": self.n_components, "concentration": self.concentration}

    def _given(self, n_features: int) -> dict[str, Array]:
        found = {}
        if self.weights_init is not None:
            found["weights"] = shaped("weights", self.weights_init, (self.n_components,))
        if self.feature_log_prob_init is not None:
            shape = (self.n_components, n_features)
            found["log_prob"] = shaped("feature_log_prob", self.feature_log_prob_init, shape)
        return found

    def _take(self, params: MultinomialParams) -> None:
        self.weights_, self.feature_log_prob_ = params.weights, np.ascontiguousarray(params.log_prob)

    def _kept(self) -> dict[str, Array]:
        return {"weights": self.weights_, "log_prob": self.feature_log_prob_}

    def _model(self) -> tuple[Mixture, MultinomialParams]:
        k, d = self.feature_log_prob_.shape
        model = Multinomial(k, np.zeros(d), self.concentration)
        return model, model.params_from_arrays(self._kept())
