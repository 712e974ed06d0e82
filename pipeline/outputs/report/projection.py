"""Components over a sample of the rows, seen in one or two dimensions.

Two features are drawn as they are, more are projected on the sample's first two principal axes. A Gaussian is drawn as
the ellipse two standard deviations around its mean, which holds 1 - exp(-2) = 86 % of it in the plane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.outputs.report import svg
from pipeline.outputs.report.figures import Chart
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.words import percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEATURES_IN_TABLE = 12
LABELLED = 40  # components with a number beside their mean


@dataclass(frozen=True)
class Space:
    """Where rows are drawn: in the units of the data if the way back from the model is known.

    matrix, offset : shown = x @ matrix + offset; None for the identity.
    """

    matrix: np.ndarray | None
    offset: np.ndarray | None

    def points(self, x: np.ndarray) -> np.ndarray:
        """x : (..., d) rows of the model's space."""
        return x if self.matrix is None or self.offset is None else x @ self.matrix + self.offset

    def covariances(self, sigma: np.ndarray) -> np.ndarray:
        """sigma : (k, d, d)."""
        return sigma if self.matrix is None else np.asarray(self.matrix.T @ sigma @ self.matrix)


def data_space(record: Record) -> Space:
    """The data's own units where the run stored the way back, else the model's."""
    if record.has("preprocess_inverse"):
        return Space(record.array("preprocess_inverse"), record.array("preprocess_offset"))
    return Space(None, None)


def full_covariances(record: Record) -> np.ndarray | None:
    """(k, d, d) whatever the type; None for a model without covariances."""
    if not record.has("covariances"):
        return None
    return _EXPAND[str(record.attrs.get("covariance_type"))](
        record.array("covariances"), record.k, record.means.shape[1]
    )


_EXPAND: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "full": lambda c, k, d: c,
    "tied": lambda c, k, d: np.broadcast_to(c, (k, d, d)),
    "diag": lambda c, k, d: c[:, :, None] * np.eye(d),
    "spherical": lambda c, k, d: c[:, None, None] * np.eye(d),
}


@dataclass(frozen=True)
class Plane:
    """Two dimensions to look at rows in: shown = (x in the space - centre) @ axes.

    centre : (D,).  axes : (D, 2), orthonormal.  names : of the axes.  where : both in words.  sample : (n, 2), shown rows.
    """

    space: Space
    centre: np.ndarray
    axes: np.ndarray
    names: tuple[str, str]
    where: str
    sample: np.ndarray

    def points(self, x: np.ndarray) -> np.ndarray:
        """x : (..., d) rows of the model's space. Returns (..., 2)."""
        return np.asarray((self.space.points(x) - self.centre) @ self.axes)

    def covariances(self, sigma: np.ndarray) -> np.ndarray:
        """sigma : (k, d, d). Returns (k, 2, 2)."""
        return np.asarray(self.axes.T @ self.space.covariances(sigma) @ self.axes)


def plane_of(record: Record) -> Plane | None:
    """The two features, or of more the first two principal axes of the sample; None without a sample or with one feature."""
    if not record.has("sample") or len(record.array("sample")) < 2:
        return None
    space = data_space(record)
    sample = space.points(record.array("sample"))
    d = sample.shape[1]
    if d == 1:
        return None
    if d == 2:
        names = feature_names(record)
        return Plane(space, np.zeros(2), np.eye(2), (names[0], names[1]), "the two features", sample)
    centre = sample.mean(axis=0)
    _, spread, axes = np.linalg.svd(sample - centre, full_matrices=False)
    plane = _signed(axes[:2]).T
    explained = spread**2 / max(float((spread**2).sum()), np.finfo(float).tiny)
    first, second = (f"principal axis {i + 1}, {percent(float(explained[i]))} of the variance" for i in range(2))
    where = "the sample's first two principal axes"
    return Plane(space, centre, plane, (first, second), where, (sample - centre) @ plane)


def _signed(axes: np.ndarray) -> np.ndarray:
    """Axes whose largest entry is positive: an eigenvector's sign is anybody's choice."""
    peak = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axes * np.where(peak < 0, -1, 1))


