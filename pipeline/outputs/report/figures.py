"""Charts of any run: the objective, the two moves of EM, component sizes, the speed of the passes.

The free energy F(q, θ) rises twice in an iteration: the M-step lifts it from log p(X|θ_t) to F(q_t, θ_{t+1}), the next
E-step by the KL gap that is left, up to log p(X|θ_{t+1}) (Neal and Hinton 1998; Bishop 2006, section 9.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.outputs.report import svg
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import number, percent, plural, rate, setting

STAIRS = 6  # iterations shown as a staircase at most
CLEAR = 0.015  # of the height of the chart: what a step should measure to be seen
FLAT = 1e-7  # of the objective: less than this in a whole run, and there are no steps to be seen
ROUNDING = 1e-10  # of the objective: a smaller gain or loss may be that of the arithmetic
LISTED = 60  # iterations in the table at most


@dataclass(frozen=True)
class Chart:
    """A drawing with its heading and a caption that says how to read it."""

    title: str
    picture: Markup
    caption: str


@dataclass(frozen=True)
class Curve:
    """The objective per row.

    objective : (n + 1,) at each E-step, then of the stored parameters; nats per row (k-means: squared distance per row).
    bound : (n,) free energy after each M-step, nats per row; None for k-means.
    """

    objective: np.ndarray
    bound: np.ndarray | None

    @property
    def m_gain(self) -> np.ndarray:
        """(n,) what each M-step added."""
        after = self.objective[1:] if self.bound is None else self.bound
        return np.asarray(after - self.objective[:-1])

    @property
    def e_gain(self) -> np.ndarray | None:
        """(n,) the KL gap that the E-step after it closed."""
        return None if self.bound is None else self.objective[1:] - self.bound


def read_curve(record: Record) -> Curve | None:
    """The history per row, None where the run kept none."""
    kmeans = record.family == "kmeans"
    name = "inertia" if kmeans else "log_likelihood"
    if not record.has(name):
        return None
    final = record.attrs.get("final_inertia" if kmeans else "final_log_likelihood")
    history = np.append(record.array(name), np.nan if final is None else float(final)) / record.total_weight
    bound = None if kmeans or not record.has("lower_bound") else record.array("lower_bound") / record.total_weight
    return Curve(history, bound)


def convergence(record: Record, curve: Curve) -> list[Chart]:
    """The objective over the whole run, EM's two moves close up, how the gains shrank, and how sure the rows became."""
    known = curve.objective[np.isfinite(curve.objective)]
    if not len(known):
        return []
    charts = [_objective(record, curve)]
    if curve.bound is not None and len(curve.bound) > 1 and np.ptp(known) > FLAT * np.abs(known).max():
        charts.append(_staircase(curve))
    gains = _gains(record, curve) if len(curve.objective) > 2 else None
    charts += [gains] if gains is not None else []
    if record.has("entropy") and len(curve.objective) > 2 and record.k > 1:
        charts.append(_entropy(record))
    return charts


def _objective(record: Record, curve: Curve) -> Chart:
    kmeans = record.family == "kmeans"
    what = "inertia per row" if kmeans else "log-likelihood per row"
    unit = "squared distance" if kmeans else "nats"
    figure, axes = svg.new_figure()
    iterations = np.arange(len(curve.objective))
    known = np.isfinite(curve.objective)
    if curve.bound is not None:
        axes.plot(iterations[1:], curve.bound, color=svg.ORANGE, linewidth=1.4, label="free energy after the M-step")
    style: dict[str, Any] = {"marker": "o", "markersize": 4} if known.sum() <= 30 else {}
    axes.plot(iterations[known], curve.objective[known], color=svg.BLUE, linewidth=2, label=what, **style)
    svg.label_axes(axes, "iteration", f"{what}, {unit}")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    svg.not_flat(axes, curve.objective)
    if curve.bound is not None:
        svg.legend(axes, loc="best")
    first, last = curve.objective[known][[0, -1]]
    alt = f"Line chart: {what} goes from {number(first)} to {number(last)} {unit} in {plural(len(iterations) - 1, 'iteration')}."
    caption = (
        "Mean squared distance of a row to its centre, at each assignment. The last point is the stored model."
        if kmeans
        else "Taken at each E-step; the last point is the stored model. The free energy never lies above it: "
        "the space between the two is the KL gap that the next E-step closes."
    )
    if record.attrs.get("search") and np.ptp(curve.objective[known]) < 1e-4 * np.abs(curve.objective[known]).max():
        caption += " It begins near its end: the search on rows in memory had found the place before the first pass."
    return Chart(what[0].upper() + what[1:], svg.to_svg(figure, "objective", alt), caption)


