"""Records as a table for people, in a terminal and in a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import Record

TITLES = ("what", "ours", "peer", "measured", "target", "")
WIDTHS = (74, 9, 28, 20, 8, 6)
BEGIN, END = "<!-- written by scripts/benchmark.py --write -->\n", "<!-- end of what it wrote -->\n"


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


def written(page: str, machine: Mapping[str, Any], records: Sequence[Record]) -> str:
    """A page with the records in place of what stands between BEGIN and END; ValueError if it has no such place."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected a page with the lines {BEGIN.strip()} and {END.strip()}")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number != "absent")
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    measured_on = (
        f"Commit {machine['commit'][:7]}, {machine['date'][:10]}: {machine['cores']} cores of {machine['cpu']} ({caches}), "
        f"{machine['memory_gib']} GiB; kernels: {', '.join(machine['kernels'])}; {versions}."
    )
    rows = [TITLES[:-1], ("---",) * (len(TITLES) - 1)]
    for record in records:
        *cells, wanted, met = (cell.replace("|", "\\|") for cell in _cells(record))
        said = met.removeprefix("met").strip(" ,")
        rows.append((*cells, f"{wanted} **{said}**" if met.startswith("missed") else f"{wanted} {said}".strip()))
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{before}{BEGIN}\n{measured_on}\n\n{lines}\n\n{END}{after}"
