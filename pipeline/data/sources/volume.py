"""Patches of volumes and of other n-dimensional images in zarr: a plain array, or OME-Zarr. Cut when they are read and never stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import zarr
from pydantic import Field

from pipeline.arrays.dtypes import compute_dtype
from pipeline.config import AnyPath, Section
from pipeline.data.axes import SPACE, Axis, axes_of, multiscale, only_array
from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import native
from pipeline.data.grid import Grid
from pipeline.data.patch import patch_basis, remove_mean_field, write_features
from pipeline.data.section import FileSection
from pipeline.data.source import Source, rows_per_target
from pipeline.data.stores import ZarrPlace, listing, unprotected
from pipeline.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

_TIMES = 16  # bytes of stored chunks that a read may decode for each byte of rows
_Side = Annotated[int, Field(ge=1)]


class VolumePatch(Section):
    """How a volume is cut into rows."""

    size: tuple[_Side, _Side] | tuple[_Side, _Side, _Side] = Field(
        (4, 4, 4), description="of a patch, in voxels along z, y and x; two numbers: patches of planes, along y and x"
    )
    stride: int = Field(1, ge=1, description="voxels from one patch to the next, along each of these")
    remove_mean: bool = remove_mean_field
    contrast: float | None = Field(
        None, gt=0, description="divide each patch by its deviation, floored at this value, in the units of the data"
    )


class VolumeSection(FileSection):
    """Patches of an n-dimensional zarr array or OME-Zarr image; channels are features, time and place are rows."""

    source: Literal["volume"] = Field("volume", description="patches of a volume or an n-dimensional image in zarr")
    path: AnyPath = Field(description="a zarr array, a group with one, an OME-Zarr image, or an fsspec URL of these")
    variable: str | None = Field(
        None, description="which array of a group; null: of OME-Zarr that of `level`, else the only one"
    )
    level: int = Field(0, ge=0, description="of OME-Zarr, which resolution; 0: the finest")
    axes: list[Literal["t", "c", "z", "y", "x"]] | None = Field(
        None,
        description="what the dimensions of the array are, in its order; null: as OME-Zarr or the array name them, else the last of [t, c, z, y, x] (3: [z, y, x])",
    )
    patch: VolumePatch = Field(default_factory=VolumePatch, description="how the array is cut into rows")

    reads_stores: ClassVar[bool] = True
    also_called: ClassVar[tuple[str, ...]] = ("ome-zarr", "ome_zarr")

    def open(self) -> Source:
        place = ZarrPlace(self.path, self.storage_options, self.missing_chunks)
        with place.node() as node:
            levels = (multiscale(node, str(place)) if isinstance(node, zarr.Group) else None) or []
            if self.level and self.level >= len(levels):
                found = f"has {len(levels)} levels" if levels else "is no OME-Zarr image"
                raise InputError(
                    f"data.level: got {self.level}, but {place} {found}, which are counted from 0. Correct it."
                )
            if isinstance(node, zarr.Group):
                name = self.variable or (levels[self.level][0] if levels else only_array(node, str(place)))
                place = place.child(name.strip("/"))
            elif self.variable is not None:
                raise InputError(f"data.variable: got {self.variable!r}, but {place} is an array. Leave it out.")
            named = dict(levels).get(place.name, [])
        with place.node() as array:
            if not isinstance(array, zarr.Array):
                raise InputError(f"{place}: is a group, expected an array. Set data.variable. {listing(array)}")
            refuse_encoded(str(place), array)
            return VolumeSource(place, array, axes_of(self.axes, named, array, str(place)), self.patch)


class VolumeSource(Source):
    """Patches of an array by their positions: dimensions as they are stored, without channels, which vary fastest in a row.

    Parameters
    ----------
    place : ZarrPlace
    array : zarr.Array
        The opened array at `place`.
    axes : sequence of Axis
        Its dimensions.
    patch : VolumePatch
    """

    def __init__(self, place: ZarrPlace, array: Any, axes: Sequence[Axis], patch: VolumePatch) -> None:
        names = [axis.name for axis in axes]
        cut = SPACE[-len(patch.size) :]
        if missing := set(cut) - set(names):
            raise InputError(
                f"data.patch.size: got {len(patch.size)} numbers, but {place} has no {missing.pop()}, its axes are {', '.join(names)}. "
                "Give two numbers for patches of planes."
            )
        self._place, self._axes, self._patch = place, tuple(axes), patch
        self._side = {name: side for name, side in zip(cut, patch.size, strict=True)}
        shape = dict(zip(names, map(int, array.shape), strict=True))
        for name, side in self._side.items():
            if shape[name] < side:
                raise InputError(
                    f"{place}: has {shape[name]} voxels along {name}, expected at least the {side} of a patch. Make data.patch.size smaller."
                )
        self._channels = shape.get("c", 1)
        self.dtype = compute_dtype(np.dtype(np.uint8) if array.dtype.kind == "b" else array.dtype)
        self.n_features = self._channels * (math.prod(patch.size) - int(patch.remove_mean))
        if not self.n_features:
            raise InputError("data.patch: got size 1 with remove_mean, which leaves nothing. Make it larger.")
        of_rows = [axis for axis in axes if axis.name != "c"]
        self._grid = Grid(
            tuple(axis.name for axis in of_rows),
            tuple(self._positions(axis.name, shape[axis.name]) for axis in of_rows),
        )
        block = self._grid.block_shape(rows_per_target(self.n_features, self.dtype.itemsize))
        self._block = block
        starts = [each.start for each in self._grid.blocks(block)]
        self.bounds = np.append(np.array(starts, np.int64), np.int64(self._grid.n_rows))
        self._decoded = self._decoded_bytes(array, shape, dict(zip(self._grid.dims, block, strict=True)))
        codecs = unprotected(array)
        self._unprotected = None if codecs is None else f"{place} (codecs: {codecs})"

    def _positions(self, name: str, size: int) -> int:
        side = self._side.get(name)
        return size if side is None else (size - side) // self._patch.stride + 1

    def _span(self, name: str, start: int, stop: int) -> slice:
        """The entries of an axis under positions start:stop."""
        side, stride = self._side.get(name), self._patch.stride
        return slice(start, stop) if side is None else slice(start * stride, (stop - 1) * stride + side)

    def _decoded_bytes(self, array: Any, shape: Mapping[str, int], block: Mapping[str, int]) -> int:
        """The bytes of the stored chunks under a block of rows, at most. Raises InputError where these are too many."""
        voxels, itemsize = 1, array.dtype.itemsize
        for axis, step in zip(self._axes, array.chunks, strict=True):
            size = shape[axis.name]
            wanted = size if axis.name == "c" else self._span(axis.name, 0, block[axis.name])
            length = wanted if isinstance(wanted, int) else wanted.stop - wanted.start
            touched = min(-(-size // step), (length - 2 + step) // step + 1 if length > 1 else 1)
            voxels *= touched * step
        of_rows = math.prod(block.values()) * self.n_features * self.dtype.itemsize
        if voxels * itemsize > _TIMES * max(of_rows, 2**20):
            raise InputError(
                f"{self._place}: is stored in chunks of {' x '.join(map(str, array.chunks))} voxels, of which a block of {math.prod(block.values())} "
                f"patches decodes {voxels * itemsize / 2**20:.0f} MiB for {of_rows / 2**20:.1f} MiB of rows. Store it in smaller chunks, such as "
                "one plane or 64 voxels along each axis."
            )
        return int(voxels * itemsize)

    def read(self, i: int) -> np.ndarray:
        """Read chunk i. Its bits depend on the number of BLAS threads: read with one."""
        block = next(iter(self._grid.blocks(self._block, int(self.bounds[i]))))
        span = {
            name: self._span(name, part.start, part.stop) for name, part in zip(self._grid.dims, block.box, strict=True)
        }
        box = tuple(span.get(axis.name, slice(0, self._channels)) for axis in self._axes)
        voxels = native(self._place.read_box(box), self.dtype)
        names = [axis.name for axis in self._axes]
        at = tuple(names.index(name) for name in self._side)
        windows = np.lib.stride_tricks.sliding_window_view(voxels, tuple(self._side.values()), axis=at)
        windows = windows[
            tuple(slice(None, None, self._patch.stride if name in self._side else None) for name in names)
        ]
        if "c" in names:
            windows = np.moveaxis(windows, names.index("c"), -1)
        rows = block.stop - block.start
        basis = None
        if self._patch.remove_mean:
            basis = patch_basis(self._patch.size, self._channels).astype(self.dtype)
        x = np.empty((rows, self.n_features), self.dtype)
        write_features(windows.reshape(rows, -1), basis, self._patch.contrast, out=x)
        return x

    def describe(self) -> dict[str, Any]:
        """Return how rows are cut, so that reports can map them back to voxels with `patch_basis`."""
        patch = self._patch.model_dump(include={"remove_mean", "contrast"})
        dims = dict(zip(self._grid.dims, self._grid.shape, strict=True))
        return {"kind": "patch", "size": list(self._patch.size), "channels": self._channels, "dims": dims, **patch}

    def rows_on(self) -> tuple[Grid, xr.Dataset]:
        """Return the grid of the patches and the places of their centres, in the units of the axes."""
        import xarray as xr

        coordinates = {}
        for axis in self._axes:
            if axis.name != "c":
                side, step = self._side.get(axis.name, 1), self._patch.stride if axis.name in self._side else 1
                size = self._grid.shape[self._grid.dims.index(axis.name)]
                centre = np.arange(size) * step + (side - 1) / 2
                attributes = {"units": axis.unit} if axis.unit else {}
                coordinates[axis.name] = (axis.name, axis.shift + axis.step * centre, attributes)
        return self._grid, xr.Dataset(coords=coordinates)

    def object_sizes(self) -> list[int]:
        return self._place.object_sizes()

    def unprotected(self) -> str | None:
        return self._unprotected

    def decoding(self) -> tuple[int, str]:
        """Return what stored chunks hold, encoded and decoded, the voxels of a block, and its pixels beside its features."""
        pixels = int(np.diff(self.bounds).max()) * math.prod(self._patch.size) * self._channels * self.dtype.itemsize
        return 3 * self._decoded + pixels, "store the array in smaller chunks"
