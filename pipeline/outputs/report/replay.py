"""A run once more: its components after 1, 2, 3, 5, 10, 20 iterations, as far as those were kept, and at the end.

Each kept iteration becomes a record like the finished run's with its parameters, and is drawn as that is: over the data,
as pictures, or as words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pipeline.errors import StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.candidates import candidate_name
from pipeline.outputs.iterations import folder_of, kept_iterations
from pipeline.outputs.report import pictures, projection, topics
from pipeline.outputs.report.figures import Curve
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import number, plural
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
    """The kept iterations of the stored restart; None where none was kept, or they cannot be drawn."""
    found, lost = moments(record)
    if not found:
        return None
    n_iter = int(record.attrs.get("n_iter") or 0)
    if n_iter not in found:
        found[n_iter] = record
    titles = {t: "Start" if t == 0 else f"Iteration {t}" for t in found} | {n_iter: f"The end, iteration {n_iter}"}
    scores = {t: _score(record, curve, t) for t in found}
    words: list[tuple[int, list[str]]] = []
    drawn: dict[int, pictures.Picture | Markup | None]
    pixels, plane = pictures.pixel_map(record), projection.plane_of(record)
    if record.family == "multinomial":
        caption, drawn = f"The {WORDS} likeliest words of the largest components.", dict.fromkeys(found)
        spoken = [topics.likeliest(moment, range(min(record.k, TOPICS)), WORDS) for moment in found.values()]
        words = [(k, [" · ".join(frame[k]) for frame in spoken]) for k in range(len(spoken[0]))]
    elif pixels is not None:
        shown = range(min(record.k, pictures.IN_SMALL))
        drawn = {
            t: pictures.in_small(
                moment, pixels, record, f"{titles[t]}: {plural(len(shown), record.noun)} as pictures.", shown
            )
            for t, moment in found.items()
        }
        caption = pictures.small_caption(record, pixels)
    elif plane is not None:
        alts = {t: f"{title}: {plural(record.k, record.noun)} on {plane.where}." for t, title in titles.items()}
        drawn = {t: projection.snapshot(m, plane, f"at{t}", alts[t]) for t, m in found.items()}
        caption = f"The same rows in each, on {plane.where}."
    else:
        return None
    caption += " Components have the numbers that they end with." + lost
    return Replay(caption, [Frame(titles[t], scores[t], drawn[t]) for t in found], words)


def moments(record: Record) -> tuple[dict[int, Record], str]:
    """The run at its kept iterations, in order; and what is to be said of those that cannot be read."""
    found, lost = {}, []
    for t, path in _spread(list(_kept(record).items())):
        try:
            found[t] = record.with_parameters(checkpoint.read(path).arrays)
        except StorageError:
            lost.append(str(t))
    return found, f" Damaged, so not shown: iteration {', '.join(lost)}." if lost else ""


def _kept(record: Record) -> dict[int, Path]:
    """Iteration to its parameters, of the restart that became the model; of its refit to all rows, if there was one."""
    name = candidate_name(record.k, record.attrs.get("covariance_type"))
    restarts = record.attrs.get("restarts") or []
    restart = next((entry["restart"] for entry in restarts if entry.get("chosen")), 0)
    folder = RunDirectory(record.run).iterations
    refitted = kept_iterations(folder_of(folder, name, restart, refit=True))
    return refitted or kept_iterations(folder_of(folder, name, restart, refit=False))


def _spread(kept: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """As many as are shown: of more, the first ones densely, since most happens there."""
    if len(kept) < SHOWN:
        return kept
    places = np.unique(np.round(np.geomspace(1, len(kept), SHOWN - 1)).astype(int)) - 1
    return [kept[i] for i in places]


def _score(record: Record, curve: Curve | None, t: int) -> str:
    """The objective per row of the parameters after t iterations; nothing where the history does not have it."""
    if curve is None or t >= len(curve.objective) or np.isnan(curve.objective[t]):
        return ""
    unit = "squared distance" if record.family == "kmeans" else "nats"
    return f"{number(float(curve.objective[t]))} {unit} per row"
