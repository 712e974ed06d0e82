"""Counts of words in documents, in the text format of UCI's bags of words: sparse rows, never made dense.

The text (D, W, NNZ, then "docID wordID count" a line) cannot be read from the middle, so it is converted once
into a zarr group in the layout of anndata's CSR matrices. `source: zarr` reads any such group directly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import IO, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.conversion import Sizes, convert, made_from, write_triples
from pipeline.data.csr import CsrSource
from pipeline.data.files import beside, open_binary, opening, sha256, stored_size
from pipeline.data.section import ConvertedSection
from pipeline.data.stores import ZarrPlace
from pipeline.errors import InputError

_BLOCK = 4 * 2**20  # bytes of text parsed at a time
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
        identity = self._identity()
        if not made_from(store, identity):
            folder = beside(path, self.cache)
            convert(
                folder / os.path.basename(store), identity, lambda _, group: _fill(path, self.storage_options, group)
            )
        place = ZarrPlace(store, {}, "error")
        return CsrSource(place, place.open_first(), self.vocabulary, True, self.storage_options)

    def converted_in(self, folder: str) -> Self:
        there = super().converted_in(folder)
        return self if there is self or made_from(self._store(), self._identity()) else there

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


def _fill(path: str, options: Mapping[str, Any], group: Any) -> Sizes:
    """Write the counts of a file into a group, and return their sizes."""
    with opening(path), open_binary(path, options) as stream:
        sizes = _header(stream, path)
        write_triples(group, _triples(stream, sizes, path), sizes, path)
        return sizes


def _header(stream: IO[bytes], path: str) -> Sizes:
    sizes = []
    for line, what in enumerate(("documents", "words", "lines that follow"), start=1):
        text = stream.readline(100).strip()
        if not text.isdigit() or (line < 3 and int(text) == 0):
            raise InputError(
                f"{path}, line {line}: got {text.decode(errors='replace')!r}, expected the number of {what}. "
                "A docword file begins with D, W and NNZ, a line each."
            )
        sizes.append(int(text))
    found = Sizes(*sizes)
    if found.columns > _MAX_COUNT:
        raise InputError(f"{path}, line 2: got {found.columns} words, expected at most {_MAX_COUNT}. Correct it.")
    found.refuse_many(found.rows, found.entries, path)
    return found


def _triples(stream: IO[bytes], sizes: Sizes, path: str) -> Iterator[np.ndarray]:
    """Yield blocks of (document, word, count) from 1, (n, 3) int64, after checking ranges, order and number."""
    rest, line, total, previous = b"", 4, 0, 1
    while block := stream.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        text, rest = (rest + block[:cut], block[cut:]) if cut else (b"", rest + block)
        if len(rest) > _BLOCK:
            raise _bad_line(path, line, rest[:40], "three whole numbers")
        if text.strip():
            yield (triples := _parse(text.rstrip() + b"\n", line, previous, sizes, path))
            total, previous = total + len(triples), int(triples[-1, 0])
        line += text.count(b"\n")
    if rest.strip():
        yield (triples := _parse(rest.rstrip() + b"\n", line, previous, sizes, path))
        line, total = line + 1, total + len(triples)
    if total != sizes.entries:
        raise InputError(
            f"{path}, line {line}: the file ends after {total} counts, line 3 promises {sizes.entries}. "
            "Fetch the whole file, or correct line 3."
        )


def _parse(text: bytes, line: int, previous: int, sizes: Sizes, path: str) -> np.ndarray:
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
    limits = np.array([sizes.rows, sizes.columns, _MAX_COUNT])
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
