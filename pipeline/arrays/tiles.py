"""Tiles: ranges of rows that are computed together, so that their working arrays stay in the caches of one core."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TILE_BYTES = 2**22  # of a tile's working arrays: about the caches that one core can use
FIRST_ROWS = 64


def tile_height(n_features: int, n_components: int) -> int:
    """Rows in a tile: a power of two from 64 to 8192 that depends on the model alone.

    Results depend on where tiles begin, so their height must not depend on memory or workers.
    """
    row_bytes = 8 * (2 * n_features + 4 * n_components)
    return 1 << int(np.clip(np.log2(TILE_BYTES / row_bytes), 6, 13))


def tiles(n: int, height: int) -> Iterator[slice]:
    """Consecutive row ranges of at most `height` rows."""
    for start in range(0, n, height):
        yield slice(start, min(start + height, n))


def first_few_then_tiles(n: int, height: int) -> Iterator[slice]:
    """Consecutive row ranges, the first of at most FIRST_ROWS rows.

    For lists of the best rows: what the first rows leave there rules out most of the others.
    """
    first = min(n, FIRST_ROWS)
    yield slice(0, first)
    for rows in tiles(n - first, height):
        yield slice(first + rows.start, first + rows.stop)
