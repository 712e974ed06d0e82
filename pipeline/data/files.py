"""Tables in one binary file: `.npy`, and the IDX format of MNIST; and what all files have in common.

A file is a local path or any fsspec URL, opened anew for each read. Rows go from the file into a fresh
buffer: a mapped file would count against the job's memory for as long as its pages stay around.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.config import Data
from pipeline.data.source import Source, even_bounds, row_dtype, rows_per_target
from pipeline.errors import InputError, PipelineError, StorageError, does_not_exist

# gzip cannot seek: a read decompresses all that comes before it. Up to this many decompressed bytes (about eight
# chunks, 0.2 s) that costs less than it is worth to avoid; a larger file is unpacked once, into data.cache.
GZIP_BYTES = 64 * 2**20
BUFFER_BYTES = 2**20  # of a remote file: what small reads fetch at a time
# What the messages of remote filesystems have in them, and what helps.
_REMEDIES = {
    "credentials": "Give data.storage_options {key: …, secret: …}, or set them in the environment; as they are never "
    "stored, a resume needs them again",
    "bucket does not exist": "Check the bucket's name, and endpoint_url in data.storage_options",
    "NoSuchBucket": "Check the bucket's name, and endpoint_url in data.storage_options",
    "Forbidden": "Ask for leave to read it, or give the key and secret of someone who may in data.storage_options",
    "Access Denied": "Ask for leave to read it, or give the key and secret of someone who may in data.storage_options",
    "onnect": "The server does not answer: check the network, and endpoint_url in data.storage_options",
    "imed out": "The server does not answer in time: check the network, and endpoint_url in data.storage_options",
    "imeout": "The server does not answer in time: check the network, and endpoint_url in data.storage_options",
    "s3fs": "Install the extra: pip install 'em-pipeline[s3]'",
}


def is_url(path: str) -> bool:
    """Whether fsspec, rather than the operating system, opens this path."""
    return "://" in path


def absolute(path: str) -> str:
    """A local path made absolute, as workers may run elsewhere; a URL as it is."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def open_binary(path: str, options: Mapping[str, Any]) -> IO[bytes]:
    """A seekable binary stream of a local file or fsspec URL, decompressed if the name ends in .gz."""
    raw: IO[bytes]
    if is_url(path):
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path, **options)
        # s3fs alone would fetch 50 MiB more than each read asks for, and its lines have no limit.
        raw = io.BufferedReader(filesystem.open(name, "rb", cache_type="none"), BUFFER_BYTES)
    else:
        raw = open(path, "rb")  # noqa: SIM115  # the caller closes it
    return _Unzipped(raw) if path.endswith(".gz") else raw  # type: ignore[return-value]  # a GzipFile is an IO[bytes]


class _Unzipped(gzip.GzipFile):
    """A gzip stream that closes the file under it too."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()


def stored_size(path: str, options: Mapping[str, Any]) -> int:
    """Bytes of the file as it is stored."""
    if is_url(path):
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path, **options)
        return int(filesystem.size(name))
    return os.path.getsize(path)


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Turn what can go wrong when a file is first opened into InputError (not there) or StorageError (damaged)."""
    with reading(path):
        try:
            yield
        except (
            FileNotFoundError,
            IsADirectoryError,
            NotADirectoryError,
            PermissionError,
            ImportError,
            ValueError,
        ) as error:
            refuse_absent(path)
            if not is_url(path) and os.path.isdir(path):
                raise InputError(
                    f"{path}: is a folder, expected a file. Name a file in it; a folder of pictures is read by "
                    "data.source: images, a zarr store by data.source: zarr."
                ) from error
            advice = remedy(path, error) or "Give the path of a file that can be read"
            raise InputError(f"{path}: cannot be opened ({said(error)}). {advice}.") from error


def refuse_absent(path: str, key: str = "") -> None:
    """Raise InputError, naming the nearest that there is, where a local path does not exist. key : that it came by."""
    if not is_url(path) and not os.path.lexists(path):
        raise InputError(f"{key} {path}: {does_not_exist(path)}".lstrip())


