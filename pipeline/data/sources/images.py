"""Patches of pictures, cut when they are read and never stored.

Overlapping p x q patches of a picture are p*q times as many bytes as the picture, so a chunk decodes its
pictures, or its strip of a large one, and cuts the patches.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config import AnyPath, Section
from pipeline.config.paths import is_url
from pipeline.data.files import open_binary, opening, reading, stored_size
from pipeline.data.section import FileSection
from pipeline.data.source import Source, rows_per_target
from pipeline.errors import InputError, PipelineError, StorageError, printable

# Pillow would look into a file for any format, such as PostScript, which it hands to Ghostscript.
_UNREADABLE = "is damaged, or no picture that Pillow reads"
_RESTORE = "Restore it, or move it out of the folder, then run again."
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pnm", ".jp2"}


class Patch(Section):
    """How pictures are cut into rows."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (8, 8), description="height and width of a patch, in pixels"
    )
    stride: int = Field(1, ge=1, description="pixels from one patch to the next")
    remove_mean: bool = Field(
        True, description="drop each patch's mean: size-1 features in an orthonormal basis without the constant"
    )
    contrast: float | None = Field(
        None, gt=0, description="divide each patch by its deviation, floored at this value (pixels are 0 to 1)"
    )


class ImagesSection(FileSection):
    """The patches of a folder of pictures, or of a single one. Files without the name of a picture are left out."""

    source: Literal["images"] = Field("images", description="patches of pictures")
    path: AnyPath = Field(
        description="a folder of pictures, a picture, or an fsspec URL of either; photographs: two that scikit-learn brings, "
        "while a folder of that name is ./photographs"
    )
    patch: Patch = Field(default_factory=Patch, description="how pictures are cut into rows, when they are read")

    @field_validator("path", mode="wrap")
    @classmethod
    def _photographs_are_no_folder(cls, path: Any, to_path: Callable[[Any], str]) -> str:
        return path if path == "photographs" else to_path(path)

    def open(self) -> Source:
        return open_patches(None if self.path == "photographs" else self.path, self.storage_options, self.patch)


def patch_basis(size: tuple[int, int]) -> np.ndarray:
    """Return an orthonormal basis of the mean-free p x q patches, shape (p*q, p*q - 1), float64.

    The two-dimensional DCT-II without its constant vector, lowest vertical frequency first, so that
    `features = pixels @ basis` and `pixels - mean = features @ basis.T`. Any orthonormal basis without the
    constant gives the same mixture; this one is closed-form, hence the same everywhere, and each feature is a
    spatial frequency. [Ahmed, Natarajan, Rao 1974]

    >>> basis = patch_basis((4, 4))
    >>> bool(np.allclose(basis.T @ basis, np.eye(15)) and np.allclose(basis.sum(axis=0), 0))
    True
    """
    return np.kron(_dct(size[0]), _dct(size[1])).T[:, 1:].copy()


def _dct(n: int) -> np.ndarray:
    """The orthonormal DCT-II, (frequency, position)."""
    cosines: np.ndarray = np.sqrt(2 / n) * np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5))
    cosines[0] = np.sqrt(1 / n)
    return cosines


