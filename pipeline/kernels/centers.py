"""What a pass of Lloyd's algorithm needs of its centres beside them, prepared once for all chunks.

Where a chunk has few rows for each centre, preparing them again would take longer than the rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.kernels.blocks import in_blocks
from pipeline.kernels.nearest_bounds import Leading, leading_of

MOST_BYTES = 2**26  # of all that is kept


class Prepared(NamedTuple):
    """Centres about the reference, in the rows' dtype.

    Attributes
    ----------
    reference : array, shape (d,)
    factors : array, shape (k, d)
        Minus twice the centres.
    square : array, shape (k,)
        Squared lengths.
    blocks : array, shape (ceil(k / BLOCK), d, BLOCK)
        The factors, a block of centres feature by feature; zeros fill up the last block.
    block_squares : array, shape (ceil(k / BLOCK), BLOCK)
        inf fills up the last block: what is there is never nearest.
    leading : Leading or None
        What bounds take, where there are enough features and centres for them.
    """

    reference: Array
    factors: Array
    square: Array
    blocks: Array
    block_squares: Array
    leading: Leading | None

    @property
    def nbytes(self) -> int:
        """Bytes."""
        arrays = {id(each): each for each in (*self, *(self.leading or ())) if isinstance(each, np.ndarray)}
        return sum(each.nbytes for each in arrays.values())


_known: dict[tuple[int, bytes, str, bool], Prepared] = {}


def prepared(centers: Array, shift: Array, dtype: np.dtype[Any], bounded: bool = True) -> Prepared:
    """Prepare centres for rows of a dtype, or return what is prepared for the same array. No centre may change in place.

    bounded : whether there are rows enough for bounds, whose directions take as long to find as many distances.
    """
    key = (id(centers), shift.tobytes(), dtype.str, bounded)
    if (found := _known.get(key)) is not None:
        return found
    # Without a lock: of two threads that begin at once both prepare, where those with other centres would wait for one another.
    found = _prepared(centers, shift.astype(dtype), bounded)
    if found.nbytes + sum(each.nbytes for each in list(_known.values())) <= MOST_BYTES:
        _known[key] = found
        finalize(centers, _known.pop, key, None)
    return found


def _prepared(centers: Array, reference: Array, bounded: bool) -> Prepared:
    points, dtype = centers - reference, reference.dtype
    factors, square = (-2.0 * points).astype(dtype), np.einsum("kd,kd->k", points, points).astype(dtype)
    leading = leading_of(factors, square) if bounded else None
    return Prepared(reference, factors, square, *in_blocks(factors, square), leading)
