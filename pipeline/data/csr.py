"""Sparse rows in a group of zarr or HDF5: the arrays `data`, `indices` and `indptr` of a CSR matrix, in the layout of anndata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from pipeline.data import source
from pipeline.data.checked import canonical
from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import damaged, native, open_binary, reading
from pipeline.data.hdf import HdfPlace
from pipeline.data.source import Source, row_dtype
from pipeline.data.stores import ZarrPlace, stored_chunk, unprotected
from pipeline.errors import InputError, PipelineError

_POINTERS = 2**18  # read at a time
_WORD_BYTES, _MOST_WORD_BYTES = 80, 1024  # of a word in memory as a rule, and in its file at most


class CsrSource(Source):
    """Rows of a CSR matrix in a group of zarr or HDF5: `data`, `indices`, `indptr`, and `shape` in its attributes.

    Parameters
    ----------
    place : ZarrPlace or HdfPlace
    group : zarr.Group or h5py.Group
        The opened group at `place`.
    vocabulary : str, optional
        Path of a text file with one word a line; it makes the rows documents.
    document : bool
        Whether rows are documents anyway.
    options : mapping, optional
        Of the file system of the vocabulary.
    """

    sparse = True

    def __init__(
        self,
        place: ZarrPlace | HdfPlace,
        group: Any,
        vocabulary: str | None = None,
        document: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        shape = tuple(int(size) for size in group.attrs.get("shape", ()))
        parts = {name: group[name] for name in ("data", "indices", "indptr") if name in group}
        sizes = {name: array.shape for name, array in parts.items()}
        if len(shape) != 2 or len(parts) < 3 or sizes["data"] != sizes["indices"] or sizes["indptr"] != (shape[0] + 1,):
            raise InputError(
                f"{place}: got shape {shape} and arrays {sizes}, expected data and indices of one length and "
                "indptr of rows + 1. It is no CSR matrix; write it again."
            )
        stored = row_dtype(str(place), shape, parts["data"].dtype)
        for name, array in parts.items():
            refuse_encoded(f"{place}/{name}", array)
        self.dtype = np.dtype(np.float32) if stored == np.float16 else stored  # scipy has no sparse float16
        self.n_features = shape[1]
        itemsize = self.dtype.itemsize + parts["indices"].dtype.itemsize
        self.bounds, self._largest = _csr_bounds(
            place, place.child("indptr"), shape[0], int(sizes["data"][0]), itemsize
        )
        self._stored_chunks = sum(stored_chunk(each)[0] * each.dtype.itemsize for each in parts.values())
        self._place, self._document = place, document or vocabulary is not None
        codecs = {name: found for name, array in parts.items() if (found := unprotected(array)) is not None}
        self._unprotected = ", ".join(f"{place}/{name} (codecs: {found})" for name, found in codecs.items()) or None
        self._vocabulary, self._options = vocabulary, dict(options or {})
        words = self.vocabulary()
        if words is not None and len(words) != self.n_features:
            raise InputError(
                f"{self._vocabulary}: got {len(words)} words, expected {self.n_features}, one a line, as the "
                "counts have. Give the vocabulary that belongs to them."
            )

    def read(self, i: int) -> csr_array:
        """Read chunk i, with sorted indices and without repeated ones."""
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        indptr = self._place.child("indptr").read(start, stop + 1).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        kind = np.int32 if max(self.n_features, last - first) < 2**31 else np.int64
        indices = native(self._place.child("indices").read(first, last), np.dtype(kind))
        data = native(self._place.child("data").read(first, last), self.dtype)
        if (np.diff(indptr) < 0).any() or (len(indices) and not 0 <= indices.min() <= indices.max() < self.n_features):
            raise damaged(f"{self._place}, rows {start}:{stop} (chunk {i})", "its indices are out of range")
        rows = csr_array((data, indices, (indptr - first).astype(kind)), (stop - start, self.n_features))
        return canonical(f"{self._place}, rows {start}:{stop} (chunk {i})", rows)

    def describe(self) -> dict[str, Any]:
        return {"kind": "document" if self._document else "rows"}

    def decoding(self) -> tuple[int, str]:
        """Return what the largest row takes beyond the target, stored chunks as they are decoded, and the vocabulary."""
        row = 3 * max(0, self._largest - source.TARGET_BYTES)
        words = 2 * _WORD_BYTES * self.n_features if self._vocabulary else 0
        return (
            row + 2 * self._stored_chunks + words,
            "store data and indices in smaller chunks, or shorten the longest row",
        )

    def object_sizes(self) -> list[int]:
        return self._place.object_sizes()

    def unprotected(self) -> str | None:
        return self._unprotected

    def vocabulary(self) -> list[str] | None:
        if not self._vocabulary:
            return None
        try:
            with reading(self._vocabulary), open_binary(self._vocabulary, self._options) as stream:
                most = 2**20 + _MOST_WORD_BYTES * self.n_features
                text = stream.read(most + 1)
                if len(text) > most:
                    raise InputError(f"has more than {most} bytes for {self.n_features} words")
                words = re.split("\r\n|\n|\r", text.decode("utf-8-sig"))  # other separators may be in a word
                return words[:-1] if not words[-1] else words
        except (PipelineError, UnicodeDecodeError) as error:
            raise InputError(f"data.vocabulary: {self._vocabulary} cannot be read as UTF-8 text ({error}).") from error


def _csr_bounds(
    place: ZarrPlace | HdfPlace, indptr: ZarrPlace | HdfPlace, n_rows: int, nnz: int, itemsize: int
) -> tuple[np.ndarray, int]:
    """Bounds that cut the rows where their stored bytes pass the next multiple of source.TARGET_BYTES, (n_chunks + 1,).

    Also the bytes of the largest chunk: a row is not cut.
    """
    bounds, before, last = [np.zeros(1, np.int64)], 0, np.int64(0)
    cuts = [np.zeros(1, np.int64)]  # bytes before each chunk
    for start in range(0, n_rows + 1, _POINTERS):
        stop = min(start + _POINTERS, n_rows + 1)
        pointers = indptr.read(start, stop).astype(np.int64)
        if (start == 0 and pointers[0] != 0) or (np.diff(pointers, prepend=before) < 0).any():
            raise InputError(f"{place}: its indptr, near row {start}, does not grow from 0. Write it again.")
        before = int(pointers[-1])
        stored = pointers * itemsize + np.arange(start, stop) * 8
        group = stored // source.TARGET_BYTES
        new = np.flatnonzero(np.diff(group, prepend=last))
        bounds.append(start + new)
        cuts.append(stored[new])
        last = group[-1]
    if before != nnz:
        raise InputError(f"{place}: its indptr ends at {before}, expected {nnz}, the length of data. Write it again.")
    largest = int(np.diff(np.append(np.concatenate(cuts), stored[-1])).max())
    return np.unique(np.append(np.concatenate(bounds), n_rows)).astype(np.int64), largest
