"""What the scripts of this folder share: a job, its commands, what it leaves, and a cluster that is ended with the script."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CONFIG = """\
data:
  source: synthetic
  n_rows: 600000
  mixture:
    weights: [0.4, 0.3, 0.2, 0.1]
    means: [[0, 0, 0, 0], [2, 0, 1, 0], [0, 3, 2, 1], [1, 1, 0, 4]]
    covariances: [1.0, 0.5, 2.0, 1.5]
model: {n_components: 4, covariance_type: diag}
fit: {max_iter: 15, tol: 0, init: k-means||}
output: {top_k: 2}
"""
SLOWEST = 15  # times the undisturbed run: longer is a hang


def contents(run: Path) -> dict[str, bytes]:
    """Every file of the model and the labels."""
    files = [path for name in ("model.zarr", "labels.zarr") for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


class Jobs:
    """Starts commands, each with a log of its own. deadline : seconds that one may take."""

    def __init__(self, command: list[str], folder: Path, config: str = CONFIG) -> None:
        self.command, self.folder, self.deadline = command, folder, 600.0
        (folder / "config.yaml").write_text(config)

    def start(self, run: Path, *options: str) -> subprocess.Popen[bytes]:
        """`resume` if there is something to resume, else `run`."""
        with run.with_suffix(".log").open("ab") as log:
            return subprocess.Popen([*self.command, *self.words(run), *options], stdout=log, stderr=log)

    def words(self, run: Path) -> list[str]:
        """What follows the command's name."""
        known = any((run / "checkpoints").glob("gen-*"))
        return ["resume", str(run)] if known else ["run", str(self.folder / "config.yaml"), "--output", str(run)]

    def finish(self, run: Path, *options: str) -> bool:
        """Whether the run ends, in time and with exit code 0."""
        job = self.start(run, *options)
        try:
            return job.wait(self.deadline) == 0
        except subprocess.TimeoutExpired:
            job.kill()
            return False


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler's file, and the processes: the scheduler, and workers of one thread each behind nannies, on loopback."""
    file = folder / "scheduler.json"
    where = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((folder / "dask.log").open("ab"))
            process = subprocess.Popen([sys.executable, "-m", "dask", *words, *where], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        processes = [start("scheduler", "--port", "0")]
        began = time.monotonic()
        while not file.exists() and time.monotonic() - began < 60:
            time.sleep(0.1)
        yield str(file), [*processes, *(start("worker", "--nthreads", "1") for _ in range(workers))]


def strikes(
    job: subprocess.Popen[bytes], rng: random.Random, every: float, deadline: float, strike: Callable[[], Any]
) -> int:
    """Strike at random instants, `every` seconds apart on average, until the job ends or is late; how many took effect."""
    hits, began = 0, time.monotonic()
    while job.poll() is None and time.monotonic() - began < deadline:
        try:
            job.wait(rng.uniform(0, 2 * every))
        except subprocess.TimeoutExpired:
            if strike() and job.poll() is None:
                hits += 1
    return hits
