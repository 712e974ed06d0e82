"""The first screen in words: what was asked, what came out, and what happened on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.outputs.report.record import Record
from pipeline.outputs.report.timing import Timing
from pipeline.outputs.report.words import moment, number, percent, plural, rate, seconds, setting, size

EVENTS_SHOWN = 100
# Told elsewhere in the report, or once per pass: not news.
_ROUTINE = {
    "start",
    "profile",
    "rung",
    "annihilation",
    "refused",
    "init",
    "pass",
    "checkpoint",
    "candidate",
    "finished",
    "labelled",
    "labels",
    "standard_errors",
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
    """One event worth reading."""

    time: str
    what: str
    text: str


def title(record: Record) -> str:
    """What was fitted: `A mixture of 200 Gaussians`."""
    if record.family == "kmeans":
        return f"K-means with {plural(record.k, 'cluster')}"
    if record.family == "multinomial":
        return f"A mixture of {plural(record.k, 'multinomial')}"
    return f"A mixture of {plural(record.k, 'Gaussian')}"


def subtitle(record: Record) -> str:
    """What it was fitted to: `530,000 patches of 8 × 8 pixels`."""
    n, data = int(record.attrs.get("n_rows") or 0), record.data
    d = int(record.attrs.get("n_features") or record.means.shape[1])
    pixels = " × ".join(str(side) for side in data.get("size", []))
    return {
        "patch": f"{plural(n, 'patch', 'patches')} of {pixels} pixels",
        "image": f"{plural(n, 'image')} of {pixels} pixels",
        "document": f"{plural(n, 'document')} over {plural(d, 'word')}",
    }.get(record.kind, f"{plural(n, 'row')} of {plural(d, 'feature')}")


_COVARIANCES = {
    "full": "a full covariance each",
    "tied": "one full covariance for all",
    "diag": "a diagonal covariance each",
    "spherical": "one variance each",
}


def brief(record: Record) -> str:
    """What was asked in short: `A full covariance each, start by k-means||, at most 100 iterations`."""
    max_iter, init = record.option("fit", "max_iter"), record.option("fit", "init")
    candidates = record.attrs.get("candidates")
    parts = [_COVARIANCES.get(str(record.attrs.get("covariance_type")), "")] if record.family == "gaussian" else []
    parts += [f"chosen from {len(candidates)} candidates"] if candidates and len(candidates) > 1 else []
    parts += [f"start by {init}"] if init else []
    parts += [f"at most {plural(int(max_iter), 'iteration')}"] if max_iter else []
    said = ", ".join(part for part in parts if part)
    return said and f"{said[0].upper()}{said[1:]}."


def asked(record: Record) -> list[Fact]:
    """The question: data, preparation, model, start, and when to stop."""
    facts = [Fact("Data", f"{subtitle(record)}{_source(record)}", note=_preparation(record))]
    model = title(record).removeprefix("A ")
    if record.family == "gaussian":
        model += f", {_COVARIANCES.get(str(record.attrs.get('covariance_type')), '')}"
    fixed = record.option("model", "fixed") or []
    note = [f"{' and '.join(fixed)} held fixed"] if fixed else []
    note += ["hard assignment"] if record.attrs.get("assignment") == "hard" and record.family != "kmeans" else []
    note += ["under a conjugate prior"] if record.option("model", "prior") else []
    reg = None if record.has("prior_scale") else record.attrs.get("reg_covar")
    note += [f"{setting(float(reg))} added to each variance"] if record.family == "gaussian" and reg else []
    candidates = record.attrs.get("candidates") or []
    note += [f"chosen from {len(candidates)} candidates"] if len(candidates) > 1 else []
    facts.append(Fact("Model", model[0].upper() + model[1:], note=", ".join(note)))
    n_init = record.option("fit", "n_init") or 1
    init = record.option("fit", "init")
    if init:
        facts.append(Fact("Start", str(init), note=f"the best of {n_init} restarts is kept" if n_init > 1 else ""))
    max_iter, tol = record.option("fit", "max_iter"), record.option("fit", "tol")
    if max_iter:
        unit = "" if record.family == "kmeans" else " nats per row"
        until = (
            f"or until the objective moves less than {setting(tol)}{unit}"
            if isinstance(tol, (int, float)) and tol > 0
            else ""
        )
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
        words = {"center": "centred", "standardize": "standardised", "zca": "whitened (ZCA)"}.get(step.get("kind"))
        kept = step.get("n_components")
        words = words or f"PCA{f' to {kept} components' if kept else ''}{', whitened' if step.get('whiten') else ''}"
        done.append(words)
    dropped = record.attrs.get("dropped_rows")
    done += [f"{plural(int(dropped), 'row')} with missing values dropped"] if dropped else []
    features = int(record.attrs.get("n_features") or 0)
    if features and (record.kind in ("patch", "image") or record.has("preprocess_inverse")):
        done.append(f"{plural(features, 'feature')} a row")
    weight = record.attrs.get("total_weight")
    if weight and weight != record.attrs.get("n_rows"):
        done.append(f"total weight {number(float(weight))}")
    return ", ".join(done)


def outcome(record: Record, spent: Timing) -> list[Fact]:
    """The answer: objective, iterations, time, and the criteria to compare models by."""
    attrs, kmeans = record.attrs, record.family == "kmeans"
    final = attrs.get("final_inertia" if kmeans else "final_log_likelihood")
    facts = []
    if final is not None:
        name, unit = ("Inertia", "squared distance per row") if kmeans else ("Log-likelihood", "nats per row")
        total = f"{number(float(final), 10)} in all"
        facts.append(Fact(name, number(float(final) / record.total_weight), unit, total))
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
        if value is not None and not kmeans:
            care = "; overlapping patches are not independent" if criterion == "bic" and overlap(record) else ""
            facts.append(Fact(criterion.upper(), number(round(float(value))), note=f"lower is better{care}"))
    if spent.peak_pss:
        facts.append(Fact("Peak memory", size(spent.peak_pss), note="driver and workers together"))
    if record.collapsed:
        note = "too few rows, or no width: they say nothing"
        facts.append(Fact("Collapsed", number(len(record.collapsed)), f"of {plural(record.k, record.noun)}", note))
    if record.k > 1:
        facts.append(Fact(f"Largest {record.noun}", percent(float(record.weights.max())), "of the rows"))
    return facts


def search(record: Record) -> list[dict[str, str]]:
    """A line for each rung of the search that found the start; empty where there was none."""
    names = {"kmeans": "K-means", "gaussian": "Gaussian mixture", "multinomial": "multinomial mixture"}
    d = record.means.shape[1]
    return [
        {
            "rows": number(rung["rows"]),
            "what": names[rung["family"]]
            + (f", {rung['features']} principal components" if rung["features"] < d else ""),
            "starts": number(rung["starts"]),
            "moved": ", ".join(map(str, rung["moved"])) or "none",
            "objective": number(abs(rung["objective"]) if rung["family"] == "kmeans" else rung["objective"], 8),
        }
        for rung in record.attrs.get("search") or []
    ]


def overlap(record: Record) -> bool:
    """Whether patches share pixels: then a criterion that counts independent rows is too sure of itself."""
    patch = record.option("data", "patch") or {}
    return record.kind == "patch" and int(patch.get("stride", 1)) < max(record.data.get("size") or [1])


def why_stopped(record: Record) -> str:
    """The rest of a sentence that begins with the verdict, `Converged` or `Stopped`, which the page sets in bold."""
    reason = str(record.attrs.get("stop_reason") or "").strip()
    reason = reason.removeprefix("converged: ").removeprefix("stopped: ")
    return reason and reason + ("" if reason.endswith((".", "!", "?")) else ".")


def happenings(record: Record) -> tuple[list[Happening], int]:
    """Resets, warnings, resumptions and anything unknown, oldest first; and how many more there were."""
    news = _without_repeats([entry for entry in record.events if entry.get("event") not in _ROUTINE])
    shown = [_happening(entry, record) for entry in news[:EVENTS_SHOWN]]
    return shown, len(news) - len(shown)


def _without_repeats(news: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A component that is left as it is is so at every iteration after: told once, with how often."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    kept = []
    for entry in news:
        if entry.get("event") == "reset" and not entry.get("done", True):
            which = tuple(entry.get(name) for name in ("candidate", "restart", "refit", "component"))
            if which in first:
                first[which]["repeats"] += 1
                continue
            entry = first[which] = {**entry, "repeats": 0}
        kept.append(entry)
    return kept


def _happening(entry: dict[str, Any], record: Record) -> Happening:
    event = str(entry.get("event", "event"))
    tell = {"reset": _reset, "warning": _warning, "resume": _resume}.get(event, _plain)
    return Happening(moment(entry.get("time")), event, tell(entry, record))


def _reset(entry: dict[str, Any], record: Record) -> str:
    """Components are sorted at the end, so the one that an event names may have another number now."""
    component, where = entry.get("component", "?"), f"iteration {entry.get('iteration', '?')}"
    order, restarts = list(record.attrs.get("order") or []), record.attrs.get("restarts") or []
    chosen = next((r.get("restart") for r in restarts if r.get("chosen")), 0)
    candidates = record.attrs.get("candidates") or [{"chosen": True}]
    of = candidates[entry.get("candidate", 0)]
    before = any("heldout" in one for one in candidates) and not entry.get("refit")  # it was refitted since
    if before or not of["chosen"]:
        where = f"candidate {of['name']}, {where}"
    elif entry.get("restart", chosen) != chosen:
        where = f"restart {entry['restart']}, {where}"
    elif component in order and order.index(component) != component:
        component = f"{component} (now {order.index(component)})"
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    done = "started anew" if entry.get("done", True) else "was left as it is"
    repeats = entry.get("repeats")
    later = f", and at {plural(repeats, 'later iteration')}" if repeats else ""
    return f"{record.noun.capitalize()} {component} {done} at {where}{later}{reason}."


def _warning(entry: dict[str, Any], record: Record) -> str:
    return str(entry.get("message", ""))


def _resume(entry: dict[str, Any], record: Record) -> str:
    return f"Went on from checkpoint generation {entry.get('generation', '?')}."


def _plain(entry: dict[str, Any], record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("event", "time"))
