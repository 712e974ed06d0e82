"""compress.zarr: rows, or patches of pictures, as numbers of centres, packed into bits beside the centres.

    code(block, byte)       of ROWS rows: for each the centre, or one of each part or stage, then of patches without their mean the mean of
                            each channel
    codebook(entry, value)  the centres in the units of the data, those of parts or stages side by side
    squared_error(block)    summed over rows and values

Of pictures it has names, sizes and depths, so that they can be put together without the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.bits import packed, unpacked
from pipeline.arrays.dtypes import Array
from pipeline.arrays.stores import open_group
from pipeline.data.patch import assembled
from pipeline.data.pictures import Header
from pipeline.errors import InputError, StorageError
from pipeline.models.books import entry_bits
from pipeline.models.lloyd import Book

_OF_PICTURES = ("picture_start", "picture", "headers", "top")
ROWS = 1024  # of a block: it has whole bytes for any number of bits a row
MEAN_BITS = 8  # of the mean of a patch, from 0 to 1


@dataclass(frozen=True)
class Codebook:
    """What stands for rows: the sum of one entry of each book.

    Attributes
    ----------
    entries : array, shape (k, w)
        Entries in the units of the data, in the dtype of the rows that they give; those of several books side by side.
    books : tuple of (int, int)
        The first value of a row that each book adds to, and the one after the last; w in all.
    channels : int
        Of patches whose means are coded for themselves; 0 where there are no means.
    """

    entries: Array
    books: tuple[tuple[int, int], ...]
    channels: int = 0

    @classmethod
    def of(cls, books: Sequence[Book], dtype: Any, channels: int = 0) -> Codebook:
        """Return the codebook of books in the units of the data."""
        entries = np.concatenate([book.entries for book in books], axis=1).astype(dtype)
        return cls(entries, tuple((book.first, book.first + book.entries.shape[1]) for book in books), channels)

    @property
    def n_values(self) -> int:
        """Numbers of a row, d."""
        return max(stop for _, stop in self.books)

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the numbers of a row."""
        return *[entry_bits(len(self.entries))] * len(self.books), *[MEAN_BITS] * self.channels

    @property
    def title(self) -> str:
        """How many entries there are, such as 256 or 8 × 256."""
        return f"{len(self.books)} × {len(self.entries)}" if len(self.books) > 1 else str(len(self.entries))

    def means(self, x: Array) -> Array:
        """Return the codes of the means of rows, (n, channels) int64."""
        if not self.channels:
            return np.empty((len(x), 0), np.int64)
        mean = x.reshape(len(x), -1, self.channels).mean(axis=1, dtype=np.float64)
        top = 2**MEAN_BITS - 1
        return np.rint(top * np.clip(mean, 0, 1)).astype(np.int64)

    def rows(self, numbers: Array) -> Array:
        """Return rows, (n, d). numbers : (n, books + channels), the entry of each book and the codes of means."""
        found, at = np.zeros((len(numbers), self.n_values), self.entries.dtype), 0
        for book, (first, stop) in enumerate(self.books):
            found[:, first:stop] += self.entries[numbers[:, book], at : at + stop - first]
            at += stop - first
        if self.channels:
            mean = (numbers[:, len(self.books) :] / (2**MEAN_BITS - 1)).astype(found.dtype)
            found += np.tile(mean, found.shape[1] // self.channels)
        return found

    def packed(self, numbers: Array) -> Array:
        """Return the bytes of whole blocks, (blocks, bytes) uint8; the last rows may be missing."""
        blocks = -(-len(numbers) // ROWS)
        whole = np.zeros((blocks * ROWS, numbers.shape[1]), np.int64)
        whole[: len(numbers)] = numbers
        return packed(whole, self.widths).reshape(blocks, -1)


class Figures(NamedTuple):
    """Rate and distortion.

    Attributes
    ----------
    rows, values : int
        Rows, and numbers in each.
    bits : int
        Of a row.
    bits_per_value : float
        Of a number of the input, or of a pixel's channel; patches may overlap.
    ratio : float
        How many times more bits the input has, before a compression of its own.
    codebook_bytes : int
        Which come to the codes once.
    mean_squared_error : float
        Of a value, in the units of the data; of pictures white is 1, and it is that of patches before they are averaged.
    psnr : float or None
        Of pictures, in decibels.
    """

    rows: int
    values: int
    bits: int
    bits_per_value: float
    ratio: float
    codebook_bytes: int
    mean_squared_error: float
    psnr: float | None


class Compressed:
    """A store that `em-pipeline compress` has finished.

    Raises
    ------
    InputError
        If there is none.
    StorageError
        If it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._group = open_group(path)
            self.facts: dict[str, Any] = dict(self._group.attrs["compressed"])  # type: ignore[arg-type]
            self.n_rows = int(self.facts["rows"])
            entries = np.asarray(self._group["codebook"])
            books = self.facts.get("books", [[0, entries.shape[1]]])  # one before there were several
            self.codebook = Codebook(entries, tuple((a, b) for a, b in books), int(self.facts["channels_of_means"]))
            if sum(b - a for a, b in self.codebook.books) != entries.shape[1] or min(map(min, books)) < 0:
                raise ValueError(f"books {books} are not those of its codebook")
            self._code: Any = self._group["code"]
            found = {name: np.asarray(self._group[name]) for name in _OF_PICTURES if self.patch}
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: is not there. Write it: em-pipeline compress RUN --output {path.parent}"
            ) from error
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise self._damaged(error) from error
        self._start = np.append(found.get("picture_start", ()), self.n_rows).astype(np.int64)
        self._names, self._headers, self._top = (found.get(name, np.empty(0)) for name in _OF_PICTURES[1:])
        if self.patch and not all(map(_is_inside, self._names)):
            raise self._damaged("names of pictures lead out of their folder")

    def __reduce__(self) -> Any:
        return Compressed, (self.path,)

    @property
    def family(self) -> str:
        """Of the model whose centres these are."""
        return str(self._group.attrs["family"])

    @property
    def largest_picture(self) -> int:
        """Bytes that it takes to put the largest picture together."""
        if self.patch is None:
            return 0
        patches = np.diff(self._start) * self.codebook.n_values
        pixels = self._headers[:, 0] * self._headers[:, 1] * self.patch["channels"]
        return int((16 * patches + 16 * pixels).max())

    def _damaged(self, error: Any) -> StorageError:
        return StorageError(f"{self.path}: damaged ({error}). Remove it, then compress again.")

    @property
    def patch(self) -> dict[str, Any] | None:
        """Size, stride and channels of patches; None of other rows."""
        return self.facts["patch"]

    def rows(self, start: int, stop: int) -> Array:
        """Return rows start:stop, (stop - start, d)."""
        first = start // ROWS
        data = np.asarray(self._code[first : -(-stop // ROWS)]).reshape(-1)
        if 8 * len(data) < (stop - first * ROWS) * sum(self.codebook.widths):
            raise self._damaged(f"rows {start}:{stop} have no codes")
        numbers = unpacked(data, stop - first * ROWS, self.codebook.widths)[start - first * ROWS :]
        codes = numbers[:, : len(self.codebook.books)]
        if len(codes) and codes.max() >= len(self.codebook.entries):
            raise self._damaged(f"rows {start}:{stop} name an entry that the codebook does not have")
        return self.codebook.rows(numbers)

    def pictures(self) -> tuple[list[str], Array]:
        """Return names and first patches of pictures."""
        return [str(name) for name in self._names], self._start[:-1]

    def header(self, picture: int) -> tuple[Header, float]:
        """Return what the header of a picture said, and the value in its file that is 1 here."""
        return Header(*self._headers[picture].tolist()), float(self._top[picture])

    def pixels(self, picture: int) -> Array:
        """Return a picture, (height, width[, 3]) float32 from 0 to 1."""
        assert self.patch is not None
        header = self.header(picture)[0]
        patches = self.rows(int(self._start[picture]), int(self._start[picture + 1]))
        found = assembled(patches, (header.height, header.width), self.patch["size"], self.patch["stride"])
        return found if self.patch["channels"] > 1 else found[:, :, 0]

    @cached_property
    def figures(self) -> Figures:
        """Rate and distortion."""
        d, bits = self.codebook.n_values, sum(self.codebook.widths)
        error = float(np.asarray(self._group["squared_error"]).sum()) / (self.n_rows * d)
        psnr = None if self.patch is None else float("inf") if error == 0 else -10.0 * float(np.log10(error))
        coded = self.n_rows * bits
        per_value, ratio = coded / self.facts["values_of_input"], self.facts["bits_of_input"] / coded
        return Figures(self.n_rows, d, bits, per_value, ratio, self.codebook.entries.nbytes, error, psnr)


def _is_inside(name: str) -> bool:
    """Whether a file of this name is in the folder that it is written to."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
