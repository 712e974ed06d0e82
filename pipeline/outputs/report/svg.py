"""Charts as inline SVG with the page's font, text colour and palette, in light and in dark.

A `Plot` collects marks in the units of the data and is drawn once their ranges are known. Colours are variables of
style.css: the Okabe-Ito palette (safe for colour-blind readers: Okabe and Ito 2008), darkened or lightened until each has
a contrast of 3 : 1 against the page (WCAG 2.2, criterion 1.4.11).
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.outputs.report.formatting import MINUS, number, power_of_ten

BLUE, ORANGE, GREEN, RED = "var(--blue)", "var(--orange)", "var(--green)", "var(--red)"
PURPLE, SKY, GREY = "var(--purple)", "var(--sky)", "var(--grey)"
INK, MUTED, PAPER = "currentColor", "var(--muted)", "var(--paper)"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# Pixels cannot follow the theme: these two have a contrast of 3 : 1 against the light page and the dark one.
PIXEL_BLUE, PIXEL_ORANGE = (0, 114, 178), (192, 106, 0)
WIDTH = 380  # units: about a phone, so that text of 11 units stays legible there
TEXT, DIGIT = 11, 6.6  # units: the size of text, and the width of its widest digit in common fonts
FLAT = 1e-6  # of the values: a line that moves less looks flat

Values = Any  # array-like of floats
Mark = Callable[["Scale", "Scale"], str]


@dataclass(frozen=True)
class Chart:
    """A drawing with its heading and a caption that explains it."""

    title: str
    picture: Markup
    caption: str


@dataclass(frozen=True)
class Scale:
    """Map from values to units of the drawing: low and high are drawn at `start` and `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, values: Values) -> np.ndarray:
        low, high, at = _logs(self.low, self.high, values) if self.log else (self.low, self.high, np.asarray(values))
        return np.asarray(self.start + (at - low) * (self.stop - self.start) / (high - low))

    @property
    def factor(self) -> float:
        """Units of the drawing per unit of a linear axis."""
        return (self.stop - self.start) / (self.high - self.low)


def _logs(*values: Values) -> list[np.ndarray]:
    return [np.log10(value) for value in values]


class Plot:
    """A chart with two axes.

    Parameters
    ----------
    x, y : str
        Names of the axes, with units.
    height, width : float
        Of the drawing, in units.
    whole_x, whole_y : bool
        Whether an axis counts: its ticks are whole numbers.
    low, high : float, optional
        Ends of the vertical axis; by default those of the marks and a margin.
    log : bool
        Whether the vertical axis is logarithmic.
    bare : bool
        Whether to leave out ticks and names: one of several drawings that share their axes.
    """

    def __init__(
        self,
        x: str,
        y: str,
        *,
        height: float = 232,
        width: float = WIDTH,
        whole_x: bool = False,
        whole_y: bool = False,
        low: float | None = None,
        high: float | None = None,
        log: bool = False,
        bare: bool = False,
    ) -> None:
        self._names, self._size, self._whole = (x, y), (width, height), (whole_x, whole_y)
        self._ends, self._log, self._bare = (low, high), log, bare
        self._marks: list[Mark] = []
        self._legend: list[str] = []
        self._x: list[float] = []
        self._y: list[float] = []

    def see(self, x: Values, y: Values) -> None:
        """Extend the axes to these values."""
        for seen, values in ((self._x, x), (self._y, y)):
            finite = np.asarray(values, dtype=float)
            finite = finite[np.isfinite(finite)]
            seen += [float(finite.min()), float(finite.max())] if finite.size else []

    def line(
        self, x: Values, y: Values, colour: str, label: str = "", width: float = 2, dots: bool = False, dash: str = ""
    ) -> None:
        """Draw a line through points, with gaps at NaN."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        self.see(x, y)

        def draw(to_x: Scale, to_y: Scale) -> str:
            known = np.isfinite(y)
            starts = known & ~np.concatenate([[False], known[:-1]])
            points = zip(starts[known], to_x(x[known]), to_y(y[known]), strict=True)
            path = "".join(f"{'M' if start else 'L'}{a:.1f} {b:.1f}" for start, a, b in points)
            stroke = f'stroke="{colour}" stroke-width="{width}"{dash and f" stroke-dasharray={dash!r}"}'
            drawn = f'<path d="{path}" fill="none" stroke-linejoin="round" {stroke}/>'
            return drawn + (_round_dots(to_x(x[known]), to_y(y[known]), colour, 5) if dots else "")

        self._marks.append(draw)
        self._add_to_legend(colour, label)

    def rule(self, y: float, colour: str, label: str) -> None:
        """Draw a dashed line across the chart."""
        self.see([], [y])

        def draw(to_x: Scale, to_y: Scale) -> str:
            ends = f'x1="{to_x.start:.1f}" x2="{to_x.stop:.1f}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"'
            return f'<line {ends} stroke="{colour}" stroke-width="1.4" stroke-dasharray="5 4"/>'

        self._marks.append(draw)
        self._add_to_legend(colour, label)

    def bars(self, heights: Values, colour: str) -> None:
        """Draw a bar at each of 0, 1, 2 and so on."""
        self.bins(np.arange(len(heights) + 1) - 0.5, heights, colour, 0.78 if len(heights) <= 60 else 0.92)

    def bins(self, edges: Values, heights: Values, colour: str, share: float = 1) -> None:
        """Draw bars between edges, each with a share of the width."""
        edges, heights = np.asarray(edges, dtype=float), np.asarray(heights, dtype=float)
        self.see(edges, [0, *heights])

        def draw(to_x: Scale, to_y: Scale) -> str:
            zero, width = float(to_y(0.0)), np.diff(to_x(edges)) * share
            left = to_x((edges[:-1] + edges[1:]) / 2) - width / 2
            bars = zip(left, to_y(heights), width, strict=True)
            drawn = [f"M{x:.1f} {zero:.1f}V{top:.1f}h{across:.1f}V{zero:.1f}z" for x, top, across in bars]
            return f'<path d="{"".join(drawn)}" fill="{colour}"/>'

        self._marks.append(draw)

    def area(self, x: Values, low: Values, high: Values, colour: str) -> None:
        """Draw a pale area between two lines."""
        corners = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])
        self.see(*corners)

        def draw(to_x: Scale, to_y: Scale) -> str:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(to_x(corners[0]), to_y(corners[1]), strict=True))
            return f'<polygon points="{points}" fill="{colour}" fill-opacity="0.14"/>'

        self._marks.append(draw)

    def dots(self, x: Values, y: Values, colour: str, size: float, label: str = "", see: bool = True) -> None:
        """Draw a dot at each point."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if see:
            self.see(x, y)
        self._marks.append(lambda to_x, to_y: _round_dots(to_x(x), to_y(y), colour, size))
        self._add_to_legend(colour, label)

    def ring(self, x: float, y: float, label: str) -> None:
        """Draw a circle around one point."""

        def draw(to_x: Scale, to_y: Scale) -> str:
            return (
                f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="7" fill="none" stroke="{INK}" stroke-width="1.4"/>'
            )

        self._marks.append(draw)
        self._legend.append(f'<span><i class="ring"></i>{escape(label)}</span>')

    def ellipse(self, centre: np.ndarray, covariance: np.ndarray, colour: str, width: float) -> None:
        """Draw the curve two standard deviations around a centre. centre : (2,).  covariance : (2, 2)."""

        def draw(to_x: Scale, to_y: Scale) -> str:
            stretch = np.array([to_x.factor, to_y.factor])
            values, vectors = np.linalg.eigh(covariance * np.outer(stretch, stretch))
            a, b = 2 * np.sqrt(np.maximum(values, 0))
            place = f"translate({to_x(centre[0]):.1f} {to_y(centre[1]):.1f})"
            turn = f"rotate({math.degrees(math.atan2(vectors[1, 0], vectors[0, 0])):.2f})"
            stroke = f'fill="none" stroke="{colour}" stroke-width="{width}"'
            return f'<ellipse rx="{a:.1f}" ry="{b:.1f}" transform="{place} {turn}" {stroke}/>'

        self._marks.append(draw)

    def text(self, x: float, y: float, text: str) -> None:
        """Draw a few characters at the upper right of a point."""

        def draw(to_x: Scale, to_y: Scale) -> str:
            return f'<text x="{to_x(x) + 5:.1f}" y="{to_y(y) - 4:.1f}" fill="{INK}">{escape(text)}</text>'

        self._marks.append(draw)

    def image(self, pixels: np.ndarray, x: tuple[float, float], y: tuple[float, float], smooth: bool = False) -> None:
        """Draw pixels over an area. pixels : (rows, columns, 4) uint8, the first row at the top, which is y[1]."""
        source = png(pixels)

        def draw(to_x: Scale, to_y: Scale) -> str:
            left, top, right, bottom = to_x(x[0]), to_y(y[1]), to_x(x[1]), to_y(y[0])
            area = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
            style = "" if smooth else ' style="image-rendering: pixelated"'
            return f'<image {area} preserveAspectRatio="none" href="{source}"{style}/>'

        self._marks.append(draw)

    def cells(self, pixels: np.ndarray, legend: str, *sides: tuple[float, float]) -> None:
        """Draw a pixel for each cell of a table.

        legend : spans of HTML, such as those of `ramp`.  sides : both ends of the axes; by default these count columns, and rows from the top.
        """
        rows, columns = pixels.shape[:2]
        self._legend.append(legend)
        x, y = sides or ((-0.5, columns - 0.5), (rows - 0.5, -0.5))
        self.exactly(x, y)
        self.image(pixels, x, y)

    def exactly(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Set both ends of both axes."""
        self._exact = x, y

    _exact: tuple[tuple[float, float], ...] = ()

    def _add_to_legend(self, colour: str, label: str) -> None:
        if label:
            self._legend.append(f'<span><i style="background: {colour}"></i>{escape(label)}</span>')

    def _range(self, axis: int, seen: Sequence[float]) -> tuple[float, float]:
        """Both ends of an axis."""
        if self._exact:
            return self._exact[axis]
        margin = (0.03, 0.06)[axis]
        low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
        if high - low <= FLAT * max(abs(low), abs(high)):
            pad = FLAT * max(abs(low), abs(high)) or 1.0
            return low - pad, high + pad
        pad = margin * (high - low)
        return low - pad, high + pad

    def _scales(self) -> tuple[Scale, Scale, list[tuple[float, str]], list[tuple[float, str]]]:
        """Both scales, and the ticks of both axes with their labels."""
        width, height = self._size
        x_low, x_high = self._range(0, self._x)
        if self._log:
            logs = [math.log10(value) for value in self._y if value > 0]
            low, high = self._range(1, logs)
            y_ticks = [(10.0**power, power_of_ten(power)) for power in _powers(low, high)]
            y_low, y_high = 10.0**low, 10.0**high
        else:
            y_low, y_high = self._range(1, self._y)
            y_low, y_high = (
                end if given is None else given for given, end in zip(self._ends, (y_low, y_high), strict=True)
            )
            y_ticks = ticks(y_low, y_high, 6, self._whole[1])
        x_ticks = ticks(x_low, x_high, 7, self._whole[0])
        if self._bare:
            return Scale(x_low, x_high, 1, width - 1), Scale(y_low, y_high, height - 1, 1), [], []
        left = 8 + DIGIT * max((len(text) for _, text in y_ticks), default=1)
        bottom = height - 3.2 * TEXT
        return Scale(x_low, x_high, left, width - 6), Scale(y_low, y_high, bottom, 8, self._log), x_ticks, y_ticks

    def svg(self, alt: str) -> Markup:
        """Return the chart as an `<svg>` element below the name of its vertical axis and its legend.

        alt : text for a reader who does not see the chart.
        """
        to_x, to_y, x_ticks, y_ticks = self._scales()
        width, height = self._size
        left, right, bottom, top = to_x.start, to_x.stop, to_y.start, to_y.stop
        grid = 0 if self._exact else right - left
        parts = [
            f'<path d="M{left:.1f} {to_y(y):.1f}h{grid:.1f}" class="grid"/>'
            f'<text x="{left - 6:.1f}" y="{to_y(y) + 0.35 * TEXT:.1f}" class="tick" text-anchor="end">{text}</text>'
            for y, text in y_ticks
        ]
        parts += [
            f'<text x="{to_x(x):.1f}" y="{bottom + 1.5 * TEXT:.1f}" class="tick" text-anchor="middle">{text}</text>'
            for x, text in x_ticks
        ]
        inner = f'x="{left - 4:.1f}" y="{top - 4:.1f}" width="{right - left + 8:.1f}" height="{bottom - top + 8:.1f}"'
        box = f"{left - 4:.1f} {top - 4:.1f} {right - left + 8:.1f} {bottom - top + 8:.1f}"
        marks = "".join(draw(to_x, to_y) for draw in self._marks)
        parts.append(f'<svg {inner} viewBox="{box}">{marks}</svg>')
        if not self._bare:
            parts.append(f'<path d="M{left:.1f} {bottom:.1f}H{right:.1f}" class="base"/>')
            middle, foot = (left + right) / 2, height - 3
            parts.append(f'<text x="{middle:.1f}" y="{foot:.1f}" text-anchor="middle">{escape(self._names[0])}</text>')
        name = f'<span class="axis">{escape(self._names[1])}</span>'
        legend = "" if self._bare else f'<p class="legend">{name}{"".join(self._legend)}</p>'
        drawing = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt, quote=True)}"'
        return Markup(f'{legend}<svg class="chart" {drawing}>{"".join(parts)}</svg>')


def _round_dots(x: np.ndarray, y: np.ndarray, colour: str, size: float) -> str:
    """One path for all: lines of no length with round ends."""
    path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
    return f'<path d="{path}" stroke="{colour}" stroke-width="{size}" stroke-linecap="round"/>'


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Return round numbers in a range, at most `most` steps, with their labels.

    >>> ticks(0, 45, 5), ticks(-0.5, 0.5, 5, whole=True)
    ([(0.0, '0'), (10.0, '10'), (20.0, '20'), (30.0, '30'), (40.0, '40')], [(0.0, '0')])
    """
    low, high = min(low, high), max(low, high)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    factor = next(n for n in (1, 2, 2.5, 5, 10) if n * power >= raw * (1 - 1e-9) and not (whole and n == 2.5))
    step = max(factor * power, 1.0) if whole else factor * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (factor == 2.5))
    values = [i * step for i in range(first, last + 1)]
    if decimals > 5 and max(abs(low), abs(high)) < 1e-3:
        return [(value, number(value, 3)) for value in values]
    return [(value, f"{value:,.{decimals}f}".replace("-", MINUS) if value else "0") for value in values]


def _powers(low: float, high: float) -> range:
    """Powers of ten between two logarithms, seven or fewer."""
    first, last = math.ceil(low), math.floor(high)
    return range(first, last + 1, max(1, -(-(last - first) // 6)))


def shades(share: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (rows, columns, 4) pixels of a colour, denser for larger shares; transparent for NaN."""
    alpha = np.round(255 * np.nan_to_num(np.clip(share, 0, 1)))
    return np.concatenate([np.broadcast_to(colour, (*share.shape, 3)), alpha[..., None]], axis=-1).astype(np.uint8)


def ramp(low: str, high: str, colours: Sequence[tuple[int, int, int]]) -> str:
    """Return the legend of an area of shades: one colour from transparent, or two that meet there."""
    stops = (
        [f"rgb{colours[0]}", "transparent", f"rgb{colours[1]}"]
        if len(colours) == 2
        else ["transparent", f"rgb{colours[0]}"]
    )
    return f'<span>{escape(low)}<i class="ramp" style="background: linear-gradient(to right, {", ".join(stops)})"></i>{escape(high)}</span>'


def png(pixels: np.ndarray) -> str:
    """Return pixels as the data URL of a PNG. pixels : (rows, columns, 2 to 4) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
