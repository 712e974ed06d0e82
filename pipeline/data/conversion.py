"""Counts written once as a CSR matrix in a zarr group, in the layout of anndata, from triples that are sorted by row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.stores import guarded, open_group
from pipeline.config.paths import is_url
from pipeline.data.files import part_of, reading
from pipeline.errors import InputError

_CHUNK = 2**18  # stored numbers per zarr chunk
_MOST_EMPTY, _EMPTY_EACH = 10**6, 1000  # documents without words that are believed: so many, and so many for each count


@dataclass(frozen=True)
class Sizes:
    """What is to be written.

    Attributes
    ----------
    rows, columns, entries : int
    """

    rows: int
    columns: int
    entries: int

    def refuse_many(self, rows: int, entries: int, path: str) -> None:
        """Raise InputError where so few entries belong to so many rows that the number is no size, but a mistake."""
        if rows > _MOST_EMPTY + _EMPTY_EACH * entries:
            raise InputError(
                f"{path}: got {rows} documents (line 1: {self.rows}) for {entries} counts, expected no more than "
                f"{_EMPTY_EACH} for each. Correct the number."
            )


def made_from(store: str, source: Mapping[str, Any]) -> bool:
    """Whether a store was made from a source with these attributes."""
    if is_url(store):  # nothing is written beside a remote input
        return False
    try:
        attributes = dict(open_group(store).attrs)
    except Exception:  # absent, or damaged: written again in both cases
        return False
    return all(attributes.get(name) == value for name, value in source.items())


def convert(store: Path, source: Mapping[str, Any], fill: Callable[[Path, Any], Sizes]) -> None:
    """Write a CSR store under a temporary name and rename it, so that it appears complete.

    Parameters
    ----------
    store : Path
    source : mapping
        Attributes by which `made_from` knows it.
    fill : callable
        Writes the arrays into a group, by `write_triples`; called with its folder and the group, it returns the sizes.
    """
    with part_of(store, store.name) as part:
        group = zarr.open_group(guarded(part, read_only=False), mode="w-")
        with zarr.config.set({"array.write_empty_chunks": True}):
            sizes = fill(part, group)
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.update({**encoding, "shape": [sizes.rows, sizes.columns], **source})
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


def write_triples(group: Any, blocks: Iterator[np.ndarray], sizes: Sizes, path: str, dtype: Any = np.int32) -> None:
    """Write data, indices and indptr from triples (row, column, value) from 1, sorted by row, a block at a time; other rows are empty.

    Raises
    ------
    InputError
        For more entries than the sizes say.
    """
    codec = ZstdCodec(level=3, checksum=True)
    lengths = {"data": sizes.entries, "indices": sizes.entries, "indptr": sizes.rows + 1}
    kinds = {"data": dtype, "indices": np.int32, "indptr": np.int64}
    arrays = {
        name: group.create_array(
            name, shape=(size,), chunks=(max(1, min(size, _CHUNK)),), dtype=kinds[name], compressors=codec
        )
        for name, size in lengths.items()
    }
    done, document = 0, 0  # triples written; pointers written, which is also the document they have reached
    for triples in blocks:
        stop = done + len(triples)
        if stop > sizes.entries:
            raise InputError(
                f"{path}, line {sizes.entries + 4}: there is more after the {sizes.entries} counts that line 3 "
                "promises. Correct line 3."
            )
        arrays["data"][done:stop] = triples[:, 2].astype(dtype)
        arrays["indices"][done:stop] = (triples[:, 1] - 1).astype(np.int32)
        reached = int(triples[-1, 0])
        sizes.refuse_many(reached, stop, path)
        starts = done + np.searchsorted(triples[:, 0], np.arange(document, reached), side="right")
        arrays["indptr"][document:reached] = starts
        done, document = stop, reached
    sizes.refuse_many(sizes.rows, done, path)
    arrays["indptr"][document:] = done
