"""The plan of a job in words: what `check` prints, and the two lines at the start of a run.

Plans come as the plain records that the log and --json hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.outputs.progress import count, duration


def size(n_bytes: float) -> str:
    """1536 as `1.5 KiB`, 10**9 as `954 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes:.0f} B"


def in_words(cost: dict[str, Any]) -> Iterator[str]:
    """The lines that `check` prints for the facts of a Cost."""
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
        passes = f"{phase['passes']} pass{'es' if phase['passes'] != 1 else ''}" if phase["passes"] else "in memory"
        note = f"  {phase['note']}" if phase["note"] else ""
        yield f"{'' if i else 'time':8}  {phase['name']:16}{passes:>12}{duration(phase['seconds']):>10}{note}"
    yield f"{'':8}  {'in all, at most':16}{'':12}{duration(cost['seconds']):>10}"
    for text in cost["advice"]:
        yield f"advice    {text}"


def memory(plan: dict[str, Any]) -> str:
    """A memory plan: `at most 620 MiB of 4.2 GiB: 451 MiB for the job, and 84.3 MiB for each of 2 tasks at a time`."""
    tasks = f"each of {plan['workers']} tasks at a time" if plan["workers"] > 1 else "one task at a time"
    ahead = "" if plan["ahead"] else ", without reading ahead"
    return (
        f"at most {size(plan['peak'])} of {size(plan['limit'])}: {size(plan['fixed'])} for the job, "
        f"and {size(plan['per_task'])} for {tasks}{ahead}"
    )
