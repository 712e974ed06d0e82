"""Where tasks run: threads of this process, a Dask cluster that the job starts, or a running one.

Workers that the job starts are set up by it. A scheduler and workers that others have started keep their settings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, NoReturn, TypeVar, cast

from pipeline.config import ClusterProfile as Profile
from pipeline.config import EngineSection as EngineConfig
from pipeline.config.engine import Security as SecurityConfig
from pipeline.config.profiles import profile_of
from pipeline.engine.identity import Identity, identity, refuse_other, refuse_this_worker
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.passes import Engine
from pipeline.errors import ClusterLost, InputError
from pipeline.kernels.base import Kernels
from pipeline.kernels.cpu import KERNELS
from pipeline.logs import get_logger

T = TypeVar("T")
CONNECT_SECONDS = 30
ASK_SECONDS = 3  # for the version of a scheduler
_LOCAL = "127.0.0.1"  # a scheduler runs anyone's code, so local ones are not reachable from outside
_JOBQUEUE = "dask_jobqueue"
_log = get_logger("cluster")


def uses_processes(config: EngineConfig) -> bool:
    """Whether the job starts worker processes on this machine."""
    profile = profile_of(config)
    return profile is not None and profile.kind == "local"


@contextmanager
def open_engine(
    config: EngineConfig, workers: int, ahead: bool = True, spare: int = 0, kernels: Kernels = KERNELS
) -> Iterator[Engine]:
    """Open an engine for the duration of a job.

    Parameters
    ----------
    config : EngineSection
    workers : int
        Tasks at a time, for threads and local clusters.
    ahead : bool
        Whether a task reads its next chunk while it computes.
    spare : int
        Bytes for cached chunks, if the config wants them.
    kernels : Kernels

    Raises
    ------
    InputError
        For an unknown profile, and for workers with other versions or kernels than this process.
    ClusterLost
        If a scheduler cannot be reached, or is lost.
    """
    profile = profile_of(config)
    if profile is None and not (config.scheduler_address or config.scheduler_file):
        yield Engine(workers=workers, ahead=ahead, cache_bytes=spare if config.keep_decoded else 0, kernels=kernels)
        return
    security = _security(config.security)
    with _silent_logs():
        if profile is None:
            opened: AbstractContextManager[Any] = _attached(config, security)
            patience = Profile().wait
        else:
            opened, patience = _OPEN.get(profile.kind, _of_class)(profile, workers, security), profile.wait
        with opened as client:
            _wait_for_workers(client, patience, config)
            yield _engine_of(client, ahead, patience, profile, kernels)


def current_engine() -> Engine | None:
    """Return an engine on the current Dask client of this process; None without one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:  # then there is no client
        return None
    try:
        client = distributed.Client.current()
    except ValueError:
        return None
    return _engine_of(client, ahead=False, patience=Profile().wait, profile=None, kernels=KERNELS)


def serve(config: EngineConfig) -> NoReturn:
    """Run the scheduler or a worker of an srun (kind slurm-runner); ends the process with the job."""
    profile = profile_of(config)
    assert profile is not None and profile.kind == "slurm-runner"
    for number in (signal.SIGUSR1, signal.SIGTERM):  # the batch system's: the driver answers, and ends the others
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not the command's: the runner ends itself with one
    try:
        with _runner(profile, 0, _security(config.security)):
            raise InputError(
                "slurm-runner: this process is the driver, expected a scheduler or worker, with SLURM_PROCID other than "
                "1. Start it with srun."
            )
    except KeyboardInterrupt:
        raise SystemExit(0) from None


Opener = Callable[[Profile, int, Any], AbstractContextManager[Any]]


