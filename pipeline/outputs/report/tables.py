"""Parameters as tables: a line for each component with its location, and every other array of one or two dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.outputs.report import pictures
from pipeline.outputs.report.formatting import number, percent
from pipeline.outputs.report.projection import FEATURES_IN_TABLE, Space, data_space, expanded, feature_names
from pipeline.outputs.report.record import Record

LINES = 60  # of a table at most
_SAID = "weights"


@dataclass(frozen=True)
class Cell:
    """A figure, and small text below it."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class Table:
    """Lines under column heads, the first of which is the head of the lines; the last column may list rows."""

    title: str
    note: str
    heads: list[str]
    lines: list[list[Cell]]
    lists_rows: bool = False
    sheet: pictures.Picture | None = None


def confusion(record: Record) -> Table | None:
    """Return rows by label and known class, where these were compared; labels stand in the order of their classes."""
    found = record.measures.get("confusion")
    if not found:
        return None
    matched, n = record.measures["matched"], record.measures["rows_with_class"]
    lines = [
        [Cell(str(label)), *(Cell(number(rows)) for rows in line)]
        for label, line in zip(found["labels"], found["rows"], strict=True)
    ]
    note = (
        f"How many {record.row[1]} have each label and each class of data.labels_true, of {number(n)} whose class is known. If each label "
        f"stands for one class, in the order of the lines, {percent(matched)} agree."
    )
    return Table("Labels and classes", note, [record.words.component, *map(str, found["classes"])], lines[:LINES])


@dataclass(frozen=True)
class Locations:
    """Locations in the units of the data, a line for each component, in the features in which these differ most.

    means, deviations, errors : (k, features shown); the last two None if unknown.
    hidden : features that are left out.
    """

    features: list[str] = field(default_factory=list)
    means: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    deviations: np.ndarray | None = None
    errors: np.ndarray | None = None
    hidden: int = 0


def locations(record: Record) -> Locations:
    """Return at most `FEATURES_IN_TABLE` features, in the data's order; empty without locations."""
    if record.location is None:
        return Locations()
    space = data_space(record)
    means = space.points(record.positions)
    d = means.shape[1]
    between = np.average(
        (means - np.average(means, axis=0, weights=record.weights)) ** 2, axis=0, weights=record.weights
    )
    if record.has("sample"):
        spread = space.points(record.array("sample")).var(axis=0)
        between = np.divide(between, spread, out=np.zeros(d), where=spread > 0)
    shown = np.sort(np.argsort(-between, kind="stable")[:FEATURES_IN_TABLE])
    names, stored = feature_names(record), f"{record.location}_se"
    # After a map they are not the data's: that would take how the errors of one mean vary together.
    errors = record.array(stored)[:, shown] if record.has(stored) and space.matrix is None else None
    return Locations(
        [names[i] for i in shown], means[:, shown], _deviations(record, space, shown), errors, d - len(shown)
    )


def _deviations(record: Record, space: Space, shown: np.ndarray) -> np.ndarray | None:
    """(k, features shown) standard deviations; None without covariances."""
    if record.spread is None:
        return None
    rows = []
    stored = record.array("covariances")
    for k in range(record.k):  # one component at a time, since (k, d, d) may be large
        one = stored[k : k + 1] if record.spread[0] == "component" else stored
        sigma = expanded(record.spread, one, 1, record.n_features)
        variance = np.diagonal(space.covariances(sigma)[0])[shown]
        rows.append(np.sqrt(np.maximum(variance, 0)))
    return np.array(rows)


def own_numbers(record: Record) -> list[str]:
    """Return the parameters with one number for each component, besides its weight and its variance."""
    return [n for n, dims in record.parameters.items() if dims == ("component",) and n not in (_SAID, "covariances")]


def components(record: Record, located: bool = True) -> Table:
    """Return a line for each component: its share, other numbers, its most typical rows; located: and its location."""
    words, where, own = record.words, locations(record) if located else Locations(), own_numbers(record)
    values = {name: record.array(name) for name in own}
    rows = record.representatives
    heads = [words.component, "share", *where.features, *(name.replace("_", " ") for name in own)]
    lines = []
    for k in range(record.k):
        line = [Cell(str(k)), Cell(percent(float(record.weights[k])))]
        for j in range(len(where.features)):
            error = "" if where.errors is None else f" ± {number(float(where.errors[k, j]), 2)}"
            below = "" if where.deviations is None else number(float(where.deviations[k, j]), 3)
            line.append(Cell(number(float(where.means[k, j]), 4) + error, below))
        line += [Cell(number(float(values[name][k]), 4)) for name in own]
        if rows.shape[1]:
            line.append(Cell(" · ".join(str(row) for row in rows[k] if row >= 0)))
        lines.append(line)
    title = f"Table of {words.location}s" if where.features else f"Table of {words.components}"
    heads += [f"typical {record.row[1]}"] if rows.shape[1] else []
    return Table(title, _note(record, where), heads, lines, lists_rows=rows.shape[1] > 0)


