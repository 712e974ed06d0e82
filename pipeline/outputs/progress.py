"""Events of a job and the quantities in them, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def describe(event: dict[str, Any]) -> str | None:
    """An event in a few words, or None for one that only machines need."""
    describer = _DESCRIBERS.get(event["event"])
    return None if describer is None else describer(event)


def _start(e: dict[str, Any]) -> str:
    said = f"{count(e['rows'])} rows in {count(e['chunks'])} chunks, {e['workers']} at a time; {', '.join(e['blas'])}"
    if "plan" not in e:
        return said
    plan = e["plan"]
    return f"{said}; each pass reads {size(plan['pass_bytes'])}; memory {memory(plan)}"


_FIGURES: dict[str, Callable[[float | None], str]] = {
    "inertia": lambda value: f"inertia per row {value:.6g}",
    "log_likelihood": lambda value: f"log-likelihood per row {value:.6f} nats",
    "free_energy": lambda value: "blocks" if value is None else f"free energy per row {value:.6f} nats",
}


def figure_of(e: dict[str, Any]) -> tuple[str, float | None]:
    """The name of what a pass raises or lowers, and how much of it a row has, None where that is not known."""
    name = next(name for name in _FIGURES if f"{name}_per_row" in e)
    return name, e[f"{name}_per_row"]


def _pass(e: dict[str, Any]) -> str:
    name, value = figure_of(e)
    figure = _FIGURES[name](value)
    speed = f"{count(e['rows'] / max(e['seconds'], 1e-9))} rows/s"
    refit = "refit, " if e.get("refit") else ""
    if e["final"]:
        return f"{refit}final pass  {figure}  {speed}"
    if name == "free_energy":  # one block of a sweep: its seconds say little of those of a pass
        return f"iteration {e['iteration'] + 1:3d}  {figure}  {speed}"
    left = f"at most {roughly((e['max_iter'] - e['iteration']) * e['seconds'])} left"  # with the final pass
    if e.get("running") == 0:
        left = "the final pass is left"
    going = f"  {e['running']} of {e['restarts']} fits go on" if e.get("restarts", 1) > 1 and "running" in e else ""
    return f"{refit}iteration {e['iteration'] + 1:3d}  {figure}  {speed}  {left}{going}"


def _reset(e: dict[str, Any]) -> str:
    what = "reset" if e["done"] else "left as it is"
    of = f" of {e['name']}" if "name" in e else ""
    return f"component {e['component']}{of} {what}: {e['reason']}"


def _refused(e: dict[str, Any]) -> str:
    lost = "a component would have collapsed"
    if e["objective"] is not None:
        lost = f"it would have lost {e['least'] - e['objective']:.3g} nats"
    return f"a leap was refused: {lost}"


def _rung(e: dict[str, Any]) -> str:
    moved = f", moved {' + '.join(map(str, e['moved']))} components" if e["moved"] else ""
    figure = f"inertia {-e['objective']:.6g}" if e["family"] == "kmeans" else f"objective {e['objective']:.6f} nats"
    starts = f", {e['starts']} climb" if e["starts"] > 1 else ""
    where = f"{count(e['rows'])} of {count(e['of'])} rows, {e['features']} features"
    return f"search on {where}: {e['family']}{starts}{moved}, {figure} a row"


def _candidate(e: dict[str, Any]) -> str:
    found = [f"{name.upper()} {e[name]:.8g}" for name in ("bic", "aic", "icl")]
    if "heldout" in e:
        found.append(f"held out {e['heldout']:.6f} nats per row")
    found += [f"{e['collapsed']} collapsed"] if e["collapsed"] else []
    verdict = f"  chosen by {e['criterion']}" if e["chosen"] else ""
    return f"candidate {e['name']}  {'  '.join(found)}  {e['n_iter']} iterations{verdict}"


_DESCRIBERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "start": _start,
    "resume": lambda e: f"resumed from checkpoint {e['generation']}",
    "profile": lambda e: f"profile of {count(e['rows'])} rows  {duration(e['seconds'])}",
    "rung": _rung,
    "annihilation": lambda e: (
        f"annihilation: {e['n_components']} of {e['lengths'][0][0]} components make the shortest message  {duration(e['seconds'])}"
    ),
    "init": lambda e: f"start by {e['method']}  {duration(e['seconds'])}",
    "pass": _pass,
    "progress": lambda e: f"this pass: {count(e['chunks'])} of {count(e['of'])} chunks",
    "reset": _reset,
    "candidate": _candidate,
    "refused": _refused,
    "warning": lambda e: f"warning: {e['message']}",
    "checkpoint": lambda e: f"checkpoint {e['generation']}",
    "standard_errors": lambda e: f"standard errors from {count(e['rows'])} rows  {duration(e['seconds'])}",
    "labelled": lambda e: f"labelled {count(e['rows'])} of {count(e['of'])} rows",
    "labels": lambda e: f"labels of {count(e['rows'])} rows  {duration(e['seconds'])}",
    "finished": lambda e: f"finished in {duration(e['seconds'])}, peak memory {e['peak_pss'] / 2**20:.0f} MiB",
}


def count(number: float) -> str:
    """1234567 as 1.23M, 950 as 950."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 10 * unit or (number >= unit and unit > 1e3):
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """0.42 s, 12.3 s, 4:05 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def roughly(seconds: float) -> str:
    """3 s, 42 s, 4:05 or 1:02:03: of estimates, and of clocks that go."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(max(seconds, 60.0))


def size(n_bytes: float) -> str:
    """1536 as `1.5 KiB`, 10**9 as `954 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes:.0f} B"


def memory(plan: dict[str, Any]) -> str:
    """A memory plan: `at most 620 MiB of 4.2 GiB: 451 MiB for the job, and 84.3 MiB for each of 2 tasks at a time`."""
    tasks = f"each of {plan['workers']} tasks at a time" if plan["workers"] > 1 else "one task at a time"
    ahead = "" if plan["ahead"] else ", without reading ahead"
    return (
        f"at most {size(plan['peak'])} of {size(plan['limit'])}: {size(plan['fixed'])} for the job, "
        f"and {size(plan['per_task'])} for {tasks}{ahead}"
    )


def asked(model: dict[str, Any]) -> str:
    """The family and its components: `gaussian, 5, 10 or 20 components, full`."""
    k, shape = (_either(model.get(name)) for name in ("n_components", "covariance_type"))
    return f"{model.get('family')}, {k} components" + (f", {shape}" if model.get("family") == "gaussian" else "")


def _either(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{', '.join(map(str, value[:-1]))} or {value[-1]}"
