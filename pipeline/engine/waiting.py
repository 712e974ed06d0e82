"""Waiting for the tasks of a cluster: interruptible, and nothing waits for ever.

Dask recomputes what was on a worker that is gone. What it leaves to wait for is noticed here: a scheduler that does not
answer, a client that connected again to a scheduler that knows nothing, a cluster without workers, workers that are
frozen, and tasks none of which ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, TypeVar

from distributed import Client, futures_of, get_worker, wait
from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from distributed.worker import thread_state

from pipeline.engine.frontier import Frontier
from pipeline.errors import ClusterLost, InputError, StorageError

T = TypeVar("T")
TICK = 0.5  # seconds in which an exception of a signal handler, or a finished task, is acted upon
CHECK = 5.0  # seconds between two questions to the scheduler
ANSWER = 24.0  # seconds that it may take to answer one: a busy one takes some; with CHECK, what is dead is known in 30
BACK = 15.0  # seconds that a scheduler which closed the connection may take to come back
FROZEN = 30.0  # seconds without a heartbeat after which a worker is taken for dead
FETCH = 60.0  # seconds that a result may take to arrive here; more than FROZEN, so that one lost with its worker is made again
STUCK = 1800.0  # seconds in which at least one task has to end
TRIES = 3  # of a computation whose futures were lost

Held = dict[Hashable, Any]  # futures by key

_GONE = (FutureCancelledError, FuturesCancelledError, ClosedClientError, CommClosedError)
_ADVICE = "The last checkpoint is intact: bring the cluster up again and use `em-pipeline resume RUN`."


class _Lost(Exception):
    """What was submitted is known to nobody any more: submit it again."""


class Cluster:
    """A client's cluster, as passes use it. patience : seconds without any worker after which it counts as lost."""

    def __init__(self, client: Client, patience: float = 60.0) -> None:
        self.client = client
        self.patience = patience
        self._seen_workers = time.monotonic()
        self._told: set[Hashable] = set()

    @property
    def dashboard(self) -> str | None:
        """Address of the dashboard; None where the scheduler has none."""
        try:
            return self.client.dashboard_link or None
        except (KeyError, AttributeError, *_GONE):
            return None

    def compute(
        self,
        roots: Sequence[Any],
        names: Mapping[Hashable, str],
        others: Sequence[Any] = (),
        frontier: Frontier | None = None,
    ) -> Generator[Any]:
        """The values of delayeds, in order. Errors of tasks are raised at once: another worker would find the same.

        names : what tasks are called in messages, by key.  others : delayeds on the way to them, whose futures are held
        for the frontier, which is told of all that finish.  Raises ClusterLost.
        """
        left = list(roots)
        for _ in range(TRIES):
            self._seen_workers = time.monotonic()  # what was before nobody has looked at
            try:
                with self._submitted(left, others, frontier) as held:
                    self._told.clear()
                    while left:
                        value = self._result([root.key for root in left], held, names, frontier)
                        left.pop(0)
                        yield value
                return
            except KilledWorker as error:
                what = names.get(error.task, "a task")
                raise ClusterLost(
                    f"{what}: {error.allowed_failures + 1} workers died while they worked on it, the last at "
                    f"{error.last_worker.address}; see its log (often its memory limit). {_ADVICE}"
                ) from error
            except (_Lost, *_GONE):
                self._wait_until_back()
        raise ClusterLost(f"the cluster lost what it was given {TRIES} times, expected results. {_ADVICE}")

    def on_workers(self, function: Callable[..., T], *arguments: Any) -> dict[str, T]:
        """function(*arguments) in every worker process there is, by address. Raises what it raises, and ClusterLost."""
        try:
            found = self.client.sync(self.client._run, function, *arguments, on_error="return", callback_timeout=FETCH)
        except (TimeoutError, *_GONE) as error:
            raise ClusterLost(
                f"the workers were asked and did not all answer in {FETCH:g} s ({type(error).__name__}). {_ADVICE}"
            ) from error
        answers = {at: answer for at, answer in found.items() if not isinstance(answer, (OSError, *_GONE))}
        for at, answer in answers.items():  # those that died meanwhile are left out
            if isinstance(answer, ImportError):
                raise InputError(
                    f"worker {at}: cannot load this package ({answer}), expected the driver's version. "
                    f"Where the worker runs: pip install em-pipeline=={version('em-pipeline')}"
                ) from answer
            if isinstance(answer, BaseException):
                raise answer
        return answers

    @contextmanager
    def _submitted(self, roots: Sequence[Any], others: Sequence[Any], frontier: Frontier | None) -> Iterator[Held]:
        """Their futures by key; what is still held at the end is released, which cancels what is under way."""
        persisted = self.client.persist(
            list({one.key: one for one in (*roots, *others)}.values()), optimize_graph=False
        )
        held = {one.key: futures_of(one)[0] for one in persisted}
        del persisted
        try:
            yield held
        except (GeneratorExit, ClusterLost, _Lost, *_GONE):  # nothing to store, or nobody to get it from
            raise
        except BaseException:
            if frontier is not None:
                with suppress(ClusterLost, StorageError, *_GONE):  # what is under way here says more
                    frontier.store_at_the_end(self.fetch)
            raise
        finally:
            for future in held.values():
                future.release()

    def _result(
        self,
        keys: Sequence[Hashable],
        held: Held,
        names: Mapping[Hashable, str],
        frontier: Frontier | None,
    ) -> Any:
        """The value of the first of these keys, or the error of any."""
        wanted = [held[key] for key in keys]
        checked = moved = time.monotonic()
        before = None
        while not wanted[0].done():
            with suppress(TimeoutError):
                wait(wanted[:1], timeout=TICK)
            if frontier is not None:
                self._tell(frontier, held, keys)
            now = time.monotonic()
            if now - checked < CHECK or wanted[0].done():
                continue
            failed = next((future for future in wanted if future.status == "error"), None)
            if failed is not None:
                return self.fetch(failed)
            state, checked = self._state(), now
            before, moved = state, (now if state != before else moved)
            if now - moved > STUCK:
                waiting = [names[key] for key, future in held.items() if key in names and not future.done()]
                raise ClusterLost(
                    f"no task ended in {STUCK:g} s, expected one at least ({', '.join(waiting[:3]) or 'all'} under way). "
                    f"Look at what the workers wait for, their storage first. {_ADVICE}"
                )
        return self.fetch(wanted[0])

    def _tell(self, frontier: Frontier, held: Held, roots: Sequence[Hashable]) -> None:
        for key, future in list(held.items()):
            if future.status == "finished" and key not in self._told:
                self._told.add(key)
                for spare in frontier.finished(key, future):
                    if spare not in roots:
                        held.pop(spare).release()
        frontier.now_and_then(self.fetch)

    def fetch(self, future: Any) -> Any:
        """The value of a finished future; made again where its worker is gone meanwhile."""
        for _ in range(TRIES):
            try:
                return future.result(timeout=FETCH)
            except TimeoutError:
                if future.status == "error":  # it is the task's own
                    raise
            self._state()
        raise ClusterLost(f"a result did not arrive in {TRIES * FETCH:g} s, expected it in {FETCH:g}. {_ADVICE}")

    def _state(self) -> Any:
        """What changes when tasks end. Raises ClusterLost without a scheduler or workers; has frozen ones removed."""
        if self.client.status != "running":
            raise _Lost
        try:
            workers, state = self.client.sync(self.client._run_on_scheduler, _look, FROZEN, callback_timeout=ANSWER)
        except TimeoutError as error:
            raise ClusterLost(f"the scheduler did not answer in {ANSWER:g} s. {_ADVICE}") from error
        except (OSError, AttributeError) as error:  # AttributeError: the client has closed meanwhile
            raise _Lost from error
        self._see(workers)
        return state

    def _see(self, workers: int) -> None:
        if workers:
            self._seen_workers = time.monotonic()
        elif time.monotonic() - self._seen_workers > self.patience:
            raise ClusterLost(f"all workers are gone, and none came back in {self.patience:g} s. {_ADVICE}")

    def _wait_until_back(self) -> None:
        """Until the client, which connects again by itself, has a scheduler with workers. Raises ClusterLost."""
        self._seen_workers = deadline = time.monotonic()
        while True:
            if self.client.status == "running":
                with suppress(_Lost, *_GONE):
                    self._state()
                    if self._seen_workers > deadline:
                        return
            if self.client.status == "closed" or (
                self.client.status != "running" and time.monotonic() - deadline > BACK
            ):
                raise ClusterLost(f"the scheduler is gone, and was not back in {BACK:g} s. {_ADVICE}")
            time.sleep(TICK)


