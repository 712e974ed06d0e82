"""Rows of a random Gaussian mixture: overlapping components of moderate condition, seed 0."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture

SPREAD = 1.5  # deviation of the means, in units of about a component's own


class RandomMixture(NamedTuple):
    """weights : (k,).  means : (k, d).  covariances : (k, d, d).  float64."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def of_type(self, covariance_type: str) -> np.ndarray:
        """The covariances in scikit-learn's shape for the type."""
        variances = np.diagonal(self.covariances, axis1=1, axis2=2)
        shapes = {
            "full": self.covariances,
            "tied": self.covariances.mean(axis=0),
            "diag": variances.copy(),
            "spherical": variances.mean(axis=1),
        }
        return shapes[covariance_type]

    def model(self, covariance_type: str = "full", shift: np.ndarray | None = None) -> tuple[Mixture, Any]:
        """Our model about the mixture's mean (or `shift`), and these parameters."""
        about = self.weights @ self.means if shift is None else shift
        model = Mixture(Gaussian(len(self.weights), about, covariance_type))
        covariances = self.of_type(covariance_type)
        return model, model.params(weights=self.weights, means=self.means, covariances=covariances)


def random_mixture(d: int, k: int, seed: int = 0) -> RandomMixture:
    """k equal components with means about SPREAD from the origin along each of d features."""
    rng = np.random.default_rng([seed, d, k])
    means = SPREAD * rng.standard_normal((k, d))
    mixing = rng.standard_normal((k, d, d))
    covariances = 0.7 / d * mixing @ np.swapaxes(mixing, 1, 2) + 0.3 * np.eye(d)
    return RandomMixture(np.full(k, 1.0 / k), means, covariances)


def without_structure(d: int, k: int, n: int) -> tuple[Mixture, Any, np.ndarray]:
    """A model, parameters and n float32 rows, of which no pair can be left out: components are nearly equal."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(k, d, 2 * d)) / np.sqrt(2 * d)
    model = Mixture(Gaussian(k, np.zeros(d)))
    covariances = 0.1 * roots @ np.swapaxes(roots, 1, 2) + np.eye(d)
    params = model.params(weights=np.full(k, 1 / k), means=0.05 * rng.normal(size=(k, d)), covariances=covariances)
    return model, params, rng.normal(size=(n, d)).astype(np.float32)


def draw(mixture: RandomMixture, n: int, dtype: str = "float32", seed: int = 1) -> np.ndarray:
    """Rows of a mixture, (n, d)."""
    rng = np.random.default_rng(seed)
    label = rng.choice(len(mixture.weights), size=n, p=mixture.weights)
    x = rng.standard_normal((n, mixture.means.shape[1]), dtype=np.dtype(dtype))
    factors = np.linalg.cholesky(mixture.covariances).astype(dtype)
    means = mixture.means.astype(dtype)
    order = np.argsort(label, kind="stable")
    edges = np.searchsorted(label[order], np.arange(len(means) + 1))
    for k in range(len(means)):
        rows = order[edges[k] : edges[k + 1]]
        x[rows] = x[rows] @ factors[k].T + means[k]
    return x
