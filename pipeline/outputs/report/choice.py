"""The choice among candidates: a line for each, and how the criteria go with the number of components.

Per row, BIC/n, AIC/n, ICL/n and -2 times the held-out log-likelihood are on one scale, on which lower is better:
AIC was made as an estimate of the last (Akaike 1974).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.outputs.report import svg
from pipeline.outputs.report.figures import Chart
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import number

NAMES = {"bic": "BIC", "aic": "AIC", "icl": "ICL", "heldout": "held-out log-likelihood"}
_COLOURS = {"bic": svg.BLUE, "aic": svg.ORANGE, "icl": svg.GREEN, "heldout": svg.RED}


def choice(record: Record) -> dict[str, Any] | None:
    """The table, the chart and what is to be said of them; None where there was one candidate and nothing held out."""
    table: list[dict[str, Any]] = record.attrs.get("candidates") or []
    if not table:
        return None
    held_out = "heldout" in table[0]
    return {
        "criterion": NAMES[table[0]["criterion"]],
        "typed": "covariance_type" in table[0],
        "held_out": held_out,
        "collapsed": any(entry["collapsed"] for entry in table),
        "lines": [_line(entry) for entry in table],
        "chart": _chart(table) if len(table) > 1 else None,
        "refitted": f"Fitted without {number(table[0]['heldout_weight'])} held-out rows; the chosen model was then refitted "
        "to all rows, so its final figures are not those of this table."
        if held_out
        else "",
    }


def _line(entry: dict[str, Any]) -> dict[str, Any]:
    per_row = entry["final_log_likelihood"] / entry["total_weight"]
    return {
        "k": number(entry["n_components"]),
        "shape": entry.get("covariance_type", ""),
        "parameters": number(entry["n_free_parameters"]),
        "log_likelihood": number(per_row, 8),
        **{name: number(entry[name]) for name in ("bic", "aic", "icl")},
        "heldout": number(entry.get("heldout"), 8),
        "n_iter": number(entry["n_iter"]),
        "ended": entry["stop_reason"].partition(":")[0]
        + (f", {entry['collapsed']} collapsed" if entry["collapsed"] else ""),
        "chosen": entry["chosen"],
    }


def _per_row(entry: dict[str, Any], name: str) -> float:
    """A criterion per row, lower is better."""
    return float(-2 * entry[name] if name == "heldout" else entry[name] / entry["total_weight"])


def _chart(table: list[dict[str, Any]]) -> Chart:
    """Criteria over the number of components; of several covariance types the deciding criterion, a line for each."""
    decides = table[0]["criterion"]
    shapes = list(dict.fromkeys(entry.get("covariance_type", "") for entry in table))
    if len(shapes) == 1:
        lines = {name: (table, name, _COLOURS[name]) for name in _COLOURS if name in table[0]}
    else:
        of = {shape: [entry for entry in table if entry["covariance_type"] == shape] for shape in shapes}
        lines = {shape: (of[shape], decides, colour) for shape, colour in zip(shapes, svg.CYCLE, strict=False)}
    figure, axes = svg.new_figure()
    for label, (entries, name, colour) in lines.items():
        k = [entry["n_components"] for entry in entries]
        order = np.argsort(k)
        value = [_per_row(entry, name) for entry in entries]
        axes.plot(
            np.array(k)[order],
            np.array(value)[order],
            "o-",
            color=colour,
            linewidth=1.8,
            markersize=4,
            label=NAMES.get(label, label).removesuffix(" log-likelihood"),
        )
    chosen = next(entry for entry in table if entry["chosen"])
    at = chosen["n_components"], _per_row(chosen, decides)
    axes.plot(*at, "o", markersize=11, markerfacecolor="none", markeredgecolor=svg.INK, label="chosen")
    svg.label_axes(axes, "components", f"{'criteria' if len(shapes) == 1 else NAMES[decides]} per row, lower is better")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    svg.legend(axes, loc="best")
    alt = (
        f"Line chart of the criteria of {len(table)} candidates; {NAMES[decides]} is best at {number(at[0])} components"
        f"{' (' + chosen['covariance_type'] + ')' if len(shapes) > 1 else ''}, {number(at[1])} per row."
    )
    shown = {name for _, name, _ in lines.values()}
    sign = " The held-out log-likelihood is shown times −2." if "heldout" in shown else ""
    caption = f"The circle is the model that {NAMES[decides]} chose.{sign}"
    return Chart("The criteria", svg.to_svg(figure, "choice", alt), caption)


def message_lengths(record: Record) -> Chart | None:
    """The message length of each number of components that annihilation came by; None where there was none."""
    lengths: list[tuple[int, float]] = sorted(
        (int(k), float(nats)) for k, nats in record.attrs.get("message_lengths") or []
    )
    if len(lengths) < 2:
        return None
    k, nats = (np.array(side) for side in zip(*lengths, strict=True))
    best = int(nats.argmin())
    figure, axes = svg.new_figure()
    axes.plot(k, nats / record.total_weight, "o-", color=svg.BLUE, linewidth=1.8, markersize=4, label="message length")
    at = k[best], nats[best] / record.total_weight
    axes.plot(*at, "o", markersize=11, markerfacecolor="none", markeredgecolor=svg.INK, label="chosen")
    svg.label_axes(axes, "components", "nats per row, lower is better")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    svg.legend(axes, loc="best")
    alt = f"Line chart of the message length from {k[0]} to {k[-1]} components; it is shortest at {k[best]}."
    caption = (
        f"From {k[-1]} components, those that too few rows support were annihilated one at a time, on rows held in memory; "
        f"the shortest message has {k[best]}."
    )
    return Chart("The length of the message", svg.to_svg(figure, "lengths", alt), caption)
