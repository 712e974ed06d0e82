"""Rate and distortion: what the numbers of centres, parts or stages are worth as a code."""

from __future__ import annotations

import numpy as np

from pipeline.outputs.report import svg
from pipeline.outputs.report.formatting import number, percent
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

ERROR = "mean squared error of a feature"


def of_books(record: Record) -> Chart | None:
    """Return the error after each stage by the bits up to it, or the error in each part; None of other models."""
    bits, d = record.attrs.get("bits"), record.n_features
    if bits is None:
        return None
    if record.has("stage_inertia"):
        error = record.array("stage_inertia")[-1] / record.total_weight / d
        return rate_and_distortion(
            bits / len(error) * np.arange(1, len(error) + 1),
            error,
            "Error by stage",
            "What each stage adds: the error of what the stages up to it restore, over all rows, at the last iteration.",
        )
    error = record.array("part_inertia")[-1] / record.total_weight / d
    plot = Plot("part", f"share of the {ERROR}", whole_x=True, low=0)
    plot.bars(error, svg.BLUE)
    largest = int(error.argmax())
    share = percent(float(error[largest] / error.sum())) if error.any() else "0 %"
    caption = (
        f"What each part of the features adds to the mean squared error, over all rows, at the last iteration: part {largest} has {share} of it. "
        "Parts that differ much have variances that differ; each has as many bits."
    )
    alt = f"Bar chart of the error in {len(error)} parts, from {number(error.min(), 3)} to {number(error.max(), 3)}."
    return Chart("Error by part", plot.svg(alt), caption)


def rate_and_distortion(
    bits: np.ndarray, error: np.ndarray, title: str, caption: str, chosen: int | None = None
) -> Chart:
    """Return the curve of a mean squared error by bits. chosen : the point with a ring."""
    plot = Plot("bits per row", ERROR, low=0)
    plot.line(bits, error, svg.BLUE, width=1.8, dots=True)
    if chosen is not None:
        plot.ring(bits[chosen], error[chosen], "chosen")
    alt = (
        f"Line chart: the mean squared error goes from {number(error[0], 3)} at {number(bits[0], 3)} bits per row to {number(error[-1], 3)} at "
        f"{number(bits[-1], 3)} bits."
    )
    return Chart(title, plot.svg(alt), caption)
