"""Counts of words in documents, in the text format of UCI's bags of words: sparse rows, never made dense.

The text (D, W, NNZ, then "docID wordID count" a line) cannot be read from the middle, so it is converted once
into a zarr group in the layout of anndata's CSR matrices. `source: zarr` reads any such group directly.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self

import numpy as np
import zarr
from pydantic import Field
from zarr.codecs import ZstdCodec

from pipeline.arrays.stores import guarded, open_group
from pipeline.config import AnyPath, LocalPath
from pipeline.config.paths import is_url
from pipeline.data.csr import CsrSource
from pipeline.data.files import beside, open_binary, opening, part_of, reading, sha256, stored_size
from pipeline.data.section import ConvertedSection
from pipeline.data.stores import ZarrPlace
from pipeline.errors import InputError

_BLOCK = 4 * 2**20  # bytes of text parsed at a time
_CHUNK = 2**18  # stored numbers per zarr chunk
_MOST_EMPTY, _EMPTY_EACH = 10**6, 1000  # documents without words that are believed: so many, and so many for each count
_MAX_COUNT = np.iinfo(np.int32).max


class DocwordSection(ConvertedSection):
    """Counts of words in documents, converted on first use.

    The converted store is `<name>.csr.zarr` in `cache` or beside the input. It is used again if the size and SHA-256
    of the input are the same.
    """

    source: Literal["docword"] = Field("docword", description="counts of words in UCI's docword format")
    path: AnyPath = Field(description="a docword file, .gz or plain, or an fsspec URL of one")
    vocabulary: AnyPath | None = Field(None, description="path of a text file with one word a line")
    cache: LocalPath | None = Field(
        None, description="folder of the converted copy, which workers must see; null: the folder of the input"
    )

    sparse: ClassVar[bool] = True

    def open(self) -> CsrSource:
        path, store = self.path, self._store()
        made_from = self._identity()
        if not _made_from(store, made_from):
            _convert(path, self.storage_options, beside(path, self.cache) / os.path.basename(store), made_from)
        place = ZarrPlace(store, {}, "error")
        return CsrSource(place, place.open_first(), self.vocabulary, True, self.storage_options)

    def converted_in(self, folder: str) -> Self:
        there = super().converted_in(folder)
        return self if there is self or _made_from(self._store(), self._identity()) else there

    def _store(self) -> str:
        """Path of the converted store."""
        path = self.path
        folder = self.cache if self.cache else os.path.dirname(path)
        return os.path.join(folder, f"{os.path.basename(path)}.csr.zarr")

    def _identity(self) -> dict[str, Any]:
        """What a converted store records of its input."""
        path = self.path
        with opening(path):
            return {
                "source-bytes": stored_size(path, self.storage_options),
                "source-sha256": sha256(path, self.storage_options),
            }


def _made_from(store: str, made_from: Mapping[str, Any]) -> bool:
    if is_url(store):  # nothing is written beside a remote input
        return False
    try:
        attributes = dict(open_group(store).attrs)
    except Exception:  # absent, or damaged: written again in both cases
        return False
    return all(attributes.get(name) == value for name, value in made_from.items())


def _convert(path: str, options: Mapping[str, Any], store: Path, made_from: Mapping[str, Any]) -> None:
    """Write the CSR store under a temporary name and rename it, so that it appears complete."""
    with part_of(store, store.name) as part:
        with opening(path), open_binary(path, options) as stream:
            header = _Header.read(stream, path)
            group = zarr.open_group(guarded(part, read_only=False), mode="w-")
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


def _only_ours(store: Path) -> None:
    """Refuse to replace anything but a converted store."""
    try:
        ours = "source-sha256" in open_group(store).attrs
    except Exception:
        ours = False
    if not ours:
        raise InputError(f"{store}: exists and is no converted store of ours. Move it, or set data.cache.")


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
                    f"{path}, line {line}: got {text.decode(errors='replace')!r}, expected the number of {what}. "
                    "A docword file begins with D, W and NNZ, a line each."
                )
            sizes.append(int(text))
        found = cls(*sizes)
        if found.n_words > _MAX_COUNT:
            raise InputError(f"{path}, line 2: got {found.n_words} words, expected at most {_MAX_COUNT}. Correct it.")
        found.refuse_many(found.n_documents, found.n_triples, path)
        return found

    def refuse_many(self, documents: int, counts: int, path: str) -> None:
        """Raise InputError where so few counts belong to so many documents that the number is no size, but a mistake."""
        if documents > _MOST_EMPTY + _EMPTY_EACH * counts:
            raise InputError(
                f"{path}: got {documents} documents (line 1: {self.n_documents}) for {counts} counts, expected no more than "
                f"{_EMPTY_EACH} for each. Correct the number."
            )


def _triples(stream: IO[bytes], header: _Header, path: str) -> Iterator[np.ndarray]:
    """Yield blocks of (document, word, count) from 1, (n, 3) int64, after checking ranges, order and number."""
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
    """The triples in complete lines of text, the first of which is number `line`. Raises InputError naming a bad line."""
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
    return InputError(f"{path}, line {line}: got {text.decode(errors='replace')!r}, expected {expected}.")


def _fill(group: Any, blocks: Iterator[np.ndarray], header: _Header, path: str) -> None:
    """Write data, indices and indptr from sorted triples, a block at a time; documents without words are empty rows."""
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
        header.refuse_many(reached, stop, path)
        starts = done + np.searchsorted(triples[:, 0], np.arange(document, reached), side="right")
        arrays["indptr"][document:reached] = starts
        done, document = stop, reached
    header.refuse_many(header.n_documents, done, path)
    arrays["indptr"][document:] = done
