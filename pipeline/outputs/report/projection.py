"""Components over a sample of the rows, in one or two dimensions.

Two features are drawn directly, more are projected on the sample's first two principal axes. A covariance is drawn as
the ellipse two standard deviations around its mean, which holds 1 - exp(-2) = 86 % of a Gaussian in the plane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline.outputs.report import svg
from pipeline.outputs.report.formatting import number, percent, plural
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

FEATURES_IN_TABLE = 12
LABELLED = 40  # components with a number beside their mean
GRID = 160  # points across at which the density is computed


@dataclass(frozen=True)
class Space:
    """The space in which rows are drawn: in the units of the data if the inverse of the preprocessing is stored.

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
    """Return the data's units if the run stored the inverse of its preprocessing, else the model's."""
    if record.has("preprocess_inverse"):
        return Space(record.array("preprocess_inverse"), record.array("preprocess_offset"))
    return Space(None, None)


# By the dimensions of the array: (k, d, d) of covariances in any layout.
_EXPAND: dict[tuple[str, ...], Callable[[np.ndarray, int, int], np.ndarray]] = {
    ("component", "feature", "feature_2"): lambda c, k, d: c,
    ("feature", "feature_2"): lambda c, k, d: np.broadcast_to(c, (k, d, d)),
    ("component", "feature"): lambda c, k, d: c[:, :, None] * np.eye(d),
    ("component",): lambda c, k, d: c[:, None, None] * np.eye(d),
}


def covariances_in(space: Space | Plane, record: Record) -> np.ndarray | None:
    """Return the stored covariances in a space, (k, D, D), or a plane, (k, 2, 2); None for a model without them.

    One component after the other: as matrices, those of all may be hundreds of times as large as what is stored.
    """
    if record.spread is None:
        return None
    stored, several = record.array("covariances"), "component" in record.spread
    each = (stored[k : k + 1] if several else stored for k in range(record.k))
    found = [space.covariances(expanded(record.spread, one, 1, record.n_features)) for one in each]
    return np.concatenate(found)


def expanded(dims: tuple[str, ...], stored: np.ndarray, k: int, d: int) -> np.ndarray:
    """Return (k, d, d) covariances from an array with these dimensions."""
    return _EXPAND[dims](stored, k, d)


