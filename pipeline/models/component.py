"""A component of a mixture: K distributions p(x | theta_k) side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import xlogy

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.kernels.base import NOTHING_SKIPPED, Skipped
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.models.base import LatentModel
from pipeline.models.clusters import SearchEffort, Summary
from pipeline.models.schema import Fields
from pipeline.models.words import Words


class Pass(NamedTuple):
    """Result of one pass.

    log_norm : (n,) log p(x), nats.  sum_w : (k,) soft counts.  stats : the component's.  entropy : of the labels, total nats.
    more_entropy : of the component's own latent variables, given the labels, total nats.  skipped : what was left out.
    """

    log_norm: Array
    sum_w: Array
    stats: Any
    entropy: float
    more_entropy: float = 0.0
    skipped: Skipped = NOTHING_SKIPPED


class Component(ABC):
    """K distributions p(x | theta_k) side by side: what distinguishes one family of mixtures from another.

    Attributes
    ----------
    n_components, n_features : int
    shift : array, shape (d,), float64
        Reference point of distances between rows.
    fields : mapping of str to Field
        Schema of theta.
    fixed : tuple of str
        Fields of theta that stay at their initial values.
    location : str
        The field with the components' locations, shape (k, d).
    unit_rows, incomplete : bool
        As of `ClusterModel`.
    search : SearchEffort
    has_own_latents : bool
        Whether it has latent variables beside the label, so that `statistics` of responsibilities are not those of its E-step.
    impossible_advice : str
        What to do about a row that no component can produce.
    """

    n_components: int
    shift: Array
    fixed: tuple[str, ...]
    family: ClassVar[str]
    words: ClassVar[Words]
    halves: ClassVar[bool] = False  # whether a reset component becomes half of another (`moments.halved`)
    born: ClassVar[bool] = False  # whether it has means and covariances, of which births begin (em/births.py)
    location: ClassVar[str]
    unit_rows: ClassVar[bool] = False
    incomplete: ClassVar[bool] = False
    search: ClassVar[SearchEffort] = SearchEffort()
    has_own_latents: ClassVar[bool] = False
    impossible_advice: ClassVar[str] = ""

    @property
    def n_features(self) -> int:
        """Columns of a row, d."""
        return len(self.shift)

    def facts(self) -> dict[str, Any]:
        """Return hyperparameters for people, by name."""
        return {}

    @property
    def label(self) -> str:
        """What a candidate's name says beside the number of components: by default the text among the facts."""
        return "-".join(fact for fact in self.facts().values() if isinstance(fact, str))

    @property
    def floor(self) -> float:
        """What an M-step adds to each variance."""
        return 0.0

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of the schema's dimensions beside component and feature."""
        return {}

    @property
    def least_rows(self) -> int:
        """Effective rows below which a component is collapsed."""
        return 1

    @property
    @abstractmethod
    def fields(self) -> Fields:
        """The schema of theta."""

    @abstractmethod
    def theta(self, **arrays: Array) -> Any:
        """Return theta from the arrays of the schema, with what is computed from them once."""

    @abstractmethod
    def log_joint(self, theta: Any, log_weights: Array, x: Matrix, kernels: Any) -> Array:
        """Return log pi_k + log p(x | theta_k), nats, (n, k) float64. log_weights : (k,), may have -inf."""

    def near_log_joint(self, theta: Any, log_weights: Array, x: Matrix, ranks: int, kernels: Any) -> Array:
        """As `log_joint`; -inf may stand for what rounds to nothing beside the `ranks` largest of a row; 0: for all but the largest."""
        return self.log_joint(theta, log_weights, x, kernels)

    @abstractmethod
    def statistics(self, theta: Any, x: Matrix, resp: Array) -> Any:
        """Return sums over rows by component. theta : None at a start.  resp : (n, k), times the weights."""

    @abstractmethod
    def m_step(self, stats: Any, sum_w: Array, theta: Any | None) -> Any:
        """Return theta that maximizes expected log density + log prior. sum_w : (k,).  theta : as in `LatentModel.m_step`."""

    @abstractmethod
    def expected_log_joint(self, theta: Any, weights: Array, sum_w: Array, stats: Any) -> float:
        """Return sum_n sum_k r_nk (log pi_k + log p(x_n | theta_k)), total nats, where 0 log 0 = 0."""

    @abstractmethod
    def start_at(self, rows: Array, summary: Summary | None) -> Any:
        """Return theta of components at given rows. rows : (k, d).  summary : of all rows, None at a reset."""

    @abstractmethod
    def sample(self, theta: Any, labels: Array, rng: np.random.Generator) -> Matrix:
        """Return rows drawn from the components that labels name, (n, d)."""

    def start_near_mean(self, summary: Summary, draws: Array) -> Any:
        """Return theta of components near the mean of the rows. draws : (k, d), standard normal."""
        return self.start_at(summary.mean + 0.01 * np.sqrt(summary.variance) * draws, summary)

    def with_missing(self) -> Any:
        """Return the same component for rows with missing entries, NaN."""
        raise InputError(f"data.bad_rows: got missing, but family {self.family} needs whole rows. Set it to drop.")

    def with_errors(self) -> Any:
        """Return the same component for rows with known errors, which follow their entries (models/deconvolution.py)."""
        raise InputError(f"data.noise: is not for family {self.family}. Leave it out.")

    def plain(self, x: Matrix) -> Matrix:
        """Return rows as starts and distances take them: whole. x : (n, d)."""
        return x

    def prepared_bytes(self) -> int:
        """Return the bytes of what is computed once from theta."""
        return 0

    def scratch_bytes(self) -> int:
        """Return the bytes that an E-step needs beside tiles and statistics."""
        return 0

    def log_prior(self, theta: Any) -> float:
        """Return the log prior density, up to a constant."""
        return 0.0

    def statistics_bytes(self) -> int:
        """Return the bytes of the statistics: by default those for one row."""
        x = np.zeros((1, self.n_features))
        return int(self.statistics(None, x, np.zeros((1, self.n_components))).nbytes)

    def label_statistics(self, x: Matrix, labels: Array, weight: Array) -> Any:
        """Return the statistics of labels. labels : (n,) int >= 0.  weight : (n,)."""
        total: Any = None
        for rows in tiles(x.shape[0], tile_height(self.n_features, self.n_components)):
            resp = np.where(labels[rows, None] == np.arange(self.n_components), weight[rows, None], 0.0)
            part = self.statistics(None, x[rows], resp)
            total = part if total is None else total + part
        return total

    def e_step(self, theta: Any, log_weights: Array, x: Matrix, weight: Array | None, hard: bool, kernels: Any) -> Pass:
        """Return responsibilities and their statistics, tile by tile; a family may override it with a compiled pass."""
        k = self.n_components
        log_norm, sum_w, stats, entropy = np.empty(x.shape[0]), np.zeros(k), None, 0.0
        for rows in tiles(x.shape[0], tile_height(self.n_features, k)):
            tile = x[rows]
            w = np.ones(tile.shape[0]) if weight is None else weight[rows]
            resp = np.empty((tile.shape[0], padded(k, 8)))
            resp[:, :k] = self.log_joint(theta, log_weights, tile, kernels)
            entropy += softmax_rows(resp, k, w, hard, log_norm[rows])
            part = self.statistics(theta, tile, resp[:, :k])
            sum_w += resp[:, :k].sum(axis=0)
            stats = part if stats is None else stats + part
        return Pass(log_norm, sum_w, stats, entropy)

    def step_squares(self, stats: Any, sum_w: Array, theta: Any, new: Any) -> tuple[float, ...]:
        """Return terms of the squared Fisher norm of a step, sum_k N_k/N Δᵀ I_k Δ: by default twice the gain of the step."""
        one = np.ones(self.n_components)
        gain = self.expected_log_joint(new, one, sum_w, stats) - self.expected_log_joint(theta, one, sum_w, stats)
        return (max(0.0, 2.0 * gain / float(sum_w.sum())),)

    def change_squares(
        self, change: Any, change_w: Array, stats: Any, sum_w: Array, theta: Any
    ) -> tuple[float, ...] | None:
        """Return the same terms for a small change of the statistics; None to compute them by differences."""
        return None

    def feasible(self, stats: Any, known: Any) -> Any:
        """Return extrapolated statistics, corrected to be possible for some rows. known : possible statistics."""
        return stats

    def collapsed(self, theta: Any, sum_w: Array) -> list[tuple[int, str]]:
        """Return collapsed components with the reasons."""
        few = np.flatnonzero(sum_w < self.least_rows)
        return [(int(k), f"{sum_w[k]:.3g} effective rows, fewer than {self.least_rows}") for k in few]

    def reset(self, new: Any, old: Any, stats: Any, sum_w: Array, collapsed: Array, places: Mapping[int, Array]) -> Any:
        """Return theta with each collapsed component at a row; those without a place stay.

        new, old : after and before the M-step.  collapsed : (m,) int.  places : row (d,) by component.
        """
        if not places:
            return new
        at = np.array(list(places))
        fresh = self.arrays(replace(self, n_components=len(at)).start_at(np.stack(list(places.values())), None))  # type: ignore[type-var]
        arrays = {name: value.copy() for name, value in self.arrays(new).items()}
        for name, value in arrays.items():
            if self.fields[name].component_axes and name not in self.fixed:
                value[at] = fresh[name]
        return self.theta(**arrays)

    def arrays(self, theta: Any) -> dict[str, Array]:
        """Return theta by the names of the schema."""
        return {name: getattr(theta, name) for name in self.fields}

    def implementations(self, theta: Any, dtype: np.dtype[Any], kernels: Any) -> dict[str, list[int]]:
        """As `LatentModel.implementations`."""
        return {}

    def score_products(self, model: LatentModel, params: Any, fully: bool) -> Any:
        """As `LatentModel.score_products`. model : the mixture."""
        raise InputError(f"output.standard_errors: family {self.family} has none; set it to false.")

    def broken(self, theta: Any) -> Array:
        """Return which components have a density that cannot be computed, (k,) bool."""
        return np.zeros(self.n_components, dtype=bool)


class OfSums(Component):
    """Components whose statistics are sums over the rows of each, so that those of two add to those of one."""

    @abstractmethod
    def expected_log_densities(self, theta: Any, sum_w: Array, stats: Any) -> Array:
        """Return sum_n r_nk log p(x_n | theta_k) of each component, (k,) nats, up to what depends on the rows alone."""

    def expected_log_joint(self, theta: Any, weights: Array, sum_w: Array, stats: Any) -> float:
        return float(xlogy(sum_w, weights).sum() + self.expected_log_densities(theta, sum_w, stats).sum())

    def of_pairs(self, stats: Any, first: Array, second: Array) -> Any:
        """Return the statistics of pairs of components, each as one component. first, second : (p,) int."""
        k, stats = self.n_components, stats.about_the_shift()
        sums = {name: v[first] + v[second] for name, v in vars(stats).items() if np.shape(v)[:1] == (k,)}
        return replace(stats, **sums)