def _staircase(curve: Curve) -> Chart:
    assert curve.bound is not None and curve.e_gain is not None
    start, stop = _clearest_window(curve)
    figure, axes = svg.new_figure()
    for t in range(start, stop):
        first = t == start
        low, mid, high = curve.objective[t], curve.bound[t], curve.objective[t + 1]
        axes.plot([t, t + 1], [low, mid], color=svg.ORANGE, linewidth=2.5, label="M-step raises L" if first else None)
        axes.plot(
            [t + 1, t + 1], [mid, high], color=svg.BLUE, linewidth=2.5, label="E-step closes KL" if first else None
        )
        axes.fill_between([t, t + 1], [low, mid], [low, high], color=svg.BLUE, alpha=0.12, linewidth=0)
    points = np.arange(start, stop + 1)
    axes.plot(points, curve.objective[points], "o", color=svg.BLUE, markersize=5, label="log-likelihood")
    svg.label_axes(axes, "iteration", "free energy per row, nats")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    svg.legend(axes, loc="best")
    m_gain, e_gain = curve.m_gain[start:stop].sum(), curve.e_gain[start:stop].sum()
    alt = (
        f"Staircase from iteration {start} to {stop}: M-steps raise the free energy by {number(m_gain, 3)} nats per row "
        f"in all, E-steps close {number(e_gain, 3)} nats of KL."
    )
    caption = (
        f"Iterations {start} to {stop}. An M-step moves the parameters and raises the lower bound L; the E-step after it "
        "makes the bound tight again, KL = 0. The shaded gap is KL."
    )
    return Chart("The two moves of EM", svg.to_svg(figure, "stairs", alt), caption)


def _clearest_window(curve: Curve) -> tuple[int, int]:
    """First iteration and end of the longest window whose smallest step can be seen, else of the clearest short one."""
    assert curve.e_gain is not None
    steps = np.minimum(curve.m_gain, curve.e_gain)
    best = (0, min(2, len(steps)))
    for length in range(min(STAIRS, len(steps)), 1, -1):
        clearest = -np.inf
        for start in range(min(len(steps) - length + 1, 40)):
            height = curve.objective[start + length] - curve.objective[start]
            clear = steps[start : start + length].min() / height if height > 0 else -np.inf
            if clear > clearest:
                best, clearest = (start, start + length), clear
        if clearest >= CLEAR:
            break
    return best


