"""Telling may fail, working must not: odd lines of a log, and streams that nobody reads."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from pipeline import workflow
from pipeline.outputs.display import JobDisplay
from pipeline.outputs.events import read_events
from pipeline.outputs.report import write_report
from pipeline.outputs.screen import Lines
from pipeline.outputs.status import show
from tests.jobs import Interrupt, blobs, command, job

pytestmark = pytest.mark.full

ODD = {
    "null": None,
    "infinite": 1e999,
    "huge": 10**400,
    "negative": -1,
    "zero": 0,
    "false": False,
    "text": "\ud800 [red]<b>",
    "list": [[]],
    "mapping": {"a": {"b": None}},
    "nested": json.loads("[" * 500 + "]" * 500),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was stopped and resumed, whose log has most events."""
    folder = tmp_path_factory.mktemp("telling")
    np.save(folder / "x.npy", blobs())
    config = job(folder / "x.npy", fit={"method": "auto", "n_init": 2, "max_iter": 30, "tol": 1e-3})
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, folder / "run", listeners=[Interrupt("pass", 2)])
    workflow.resume(folder / "run")
    return folder / "run"


def tell(events):
    """Everything that a log is read for in a terminal and in a log file."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    display, lines = JobDisplay("run", console), Lines(lambda text: None)
    for event in events:
        display(event)
        lines(event)
        console.print(display.draw())


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_of_the_log_ends_nothing(run, tmp_path, odd):
    """Whatever stands where a number or text did, the run is shown and its report is written."""
    copy = shutil.copytree(run, tmp_path / "run")
    events = list(read_events(run / "events.jsonl"))
    odds = [{key: value if key in ("event", "time") else ODD[odd] for key, value in event.items()} for event in events]
    log = copy / "events.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in (*events, *odds)))
    tell(list(read_events(log)))
    assert command("status", copy).code == 0
    write_report(copy)
    for event in events:
        for key in event:
            tell([*events[:1], {**event, key: ODD[odd]}] if key not in ("event", "time") else [])


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "null",
        "1",
        '{"event": null, "time": "2026-01-01T00:00:00+00:00"}',
        '{"event": ["a"], "time": "2026-01-01T00:00:00+00:00"}',
        '{"event": "pass", "time": "0001-01-01T00:00:00+14:00"}',
        '{"event": "pass", "time": "9999-12-31T23:59:59-14:00"}',
        '{"event": "pass", "time": "2026-01-01"}',
        '{"event": "pass", "time": 5}',
        "[" * 100_000,
        "\ud800",
        "\0" * 50,
    ],
)
def test_a_line_that_is_no_event_is_left_out(tmp_path, line):
    """Lines before and after it are read."""
    good = json.dumps({"event": "pass", "time": "2026-01-01T00:00:00+00:00"})
    path = tmp_path / "events.jsonl"
    path.write_bytes(f"{good}\n{line}\n{good}\n".encode("utf-8", "surrogatepass"))
    assert len(list(read_events(path))) == 2


def test_a_log_that_cannot_be_read_ends_nothing(run, tmp_path):
    """A folder in its place, or bytes that are no text."""
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "events.jsonl").write_bytes(bytes(range(256)) * 20)
    write_report(copy)
    (copy / "events.jsonl").unlink()
    (copy / "events.jsonl").mkdir()
    show(copy, watch=False)
    write_report(copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell",
    ["{} 2>/dev/full", "{} >/dev/full", "{} 2>&-", "{} >&-", "{} >&- 2>&-", "( {}; echo $? >code ) 2>&1 | head -c 1"],
)
def test_the_job_goes_on_when_nobody_reads_it(tmp_path, shell):
    """Its reader is gone, or its disk full: the exit code is 0 and the results are there."""
    np.save(tmp_path / "x.npy", blobs())
    (tmp_path / "c.yaml").write_text(
        "data: {source: npy, path: x.npy}\nmodel: {family: kmeans, n_components: 2}\nfit: {method: em}\n"
    )
    words = f"{sys.executable} -m pipeline run c.yaml --output run"
    done = subprocess.run(["bash", "-c", shell.format(words)], cwd=tmp_path, check=False, timeout=120)
    code = int((tmp_path / "code").read_text()) if (tmp_path / "code").exists() else done.returncode
    assert code == 0 and (tmp_path / "run" / "report.html").exists()
