"""Gaussian components of rows with missing entries (NaN): the other entries tell what to expect of them.

    mu_m|o = mu_m + S_mo S_oo⁻¹ (x_o - mu_o)        S_m|o = S_mm - S_mo S_oo⁻¹ S_om

for the observed entries o of a row and the missing ones m. Responsibilities come from the densities of the observed entries; the
moments of a row are those of the row with mu_m|o in place of m, plus S_m|o. So the statistics are those of Gaussians, and so is
the M-step. Rows without a missing entry go through the compiled pass; of the others, those of one pattern share the factors.
[Little and Rubin 2002, sec. 8.2 and 11.2; Ghahramani and Jordan 1994]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.kernels.cholesky import Moments
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.models.component import Component, Pass
from pipeline.models.covariance import full_covariances
from pipeline.models.weights import log_sum_exp

LOG_2PI = float(np.log(2.0 * np.pi))
BATCH_NUMBERS = 2**18  # of rows x components x features that are worked on at a time


class Expected(ABC):
    """Some rows as each component expects them.

    Attributes
    ----------
    log_density : array, shape (n, k)
        log p of what is observed, nats.
    """

    log_density: Array

    @abstractmethod
    def row(self, c: int) -> Array:
        """Return the expected rows given component c, (n, d)."""

    @abstractmethod
    def covariance(self, c: int, resp: Array) -> Array:
        """Return the sum of their covariances about these, in the form of `Moments.sum_xx`. resp : (n,) of component c."""

    def deviations(self, c: int, normal: Array) -> Array:
        """Return draws minus `row`, (n, d); only for missing entries. normal : (n, d), standard normal."""
        raise NotImplementedError


class OfOnePattern(Expected):
    """Rows in which the same entries are seen. x : (n, d) float64.  seen : (d,) bool.  sigma : (k, d, d)."""

    def __init__(self, x: Array, seen: Array, means: Array, sigma: Array) -> None:
        self.x, self.seen, self.means = x, seen, means
        lower = np.linalg.cholesky(sigma[:, seen][:, :, seen])
        diff = x[:, seen].T[None] - means[:, seen, None]
        self.white = np.linalg.solve(lower, diff)  # (k, o, n)
        self.gain = np.linalg.solve(lower, sigma[:, seen][:, :, ~seen])  # (k, o, m)
        self.rest = sigma[:, ~seen][:, :, ~seen]
        log_det = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        squared = np.square(self.white).sum(axis=1)
        self.log_density = (-0.5 * (seen.sum() * LOG_2PI + squared) - log_det[:, None]).T

    def row(self, c: int) -> Array:
        x = self.x.copy()
        x[:, ~self.seen] = self.means[c, ~self.seen] + self.white[c].T @ self.gain[c]
        return x

    def covariance(self, c: int, resp: Array) -> Array:
        full = np.zeros((len(self.seen), len(self.seen)))
        full[np.ix_(~self.seen, ~self.seen)] = resp.sum() * (self.rest[c] - self.gain[c].T @ self.gain[c])
        return full

    def deviations(self, c: int, normal: Array) -> Array:
        values, vectors = np.linalg.eigh(self.covariance(c, np.ones(1)))
        found: Array = normal @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        return found


class OfVariances(Expected):
    """Rows under variances, where entries do not tell of each other. variances : (k, d).  one : whether they are one number."""

    def __init__(self, x: Array, means: Array, variances: Array, one: bool) -> None:
        self.x, self.means, self.variances, self.one = x, means, variances, one
        self.missing = np.isnan(x)
        self.log_density = np.empty((len(x), len(means)))
        for c, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            terms = np.square(x - mean) / variance + np.log(variance) + LOG_2PI
            self.log_density[:, c] = -0.5 * np.where(self.missing, 0.0, terms).sum(axis=1)

    def row(self, c: int) -> Array:
        return np.where(self.missing, self.means[c], self.x)

    def covariance(self, c: int, resp: Array) -> Array:
        found: Array = (resp @ self.missing) * self.variances[c]
        return found.sum() if self.one else found

    def deviations(self, c: int, normal: Array) -> Array:
        return np.where(self.missing, np.sqrt(self.variances[c]) * normal, 0.0)


class OfIncompleteRows(Component):
    """What Gaussian components of such rows have in place of their own: a mixin before `Gaussian`."""

    incomplete: ClassVar[bool] = True
    has_own_latents: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries: what starts see."""
        return filled(x, self.shift)

    def log_joint(self, theta: Any, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        partly = np.isnan(x).any(axis=1)
        if not partly.any():
            return super().log_joint(theta, log_weights, x, kernels)  # type: ignore[safe-super]  # Gaussian's
        joint = np.empty((len(x), self.n_components))
        if not partly.all():
            joint[~partly] = super().log_joint(theta, log_weights, x[~partly], kernels)  # type: ignore[safe-super]
        index = np.flatnonzero(partly)
        for rows, expected in batches(self, theta, x[partly]):
            joint[index[rows]] = log_weights + expected.log_density
        return joint

    def e_step(self, theta: Any, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any) -> Pass:
        partly = np.isnan(x).any(axis=1)
        if not partly.any():
            return super().e_step(theta, log_weights, x, weight, hard, kernels)
        w = np.ones(len(x)) if weight is None else weight
        found = expected_pass(self, theta, log_weights, batches(self, theta, x[partly]), w[partly], hard)
        log_norm = np.empty(len(x))
        log_norm[partly] = found.log_norm
        if not partly.all():
            whole = super().e_step(theta, log_weights, x[~partly], w[~partly], hard, kernels)
            log_norm[~partly] = whole.log_norm
            found = Pass(log_norm, *(a + b for a, b in zip(whole[1:], found[1:], strict=True)))
        return found._replace(log_norm=log_norm)

    def imputed(self, theta: Any, log_weights: Array, x: Array, draw: tuple[Array, Array] | None = None) -> Array:
        """Return rows with numbers in place of NaN: their conditional mean given the other entries, or a draw.

        draw : uniform (n,) and standard normal (n, d) numbers; None for the mean, sum_k r_nk mu_m|o,k. [Ghahramani and Jordan 1994]
        """
        found, index = x.astype(np.float64), np.flatnonzero(np.isnan(x).any(axis=1))
        for rows, expected in batches(self, theta, x[index]):
            at = index[rows]
            joint = log_weights + expected.log_density
            resp = np.exp(joint - log_sum_exp(joint)[:, None])
            if draw is None:
                found[at] = sum(resp[:, c, None] * expected.row(c) for c in range(self.n_components))
                continue
            uniform, normal = draw[0][at], draw[1][at]
            chosen = np.minimum((resp.cumsum(axis=1) < uniform[:, None]).sum(axis=1), self.n_components - 1)
            for c in np.unique(chosen):
                own = chosen == c
                found[at[own]] = (expected.row(c) + expected.deviations(c, normal))[own]
        return np.where(
            np.isnan(x), found, x
        )  # a weighted mean of equal numbers may differ from them in the last digit

    def scratch_bytes(self) -> int:
        """Sums of moments as matrices, twice, and of a batch."""
        d = self.n_features
        return 8 * (3 * self.n_components * d * d + 6 * max(BATCH_NUMBERS, self.n_components * d))


def filled(x: Matrix, by: Array) -> Matrix:
    """Return rows with numbers in place of NaN. by : (d,)."""
    return np.where(np.isnan(x), by.astype(x.dtype), x)


def batches(component: Any, theta: Any, x: Array) -> Iterator[tuple[Array | slice, Expected]]:
    """Yield batches of rows, as their positions, and what is expected of them. x : (n, d), with NaN."""
    k, (n, d), shape = component.n_components, x.shape, component.shape
    if not shape.is_matrix:
        variances = np.broadcast_to(theta.covariances.reshape(k, -1), (k, d))
        for rows in tiles(n, tile_height(d, k)):
            yield rows, OfVariances(x[rows].astype(np.float64), theta.means, variances, theta.covariances.ndim == 1)
        return
    sigma, missing = full_covariances(shape, theta.covariances, k, d), np.isnan(x)
    which = np.unique(np.packbits(missing, axis=1), axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(which, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
        for part in tiles(len(own), max(1, BATCH_NUMBERS // (k * d))):
            index = own[part]
            yield index, OfOnePattern(x[index].astype(np.float64), ~missing[index[0]], theta.means, sigma)


def expected_pass(
    component: Any, theta: Any, log_weights: Array, found: Iterator[Any], weight: Array, hard: bool
) -> Pass:
    """Return the pass over batches of rows, (positions, Expected). weight : (n,).

    `more_entropy` is what makes the expected log joint, of the rows as they are expected, the one of what is observed.
    """
    k, shape = component.n_components, component.shape
    log_norm, sum_w, entropy, observed = np.empty(len(weight)), np.zeros(k), 0.0, 0.0
    moments = [Moments(shape, mean) for mean in theta.means]
    for rows, expected in found:
        joint = log_weights + expected.log_density
        buffer, norm = np.empty((len(joint), padded(k, 8))), np.empty(len(joint))
        buffer[:, :k] = joint
        entropy += softmax_rows(buffer, k, weight[rows], hard, norm)
        resp, log_norm[rows] = buffer[:, :k], norm
        sum_w += resp.sum(axis=0)
        observed += float((resp * np.where(resp > 0, joint, 0.0)).sum())  # 0 x -inf
        for c, one in enumerate(moments):
            one.add(expected.row(c), resp[:, c])
            one.sum_xx = one.sum_xx + expected.covariance(c, resp[:, c])
    sum_x, sum_xx = np.stack([m.sum_x for m in moments]), shape.packed(np.stack([m.sum_xx for m in moments]))
    stats = component.about_means(theta, sum_w, sum_x, sum_xx)
    more = observed - component.expected_log_joint(theta, np.exp(log_weights), sum_w, stats)
    return Pass(log_norm, sum_w, stats, entropy, more)