def _gains(record: Record, curve: Curve) -> Chart | None:
    """What each iteration added, as far as it is more than rounding; None where none added as much."""
    kmeans = curve.e_gain is None
    total = (-1 if kmeans else 1) * np.diff(curve.objective)
    least = ROUNDING * np.abs(curve.objective[1:])
    drawn = [(total, svg.BLUE, "fall in inertia")] if kmeans else []
    if curve.e_gain is not None:
        drawn = [(curve.m_gain, svg.ORANGE, "M-step: L"), (curve.e_gain, svg.BLUE, "E-step: KL")]
    if not any((gain > least).any() for gain, _, _ in drawn):
        return None
    iterations = np.arange(1, len(total) + 1)
    figure, axes = svg.new_figure()
    for gain, colour, what in drawn:
        up = gain > least
        axes.plot(iterations[up], gain[up], color=colour, linewidth=1.8, label=what)
    svg.log_ticks(axes)
    caption = "How much each iteration still gained, on a logarithmic scale"
    caption += "." if kmeans else ", split into the two moves."
    tol = record.option("fit", "tol")
    if not kmeans and isinstance(tol, (int, float)) and tol > 0:
        axes.axhline(tol, color=svg.MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"tol = {setting(tol)}")
        caption += " The run stops when their sum stays below tol."
    svg.label_axes(axes, "iteration", f"gain per row, {'squared distance' if kmeans else 'nats'}")
    svg.count_ticks(axes)
    svg.legend(axes, loc="best")
    last = f" The last iteration gained {number(float(total[-1]), 3)} per row." if total[-1] > least[-1] else ""
    alt = f"Gains per iteration on a logarithmic scale.{last}"
    caption += last + _falls(record, int((total < -least).sum()))
    return Chart("What each iteration gained", svg.to_svg(figure, "gains", alt), caption)


def _falls(record: Record, count: int) -> str:
    """What is to be said of iterations that lost."""
    if not count:
        return ""
    note = f" {plural(count, 'iteration')} lost instead, and {'is' if count == 1 else 'are'} left out."
    if record.family == "multinomial" or record.has("prior_mean"):
        return (
            note + " The fit raises the log-likelihood and the log prior together, of which the first alone may fall."
        )
    if record.attrs.get("reg_covar"):
        reg = setting(float(record.attrs["reg_covar"]))
        note += (
            f" The reg_covar of {reg}, which is added to each variance after the M-step, may take more than a step gains; "
            "under model.prior none does."
        )
    return note


