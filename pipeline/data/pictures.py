"""Picture files: what a header says, and the pixels in grey, as they are to be looked at.

The orientation that a camera has noted (EXIF tag 274) is applied, colour becomes ITU-R 601 luma (Pillow's mode L), and in TIFF
files where 0 is white the values are turned around. Transparency and all frames but the first are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from pipeline.data import tiff
from pipeline.data.files import open_binary, opening
from pipeline.errors import InputError, PipelineError, StorageError

# Pillow would look into a file for any format, such as PostScript, which it hands to Ghostscript. MPO is opened as JPEG.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", *tiff.SUFFIXES),
    *(".pgm", ".ppm", ".pnm", ".pbm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc"),
}
_WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION = 256, 257, 262, 274  # tags of TIFF; the last of EXIF too
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda grey: np.rot90(grey, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda grey: np.rot90(grey, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
_UNREADABLE = "is damaged, or no picture that Pillow reads"
_UNREADABLE_TIFF = "is damaged, or no TIFF file that tifffile reads"
_RESTORE = "Restore it, or move it out of the folder, then run again."
_STRIP_PIXELS = 2**20  # that are made grey at a time
_WARNINGS = Lock()  # the filters of warnings are those of the whole process


class Header(NamedTuple):
    """What the header of a picture says.

    Attributes
    ----------
    height, width : int
        As it is to be looked at.
    bits : int
        Of a value: 8, 16 or 32.
    channels : int
        1, or 3 in colour; of a TIFF file that is read as it is stored any number.
    decoded : int
        Bytes of memory for each pixel while it is decoded, one channel of the picture included.
    turn : int
        EXIF's orientation.
    white_is_zero : bool
        Pillow turns 8 bits around itself.
    as_stored : bool
        Whether tifffile reads it, with all channels and in its own values.
    """

    height: int
    width: int
    bits: int
    channels: int
    decoded: int
    turn: int
    white_is_zero: bool
    as_stored: bool = False

    @property
    def colour(self) -> bool:
        """Whether it has more than one channel."""
        return self.channels > 1


def read_header(path: str, options: Mapping[str, Any], as_stored: bool = False) -> Header:
    """Read the header alone. as_stored : whether TIFF files are read with all channels, in their own values.

    Raises
    ------
    InputError
        If the picture is larger than Pillow's limit, or of TIFF if it is of a kind that is not read.
    StorageError
        If it is no picture.
    """
    from PIL import Image

    if as_stored and path.lower().endswith(tiff.SUFFIXES):
        return _tiff_header(path, options)
    with opening(path), open_binary(path, options) as stream:
        try:
            with _opened(stream) as picture:
                return _header(picture)
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{path}: {error}. Cut it into smaller pictures, or set PIL.Image.MAX_IMAGE_PIXELS."
            ) from error
        except Exception as error:  # each decoder has its own kinds
            raise StorageError(f"{path}: {_UNREADABLE} ({error}). {_RESTORE}") from error


def _tiff_header(path: str, options: Mapping[str, Any]) -> Header:
    with opening(path), open_binary(path, options) as stream:
        try:
            layout = tiff.read_layout(stream, path)
        except PipelineError:
            raise
        except Exception as error:  # tifffile's own kinds, and those of what it calls
            raise StorageError(f"{path}: {_UNREADABLE_TIFF} ({error}). {_RESTORE}") from error
    turn = layout.orientation if layout.orientation in _TURNS else 1
    height, width = (layout.height, layout.width) if turn < 5 else (layout.width, layout.height)
    size, channels = layout.dtype.itemsize, layout.channels
    decoded = size * (2 * channels + 1)  # with a strip of all rows, and its copy with channels last
    return Header(height, width, 8 * size, channels, decoded, turn, layout.white_is_zero, as_stored=True)


def _decode_tiff(path: str, options: Mapping[str, Any], header: Header) -> np.ndarray:
    try:
        with open_binary(path, options) as stream:
            found = tiff.read_pixels(stream, path)
    except PipelineError:
        raise
    except Exception as error:
        raise StorageError(f"{path}: {_UNREADABLE_TIFF} ({error}). {_RESTORE}") from error
    found = found if header.turn == 1 else _TURNS[header.turn](found)
    height, width, channels = (*found.shape, 1)[:3]
    bits = 8 * found.dtype.itemsize
    if (height, width, bits, channels) != header[:4]:
        raise _changed(path, header, height, width, bits)
    return found


def _changed(path: str, header: Header, height: int, width: int, bits: int) -> StorageError:
    return StorageError(
        f"{path}: got {height} x {width} pixels of {bits} bits, not what it had when opened: {header.height} x {header.width} of "
        f"{header.bits}. Restore it."
    )


def _opened(stream: Any) -> Any:
    """A picture. Pillow's warning of its size is not shown: the plan decides what fits into memory."""
    from PIL import Image

    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(stream, formats=_FORMATS)


