"""Components that share rows, measured by the responsibilities r of rows.

The rows are all with `output.overlap`; else those of the sample; for documents, those with responsibilities in labels.zarr. If responsibilities are 0
or 1, the next-best component of a row counts as the one that shares it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.outputs.report import pictures, svg, topics
from pipeline.outputs.report.formatting import number, percent, plural
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

MATRIX = range(4, 61)  # components in a heat map: of fewer a table says it all
PAIRS = 8
LEAST = 5e-4  # of a component's rows: pairs that share less are not shown


@dataclass(frozen=True)
class Pair:
    """Two components that share rows. there, back : the share of the first's rows that the second has, and the converse."""

    first: int
    second: int
    there: str
    back: str
    picture: pictures.Picture | None
    words: str


@dataclass(frozen=True)
class Sharing:
    """Which components share rows. head : of the table of pairs."""

    title: str
    caption: str
    head: str
    chart: Chart | None
    pairs: list[Pair]


def sharing(record: Record) -> Sharing | None:
    """Return which components share rows, or, for hard clusters, are neighbours; None if unknown."""
    found = _counts(record) if record.k > 1 else None
    if found is None:
        return None
    counts, rows = found
    words = record.words
    total = counts.sum(axis=1)
    share = sp.diags_array(np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)) @ counts
    if _is_hard(record):
        title, head = f"Neighbouring {words.components}", "neighbours"
        caption = f"Of {rows}: the {words.component} that each would join if its own were removed."
    else:
        own = float(counts.diagonal().sum() / counts.sum())
        title, head = f"Overlap between {words.components}", "most overlap"
        caption = (
            f"Of {rows}: the responsibility for the {record.row[1]} of one {words.component} that belongs to another. On "
            f"average {percent(own)} belongs to the {words.component} that a {record.row[0]} is assigned to."
        )
    share = sp.csr_array(share - sp.diags_array(share.diagonal()))
    pairs = _pairs(record, counts, share)
    caption += "" if pairs else f" No two {words.components} share more than {percent(LEAST)}."
    chart = _matrix(record, share.toarray(), title) if record.k in MATRIX and pairs else None
    return Sharing(title, caption, head, chart, pairs)


def _is_hard(record: Record) -> bool:
    """Whether responsibilities are 0 or 1, so that their entropy has no history."""
    return not record.has("entropy")


def _counts(record: Record) -> tuple[sp.csr_array, str] | None:
    """Sum of the responsibilities of component j for rows labelled i, (k, k) (hard: rows of i with next-best j), and of what."""
    if record.has("overlap"):
        return sp.csr_array(record.array("overlap").T), f"all {record.row[1]}"
    if not record.has("sample") or record.fitted is None:
        return _counts_of_labels(record)
    from pipeline.kernels.cpu import KERNELS  # compiled: not before it is needed

    model, params = record.fitted
    sample = record.array("sample")
    rows = plural(len(sample), f"sampled {record.row[0]}", f"sampled {record.row[1]}")
    if _is_hard(record):
        return model.removal_costs(params, sample, None, KERNELS).next_best, rows
    counts = np.zeros((record.k, record.k))
    for _, found in model.assign(params, sample, KERNELS):
        own = found.label >= 0
        np.add.at(counts, found.label[own], np.exp(found.log_resp[own]))
    return sp.csr_array(counts), rows


def _counts_of_labels(record: Record) -> tuple[sp.csr_array, str] | None:
    """The same of all rows, from labels.zarr; None if it has fewer than two responsibilities a row."""
    counts, stored = sp.csr_array((record.k, record.k)), 0
    for component, share in record.top_responsibilities():
        known, stored = component[:, 0] >= 0, component.shape[1]
        own = np.repeat(component[known, 0], stored)
        parts = share[known].astype(float).ravel(), (own, component[known].ravel())
        counts = counts + sp.csr_array(parts, shape=counts.shape)
    if stored < 2:
        return None
    return counts, f"all {record.row[1]}, with the {stored} likeliest {record.words.components} of each"


def _pairs(record: Record, counts: sp.csr_array, share: sp.csr_array) -> list[Pair]:
    """The pairs that share most, counted in rows."""
    both = sp.triu(counts + counts.T, 1, format="coo")
    most = np.lexsort((both.col, both.row, -both.data))[:PAIRS]
    pixels = pictures.pixel_map(record) if record.location is not None else None
    found = []
    for i, j in zip(both.row[most].tolist(), both.col[most].tolist(), strict=True):
        if max(share[i, j], share[j, i]) < LEAST:
            continue
        picture = words = None
        if pixels is not None:
            alt = f"{record.words.components.capitalize()} {i} and {j}."
            picture = pictures.in_small(record, pixels, record, alt, [i, j])
        elif record.has_topics:
            words = " / ".join(" · ".join(line) for line in topics.likeliest(record, [i, j], 3))
        found.append(Pair(i, j, percent(float(share[i, j])), percent(float(share[j, i])), picture, words or ""))
    return found


def _matrix(record: Record, share: np.ndarray, title: str) -> Chart:
    component, components = record.words.component, record.words.components
    most = float(share.max())
    plot = Plot(
        f"shared with {component}", f"{record.row[1]} of {component}", height=320, width=360, whole_x=True, whole_y=True
    )
    legend = svg.ramp(number(0), percent(most), [svg.PIXEL_BLUE])
    plot.cells(svg.shades(share / most, svg.PIXEL_BLUE), legend)
    i, j = np.unravel_index(int(share.argmax()), share.shape)
    alt = (
        f"Heat map of {record.k} by {record.k} {components}: the largest share, {percent(most)}, is of {component} {i} with "
        f"{component} {j}."
    )
    caption = (
        f"A line for each {component}: the darker a cell, the more of its {record.row[1]} also belong to the {component} of "
        "that column."
    )
    return Chart(title, plot.svg(alt), caption)
