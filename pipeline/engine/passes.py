"""Passes over chunks on Dask: the only graph code.

A task is a shard: it reads its chunks one by one, the next while one computes, calls every function with each (so one read
serves all restarts and candidates), and sums the results along the canonical tree, in place. A few tasks more sum
the shards. What all tasks need (chunks, functions, kernels) is the result of one small task, not an argument of each.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import dask
from dask._task_spec import TaskRef
from dask.callbacks import Callback
from dask.threaded import get as threads  # by its name Dask would import distributed to look for a client
from dask.typing import Key

from pipeline.arrays.rows import Rows
from pipeline.config import EngineSection
from pipeline.data.chunks import Chunks
from pipeline.engine.blas import single_thread
from pipeline.engine.reading import ChunkCache, in_turn, worth_ahead
from pipeline.engine.stored_sums import MOST_STORED, FinishedSums, SumStore, total
from pipeline.engine.tree import Span, below, shard_level, sum_of, tree_sum, uncovered
from pipeline.errors import InputError, PipelineError, Stopped, StorageError
from pipeline.kernels.base import Kernels
from pipeline.kernels.cpu import KERNELS
from pipeline.logs import get_logger

if TYPE_CHECKING:
    from pipeline.engine.waiting import Cluster

Graph = dict[Key, Any]  # tasks
ChunkFunction = Callable[[Rows, Kernels], Any]  # what it returns for two chunks adds
ADDED_BYTES, MOST_LEVELS = 2**26, 4  # of the sums that one task adds, and levels of the tree that it sums
SLOWEST = 8e6  # bytes of rows a second that one core processes in costly passes: for the first pass, not timed yet
OURS = "em-"  # what the keys of our tasks begin with, on a scheduler that others may use too

_log = get_logger("engine")


class Engine:
    """Runs passes: on threads of this process, or on a Dask cluster.

    Parameters
    ----------
    cluster : Cluster or None
        None for threads of this process.
    workers : int
        Tasks at a time.
    ahead : bool
        Whether a task reads its next chunk while it computes.
    cache_bytes : int
        Bytes of decoded chunks that stay in memory between passes (threads only).
    check : callable or None
        Called in a worker process before each of its tasks; raises if the worker would compute other bits.
    kernels : Kernels
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        workers: int = 1,
        ahead: bool = True,
        cache_bytes: int = 0,
        check: Callable[[], None] | None = None,
        kernels: Kernels = KERNELS,
    ) -> None:
        self.cluster = cluster
        self.workers = workers
        self.kernels = kernels
        self._ahead = ahead
        self._cache = ChunkCache(cache_bytes) if cache_bytes else None
        self._check = check
        self._seconds: dict[tuple[type, ...], float] = {}  # of a chunk, by the types of the functions
        self._bytes: dict[tuple[type, ...], int] = {}  # of what they return
        self._stop: Event | None = None
        self._seen: Any = None

    def report_to(self, log: Callable[..., None]) -> None:
        """Log what happens to the workers of a cluster. log : called with the name of an event and its fields."""
        if self.cluster is not None:
            self.cluster.log = log

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard; None without one."""
        return None if self.cluster is None else self.cluster.dashboard

    def sum_over(
        self,
        chunks: Chunks,
        functions: Sequence[ChunkFunction],
        ids: Sequence[int] | None = None,
        store: SumStore | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Any]:
        """Make one pass: for each function, sum function(chunk) over chunks.

        Parameters
        ----------
        chunks : Chunks
        functions : sequence of callable
            Each is called with every chunk.
        ids : sequence of int, or None
            The chunks to read; None for all.
        store : SumStore or None
            Stores sums of finished subtrees of a long pass; those that it has are not computed again.
        progress : callable
            Called from time to time in a pass that has a store: chunks done, and of how many.

        Returns
        -------
        list
            The sums, in the order of the functions: the same bits on any workers.

        Raises
        ------
        ClusterLost
            If the scheduler or all workers are gone.
        """
        began = time.perf_counter()
        wanted, blocks = range(chunks.n_chunks) if ids is None else ids, chunks.source.blocks()
        ahead = self._ahead and worth_ahead(chunks)
        work = _Pass(chunks, list(functions), self.kernels, ahead, self._cache)
        if self.cluster is None:
            if len(wanted) == 1 and blocks is None and store is None:  # a graph would take longer than a few rows
                return on_chunk(work.load(wanted[0]), work.functions, work.kernels)
        elif chunks.source is not self._seen:
            if blocks is None:
                _refuse_another_view(chunks, self.cluster)
            self._seen = chunks.source
        kind, whole = tuple(map(type, functions)), (0, len(wanted))
        seconds = self._seconds.get(kind, chunks.chunk_bytes / SLOWEST)
        width = (
            1 if blocks is not None else 1 << shard_level(len(wanted), self.workers, seconds, self._bytes.get(kind, 0))
        )
        grain = len(wanted) if store is None else max(1, 2 * len(wanted) // MOST_STORED)
        stored = set() if store is None else store.spans()
        levels = min(MOST_LEVELS, max(1, (ADDED_BYTES // self._bytes.get(kind, ADDED_BYTES)).bit_length() - 1))
        in_place = self.cluster is None and store is None  # or Dask, or the store, may need the parts again
        tasks = _Tasks(self._shared(work), wanted, blocks, self._new_stop(), width, grain, levels, in_place)
        roots = [tasks.subtree(span) for span in uncovered(whole, stored)]
        _log.debug("pass: %d chunks, %d tasks, %s", len(wanted), len(tasks.names), [one.__name__ for one in kind])
        before = sum(stop - start for start, stop in stored)
        finished = None
        if store is not None:
            finished = FinishedSums(store, tasks.spans, lambda done: progress(before + done, len(wanted)))
        with closing(self._compute(tasks.graph, roots, tasks.names, finished)) as found:
            value = total(whole, stored, store, lambda span: next(found), _add_lists)
        if store is not None and finished is not None and (stored or finished.is_long):
            store.write(whole, value)  # the job may end before this pass and the next ones are in a checkpoint
        took = time.perf_counter() - began
        if not stored:
            self._seconds[kind] = took * self.workers / len(wanted)
        if self.cluster is not None and kind not in self._bytes:
            self._bytes[kind] = self.cluster.sent_bytes(value)
        _log.debug("pass: took %.3f s", took)
        return list(value)

    def map_in_order(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield function(*a, kernels) for each a, in order, with a bounded number of results in memory."""
        remaining = iter(arguments)
        while wave := list(islice(remaining, 2 * self.workers)):
            graph, stop, token = self._shared((function, self.kernels)), self._new_stop(), uuid4().hex
            names: dict[Key, str] = {
                (f"{OURS}call-{token}", i): f"{type(function).__name__}{a}" for i, a in enumerate(wave)
            }
            [shared] = graph
            graph.update({key: (_call, shared, _Opaque(a), stop) for key, a in zip(names, wave, strict=True)})
            yield from self._compute(graph, list(names), names)

    def _shared(self, value: Any) -> Graph:
        """One small task whose result all others use, with the check of a worker before its first task."""
        return {f"{OURS}shared-{uuid4().hex}": (_same, _Opaque(value, self._check))}

    def _new_stop(self) -> _Opaque:
        """An event that tells threads that their results are no longer wanted; None for other processes."""
        self._stop = None if self.cluster is not None else Event()
        return _Opaque(self._stop)

    def _compute(
        self,
        graph: Graph,
        roots: list[Key],
        names: Mapping[Key, str],
        finished: FinishedSums | None = None,
    ) -> Generator[Any]:
        """Yield the values of tasks of a graph, in order. finished : records finished tasks."""
        if self.cluster is not None:
            return self.cluster.compute(graph, roots, names, finished)
        return self._on_threads(graph, roots, finished)

    def _on_threads(self, graph: Graph, roots: list[Key], finished: FinishedSums | None) -> Generator[Any]:
        def record(key: Key, value: Any, *_: Any) -> None:
            if finished is not None:
                finished.add(key, value)
                finished.update(_itself)

        try:
            with Callback(posttask=record) if finished is not None else nullcontext():
                values = threads(graph, roots, num_workers=self.workers)
        except BaseException:
            if self._stop is not None:
                self._stop.set()  # or Ctrl-C would wait for whole shards
            if finished is not None:
                with suppress(StorageError):  # the error that is being raised says more
                    finished.store_if_long(_itself)
            raise
        yield from values


