"""X, and results of the kind of X: NumPy for NumPy, lazy Dask for Dask, named xarray for xarray; sample_weight."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.utils.validation import check_array, check_non_negative, validate_data

from pipeline.data.checked import (
    BadRows,
    canonical,
    checked_column,
    checked_rows,
    refuse_columns,
    refuse_values,
    unmasked,
)
from pipeline.data.column import MemoryColumn
from pipeline.data.memory import DaskSource, MemorySource
from pipeline.data.source import Source, rows_per_target
from pipeline.engine.blas import single_thread
from pipeline.engine.lazy import lazy_rows, measured, rows_by_block
from pipeline.engine.memory import cores
from pipeline.estimators.cells import Cells, cells_of, is_xarray, seen_of, spread
from pipeline.estimators.fit import value_errors

BLOCK_ROWS = 2**14  # of a call, where results are computed on threads
KINDS = [np.float64, np.float32]


@dataclass(frozen=True)
class _Block:
    """A function of a block of a Dask array.

    Attributes
    ----------
    function : callable
    none : array, shape (0,) or (0, k)
        Its result for no rows.
    dtype, sparse : of the rows, as declared.
    counts, missing, masks : bool
        Whether values below 0 are refused, whether NaN is not, and whether rows of NaN alone are left out.
    """

    function: Callable[[Any], np.ndarray]
    none: np.ndarray
    dtype: np.dtype[Any]
    sparse: bool
    counts: bool
    missing: bool
    masks: bool = False

    def __call__(self, x: Any, block_info: Any = None) -> np.ndarray:
        """Return the result for the rows, after a check of their values. x : (n, d), or cells, (*shape, d)."""
        if not block_info:
            return self.none
        place = block_info[0]["array-location"]
        *shape, d = (stop - start for start, stop in place)
        if len(shape) == 1:
            what = f"X: rows {place[0][0]}:{place[0][1]} (block {block_info[0]['chunk-location'][0]})"
        else:
            what = f"X: the block of cells {', '.join(f'{start}:{stop}' for start, stop in place[:-1])}"
        x = checked_rows(what, x.reshape(-1, d), (math.prod(shape), d), self.dtype, self.sparse)
        seen = seen_of(what, x, tuple(shape)) if self.masks else None
        x = x if seen is None else x[seen]
        refuse_values(
            what, np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf) if self.missing else x, self.counts
        )
        return spread(self.function(x) if x.shape[0] else self.none, seen, tuple(shape))


@dataclass(frozen=True)
class InputRows:
    """Checked rows.

    Attributes
    ----------
    x : array, csr_array or Dask array, shape (n, d)
        Chunks of a Dask array have all features.
    cells : Cells or None
        Where the rows are those of xarray. Of a Dask array, rows follow each other by block.
    dense : bool
        Whether sparse rows are made dense, a block at a time.
    counts, missing : bool
        Whether rows are counts, and whether NaN is an entry that is not known.
    masks : bool
        Whether there may be rows of NaN alone, which are left out.
    """

    x: Any
    cells: Cells | None = None
    dense: bool = False
    counts: bool = False
    missing: bool = False
    masks: bool = False

    @property
    def lazy(self) -> bool:
        """Whether the rows are a Dask array."""
        return _is_dask(self.x)

    @property
    def bad_rows(self) -> str:
        """What `data.bad_rows` is for these rows: of rows in memory the bad ones are left out already."""
        return "drop" if self.masks and self.lazy else "error"

    def source(self) -> Source:
        """Return the rows as a source."""
        return DaskSource(self.x) if self.lazy else MemorySource(self.x, self.dense)

    def in_memory(self, what: str) -> Any:
        """Return the rows, an array or CSR, (n, d). Raises ValueError for a Dask array. what : what needs them."""
        if self.lazy:
            raise ValueError(f"X: got a Dask array, but {what} needs rows in memory. Use X.compute(), or a job.")
        return self.x

    def map(self, function: Callable[[Any], np.ndarray], columns: int | None, dtype: Any, name: str) -> Any:
        """Return function(block of rows) for all rows, in the kind of X, shape (n,) or (n, columns).

        name : of the second dimension, for xarray.
        """
        tail = () if columns is None else (columns,)
        none = np.empty((0, *tail), dtype)
        if self.lazy:
            x = self.x if self.cells is None else self.cells.array
            last = x.ndim - 1
            more: dict[str, Any] = {"chunks": (*x.chunks[:-1], tail)} if tail else {"drop_axis": last}
            block = _Block(function, none, x.dtype, sp.issparse(x._meta), self.counts, self.missing, self.masks)
            meta = np.empty((0,) * last + tail, dtype)
            found = x.map_blocks(block, token=name, dtype=dtype, meta=meta, **more)
        elif self.x.shape[0]:
            found = np.concatenate(self._on_threads(function))
        else:
            found = none
        if self.cells is None:
            return found
        return self.cells.labelled(found if self.lazy else spread(found, self.cells.seen, self.cells.grid.shape), name)

    def one_each(self, what: str, values: Any) -> Any:
        """Return one value a row, shape (n,), of a user's or of `map`; with xarray, on some of its dimensions. Raises InputError."""
        return values if self.cells is None else self.cells.flat(what, values)

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


def column_of(sample_weight: Any, table: InputRows) -> MemoryColumn | None:
    """Return sample_weight as a column, None for ones. Raises ValueError unless it is one number >= 0 for each row."""
    if sample_weight is None:
        return None
    n = table.x.shape[0]
    weight = np.asarray(table.one_each("sample_weight", unmasked("sample_weight", sample_weight)))
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


