"""Events of a job and quantities, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.models.families import words_of
from pipeline.models.separation import BY_SEPARATION
from pipeline.models.words import Words

_ASKED = ("family", "n_components", "method", "max_iter", "tol")  # of `asked`; the rest are options of the model


def describe(event: dict[str, Any]) -> str | None:
    """Return an event in a few words; None for events for programs only, and for incomplete ones."""
    describer = _DESCRIBERS.get(event["event"])
    try:
        return None if describer is None else describer(event)
    except Exception:  # a log may hold anything
        return None


def words_in(event: dict[str, Any]) -> Words:
    """Return the words of a job's model from its `start` event, else those of its family in this version."""
    stored = event.get("words")
    if isinstance(stored, dict) and {"name", "title"} <= stored.keys():
        return Words(**{key: value for key, value in stored.items() if key in Words._fields})
    asked_for = event.get("asked")
    return words_of(str(asked_for.get("family")) if isinstance(asked_for, dict) else "mixture")


def _start(e: dict[str, Any]) -> str:
    text = f"{rows_in_chunks(e)}, {e['workers']} at a time; {', '.join(e['blas'])}"
    if "plan" not in e:
        return text
    plan = e["plan"]
    return f"{text}; each pass reads {size(plan['pass_bytes'])}; memory {memory(plan)}"


def figure_of(e: dict[str, Any]) -> tuple[str, float | None]:
    """Return the name of the objective of a pass, and its value per row, None if unknown."""
    key = next(key for key in e if key.endswith("_per_row"))
    return key.removesuffix("_per_row"), None if e[key] is None else float(e[key])


def _pass(e: dict[str, Any]) -> str:
    name, value = figure_of(e)
    text = {"log_likelihood": "log-likelihood"}.get(name, name.replace("_", " "))
    figure = "" if value is None else f"  {text} per row {value:.8g}"
    figure += f"  noise {e['noise']:.2%}" if "noise" in e else ""
    speed = f"{count(e['rows'] / max(e['seconds'], 1e-9))} rows/s"
    refit = "refit, " if e.get("refit") else ""
    if e["final"]:
        return f"{refit}final pass{figure}  {speed}"
    if name == "free_energy":  # one block: its seconds say little about those of a pass over all rows
        return f"iteration {e['iteration'] + 1:3d}{figure}  {speed}"
    rest = f"at most {roughly((e['max_iter'] - e['iteration']) * e['seconds'])} left"  # with the final pass
    if e.get("running") == 0:
        rest = "only the final pass is left"
    several = e.get("restarts", 1) > 1 and "running" in e
    running = f"  {e['running']} of {e['restarts']} fits are running" if several else ""
    return f"{refit}iteration {e['iteration'] + 1:3d}{figure}  {speed}  {rest}{running}"


def _reset(e: dict[str, Any]) -> str:
    done = "reset" if e["done"] else "collapsed, not reset again"
    of = f" of {e['name']}" if "name" in e else ""
    return f"component {e['component']}{of} {done}: {e['reason']}"


def _rejected(e: dict[str, Any]) -> str:
    reason = "a component would have collapsed"
    if e["objective"] is not None:
        reason = f"the objective would have been {e['least'] - e['objective']:.3g} nats too low"
    return f"extrapolation step rejected: {reason}"


def _worker_lost(e: dict[str, Any]) -> str:
    left = f"{e['workers']} worker{'s are' if e['workers'] != 1 else ' is'} left"
    return f"worker {e['worker']} is gone; {left}, and what it had is computed again"


def _level(e: dict[str, Any]) -> str:
    words = words_of(e["family"])
    moved = f", moved {' + '.join(map(str, e['moved']))} {words.components}" if e["moved"] else ""
    starts = f", {e['starts']} candidate starts" if e["starts"] > 1 else ""
    where = f"{count(e['rows'])} of {count(e['of'])} rows, {e['features']} features"
    objective = words.objective if words.sign < 0 else "objective"
    return f"search on {where}: {words.name}{starts}{moved}, {objective} {words.sign * e['objective']:.8g} a row"


def _pruning(e: dict[str, Any]) -> str:
    return f"pruning: {e['n_components']} of {e['lengths'][0][0]} components are left  {duration(e['seconds'])}"


def _resume(e: dict[str, Any]) -> str:
    where = "the first pass" if e["generation"] is None else f"checkpoint {e['generation']}"
    return f"resumed from {where}"


def _candidate(e: dict[str, Any]) -> str:
    found = [f"{name.upper()} {e[name]:.8g}" for name in ("bic", "aic", "icl") if name in e]
    found += [f"{name.replace('_', ' ')} {e[name]:.6g}" for name in BY_SEPARATION if name in e]
    if "heldout" in e:
        found.append(f"held out {e['heldout']:.6f} nats per row")
    found += [f"{e['collapsed']} collapsed"] if e["collapsed"] else []
    verdict = f"  chosen by {e['criterion']}" if e["chosen"] else ""
    return f"candidate {e['name']}  {'  '.join(found)}  {e['n_iter']} iterations{verdict}"


