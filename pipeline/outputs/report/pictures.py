"""Components as pictures: the mean, the directions of largest variance, and the most typical rows.

Pixels are affine in the model's features, pixels = features @ matrix + offset. So a mean maps as a point and a covariance
Σ as matrixᵀ Σ matrix, whose leading eigenvectors are the eigen-patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import png

CARDS = 48  # components shown one by one; with more, contact sheets show them all
CARDS_OF_MANY = 24
EIGEN = 5
TILE = 112  # pixels across that a tile is enlarged to, by a whole factor: twice what is shown, for dense screens
SHEET_TILE = 40
LARGEST = 96  # pixels across that a picture is reduced to
SHEET_COLUMNS = 20
IN_SMALL = 24  # components on the small sheet of one iteration


@dataclass(frozen=True)
class Picture:
    """A PNG with its displayed size and its text for readers who do not see it."""

    source: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Card:
    """One component."""

    component: int
    share: float
    picture: Picture
    rows: list[int]


@dataclass(frozen=True)
class Sheet:
    """The same view of every component, in reading order."""

    title: str
    picture: Picture


@dataclass(frozen=True)
class Gallery:
    """The component section of a run on pictures."""

    caption: str
    cards: list[Card]
    sheets: list[Sheet]
    columns: int = SHEET_COLUMNS
    shared: Picture | None = None


@dataclass(frozen=True)
class PixelMap:
    """pixels = features @ matrix + offset; None stands for the identity."""

    shape: tuple[int, int, int]
    matrix: np.ndarray | None
    offset: np.ndarray | None
    mean_free: bool

    def points(self, x: np.ndarray) -> np.ndarray:
        """Return pictures (..., height, width, channels). x : (..., d)."""
        flat = self._linear(x)
        return self._shaped(flat if self.offset is None else flat + self.offset)

    def directions(self, covariance: np.ndarray, count: int) -> np.ndarray:
        """Return the leading eigenvectors of a component's covariance in pixels, (count, height, width, channels).

        covariance : (d, d). Each is scaled so that its largest entry is 1, because the sign of an eigenvector is arbitrary.
        """
        from scipy.linalg import eigh

        in_pixels = self._linear(self._linear(covariance).T)
        pixels = len(in_pixels)
        vectors = eigh(in_pixels, subset_by_index=[max(0, pixels - count), pixels - 1])[1].T[::-1]
        return self._scaled(vectors)

    def principal_loadings(self, loadings: np.ndarray, count: int) -> np.ndarray:
        """Return the leading directions that factors explain, as `directions`. loadings : (d, q), known up to a rotation."""
        return self._scaled(np.linalg.svd(self._linear(loadings.T), full_matrices=False)[2][:count])

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        peak = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        return self._shaped(vectors / np.where(peak == 0, 1.0, peak))

    def _linear(self, x: np.ndarray) -> np.ndarray:
        return x if self.matrix is None else x @ self.matrix

    def _shaped(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(*flat.shape[:-1], *self.shape)


def pixel_map(record: Record) -> PixelMap | None:
    """Return the map from the model's features to pixels; None if rows are not pictures of their stated size."""
    size = record.data.get("size")
    if record.kind not in ("image", "patch") or not size:
        return None
    *planes, height, width = map(int, size)
    side, channels = math.prod(planes) * width, int(record.data.get("channels", 1))
    matrix = offset = None
    if record.has("preprocess_inverse"):
        matrix, offset = record.array("preprocess_inverse"), record.array("preprocess_offset")
    mean_free = record.kind == "patch" and bool(record.data.get("remove_mean"))
    if mean_free:
        from pipeline.data.patch import patch_basis

        basis = patch_basis((*planes, height, width), channels)
        matrix = basis.T if matrix is None else matrix @ basis.T
        offset = None if offset is None else offset @ basis.T
    pixels = record.n_features if matrix is None else matrix.shape[1]
    if pixels != height * side * channels or channels not in (1, 3):
        return None
    if planes:  # side by side
        order = np.moveaxis(np.arange(pixels).reshape(*planes, height, width, channels), 0, 1).ravel()
        matrix = (np.eye(pixels) if matrix is None else matrix)[:, order]
        offset = None if offset is None else offset[order]
    return PixelMap((height, side, channels), matrix, offset, mean_free)


