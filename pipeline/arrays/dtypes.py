"""The dtypes of computations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Matrix = Any  # (n, d): a dense array or a scipy.sparse.csr_array


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float32 if it represents every value exactly (float16, float32, integers to 16 bits), else float64."""
    return np.result_type(dtype, np.float32)