def _labelled(e: dict[str, Any]) -> str:
    what = e.get("what")  # of a command: what it writes
    done = f"{count(e['rows'])} of {count(e['of'])}"
    return f"labelled {done} rows" if what is None else f"wrote {done} {what}"


def _denoised(e: dict[str, Any]) -> str:
    text = f"{e['picture']} denoised, noise {e['sigma']:.1f}  {duration(e['seconds'])} of CPU"
    return text if e.get("psnr") is None else f"{text}  {_likeness(e)}"


def _likeness(e: dict[str, Any]) -> str:
    """`PSNR 20.38 -> 28.55 dB, SSIM 0.395 -> 0.830`, without the arrows where nothing is known before."""
    psnr, ssim = (
        f"{e[key]:{form}}" if e.get(key) is not None else "" for key, form in (("psnr", ".2f"), ("ssim", ".3f"))
    )
    before = [
        f"{e[key]:{form}} -> " if e.get(key) is not None else ""
        for key, form in (("psnr_noisy", ".2f"), ("ssim_noisy", ".3f"))
    ]
    return f"PSNR {before[0]}{psnr} dB" + (f", SSIM {before[1]}{ssim}" if ssim else "")


def _compressed(e: dict[str, Any]) -> str:
    text = f"{count(e['rows'])} rows of {e['bits']} bits, 1 : {e['ratio']:.1f}; mean squared error {e['mean_squared_error']:.4g}"
    return text if e["psnr"] is None else f"{text}, PSNR {e['psnr']:.2f} dB"


_DESCRIBERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "start": _start,
    "resume": _resume,
    "profile": lambda e: f"profile of {count(e['rows'])} rows  {duration(e['seconds'])}",
    "searching": lambda e: f"search: {count(e['rows'])} of at most about {count(e['of'])} rows in memory read",
    "level": _level,
    "pruning": _pruning,
    "init": lambda e: f"start by {e['method']}  {duration(e['seconds'])}",
    "pass": _pass,
    "progress": lambda e: f"this pass: {count(e['chunks'])} of {count(e['of'])} chunks",
    "reset": _reset,
    "candidate": _candidate,
    "rejected": _rejected,
    "worker_lost": _worker_lost,
    "warning": lambda e: f"warning: {e['message']}",
    "checkpoint": lambda e: f"checkpoint {e['generation']}",
    "standard_errors": lambda e: f"standard errors from {count(e['rows'])} rows  {duration(e['seconds'])}",
    "labelled": _labelled,
    "labels": lambda e: f"labels of {count(e['rows'])} rows  {duration(e['seconds'])}",
    "noise_level": lambda e: f"noise of {e['picture']}: estimated at {e['sigma']:.2f} grey levels of 255",
    "denoised": _denoised,
    "compared": lambda e: f"{e['pictures']} pictures: mean {_likeness(e)}",
    "compressed": _compressed,
    "restored": lambda e: f"restored {count(e['pictures'])} of {count(e['of'])} pictures",
    "copied": lambda e: f"results copied to {e['to']}, {e['bytes'] / 2**20:.1f} MiB  {duration(e['seconds'])}",
    "finished": lambda e: f"finished in {duration(e['seconds'])}, peak memory {e['peak_pss'] / 2**20:.0f} MiB",
}


def rows_in_chunks(e: dict[str, Any]) -> str:
    """`200k rows in 5 chunks`."""
    return f"{count(e['rows'])} rows in {count(e['chunks'])} chunk{'s' if e['chunks'] != 1 else ''}"


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
    """3 s, 42 s, 4:05 or 1:02:03: for estimates and running clocks."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(max(seconds, 60.0))


def size(n_bytes: float) -> str:
    """1536 as `1.5 KiB`, 10**9 as `954 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes:.0f} B"


def memory(plan: dict[str, Any]) -> str:
    """A memory plan, such as `at most 620 MiB of 4.2 GiB: 451 MiB for the job, and 84.3 MiB for each of 2 tasks at a time`."""
    tasks = f"each of {plan['workers']} tasks at a time" if plan["workers"] > 1 else "one task at a time"
    ahead = "" if plan["ahead"] else ", without reading ahead"
    return (
        f"at most {size(plan['peak'])} of {size(plan['limit'])}: {size(plan['fixed'])} for the job, "
        f"and {size(plan['per_task'])} for {tasks}{ahead}"
    )


def asked(facts: dict[str, Any]) -> str:
    """Return the requested model of a `start` event: `Gaussian mixture, 5, 10 or 20 components, full`."""
    words, model = words_in(facts), facts["asked"]
    parts = [f"{words.name[:1].upper()}{words.name[1:]}"]
    parts += [f"{_either(model['n_components'])} {words.components}"] if "n_components" in model else []
    options = {name: _either(value) for name, value in model.items() if name not in _ASKED}
    return ", ".join(
        parts + [f"{name} {value}" if any(map(str.isdigit, value)) else value for name, value in options.items()]
    )


def _either(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{', '.join(map(str, value[:-1]))} or {value[-1]}" if len(value) > 1 else str(value[0])
