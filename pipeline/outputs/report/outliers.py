"""How well the model fits where it fits worst: rows of the lowest density, and components that share rows.

Rows that fit worst come from the last pass. What components share is measured on rows with their responsibilities r:
those of the sample, of documents those that labels.zarr keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.outputs.report import pictures, projection, svg, topics
from pipeline.outputs.report.figures import Chart
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import number, percent, plural

MATRIX = range(4, 61)  # components in a heat map: of fewer a table says it all
PAIRS = 8
LEAST = 5e-4  # of a component's rows: pairs that share less are not shown
FEATURES = 12


@dataclass(frozen=True)
class Misfit:
    """A row. score : log-density or squared distance, in words.  label : its component, None where there are no labels.

    cut_from : the name of the picture that a patch comes from, else empty.
    """

    row: int
    cut_from: str
    score: str
    label: int | None
    picture: pictures.Picture | None
    values: list[str]


@dataclass(frozen=True)
class Misfits:
    """The rows that fit worst. columns : what `values` are of; none for pictures, one for words."""

    caption: str
    rows: list[Misfit]
    columns: list[str]


def misfits(record: Record) -> Misfits | None:
    """The rows of the model's misfits; None where it has none."""
    if not record.has("misfit_row") or not record.model.sizes["misfit"]:
        return None
    kmeans = record.family == "kmeans"
    rows = record.array("misfit_row")
    scores = record.array("misfit_squared_distance" if kmeans else "misfit_log_density")
    said = [f"{number(float(score))}{'' if kmeans else ' nats'}" for score in scores]
    labels = record.labels_of(rows)
    columns, values, shown = _shown(record, rows, said)
    lines = [
        Misfit(int(row), *facts)
        for row, *facts in zip(rows, record.pictures_of(rows), said, labels, shown, values, strict=True)
    ]
    what = "farthest from their centres, squared" if kmeans else "of the lowest log-density"
    row = "document" if columns == ["words"] else "row"
    caption = f"The {plural(len(rows), row)} {what}: errors in the data, or kinds of {row}s that no component is for."
    if columns == ["words"]:
        caption += " Long documents come first; beside them, their commonest words."
    return Misfits(caption, lines, columns)


def _shown(
    record: Record, rows: np.ndarray, said: list[str]
) -> tuple[list[str], list[list[str]], list[pictures.Picture | None]]:
    """Columns, their values for each row, and pictures: what can be shown of the rows."""
    pixels, nothing = pictures.pixel_map(record), list[pictures.Picture | None]([None] * len(rows))
    if record.has("misfit_word"):
        words, counts = record.array("misfit_word"), record.array("misfit_count")
        vocabulary = record.attrs.get("vocabulary") or []
        pairs = [[(w, c) for w, c in zip(*both, strict=True) if w >= 0] for both in zip(words, counts, strict=True)]
        told = [[" · ".join(f"{topics.word(vocabulary, w)} {number(float(c))}" for w, c in line)] for line in pairs]
        return ["words"], told, nothing
    x = record.array("misfits")
    if pixels is not None:
        alts = [f"Row {row}, {text}." for row, text in zip(rows, said, strict=True)]
        return [], [[] for _ in rows], list(pictures.each(pixels, x, alts))
    x = projection.data_space(record).points(x)
    kept = np.arange(x.shape[1])
    if len(kept) > FEATURES:  # those in which they stand out most
        sample = projection.data_space(record).points(record.array("sample")) if record.has("sample") else x
        out = np.abs(x - sample.mean(axis=0)).max(axis=0) / np.where(sample.std(axis=0) > 0, sample.std(axis=0), np.inf)
        kept = np.sort(np.argsort(-out, kind="stable")[:FEATURES])
    names = projection.feature_names(record)
    return [names[i] for i in kept], [[number(float(v), 4) for v in line[kept]] for line in x], nothing


@dataclass(frozen=True)
class Pair:
    """Two components that share rows. there, back : the share of the first's rows that is the second's, and the other way."""

    first: int
    second: int
    there: str
    back: str
    picture: pictures.Picture | None
    words: str


