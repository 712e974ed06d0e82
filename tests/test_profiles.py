"""Clusters by name: who describes them, what is refused, and each kind on one machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.profiles import profile_of, serves
from pipeline.engine.cluster import _within, open_engine
from pipeline.engine.identity import Identity, identity, refuse_other
from pipeline.errors import ClusterLost, InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from tests.clusters import ROOT, addresses, cluster, environment, eventually
from tests.jobs import blobs, refused, results, write_config, write_rows


def engine(**settings):
    """The engine section of a config."""
    return validate({"engine": settings}).engine


def test_a_profile_comes_from_the_config_or_from_the_users_file(tmp_path, monkeypatch):
    """The file that EM_PIPELINE_PROFILES names, else that of the user's settings; the config's own come first."""
    mine = tmp_path / "em-pipeline" / "profiles.yaml"
    mine.parent.mkdir()
    mine.write_text("big: {kind: dask_jobqueue.PBSCluster, workers: 7}\nsmall: {workers: 1}\n")
    monkeypatch.delenv("EM_PIPELINE_PROFILES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert profile_of(engine(scheduler="big")).workers == 7
    assert profile_of(engine(scheduler="small", profiles={"small": {"workers": 2}})).workers == 2
    assert profile_of(engine(scheduler="local")).kind == "local"
    assert profile_of(engine()) is None and profile_of(engine(scheduler_address="tcp://a:1")) is None
    monkeypatch.setenv("EM_PIPELINE_PROFILES", str(tmp_path / "other.yaml"))
    with pytest.raises(InputError, match=r"other\.yaml does not exist"):
        profile_of(engine(scheduler="big"))


def test_a_class_of_any_package_may_stand_in_the_users_own_file(tmp_path, monkeypatch):
    """There it is looked up, and has to be a cluster as elsewhere."""
    (tmp_path / "p.yaml").write_text("mine: {kind: os.getcwd}")
    monkeypatch.setenv("EM_PIPELINE_PROFILES", str(tmp_path / "p.yaml"))
    said = "got os.getcwd, .* expected a class derived from distributed's Cluster"
    with pytest.raises(InputError, match=said), open_engine(engine(scheduler="mine"), 1):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {kind: moon}", "'moon', expected local, ssh, slurm, slurm-runner or a dotted name"),
        ("a: {wrokers: 2}", "line 1: engine.profiles.a.wrokers: there is no such key; did you mean workers"),
        ("- a", r"engine.profiles: got \[a\], expected keys of its own"),
        ("a: !!python/object/apply:os.getcwd []", "It has a tag"),
    ],
)
def test_a_profiles_file_that_is_not_one_is_refused(tmp_path, monkeypatch, text, said):
    """Unknown kinds and keys, other shapes and tags that would run something: each is named."""
    (tmp_path / "p.yaml").write_text(text)
    monkeypatch.setenv("EM_PIPELINE_PROFILES", str(tmp_path / "p.yaml"))
    with pytest.raises(InputError, match=said):
        profile_of(engine(scheduler="a"))


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"options": {"n_workers": 2}}, "leave options and adapt out"),
        ({"kind": "slurm", "threads_per_worker": 2}, "say it in the options of slurm"),
        ({"kind": "ssh", "workers": 2}, "as many as hosts in its options"),
        ({"kind": "slurm-runner", "adapt": {"maximum": 2}}, "as many as srun says"),
        ({"kind": "slurm", "workers": 2, "adapt": {"maximum": 2}}, "a fixed number or a range"),
    ],
)
def test_what_a_kind_would_ignore_is_refused(profile, said):
    """An option that a kind does nothing with is an error, never silence."""
    with pytest.raises(InputError, match=said):
        engine(profiles={"a": profile})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "no_such.Cluster",
            r"got no_such.Cluster, expected a class of one of .*Describe .* another package in .*profiles.yaml",
        ),
        ("distributed.NoCluster", "no distributed.NoCluster here"),
        ("distributed.Client", "expected a class derived from distributed's Cluster"),
    ],
)
def test_a_dotted_name_has_to_be_a_cluster(kind, said):
    """What is no cluster's class is not called; a config imports packages of clusters only."""
    with pytest.raises(InputError, match=said), open_engine(engine(scheduler="a", profiles={"a": {"kind": kind}}), 1):
        pass