def scene(record: Record) -> Chart | None:
    """The components over the sampled rows; None without a sample."""
    plane = plane_of(record)
    if plane is None:
        return _line(record)
    figure, axes = svg.new_figure(4.2)
    shaded = _shade(axes, record, plane)
    _draw(axes, record, plane)
    axes.autoscale_view()
    axes.grid(axis="x", color=svg.RULE, linewidth=0.8)
    svg.label_axes(axes, *plane.names)
    svg.number_ticks(axes)
    axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())
    what = "centres" if record.family == "kmeans" else "means"
    ellipses = " with ellipses of two standard deviations, which hold 86 % of a component" if shaded else ""
    shade = f" Shading is the density of the mixture: {_NESTED} of it." if shaded else ""
    rows = plural(len(plane.sample), "sampled row")
    caption = f"Dots are {rows}, on {plane.where}; circles are the {what}{ellipses}.{shade}"
    alt = f"Scatter plot of {rows} and {plural(record.k, record.noun)} on {plane.where}."
    return Chart(f"{record.noun.capitalize()}s over the data", svg.to_svg(figure, "scene", alt), caption)


def snapshot(record: Record, plane: Plane, name: str, alt: str) -> Markup:
    """The components over the sampled rows, small: one of several beside each other, which share their limits."""
    figure, axes = svg.new_figure(2.9, 3.4)
    _draw(axes, record, plane)
    for limits, shown in ((axes.set_xlim, plane.sample[:, 0]), (axes.set_ylim, plane.sample[:, 1])):
        pad = 0.06 * float(np.ptp(shown)) or 1.0
        limits(shown.min() - pad, shown.max() + pad)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    return svg.to_svg(figure, name, alt, dpi=120)


_HELD = (0.95, 0.8, 0.6, 0.4, 0.2)
_NESTED = "its regions hold 20, 40, 60, 80 and 95 %"


def _shade(axes: Axes, record: Record, plane: Plane) -> bool:
    """The mixture's density in the plane as nested regions; whether the model has one."""
    sigma = full_covariances(record)
    if sigma is None:
        return False
    sides = [(float(v.min()), float(v.max())) for v in plane.sample.T]
    x, y = (np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 110) for low, high in sides)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    density = np.zeros(grid.shape[:2])
    for weight, mean, flat in zip(record.weights, plane.points(record.means), plane.covariances(sigma), strict=True):
        values, vectors = np.linalg.eigh(flat)
        # What is thinner than the grid would fall between its points.
        spread = np.maximum(values, [(0.5 * (v[1] - v[0])) ** 2 + np.finfo(float).tiny for v in (x, y)])
        z = ((grid - mean) @ vectors) ** 2 / spread
        density += weight * np.exp(-z.sum(axis=-1) / 2) / np.sqrt(spread.prod())
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) / max(float(falling.sum()), np.finfo(float).tiny)
    levels = np.unique([falling[min(int(np.searchsorted(mass, held)), falling.size - 1)] for held in _HELD])
    for level in levels:  # one above the other: where more of them lie, it is darker
        if level < falling[0]:
            axes.contourf(x, y, density, levels=[level, falling[0]], colors=[svg.SKY], alpha=0.16)
    return True


def _draw(axes: Axes, record: Record, plane: Plane) -> None:
    """Sampled rows as dots, means as circles, covariances as ellipses."""
    from matplotlib.patches import Ellipse

    sample, means, sigma = plane.sample, plane.points(record.means), full_covariances(record)
    sigma = None if sigma is None else plane.covariances(sigma)
    size = 12 if len(sample) <= 500 else 5
    axes.scatter(sample[:, 0], sample[:, 1], s=size, color=svg.GREY, alpha=0.45, linewidths=0, rasterized=True)
    few = record.k <= len(svg.CYCLE)
    for k, mean in enumerate(means):
        colour = svg.CYCLE[k] if few else svg.BLUE
        if sigma is not None:
            values, vectors = np.linalg.eigh(sigma[k])
            width, height = 4 * np.sqrt(np.maximum(values, 0))  # a diameter of two deviations either side
            angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
            line = 2.2 if few else 1.1 if record.k <= 60 else 0.6
            axes.add_patch(
                Ellipse((mean[0], mean[1]), width, height, angle=angle, fill=False, color=colour, linewidth=line)
            )
        axes.plot(*mean, "o", color=colour, markersize=7 if few else 4, markeredgecolor=svg.PAPER, markeredgewidth=1)
        if record.k <= LABELLED:
            axes.annotate(
                str(k), mean, (5, 4), textcoords="offset points", color=svg.INK, fontsize=11, annotation_clip=True
            )


