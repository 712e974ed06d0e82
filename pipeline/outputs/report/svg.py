"""Charts as inline SVG that belong to the page: its font, its text colour, its palette, in light and in dark.

Matplotlib draws with the Okabe-Ito colours (safe for colour-blind readers: Okabe and Ito 2008); on the way out each
colour becomes a CSS variable, so the style sheet decides how it looks on a dark page.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from pipeline.outputs.report.words import number, power_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE = "#56b4e9", "#cc79a7"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# Nobody would draw in these: they stand for the page's own text, faint text, rules and paper.
INK, MUTED, RULE, PAPER = "#010203", "#040506", "#070809", "#fafbfc"
GREY = "#8c8c8c"  # rasterised points cannot follow the theme: a grey that shows on both

_VARIABLES = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
    SKY: "var(--sky)",
    PURPLE: "var(--purple)",
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
}
WIDTH = 5.4  # inches of 72 units: 389 wide, about a phone, so that 11-unit text stays legible there


def new_figure(height: float = 3.2, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty chart of so many inches of 72 units, with no state shared with anybody's pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=MUTED, length=0, labelsize=11, pad=5)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes; the vertical one is named above it, where no head has to turn."""
    axes.set_xlabel(x, color=MUTED, fontsize=11, labelpad=6)
    axes.set_title(y, color=MUTED, fontsize=11, loc="left", pad=12)


def legend(axes: Axes, **where: Any) -> None:
    """A legend without a box, in the page's text colour."""
    axes.legend(frameon=False, fontsize=11, labelcolor=INK, handlelength=1.4, **where)


def count_ticks(axes: Axes, which: str = "x", most: int = 6) -> None:
    """At most so many whole numbers with grouped digits on an axis that counts."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(most, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number_ticks(axes: Axes) -> None:
    """Grouped digits and real minus signs on the vertical axis, with as many decimals as its step needs."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")))


def not_flat(axes: Axes, values: np.ndarray) -> None:
    """A vertical range in which a line that hardly moves looks so: rounding is no mountain range."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    least = 1e-6 * max(abs(low), abs(high))
    if high - low < least:
        axes.set_ylim((low + high) / 2 - least, (low + high) / 2 + least)


def log_ticks(axes: Axes) -> None:
    """A logarithmic vertical axis that says 10⁻³ in plain text."""
    import math

    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(round(math.log10(value)))))


def to_svg(figure: Figure, name: str, alt: str, dpi: int = 216) -> Markup:
    """The chart as an `<svg>` element.

    name : unique in the page; prefixes the ids inside, which otherwise collide between charts.
    alt : what a reader who does not see the chart should know.
    dpi : of what is rasterised; 72 is a unit of the drawing.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None})
    body = buffer.getvalue()
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None  # matplotlib always writes one
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = body[body.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(font(?:-family)?): ([\d.]+px )?[^;\"]*(?=[;\"])", _page_font, body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    label = escape(alt, quote=True)
    return Markup(f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{body}')


def _page_font(match: re.Match[str]) -> str:
    return f"font-size: {match[2].strip()}" if match[2] else "font-family: inherit"
