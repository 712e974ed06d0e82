"""Labels drawn on the coordinates of the data: maps of two of the dimensions that samples have."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np

from pipeline.arrays.stores import guarded
from pipeline.outputs.report.formatting import plural
from pipeline.outputs.report.record import Record
from pipeline.outputs.report.svg import Chart, Plot

if TYPE_CHECKING:
    import xarray as xr

MAPS = 4  # at entries spread over the other dimensions
ACROSS = 480  # cells of a side that are drawn; of more, every second, third, …
NAMED = 24  # components that the legend names
_DOWN, _RIGHT = ("latitude", "lat", "y"), ("longitude", "lon", "x")
# The palette of the charts as it is on the light page; pixels cannot follow the theme.
_PALETTE = ((0, 114, 178), (192, 106, 0), (0, 135, 98), (200, 60, 30), (170, 90, 140), (70, 150, 200))


def maps(record: Record) -> list[Chart]:
    """Return maps of the labels; none where samples have one dimension, or without labels."""
    found = record.label_array("label") if record.k else None
    if found is None or len(found.dims) < 2:
        return []
    import xarray as xr  # names of coordinates may be dates

    try:
        stored = xr.open_zarr(guarded(record.run / "labels.zarr"), consolidated=False, chunks=None)
        label = stored["label"]
    except Exception:  # zarr codecs raise what they like; without labels the report has no maps
        return []
    dims = [str(dim) for dim in label.dims]
    down = next((dim for dim in dims if dim.lower() in _DOWN), dims[-2])
    right = next(
        (dim for dim in dims if dim.lower() in _RIGHT and dim != down), dims[-1] if down != dims[-1] else dims[-2]
    )
    others = [dim for dim in dims if dim not in (down, right)]
    sizes = tuple(label.sizes[dim] for dim in others)
    shown = np.unique(np.linspace(0, int(np.prod(sizes)) - 1, MAPS).astype(int))
    return [
        _map(record, label.isel(dict(zip(others, map(int, np.unravel_index(i, sizes)), strict=True))), down, right)
        for i in shown
    ]


def _map(record: Record, label: xr.DataArray, down: str, right: str) -> Chart:
    """Return the map of one plane."""
    where = ", ".join(f"{name} {_shown(each.values)}" for name, each in label.coords.items() if not each.ndim)
    steps = {dim: -(-label.sizes[dim] // ACROSS) for dim in (down, right)}
    thin = label.isel({dim: slice(None, None, step) for dim, step in steps.items()}).transpose(down, right)
    y, x = (_coordinate(thin, dim) for dim in (down, right))
    cells = np.asarray(thin.values)[:: 1 if y[0] > y[-1] else -1, :: 1 if x[0] <= x[-1] else -1]
    colours = _colours(record.k)
    pixels = np.zeros((*cells.shape, 4), np.uint8)
    pixels[cells >= 0] = np.concatenate([colours, np.full((record.k, 1), 255)], axis=1)[cells[cells >= 0]]
    legend = "".join(
        f'<span><i style="background: rgb({r}, {g}, {b})"></i>{k}</span>' for k, (r, g, b) in enumerate(colours[:NAMED])
    )
    plot = Plot(right, down, height=300)
    plot.cells(pixels, legend, _side(x), _side(y))
    words = record.words
    of = plural(record.k, words.component, words.components)
    every = f" Every {max(steps.values())} cells one is drawn." if max(steps.values()) > 1 else ""
    caption = f"Colours are the labels of {words.components}; cells without a colour have none.{every}"
    title = f"Labels at {where}" if where else "Labels on the coordinates of the data"
    return Chart(title, plot.svg(f"Map of the labels of {of} over {right} and {down}."), caption)


def _shown(value: np.ndarray) -> str:
    """One coordinate in words; a time as short as it can be."""
    return str(np.datetime_as_string(value, unit="auto")) if value.dtype.kind == "M" else str(value.item())


def _coordinate(label: xr.DataArray, dim: str) -> np.ndarray:
    """Numbers along a dimension: its coordinate where that is evenly spaced, else counted."""
    found = label.coords[dim].values if dim in label.coords else np.empty(0, str)
    if found.dtype.kind in "iuf" and len(found) > 1:
        apart = np.diff(found.astype(float))
        if np.allclose(apart, apart[0], rtol=1e-3) and apart[0]:
            return found.astype(float)
    return np.arange(label.sizes[dim], dtype=float)


def _side(values: np.ndarray) -> tuple[float, float]:
    """Both ends of an axis: half a cell beyond the first and last centre."""
    half = abs(values[-1] - values[0]) / max(1, len(values) - 1) / 2 or 0.5
    return float(values.min() - half), float(values.max() + half)


def _colours(k: int) -> np.ndarray:
    """Return a colour of each component, shape (k, 3): the palette, and then hues of three kinds of lightness."""
    if k <= len(_PALETTE):
        return np.array(_PALETTE[:k])
    hues = [colorsys.hls_to_rgb(i / k, (0.4, 0.55, 0.7)[i % 3], 0.65) for i in range(k)]
    return np.round(255 * np.array(hues)).astype(int)
