"""A job in a terminal: the bars of rich.progress between lines of text, a function of the events and of the time.

`run` passes on events as they happen, `status` those in events.jsonl: both draw the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import RLock
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline.outputs.progress import asked, count, describe, figure_of, roughly, rows_in_chunks, size, words_in

WIDEST = 100  # characters: longer lines are harder to read
NARROW = 66  # in fewer, notes beside the bars are left out
CURVE = 40  # characters of the curve at most
LABEL, FIGURE, NOTE = 10, 18, 20  # least characters of columns, which keep their places while figures change
SILENT = 120.0  # seconds without an event after which that is said
DRAWS_A_SECOND = 2
PARTS = ("progress", "searching")  # events that say how much of a step is done
QUIET = ("pass", "labelled", "checkpoint", *PARTS)  # events that the display shows, so they need no line
_STYLES = {"warning": "yellow", "reset": "yellow", "worker_lost": "yellow"}

PHASES = ("profile", "start", "fit", "labels", "report")
# What has begun once an event of a name is there.
_NEXT = {
    "start": "profile",
    "profile": "start",
    "init": "fit",
    "pass": "fit",
    "labelled": "labels",
    "labels": "report",
    "stored": "report",
    "copied": "report",
    "finished": "report",
}
FINISHED = "finished"
_COUNTS = ("iteration", "max_iter", "rows", "bytes_read", "workers", "restarts", "running", "final")  # of a pass


@dataclass
class _JobState:
    """State of one session of a job, from its events. since : time of the last event but PARTS."""

    began: datetime | None = None
    since: datetime | None = None
    latest: datetime | None = None
    phase: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # of start or resume
    last: dict[str, Any] = field(default_factory=dict)  # pass
    progress: dict[str, Any] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    labelled: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)  # the objective per row, by iteration
    seconds: dict[int, float] = field(default_factory=dict)  # of passes, by iteration
    levels: int = 0
    resets: int = 0
    lost: int = 0
    collapsed: set[tuple[Any, ...]] = field(default_factory=set)  # components that the last iteration left so
    chosen: str = ""
    generation: int | None = None
    finished: float | None = None


class JobDisplay:
    """The progress of a job at the bottom of a terminal, within `with`; lines above it stay.

    Parameters
    ----------
    title : str
        The first line, the run directory.
    console : Console
    clock : callable
        The time now.

    Attributes
    ----------
    ended : str
        Why there will be no more events, in a word or two; empty before that.
    """

    def __init__(self, title: str, console: Console, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.title, self.console, self.ended, self._clock = title, console, "", clock
        self._state, self._lock, self._drawn_width = _JobState(), RLock(), 0
        self._bars = Progress(
            TextColumn("{task.description}", "dim", markup=False, table_column=Column(min_width=LABEL)),
            TextColumn("{task.fields[figure]}", markup=False, table_column=Column(min_width=FIGURE, no_wrap=True)),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[note]}", justify="right", markup=False, table_column=Column(min_width=NOTE)),
            console=console,
            expand=True,
        )
        for _ in range(3):
            self._bars.add_task("", total=1.0)
        self._columns = self._bars.columns
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=DRAWS_A_SECOND)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event in the display, and in a line unless the display has it."""
        self.add(event)
        if event["event"] not in QUIET:
            self.write(event)

    def write(self, event: dict[str, Any]) -> None:
        """Write a line about an event above the display, if it has words for people."""
        if (text := describe(event)) is not None:
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_row(Text(event["time"][11:19], style="dim"), Text(text, style=_STYLES.get(event["event"], "")))
            self.console.print(row)

    def end(self, why: str) -> None:
        """Set why there will be no more events."""
        self.ended = why

    def __enter__(self) -> JobDisplay:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(self.ended or (FINISHED if kind is None else "failed" if issubclass(kind, Exception) else "stopped"))
        self._live.stop()

    def add(self, event: dict[str, Any]) -> None:
        """Update the state by an event; what it lacks is not drawn."""
        name, at = event["event"], datetime.fromisoformat(event["time"])
        with self._lock:
            if name == "start":
                self._state = _JobState()
            state = self._state
            if name in ("start", "resume") or state.began is None:
                state.began = at
            state.latest = at
            if name not in PARTS:
                state.since, state.progress = at, {}
            state.phase = "labels" if event.get("final") else _NEXT.get(name, state.phase)
            handler = getattr(self, f"_on_{name}", None)
            with suppress(Exception):  # an odd line of a log, which may hold anything, ends nothing
                if handler is not None:
                    handler(event)

    def begin_again(self) -> None:
        """Begin another session of the job."""
        state = self._state
        state.began = state.since = self._clock() if state.latest else None
        state.finished, state.labelled, state.seconds = None, {}, {}
        if state.last.get("final"):
            state.phase = "labels"

    def _on_start(self, event: dict[str, Any]) -> None:
        self._state.facts = event

    def _on_resume(self, event: dict[str, Any]) -> None:
        self.begin_again()
        state = self._state
        state.facts, state.last, state.chosen, state.levels = state.facts | event, {}, "", 0
        state.began = state.since = datetime.fromisoformat(event["time"])
        state.phase = "profile" if event["generation"] is None else "fit" if state.values else "start"

    def _on_progress(self, event: dict[str, Any]) -> None:
        self._state.progress = {"chunks": int(event["chunks"]), "of": int(event["of"]), "time": event["time"]}

    def _on_searching(self, event: dict[str, Any]) -> None:
        self._state.searched = {"rows": int(event["rows"]), "of": int(event["of"])}

    def _on_level(self, event: dict[str, Any]) -> None:
        self._state.levels += 1

    def _on_pass(self, event: dict[str, Any]) -> None:
        optional = {"restarts": 1, "running": 1, "final": False} | event
        last: dict[str, Any] = {name: int(optional[name]) for name in _COUNTS} | {"seconds": float(event["seconds"])}
        last |= {name: event.get(name) for name in ("refit", "stop_reason")}
        state, i, (_, value) = self._state, int(event["iteration"]), figure_of(event)
        if event.get("refit") != state.last.get("refit", event.get("refit")):
            state.values, state.seconds = {}, {}
        for past in (state.values, state.seconds):  # a resumed run does some iterations again
            for later in [j for j in past if j > i]:
                del past[later]
        last["noise"] = event.get("noise")
        state.last = last
        if last["final"]:
            return
        state.collapsed = set()
        state.seconds[i] = state.seconds.get(i, 0.0) + last["seconds"]
        if value is not None:
            state.values[i] = value

    def _on_reset(self, event: dict[str, Any]) -> None:
        if event["done"]:
            self._state.resets += 1
        else:
            self._state.collapsed.add(tuple(event.get(name) for name in ("candidate", "restart", "component")))

    def _on_worker_lost(self, event: dict[str, Any]) -> None:
        self._state.lost += 1

    def _on_candidate(self, event: dict[str, Any]) -> None:
        if event["chosen"]:
            self._state.chosen = str(event["name"])

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        self._state.generation = int(event["generation"])

    def _on_labelled(self, event: dict[str, Any]) -> None:
        what = str(event.get("what", "rows"))
        self._state.labelled = {"rows": int(event["rows"]), "of": int(event["of"]), "what": what}

    def _on_finished(self, event: dict[str, Any]) -> None:
        self._state.finished = float(event["seconds"])

    # --- drawing

    def draw(self) -> Group:
        """Return the lines at the present width; none for a job that failed before its first event.

        In a terminal that became narrower, lines drawn before are broken, and rich would move up by too few: it is cleared.
        """
        width = min(self.console.width - 2, WIDEST)  # room for the ^C that a terminal echoes
        if width < self._drawn_width:
            self.console.clear()
        self._drawn_width = width
        if self.ended and self._state.latest is None:
            return Group()
        with self._lock:
            bars = [bar for bar in map(_or_none, (self._iterations, self._this_pass, self._labels)) if bar is not None]
            for task, (label, figure, share, note) in zip(self._bars.tasks, bars, strict=False):
                task.description, task.completed, task.fields = label, share, {"figure": figure, "note": note}
            self._bars.columns = self._columns if width >= NARROW else self._columns[:-1]
            table = self._bars.make_tasks_table(self._bars.tasks[: len(bars)])
            parts = (self._heading, self._about, self._phases, lambda: table, lambda: self._facts(width))
            lines: list[Any] = [line for line in map(_or_none, parts) if line is not None]
        return Group("", *(Constrain(line, width) for line in lines))  # "": between this and the lines above

    def _now(self) -> datetime:
        return self._state.latest if self.ended and self._state.latest else self._clock()

    def _ago(self, then: datetime | None) -> float:
        """Seconds since then; never negative, even if another machine's clock is ahead."""
        return 0.0 if then is None else max(0.0, (self._now() - then).total_seconds())

    def _heading(self) -> Table:
        heading = Table.grid(
            Column(ratio=1, style="bold", no_wrap=True, overflow="ellipsis"), Column(no_wrap=True), expand=True
        )
        spent = self._state.finished if self._state.finished is not None else self._ago(self._state.began)
        style = "green" if self.ended == FINISHED else "yellow" if self.ended else "cyan"
        heading.add_row(Text(self.title), Text(f"{self.ended or 'running'}  {roughly(spent)}", style=style))
        return heading

    def _about(self) -> Text:
        facts = self._state.facts
        about = f"{asked(facts)}; {rows_in_chunks(facts)}"
        return Text(about, style="dim", no_wrap=True, overflow="ellipsis")

    def _phases(self) -> Text:
        """The finished steps, the present one, and those to come."""
        line, state = Text(), self._state
        if state.phase not in PHASES or not state.facts:  # labels of other data: no run of its own
            return line
        at = len(PHASES) if self.ended == FINISHED else PHASES.index(state.phase)
        for i, name in enumerate(PHASES):
            mark, style = ("✓", "green") if i < at else ("▸", "bold cyan") if i == at else ("·", "dim")
            line.append(f"{mark} {name}   ", style=style)
        return line

    def _iterations(self) -> tuple[str, str, float, str] | None:
        """Label, figure, share and note of the iterations."""
        last, state = self._state.last, self._state
        if not last:
            return None
        done, most = last["iteration"] + 1, last["max_iter"]
        label = "refit" if last.get("refit") else "iteration"
        if last["final"] or last["running"] == 0:
            converged = str(last.get("stop_reason")).startswith("converged")
            return label, str(done), 1.0, "converged" if converged else "max_iter reached"
        figure = f"{done} of at most {most}"
        if last["restarts"] > 1:
            figure += f", {last['running']} of {last['restarts']} fits"
        each = statistics.fmean(list(state.seconds.values())[-3:]) if state.seconds else last["seconds"]
        rest = max(0.0, (most - done + 1) * each - (0.0 if self.ended else self._ago(state.since)))  # 1: the final pass
        return label, figure, done / max(most, 1), "" if self.ended else f"at most {roughly(rest)} left"

    def _this_pass(self) -> tuple[str, str, float, str] | None:
        """Progress of the present step: by finished chunks if they were logged, else by the time of the last pass."""
        state, spent = self._state, self._ago(self._state.since)
        if self.ended or state.phase not in ("profile", "start", "fit") or state.began is None:
            return None
        note = f"{roughly(spent)} so far"
        if state.phase == "start" and not state.progress:
            if searched := state.searched:
                share = searched["rows"] / searched["of"]
                return "search", f"{count(searched['rows'])} rows read", share, f"of at most {count(searched['of'])}"
            return "start", f"search, level {state.levels + 1}" if state.levels else "being found", 0.0, note
        label = "first read" if state.phase == "profile" else "this pass"
        if state.progress:
            share = state.progress["chunks"] / max(state.progress["of"], 1)
            logged = datetime.fromisoformat(state.progress["time"])
            took = max((logged - state.since).total_seconds(), 0.0) if state.since else 0.0
            whole = took / share if share else None
            figure = f"chunk {count(state.progress['chunks'])} of {count(state.progress['of'])}"
        elif state.last and state.phase == "fit":
            whole, figure = state.last["seconds"], "as the last one"
        else:
            return label, "", 0.0, note
        if not whole:
            return label, figure, 0.0, note
        note = f"about {roughly(whole - spent)} left" if spent < whole else note
        return label, figure, min(spent / whole, 0.99), note

    def _labels(self) -> tuple[str, str, float, str] | None:
        done = self._state.labelled
        if not done or (self.ended and self._state.facts):
            return None
        figure = f"{count(done['rows'])} {done['what']}"
        return "labels", figure, done["rows"] / max(done["of"], 1), f"of {count(done['of'])}"

    def _facts(self, width: int) -> Table:
        facts = Table.grid(
            Column(min_width=LABEL, style="dim"),
            Column(overflow="fold", max_width=width - LABEL - 1),
            padding=(0, 1, 0, 0),
        )
        for label, text, style in self._lines(width):
            facts.add_row(label, Text(text, style=style))
        return facts

    def _lines(self, width: int) -> Iterator[tuple[str, str, str]]:
        state, last, running = self._state, self._state.last, not self.ended
        if len(state.values) > 1:
            yield "objective", self._objective(width - LABEL - 1), ""
        if last:
            seconds, workers = max(last["seconds"], 1e-9), last["workers"]
            speed = f"{count(last['rows'] / seconds)} rows/s, {size(last['bytes_read'] / seconds)}/s"
            yield "speed", f"{speed}, {workers} worker{'s' if workers != 1 else ''}", ""
            if last["noise"] is not None:
                yield "noise", f"{last['noise']:.2%} of the rows", ""
        words = words_in(state.facts)
        if state.resets or state.collapsed:
            collapsed = f", {len(state.collapsed)} collapsed" if state.collapsed else ""
            yield words.components, f"{state.resets} reset{'s' if state.resets != 1 else ''}{collapsed}", "yellow"
        if state.lost:
            yield "workers", f"{state.lost} lost; what they had is computed again", "yellow"
        if state.chosen:
            yield "chosen", state.chosen, ""
        if last and last["final"] and last.get("stop_reason"):
            yield "fit", str(last["stop_reason"]), ""
        if state.generation is not None:
            yield "checkpoint", f"gen-{state.generation:06d}", ""
        if state.facts.get("dashboard") and running:
            yield "dashboard", str(state.facts["dashboard"]), ""
        if running and self._ago(state.latest) > SILENT:
            yield "last event", f"{roughly(self._ago(state.latest))} ago", "yellow"

    def _objective(self, width: int) -> str:
        """Value, change and a curve of the later two thirds, which would look flat with the first iterations."""
        state = self._state
        iterations, words = sorted(state.values), words_in(state.facts)
        values = [state.values[i] for i in iterations[len(iterations) // 3 if len(iterations) > 5 else 0 :]]
        text = f"{values[-1]:.7g} {words.unit} a row, change {values[-1] - values[-2]:+.3g}"
        with suppress(KeyError, TypeError, ValueError):
            tol = float(state.facts["asked"]["tol"])
            text += f", tol {tol:g}" if tol > 0 and words.sign > 0 else ""  # that of K-means is of another quantity
        room = min(width - len(text) - 2, CURVE)
        return f"{text}  {curve(values, room)}" if room >= 8 and not self.console.options.ascii_only else text


def _or_none(part: Callable[[], Any]) -> Any:
    """A part of the display; None where the log holds something odd."""
    try:
        return part()
    except Exception:
        return None


def curve(values: list[float], width: int) -> str:
    """Return values as bars of eight heights, stretched to a width in characters.

    >>> curve([0.0, 1.0], 8)
    '▁▂▃▄▅▆▇█'
    """
    at = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    share = (at - at.min()) / (np.ptp(at) or 1.0)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * height)] for height in share.tolist())
