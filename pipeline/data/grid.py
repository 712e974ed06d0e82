"""Samples that lie on a grid of several dimensions, as rows: the last dimension varies fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np


class Block(NamedTuple):
    """Consecutive rows that are a box of the grid.

    Attributes
    ----------
    start, stop : int
        Rows.
    at : tuple of int
        Where the block is among the blocks of each dimension.
    box : tuple of slice
        The box, a slice of each dimension.
    """

    start: int
    stop: int
    at: tuple[int, ...]
    box: tuple[slice, ...]


@dataclass(frozen=True)
class Grid:
    """The dimensions of the rows. A table has one, `row`.

    Attributes
    ----------
    dims : tuple of str
    shape : tuple of int
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    @classmethod
    def of_rows(cls, n_rows: int) -> Grid:
        """Return the grid of a table."""
        return cls(("row",), (n_rows,))

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return math.prod(self.shape)

    def block_shape(self, rows: int) -> tuple[int, ...]:
        """Return the largest box of at most `rows` consecutive rows.

        >>> Grid(("time", "y", "x"), (10, 4, 5)).block_shape(50)
        (2, 4, 5)
        >>> Grid(("time", "y", "x"), (10, 4, 5)).block_shape(12)
        (1, 2, 5)
        """
        below = 1
        for axis in reversed(range(len(self.shape))):
            if axis == 0 or below * self.shape[axis] > rows:
                return (1,) * axis + (max(1, rows // below), *self.shape[axis + 1 :])
            below *= self.shape[axis]
        return ()

    def blocks(self, shape: tuple[int, ...], row: int = 0) -> Iterator[Block]:
        """Yield the blocks of a shape from `block_shape`, in the order of their rows. row : in the first one."""
        if not self.n_rows:
            return
        counts = tuple(-(-size // step) for size, step in zip(self.shape, shape, strict=True))
        first = [i // step for i, step in zip(np.unravel_index(row, self.shape), shape, strict=True)]
        for number in range(int(np.ravel_multi_index(first, counts)), math.prod(counts)):
            at = tuple(int(i) for i in np.unravel_index(number, counts))
            box = tuple(
                slice(i * step, min((i + 1) * step, size)) for i, step, size in zip(at, shape, self.shape, strict=True)
            )
            start = int(np.ravel_multi_index([part.start for part in box], self.shape))
            yield Block(start, start + math.prod(part.stop - part.start for part in box), at, box)


class FlatRows:
    """A stored array over a grid, read by row, a stored chunk at a time.

    Parameters
    ----------
    array : zarr.Array
        Of the dimensions of the grid, and perhaps `rank` or `column`; in chunks of a shape from `Grid.block_shape`.
    """

    def __init__(self, array: Any) -> None:
        names = tuple(array.metadata.dimension_names or ())
        self._array, n = array, array.ndim - (names[-1:] in (("rank",), ("column",)))
        self._grid = Grid(names[:n], array.shape[:n])
        self._chunk = self._grid.block_shape(math.prod(array.chunks[:n]))
        self.dims = self._grid.dims
        self.shape = (self._grid.n_rows, *array.shape[n:])

    def parts(self) -> Iterator[slice]:
        """Yield the rows of each stored chunk."""
        return (slice(block.start, block.stop) for block in self._grid.blocks(self._chunk))

    def __getitem__(self, at: Any) -> np.ndarray:
        one = not isinstance(at, slice)
        start, stop = (int(at), int(at) + 1) if one else at.indices(self.shape[0])[:2]
        blocks = list(takewhile(lambda block: block.start < stop, self._grid.blocks(self._chunk, start)))
        read = [np.asarray(self._array[block.box]).reshape(-1, *self.shape[1:]) for block in blocks]
        found = np.concatenate(read)[start - blocks[0].start : stop - blocks[0].start]
        return found[0] if one else found
