"""A start of a user's model: the user's values, and for the rest the best of a few random draws, improved on a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError
from pipeline.models.autodiff import faults
from pipeline.models.autodiff.compiled import LEAST_ROWS, MOST_ROWS, float64, layout_of, on_tile
from pipeline.models.autodiff.declare import JaxModel, has

DRAWS = 8
IMPROVEMENTS = 20  # iterations of L-BFGS on the sample
IMPOSSIBLE = 1e50  # stands for the negative log-likelihood where it is infinite


def start(model: JaxModel, n_features: int, sample: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Return initial parameters by name. sample : (m, d) rows.

    Raises
    ------
    InputError
        If no draw makes all rows of the sample possible.
    """
    layout, own = layout_of(model, n_features), _own(model, sample, rng)
    if set(own) == set(layout.fields):
        return own
    rows = np.asarray(sample[:MOST_ROWS], dtype=np.float64)
    height = max(LEAST_ROWS, 1 << int(np.ceil(np.log2(max(1, len(rows))))))
    function = on_tile(model, n_features, ("gradient",), height)
    x = np.concatenate([rows, np.repeat(rows[:1], height - len(rows), axis=0)])
    w = np.concatenate([np.full(len(rows), 1.0 / max(1, len(rows))), np.zeros(height - len(rows))])
    label, free = (
        np.full(height, -1),
        np.concatenate([np.arange(part.start, part.stop) for name, part in layout.slices.items() if name not in own]),
    )

    def lost(v: Array, u: Array) -> tuple[float, Array]:
        u = u.copy()
        u[free] = v
        found = function(u, u, x, w, label)
        value, gradient = float(w[: len(rows)] @ found["score"][: len(rows)]), found["gradient"][free]
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return IMPOSSIBLE, np.zeros_like(v)
        return -value, -gradient

    best: tuple[float, Array] | None = None
    for _ in range(DRAWS):
        u = rng.standard_normal(layout.size)
        arrays = {**layout.from_real(u), **own}
        u = layout.to_real(arrays)
        with np.errstate(all="ignore"):
            found = minimize(lost, u[free], args=(u,), jac=True, method="L-BFGS-B", options={"maxiter": IMPROVEMENTS})
        if found.fun < IMPOSSIBLE and (best is None or found.fun < best[0]):
            u[free] = found.x
            best = float(found.fun), u
    if best is None:
        raise InputError(
            f"{type(model).__name__}: {DRAWS} random starts all make a row of the sample impossible, or its gradient NaN. Define "
            "start(self, rows, rng), which returns initial parameters, or give them (init: explicit)."
        )
    return {**layout.from_real(best[1]), **own}


def _own(model: JaxModel, sample: Array, rng: np.random.Generator) -> dict[str, Array]:
    """The user's initial values, by name."""
    if not has(model, "start"):
        return {}
    with float64(), faults.named(model, "start"):
        found: Any = model.start(sample, rng)  # type: ignore[attr-defined]
        return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}
