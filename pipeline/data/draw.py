"""Rows that are held in memory for the search: a keyed sample of all rows, in an order whose every head is a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.data.chunks import Chunk, Chunks
from pipeline.data.preprocess import Affine
from pipeline.data.source import TARGET_BYTES
from pipeline.keyed import uniform
from pipeline.models.stats import Rows

HELD_BYTES = 2**28  # of rows as the models read them: MNIST fits, and a million patches
HELD_ROWS, HELD_ROWS_PER_COMPONENT = 2**16, 2**12  # more tell the search little
DRAW_STREAM = 3  # of keys
MAP_ROWS = 2**13


@dataclass(frozen=True)
class Drawn:
    """Rows of some chunks; those of others are appended by +. key : uniform in (0, 1), of each row."""

    key: tuple[Array, ...] = ()
    x: tuple[Rows, ...] = ()
    weight: tuple[Array, ...] = ()

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn(self.key + other.key, self.x + other.x, self.weight + other.weight)

    def below(self, share: float) -> int:
        """How many rows a draw of this share, at most that of this one, would have."""
        return sum(int((key < share).sum()) for key in self.key)

    def rows(self, affine: Affine | None) -> tuple[Rows, Array | None]:
        """(m, d) mapped rows by increasing key, m > 0, and their weights (m,), None for ones."""
        order = np.argsort(np.concatenate(self.key), kind="stable")
        weight = np.concatenate(self.weight)[order]
        if sp.issparse(self.x[0]):
            x: Rows = sp.csr_array(sp.vstack(self.x))[order]
        else:
            x = _gathered(self.x, order, affine)
        return x, None if (weight == 1.0).all() else weight


@dataclass(frozen=True)
class Draw:
    """Job: each row of positive weight with probability `share`, whatever the chunks; its weight goes with it."""

    share: float
    seed: int

    def __call__(self, chunk: Chunk) -> Drawn:
        """The drawn rows of one chunk, in the dtype of the source."""
        n = chunk.x.shape[0]
        key = uniform(self.seed, DRAW_STREAM, np.arange(chunk.start, chunk.start + n))
        weight = np.ones(n) if chunk.weight is None else chunk.weight
        kept = np.flatnonzero((key < self.share) & (weight > 0))
        return Drawn((key[kept],), (chunk.x[kept],), (weight[kept],)) if len(kept) else Drawn()


def draw_rows(chunks: Chunks, n_components: int) -> int:
    """How many rows are held: as many as a fixed number of bytes and the number of components allow, at most all."""
    most = max(HELD_ROWS, HELD_ROWS_PER_COMPONENT * n_components)
    return min(chunks.n_rows, most, max(1, HELD_BYTES // row_bytes(chunks)))


def row_bytes(chunks: Chunks) -> int:
    """Bytes of one row as the models read it; for sparse rows what a chunk of them aims at."""
    source = chunks.source
    if source.sparse:
        return -(-TARGET_BYTES * source.n_chunks // source.n_rows)
    return source.n_features * compute_dtype(source.dtype).itemsize


def _gathered(parts: tuple[Array, ...], order: Array, affine: Affine | None) -> Array:
    """Rows of the parts in the given order, mapped; some thousand at a time, so that little more than both is held."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    width = parts[0].shape[1] if affine is None else affine.n_out
    out = np.empty((len(order), width), compute_dtype(parts[0].dtype))
    start = 0
    for part in parts:
        for a in range(0, len(part), MAP_ROWS):
            some: Any = part[a : a + MAP_ROWS]
            out[place[start : start + len(some)]] = some if affine is None else affine.apply(some)
            start += len(some)
    return out
