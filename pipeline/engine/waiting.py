"""Waiting for the tasks of a cluster, interruptible and with deadlines.

Dask computes again what was on a lost worker. This module detects the other reasons to wait for ever: a scheduler that
does not answer, a client that reconnected to a scheduler that has lost its tasks, a cluster without workers, frozen
workers, and tasks none of which ends.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pickle import PickleBuffer
from typing import Any, NamedTuple, TypeVar

from distributed import Client, get_worker, wait
from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError
from distributed.comm import CommClosedError
from distributed.core import Status
from distributed.protocol.pickle import dumps  # also classes of no module, which plain pickle refuses
from distributed.scheduler import KilledWorker, heartbeat_interval
from distributed.worker import thread_state

from pipeline.engine.passes import OURS, Graph
from pipeline.engine.stored_sums import FinishedSums
from pipeline.errors import ClusterLost, InputError, PipelineError, StorageError
from pipeline.logs import get_logger

T = TypeVar("T")
TICK = 0.5  # seconds in which an exception of a signal handler, or a finished task, is acted upon
CHECK = 5.0  # seconds between two questions to the scheduler
ANSWER = 24.0  # seconds in which it has to answer: with CHECK, a dead scheduler is known in 30, and a busy one has time
BACK = 15.0  # seconds in which a scheduler that closed the connection may come back
FROZEN = 30.0  # seconds without a heartbeat after which a worker counts as dead
FETCH = (
    60.0  # seconds in which a result should arrive; more than FROZEN, so that one lost with its worker is made again
)
PAUSED = 60.0  # seconds in which all workers are paused, after which they count as too small
STALE = 20.0  # seconds after which an answer says nothing of what happened until the next
STUCK = 1800.0  # seconds in which at least one task has to end
TRIES = 3  # of a computation whose futures were lost, and of fetching a result

Pending = dict[Any, Any]  # futures by key

_GONE = (FutureCancelledError, FuturesCancelledError, ClosedClientError, CommClosedError)
_ADVICE = "The last checkpoint is intact: bring the cluster up again and use `em-pipeline resume RUN` with the same engine options."
# How unpickling fails where a module, or a name in it, is not there; some schedulers send the text of an error alone.
_NOT_THERE = re.compile(r"ModuleNotFoundError|ImportError|No module named|Can't get attribute")
_log = get_logger("cluster")


class _Lost(Exception):
    """The scheduler no longer has the submitted tasks."""


class _SchedulerState(NamedTuple):
    """State of a scheduler. workers : addresses of those that are not frozen.  ended : grows with every task that ends.
    worker_ttl : seconds after which the scheduler itself considers a silent worker dead; 0 for never.  paused : those of
    the workers that take no task.  memory_limit : the least of a worker, bytes.
    """

    workers: frozenset[str]
    ended: int
    worker_ttl: float
    paused: frozenset[str]
    memory_limit: int


def refuse_without_package(where: str, error: BaseException) -> None:
    """Raise InputError if an error says that a process elsewhere has not this package, or has another version of it."""
    ours = isinstance(error, PipelineError)
    if not ours and (isinstance(error, ImportError) or _NOT_THERE.search(f"{type(error).__name__}: {error}")):
        raise InputError(
            f"{where}: cannot load what this process sends ({error}), expected the driver's packages and versions. Where it "
            f"runs: pip install em-pipeline=={version('em-pipeline')}"
        ) from error


class Cluster:
    """A Dask cluster, as passes use it.

    Parameters
    ----------
    client : distributed.Client
    patience : float
        Seconds without any worker after which the cluster counts as lost.
    """

    def __init__(self, client: Client, patience: float = 60.0) -> None:
        self.client = client
        self.patience = patience
        self.log: Callable[..., None] = lambda event, **fields: _log.warning("%s %s", event, fields)
        self._seen_workers = self._asked = time.monotonic()
        self._recorded: set[Any] = set()
        self._workers: frozenset[str] = frozenset()  # when the scheduler was last asked
        self._paused: dict[str, float] = {}  # since when, by address
        self._reported: set[str] = set()  # of the paused

    @property
    def dashboard(self) -> str | None:
        """Address of the dashboard; None without one."""
        try:
            return self.client.dashboard_link or None
        except (KeyError, AttributeError, *_GONE):
            return None

    def compute(
        self,
        graph: Graph,
        roots: Sequence[Any],
        names: Mapping[Any, str],
        finished: FinishedSums | None = None,
    ) -> Generator[Any]:
        """Yield the values of tasks of a graph, in order.

        Parameters
        ----------
        graph : dict
            Tasks by key.
        roots : sequence of keys
        names : mapping
            Names of tasks for messages, by key.
        finished : FinishedSums or None
            Records finished tasks; the futures of those that may be stored are pending until then.

        Raises
        ------
        ClusterLost
            If the scheduler or all workers are gone, or a chunk ends every worker that reads it.
        Exception
            What a task raises, at once: it would fail on another worker too.
        """
        remaining = list(roots)
        for _ in range(TRIES):
            self._seen_workers = time.monotonic()  # not looked at until now
            try:
                with self._submitted(graph, remaining, finished) as pending:
                    self._recorded.clear()
                    while remaining:
                        value = self._result(remaining, pending, names, finished)
                        remaining.pop(0)
                        yield value
                return
            except KilledWorker as error:
                what = names.get(error.task, "a task")
                raise ClusterLost(
                    f"{what}: {error.allowed_failures + 1} workers died while they worked on it, the last at "
                    f"{error.last_worker.address}; see its log (often its memory limit). {_ADVICE}"
                ) from error
            except (_Lost, *_GONE) as error:
                _log.warning("the cluster lost what was submitted (%r); submitting it again", error)
                self._wait_until_back()
        raise ClusterLost(f"the cluster lost what was submitted {TRIES} times, expected results. {_ADVICE}")

    def on_workers(self, function: Callable[..., T], *arguments: Any) -> dict[str, T]:
        """Return function(*arguments) of every worker process, by address. Raises what it raises, and ClusterLost."""
        try:
            found = self.client.sync(self.client._run, function, *arguments, on_error="return", callback_timeout=FETCH)
        except (TimeoutError, *_GONE) as error:
            raise ClusterLost(
                f"the workers were asked and did not all answer in {FETCH:g} s ({type(error).__name__}). {_ADVICE}"
            ) from error
        # Workers that died meanwhile are left out.
        answers = {at: answer for at, answer in found.items() if not isinstance(answer, (OSError, *_GONE))}
        for at, answer in answers.items():
            if isinstance(answer, BaseException):
                refuse_without_package(f"worker {at}", answer)
                raise answer
        return answers

    def sent_bytes(self, value: Any) -> int:
        """Return the bytes of a value as it is sent."""
        buffers: list[PickleBuffer] = []
        head = dumps(value, buffer_callback=buffers.append)
        return len(head) + sum(buffer.raw().nbytes for buffer in buffers)

    @contextmanager
    def _submitted(self, graph: Graph, roots: Sequence[Any], finished: FinishedSums | None) -> Iterator[Pending]:
        """Submit, and yield the futures by key. Those still pending at the end are released, which cancels their tasks."""
        keys = list(dict.fromkeys([*roots, *(() if finished is None else finished.spans)]))
        pending = dict(zip(keys, self.client.get(graph, keys, sync=False), strict=True))
        try:
            yield pending
        except (GeneratorExit, ClusterLost, _Lost, *_GONE):  # nothing to store, or no source for it
            raise
        except BaseException:
            if finished is not None:
                with suppress(ClusterLost, StorageError, *_GONE):  # the error that is being raised says more
                    finished.store_if_long(self.fetch)
            raise
        finally:
            for future in pending.values():
                future.release()

    def _result(
        self, keys: Sequence[Any], pending: Pending, names: Mapping[Any, str], finished: FinishedSums | None
    ) -> Any:
        """The value of the first of these keys, or the error of any."""
        wanted = [pending[key] for key in keys]
        moved, before = time.monotonic(), None
        while not wanted[0].done():
            with suppress(TimeoutError), self.client.as_current():
                wait(wanted[:1], timeout=TICK)
            if finished is not None:
                self._record(finished, pending, keys)
            now = time.monotonic()
            if now - self._asked < CHECK or wanted[0].done():
                continue
            failed = next((future for future in wanted if future.status == "error"), None)
            if failed is not None:
                return self.fetch(failed)
            ended = self._state().ended
            before, moved = ended, (now if ended != before else moved)
            if now - moved > STUCK:
                running = [names[key] for key, future in pending.items() if key in names and not future.done()]
                raise ClusterLost(
                    f"no task ended in {STUCK:g} s, expected at least one ({', '.join(running[:3]) or 'all'} running). "
                    f"Look at what the workers wait for, their storage first. {_ADVICE}"
                )
        return self.fetch(wanted[0])

    def _record(self, finished: FinishedSums, pending: Pending, roots: Sequence[Any]) -> None:
        """Record the tasks that finished since the last call, and release futures that are not needed any more."""
        for key, future in list(pending.items()):
            if future.status == "finished" and key not in self._recorded:
                self._recorded.add(key)
                for spare in finished.add(key, future):
                    if spare not in roots:
                        pending.pop(spare).release()
        finished.update(self.fetch)

    def fetch(self, future: Any) -> Any:
        """Return the value of a finished future, computed again if its worker is gone. Raises ClusterLost."""
        began = time.monotonic()
        while True:
            try:
                return future.result(timeout=FETCH)
            except TimeoutError:
                if future.status == "error":  # it is the task's own
                    raise
            except Exception as error:
                refuse_without_package("a worker", error)
                raise
            # A frozen worker that others use too is gone only after the scheduler's worker-ttl.
            patience = max(TRIES * FETCH, self._state().worker_ttl + FETCH)
            if time.monotonic() - began > patience:
                raise ClusterLost(f"a result did not arrive in {patience:g} s, expected it in {FETCH:g}. {_ADVICE}")

    def _state(self) -> _SchedulerState:
        """The scheduler's state; frozen workers are ended. Raises ClusterLost without a scheduler or workers."""
        if self.client.status != "running":
            raise _Lost(self.client.status)
        now = time.monotonic()
        if now - self._asked > STALE:
            self._paused.clear()  # they may have worked in between
        self._asked = now
        try:
            state: _SchedulerState = self.client.sync(
                self.client._run_on_scheduler, _look, FROZEN, callback_timeout=ANSWER
            )
        except TimeoutError as error:
            raise ClusterLost(f"the scheduler did not answer in {ANSWER:g} s. {_ADVICE}") from error
        except (OSError, AttributeError) as error:  # AttributeError: the client has closed meanwhile
            raise _Lost(repr(error)) from error
        except Exception as error:
            refuse_without_package("the scheduler", error)
            raise
        self._log_lost(state)
        self._refuse_paused(state)
        if state.workers:
            self._seen_workers = time.monotonic()
        elif time.monotonic() - self._seen_workers > self.patience:
            raise ClusterLost(f"all workers are gone, and none came back in {self.patience:g} s. {_ADVICE}")
        return state

    def _log_lost(self, state: _SchedulerState) -> None:
        """Log the workers that are gone since the scheduler was last asked: Dask computes again what they had."""
        for worker in sorted(self._workers - state.workers):
            self.log("worker_lost", worker=worker, workers=len(state.workers))
        self._workers = state.workers

    def _refuse_paused(self, state: _SchedulerState) -> None:
        """Log the workers that have been paused for long: they hold more than their limit. Raises ClusterLost if all are."""
        now = time.monotonic()
        self._paused = {worker: self._paused.get(worker, now) for worker in state.paused}
        long = {worker for worker, since in self._paused.items() if now - since > PAUSED}
        if not long:
            return
        why = (
            f"for {PAUSED:g} s: they have more in memory than their limit of {state.memory_limit / 2**20:.0f} MiB allows, and take "
            "no task. Start workers with more memory (`em-pipeline check` says what a task takes), or store the data in smaller chunks"
        )
        if long >= state.workers:
            raise ClusterLost(f"all {len(long)} workers have been paused {why}. {_ADVICE}")
        if new := long - self._reported:
            self.log(
                "warning",
                message=f"{len(long)} of {len(state.workers)} workers ({', '.join(sorted(new))}) have been paused {why}",
            )
            self._reported |= new

    def _wait_until_back(self) -> None:
        """Wait until the client has reconnected to a scheduler with workers. Raises ClusterLost."""
        self._seen_workers = began = time.monotonic()
        while True:
            if self.client.status == "running":
                with suppress(_Lost, *_GONE):
                    self._state()
                    if self._seen_workers > began:
                        return
            if self.client.status == "closed" or (self.client.status != "running" and time.monotonic() - began > BACK):
                raise ClusterLost(f"the scheduler is gone, and was not back in {BACK:g} s. {_ADVICE}")
            time.sleep(TICK)


