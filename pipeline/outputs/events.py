"""The log of a run: one JSON object a line, appended as things happen and passed on to listeners.

The log is for people and for the report. No computation depends on it, so a line that cannot be read is skipped.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError, without_secrets
from pipeline.logs import get_logger

Listener = Callable[[dict[str, Any]], None]
# Names in the logs of earlier versions.
_RENAMED = {"rung": "level", "refused": "rejected", "annihilation": "pruning", "underway": "progress"}

_log = get_logger("events")
_LEVELS = {
    "warning": logging.WARNING,
    "worker_lost": logging.WARNING,
    "pass": logging.DEBUG,
    "progress": logging.DEBUG,
    "searching": logging.DEBUG,
    "checkpoint": logging.DEBUG,
    "labelled": logging.DEBUG,
}


class EventLog:
    """Appends events to events.jsonl. Each has `event` and `time` (ISO 8601, UTC)."""

    def __init__(self, path: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.listeners = listeners

    def __call__(self, event: str, **fields: Any) -> None:
        """Log one event, here and in the logger `em_pipeline.events`, and call the listeners with it."""
        fields = without_secrets(fields)
        _log.log(_LEVELS.get(event, logging.INFO), "%s %s", event, fields)
        record = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        line = json.dumps(record, default=float) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                if file.tell() and not _ends_with_newline(self.path):
                    line = "\n" + line  # another writer ended in the middle of a line
                file.write(line)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({error}). Free some space, then `resume`.") from error
        for listener in self.listeners:
            listener(record)

    def warn(self, text: str | None) -> None:
        """Log a warning, if there is one."""
        if text is not None:
            self("warning", message=text)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events so far, without an incomplete last line."""
    yield from Tail(path).new()


class Tail:
    """Reads a log while it grows. A log that was started again is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._file = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield events since the last call, by their present names; lines that are not events are skipped."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read:
                    self._file, self._read = found.st_ino, 0
                file.seek(self._read)
                content = file.read()
        except OSError:  # none yet, or none that can be read
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            if (record := _event_of(line)) is not None:
                yield record


def _whole(text: str) -> int | None:
    """A whole number that arithmetic takes, else None."""
    return int(text) if len(text) < 19 else None


def _finite(text: str) -> float | None:
    """A number; None for one that is infinite."""
    return None if math.isinf(value := float(text)) else value


def _event_of(line: str) -> dict[str, Any] | None:
    """The event of a line, or None."""
    try:
        record = json.loads(line, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        at, name = datetime.fromisoformat(record["time"]), record["event"]
        if at.tzinfo is None or not 1970 < at.year < 9999 or not isinstance(name, str):
            return None
        return {**record, "event": _RENAMED.get(name, name)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
