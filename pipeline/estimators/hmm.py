"""A hidden Markov model with scikit-learn's methods; sequences are said by their lengths, as hmmlearn has it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.data.units import starts_of
from pipeline.estimators.fit import value_errors
from pipeline.estimators.made import made_class
from pipeline.kernels.cpu import KERNELS


class HiddenMarkovModel(made_class("hmm")):  # type: ignore[misc]  # made from the config section of the family
    """Hidden Markov model by EM, over sequences of rows in memory.

    X holds the rows of all sequences, one sequence after the other, and `lengths` how many rows each has; without it, X is one.
    Parameters that are not listed are those of `GaussianMixture`.

    Parameters
    ----------
    n_components : int
        States.
    emission : str or dict
        The distribution of a row given its state: the name of a family of mixtures, or with its options, such as
        ``{"family": "gaussian", "covariance_type": "diag"}``.

    Attributes
    ----------
    start_probabilities_, transitions_ : array, shape (k,) and (k, k), float64
        A row of transitions is of the state before.
    means_, covariances_, rates_, probabilities_, …
        Parameters of the emissions, as of their family's class.
    converged_, n_iter_, lower_bound_, lower_bounds_, stop_reason_
        As of `GaussianMixture`.

    References
    ----------
    Baum, Petrie, Soules and Weiss (1970); Rabiner (1989).
    """

    def fit(self, X: Any, lengths: Any = None) -> Self:
        """Fit to all sequences. lengths : array of int, whose sum is the number of rows."""
        self._fit(X, None, None, lengths=lengths)
        return self

    def partial_fit(self, X: Any, lengths: Any = None) -> Self:
        """Fit to these sequences and, by their statistics, to those of earlier calls: see `GaussianMixture.partial_fit`."""
        self._fit(X, None, None, getattr(self, "statistics_", None), lengths=lengths)
        return self

    def fit_predict(self, X: Any, lengths: Any = None) -> Array:
        """Fit, and return the most probable path, shape (n,)."""
        return self.fit(X, lengths).predict(X, lengths)

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """Return the states of the most probable path of each sequence (Viterbi), shape (n,), int64."""
        return self._of_rows(X, lengths)["label"].astype(np.int64)

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """Return the probability of each state of a row given its sequence, shape (n, k), float32."""
        found = self._of_rows(X, lengths, len(self.start_probabilities_))
        proba = np.empty_like(found["top_responsibility"])
        np.put_along_axis(proba, found["top_component"].astype(np.int64), found["top_responsibility"], axis=1)
        return proba

    def score_samples(self, X: Any, lengths: Any = None) -> Array:
        """Return log p(x_t | x_1 … x_t-1) of each row, shape (n,), nats: its sum over a sequence is the log-likelihood."""
        return self._of_rows(X, lengths)[self.model_.words.score]

    def score(self, X: Any, lengths: Any = None) -> float:
        """Return the log-likelihood of the sequences over their rows, nats a row; hmmlearn's is the total."""
        return float(self.score_samples(X, lengths).mean())

    def aic(self, X: Any, lengths: Any = None) -> float:
        """Return 2 p - 2 log L on the sequences, for p free parameters."""
        return 2.0 * self._n_parameters() - 2.0 * float(self.score_samples(X, lengths).sum())

    def bic(self, X: Any, lengths: Any = None) -> float:
        """Return p log n - 2 log L on the sequences, of n rows in all."""
        scores = self.score_samples(X, lengths)
        return self._n_parameters() * float(np.log(len(scores))) - 2.0 * float(scores.sum())

    def _takes(self) -> Any:
        return self.section(emission=self.emission)

    def _of_rows(self, X: Any, lengths: Any, top_k: int = 0) -> dict[str, Array]:
        with value_errors():
            x = self._table(X).in_memory("a model of sequences")
            rows = Rows(x, units=starts_of(lengths, x.shape[0]))
        model, params = self._model_of_rows()
        found: dict[str, Array] = model.predict(params, rows, top_k, KERNELS)
        return found