def _header(picture: Any) -> Header:
    mode, turn = picture.mode, _orientation(picture)
    wide = (mode in ("I", "F") and picture.format == "TIFF") or mode == "F"
    bits = 32 if wide else 16 if mode.startswith("I") else 8
    tags = getattr(picture, "tag_v2", {})
    stored = (tags[_WIDTH], tags[_HEIGHT]) if tags else picture.size  # Pillow 11 tells and loads TIFF files turned
    width, height = stored if turn < 5 else stored[::-1]
    colour = mode not in ("1", "L", "LA", "La") and bits == 8
    # Pillow stores colours in 4 bytes; decoders of progressive JPEG and of WebP have copies of their own.
    storage = 4 if colour or mode[-1] in "aA" or bits == 32 or mode == "I" else bits // 8
    copies = (
        6 * bool(picture.info.get("progressive")) + 8 * (picture.format == "WEBP") + storage * (bool(tags) and turn > 1)
    )
    decoded = storage + bits // 8 + copies
    return Header(height, width, bits, 3 if colour else 1, decoded, turn, bits > 8 and tags.get(_PHOTOMETRIC) == 0)


def _orientation(picture: Any) -> int:
    from PIL import Image

    if picture.format == "PNG":  # getexif would decode it, to look behind the pixels
        exif = Image.Exif()
        if picture.info.get("exif"):
            exif.load(picture.info["exif"])
    else:
        exif = picture.getexif()
    turn = exif.get(_ORIENTATION, 1)
    return turn if turn in _TURNS else 1


def decode(path: str, options: Mapping[str, Any], header: Header, colour: bool = False) -> np.ndarray:
    """Return the picture in grey, shape (height, width): uint8, uint16, or of 32 bits int32 or float32, in the file's values.

    colour : whether one in colour is returned in red, green and blue, (height, width, 3). With a header `as_stored` all channels are
    returned, as they are stored. Raises StorageError if it is damaged, or not as the header was.
    """
    if header.as_stored:
        return _decode_tiff(path, options, header)
    try:
        with open_binary(path, options) as stream, _opened(stream) as picture:
            found = _header(picture)
            if found != header:
                raise _changed(path, header, found.height, found.width, found.bits)
            picture.load()
            is_turned = picture.format == "TIFF" and picture.getexif().get(_ORIENTATION, 1) != header.turn
            pixels = _pixels(picture, header.bits, "RGB" if colour and header.colour else "L")
    except PipelineError:
        raise
    except Exception as error:  # each decoder has its own kinds
        raise StorageError(f"{path}: {_UNREADABLE} ({error}). {_RESTORE}") from error
    return pixels if is_turned or header.turn == 1 else _TURNS[header.turn](pixels)


def _pixels(picture: Any, bits: int, mode: str) -> np.ndarray:
    """The stored picture in a mode of Pillow's, made strip by strip: in another one it is never there twice."""
    width, height = picture.size
    kind = {8: np.uint8, 16: np.uint16}.get(bits, np.float32 if picture.mode == "F" else np.int32)
    found = np.empty((height, width, 3) if mode == "RGB" else (height, width), kind)
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        strip = picture.crop((0, top, width, min(top + step, height)))
        found[top : top + step] = np.asarray(strip if bits > 8 else strip.convert(mode))
    return found
