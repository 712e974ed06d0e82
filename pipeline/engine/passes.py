"""Passes over the chunks on Dask: the only graph code.

A task is a shard, not a chunk: it streams its chunks one by one, the next read while one computes, gives each to every
job (so one read feeds all restarts) and sums what they return along the canonical tree, in place. What is above the shards
is summed by a few tasks more. Jobs reach the tasks as the result of one small task, never as an argument of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from functools import cache
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import dask
from dask.callbacks import Callback
from dask.delayed import delayed

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.engine.frontier import STORED, Frontier, Keep, total
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.reading import WORTH_BYTES, Kept, in_turn
from pipeline.engine.tree import Span, halves, shard_level, tree_sum, uncovered
from pipeline.errors import InputError, PipelineError, Stopped, StorageError
from pipeline.kernels.cpu import KERNELS

if TYPE_CHECKING:
    from pipeline.engine.waiting import Cluster

Job = Callable[[Rows, Any], Any]
SLOWEST = 8e6  # bytes of rows a second that a core gets through in costly jobs: for shards before one is timed


class Engine:
    """Threads of this process (cluster None), or a Dask cluster."""

    def __init__(
        self,
        cluster: Cluster | None = None,
        workers: int = 1,
        ahead: bool = True,
        keep: int = 0,
        same: Callable[[], None] | None = None,
    ) -> None:
        """ahead : read the next chunk while one computes.  keep : bytes of decoded chunks kept between passes (threads).
        same : raises where it is called in a worker that would compute other bits than this process.
        """
        self.cluster = cluster
        self.workers = workers
        self._ahead = ahead
        self._kept = Kept(keep) if keep else None
        self._same = same
        self._seconds: dict[tuple[type, ...], float] = {}  # of a chunk, by what was done with it
        self._stop: Event | None = None
        self._seen: Any = None

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard, where there is one."""
        return None if self.cluster is None else self.cluster.dashboard

    def sum_over(
        self,
        chunks: Chunks,
        jobs: Sequence[Job],
        ids: Sequence[int] | None = None,
        keep: Keep | None = None,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Any]:
        """For each job, the sum of job(chunk) over all chunks, or those of `ids`: one read, the same bits on any workers.

        keep : where what is finished of a long pass is stored, and taken from when the same pass is done again.
        tell : told now and then in a pass that is kept: chunks done, and of how many.
        """
        began = time.perf_counter()
        wanted, blocks = range(chunks.n_chunks) if ids is None else ids, chunks.source.blocks()
        reading = _Reading(chunks, self._ahead and chunks.chunk_bytes() >= WORTH_BYTES, self._kept)
        if self.cluster is None:
            keep_freed_memory()
            if len(wanted) == 1 and blocks is None and keep is None:  # a graph would take longer than a few rows
                return _on_chunk(reading.load(wanted[0]), list(jobs), Event())
        elif chunks.source is not self._seen:
            if blocks is None:
                _refuse_another_view(chunks, self.cluster)
            self._seen = chunks.source
        kind, whole = tuple(map(type, jobs)), (0, len(wanted))
        seconds = self._seconds.get(kind, chunks.chunk_bytes() / SLOWEST)
        known = set() if keep is None else keep.spans()
        tasks = _Tasks(
            self._shared(reading),
            self._shared(list(jobs)),
            wanted,
            blocks,
            self._new_stop(),
            1 if blocks is not None else 1 << shard_level(len(wanted), self.workers, seconds),
            len(wanted) if keep is None else max(1, 2 * len(wanted) // STORED),
        )
        roots = [tasks.subtree(span) for span in uncovered(whole, known)]
        before = sum(stop - start for start, stop in known)
        frontier = None if keep is None else Frontier(keep, tasks.spans, lambda done: tell(before + done, len(wanted)))
        with closing(self._compute(roots, tasks.names, frontier, tasks.held)) as found:
            value = total(whole, known, keep, lambda span: next(found), _add_lists)
        if keep is not None and frontier is not None and (known or frontier.is_long):
            keep.write(whole, value)  # the next passes may not live to be in a checkpoint with this one
        if not known:
            self._seconds[kind] = (time.perf_counter() - began) * self.workers / len(wanted)
        return list(value)

    def map_in_order(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """function(*a) for each a, in order, a bounded number of results at a time."""
        waiting = iter(arguments)
        while wave := list(islice(waiting, 2 * self.workers)):
            shared, stop, token = self._shared(function), self._new_stop(), uuid4().hex
            names: dict[Hashable, str] = {
                (f"call-{token}", i): f"{type(function).__name__}{a}" for i, a in enumerate(wave)
            }
            calls = [delayed(_call)(shared, a, stop, dask_key_name=key) for key, a in zip(names, wave, strict=True)]
            yield from self._compute(calls, names)

    def _shared(self, value: Any) -> Any:
        """One small task that all others get a value from, with what a worker checks before it uses it."""
        return delayed(_same, pure=False)(_Opaque(value, self._same))

    def _new_stop(self) -> _Opaque:
        """How tasks learn that nobody waits for them any more: an event for threads, None for other processes."""
        self._stop = None if self.cluster is not None else Event()
        return _Opaque(self._stop)

    def _compute(
        self, roots: list[Any], names: dict[Hashable, str], frontier: Frontier | None = None, others: Sequence[Any] = ()
    ) -> Generator[Any]:
        """The values of delayeds, in order. frontier : told of the tasks that finish; others : those it waits for."""
        if self.cluster is not None:
            return self.cluster.compute(roots, names, others, frontier)
        return self._on_threads(roots, frontier)

    def _on_threads(self, roots: list[Any], frontier: Frontier | None) -> Generator[Any]:
        def tell(key: Hashable, value: Any, *_: Any) -> None:
            if frontier is not None:
                frontier.finished(key, value)
                frontier.now_and_then(_itself)

        try:
            with Callback(posttask=tell) if frontier is not None else nullcontext():
                values = dask.compute(*roots, scheduler="threads", num_workers=self.workers)
        except BaseException:
            if self._stop is not None:
                self._stop.set()  # or Ctrl-C would wait for whole shards
            if frontier is not None:
                with suppress(StorageError):  # what is under way here says more
                    frontier.store_at_the_end(_itself)
            raise
        yield from values


class _Tasks:
    """The tasks of one pass: shards, and sums of two subtrees.

    blocks : of a Dask array, one for each chunk.  width : chunks of a shard.  grain : of the smallest subtree that is held.
    held : tasks of subtrees that may be stored, and spans, what they are sums of, by key.  names : of shards, by key.
    """

    def __init__(
        self,
        reading: Any,
        jobs: Any,
        ids: Sequence[int],
        blocks: Sequence[Any] | None,
        stop: _Opaque,
        width: int,
        grain: int,
    ) -> None:
        self._reading, self._jobs, self._ids, self._blocks, self._stop = reading, jobs, ids, blocks, stop
        self._width, self._grain, self._token = width, grain, uuid4().hex
        self.held: list[Any] = []
        self.spans: dict[Hashable, Span] = {}
        self.names: dict[Hashable, str] = {}

    def subtree(self, span: Span) -> Any:
        """The sum over a subtree."""
        start, stop = span
        if stop - start <= self._width:
            ids, key = self._ids[start:stop], (f"shard-{self._token}", start, stop)
            self.names[key] = f"chunk {ids[0]}" if len(ids) == 1 else f"chunks {ids[0]} to {ids[-1]}"
            block = None if self._blocks is None else self._blocks[ids[0]]
            task = delayed(_sum_shard)(self._reading, self._jobs, _Opaque(ids), self._stop, block, dask_key_name=key)
        else:
            parts = [self.subtree(half) for half in halves(span)]
            task = delayed(_add_lists)(*parts, dask_key_name=(f"add-{self._token}", start, stop))
        if stop - start >= self._grain:
            self.held.append(task)
            self.spans[task.key] = span
        return task


class _Opaque:
    """A value that Dask neither looks into nor copies into each task."""

    def __init__(self, value: Any, check: Callable[[], None] | None = None) -> None:
        """check : called by each task before it uses the value."""
        self.value = value
        self.check = check


def _same(opaque: _Opaque) -> _Opaque:
    return opaque


class _Reading(NamedTuple):
    """How a shard gets its chunks."""

    chunks: Chunks
    ahead: bool
    kept: Kept | None

    def load(self, i: int) -> Rows:
        """Chunk i, read or kept."""
        return self.chunks.load(i) if self.kept is None else self.kept.load(self.chunks, i)


def _sum_shard(source: _Opaque, jobs: _Opaque, ids: _Opaque, ended: _Opaque, block: Any = None) -> list[Any]:
    """block : the rows of the one chunk of `ids`; None to read them."""
    _settle(source, ended)
    if block is not None:
        return _on_chunk(source.value.chunks.prepared(ids.value[0], block), jobs.value, ended.value)
    chunks = in_turn(source.value.load, ids.value, source.value.ahead)
    return tree_sum((_on_chunk(chunk, jobs.value, ended.value) for chunk in chunks), _add_in_place)


def _on_chunk(chunk: Rows, jobs: list[Job], ended: Event | None) -> list[Any]:
    _refuse_unwanted(ended)
    return [job(chunk, KERNELS) for job in jobs]


def _call(function: _Opaque, arguments: tuple[Any, ...], ended: _Opaque) -> Any:
    _settle(function, ended)
    _refuse_unwanted(ended.value)
    return function.value(*arguments, KERNELS)


def _refuse_unwanted(ended: Event | None) -> None:
    """Raise Stopped where nobody waits for this task any more."""
    if ended is not None:
        wanted = not ended.is_set()
    else:
        from pipeline.engine.waiting import still_wanted  # on workers alone: threads need nothing of distributed

        wanted = still_wanted()
    if not wanted:
        raise Stopped("the job has ended; nobody waits for this")


def _settle(shared: _Opaque, ended: _Opaque) -> None:
    """In a worker process: is it one of ours, whenever it came? Then one BLAS thread."""
    if ended.value is None:
        if shared.check is not None:
            shared.check()
        _one_thread()


def _add_lists(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _add_in_place(a: list[Any], b: list[Any]) -> list[Any]:
    """The same where nobody else holds `a`: between tasks Dask does, and may hand it to a task that it repeats."""
    for i, y in enumerate(b):
        a[i] += y
    return a


def _refuse_another_view(chunks: Chunks, cluster: Cluster) -> None:
    """Raise what a worker raises that does not see the input; InputError where one sees another than this process."""
    advice = "Workers must see the input where this process does: mount the same storage, or give a path that all have."
    mine = chunks.digest(0)
    for address, (seen, theirs) in cluster.on_workers(_first_chunk, chunks).items():
        if theirs != mine:
            came = "sees other data" if seen else f"does not see the input ({theirs})"
            raise InputError(f"worker {address}: {came}, expected the first chunk that this process reads. {advice}")


def _first_chunk(chunks: Chunks) -> tuple[bool, str]:
    """Whether this process reads the first chunk, and its checksum or why not."""
    try:
        return True, chunks.digest(0)
    except (PipelineError, OSError) as error:
        return False, str(error)


def _itself(value: Any) -> Any:
    return value


@cache
def _one_thread() -> None:
    """In a worker process, for good: a limit that each task set and restored would race with its neighbours."""
    from threadpoolctl import threadpool_limits

    keep_freed_memory()
    threadpool_limits(1)
