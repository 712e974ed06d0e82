"""Workers and schedulers that cannot do the work: without the package, of another version, or without memory."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Any

import dask
import numpy as np
import pytest

import pipeline
from pipeline import workflow
from pipeline.engine import cluster, waiting
from pipeline.engine.cluster import open_engine
from pipeline.engine.passes import unused_address
from pipeline.engine.waiting import Cluster, _SchedulerState, refuse_without_package
from pipeline.errors import ClusterLost, InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.outputs.events import EventLog
from pipeline.outputs.report.record import read_record
from pipeline.outputs.report.summary import happenings
from tests.jobs import blobs, command, job, refused, write_config


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pipeline'"),
        Exception("ModuleNotFoundError(\"No module named 'pipeline.engine'\")"),  # as a scheduler hands it on
        AttributeError("Can't get attribute 'Kernels' on <module 'pipeline.kernels.base'>"),
        RuntimeError("Error during deserialization: ImportError: cannot import name 'x'"),
    ],
)
def test_a_process_without_the_package_or_with_another_one_is_named(error: BaseException) -> None:
    """It is no bug: the message says where, and what to install."""
    with pytest.raises(InputError, match=r"worker tcp://a:1: cannot load .* pip install em-pipeline=="):
        refuse_without_package("worker tcp://a:1", error)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("1"), StorageError("ImportError: chunk 3"), AttributeError("no x")]
)
def test_other_errors_are_what_they_are(error: BaseException) -> None:
    """Those of tasks, and our own, whatever they speak of."""
    refuse_without_package("a worker", error)


class Client:
    """Answers as a client whose workers and scheduler say the same, or fail alike."""

    status = "running"

    def __init__(self, answer: Any) -> None:
        self.answer, self._run, self._run_on_scheduler = answer, "on workers", "on the scheduler"

    def sync(self, what: str, *_: Any, **__: Any) -> Any:
        if what == "on workers":
            return {"tcp://a:1": self.answer}
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_workers_and_schedulers_are_asked_in_this_way() -> None:
    """Before the first pass, and while tasks run."""
    missing = Cluster(Client(Exception("ModuleNotFoundError: No module named 'pipeline'")))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="worker tcp://a:1: cannot load"):
        missing.on_workers(len)
    with pytest.raises(InputError, match="the scheduler: cannot load"):
        missing._state()


TWO = frozenset({"tcp://a:1", "tcp://b:1"})
STATE = _SchedulerState(workers=TWO, ended=0, worker_ttl=0.0, paused=TWO, memory_limit=512 * 2**20)


def events_of(there: Cluster) -> list[dict[str, Any]]:
    """What a cluster logs from now on."""
    found: list[dict[str, Any]] = []
    there.log = lambda event, **fields: found.append({"event": event, **fields})
    return found


def test_workers_that_are_paused_for_long_are_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: an error within two minutes, which names their limit. While one works, the job goes on with a warning."""
    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    of_paused = Cluster(Client(STATE))  # type: ignore[arg-type]
    of_one = Cluster(Client(STATE._replace(paused=frozenset({"tcp://b:1"}))))  # type: ignore[arg-type]
    events = events_of(of_one)
    for clock[0] in range(0, 61, 5):
        of_paused._state()
        of_one._state()
    assert not events
    for clock[0] in (65.0, 70.0):
        of_one._state()
    (event,) = events  # once
    assert event["event"] == "warning"
    assert "1 of 2 workers (tcp://b:1) have been paused for 60 s" in event["message"]
    assert "limit of 512 MiB" in event["message"]
    with pytest.raises(ClusterLost, match=r"all 2 workers have been paused for 60 s: .* limit of 512 MiB"):
        of_paused._state()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report is written."""
    from pipeline.outputs import report

    monkeypatch.setattr(report, "write_report", lambda path: (path / "report.html").write_text("report"))


def test_a_lost_worker_is_told_about(tmp_path: Any, quick: None) -> None:
    """Dask computes again what it had: an event says so, once, in status and in the report."""
    there = Cluster(Client(STATE._replace(paused=frozenset())))  # type: ignore[arg-type]
    events = events_of(there)
    there._state()
    there.client.answer = there.client.answer._replace(workers=frozenset({"tcp://b:1"}))
    there._state()
    there._state()
    assert events == [{"event": "worker_lost", "worker": "tcp://a:1", "workers": 1}]
    np.save(tmp_path / "x.npy", blobs())
    pipeline.run(job(tmp_path / "x.npy"), tmp_path / "run")
    EventLog(tmp_path / "run" / "events.jsonl")(**events[0])
    said = command("status", tmp_path / "run").out
    assert "worker tcp://a:1 is gone; 1 worker is left" in said and "1 lost" in said
    (shown,) = [each for each in happenings(read_record(tmp_path / "run"))[0] if each.what == "worker_lost"]
    assert "Worker tcp://a:1 was lost" in shown.text


def test_memory_that_there_is_not_is_no_bug(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it was asked for: exit code 2, and what to lower."""

    def greedy(*_: Any, **__: Any) -> Any:
        raise MemoryError("Unable to allocate 1 EiB")

    np.save(tmp_path / "x.npy", blobs())
    monkeypatch.setattr("pipeline.workflow.plan_job", greedy)
    said = refused("check", write_config(tmp_path / "c.yaml", tmp_path / "x.npy"))
    assert "out of memory (Unable to allocate 1 EiB). Lower engine.memory" in said


@pytest.mark.full
def test_a_scheduler_of_another_version_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a client is made, whose failure would say that nobody answered; one of the same version is not."""
    import distributed

    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=50) as there:
        engine = validate({"engine": {"scheduler_address": there.scheduler_address}}).engine
        with open_engine(engine, 1):
            pass
        monkeypatch.setattr(distributed, "__version__", "1999.1.0")
        with (
            pytest.raises(InputError, match=r"the scheduler has distributed 20.*, this process 1999\.1\.0"),
            open_engine(engine, 1),
        ):
            pass
    monkeypatch.setattr(cluster, "ASK_SECONDS", 0.5)
    cluster._refuse_other_scheduler("nobody", there.scheduler_address, None)  # nobody answers: the client says so
    asyncio.set_event_loop(None)


def test_an_address_in_dasks_settings_is_not_used_in_silence(
    tmp_path: Any, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """DASK_SCHEDULER_ADDRESS, or a file of theirs: a job on threads says what it does not use, and how to."""
    np.save(tmp_path / "x.npy", blobs())
    config = job(tmp_path / "x.npy")
    assert unused_address(config.engine) is None
    with dask.config.set({"scheduler-address": "tcp://10.0.0.1:8786"}), caplog.at_level(logging.WARNING, "em_pipeline"):
        assert unused_address(validate({"engine": {"scheduler_address": "tcp://a:1"}}).engine) is None
        pipeline.run(config, tmp_path / "run")
        refused("check", write_config(tmp_path / "none.yaml", tmp_path / "none.npy"))
        said = "which is not used: this job runs on threads. To use it, add --scheduler-address tcp://10.0.0.1:8786"
        assert said in caplog.text
        for again in (
            lambda: pipeline.predict(tmp_path / "run", [f"data.path={tmp_path / 'x.npy'}"], tmp_path / "labels"),
            lambda: shutil.rmtree(tmp_path / "run" / "labels.zarr") or workflow.resume(tmp_path / "run"),
        ):
            caplog.clear()
            again()
            assert said in caplog.text