_ending: dict[str, asyncio.Future[Any]] = {}  # in the scheduler's process: frozen workers that are being ended


async def _look(frozen: float, dask_scheduler: Any) -> _SchedulerState:
    """On the scheduler: return its state, and end frozen workers that have only our tasks.

    They are restarted (if they have a nanny) or removed, as the scheduler does after its worker-ttl, 300 s by default. Its
    settings stay as they are. A worker with tasks or data of other programs is left: it may only be busy in code that
    delays its heartbeat.
    """
    now, workers = time.time(), dask_scheduler.workers.values()
    # With many workers heartbeats are rare: every 6 s for 1000. The scheduler's own rule.
    limit = max(frozen, 10 * heartbeat_interval(len(workers)))
    silent = [worker for worker in workers if now - worker.last_seen > limit]
    ended = [
        worker.address
        for worker in silent
        if worker.address not in _ending and all(map(_is_ours, (*worker.processing, *worker.has_what)))
    ]
    if ended:
        # Beside this answer: it takes as long as a nanny takes to end a process that does not listen.
        stimulus = f"em-pipeline-frozen-{now}"
        ending = asyncio.ensure_future(
            dask_scheduler.restart_workers(ended, wait_for_workers=False, on_error="return", stimulus_id=stimulus)
        )
        _ending.update(dict.fromkeys(ended, ending))
        ending.add_done_callback(lambda done: [_ending.pop(address) for address in ended])
    tasks = sum(group.states["memory"] + group.states["released"] for group in dask_scheduler.task_groups.values())
    awake = [worker for worker in workers if worker not in silent]
    return _SchedulerState(
        frozenset(worker.address for worker in awake),
        tasks,
        float(dask_scheduler.worker_ttl or 0.0),
        frozenset(worker.address for worker in awake if worker.status == Status.paused),
        min((worker.memory_limit for worker in awake), default=0),
    )


def _is_ours(task: Any) -> bool:
    """Whether a task of a scheduler belongs to a pass."""
    name = task.key[0] if isinstance(task.key, tuple) else task.key
    return str(name).startswith(OURS)


def still_wanted() -> bool:
    """In a task: whether its result is still wanted; it is not once the driver has gone on or ended."""
    try:
        task = get_worker().state.tasks.get(thread_state.key)
    except (ValueError, AttributeError):  # not on a worker
        return True
    return task is None or task.state != "cancelled"
