"""The log of a run: one JSON object a line, appended as things happen, and told to whoever listens."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.em.run import Run
from pipeline.errors import StorageError
from pipeline.logs import get_logger
from pipeline.models.base import Mixture

Listener = Callable[[dict[str, Any]], None]

_log = get_logger("events")
_LEVELS = {
    "warning": logging.WARNING,
    "pass": logging.DEBUG,
    "progress": logging.DEBUG,
    "checkpoint": logging.DEBUG,
    "labelled": logging.DEBUG,
}


class EventLog:
    """Appends events to events.jsonl. Each has `event` and `time` (ISO 8601, UTC)."""

    def __init__(self, path: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.listeners = listeners

    def __call__(self, event: str, **fields: Any) -> None:
        """Log one event, here and in the logger `em_pipeline.events`, and tell the listeners."""
        _log.log(_LEVELS.get(event, logging.INFO), "%s %s", event, fields)
        record = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        line = json.dumps(record, default=float) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                if file.tell() and not _ends_with_newline(self.path):
                    line = "\n" + line  # the writer before us died in the middle of a line
                file.write(line)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error}). Make room, then `resume`.") from error
        for listener in self.listeners:
            listener(record)


def figures(run: Run, total: float) -> dict[str, float | None]:
    """What a pass left of its best run, None where it is not known. total : sum of the rows' weights."""
    if not isinstance(run.model, Mixture):
        name, value = "inertia", -run.objective
    elif np.isnan(run.log_likelihood):  # amid blocks, which had different parameters: a bound below it
        name, value = "free_energy", run.bound
    else:
        name, value = "log_likelihood", run.log_likelihood
    known = {name: value, f"{name}_per_row": value / total}
    if run.history:
        known |= {name: getattr(run.history[-1], name) for name in ("fisher_norm", "rate", "left")}
    return {name: value if np.isfinite(value) else None for name, value in known.items()}


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events so far; a line that is not whole yet is left out."""
    yield from Tail(path).new()


class Tail:
    """A log that is read while it grows: what is new each time. One that has begun anew is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._file = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call; a line that is not whole yet is left for the next, one that is none is left out."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read:
                    self._file, self._read = found.st_ino, 0
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict) and {"event", "time"} <= record.keys():
                    yield record
