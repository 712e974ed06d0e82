"""Latent Dirichlet allocation with the names that scikit-learn has for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.estimators.made import made_class


class LatentDirichletAllocation(made_class("lda")):  # type: ignore[misc]  # made from the config section of the family
    """Latent Dirichlet allocation by EM with a mean-field E-step, over rows of counts. Sparse rows are never made dense.

    Parameters that are not listed are those of `GaussianMixture`.

    Parameters
    ----------
    n_components : int
        Topics.
    concentration : float
        Of the Dirichlet prior on the words of a topic: counts + concentration - 1; 1 is maximum likelihood.
    doc_topic_prior : "learned" or float
        The Dirichlet parameter of a document's topics: learned for each topic, or a fixed number.
    doc_tol : float
        Nats that the bound of a document may still gain when its own iterations end.

    Attributes
    ----------
    alpha_ : array, shape (k,), float64
    log_prob_ : array, shape (k, v), float64
        Logarithms of the probabilities of words in each topic.
    components_ : array, shape (k, v), float64
        These probabilities; scikit-learn's are proportional to its own.
    converged_, n_iter_, lower_bound_, lower_bounds_, stop_reason_
        As of `GaussianMixture`; the bounds, nats a document, include the log prior.

    References
    ----------
    Blei, Ng and Jordan (2003); Minka (2000).
    """

    @property
    def components_(self) -> Array:
        """Probabilities of words in each topic, shape (k, v)."""
        return np.exp(self.log_prob_)

    def transform(self, X: Any) -> Any:
        """Return the expected shares of the topics in each document, shape (n, k), float64."""
        return self.predict_proba(X)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, and return the shares of each document, shape (n, k)."""
        return self.fit(X, y, sample_weight).transform(X)

    def perplexity(self, X: Any) -> float:
        """Return exp(- bound per word) of documents, without multinomial coefficients: lower is better, as scikit-learn's.

        X : array or sparse rows in memory, shape (n, v).
        """
        x = self._table(X).in_memory("perplexity")
        words, coefficients = self._model()[0].words_of(x)
        return float(np.exp(-(self.score_samples(X) - coefficients).sum() / words.sum()))
