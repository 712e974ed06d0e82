"""Zarr arrays and where they are stored, read so that absent chunks are errors.

zarr reads an absent chunk as fill values, without a warning, so that an unmounted disk looks like zeros. Here every
chunk is read through a store that raises if the object is absent, unless the config says that absent chunks are intended
(`missing_chunks: fill`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pipeline.arrays.stores import METADATA, GuardedStore
from pipeline.config.paths import is_url
from pipeline.data.files import damaged, reading, refuse_absent, remedy
from pipeline.data.place import Place
from pipeline.data.whole_chunks import CAN_FETCH, announce, read_whole_chunks
from pipeline.errors import InputError, PipelineError, StorageError

# Codecs that store a sum of what they encode and compare it when they decode; zstd does so where it is asked to.
_CHECKED = {"crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3", "gzip", "zlib", "bz2", "lzma"}


class _WholeStore(WrapperStore[Any]):
    """A store in which an absent chunk is an error, not fill values."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and key.rsplit("/", 1)[-1] not in METADATA:
            raise StorageError(
                f"{self._store}: chunk {key} is missing. Mount or restore the storage; if the store leaves out chunks "
                "of nothing but the fill value on purpose, set data.missing_chunks=fill."
            )
        return value


class ZarrPlace(Place):
    """Where a zarr array or group is."""

    def open(self) -> Any:
        """Open the zarr Array or Group. Raises what zarr raises."""
        # Consolidated metadata may be older than the arrays.
        return zarr.open(self.store(), path=self.name, mode="r", use_consolidated=False)

    def store(self) -> Any:
        """Return the store behind its guards."""
        store: Any
        if is_url(self.path):
            store = FsspecStore.from_url(self.path, storage_options=self.options, read_only=True)
        else:
            store = LocalStore(self.path, read_only=True)
        store = GuardedStore(store)
        return _WholeStore(store) if self.missing_chunks == "error" else store

    def open_first(self) -> Any:
        """Open the zarr Array or Group for the first time. Raises InputError when there is none."""
        refuse_absent(self.path)
        if not is_url(self.path) and os.path.isfile(self.path):
            raise InputError(
                f"{self.path}: is a file, expected a zarr store, which is a folder. Set data.source to what it is."
            )
        with self.opening():
            return self.open()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Context in which errors of zarr's about metadata become InputError."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # every store and codec has its own kinds
            advice = remedy(self.path, error) or "Check data.path and data.variable"
            raise InputError(
                f"{self}: no zarr array or group can be opened here ({type(error).__name__}: {error}). {advice}."
            ) from error

    @contextmanager
    def node(self) -> Iterator[Any]:
        """Context with the zarr Array or Group, opened for the first time. Raises InputError when there is none."""
        node = self.open_first()
        with self.opening():
            yield node

    @property
    def fetches_ahead(self) -> bool:
        """Whether the system reads into its cache what follows a box, without waiting."""
        return CAN_FETCH and not is_url(self.path)

    def read(self, start: int, stop: int, then: int = 0) -> np.ndarray:
        """Read entries start:stop along the first axis, as `read_box`. then : how many following ones the disk may read ahead."""
        return self.read_box((slice(start, stop),), then)

    def read_box(self, box: tuple[slice, ...], then: int = 0) -> np.ndarray:
        """Read a box of entries.

        Parameters
        ----------
        box : tuple of slice
            Of the first axes; the others are read whole.
        then : int
            Number of entries along the first axis, after the box, that the disk may read ahead.

        Raises
        ------
        StorageError
            Naming the stored chunk that is missing or damaged.
        """
        start, stop, local = box[0].start, box[0].stop, not is_url(self.path)
        found = read_whole_chunks(self.path, self.name, start, stop, then) if local and len(box) == 1 else None
        if found is not None:
            return found
        try:
            array = self.open()
        except Exception as error:
            raise damaged(str(self), f"it could be opened before and now {type(error).__name__}: {error}") from error
        if any(size < part.stop for size, part in zip(array.shape, box, strict=False)):
            raise damaged(f"{self}, {_named(box)}", f"it has shrunk to shape {array.shape}")
        if local and stop < (end := min(stop + then, array.shape[0])):
            keys = map(array.metadata.encode_chunk_key, _stored(array, (slice(stop, end), *box[1:])))
            announce(os.path.join(self.path, self.name, key) for key in keys)
        try:
            if self.missing_chunks == "error":
                refuse_holes(array, box)
            return np.asarray(array[box])
        except StorageError:
            raise
        except Exception as error:
            raise damaged(self._name_damage(array, box), f"{type(error).__name__}: {error}") from error

    def _name_damage(self, array: Any, box: tuple[slice, ...]) -> str:
        """Name the chunk under a box that cannot be decoded, which the error of a whole read does not."""
        steps = array.shards or array.chunks
        for where in _stored(array, box):
            try:
                array[tuple(slice(w * step, (w + 1) * step) for w, step in zip(where, steps, strict=True))]
            except Exception:
                return f"{self}, chunk {array.metadata.encode_chunk_key(where)}"
        return f"{self}, {_named(box)}"

    def object_sizes(self) -> list[int]:
        """Return the bytes of each stored chunk, in the order of the keys."""
        with reading(str(self)):
            if is_url(self.path):
                import fsspec

                filesystem, root = fsspec.core.url_to_fs(self.path, **self.options)
                found = filesystem.find(f"{root}/{self.name}" if self.name else root, detail=True)
                sizes = {key: entry["size"] for key, entry in found.items()}
            else:
                top = os.path.join(self.path, self.name)
                names = (os.path.join(folder, name) for folder, _, files in os.walk(top) for name in files)
                sizes = {name: os.path.getsize(name) for name in names}
        return [int(sizes[key]) for key in sorted(sizes) if key.rsplit("/", 1)[-1] not in METADATA]