class _Pass(NamedTuple):
    """What all tasks of a pass need."""

    chunks: Chunks
    functions: list[ChunkFunction]
    kernels: Kernels
    ahead: bool
    cache: ChunkCache | None

    def load(self, i: int) -> Rows:
        """Return chunk i, read or cached."""
        return self.chunks.load(i) if self.cache is None else self.cache.load(self.chunks, i)


class _Tasks:
    """The graph of a pass: shards, and sums of two subtrees.

    Parameters
    ----------
    shared : dict
        The one task that returns the `_Pass`.
    ids : sequence of int
        Chunks.
    blocks : sequence of delayeds, or None
        Of a Dask array, one for each chunk.
    stop : _Opaque
    width : int
        Chunks of a shard.
    grain : int
        Chunks of the smallest subtree that may be stored.
    levels : int
        Of the tree, that a task sums: 2^levels sums are in its worker's memory. Above the grain always 1.
    in_place : bool
        Whether sums of subtrees are needed once: they are added in place.

    Attributes
    ----------
    graph : dict
        Tasks by key, as Dask's specification of graphs has them: making delayeds took most of the driver's time.
    spans : dict
        Ranges of the subtrees that may be stored, by key.
    names : dict
        Names of shards for messages, by key.
    """

    def __init__(
        self,
        shared: Graph,
        ids: Sequence[int],
        blocks: Sequence[Any] | None,
        stop: _Opaque,
        width: int,
        grain: int,
        levels: int,
        in_place: bool,
    ) -> None:
        [self._work], self._add = shared, _add_in_place if in_place else _add_lists
        self._ids, self._blocks, self._stop = ids, blocks, stop
        self._width, self._grain, self._levels, self._token = width, grain, levels, uuid4().hex
        of_blocks = {id(block.dask): block.dask for block in blocks or ()}  # blocks of one array share their graph
        self.graph: Graph = dict(ChainMap(shared, *of_blocks.values()))
        self.spans: dict[Key, Span] = {}
        self.names: dict[Key, str] = {}

    def subtree(self, span: Span) -> Key:
        """Add the task that sums a subtree, and those that it needs; return its key."""
        start, stop = span
        if stop - start <= self._width:
            ids, key = self._ids[start:stop], (f"{OURS}shard-{self._token}", start, stop)
            self.names[key] = f"chunk {ids[0]}" if len(ids) == 1 else f"chunks {ids[0]} to {ids[-1]}"
            # A persisted block is on the cluster and not in the graph, where its bare key would be taken for a tuple.
            block = None if self._blocks is None else TaskRef(self._blocks[ids[0]].key)
            self.graph[key] = (_sum_shard, self._work, _Opaque(ids), self._stop, block)
        else:
            inner = below(span, self._width, self._levels if stop - start <= self._grain else 1)
            key = (f"{OURS}add-{self._token}", start, stop)
            self.graph[key] = (_add_parts, _Opaque((span, inner, self._add)), *map(self.subtree, inner))
        if stop - start >= self._grain:
            self.spans[key] = span
        return key


