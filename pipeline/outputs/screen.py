"""The output of a running job: a display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from pipeline.outputs.display import PARTS, QUIET, JobDisplay
from pipeline.outputs.progress import describe

# Seconds without a line after which an event that brings little news gets one.
_SECONDS = dict.fromkeys(QUIET, 5.0) | dict.fromkeys(PARTS, 60.0)


@contextmanager
def following(
    console: Console, title: str, past: Sequence[dict[str, Any]] = (), show: int | None = None, quiet: bool = False
) -> Iterator[JobDisplay | Lines]:
    """Context with a listener for the duration of a job.

    Parameters
    ----------
    console : Console
        A terminal gets a display, anything else plain lines.
    title : str
        Of the display.
    past : sequence of dict
        The events so far.
    show : int, optional
        How many of the latest of these get a line; None if a session of the job begins now.
    quiet : bool
        Whether warnings alone get a line, and there is no display.
    """
    shown = latest(past, show or 0)
    if quiet or not (console.is_interactive and console.file.isatty()):
        lines = Lines(
            lambda text: print(text, file=console.file, flush=True), ("warning", "worker_lost") if quiet else None
        )
        for event in shown:
            lines.write(event)
        yield lines
        return
    display = JobDisplay(title, console)
    for event in past:
        display.add(event)
    if show is None:
        display.begin_again()
    with display:
        for event in shown:
            display.write(event)
        yield display


def latest(events: Iterable[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return the last n of the events with words for people."""
    return list(deque((event for event in events if describe(event) is not None), maxlen=n))


class Lines:
    """Plain lines, readable in a log."""

    def __init__(self, put: Callable[[str], None], only: tuple[str, ...] | None = None) -> None:
        """Set up; only : names of the events that get a line, None for all."""
        self._put = put
        self._only = only
        self._last = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        """Write a line about an event, unless a frequent one had a line just before."""
        quiet = _SECONDS.get(event["event"], 0.0)
        if event.get("final") or (event["event"] == "pass" and event.get("iteration") == 0):
            quiet = 0.0
        if time.monotonic() - self._last >= quiet:
            self.write(event)

    def write(self, event: dict[str, Any]) -> None:
        """Write a line about an event with words for people."""
        if (self._only is None or event["event"] in self._only) and (text := describe(event)) is not None:
            self._last = time.monotonic()
            self._put(f"{event['time'][11:19]}  {text}")

    def end(self, why: str) -> None:
        """Write why there will be no more events."""
        self._put(why)
