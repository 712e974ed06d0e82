"""Charts of any run: the objective, the two steps of EM, component sizes, the speed of the passes.

The free energy F(q, θ) rises twice in an iteration: the M-step raises it from log p(X|θ_t) to F(q_t, θ_{t+1}), the next
E-step by the remaining KL divergence, to log p(X|θ_{t+1}) (Neal and Hinton 1998; Bishop 2006, section 9.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import StorageError
from pipeline.outputs.report import svg
from pipeline.outputs.report.formatting import number, percent, plural, rate, setting
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

STAIRS = 6  # iterations shown as a staircase at most
CLEAR = 0.015  # of the height of the chart: what a step should measure to be seen
FLAT = 1e-7  # of the objective: less than this in a whole run, and there are no steps to be seen
ROUNDING = 1e-10  # of the objective: a smaller gain or loss may be that of the arithmetic
LISTED = 60  # iterations in the table at most
BARS = 200  # components with a bar each at most: of more, the sizes are a line


@dataclass(frozen=True)
class Curve:
    """The objective per row.

    Attributes
    ----------
    objective : array, shape (n + 1,)
        At each E-step, then of the stored parameters; in the unit of the family.
    bound : array, shape (n,), optional
        Free energy after each M-step, nats per row; None in families without.
    """

    objective: np.ndarray
    bound: np.ndarray | None

    @property
    def m_gain(self) -> np.ndarray:
        """Gain of each M-step, (n,)."""
        after = self.objective[1:] if self.bound is None else self.bound
        return np.asarray(after - self.objective[:-1])

    @property
    def e_gain(self) -> np.ndarray | None:
        """Gain of the E-step after it, (n,): the KL divergence before it."""
        return None if self.bound is None else self.objective[1:] - self.bound


def _series(record: Record, name: str) -> np.ndarray:
    """An array of one number an iteration. Raises StorageError if it is absent, damaged or has other dimensions."""
    if record.has(name) and (dims := record.model[name].dims) != ("iteration",):
        raise StorageError(f"model.zarr: {name} has the dimensions {dims}, expected (iteration). Run the job again.")
    return record.array(name)


def read_curve(record: Record) -> Curve | None:
    """Return the history per row; None without one."""
    if not record.has(record.words.series):
        return None
    final = np.nan if record.final is None else record.final
    history = np.append(_series(record, record.words.series), final) / record.total_weight
    bound = _series(record, "lower_bound") / record.total_weight if record.has("lower_bound") else None
    if record.objective == record.words.objective:
        return Curve(history, bound)
    # With what is maximized besides: after an M-step it is that of the next E-step, whose parameters are the same.
    penalty = np.append(_series(record, "objective") / record.total_weight - history[:-1], record.penalty)
    return Curve(history + penalty, None if bound is None else bound + penalty[1:])


def convergence(record: Record, curve: Curve) -> list[Chart]:
    """Return charts of the objective, of EM's two steps, of the gains of iterations, and of the entropy of labels."""
    known = curve.objective[np.isfinite(curve.objective)]
    if not len(known):
        return []
    charts = [_objective(record, curve)]
    rises = curve.bound is not None and len(curve.bound) > 1 and np.ptp(known) > FLAT * np.abs(known).max()
    if rises and (window := _clearest_window(curve)) is not None:
        charts.append(_staircase(curve, window, record.objective))
    gains = _gains(record, curve) if len(curve.objective) > 2 else None
    charts += [gains] if gains is not None else []
    if record.has("entropy") and len(curve.objective) > 2 and record.k > 1:
        charts.append(_entropy(record))
    return charts