class _Opaque:
    """A value that Dask neither inspects nor copies into each task. check : called by tasks before they use it."""

    def __init__(self, value: Any, check: Callable[[], None] | None = None) -> None:
        self.value = value
        self.check = check


def _same(opaque: _Opaque) -> _Opaque:
    return opaque


def on_chunk(chunk: Rows, functions: Iterable[ChunkFunction], kernels: Kernels) -> list[Any]:
    """Return what each function returns for a chunk."""
    return [function(chunk, kernels) for function in functions]


def _sum_shard(shared: _Opaque, ids: _Opaque, ended: _Opaque, block: Any = None) -> list[Any]:
    """Sums over the chunks `ids`. block : the rows of the only one; None to read them."""
    work: _Pass = shared.value

    def results() -> Iterator[list[Any]]:
        one = [] if block is None else [work.chunks.prepared(ids.value[0], block)]
        for chunk in one or in_turn(work.load, ids.value, work.ahead):
            _refuse_unwanted(ended.value)
            yield on_chunk(chunk, work.functions, work.kernels)

    with _in_task(shared, ended):
        return tree_sum(results(), _add_in_place)


def _call(shared: _Opaque, arguments: _Opaque, ended: _Opaque) -> Any:
    with _in_task(shared, ended):
        _refuse_unwanted(ended.value)
        function, kernels = shared.value
        return function(*arguments.value, kernels)