def _line(record: Record) -> Chart | None:
    """A histogram, of rows of one feature."""
    if not record.has("sample") or len(record.array("sample")) < 2:
        return None
    space, sigma = data_space(record), full_covariances(record)
    sample, means = space.points(record.array("sample"))[:, 0], space.points(record.means)[:, 0]
    variances = None if sigma is None else space.covariances(sigma)[:, 0, 0]
    figure, axes = svg.new_figure()
    axes.hist(sample, bins=min(60, max(10, len(sample) // 12)), density=True, color=svg.GREY, alpha=0.45)
    if variances is not None:
        x = np.linspace(sample.min(), sample.max(), 400)
        z = (x[:, None] - means) ** 2 / variances
        density = record.weights * np.exp(-z / 2) / np.sqrt(2 * np.pi * variances)
        if record.k > 1:
            axes.plot(x, density, color=svg.BLUE, linewidth=1.3)
        axes.plot(x, density.sum(axis=1), color=svg.ORANGE, linewidth=2.2, label="mixture")
        svg.legend(axes, loc="upper right")
    else:
        for mean in means:
            axes.axvline(mean, color=svg.BLUE, linewidth=1.6)
    svg.label_axes(axes, feature_names(record)[0], "density")
    svg.number_ticks(axes)
    caption = f"Histogram of {plural(len(sample), 'sampled row')}" + (
        "; lines mark the centres." if variances is None else "; the components in blue, their sum in orange."
    )
    alt = f"Histogram of {plural(len(sample), 'sampled row')} with {plural(record.k, 'component')}."
    return Chart(f"{record.noun.capitalize()}s over the data", svg.to_svg(figure, "scene", alt), caption)


def feature_names(record: Record) -> list[str]:
    """Names of the shown features: the stored ones, else `feature 0`, `feature 1`."""
    named = record.data.get("features")
    axis = "raw_feature" if record.has("preprocess_inverse") else "feature"
    count = int(record.model.sizes.get(axis, record.means.shape[1]))
    if isinstance(named, list) and len(named) == count:
        return [str(name) for name in named]
    if axis in record.model.coords:
        return [str(name) for name in record.model[axis].values]
    return [f"feature {i}" for i in range(count)]


@dataclass(frozen=True)
class MeansTable:
    """Means, deviations and standard errors of the means in the data's units, one line a component."""

    features: list[str]
    means: np.ndarray
    deviations: np.ndarray | None
    hidden: int
    errors: np.ndarray | None


def means_table(record: Record) -> MeansTable:
    """The features in which the components differ most, at most `FEATURES_IN_TABLE`, in the data's order."""
    space = data_space(record)
    means = space.points(record.means)
    d = means.shape[1]
    between = np.average(
        (means - np.average(means, axis=0, weights=record.weights)) ** 2, axis=0, weights=record.weights
    )
    if record.has("sample"):
        spread = space.points(record.array("sample")).var(axis=0)
        between = np.divide(between, spread, out=np.zeros(d), where=spread > 0)
    kept = np.sort(np.argsort(-between, kind="stable")[:FEATURES_IN_TABLE])
    names = feature_names(record)
    # After a map they are not the data's: that would take how the errors of one mean vary together.
    errors = record.array("means_se")[:, kept] if record.has("means_se") and space.matrix is None else None
    return MeansTable([names[i] for i in kept], means[:, kept], _deviations(record, space, kept), d - len(kept), errors)


def _deviations(record: Record, space: Space, kept: np.ndarray) -> np.ndarray | None:
    """(k, kept) standard deviations; one component at a time, since (k, d, d) may be large."""
    if not record.has("covariances"):
        return None
    kind, stored, d = str(record.attrs.get("covariance_type")), record.array("covariances"), record.means.shape[1]
    rows = []
    for k in range(record.k):
        own = stored if kind == "tied" else stored[k : k + 1]
        sigma = _EXPAND[kind](own, 1, d)
        variance = np.diagonal(space.covariances(sigma)[0])[kept]
        rows.append(np.sqrt(np.maximum(variance, 0)))
    return np.array(rows)


def heatmap(record: Record) -> Chart | None:
    """Means of many features as colours, in deviations of the sample; None where the table shows them all."""
    space = data_space(record)
    means = space.points(record.means)
    if means.shape[1] <= FEATURES_IN_TABLE or record.k < 2 or not record.has("sample"):
        return None
    sample = space.points(record.array("sample"))
    scale = sample.std(axis=0)
    z = (means - sample.mean(axis=0)) / np.where(scale > 0, scale, 1)
    limit = max(float(np.quantile(np.abs(z), 0.995)), 1e-12)
    figure, axes = svg.new_figure(min(5.6, 2.2 + 0.14 * record.k))
    image = axes.imshow(z, cmap="cividis", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=svg.MUTED, labelsize=11, length=0)
    svg.label_axes(axes, "feature", record.noun)
    svg.count_ticks(axes)
    svg.count_ticks(axes, "y")
    caption = (
        "How far each mean lies from the sample's, in standard deviations of the feature: yellow above, blue below."
    )
    alt = f"Heat map of {plural(record.k, 'mean')} over {plural(z.shape[1], 'feature')}."
    return Chart("Means, feature by feature", svg.to_svg(figure, "means", alt), caption)
