"""Small whole numbers packed into bytes, without unused bits between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.arrays.dtypes import Array


def packed(columns: Array, widths: Sequence[int]) -> Array:
    """Return rows of numbers as bytes: the bits of a row follow each other, highest first, and rows follow each other.

    Parameters
    ----------
    columns : array of int, shape (n, m)
        Not negative, below 2**width of their column.
    widths : sequence of int
        Bits of each column.

    Returns
    -------
    array, shape (ceil(n sum(widths) / 8),), uint8
        Unused bits of the last byte are 0.

    >>> packed(np.array([[5, 1], [2, 0]]), (3, 1)).tolist()  # 101 1, 010 0
    [180]
    """
    each = zip(columns.T, widths, strict=True)
    bits = [(column[:, None] >> np.arange(width)[::-1] & 1).astype(np.uint8) for column, width in each]
    return np.packbits(np.concatenate(bits, axis=1))


def unpacked(data: Array, n: int, widths: Sequence[int]) -> Array:
    """Return n rows of numbers, (n, m) int64, from the bytes that `packed` made of them.

    >>> unpacked(np.array([180], np.uint8), 2, (3, 1)).tolist()
    [[5, 1], [2, 0]]
    """
    bits = np.unpackbits(data, count=n * sum(widths)).reshape(n, sum(widths))
    parts = np.split(bits, np.cumsum(widths)[:-1], axis=1)
    return np.stack([part @ (1 << np.arange(part.shape[1])[::-1]) for part in parts], axis=1)
