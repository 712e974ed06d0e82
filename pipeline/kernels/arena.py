"""Scratch memory for kernels: allocated once, used again from chunk to chunk and from pass to pass.

A new array is new pages, and to get them from the system takes longer than to fill them. Two threads never share an
arena: each call checks one out of a pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array

CACHE_LINE = 64  # bytes


class Arena:
    """Scratch arrays by name. Each name has memory of its own, which grows to the largest array asked for."""

    def __init__(self) -> None:
        self._memory: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array with arbitrary contents, valid until the next call with the same name.

        It begins at a cache line: a vector that straddles two lines is loaded twice.
        """
        size = prod(shape) * dtype.itemsize
        memory = self._memory.get(name)
        if memory is None or len(memory) < size + CACHE_LINE:
            memory = self._memory[name] = np.empty(size + CACHE_LINE, np.uint8)
        start = -memory.ctypes.data % CACHE_LINE
        return memory[start : start + size].view(dtype).reshape(shape)


class ArenaPool:
    """The arenas that are free: in all as many as there were calls at the same time."""

    def __init__(self) -> None:
        self._free: deque[Arena] = deque()  # its append and pop are atomic: no lock

    @contextmanager
    def checkout(self) -> Iterator[Arena]:
        """An arena for the length of a block, of which no other block has it: the last one returned, or a new one."""
        try:
            arena = self._free.pop()
        except IndexError:
            arena = Arena()
        try:
            yield arena
        finally:
            self._free.append(arena)
