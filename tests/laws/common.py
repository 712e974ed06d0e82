"""What the laws share: rows in memory as chunks, a loop over them, and comparison by size.

A law is tested on many random problems (tests/problems.py), which hypothesis draws by the profile of the tier
(tests/conftest.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from hypothesis import settings
from hypothesis import strategies as st

from pipeline.arrays.rows import Rows
from pipeline.data.source import Source
from pipeline.em.accumulate import Method, method_of
from pipeline.em.loop import TEXTBOOK, ResetEvent, em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.engine.tree import Span, halves, tree_sum
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.clusters import BestRows, ClusterModel, Labels
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.families.multinomial import Multinomial
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from pipeline.models.starts import in_step, starting
from tests.problems import (
    count_problem,
    count_problems,
    gaussian_problem,
    gaussian_problems,
    kmeans_problem,
    kmeans_problems,
)
from tests.reference import full_covariances

TYPES = ["full", "tied", "diag", "spherical"]
EPS = np.finfo(np.float64).eps


def examples(count: int) -> settings:
    """A third of `count` problems in the full tier, a tenth in the fast one, three times as many in the slow one (tests/conftest.py)."""
    return settings(max_examples=max(2, count * settings.default.max_examples // 100))


def chunks_of(x: Any, bounds: Sequence[int] | None = None, weight: Any = None, unit: int = 0) -> list[Rows]:
    """Rows in memory as chunks between `bounds`, by default as one chunk. unit : rows of each unit, 0 without units."""
    edges = [0, x.shape[0]] if bounds is None else [int(b) for b in bounds]
    return [
        Rows(x[a:b], None if weight is None else weight[a:b], a, units=np.arange(0, b - a, unit) if unit else None)
        for a, b in pairwise(edges)
    ]


def sum_over(chunks: Sequence[Rows], jobs: Sequence[Any]) -> list[Any]:
    """What a pass of the engine does: every job's sum over all chunks, along the canonical tree."""
    return [tree_sum((job(chunk, KERNELS) for chunk in chunks), lambda a, b: a + b) for job in jobs]


def passes(
    runs: Sequence[Run], chunks: Sequence[Rows], n_iter: int, tol: float = 0.0, method: Method = TEXTBOOK
) -> Iterator[tuple[list[Run], list[Any]]]:
    """What the loop yields after each pass over these chunks, or over a block of them; the last finds representatives."""
    final = (BestRows(),) if isinstance(runs[0].model, ClusterModel) else ()

    def evaluate(jobs, block=None):
        return sum_over(chunks if block is None else [chunks[i] for i in method.blocks[block]], jobs)

    return em(runs, evaluate, Limits(n_iter, tol), sum(chunk.n for chunk in chunks), method, final)


def fit(
    model: Any, params: Any, chunks: Sequence[Rows], n_iter: int, tol: float = 0.0, method: Method = TEXTBOOK
) -> tuple[Run, list[Any]]:
    """EM from given parameters for at most n_iter iterations: the finished run, and what happened in it."""
    runs, events = follow(model, params, chunks, n_iter, tol, method)
    return runs[-1], events


def follow(
    model: Any, params: Any, chunks: Sequence[Rows], n_iter: int, tol: float = 0.0, method: Method = TEXTBOOK
) -> tuple[list[Run], list[Any]]:
    """As `fit`, with the run after each pass, or block."""
    yielded = list(passes([Run(0, model, params)], chunks, n_iter, tol, method))
    return [runs[0] for runs, _ in yielded], [event for _, events in yielded for event in events]


def method(name: str, chunks: Sequence[Rows], seed: int = 0, n_blocks: int = 5) -> Method:
    """fit.method on these chunks, with this many blocks of them."""
    return method_of(name, np.cumsum([0, *(chunk.n for chunk in chunks)]), seed, n_blocks)


def job(model: Any, params: Any, final: bool = False) -> EStep:
    """The E-step as the loop has it. final : of final parameters, which finds representatives."""
    return EStep(model, params, (*model.attachments, *((BestRows(),) if final else ())))


def e_step(
    model: Any, params: Any, x: Any, bounds: Any = None, weight: Any = None, final: bool = False, unit: int = 0
) -> Any:
    """The summed Partial of an E-step over chunks in memory. unit : as of `chunks_of`."""
    return sum_over(chunks_of(x, bounds, weight, unit), [job(model, params, final)])[0]


def start(model: Any, init: str, n_init: int, seed: int, known: Any, chunks: Sequence[Rows], **given: Any) -> list[Any]:
    """Initial parameters for each restart, on chunks in memory. given : as `starting` takes it."""
    found: list[Any] = in_step(
        [starting(model, init, n_init, seed, known, KERNELS, **given)], lambda jobs: sum_over(chunks, jobs)
    )[0]
    return found


def gaussian_mixture(
    k: int, shift: Any, covariance_type: str = "full", *, fixed: Sequence[str] = (), **options: Any
) -> Mixture:
    """A mixture of Gaussians. options : of `Mixture` or of `Gaussian`."""
    of_mixture = {name: options.pop(name) for name in ("assignment", "weight_concentration") if name in options}
    learned = tuple(name for name in fixed if name != "weights")
    component = Gaussian(k, shift, covariance_type, fixed=learned, **options)
    return Mixture(component, fixed_weights="weights" in fixed, **of_mixture)


