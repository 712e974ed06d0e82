"""A sketch of a covariance: loadings of low rank from a sample, without a matrix of d x d. [Halko, Martinsson and Tropp 2011, sec. 5.4]."""

from __future__ import annotations

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.models.clusters import Summary

LEAST_NOISE = 0.05  # share of a feature's variance that is noise at a start, at least


def common_loadings(summary: Summary, rank: int) -> Array:
    """Loadings (d, q) of all rows from the sample: a sketch of its covariance by random combinations of rows, missing entries as means.

    Sums are in a fixed order, so that no bit depends on the number of threads.
    """
    x, variance, rng = summary.sample.x, np.asarray(summary.variance, dtype=np.float64), np.random.default_rng(0)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    drawn = rng.standard_normal((len(variance), rank))
    if len(x) <= rank:
        return 0.5 * np.sqrt(variance)[:, None] * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    rows = (np.asarray(x, dtype=np.float64) - summary.mean) / deviation
    rows[np.isnan(rows)] = 0.0
    directions = np.einsum("nd,nq->dq", rows, rng.standard_normal((len(rows), rank))) / len(rows) + 1e-3 * drawn
    z = np.einsum("nd,dq->nq", rows, directions)
    values, vectors = np.linalg.eigh(np.einsum("np,nq->pq", z, z) / len(rows))
    whitened = vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1] + np.finfo(np.float64).tiny))
    found = np.sqrt(variance)[:, None] * np.einsum("nd,np,pq->dq", rows, z, whitened, optimize=False) / len(rows)
    explained = np.square(found).sum(axis=1)
    most = (1.0 - LEAST_NOISE) * variance  # a sample of few rows may show more variance than all rows
    return np.asarray(
        found * np.sqrt(np.minimum(1.0, most / np.maximum(explained, np.finfo(np.float64).tiny)))[:, None]
    )
