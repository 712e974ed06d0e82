"""Local files and fsspec URLs, opened for each read.

Rows are read into a new buffer: a mapped file would count as the job's memory as long as its pages are cached.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.config.paths import is_url
from pipeline.errors import InputError, PipelineError, StorageError, does_not_exist, refuse_special

# gzip cannot seek: a read decompresses all that comes before it. Up to this many decompressed bytes (about eight
# chunks, 0.2 s) that costs less than it is worth to avoid; a larger file is unpacked once, into data.cache.
GZIP_BYTES = 64 * 2**20
ABANDONED_SECONDS = 600.0  # a conversion writes all the time: one that has not for so long was killed
BUFFER_BYTES = 2**20  # of a remote file: what small reads fetch at a time
# What the messages of remote filesystems have in them, and what helps.
_REMEDIES = {
    "credentials": "Give data.storage_options {key: …, secret: …}, or set them in the environment; as they are never "
    "stored, a resume needs them again",
    "bucket does not exist": "Check the bucket's name, and endpoint_url in data.storage_options",
    "NoSuchBucket": "Check the bucket's name, and endpoint_url in data.storage_options",
    "Forbidden": "Ask for permission to read it, or give a key and secret that have it in data.storage_options",
    "Access Denied": "Ask for permission to read it, or give a key and secret that have it in data.storage_options",
    "onnect": "The server does not answer: check the network, and endpoint_url in data.storage_options",
    "imed out": "The server does not answer in time: check the network, and endpoint_url in data.storage_options",
    "imeout": "The server does not answer in time: check the network, and endpoint_url in data.storage_options",
    "s3fs": "Install the extra: pip install 'em-pipeline[s3]'",
}


def open_binary(path: str, options: Mapping[str, Any]) -> IO[bytes]:
    """Open a local file or fsspec URL as a seekable binary stream, decompressed if the name ends in .gz."""
    raw: IO[bytes]
    if is_url(path):
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path, **options)
        # s3fs alone would fetch 50 MiB more than each read asks for, and its lines have no limit.
        raw = io.BufferedReader(filesystem.open(name, "rb", cache_type="none"), BUFFER_BYTES)
    else:
        refuse_special(path)
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
    """Return the bytes of the file as it is stored."""
    if is_url(path):
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path, **options)
        return int(filesystem.size(name))
    return os.path.getsize(path)


@contextmanager
def opening(path: str) -> Iterator[None]:
    """Context in which errors of opening a file become InputError (absent) or StorageError (damaged)."""
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
    """Raise InputError, naming the nearest path that exists, if a local path does not. key : of the config, for the message."""
    if not is_url(path) and not os.path.lexists(path):
        raise InputError(f"{key} {path}: {does_not_exist(path)}".lstrip())


# The first bytes of files of other kinds, and what to do about them.
_BEGINNINGS = {
    b"\x93NUMPY": "It is an .npy file: set data.source to npy",
    b"\x1f\x8b": "It is compressed by gzip: unpack it with gunzip",
    b"PK\x03\x04": "It is a zip archive, as .npz files are: write the array alone, with numpy.save",
    b"\x89PNG": "It is a picture: set data.source to images",
    b"\xff\xd8\xff": "It is a picture: set data.source to images",
    b"\xff\xfe": "It is text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "It is text in UTF-16: save it as UTF-8",
}


def what_it_is(beginning: bytes) -> str | None:
    """Return what to do about a file of another kind; None if its first bytes are not known."""
    return next((advice for sign, advice in _BEGINNINGS.items() if beginning.startswith(sign)), None)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Context in which errors of reading stored bytes become a StorageError that names the file."""
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
    """Return the StorageError for bytes that could not be read or decoded."""
    advice = remedy(what, error) or "Check the storage, restore it"
    return StorageError(f"{what}: could not be read ({said(error)}). {advice}, then resume.")


def said(error: object) -> str:
    """Return the text of an error; a FileNotFoundError of a remote filesystem has only the name."""
    return f"there is no such object: {error}" if type(error) is FileNotFoundError and not error.errno else str(error)


def remedy(what: str, error: object) -> str | None:
    """Return what to do about an error of a remote filesystem; None if unknown, and for local files."""
    text = f"{type(error).__name__}: {error}"
    return next((advice for sign, advice in _REMEDIES.items() if sign in text), None) if is_url(what) else None


def read_exactly(stream: Any, out: np.ndarray, what: str) -> None:
    """Fill a C-contiguous array from a stream. Raises StorageError when the stream ends early."""
    view = out.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < len(view):
        got = stream.readinto(view[filled:])
        if not got:
            raise damaged(what, f"it ends {len(view) - filled} bytes early")
        filled += got


def native(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the same numbers, C-contiguous and in native byte order."""
    return np.ascontiguousarray(x.astype(dtype, copy=False))


def sha256(path: str, options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file as it is stored, in hexadecimal."""
    digest = hashlib.sha256()
    with reading(path):
        raw = open_binary(path, options)
        with getattr(raw, "_raw", raw) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def beside(path: str, cache: str | None) -> Path:
    """Return the folder for a converted copy of `path`: data.cache, or the folder of the input itself.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    if cache is None and is_url(path):
        raise InputError(f"{path}: must be converted once, and a URL is not written to. Set data.cache to a folder.")
    folder = Path(cache) if cache else Path(path).parent
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
    """Return `path`, or its unpacked copy if it is a gzip of more than GZIP_BYTES decompressed bytes.

    The name of the copy ends in the hash of the packed file, and it appears by rename, complete.
    """
    if not path.endswith(".gz") or n_bytes <= GZIP_BYTES:
        return path
    name = os.path.basename(path).removesuffix(".gz")
    copy = beside(path, cache) / f"{name}.{sha256(path, options)[:16]}"
    if not copy.exists():
        with part_of(copy, name) as part:
            with reading(path), open_binary(path, options) as packed, open(part, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
            part.rename(copy)
    return str(copy)


@contextmanager
def part_of(final: Path, name: str) -> Iterator[Path]:
    """Context with a temporary path beside `final` for a conversion, removed at the end; parts of killed conversions are removed first.

    name : how names of conversions of this input begin.
    """
    for old in final.parent.glob(f".{glob.escape(name)}.*"):
        with suppress(OSError):  # another process removes it too
            inside = old.rglob("*") if old.is_dir() else ()
            if time.time() - max(path.stat().st_mtime for path in (old, *inside)) > ABANDONED_SECONDS:
                _remove(old)
    part = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        yield part
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
