"""Passes over the chunks on Dask: the only graph code.

A task is a shard, not a chunk: it streams its chunks one by one, the next read while one computes, gives each to every
job (so one read feeds all restarts) and sums what they return along the canonical tree, in place. What is above the shards is summed by a
few tasks more. Jobs reach the tasks as the result of one small task, never as an argument of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from threading import Event
from typing import Any, NamedTuple

import dask
from dask.delayed import delayed

from pipeline.data.chunks import Chunk, Chunks
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.reading import WORTH_BYTES, Kept, in_turn
from pipeline.engine.tree import shard_level, shards, tree_sum
from pipeline.errors import Stopped

Job = Callable[[Chunk], Any]


class Engine:
    """Threads of this process (client None), or a Dask cluster behind a client."""

    def __init__(self, client: Any = None, workers: int = 1, ahead: bool = True, keep: int = 0) -> None:
        """ahead : read the next chunk while one computes.  keep : bytes of decoded chunks kept between passes (threads)."""
        self.client = client
        self.workers = workers
        self._ahead = ahead
        self._kept = Kept(keep) if keep else None
        self._chunk_seconds = 0.0
        self._stop: Event | None = None

    def sum_over(self, chunks: Chunks, jobs: Sequence[Job], ids: Sequence[int] | None = None) -> list[Any]:
        """For each job, the sum of job(chunk) over all chunks, or those of `ids`: one read, the same bits on any workers."""
        began = time.perf_counter()
        wanted = range(chunks.n_chunks) if ids is None else ids
        if self.client is None:
            keep_freed_memory()
        level = shard_level(len(wanted), self.workers, self._chunk_seconds)
        stop = self._new_stop()
        ahead = self._ahead and chunks.chunk_bytes() >= WORTH_BYTES
        source = delayed(_same, pure=False)(_Opaque(_Reading(chunks, ahead, self._kept)))
        shared_jobs = delayed(_same, pure=False)(_Opaque(list(jobs)))
        parts = [
            delayed(_sum_shard, pure=False)(source, shared_jobs, _Opaque(wanted[run.start : run.stop]), stop)
            for run in shards(len(wanted), level)
        ]
        total = self._compute(tree_sum(parts, delayed(_add_lists, pure=False)))
        self._chunk_seconds = (time.perf_counter() - began) * self.workers / len(wanted)
        return total

    def map_in_order(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """function(*a) for each a, in order, a bounded number of results at a time."""
        waiting = iter(arguments)
        while wave := list(islice(waiting, 2 * self.workers)):
            shared, stop = delayed(_same, pure=False)(_Opaque(function)), self._new_stop()
            yield from self._compute(delayed(list)([delayed(_call, pure=False)(shared, a, stop) for a in wave]))

    def _new_stop(self) -> _Opaque:
        """How tasks learn that nobody waits for them any more: an event for threads, None for other processes."""
        self._stop = None if self.client is not None else Event()
        return _Opaque(self._stop)

    def _compute(self, root: Any) -> Any:
        if self.client is not None:
            future = self.client.compute(root, retries=3)
            try:
                return future.result()
            finally:
                future.release()
        try:
            return dask.compute(root, scheduler="threads", num_workers=self.workers)[0]
        except BaseException:
            if self._stop is not None:
                self._stop.set()  # or Ctrl-C would wait for whole shards
            raise


class _Opaque:
    """A value that Dask neither looks into nor copies into each task."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _same(opaque: _Opaque) -> _Opaque:
    return opaque


class _Reading(NamedTuple):
    """How a shard gets its chunks."""

    chunks: Chunks
    ahead: bool
    kept: Kept | None

    def load(self, i: int) -> Chunk:
        """Chunk i, read or kept."""
        return self.chunks.load(i) if self.kept is None else self.kept.load(self.chunks, i)


def _sum_shard(source: _Opaque, jobs: _Opaque, ids: _Opaque, ended: _Opaque) -> list[Any]:
    chunks = in_turn(source.value.load, ids.value, source.value.ahead)
    return tree_sum((_on_chunk(chunk, jobs.value, ended.value) for chunk in chunks), _add_in_place)


def _on_chunk(chunk: Chunk, jobs: list[Job], ended: Event | None) -> list[Any]:
    _begin(ended)
    return [job(chunk) for job in jobs]


def _call(function: _Opaque, arguments: tuple[Any, ...], ended: _Opaque) -> Any:
    _begin(ended.value)
    return function.value(*arguments)


def _begin(ended: Event | None) -> None:
    if ended is None:
        _settle()
    elif ended.is_set():
        raise Stopped("the job has ended; nobody waits for this")


def _add_lists(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _add_in_place(a: list[Any], b: list[Any]) -> list[Any]:
    """The same where nobody else holds `a`: between tasks Dask does, and may hand it to a task that it repeats."""
    for i, y in enumerate(b):
        a[i] += y
    return a


@cache
def _settle() -> None:
    """In a worker process, for good: a limit that each task set and restored would race with its neighbours."""
    from threadpoolctl import threadpool_limits

    keep_freed_memory()

    threadpool_limits(1)
