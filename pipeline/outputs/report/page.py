"""The page: one context from the record, one template, one file that appears complete.

Jinja2 escapes every value except our own SVG and style sheet. A content security policy in the page
forbids scripts and network, so that a report from elsewhere is safe to open.
"""

from __future__ import annotations

import base64
import os
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.syntax import written
from pipeline.errors import InputError, StorageError, without_secrets
from pipeline.outputs.compressed import Compressed
from pipeline.outputs.denoised import Score, mean_of, read_scores
from pipeline.outputs.report import (
    figures,
    formatting,
    maps,
    outliers,
    pictures,
    prediction,
    projection,
    rate,
    sharing,
    summary,
    tables,
    topics,
)
from pipeline.outputs.report.choice import choice, message_lengths
from pipeline.outputs.report.record import Record, read_plain, read_record
from pipeline.outputs.report.replay import replay
from pipeline.outputs.report.timing import timing
from pipeline.outputs.run_directory import RunDirectory, sync_tree

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).parent
SHOWN = 2000  # components at most
TOPICS_OPEN = 48  # of more topics, the rest is shown on a click


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, or one of a prediction, from what is stored alone; it appears complete.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InputError
        If there is no finished model, and there are no finished labels, in `run`.
    StorageError
        If the model is damaged or the page cannot be written.
    """
    from threadpoolctl import threadpool_limits

    run = Path(run)
    with threadpool_limits(1):  # small matrices: more BLAS threads would only wait for each other
        of_labels = _prediction_record(run)
        if of_labels is None:
            page = render(read_record(run), run.name)
        else:
            page = _OF_COMMANDS.get(str(of_labels.get("command")), render_prediction)(run, of_labels)
    path, temporary = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        sync_tree(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot be written ({error}). Free some space or change the permissions, then run "
            f"`em-pipeline report {run}`."
        ) from error
    return path


def render(record: Record, name: str) -> str:
    """Return the page as text; `name` is that of the run."""
    return _template("report.html.jinja").render(style=_style(), **_context(record, name))


def render_prediction(path: Path, resolved: dict[str, Any]) -> str:
    """Return the page of a prediction. resolved : the content of its config.yaml."""
    found = prediction.context(prediction.read_prediction(path, resolved))
    for name in ("fingerprint", "trained_on"):
        found[name] = {str(key): _short(value) for key, value in found[name].items()}
    found["config"] = written(without_secrets(found["config"]), width=88)
    return _template("prediction.html.jinja").render(style=_style(), **found)


def render_denoised(path: Path, resolved: dict[str, Any]) -> str:
    """Return the page of pictures without noise. resolved : the content of its config.yaml."""
    scores = read_scores(path / "pictures.csv")
    found = {
        "scores": scores,
        "means": [mean_of(name, scores) for name in Score._fields[2:]],
        "sheet": _sheet(path),
        "compared": any(one.psnr is not None for one in scores),
    }
    return _template("denoised.html.jinja").render(**_of_command(path, resolved), **found)


def render_compressed(path: Path, resolved: dict[str, Any]) -> str:
    """Return the page of rows or pictures in few bits. resolved : the content of its config.yaml."""
    found = Compressed(path / "compress.zarr")
    sheet = None if found.patch is None else _sheet(path)
    return _template("compressed.html.jinja").render(
        **_of_command(path, resolved), figures=found.figures, entries=found.codebook.title, sheet=sheet
    )


def _of_command(path: Path, resolved: dict[str, Any]) -> dict[str, Any]:
    """What pages of pictures have in common."""
    return {
        "style": _style(),
        "name": path.name,
        "model_path": str(resolved["prediction_of"]),
        "source": str(resolved["config"]["data"].get("path", "")),
        "config": written(without_secrets(resolved), width=88),
    }


def _sheet(path: Path) -> str:
    """The sheet of a directory, as a source of `img`."""
    try:
        sheet = base64.b64encode((path / "sheet.png").read_bytes()).decode()
    except OSError as error:
        raise InputError(f"{path}: holds no pictures yet ({error}). Finish them: em-pipeline resume {path}") from error
    return f"data:image/png;base64,{sheet}"


_OF_COMMANDS = {"denoise": render_denoised, "compress": render_compressed}


def _style() -> Any:
    from markupsafe import Markup

    return Markup((_HERE / "style.css").read_text(encoding="utf-8"))


@cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filters in (formatting.number, formatting.percent, formatting.seconds, formatting.size):
        environment.filters[filters.__name__] = filters
    return environment.get_template(name)


def _context(record: Record, name: str) -> dict[str, Any]:
    spent = timing(record)
    curve = figures.read_curve(record)
    events, more_events = summary.happenings(record)
    start = (record.of("start") or [{}])[0]
    return {
        "name": name,
        "words": record.words,
        "row": record.row,
        "objective": record.objective,
        "k": record.k,
        "title": record.title,
        "subtitle": summary.subtitle(record),
        "brief": summary.brief(record),
        "converged": bool(record.attrs.get("converged")),
        "why_stopped": summary.why_stopped(record),
        "when": formatting.moment(start.get("time")),
        "asked": summary.asked(record),
        "outcome": summary.outcome(record, spent),
        "books": rate.of_books(record),
        "choice": choice(record),
        "lengths": message_lengths(record),
        "overlap": summary.overlap(record),
        "curves": figures.convergence(record, curve) if curve is not None and len(curve.objective) > 1 else [],
        "numbers": figures.numbers(curve) if curve is not None else ([], 0),
        "components": _components(record.first(SHOWN)) if record.k else None,
        "shown": SHOWN,
        "parameters": [*filter(None, [tables.confusion(record)]), *tables.others(record)],
        "outliers": outliers.outliers(record),
        "sharing": sharing.sharing(record),
        "replay": replay(record, curve) if 0 < record.k <= SHOWN else None,
        "search": summary.search(record),
        "restarts": _restarts(record),
        "events": events,
        "more_events": more_events,
        "spent": spent,
        "speed": figures.speed(spent.passes),
        "machine": _machine(start, record),
        "command": _command(start),
        "versions": {str(key): str(value) for key, value in record.versions.items()},
        "fingerprint": {str(key): _short(value) for key, value in record.fingerprint.items()},
        "config": written(without_secrets(record.config), width=88) if record.config else "",
        "run": record.option("output", "path") or name,
        "arrays": [(str(key), _shape(array)) for key, array in sorted(record.model.data_vars.items())],
    }


def _components(record: Record) -> dict[str, Any]:
    """Topics over a vocabulary, pictures where rows are pictures, else charts over the data; and a table."""
    charts = [figures.sizes(record), figures.sizes_over_time(record)]
    every = topics.topics(record) if record.has_topics else []
    gallery = None if every else pictures.gallery(record)
    if not every and gallery is None:
        charts += [*maps.maps(record), projection.scene(record), projection.heatmap(record)]
    shown = bool(every or gallery)
    return {
        "charts": [chart for chart in charts if chart is not None],
        "topics": every[:TOPICS_OPEN],
        "more": every[TOPICS_OPEN:],
        "gallery": gallery,
        "table": tables.components(record, located=not shown) if not shown or tables.own_numbers(record) else None,
    }


def _restarts(record: Record) -> list[dict[str, Any]]:
    """The objective per row of each restart; empty with only one."""
    restarts = record.attrs.get("restarts") or []
    if len(restarts) < 2:
        return []
    lines = []
    for i, entry in enumerate(restarts):
        raised = entry.get("objective")
        value = None if raised is None else record.words.sign * float(raised) / record.total_weight
        lines.append(
            {
                "restart": entry.get("restart", i),
                "objective": formatting.number(value, 8),
                "n_iter": formatting.number(entry.get("n_iter")),
                "reason": entry.get("stop_reason") or "",
                "chosen": bool(entry.get("chosen")),
            }
        )
    return lines


def _machine(start: dict[str, Any], record: Record) -> dict[str, str]:
    names = {"host": "host", "platform": "system", "cores": "cores", "workers": "workers", "blas": "BLAS kernels"}
    machine = {name: _short(start[key]) for key, name in names.items() if start.get(key) is not None}
    memory = start.get("memory_total")
    if isinstance(memory, (int, float)):
        machine["memory"] = formatting.size(memory)
    if record.numerics is not None:
        machine["numerics"] = str(record.numerics)
    return machine


def _command(start: dict[str, Any]) -> str:
    """The command that ran the job; empty if it was a program."""
    typed = start.get("command")
    if not isinstance(typed, list) or len(typed) < 2 or typed[1] not in ("run", "resume"):
        return ""
    return shlex.join(["em-pipeline", *(str(part) for part in typed[1:])])


def _short(value: Any) -> str:
    """Short text of a value; long lists (sizes, checksums of chunks) by their length and first entry."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value):,} values, first {_short(value[0])}"
    if isinstance(value, list):
        return " × ".join(_short(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return formatting.number(value)
    text = str(value)
    return text if len(text) <= 48 else f"{text[:16]}…"  # a checksum: enough to compare by eye


def _shape(array: Any) -> str:
    return " × ".join(f"{dim} {size:,}" for dim, size in array.sizes.items()) or "one number"


def _prediction_record(path: Path) -> dict[str, Any] | None:
    """Return the content of config.yaml of a directory of labels; None for another one."""
    if not path.is_dir() or (path / "model.zarr").is_dir():
        return None
    RunDirectory(path).refuse_special()
    resolved = read_plain(path / "config.yaml")
    return resolved if "prediction_of" in resolved else None