def test_one_of_an_srun_serves_and_one_drives(monkeypatch):
    """Of the tasks of one srun the second is the driver; elsewhere this process is."""
    runner = engine(scheduler="a", profiles={"a": {"kind": "slurm-runner"}})
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert not serves(runner) and not serves(engine())
    for rank, serving in (("0", True), ("1", False), ("2", True)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        assert serves(runner) is serving and not serves(engine(scheduler="local"))


def test_a_worker_with_other_versions_is_refused_with_the_line_to_run():
    """Each difference is named, and how to end it."""
    mine = identity(KERNELS)
    refuse_other("w", mine, mine)
    other = tuple((name, "0.1" if name in ("numpy", "python") else value) for name, value in mine.versions)
    numpy = dict(mine.versions)["numpy"]
    with pytest.raises(InputError, match=rf"worker w has python 0.1 .* numpy 0.1 .*pip install numpy=={numpy}"):
        refuse_other("w", mine, mine._replace(versions=other))
    with pytest.raises(InputError, match="export OPENBLAS_CORETYPE"):
        refuse_other("w", mine, Identity(mine.versions, ("openblas Prescott",)))


def test_a_cluster_that_does_not_come_up_is_given_up():
    """Machines that do not answer: exit code 4 after the profile's wait; what goes wrong before is what it is."""
    with pytest.raises(ClusterLost, match=r"not up after 0.2 s"):
        _within(0.2, partial(time.sleep, 2))
    with pytest.raises(ZeroDivisionError):
        _within(5, lambda: 1 / 0)
    assert _within(5, lambda: 7) == 7


def certificates(folder: Path) -> dict[str, str]:
    """A certificate that is its own authority."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=em",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    return {"ca_file": str(cert), "cert": str(cert), "key": str(key)}


def test_security_names_files_that_are_there(tmp_path):
    """A missing certificate is refused before anything is started."""
    store = write_rows(tmp_path / "x.zarr", blobs())
    missing = {name: str(tmp_path / "none.pem") for name in ("ca_file", "cert", "key")}
    config = write_config(tmp_path / "c.yaml", store, engine={"scheduler": "local", "security": missing})
    assert "none.pem is not there" in refused("run", config, "--output", tmp_path / "run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with data, a config, and the run on threads."""
    folder = tmp_path_factory.mktemp("alone")
    write_config(folder / "c.yaml", write_rows(folder / "x.zarr", blobs()))
    finished(run(folder, "threads"))
    return folder


def run(folder: Path, name: str, *options: str, **variables: str) -> subprocess.Popen[str]:
    """The job, in a process of its own."""
    words = ["-m", "pipeline", "run", folder / "c.yaml", "--output", folder / name, *options]
    env = environment() | variables
    return subprocess.Popen([sys.executable, *map(str, words)], env=env, stderr=subprocess.PIPE, text=True, cwd=folder)


def finished(process: subprocess.Popen[str]) -> None:
    """Exit code 0, in time."""
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors


def on_loopback(kind: str, **options) -> str:
    """--set for a profile `mine` whose processes listen on loopback."""
    return "engine.profiles=" + yaml.safe_dump({"mine": {"kind": kind, **options}}, default_flow_style=True, width=9999)


HERE = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


@pytest.mark.slow
def test_tls_between_all_processes(alone, tmp_path):
    """Under security, a local cluster speaks TLS; a cluster that has it refuses a job without."""
    import psutil

    security = f"engine.security={yaml.safe_dump(certificates(tmp_path), default_flow_style=True, width=9999)}"
    job = run(alone, "tls", "--profile", "local", "--set", security)
    seen: set[str] = set()
    while job.poll() is None:
        seen |= addresses([psutil.Process(job.pid)])
    finished(job)
    assert seen == {"127.0.0.1"}
    assert results(alone / "tls") == results(alone / "threads")


@pytest.mark.slow
def test_any_cluster_by_its_dotted_name_with_workers_that_come_and_go(alone):
    """distributed's own LocalCluster by name, adaptive."""
    options = {**HERE, "n_workers": 0, "threads_per_worker": 1}
    job = run(
        alone,
        "dotted",
        "--profile",
        "mine",
        "--set",
        on_loopback("distributed.LocalCluster", options=options, adapt={"minimum": 1, "maximum": 2}),
    )
    finished(job)
    assert results(alone / "dotted") == results(alone / "threads")


@pytest.mark.slow
def test_the_tasks_of_one_srun(alone):
    """Kind slurm-runner: started four times with the variables that srun sets, the second makes the directory, all end."""
    pytest.importorskip("dask_jobqueue")
    options = {"scheduler_file": str(alone / "runner-{job_id}.json"), "scheduler_options": {**HERE, "port": 0}}
    profile = on_loopback("slurm-runner", options={**options, "worker_options": {**HERE, "nthreads": 1}})
    ranks = [
        run(
            alone,
            "runner",
            "--profile",
            "mine",
            "--set",
            profile,
            SLURM_PROCID=str(i),
            SLURM_NTASKS="4",
            SLURM_JOB_ID="7",
        )
        for i in range(4)
    ]
    for rank in ranks:
        finished(rank)
    assert results(alone / "runner") == results(alone / "threads")


@pytest.mark.slow
def test_a_batch_job_for_each_worker(alone, tmp_path):
    """Kind slurm: with stand-ins for sbatch and scancel that run the job's script here."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "sbatch").write_text('#!/bin/sh\nsh "$1" >> "$0.log" 2>&1 &\necho "Submitted batch job $!"\n')
    (tmp_path / "scancel").write_text("#!/bin/sh\nkill $@ 2>/dev/null; exit 0\n")
    for name in ("sbatch", "scancel"):
        (tmp_path / name).chmod(0o755)
    options = {
        "cores": 1,
        "memory": "1GiB",
        "processes": 1,
        "scheduler_options": {**HERE, "port": 0},
        "worker_extra_args": ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"],
        "local_directory": str(tmp_path),
    }
    profile = on_loopback("slurm", workers=2, options=options)
    finished(
        run(alone, "slurm", "--profile", "mine", "--set", profile, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    )
    assert results(alone / "slurm") == results(alone / "threads")
    eventually(lambda: "Closing Nanny" in (tmp_path / "sbatch.log").read_text(), 30)


def test_the_profiles_of_the_docs_are_valid():
    """What docs/clusters.md shows of a profiles file can be copied."""
    text = (ROOT / "docs" / "clusters.md").read_text().split("profiles.yaml\n", 1)[1].split("```")[0]
    profiles = engine(profiles=yaml.safe_load(text)).profiles
    assert {profile.kind for profile in profiles.values()} == {"local", "slurm", "ssh", "dask_jobqueue.PBSCluster"}


@pytest.mark.slow
def test_tls_on_a_running_cluster(alone, tmp_path):
    """With the same certificate the job runs; without one it ends with exit code 4."""
    files = certificates(tmp_path)
    options = (
        "--protocol",
        "tls",
        *(f"--tls-{name}={files[key]}" for name, key in (("ca-file", "ca_file"), ("cert", "cert"), ("key", "key"))),
    )
    security = f"engine.security={yaml.safe_dump(files, default_flow_style=True, width=9999)}"
    with cluster(tmp_path, workers=1, options=options) as found:
        assert found.address.startswith("tls://")
        finished(run(alone, "tls-running", "--scheduler-address", found.address, "--set", security))
        without = run(alone, "none", "--scheduler-address", found.address)
        _, errors = without.communicate(timeout=120)
    assert without.returncode == 4 and "no scheduler answered" in errors, errors
    assert not (alone / "none").exists()
    assert results(alone / "tls-running") == results(alone / "threads")


@contextmanager
def ssh_server() -> Iterator[int]:
    """The port of a server on loopback that asks for no password and runs what it is told, until the connection closes."""
    asyncssh = pytest.importorskip("asyncssh")

    class NoPassword(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    async def obey(process: Any) -> None:
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        child = await asyncio.create_subprocess_shell(f"exec {process.command}", **pipes, env=environment())
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        over = [asyncio.ensure_future(done) for done in (child.wait(), process.wait_closed())]
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        if child.returncode is None:
            child.kill()
        process.exit(await child.wait())

    async def serve() -> Any:
        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[key], server_factory=NoPassword, process_factory=obey
        )

    async def stop(server: Any) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(30)
    try:
        yield server.get_port()
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.mark.slow
def test_machines_by_ssh(alone):
    """Kind ssh: scheduler and worker are started through an SSH server of this process."""
    with ssh_server() as port:
        options = {
            "hosts": ["127.0.0.1", "127.0.0.1"],
            "connect_options": {"port": port, "known_hosts": None, "username": "me"},
            "scheduler_options": {**HERE, "port": 0},
            "worker_options": {"nthreads": 1},
        }
        finished(run(alone, "ssh", "--profile", "mine", "--set", on_loopback("ssh", options=options)))
    assert results(alone / "ssh") == results(alone / "threads")
