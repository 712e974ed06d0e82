"""Chunks of a shard one after another: the next is read while one computes, and decoded ones may be kept between passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks

T = TypeVar("T")
WORTH_BYTES = 2**18  # of a chunk; below, handing it from thread to thread costs as much as reading it


def in_turn(load: Callable[[int], T], indices: Sequence[int], ahead: bool) -> Iterator[T]:
    """load(i) for each i, in order. ahead : a thread beside the caller's loads the next one while the caller computes."""
    if not ahead:
        yield from map(load, indices)
        return
    reader = ThreadPoolExecutor(1)
    try:
        waiting = reader.submit(load, indices[0])
        for i in indices[1:]:
            loaded = waiting.result()
            waiting = reader.submit(load, i)
            yield loaded
            del loaded
        yield waiting.result()
    finally:
        reader.shutdown(cancel_futures=True)


class Kept:
    """Decoded chunks of one set of rows, kept as far as a number of bytes allows. For threads of one process."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, Lock()
        self._of: Chunks | None = None
        self._chunks: dict[int, Rows] = {}
        self._left = limit

    def load(self, chunks: Chunks, i: int) -> Rows:
        """chunks.load(i). Which are kept is decided once: a pass meets all in turn, so to replace one gains nothing."""
        with self._lock:
            if self._of is not chunks:
                self._of, self._chunks, self._left = chunks, {}, self._limit
            found = self._chunks.get(i)
        if found is not None:
            return found
        chunk = chunks.load(i)
        with self._lock:
            if self._of is chunks and i not in self._chunks and chunk.nbytes <= self._left:
                self._chunks[i] = chunk
                self._left -= chunk.nbytes
        return chunk
