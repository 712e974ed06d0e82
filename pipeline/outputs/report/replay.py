"""The stored iterations side by side: the components after 0, 1, 2, 5 … iterations, and at the end.

Each is drawn as the finished run is: over the data, as pictures, or as words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pipeline.errors import StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.iterations import stored_iterations
from pipeline.outputs.report import pictures, projection, topics
from pipeline.outputs.report.figures import Curve
from pipeline.outputs.report.formatting import number, plural
from pipeline.outputs.report.record import Record
from pipeline.outputs.run_directory import RunDirectory

SHOWN = 8  # the end included
TOPICS, WORDS = 12, 5


@dataclass(frozen=True)
class Frame:
    """One iteration. score : its objective per row, in words.  picture : of all its components, None for topics."""

    title: str
    score: str
    picture: pictures.Picture | Markup | None


@dataclass(frozen=True)
class Replay:
    """Frames side by side. words : a line for each topic shown, with its likeliest words in each frame."""

    caption: str
    frames: list[Frame]
    words: list[tuple[int, list[str]]]


def replay(record: Record, curve: Curve | None) -> Replay | None:
    """Return the stored iterations of the chosen restart; None without them, or if they cannot be drawn."""
    found, damaged = moments(record)
    if not found:
        return None
    n_iter = int(record.attrs.get("n_iter") or 0)
    if n_iter not in found:
        found[n_iter] = record
    titles = {t: "Start" if t == 0 else f"Iteration {t}" for t in found} | {n_iter: f"The end, iteration {n_iter}"}
    scores = {t: _score(record, curve, t) for t in found}
    words: list[tuple[int, list[str]]] = []
    drawn: dict[int, pictures.Picture | Markup | None]
    component, components = record.words.component, record.words.components
    pixels, plane = pictures.pixel_map(record) if record.location else None, projection.plane_of(record)
    if record.has_topics:
        caption, drawn = f"The {WORDS} likeliest words of the largest {components}.", dict.fromkeys(found)
        likeliest = [topics.likeliest(moment, range(min(record.k, TOPICS)), WORDS) for moment in found.values()]
        words = [(k, [" · ".join(frame[k]) for frame in likeliest]) for k in range(len(likeliest[0]))]
    elif pixels is not None:
        shown = range(min(record.k, pictures.IN_SMALL))
        alts = {t: f"{title}: {plural(len(shown), component, components)} as pictures." for t, title in titles.items()}
        drawn = {t: pictures.in_small(moment, pixels, record, alts[t], shown) for t, moment in found.items()}
        caption = pictures.small_caption(record, pixels)
    elif plane is not None:
        alts = {
            t: f"{title}: {plural(record.k, component, components)} on {plane.where}." for t, title in titles.items()
        }
        drawn = {t: projection.snapshot(m, plane, alts[t]) for t, m in found.items()}
        caption = f"The same rows in each, on {plane.where}."
    else:
        return None
    caption += f" Each {component} has the number that it has at the end.{damaged}"
    return Replay(caption, [Frame(titles[t], scores[t], drawn[t]) for t in found], words)


def moments(record: Record) -> tuple[dict[int, Record], str]:
    """Return the run at its stored iterations, in order; and a sentence about those that cannot be read."""
    found, damaged = {}, []
    for t, path in _spread(list(_stored(record).items())):
        try:
            found[t] = record.with_parameters(checkpoint.read(path).arrays)
        except StorageError:
            damaged.append(str(t))
    return found, f" Damaged, so not shown: iteration {', '.join(damaged)}." if damaged else ""


def _stored(record: Record) -> dict[int, Path]:
    """Parameters by iteration, of the restart that became the model; of its fit to all rows if there was one."""
    chosen = [entry["name"] for entry in record.attrs.get("candidates") or () if entry.get("chosen")]
    name = record.attrs.get("name") or next(iter(chosen), None)  # with one candidate, all folders are of that one
    restarts = record.attrs.get("restarts") or []
    restart = next((entry["restart"] for entry in restarts if entry.get("chosen")), 0)
    ends = re.compile(rf"{re.escape(name) if name else '.*'}-{restart}(-refit)?")
    folders = [path for path in RunDirectory(record.run).iterations.glob("*") if ends.fullmatch(path.name)]
    # That of a refit comes last.
    return next((found for path in sorted(folders, reverse=True) if (found := stored_iterations(path))), {})


def _spread(stored: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """As many as are shown, the first ones more densely, because most happens there."""
    if len(stored) < SHOWN:
        return stored
    places = np.unique(np.round(np.geomspace(1, len(stored), SHOWN - 1)).astype(int)) - 1
    return [stored[i] for i in places]


def _score(record: Record, curve: Curve | None, t: int) -> str:
    """The objective per row of the parameters after t iterations; empty if the history does not have it."""
    if curve is None or t >= len(curve.objective) or np.isnan(curve.objective[t]):
        return ""
    return f"{number(float(curve.objective[t]))} {record.words.unit} per row"
