"""The one guard of every zarr store that is opened, whoever wrote it: what is not known to be plain numbers is not decoded.

It stands below zarr, and looks at metadata before zarr makes codecs of them. Codecs and dtypes are on a list: among zarr's are
some that unpickle what they read. What a chunk decodes to is bounded (arrays/bombs.py), and what is no regular file is not read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

from pipeline.arrays.bombs import Chunk, Shard, compressor_of
from pipeline.errors import InputError, StorageError

METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
METADATA_BYTES = 256 * 2**20  # of one JSON file: a vocabulary may be in it
CHUNK_BYTES = 2**36  # that one stored chunk may declare; what fits into memory is the plan's business
DECLARED, RATIO = 256 * 2**20, 100  # bytes that the arrays of a small store may have, and for each stored byte

_PLAIN = (
    "adler32",
    "astype",
    "bitround",
    "blosc",
    "bz2",
    "crc32",
    "crc32c",
    "delta",
    "fixedscaleoffset",
    "fletcher32",
    "gzip",
    "jenkins_lookup3",
    "lz4",
    "lzma",
    "packbits",
    "quantize",
    "shuffle",
    "zlib",
    "zstd",
)
CODECS = {*_PLAIN, *(f"numcodecs.{name}" for name in _PLAIN), "bytes", "endian", "sharding_indexed", "transpose"}
_TEXT = "vlen-utf8"  # the codec of strings, which NumPy's objects stand for in zarr v2
_V3_TYPES = re.compile(
    r"bool|u?int(8|16|32|64)|b?float(16|32|64)|complex(64|128)|string|r\d+|fixed_length_utf32|null_terminated_bytes|raw_bytes"
    r"|numpy\.(datetime|timedelta)64|structured?"
)


class Refused(InputError, ValueError):
    """A store that is not decoded."""


class Damaged(StorageError, ValueError):
    """A store whose metadata cannot be read."""


class GuardedStore(WrapperStore[Any]):
    """A store whose metadata are checked before zarr sees them."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._chunks: dict[str, Chunk] = {}  # by the path of their array

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        is_metadata = key.rsplit("/", 1)[-1] in METADATA
        self._refuse_special(key, METADATA_BYTES if is_metadata else None)
        value = await self._store.get(key, prototype, byte_range)
        if value is None:
            return None
        if is_metadata:
            for path, array in _arrays(key, value.to_bytes(), str(self._store)):
                self._chunks[path] = _refuse_odd(array, f"{self._store}/{path}".rstrip("/"))
        else:
            self._refuse_chunk(key, memoryview(value.as_numpy_array()), byte_range is None)
        return value

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write, unless it is there. LocalStore would make a hard link; nobody else writes into a folder that is locked or temporary."""
        if not await self.exists(key):
            await self.set(key, value)

    def _refuse_special(self, key: str, most: int | None) -> None:
        """Raise Refused for what is no regular file: a device or a pipe may never end."""
        inner = self._store
        while isinstance(inner, WrapperStore):
            inner = inner._store
        if not isinstance(inner, LocalStore):
            return
        try:
            found = os.stat(inner.root / key)
        except (OSError, ValueError):
            return  # absent, as zarr will find
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise Refused(
                f"{inner.root / key}: is no regular file, expected one of a zarr store. Copy the store again."
            )
        if most is not None and found.st_size > most:
            raise Refused(
                f"{inner.root / key}: has {found.st_size} bytes, expected at most {most} of metadata. Write it again."
            )

    def _refuse_chunk(self, key: str, stored: memoryview, is_whole: bool) -> None:
        """Raise Damaged for an encoded chunk that is cut, Refused for one that holds much more than its array's. is_whole : not a part of a shard."""
        folders = key.split("/")
        known = (self._chunks.get("/".join(folders[:i])) for i in range(len(folders) - 1, -1, -1))
        chunk = next((found for found in known if found is not None), None)
        if chunk is None:
            return
        if chunk.is_cut(stored, is_whole):
            raise Damaged(f"{self._store}/{key}: has fewer bytes than it states. Restore the store.")
        wrong = chunk.problem(stored, is_whole)
        if wrong is not None:
            raise Refused(f"{self._store}/{key}: {wrong}. Write the store again.")


def guarded(path: str | Path, read_only: bool = True) -> GuardedStore:
    """Return the store in a local folder, with the guard."""
    return GuardedStore(LocalStore(Path(path), read_only=read_only))


def open_group(path: str | Path) -> zarr.Group:
    """Open the group in a local folder, to read. Raises what zarr raises when there is none, and Refused."""
    return zarr.open_group(guarded(path), mode="r")


def open_whole(path: str | Path) -> GuardedStore:
    """Return the guarded store of a folder whose arrays are all read into memory.

    Raises
    ------
    Refused
        If they declare far more than is stored: some 100 bytes for each.
    """
    stored = declared = 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if not file.is_file():
                continue
            size = file.stat().st_size
            stored += size
            if name in ("zarr.json", ".zarray") and size <= METADATA_BYTES:
                for _, array in _arrays(name, file.read_bytes(), str(file)):
                    declared += _bytes(_shape(array, "shape", str(file)), array)
    if declared > DECLARED + RATIO * stored:
        raise Refused(
            f"{path}: declares {declared} bytes in {stored}, expected no more than {RATIO} a byte. Write it again."
        )
    return guarded(path)


