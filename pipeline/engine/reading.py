"""The chunks of a task in turn: the next is read while one computes, and decoded ones may be cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks

T = TypeVar("T")
WORTH_BYTES = 2**18  # of a chunk; below, handing it from thread to thread costs as much as reading it


def worth_ahead(chunks: Chunks) -> bool:
    """Return whether another thread should load the next chunk: a chunk is large enough, and to read it may mean to wait.

    Where the system fetches it ahead, only decoding is left, for which a thread more would compete with those that compute.
    """
    source = chunks.source
    return source.stored and not source.fetched_ahead and chunks.chunk_bytes >= WORTH_BYTES


def in_turn(load: Callable[[int], T], indices: Sequence[int], ahead: bool) -> Iterator[T]:
    """Yield load(i) for each i, in order. ahead : another thread loads the next, if there is one, while the caller computes."""
    if not ahead or len(indices) == 1:
        yield from map(load, indices)
        return
    reader = ThreadPoolExecutor(1)
    try:
        pending = reader.submit(load, indices[0])
        for i in indices[1:]:
            loaded = pending.result()
            pending = reader.submit(load, i)
            yield loaded
            del loaded  # or it would be in memory beside the next two
        yield pending.result()
    finally:
        reader.shutdown(cancel_futures=True)


class ChunkCache:
    """Decoded chunks of one set of rows, up to a number of bytes. For the threads of one process."""

    def __init__(self, limit: int) -> None:
        """limit : bytes."""
        self._limit, self._lock = limit, Lock()
        self._of: Chunks | None = None
        self._chunks: dict[int, Rows] = {}
        self._free = limit

    def load(self, chunks: Chunks, i: int) -> Rows:
        """Return chunk i, cached or by chunks.load(i). A cached chunk stays until other rows are read.

        A pass reads all chunks in turn, so replacing one by another would save no reads.
        """
        with self._lock:
            if self._of is not chunks:
                self._of, self._chunks, self._free = chunks, {}, self._limit
            found = self._chunks.get(i)
        if found is not None:
            return found
        chunk = chunks.load(i)
        with self._lock:
            if self._of is chunks and i not in self._chunks and chunk.nbytes <= self._free:
                self._chunks[i] = chunk
                self._free -= chunk.nbytes
        return chunk
