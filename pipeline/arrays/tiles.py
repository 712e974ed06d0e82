"""Tiles: row ranges of a chunk for which working arrays fit the caches of one core."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TILE_BYTES = 2**22  # of working arrays: about the caches that one core can use
BLOCK_NUMBERS = (
    2**19
)  # of components' matrices at a time: beside those of all there is no room for several temporary arrays of that size
FIRST_ROWS = 64


def tiles(n: int, height: int) -> Iterator[slice]:
    """Yield consecutive row ranges of at most `height` rows."""
    for start in range(0, n, height):
        yield slice(start, min(start + height, n))


def blocks(k: int, size: int) -> Iterator[slice]:
    """Yield consecutive ranges of k components whose matrices, of `size` numbers each, are computed at a time."""
    return tiles(k, max(1, BLOCK_NUMBERS // size))


def first_few_then_tiles(n: int, height: int) -> Iterator[slice]:
    """Yield row ranges in order, a short one first: its results let most other rows be skipped."""
    first = min(n, FIRST_ROWS)
    yield slice(0, first)
    for rows in tiles(n - first, height):
        yield slice(first + rows.start, first + rows.stop)


def tile_height(n_features: int, n_components: int) -> int:
    """Return the rows of a tile: a power of two that depends on the model only, so that bits do not depend on memory or workers."""
    row_bytes = 8 * (2 * n_features + 4 * n_components)
    return 1 << int(np.clip(np.log2(TILE_BYTES / row_bytes), 6, 13))