def gallery(record: Record) -> Gallery | None:
    """Return all components as pictures; None if rows are no pictures, or components have no location."""
    pixels = pixel_map(record)
    if pixels is None or record.location is None:
        return None
    means = pixels.points(record.positions)
    typical, rows = _typical(record, pixels)
    many = record.k > CARDS
    shown = CARDS_OF_MANY if many else record.k
    # Every component's eigen-patches where that is quick, else those of the components shown one by one.
    eigen = _eigen(record, pixels, record.k if record.n_features <= 300 else shown)
    low, high = _ranges(means, typical, pixels)
    cards = []
    for k in range(shown):
        mean = _grey(means[k], low[k], high[k])
        near = [_grey(tile, low[k], high[k]) if rows[k, r] >= 0 else None for r, tile in enumerate(typical[k])]
        modes = [_grey(tile, -1, 1) for tile in eigen[k]] if k < len(eigen) else []
        alt = _alt(record, k, len(modes), sum(tile is not None for tile in near))
        cards.append(Card(k, float(record.weights[k]), _card_picture(mean, modes, near, alt), _known(rows[k])))
    sheets = _sheets(record, means, typical, rows, eigen, low, high) if many else []
    return Gallery(_caption(record, pixels, eigen, typical), cards, sheets, shared=_shared(record, pixels))


def _caption(record: Record, pixels: PixelMap, eigen: list[np.ndarray], typical: np.ndarray) -> str:
    words, (_, rows) = record.words, record.row
    parts = [f"The large picture is the {words.location} of the {words.component}."]
    if len(record.data["size"]) > 2:
        parts.append("The planes of a volume stand side by side.")
    if eigen:
        parts.append("Upper row: the first eigen-patches, the directions of largest variance, each on its own scale.")
    if typical.shape[1]:
        which = "nearest to it" if words.sign < 0 else "of highest responsibility"
        parts.append(f"{'Lower row' if eigen else 'Beside it'}: the {rows} {which}.")
    parts.append(
        f"Patches are shown without their mean: grey is zero. The {words.location} and the {rows} have one scale."
        if pixels.mean_free
        else "All pictures but the eigen-patches have one scale."
        if eigen
        else "All pictures have one scale."
    )
    if record.has("preprocess_inverse"):
        parts.append(
            "All are mapped back to pixels from the preprocessed features, so they lack what the preprocessing removed."
        )
    return " ".join(parts)


def _alt(record: Record, k: int, n_modes: int, n_near: int) -> str:
    parts = [f"its {record.words.location}"]
    parts += [f"{n_modes} eigen-patches"] if n_modes else []
    parts += [f"{n_near} typical {record.row[1]}"] if n_near else []
    return f"{record.words.component.capitalize()} {k}: {', '.join(parts)}."