@dataclass(frozen=True)
class Confusion:
    """What components share."""

    title: str
    caption: str
    chart: Chart | None
    pairs: list[Pair]


def confusion(record: Record) -> Confusion | None:
    """Which components share rows; for K-means, which clusters are neighbours. None where nothing says so."""
    found = _counts(record) if record.k > 1 else None
    if found is None:
        return None
    counts, rows = found
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    if record.family == "kmeans":
        title = "Neighbours"
        caption = f"Of {rows}: in which cluster a row of each would be if its own were not there."
    else:
        own = float(np.trace(counts) / counts.sum())
        title = "Confusion between components"
        caption = (
            f"Of {rows}: the responsibility for a component's rows that falls to the others. "
            f"A row's own component has {percent(own)} of it on average."
        )
    np.fill_diagonal(share, 0.0)
    pairs = _pairs(record, counts, share)
    chart = _matrix(record, share, title) if record.k in MATRIX and pairs else None
    return Confusion(title, caption + ("" if pairs else " No two share more than a trace."), chart, pairs)


def _counts(record: Record) -> tuple[np.ndarray, str] | None:
    """(k, k) sum of the responsibilities of component j for rows labelled i (K-means: rows that j would inherit), and of what."""
    if record.has("sample") and record.fitted is not None:
        from pipeline.models.kmeans import KMeans

        model, params = record.fitted
        sample = record.array("sample")
        rows = plural(len(sample), "sampled row")
        if isinstance(model, KMeans):
            return np.asarray(model.removal_costs(params, sample)[1], dtype=float), rows
        counts = np.zeros((record.k, record.k))
        for _, found in model.assign(params, sample):
            np.add.at(counts, found.label, np.exp(found.log_resp))
        return counts, rows
    return _counts_of_labels(record)


def _counts_of_labels(record: Record) -> tuple[np.ndarray, str] | None:
    """The same of all rows, from the responsibilities that labels.zarr keeps; None where it keeps fewer than two."""
    counts, kept = np.zeros((record.k, record.k)), 0
    for component, share in record.top_responsibilities():
        known, kept = component[:, 0] >= 0, component.shape[1]
        np.add.at(counts, (component[known, :1], component[known]), share[known].astype(float))
    return (counts, f"all rows, and the {kept} likeliest components of each") if kept > 1 else None


def _pairs(record: Record, counts: np.ndarray, share: np.ndarray) -> list[Pair]:
    """The pairs that share most, counted in rows."""
    first, second = np.triu_indices(record.k, 1)
    most = np.argsort(-(counts + counts.T)[first, second], kind="stable")[:PAIRS]
    pixels = pictures.pixel_map(record)
    found = []
    for i, j in zip(first[most].tolist(), second[most].tolist(), strict=True):
        if max(share[i, j], share[j, i]) < LEAST:
            continue
        picture = words = None
        if pixels is not None:
            picture = pictures.in_small(record, pixels, record, f"{record.noun.capitalize()}s {i} and {j}.", [i, j])
        elif record.family == "multinomial":
            words = " / ".join(" · ".join(line) for line in topics.likeliest(record, [i, j], 3))
        found.append(Pair(i, j, percent(float(share[i, j])), percent(float(share[j, i])), picture, words or ""))
    return found


def _matrix(record: Record, share: np.ndarray, title: str) -> Chart:
    figure, axes = svg.new_figure(4.2)
    shown = np.ma.array(100 * share, mask=np.eye(record.k, dtype=bool))
    image = axes.imshow(shown, cmap="cividis", vmin=0, interpolation="nearest")
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=svg.MUTED, labelsize=11, length=0)
    svg.label_axes(axes, "goes to", f"of the rows of each {record.noun}, %")
    svg.count_ticks(axes)
    svg.count_ticks(axes, "y")
    i, j = np.unravel_index(int(share.argmax()), share.shape)
    alt = (
        f"Heat map of {record.k} by {record.k} {record.noun}s: the brightest, {percent(float(share[i, j]))}, "
        f"is from {record.noun} {i} to {record.noun} {j}."
    )
    return Chart(
        title, svg.to_svg(figure, "confusion", alt), "A line for each, brighter where more goes to the column."
    )