def numbers(curve: Curve) -> tuple[list[list[str]], int]:
    """A line for each iteration, what M- and E-step added last; and how many in the middle are left out.

    Of k-means the iteration and the inertia, else: log-likelihood, gain in L by the M-step, L, KL; nats per row.
    """
    n = len(curve.objective) - 1
    shown = [t for t in range(n) if t < LISTED // 2 or t >= n - LISTED // 2]
    lines = []
    for t in shown:
        line = [str(t), number(float(curve.objective[t]), 8)]
        if curve.bound is not None and curve.e_gain is not None:
            line += [
                number(float(curve.m_gain[t]), 3),
                number(float(curve.bound[t]), 8),
                number(float(curve.e_gain[t]), 3),
            ]
        lines.append(line)
    return lines, n - len(shown)


def _entropy(record: Record) -> Chart:
    entropy = record.array("entropy") / record.total_weight
    figure, axes = svg.new_figure()
    axes.plot(np.arange(len(entropy)), entropy, color=svg.BLUE, linewidth=2)
    known = entropy[np.isfinite(entropy)]
    axes.set_ylim(0, 1.15 * max(float(known.max(initial=0)), 1e-3))
    svg.label_axes(axes, "iteration", "entropy per row, nats")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    first, last = known[[0, -1]] if len(known) else (np.nan, np.nan)
    alt = f"Line chart: the entropy of the responsibilities goes from {number(first, 3)} to {number(last, 3)} nats per row."
    caption = (
        "Mean entropy of a row's responsibilities: 0 where every row belongs to one component, "
        f"log {record.k} = {number(float(np.log(record.k)), 3)} where it could be in any."
    )
    return Chart("How sure the rows are", svg.to_svg(figure, "entropy", alt), caption)


def sizes_over_time(record: Record) -> Chart | None:
    """Effective rows by iteration; None where the history has no two of them."""
    if not record.has("n_effective") or record.model.sizes["iteration"] < 2 or record.k < 2:
        return None
    share = record.array("n_effective")
    share = share / share.sum(axis=1, keepdims=True)
    figure, axes = svg.new_figure()
    few = record.k <= len(svg.CYCLE)
    iterations = np.arange(len(share))
    for k in range(record.k):
        colour = svg.CYCLE[k] if few else svg.BLUE
        thin = 1.8 if few else 0.9 if record.k <= 60 else 0.5
        axes.plot(iterations, 100 * share[:, k], color=colour, linewidth=thin, alpha=1 if few else 0.55, label=str(k))
    svg.label_axes(axes, "iteration", "share of the rows, %")
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    axes.set_ylim(bottom=0)
    if few:
        svg.legend(axes, loc="upper left", bbox_to_anchor=(1, 1), title=None)
    alt = (
        f"Line chart of {record.k} {record.noun} sizes by iteration; at the end the largest holds {percent(share[-1].max())} "
        f"of the rows and the smallest {percent(share[-1].min())}."
    )
    caption = (
        f"Effective rows of each {record.noun}, the sum of its responsibilities, at each E-step. A jump is a reset."
    )
    return Chart("Sizes on the way", svg.to_svg(figure, "shares", alt), caption)


def sizes(record: Record) -> Chart:
    """Bars of the component weights, in stored order."""
    weights = 100 * record.weights
    figure, axes = svg.new_figure()
    width = 0.76 if record.k <= 60 else 0.9
    axes.bar(np.arange(record.k), weights, width=width, color=svg.BLUE, linewidth=0)
    if record.k > 1:
        axes.axhline(100 / record.k, color=svg.ORANGE, linewidth=1.4, linestyle=(0, (4, 3)), label="equal shares")
        svg.legend(axes, loc="upper right")
        axes.set_ylim(0, 1.25 * float(weights.max()))  # room for the legend above the bars
    axes.set_xlim(-0.75, record.k - 0.25)
    svg.label_axes(axes, record.noun, "share of the rows, %")
    svg.count_ticks(axes, most=12 if record.k <= 12 else 6)
    svg.number_ticks(axes)
    largest, smallest = percent(record.weights.max()), percent(record.weights.min())
    alt = f"Bar chart of the sizes of {plural(record.k, record.noun)}: largest {largest}, smallest {smallest}."
    rows = _extremes(record)
    caption = f"From {largest} to {smallest} of the rows{rows}. They are numbered from 0, as in labels.zarr."
    return Chart(f"{record.noun.capitalize()} sizes", svg.to_svg(figure, "sizes", alt), caption)


def _extremes(record: Record) -> str:
    """`, about 12,345 to 67 rows`: the extremes of the sizes as rows."""
    n = record.attrs.get("n_rows")
    if not isinstance(n, (int, float)) or record.k < 2:
        return ""
    return f", about {number(round(n * record.weights.max()))} to {number(round(n * record.weights.min()))} of them"


def speed(passes: list[dict[str, Any]]) -> Chart | None:
    """Rows per second, pass by pass; None with fewer than three passes that say."""
    speeds = np.array([entry["rows"] / entry["seconds"] for entry in passes if entry["seconds"] > 0])
    if len(speeds) < 3:
        return None
    scale, unit = (1e6, "million rows/s") if speeds.max() >= 1e6 else (1e3, "thousand rows/s")
    if speeds.max() < 2e3:
        scale, unit = 1, "rows/s"
    figure, axes = svg.new_figure(2.5)
    axes.plot(np.arange(1, len(speeds) + 1), speeds / scale, color=svg.GREEN, linewidth=1.8)
    axes.set_ylim(0, 1.15 * speeds.max() / scale)
    svg.label_axes(axes, "pass", unit)
    svg.count_ticks(axes)
    svg.number_ticks(axes)
    alt = f"Line chart of the speed of {len(speeds)} passes, from {rate(speeds.min())} to {rate(speeds.max())}."
    caption = f"Median {rate(float(np.median(speeds)))}; slowest {rate(speeds.min())}, fastest {rate(speeds.max())}."
    return Chart("Speed, pass by pass", svg.to_svg(figure, "speed", alt), caption)
