"""What a person sees of a job: a function of the events, in a terminal, in a log and on another machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import workflow
from pipeline.data import source
from pipeline.engine import stored_sums
from pipeline.fitting import driver
from pipeline.outputs import checkpoint, run_directory
from pipeline.outputs.display import JobDisplay
from pipeline.outputs.events import EventLog, Tail, read_events
from pipeline.outputs.progress import describe
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.screen import following
from tests.jobs import blobs, job, results, write_rows

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[1]
BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ASKED = {"family": "gaussian", "n_components": 20, "covariance_type": "full", "max_iter": 40, "tol": 1e-3}


def logged(n_passes: int = 12, finished: bool = True) -> list[dict]:
    """The events of a made-up job, a second apart, with a `progress` during each pass."""
    found: list[dict] = []

    def log(event: str, **fields: object) -> None:
        at = BEGIN + timedelta(seconds=len(found))
        found.append({"event": event, "time": at.isoformat(timespec="milliseconds"), **fields})

    where = {
        "asked": ASKED,
        "rows": 1_000_000,
        "chunks": 64,
        "workers": 4,
        "blas": ["one"],
        "dashboard": "http://a:1/status",
    }
    log("start", **where)
    log("profile", rows=1_000_000, seconds=1.0)
    log("init", method="k-means||", seconds=1.0)
    for i in range(n_passes + finished):
        log("progress", chunks=32, of=64)
        each = {
            "iteration": min(i, n_passes - 1),
            "final": i == n_passes,
            "seconds": 2.0,
            "rows": 1_000_000,
            "workers": 4,
        }
        figures = {"log_likelihood": -5e6 / (i + 1), "log_likelihood_per_row": -5 / (i + 1), "bytes_read": 10**9}
        last = i >= n_passes - 1 and finished
        state = {
            "restarts": 1,
            "running": int(not last),
            "max_iter": 40,
            "stop_reason": "converged: yes" if last else None,
        }
        log("pass", **each, **figures, **state)
    log("reset", component=7, done=True, reason="too few rows")
    log("checkpoint", generation=3, seconds=0.1)
    if finished:
        log("labelled", rows=500_000, of=1_000_000)
        log("labels", rows=1_000_000, seconds=1.0)
        log("finished", seconds=60.0, peak_pss=2**30)
    return found


def drawn(events: list[dict], width: int = 80, ended: str = "", after: float = 0.5) -> str:
    """The display of these events, some seconds after the last."""
    now, out = BEGIN + timedelta(seconds=len(events) - 1 + after), io.StringIO()
    display = JobDisplay("runs/[b]photos[/i]", Console(file=out, width=width, color_system=None), lambda: now)
    for event in events:
        display.add(event)
    display.ended = ended
    display.console.print(display.draw())
    return out.getvalue()


def test_the_display_fits_any_width_at_any_time():
    """No line is longer than the terminal, however far the job is; from 80 on nothing is cut off."""
    events = logged()
    for n in range(len(events) + 1):
        for width in (30, 66, 80, 200):
            lines = drawn(events[:n], width).splitlines()
            assert all(len(line) <= width for line in lines), (n, width)
            assert width < 80 or not any("…" in line for line in lines)
        assert "runs/[b]photos[/i]" in drawn(events[:n])


def test_the_display_says_how_far_a_job_is():
    """Phase, pass, speed, figure, resets, workers, dashboard; times left are bounds or say what they rest on."""
    now = drawn(logged(finished=False))
    assert "Gaussian mixture, 20 components, full; 1M rows in 64 chunks" in now and "▸ fit" in now
    assert "12 of at most 40" in now and "at most 58 s left" in now  # 28 iterations of 2 s and the final pass are
    assert "500k rows/s, 477 MiB/s, 4 workers" in now and "1 reset" in now and "http://a:1/status" in now
    assert "-0.4166667 nats a row, change +0.0379, tol 0.001" in now and "▁" in now and "gen-000003" in now
    ended = drawn(logged(), ended="finished")
    assert "finished  1:00" in ended and "converged: yes" in ended and "▸" not in ended and "dashboard" not in ended


def test_the_display_moves_within_a_pass():
    """By the finished chunks where these were logged; else by the last pass, which it says; never to the end of the bar."""
    events = logged(finished=False)
    progress = next(i for i, event in enumerate(events) if event["event"] == "progress")
    assert "chunk 32 of 64" in drawn(events[: progress + 1]) and "about 0 s left" in drawn(events[: progress + 1])
    done = events[: progress + 2]
    assert "as the last one" in drawn(done) and "about 2 s left" in drawn(done, after=0.4)
    assert "9 s so far" in drawn(done, after=9.0)
    assert "last event" in drawn(done, after=300.0) and "last event" not in drawn(done, after=30.0)


def test_what_is_written_is_said():
    """A prediction labels rows; other commands write rows, units or blocks of rows."""
    assert describe({"event": "labelled", "rows": 3, "of": 4}) == "labelled 3 of 4 rows"
    event = logged()[0] | {"event": "labelled", "rows": 3, "of": 4, "what": "blocks"}
    assert describe(event) == "wrote 3 of 4 blocks" and "3 blocks" in drawn([logged()[0], event])


def test_words_are_those_of_the_family():
    """A family that this version does not know is shown in the words of its `start` event, and its options as asked."""
    words = {"name": "Poisson mixture", "title": "A mixture of {k} Poissons", "components": "kinds", "odd": 1}
    events = logged(3, finished=False)
    start = events[0] | {"words": words, "asked": {"family": "my_poisson", "n_components": [2, 5, 10], "tol": 0.5}}
    shown = drawn([start, *events[1:]])
    assert (
        "Poisson mixture, 2, 5 or 10 kinds; 1M rows" in shown and "kinds      1 reset" in shown and "tol 0.5" in shown
    )
    plain = drawn([start | {"words": None}, *events[1:]])
    assert "My_poisson model, 2, 5 or 10 components;" in plain


def test_collapsed_components_are_counted_once():
    """Those that the last iteration left collapsed, not each mention of them."""
    events = logged(3, finished=False)
    left = [events[-2] | {"component": k, "done": False} for k in (1, 2, 2)]
    assert "1 reset, 2 collapsed" in drawn([*events, *left])
    again = [event for event in events if event["event"] == "pass"][-1]
    assert "collapsed" not in drawn([*events, *left, again])


@pytest.mark.parametrize(
    "lost", ["rows", "seconds", "iteration", "max_iter", "log_likelihood_per_row", "done", "chunks"]
)
def test_an_odd_line_ends_nothing(lost):
    """An event without one of its fields, or with another type of value, is left out of the display and of the lines."""
    events = logged()
    for odd in (None, "many", []):
        without = [{k: (odd if k == lost else v) for k, v in event.items()} for event in events]
        missing = [{k: v for k, v in event.items() if k != lost} for event in events]
        for strange in (without, missing):
            assert "runs/[b]photos[/i]" in drawn(strange) and "finished" in drawn(strange, ended="finished")
            assert [describe(event) for event in strange]


def test_logs_of_earlier_versions_are_read(tmp_path):
    """Events under their old names come under the present ones; what is no event is left out."""
    names = {"rung": "level", "refused": "rejected", "annihilation": "pruning", "underway": "progress", "pass": "pass"}
    lines = [json.dumps({"event": name, "time": BEGIN.isoformat()}) for name in names]
    lines += ['{"event": [], "time": "2026-01-02T03:04:05+00:00"}', '{"event": "pass", "time": "noon"}', "[]", "3"]
    lines += ['{"event": "pass", "time": "2026-01-02T03:04:05"}']  # without a zone it has no place in time
    (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == list(names.values())


def test_a_resumed_run_takes_the_place_of_what_it_does_again():
    """Iterations after the one that was resumed from are gone from the display; a new run clears it."""
    events = logged(finished=False)
    again = events[-3] | {"iteration": 4, "log_likelihood_per_row": -0.9}
    resumed = {**events[0], "event": "resume", "generation": 2, "time": events[-1]["time"]}
    display = drawn([*events, resumed, again])
    assert "5 of at most 40" in display and "-0.9" in display and "-0.4166667" not in display
    assert "5 of" not in drawn([*events, events[0]])
    assert "▸ fit" in drawn([*events, resumed]) and "-0.4166667" in drawn([*events, resumed])


def test_missing_steps_are_done_in_another_session():
    """`resume` of a fitted run, and `predict`, start the clock again, at the labels."""
    events = logged()
    console = Console(file=Terminal(), width=80, height=40, _environ={"TERM": "xterm"})
    with following(console, "runs/x", events[:-3]) as follower:
        now = io.StringIO()
        Console(file=now, width=80).print(follower.draw())
    assert "running  0 s" in now.getvalue() and "▸ labels" in now.getvalue() and "12 " in now.getvalue()


@pytest.mark.parametrize("split", [1, 7, 100])
def test_a_log_is_read_while_it_grows(tmp_path, split):
    """However it grows, what is read is what was written, once; one that was started again is read from its start."""
    path = tmp_path / "events.jsonl"
    assert list(Tail(path).new()) == []
    log, whole = EventLog(tmp_path / "whole"), b""
    for i in range(5):
        log("pass", iteration=i, name="é")
    whole = (tmp_path / "whole").read_bytes()
    tail, found = Tail(path), []
    for start in range(0, len(whole), split):
        with path.open("ab") as file:
            file.write(whole[start : start + split])
        found += tail.new()
    assert found == list(read_events(tmp_path / "whole")) and len(found) == 5
    with path.open("ab") as file:
        file.write(b'{"event": "pa\xff\n[1]\n' + whole)
    assert len(list(tail.new())) == 5 and list(tail.new()) == []
    path.unlink()
    EventLog(path)("start")
    assert [event["event"] for event in tail.new()] == ["start"]


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def shown(events: list[dict], **environment: str) -> str:
    """All that is written to a terminal while these events come."""
    out = Terminal()
    console = Console(file=out, width=80, height=24, _environ={"TERM": "xterm-256color", **environment})
    with following(console, "runs/x") as follower:
        for event in events:
            follower(event)
    return out.getvalue()


def test_a_terminal_is_left_clean():
    """The cursor is hidden and shown again, the last display stays, and NO_COLOR is respected."""
    written = shown(logged())
    assert written.index("\x1b[?25l") < written.rindex("\x1b[?25h") and written.endswith("\x1b[?25h")
    assert "\x1b[36m" in written or "\x1b[1;36m" in written
    assert "finished" in "".join(written.splitlines()[-16:])
    colours = [f"\x1b[{n}m" for n in range(30, 50)] + ["38;5", ";36m", ";33m"]
    assert not any(colour in shown(logged(), NO_COLOR="1") for colour in colours)


@pytest.mark.parametrize(
    ("terminal", "environment"), [(False, {}), (True, {"TERM": "dumb"}), (False, {"FORCE_COLOR": "1"})]
)
def test_elsewhere_it_is_plain_lines(terminal, environment, monkeypatch):
    """A log gets a readable line an event and no control character, whatever the environment asks for."""
    out = Terminal() if terminal else io.StringIO()
    with following(Console(file=out, _environ=environment), "runs/x") as follower:
        for event in logged():
            follower(event)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue() and all(line[2] == ":" and line[8:10] == "  " for line in lines)
    assert sum("iteration" in line for line in lines) == 1 and any("final pass" in line for line in lines)
    assert not any("this pass" in line for line in lines) and lines[-1].endswith("peak memory 1024 MiB")


def test_a_long_pass_logs_its_progress_and_changes_no_bit(tmp_path, monkeypatch):
    """Finished chunks are counted, and the log of a short job has none of it."""
    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    monkeypatch.setattr(source, "TARGET_BYTES", 1)  # as many chunks as are stored: six
    config = job(
        write_rows(tmp_path / "x.zarr", blobs()), fit={"max_iter": 2}, engine={"workers": 1}, output={"labels": False}
    )
    workflow.run(config, tmp_path / "short")
    assert "progress" not in (tmp_path / "short/events.jsonl").read_text()
    monkeypatch.setattr(stored_sums, "PROGRESS_SECONDS", -1.0)
    workflow.run(config, tmp_path / "long")
    events = list(read_events(tmp_path / "long/events.jsonl"))
    each: list[list[int]] = [[]]
    for event in events:
        if event["event"] == "progress":
            assert event["of"] == 6
            each[-1].append(event["chunks"])
        elif event["event"] == "pass":
            each.append([])
    assert all(chunks == sorted(chunks) and chunks[-1] == 6 for chunks in each[1:-1]), each
    assert results(tmp_path / "short") == results(tmp_path / "long")


def test_a_long_search_logs_its_progress_and_changes_no_bit(tmp_path, monkeypatch):
    """Rows read grow, to no more than was said at first, and are shown."""
    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    config = job(write_rows(tmp_path / "x.zarr", blobs()), fit={"method": "auto", "max_iter": 2})
    workflow.run(config, tmp_path / "short")
    assert "searching" not in (tmp_path / "short/events.jsonl").read_text()
    monkeypatch.setattr(driver, "PROGRESS_SECONDS", -1.0)
    workflow.run(config, tmp_path / "long")
    events = list(read_events(tmp_path / "long/events.jsonl"))
    told = [(event["rows"], event["of"]) for event in events if event["event"] == "searching"]
    assert told == sorted(told) and len({of for _, of in told}) == 1 and told[-1][0] <= told[-1][1]
    first = next(i for i, event in enumerate(events) if event["event"] == "searching")
    assert f"search     {told[0][0]} rows read" in drawn(events[: first + 1])
    assert f"search: {told[0][0]} of at most about " in describe(events[first])
    assert results(tmp_path / "short") == results(tmp_path / "long")


def test_status_watches_from_another_process_until_the_run_has_ended(tmp_path):
    """It reads the files alone, shows what happens, and ends with how to go on."""
    directory = RunDirectory(tmp_path / "run")
    program = [sys.executable, "-m", "pipeline", "status", str(directory.path), "--watch"]
    with directory.lock():
        directory.create({"config": {}})
        log = directory.events
        log.write_text("".join(json.dumps(event) + "\n" for event in logged()[:3]))
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        watching = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=env)
        assert watching.stdout is not None
        assert "1M rows in 64 chunks" in watching.stdout.readline()
        with log.open("a") as file:
            file.write("".join(json.dumps(event) + "\n" for event in logged()[3:6]))
        lines = [watching.stdout.readline() for _ in range(3)]
        assert "iteration   1" in lines[-1]
        assert watching.poll() is None
    began = time.monotonic()
    rest, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0 and time.monotonic() - began < 10
    assert "stopped" in rest and "run the same command again" in rest