@contextmanager
def _in_task(shared: _Opaque, ended: _Opaque) -> Iterator[None]:
    """Context of a task: one BLAS thread, in a process that computes the same bits as the others."""
    if ended.value is None and shared.check is not None:
        shared.check()
    with single_thread():
        yield


def _refuse_unwanted(ended: Event | None) -> None:
    """Raise Stopped if the result of this task is no longer wanted."""
    if ended is not None:
        wanted = not ended.is_set()
    else:
        from pipeline.engine.waiting import still_wanted  # on workers only: threads do not need distributed

        wanted = still_wanted()
    if not wanted:
        raise Stopped("the job has ended; this result is no longer wanted")


def _add_lists(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _add_parts(spans: _Opaque, *parts: list[Any]) -> list[Any]:
    """The sum of a subtree from those of subtrees below it. spans : of the sum, and of each part, and how two are added."""
    whole, inner, add = spans.value
    return sum_of(whole, dict(zip(inner, parts, strict=True)), add)


def _add_in_place(a: list[Any], b: list[Any]) -> list[Any]:
    """Add to the first list. Where Dask may pass it to a task that it repeats, only within a task."""
    for i, y in enumerate(b):
        a[i] += y
    return a


def _refuse_another_view(chunks: Chunks, cluster: Cluster) -> None:
    """Raise InputError if a worker cannot read the input, or reads other data than this process."""
    advice = "Workers must see the input where this process does: mount the same storage, or give a path that all have."
    mine = chunks.digest(0)
    for address, (seen, theirs) in cluster.on_workers(_first_chunk, chunks).items():
        if theirs != mine:
            found = "sees other data" if seen else f"does not see the input ({theirs})"
            raise InputError(f"worker {address}: {found}, expected the first chunk that this process reads. {advice}")


def _first_chunk(chunks: Chunks) -> tuple[bool, str]:
    """Whether this process reads the first chunk, and its checksum or the error."""
    try:
        return True, chunks.digest(0)
    except (PipelineError, OSError) as error:
        return False, str(error)


def _itself(value: Any) -> Any:
    return value


def unused_address(config: EngineSection) -> str | None:
    """Return what to say of an address in Dask's own settings (DASK_SCHEDULER_ADDRESS), None where there is none."""
    found = dask.config.get("scheduler-address", None)
    if not found or config.scheduler_address or config.scheduler_file or config.scheduler != "threads":
        return None
    return (
        f"Dask's settings name a scheduler (scheduler-address: {found}), which is not used: this job runs on threads. To use it, add "
        f"--scheduler-address {found}"
    )
