"""What happens to workers, schedulers and networks: the right bits in time, or exit code 4 and a resume to the right bits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.clusters import Cluster, cluster, computing, environment, eventually
from tests.jobs import Files, blobs, results, write_config, write_rows

pytestmark = pytest.mark.slow
DEADLINE = 150.0  # seconds of any job below; more is a hang


class Alone(NamedTuple):
    """A config, and the results of the run that nothing disturbed."""

    config: Path
    results: Files


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Alone:
    """Twenty chunks a pass, a few passes."""
    folder = tmp_path_factory.mktemp("alone")
    write_rows(folder / "x.zarr", blobs(2000), rows=100)
    config = write_config(folder / "c.yaml", folder / "x.zarr", fit={"max_iter": 4, "init": "random"})
    job = Driver(config, folder / "run")
    assert job.ended() == 0, job.errors
    return Alone(config, results(folder / "run"))


class Driver:
    """`em-pipeline run`, or `resume` where there is something to resume, in a process of its own."""

    def __init__(self, config: Path, run: Path, *options: str) -> None:
        self.run = run
        known = any((run / "checkpoints").glob("gen-*"))
        words = ["resume", str(run)] if known else ["run", str(config), "--output", str(run)]
        program = [sys.executable, "-m", "tests.faults", *words, *options]
        self.process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
        self.errors = ""

    def ended(self, seconds: float = DEADLINE) -> int:
        """The exit code, in time."""
        try:
            _, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.errors = errors.decode()
        assert "Traceback" not in self.errors and "bug:" not in self.errors, self.errors
        return self.process.returncode

    def passes(self) -> int:
        """How many are done."""
        with suppress(OSError):
            return (self.run / "events.jsonl").read_text().count('"pass"')
        return 0

    def in_the_fit(self) -> Driver:
        """Wait for the middle of a pass that is not the first."""
        eventually(lambda: self.passes() >= 1 or self.process.poll() is not None, 90)
        assert self.process.poll() is None, self.ended()
        time.sleep(0.4)
        assert self.process.poll() is None, "it ended before its time"
        return self


def start(folder: Path, alone: Alone, found: Cluster, seconds: float = 0.3) -> Driver:
    """A job on a cluster whose chunks take some time."""
    (folder / "slow").write_text(str(seconds))
    return Driver(alone.config, folder / "run", "--scheduler-address", found.address)


def ends_as_alone(job: Driver, alone: Alone) -> None:
    """Exit code 0, and the same bytes."""
    assert job.ended() == 0, job.errors
    assert results(job.run) == alone.results


def goes_on_as_alone(folder: Path, alone: Alone) -> None:
    """After exit code 4: `resume` on threads of its own ends in the same bytes."""
    ends_as_alone(Driver(alone.config, folder / "run", "--set", "engine.scheduler_address=null"), alone)


def test_workers_killed_at_random_instants(tmp_path, alone):
    """Row 1: every kill of a worker is made good by another; scripts/faults/kill_worker does it by the hundred."""
    rng, hits = random.Random(0), 0
    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found, seconds=0.5).in_the_fit()
        while job.process.poll() is None and hits < 5:
            time.sleep(rng.uniform(0.5, 2.5))
            with suppress(psutil.Error, IndexError):
                rng.choice(computing(found)).kill()
                hits += job.process.poll() is None
        ends_as_alone(job, alone)
        assert '"worker_lost"' in (job.run / "events.jsonl").read_text()
    assert hits >= 3


def test_all_workers_gone(tmp_path, alone):
    """Row 2: workers without nannies die; exit 4 after the wait for others, and resume goes on."""
    with cluster(tmp_path, nannies=False, faults=True) as found:
        job = start(tmp_path, alone, found).in_the_fit()
        for worker in computing(found):
            worker.kill()
        assert job.ended() == 4 and "all workers are gone" in job.errors, job.errors
    goes_on_as_alone(tmp_path, alone)


def test_a_chunk_that_kills_whoever_reads_it(tmp_path, alone):
    """Row 2: exit 4 names the chunk after four deaths; where it no longer kills, resume goes on."""
    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found).in_the_fit()
        (tmp_path / "deadly").write_text("7")
        # Tasks have one chunk or two: that follows from how long the passes before took.
        assert job.ended() == 4 and re.search("chunk(s 6 to)? 7: 4 workers died", job.errors), job.errors
        (tmp_path / "deadly").unlink()
        ends_as_alone(Driver(alone.config, tmp_path / "run", "--scheduler-address", found.address), alone)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_scheduler_dies(tmp_path, alone, how):
    """Row 3: killed or frozen, it is noticed within 30 s: exit 4, and resume goes on."""
    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found).in_the_fit()
        began = time.monotonic()
        found.processes[0].send_signal(how)
        assert job.ended() == 4 and "the scheduler" in job.errors, job.errors
        assert time.monotonic() - began < 40  # 30, and the end of a process on a busy machine
    goes_on_as_alone(tmp_path, alone)


def test_a_frozen_worker(tmp_path, alone):
    """Row 12: one that is stopped (SIGSTOP) is taken for dead after a while, and others do its share."""
    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found).in_the_fit()
        computing(found)[0].send_signal(signal.SIGSTOP)
        ends_as_alone(job, alone)


def test_a_slow_worker(tmp_path, alone):
    """Row 12: one that is ten times slower (stopped for nine tenths of the time) only takes time."""
    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found).in_the_fit()
        worker = computing(found)[0]
        while job.process.poll() is None:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(0.45)
            worker.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        ends_as_alone(job, alone)


@pytest.mark.parametrize("how", [signal.SIGINT])
def test_an_interrupted_driver_leaves_nothing_behind(tmp_path, alone, how):
    """Waiting on a cluster ends with the signal, the scheduler has no task left, and resume goes on."""
    from distributed import Client

    with cluster(tmp_path, faults=True) as found:
        job = start(tmp_path, alone, found, seconds=0.5).in_the_fit()
        began = time.monotonic()
        job.process.send_signal(how)
        assert job.ended() == 75, job.errors
        assert time.monotonic() - began < 10
        with Client(found.address) as client:
            eventually(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0, 10)
            # No task goes on for its whole shard: the workers are free at once.
            eventually(lambda: not any(client.run(_executing).values()), 10)
        (tmp_path / "slow").unlink()
        ends_as_alone(Driver(alone.config, tmp_path / "run", "--scheduler-address", found.address), alone)


def _executing(dask_worker: Any) -> int:
    return len(dask_worker.state.executing) + len(dask_worker.state.long_running)


def test_five_hundred_passes_leave_nothing(tmp_path):
    """Row 24: memory and file handles of every process stay flat, and no task is left on the scheduler."""
    import numpy as np
    from distributed import Client

    from pipeline.data.chunks import Chunks
    from pipeline.engine.passes import Engine
    from pipeline.engine.waiting import Cluster as Waiting
    from tests.laws.common import ArraySource

    chunks = Chunks(ArraySource(np.ones((40, 50)), np.arange(0, 41, 10)))
    with cluster(tmp_path) as found, Client(found.address) as client:
        engine = Engine(Waiting(client), workers=2)
        engine.sum_over(chunks, [_column_sums])  # by then both workers are up
        processes = [psutil.Process(), psutil.Process(found.processes[0].pid), *computing(found)]
        assert len(processes) == 4
        used = []
        for i in range(501):
            [total] = engine.sum_over(chunks, [_column_sums])
            assert total.sum() == 2000.0
            if i in (100, 500):
                used.append([(p.memory_info().rss, p.num_fds()) for p in processes])
        eventually(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0, 10)
    for (rss, handles), (rss_later, handles_later) in zip(*used, strict=True):
        assert rss_later < 1.15 * rss + 30e6 and handles_later <= handles + 5, used


def _column_sums(rows: Any, kernels: Any) -> Any:
    return rows.x.sum(axis=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces")
def test_the_network_is_cut(tmp_path, alone):
    """Row 13: the link to a worker in another namespace goes down: within 90 s the pass is done without it."""
    name = f"em{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
    except FileNotFoundError:
        pytest.skip("no `ip` command here")
    except subprocess.CalledProcessError as error:
        if b"not permitted" not in error.stderr:
            raise
        pytest.skip("root may not make network namespaces here")
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        for words in (["addr", "add", "10.213.7.2/30", "dev", f"{name}b"], ["link", "set", f"{name}b", "up"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
        with cluster(tmp_path, workers=1, faults=True, host="10.213.7.1") as found:
            words = [*("ip", "netns", "exec", name, sys.executable, "-m", "dask", "worker", found.address)]
            words += ["--host", "10.213.7.2", "--nthreads", "1", "--preload", "tests.faults"]
            with subprocess.Popen(words, env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL) as far:
                job = start(tmp_path, alone, found).in_the_fit()
                done = job.passes()
                ip("link", "set", f"{name}a", "down")
                eventually(lambda: job.passes() > done or job.process.poll() is not None, 90)
                code = job.ended()
                far.kill()
                for child in psutil.Process().children(recursive=True):
                    if "10.213.7.2" in " ".join(child.cmdline()):
                        child.kill()
            assert code in (0, 4), (code, job.errors)
            assert code == 4 or results(job.run) == alone.results
    finally:
        ip("netns", "del", name)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)
