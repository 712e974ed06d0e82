"""Chunks of a shard one after another: the next is read while one computes, and decoded ones may be kept between passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from pipeline.data.chunks import Chunk, Chunks

T = TypeVar("T")
WORTH_SECONDS = 0.001  # to read a chunk; below, handing it from thread to thread costs as much


def in_turn(load: Callable[[int], T], indices: Sequence[int], ahead: bool) -> Iterator[T]:
    """load(i) for each i, in order. ahead : the next is loaded in a thread beside the caller's, at most one at a time."""
    began = time.perf_counter()
    first = load(indices[0])
    if not ahead or len(indices) == 1 or time.perf_counter() - began < WORTH_SECONDS:
        yield first
        yield from map(load, indices[1:])
        return
    reader = ThreadPoolExecutor(1)
    try:
        waiting = reader.submit(load, indices[1])
        yield first
        del first
        for i in indices[2:]:
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
        self._chunks: dict[int, Chunk] = {}
        self._left = limit

    def load(self, chunks: Chunks, i: int) -> Chunk:
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