# What files of other kinds begin with, and what to do about them.
_BEGINNINGS = {
    b"\x93NUMPY": "It is an .npy file: set data.source to npy",
    b"\x1f\x8b": "It is compressed by gzip: unpack it with gunzip",
    b"PK\x03\x04": "It is a zip archive, as .npz files are: write the array alone, with numpy.save",
    b"\x89PNG": "It is a picture: set data.source to images",
    b"\xff\xd8\xff": "It is a picture: set data.source to images",
}


def what_it_is(beginning: bytes) -> str | None:
    """What helps where a file is of another kind than was expected; None when its first bytes do not tell."""
    return next((advice for sign, advice in _BEGINNINGS.items() if beginning.startswith(sign)), None)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what can go wrong while stored bytes are read into a StorageError that names them."""
    try:
        yield
    except PipelineError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(what, error) from error
    except Exception as error:  # a remote filesystem raises its own kinds
        if is_url(what):
            raise damaged(what, error) from error
        raise


def damaged(what: str, error: object) -> StorageError:
    """The StorageError for bytes that could not be read or understood."""
    advice = remedy(what, error) or "Check the storage, restore it"
    return StorageError(f"{what}: could not be read ({said(error)}). {advice}, then resume.")


def said(error: object) -> str:
    """What an error says; a bare FileNotFoundError of a remote filesystem holds only the name."""
    return f"there is no such object: {error}" if type(error) is FileNotFoundError and not error.errno else str(error)


def remedy(what: str, error: object) -> str | None:
    """What helps where a remote filesystem gave this error; None when that is not known, and for local files."""
    text = f"{type(error).__name__}: {error}"
    return next((advice for sign, advice in _REMEDIES.items() if sign in text), None) if is_url(what) else None


def read_exactly(stream: Any, out: np.ndarray, what: str) -> None:
    """Fill a C-contiguous array from a stream; StorageError when the stream ends early."""
    view = out.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < len(view):
        got = stream.readinto(view[filled:])
        if not got:
            raise damaged(what, f"it ends {len(view) - filled} bytes early")
        filled += got


def native(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The same numbers, C-contiguous and in native byte order."""
    return np.ascontiguousarray(x.astype(dtype, copy=False))


def sha256(path: str, options: Mapping[str, Any]) -> str:
    """SHA-256 of a file as it is stored, in hexadecimal."""
    digest = hashlib.sha256()
    with reading(path):
        raw = open_binary(path, options)
        with getattr(raw, "_raw", raw) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def beside(path: str, cache: str | None) -> Path:
    """The folder for a converted copy of `path`: data.cache, or the folder of the input itself.

    Raises InputError when it cannot be written.
    """
    if cache is None and is_url(path):
        raise InputError(f"{path}: must be converted once, and a URL is not written to. Set data.cache to a folder.")
    folder = Path(absolute(cache)) if cache else Path(path).parent
    probe = folder / f".{uuid.uuid4().hex}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{path}: must be converted once, and {folder} cannot be written ({error}). "
            "Set data.cache to a folder that can, and that all workers see."
        ) from error
    return folder


