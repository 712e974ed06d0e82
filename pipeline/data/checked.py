"""The law of rows and of columns beside them, for every way in: a file, an array in memory, a block of a Dask array.

Rows are two-dimensional, of the shape and dtype that were declared, real, without a mask; sparse ones are CSR with sorted
indices, each once. A column is one real number a row, without a mask. What can be brought into this form without a change of
value is; all else is refused, never read as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.errors import InputError

# How pandas, polars, Arrow and NumPy call types of numbers.
_NUMBERS = re.compile(
    r"(Sparse\[)?(u?int|float|double|half|bool|decimal|[<>][iuf]\d)", re.IGNORECASE
)  # <f8 and >i2: NumPy's, in foreign byte order
_TIMES = re.compile(r"(date|time|duration|period|interval)", re.IGNORECASE)


class BadRows(InputError, ValueError):
    """Rows that cannot be used: a ValueError for callers of the Python classes, also from within a Dask task."""


def checked_rows(what: str, x: Any, shape: tuple[int, int], dtype: np.dtype[Any], sparse: bool) -> Matrix:
    """Return a block of rows in the form that models rely on.

    Parameters
    ----------
    what : str
        Names the block in messages.
    x : Any
        What was read or computed.
    shape : tuple of int
        (n, d), as declared.
    dtype : numpy.dtype
        As declared.
    sparse : bool
        Whether sparse rows are declared.

    Returns
    -------
    array or csr_array, shape (n, d)
        The input itself where it obeys already.

    Raises
    ------
    BadRows
    """
    x = unmasked(what, x)
    if sp.issparse(x) and not sparse:
        x = x.toarray()  # as large as what is declared
    elif not sp.issparse(x):
        x = np.asarray(x)
    if x.shape != shape:
        raise BadRows(
            f"{what}: got shape {tuple(x.shape)}, expected {shape} as declared. Correct what makes or declares it."
        )
    if x.dtype != dtype:
        if x.dtype.kind not in "biuf" or not np.can_cast(x.dtype, dtype, "safe"):
            raise BadRows(
                f"{what}: got dtype {x.dtype}, expected {dtype} as declared. Correct what makes or declares it."
            )
        x = x.astype(dtype)
    if sparse:
        return canonical(what, sp.csr_array(x))
    return np.ascontiguousarray(x)


def canonical(what: str, x: sp.csr_array) -> sp.csr_array:
    """Return the rows with sorted indices, each once; the values of repeated ones are summed.

    Integers are summed in 64 bits. Raises BadRows where such a sum does not fit the dtype.
    """
    if x.has_canonical_format:
        return x
    dtype = x.dtype
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(dtype.kind, np.float64)
    summed = x.astype(wide)  # a copy: the caller's own rows are not written to
    summed.sum_duplicates()
    found = summed.astype(dtype)
    if dtype.kind in "biu" and (found.data != summed.data).any():
        worst = summed.data[found.data != summed.data][0]
        raise BadRows(
            f"{what}: repeated entries sum to {worst}, more than {dtype} holds. Store a wider type, or the sums."
        )
    return found


def unmasked(what: str, x: Any) -> Any:
    """Return the values of a masked array in which nothing is masked; anything else as it is. Raises BadRows otherwise."""
    if not isinstance(x, np.ma.MaskedArray):
        return x
    if n := int(np.ma.getmaskarray(x).sum()):
        raise BadRows(f"{what}: {n} values are masked, expected none. Fill them, or leave their rows out.")
    return x.data


def refuse_values(what: str, x: Matrix, counts: bool) -> None:
    """Raise BadRows for NaN and inf, and where rows are counts for values below 0."""
    values = x.data if sp.issparse(x) else x
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadRows(f"{what}: holds NaN or inf, expected finite numbers. Clean or leave out these rows.")
    if counts and values.size and values.min() < 0:
        raise BadRows(f"{what}: the lowest value is {values.min():g}, expected counts of 0 or more.")


def refuse_columns(names: Iterable[Any], kinds: Iterable[Any]) -> None:
    """Raise BadRows for columns of a table that hold no numbers, or have one name. kinds : their types, as the table calls them."""
    seen = set()
    for name, kind in zip(names, kinds, strict=True):
        if _TIMES.match(str(kind)):
            raise BadRows(
                f"X: column {name!r} holds dates or times ({kind}), expected numbers. Convert them to numbers of one unit, or leave it out."
            )
        if not (_NUMBERS.match(str(kind)) or str(kind) == "object"):
            raise BadRows(
                f"X: column {name!r} holds no numbers ({kind}), expected numbers. Leave it out, or write it as numbers."
            )
        if name in seen:
            raise BadRows(f"X: two columns are called {name!r}, expected names that differ. Rename one.")
        seen.add(name)


def checked_column(what: str, values: Any, n: int) -> Array:
    """Return a column of n real numbers, shape (n,), native byte order. Raises BadRows for anything else."""
    values = np.asarray(unmasked(what, values))
    if values.shape != (n,) or values.dtype.kind not in "biuf":
        raise BadRows(
            f"{what}: got dtype {values.dtype} and shape {values.shape}, expected one real number for each of the {n} rows."
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def checked_errors(values: Array, start: int, shape: tuple[int, ...]) -> Array:
    """Return variances (n, d), or covariances (n, d, d), of the errors of rows, float64. Raises BadRows for anything else.

    start : index of the first row.  shape : (n, d) of the rows.
    """
    n, d = shape
    found = np.asarray(values, dtype=np.float64)
    if found.shape not in ((n, d), (n, d, d)):
        raise BadRows(f"data.noise: got shape {found.shape}, expected {(n, d)} or {(n, d, d)}. Correct what stores it.")
    wrong = ~np.isfinite(found).reshape(n, -1).all(axis=1)
    what = "a number that is not finite"
    if not wrong.any() and found.ndim == 2:
        wrong, what = (found < 0).any(axis=1), "a variance below 0"
    elif not wrong.any():
        size = np.abs(found).max(axis=(1, 2), initial=0.0)
        apart = np.abs(found - np.swapaxes(found, 1, 2)).max(axis=(1, 2)) > 1e-6 * size
        wrong, what = (
            apart | (np.linalg.eigvalsh(found)[:, 0] < -1e-6 * size),
            "no covariance: not symmetric, or negative somewhere",
        )
    if wrong.any():
        row = int(wrong.argmax())
        raise BadRows(f"data.noise: row {start + row} has {what}, expected finite errors of 0 or more. Correct it.")
    return found
