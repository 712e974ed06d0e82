"""sample_weight as a column beside the rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.column import MemoryColumn as HeldColumn
from pipeline.estimators.rows import Table


def column_of(sample_weight: Any, table: Table) -> HeldColumn | None:
    """The weights of the rows, None for ones. Raises ValueError unless they are one number >= 0 a row."""
    if sample_weight is None:
        return None
    n = table.x.shape[0]
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    if weight.ndim != 1:
        raise ValueError("Sample weights must be 1D array or scalar")
    if len(weight) != n:
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {(n,)}!")
    if not weight.any():
        raise ValueError("sample_weight: every weight is zero, expected at least one above. Leave out rows instead.")
    return HeldColumn(weight)
