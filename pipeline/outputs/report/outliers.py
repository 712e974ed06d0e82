"""The rows that fit worst, from the last pass over the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.outputs.report import pictures, projection, topics
from pipeline.outputs.report.formatting import number, plural
from pipeline.outputs.report.record import Record

FEATURES = 12


@dataclass(frozen=True)
class Outlier:
    """A row.

    score : log-density or squared distance, in words.  label : its component, None without labels.
    cut_from : name of the picture that a patch is from, else empty.
    """

    row: int
    cut_from: str
    score: str
    label: int | None
    picture: pictures.Picture | None
    values: list[str]


@dataclass(frozen=True)
class Outliers:
    """The rows that fit worst. columns : of `values`; none for pictures, one for words."""

    caption: str
    rows: list[Outlier]
    columns: list[str]


def outliers(record: Record) -> Outliers | None:
    """Return the stored outliers; None without them."""
    score = f"outlier_{record.words.score}"
    if not record.has("outlier_row") or not record.has(score) or not record.model.sizes["outlier"]:
        return None
    words = record.words
    rows, scores = record.array("outlier_row"), record.array(score)
    unit = "" if words.unit == words.score_text else f" {words.unit}"
    texts = [f"{number(float(value))}{unit}" for value in scores]
    columns, values, shown = _shown(record, rows, texts)
    lines = [
        Outlier(int(row), *facts)
        for row, *facts in zip(
            rows, record.pictures_of(rows), texts, record.labels_of(rows), shown, values, strict=True
        )
    ]
    which = record.row[0] if len(rows) == 1 else plural(len(rows), *record.row)
    caption = (
        f"The {which} of the {'lowest' if words.sign > 0 else 'largest'} {words.score_text}: errors "
        f"in the data, or kinds of {record.row[1]} that no {words.component} describes."
    )
    if columns == ["words"]:
        caption += " Long documents have low densities and come first. The words are their commonest, with counts."
    return Outliers(caption, lines, columns)


def _shown(
    record: Record, rows: np.ndarray, texts: list[str]
) -> tuple[list[str], list[list[str]], list[pictures.Picture | None]]:
    """Columns, values of each row, and pictures."""
    pixels, nothing = pictures.pixel_map(record), list[pictures.Picture | None]([None] * len(rows))
    if record.has("outlier_word"):
        words, counts = record.array("outlier_word"), record.array("outlier_count")
        vocabulary = record.attrs.get("vocabulary") or []
        pairs = [[(w, c) for w, c in zip(*both, strict=True) if w >= 0] for both in zip(words, counts, strict=True)]
        lists = [[" · ".join(f"{topics.word(vocabulary, w)} {number(float(c))}" for w, c in line)] for line in pairs]
        return ["words"], lists, nothing
    if not record.has("outliers"):
        return [], [[] for _ in rows], nothing
    x = record.array("outliers")
    if pixels is not None:
        alts = [f"{record.row[0].capitalize()} {row}, {text}." for row, text in zip(rows, texts, strict=True)]
        return [], [[] for _ in rows], list(pictures.each(pixels, x, alts))
    x = projection.data_space(record).points(x)
    shown = np.arange(x.shape[1])
    if len(shown) > FEATURES:  # those in which they differ most from the sample
        sample = projection.data_space(record).points(record.array("sample")) if record.has("sample") else x
        out = np.abs(x - sample.mean(axis=0)).max(axis=0) / np.where(sample.std(axis=0) > 0, sample.std(axis=0), np.inf)
        shown = np.sort(np.argsort(-out, kind="stable")[:FEATURES])
    names = projection.feature_names(record)
    named = record.data.get("categories") or {}
    values = [[_value(float(line[i]), named.get(names[i], [])) for i in shown] for line in x]
    return [names[i] for i in shown], values, nothing


def _value(value: float, categories: list[str]) -> str:
    """A number, or the category that it is the code of."""
    return categories[int(value)] if 0 <= value < len(categories) else number(value, 4)