def multinomial_mixture(
    k: int, v: int, concentration: float = 1.1, *, fixed: Sequence[str] = (), **options: Any
) -> Mixture:
    """A mixture of multinomials over v words. options : of `Mixture`."""
    return Mixture(Multinomial(k, v, concentration), fixed_weights="weights" in fixed, **options)


def gaussian(problem: Any, covariance_type: str, **options: Any) -> tuple[Mixture, Any]:
    """A model about the data mean, and its parameters at the problem's start."""
    model = gaussian_mixture(problem["k"], problem["x"].mean(axis=0), covariance_type, **options)
    start = {name: problem[name] for name in ("weights", "means")}
    return model, model.params_from_arrays({**start, "covariances": problem["covariances"][covariance_type]})


def kmeans(problem: Any) -> tuple[Lloyd, Any]:
    """A model about the data mean, with scikit-learn's scale of the tolerance, and its start."""
    x = problem["x"]
    model = Lloyd(problem["k"], x.mean(axis=0), float(x.var(axis=0).mean()))
    return model, model.params_from_arrays({"centers": problem["centers"]})


def multinomial(problem: Any, **options: Any) -> tuple[Mixture, Any]:
    """A model and its start."""
    model = multinomial_mixture(problem["k"], problem["v"], **options)
    return model, model.params_from_arrays({name: problem[name] for name in ("weights", "log_prob")})


def any_problem(family: str, seed: int, **options: Any) -> tuple[Any, Any, Any, Any]:
    """(model, params, rows, row weights) of a family: a covariance type, kmeans, or multinomial (on CSR rows)."""
    make = {"multinomial": count_problem, "kmeans": kmeans_problem}.get(family, gaussian_problem)
    return _of_family(family, make(seed), **options)[:4]


class Case(NamedTuple):
    """A drawn problem of a family: a covariance type, kmeans, or multinomial (on CSR rows)."""

    model: Any
    params: Any
    x: Any
    weight: Any
    bounds: Any


@st.composite
def cases(draw: st.DrawFn, family: str, **options: Any) -> Case:
    """Problems of a family. options : of the model; one that is a strategy is drawn."""
    drawn = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in options.items()}
    make = {"multinomial": count_problems, "kmeans": kmeans_problems}.get(family, gaussian_problems)
    return Case(*_of_family(family, draw(make()), **drawn))


def _of_family(family: str, problem: Any, **options: Any) -> tuple[Any, ...]:
    rest = problem["sample_weight"], problem.get("bounds")
    if family == "multinomial":
        return *multinomial(problem, **options), sp.csr_array(problem["counts"]), *rest
    if family == "kmeans":
        return *kmeans(problem), problem["x"], *rest
    return *gaussian(problem, family, **options), problem["x"], *rest


FAMILIES = [*TYPES, "kmeans", "multinomial"]