def mean_of(table: InputRows, scores: Any, weight: MemoryColumn) -> float:
    """Return the weighted mean of what `map` found of each row; rows that are left out have none."""
    if table.cells is None:
        return float((scores * weight.values).sum() / weight.values.sum())
    flat = table.cells.flat("scores", scores)
    seen = ~np.isnan(flat)
    return float((flat * weight.values)[seen].sum() / weight.values[seen].sum())


def input_rows(
    estimator: Any,
    x: Any,
    reset: bool,
    least: int = 1,
    dense: bool = True,
    counts: bool = False,
    missing: bool = False,
    features: Any = None,
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
    features : sequence of str, optional
        Dimensions of xarray whose entries are features; later those of the fit.

    Raises
    ------
    ValueError, TypeError
        As `sklearn.utils.validation.validate_data`.
    """
    if not reset and is_xarray(x):
        features = getattr(estimator, "feature_dims_", None)
    cells, masks = None, False
    names: Any = None
    with value_errors():
        if is_xarray(x) or features is not None:
            cells = cells_of(x, features)
            names, masks = cells.names, cells.masks and not missing
            cells, x = _flattened(cells, masks)
        x = unmasked("X", x)
        found = lazy_rows(x)
        x = x if found is not None or _is_dask(x) else _of_table(x)
    x, names = (x, names) if found is None else (found[0], found[1] and np.array(found[1], object))
    if reset:
        _remember(estimator, cells)
    if _is_dask(x):
        x = measured(x)
        _check_dask(x, least)
    if cells is not None or _is_dask(x):
        _see(estimator, int(x.shape[1]), names, reset)
    if _is_dask(x):
        if cells is None:
            x = x if len(x.chunks[1]) == 1 else x.rechunk({1: -1})
            x = x if x.dtype in KINDS else x.astype(np.float64)  # as of rows in memory: sums do not wrap around
        return InputRows(x, cells, counts=counts, missing=missing, masks=masks)
    if getattr(getattr(x, "dtype", None), "kind", "") in ("m", "M"):
        raise ValueError("X: holds dates or times, expected numbers. Convert them to numbers of one unit first.")
    sparse = estimator.__sklearn_tags__().input_tags.sparse
    checks = {"dtype": KINDS, "accept_sparse": "csr" if sparse else False, "ensure_min_samples": least, "order": "C"}
    if missing:
        checks["ensure_all_finite"] = "allow-nan"
    if cells is not None:
        checked = check_array(x, estimator=estimator, input_name="X", **checks)
    else:
        checked = validate_data(estimator, x, reset=reset, **checks)
    if counts:
        check_non_negative(checked, type(estimator).__name__)
    if not sp.issparse(checked):
        return InputRows(checked, cells)
    return InputRows(canonical("X", sp.csr_array(checked)), cells, dense)


def _flattened(cells: Cells, masks: bool) -> tuple[Cells, Any]:
    """The rows of cells, (n, d): those in memory without the ones that are left out; and the cells, which say which these are."""
    x, d = cells.array, cells.array.shape[-1]
    if not _is_dask(x):
        flat = x.reshape(-1, d)
        seen = seen_of("X", flat, cells.grid.shape) if masks else None
        return replace(cells, seen=seen), flat if seen is None else flat[seen]
    if x.ndim == 2 and not masks:
        return cells, x
    return cells, rows_by_block(x, partial(_block_rows, masks))


def _block_rows(masks: bool, block: Any) -> Any:
    """The cells of a block as rows, (n, d), after a check that none has values of some features only."""
    if masks:
        seen_of("X", block.reshape(-1, block.shape[-1]), block.shape[:-1])
    return block.reshape(-1, block.shape[-1])


def _remember(estimator: Any, cells: Cells | None) -> None:
    """Set what a fit to xarray leaves for `predict` and `to_xarray`; remove it where X is something else."""
    names = ("feature_dims_", "feature_index_")
    for name in names:
        estimator.__dict__.pop(name, None)
    if cells is not None:
        estimator.feature_index_ = cells.index
        if cells.masks:
            estimator.feature_dims_ = [name for name in cells.index if name != "variable"]


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
    if x.shape[0] < least:
        raise ValueError(f"Found array with {x.shape[0]} sample(s) while a minimum of {least} is required.")


def _of_table(x: Any) -> Any:
    """A table whose columns are numbers, of pandas, polars or Arrow; one that only others read as one of Arrow; anything else as it is."""
    if type(x).__name__ == "LazyFrame" and hasattr(x, "collect"):
        raise BadRows("X: got a LazyFrame, which holds no rows yet. Use X.collect().")
    if hasattr(x, "__array__") and hasattr(x, "column_names"):  # Arrow
        refuse_columns(x.column_names, x.schema.types)
        return x if hasattr(x, "__dataframe__") and hasattr(x, "combine_chunks") else _arrow_table(x)
    if hasattr(x, "__array__") and hasattr(x, "columns"):
        refuse_columns(x.columns, x.dtypes)
        for name in [name for name, kind in zip(x.columns, x.dtypes, strict=True) if str(kind) == "object"]:
            if any(isinstance(value, (str, bytes, dict, list, tuple)) for value in x[name]):
                raise BadRows(
                    f"X: column {name!r} holds no numbers (object), expected numbers. Leave it out, or write it as numbers."
                )
        return x
    if hasattr(x, "__arrow_c_stream__") and not hasattr(x, "__array__"):
        return _of_table(_arrow_table(x))
    return x


def _arrow_table(x: Any) -> Any:
    import pyarrow as pa

    return pa.table(x)


def _is_dask(x: Any) -> bool:
    dask = sys.modules.get("dask.array")  # loaded if X is a Dask array
    return dask is not None and isinstance(x, dask.Array)
