"""The time and memory of a run, from its events.

A pass that was repeated after a crash counts twice; missing fields count as 0. No event is required. The report is
written between `stored`, once the model and the labels are there, and `finished`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.outputs.report.formatting import parse_time, plural
from pipeline.outputs.report.record import Record


@dataclass(frozen=True)
class Part:
    """One kind of work; `share` is relative to the longest part, for its bar."""

    name: str
    note: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Planned:
    """A planned figure and the measured one; in bytes or seconds."""

    name: str
    note: str
    planned: float
    measured: float
    is_bytes: bool


@dataclass(frozen=True)
class Timing:
    """The time of a run, seconds of wall clock; memory, bytes."""

    total: float | None
    sessions: int
    passes: list[dict[str, Any]]
    parts: list[Part]
    rows_per_second: float | None
    bytes_read: float
    peak_pss: float | None
    workers: int | None
    planned: list[Planned]


def timing(record: Record) -> Timing:
    """Sum the events."""
    passes = [{**p, "rows": _field(p, "rows"), "seconds": _field(p, "seconds")} for p in record.of("pass")]
    parts = [
        ("profile", "one read of the data: mean, covariance, sample", record.of("profile")),
        ("start", _init_note(record), record.of("init")),
        ("passes", plural(len(passes), "pass", "passes") + " over the data", passes),
        ("checkpoints", plural(len(record.of("checkpoint")), "generation"), record.of("checkpoint")),
        ("standard errors", "the information of weights and means", record.of("standard_errors")),
        ("labels", f"the label and {record.words.score_text} of each {record.row[0]}", record.of("labels")),
    ]
    timed = [(name, note, sum(_field(entry, "seconds") for entry in entries)) for name, note, entries in parts]
    known = sum(spent for *_, spent in timed)
    sessions = _sessions(record.events)
    total = sum(map(_duration, sessions))  # without the time between sessions
    if total - known > 0.01 * total:
        timed.append(("everything else", "opening the data, waiting, writing the model", total - known))
    longest = max((spent for *_, spent in timed), default=0.0)
    busy = sum(p["seconds"] for p in passes)
    reads = [*passes, *record.of("profile")]
    workers = [p["workers"] for p in passes if isinstance(p.get("workers"), int)]
    peak = max((_field(entry, "peak_pss") for entry in record.events), default=0.0)
    return Timing(
        total=max(total, known) or None,
        sessions=max(1, sum(session[0].get("event") in ("start", "resume") for session in sessions)),
        passes=passes,
        parts=[Part(name, note, spent, spent / longest) for name, note, spent in timed if spent > 0],
        rows_per_second=sum(p["rows"] for p in passes) / busy if busy > 0 else None,
        bytes_read=sum(_field(entry, "bytes_read") for entry in reads),
        peak_pss=peak or None,
        workers=max(workers, default=None),
        planned=_planned(record, passes, peak),
    )


def _planned(record: Record, passes: list[dict[str, Any]], peak_pss: float) -> list[Planned]:
    """Planned memory, disk space and time (from the first iteration), with the measured ones."""
    plans = [entry["plan"] for entry in record.of("start") if isinstance(entry.get("plan"), dict)]
    found = []
    if plans and peak_pss > 0 and _field(plans[-1], "peak") > 0:
        in_memory = bool(record.option("engine", "keep_decoded"))
        limit = _field(plans[-1], "limit" if in_memory else "peak")
        found.append(Planned("Peak memory", "at most, from the sizes of chunks and model", limit, peak_pss, True))
    disk = plans[-1].get("disk") if plans else None
    if isinstance(disk, dict):
        kinds = ("checkpoints", "iterations", "models", "labels")
        note = "at most, before compression: " + ", ".join(kind for kind in kinds if _field(disk, kind))
        found.append(Planned("Disk", note, _field(disk, "total"), float(_stored(record.run)), True))
    whole = max((p["rows"] for p in passes), default=0.0)  # one block says little about a pass over all
    steps = [p["seconds"] for p in passes if p["rows"] >= whole and not p.get("final") and not p.get("refit")]
    most = max((_field(p, "max_iter") for p in passes), default=0.0)
    if len(steps) > 1 and most:
        note = f"{most:.0f} iterations as long as the first one; there were {len(steps)} passes"
        found.append(Planned("Iterations", note, most * steps[0], sum(steps), False))
    return found


def _stored(run: Path) -> int:
    """Bytes of what the plan of the disk counts: all but the page and the log."""
    files = (
        path
        for name in ("checkpoints", "iterations", "model.zarr", "candidates.zarr", "labels.zarr")
        for path in (run / name).rglob("*")
    )
    return sum(path.stat().st_size for path in files if path.is_file())


def _init_note(record: Record) -> str:
    methods = [str(entry["method"]) for entry in record.of("init") if entry.get("method")]
    return f"first parameters by {methods[-1]}" if methods else "first parameters"


def _field(entry: dict[str, Any], name: str) -> float:
    value = entry.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _sessions(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Events of each process that worked on the run.

    `start` begins a session; so does a `resume` unless it follows directly, and any event after `finished`.
    """
    sessions: list[list[dict[str, Any]]] = []
    before = "finished"
    for entry in events:
        event = str(entry.get("event"))
        if before == "finished" or event == "start" or (event == "resume" and before != "start"):
            sessions.append([])
        sessions[-1].append(entry)
        before = event
    return sessions


def _duration(session: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of a session: in its last event, else from its first event to its last."""
    if session[-1].get("event") in ("stored", "finished") and _field(session[-1], "seconds") > 0:
        return _field(session[-1], "seconds")
    times = [when for entry in session if (when := parse_time(entry.get("time"))) is not None]
    return (times[-1] - times[0]).total_seconds() if times else 0.0
