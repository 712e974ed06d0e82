"""What a job tells: the time that the user waited, and the events that matter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cli, workflow
from pipeline.outputs.report.figures import convergence, read_curve
from pipeline.outputs.report.record import read_record
from pipeline.outputs.report.summary import happenings, why_stopped
from tests.jobs import blobs, command, job, write_config, write_rows
from tests.stores import dense_run

pytestmark = pytest.mark.full


def test_the_command_counts_from_the_start_of_its_process():
    """Not from when its imports have ended: at least as long as the process slept before them, at most as long as it was waited for."""
    code = (
        "import time; time.sleep(0.5); from pipeline import cli; "
        "cli.main = lambda began: print(time.perf_counter() - began); cli.command()"
    )
    began = time.perf_counter()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.49 <= age <= time.perf_counter() - began + 0.01  # in hundredths


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
        found.append(next(one for one in given if isinstance(one, float)))
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


def test_the_curve_shows_what_the_verdict_speaks_of(tmp_path):
    """Under a prior, the history has the objective: the curve, its numbers and tol are of this one series, which never falls."""
    counts = np.random.default_rng(0).poisson(3.0, size=(300, 4)).astype(float)
    np.save(tmp_path / "x.npy", counts)
    model = {"family": "multinomial", "n_components": 2, "concentration": 3.0}
    config = job(tmp_path / "x.npy", model=model, fit={"max_iter": 9, "tol": 1e-9}, output={"labels": False})
    record = read_record(workflow.run(config, tmp_path / "run"))
    curve = read_curve(record)
    assert curve is not None and curve.bound is not None and record.objective == "objective"
    final = float(record.attrs["restarts"][0]["objective"]) / 300
    assert abs(curve.objective[-1] - final) < 1e-12 and curve.objective[0] != record.array("log_likelihood")[0] / 300
    assert (curve.m_gain > -1e-12).all() and (curve.e_gain > -1e-12).all()  # type: ignore[operator]  # it has a bound
    charts = convergence(record, curve)
    assert charts[0].title == "Objective per row" and "log-likelihood plus log prior" in charts[0].caption
    assert "tol = " in "".join(str(chart.picture) for chart in charts)
    assert "Fisher" in record.attrs["stop_reason"] and "Fisher" not in why_stopped(record)
    plain = job(tmp_path / "x.npy", fit={"max_iter": 2}, output={"labels": False})
    assert not read_record(workflow.run(plain, tmp_path / "plain")).has("objective")


def test_rejected_steps_and_repeated_warnings_have_one_line(tmp_path):
    """What happened again is counted, not listed."""
    run = dense_run(tmp_path / "run")
    at = {"time": "2026-03-05T20:00:00+00:00"}
    steps = [
        {"event": "rejected", "restart": 0, "iteration": t, "objective": None, "least": 1.0, **at} for t in (3, 5, 6)
    ]
    warnings = [{"event": "warning", "message": "rows repeat", **at}] * 2
    other = [{"event": "unheard_of", "value": i, **at} for i in range(150)]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*other, *steps, *warnings]))
    shown, more = happenings(read_record(run))
    assert len(shown) == 100 and more == 52
    assert shown[-2].text.startswith("An extrapolation step was rejected at iteration 3, and 2 more later")
    assert shown[-1].text == "rows repeat (2 times)"