def _note(record: Record, where: Locations) -> str:
    if not where.features:
        return ""
    note = "In the units of the data"
    if where.deviations is not None:
        note += f"; below each {record.words.location}, the standard deviation of the {record.words.component}"
    note += "."
    if where.errors is not None:
        note += f" After ±, the standard error of the {record.words.location}, for a correctly specified model."
    if where.hidden:
        shown = len(where.features)
        note += f" Of {number(where.hidden + shown)} features, the {shown} in which the {record.words.components} differ most."
    return note


def others(record: Record) -> list[Table]:
    """Return each parameter that is shown nowhere else, as a table; as pictures if a line of it is one."""
    shown = {_SAID, "covariances", record.location, record.log_probabilities if record.has_topics else None}
    found = []
    for name, dims in record.parameters.items():
        if dims[:1] + dims[2:] == ("component", "category"):
            found.append(_of_categories(record, name, dims[1]))
        elif name not in shown and "entry" not in dims and dims != ("component",) and len(dims) in (1, 2):
            found.append(_table(record, name, dims))
    return found


def _of_categories(record: Record, name: str, dim: str) -> Table:
    """A line for each category of each column, with its probability in each component."""
    values, named, lines = record.array(name), record.data.get("categories") or {}, []
    shown = np.arange(record.k)[:FEATURES_IN_TABLE]
    for j, column in enumerate(_labels(record, dim)):
        there = named.get(column) or [str(code) for code in np.flatnonzero(values[:, j].any(axis=0))]
        for code, category in enumerate(there[: values.shape[2]]):
            lines.append([Cell(f"{column}: {category}"), *(Cell(percent(float(v))) for v in values[shown, j, code])])
    note = f"How often each category comes in each {record.words.component}."
    if len(shown) < record.k or len(lines) > LINES:
        note += (
            f" Of {record.k} {record.words.components} and {len(lines)} categories, the first; all are in model.zarr."
        )
    heads = ["category", *(f"{record.words.component} {k}" for k in shown)]
    return Table(name.replace("_", " ").capitalize(), note, heads, lines[:LINES])


def _table(record: Record, name: str, dims: tuple[str, ...]) -> Table:
    values, title = record.array(name), name.replace("_", " ").capitalize()
    if name == record.log_probabilities:
        values, title = np.exp(values), record.words.location.capitalize()
    pixels = pictures.pixel_map(record)
    after = " In the space of the model, after the preprocessing." if record.has("preprocess_inverse") else ""
    if pixels is not None and dims[-1] == "feature":
        alt = f"{title}: {' by '.join(_name(record, dim) for dim in dims[:-1]) or 'all features'} as pictures."
        note = f"{'A picture for each ' + _name(record, dims[0]) if len(dims) == 2 else 'One value a pixel'}."
        return Table(title, note, [], [], sheet=pictures.sheet_of(pixels, np.atleast_2d(values), alt))
    labels = [_labels(record, dim) for dim in dims]
    grid = values.reshape(len(values), -1)
    columns = np.arange(grid.shape[1])
    note = f"By {' and '.join(_name(record, dim) for dim in dims)}.{after}"
    if len(columns) > FEATURES_IN_TABLE:
        columns = np.sort(np.argsort(-grid.std(axis=0), kind="stable")[:FEATURES_IN_TABLE])
        note += f" Of {number(grid.shape[1])} columns, the {len(columns)} that vary most; all are in model.zarr."
    if len(grid) > LINES:
        note += f" Of {number(len(grid))} lines, the first {LINES}; all are in model.zarr."
    heads = [_name(record, dims[0]), *([labels[1][j] for j in columns] if len(dims) == 2 else [""])]
    lines = [
        [Cell(labels[0][i]), *(Cell(number(float(grid[i, j]), 4)) for j in columns)]
        for i in range(min(len(grid), LINES))
    ]
    return Table(title, note, heads, lines)


def _name(record: Record, dim: str) -> str:
    """What a report calls a dimension: in the family's words, and features with a vocabulary are words."""
    if dim == "feature" and "vocabulary" in record.attrs:
        return "word"
    if dim == "component_2":  # of transitions
        return f"next {record.words.component}"
    stem, _, number = dim.rpartition("_")
    return (stem if number.isdigit() else dim).replace("component", record.words.component).replace("_", " ")


def _labels(record: Record, dim: str) -> list[str]:
    size = int(record.model.sizes[dim])
    if dim == "feature" and not record.has("preprocess_inverse"):
        return feature_names(record)
    if dim in record.model.coords:
        return [str(name) for name in record.model[dim].values]
    return [f"{dim} {i}" if dim == "feature" else str(i) for i in range(size)]
