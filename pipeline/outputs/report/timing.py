"""Where the time went, from the events alone.

A pass that was repeated after a crash took its time twice and counts twice; missing fields count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import parse_time, plural


@dataclass(frozen=True)
class Part:
    """One kind of work; `share` is of the longest part, for its bar."""

    name: str
    note: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Planned:
    """What was known before, and what came; in bytes or seconds."""

    name: str
    note: str
    planned: float
    seen: float
    is_bytes: bool


@dataclass(frozen=True)
class Timing:
    """All the time of a run; seconds of wall clock, bytes of memory."""

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
    """Sum the events up."""
    passes = [{**p, "rows": _field(p, "rows"), "seconds": _field(p, "seconds")} for p in record.of("pass")]
    parts = [
        ("profile", "one read of the data: mean, spread, sample", record.of("profile")),
        ("start", _init_note(record), record.of("init")),
        ("passes", plural(len(passes), "pass", "passes") + " over the data", passes),
        ("checkpoints", plural(len(record.of("checkpoint")), "generation"), record.of("checkpoint")),
        ("standard errors", "the information of weights and means", record.of("standard_errors")),
        ("labels", "one label and log-density a row", record.of("labels")),
    ]
    timed = [(name, note, sum(_field(entry, "seconds") for entry in entries)) for name, note, entries in parts]
    known = sum(spent for *_, spent in timed)
    total = _total(record.events)
    if total is not None and total - known > 0.01 * total:
        timed.append(("everything else", "opening, waiting, writing the model", total - known))
    longest = max((spent for *_, spent in timed), default=0.0)
    busy = sum(p["seconds"] for p in passes)
    reads = [*passes, *record.of("profile")]
    workers = [p["workers"] for p in passes if isinstance(p.get("workers"), int)]
    peaks = [_field(entry, "peak_pss") for entry in record.of("finished")]
    return Timing(
        total=total if total is not None else (known or None),
        sessions=max(1, len(_sessions(record.events))),
        passes=passes,
        parts=[Part(name, note, spent, spent / longest) for name, note, spent in timed if spent > 0],
        rows_per_second=sum(p["rows"] for p in passes) / busy if busy > 0 else None,
        bytes_read=sum(_field(entry, "bytes_read") for entry in reads),
        peak_pss=max(peaks, default=0) or None,
        workers=max(workers, default=None),
        planned=_planned(record, passes, max(peaks, default=0)),
    )


def _planned(record: Record, passes: list[dict[str, Any]], peak_pss: float) -> list[Planned]:
    """The plan of memory, and what the first iteration said of all, against what happened."""
    plans = [entry["plan"] for entry in record.of("start") if isinstance(entry.get("plan"), dict)]
    found = []
    if plans and peak_pss > 0 and _field(plans[-1], "peak") > 0:
        kept = bool(record.option("engine", "keep_decoded"))
        limit = _field(plans[-1], "limit" if kept else "peak")
        found.append(Planned("Peak memory", "at most, from the sizes of chunks and model", limit, peak_pss, True))
    disk = plans[-1].get("disk") if plans else None
    if isinstance(disk, dict):
        kinds = ("checkpoints", "iterations", "models", "labels")
        note = "at most, before compression: " + ", ".join(kind for kind in kinds if _field(disk, kind))
        found.append(Planned("Disk", note, _field(disk, "total"), float(_stored(record.run)), True))
    whole = max((p["rows"] for p in passes), default=0.0)  # a block of a sweep says little of a pass
    steps = [p["seconds"] for p in passes if p["rows"] >= whole and not p.get("final") and not p.get("refit")]
    most = max((_field(p, "max_iter") for p in passes), default=0.0)
    if len(steps) > 1 and most:
        note = f"as long as the first for each of {most:.0f} iterations; there were {len(steps)} passes"
        found.append(Planned("Iterations", note, most * steps[0], sum(steps), False))
    return found


def _stored(run: Path) -> int:
    """Bytes of what the plan of the disk is of: all but the page and the log."""
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
    """Events of each process that worked on the run: `start` begins one, so does a `resume` not just after it."""
    sessions: list[list[dict[str, Any]]] = []
    before = None
    for entry in events:
        event = entry.get("event")
        if not sessions or event == "start" or (event == "resume" and before != "start"):
            sessions.append([])
        sessions[-1].append(entry)
        before = event
    return sessions


def _total(events: list[dict[str, Any]]) -> float | None:
    """Wall-clock seconds of all sessions up to the last `finished`, without the nights between them."""
    ends = [i for i, entry in enumerate(events) if entry.get("event") == "finished"]
    worked = events[: ends[-1] + 1] if ends else events
    total = 0.0
    for session in _sessions(worked):
        if session[-1].get("event") == "finished" and _field(session[-1], "seconds") > 0:
            total += _field(session[-1], "seconds")
            continue
        times = [when for entry in session if (when := parse_time(entry.get("time"))) is not None]
        total += (times[-1] - times[0]).total_seconds() if times else 0.0
    return total or None
