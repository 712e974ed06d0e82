"""A random sample of rows in memory for the search, ordered so that its first rows are a sample for any number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks
from pipeline.data.preprocess import Affine
from pipeline.data.source import TARGET_BYTES
from pipeline.keyed import uniform

SAMPLE_BYTES = 2**28  # of rows as the models read them: MNIST fits, and a million patches
SAMPLE_ROWS, SAMPLE_ROWS_PER_COMPONENT = 2**16, 2**12  # more tell the search little
DRAW_STREAM = 3  # of keys
MAP_ROWS = 2**13


@stored
@dataclass(frozen=True)
class Sample:
    """Sampled rows of some chunks; those of other chunks are appended by +.

    Attributes
    ----------
    key : tuple of array, shape (m_i,)
        A number of each row of a chunk, uniform in (0, 1).
    x : tuple of array or csr_array, shape (m_i, d)
    weight : tuple of array, shape (m_i,)
    label : tuple of array, shape (m_i,)
        Components that are known, -1 for the others; empty where there is no such column.
    """

    key: tuple[Array, ...] = ()
    x: tuple[Matrix, ...] = ()
    weight: tuple[Array, ...] = ()
    label: tuple[Array, ...] = ()

    def __add__(self, other: Sample) -> Sample:
        return Sample(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def below(self, share: float) -> int:
        """Return how many rows a sample of a smaller share would have."""
        return sum(int((key < share).sum()) for key in self.key)

    def rows(self, affine: Affine | None) -> tuple[Matrix, Array | None, Array | None]:
        """Return the rows by increasing key, their weights and their labels.

        Parameters
        ----------
        affine : Affine or None
            The preprocessing.

        Returns
        -------
        x : array or csr_array, shape (m, d)
            There must be at least one row.
        weight : array, shape (m,), or None
            None: all are 1.
        label : array, shape (m,), or None
            None: there is no such column.
        """
        order = np.argsort(np.concatenate(self.key), kind="stable")
        weight = np.concatenate(self.weight)[order]
        if sp.issparse(self.x[0]):
            x: Matrix = sp.csr_array(sp.vstack(self.x))[order]
        else:
            x = _gathered(self.x, order, affine)
        label = np.concatenate(self.label)[order] if self.label else None
        return x, None if (weight == 1.0).all() else weight, label


@dataclass(frozen=True)
class SampleRows:
    """Job of a pass: sample each row of positive weight with a probability that does not depend on the chunks.

    Attributes
    ----------
    share : float
        The probability.
    seed : int
    """

    share: float
    seed: int

    def __call__(self, chunk: Rows, kernels: Any) -> Sample:
        """Return the sampled rows of one chunk, in the dtype of the source."""
        n = chunk.x.shape[0]
        key = uniform(self.seed, DRAW_STREAM, np.arange(chunk.start, chunk.start + n))
        weight = np.ones(n) if chunk.weight is None else chunk.weight
        chosen = np.flatnonzero((key < self.share) & (weight > 0))
        if not len(chosen):
            return Sample()
        label = () if chunk.label is None else (chunk.label[chosen],)
        return Sample((key[chosen],), (chunk.x[chosen],), (weight[chosen],), label)


def n_sampled(chunks: Chunks, n_components: int) -> int:
    """Return how many rows the search samples: at most a number of bytes, a number by component, and all."""
    most = max(SAMPLE_ROWS, SAMPLE_ROWS_PER_COMPONENT * n_components)
    return min(chunks.n_rows, most, max(1, SAMPLE_BYTES // row_bytes(chunks)))


def row_bytes(chunks: Chunks) -> int:
    """Return the bytes of one row as the models read it; of sparse rows the share of what a chunk aims at."""
    source = chunks.source
    if source.sparse:
        return -(-TARGET_BYTES * source.n_chunks // source.n_rows)
    return chunks.width * compute_dtype(source.dtype).itemsize


def _gathered(parts: tuple[Array, ...], order: Array, affine: Affine | None) -> Array:
    """Rows of the parts in the given order, mapped MAP_ROWS at a time: little more than the input and the output is in memory."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    width = parts[0].shape[1] if affine is None else affine.apply(parts[0][:1]).shape[1]
    out = np.empty((len(order), width), compute_dtype(parts[0].dtype))
    start = 0
    for part in parts:
        for a in range(0, len(part), MAP_ROWS):
            some: Any = part[a : a + MAP_ROWS]
            out[place[start : start + len(some)]] = some if affine is None else affine.apply(some)
            start += len(some)
    return out
