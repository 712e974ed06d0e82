"""The report of a prediction: shares of labels, the log-density, and the rows that fit worst, beside the training rows.

It is made from the directory of the labels and, where they are still there, the model and the labels of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.named import read_group
from pipeline.arrays.stores import guarded
from pipeline.data.grid import FlatRows
from pipeline.errors import InputError, StorageError
from pipeline.models.clusters import NOISE
from pipeline.outputs.checkpoint import sums
from pipeline.outputs.measures import measures_of
from pipeline.outputs.report import svg
from pipeline.outputs.report.formatting import NONE, number, percent, plural
from pipeline.outputs.report.outliers import outliers
from pipeline.outputs.report.record import Record, read_record
from pipeline.outputs.report.summary import Fact, measured
from pipeline.outputs.report.svg import Chart, Plot

_STORES = {"predict": "labels.zarr", "outliers": "outliers.zarr"}  # of the commands that label rows
LISTED = 20  # rows that fit worst
SAMPLED = 100_000  # scores that stand for all in the chart
LOW = 0.01  # share of the training rows below which a score is low
UNLIKE, MUCH = 2.0, 5.0  # times as many low scores as in training


@dataclass(frozen=True)
class Scores:
    """What labels.zarr says of some rows.

    counts : (k,) rows of each component.  noise : rows of the noise.  unlabelled : rows without a label.  sample : some scores, ascending.
    rows, worst, labels : the rows that fit worst, worst first, their scores and components.
    """

    counts: np.ndarray
    noise: int
    unlabelled: int
    mean: float
    sample: np.ndarray
    rows: np.ndarray
    worst: np.ndarray
    labels: np.ndarray

    @property
    def total(self) -> int:
        """Rows with a label, noise included."""
        return int(self.counts.sum()) + self.noise


@dataclass(frozen=True)
class Prediction:
    """A directory of labels.

    of : the run.  rows : the same with the labels and the oddest rows of this directory.  labels : of other rows.  training : of the run's own
    rows, if they are stored.  rate, flagged : of `em-pipeline outliers`, the rate that was asked for, and the share that is flagged; None of
    other commands.
    """

    path: Path
    of: Record
    config: dict[str, Any]
    fingerprint: dict[str, Any]
    labels: Scores
    training: Scores | None
    rows: Record
    rate: float | None
    flagged: float | None


def read_prediction(path: Path, resolved: dict[str, Any]) -> Prediction:
    """Read the labels, and the run of their model. resolved : the content of config.yaml.

    Raises
    ------
    InputError
        If the labels are not finished, or the model is gone or another one.
    """
    run, command = Path(str(resolved["prediction_of"])), str(resolved.get("command", "predict"))
    if command not in _STORES:
        raise InputError(
            f"{path}: is of `em-pipeline {command}`, which has no report. Open {path / f'{command}.zarr'}."
        )
    store = _STORES[command]
    if not (path / store).is_dir():
        raise InputError(f"{path}: holds labels of other rows that are not finished. Run `em-pipeline resume {path}`.")
    advice = f"Label the rows again: `em-pipeline {command} {run} --output …`. {path / store} itself is whole."
    if not (run / "model.zarr").is_dir():
        raise InputError(f"{path}: its report needs the model of {run}, which is not there. Restore it. {advice}")
    if sums(run / "model.zarr") != resolved.get("model"):
        raise InputError(f"{path}: the model of {run} is not the one that made these labels. {advice}")
    of = read_record(run)
    rows = replace(of, run=path, store=store)
    labels = _scores(rows)
    if labels is None:
        raise StorageError(f"{path / store}: an array is missing. Remove it, then `em-pipeline resume {path}`.")
    config, fingerprint = resolved.get("config") or {}, resolved.get("fingerprint") or {}
    rate = flagged = None
    if command == "outliers":
        rate, flagged, rows = float(resolved["rate"]), _flagged(rows), _with_oddest(rows)
    return Prediction(path, of, config, fingerprint, labels, _scores(of), rows, rate, flagged)


def _flagged(record: Record) -> float:
    """The share of the rows that `em-pipeline outliers` flagged."""
    flags = record.label_array("outlier")
    if flags is None:
        raise StorageError(f"{record.run / record.store}: has no array outlier. Make it again.")
    found = [np.asarray(flags[part]) for part in flags.parts()]
    return sum(int((part == 1).sum()) for part in found) / max(1, sum(int((part >= 0).sum()) for part in found))


def _with_oddest(record: Record) -> Record:
    """The record whose rows that fit worst are those of its store, where it has them."""
    try:
        named = {
            name: (each.dims, each.values)
            for name, each in read_group(guarded(record.run / record.store)).data_vars.items()
            if name.startswith("outlier_") or name == "outliers"
        }
    except Exception as error:  # as in `Record.array`
        raise StorageError(f"{record.run / record.store}: cannot be read ({error}). Make it again.") from error
    return replace(record, model=record.model.without(["outlier", "place"]).assign(named))


def _scores(record: Record) -> Scores | None:
    """Read labels.zarr, block by block; None without one. Rows of a model without labels count as of one component."""
    label = record.label_array("label") if record.k else None
    score = record.label_array(record.words.score)
    if score is None or (label is None and record.k):
        return None
    try:
        return _of_blocks(record, label, score)
    except Exception as error:  # as in `Record.array`
        raise StorageError(f"{record.run / 'labels.zarr'}: cannot be read ({error}). Label the rows again.") from error


def _of_blocks(record: Record, label: FlatRows | None, score: FlatRows) -> Scores:
    sign, n, k = record.words.sign, score.shape[0], max(1, record.k)
    counts, noise, total, sample = np.zeros(k, dtype=np.int64), 0, 0.0, []
    rows, worst, labels = np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
    step = -(-n // SAMPLED)
    for block in score.parts():
        value = sign * np.asarray(score[block], dtype=np.float64)
        part = np.where(np.isnan(value), -1, 0) if label is None else np.asarray(label[block])
        known = (part >= 0) | (part == NOISE)
        counts += np.bincount(part[part >= 0], minlength=k)
        noise += int((part == NOISE).sum())
        total += value[known].sum()
        sample.append(value[known][::step])
        rows = np.append(rows, block.start + np.flatnonzero(known))
        worst, labels = np.append(worst, value[known]), np.append(labels, part[known])
        first = np.lexsort((rows, worst))[:LISTED]
        rows, worst, labels = rows[first], worst[first], labels[first]
    found = int(counts.sum()) + noise
    return Scores(counts, noise, n - found, total / max(found, 1), np.sort(np.concatenate(sample)), rows, worst, labels)


def context(made: Prediction) -> dict[str, Any]:
    """Return what the template needs."""
    of, labels = made.of, made.labels
    data = made.config.get("data") or {}
    low, worst = _share_of_low(made), _worst(made)
    oddest = None if made.rate is None else outliers(made.rows)
    return {
        "name": made.path.name,
        "title": f"{'Labels of' if made.rate is None else 'Outliers among'} {plural(labels.total + labels.unlabelled, *of.row)}",
        "command": "prediction" if made.rate is None else "outliers",
        "store": made.rows.store,
        "model": of.title,
        "model_path": str(of.run),
        "source": str(data.get("path") or data.get("source") or ""),
        "verdict": _verdict(low, of.row[1]),
        "alike": low is not None and low < UNLIKE * LOW,
        "facts_list": list(_facts(made, low)),
        "chart_list": [chart for chart in (_shares(made), _quantiles(made)) if chart is not None],
        "lines": _table(made),
        "words": of.words,
        "row": of.row,
        "worst": worst if oddest is None else [],  # these are mostly the same rows
        "oddest": oddest,
        "k": of.k,
        "named": any(line[3] != NONE for line in worst),
        "fingerprint": made.fingerprint,
        "trained_on": of.fingerprint,
        "config": made.config,
        "path": str(made.path),
    }


def _share_of_low(made: Prediction) -> float | None:
    """Share of the rows with a score that only LOW of the training rows have; None without the labels of these."""
    if made.training is None or not len(made.training.sample) or not len(made.labels.sample):
        return None
    limit = np.quantile(made.training.sample, LOW)
    return float(np.searchsorted(made.labels.sample, limit, side="left")) / len(made.labels.sample)


def _verdict(low: float | None, rows: str) -> str:
    if low is None:
        return ""
    start = f"{percent(low)} of the {rows} fit as badly as the worst {percent(LOW)} of the training {rows}"
    if low < UNLIKE * LOW:
        return f"{start}: these {rows} are much like those."
    often = "many" if low >= MUCH * LOW else "some"
    return f"{start}: {often} of these {rows} are unlike those. Their labels may mean little."


def _facts(made: Prediction, low: float | None) -> Iterator[Fact]:
    words, labels, of = made.of.words, made.labels, made.of
    name = f"Mean {words.score_text}"
    unit = "" if words.unit == words.score_text else words.unit
    before = of.final / of.total_weight * words.sign if of.final is not None else None
    note = "" if before is None else f"of the training {of.row[1]}: {number(words.sign * before)}"
    yield Fact(name, number(words.sign * labels.mean), unit, note)
    if made.rate is not None and made.flagged is not None:
        note = f"of {of.row[1]} like those of the run, {percent(made.rate)} would be"
        yield Fact("Flagged", percent(made.flagged), f"of the {of.row[1]}", note)
    if low is not None:
        yield Fact(f"Badly fitting {of.row[1]}", percent(low), "", f"of the training {of.row[1]}: {percent(LOW)}")
    if of.k > 1 and labels.total:
        moved = 0.5 * np.abs(labels.counts / labels.total - of.weights).sum()
        if of.noise is not None:
            moved += 0.5 * abs(labels.noise / labels.total - of.noise)
        note = f"that are in another {words.component} than the shares of the training {of.row[1]} say"
        yield Fact("Shift of shares", percent(float(moved)), f"of the {of.row[1]}", note)
    if of.noise is not None:
        share = labels.noise / max(labels.total, 1)
        yield Fact("Noise", percent(share), f"of the {of.row[1]}", f"label -2; in training {percent(of.noise)}")
    yield from measured(measures_of(made.path))
    if labels.unlabelled:
        yield Fact("Without a label", number(labels.unlabelled), of.row[1], "missing or infinite values")


def _shares(made: Prediction) -> Chart | None:
    of, labels = made.of, made.labels
    if of.k < 2 or not labels.total:
        return None
    plot = Plot(of.words.component, f"share of the {of.row[1]}, %", whole_x=True, low=0)
    plot.bars(100 * labels.counts / labels.total, svg.BLUE)
    plot.dots(np.arange(of.k), 100 * of.weights, svg.ORANGE, 5, "in training")
    largest = int(labels.counts.argmax())
    alt = (
        f"Bar chart of the labels' shares beside those in training: the largest is {of.words.component} {largest} with "
        f"{percent(labels.counts[largest] / labels.total)}; it had {percent(of.weights[largest])}."
    )
    caption = f"Bars: share of the labels of these {of.row[1]}. Dots: share in training, the weight of the {of.words.component}."
    return Chart("Shares of the labels", plot.svg(alt), caption)


def _quantiles(made: Prediction) -> Chart | None:
    words, rows = made.of.words, made.of.row[1]
    if not len(made.labels.sample):
        return None
    at = np.linspace(0.005, 0.995, 199)
    plot = Plot(f"share of the {rows} that fit worse, %", f"{words.score_text}, {words.unit}")
    drawn = [(made.training, svg.ORANGE, f"training {rows}"), (made.labels, svg.BLUE, f"these {rows}")]
    for scores, colour, name in drawn:
        if scores is not None and len(scores.sample):
            plot.line(100 * at, words.sign * np.quantile(scores.sample, at), colour, name)
    median = number(float(words.sign * np.quantile(made.labels.sample, 0.5)))
    alt = f"Line chart of the quantiles of the {words.score_text}; the median of these {rows} is {median}."
    caption = f"Where the lines part, these {rows} fit otherwise than the training {rows}. Half a percent at each end is left out."
    if made.training is None:
        caption = f"The run stores no labels of its own rows (output.labels), so that only these {rows} are shown."
    return Chart(f"{words.score_text[0].upper()}{words.score_text[1:]}", plot.svg(alt), caption)


def _table(made: Prediction) -> list[list[str]]:
    """Component, rows, share, and share in training."""
    labels, of = made.labels, made.of
    total = max(labels.total, 1)
    return [
        [str(k), number(int(labels.counts[k])), percent(labels.counts[k] / total), percent(of.weights[k])]
        for k in range(of.k)
    ]


def _worst(made: Prediction) -> list[list[str]]:
    """Row, score, component, and of patches the picture."""
    labels, words = made.labels, made.of.words
    pictures = made.rows.pictures_of(labels.rows)
    found = zip(labels.rows, labels.worst, labels.labels, pictures, strict=True)
    return [
        [str(row), number(float(words.sign * score)), "noise" if k == NOISE else str(k), name or NONE]
        for row, score, k, name in found
    ]
