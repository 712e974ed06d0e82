"""The progress of a run, from its files alone: without a cluster, during and after the run, on any machine."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from pipeline.outputs.display import FINISHED, JobDisplay
from pipeline.outputs.events import Tail
from pipeline.outputs.run_directory import RunDirectory
from pipeline.outputs.screen import following, latest

WATCH_SECONDS = 0.5
LATEST = 5


def show(run: Path, watch: bool) -> None:
    """Print the progress of a run once, or until the run has ended."""
    directory = RunDirectory(run)
    directory.read_config()  # refuses what is not a run
    console, tail = Console(highlight=False), Tail(directory.events)
    ended = _ended(directory)
    events = list(tail.new())
    if watch:
        with following(console, str(run), events, LATEST) as follower:
            while not ended:
                time.sleep(WATCH_SECONDS)
                ended = _ended(directory)  # before the events, so that none is missed
                for event in tail.new():
                    follower(event)
            follower.end(ended)
    else:
        display = JobDisplay(str(run), console)
        for event in events:
            display.add(event)
        display.ended = ended
        for event in latest(events, LATEST):
            display.write(event)
        console.print(display.draw())
    if advice := _advice(directory, ended):
        console.print(advice, markup=False, soft_wrap=True)  # a line to copy is one line


def _ended(directory: RunDirectory) -> str:
    """Why nothing more will happen; empty while a process has locked the run."""
    if directory.is_locked:
        return ""
    of_fit = directory.has_checkpoint or directory.model.exists()
    return FINISHED if (directory.report.exists() if of_fit else directory.has_results) else "stopped"


def _advice(directory: RunDirectory, ended: str) -> str:
    if ended != "stopped":
        return ""
    if directory.has_checkpoint or directory.model.exists():
        return f"em-pipeline resume {directory.path}"
    return "It has no checkpoint yet: run the same command again."