@dataclass(frozen=True)
class WholeRows:
    """A zarr array that a program has opened, of which absent chunks are an error. Picklable if its store is."""

    array: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim"):
            return getattr(self.array, name)
        raise AttributeError(name)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        whole = zarr.open_array(_WholeStore(GuardedStore(self.array.store)), path=self.array.path, mode="r")
        start, stop, _ = index[0].indices(self.array.shape[0])
        refuse_holes(whole, (slice(start, stop),))
        return np.asarray(whole[index])


def refuse_holes(array: Any, box: tuple[slice, ...]) -> None:
    """Raise StorageError where inner chunks of the shards under a box were never written. box : as of `ZarrPlace.read_box`.

    zarr would read them as fill values. A shard has an index of offset and length of each inner chunk, all bits set for one
    that is absent. [Zarr v3, sharding codec, version 1.0]
    """
    codecs = array.metadata.to_dict()["codecs"] if array.shards else ()
    for codec in (c["configuration"] for c in codecs if c["name"] == "sharding_indexed"):
        inner = [-(-shard // chunk) for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        n_bytes = 16 * int(np.prod(inner, dtype=np.int64))
        sums = 4 * sum(each["name"] == "crc32c" for each in codec["index_codecs"])
        at_end = codec.get("index_location", "end") == "end"
        span = SuffixByteRequest(n_bytes + sums) if at_end else RangeByteRequest(0, n_bytes + sums)
        for where in _stored(array, box):
            key = array.metadata.encode_chunk_key(where)
            found = sync(array.store.get(f"{array.path}/{key}".lstrip("/"), default_buffer_prototype(), span))
            if found is None or len(found) < n_bytes:
                raise damaged(f"{array.store_path}, chunk {key}", "it is shorter than its index")
            index = np.frombuffer(found.to_bytes()[:n_bytes], "<u8").reshape(*inner, 2)
            # Inner chunks beyond the end of the array are not stored.
            filled = tuple(
                slice(-(-min(size - w * shard, shard) // chunk))
                for size, w, shard, chunk in zip(array.shape, where, array.shards, array.chunks, strict=True)
            )
            absent = int((index[filled] == 2**64 - 1).all(axis=-1).sum())
            if absent:
                raise StorageError(
                    f"{array.store_path}: {absent} chunks inside shard {key} were never written. Write them; if the store "
                    "leaves out chunks of nothing but the fill value on purpose, set data.missing_chunks=fill."
                )


def _named(box: tuple[slice, ...]) -> str:
    return ", ".join(f"{part.start}:{part.stop}" for part in box)


def _stored(array: Any, box: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
    """Grid indices of the stored chunks (or shards) under a box."""
    steps = array.shards or array.chunks
    ends = [*((part.start, part.stop) for part in box), *((0, size) for size in array.shape[len(box) :])]
    return product(*(range(start // step, -(-stop // step)) for (start, stop), step in zip(ends, steps, strict=True)))


def stored_chunk(array: Any) -> tuple[int, ...]:
    """Return the shape of what is stored together of an array of zarr or h5py: a shard, a chunk, or a row."""
    return tuple(getattr(array, "shards", None) or array.chunks or (1, *array.shape[1:]))


def unprotected(array: Any) -> str | None:
    """Return the codecs of an array of zarr or h5py if none of them would detect a flipped bit, else None."""
    if hasattr(array, "fletcher32"):
        return None if array.fletcher32 or array.compression == "gzip" else str(array.compression).lower()
    found = [codec.get_config() if hasattr(codec, "get_config") else codec.to_dict() for codec in _codecs(array)]
    names = [str(codec.get("id") or codec.get("name")).removeprefix("numcodecs.") for codec in found]
    sums = [codec.get("checksum") or dict(codec.get("configuration") or {}).get("checksum") for codec in found]
    return None if any(sums) or _CHECKED & set(names) else ", ".join(names) or "none"


def _codecs(array: Any) -> tuple[Any, ...]:
    return (*array.filters, *array.compressors)  # of a sharded array the inner ones


def listing(group: zarr.Group) -> str:
    """Return the content of a group, for messages."""
    arrays = ", ".join(f"{name} {array.shape}" for name, array in sorted(group.arrays())) or "none"
    groups = ", ".join(sorted(name for name, _ in group.groups()))
    return f"Arrays here: {arrays}" + (f"; groups: {groups}." if groups else ".")
