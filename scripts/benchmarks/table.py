"""Records as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import Record

TITLES = ("what", "ours", "peer", "measured", "target", "")
WIDTHS = (74, 9, 28, 20, 8, 6)


def table(records: Sequence[Record], titles: bool = True) -> str:
    """One line a record: what, our time, the peer's, the measured value, the target, met or missed."""
    lines = [TITLES, tuple("-" * width for width in WIDTHS)] if titles else []
    lines += [_cells(record) for record in records]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, WIDTHS, strict=True)) for line in lines)


def _cells(record: Record) -> tuple[str, ...]:
    peer = f"{record['peer']} {_seconds(record['peer_s'])}" if "peer_s" in record else ""
    target = "" if record["target"] is None else f"{record['sense']} {record['target']:g}"
    met = {None: "", True: "met", False: "missed"}[record["met"]] + ("" if record.get("steady", True) else ", unsteady")
    return (
        f"{record['row']}: {record['case']}",
        _seconds(record["ours_s"]) if "ours_s" in record else "",
        peer,
        f"{record['value']:.3g} {record['measured']}",
        target,
        met,
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
