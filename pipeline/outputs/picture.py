"""A job as a picture in a terminal: a function of its events so far and of the time, drawn for any width.

`run` gives it events as they happen, `status` those that are in events.jsonl: what they draw is the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.outputs.curve import curve
from pipeline.outputs.progress import asked, count, figure_of, roughly, size

WIDEST = 100  # characters: longer lines are harder to read
NARROW = 66  # below, notes beside the bars are left out
CURVE_LINES = 3
LABEL, FIGURE, NOTE = 10, 18, 18  # least characters of columns
SILENT = 120.0  # seconds without an event after which that is said

# What has begun once an event of a name is there.
_PHASES = {
    "start": "profile",
    "profile": "start",
    "init": "fit",
    "pass": "fit",
    "labelled": "labels",
    "labels": "report",
    "finished": "report",
}
FINISHED = "finished"
PHASES = ("profile", "start", "fit", "labels", "report")


@dataclass
class _Seen:
    """What the events of one life of a job have told."""

    began: datetime | None = None
    since: datetime | None = None  # the last event but `progress`: when what is going on began
    latest: datetime | None = None
    phase: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # of start or resume
    last: dict[str, Any] = field(default_factory=dict)  # pass
    progress: dict[str, Any] = field(default_factory=dict)
    figure: str = ""  # what passes raise or lower,
    figures: dict[int, float] = field(default_factory=dict)  # per row, by iteration
    seconds: dict[int, float] = field(default_factory=dict)  # of passes, by iteration
    rungs: int = 0
    resets: int = 0
    kept: int = 0
    chosen: str = ""
    labelled: dict[str, Any] = field(default_factory=dict)
    generation: int | None = None
    finished: float | None = None


class Picture:
    """What is known of a job, to be printed by rich.

    title : the first line, the run directory.  clock : the time now.
    ended : why no more events will come, in a word or two; empty while they may.
    """

    def __init__(self, title: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.title, self.ended, self._clock = title, "", clock
        self._seen = _Seen()

    def add(self, event: dict[str, Any]) -> None:
        """Take note of an event."""
        name, at = event["event"], datetime.fromisoformat(event["time"])
        if name == "start":
            self._seen = _Seen()
        seen = self._seen
        if name in ("start", "resume") or seen.began is None:
            seen.began = at
        seen.latest = at
        if name != "progress":
            seen.since, seen.progress = at, {}
        seen.phase = "labels" if event.get("final") else _PHASES.get(name, seen.phase)
        if (take := getattr(self, f"_on_{name}", None)) is not None:
            take(event)

    def begin_again(self) -> None:
        """Another life of the job begins: what is missing is done."""
        seen = self._seen
        seen.began = seen.since = self._clock() if seen.latest else None
        seen.finished, seen.labelled, seen.seconds = None, {}, {}
        if seen.last.get("final"):
            seen.phase = "labels"

    def _on_start(self, event: dict[str, Any]) -> None:
        self._seen.facts = event

    def _on_resume(self, event: dict[str, Any]) -> None:
        self.begin_again()
        seen = self._seen
        seen.facts, seen.last, seen.chosen, seen.rungs = seen.facts | event, {}, "", 0
        seen.began = seen.since = datetime.fromisoformat(event["time"])
        seen.phase = "profile" if event["generation"] is None else "fit" if seen.figures else "start"

    def _on_progress(self, event: dict[str, Any]) -> None:
        self._seen.progress = event

    def _on_rung(self, event: dict[str, Any]) -> None:
        self._seen.rungs += 1

    def _on_pass(self, event: dict[str, Any]) -> None:
        seen, i = self._seen, event["iteration"]
        if event.get("refit") != seen.last.get("refit", event.get("refit")):
            seen.figures, seen.seconds = {}, {}
        for past in (seen.figures, seen.seconds):  # a resumed run does some iterations again
            for later in [j for j in past if j > i]:
                del past[later]
        seen.last = event
        if event["final"]:
            return
        seen.seconds[i] = seen.seconds.get(i, 0.0) + event["seconds"]
        seen.figure, value = figure_of(event)
        if value is not None:
            seen.figures[i] = value

    def _on_reset(self, event: dict[str, Any]) -> None:
        self._seen.resets += bool(event["done"])
        self._seen.kept += not event["done"]

    def _on_candidate(self, event: dict[str, Any]) -> None:
        if event["chosen"]:
            self._seen.chosen = event["name"]

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        self._seen.generation = event["generation"]

    def _on_labelled(self, event: dict[str, Any]) -> None:
        self._seen.labelled = event

    def _on_finished(self, event: dict[str, Any]) -> None:
        self._seen.finished = event["seconds"]

    # --- drawing

    @staticmethod
    def width(available: int) -> int:
        """Characters that it takes: two fewer than there are, room for the ^C that a terminal echoes."""
        return min(available - 2, WIDEST)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The picture at the width that there is; of what ended before it began nothing: the error says it."""
        if self.ended and self._seen.latest is None:
            return
        width = self.width(options.max_width)
        yield ""  # between it and the lines above
        yield self._heading(width)
        yield from (Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._about())
        yield self._phases()
        bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bars.width = width
        bars.add_column(style="dim", no_wrap=True, min_width=LABEL)
        bars.add_column(no_wrap=True, min_width=FIGURE)  # columns that keep their places while figures change
        bars.add_column(ratio=1, min_width=6)
        if width >= NARROW:
            bars.add_column(no_wrap=True, min_width=NOTE, justify="right")
        for label, figure, bar, note in self._bars(width, options.ascii_only):
            bars.add_row(label, figure, bar, *([note] if width >= NARROW else []))
        yield bars
        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True, min_width=LABEL)
        facts.add_column(overflow="fold", max_width=width - LABEL - 2)
        for label, text in self._facts():
            facts.add_row(label, text)
        yield facts

    def _now(self) -> datetime:
        return self._seen.latest if self.ended and self._seen.latest else self._clock()

    def _ago(self, then: datetime | None) -> float:
        """Seconds since; never negative, should another machine's clock be ahead."""
        return 0.0 if then is None else max(0.0, (self._now() - then).total_seconds())

    def _heading(self, width: int) -> Table:
        heading = Table.grid(expand=True)
        heading.width = width
        heading.add_column(style="bold", no_wrap=True, overflow="ellipsis", ratio=1)
        heading.add_column(no_wrap=True, justify="right")
        spent = self._seen.finished if self._seen.finished is not None else self._ago(self._seen.began)
        style = "green" if self.ended == FINISHED else "yellow" if self.ended else "cyan"
        heading.add_row(Text(self.title), Text(f"{self.ended or 'running'}  {roughly(spent)}", style=style))
        return heading

    def _about(self) -> Iterator[str]:
        facts = self._seen.facts
        if "asked" in facts:
            yield f"{asked(facts['asked'])}; {count(facts['rows'])} rows in {count(facts['chunks'])} chunks"

    def _phases(self) -> Text:
        """What is done, what is going on, what is to come."""
        line, seen = Text(), self._seen
        if seen.phase not in PHASES or not seen.facts:  # labels of other data: no run of its own
            return line
        at = len(PHASES) if self.ended == FINISHED else PHASES.index(seen.phase)
        for i, name in enumerate(PHASES):
            mark, style = ("✓", "green") if i < at else ("▸", "bold cyan") if i == at else ("·", "dim")
            line.append(f"{mark} {name}   ", style=style)
        return line

    def _bars(self, width: int, ascii_only: bool) -> Iterator[tuple[str, Any, Any, Any]]:
        seen = self._seen
        running = not self.ended
        if seen.last:
            yield self._iterations(running)
        if running and seen.phase in ("profile", "start", "fit") and seen.began is not None:
            yield self._this_pass()
        if seen.labelled and (running or not seen.facts):
            share = seen.labelled["rows"] / max(seen.labelled["of"], 1)
            yield "labels", f"{count(seen.labelled['rows'])} rows", _bar(share), f"of {count(seen.labelled['of'])}"
        if len(seen.figures) > 1:
            yield "", "", "", ""
            yield self._curve(width, ascii_only)
            yield "", "", "", ""

    def _iterations(self, running: bool) -> tuple[str, Any, Any, Any]:
        last, seen = self._seen.last, self._seen
        done, most = last["iteration"] + 1, last["max_iter"]
        label = "refit" if last.get("refit") else "iteration"
        if last["final"] or last.get("running") == 0:
            converged = str(last.get("stop_reason")).startswith("converged")
            return label, str(done), _bar(1.0), "converged" if converged else "max_iter reached"
        figure = f"{done} of at most {most}"
        if last.get("restarts", 1) > 1:
            figure += f", {last['running']} of {last['restarts']} fits"
        each = statistics.fmean(list(seen.seconds.values())[-3:]) if seen.seconds else last["seconds"]
        left = max(0.0, (most - done + 1) * each - (self._ago(seen.since) if running else 0.0))  # 1: the final pass
        return label, figure, _bar(done / most), f"at most {roughly(left)} left" if running else ""

    def _this_pass(self) -> tuple[str, Any, Any, Any]:
        """How far what is going on is: measured where that was told, else by the time that the last pass took."""
        seen, spent = self._seen, self._ago(self._seen.since)
        note = f"{roughly(spent)} so far"
        if seen.phase == "start" and not seen.progress:
            return "start", f"search, step {seen.rungs + 1}" if seen.rungs else "being found", "", note
        label = "first read" if seen.phase == "profile" else "this pass"
        if seen.progress:
            share = seen.progress["chunks"] / max(seen.progress["of"], 1)
            told = datetime.fromisoformat(seen.progress["time"])
            took = max((told - seen.since).total_seconds(), 0.0) if seen.since else 0.0
            whole = took / share if share else None
            figure = f"chunk {count(seen.progress['chunks'])} of {count(seen.progress['of'])}"
        elif seen.last and seen.phase == "fit":
            whole, figure = seen.last["seconds"], "as the last one"
        else:
            return label, "", "", note
        if not whole:
            return label, figure, "", note
        note = f"about {roughly(whole - spent)} left" if spent < whole else f"{roughly(spent)}, longer"
        return label, figure, _bar(min(spent / whole, 0.99)), note

    def _curve(self, width: int, ascii_only: bool) -> tuple[str, Any, Any, Any]:
        """The later two thirds of the history: the first iterations would make a flat line of the others."""
        iterations = sorted(self._seen.figures)
        shown = iterations[len(iterations) // 3 :] if len(iterations) > 5 else iterations
        values = [self._seen.figures[i] for i in shown]
        name = self._seen.figure
        change = values[-1] - values[-2]
        tol = self._seen.facts.get("asked", {}).get("tol")
        figure = Text(f"{values[-1]:.7g}\nchange {change:+.3g}", no_wrap=True)
        if tol and name != "inertia":
            figure.append(f"\ntol {tol:g}", style="dim")
        note = Text(f"{max(values):.7g}\n\n{min(values):.7g}", style="dim", justify="right")
        area = "" if ascii_only else _Area(values)
        return f"{'inertia' if name == 'inertia' else 'nats'} a row", figure, area, note

    def _facts(self) -> Iterator[tuple[str, Text]]:
        seen, last = self._seen, self._seen.last
        if last:
            seconds = max(last["seconds"], 1e-9)
            parts = [f"{count(last['rows'] / seconds)} rows/s", f"{size(last['bytes_read'] / seconds)}/s"]
            parts.append(f"{last['workers']} worker{'s' if last['workers'] != 1 else ''}")
            yield "speed", Text(", ".join(parts))
        if seen.resets or seen.kept:
            kept = f", {seen.kept} left as they are" if seen.kept else ""
            yield "components", Text(f"{seen.resets} reset{kept}", style="yellow")
        if seen.chosen:
            yield "chosen", Text(seen.chosen)
        if last and last["final"] and last.get("stop_reason"):
            yield "fit", Text(last["stop_reason"])
        if seen.generation is not None:
            yield "checkpoint", Text(f"gen-{seen.generation:06d}")
        if seen.facts.get("dashboard") and not self.ended:
            yield "dashboard", Text(seen.facts["dashboard"])
        if not self.ended and self._ago(seen.latest) > SILENT:
            yield "last event", Text(f"{roughly(self._ago(seen.latest))} ago", style="yellow")


class _Area:
    """A curve as wide as its cell."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in curve(self._values, options.max_width, CURVE_LINES):
            yield Text(line, style="cyan", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(6, options.max_width)


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green")
