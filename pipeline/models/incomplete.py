"""Gaussian components of rows with missing entries (NaN): the other entries tell what to expect of them.

    mu_m|o = mu_m + S_mo S_oo⁻¹ (x_o - mu_o)        S_m|o = S_mm - S_mo S_oo⁻¹ S_om

for the observed entries o of a row and the missing ones m. Responsibilities come from the densities of the observed entries; the
moments of a row are those of the row with mu_m|o in place of m, plus S_m|o. So the statistics are those of Gaussians, and so is
the M-step. Rows without a missing entry go through the compiled pass; of the others, those of one pattern share the factors.
[Little and Rubin 2002, sec. 8.2 and 11.2; Ghahramani and Jordan 1994]

Families with other latent variables (families/student_t.py) have rows as they expect them, and sums of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
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
    """Some rows as each component expects them. log_density : (n, k), log p of what is observed, nats."""

    @abstractmethod
    def row(self, c: int) -> Array:
        """Return the expected rows given component c, (n, d)."""


class WithMoments(Expected):
    """Rows that are added to moments."""

    def counts(self, resp: Array) -> Array:
        """Return how often rows count in the moments, (n, k). resp : (n, k)."""
        return resp

    @abstractmethod
    def covariance(self, c: int, resp: Array) -> Array:
        """Return the sum of their covariances about `row`, in the form of `Moments.sum_xx`. resp : (n,) of component c."""


class Drawn(Expected):
    """Rows whose missing entries are drawn."""

    @abstractmethod
    def deviations(self, c: int, normal: Array) -> Array:
        """Return draws minus `row`, (n, d). normal : (n, n_normal) of the component, standard normal."""


class OfDistances(WithMoments, Drawn):
    """Rows by the distances of their observed entries.

    n_seen : () or (n, 1), how many these are.  squared : (n, k), (x_o - mu_o)ᵀ S_oo⁻¹ (x_o - mu_o).
    log_scale : (k,) or (n, k), of the Gaussian density where these are 0, nats.
    """

    def __init__(self, n_seen: Array, squared: Array, log_scale: Array) -> None:
        self.n_seen, self.squared, self.log_scale = n_seen, squared, log_scale

    @cached_property
    def log_density(self) -> Array:
        """Of Gaussian components."""
        density: Array = self.log_scale - 0.5 * self.squared
        return density


class OfOnePattern(OfDistances):
    """Rows in which the same entries are seen. x : (n, d) float64.  seen : (d,) bool.  sigma : (k, d, d)."""

    def __init__(self, x: Array, seen: Array, means: Array, sigma: Array) -> None:
        self.x, self.seen, self.means = x, seen, means
        lower = np.linalg.cholesky(sigma[:, seen][:, :, seen])
        diff = x[:, seen].T[None] - means[:, seen, None]
        self.white = np.linalg.solve(lower, diff)  # (k, o, n)
        self.gain = np.linalg.solve(lower, sigma[:, seen][:, :, ~seen])  # (k, o, m)
        self.rest = sigma[:, ~seen][:, :, ~seen]
        log_det = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        log_scale = -0.5 * seen.sum() * LOG_2PI - log_det
        super().__init__(seen.sum(), np.square(self.white).sum(axis=1).T, log_scale)

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


class OfVariances(OfDistances):
    """Rows under variances, where entries do not tell of each other. variances : (k, d).  one : whether they are one number."""

    def __init__(self, x: Array, means: Array, variances: Array, one: bool) -> None:
        self.x, self.means, self.variances, self.one = x, means, variances, one
        self.missing = np.isnan(x)
        squared = np.empty((len(x), len(means)))
        for c, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            squared[:, c] = np.where(self.missing, 0.0, np.square(x - mean) / variance).sum(axis=1)
        log_scale = -0.5 * (~self.missing @ (np.log(variances) + LOG_2PI).T)
        super().__init__((~self.missing).sum(axis=1)[:, None], squared, log_scale)

    def row(self, c: int) -> Array:
        return np.where(self.missing, self.means[c], self.x)

    def covariance(self, c: int, resp: Array) -> Array:
        found: Array = (resp @ self.missing) * self.variances[c]
        return found.sum() if self.one else found

    def deviations(self, c: int, normal: Array) -> Array:
        return np.where(self.missing, np.sqrt(self.variances[c]) * normal, 0.0)


class ExpectedMoments:
    """Sums over rows as they are expected: of Gaussian components, moments about their means."""

    def __init__(self, component: Any, theta: Any) -> None:
        self.component, self.theta = component, theta
        self.moments = [Moments(component.shape, mean) for mean in theta.means]

    def add(self, expected: WithMoments, resp: Array) -> None:
        """Add rows. resp : (n, k), times the weights."""
        counts = expected.counts(resp)
        for c, one in enumerate(self.moments):
            one.add(expected.row(c), counts[:, c])
            one.sum_xx = one.sum_xx + expected.covariance(c, resp[:, c])

    def moved(self, counts: Array) -> Any:
        """Return the moments about the component's points, as `GaussianStats`. counts : (k,)."""
        sum_x, sum_xx = (np.stack([getattr(one, name) for one in self.moments]) for name in ("sum_x", "sum_xx"))
        return self.component.about_means(self.theta, counts, sum_x, self.component.shape.packed(sum_xx))

    def stats(self, sum_w: Array) -> Any:
        """Return the component's statistics. sum_w : (k,)."""
        return self.moved(sum_w)


