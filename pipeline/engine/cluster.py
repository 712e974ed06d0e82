"""Where tasks run: threads of this process, or a Dask cluster; the only import of distributed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Engine as EngineConfig
from pipeline.config import Profile
from pipeline.engine.blas import check_same_kernels, kernel_set
from pipeline.engine.passes import Engine
from pipeline.errors import ClusterLost, InputError

CONNECT_SECONDS = 30
_LOCAL = "127.0.0.1"  # a scheduler runs anyone's code, so embedded ones are not reachable from outside


def uses_processes(config: EngineConfig) -> bool:
    """Whether the job starts worker processes on this machine."""
    attached = config.scheduler_address or config.scheduler_file
    return not attached and config.scheduler != "threads"


@contextmanager
def open_engine(config: EngineConfig, workers: int, ahead: bool = True, spare: int = 0) -> Iterator[Engine]:
    """An engine for the length of a job. workers : tasks at a time, for threads and embedded clusters.

    ahead : read the next chunk while one computes.  spare : bytes for kept chunks, where the config wants them.

    Raises InputError for an unknown profile, ClusterLost when a scheduler cannot be reached or is lost.
    """
    if config.scheduler_address or config.scheduler_file:
        with _lost_cluster_errors(), _attached(config) as client:
            yield _engine_of(client, ahead)
    elif config.scheduler == "threads":
        yield Engine(workers=workers, ahead=ahead, keep=spare if config.keep_decoded else 0)
    else:
        with _lost_cluster_errors(), _local(_profile(config), workers) as client:
            yield _engine_of(client, ahead)


def _profile(config: EngineConfig) -> Profile:
    known = {"local": Profile(), **config.profiles}
    if config.scheduler not in known:
        raise InputError(
            f"engine.scheduler: {config.scheduler!r}, expected threads or one of the profiles {', '.join(sorted(known))}."
        )
    return known[config.scheduler]


@contextmanager
def _local(profile: Profile, workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    threads = min(profile.threads_per_worker, workers)
    count = min(profile.workers or workers, max(workers // threads, 1))
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=threads,
            processes=True,
            host=_LOCAL,
            dashboard_address=f"{_LOCAL}:0",
            preload="pipeline.engine.embedded",
            silence_logs=logging.CRITICAL,  # what fails on a worker is raised here, and said once
            memory_limit=None,  # the memory plan already bounds what runs at once
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _attached(config: EngineConfig) -> Iterator[Any]:
    from distributed import Client

    where = config.scheduler_address or f"scheduler file {config.scheduler_file}"
    try:
        address = config.scheduler_address or _address_in(Path(str(config.scheduler_file)))
        client = Client(address=address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterLost(
            f"{where}: no scheduler answered in {CONNECT_SECONDS} s ({error}). "
            "Start one with `dask scheduler` and give its address."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise ClusterLost(
                f"{where}: the scheduler has no workers after {CONNECT_SECONDS} s. Start `dask worker` processes."
            ) from error
        yield client


def _address_in(file: Path) -> str:
    """The scheduler's address from the file that it writes when it has started; distributed would wait for ever."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return str(json.loads(file.read_text(encoding="utf-8"))["address"])


def _engine_of(client: Any, ahead: bool) -> Engine:
    check_same_kernels(kernel_set(), client.run(kernel_set))
    workers = sum(client.nthreads().values())
    return Engine(client=client, workers=workers, ahead=ahead)


@contextmanager
def _lost_cluster_errors() -> Iterator[None]:
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except (CommClosedError, KilledWorker, FutureCancelledError) as error:
        raise ClusterLost(
            f"the cluster was lost ({type(error).__name__}: {error}). The last checkpoint is intact: "
            "bring the cluster up again and use `em-pipeline resume RUN`."
        ) from error
