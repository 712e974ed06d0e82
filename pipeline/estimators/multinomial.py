"""A multinomial mixture of counts with the names that scikit-learn would give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from sklearn.naive_bayes import MultinomialNB
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pipeline.arrays.dtypes import Array
from pipeline.estimators.mixture import MixtureEstimator
from pipeline.models.families.multinomial import WORDS, MultinomialSection
from pipeline.models.mixture import Mixture


class MultinomialMixture(MixtureEstimator):
    """Mixture of multinomials by EM, over rows of counts. Sparse rows are never made dense.

    Parameters that are not listed are those of `GaussianMixture`.

    Parameters
    ----------
    concentration : float
        Of the Dirichlet prior on the features of each component: it adds concentration - 1 to the counts.
    init_params : {"k-means||", "k-means++", "random", "near-mean"}
    weights_init : array, shape (k,), optional
    feature_log_prob_init : array, shape (k, d), optional
        Rows whose exponentials sum to 1.

    Attributes
    ----------
    weights_, feature_log_prob_ : array, shape (k,) and (k, d), float64
        Named as in scikit-learn's `MultinomialNB`.
    converged_, n_iter_, lower_bound_, lower_bounds_, stop_reason_
        As of `GaussianMixture`; the bounds include the log prior.

    References
    ----------
    Nigam, McCallum, Thrun and Mitchell (2000).
    """

    section = MultinomialSection
    attributes: ClassVar[Mapping[str, str]] = {"log_prob": "feature_log_prob_"}

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

    def sample(self, n_samples: int = 1, n_counts: int = 100) -> tuple[Any, Array]:
        """Return rows of n_counts counts each, CSR of shape (n_samples, d), and their components, shape (n_samples,)."""
        counts, labels = super().sample(n_samples)
        if n_counts == WORDS:
            return counts, labels
        model, params = self._model()
        assert isinstance(model, Mixture)
        rng = check_random_state(self.random_state)
        return model.component.sample(params.theta, labels, rng, n_counts), labels

    def to_sklearn(self) -> MultinomialNB:
        """Return a scikit-learn classifier whose classes are the components and whose probabilities the responsibilities."""
        check_is_fitted(self)
        peer = MultinomialNB(alpha=self.concentration - 1.0)
        with np.errstate(divide="ignore"):
            peer.class_log_prior_ = np.log(self.weights_)
        peer.feature_log_prob_ = self.feature_log_prob_
        peer.classes_ = np.arange(len(self.weights_))
        peer.n_features_in_ = self.n_features_in_
        return peer