def _typical(record: Record, pixels: PixelMap) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (k, m, height, width, channels) and row numbers (k, m), -1 for none."""
    rows = record.representatives
    if not record.has("representatives"):
        return np.empty((record.k, 0, *pixels.shape)), rows[:, :0]
    features = np.where(rows[..., None] >= 0, record.array("representatives")[:, :5], 0)
    return pixels.points(features), rows


def _known(rows: np.ndarray) -> list[int]:
    return [int(row) for row in rows if row >= 0]


def _eigen(record: Record, pixels: PixelMap, count: int) -> list[np.ndarray]:
    """Eigen-patches of the first `count` components; empty unless each has a full covariance, or loadings."""
    if record.parameters.get("loadings", ("",))[0] == "component":
        return [pixels.principal_loadings(loadings, EIGEN) for loadings in record.array("loadings")[:count]]
    if not _own_covariances(record):
        return []
    covariances = record.array("covariances")[:count]
    return [pixels.directions(covariance, EIGEN) for covariance in covariances]


def _own_covariances(record: Record) -> bool:
    return record.spread == ("component", "feature", "feature_2")


def _shared(record: Record, pixels: PixelMap) -> Picture | None:
    """The eigen-patches of a covariance that all components share."""
    if record.spread != ("feature", "feature_2"):
        return None
    modes = pixels.directions(record.array("covariances"), 10)
    return _sheet_picture([_grey(mode, -1, 1) for mode in modes], 10, "Eigen-patches of the covariance that all share.")


def _ranges(means: np.ndarray, typical: np.ndarray | None, pixels: PixelMap) -> tuple[np.ndarray, np.ndarray]:
    """Black and white of each component, (k,) each: symmetric about zero per component if mean-free, else common."""
    k = len(means)
    both = means if typical is None else np.concatenate([means[:, None], typical], axis=1)
    both = both.reshape(k, -1)
    if pixels.mean_free:
        peak = np.abs(both).max(axis=1)
        return -peak, peak
    return np.full(k, both.min()), np.full(k, both.max())


def _grey(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """(height, width, channels) floats to bytes, low to high becoming black to white."""
    share = (picture - low) / (high - low) if high > low else np.full(picture.shape, 0.5)
    return np.asarray(np.round(255 * np.clip(share, 0, 1)), dtype=np.uint8)


def _enlarge(tile: np.ndarray, across: int, factor: int = 1) -> np.ndarray:
    """A tile enlarged to about `across` pixels, by a whole factor times `factor`, without smoothing."""
    from PIL import Image

    height, width = tile.shape[:2]
    longest = max(height, width)
    if longest > LARGEST:
        squeezed = Image.fromarray(tile[..., 0] if tile.shape[2] == 1 else tile)
        squeezed = squeezed.resize((max(1, LARGEST * width // longest), max(1, LARGEST * height // longest)))
        tile = np.asarray(squeezed).reshape(squeezed.height, squeezed.width, -1)
        longest = LARGEST
    scale = factor * max(1, round(across / longest))
    return tile.repeat(scale, axis=0).repeat(scale, axis=1)


def _card_picture(
    mean: np.ndarray, modes: list[np.ndarray], near: list[np.ndarray | None], alt: str, gap: int = 10
) -> Picture:
    """The mean, large, at the left; eigen-patches above typical rows beside it."""
    big = _enlarge(mean, TILE, 2)
    height, width = big.shape[0] // 2, big.shape[1] // 2
    rows: list[list[np.ndarray | None]] = [list(row) for row in (modes, near) if row]
    columns = max((len(row) for row in rows), default=0)
    canvas = _Canvas(2 * height + gap, 2 * width + columns * (width + gap) + gap, mean.shape[2])
    canvas.paste(big, gap // 2, 0)
    top = 0 if len(rows) == 2 else (height + gap) // 2
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if tile is not None:
                canvas.paste(_enlarge(tile, TILE), top + i * (height + gap), 2 * width + 2 * gap + j * (width + gap))
    return canvas.picture(alt)


def _sheets(
    record: Record,
    means: np.ndarray,
    typical: np.ndarray,
    rows: np.ndarray,
    eigen: list[np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
) -> list[Sheet]:
    """Contact sheets: the mean, most typical row and first eigen-patches of every component."""
    every = range(record.k)
    views = [(f"{record.words.location.capitalize()}s", [_grey(means[k], low[k], high[k]) for k in every])]
    if typical.shape[1]:
        blank = np.full(typical.shape[2:], 128, np.uint8)
        near = [_grey(typical[k, 0], low[k], high[k]) if rows[k, 0] >= 0 else blank for k in every]
        views.append((f"Most typical {record.row[0]}", near))
    if len(eigen) == record.k:
        for i, name in enumerate(("First", "Second", "Third")[: len(eigen[0])]):
            views.append((f"{name} eigen-patch", [_grey(eigen[k][i], -1, 1) for k in every]))
    alt = f"of all {record.k} {record.words.components} in reading order, {SHEET_COLUMNS} a row."
    return [Sheet(title, _sheet_picture(tiles, SHEET_COLUMNS, f"{title} {alt}")) for title, tiles in views]


def in_small(record: Record, pixels: PixelMap, final: Record, alt: str, components: Sequence[int]) -> Picture:
    """Return some components on one small sheet, comparable with sheets of other iterations of the run `final`.

    Eigen-patches if there are any and patches have no mean; else means, on one scale.
    """
    if pixels.mean_free and _own_covariances(record):
        covariances = record.array("covariances")
        tiles = [_grey(pixels.directions(covariances[k], 1)[0], -1, 1) for k in components]
    else:
        ends, means = pixels.points(final.positions), pixels.points(record.positions)
        low, high = _ranges(ends, None, pixels)
        tiles = [_grey(means[k], low[k], high[k]) for k in components]
    return _sheet_picture(tiles, int(np.ceil(np.sqrt(len(tiles)))), alt, across=TILE // 2)


def each(pixels: PixelMap, x: np.ndarray, alts: Sequence[str]) -> list[Picture]:
    """Return one picture for each row. x : (n, d)."""
    tiles = pixels.points(x)
    low, high = _ranges(tiles, None, pixels)
    return [
        _sheet_picture([_grey(*tile)], 1, alt, across=TILE) for *tile, alt in zip(tiles, low, high, alts, strict=True)
    ]


def sheet_of(pixels: PixelMap, x: np.ndarray, alt: str) -> Picture:
    """Return a picture for each row on one sheet, each on its own scale, around zero if values have both signs. x : (n, d)."""
    tiles = pixels.points(x) if pixels.offset is None else pixels.points(x) - pixels.points(np.zeros_like(x))
    peak, low = np.abs(tiles).reshape(len(tiles), -1).max(axis=1), tiles.reshape(len(tiles), -1).min(axis=1)
    shown = [_grey(tile, -p if least < 0 else 0.0, p) for tile, p, least in zip(tiles, peak, low, strict=True)]
    return _sheet_picture(shown, min(len(shown), SHEET_COLUMNS // 2), alt, across=TILE // 2)


def small_caption(record: Record, pixels: PixelMap) -> str:
    """What the sheets of `in_small` show."""
    eigen, words = pixels.mean_free and _own_covariances(record), record.words
    what = "First eigen-patches" if eigen else f"{words.location.capitalize()}s"
    which = f"all {words.components}" if record.k <= IN_SMALL else f"the {IN_SMALL} largest {words.components}"
    return f"{what} of {which}, in reading order."


def _sheet_picture(tiles: list[np.ndarray], columns: int, alt: str, gap: int = 4, across: int = SHEET_TILE) -> Picture:
    enlarged = [_enlarge(tile, across) for tile in tiles]
    height, width, channels = enlarged[0].shape
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    canvas = _Canvas(lines * (height + gap) - gap, columns * (width + gap) - gap, channels)
    for i, tile in enumerate(enlarged):
        canvas.paste(tile, i // columns * (height + gap), i % columns * (width + gap))
    return canvas.picture(alt)


class _Canvas:
    """Tiles on a transparent background."""

    def __init__(self, height: int, width: int, channels: int):
        self.pixels = np.zeros((height, width, channels + 1), np.uint8)

    def paste(self, tile: np.ndarray, top: int, left: int) -> None:
        area = self.pixels[top : top + tile.shape[0], left : left + tile.shape[1]]
        area[..., :-1] = tile
        area[..., -1] = 255

    def picture(self, alt: str) -> Picture:
        return Picture(png(self.pixels), self.pixels.shape[1], self.pixels.shape[0], alt)
