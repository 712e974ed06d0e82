"""Patches of pictures, cut when they are read and never stored.

Overlapping p x q patches of a picture are p*q times as many bytes as the picture, so a chunk decodes its
pictures, or its strip of a large one, and cuts the patches.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config import AnyPath
from pipeline.config.paths import is_url
from pipeline.data.files import opening, reading, stored_size
from pipeline.data.patch import Patch, patch_basis, write_features
from pipeline.data.pictures import SUFFIXES, Header, decode, read_header
from pipeline.data.section import FileSection
from pipeline.data.source import Source, rows_per_target
from pipeline.errors import InputError, printable

_NOTHING: tuple[int, Any] = (-1, None)  # of pictures, is cached
_DARK = 4  # a container of 16 bits of which less than this part is filled deserves a word
_LOOK, _LOOK_PIXELS = 4, 2**24  # pictures, and pixels of each, that are looked at for that


class ImagesSection(FileSection):
    """The patches of a folder of pictures, of those that a glob names, or of a single one."""

    source: Literal["images"] = Field("images", description="patches of pictures")
    path: AnyPath = Field(
        description="a folder of pictures, a picture, a glob such as photos/**/*.jpg, or an fsspec URL of any of these; "
        "photographs: two that scikit-learn brings, while a folder of that name is ./photographs"
    )
    patch: Patch = Field(default_factory=Patch, description="how pictures are cut into rows, when they are read")

    @field_validator("path", mode="wrap")
    @classmethod
    def _photographs_are_no_folder(cls, path: Any, to_path: Callable[[Any], str]) -> str:
        return path if path == "photographs" else to_path(path)

    def open(self) -> Source:
        return open_patches(None if self.path == "photographs" else self.path, self.storage_options, self.patch)


class ImageSource(Source):
    """Patches of pictures: pictures by name, then patch positions row by row. Channels vary fastest in a row.

    Pixels are float32 from 0 to 1, as `Patch.range` says.

    Parameters
    ----------
    folder : str or None
        None: scikit-learn's photographs.
    options : mapping
        Of its file system.
    names : list of str
    headers : sequence of Header
    patch : Patch
    notes : list of str
    covers : bool
        Whether one more patch ends at the right and the lower edge where the stride leaves pixels over, so that every pixel is in a patch.
    """

    def __init__(
        self,
        folder: str | None,
        options: Mapping[str, Any],
        names: list[str],
        headers: Sequence[Header],
        patch: Patch,
        notes: list[str],
        covers: bool = False,
    ) -> None:
        p, q = patch.size
        self._headers = np.array(headers, np.int64)
        sizes = self._headers[:, :2]
        self.dtype = np.dtype(np.float32)
        self._channels = {"grey": 1, "rgb": 3}.get(patch.channels) or headers[0].channels
        self.n_features = self._channels * (p * q - int(patch.remove_mean))
        last = sizes - [p, q] + (patch.stride - 1 if covers else 0)
        self._grid = last // patch.stride + 1  # patch positions down and across, per picture
        self._start = np.append(0, np.cumsum(self._grid.prod(axis=1))).astype(np.int64)
        self.bounds = _picture_bounds(self._grid, rows_per_target(self.n_features, 4))
        self._folder, self._options, self._names, self._patch = folder, dict(options), names, patch
        self._notes = notes
        self._cached, self._lock = _NOTHING, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": _NOTHING, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def covering(self) -> ImageSource:
        """Return the same pictures in patches of pixels that cover them."""
        patch = self._patch.model_copy(update={"remove_mean": False, "contrast": None})
        headers = [self._header(i) for i in range(len(self._names))]
        return ImageSource(self._folder, self._options, self._names, headers, patch, self._notes, covers=True)

    @property
    def patch(self) -> Patch:
        """How pictures are cut."""
        return self._patch

    @property
    def channels(self) -> int:
        """Of a patch."""
        return int(self._channels)

    def read(self, i: int) -> np.ndarray:
        """Read chunk i. Its bits depend on the number of BLAS threads: read with one."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        mean_free = self._patch.remove_mean
        basis = patch_basis(self._patch.size, self._channels).astype(np.float32) if mean_free else None
        x = np.empty((stop - start, self.n_features), np.float32)
        picture = int(np.searchsorted(self._start, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._start[picture + 1]))
            across = int(self._grid[picture, 1])
            first, last = ((row - int(self._start[picture])) // across for row in (start, end))
            tops, lefts = self._corners(picture, np.arange(first, last), np.arange(across))
            strip = self._strip(picture, int(tops[0]), int(tops[-1]) + self._patch.size[0])
            windows = np.lib.stride_tricks.sliding_window_view(strip, self._patch.size, axis=(0, 1))
            windows = windows[np.ix_(tops - tops[0], lefts)]
            if strip.ndim == 3:  # (down, across, channel, p, q)
                windows = np.moveaxis(windows, 2, -1)
            pixels = windows.reshape(end - start, -1)
            out = x[start - int(self.bounds[i]) : end - int(self.bounds[i])]
            write_features(pixels, basis, self._patch.contrast, out)
            start, picture = end, picture + 1
        return x

    def _corners(self, picture: Any, down: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The top and left pixels of positions of patches. picture : one, or that of each position."""
        (p, q), stride = self._patch.size, self._patch.stride
        height, width = self._headers[picture, 0], self._headers[picture, 1]
        return np.minimum(down * stride, height - p), np.minimum(across * stride, width - q)

    def _strip(self, picture: int, top: int, bottom: int) -> np.ndarray:
        """Rows top:bottom of the pixels of a picture, (height, width) or (height, width, channels) float32 from 0 to 1."""
        pixels = self._scaled(picture, self._decoded(picture)[top:bottom])
        if self._channels > 1 and pixels.ndim == 2:  # grey among colours
            pixels = np.broadcast_to(pixels[:, :, None], (*pixels.shape, self._channels))
        return pixels

    def _scaled(self, picture: int, pixels: np.ndarray) -> np.ndarray:
        """Values of a file as float32 from 0 to 1."""
        header = self._header(picture)
        scaled = pixels.astype(np.float32)
        scaled /= np.float32(self._patch.top(header.bits))
        return 1 - scaled if header.white_is_zero else scaled

    def pixels(self, picture: int, box: tuple[slice, slice], colour: bool = False) -> np.ndarray:
        """Return a box of a picture, (height, width) float32 from 0 to 1, as patches are cut from it; colour : as of `decode`."""
        decoded = decode(self._path(picture), self._options, self._header(picture), colour)
        return self._scaled(picture, decoded[box])

    def header(self, picture: int) -> tuple[Header, float]:
        """Return what the header of a picture says, and the value in its file that is 1 here."""
        header = self._header(picture)
        return header, float(self._patch.top(header.bits) or 1.0)

    def _decoded(self, picture: int) -> np.ndarray:
        """The decoded picture, (height, width) or (height, width, channels).

        The last one that spans chunks is cached for all threads of a process, which want strips of it at about the same time.
        """
        header = self._header(picture)
        name, colour = self._path(picture), self._channels > 1
        if not self._spans_chunks(picture):
            return decode(name, self._options, header, colour)
        with self._lock:
            if self._cached[0] != picture:
                self._cached = _NOTHING  # or both would be in memory
                self._cached = (picture, decode(name, self._options, header, colour))
            return self._cached[1]

    def _header(self, picture: int) -> Header:
        return Header(*self._headers[picture].tolist())

    def decoding(self) -> tuple[int, str]:
        """Return the bytes of the picture that takes most, with the strip that is cut from it, and what would make it fewer."""
        (p, _), stride = self._patch.size, self._patch.stride
        height, width, decoded = self._headers[:, 0], self._headers[:, 1], self._headers[:, 4]
        rows = (
            -(-int(np.diff(self.bounds).max()) // self._grid[:, 1]) * stride + p
        )  # of pixels, under the rows of a chunk
        decoded = decoded + self._headers[:, 2] // 8 * (self._channels - 1)  # as grey, in the header
        needed = height * width * decoded + 8 * self._channels * width * np.minimum(rows, height)
        most = int(needed.argmax())
        picture = f"{self._path(most)}, of {height[most]} x {width[most]} pixels"
        return int(needed[most]), f"cut {picture}, into smaller pictures"

    def notes(self) -> list[str]:
        return [*self._notes, *self._dark()]

    def _dark(self) -> Iterator[str]:
        """What is odd about the values of pictures of more than 8 bits, as far as a few of them tell."""
        deep = np.flatnonzero((self._headers[:, 2] > 8) & (self._headers[:, :2].prod(axis=1) <= _LOOK_PIXELS))
        if not len(deep):
            return
        bits = self._header(int(deep[0])).bits
        some = np.unique(deep[np.linspace(0, len(deep) - 1, _LOOK).round().astype(int)]).tolist()
        ends = [(grey.min(), grey.max()) for grey in (self._decoded(i) for i in some if self._header(i).bits == bits)]
        low, high, top = min(low for low, _ in ends), max(high for _, high in ends), self._patch.top(bits)
        text = f"pictures of {bits} bits hold values from {low:g} to {high:g} in {len(ends)} that were looked at, and {top:g} becomes 1"
        if top is not None and not (high > top / _DARK and low >= 0 and high <= top):
            text += f". If that is not what they mean, set data.patch.range, such as {{{bits}: {_power(high):g}}}"
        yield text

    def _spans_chunks(self, picture: int) -> bool:
        inside = self.bounds[1:-1]
        return bool(((inside > self._start[picture]) & (inside < self._start[picture + 1])).any())

    def _path(self, picture: int) -> str:
        return f"{self._folder or _photographs()}/{self._names[picture]}"

    def pictures(self) -> tuple[list[str], np.ndarray]:
        return [printable(name) for name in self._names], self._start[:-1].copy()

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the picture of each row, and the top left pixel of its patch."""
        picture, down, across = self._at(start, stop)
        names = np.array([printable(name) for name in self._names], object)
        y, x = self._corners(picture, down, across)
        return {"picture": names[picture], "y": y, "x": x}

    def places(self, start: int, stop: int) -> np.ndarray:
        """Return the centre of each patch among the positions of patches, from 0 to 1."""
        picture, *at = self._at(start, stop)
        return (np.stack(at, axis=1) + 0.5) / self._grid[picture]

    def _at(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The picture of each row, and which position of patches it is, down and across."""
        row = np.arange(start, stop)
        picture = np.searchsorted(self._start, row, side="right") - 1
        return picture, *np.divmod(row - self._start[picture], self._grid[picture, 1])

    def describe(self) -> dict[str, Any]:
        """Return how rows are cut, so that reports can map them back to pixels with `patch_basis`."""
        patch = self._patch.model_dump(include={"remove_mean", "contrast"})
        return {"kind": "patch", "size": list(self._patch.size), "channels": self._channels, **patch}

    def object_sizes(self) -> list[int]:
        with reading(str(self._folder or "scikit-learn's photographs")):
            return [stored_size(self._path(picture), self._options) for picture in range(len(self._names))]


def _picture_bounds(grid: np.ndarray, target: int) -> np.ndarray:
    """Chunk bounds: small pictures share a chunk, large ones are cut between rows of patch positions.

    `grid` is (n_pictures, 2), positions down and across; `target` the desired rows of a chunk.
    """
    bounds, row, first = [0], 0, 0  # `first`: where the chunk that is being filled starts
    for down, across in grid.tolist():
        n = down * across
        if row > first and row + n - first > target:
            bounds.append(row)
            first = row
        if n > target:
            parts = -(-n // max(across, target // across * across))
            step = -(-down // parts) * across
            bounds += range(row + step, row + n, step)
            bounds.append(row + n)
            first = row + n
        row += n
    if row > first:
        bounds.append(row)
    return np.array(bounds, np.int64)


def _power(high: float) -> float:
    """The highest value of as many bits as the value needs."""
    return 2.0 ** int(np.ceil(np.log2(max(float(high), 1.0) + 1.0))) - 1.0


def open_patches(path: str | None, options: Mapping[str, Any], patch: Patch) -> ImageSource:
    """Open the patches of a folder of pictures, of a glob, or of a single one; None: scikit-learn's photographs."""
    if patch.remove_mean and patch.size == (1, 1):
        raise InputError("data.patch: got size [1, 1] with remove_mean, which leaves nothing. Make it larger.")
    folder, names, notes = _names(_photographs() if path is None else path.rstrip("/") or "/", options)
    if not names:
        raise InputError(
            f"{path}: has no pictures ({', '.join(sorted(SUFFIXES))}). Give data.path their folder, a glob such as "
            "photos/**/*.png for those in folders below it, or set data.source to what it is."
        )
    stored = patch.channels == "all"
    headers = [read_header(f"{folder}/{name}", options, stored) for name in names]
    for name, header in zip(names, headers, strict=True):
        if header.height < patch.size[0] or header.width < patch.size[1]:
            raise InputError(
                f"{folder}/{name}: is {header.height} x {header.width} pixels, expected at least one patch of {patch.size[0]} x "
                f"{patch.size[1]}. Take it out of the folder, or make data.patch.size smaller."
            )
    _refuse_unknown_ranges(names, headers, patch)
    if path is None:
        return ImageSource(None, options, names, headers, patch, [])
    _refuse_mixed_channels(folder, names, headers, patch)
    n_grey = sum(header.channels == 1 for header in headers)
    if 0 < n_grey < len(names):
        some = f"{n_grey} of {len(names)} pictures are grey, and have three equal channels"
        if patch.channels == "grey":
            some = f"{len(names) - n_grey} of {len(names)} pictures are in colour, and are made grey as the others are"
        notes.append(f"{folder}: {some}")
    return ImageSource(folder, options, names, headers, patch, notes)


def _refuse_unknown_ranges(names: list[str], headers: list[Header], patch: Patch) -> None:
    """Raise InputError where it is not known which value is white, or where that differs from picture to picture."""
    first = {header.bits: name for name, header in reversed(list(zip(names, headers, strict=True)))}
    unknown = [bits for bits in sorted(first) if patch.top(bits) is None]
    if unknown:
        raise InputError(
            f"{first[unknown[0]]}: has pixels of 32 bits, of which no value is known to be white. Set data.patch.range to the one "
            "that becomes 1, such as {32: 255} or {32: 1.0}."
        )
    if len(first) > 1 and patch.range is None:
        kinds = ", ".join(f"{bits} bits as {name}" for bits, name in sorted(first.items()))
        raise InputError(
            f"data.patch.range: got pictures of {kinds}, expected one depth. Set it to container if 255 and 65535 are white, else by "
            "bits, such as {8: 255, 16: 4095} for 12 bits in 16."
        )


def _refuse_mixed_channels(folder: str, names: list[str], headers: list[Header], patch: Patch) -> None:
    """Raise InputError where pictures have not one number of channels, and all of them are asked for."""
    first = {header.channels: name for name, header in reversed(list(zip(names, headers, strict=True)))}
    if patch.channels == "all" and len(first) > 1:
        kinds = ", ".join(f"{channels} as {name}" for channels, name in sorted(first.items()))
        raise InputError(
            f"data.patch.channels: all: pictures of {folder} have different numbers of channels ({kinds}), expected one. Set it to "
            "grey or rgb, or take some out of the folder."
        )


def _names(path: str, options: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """The folder, sorted names of the pictures in it, and what is left out."""
    with opening(path):
        if is_url(path):
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(path, **options)
            is_file, is_folder, listing = (
                filesystem.isfile,
                filesystem.isdir,
                functools.partial(filesystem.ls, root, detail=False),
            )
            matches = filesystem.glob
        else:
            root, is_file, is_folder, listing = path, os.path.isfile, os.path.isdir, functools.partial(os.listdir, path)
            matches = functools.partial(glob.glob, recursive=True)
        if is_file(root):
            folder, _, name = path.rpartition("/")
            return folder, [name], []
        if glob.has_magic(root) and not is_folder(root):
            parts = root.split("/")
            depth = next(i for i, part in enumerate(parts) if glob.has_magic(part))
            base = "/".join(parts[:depth])
            found = [str(name)[len(base) + 1 :] for name in matches(root) if is_file(name)]
            return path[: len(path) - len(root) + len(base)], sorted(found), []
        found = sorted(
            name for each in listing() if not (name := str(each).rstrip("/").rsplit("/", 1)[-1]).startswith(".")
        )
        names = [name for name in found if os.path.splitext(name)[1].lower() in SUFFIXES]
        others = [name for name in found if name not in set(names)]
    if not others or not names:
        return path, names, []
    return (
        path,
        names,
        [
            f"{path}: {len(others)} that have no picture's name are left out, such as {others[0]}. Pictures in folders below it, or of "
            "other names, are read by a glob such as photos/**/*.png"
        ],
    )


def _photographs() -> str:
    """The folder of the two photographs that scikit-learn brings, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("data.path: photographs come with scikit-learn, which is not installed. Install it.")
    return os.path.join(spec.submodule_search_locations[0], "datasets", "images")