def _objective(record: Record, curve: Curve) -> Chart:
    words, objective = record.words, record.objective
    what = f"{objective} per row"
    plot = Plot("iteration", f"{what}, {words.unit}", whole_x=True)
    iterations = np.arange(len(curve.objective))
    known = np.isfinite(curve.objective)
    if curve.bound is not None:
        plot.line(iterations[1:], curve.bound, svg.ORANGE, "free energy", 1.4)
    plot.line(iterations[known], curve.objective[known], svg.BLUE, objective, dots=bool(known.sum() <= 30))
    first, last = curve.objective[known][[0, -1]]
    steps = plural(len(iterations) - 1, "iteration")
    alt = f"Line chart: {what} goes from {number(first)} to {number(last)} {words.unit} in {steps}."
    caption = "A point for each E-step. The last point is the stored model."
    if objective != words.objective:
        caption += (
            f" The objective is the {record.objective_text}: the fit maximizes this sum, which decides when to stop."
        )
    if curve.bound is not None:
        also = (
            "" if objective == words.objective else f", here with the {record.objective_text.partition(' plus ')[2]},"
        )
        caption += (
            f" The free energy{also} after each M-step is a lower bound of the {objective}. The distance between the two "
            "lines is the KL divergence, which the next E-step reduces to 0."
        )
    if record.penalty and objective == words.objective:
        caption += f" {_what_is_raised(record)} This curve shows the {words.objective} alone."
    if record.attrs.get("search") and np.ptp(curve.objective[known]) < 1e-4 * np.abs(curve.objective[known]).max():
        caption += (
            " The curve is nearly flat because the search on a sample of the rows had already found this optimum."
        )
    return Chart(what[0].upper() + what[1:], plot.svg(alt), caption)


def _what_is_raised(record: Record) -> str:
    """What verdict, tolerance and restarts refer to, if it is not the plotted objective."""
    value = number((record.final or 0.0) / record.total_weight + record.penalty)
    return (
        f"The fit maximizes the {record.objective_text.replace(' plus ', ' plus the ')}, {value} {record.words.unit} per row at the end; this sum decides "
        "when to stop and which restart is best."
    )


def _staircase(curve: Curve, window: tuple[int, int], objective: str) -> Chart:
    assert curve.bound is not None and curve.e_gain is not None
    start, stop = window
    plot = Plot("iteration", "free energy per row, nats", whole_x=True)
    for t in range(start, stop):
        first = t == start
        low, mid, high = curve.objective[t], curve.bound[t], curve.objective[t + 1]
        plot.area(np.array([t, t + 1]), np.array([low, mid]), np.array([low, high]), svg.BLUE)
        plot.line([t, t + 1], [low, mid], svg.ORANGE, "M-step" if first else "", 2.5)
        plot.line([t + 1, t + 1], [mid, high], svg.BLUE, "E-step" if first else "", 2.5)
    points = np.arange(start, stop + 1)
    plot.dots(points, curve.objective[points], svg.BLUE, 6)
    m_gain, e_gain = curve.m_gain[start:stop].sum(), curve.e_gain[start:stop].sum()
    alt = (
        f"Staircase from iteration {start} to {stop}: M-steps raise the free energy by {number(m_gain, 3)} nats per row "
        f"in all, E-steps by {number(e_gain, 3)}."
    )
    caption = (
        f"Iterations {start} to {stop}. An M-step changes the parameters and raises the free energy. The E-step after it "
        f"raises the free energy to the {objective} of these parameters. The shaded distance is the KL divergence."
    )
    return Chart("The two steps of EM", plot.svg(alt), caption)


def _clearest_window(curve: Curve) -> tuple[int, int] | None:
    """First iteration and end of the longest window whose smallest step is visible, else of the clearest short one.

    None if no two steps in a row rise.
    """
    assert curve.e_gain is not None
    steps = np.minimum(curve.m_gain, curve.e_gain)
    best, found = (0, min(2, len(steps))), False
    for length in range(min(STAIRS, len(steps)), 1, -1):
        clearest = -np.inf
        for start in range(min(len(steps) - length + 1, 40)):
            height = curve.objective[start + length] - curve.objective[start]
            clear = steps[start : start + length].min() / height if height > 0 else -np.inf
            if clear > clearest:
                best, clearest = (start, start + length), clear
        found = found or clearest >= 0
        if clearest >= CLEAR:
            break
    return best if found else None


