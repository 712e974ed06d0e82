"""What a job tells: the time that the user waited, and the events that matter."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, workflow
from tests.jobs import blobs, command, job, write_config, write_rows

pytestmark = pytest.mark.full


def test_the_time_of_a_job_counts_from_when_the_user_began_to_wait(tmp_path):
    """Imports before the job count, and so does the report: the last event is logged when it is written."""
    seen: list[dict[str, Any]] = []
    written: list[bool] = []
    run = tmp_path / "run"

    def listen(event: dict[str, Any]) -> None:
        seen.append(event)
        written.append((run / "report.html").exists())

    config = job(write_rows(tmp_path / "x.zarr", blobs()), fit={"max_iter": 2}, output={"labels": False})
    workflow.run(config, run, listeners=[listen], began=time.perf_counter() - 1000)
    assert seen[-1]["event"] == "finished" and written[-1] and 1000 < seen[-1]["seconds"] < 1300
    assert seen[-2]["event"] == "stored" and not written[-2] and 1000 < seen[-2]["seconds"] < seen[-1]["seconds"]
    assert "16\N{NARROW NO-BREAK SPACE}min" in (run / "report.html").read_text()


def test_the_command_begins_to_count_before_its_imports(tmp_path, monkeypatch):
    """What `run`, `resume`, `predict` and `check` get is the time at which the command was entered."""
    config, found = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs())), []
    command("run", config, "--output", tmp_path / "run", "--set", "fit.max_iter=1")

    def called(*given: Any, **named: Any) -> Path:
        found.append(given[-1])
        sys.exit(0)

    for name in ("run", "resume", "predict", "check"):
        monkeypatch.setattr(workflow, name, called)
    entered = time.perf_counter()
    loading = cli._validated
    monkeypatch.setattr(cli, "_validated", lambda *given: time.sleep(0.01) or loading(*given))
    for words in (["run", config], ["resume", tmp_path / "run"], ["predict", tmp_path / "run"], ["check", config]):
        command(*words)
        assert entered <= found[-1] <= time.perf_counter() - 0.01
    assert len(found) == 4
