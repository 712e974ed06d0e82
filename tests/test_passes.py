"""Passes on a cluster inside this process: what tasks raise, who is refused, what is left, and what is stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from pipeline.data.chunks import Chunks
from pipeline.engine import memory_rows, passes, stored_sums
from pipeline.engine.identity import identity, refuse_this_worker
from pipeline.engine.passes import Engine
from pipeline.engine.tree import contains, tree_sum
from pipeline.engine.waiting import Cluster
from pipeline.errors import ClusterLost, InputError, Stopped, StorageError
from pipeline.kernels.cpu import KERNELS, CpuKernels
from tests.laws.common import ArraySource

pytestmark = pytest.mark.full

N = 40


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers of one thread each, without sockets."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options, silence_logs=50) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def engine(client) -> Engine:
    """A new engine on it."""
    return Engine(Cluster(client), workers=2)


def one_row_chunks() -> Chunks:
    """N chunks of one row."""
    return Chunks(ArraySource(np.zeros((N, 1)), np.arange(N + 1)))


VALUES = np.random.default_rng(0).normal(size=N) * 10.0 ** np.random.default_rng(1).uniform(-8, 8, N)
SEEN: list[int] = []  # jobs are copied to workers, of this same process: what they share stands here
GATE = threading.Event()


def value(rows: Any, kernels: Any) -> Any:
    """One number a chunk, whose sum depends on its order."""
    SEEN.append(rows.start)
    return np.array(VALUES[rows.start])


def refusing(error: type[Exception], rows: Any, kernels: Any) -> Any:
    """Fails on row 3."""
    if rows.start == 3:
        SEEN.append(3)
        raise error("row 3 is not right")
    return np.zeros(1)


def slow_later(rows: Any, kernels: Any) -> Any:
    """Once half of the chunks have been seen, the others wait for the gate."""
    if len(SEEN) >= N // 2:
        GATE.wait(20)
    return value(rows, kernels)


def slow(rows: Any, kernels: Any) -> Any:
    """A little."""
    time.sleep(0.02)
    return value(rows, kernels)


def square(i: int, kernels: Any) -> int:
    """As a task of `map_in_order`."""
    return i * i


def stuck(rows: Any, kernels: Any) -> Any:
    """Waits for the gate."""
    GATE.wait(20)
    return np.zeros(1)


@pytest.fixture(autouse=True)
def _nothing_shared() -> Iterator[None]:
    SEEN.clear()
    GATE.clear()
    yield
    GATE.set()


def tasks_left(client: Any) -> int:
    """What the scheduler knows once all is settled."""
    for _ in range(100):
        left = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if not left:
            return 0
        time.sleep(0.05)
    return int(left)


def test_sums_are_those_of_the_tree_and_nothing_is_left(client, engine):
    """The same bits as in this thread, results in order, and no task or future left on the scheduler."""
    for _ in range(3):
        assert engine.sum_over(one_row_chunks(), [value]) == [tree_sum(list(VALUES), np.add)]
    assert list(engine.map_in_order(square, ((i,) for i in range(10)))) == [i * i for i in range(10)]
    assert tasks_left(client) == 0 and not client.futures


def test_the_kernels_of_an_engine_reach_every_chunk(client, monkeypatch):
    """On threads, on workers, and for rows in memory: each call with a chunk is given the one object."""
    mine, seen = CpuKernels(), []

    def recording(chunk: Any, functions: Any, kernels: Any) -> list[Any]:
        seen.append(kernels)
        return [function(chunk, kernels) for function in functions]

    monkeypatch.setattr(passes, "on_chunk", recording)
    monkeypatch.setattr(memory_rows, "on_chunk", recording)
    Engine(workers=2, kernels=mine).sum_over(one_row_chunks(), [value])
    Engine(workers=2, kernels=mine).sum_over(one_row_chunks(), [value], [3])
    with ThreadPoolExecutor(2) as threads:
        rows = memory_rows.MemoryRows(np.zeros((2 * memory_rows.BLOCK_ROWS, 1)), None, threads, kernels=mine)
        rows.head(memory_rows.BLOCK_ROWS + 1).sum_over([lambda rows, kernels: rows.x.sum()])
    assert len(seen) == N + 1 + 2 and all(kernels is mine for kernels in seen)
    seen.clear()
    Engine(Cluster(client), workers=2, kernels=mine).sum_over(one_row_chunks(), [value])
    assert len(seen) == N and {id(kernels) for kernels in seen} <= {id(mine), id(KERNELS)}  # sent, or not


@pytest.mark.parametrize("error", [InputError, StorageError, ValueError, OSError])
def test_what_a_task_raises_is_raised_at_once(client, engine, error):
    """Another worker would find the same: the chunk is met once, and the error is the one that was raised."""
    with pytest.raises(error, match="row 3 is not right"):
        engine.sum_over(one_row_chunks(), [partial(refusing, error)])
    assert SEEN == [3]
    assert tasks_left(client) == 0


def test_a_worker_unlike_the_driver_is_refused_when_it_takes_a_task(client):
    """One that joins later is looked at as well: versions and kernels are compared in the worker, before it computes."""
    mine = identity(KERNELS)
    late = partial(refuse_this_worker, mine._replace(kernels=(*mine.kernels, "openblas Prescott")), KERNELS)
    SEEN.clear()
    with pytest.raises(InputError, match="export OPENBLAS_CORETYPE"):
        Engine(Cluster(client), workers=2, check=late).sum_over(one_row_chunks(), [value])
    assert SEEN == []
    like = partial(refuse_this_worker, mine, KERNELS)
    assert Engine(Cluster(client), workers=2, check=like).sum_over(one_row_chunks(), [value])


@pytest.mark.parametrize(
    ("found", "said"), [((True, "0" * 64), "sees other data"), ((False, "gone"), r"does not see the input \(gone\)")]
)
def test_workers_must_see_the_input(engine, monkeypatch, found, said):
    """Before the first pass: a worker that reads nothing, or something else under the same path, is refused."""
    monkeypatch.setattr(passes, "_first_chunk", partial(_found, found))
    SEEN.clear()
    with pytest.raises(InputError, match=rf"{said}.*mount the same storage"):
        engine.sum_over(one_row_chunks(), [value])
    assert SEEN == []


def _found(what: Any, chunks: Chunks) -> Any:
    return what


def test_waiting_ends_with_an_exception_and_what_is_finished_is_stored(client, engine, monkeypatch):
    """As a signal handler's would: within a second or two, with the finished subtrees stored and nothing left running."""
    monkeypatch.setattr(stored_sums, "STORE_SECONDS", 0.0)

    class Store:
        sums: dict[Any, Any] = {}

        def spans(self) -> set[Any]:
            return set(self.sums)

        def read(self, span: Any) -> Any:
            return self.sums[span]

        def write(self, span: Any, value: Any) -> None:
            Store.sums = {s: v for s, v in self.sums.items() if not contains(span, s)} | {span: value}

    record = Cluster._record
    began = time.monotonic()

    def interrupted(*arguments: Any) -> None:
        record(engine.cluster, *arguments)
        if time.monotonic() - began > 2:
            raise Stopped("asked to stop")

    monkeypatch.setattr(engine.cluster, "_record", interrupted)
    with pytest.raises(Stopped):
        engine.sum_over(one_row_chunks(), [slow_later], store=Store())
    assert time.monotonic() - began < 8
    GATE.set()
    assert tasks_left(client) == 0
    done = sum(stop - first for first, stop in Store.sums)
    assert N // 4 <= done <= N // 2
    SEEN.clear()
    again = Engine(workers=3).sum_over(one_row_chunks(), [value], store=Store())
    assert again == [tree_sum(list(VALUES), np.add)] and len(SEEN) == N - done


def test_a_pass_in_which_nothing_ends_is_given_up(client, engine, monkeypatch):
    """No task ends: exit 4 with what is running, not a wait for ever."""
    from pipeline.engine import waiting

    monkeypatch.setattr(waiting, "CHECK", 0.2)
    monkeypatch.setattr(waiting, "STUCK", 1.0)
    with pytest.raises(ClusterLost, match="no task ended in 1 s"):
        engine.sum_over(one_row_chunks(), [stuck])
    GATE.set()
    assert tasks_left(client) == 0


def test_a_cluster_that_loses_what_it_was_given_is_given_it_again(client, engine):
    """Futures cancelled by somebody else: the pass is submitted once more, to the same bits."""
    cancelled: list[int] = []

    def cancel() -> None:
        while not client.futures:
            time.sleep(0.01)
        from distributed import Future

        futures = [Future(key, client) for key in list(client.futures)]
        cancelled.append(len(futures))
        client.cancel(futures, force=True)

    other = threading.Thread(target=cancel)
    other.start()
    assert engine.sum_over(one_row_chunks(), [slow]) == [tree_sum(list(VALUES), np.add)]
    other.join()
    assert cancelled == [1]
