"""Factor analysers of rows with missing entries (NaN), which are latent variables beside the factors.

    E z = V_o Lambda_oᵀ Psi_o⁻¹ (x_o - mu_o)        V_o = (I + Lambda_oᵀ Psi_o⁻¹ Lambda_o)⁻¹, for the observed entries o of a row
    E x_m yᵀ = (mu, Lambda)_m E yyᵀ        E x_m² = (mu, Lambda)_m E yyᵀ (mu, Lambda)_mᵀ + Psi_m, for the missing ones m, y = (1, z)

So the sums are those of whole rows, of d x (2 + q) numbers, and so is the M-step; sums of E yyᵀ for each feature, over the rows in
which it is seen, would take d x q x q, and fewer iterations. A pattern of missing entries takes (d + q) q² products a component, a row
d q as always. [Ghahramani and Jordan 1994, sec. 4; Ghahramani and Hinton 1996]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import tiles
from pipeline.models.incomplete import BATCH_NUMBERS, LOG_2PI, Drawn, OfIncompleteRows


class OfFactors(Drawn):
    """Rows under factor analysers. theta : Analysers.  x : (n, d) float64.  shift : (d,).

    gaps : (p, d) bool, patterns of missing entries.  which : (n,), the row's.  variance : (k, p, q, q), V_o.  y : (n, k, 1 + q), E y.
    """

    def __init__(self, theta: Any, x: Array, shift: Array) -> None:
        self.theta, self.x, self.shift, self.missing = theta, x, shift, np.isnan(x)
        _, first, which = np.unique(np.packbits(self.missing, axis=1), axis=0, return_index=True, return_inverse=True)
        self.gaps, self.which = self.missing[first], which.ravel()
        k, _, q = theta.loadings.shape
        self.rows_about = np.where(self.missing, 0.0, x - shift)
        self.variance, self.y = np.empty((k, len(first), q, q)), np.ones((len(x), k, 1 + q))
        self.log_density = np.empty((len(x), k))
        for c in range(k):
            precision = np.eye(q) + by_feature(~self.gaps, theta.loadings[c], theta.scaled[c]).reshape(-1, q, q)
            self.variance[c] = np.linalg.inv(precision)
            left = np.where(self.missing, 0.0, self.rows_about - theta.slopes[c, :, 0])
            self.y[:, c, 1:] = np.einsum("nq,nqp->np", left @ theta.scaled[c], self.variance[c][self.which])
            left = np.where(self.missing, 0.0, left - self.y[:, c, 1:] @ theta.loadings[c].T)
            squared = np.square(left) @ (1.0 / theta.noise[c]) + np.square(self.y[:, c, 1:]).sum(axis=1)
            log_det = ~self.gaps @ (np.log(theta.noise[c]) + LOG_2PI) + np.linalg.slogdet(precision)[1]
            self.log_density[:, c] = -0.5 * (log_det[self.which] + squared)

    def about(self, c: int) -> Array:
        """Return the expected rows less the shift, (n, d)."""
        return np.where(self.missing, self.y[:, c] @ self.theta.slopes[c].T, self.rows_about)

    def row(self, c: int) -> Array:
        return np.where(self.missing, self.shift + self.about(c), self.x)

    def deviations(self, c: int, normal: Array) -> Array:
        q = self.theta.loadings.shape[2]
        z = np.einsum("nqp,np->nq", np.linalg.cholesky(self.variance[c])[self.which], normal[:, :q])
        noise = np.sqrt(self.theta.noise[c]) * normal[:, q:]
        return np.where(self.missing, z @ self.theta.loadings[c].T + noise, 0.0)


def by_feature(chosen: Array, one: Array, other: Array) -> Array:
    """Return sums over chosen features of outer products, (p, q q), some features at a time. chosen : (p, d) bool.  one, other : (d, q)."""
    d, q = one.shape
    total = np.zeros((len(chosen), q * q))
    for part in tiles(d, max(1, BATCH_NUMBERS // (q * q))):
        total += chosen[:, part] @ (one[part, :, None] * other[part, None, :]).reshape(-1, q * q)
    return total


class SumsOfFactors:
    """Sums about the shift over rows as they are expected, as of `FactorStats`."""

    def __init__(self, component: Any, theta: Any) -> None:
        self.component, self.theta = component, theta
        k, d, p = theta.slopes.shape
        self.yy, self.xy, self.xx = np.zeros((k, p, p)), np.zeros((k, d, p)), np.zeros((k, d))

    def add(self, expected: OfFactors, resp: Array) -> None:
        """Add rows. resp : (n, k), times the weights."""
        gaps, (d, q) = expected.gaps, self.theta.loadings.shape[1:]
        for c in range(resp.shape[1]):
            about, y, loadings = expected.about(c), expected.y[:, c], self.theta.loadings[c]
            own = y * resp[:, c, None]
            self.yy[c] += own.T @ y
            self.xy[c] += about.T @ own
            self.xx[c] += resp[:, c] @ np.square(about)
            counts = np.bincount(expected.which, resp[:, c], len(gaps))
            spread = (counts[:, None, None] * expected.variance[c]).reshape(-1, q * q)
            self.yy[c, 1:, 1:] += spread.sum(axis=0).reshape(q, q)
            for part in tiles(d, max(1, BATCH_NUMBERS // (q * q))):  # what the factors of missing entries vary by
                of_features = (gaps[:, part].T @ spread).reshape(-1, q, q)
                with_z = np.einsum("dp,dpq->dq", loadings[part], of_features)
                self.xy[c, part, 1:] += with_z
                self.xx[c, part] += (with_z * loadings[part]).sum(axis=1)
            self.xx[c] += (counts @ gaps) * self.theta.noise[c]

    def stats(self, sum_w: Array) -> Any:
        """Return the component's statistics. sum_w : (k,)."""
        return self.component.stats_type(self.yy, self.xy, self.xx)


class OfUnseenEntries(OfIncompleteRows):
    """What factor analysers of such rows have in place of their own: a mixin before them. stats_type : FactorStats."""

    stats_type: ClassVar[Any]

    @property
    def n_normal(self: Any) -> int:
        return self.rank + self.n_features

    def batches(self: Any, theta: Any, x: Array) -> Iterator[tuple[Array, OfFactors]]:
        """Yield rows of equal patterns next to each other, about a tile at a time."""
        patterns = np.unique(np.packbits(np.isnan(x), axis=1), axis=0, return_inverse=True)[1].ravel()
        order = np.argsort(patterns, kind="stable")
        most = max(
            1, 4 * BATCH_NUMBERS // (self.n_components * self.rank**2)
        )  # of V, where each row has its own pattern
        for part in tiles(len(x), min(self._height(), most)):
            yield order[part], OfFactors(theta, x[order[part]].astype(np.float64), self.shift)

    def sums(self, theta: Any) -> SumsOfFactors:
        return SumsOfFactors(self, theta)

    def scratch_bytes(self: Any) -> int:
        """The sums, twice, and of a batch V, its sums by feature, and rows."""
        return 2 * int(self.statistics_bytes()) + 8 * max(16 * BATCH_NUMBERS, 3 * self.n_components * self.rank**2)