def _local(profile: Profile, workers: int, security: Any) -> AbstractContextManager[Any]:
    from distributed import LocalCluster

    threads = min(profile.threads_per_worker, workers)
    count = min(profile.workers or workers, max(workers // threads, 1))
    return _client_of(
        lambda: LocalCluster(
            n_workers=count,
            threads_per_worker=threads,
            processes=True,
            host=_LOCAL,
            dashboard_address=f"{_LOCAL}:0",
            preload="pipeline.engine.embedded",
            silence_logs=logging.CRITICAL,  # what fails on a worker is raised here, and shown once
            memory_limit=None,  # the memory plan already bounds what runs at once
            protocol="tcp://" if security is None else "tls://",
            security=security,
        ),
        security,
        profile.wait,
    )


def _ssh(profile: Profile, workers: int, security: Any) -> AbstractContextManager[Any]:
    from distributed import SSHCluster

    return _client_of(lambda: SSHCluster(**_secured(profile, security)), security, profile.wait)


def _of_class(profile: Profile, workers: int, security: Any) -> AbstractContextManager[Any]:
    """A cluster of a class derived from distributed's: SLURMCluster, or a dotted name."""
    from distributed.deploy.cluster import Cluster

    name = f"{_JOBQUEUE}.SLURMCluster" if profile.kind == "slurm" else profile.kind
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        extra = "pip install 'em-pipeline[slurm]'" if module == _JOBQUEUE else f"the package that has {module}"
        raise InputError(f"profile: no {name} here ({error}). Install {extra}.") from error
    if not (isinstance(found, type) and issubclass(found, Cluster)):
        raise InputError(
            f"profile: got {name}, which is {found!r}, expected a class derived from distributed's Cluster. Change kind."
        )

    def made() -> Any:
        cluster = found(**_secured(profile, security))
        if profile.workers:
            cluster.scale(profile.workers)
        if profile.adapt:
            cluster.adapt(minimum=profile.adapt.minimum, maximum=profile.adapt.maximum)
        return cluster

    return _client_of(made, security, profile.wait)


@contextmanager
def _runner(profile: Profile, workers: int, security: Any) -> Iterator[Any]:
    """The processes of one srun: the scheduler, this process, and workers."""
    from distributed import Client

    if security is not None:
        raise InputError("engine.security: a slurm-runner cannot use TLS yet; use kind slurm, or no security.")
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue.slurm import SLURMRunner

        signal.signal(signal.SIGINT, interrupt)  # loading dask_jobqueue.slurm replaces it
        made: Any = SLURMRunner
        runner = made(**profile.options)
    except ImportError as error:
        raise InputError(
            f"profile: no dask_jobqueue here ({error}). Install pip install 'em-pipeline[slurm]'."
        ) from error
    except RuntimeError as error:  # the variables that srun sets are missing
        raise InputError(
            f"profile: kind slurm-runner works inside srun ({error}). Use kind slurm elsewhere."
        ) from error
    with runner, Client(runner, timeout=CONNECT_SECONDS) as client:
        yield client


_OPEN: dict[str, Opener] = {"local": _local, "ssh": _ssh, "slurm-runner": _runner}


def _secured(profile: Profile, security: Any) -> dict[str, Any]:
    return profile.options if security is None else {**profile.options, "security": security}


@contextmanager
def _client_of(make: Callable[[], Any], security: Any, patience: float) -> Iterator[Any]:
    from distributed import Client

    try:
        cluster = _within(patience, make)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"profile: the cluster cannot be made ({error}). Change its options.") from error
    with cluster, Client(cluster, timeout=CONNECT_SECONDS, security=security) as client:
        yield client


def _within(seconds: float, make: Callable[[], T]) -> T:
    """make() with a deadline, because some clusters wait for a machine for ever. Raises ClusterLost."""
    outcome: Queue[tuple[T | None, BaseException | None]] = Queue()

    def work() -> None:
        try:
            outcome.put((make(), None))
        except BaseException as error:  # raised by the caller
            outcome.put((None, error))

    Thread(target=work, daemon=True).start()
    try:
        made, error = outcome.get(timeout=seconds)
    except Empty:
        raise ClusterLost(
            f"profile: the cluster was not up after {seconds:g} s. Check that its machines can be reached, or raise wait."
        ) from None
    if error is not None:
        raise error
    return cast(T, made)


@contextmanager
def _attached(config: EngineConfig, security: Any) -> Iterator[Any]:
    from distributed import Client

    where = _where(config)
    try:
        address = config.scheduler_address or _address_in(Path(str(config.scheduler_file)))
        _refuse_other_scheduler(where, address, security)
        client = Client(address=address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ClusterLost(
            f"{where}: no scheduler answered in {CONNECT_SECONDS} s ({error}). "
            "Start one with `dask scheduler` and give its address."
        ) from error
    with client:
        yield client


def _refuse_other_scheduler(where: str, address: str, security: Any) -> None:
    """Raise InputError if a scheduler answers there that is of another version than this process."""
    from distributed import __version__, rpc

    async def ask() -> Any:
        options = security.get_connection_args("client") if security is not None else None
        async with rpc(address, connection_args=options) as scheduler:
            return await scheduler.versions()

    try:
        theirs = asyncio.run(asyncio.wait_for(ask(), ASK_SECONDS))["packages"]["distributed"]
    except Exception as error:  # nobody is there, or it speaks in another way: the client finds out
        _log.debug("%s: no version of a scheduler (%r)", where, error)
        return
    if theirs != __version__:
        raise InputError(
            f"{where}: the scheduler has distributed {theirs}, this process {__version__}. Of different versions they may not understand each other. "
            f"Where the scheduler and workers run: pip install distributed=={__version__}"
        )


def _where(config: EngineConfig) -> str:
    if config.scheduler != "threads":
        return f"profile {config.scheduler}"
    return config.scheduler_address or f"scheduler file {config.scheduler_file}"


def _wait_for_workers(client: Any, patience: float, config: EngineConfig) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise ClusterLost(
            f"{_where(config)}: the scheduler has no workers after {patience:g} s. Start `dask worker` processes, "
            "or let a profile wait longer for its own."
        ) from error


def _address_in(file: Path) -> str:
    """The scheduler's address from its file, with a deadline that distributed does not have."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return str(json.loads(file.read_text(encoding="utf-8"))["address"])


def _security(config: SecurityConfig | None) -> Any:
    """One certificate for driver, scheduler and workers."""
    if config is None:
        return None
    from distributed import Security

    for path in (config.ca_file, config.cert, config.key):
        if not Path(path).is_file():
            raise InputError(
                f"engine.security: {path} is not there, expected a PEM file. Give the paths of ca_file, cert and key."
            )
    roles = {f"tls_{role}_cert": config.cert for role in ("client", "scheduler", "worker")}
    roles |= {f"tls_{role}_key": config.key for role in ("client", "scheduler", "worker")}
    return Security(tls_ca_file=config.ca_file, require_encryption=True, **roles)


def _engine_of(client: Any, ahead: bool, patience: float, profile: Profile | None, kernels: Kernels) -> Engine:
    """An engine on a client's cluster. profile : that the job started; None for a running cluster."""
    from pipeline.engine.waiting import Cluster

    cluster, mine = Cluster(client, patience), identity(kernels)
    for address, theirs in cluster.on_workers(identity, kernels).items():
        refuse_other(address, mine, theirs)
    workers = max(1, sum(client.nthreads().values()))
    if profile is not None and profile.adapt is not None:
        workers = max(workers, profile.adapt.maximum)
    _log.debug("cluster: %d workers, %d tasks at a time", len(client.nthreads()), workers)
    check = partial(refuse_this_worker if profile is None else _set_up_worker, mine, kernels)
    return Engine(cluster, workers, ahead, check=check, kernels=kernels)


def _set_up_worker(expected: Identity, kernels: Kernels) -> None:
    """Set up a worker process that the job has started; called before each task."""
    refuse_this_worker(expected, kernels)
    keep_freed_memory()


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Hide the logs of distributed: failures of a cluster are raised as errors."""
    import distributed  # noqa: F401  its loggers get levels and handlers when it loads

    named = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    before = {name: logging.getLogger(name).level for name in named}
    for name in named:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