def seekable(path: str, options: Mapping[str, Any], cache: str | None, n_bytes: int) -> str:
    """`path`, or its unpacked copy where it is a gzip of more than GZIP_BYTES decompressed bytes.

    The copy's name ends in the hash of the packed file and it appears whole: if it is there, it is right.
    """
    if not path.endswith(".gz") or n_bytes <= GZIP_BYTES:
        return path
    name = os.path.basename(path).removesuffix(".gz")
    copy = beside(path, cache) / f"{name}.{sha256(path, options)[:16]}"
    if not copy.exists():
        part = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
        try:
            with reading(path), open_binary(path, options) as packed, open(part, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
            part.rename(copy)
        finally:
            part.unlink(missing_ok=True)
    return str(copy)


class TableSource(Source):
    """A rectangle of fixed-size numbers in one file, after `offset` bytes of header."""

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any],
        offset: int,
        shape: tuple[int, ...],
        stored: np.dtype[Any],
        columns_first: bool = False,
    ) -> None:
        """`shape` is (rows, ...), flattened to features; `columns_first` is numpy's Fortran order (2-d only)."""
        n_features = int(np.prod(shape[1:], dtype=np.int64))
        rows = (shape[0], n_features) if len(shape) > 1 else tuple(shape)
        self.dtype = row_dtype(path, rows, stored)
        self.n_features = n_features
        self.bounds = even_bounds(shape[0], rows_per_target(n_features, stored.itemsize))
        self._path, self._options, self._offset = path, dict(options), offset
        self._shape, self._stored, self._columns_first = tuple(shape), stored, columns_first

    def read(self, i: int) -> np.ndarray:
        """Chunk i, see `Source.read`."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        what = f"{self._path}, rows {start}:{stop} (chunk {i})"
        with reading(what), open_binary(self._path, self._options) as stream:
            if self._columns_first:
                x = np.empty((self.n_features, stop - start), self._stored)
                for j in range(self.n_features):
                    stream.seek(self._offset + (j * self.n_rows + start) * self._stored.itemsize)
                    read_exactly(stream, x[j], what)
                return native(x.T, self.dtype)
            x = np.empty((stop - start, self.n_features), self._stored)
            stream.seek(self._offset + start * self.n_features * self._stored.itemsize)
            read_exactly(stream, x, what)
            return native(x, self.dtype)

    def describe(self) -> dict[str, Any]:
        """Rows of a three-dimensional table are pictures."""
        if len(self._shape) == 3:
            return {"kind": "image", "size": list(self._shape[1:])}
        return {"kind": "rows"}

    def object_sizes(self) -> list[int]:
        """The size of the file."""
        with reading(self._path):
            return [stored_size(self._path, self._options)]


def npy_header(stream: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and length of the header of an .npy stream; InputError if it is none."""
    try:
        version = np.lib.format.read_magic(stream)
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = parse(stream)
    except ValueError as error:
        stream.seek(0)
        beginning = stream.read(8)
        advice = what_it_is(beginning) or "Write it with numpy.save; text is read by data.source: csv"
        raise InputError(f"{path}: is not an .npy file, it begins with {beginning!r}. {advice}.") from error
    return shape, columns_first, dtype, stream.tell()


def open_npy(data: Data) -> Source:
    """The rows of a two-dimensional `.npy` file, in C or Fortran order."""
    path = absolute(str(data.path))
    with opening(path), open_binary(path, data.storage_options) as stream:
        shape, columns_first, dtype, offset = npy_header(stream, path)
        row_dtype(path, shape, dtype)
        _refuse_short(stream, path, offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return TableSource(path, data.storage_options, offset, shape, dtype, columns_first and len(shape) > 1)


# The third byte of an IDX file; all numbers are big-endian. [LeCun, Cortes, Burges: the MNIST database]
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def open_idx(data: Data) -> Source:
    """The rows of an IDX file such as MNIST's, `.gz` or plain; pictures are flattened row by row."""
    path = absolute(str(data.path))
    with opening(path), open_binary(path, data.storage_options) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
            advice = what_it_is(magic) or "Set data.source to what it is"
            raise InputError(
                f"{path}: starts with {magic.hex(' ')}, expected 00 00, a type, a rank. It is no IDX file. {advice}."
            )
        rank = magic[3]
        sizes = stream.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise damaged(path, "its header is cut short")
        shape = struct.unpack(f">{rank}I", sizes)
        stored = np.dtype(_IDX_TYPES[magic[2]])
        offset = 4 + 4 * rank
        n_bytes = offset + int(np.prod(shape, dtype=np.int64)) * stored.itemsize
        if not path.endswith(".gz"):
            _refuse_short(stream, path, n_bytes)
    if rank < 2:
        raise InputError(f"{path}: came with shape {shape}, expected rows and features. Are these the labels?")
    path = seekable(path, data.storage_options, data.cache, n_bytes)
    return TableSource(path, data.storage_options, offset, shape, stored)


def _refuse_short(stream: IO[bytes], path: str, expected: int) -> None:
    size = stream.seek(0, os.SEEK_END)
    if size < expected:
        raise StorageError(f"{path}: has {size} bytes, its header promises {expected}. Fetch or write it again.")
