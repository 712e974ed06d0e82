"""The output of `check`: the cost of a job in words, from the plain record that --json prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.outputs.progress import count, duration, memory, size

_BASES = {
    "chunks": "",
    "rows": "; estimated from some rows, because whole chunks take too long",
    "shapes": "; estimated from shapes, because some rows take too long",
}


def of_data(rows: int, features: int, dtype: str, pass_bytes: int, chunks: int, chunk_bytes: int) -> str:
    """Return the line about the rows."""
    return (
        f"data      {count(rows)} rows of {features} features, {dtype}: "
        f"{size(pass_bytes)} a pass, in {count(chunks)} chunks of up to {size(chunk_bytes)}"
    )


def of_memory(plan: dict[str, Any]) -> str:
    """Return the line about the memory. plan : the fields of the plan, and its peak."""
    return f"memory    {memory(plan)}"


def in_words(cost: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that `check` prints after those about rows and memory."""
    together = f"; {cost['fits']} fits share it" if cost["fits"] > 1 else ""
    yield (
        f"a pass    {duration(cost['seconds_per_pass'])} in {count(cost['tasks'])} tasks on {cost['workers']} workers; "
        f"reading alone {duration(cost['read_seconds'])}{together}{_BASES[cost['basis']]}"
    )
    for i, phase in enumerate(cost["phases"]):
        passes = f"{phase['passes']} pass{'es' if phase['passes'] != 1 else ''}" if phase["passes"] else ""
        note = f"  {phase['note']}" if phase["note"] else ""
        yield f"{'' if i else 'time':8}  {phase['name']:16}{passes:>12}{duration(phase['seconds']):>10}{note}"
    yield f"{'':8}  {'in all, at most':16}{'':12}{duration(cost['seconds']):>10}"
    for text in cost["advice"]:
        yield f"advice    {text}"
