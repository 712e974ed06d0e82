"""Gaussian components of rows that are known with errors: extreme deconvolution.

    w_n = v_n + e_n        v_n | k ~ N(mu_k, V_k)        e_n ~ N(0, S_n), S_n given        T_nk = V_k + S_n
    b_nk = mu_k + V_k T_nk⁻¹ (w_n - mu_k)        B_nk = V_k - V_k T_nk⁻¹ V_k

Responsibilities come from N(w_n | mu_k, T_nk); the moments are those of the rows b_nk, plus B_nk. So the statistics are those of
Gaussians, and so is the M-step: mu_k and V_k are those of the rows without their errors. [Bovy, Hogg and Roweis 2011, eq. 16-17; here all
projections are the identity]

A row is (w, S): d columns and then the d variances, or the d x d covariance, of its error. One of d columns is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.models.component import Component, Pass
from pipeline.models.covariance import full_covariances, identity
from pipeline.models.incomplete import BATCH_NUMBERS, LOG_2PI, ExpectedMoments, WithMoments, expected_pass


class UnderVariances(WithMoments):
    """Rows (n, d) with variances of their errors (n, d), under variances (k, d). one : whether those of a component are one number."""

    def __init__(self, x: Array, noise: Array, means: Array, variances: Array, one: bool) -> None:
        self.x, self.noise, self.means, self.variances, self.one = x, noise, means, variances, one
        self.log_density = np.empty((len(x), len(means)))
        for c, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            total = variance + noise
            terms = np.square(x - mean) / total + np.log(total) + LOG_2PI
            self.log_density[:, c] = -0.5 * terms.sum(axis=1)

    def row(self, c: int) -> Array:
        mean, variance = self.means[c], self.variances[c]
        found: Array = mean + variance / (variance + self.noise) * (self.x - mean)
        return found

    def covariance(self, c: int, resp: Array) -> Array:
        variance = self.variances[c]
        found: Array = resp @ (variance * self.noise / (variance + self.noise))
        return found.sum() if self.one else found


class UnderCovariances(WithMoments):
    """Rows (n, d) with covariances of their errors (n, d, d), under covariances (k, d, d). form : of a sum of covariances for `Moments`."""

    def __init__(self, x: Array, noise: Array, means: Array, sigma: Array, form: int) -> None:
        self.means, self.sigma, self.form = means, sigma, form
        lower = np.linalg.cholesky(sigma[:, None] + noise)  # (k, n, d, d)
        diff = x - means[:, None]
        self.white = np.linalg.solve(lower, diff[..., None])[..., 0]
        self.gain = np.linalg.solve(lower, np.broadcast_to(sigma[:, None], lower.shape))
        log_det = np.log(np.diagonal(lower, axis1=2, axis2=3)).sum(axis=2)
        self.log_density = (-0.5 * (x.shape[1] * LOG_2PI + np.square(self.white).sum(axis=2)) - log_det).T

    def row(self, c: int) -> Array:
        found: Array = self.means[c] + np.einsum("nij,ni->nj", self.gain[c], self.white[c])
        return found

    def covariance(self, c: int, resp: Array) -> Array:
        root = np.sqrt(resp)[:, None, None] * self.gain[c]
        found: Array = resp.sum() * self.sigma[c] - np.einsum("nij,nik->jk", root, root, optimize=True)
        return found if self.form == 2 else np.diagonal(found).copy() if self.form == 1 else np.trace(found)


class OfRowsWithErrors(Component):
    """What Gaussian components of such rows have in place of their own: a mixin before `Gaussian`."""

    shape: Any  # Gaussian's
    incomplete: ClassVar[bool] = True
    has_own_latents: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "errors": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows without their errors: what starts see."""
        return x[..., : self.n_features]

    def log_joint(self, theta: Any, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        if x.shape[1] == self.n_features:
            return super().log_joint(theta, log_weights, x, kernels)  # type: ignore[safe-super]  # Gaussian's
        joint = np.empty((len(x), self.n_components))
        for rows, expected in batches(self, theta, x):
            joint[rows] = log_weights + expected.log_density
        return joint

    def e_step(self, theta: Any, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any) -> Pass:
        if x.shape[1] == self.n_features:
            return super().e_step(theta, log_weights, x, weight, hard, kernels)
        w = np.ones(len(x)) if weight is None else weight
        return expected_pass(ExpectedMoments(self, theta), log_weights, batches(self, theta, x), w, hard)

    def blurred(self, theta: Any, variance: float) -> Any:
        """Return theta of rows with errors of one variance in all directions, T_k = V_k + variance I."""
        own = variance * identity(self.shape, self.n_components, self.n_features)
        return self.theta(means=theta.means, covariances=theta.covariances + own)

    def expected(self, blurred: Any, x: Matrix, labels: Array, variance: float) -> Matrix:
        """Return the rows without their errors, b_n = w_n - variance T_k⁻¹ (w_n - mu_k) for the component k of each.

        blurred : theta of `blurred`.  x : (n, d).  labels : (n,).  [Wiener 1949; in this form Tweedie's, Robbins 1956]
        """
        found, by_label = np.empty_like(x), np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=self.n_components))
        for c, own in enumerate(np.split(by_label, ends[:-1])):
            if not len(own):
                continue
            factor = blurred.factors[c] if self.shape.per_component else blurred.factors
            diff = x[own] - blurred.means[c].astype(x.dtype)
            if self.shape.is_matrix:
                found[own] = x[own] - diff @ (variance * (factor @ factor.T)).astype(x.dtype)
            else:
                found[own] = x[own] - diff * (variance * factor * factor).astype(x.dtype)
        return found

    def scratch_bytes(self) -> int:
        """Sums of moments as matrices, and of a batch its factors."""
        d = self.n_features
        return 8 * (3 * self.n_components * d * d + 6 * max(BATCH_NUMBERS, self.n_components * d * d))


def batches(component: Any, theta: Any, x: Array) -> Iterator[tuple[slice, UnderVariances | UnderCovariances]]:
    """Yield batches of rows and what is expected of them. x : (n, d + d) or (n, d + d d)."""
    k, d, shape = component.n_components, component.n_features, component.shape
    form = theta.covariances.ndim - shape.per_component
    if not shape.is_matrix and x.shape[1] == 2 * d:
        variances = np.broadcast_to(theta.covariances.reshape(k, -1), (k, d))
        for rows in tiles(len(x), tile_height(2 * d, k)):
            row, noise = np.split(x[rows].astype(np.float64), [d], axis=1)
            yield rows, UnderVariances(row, noise, theta.means, variances, form == 0)
        return
    sigma = full_covariances(shape, theta.covariances, k, d)
    for rows in tiles(len(x), max(1, BATCH_NUMBERS // (k * d * d))):
        row, noise = np.split(x[rows].astype(np.float64), [d], axis=1)
        yield rows, UnderCovariances(row, as_matrices(noise, d), theta.means, sigma, form)


def as_matrices(noise: Array, d: int) -> Array:
    """Return the errors' columns (n, d) or (n, d d) as covariances (n, d, d)."""
    return noise[:, :, None] * np.eye(d) if noise.shape[1] == d else noise.reshape(-1, d, d)
