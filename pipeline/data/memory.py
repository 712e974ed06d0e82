"""Rows in memory: an array, a sparse matrix, or a Dask array, whose blocks are used in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.data.source import TARGET_BYTES, Source, even_bounds, rows_per_target


class MemorySource(Source):
    """Rows in memory, which are not copied.

    Parameters
    ----------
    x : array or csr_array, shape (n, d)
    dense : bool
        Whether chunks of a sparse matrix are made dense as they are read.
    """

    stored = False

    def __init__(self, x: Any, dense: bool = False) -> None:
        self.x, self.dtype, self.n_features = x, x.dtype, int(x.shape[1])
        self.sparse, self._dense = sp.issparse(x) and not dense, dense
        n = int(x.shape[0])
        if self.sparse:
            stored = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
            per_chunk = max(1, n * TARGET_BYTES // max(TARGET_BYTES, stored))
        else:
            per_chunk = rows_per_target(self.n_features, self.dtype.itemsize)
        self.bounds = even_bounds(n, per_chunk)

    def read(self, i: int) -> Any:
        rows = self.x[int(self.bounds[i]) : int(self.bounds[i + 1])]
        if self._dense:
            return rows.toarray()
        return rows if self.sparse else np.ascontiguousarray(rows)


class DaskSource(Source):
    """Rows of a two-dimensional Dask array whose chunks have known sizes and all features.

    Tasks receive the blocks as arguments; the pickled source does not have them.
    """

    def __init__(self, x: Any) -> None:
        self.dtype, self.n_features, self.sparse = x.dtype, int(x.shape[1]), sp.issparse(x._meta)
        filled = [i for i, rows in enumerate(x.chunks[0]) if rows]
        self.bounds = np.cumsum([0, *(x.chunks[0][i] for i in filled)], dtype=np.int64)
        delayed = x.to_delayed()
        self._blocks = [delayed[i, 0] for i in filled]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": []}

    def blocks(self) -> list[Any]:
        return self._blocks

    def read(self, i: int) -> Any:
        return self._blocks[i].compute()