def _gains(record: Record, curve: Curve) -> Chart | None:
    """Gain of each iteration, if it is more than rounding; None if none is."""
    words = record.words
    total = words.sign * np.diff(curve.objective)
    least = ROUNDING * np.abs(curve.objective[1:])
    drawn = [(total, svg.BLUE, f"change of the {record.objective}")]
    if curve.e_gain is not None:
        drawn = [(curve.m_gain, svg.ORANGE, "by the M-step"), (curve.e_gain, svg.BLUE, "by the E-step")]
    if not any((gain > least).any() for gain, _, _ in drawn):
        return None
    iterations = np.arange(1, len(total) + 1)
    plot = Plot("iteration", f"gain per row, {words.unit}", whole_x=True, log=True)
    for gain, colour, what in drawn:
        up = gain > least
        plot.line(iterations[up], gain[up], colour, what, 1.8)
    caption = "How much each iteration gained, on a logarithmic scale"
    caption += "." if curve.bound is None else ", split into the two steps."
    tol = record.option("fit", "tol")
    if (
        curve.bound is not None
        and isinstance(tol, (int, float))
        and tol > 0
        and (record.objective == "objective" or not record.penalty)
    ):
        plot.rule(tol, svg.MUTED, f"tol = {setting(tol)}")
        caption += " The run stops when their sum stays below tol."
    last = f" The last iteration gained {number(float(total[-1]), 3)} per row." if total[-1] > least[-1] else ""
    alt = f"Gains per iteration on a logarithmic scale.{last}"
    caption += last + _losses(record, int((total < -least).sum()))
    return Chart("What each iteration gained", plot.svg(alt), caption)


def _losses(record: Record, count: int) -> str:
    """Known reasons why the objective fell in some iterations."""
    if not count:
        return ""
    note = f" {plural(count, 'iteration')} lost instead and {'is' if count == 1 else 'are'} left out."
    if record.penalty and record.objective == record.words.objective:
        return f"{note} The fit maximizes the {record.words.objective} plus the log prior; the first of them alone may fall."
    if record.attrs.get("reg_covar"):
        reg = setting(float(record.attrs["reg_covar"]))
        note += (
            f" The reg_covar of {reg} is added to each variance after the M-step, which may cost more than the step "
            "gains. With model.prior no iteration loses."
        )
    return note


