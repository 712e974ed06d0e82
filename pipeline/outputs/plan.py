"""The output of `check`: the cost of a job in words, from the plain record that --json prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.outputs.progress import count, duration, memory, size


def in_words(cost: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that `check` prints."""
    yield (
        f"data      {count(cost['rows'])} rows of {cost['features']} features, {cost['dtype']}: "
        f"{size(cost['pass_bytes'])} a pass, in {count(cost['chunks'])} chunks of up to {size(cost['chunk_bytes'])}"
    )
    yield f"memory    {memory(cost['memory'])}"
    together = f"; {cost['fits']} fits share it" if cost["fits"] > 1 else ""
    yield (
        f"a pass    {duration(cost['seconds_per_pass'])} in {count(cost['tasks'])} tasks on {cost['workers']} workers; "
        f"reading alone {duration(cost['read_seconds'])}{together}"
    )
    for i, phase in enumerate(cost["phases"]):
        passes = f"{phase['passes']} pass{'es' if phase['passes'] != 1 else ''}" if phase["passes"] else ""
        note = f"  {phase['note']}" if phase["note"] else ""
        yield f"{'' if i else 'time':8}  {phase['name']:16}{passes:>12}{duration(phase['seconds']):>10}{note}"
    yield f"{'':8}  {'in all, at most':16}{'':12}{duration(cost['seconds']):>10}"
    for text in cost["advice"]:
        yield f"advice    {text}"
