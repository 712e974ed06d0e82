"""Whole chunks of a local zarr array, each decoded into its place in the rows that are returned.

zarr hands a chunk from its event loop to two threads, and copies what is decoded: in passes of little arithmetic, a third of the
time. Whatever is not plain is left to zarr, errors included.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import BytesCodec

from pipeline.arrays.bombs import stated_bytes, stated_length
from pipeline.arrays.dtypes import Array
from pipeline.arrays.stores import guarded

CAN_FETCH = hasattr(os, "posix_fadvise")  # whether the system can be asked to
_DECODERS: dict[str, Callable[[Any, Any], Any]] = {"zstd": zstd.decompress, "blosc": blosc.decompress}


def read_whole_chunks(path: str, name: str, start: int, stop: int, then: int = 0) -> Array | None:
    """Read rows that are whole stored chunks.

    Parameters
    ----------
    path, name : str
        Of the store, and of the array in it.
    start, stop : int
        Along the first axis.
    then : int
        Rows that follow, which the system may read ahead.

    Returns
    -------
    array, shape (stop - start, ...), or None
        None where the rows are no whole chunks, these are encoded by something else than zstd or blosc alone, or one of them is absent or
        odd: zarr reads it, or says what is wrong.
    """
    folder = Path(path, name)
    array = _plain_array(path, name, _stamp(folder))
    if array is None or start % array.chunks[0] or stop % array.chunks[0] or stop > array.shape[0]:
        return None
    announce(_files(folder, array, stop, min(stop + then, array.shape[0])))
    compressor, unit = _compressor(array), array.chunks[0]
    found = np.empty((stop - start, *array.shape[1:]), array.dtype)
    for at, file in zip(range(0, len(found), unit), _files(folder, array, start, stop), strict=True):
        if not _decode(file, compressor, found[at : at + unit]):
            return None
    return found


def announce(files: Iterable[str | Path]) -> None:
    """Ask the system to read files into its cache, without waiting, if it can."""
    if not CAN_FETCH:
        return
    for path in files:
        with suppress(OSError):  # absent or unreadable: the read itself raises
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def _stamp(folder: Path) -> tuple[int, ...]:
    """What changes where the metadata of an array are written again; nothing where there are none."""
    for name in ("zarr.json", ".zarray"):
        with suppress(OSError):
            found = os.stat(folder / name)
            return found.st_ino, found.st_size, found.st_mtime_ns
    return ()


@lru_cache(maxsize=8)
def _plain_array(path: str, name: str, stamp: tuple[int, ...]) -> Any:
    """The array if its chunks are whole rows, in the bytes of this machine, compressed once; else None. stamp : of its metadata."""
    try:
        array = zarr.open_array(guarded(path), path=name, mode="r")
        is_plain = array.shards is None and array.order == "C" and not array.filters and array.chunks[0] > 0
    except Exception:  # as `ZarrPlace` will say
        return None
    if array.metadata.zarr_format == 3:
        is_plain = is_plain and array.serializer == BytesCodec(endian=sys.byteorder)
    is_plain = is_plain and array.dtype.isnative and array.chunks[1:] == array.shape[1:]
    return array if is_plain and len(array.compressors) == 1 and _compressor(array) in _DECODERS else None


def _compressor(array: Any) -> str:
    only = array.compressors[0]
    return str(only.codec_id if array.metadata.zarr_format == 2 else only.to_dict()["name"])


def _files(folder: Path, array: Any, start: int, stop: int) -> list[Path]:
    """The files of the stored chunks under rows."""
    numbers = range(start // array.chunks[0], -(-stop // array.chunks[0]))
    return [folder / array.metadata.encode_chunk_key((i, *[0] * (array.ndim - 1))) for i in numbers]


def _decode(file: Path, compressor: str, rows: Array) -> bool:
    """Decode a file into rows, if it states that it holds as many bytes. Returns whether it did."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe might never end
            return False
        stored = memoryview(file.read_bytes())
        if stated_bytes(stored, compressor, rows.nbytes) != rows.nbytes or len(stored) < stated_length(
            stored, compressor
        ):
            return False
        _DECODERS[compressor](stored, rows)
    except (OSError, RuntimeError, ValueError):
        return False
    return True
