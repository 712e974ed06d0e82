"""Counts of words in documents: sparse rows, never made dense.

The UCI bag-of-words text (D, W, NNZ, then "docID wordID count" a line) cannot be read from the middle, so it is
converted once, streaming, into a zarr group in the layout that anndata uses for CSR matrices: arrays `data`,
`indices`, `indptr`. Any such group can be read directly with `source: zarr`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr
from scipy.sparse import csr_array
from zarr.codecs import ZstdCodec

from pipeline.config import Data
from pipeline.data.files import (
    absolute,
    beside,
    damaged,
    is_url,
    native,
    open_binary,
    opening,
    reading,
    sha256,
    stored_size,
)
from pipeline.data.source import TARGET_BYTES, Source, row_dtype
from pipeline.data.stores import ZarrPlace, unprotected
from pipeline.errors import InputError, PipelineError

_BLOCK = 4 * 2**20  # bytes of text parsed at a time
_CHUNK = 2**18  # stored numbers per zarr chunk
_MAX_COUNT = np.iinfo(np.int32).max


class CsrSource(Source):
    """Rows of a CSR matrix in a zarr group: `data`, `indices`, `indptr`, and `shape` in its attributes."""

    sparse = True

    def __init__(
        self,
        place: ZarrPlace,
        group: Any,
        vocabulary: str | None = None,
        document: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`group` is the opened group at `place`; a vocabulary makes its rows documents. options : of its file system."""
        shape = tuple(int(size) for size in group.attrs.get("shape", ()))
        parts = {name: group[name] for name in ("data", "indices", "indptr") if name in group}
        sizes = {name: array.shape for name, array in parts.items()}
        if len(shape) != 2 or len(parts) < 3 or sizes["data"] != sizes["indices"] or sizes["indptr"] != (shape[0] + 1,):
            raise InputError(
                f"{place}: came with shape {shape} and arrays {sizes}, expected data and indices of one length and "
                "indptr of rows + 1. It is no CSR matrix; write it again."
            )
        stored = row_dtype(str(place), shape, parts["data"].dtype)
        self.dtype = np.dtype(np.float32) if stored == np.float16 else stored  # scipy has no sparse float16
        self.n_features = shape[1]
        itemsize = self.dtype.itemsize + parts["indices"].dtype.itemsize
        self.bounds = _csr_bounds(place, place.child("indptr"), shape[0], int(sizes["data"][0]), itemsize)
        self._place, self._document = place, document or vocabulary is not None
        codecs = {name: found for name, array in parts.items() if (found := unprotected(array)) is not None}
        self._unprotected = ", ".join(f"{place}/{name} (codecs: {found})" for name, found in codecs.items()) or None
        self._vocabulary, self._options = vocabulary and absolute(vocabulary), dict(options or {})
        words = self.vocabulary()
        if words is not None and len(words) != self.n_features:
            raise InputError(
                f"{self._vocabulary}: came with {len(words)} words, expected {self.n_features}, one a line, as the "
                "counts have. Give the vocabulary that belongs to them."
            )

    def read(self, i: int) -> csr_array:
        """Chunk i as a csr_array with sorted indices and without repeated ones, see `Source.read`."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        indptr = self._place.child("indptr").read(start, stop + 1).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        kind = np.int32 if max(self.n_features, last - first) < 2**31 else np.int64
        indices = native(self._place.child("indices").read(first, last), np.dtype(kind))
        data = native(self._place.child("data").read(first, last), self.dtype)
        if (np.diff(indptr) < 0).any() or (len(indices) and not 0 <= indices.min() <= indices.max() < self.n_features):
            raise damaged(f"{self._place}, rows {start}:{stop} (chunk {i})", "its indices are out of range")
        rows = csr_array((data, indices, (indptr - first).astype(kind)), (stop - start, self.n_features))
        rows.sum_duplicates()
        return rows

    def describe(self) -> dict[str, Any]:
        """Documents where the features are words."""
        return {"kind": "document" if self._document else "rows"}

    def object_sizes(self) -> list[int]:
        """Bytes of each stored chunk of the three arrays."""
        return self._place.object_sizes()

    def unprotected(self) -> str | None:
        """Those of the three arrays none of whose codecs has a checksum."""
        return self._unprotected

    def vocabulary(self) -> list[str] | None:
        """The words, (n_features,), or None when none were given."""
        if not self._vocabulary:
            return None
        try:
            with reading(self._vocabulary), open_binary(self._vocabulary, self._options) as stream:
                return stream.read().decode("utf-8").splitlines()
        except (PipelineError, UnicodeDecodeError) as error:
            raise InputError(f"data.vocabulary: {self._vocabulary} cannot be read as UTF-8 text ({error}).") from error


def _csr_bounds(place: ZarrPlace, indptr: ZarrPlace, n_rows: int, nnz: int, itemsize: int) -> np.ndarray:
    """Bounds that cut the rows where their stored bytes pass the next multiple of TARGET_BYTES, (n_chunks + 1,)."""
    bounds, before, last = [np.zeros(1, np.int64)], 0, np.int64(0)
    for start in range(0, n_rows + 1, _CHUNK):
        stop = min(start + _CHUNK, n_rows + 1)
        pointers = indptr.read(start, stop).astype(np.int64)
        if (start == 0 and pointers[0] != 0) or (np.diff(pointers, prepend=before) < 0).any():
            raise InputError(f"{place}: its indptr, near row {start}, does not grow from 0. Write it again.")
        before = int(pointers[-1])
        group = (pointers * itemsize + np.arange(start, stop) * 8) // TARGET_BYTES
        bounds.append(start + np.flatnonzero(np.diff(group, prepend=last)))
        last = group[-1]
    if before != nnz:
        raise InputError(f"{place}: its indptr ends at {before}, expected {nnz}, the length of data. Write it again.")
    return np.unique(np.append(np.concatenate(bounds), n_rows)).astype(np.int64)


def open_docword(data: Data) -> Source:
    """The documents of a UCI bag-of-words file, `.gz` or plain, converted on first use.

    The store is `<name>.csr.zarr` in data.cache or beside the input; it is used again while the input's size and
    SHA-256 are those it was made from.
    """
    path, store = absolute(str(data.path)), _store(data)
    made_from = _identity(path, data.storage_options)
    if not _made_from(store, made_from):
        _convert(path, data.storage_options, beside(path, data.cache) / os.path.basename(store), made_from)
    place = ZarrPlace(store, {}, "error")
    return CsrSource(place, place.open_first(), data.vocabulary, True, data.storage_options)


def is_converted(data: Data) -> bool:
    """Whether `open_docword` would find a store that it can use."""
    return _made_from(_store(data), _identity(absolute(str(data.path)), data.storage_options))


def _store(data: Data) -> str:
    path = absolute(str(data.path))
    return os.path.join(
        absolute(data.cache) if data.cache else os.path.dirname(path), f"{os.path.basename(path)}.csr.zarr"
    )


def _identity(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    with opening(path):
        return {"source-bytes": stored_size(path, options), "source-sha256": sha256(path, options)}


def _made_from(store: str, made_from: Mapping[str, Any]) -> bool:
    if is_url(store):  # nothing is written beside a remote input
        return False
    try:
        attributes = dict(zarr.open_group(store, mode="r").attrs)
    except Exception:  # absent, or damaged: made anew either way
        return False
    return all(attributes.get(name) == value for name, value in made_from.items())


def _convert(path: str, options: Mapping[str, Any], store: Path, made_from: Mapping[str, Any]) -> None:
    """Write the CSR store under a temporary name and rename it: what bears the name is whole."""
    part = store.with_name(f".{store.name}.{uuid.uuid4().hex}")
    try:
        with opening(path), open_binary(path, options) as stream:
            header = _Header.read(stream, path)
            group = zarr.open_group(part, mode="w-")
            with zarr.config.set({"array.write_empty_chunks": True}):
                _fill(group, _triples(stream, header, path), header, path)
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.update({**encoding, "shape": [header.n_documents, header.n_words], **made_from})
        with reading(str(store)):
            if store.exists():
                _only_ours(store)
                old = part.with_name(f"{part.name}.old")
                store.rename(old)
                shutil.rmtree(old)
            part.rename(store)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _only_ours(store: Path) -> None:
    """Refuse to replace anything but a store that a conversion made."""
    try:
        ours = "source-sha256" in zarr.open_group(store, mode="r").attrs
    except Exception:
        ours = False
    if not ours:
        raise InputError(f"{store}: is in the way and is no converted store of ours. Move it, or set data.cache.")


@dataclass(frozen=True)
class _Header:
    n_documents: int
    n_words: int
    n_triples: int

    @classmethod
    def read(cls, stream: IO[bytes], path: str) -> _Header:
        sizes = []
        for line, what in enumerate(("documents", "words", "lines that follow"), start=1):
            text = stream.readline(100).strip()
            if not text.isdigit() or (line < 3 and int(text) == 0):
                raise InputError(
                    f"{path}, line {line}: came as {text.decode(errors='replace')!r}, expected the number of {what}. "
                    "A docword file starts with D, W and NNZ, a line each."
                )
            sizes.append(int(text))
        return cls(*sizes)


def _triples(stream: IO[bytes], header: _Header, path: str) -> Iterator[np.ndarray]:
    """Blocks of (document, word, count) from 1, (n, 3) int64, checked: ranges, order, and their number."""
    rest, line, total, previous = b"", 4, 0, 1
    while block := stream.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        text, rest = (rest + block[:cut], block[cut:]) if cut else (b"", rest + block)
        if len(rest) > _BLOCK:
            raise _bad_line(path, line, rest[:40], "three whole numbers")
        if text.strip():
            yield (triples := _parse(text.rstrip() + b"\n", line, previous, header, path))
            total, previous = total + len(triples), int(triples[-1, 0])
        line += text.count(b"\n")
    if rest.strip():
        yield (triples := _parse(rest.rstrip() + b"\n", line, previous, header, path))
        line, total = line + 1, total + len(triples)
    if total != header.n_triples:
        raise InputError(
            f"{path}, line {line}: the file ends after {total} counts, line 3 promises {header.n_triples}. "
            "Fetch the whole file, or correct line 3."
        )


def _parse(text: bytes, line: int, previous: int, header: _Header, path: str) -> np.ndarray:
    """The triples in whole lines of text, the first of which is number `line`; InputError naming a bad line."""
    characters = np.frombuffer(text, np.uint8)
    is_digit = (characters >= ord("0")) & (characters <= ord("9"))
    is_blank = (characters == ord(" ")) | (characters == ord("\t")) | (characters == ord("\r"))
    ends = np.flatnonzero(characters == ord("\n"))
    in_line = np.zeros(len(text), bool)
    in_line[1:] = is_digit[1:] & ~is_digit[:-1]
    in_line[0] = is_digit[0]
    numbers = np.diff(np.cumsum(in_line)[ends], prepend=0)
    odd = np.flatnonzero(~(is_digit | is_blank | (characters == ord("\n"))))
    bad = np.flatnonzero(numbers != 3)
    suspects = [*np.searchsorted(ends, odd[:1]), *bad[:1]]
    if suspects:
        first = int(min(suspects))
        raise _bad_line(path, line + first, text.split(b"\n", first + 1)[first], "three whole numbers, none negative")
    triples = np.fromstring(text, dtype=np.int64, sep=" ").reshape(-1, 3)
    limits = np.array([header.n_documents, header.n_words, _MAX_COUNT])
    wrong = ((triples < [1, 1, 0]) | (triples > limits)).any(axis=1)
    unsorted = np.diff(triples[:, 0], prepend=previous) < 0
    for test, expected in (
        (wrong, f"a document in 1..{limits[0]}, a word in 1..{limits[1]} and a count up to {_MAX_COUNT}"),
        (unsorted, "documents in increasing order; sort the lines by document"),
    ):
        if test.any():
            row = int(np.argmax(test))
            raise _bad_line(path, line + row, b" ".join(b"%d" % n for n in triples[row]), expected)
    return triples


def _bad_line(path: str, line: int, text: bytes, expected: str) -> InputError:
    return InputError(f"{path}, line {line}: came as {text.decode(errors='replace')!r}, expected {expected}.")


def _fill(group: Any, blocks: Iterator[np.ndarray], header: _Header, path: str) -> None:
    """Write data, indices and indptr from sorted triples, a block at a time; documents without words stay, empty."""
    codec = ZstdCodec(level=3, checksum=True)
    sizes = {"data": header.n_triples, "indices": header.n_triples, "indptr": header.n_documents + 1}
    kinds = {"data": np.int32, "indices": np.int32, "indptr": np.int64}
    arrays = {
        name: group.create_array(
            name, shape=(size,), chunks=(max(1, min(size, _CHUNK)),), dtype=kinds[name], compressors=codec
        )
        for name, size in sizes.items()
    }
    done, document = 0, 0  # triples written; pointers written, which is also the document they have reached
    for triples in blocks:
        stop = done + len(triples)
        if stop > header.n_triples:
            raise InputError(
                f"{path}, line {header.n_triples + 4}: there is more after the {header.n_triples} counts that line 3 "
                "promises. Correct line 3."
            )
        arrays["data"][done:stop] = triples[:, 2].astype(np.int32)
        arrays["indices"][done:stop] = (triples[:, 1] - 1).astype(np.int32)
        reached = int(triples[-1, 0])
        starts = done + np.searchsorted(triples[:, 0], np.arange(document, reached), side="right")
        arrays["indptr"][document:reached] = starts
        done, document = stop, reached
    arrays["indptr"][document:] = done
