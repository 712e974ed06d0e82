"""Importing the package or fitting with it changes nothing of the process, nor of a cluster that others have started."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import pipeline
from pipeline.data.chunks import Chunks
from pipeline.engine import blas, memory, waiting
from pipeline.engine.blas import single_thread
from pipeline.engine.passes import Engine
from pipeline.engine.tree import tree_sum
from pipeline.engine.waiting import Cluster
from tests.clusters import environment
from tests.jobs import blobs, command, write_config, write_rows
from tests.laws.common import ArraySource

LIBRARY = """
import ctypes, gc, json, locale, logging, os, signal, sys, threading, warnings
import dask, distributed, matplotlib.pyplot, numba, numpy as np, scipy.linalg, scipy.sparse, sklearn.cluster, threadpoolctl, xarray, zarr

called = []

class Recording(ctypes.CDLL):
    def __getattr__(self, name):
        called.append(name)
        return super().__getattr__(name)

def state():
    loggers = [logging.getLogger(name) for name in ("", "distributed", "dask", "numba", "matplotlib")]
    return {
        "numba": {name: repr(getattr(numba.config, name)) for name in dir(numba.config) if name.isupper()},
        "environment": dict(os.environ),
        "signals": {str(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "threads of libraries": [(one["filepath"], one["num_threads"]) for one in threadpoolctl.threadpool_info()],
        "loggers": [(one.name, one.level, repr(one.handlers), one.disabled) for one in loggers],
        "warnings": repr(warnings.filters),
        "numpy": [np.geterr(), repr(np.get_printoptions()), repr(np.random.get_state())],
        "dask": repr(dask.config.config),
        "matplotlib": [matplotlib.get_backend(), repr(dict(matplotlib.rcParams))],
        "python": [sys.excepthook, threading.excepthook, sys.getswitchinterval(), gc.get_threshold(), os.getcwd()],
        "locale": locale.setlocale(locale.LC_ALL),
    }

rng = np.random.default_rng(0)
x = rng.normal(size=(3000, 4))
xarray.decode_cf(xarray.Dataset())  # xarray adds a filter of warnings each time
ctypes.CDLL = Recording
before = state()
import pipeline
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it has not converged
    pipeline.GaussianMixture(3, random_state=0, max_iter=3, tol=0).fit(x).predict(x)
pipeline.KMeans(3, random_state=0).fit(x).predict(x)
pipeline.MultinomialMixture(3, random_state=0).fit(scipy.sparse.csr_array(rng.poisson(1.0, size=(300, 20))))
np.save(sys.argv[1] + "/x.npy", x)
config = {
    "data": {"source": "npy", "path": sys.argv[1] + "/x.npy"},
    "model": {"n_components": 3},
    "fit": {"max_iter": 3, "tol": 0},
    "output": {"path": sys.argv[1] + "/run"},
}
pipeline.run(pipeline.Config(**config))
after = state()
for name in before:
    if before[name] != after[name]:
        print("CHANGED", name, before[name], after[name])
handlers = logging.getLogger("em_pipeline").handlers
assert [type(one) for one in handlers] == [logging.NullHandler], handlers
assert "mallopt" not in called, called
from pipeline.engine.memory import keep_freed_memory
keep_freed_memory()
assert "mallopt" in called, called  # it would have been seen
print("SAME")
"""


@pytest.mark.slow
def test_a_library_fit_changes_nothing_of_the_process(tmp_path):
    """Settings of numba, BLAS, malloc, logging, warnings, signals and of every library around are as they were before."""
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", LIBRARY, str(tmp_path)],
        env=environment() | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "SAME" and "CHANGED" not in ended.stdout, ended.stdout
    assert ended.stderr == ""  # nothing is logged where nobody asked


@pytest.mark.slow
def test_kernels_are_cached_in_a_folder_of_their_own(tmp_path):
    """Named by a hash of all kernel files, so that an edit of a helper is never missed; numba's own folder is not used."""
    program = (
        "from pipeline.kernels import compiling, softmax; softmax.padded(3, 8); print(compiling._FOLDER);"
        "import numba; print(repr(numba.config.CACHE_DIR))"
    )
    copy = tmp_path / "copy"
    shutil.copytree(Path(pipeline.__file__).parent, copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    variables = os.environ | {"PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def folder() -> Path:
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=copy, env=variables, capture_output=True, text=True, check=True
        )
        where, setting = ended.stdout.splitlines()
        assert setting == "''"
        assert list(Path(where).rglob("softmax.padded*.nbi")) and Path(where).is_relative_to(tmp_path / "cache")
        return Path(where)

    first = folder()
    assert folder() == first
    helper = copy / "pipeline" / "kernels" / "exponential.py"
    helper.write_text(helper.read_text() + "# another version\n")
    assert folder() != first


def test_the_command_sets_its_own_process_up(tmp_path, monkeypatch):
    """Freed memory is reused in the command, which is alone in its process."""
    called: list[bool] = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: called.append(True))
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    assert command("check", config).code == 0
    assert called == [True]


def limits() -> set[int]:
    """Threads of the BLAS libraries of this process."""
    return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}


def overlap() -> None:
    """A block in another thread begins before one in this thread, and ends before it; both see one thread."""
    first, second = threading.Event(), threading.Event()

    def other() -> set[int]:
        with single_thread():
            first.set()
            assert second.wait(30)
            return limits()

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(other)
        assert first.wait(30)
        with single_thread():
            second.set()
            assert limits() == ended.result(30) == {1}
            with pytest.raises(ZeroDivisionError), single_thread():
                raise ZeroDivisionError
            assert limits() == {1}


def test_blas_limits_of_overlapping_blocks_end_with_the_last_one(monkeypatch):
    """However blocks of several threads overlap, each sees one thread, and after the last there are as many as before.

    Also inside of another limit, and from a thread that does not own that one.
    """
    monkeypatch.setattr(blas, "_blocks", 0)  # of threads that another test has left behind
    before = limits()
    overlap()
    assert limits() == before
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        for _ in range(2):
            overlap()
            assert limits() == {3}
        with ThreadPoolExecutor(1) as thread:
            thread.submit(overlap).result(60)
        assert limits() == {3}
    assert limits() == before
    with threadpoolctl.threadpool_limits(3, user_api="blas"):  # nobody else is left in charge of it
        assert limits() == {3}
    assert limits() == before


@pytest.fixture
def others() -> Iterator[Any]:
    """A cluster that is there already: two workers of one thread in this process, without sockets, and a client."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(**options, silence_logs=50) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


def settings(dask_scheduler: Any) -> dict[str, Any]:
    """What a scheduler is set to, and the names of all that hangs on it."""
    times = {name: callback.callback_time for name, callback in dask_scheduler.periodic_callbacks.items()}
    names = ("worker_ttl", "idle_timeout", "allowed_failures", "no_workers_timeout", "validate")
    found = {name: getattr(dask_scheduler, name) for name in names}
    plugins = (sorted(dask_scheduler.plugins), sorted(dask_scheduler.worker_plugins))
    return found | {"periodic": times, "plugins": plugins, "attributes": sorted(vars(dask_scheduler))}


VALUES = np.random.default_rng(0).normal(size=40) * 10.0 ** np.random.default_rng(1).uniform(-8, 8, 40)
GATE = threading.Event()
FROZEN: list[str] = []


def value(chunk: Any, kernels: Any) -> Any:
    """One number a chunk; on a frozen worker never."""
    from distributed import get_worker

    if get_worker().address in FROZEN:
        GATE.wait(60)
    return np.array(VALUES[chunk.start])


def freeze(dask_worker: Any) -> None:
    """No heartbeat from now on."""
    dask_worker.periodic_callbacks["heartbeat"].stop()


@pytest.fixture
def frozen(others, monkeypatch) -> Iterator[str]:
    """The address of a worker that has been silent for longer than the limit, which is short here."""
    monkeypatch.setattr(waiting, "heartbeat_interval", lambda n: 0.0)
    monkeypatch.setattr(waiting, "FROZEN", 2.0)
    monkeypatch.setattr(waiting, "CHECK", 0.2)
    address = sorted(others.scheduler_info()["workers"])[0]
    others.run(freeze, workers=[address])
    FROZEN.append(address)
    yield address
    GATE.set()
    FROZEN.clear()
    GATE.clear()


def alive(client: Any) -> set[str]:
    """The workers that the scheduler has."""
    return set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.workers)))


def test_a_frozen_worker_is_ended_without_a_change_of_the_scheduler(others, frozen):
    """Its tasks are done by the other worker, to the same bits, and every setting of the scheduler is as it was."""
    before = others.run_on_scheduler(settings)
    chunks = Chunks(ArraySource(np.zeros((40, 1)), np.arange(41)))
    engine = Engine(Cluster(others), workers=2)
    engine._seen = chunks.source  # looking at the first chunk would wait for the frozen worker
    assert engine.sum_over(chunks, [value]) == [tree_sum(list(VALUES), np.add)]
    assert frozen not in alive(others)
    assert others.run_on_scheduler(settings) == before


def test_a_frozen_worker_with_anything_of_others_is_left_to_the_scheduler(others, frozen):
    """It is not counted as a worker, but it stays: it may be busy with their work."""
    data = others.scatter({"theirs": 1}, workers=[frozen])
    time.sleep(2.5)
    state = others.sync(others._run_on_scheduler, waiting._look, 2.0)
    assert len(state.workers) == 1
    time.sleep(0.5)
    assert frozen in alive(others)
    del data


@pytest.mark.slow
def test_a_job_on_a_running_cluster_leaves_scheduler_and_workers_as_they_were(tmp_path):
    """Worker processes with two BLAS threads each, started by somebody else: settings, limits and clients afterwards."""
    import dask
    from distributed import Client, LocalCluster

    store = write_rows(tmp_path / "x.zarr", blobs(4000), rows=500)
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", silence_logs=50) as cluster:
        with Client(cluster, set_as_default=False) as client:
            before = client.run_on_scheduler(settings), client.run(_of_a_worker), repr(dask.config.config)
        address = cluster.scheduler_address
        config = write_config(tmp_path / "c.yaml", store, engine={"scheduler_address": address})
        pipeline.run(pipeline.load_config(config), tmp_path / "run")
        with pytest.raises(ValueError, match="No clients"):
            Client.current()
        with Client(cluster, set_as_default=False) as client:
            assert (client.run_on_scheduler(settings), client.run(_of_a_worker), repr(dask.config.config)) == before


def _of_a_worker() -> Any:
    """Threads of its BLAS libraries, and whether its C library was told anything."""
    import numpy  # noqa: F401  whose BLAS is looked at
    import scipy.linalg  # noqa: F401  the same
    from threadpoolctl import threadpool_info

    from pipeline.engine.memory import keep_freed_memory

    found = {one["filepath"]: one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
    return found, keep_freed_memory.cache_info().currsize


def test_events_reach_the_logger_at_their_levels(tmp_path, caplog):
    """Phases at info, passes and checkpoints at debug, warnings at warning."""
    x = np.concatenate([blobs(), blobs()])
    x[:, 0] = 1.0
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", x))
    with caplog.at_level(logging.DEBUG, "em_pipeline"):
        pipeline.run(pipeline.load_config(config), tmp_path / "run")
    levels = {
        (record.levelname, str(record.args[0])) for record in caplog.records if record.name == "em_pipeline.events"
    }
    assert {("INFO", "start"), ("INFO", "profile"), ("INFO", "finished"), ("DEBUG", "pass")} <= levels
    assert ("WARNING", "warning") in levels
    assert any(record.name == "em_pipeline.engine" and record.levelname == "DEBUG" for record in caplog.records)


def test_the_command_shows_the_log_on_request(tmp_path):
    """--log-level may stand anywhere; a level that there is not is refused; afterwards the logger is silent again."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    plain = command("run", config, "--output", tmp_path / "plain")
    assert plain.code == 0 and "em_pipeline" not in plain.err
    told = command("run", config, "--output", tmp_path / "told", "--log-level", "debug")
    assert told.code == 0 and "DEBUG em_pipeline.engine: pass:" in told.err and "INFO em_pipeline.events" in told.err
    few = command("--log-level=warning", "run", config, "--output", tmp_path / "few")
    assert few.code == 0 and "DEBUG" not in few.err and "INFO" not in few.err
    for words in (["--log-level", "loud"], ["--log-level"]):
        refused = command("run", config, "--output", tmp_path / "none", *words)
        assert refused.code == 2 and "expected one of debug, info, warning, error" in refused.err
    assert [type(handler) for handler in logging.getLogger("em_pipeline").handlers] == [logging.NullHandler]


def test_a_log_file_and_quiet_leave_the_terminal_to_warnings(tmp_path):
    """--log-file appends what --log-level asks for, info and above by default; --quiet shows warnings alone, and the result."""
    x = blobs()
    x[:, 2] = 1.0
    config, log = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", x)), tmp_path / "job.log"
    told = command("run", config, "--quiet", "--output", tmp_path / "run", "--log-file", log)
    assert told.code == 0 and told.out.startswith("report: ")
    assert [line[10:18] for line in told.err.splitlines()] == ["warning:"] and "1 features have one value" in told.err
    first = log.read_text(encoding="utf-8")
    assert "INFO em_pipeline.events: start" in first and "DEBUG" not in first
    assert command("report", tmp_path / "run", f"--log-file={log}", "--log-level", "debug").code == 0
    assert log.read_text(encoding="utf-8").startswith(first)
    assert "--log-file: got no value" in command("report", tmp_path / "run", "--log-file").err
    assert command("report", tmp_path / "run", "--log-file", tmp_path / "no" / "folder").code == 3


def test_the_version_is_told():
    """By the command, and by the package."""
    assert command("--version").out == f"em-pipeline {pipeline.__version__}\n"
    assert pipeline.__version__ == version("em-pipeline")


@pytest.mark.full
def test_shells_can_complete_the_command():
    """--show-completion prints what bash needs, and that names commands and options."""
    shown = subprocess.run(
        [Path(sys.executable).with_name("em-pipeline")],
        env=os.environ | {"_EM_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": "em-pipeline re", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(shown.stdout.split()) == {"resume", "report"}


def test_the_package_says_that_it_has_types():
    """py.typed is beside its modules."""
    assert files("pipeline").joinpath("py.typed").is_file()
