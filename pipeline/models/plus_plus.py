"""k-means++: rows drawn with probability proportional to weight x D², one by one or many at a time.

Of each few rows drawn, the one that lowers the sum of weight x D² most is taken (greedy k-means++).

References
----------
Arthur and Vassilvitskii (2007), section 2.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array

BATCHES = 8  # of many centres, an eighth of those there are at once


def one_by_one(rows: Array, weight: Array, k: int, seed: int) -> Array:
    """Return indices of k rows, those of scikit-learn's `kmeans_plusplus` with the same seed: (k,) int64.

    Importing scikit-learn for it takes longer than most searches for a start.

    Parameters
    ----------
    rows : array, shape (n, d)
        Float64, with a mean near the origin: distances are differences of squares.
    weight : array, shape (n,)
    k : int
        At most n.
    seed : int
    """
    rng = np.random.RandomState(seed)
    norms = np.einsum("ij,ij->i", rows, rows)
    trials = 2 + int(np.log(k))

    def distances(index: Array) -> Array:
        few = rows[index]
        squared = -2 * (few @ rows.T)
        squared += np.einsum("ij,ij->i", few, few)[:, None]
        squared += norms
        return np.maximum(squared, 0, out=squared)

    chosen = np.empty(k, dtype=np.int64)
    chosen[0] = rng.choice(len(rows), p=weight / weight.sum())
    nearest = distances(chosen[:1])  # to the nearest of the chosen, (1, n)
    total = nearest @ weight
    for i in range(1, k):
        places = rng.uniform(size=trials) * total
        drawn = np.searchsorted(np.cumsum(weight * nearest), places)
        np.minimum(drawn, len(rows) - 1, out=drawn)  # the sum of all may round to less
        lowered = distances(drawn)
        np.minimum(nearest, lowered, out=lowered)
        totals = lowered @ weight[:, None]
        best = int(np.argmin(totals))
        total, nearest, chosen[i] = totals[best], lowered[best], drawn[best]
    return chosen


def in_batches(rows: Array, weight: Array, k: int, rng: np.random.Generator, kernels: Any) -> Array:
    """Return indices of k rows drawn by weight x D², each time as many as an eighth of those there are: (k,).

    One by one takes a pass over all rows for each centre.
    """
    about, every, squared = rows.mean(axis=0), np.arange(len(rows)), np.full(len(rows), np.inf)
    newest = rng.choice(every, 1, p=weight / weight.sum())
    chosen = newest
    while len(chosen) < k:
        squared = np.minimum(squared, kernels.nearest(rows, rows[newest], about)[1])
        squared[newest] = 0.0
        share = weight * squared
        share = share if share.any() else weight  # fewer distinct rows than centres
        many = min(k - len(chosen), max(1, len(chosen) // BATCHES), int(np.count_nonzero(share)))
        newest = rng.choice(every, many, replace=False, p=share / share.sum())
        chosen = np.concatenate([chosen, newest])
    return chosen
