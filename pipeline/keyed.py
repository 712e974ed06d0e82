"""Random numbers keyed by (seed, stream, global row index): the same for any chunking and any worker.

A row's number is a hash of its key (Steele, Lea and Flood 2014, SplitMix64), so that no state has to travel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashes(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One uint64 for each row, independent between seeds, streams and rows. rows : (n,)."""
    key = np.array([seed % 2**64, stream], np.uint64)
    start = _mix(_mix(key[:1] + _GOLDEN) ^ (key[1:] + _GOLDEN))
    return _mix(start + (rows.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def uniform(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """One float64 in (0, 1) for each row; never 0, so that its logarithm is finite. rows : (n,)."""
    return ((hashes(seed, stream, rows) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def race(seed: int, stream: int, rows: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arrival times of exponential clocks with rates `weight`; inf where the rate is zero.

    The m rows that arrive first are a weighted sample without replacement
    (Efraimidis and Spirakis 2006), and the first m of two sets merge into those of their union.
    """
    with np.errstate(divide="ignore", over="ignore"):
        return -np.log(uniform(seed, stream, rows)) / weight