class ImageSource(Source):
    """Patches of grey pictures: pictures by name, then patch positions row by row.

    Pixels are float32 from 0 to 1: ITU-R 601 luma of 8-bit pictures (Pillow's mode L), or the full depth of
    16-bit grey ones. Transparency and all frames but the first are left out.

    Parameters
    ----------
    folder : str or None
        None: scikit-learn's photographs.
    options : mapping
        Of its file system.
    names : list of str
    sizes : array, shape (n_pictures, 2)
        Height and width.
    patch : Patch
    """

    def __init__(
        self, folder: str | None, options: Mapping[str, Any], names: list[str], sizes: np.ndarray, patch: Patch
    ) -> None:
        p, q = patch.size
        self.dtype = np.dtype(np.float32)
        self.n_features = p * q - int(patch.remove_mean)
        self._grid = (sizes - [p, q]) // patch.stride + 1  # patch positions down and across, per picture
        self._start = np.append(0, np.cumsum(self._grid.prod(axis=1))).astype(np.int64)
        self.bounds = _picture_bounds(self._grid, rows_per_target(self.n_features, 4))
        self._folder, self._options, self._names, self._patch = folder, dict(options), names, patch
        self._cached = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cached = threading.local()

    def read(self, i: int) -> np.ndarray:
        """Read chunk i. Its bits depend on the number of BLAS threads: read with one."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        basis = patch_basis(self._patch.size).astype(np.float32) if self._patch.remove_mean else None
        x = np.empty((stop - start, self.n_features), np.float32)
        picture = int(np.searchsorted(self._start, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._start[picture + 1]))
            across = int(self._grid[picture, 1])
            first, last = ((row - int(self._start[picture])) // across for row in (start, end))
            strip = self._strip(picture, first, last)
            pixels = np.lib.stride_tricks.sliding_window_view(strip, self._patch.size)
            pixels = pixels[:: self._patch.stride, :: self._patch.stride].reshape(end - start, -1)
            self._features(pixels, basis, out=x[start - int(self.bounds[i]) : end - int(self.bounds[i])])
            start, picture = end, picture + 1
        return x

    def _features(self, pixels: np.ndarray, basis: np.ndarray | None, out: np.ndarray) -> None:
        """Features of patches of pixels, (n, p*q) -> (n, n_features), both float32."""
        if basis is None:
            out[:] = pixels
        else:
            np.matmul(pixels, basis, out=out)
        if self._patch.contrast is not None:
            # The basis is orthonormal: features have the length of the mean-free pixels.
            squares = pixels.var(axis=1) if basis is None else np.einsum("ij,ij->i", out, out) / pixels.shape[1]
            out /= np.maximum(np.sqrt(squares), np.float32(self._patch.contrast))[:, None]

    def _strip(self, picture: int, first: int, last: int) -> np.ndarray:
        """The pixels under rows first:last of patch positions, (height, width) float32 from 0 to 1."""
        grey = self._grey(picture)
        step, height = self._patch.stride, self._patch.size[0]
        strip = grey[first * step : (last - 1) * step + height]
        return strip.astype(np.float32) / np.float32(np.iinfo(grey.dtype).max)

    def _grey(self, picture: int) -> np.ndarray:
        """The decoded picture, (height, width) uint8 or uint16.

        Each thread caches its last one: consecutive chunks are mostly strips of the same large picture.
        """
        cached: tuple[int, np.ndarray] | None = getattr(self._cached, "picture", None)
        if cached is not None and cached[0] == picture:
            return cached[1]
        path = self._path(picture)
        grey = _decode(path, self._options)
        p, q = self._patch.size
        expected = (self._grid[picture] - 1) * self._patch.stride + [p, q]
        spare = np.array(grey.shape) - expected
        if (spare < 0).any() or (spare >= self._patch.stride).any():
            raise StorageError(f"{path}: got {grey.shape} pixels, not the size it had when opened. Restore it.")
        if self._spans_chunks(picture):
            self._cached.picture = (picture, grey)
        return grey

    def _spans_chunks(self, picture: int) -> bool:
        inside = self.bounds[1:-1]
        return bool(((inside > self._start[picture]) & (inside < self._start[picture + 1])).any())

    def _path(self, picture: int) -> str:
        return f"{self._folder or _photographs()}/{self._names[picture]}"

    def pictures(self) -> tuple[list[str], np.ndarray]:
        return [printable(name) for name in self._names], self._start[:-1].copy()

    def describe(self) -> dict[str, Any]:
        """Return how rows are cut, so that reports can map them back to pixels with `patch_basis`."""
        patch = self._patch.model_dump(include={"remove_mean", "contrast"})
        return {"kind": "patch", "size": list(self._patch.size), "channels": 1, **patch}

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


def _decode(path: str, options: Mapping[str, Any]) -> np.ndarray:
    """A picture in grey, (height, width): uint16 if it is stored so, else uint8."""
    from PIL import Image

    try:
        with open_binary(path, options) as stream, Image.open(stream, formats=_FORMATS) as picture:
            if picture.mode.startswith("I"):
                wide = np.asarray(picture)
                if wide.min() < 0 or wide.max() > 65535:
                    raise InputError(f"{path}: got values {wide.min()} to {wide.max()}, expected 16 bits. Scale it.")
                return wide.astype(np.uint16)
            return np.asarray(picture.convert("L"))
    except PipelineError:
        raise
    except Exception as error:  # each decoder has its own kinds
        raise StorageError(f"{path}: {_UNREADABLE} ({error}). {_RESTORE}") from error


def _size(path: str, options: Mapping[str, Any], patch: Patch) -> tuple[int, int]:
    """Height and width from the header alone. Raises InputError when no patch can be cut."""
    from PIL import Image

    with opening(path), open_binary(path, options) as stream:
        try:
            with Image.open(stream, formats=_FORMATS) as picture:
                (width, height), mode = picture.size, picture.mode
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{path}: {error}. Cut it into smaller pictures, or set PIL.Image.MAX_IMAGE_PIXELS."
            ) from error
        except Exception as error:
            raise StorageError(f"{path}: {_UNREADABLE} ({error}). {_RESTORE}") from error
    if mode == "F":
        raise InputError(f"{path}: has floating-point pixels, expected 8 or 16 bits. Convert it first.")
    if height < patch.size[0] or width < patch.size[1]:
        raise InputError(
            f"{path}: is {height} x {width} pixels, expected at least one patch of {patch.size[0]} x {patch.size[1]}. "
            "Take it out of the folder, or make data.patch.size smaller."
        )
    return height, width


def open_patches(path: str | None, options: Mapping[str, Any], patch: Patch) -> ImageSource:
    """Open the patches of a folder of pictures or of a single one; None: scikit-learn's photographs."""
    if patch.remove_mean and patch.size == (1, 1):
        raise InputError("data.patch: got size [1, 1] with remove_mean, which leaves nothing. Make it larger.")
    folder = None if path is None else path.rstrip("/")
    names = _names(folder or _photographs(), options)
    if names is None and folder is not None:
        folder, _, name = folder.rpartition("/")
        names = [name]
    if not names:
        suffixes = ", ".join(sorted(_SUFFIXES))
        raise InputError(
            f"{path}: has no pictures ({suffixes}). Give data.path their folder, or set data.source to what it is."
        )
    sizes = [_size(f"{folder or _photographs()}/{name}", options, patch) for name in names]
    return ImageSource(folder, options, names, np.array(sizes, np.int64), patch)


def _names(folder: str, options: Mapping[str, Any]) -> list[str] | None:
    """Sorted names of the pictures in a folder; None when it is a file itself."""
    with opening(folder):
        if is_url(folder):
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(folder, **options)
            if filesystem.isfile(root):
                return None
            found = [str(name).rsplit("/", 1)[-1] for name in filesystem.ls(root, detail=False)]
        elif os.path.isfile(folder):
            return None
        else:
            found = os.listdir(folder)
    return sorted(n for n in found if os.path.splitext(n)[1].lower() in _SUFFIXES and not n.startswith("."))


def _photographs() -> str:
    """The folder of the two photographs that scikit-learn brings, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("data.path: photographs come with scikit-learn, which is not installed. Install it.")
    return os.path.join(spec.submodule_search_locations[0], "datasets", "images")
