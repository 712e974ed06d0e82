"""The choice among candidates: a table, and the criteria by number of components or another size.

Those of K-means, by distances, have scales of their own.
Per row, BIC/n, AIC/n, ICL/n and -2 times the held-out log-likelihood have one scale, lower is better:
AIC estimates the last (Akaike 1974).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.models.separation import BY_SEPARATION
from pipeline.outputs.report import svg
from pipeline.outputs.report.formatting import number
from pipeline.outputs.report.rate import rate_and_distortion
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

NAMES = {
    "bic": "BIC",
    "aic": "AIC",
    "icl": "ICL",
    "heldout": "held-out log-likelihood",
    "silhouette": "mean silhouette",
    "davies_bouldin": "Davies-Bouldin index",
    "calinski_harabasz": "Calinski-Harabasz index",
}
_BETTER = {
    ("bic", "aic", "icl"): "BIC, AIC and ICL: lower is better.",
    BY_SEPARATION: "Mean silhouette and Calinski-Harabasz index: higher is better; Davies-Bouldin index: lower. One cluster has none of them.",
}
_COLOURS = {"bic": svg.BLUE, "aic": svg.ORANGE, "icl": svg.GREEN, "heldout": svg.RED}
# What an entry says of every model. The rest are options of the model.
_COMMON = {
    *("name", "n_components", "n_free_parameters", "total_weight", "collapsed", "n_iter", "stop_reason", "restarts"),
    *("criterion", "chosen", "heldout_weight", "bic", "aic", "icl", "heldout", "heldout_perplexity", *BY_SEPARATION),
}


def choice(record: Record) -> dict[str, Any] | None:
    """Return the table, the chart and the note above them; None for one candidate without held-out rows."""
    table: list[dict[str, Any]] = record.attrs.get("candidates") or []
    if not table:
        return None
    held_out, options = "heldout" in table[0], _options(table)
    size = "n_components" if "n_components" in table[0] else _whole(table, options)
    options = [option for option in options if option != size]
    title = (
        record.words.components if size == "n_components" else (size or "model").removeprefix("n_").replace("_", " ")
    )
    columns = BY_SEPARATION if table[0]["criterion"] in BY_SEPARATION else ("bic", "aic", "icl")
    return {
        "columns": [NAMES[name] for name in columns],
        "better": _BETTER[columns],
        "criterion": NAMES[table[0]["criterion"]],
        "size": title,
        "options": [option.replace("_", " ") for option in options],
        "parameters": columns is not BY_SEPARATION,
        "held_out": held_out,
        "bounded": "heldout_perplexity" in table[0],
        "collapsed": any(entry["collapsed"] for entry in table),
        "lines": [_line(entry, size or "name", options, columns, record.words.series) for entry in table],
        "charts": _charts(record, table, size, options, title) if len(table) > 1 and size else [],
        "refitted": _of_held_out(table[0]["heldout_weight"], refitted(record)) if held_out else "",
    }


def refitted(record: Record) -> bool:
    """Whether the chosen model was fitted again to all rows where some were held out."""
    return bool((record.config.get("select") or {}).get("refit", True))


def _of_held_out(weight: float, refitted: bool) -> str:
    text = f"These models were fitted without {number(weight)} held-out rows."
    return text + (
        " The chosen one was then fitted again to all rows, so its final figures differ from this table." * refitted
    )


def _options(table: list[dict[str, Any]]) -> list[str]:
    """Names of the options besides the number of components in which the candidates differ, such as covariance_type."""
    others = [key for key in table[0] if key not in _COMMON and not key.startswith("final_")]
    return [key for key in others if len({str(entry.get(key)) for entry in table}) > 1]


def _whole(table: list[dict[str, Any]], options: list[str]) -> str | None:
    """The first option that is a whole number."""
    return next((option for option in options if all(isinstance(entry.get(option), int) for entry in table)), None)


def _line(
    entry: dict[str, Any], size: str, options: list[str], columns: tuple[str, ...], series: str
) -> dict[str, Any]:
    value = entry.get(f"final_{series}")
    return {
        "size": entry[size] if isinstance(entry[size], str) else number(entry[size]),
        "options": [str(entry.get(option)) for option in options],
        "parameters": number(entry.get("n_free_parameters")),
        "objective": number(None if value is None else value / entry["total_weight"], 8),
        "criteria": [number(entry.get(name)) for name in columns],
        "heldout": number(entry.get("heldout"), 8)
        + (f", perplexity {number(entry['heldout_perplexity'], 5)}" if "heldout_perplexity" in entry else ""),
        "n_iter": number(entry["n_iter"]),
        "ended": entry["stop_reason"].partition(":")[0]
        + (f", {entry['collapsed']} collapsed" if entry["collapsed"] else ""),
        "chosen": entry["chosen"],
    }


def _charts(record: Record, table: list[dict[str, Any]], size: str, options: list[str], title: str) -> list[Chart]:
    rate = table[0]["criterion"] in BY_SEPARATION and size == "n_components" and not options
    return [_chart(table, size, options, title), *([_rate_and_distortion(record, table)] if rate else [])]


def _rate_and_distortion(record: Record, table: list[dict[str, Any]]) -> Chart:
    """Mean squared error of a feature by the bits that the number of the nearest centre takes."""
    entries = sorted(table, key=lambda entry: entry["n_components"])
    bits = np.log2([entry["n_components"] for entry in entries])
    error = np.array([entry["final_inertia"] / entry["total_weight"] for entry in entries]) / record.n_features
    caption = (
        "What each number of centres is worth as a code (em-pipeline compress): the number of the nearest centre, log2 K bits, stands for a row. The "
        "error is that of the features of the model, over all rows."
    )
    chosen = next(i for i, entry in enumerate(entries) if entry["chosen"])
    return rate_and_distortion(bits, error, "Rate and distortion", caption, chosen)


def _per_row(entry: dict[str, Any], name: str) -> float:
    """A criterion per row, lower is better; one by distances as it is."""
    if name in BY_SEPARATION:
        return float(entry[name])
    return float(-2 * entry[name] if name == "heldout" else entry[name] / entry["total_weight"])


def _chart(table: list[dict[str, Any]], size: str, options: list[str], title: str) -> Chart:
    """Criteria by size; if options differ too, the deciding criterion, with a line for each option."""
    decides = table[0]["criterion"]
    kinds = {id(entry): ", ".join(str(entry.get(option)) for option in options) for entry in table}
    several = len(set(kinds.values())) > 1
    if decides in BY_SEPARATION:
        lines = [([entry for entry in table if decides in entry], decides, svg.BLUE, "")]
    elif several:
        each = dict.fromkeys(kinds.values())
        lines = [
            ([entry for entry in table if kinds[id(entry)] == kind], decides, colour, kind)
            for kind, colour in zip(each, svg.CYCLE, strict=False)
        ]
    else:
        lines = [
            (table, name, colour, NAMES[name].removesuffix(" log-likelihood"))
            for name, colour in _COLOURS.items()
            if name in table[0]
        ]
    per_row = "" if decides in BY_SEPARATION else " per row"
    better = "higher" if decides in ("silhouette", "calinski_harabasz") else "lower"
    what = NAMES[decides] if several or not per_row else "criteria"
    plot = Plot(title, f"{what}{per_row}, {better} is better", whole_x=True)
    for entries, name, colour, label in lines:
        entries = sorted(entries, key=lambda entry: entry[size])
        value = [_per_row(entry, name) for entry in entries]
        plot.line([entry[size] for entry in entries], value, colour, label, 1.8, dots=True)
    chosen = next(entry for entry in table if entry["chosen"])
    at = chosen[size], _per_row(chosen, decides)
    plot.ring(*at, "chosen")
    alt = (
        f"Line chart of the criteria of {len(table)} candidates; {NAMES[decides]} is best at {number(at[0])} {title}"
        f"{f' ({kinds[id(chosen)]})' if several else ''}, {number(at[1])}{per_row}."
    )
    sign = " The held-out log-likelihood is shown times −2." if "heldout" in {name for _, name, _, _ in lines} else ""
    caption = f"The circle is the model that {NAMES[decides]} chose.{sign}"
    return Chart("The criteria", plot.svg(alt), caption)


def message_lengths(record: Record) -> Chart | None:
    """Return the message length of each number of components that pruning reached; None without pruning."""
    lengths: list[tuple[int, float]] = sorted(
        (int(k), float(nats)) for k, nats in record.attrs.get("message_lengths") or []
    )
    if len(lengths) < 2:
        return None
    components = record.words.components
    k, nats = (np.array(side) for side in zip(*lengths, strict=True))
    best = int(np.flatnonzero(k == record.attrs["n_components"])[0])
    plot = Plot(components, "message length per row, nats; lower is better", whole_x=True)
    plot.line(k, nats / record.total_weight, svg.BLUE, width=1.8, dots=True)
    plot.ring(k[best], nats[best] / record.total_weight, "chosen")
    alt = f"Line chart of the message length from {k[0]} to {k[-1]} {components}; {k[best]} are chosen."
    caption = (
        f"The fit began with {k[-1]} {components} on a sample of the rows. One at a time they were "
        f"removed or merged, first those that too few rows support (Figueiredo and Jain 2002). {k[best]} is the smallest number whose message is at most 5 nats longer than the shortest."
    )
    return Chart("Message length", plot.svg(alt), caption)