def numbers(curve: Curve) -> tuple[list[list[str]], int]:
    """Return a row for each iteration with the gains of its M-step and E-step; and how many in the middle are left out.

    The iteration and the objective, and with a free energy: gain of the M-step, free energy, gain of the E-step.
    """
    n = len(curve.objective) - 1
    shown = [t for t in range(n) if t < LISTED // 2 or t >= n - LISTED // 2]
    lines = []
    for t in shown:
        line = [str(t), number(float(curve.objective[t]), 8)]
        if curve.bound is not None and curve.e_gain is not None:
            least = ROUNDING * abs(float(curve.objective[t]))  # what is less is that of the arithmetic
            m_gain, e_gain = (0.0 if abs(gain[t]) < least else float(gain[t]) for gain in (curve.m_gain, curve.e_gain))
            line += [number(m_gain, 3), number(float(curve.bound[t]), 8), number(e_gain, 3)]
        lines.append(line)
    return lines, n - len(shown)


def _entropy(record: Record) -> Chart:
    entropy = _series(record, "entropy") / record.total_weight
    known = entropy[np.isfinite(entropy)]
    plot = Plot(
        "iteration", "entropy per row, nats", whole_x=True, low=0, high=1.15 * max(float(known.max(initial=0)), 1e-3)
    )
    plot.line(np.arange(len(entropy)), entropy, svg.BLUE)
    first, last = known[[0, -1]] if len(known) else (np.nan, np.nan)
    alt = f"Line chart: the entropy of the responsibilities goes from {number(first, 3)} to {number(last, 3)} nats per row."
    caption = (
        f"Mean entropy of the responsibilities of a row. It is 0 where each row belongs to one {record.words.component} "
        f"with certainty, and log {record.k} = {number(float(np.log(record.k)), 3)} where all are equally likely."
    )
    return Chart("How certain the labels are", plot.svg(alt), caption)


def sizes_over_time(record: Record) -> Chart | None:
    """Return effective rows by iteration; None if the history has fewer than two."""
    if not record.has("n_effective") or record.model.sizes["iteration"] < 2 or record.k < 2:
        return None
    share = record.array("n_effective")
    share = share / share.sum(axis=1, keepdims=True)
    few = record.k <= len(svg.CYCLE)
    plot = Plot("iteration", f"share of the {record.row[1]}, %", whole_x=True, low=0)
    for k in range(record.k):
        thin = 1.8 if few else 0.9 if record.k <= 60 else 0.5
        plot.line(
            np.arange(len(share)), 100 * share[:, k], svg.CYCLE[k] if few else svg.BLUE, str(k) if few else "", thin
        )
    alt = (
        f"Line chart of {record.k} {record.words.component} sizes by iteration; at the end the largest holds "
        f"{percent(share[-1].max())} of the {record.row[1]} and the smallest {percent(share[-1].min())}."
    )
    caption = f"Effective {record.row[1]} of each {record.words.component} at each E-step: the sum of its responsibilities. A jump is a reset."
    return Chart("Sizes by iteration", plot.svg(alt), caption)


def sizes(record: Record) -> Chart | None:
    """Return the component weights, in stored order; None for fewer than two."""
    if record.k < 2:
        return None
    component, components = record.words.component, record.words.components
    weights = 100 * record.weights
    plot = Plot(component, f"share of the {record.row[1]}, %", whole_x=True, low=0)
    if record.k <= BARS:
        plot.bars(weights, svg.BLUE)
    else:
        plot.line(np.arange(record.k), weights, svg.BLUE)
    plot.rule(100 / record.k, svg.ORANGE, "equal shares")
    largest, smallest = percent(record.weights.max()), percent(record.weights.min())
    alt = f"Bar chart of the sizes of {number(record.k)} {components}: largest {largest}, smallest {smallest}."
    caption = f"From {largest} to {smallest} of the {record.row[1]}{_extremes(record)}. Numbers are those of labels.zarr and begin with 0."
    return Chart(f"{component.capitalize()} sizes", plot.svg(alt), caption)


def _extremes(record: Record) -> str:
    """`, about 12,345 to 67 rows`: the largest and smallest component."""
    n = record.attrs.get("n_rows")
    if not isinstance(n, (int, float)):
        return ""
    return f", about {number(round(n * record.weights.max()))} to {number(round(n * record.weights.min()))} of them"


def speed(passes: list[dict[str, Any]]) -> Chart | None:
    """Return rows per second by pass; None with fewer than three timed passes."""
    speeds = np.array([entry["rows"] / entry["seconds"] for entry in passes if entry["seconds"] > 0])
    if len(speeds) < 3:
        return None
    scale, unit = (1e6, "million rows/s") if speeds.max() >= 1e6 else (1e3, "thousand rows/s")
    if speeds.max() < 2e3:
        scale, unit = 1, "rows/s"
    plot = Plot("pass", unit, height=180, whole_x=True, low=0, high=1.15 * speeds.max() / scale)
    plot.line(np.arange(1, len(speeds) + 1), speeds / scale, svg.GREEN, width=1.8)
    alt = f"Line chart of the speed of {len(speeds)} passes, from {rate(speeds.min())} to {rate(speeds.max())}."
    caption = f"Median {rate(float(np.median(speeds)))}; slowest {rate(speeds.min())}, fastest {rate(speeds.max())}."
    return Chart("Speed, pass by pass", plot.svg(alt), caption)
