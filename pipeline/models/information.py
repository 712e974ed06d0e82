"""Standard errors of a Gaussian mixture's weights and means, from the empirical information matrix.

    I = sum_n w_n s_n s_nᵀ    s_n = gradient of log p(x_n):  d/d pi_k = r_nk / pi_k,  d/d mu_k = r_nk Sigma_k⁻¹ (x_n - mu_k)

If covariances are estimated, their scores are included, up to a linear map r_nk (y yᵀ - Sigma_k) with y = x_n - mu_k; without
them the errors of overlapping components would be far too small. All scores are linear in u_n, the r_nk, r_nk y and r_nk y yᵀ
(the shape's part of it), by the same map for every row, so sum w u uᵀ is a statistic that adds. Errors are the
roots of the diagonal of I⁻¹, where weights sum to 1. [Louis 1982; Meilijson 1989; McLachlan and Peel 2000, sec. 2.15]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, helmert

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tiles
from pipeline.errors import InputError
from pipeline.kernels.features import DIAGONAL, NONE, PAIRS, SPHERE
from pipeline.models.covariance import FULL, Shape, full_covariances
from pipeline.models.mixture import Mixture, MixtureParams

MOST_BYTES = 2**27  # of the matrix: a worker holds a handful
TILE_ROWS = 1024

# What a shape keeps of y yᵀ, (n, q), row by row.
_SQUARES: dict[int, Callable[[Array, Array], Array]] = {
    PAIRS: FULL.outer,
    NONE: FULL.outer,
    DIAGONAL: lambda a, b: a * b,
    SPHERE: lambda a, b: np.einsum("nd,nd->n", a, b)[:, None],
}


@dataclass(frozen=True)
class ScoreProducts:
    """Job: sum over rows of w u uᵀ, (p, p). u : the k of r, then r y of each component in turn, then r y yᵀ.

    covariances : whether they are estimated, and u has that last part (tied: summed over components).
    """

    model: Mixture
    params: MixtureParams
    covariances: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix. Raises InputError if it is more than MOST_BYTES."""
        model, shape = self.model, self.model.component.shape
        k, d = model.n_components, model.n_features
        size = k * (d + 1) + (shape.field.support.n_free(shape.array_shape(k, d)) if self.covariances else 0)
        if 8 * size**2 > MOST_BYTES:
            raise InputError(
                f"output.standard_errors: {k} components of {d} features need a matrix of {size} x {size}, "
                f"{8 * size**2 / 2**20:.0f} MiB, more than {MOST_BYTES / 2**20:.0f} MiB. Lower model.n_components, reduce the "
                "features (preprocess: pca), choose given-covariances, whose errors are too small, or false."
            )
        return 8 * size**2

    def __call__(self, chunk: Rows, kernels: Any) -> Array:
        total: Array | None = None
        for rows, labels in self.model.assign(self.params, chunk.x, kernels):
            x = chunk.x[rows]
            root = np.ones(len(x)) if chunk.weight is None else np.sqrt(chunk.weight[rows])
            for part in tiles(len(x), TILE_ROWS):
                u = self._linear(x[part], np.exp(labels.log_resp[part])) * root[part, None]
                total = u.T @ u if total is None else total + u.T @ u
        assert total is not None, "a chunk has at least one row"
        return total

    def errors(self, products: Array) -> dict[str, Array]:
        """Return standard errors of the estimated fields, weights (k,) and means (k, d). products : the sum over all rows."""
        return _standard_errors(self, products)

    def _linear(self, x: Array, resp: Array) -> Array:
        """u of rows, (n, p). x : (n, d).  resp : (n, k)."""
        shape = self.model.component.shape
        diff = [np.subtract(x, mean, dtype=np.float64) for mean in self.params.theta.means]
        first = [y * r[:, None] for y, r in zip(diff, resp.T, strict=True)]
        if not self.covariances:
            return np.concatenate([resp, *first], axis=1)
        second = [_SQUARES[shape.kind](ry, y) for ry, y in zip(first, diff, strict=True)]
        return np.concatenate([resp, *first, *(second if shape.per_component else [sum(second)])], axis=1)


def _standard_errors(job: ScoreProducts, products: Array) -> dict[str, Array]:
    """Standard errors of weights (k,) and means (k, d); NaN where the information is singular.

    products : the job's sum over all rows. Components of weight 0, at the boundary, have no errors.
    """
    model, params, shape = job.model, job.params, job.model.component.shape
    (k, d), live = params.theta.means.shape, np.flatnonzero(params.weights > 0)
    m = len(live)
    sigma = full_covariances(shape, params.theta.covariances, k, d)
    expected = _expected_squares(shape, sigma)[live if shape.per_component else slice(1)]
    q = expected.shape[1] if job.covariances else 0  # of each covariance
    of_squares = live if shape.per_component else np.zeros(1, dtype=int)
    estimated = np.concatenate([live, k + _blocks(live, d), k * (d + 1) + _blocks(of_squares, q)])
    # An orthonormal basis of the directions in which weights keep their sum.
    basis = helmert(m).T if m > 1 and "weights" not in model.fixed else np.empty((m, 0))
    n_means = 0 if "means" in model.fixed else m * d

    def scores(u: Array) -> Array:
        """The gradient's entries from those of u, along the first axis."""
        resp, first, second = np.split(u, [m, m * (d + 1)])
        weights = basis.T @ (resp / params.weights[live, None])
        means = np.linalg.solve(sigma[live], first.reshape(m, d, u.shape[1])).reshape(first.shape)[:n_means]
        own = resp if shape.per_component else resp.sum(axis=0, keepdims=True)
        squares = second.reshape(len(of_squares), q, u.shape[1]) - expected[:, :q, None] * own[:, None]
        return np.concatenate([weights, means, squares.reshape(second.shape)])

    covariance = _inverse(scores(scores(products[np.ix_(estimated, estimated)]).T))
    split = basis.shape[1]
    errors = {"weights": np.full(k, np.nan), "means": np.full((k, d), np.nan)}
    errors["weights"][live] = np.sqrt(np.einsum("ij,jl,il->i", basis, covariance[:split, :split], basis))
    if n_means:
        errors["means"][live] = np.sqrt(np.diagonal(covariance)[split : split + n_means]).reshape(m, d)
    return {name: value for name, value in errors.items() if name not in model.fixed}


def _blocks(chosen: Array, size: int) -> Array:
    """Indices of the chosen ones among blocks of `size`. chosen : (m,)."""
    return (size * chosen[:, None] + np.arange(size)).ravel()


def _expected_squares(shape: Shape, sigma: Array) -> Array:
    """(k, q) of E[y yᵀ] = L Lᵀ, the sum of l lᵀ over the columns l of L. sigma : (k, d, d)."""
    roots = np.swapaxes(np.linalg.cholesky(sigma), 1, 2)
    return np.stack([_SQUARES[shape.kind](root, root).sum(axis=0) for root in roots])


def _inverse(information: Array) -> Array:
    """The inverse, NaN if it is singular: rows are too few, or parameters cannot be distinguished."""
    scale = np.sqrt(np.diagonal(information))
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = cho_factor(information / scale / scale[:, None], lower=True)
        pivots = np.diagonal(factor[0]) ** 2
        if (pivots > len(scale) * np.finfo(np.float64).eps).all():
            return cho_solve(factor, np.eye(len(scale))) / scale / scale[:, None]
    except (np.linalg.LinAlgError, ValueError):  # no Cholesky factor; entries that are not finite
        pass
    return np.full_like(information, np.nan)
