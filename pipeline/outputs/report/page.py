"""The page: one context from the record, one template, one file that appears whole.

Jinja2 escapes every value; only our own SVG and style sheet go in as they are. A content security policy in the page
forbids scripts and network, so that a report from elsewhere is safe to open.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import StorageError
from pipeline.outputs.report import figures, misfits, pictures, projection, story, topics, words
from pipeline.outputs.report.choice import choice, message_lengths
from pipeline.outputs.report.record import Record, read_record
from pipeline.outputs.report.replay import replay
from pipeline.outputs.report.timing import timing
from pipeline.outputs.run_directory import sync_tree

_HERE = Path(__file__).parent
TOPICS_OPEN = 48  # with more topics, the rest is folded away


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from the run directory alone; returns its path.

    The file appears whole or not at all. Raises InputError if there is no finished model in `run`,
    StorageError if the model is damaged or the page cannot be written.
    """
    from threadpoolctl import threadpool_limits

    run = Path(run)
    with threadpool_limits(1):  # small matrices: more BLAS threads only wait for each other, and for other people's
        page = render(read_record(run), run.name)
    path, temporary = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        temporary.write_text(page, encoding="utf-8")
        sync_tree(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot be written ({error}). Make room or mend the permissions, then rerun."
        ) from error
    return path


def render(record: Record, name: str) -> str:
    """The whole page as text; `name` is what the run is called."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=words.number, percent=words.percent, seconds=words.seconds, size=words.size, moment=words.moment
    )
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.jinja").render(style=style, **_context(record, name))


def _context(record: Record, name: str) -> dict[str, Any]:
    spent = timing(record)
    curve = figures.read_curve(record)
    events, more_events = story.happenings(record)
    start = (record.of("start") or [{}])[0]
    return {
        "name": name,
        "family": record.family,
        "noun": record.noun,
        "title": story.title(record),
        "subtitle": story.subtitle(record),
        "brief": story.brief(record),
        "converged": bool(record.attrs.get("converged")),
        "why_stopped": story.why_stopped(record),
        "when": words.moment(start.get("time")),
        "asked": story.asked(record),
        "outcome": story.outcome(record, spent),
        "curves": figures.convergence(record, curve) if curve is not None and len(curve.objective) > 1 else [],
        "numbers": figures.numbers(curve) if curve is not None else ([], 0),
        "sizes": [chart for chart in (figures.sizes(record), figures.sizes_over_time(record)) if chart is not None],
        "components": _COMPONENTS.get(record.family, _dense)(record),
        "misfits": misfits.misfits(record),
        "confusion": misfits.confusion(record),
        "replay": replay(record, curve),
        "lengths": message_lengths(record),
        "choice": choice(record),
        "overlap": story.overlap(record),
        "search": story.search(record),
        "restarts": _restarts(record),
        "events": events,
        "more_events": more_events,
        "spent": spent,
        "speed": figures.speed(spent.passes),
        "machine": _machine(start, record),
        "command": _command(start),
        "versions": {str(key): str(value) for key, value in record.versions.items()},
        "fingerprint": {str(key): _short(value) for key, value in record.fingerprint.items()},
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=88) if record.config else "",
        "run": record.option("output", "path") or name,
        "arrays": [(str(key), _shape(array)) for key, array in sorted(record.model.data_vars.items())],
    }


def _dense(record: Record) -> dict[str, Any]:
    """Pictures where rows are pictures; else the components over the data, with a table of means."""
    gallery = pictures.gallery(record)
    if gallery is not None:
        return {"kind": "pictures", "gallery": gallery}
    rows = record.array("representative_row")[:, :5] if record.has("representative_row") else None
    return {
        "kind": "rows",
        "charts": [chart for chart in (projection.scene(record), projection.heatmap(record)) if chart is not None],
        "table": projection.means_table(record),
        "weights": [float(weight) for weight in record.weights],
        "closest": [[int(row) for row in line if row >= 0] for line in rows] if rows is not None else [],
    }


def _documents(record: Record) -> dict[str, Any]:
    every = topics.topics(record)
    return {"kind": "topics", "topics": every[:TOPICS_OPEN], "more": every[TOPICS_OPEN:]}


# A family whose components are not points among the rows shows them in its own way.
_COMPONENTS: dict[str, Callable[[Record], dict[str, Any]]] = {"multinomial": _documents}


def _restarts(record: Record) -> list[dict[str, Any]]:
    """One line a restart, the objective per row; nothing where there was only one."""
    restarts = record.attrs.get("restarts") or []
    if len(restarts) < 2:
        return []
    sign = -1 if record.family == "kmeans" else 1  # the objective is what grows: inertia with its sign turned
    lines = []
    for i, entry in enumerate(restarts):
        objective = entry.get("objective")
        lines.append(
            {
                "restart": entry.get("restart", i),
                "objective": words.number(
                    None if objective is None else sign * float(objective) / record.total_weight, 8
                ),
                "n_iter": words.number(entry.get("n_iter")),
                "reason": entry.get("stop_reason") or "",
                "chosen": bool(entry.get("chosen")),
            }
        )
    return lines


def _machine(start: dict[str, Any], record: Record) -> dict[str, str]:
    told = {"host": "host", "platform": "system", "cores": "cores", "workers": "workers", "blas": "BLAS kernels"}
    machine = {name: _short(start[key]) for key, name in told.items() if start.get(key) is not None}
    memory = start.get("memory_total")
    if isinstance(memory, (int, float)):
        machine["memory"] = words.size(memory)
    if record.numerics is not None:
        machine["numerics"] = str(record.numerics)
    return machine


def _command(start: dict[str, Any]) -> str:
    """What was typed, or an empty text where it was a program that ran the job."""
    typed = start.get("command")
    if not isinstance(typed, list) or len(typed) < 2 or typed[1] not in ("run", "resume"):
        return ""
    return shlex.join(["em-pipeline", *(str(part) for part in typed[1:])])


def _short(value: Any) -> str:
    """Plain text of a small value; long lists (sizes, sums of chunks) by their length and first entry."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value):,} values, first {_short(value[0])}"
    if isinstance(value, list):
        return " × ".join(_short(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return words.number(value)
    text = str(value)
    return text if len(text) <= 48 else f"{text[:16]}…"  # a checksum: enough to compare by eye


def _shape(array: Any) -> str:
    return " × ".join(f"{dim} {size:,}" for dim, size in array.sizes.items()) or "one number"
