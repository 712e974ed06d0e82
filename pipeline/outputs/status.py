"""How far a run is, from its files alone: works with no cluster, during and after the run, from another machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.outputs.checkpoint import generations
from pipeline.outputs.events import read_events
from pipeline.outputs.progress import count, describe, duration
from pipeline.outputs.run_directory import RunDirectory

WATCH_SECONDS = 1.0
LATEST = 5


def show(run: Path, watch: bool) -> None:
    """Print the state of a run once, or keep showing it until the run has ended."""
    directory = RunDirectory(run)
    directory.read_config()  # refuses what is not a run
    console = Console()
    if not watch:
        console.print(_table(directory))
        return
    with Live(_table(directory), console=console, auto_refresh=False) as live:
        while not directory.report.exists():
            time.sleep(WATCH_SECONDS)
            live.update(_table(directory), refresh=True)


def _table(directory: RunDirectory) -> Table:
    record: Any = directory.read_config()
    events = list(read_events(directory.events))
    passes = [event for event in events if event["event"] == "pass"]
    saved = generations(directory.checkpoints)
    table = Table(title=Text(str(directory.path)), show_header=False, title_justify="left", box=None)
    model = record.get("config", {}).get("model", {})
    table.add_row("model", _asked(model))
    chosen = [event["name"] for event in events if event["event"] == "candidate" and event["chosen"]]
    if chosen:
        table.add_row("chosen", chosen[-1])
    table.add_row("state", _state(directory, events))
    if passes:
        last = passes[-1]
        table.add_row("passes", str(len(passes)))
        table.add_row("last pass", str(describe(last)))
        mean = sum(event["seconds"] for event in passes) / len(passes)
        table.add_row("time", f"{duration(mean)} a pass, {count(last['rows'] / mean)} rows/s")
    table.add_row("checkpoint", saved[-1].name if saved else "none yet")
    resets = sum(event["event"] == "reset" and bool(event.get("done")) for event in events)
    table.add_row("resets", str(resets))
    for event in events[-LATEST:]:
        if text := describe(event):
            table.add_row(event["time"][11:19], Text(text))
    return table


def _asked(model: dict[str, Any]) -> str:
    """The family and its components: `gaussian, 5, 10 or 20 components, full or tied`."""
    k, shape = (_either(model.get(name)) for name in ("n_components", "covariance_type"))
    return f"{model.get('family')}, {k} components" + (f", {shape}" if " or " in shape else "")


def _either(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{', '.join(map(str, value[:-1]))} or {value[-1]}"


def _state(directory: RunDirectory, events: list[dict[str, Any]]) -> str:
    if directory.report.exists():
        return "finished"
    if directory.model.exists():
        return "fitted; labels or report still to do"
    return f"in progress, last event {events[-1]['time']}" if events else "just begun"
