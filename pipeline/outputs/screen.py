"""What a person sees while a job runs: a picture that moves in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.outputs.picture import FINISHED, Picture
from pipeline.outputs.progress import describe

# Seconds without a line after which events that bring little news get one.
_QUIET = {"pass": 5.0, "labelled": 5.0, "checkpoint": 5.0, "progress": 60.0}
_DRAWN = ("pass", "labelled", "checkpoint", "progress")  # the picture says them
_STYLES = {"warning": "yellow", "reset": "yellow"}
DRAWS_A_SECOND = 2


@contextmanager
def following(
    console: Console, title: str, past: Sequence[dict[str, Any]] = (), said: int | None = None
) -> Iterator[Follower]:
    """A listener for the length of a job.

    title : of the picture.  past : what has happened before.  said : how many of the latest of that get a line; None
    where what is followed only begins now.
    """
    if console.is_interactive and console.file.isatty():
        picture = Picture(title)
        for event in past:
            picture.add(event)
        if said is None:
            picture.begin_again()
        with Screen(console, picture) as screen:
            for event in latest(past, said or 0):
                screen.say(event)
            yield screen
    else:
        lines = Lines(lambda text: print(text, file=console.file, flush=True))
        for event in latest(past, said or 0):
            lines.say(event)
        yield lines


def latest(events: Iterable[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The last n of the events that people get to see."""
    return list(deque((event for event in events if describe(event) is not None), maxlen=n))


class Follower(Protocol):
    """Shows events as they come."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""

    def end(self, why: str) -> None:
        """Show that no more will come."""


class Lines:
    """Plain lines, readable in a log."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self._last = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        """Write what an event says, if it is news."""
        quiet = _QUIET.get(event["event"], 0.0)
        if event.get("final") or (event["event"] == "pass" and event.get("iteration") == 0):
            quiet = 0.0
        if time.monotonic() - self._last >= quiet:
            self.say(event)

    def say(self, event: dict[str, Any]) -> None:
        """Write what an event says, if that is for people."""
        if (text := describe(event)) is not None:
            self._last = time.monotonic()
            self.write(f"{event['time'][11:19]}  {text}")

    def end(self, why: str) -> None:
        """Say why no more will come."""
        self.write(why)


class Screen:
    """A picture at the foot of a terminal, and lines above it for what is worth keeping."""

    def __init__(self, console: Console, picture: Picture) -> None:
        self.picture = picture
        self._console = console
        self._drawn_width = 0
        self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=DRAWS_A_SECOND)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event: in the picture, and in a line where it is worth one."""
        self.picture.add(event)
        if event["event"] not in _DRAWN:
            self.say(event)

    def say(self, event: dict[str, Any]) -> None:
        """Write what an event says above the picture, if that is for people."""
        if (text := describe(event)) is not None:
            self._console.print(said(event, text))

    def end(self, why: str) -> None:
        """Draw why no more will come."""
        self.picture.ended = why

    def __enter__(self) -> Screen:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        went = FINISHED if kind is None else "failed" if issubclass(kind, Exception) else "stopped"
        self.end(self.picture.ended or went)
        self._live.stop()

    def _drawn(self) -> Picture:
        """The picture; on a screen made empty where the terminal has become narrower than it was drawn.

        The terminal has then broken its lines, and rich would go up by too few of them.
        """
        if self._console.width < self._drawn_width:
            self._console.clear()
        self._drawn_width = self.picture.width(self._console.width)
        return self.picture


def said(event: dict[str, Any], text: str) -> Table:
    """A line about an event, whose second line begins below the words of the first."""
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(Text(event["time"][11:19], style="dim"), Text(text, style=_STYLES.get(event["event"], "")))
    return row
