"""scripts/clusters on one machine: what they start, whom they signal, and when a job goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clusters import ROOT, environment, eventually
from tests.jobs import blobs, results, write_config, write_rows

SCRIPTS = ROOT / "scripts" / "clusters"
STAND_INS = ROOT / "tests" / "stand-ins"
# Three of the tasks of an srun: the second answers USR1 as a driver does, with 75.
DRIVER = """#!/bin/sh
echo "$SLURM_PROCID $@" >> "$HERE/words"
[ "$SLURM_PROCID" = 1 ] || { trap '' USR1; while [ ! -e "$HERE/ended" ]; do sleep 0.05; done; exit 0; }
trap 'touch "$HERE/ended"; exit 75' USR1
[ -e "$HERE/quick" ] && touch "$HERE/ended" && exit 0
touch "$HERE/up"
while :; do sleep 0.05; done
"""


def slurm(folder: Path, *commands: Path, tasks: int = 3) -> dict[str, str]:
    """The environment of a batch job on a machine with stand-ins for SLURM, and commands first found in these folders."""
    path = os.pathsep.join(map(str, (*commands, STAND_INS, os.environ["PATH"])))
    job = {"SLURM_JOB_ID": "11", "SLURM_NTASKS": str(tasks), "SCONTROL_LOG": str(folder / "scontrol.log")}
    return environment() | job | {"PATH": path, "HERE": str(folder)}


def started(script: str, *words: object, env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """A script of scripts/clusters."""
    program = [str(SCRIPTS / script), *map(str, words)]
    return subprocess.Popen(program, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.full
def test_a_batch_job_that_is_stopped_goes_back_into_the_queue(tmp_path):
    """USR1 to the script reaches the driver; its 75 requeues the job, and the next start resumes; 0 ends it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "em-pipeline").write_text(DRIVER)
    (tmp_path / "bin" / "em-pipeline").chmod(0o755)
    env = slurm(tmp_path, tmp_path / "bin")
    job = started("slurm", "c.yaml", "run", env=env, cwd=tmp_path)
    eventually((tmp_path / "up").exists, 20)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 75, out
    assert (tmp_path / "scontrol.log").read_text() == "requeue 11\n"
    lines = (tmp_path / "words").read_text().splitlines()
    assert len(lines) == 3 and all(
        line[2:].startswith("run c.yaml --output run --set engine.profiles=") for line in lines
    )
    (tmp_path / "run" / "checkpoints" / "gen-000001").mkdir(parents=True)
    (tmp_path / "ended").unlink()
    (tmp_path / "quick").touch()
    again = started("slurm", "c.yaml", "run", env=env | {"SLURM_RESTART_COUNT": "1"}, cwd=tmp_path)
    out, _ = again.communicate(timeout=20)
    assert again.returncode == 0, out
    assert (tmp_path / "scontrol.log").read_text() == "requeue 11\n"
    resumed = (tmp_path / "words").read_text().splitlines()[3:]
    assert len(resumed) == 3 and all("resume run" in line and "scheduler-11-1.json" in line for line in resumed)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with data, a config, the command, and the run on threads."""
    folder = tmp_path_factory.mktemp("alone")
    write_config(folder / "c.yaml", write_rows(folder / "x.zarr", blobs()), fit={"init": "random"})
    (folder / "bin").mkdir()
    for name, module in (("em-pipeline", "pipeline"), ("dask", "dask")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    subprocess.run(
        [folder / "bin" / "em-pipeline", "run", "c.yaml", "--output", "threads"],
        env=environment(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.slow
def test_the_batch_script_on_one_machine(alone):
    """scheduler, driver and two workers as tasks of one srun: all end, with the same bytes."""
    pytest.importorskip("dask_jobqueue")
    job = started("slurm", "c.yaml", "run", env=slurm(alone, alone / "bin", tasks=4), cwd=alone)
    out, _ = job.communicate(timeout=150)
    assert job.returncode == 0, out
    assert results(alone / "run") == results(alone / "threads")


@pytest.mark.slow
def test_the_plain_script_on_one_machine(alone):
    """A head and two workers, each by its own call: all end, with the same bytes."""
    path = os.pathsep.join((str(alone / "bin"), os.environ["PATH"]))
    env = environment() | {"PATH": path, "PORT": "18786"}
    head = started("plain", "head", "127.0.0.1", "c.yaml", "plain", env=env, cwd=alone)
    workers = started("plain", "workers", "127.0.0.1", "2", "127.0.0.1", env=env, cwd=alone)
    out, _ = head.communicate(timeout=150)
    assert head.returncode == 0, out
    workers.communicate(timeout=60)
    assert results(alone / "plain") == results(alone / "threads")
