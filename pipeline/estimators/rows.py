"""What X may be, and results in its kind: NumPy for NumPy, lazy Dask for Dask, named xarray for xarray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.utils.validation import check_array, check_non_negative, validate_data

from pipeline.data.memory import DaskSource
from pipeline.data.memory import MemorySource as HeldSource
from pipeline.data.source import Source, rows_per_target
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import cores

BLOCK_ROWS = 2**14  # of a call, where results are computed on threads
KINDS = [np.float64, np.float32]


@dataclass(frozen=True)
class _Block:
    """A function of a block of rows, which may have none. empty : what it then gives."""

    function: Callable[[Any], np.ndarray]
    empty: np.ndarray

    def __call__(self, x: Any) -> np.ndarray:
        """What the function gives."""
        return self.function(x) if x.shape[0] else self.empty


@dataclass(frozen=True)
class Table:
    """Rows as they came. x : (n, d), NumPy, CSR or a Dask array whose chunks have all features.

    named : the xarray.DataArray that x is from, or None.  dense : whether sparse rows are made so, some at a time.
    """

    x: Any
    named: Any = None
    dense: bool = False

    @property
    def lazy(self) -> bool:
        """Whether the rows are a Dask array."""
        return _is_dask(self.x)

    def source(self) -> Source:
        """The rows for passes over them."""
        return DaskSource(self.x) if self.lazy else HeldSource(self.x, self.dense)

    def map(self, function: Callable[[Any], np.ndarray], columns: int | None, dtype: Any, name: str) -> Any:
        """function(block of rows) for all rows, in the kind that X came as: (n,), or (n, columns).

        name : of the second dimension, where X has names.
        """
        if self.lazy:
            more: dict[str, Any] = {"drop_axis": 1} if columns is None else {"chunks": (self.x.chunks[0], (columns,))}
            meta = np.empty((0,) if columns is None else (0, columns), dtype)
            found = self.x.map_blocks(_Block(function, meta), token=name, dtype=dtype, meta=meta, **more)
        else:
            found = np.concatenate(self._on_threads(function))
        return found if self.named is None else self._labelled(found, name)

    def _on_threads(self, function: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
        """function of each block of rows, in order."""
        n, d = self.x.shape
        height = rows_per_target(d, 8) if self.dense else BLOCK_ROWS
        blocks = [slice(a, a + height) for a in range(0, n, height)]

        def of_block(rows: slice) -> np.ndarray:
            return function(self.x[rows].toarray() if self.dense else self.x[rows])

        if len(blocks) == 1:
            return [of_block(blocks[0])]
        with single_thread(), ThreadPoolExecutor(cores()) as threads:
            return list(threads.map(of_block, blocks))

    def _labelled(self, found: Any, name: str) -> Any:
        import xarray as xr

        row = self.named.dims[0]
        coordinates = {key: value for key, value in self.named.coords.items() if value.dims in ((), (row,))}
        return xr.DataArray(found, dims=(row,) if found.ndim == 1 else (row, name), coords=coordinates)


def table_of(estimator: Any, x: Any, reset: bool, least: int = 1, dense: bool = True, counts: bool = False) -> Table:
    """The rows of X, checked as scikit-learn checks them; of a Dask array as far as its metadata tell.

    reset : whether n_features_in_ and feature_names_in_ are set, or compared.  least : rows that there have to be.
    dense : whether sparse rows are made dense, some at a time.  counts : whether values below 0 are refused.
    Raises ValueError or TypeError as sklearn.utils.validation.validate_data does.
    """
    named = x if _is_named(x) else None
    if named is not None:
        if x.ndim != 2:
            raise ValueError(f"X: came with dimensions {x.dims}, expected two: rows and features.")
        x = named.data
    if _is_dask(x):
        _check_dask(x, least)
    if named is not None or _is_dask(x):
        _see(estimator, int(x.shape[1]), named, reset)
    if _is_dask(x):
        return Table(x if len(x.chunks[1]) == 1 else x.rechunk({1: -1}), named)
    sparse = estimator.__sklearn_tags__().input_tags.sparse
    checks = {"dtype": KINDS, "accept_sparse": "csr" if sparse else False, "ensure_min_samples": least, "order": "C"}
    if named is not None:
        checked = check_array(x, estimator=estimator, input_name="X", **checks)
    else:
        checked = validate_data(estimator, x, reset=reset, **checks)
    if counts:
        check_non_negative(checked, type(estimator).__name__)
    if not sp.issparse(checked):
        return Table(checked, named)
    return Table(sp.csr_array(checked), named, dense)


def _see(estimator: Any, n_features: int, named: Any, reset: bool) -> None:
    """Set or compare n_features_in_ and feature_names_in_, which are text along the second dimension of X."""
    import pandas as pd  # xarray, which names are from, needs it too

    names = None if named is None else named.coords.get(named.dims[1])
    stand_in: Any = np.empty((0, n_features))
    if names is not None and names.dtype.kind in "OU":
        stand_in = pd.DataFrame(stand_in, columns=names.values.astype(object))
    validate_data(estimator, stand_in, reset=reset, skip_check_array=True)


def _check_dask(x: Any, least: int) -> None:
    """What scikit-learn checks of arrays, without values: those are looked at by the profiling pass."""
    if x.ndim != 2:
        raise ValueError(f"Expected 2D array, got a {x.ndim}D Dask array instead. Reshape your data.")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"X: came as a Dask array of {x.dtype}, expected real numbers. Convert it first.")
    if any(np.isnan(size) for size in (*x.chunks[0], x.shape[1])):
        raise ValueError("X: came with chunks of unknown size, expected known ones. Use X.compute_chunk_sizes() first.")
    if x.shape[0] < least:
        raise ValueError(f"Found array with {x.shape[0]} sample(s) while a minimum of {least} is required.")


def _is_dask(x: Any) -> bool:
    dask = sys.modules.get("dask.array")  # who has a Dask array has loaded it
    return dask is not None and isinstance(x, dask.Array)


def _is_named(x: Any) -> bool:
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(x, xarray.DataArray)
