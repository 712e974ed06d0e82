"""Standard errors of a user's parameters, from the observed information.

I = -d² log p(X | u) / du du',    cov(θ) = J I⁻¹ Jᵀ,    J = dθ / du [Efron and Hinkley 1978; the delta method]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.models.autodiff.compiled import float64

MOST_BYTES = 2**27


@dataclass(frozen=True)
class InformationJob:
    """Job: second derivatives of log p(X), (p, p)."""

    model: Any
    params: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix. Raises InputError if it is more than MOST_BYTES."""
        p = self.model.layout.size
        if 8 * p * p > MOST_BYTES:
            raise InputError(
                f"output.standard_errors: {p} parameters need a matrix of {8 * p * p / 2**20:.0f} MiB, more than "
                f"{MOST_BYTES / 2**20:.0f} MiB. Set it to false."
            )
        return int(8 * p * p)

    def __call__(self, rows: Rows, kernels: Any) -> Array:
        total = np.zeros((self.model.layout.size,) * 2)
        for _, w, found in self.model.on_rows(self.params, rows, "observed"):
            if (w > 0).any():
                total += found["observed"]
        return total

    def errors(self, products: Array) -> dict[str, Array]:
        """Return standard errors of the estimated parameters, in their shapes; NaN where the information is singular."""
        model, layout, free = self.model, self.model.layout, self.model.free
        information = -products[np.ix_(free, free)]
        covariance = np.full_like(information, np.nan)
        scale = np.sqrt(np.abs(np.diagonal(information)))
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = information / scale / scale[:, None]
        if np.isfinite(scaled).all() and np.linalg.eigvalsh(scaled)[0] > len(scale) * np.finfo(np.float64).eps:
            covariance = np.linalg.inv(scaled) / scale / scale[:, None]
        with float64() as jax:
            slopes = jax.jacfwd(lambda u: layout.from_real(u, jax.numpy))(self.params.u)
            slopes = {name: np.asarray(each) for name, each in slopes.items()}
        found = {}
        for name in (name for name in layout.fields if name not in model.fixed):
            jacobian = slopes[name].reshape(-1, layout.size)[:, free]
            variance = np.einsum("ij,jl,il->i", jacobian, covariance, jacobian)
            found[name] = np.sqrt(np.maximum(variance, 0.0)).reshape(layout.shapes[name])
        return found
