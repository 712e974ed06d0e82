"""Features in which a Gaussian's log-density is linear, so that E-step and moments are matrix products.

    full: [y_i y_j for j <= i, y, 1]    diag: [y_i², y, 1]    spherical: [|y|², y, 1]    tied: [y, 1]

with y = x - reference. The linear part comes last, so that the quadratic part starts on a boundary.
"""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import kernel

NONE, SPHERE, DIAGONAL, PAIRS = 0, 1, 2, 3


def n_features(kind: int, d: int) -> int:
    """How many columns the features of d columns have."""
    return (0, 1, d, d * (d + 1) // 2)[kind] + d + 1


@kernel
def fill_features(x: np.ndarray, reference: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Write the features of each row. x : (n, d).  reference : (d,), in x's dtype.  out : (n, p)."""
    n, d = x.shape
    real = x.dtype.type
    linear = out.shape[1] - d - 1
    for t in range(n):
        row = out[t]
        for i in range(d):
            row[linear + i] = x[t, i] - reference[i]
        row[linear + d] = real(1)
        if kind == PAIRS:
            q = 0
            for i in range(d):
                y = row[linear + i]
                for j in range(i + 1):
                    row[q + j] = y * row[linear + j]
                q += i + 1
        elif kind == DIAGONAL:
            for i in range(d):
                row[i] = row[linear + i] * row[linear + i]
        elif kind == SPHERE:
            square = real(0)
            for i in range(d):
                square += row[linear + i] * row[linear + i]
            row[0] = square