def assigned(model: Any, params: Any, x: Any) -> Labels:
    """What prediction says of all rows."""
    parts = [labels for _, labels in model.assign(params, x, KERNELS)]
    return Labels(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def close_params(model: Any, a: Any, b: Any, tolerance: float) -> None:
    """Every array of two sets of parameters is close; of logarithms, the numbers."""
    for name, value in model.arrays(b).items():
        number = np.exp if name.startswith("log_") else np.asarray
        close(number(model.arrays(a)[name]), number(value), tolerance, name)


def moment_rounding(model: Any, params: Any, total: float) -> float:
    """How far a free energy computed from moments may be off, nats: some eps of the terms that cancel in it.

    Moments about the shift are moved to each mean, |mu - shift| away in units of the component's precision.
    """
    if model.family != "gaussian":
        return 1e-12 * total
    kind, theta = model.component.covariance_type, params.theta
    full = full_covariances(theta.covariances, kind, model.n_components, model.n_features)
    reach = np.abs(theta.means - model.shift) + np.sqrt(np.diagonal(full, axis1=1, axis2=2))
    sizes = np.einsum("ki,kij,kj->k", reach, np.abs(np.linalg.inv(full)), reach)
    return float(64 * EPS * total * (1 + sizes.max()))


def objectives(run: Run) -> Any:
    """The objective at every E-step, the last one being that of the parameters returned."""
    return np.array([*(entry.objective for entry in run.history), run.objective])


def never_falls(runs: Sequence[Run], events: Sequence[Any] = (), rounding: float = 0.0) -> None:
    """No step down from each reset to the next one, beyond 1e-12 of the size and what rounding does to log-determinants.

    Without reg_covar a component may close in on rows of no width, until it is reset. Where it is so narrow that it has a
    point of its own, sums of blocks about other points lack its digits, and nothing is claimed.

    runs : after each pass, the last one finished.  rounding : of what the objective is a difference of.
    """
    run = runs[-1]
    trace = objectives(run)
    assert np.isfinite(trace).all()
    falls = np.maximum(-np.diff(trace), 0.0)
    falls[[event.iteration for event in events if isinstance(event, ResetEvent)]] = 0.0
    for at in [
        len(each.history) for each in runs if run.model.family == "gaussian" and each.params.theta.by is not None
    ]:
        falls[max(0, at - 1) : at + 1] = 0.0
    allowed = 1e-12 * np.abs(trace).max() + rounding + log_det_rounding(run.model, run.params, run.history[-1].weight)
    assert (falls <= allowed).all(), f"falls by {falls.max():.3g} of {np.abs(trace).max():.3g}, more than {allowed:.3g}"


def log_det_rounding(model: Any, params: Any, total: float) -> float:
    """Rounding of the rows' log-densities, total nats: eps for each unit of the condition of a component's correlations."""
    if model.family != "gaussian":
        return 0.0
    full = full_covariances(
        params.theta.covariances, model.component.covariance_type, model.n_components, model.n_features
    )
    widths = np.sqrt(np.diagonal(full, axis1=1, axis2=2))
    return float(EPS * total * np.linalg.cond(full / (widths[:, :, None] * widths[:, None, :])).max())


def close(a: Any, b: Any, tolerance: float, what: str = "") -> None:
    """|a - b| <= tolerance * max|b|, for whole arrays, with equal infinities."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
    finite = np.isfinite(b)
    assert np.array_equal(a[~finite], b[~finite]), f"{what}: {a[~finite]} is not {b[~finite]}"
    if finite.any():
        error, size = np.abs(a[finite] - b[finite]).max(), np.abs(b[finite]).max()
        assert error <= tolerance * size, f"{what}: differs by {error:.3g}, where the largest entry is {size:.3g}"


def close_fields(a: Any, b: Any, tolerance: float) -> None:
    """Every field of two records of numbers, or of records of them, is close."""
    for name, value in vars(b).items():
        if hasattr(value, "__dataclass_fields__"):
            close_fields(getattr(a, name), value, tolerance)
        elif value is not None:
            close(getattr(a, name), value, tolerance, name)


def shards(span: Span, level: int) -> Iterator[Span]:
    """The subtrees of a subtree that have at most 2^level leaves, the largest such, in order."""
    if span[1] - span[0] <= 1 << level:
        yield span
    else:
        for half in halves(span):
            yield from shards(half, level)


class ArraySource(Source):
    """Rows in memory between given bounds."""

    def __init__(self, x: Any, bounds: Sequence[int]) -> None:
        """`x` : (n, d), dense or CSR."""
        self.x, self.bounds = x, np.asarray(bounds, dtype=np.int64)
        self.n_features, self.dtype, self.sparse = x.shape[1], x.dtype, sp.issparse(x)

    def read(self, i: int) -> Any:
        """Chunk i, see `Source.read`."""
        return self.x[self.bounds[i] : self.bounds[i + 1]]


def same_bits(a: Any, b: Any) -> None:
    """Two values, records or lists of them are equal to the last bit."""
    if sp.issparse(b):
        assert sp.issparse(a) and a.shape == b.shape
        same_bits([a.data, a.indices, a.indptr], [b.data, b.indices, b.indptr])
    elif hasattr(b, "__dataclass_fields__"):
        for name in b.__dataclass_fields__:
            same_bits(getattr(a, name), getattr(b, name))
    elif isinstance(b, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            same_bits(one, other)
    elif isinstance(b, Mapping):
        assert list(a) == list(b)
        same_bits(list(a.values()), list(b.values()))
    elif b is None or isinstance(b, str):
        assert a == b
    else:
        one, other = np.asarray(a), np.asarray(b)
        assert one.dtype == other.dtype != np.dtype(object) and one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def _sums(a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """The arrays and numbers of two statistics, by name."""
    for name, value in vars(b).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from _sums(getattr(a, name), value)
        elif value is not None:
            yield name, np.asarray(getattr(a, name)), np.asarray(value)


def close_sums(a: Any, b: Any, model: Any, params: Any, x: Any, weight: Any = None, ulps: float = 32.0) -> None:
    """Statistics of the same rows are equal to rounding: each entry to some eps of the sum of its terms' sizes.

    The terms of sum_x and sum_xx reach as far from the shift as rows and components do.
    """
    dense = np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
    total = len(dense) if weight is None else weight.sum()
    points = dense if model.family == "multinomial" else np.concatenate([dense, model.arrays(params)[model.location]])
    reach = np.abs(points - model.shift).max(axis=0)
    squares = {1: (reach**2).sum(), 2: reach**2, 3: np.outer(reach, reach)}
    sizes = {"sum_w": 1.0, "sum_x": reach, "inertia": (reach**2).sum()}
    for name, one, other in _sums(a, b):
        if name == "sum_xx":
            full = {"tied": squares[3], "full": squares[3][np.tril_indices(len(reach))]}
            size = full.get(model.component.covariance_type, squares[other.ndim])
        else:
            size = sizes.get(name, 1.0 + np.abs(other) / total)
        error = np.abs(one - other)
        assert (error <= ulps * EPS * total * size).all(), f"{name}: {(error / (EPS * total * size)).max():.3g} eps"
