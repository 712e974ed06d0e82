"""What a set of kernels computes: a protocol, and the records that it takes and returns.

A set is the arithmetic that takes nearly all of the time of a fit. It knows no models: a model hands over what a pass
needs as a record. Two sets (one for CPUs, one for GPUs) agree to rounding; within one set results keep every bit.
Shapes: n rows, d features or v words, k components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored


class CovarianceShape(Protocol):
    """The functions of one covariance type that a pass needs (`pipeline.models.covariance.Shape` has them)."""

    @property
    def kind(self) -> int:
        """Which quadratic features the log-density is linear in: NONE, SPHERE, DIAGONAL or PAIRS."""

    @property
    def per_component(self) -> bool:
        """False where one covariance serves all components."""

    @property
    def mahalanobis(self) -> Callable[[Array, Array], Array]:
        """(diff (n, d), factor of one component) -> (n,) squared distances."""

    @property
    def tile_moment(self) -> Callable[[Array, Array], Array]:
        """(diff (n, d), responsibilities (n,)) -> second moment of one component."""

    @property
    def packed(self) -> Callable[[Array], Array]:
        """Second moments of all components, stacked -> the array in which they are summed."""

    @property
    def moments_shape(self) -> Callable[[int, int], tuple[int, ...]]:
        """(k, d) -> the shape of that array."""

    @property
    def lane_factors(self) -> Callable[[Array, int, int], Array]:
        """(factors, k, d) -> packed lower triangles or diagonals (k, d), for the SIMD implementation."""

    @property
    def from_lanes(self) -> Callable[[Array], Array]:
        """Second moments (k, d, d), or (k, 1, d) of diagonals -> the array in which they are summed."""


class GaussianProblem(NamedTuple):
    """The parameters of a Gaussian mixture, as a pass needs them.

    Parameters
    ----------
    shape : CovarianceShape
    means : array, shape (k, d), float64
    factors : array, float64
        Factors P of the precisions, P Pᵀ = Σ⁻¹, in the covariance type's own shape.
    log_scale : array, shape (k,), float64
        log π_k + log p(μ_k | k), nats.
    reach : array, shape (k,), float64
        c_k = λ_max(Σ_k⁻¹)(|μ_k - shift|² + tr Σ_k): a log-density by matrix products errs by about eps c_k nats.
    condition : array, shape (k,), float64
        Condition numbers of the covariances.
    shift : array, shape (d,), float64
        Reference point near the rows.
    hard : bool
        Whether each row belongs to its most probable component alone.
    covariances : array, float64, or None
        In the covariance type's shape.
    df : array, shape (k,), float64, or None
        Degrees of freedom of Student-t components, for which log_scale is log π_k + log p(μ_k | k); None for Gaussians.
    """

    shape: CovarianceShape
    means: Array
    factors: Array
    log_scale: Array
    reach: Array
    condition: Array
    shift: Array
    hard: bool
    covariances: Array | None = None
    df: Array | None = None


@stored
@dataclass(frozen=True)
class Skipped(Additive):
    """What passes left out; it adds.

    Attributes
    ----------
    computed, pairs : float
        Pairs of a row and a component whose density was computed, and all pairs; 0 of 0 where nothing can be left out.
    largest : float
        The largest possible responsibility among the others.
    """

    computed: float = 0.0
    pairs: float = 0.0
    largest: float = 0.0

    def _with(self, other: Skipped, add: Callable[[Any, Any], Any]) -> Skipped:
        return Skipped(self.computed + other.computed, self.pairs + other.pairs, max(self.largest, other.largest))

    def __mul__(self, factor: float) -> Skipped:
        """What was left out of rows that count `factor` times."""
        return self

    @property
    def share(self) -> float:
        """Share of the pairs that were computed; NaN where nothing can be left out."""
        return self.computed / self.pairs if self.pairs else float("nan")


NOTHING_SKIPPED = Skipped()


class GaussianSums(NamedTuple):
    """What a Gaussian pass returns: one number a row, and sums over rows of weight x responsibility.

    log_norm : (n,) log p(x), nats.  about : (k, d) points about which moments are taken.  sum_w : (k,).
    sum_x : (k, d).  sum_xx : second moments in the covariance type's shape; for one shared by all components zeros.
    entropy : of the responsibilities, total nats.  All float64.
    scales : of Student-t components, (2, k) sums of log(1 + δ / ν) and of E u - 1 = (d - δ) / (ν + δ); rows count E u times
    in sum_x and sum_xx.
    """

    log_norm: Array
    about: Array
    sum_w: Array
    sum_x: Array
    sum_xx: Array
    entropy: float
    skipped: Skipped = NOTHING_SKIPPED
    scales: Array | None = None


class CountsProblem(NamedTuple):
    """The parameters of a multinomial mixture, as a pass needs them.

    Parameters
    ----------
    log_weights : array, shape (k,), float64
    log_prob : array, shape (k, v), float64
        Fortran order saves a copy.
    hard : bool
        Whether each row belongs to its most probable component alone.
    least : float
        Weight x responsibility that may be left out of the expected counts.
    """

    log_weights: Array
    log_prob: Array
    hard: bool = False
    least: float = 0.0


class CountsSums(NamedTuple):
    """What a pass over counts returns: one number a row, and sums over rows of weight x responsibility.

    log_norm : (n,) log p(x), nats; -inf for a row that no component can produce, which adds nothing.  sum_w : (k,).
    sum_x : (k, v) expected counts, Fortran order.  entropy : total nats.  log_coefficient : weighted total of the rows'
    log multinomial coefficients, nats.  All float64.
    """

    log_norm: Array
    sum_w: Array
    sum_x: Array
    entropy: float
    log_coefficient: float


class TopicsProblem(NamedTuple):
    """The parameters of latent Dirichlet allocation, as a pass needs them.

    Parameters
    ----------
    alpha : array, shape (k,), float64
        Of the Dirichlet distribution of a document's topics.
    log_prob : array, shape (k, v), float64
        Fortran order saves a copy.
    tol : float
        Nats that the bound of a document may still gain when its iterations end.
    shares : bool
        Whether the topics of each document are wanted.
    """

    alpha: Array
    log_prob: Array
    tol: float
    shares: bool = False


class TopicsSums(NamedTuple):
    """What a pass of latent Dirichlet allocation returns: numbers of each row, and weighted sums over rows.

    bound : (n,) of log p(x), nats; -inf for a row that no topic can produce, which adds nothing.  shares : (n, k) expected
    shares of the topics, or (0, k).  sum_x : (k, v) expected counts, Fortran order.  sum_theta, sum_log_theta : (k,) of
    E theta and E log theta.  entropy : of q, total nats.  constant : of the expected log joint, the terms without parameters,
    total nats.  steps : of all documents.  All float64.
    """

    bound: Array
    shares: Array
    sum_x: Array
    sum_theta: Array
    sum_log_theta: Array
    entropy: float
    constant: float
    steps: int


class ChainSums(NamedTuple):
    """What a forward-backward pass returns: numbers of each row, and weighted sums over units. All float64.

    log_norm : (n,) log p(x_t | rows before it in the unit), nats; -inf from the first row on that no path can produce.
    share : (n, k) probabilities of the states given the unit; zeros where that is impossible.  sum_initial : (k,) expected
    first states.  sum_transitions : (k, k) expected transitions, from the state of the first axis.
    """

    log_norm: Array
    share: Array
    sum_initial: Array
    sum_transitions: Array


class LloydSums(NamedTuple):
    """What a Lloyd pass returns: two numbers a row, and sums over rows.

    label : (n,) int32, the nearest centre, ties to the lowest.  score : (n,), minus the squared distance, inf where the
    weight is 0.  sum_w : (k,).  sum_x : (k, d), about the shift.  inertia : weighted sum of squared distances.
    label_key : sum modulo 2^64 of hashes of (row, label) where weights are positive: equal keys, equal labels.
    """

    label: Array
    score: Array
    sum_w: Array
    sum_x: Array
    inertia: float
    label_key: np.uint64


class Kernels(Protocol):
    """A set of kernels. Its methods may be called by several threads at once; it pickles without its memory."""

    def __hash__(self) -> int:
        """By identity: a worker process remembers which kernels it has compared."""

    def gaussian_pass(self, problem: GaussianProblem, x: Array, weight: Array | None) -> GaussianSums:
        """E-step of a Gaussian mixture on one chunk.

        Parameters
        ----------
        problem : GaussianProblem
        x : array, shape (n, d)
            Finite rows. float16, float32 and small integers are computed in float32, all others in float64.
        weight : array, shape (n,), float64, or None
            Non-negative weights of the rows; None for ones.
        """

    def gaussian_log_joint(self, problem: GaussianProblem, x: Array) -> Array:
        """(n, k) float64 array of log π_k + log p(x | k), nats. x : (n, d)."""

    def gaussian_near_joint(self, problem: GaussianProblem, x: Array, ranks: int) -> Array | None:
        """As `gaussian_log_joint`, where -inf stands for less than 1.1e-16 of the density of the row's rank-th largest.

        None if too little is that small for this to be faster. ranks : 0 where the largest of each row is enough.
        """

    def gaussian_implementations(self, problem: GaussianProblem, dtype: np.dtype[Any]) -> dict[str, list[int]]:
        """How many components' densities, and how many's moments, each implementation computes for rows of a dtype."""

    def counts_pass(self, problem: CountsProblem, x: Any, weight: Array | None) -> CountsSums:
        """E-step of a multinomial mixture on one chunk. x : (n, v) counts, CSR or dense.  weight : (n,), None for ones."""

    def counts_log_joint(self, problem: CountsProblem, x: Any) -> Array:
        """(n, k) float64 array of log π_k + log p(x | k), nats. x : (n, v) counts, CSR or dense."""

    def topics_pass(self, problem: TopicsProblem, x: Any, weight: Array | None) -> TopicsSums:
        """Mean-field E-step of latent Dirichlet allocation on one chunk. x : (n, v) counts, CSR or dense.  weight : (n,)."""

    def chain_pass(
        self, log_density: Array, starts: Array, weight: Array, initial: Array, transitions: Array
    ) -> ChainSums:
        """Forward-backward over units of rows.

        Parameters
        ----------
        log_density : array, shape (n, k), float64, C-contiguous
            Of each row in each state, nats; overwritten.
        starts : array, shape (n_units,), int64
            First row of each unit, from 0.
        weight : array, shape (n_units,), float64
        initial : array, shape (k,)
            Probabilities of the first state.
        transitions : array, shape (k, k)
            Probabilities of the next state (second axis).
        """

    def best_path(self, log_density: Array, starts: Array, initial: Array, transitions: Array) -> Array:
        """The most probable states of units, (n,) int32. Parameters as for `chain_pass`; nothing is overwritten."""

    def lloyd_pass(self, x: Array, weight: Array | None, centers: Array, shift: Array, first: int = 0) -> LloydSums:
        """One pass of Lloyd's algorithm over one chunk.

        Parameters
        ----------
        x : array, shape (n, d)
        weight : array, shape (n,), float64, or None
            Non-negative weights of the rows; None for ones.
        centers : array, shape (k, d), float64
        shift : array, shape (d,), float64
            Reference point near the rows.
        first : int
            Global index of the first row.
        """

    def nearest(self, x: Any, centers: Array, shift: Array) -> tuple[Array, Array]:
        """Nearest centre of each row, (n,) int32, ties to the lowest, and the squared distance to it, (n,) float64.

        x : (n, d), dense, or CSR (then shift must be 0).  centers : (k, d).  shift : (d,), near the rows.
        """

    def identity(self) -> list[str]:
        """What decides the bits of results, such as ["compiled znver3", "openblas Haswell"]: the same in all processes."""
