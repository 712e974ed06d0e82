"""Worker processes: the same bytes as threads, on loopback alone, with a clean end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.engine.cluster import open_engine
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from tests.clusters import addresses, cluster, environment
from tests.jobs import blobs, command, results, write_config, write_rows

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with data in many chunks, a config, and the run on threads: threads-1, threads-2, threads-4."""
    folder = tmp_path_factory.mktemp("alone")
    write_rows(folder / "x.zarr", blobs(82_000, d=64), rows=16384)  # six chunks
    write_config(
        folder / "config.yaml", folder / "x.zarr", fit={"init": "k-means||"}, model={"covariance_type": "full"}
    )
    for workers in (1, 2, 4):
        run(folder, f"threads-{workers}", "--set", f"engine.workers={workers}")
    return folder


def run(folder: Path, name: str, *options: str) -> Path:
    """The job of the folder in a process of its own, which must end with 0 and nothing but its own lines."""
    words = ["run", str(folder / "config.yaml"), "--output", str(folder / name), *options]
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], env=environment(), capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stderr
    noise = [line for line in ended.stderr.splitlines() if line and not line[:2].isdigit()]
    assert noise == [] and "distributed" not in ended.stderr
    return folder / name


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bytes(alone):
    """One, two and four threads: model.zarr and labels.zarr are the same files."""
    assert results(alone / "threads-1") == results(alone / "threads-2") == results(alone / "threads-4")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}, {"workers": 2, "threads_per_worker": 2}])
def test_local_processes_give_the_same_bytes_and_listen_on_loopback_alone(alone, options):
    """--profile with one and two processes: the same files as threads; nothing listens outside this machine."""
    name = "local-" + "-".join(str(value) for value in options.values())
    profile = f"engine.profiles={{mine: {json.dumps(options)}}}"
    words = ["run", alone / "config.yaml", "--output", alone / name, "--set", profile, "--set", "engine.workers=4"]
    seen: set[str] = set()
    program = [sys.executable, "-m", "pipeline", *map(str, words), "--profile", "mine"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, env=environment()) as started:
        while started.poll() is None:
            seen |= addresses([psutil.Process(started.pid)])
            time.sleep(0.2)
        error = started.stderr.read().decode()
    assert started.returncode == 0 and "distributed" not in error and "Traceback" not in error, error
    assert results(alone / name) == results(alone / "threads-2")
    assert seen == {"127.0.0.1"}


@pytest.mark.slow
def test_a_running_cluster_gives_the_same_bytes(alone, tmp_path):
    """By address and by scheduler file; the workers stay as they were, and listen on loopback alone."""
    with cluster(tmp_path) as started:
        by_address = run(alone, "address", "--scheduler-address", started.address)
        by_file = run(alone, "file", "--scheduler-file", str(started.file))
        assert addresses([psutil.Process(p.pid) for p in started.processes]) == {"127.0.0.1"}
        assert all(process.poll() is None for process in started.processes)
        labels = command("predict", by_file, "--scheduler-file", started.file)
        assert labels.code == 0
    assert results(by_address) == results(by_file) == results(alone / "threads-2")
    assert "Traceback" not in (tmp_path / "dask.log").read_text()


@pytest.mark.slow
def test_an_error_on_a_worker_reaches_the_user_without_a_traceback(alone, tmp_path):
    """What a worker process refuses is the same message, with the same exit code, and nothing else."""
    weights = np.ones(82_000)
    weights[50_000] = -1
    np.save(tmp_path / "w.npy", weights)
    words = ["run", alone / "config.yaml", "--output", tmp_path / "run", "--profile", "local"]
    program = [sys.executable, "-m", "pipeline", *words, "--set", f"data.weights={tmp_path / 'w.npy'}"]
    ended = subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=180)
    assert ended.returncode == 2 and "row 50000 has weight -1.0" in ended.stderr
    assert "Traceback" not in ended.stderr and "distributed" not in ended.stderr, ended.stderr


def test_a_scheduler_that_is_not_there_is_exit_code_4(tmp_path, monkeypatch):
    """No answer at the address ends in ClusterLost within the time-out, and leaves nothing."""
    from pipeline.engine import cluster as engine_cluster

    monkeypatch.setattr(engine_cluster, "CONNECT_SECONDS", 1)
    store = write_rows(tmp_path / "x.zarr", blobs())
    write_config(tmp_path / "c.yaml", store)
    words = ["run", tmp_path / "c.yaml", "--output", tmp_path / "run"]
    for option in (["--scheduler-address", "tcp://127.0.0.1:9"], ["--scheduler-file", tmp_path / "none.json"]):
        outcome = command(*words, *option)
        assert outcome.code == 4 and "dask scheduler" in outcome.err, outcome
    assert not (tmp_path / "run").exists()


def test_results_come_in_order_and_an_error_ends_the_others():
    """map_in_order keeps the order of its arguments; the error of a task is the error of the call."""
    engine = Engine(workers=3)
    assert list(engine.map_in_order(_ten_over, ((i + 1,) for i in range(20)))) == [10 / (i + 1) for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(engine.map_in_order(_ten_over, [(1,), (0,), (2,)]))


def _ten_over(i, kernels):
    return 10 / i


def test_an_unknown_profile_is_refused():
    """The message lists the profiles there are."""
    from pipeline.jobconfig import validate

    config = validate({"engine": {"scheduler": "moon", "profiles": {"sun": {}}}}).engine
    expected = "'moon', expected threads or one of the profiles local, sun"
    with pytest.raises(InputError, match=expected), open_engine(config, 2):
        pass
