"""X, and results of the kind of X: NumPy for NumPy, lazy Dask for Dask, named xarray for xarray; sample_weight."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.utils.validation import check_array, check_non_negative, validate_data

from pipeline.data.checked import canonical, checked_column, checked_rows, refuse_values, unmasked
from pipeline.data.column import MemoryColumn
from pipeline.data.encoded import dimension_names, refuse_exchanged
from pipeline.data.memory import DaskSource, MemorySource
from pipeline.data.source import Source, rows_per_target
from pipeline.engine.blas import single_thread
from pipeline.engine.lazy import lazy_rows
from pipeline.engine.memory import cores
from pipeline.estimators.fit import value_errors

BLOCK_ROWS = 2**14  # of a call, where results are computed on threads
KINDS = [np.float64, np.float32]


@dataclass(frozen=True)
class _Block:
    """A function of a block of a Dask array.

    Attributes
    ----------
    function : callable
    empty : array
        Its result for no rows.
    dtype, sparse : of the rows, as declared.
    counts, missing : bool
        Whether values below 0 are refused, and whether NaN is not.
    """

    function: Callable[[Any], np.ndarray]
    empty: np.ndarray
    dtype: np.dtype[Any]
    sparse: bool
    counts: bool
    missing: bool

    def __call__(self, x: Any, block_info: Any = None) -> np.ndarray:
        """Return the result for the rows, after a check of their values."""
        if block_info:
            (start, stop), (_, d) = block_info[0]["array-location"]
            what = f"X: rows {start}:{stop} (block {block_info[0]['chunk-location'][0]})"
            x = checked_rows(what, x, (stop - start, d), self.dtype, self.sparse)
            refuse_values(
                what, np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf) if self.missing else x, self.counts
            )
        return self.function(x) if x.shape[0] else self.empty


@dataclass(frozen=True)
class InputRows:
    """Checked rows.

    Attributes
    ----------
    x : array, csr_array or Dask array, shape (n, d)
        Chunks of a Dask array have all features.
    named : xarray.DataArray or None
        Which x is from.
    dense : bool
        Whether sparse rows are made dense, a block at a time.
    counts, missing : bool
        Whether rows are counts, and whether NaN is an entry that is not known.
    """

    x: Any
    named: Any = None
    dense: bool = False
    counts: bool = False
    missing: bool = False

    @property
    def lazy(self) -> bool:
        """Whether the rows are a Dask array."""
        return _is_dask(self.x)

    def source(self) -> Source:
        """Return the rows as a source."""
        return DaskSource(self.x) if self.lazy else MemorySource(self.x, self.dense)

    def map(self, function: Callable[[Any], np.ndarray], columns: int | None, dtype: Any, name: str) -> Any:
        """Return function(block of rows) for all rows, in the kind of X, shape (n,) or (n, columns).

        name : of the second dimension, for xarray.
        """
        if self.lazy:
            more: dict[str, Any] = {"drop_axis": 1} if columns is None else {"chunks": (self.x.chunks[0], (columns,))}
            meta = np.empty((0,) if columns is None else (0, columns), dtype)
            block = _Block(function, meta, self.x.dtype, sp.issparse(self.x._meta), self.counts, self.missing)
            found = self.x.map_blocks(block, token=name, dtype=dtype, meta=meta, **more)
        else:
            found = np.concatenate(self._on_threads(function))
        return found if self.named is None else self._labelled(found, name)

    def _on_threads(self, function: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
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


def column_of(sample_weight: Any, table: InputRows) -> MemoryColumn | None:
    """Return sample_weight as a column, None for ones. Raises ValueError unless it is one number >= 0 for each row."""
    if sample_weight is None:
        return None
    n = table.x.shape[0]
    weight = np.asarray(unmasked("sample_weight", sample_weight))
    if weight.ndim == 0:
        weight = np.full(n, weight)
    if weight.ndim != 1:
        raise ValueError("Sample weights must be 1D array or scalar")
    if len(weight) != n:
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {(n,)}!")
    weight = checked_column("sample_weight", weight, n).astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        raise ValueError(
            f"sample_weight: got {weight[wrong[0]]} for row {wrong[0]}, expected finite numbers of 0 or more."
        )
    if not weight.any():
        raise ValueError("sample_weight: every weight is zero, expected at least one above. Leave out rows instead.")
    return MemoryColumn(weight)


def input_rows(
    estimator: Any,
    x: Any,
    reset: bool,
    least: int = 1,
    dense: bool = True,
    counts: bool = False,
    missing: bool = False,
) -> InputRows:
    """Check X as scikit-learn does; of a Dask array only its metadata: its blocks are checked where they are used.

    Dask DataFrames, and arrays of zarr and HDF5, become Dask arrays: they are read block by block.

    Parameters
    ----------
    estimator : object
    x : array-like, shape (n, d)
    reset : bool
        Whether n_features_in_ and feature_names_in_ are set, or compared.
    least : int
        Smallest number of rows.
    dense : bool
        Whether sparse rows are made dense, a block at a time.
    counts, missing : bool
        Whether values below 0 are refused, and whether NaN is not.

    Raises
    ------
    ValueError, TypeError
        As `sklearn.utils.validation.validate_data`.
    """
    named, names = x if _is_named(x) else None, None
    if named is not None:
        if x.ndim != 2:
            raise ValueError(f"X: got dimensions {x.dims}, expected two: rows and features. Select or reshape.")
        coordinates = x.coords.get(x.dims[1])
        names = None if coordinates is None else coordinates.values
        x = x.data
    with value_errors():
        refuse_exchanged("X", dimension_names(named))
        x = unmasked("X", x)
        found = lazy_rows(x)
    x, names = (x, names) if found is None else (found[0], found[1] and np.array(found[1], object))
    if _is_dask(x):
        _check_dask(x, least)
    if named is not None or _is_dask(x):
        _see(estimator, int(x.shape[1]), names, reset)
    if _is_dask(x):
        x = x if len(x.chunks[1]) == 1 else x.rechunk({1: -1})
        if x.dtype not in KINDS:  # as of rows in memory: results are float64, and what is summed does not wrap around
            x = x.astype(np.float64)
        return InputRows(x, named, counts=counts, missing=missing)
    if any(kind.kind in "mM" for kind in _dtypes(x)):
        raise ValueError("X: holds dates or times, expected numbers. Convert them to numbers of one unit first.")
    sparse = estimator.__sklearn_tags__().input_tags.sparse
    checks = {"dtype": KINDS, "accept_sparse": "csr" if sparse else False, "ensure_min_samples": least, "order": "C"}
    if missing:
        checks["ensure_all_finite"] = "allow-nan"
    if named is not None:
        checked = check_array(x, estimator=estimator, input_name="X", **checks)
    else:
        checked = validate_data(estimator, x, reset=reset, **checks)
    if counts:
        check_non_negative(checked, type(estimator).__name__)
    if not sp.issparse(checked):
        return InputRows(checked, named)
    return InputRows(canonical("X", sp.csr_array(checked)), named, dense)


def _see(estimator: Any, n_features: int, names: Any, reset: bool) -> None:
    """Set or compare n_features_in_ and feature_names_in_. names : (d,), which count where they are text, or None."""
    import pandas as pd  # xarray and Dask's DataFrames, which names are from, need it too

    stand_in: Any = np.empty((0, n_features))
    if names is not None and names.dtype.kind in "OUT":
        stand_in = pd.DataFrame(stand_in, columns=names.astype(object))
    validate_data(estimator, stand_in, reset=reset, skip_check_array=True)


def _check_dask(x: Any, least: int) -> None:
    """Check what scikit-learn checks, except values, which the profiling pass checks."""
    if x.ndim != 2:
        raise ValueError(f"Expected 2D array, got a {x.ndim}D Dask array instead. Reshape your data.")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"X: got a Dask array of {x.dtype}, expected real numbers. Convert it first.")
    if any(np.isnan(size) for size in (*x.chunks[0], x.shape[1])):
        raise ValueError("X: got chunks of unknown size, expected known ones. Use X.compute_chunk_sizes() first.")
    if x.shape[0] < least:
        raise ValueError(f"Found array with {x.shape[0]} sample(s) while a minimum of {least} is required.")


def _dtypes(x: Any) -> list[Any]:
    """The dtypes of an array or of the columns of a DataFrame; scikit-learn's checks take times for numbers."""
    found = getattr(x, "dtypes", getattr(x, "dtype", ()))
    return [kind for kind in (found if np.ndim(found) else [found]) if hasattr(kind, "kind")]


def _is_dask(x: Any) -> bool:
    dask = sys.modules.get("dask.array")  # loaded if X is a Dask array
    return dask is not None and isinstance(x, dask.Array)


def _is_named(x: Any) -> bool:
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(x, xarray.DataArray)