class OfIncompleteRows(Component):
    """What components of such rows have in place of their own: a mixin before `Gaussian`, or before another one with `batches` and `sums`."""

    incomplete: ClassVar[bool] = True
    has_own_latents: ClassVar[bool] = True

    @property
    def n_normal(self) -> int:
        """How many normal numbers the draw of a row takes."""
        return self.n_features

    def batches(self, theta: Any, x: Array) -> Iterator[tuple[Array | slice, Any]]:
        """Yield batches of rows, as their positions, and what is expected of them. x : (n, d), with NaN."""
        return batches(self, theta, x)

    def sums(self, theta: Any) -> Any:
        """Return sums over rows as they are expected, of none."""
        return ExpectedMoments(self, theta)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "missing": True}

    def plain(self, x: Matrix) -> Matrix:
        """Rows with the mean of all rows in place of missing entries: what starts see."""
        return filled(x, self.shift)

    def log_joint(self, theta: Any, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        whole = super().log_joint  # type: ignore[safe-super]  # the family's, of whole rows
        return self._joint(theta, log_weights, x, lambda rows: whole(theta, log_weights, rows, kernels))

    def near_log_joint(self, theta: Any, log_weights: Array, x: Matrix, ranks: int, kernels: Any) -> Array:
        whole = super().near_log_joint
        return self._joint(theta, log_weights, x, lambda rows: whole(theta, log_weights, rows, ranks, kernels))

    def _joint(self, theta: Any, log_weights: Array, x: Matrix, whole: Callable[[Matrix], Array]) -> Array:
        """(n, k) of rows, where `whole` gives those of rows without a missing entry."""
        partly = np.isnan(x).any(axis=1)
        if not partly.any():
            return whole(x)
        joint = np.empty((len(x), self.n_components))
        if not partly.all():
            joint[~partly] = whole(x[~partly])
        index = np.flatnonzero(partly)
        for rows, expected in self.batches(theta, x[partly]):
            joint[index[rows]] = log_weights + expected.log_density
        return joint

    def statistics(self, theta: Any, x: Matrix, resp: Array) -> Any:
        """As of the E-step; theta None, at a start, is of whole rows."""
        if theta is None or not np.isnan(x).any():
            return super().statistics(theta, x, resp)  # type: ignore[safe-super]  # the family's
        sums = self.sums(theta)
        for rows, expected in self.batches(theta, x):
            sums.add(expected, resp[rows])
        return sums.stats(resp.sum(axis=0))

    def e_step(self, theta: Any, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any) -> Pass:
        partly = np.isnan(x).any(axis=1)
        if not partly.any():
            return super().e_step(theta, log_weights, x, weight, hard, kernels)
        w = np.ones(len(x)) if weight is None else weight
        found = expected_pass(self.sums(theta), log_weights, self.batches(theta, x[partly]), w[partly], hard)
        log_norm = np.empty(len(x))
        log_norm[partly] = found.log_norm
        if not partly.all():
            whole = super().e_step(theta, log_weights, x[~partly], w[~partly], hard, kernels)
            log_norm[~partly] = whole.log_norm
            found = Pass(log_norm, *(a + b for a, b in zip(whole[1:], found[1:], strict=True)))
        return found._replace(log_norm=log_norm)

    def imputed(self, theta: Any, log_weights: Array, x: Array, draw: tuple[Array, Array] | None = None) -> Array:
        """Return rows with numbers in place of NaN: their conditional mean given the other entries, or a draw.

        draw : uniform (n,) and standard normal (n, n_normal) numbers; None for the mean, sum_k r_nk mu_m|o,k. [Ghahramani and Jordan 1994]
        """
        found, index = x.astype(np.float64), np.flatnonzero(np.isnan(x).any(axis=1))
        for rows, expected in self.batches(theta, x[index]):
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


def batches(component: Any, theta: Any, x: Array) -> Iterator[tuple[Array | slice, OfDistances]]:
    """As `OfIncompleteRows.batches`, of Gaussians. Raises SingularCovariance."""
    component._refuse_singular(theta)
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


def expected_pass(sums: Any, log_weights: Array, found: Iterator[Any], weight: Array, hard: bool) -> Pass:
    """Return the pass over batches of rows, (positions, Expected). sums : of none, of `OfIncompleteRows.sums`.  weight : (n,).

    `more_entropy` is what makes the expected log joint, of the rows as they are expected, the one of what is observed.
    """
    k = len(log_weights)
    log_norm, sum_w, entropy, observed = np.empty(len(weight)), np.zeros(k), 0.0, 0.0
    for rows, expected in found:
        joint = log_weights + expected.log_density
        buffer, norm = np.empty((len(joint), padded(k, 8))), np.empty(len(joint))
        buffer[:, :k] = joint
        entropy += softmax_rows(buffer, k, weight[rows], hard, norm)
        resp, log_norm[rows] = buffer[:, :k], norm
        sum_w += resp.sum(axis=0)
        observed += float((resp * np.where(resp > 0, joint, 0.0)).sum())  # 0 x -inf
        sums.add(expected, resp)
    stats = sums.stats(sum_w)
    more = observed - sums.component.expected_log_joint(sums.theta, np.exp(log_weights), sum_w, stats)
    return Pass(log_norm, sum_w, stats, entropy, more)
