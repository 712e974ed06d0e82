"""TIFF files with all their channels, in the values that they store: 16-bit colours, bands of a satellite, channels of a microscope.

Read by tifffile, which is an extra. BigTIFF and OME-TIFF are read too; of several series the first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import InputError

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_TYPES = ("uint8", "uint16", "int32", "uint32", "float32")
_ORIENTATION = 274
_ROWS, _COLUMNS, _CHANNELS = (
    "Y",
    "X",
    "SC",
)  # axes, as tifffile names them: samples of a pixel, and channels of OME or ImageJ


class Layout(NamedTuple):
    """What the first series of a file holds. As stored: not yet turned.

    Attributes
    ----------
    height, width, channels : int
    dtype : numpy.dtype
    orientation : int
        The tag of that name.
    white_is_zero : bool
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    orientation: int
    white_is_zero: bool


def read_layout(stream: Any, path: str) -> Layout:
    """Read what a file says of its first series. path : for messages.

    Raises
    ------
    InputError
        If it is not one picture of numbers that are read, or tifffile is not installed.
    """
    series = _series(stream, path)
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channels = [axis for axis in series.axes if axis in _CHANNELS]
    if len(channels) > 1 or set(series.axes) != {_ROWS, _COLUMNS, *channels}:
        raise InputError(
            f"{path}: has the axes {series.axes} of {' x '.join(map(str, series.shape))}, expected one picture (Y, X, and perhaps "
            "channels S or C). Write each picture into a file of its own."
        )
    if series.dtype.name not in _TYPES:
        raise InputError(f"{path}: got dtype {series.dtype}, expected one of {', '.join(_TYPES)}. Convert it first.")
    orientation = series.keyframe.tags.get(_ORIENTATION)
    return Layout(
        sizes[_ROWS],
        sizes[_COLUMNS],
        sizes[channels[0]] if channels else 1,
        series.dtype.newbyteorder("="),
        1 if orientation is None else int(orientation.value),
        series.keyframe.photometric == 0,
    )


def read_pixels(stream: Any, path: str) -> np.ndarray:
    """Read the first series, (height, width) or (height, width, channels), in native byte order."""
    series = _series(stream, path)
    pixels = series.asarray()
    for place, axis in enumerate(series.axes):
        if axis in _CHANNELS:
            pixels = np.moveaxis(pixels, place, -1)
    return np.asarray(pixels, pixels.dtype.newbyteorder("="))


def _series(stream: Any, path: str) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise InputError(
            f"{path}: data.patch.channels: all reads TIFF files by tifffile, which is not installed. Install it: pip install "
            "'em-pipeline[tiff]'."
        ) from error
    return tifffile.TiffFile(stream).series[0]