async def _look(frozen: float, dask_scheduler: Any) -> tuple[int, int]:
    """On the scheduler: its workers that are not frozen, and a number that changes with every task that ends.

    Frozen ones are restarted or removed as it would do by itself after worker-ttl, which may be minutes.
    """
    dask_scheduler.worker_ttl = min(dask_scheduler.worker_ttl or frozen, frozen)
    now = time.time()
    live = [worker for worker in dask_scheduler.workers.values() if now - worker.last_seen <= frozen]
    if len(live) < len(dask_scheduler.workers) and not getattr(dask_scheduler, _REMOVING, None):
        # Beside this answer: it takes as long as a nanny takes to end a process that does not listen.
        task = asyncio.ensure_future(dask_scheduler.check_worker_ttl())
        setattr(dask_scheduler, _REMOVING, task)
        task.add_done_callback(lambda done: setattr(dask_scheduler, _REMOVING, None))
    ended = sum(group.states["memory"] + group.states["released"] for group in dask_scheduler.task_groups.values())
    return len(live), ended


_REMOVING = "em_pipeline_removing"


def still_wanted() -> bool:
    """In a task: whether anybody waits for it; after the driver has gone on or ended, nobody does."""
    try:
        task = get_worker().state.tasks.get(thread_state.key)
    except (ValueError, AttributeError):  # not on a worker
        return True
    return task is None or task.state != "cancelled"
