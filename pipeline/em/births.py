"""Births: where a mixture has fewer rows than the data, a component more pays, however many of its own share the place.

A small cluster among large ones has few of the rows of each, so no split of a single component finds it. A birth is a component
phi of weight w, fitted by EM while the mixture f stays as it is (partial EM):

    r_n = w phi(x_n) / (w phi(x_n) + (1 - w) f(x_n))        gain = sum_n log(1 - w + w phi(x_n) / f(x_n))

It begins between two components that share rows, with the mean shape of all covariances, in three sizes, and keeps d rows of this
covariance: without them, a few rows that lie in a plane gain more than any cluster. [Verbeek, Vlassis and Kröse 2003; Li and Barron 1999]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.em.merging import RemovalCosts, SearchRows, merges_of
from pipeline.models.covariance import from_covariance, full_covariances
from pipeline.models.mixture import Mixture, MixtureParams

PAIRS = 8  # of components between which births begin, or half as many as there are components
ENTRIES = 2**17  # of the covariances of these pairs; of very many features there are fewer
SIZES = (0.1, 0.5, 0.9)  # quantiles of the components' sizes
FIRST, LATER = 3, 6  # iterations of all births, and of the third that gains most
BIRTH_ROWS = 2**16  # that births are fitted to
NEGLIGIBLE = -14.0  # log odds of a row's responsibility: it counts as 0
LEAST = 2  # times the rows below which a component is collapsed: fewer are no birth
SAME = 0.25  # of d: squared distance, in variances, between two births that are one


class Birth(NamedTuple):
    """A component more. gain : lower bound, nats.  arrays : of one component, by the names of the schema."""

    gain: float
    arrays: dict[str, Array]


@dataclass(frozen=True)
class BirthSums(Additive):
    """Sums of M births: gain (M,) nats, soft counts sum_w (M,), and moments of their rows about their means."""

    gain: Array
    sum_w: Array
    sum_x: Array
    sum_xx: Array


@dataclass(frozen=True)
class BirthPass:
    """Job: one pass of partial EM for M births, each alone. births : M components.  weights : (M,)."""

    model: Mixture
    params: MixtureParams
    births: Any
    theta: Any
    weights: Array

    def __call__(self, rows: Rows, kernels: Any) -> BirthSums:
        """Return the sums of one chunk."""
        shape, (m, d) = self.births.shape, self.theta.means.shape
        log_odds = np.log(self.weights) - np.log1p(-self.weights)
        gain, sum_w, sum_x = rows.total_weight * np.log1p(-self.weights), np.zeros(m), np.zeros((m, d))
        sum_xx = np.zeros(shape.moments_shape(m, d))
        for part in tiles(rows.n, tile_height(d, m + self.model.n_components)):
            x = rows.x[part]
            log_f = self.model.log_norm(self.params, self.model.log_joint(self.params, x, kernels))
            odds = self.births.log_joint(self.theta, log_odds, x, kernels) - log_f[:, None]
            for k in range(m):
                own = np.flatnonzero(odds[:, k] > NEGLIGIBLE)
                softplus = np.logaddexp(0.0, odds[own, k])
                weight = 1.0 if rows.weight is None else rows.weight[part][own]
                share = weight * np.exp(odds[own, k] - softplus)
                about = x[own].astype(np.float64) - self.theta.means[k]
                gain[k] += (weight * softplus).sum()
                sum_w[k] += share.sum()
                sum_x[k] += share @ about
                sum_xx[k] += shape.packed(np.asarray(shape.tile_moment(about, share))[None])[0]
        return BirthSums(gain, sum_w, sum_x, sum_xx)


def births(model: Any, params: Any, rows: SearchRows) -> list[Birth]:
    """Return births that differ, the largest gain first; none for models that do not `have_births`, nor where labels are known."""
    if not have_births(model) or len(rows.known) or rows.x.shape[1] != model.n_features:
        return []
    rows, scale = rows.head(min(rows.n_rows, BIRTH_ROWS)), max(1.0, rows.n_rows / BIRTH_ROWS)
    component, (k, d) = model.component, params.theta.means.shape
    most = max(min(PAIRS, ENTRIES // d**2), k // 2)
    pairs = _pairs(rows.sum_over([RemovalCosts(model, params)])[0].next_best, most)
    if not len(pairs):
        return []
    total = float(rows.n_rows) if rows.weight is None else float(rows.weight.sum())
    means = np.tile(params.theta.means[pairs].mean(axis=1), (len(SIZES), 1))
    first = np.repeat(_covariances(model, params), len(pairs), axis=0)
    weights, covariances = np.full(len(means), 4 * component.least_rows / total), first
    for steps in (FIRST, LATER):
        born = replace(component, n_components=len(means), prior=None)
        for _ in range(steps):
            theta = born.theta(means=means, covariances=covariances)
            [sums] = rows.sum_over([BirthPass(model, params, born, theta, weights)])
            rows.read[0] += rows.n_rows * len(means) // k
            weights = np.clip(sums.sum_w / total, 1.0 / total, 0.5)
            by = sums.sum_x / np.maximum(sums.sum_w, np.finfo(np.float64).tiny)[:, None]
            moments = born.shape.moved(sums.sum_w, sums.sum_x, sums.sum_xx, by)[1]
            moments = moments + d * born.shape.moments_of(first, len(means), d)
            means, covariances = means + by, born.shape.covariances(moments, sums.sum_w + d, d, component.floor)
        order = np.argsort(-sums.gain, kind="stable")[: len(means) // (3 if steps == FIRST else 1)]
        means, covariances, first, weights = means[order], covariances[order], first[order], weights[order]
    enough = weights * total >= LEAST * component.least_rows
    one, found = model.with_components(1), []
    for i in _apart(means, born.shape.variances(covariances, len(means), d), enough):
        theta = one.component.theta(means=means[[i]], covariances=covariances[[i]])
        arrays = {"weights": weights[[i]], **one.component.arrays(theta)}
        found.append(Birth(float(scale * sums.gain[order[i]]), arrays))
    return found


def _apart(means: Array, variances: Array, enough: Array) -> list[int]:
    """Those with enough rows that are not the same as one before. means, variances : (m, d)."""
    kept: list[int] = []
    for i in np.flatnonzero(enough).tolist():
        if all((np.square(means[i] - means[j]) / variances[j]).sum() > SAME * means.shape[1] for j in kept):
            kept.append(i)
    return kept


def have_births(model: Any) -> bool:
    """Whether births are made: of components with means and covariances of their own, all of them learned, from whole rows."""
    if not merges_of(model) or not model.component.born or model.n_components < 2:
        return False
    return not (model.hard or model.incomplete)


def _pairs(next_best: sp.csr_array, most: int) -> Array:
    """Pairs of components that are best and next best for most rows, (p, 2)."""
    shared = sp.coo_array(sp.triu(next_best + next_best.T, 1))
    order = np.lexsort((shared.col, shared.row, -shared.data))[:most]
    return np.stack([shared.row[order], shared.col[order]], axis=1)


def _covariances(model: Mixture, params: MixtureParams) -> Array:
    """The mean shape of all covariances in each of SIZES, by the covariance type."""
    component, (k, d) = model.component, params.theta.means.shape
    log_size = -2.0 / d * component.shape.log_det(params.theta.factors, d)
    whole = full_covariances(component.shape, params.theta.covariances, k, d)
    mean = np.tensordot(params.weights * np.exp(-log_size), whole, axes=1)
    mean /= np.exp(np.linalg.slogdet(mean)[1] / d)
    sizes = np.exp(np.quantile(log_size, SIZES))
    return np.concatenate([from_covariance(component.shape, size * mean, 1) for size in sizes])
