"""The first screen in words: the question, the results, and important events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.families import words_of
from pipeline.outputs.report.choice import refitted
from pipeline.outputs.report.formatting import moment, number, percent, plural, rate, seconds, setting, size
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.timing import Timing

EVENTS_SHOWN = 100
_FOR_EXPERTS = re.compile(r" \(Fisher norm [^()]*\)")  # model.zarr has them
# Shown elsewhere in the report, or part of every run: not news.
_ROUTINE = {
    *("start", "profile", "searching", "level", "pruning", "init", "pass", "progress", "checkpoint", "candidate"),
    *("standard_errors", "labelled", "labels", "stored", "copied", "finished"),
}
_FIRST = (
    "warning",
    "resume",
    "worker_lost",
    "reset",
    "rejected",
)  # where there are too many, later ones make room, and others first

_KNOWN = "with the classes of data.labels_true; 1 is equal"
_MEASURES = {  # of labels.zarr, and what is good
    "silhouette": ("Silhouette", "simplified: by centres; from -1 to 1, higher is better"),
    "davies_bouldin": ("Davies-Bouldin", "lower is better"),
    "calinski_harabasz": ("Calinski-Harabasz", "higher is better"),
    "adjusted_rand": ("Adjusted Rand index", _KNOWN),
    "normalized_mutual_information": ("Mutual information", f"normalized, {_KNOWN}"),
    "purity": ("Purity", f"of the labels {_KNOWN}"),
}


@dataclass(frozen=True)
class Fact:
    """One figure of the first screen."""

    name: str
    value: str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Happening:
    """One important event."""

    time: str
    what: str
    text: str


def subtitle(record: Record) -> str:
    """Return what the model was fitted to: `530,000 patches of 8 × 8 pixels`."""
    rows, d = plural(int(record.attrs.get("n_rows") or 0), *record.row), record.n_features
    pixels = " × ".join(str(side) for side in record.data.get("size", []))
    if record.kind in ("patch", "image") and pixels:
        return f"{rows} of {pixels} {'pixels' if len(record.data['size']) == 2 else 'voxels'}"
    return f"{rows} over {plural(d, 'word')}" if record.kind == "document" else f"{rows} of {plural(d, 'feature')}"


def brief(record: Record) -> str:
    """Return the options in short: `A full covariance each, start by k-means||, at most 100 iterations`."""
    max_iter, init = record.option("fit", "max_iter"), record.option("fit", "init")
    parts = [record.spread_text, _candidates(record)]
    parts += [f"start by {init}"] if init else []
    parts += [f"at most {plural(int(max_iter), 'iteration')}"] if max_iter else []
    text = ", ".join(part for part in parts if part)
    return text and f"{text[0].upper()}{text[1:]}."


def _candidates(record: Record) -> str:
    candidates = record.attrs.get("candidates") or []
    return f"chosen from {len(candidates)} candidates" if len(candidates) > 1 else ""


def asked(record: Record) -> list[Fact]:
    """Return the question: data, preparation, model, start, and when to stop."""
    facts = [Fact("Data", f"{subtitle(record)}{_source(record)}", note=_preparation(record))]
    model = record.title.removeprefix("A ")
    model = f"{model[0].upper()}{model[1:]}{record.spread_text and f', {record.spread_text}'}"
    fixed = record.option("model", "fixed") or []
    note = [f"{' and '.join(fixed)} fixed"] if fixed else []
    note += ["hard assignment"] if record.attrs.get("assignment") == "hard" else []
    note += ["under a conjugate prior"] if record.option("model", "prior") else []
    fitted = record.fitted
    floor = fitted[0].floor if fitted else record.attrs.get("reg_covar")
    note += [f"{setting(float(floor))} added to each variance"] if floor else []
    note += [_candidates(record)] if _candidates(record) else []
    facts.append(Fact("Model", model, note=", ".join(note)))
    n_init, init = record.option("fit", "n_init") or 1, record.option("fit", "init")
    if init:
        facts.append(Fact("Start", str(init), note=f"the best of {n_init} restarts" if n_init > 1 else ""))
    max_iter, tol = record.option("fit", "max_iter"), record.option("fit", "tol")
    if max_iter:
        stops = isinstance(tol, (int, float)) and tol > 0
        until = f"or until {record.words.until.format(tol=setting(tol))}" if stops else ""
        facts.append(Fact("Effort", f"at most {plural(int(max_iter), 'iteration')}", note=until))
    return facts


def _source(record: Record) -> str:
    path = record.option("data", "path")
    return f", from {str(path).rstrip('/').rsplit('/', 1)[-1]}" if path else ""


def _preparation(record: Record) -> str:
    done = []
    if record.kind == "patch":
        done += ["each patch's mean removed"] if record.data.get("remove_mean") else []
        done += ["contrast normalised"] if record.data.get("contrast") else []
    for step in record.config.get("preprocess") or []:
        name = {"center": "centred", "standardize": "standardised", "zca": "whitened (ZCA)"}.get(step.get("kind"))
        n_components = step.get("n_components")
        name = "standardised by variable" if step.get("by") == "variable" else name
        name = (
            name
            or f"PCA{f' to {n_components} components' if n_components else ''}{', whitened' if step.get('whiten') else ''}"
        )
        done.append(name)
    dropped = record.attrs.get("dropped_rows")
    done += [f"{plural(int(dropped), 'row')} with missing values dropped"] if dropped else []
    features = int(record.attrs.get("n_features") or 0)
    if features and (record.kind in ("patch", "image") or record.has("preprocess_inverse")):
        done.append(f"{plural(features, 'feature')} a row")
    weight = record.attrs.get("total_weight")
    if weight and weight != record.attrs.get("n_rows"):
        done.append(f"total weight {number(float(weight))}")
    if record.attrs.get("earlier_weight"):
        done.append(
            f"of it {number(float(record.attrs['earlier_weight']))} by the statistics of an earlier run, so that the {record.words.objective} is {'an upper' if record.words.sign < 0 else 'a lower'} bound"
        )
    return ", ".join(done)


def outcome(record: Record, spent: Timing) -> list[Fact]:
    """Return the answer: objective, iterations, time, and the criteria to compare models by."""
    attrs, words = record.attrs, record.words
    facts = []
    if record.final is not None:
        per_row, unit = record.final / record.total_weight, f"{words.unit} per row"
        name = words.objective[0].upper() + words.objective[1:]
        facts.append(Fact(name, number(per_row), unit, f"{number(record.final, 10)} in all"))
        if record.penalty:
            facts.append(Fact("Objective", number(per_row + record.penalty), unit, record.objective_text))
        if "bits" in attrs:  # of a quantiser of several books
            bits, d = int(attrs["bits"]), record.n_features
            note = f"{number(bits / d, 3)} bits a feature; em-pipeline compress writes them"
            facts.append(Fact("Rate", number(bits), f"bits a {record.row[0]}", note))
            facts.append(Fact("Distortion", number(per_row / d), "mean squared error of a feature"))
    facts.append(
        Fact("Iterations", number(attrs.get("n_iter")), note="" if attrs.get("converged") else "not converged")
    )
    if spent.total is not None:
        note = f"in {spent.sessions} sessions" if spent.sessions > 1 else ""
        facts.append(Fact("Time", seconds(spent.total), note=note))
    if spent.rows_per_second is not None:
        speed, unit = rate(spent.rows_per_second).rsplit(" ", 1)
        busy = f"on {plural(spent.workers, 'worker')}" if spent.workers else ""
        facts.append(Fact("Speed", speed, unit, busy))
    for criterion in ("bic", "aic", "icl"):
        value = attrs.get(criterion)
        if value is not None:
            care = "; overlapping patches are not independent" if criterion == "bic" and overlap(record) else ""
            facts.append(Fact(criterion.upper(), number(round(float(value))), note=f"lower is better{care}"))
    facts += measured(record.measures) + _certainty(record)
    if spent.peak_pss:
        facts.append(Fact("Peak memory", size(spent.peak_pss), note="driver and workers together"))
    if record.collapsed:
        note = "at the end: too few rows, or a variance near 0"
        facts.append(Fact("Collapsed", number(record.collapsed), f"of {number(record.k)} {words.components}", note))
    if record.noise is not None:
        note = "uniform over the box of all rows; label -2 where noise is likelier than each component"
        facts.append(Fact("Noise", percent(record.noise), f"of the {record.row[1]}", note))
    if record.k > 1:
        facts.append(
            Fact(f"Largest {words.component}", percent(float(record.weights.max())), f"of the {record.row[1]}")
        )
    return facts


def _certainty(record: Record) -> list[Fact]:
    """How sure the labels of a mixture are: the entropy of the responsibilities, and the errors that these expect."""
    words, facts = record.words, []
    if "icl" in record.attrs and record.k > 1 and record.attrs.get("assignment") != "hard":
        entropy = (record.attrs["icl"] - record.attrs["bic"]) / 2  # by the definition of ICL
        most = number(float(np.log(record.k)), 3)
        note = f"of the responsibilities; from 0, where each {record.row[0]} has one {words.component}, to {most}"
        facts.append(Fact("Entropy", number(entropy / record.total_weight, 3), "nats per row", note))
    if record.has("overlap"):
        counts = record.array("overlap")
        note = f"whose label is not their {words.component}, if the model is right"
        facts.append(
            Fact(
                "Expected errors",
                percent(1.0 - float(np.trace(counts) / counts.sum())),
                f"of the {record.row[1]}",
                note,
            )
        )
    return facts


def measured(measures: dict[str, Any]) -> list[Fact]:
    """Return the measures of labels. measures : as `measures_of` returned them."""
    return [
        Fact(title, number(measures[name]), note=note) for name, (title, note) in _MEASURES.items() if name in measures
    ]


def search(record: Record) -> list[dict[str, str]]:
    """Return a line for each level of the search that found the start; empty without a search."""
    lines = []
    for level in record.attrs.get("search") or []:
        own = level["family"] == record.attrs["family"]
        words = record.words if own and record.k else words_of(level["family"])
        reduced = level["features"] < record.n_features
        of = "features of a part" if "parts" in record.attrs else "principal components"
        lines.append(
            {
                "rows": number(level["rows"]),
                "model": words.name + (f", {level['features']} {of}" if reduced else ""),
                "starts": number(level["starts"]),
                "moved": ", ".join(map(str, level["moved"])) or "none",
                "objective": f"{number(words.sign * level['objective'], 8)} ({'inertia' if words.sign < 0 else words.unit})",
            }
        )
    return lines


def overlap(record: Record) -> bool:
    """Whether patches share pixels: criteria that assume independent rows are then overconfident."""
    patch = record.option("data", "patch") or {}
    return record.kind == "patch" and int(patch.get("stride", 1)) < max(record.data.get("size") or [1])


def why_stopped(record: Record) -> str:
    """Return the rest of a sentence that begins with `Converged` or `Stopped`."""
    reason = str(record.attrs.get("stop_reason") or "").strip()
    reason = reason.removeprefix("converged: ").removeprefix("stopped: ")
    reason = _FOR_EXPERTS.sub("", reason)
    return reason and reason + ("" if reason.endswith((".", "!", "?")) else ".")


def happenings(record: Record) -> tuple[list[Happening], int]:
    """Return resets, warnings, resumptions and unknown events, oldest first; and how many more there were."""
    news = _without_repeats([entry for entry in record.events if entry.get("event") not in _ROUTINE])
    rank = {name: i for i, name in enumerate(_FIRST)}
    ranked = sorted(range(len(news)), key=lambda i: (rank.get(str(news[i].get("event")), len(rank)), i))[:EVENTS_SHOWN]
    shown = [_happening(news[i], record) for i in sorted(ranked)]
    return shown, len(news) - len(shown)


def _without_repeats(news: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A component that is not reset any more, a warning, and rejected steps of a restart are listed once, with a count."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    found = []
    for entry in news:
        once = entry.get("event") in ("rejected", "warning") or (
            entry.get("event") == "reset" and not entry.get("done", True)
        )
        if once:
            names = ("event", "candidate", "restart", "refit", "component", "message")
            which = tuple(str(entry.get(name)) for name in names)
            if which in first:
                first[which]["repeats"] += 1
                continue
            entry = first[which] = {**entry, "repeats": 0}
        found.append(entry)
    return found


def _happening(entry: dict[str, Any], record: Record) -> Happening:
    event = str(entry.get("event", "event"))
    describe = {
        "reset": _reset,
        "warning": _warning,
        "resume": _resume,
        "rejected": _rejected,
        "worker_lost": _worker_lost,
    }.get(event, _plain)
    return Happening(moment(entry.get("time")), event, describe(entry, record))


def _reset(entry: dict[str, Any], record: Record) -> str:
    """Components are sorted at the end, so the number in an event may not be the present one."""
    component, where = entry.get("component", "?"), f"iteration {entry.get('iteration', '?')}"
    order, restarts = list(record.attrs.get("order") or []), record.attrs.get("restarts") or []
    chosen = next((r.get("restart") for r in restarts if r.get("chosen")), 0)
    candidates = record.attrs.get("candidates") or [{"chosen": True}]
    of = candidates[entry.get("candidate", 0)]
    before = any("heldout" in one for one in candidates) and not entry.get("refit") and refitted(record)
    if before or not of["chosen"]:
        where = f"candidate {of['name']}, {where}"
    elif entry.get("restart", chosen) != chosen:
        where = f"restart {entry['restart']}, {where}"
    elif component in order and order.index(component) != component:
        component = f"{component} (now {order.index(component)})"
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    done = "was reset" if entry.get("done", True) else "was collapsed but not reset again"
    repeats = entry.get("repeats")
    later = f", and at {plural(repeats, 'later iteration')}" if repeats else ""
    return f"{record.words.component.capitalize()} {component} {done} at {where}{later}{reason}."


def _warning(entry: dict[str, Any], record: Record) -> str:
    repeats = entry.get("repeats")
    return str(entry.get("message", "")) + (f" ({plural(repeats + 1, 'time')})" if repeats else "")


def _rejected(entry: dict[str, Any], record: Record) -> str:
    repeats = entry.get("repeats")
    later = f", and {repeats} more later" if repeats else ""
    return (
        f"An extrapolation step was rejected at iteration {entry.get('iteration', '?')}{later}: it would have lowered the "
        "objective or collapsed a component. EM went on from the step before it."
    )


def _resume(entry: dict[str, Any], record: Record) -> str:
    generation = entry.get("generation")
    return "Resumed during the first pass." if generation is None else f"Resumed from checkpoint {generation}."


def _worker_lost(entry: dict[str, Any], record: Record) -> str:
    return f"Worker {entry.get('worker')} was lost; {entry.get('workers')} were left, which computed again what it had."


def _plain(entry: dict[str, Any], record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("event", "time"))
