"""Rows drawn from a given Gaussian mixture when they are read.

Draws are keyed by (random_state, block of 4096 rows), with the counter-based generator Philox, so that a row is
the same for any number of rows and on any worker. [Salmon et al. 2011]
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.config import Section
from pipeline.data.section import DataSection
from pipeline.data.source import Source, even_bounds, rows_per_target
from pipeline.errors import InputError

_BLOCK = 4096


class MixtureSpec(Section):
    """A known Gaussian mixture to draw rows from."""

    weights: list[float] = Field(min_length=1, description="one weight a component")
    means: list[list[float]] = Field(description="component x feature")
    covariances: list[Any] = Field(description="component x feature x feature, x feature, or one variance each")


class SyntheticSection(DataSection):
    """Rows drawn from a known Gaussian mixture, when they are read."""

    source: Literal["synthetic"] = Field("synthetic", description="rows drawn from a known Gaussian mixture")
    n_rows: int = Field(ge=1, description="how many rows")
    mixture: MixtureSpec = Field(description="weights, means and covariances to draw from")
    random_state: int = Field(0, ge=0, description="the seed of the data")
    dtype: Literal["float32", "float64"] = Field("float64", description="the type of the data")

    def open(self) -> Source:
        if self.random_state >= 2**64:
            raise InputError(f"data.random_state: got {self.random_state}, expected less than 2**64. Make it smaller.")
        weights, means, factors = _checked(self.mixture)
        return SyntheticSource(weights, means, factors, self.n_rows, self.random_state, self.dtype)


class SyntheticSource(Source):
    """Rows x = mean_k + factor_k z with k drawn from the weights and z standard normal.

    Parameters
    ----------
    weights : array, shape (k,)
    means : array, shape (k, d)
    factors : array, shape (k, d, d)
        covariance_k = factor_k factor_kᵀ.
    n_rows, seed : int
    dtype : str
    """

    def __init__(
        self, weights: np.ndarray, means: np.ndarray, factors: np.ndarray, n_rows: int, seed: int, dtype: str
    ) -> None:
        self.n_features, self.dtype = means.shape[1], np.dtype(dtype)
        self.bounds = even_bounds(n_rows, rows_per_target(self.n_features, self.dtype.itemsize, _BLOCK))
        self._edges = np.cumsum(weights)[:-1]
        self._means, self._factors, self._seed = means, factors, seed

    def read(self, i: int) -> np.ndarray:
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        x = np.empty((stop - start, self.n_features), self.dtype)
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):
            labels, generator = self._draw_labels(block)
            z = generator.standard_normal((_BLOCK, self.n_features))
            for k in np.unique(labels):
                rows = labels == k
                z[rows] = z[rows] @ self._factors[k].T + self._means[k]
            first = block * _BLOCK - start
            x[first : first + _BLOCK] = z[: stop - start - first]
        return x

    def _draw_labels(self, block: int) -> tuple[np.ndarray, np.random.Generator]:
        """The components of a whole block, and the generator for its rows."""
        key = np.array([self._seed, block], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return np.searchsorted(self._edges, generator.random(_BLOCK), side="right"), generator


def _checked(mixture: MixtureSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K,), means (K, d) and Cholesky factors (K, d, d) of a valid mixture."""
    weights = _numbers("weights", mixture.weights)
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-6:
        raise InputError(f"data.mixture.weights: got {mixture.weights}, expected numbers >= 0 that sum to 1.")
    means = _numbers("means", mixture.means)
    n = len(weights)
    if means.ndim != 2 or len(means) != n or means.shape[1] == 0:
        raise InputError(f"data.mixture.means: got shape {means.shape}, expected ({n}, features).")
    covariances = _numbers("covariances", mixture.covariances)
    d = means.shape[1]
    if covariances.shape == (n,):
        covariances = covariances[:, None, None] * np.eye(d)
    elif covariances.shape == (n, d):
        covariances = covariances[:, :, None] * np.eye(d)
    if covariances.shape != (n, d, d):
        raise InputError(
            f"data.mixture.covariances: got shape {covariances.shape}, expected ({n}, {d}, {d}), ({n}, {d}) or ({n},)."
        )
    for k, covariance in enumerate(covariances):
        if not np.allclose(covariance, covariance.T, rtol=1e-9, atol=0) or np.linalg.eigvalsh(covariance)[0] <= 0:
            raise InputError(
                f"data.mixture.covariances: that of component {k} is not symmetric and positive definite: "
                f"{covariance.tolist()}. Correct it."
            )
    return weights / weights.sum(), means, np.linalg.cholesky(covariances)


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.array(values, np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"data.mixture.{name}: is not a rectangle of numbers ({error}).") from error
    if not np.isfinite(array).all():
        raise InputError(f"data.mixture.{name}: got NaN or infinity, expected finite numbers.")
    return array