def _arrays(key: str, text: bytes, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The metadata of each array that a JSON file describes, by its path in the store."""
    name, folder = key.rsplit("/", 1)[-1], key.rpartition("/")[0]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}/{key}: is no JSON ({error}). Restore the store.") from error
    if not isinstance(found, dict):
        raise Damaged(f"{where}/{key}: got {str(found)[:40]}, expected the metadata of zarr. Restore the store.")
    if not isinstance(found.get("attributes", {}), dict):
        raise Damaged(
            f"{where}/{key}: got attributes {str(found['attributes'])[:40]}, expected a mapping. Restore the store."
        )
    if name == ".zarray" or (name == "zarr.json" and found.get("node_type") == "array"):
        yield folder, found
    inner = found.get("consolidated_metadata") if name == "zarr.json" else found
    inner = inner.get("metadata") if isinstance(inner, dict) and name in ("zarr.json", ".zmetadata") else None
    for path, each in inner.items() if isinstance(inner, dict) else ():
        if isinstance(each, dict) and (str(path).endswith(".zarray") or each.get("node_type") == "array"):
            yield "/".join(filter(None, (folder, str(path).removesuffix(".zarray").rstrip("/")))), each


def _refuse_odd(array: Mapping[str, Any], where: str) -> Chunk:
    """What its chunks are. Raises Refused for a codec or dtype that is on no list, and for absurd sizes."""
    is_v2 = "node_type" not in array
    chain = _chain(array)
    found = [_named(codec)[0] for codec in chain]
    sharding = next((_named(codec)[1] for codec in chain if _named(codec)[0] == "sharding_indexed"), None)
    inner = [] if sharding is None else _chain(sharding)
    found += [_named(codec)[0] for codec in (*inner, *((sharding or {}).get("index_codecs") or ()))]
    wanted = CODECS | {_TEXT} if found.count(_TEXT) == 1 else CODECS
    for name in found:
        if name not in wanted:
            raise Refused(
                f"{where}: is encoded by {name!r}, which is not decoded: it is not known to hold plain values only. Write the "
                "array as plain numbers, compressed by zstd, blosc or gzip."
            )
    dtype = array.get("dtype" if is_v2 else "data_type")
    if not (_is_plain_v2(dtype, _TEXT in found) if is_v2 else _is_plain_v3(dtype)):
        raise Refused(f"{where}: has dtype {str(dtype)[:60]}, which is not decoded. Write the array as plain numbers.")
    shape = _shape(array, "shape", where)
    chunks = _shape(array, "chunks", where) if is_v2 else _grid(array, where)
    if len(chunks) != len(shape) or any(n and not chunk for n, chunk in zip(shape, chunks, strict=True)):
        raise Damaged(
            f"{where}: got chunks {str(chunks)[:60]} of shape {str(shape)[:60]}, expected as many, above 0. Restore the store."
        )
    size = _bytes(shape, array, chunks)
    if size > CHUNK_BYTES:
        raise Refused(
            f"{where}: declares chunks of {size} bytes, expected at most {CHUNK_BYTES}. Write it in smaller chunks."
        )
    if dtype in ("|O", "string"):
        size = CHUNK_BYTES
    try:
        if sharding is None:
            return Chunk(size, compressor_of(list(map(_named, chain))))
        if found.count("sharding_indexed") > 1 or chain[-1] != chain[found.index("sharding_indexed")]:
            raise ValueError("is sharded within shards, or encoded again behind them, which is not decoded")
        each = _shape(sharding, "chunk_shape", where)
        if len(each) != len(chunks) or not all(each):
            raise ValueError(f"got shards {chunks} of chunks {str(each)[:60]}")
        count = math.prod(-(-whole // part) for whole, part in zip(chunks, each, strict=True))
        inside = size if dtype == "string" else _bytes(shape, array, each)
        at_end = sharding.get("index_location", "end") == "end"
        sums = 4 * found.count("crc32c") if sharding.get("index_codecs") else 0
        return Chunk(inside, compressor_of(list(map(_named, inner))), Shard(count, at_end, sums))
    except ValueError as error:
        raise Refused(f"{where}: {error}. Write the array again, in the plain way.") from error


def _chain(array: Mapping[str, Any]) -> list[Any]:
    """The codecs of an array, or of the chunks in its shards, in the order in which they encode."""
    parts = [*(array.get("filters") or []), *(array.get("codecs") or []), array.get("compressor")]
    return [codec for codec in parts if codec is not None]


def _named(codec: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and options of a codec, in either format."""
    named = codec if isinstance(codec, dict) else {"name": codec}
    options = named.get("configuration", named if "id" in named else None)
    return str(named.get("id") or named.get("name")), options if isinstance(options, dict) else {}


def _is_plain_v2(dtype: Any, is_text: bool) -> bool:
    if isinstance(dtype, list):  # of records
        return all(isinstance(field, list) and len(field) > 1 and _is_plain_v2(field[1], False) for field in dtype)
    return isinstance(dtype, str) and (
        dtype == "|O" if is_text else re.fullmatch(r"[<>|=]?[biufcSUVMm].*", dtype) is not None
    )


def _is_plain_v3(dtype: Any) -> bool:
    return _V3_TYPES.fullmatch(str(dtype.get("name") if isinstance(dtype, dict) else dtype)) is not None


def _grid(array: Mapping[str, Any], where: str) -> list[int]:
    grid = array.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    return _shape(inner if isinstance(inner, dict) else {}, "chunk_shape", where)


def _shape(found: Mapping[str, Any], key: str, where: str) -> list[int]:
    shape = found.get(key)
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise Refused(f"{where}: got {key} {str(shape)[:60]}, expected whole numbers. Restore the store.")
    return shape


def _bytes(shape: list[int], array: Mapping[str, Any], chunks: list[int] | None = None) -> int:
    """Bytes of an array, or of one of its chunks."""
    dtype = array.get("dtype", array.get("data_type"))
    try:
        width = np.dtype(dtype).itemsize if isinstance(dtype, str) and dtype != "string" else 8
    except TypeError:
        width = 8
    return width * math.prod(chunks if chunks is not None else shape)
