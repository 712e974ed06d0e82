"""A mixture with one more component: noise, of uniform density over the bounding box of the rows, V its volume.

    p(x) = tau / V + (1 - tau) sum_k pi_k p(x | theta_k)        sum_k pi_k = 1

The E-step takes the probability q of noise from each row's weight, and is then that of the components, whatever they are; the
M-step of tau is sum w q / sum w. So weights, moves, pruning and resets are of the components alone. The density is the same
constant outside the box, for rows that the fit has not seen: a row further out is no less noise. [Banfield and Raftery 1993;
Fraley and Raftery 1998, sec. 4; mclust has the same constant]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.models.base import Expectation, Totals
from pipeline.models.clusters import NOISE, Labels
from pipeline.models.component import Pass
from pipeline.models.mixture import Mixture, MixtureParams, MixtureStats, relative_square
from pipeline.models.schema import PROBABILITY, Field, Fields
from pipeline.models.weights import log, log_sum_exp
from pipeline.models.words import Words

START = 0.05  # the share of noise that a fit begins with


@dataclass(frozen=True)
class NoisyParams(MixtureParams):
    """noise : (), tau.  weights : of the rows that are not noise."""

    noise: Array


@stored
@dataclass(frozen=True)
class NoisyStats(MixtureStats):
    """noise : expected weight of the noise rows."""

    noise: float


@stored
@dataclass(frozen=True)
class NoisyMixture(Mixture):
    """A mixture and uniform noise. low, high : (d,), the box; as wide as it is, it has a volume."""

    low: Array = field(default_factory=lambda: np.zeros(0))
    high: Array = field(default_factory=lambda: np.zeros(0))

    traced: ClassVar[Mapping[str, tuple[str, ...]]] = {**Mixture.traced, "n_noise": ()}

    @classmethod
    def of(cls, model: Mixture, low: Array, high: Array) -> NoisyMixture:
        """Return the mixture with noise over a box. low, high : (d,), any float dtype."""
        return cls(**vars(model), low=low.astype(np.float64), high=high.astype(np.float64))

    @property
    def words(self) -> Words:  # type: ignore[override]  # the component's
        words = super().words
        return words._replace(name=f"{words.name} and uniform noise", title=f"{words.title} and uniform noise")

    @property
    def fields(self) -> Fields:
        fields = dict(super().fields)
        return {"weights": fields.pop("weights"), "noise": Field((), PROBABILITY), **fields}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "noise": "uniform"}

    def figures(self, params: NoisyParams) -> dict[str, float]:
        return {"noise": float(params.noise)}

    @property
    def log_density(self) -> float:
        """-log V, nats."""
        return -float(np.log(np.maximum(self.high - self.low, np.finfo(np.float64).tiny)).sum())

    def _log_noise(self, params: Any) -> float:
        return float(log(params.noise)) + self.log_density

    def _log_weights(self, params: Any) -> Array:
        return super()._log_weights(params) + log(1.0 - params.noise)

    def log_norm(self, params: Any, log_joint: Array) -> Array:
        found: Array = np.logaddexp(super().log_norm(params, log_joint), self._log_noise(params))
        return found

    def params(self, **arrays: Array) -> NoisyParams:
        noise = np.asarray(arrays.pop("noise"))
        return NoisyParams(**vars(super().params(**arrays)), noise=noise)

    def arrays(self, params: Any) -> dict[str, Array]:
        return {**super().arrays(params), "noise": params.noise}

    def e_step(self, params: Any, rows: Rows, kernels: Any) -> Expectation:
        """As of mixtures. Rows that are noise rather than not have no score: no component is reset to one, and none is an outlier."""
        found = super().e_step(params, rows, kernels)
        noise = found.score < self._log_noise(params) + np.log(2.0)
        if rows.label is not None:
            noise &= rows.label < 0
        return found._replace(score=np.where(noise, np.inf, found.score))

    def _stats(self, found: Pass) -> NoisyStats:
        return NoisyStats(found.sum_w[:-1], found.stats, float(found.sum_w[-1]))

    def _pass(self, params: Any, label: int, x: Matrix, weight: Array | None, kernels: Any) -> Pass:
        """The pass of the components over rows weighted by 1 - q; noise is the last soft count."""
        if label >= 0:
            found = super()._pass(params, label, x, weight, kernels)
            return found._replace(sum_w=np.append(found.sum_w, 0.0))
        w = np.ones(x.shape[0]) if weight is None else weight
        log_noise, log_weights, theta = self._log_noise(params), self._log_weights(params), params.theta
        norm, best = np.empty(len(w)), np.empty(len(w))
        for rows in self._tiles(x):
            joint = self.component.log_joint(theta, log_weights, x[rows], kernels)
            norm[rows], best[rows] = log_sum_exp(joint), joint.max(axis=1)
        log_norm = np.logaddexp(norm, log_noise)
        if self.hard:
            own = (best >= log_noise).astype(np.float64)
            noise, entropy = 1.0 - own, 0.0
        else:
            own, noise = np.exp(norm - log_norm), np.exp(log_noise - log_norm)
            entropy = -float(w @ (_times(own, norm - log_norm) + _times(noise, log_noise - log_norm)))
        found = Pass(*self.component.e_step(theta, log_weights, x, w * own, self.hard, kernels))
        sum_w = np.append(found.sum_w, w @ noise)
        return found._replace(log_norm=log_norm, sum_w=sum_w, entropy=found.entropy + entropy)

    def m_step(self, stats: Any, params: Any) -> NoisyParams:
        """tau = sum w q / sum w; at a start, from labels of components, START."""
        total = stats.sum_w.sum() + stats.noise
        noise = START if params is None else stats.noise / total
        return NoisyParams(**vars(super().m_step(stats, _plain(params))), noise=np.asarray(noise))

    def expected_log_joint(self, stats: Any, params: Any) -> float:
        shares = _times(stats.sum_w.sum(), log(1.0 - params.noise)) + _times(stats.noise, self._log_noise(params))
        return super().expected_log_joint(stats, params) + float(shares)

    def fisher_norm(self, totals: Totals, params: Any, new: Any) -> float:
        """sqrt of Δτ² / (τ (1 - τ)) + (1 - τ) times the square of the components' norm."""
        return self._norm(totals.stats, params, new.noise - params.noise, super().fisher_norm(totals, params, new))

    def change_norm(self, change: Totals, totals: Totals, params: Any) -> float:
        moved, total = change.stats, totals.stats.sum_w.sum() + totals.stats.noise
        noise = (moved.noise - totals.stats.noise / total * (moved.sum_w.sum() + moved.noise)) / total
        return self._norm(totals.stats, params, noise, super().change_norm(change, totals, params))

    def _norm(self, stats: NoisyStats, params: Any, moved: float, of_components: float) -> float:
        own = stats.sum_w.sum() / (stats.sum_w.sum() + stats.noise)
        square = relative_square(np.asarray(moved), params.noise * (1.0 - params.noise))
        return float(np.sqrt(square + own * of_components**2))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        found, noise = super().feasible(totals, known), totals.stats.noise
        if found is None:
            return None
        noise = noise if noise >= 0 else known.stats.noise
        return replace(found, stats=NoisyStats(found.stats.sum_w, found.stats.component, noise))

    def rows_of(self, stats: NoisyStats) -> float:
        return super().rows_of(stats) + stats.noise

    def shares(self, params: Any, stats: Any) -> Array:
        shares: Array = params.weights * (1.0 - params.noise)
        return shares

    def trace(self, stats: NoisyStats) -> dict[str, Array]:
        return {**super().trace(stats), "n_noise": np.asarray(stats.noise)}

    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> NoisyStats:
        return NoisyStats(**vars(super().label_statistics(x, labels, weight)), noise=0.0)

    def _equal_weights(self, theta: Any) -> NoisyParams:
        return NoisyParams(**vars(super()._equal_weights(theta)), noise=np.asarray(START))

    def assign(self, params: Any, x: Matrix, kernels: Any) -> Iterator[tuple[slice, Labels]]:
        log_noise = self._log_noise(params)
        for rows, found in super().assign(params, x, kernels):
            noise = log_noise - found.score > found.log_resp.max(axis=1)
            yield rows, found._replace(label=np.where(noise, NOISE, found.label).astype(np.int32))

    def sample(self, params: Any, n: int, rng: np.random.Generator) -> tuple[Matrix, Array]:
        """As of mixtures; rows of noise come last."""
        many = int(rng.binomial(n, params.noise))
        x, labels = super().sample(params, n - many, rng)
        noise = rng.uniform(self.low, self.high, (many, len(self.low)))
        return np.concatenate([x, noise]), np.append(labels, np.full(many, NOISE))

    def statistics_bytes(self) -> int:
        return super().statistics_bytes() + 8

    def score_products(self, params: Any, fully: bool) -> Any:
        raise InputError("output.standard_errors: got model.noise, expected none. Set one of them to false or null.")


def _plain(params: NoisyParams | None) -> MixtureParams | None:
    return None if params is None else MixtureParams(params.weights, params.theta)


def _times(a: Any, log_b: Any) -> Any:
    """a log b, 0 where a is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(a > 0, a * log_b, 0.0)
