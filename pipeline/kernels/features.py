"""Features in which a Gaussian log-density is linear, so that E-step and moments are matrix products (kernels/gemm.py).

    full: [y_i y_j for j <= i, y, 1]    diag: [y_i², y, 1]    spherical: [|y|², y, 1]    tied: [y, 1]

with y = x - reference. The linear part comes last, so that the quadratic part starts at a cache line.
"""

from __future__ import annotations

import numpy as np

from pipeline.kernels.compiling import kernel
from pipeline.kernels.vectors import NARROW_BYTES, element, narrow, narrow_lanes, put, view

NONE, SPHERE, DIAGONAL, PAIRS = 0, 1, 2, 3  # kinds of quadratic features: tied, spherical, diag, full
NARROW_NUMBERS = NARROW_BYTES // 4  # in a narrow vector, at most


def n_features(kind: int, d: int) -> int:
    """Columns p of the features of d columns."""
    return (0, 1, d, d * (d + 1) // 2)[kind] + d + 1


@kernel
def fill_features(x: np.ndarray, reference: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Write the features of each row. x : (n, d).  reference : (d,), in x's dtype.  out : (n, p), C-contiguous."""
    n, d = x.shape
    p = out.shape[1]
    row = np.zeros(d + NARROW_NUMBERS, x.dtype)
    y, features = view(row), view(out.reshape(-1))
    lanes = narrow_lanes(y)
    for t in range(n):
        for i in range(d):
            row[i] = x[t, i] - reference[i]
        if kind == PAIRS and d >= lanes:
            q = t * p
            for i in range(d):
                factor = element(y, i, narrow(y, 0))
                for j in range(i // lanes + 1):  # whole vectors: the excess is overwritten by the next line
                    put(features, q + j * lanes, factor * narrow(y, j * lanes))
                q += i + 1
        elif kind == PAIRS:
            q = 0
            for i in range(d):
                for j in range(i + 1):
                    out[t, q + j] = row[i] * row[j]
                q += i + 1
        elif kind == DIAGONAL:
            for i in range(d):
                out[t, i] = row[i] * row[i]
        elif kind == SPHERE:
            square = row[0] * row[0]
            for i in range(1, d):
                square += row[i] * row[i]
            out[t, 0] = square
        for i in range(d):
            out[t, p - d - 1 + i] = row[i]
        out[t, p - 1] = 1