@dataclass(frozen=True)
class Plane:
    """Two dimensions: shown = (x in the space - centre) @ axes.

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
    """Return the two features, or the first two principal axes of the sample; None if components cannot be drawn."""
    if not record.has("sample") or record.location is None or len(record.array("sample")) < 2:
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
    where = "the first two principal axes of the sample"
    return Plane(space, centre, plane, (first, second), where, (sample - centre) @ plane)


def _signed(axes: np.ndarray) -> np.ndarray:
    """Axes whose largest entry is positive, because the sign of an eigenvector is arbitrary."""
    peak = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axes * np.where(peak < 0, -1.0, 1.0))


def scene(record: Record) -> Chart | None:
    """Return the components over the sampled rows; None without a sample, or without locations of components."""
    plane = plane_of(record)
    if plane is None:
        return _line(record) if record.location is not None else None
    words = record.words
    plot = Plot(*plane.names, height=300)
    shaded = _shade(plot, record, plane)
    _draw(plot, record, plane)
    ellipses = " with ellipses of two standard deviations, which hold 86 % of a Gaussian" if shaded else ""
    shade = f" The darker the blue, the denser the mixture: {_NESTED}." if shaded else ""
    rows = plural(len(plane.sample), "sampled row")
    caption = f"Small dots are {rows} on {plane.where}. Large dots are the {words.location}s{ellipses}.{shade}"
    alt = f"Scatter plot of {rows} and {plural(record.k, words.component, words.components)} on {plane.where}."
    return Chart(f"{words.components.capitalize()} over the data", plot.svg(alt), caption)


def snapshot(record: Record, plane: Plane, alt: str) -> Markup:
    """Return the same as a small chart, one of several with common limits."""
    plot = Plot(*plane.names, height=200, width=236, bare=True)
    _draw(plot, record, plane, 500)
    limits = []
    for shown in plane.sample.T:
        pad = 0.06 * float(np.ptp(shown)) or 1.0
        limits.append((float(shown.min()) - pad, float(shown.max()) + pad))
    plot.exactly(*limits)
    return plot.svg(alt)


_MASS = (0.95, 0.8, 0.6, 0.4, 0.2)
_NESTED = "its regions hold 20, 40, 60, 80 and 95 % of the probability"


def _shade(plot: Plot, record: Record, plane: Plane) -> bool:
    """Draw the density of a Gaussian mixture in the plane as nested regions; return whether the model is one."""
    sigma = covariances_in(plane, record)
    if sigma is None:
        return False
    sides = [(float(v.min()), float(v.max())) for v in plane.sample.T]
    x_side, y_side = ((low - 0.1 * (high - low), high + 0.1 * (high - low)) for low, high in sides)
    x, y = np.linspace(*x_side, GRID), np.linspace(*y_side, GRID)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    density = np.zeros(grid.shape[:2])
    centres = plane.points(record.positions)
    for weight, mean, flat in zip(record.weights, centres, sigma, strict=True):
        values, vectors = np.linalg.eigh(flat)
        # What is thinner than the grid would fall between its points.
        spread = np.maximum(values, [(0.5 * (v[1] - v[0])) ** 2 + np.finfo(float).tiny for v in (x, y)])
        z = ((grid - mean) @ vectors) ** 2 / spread
        density += weight * np.exp(-z.sum(axis=-1) / 2) / np.sqrt(spread.prod())
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) / max(float(falling.sum()), np.finfo(float).tiny)
    levels = np.unique([falling[min(int(np.searchsorted(mass, share)), falling.size - 1)] for share in _MASS])
    above = np.searchsorted(levels, density, side="right") / len(levels)
    plot.image(svg.shades(0.4 * above[::-1], svg.PIXEL_BLUE), x_side, y_side, smooth=True)
    plot.see(x_side, y_side)
    return True


def _draw(plot: Plot, record: Record, plane: Plane, most: int = 2000) -> None:
    """Sampled rows as small dots, means as large ones, covariances as ellipses."""
    sample, means, sigma = plane.sample[:most], plane.points(record.positions), covariances_in(plane, record)
    plot.dots(sample[:, 0], sample[:, 1], svg.GREY, 2.6 if len(sample) <= 500 else 1.6)
    few = record.k <= len(svg.CYCLE)
    for k, mean in enumerate(means):
        colour = svg.CYCLE[k] if few else svg.BLUE
        if sigma is not None:
            plot.ellipse(mean, sigma[k], colour, 2.2 if few else 1.1 if record.k <= 60 else 0.6)
        plot.dots(mean[:1], mean[1:], svg.PAPER, 9 if few else 6)
        plot.dots(mean[:1], mean[1:], colour, 7 if few else 4)
        if record.k <= LABELLED:
            plot.text(mean[0], mean[1], str(k))


def _line(record: Record) -> Chart | None:
    """A histogram, of rows of one feature."""
    if not record.has("sample") or len(record.array("sample")) < 2:
        return None
    space, sigma, words = data_space(record), covariances_in(data_space(record), record), record.words
    sample, means = space.points(record.array("sample"))[:, 0], space.points(record.positions)[:, 0]
    variances = None if sigma is None else sigma[:, 0, 0]
    heights, edges = np.histogram(sample, bins=min(60, max(10, len(sample) // 12)), density=True)
    plot = Plot(feature_names(record)[0], "density", low=0)
    plot.bins(edges, heights, svg.GREY, 0.92)
    rows = plural(len(sample), "sampled row")
    if variances is not None:
        x = np.linspace(sample.min(), sample.max(), 400)
        density = record.weights * np.exp(-((x[:, None] - means) ** 2) / variances / 2) / np.sqrt(2 * np.pi * variances)
        for k in range(record.k if record.k > 1 else 0):
            plot.line(x, density[:, k], svg.BLUE, words.components if k == 0 else "", 1.3)
        plot.line(x, density.sum(axis=1), svg.ORANGE, "mixture", 2.2)
        caption = f"Histogram of {rows}, and the density of the model."
    else:
        for k, mean in enumerate(means):
            plot.line([mean, mean], [0, heights.max()], svg.BLUE, f"{words.location}s" if k == 0 else "", 1.6)
        caption = f"Histogram of {rows}; the lines are the {words.location}s."
    alt = f"Histogram of {rows} with {plural(record.k, words.component, words.components)}."
    return Chart(f"{words.components.capitalize()} over the data", plot.svg(alt), caption)


def feature_names(record: Record) -> list[str]:
    """Return the names of the features in the data's space: the stored ones, else `feature 0`, `feature 1`."""
    named = record.data.get("features")
    axis = "raw_feature" if record.has("preprocess_inverse") else "feature"
    count = int(record.model.sizes.get(axis, record.n_features))
    if isinstance(named, list) and len(named) == count:
        return [str(name) for name in named]
    if axis in record.model.coords:
        return [str(name) for name in record.model[axis].values]
    return [f"feature {i}" for i in range(count)]


def heatmap(record: Record) -> Chart | None:
    """Return locations in many features as colours, in standard deviations of the sample; None if the table shows them all."""
    if record.location is None or record.k < 2 or not record.has("sample"):
        return None
    space, words = data_space(record), record.words
    means = space.points(record.positions)
    if means.shape[1] <= FEATURES_IN_TABLE:
        return None
    sample = space.points(record.array("sample"))
    scale = sample.std(axis=0)
    z = (means - sample.mean(axis=0)) / np.where(scale > 0, scale, 1)
    limit = max(float(np.quantile(np.abs(z), 0.995)), 1e-12)
    plot = Plot("feature", words.component, height=min(420, 170 + 10 * record.k), whole_x=True, whole_y=True)
    above = (z > 0)[..., None]
    pixels = np.where(above, svg.shades(z / limit, svg.PIXEL_ORANGE), svg.shades(-z / limit, svg.PIXEL_BLUE))
    plot.cells(pixels, svg.ramp(number(-limit, 2), number(limit, 2), (svg.PIXEL_BLUE, svg.PIXEL_ORANGE)))
    caption = (
        f"How far each {words.location} is from the sample's mean, in standard deviations of the feature: orange above, "
        "blue below."
    )
    alt = f"Heat map of {plural(record.k, words.location)} over {plural(z.shape[1], 'feature')}."
    return Chart(f"{words.location.capitalize()}s, feature by feature", plot.svg(alt), caption)
