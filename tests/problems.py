"""Random clustering problems for laws that must hold over a space of inputs, in two forms.

Strategies (`gaussian_problems`, `count_problems`, `kmeans_problems`) are for `@given`. Sizes, scales, offsets, weights, starts
and chunk bounds are drawn by hypothesis, and noise by a generator of the drawn seed, a stream of its own for each array: a
row keeps its values when rows behind it go. So a failure shrinks to few rows, features, components and chunks, and to
numbers of few digits, which tie and repeat; `generic` ones have all digits. Functions of one seed (`gaussian_problem`, ...)
are for tests of one problem.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

seeds = st.integers(min_value=0, max_value=2**32 - 1)
covariance_types = st.sampled_from(["full", "tied", "diag", "spherical"])

Problem = dict[str, Any]
Stream = Callable[[], np.random.Generator]  # the generator of the next array
MOST_CHUNKS = 40


# Of one seed


def gaussian_problem(
    seed: int, *, n: int | None = None, d: int | None = None, k: int | None = None, max_offset: float = 100.0
) -> Problem:
    """Rows from overlapping Gaussian blobs, and a start for EM that is not the answer.

    Returns n, d, k, and
    x : (n, d) float64; features of very different scales (0.1 to 100); |mean|/sd of each at most `max_offset`;
    scale, offset : (d,), the scale and the |mean|/sd of each feature, nearly;
    weights : (k,), none below 0.2/k;  means : (k, d), rows of x, moved a little;
    covariances : for each covariance type, in scikit-learn's shape, about those of the data;
    sample_weight : (n,), about a tenth of them 0.

    n is at least 12 k (d + 1), unless given: a few iterations then nearly always stay away from collapse.
    """
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 7)) if d is None else d
    k = int(rng.integers(1, 6)) if k is None else k
    n = 12 * k * (d + 1) + int(rng.integers(0, 200)) if n is None else n
    rows = _blobs(lambda: rng, n, d, k)
    offset = rng.uniform(-max_offset, max_offset, size=d) * rng.integers(0, 2, size=d)
    scale = 10.0 ** rng.uniform(-1, 2, size=d)
    problem = _gaussian(lambda: rng, (rows + offset) * scale, scale, rng.choice(n, size=k, replace=False))
    return {**problem, "offset": np.abs(offset), "weights": _simplex(rng, k), "sample_weight": _row_weights(rng, n)}


def count_problem(seed: int, *, n: int | None = None, v: int | None = None, k: int | None = None) -> Problem:
    """Documents of a few topics as dense counts, and a start for EM.

    Returns n, v, k, counts : (n, v) int64 with many zeros, every document of one word or more, and now
    and then a word that nobody uses; weights : (k,);  log_prob : (k, v), finite;  sample_weight : (n,).
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(10, 120)) if n is None else n
    v = int(rng.integers(2, 40)) if v is None else v
    k = int(rng.integers(1, 6)) if k is None else k
    problem = _counts(lambda: rng, n, v, k, 59)
    return {**problem, "weights": _simplex(rng, k), "sample_weight": _row_weights(rng, n)}


def kmeans_problem(
    seed: int, *, n: int | None = None, d: int | None = None, k: int | None = None, empty: int = 0
) -> Problem:
    """Rows in a few blobs and starting centres; the last `empty` centres lie so far away that no row is theirs.

    Returns n, d, k, x : (n, d), centers : (k, d), sample_weight : (n,).
    """
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 7)) if d is None else d
    k = int(rng.integers(1 + empty, 8 + empty)) if k is None else k
    n = int(rng.integers(5 * k, 40 * k)) if n is None else n
    x = _round_blobs(lambda: rng, n, d, k) + rng.uniform(-50, 50, size=d)
    centers = _far(x[rng.choice(n, size=k, replace=False)], empty)
    return {"n": n, "d": d, "k": k, "x": x, "centers": centers, "sample_weight": _row_weights(rng, n)}


# Drawn by hypothesis


@st.composite
def gaussian_problems(
    draw: st.DrawFn,
    *,
    n: int | None = None,
    d: int | None = None,
    k: int | None = None,
    max_d: int = 6,
    max_offset: float = 100.0,
    generic: bool = False,
) -> Problem:
    """As `gaussian_problem`, with bounds : (n_chunks + 1,) of ragged chunks.

    19 of 20 problems have 12 k (d + 1) rows or more; the others, and those that a failure shrinks to, have k (d + 1) or more.
    Rows, and those of positive weight, span all dimensions.
    """
    d = draw(st.integers(1, max_d), label="d") if d is None else d
    k = draw(st.integers(1, 5), label="k") if k is None else k
    n = _n_rows(draw, k * (d + 1), 12, 200) if n is None else n
    stream, digits = _stream(draw), _digits(draw, generic)
    offset = _several(draw, st.just(0.0) | st.floats(-max_offset, max_offset), d)
    scale = 10.0 ** _several(draw, st.floats(-1, 2), d)
    rows = np.round(_blobs(stream, n, d, k), digits)
    problem = _gaussian(stream, (rows + offset) * scale, scale, _rows(draw, n, k), digits)
    weights = _drawn_weights(draw, stream, n, k, digits)
    assume(_spans(rows) and _spans(rows[weights["sample_weight"] > 0]))
    return {**problem, "offset": np.abs(offset), **weights, "bounds": draw(cuts(n))}


@st.composite
def count_problems(draw: st.DrawFn, *, n: int | None = None, v: int | None = None, k: int | None = None) -> Problem:
    """As `count_problem`, with bounds : (n_chunks + 1,) of ragged chunks."""
    v = draw(st.integers(2, 39), label="v") if v is None else v
    k = draw(st.integers(1, 5), label="k") if k is None else k
    n = draw(st.integers(k, 119), label="n") if n is None else n
    stream, digits = _stream(draw), _digits(draw)
    problem = _counts(stream, n, v, k, draw(st.integers(1, 59), label="longest document"))
    return {**problem, **_drawn_weights(draw, stream, n, k, digits), "bounds": draw(cuts(n))}


@st.composite
def kmeans_problems(
    draw: st.DrawFn,
    *,
    n: int | None = None,
    d: int | None = None,
    k: int | None = None,
    empty: int = 0,
    generic: bool = False,
) -> Problem:
    """As `kmeans_problem`, with bounds : (n_chunks + 1,) of ragged chunks."""
    d = draw(st.integers(1, 6), label="d") if d is None else d
    k = draw(st.integers(1 + empty, 7 + empty), label="k") if k is None else k
    n = _n_rows(draw, k, 5, 35 * k) if n is None else n
    stream, digits = _stream(draw), _digits(draw, generic)
    rows = np.round(_round_blobs(stream, n, d, k), digits)
    x = rows + _several(draw, st.floats(-50, 50), d)
    problem = {"n": n, "d": d, "k": k, "x": x, "centers": _far(x[_rows(draw, n, k)], empty)}
    return {**problem, **_drawn_weights(draw, stream, n, k, digits), "bounds": draw(cuts(n))}


@st.composite
def cuts(draw: st.DrawFn, n: int, most: int = MOST_CHUNKS) -> NDArray[np.int64]:
    """Boundaries from 0 to n of up to `most` chunks of very different sizes, none of them empty; shrinks to one chunk."""
    many = draw(st.integers(0, min(most, n) - 1), label="cuts")
    inner = draw(st.lists(st.integers(1, max(1, n - 1)), min_size=many, max_size=many, unique=True))
    return np.array([0, *sorted(inner), n], dtype=np.int64)


def ragged_bounds(rng: np.random.Generator, n: int, n_chunks: int | None = None) -> NDArray[np.int64]:
    """Boundaries (n_chunks + 1,) from 0 to n of chunks of very different sizes, none of them empty."""
    n_chunks = int(rng.integers(1, min(n, MOST_CHUNKS) + 1)) if n_chunks is None else min(n_chunks, n)
    inner = rng.choice(np.arange(1, n), size=n_chunks - 1, replace=False) if n_chunks > 1 else np.empty(0)
    return np.concatenate([[0], np.sort(inner), [n]]).astype(np.int64)


def _n_rows(draw: st.DrawFn, unit: int, least: int, more: int) -> int:
    """`least` units and up to `more` rows, in 19 of 20 draws; in the others, fewer units."""
    many = draw(st.integers(0, 20 * least + more), label="n")
    return unit * (1 + many) if many < least else unit * least + (many - least) * more // (19 * least + more)


def _stream(draw: st.DrawFn) -> Stream:
    seed, part = draw(seeds, label="seed"), count()
    return lambda: np.random.default_rng([seed, next(part)])


def _digits(draw: st.DrawFn, generic: bool = False) -> int:
    """Decimals of the noise: nearly always all."""
    return 16 if generic else min(16, draw(st.integers(0, 300), label="digits"))


def _several(draw: st.DrawFn, numbers: st.SearchStrategy[float], many: int) -> NDArray[np.float64]:
    return np.array(draw(st.lists(numbers, min_size=many, max_size=many)))


def _rows(draw: st.DrawFn, n: int, many: int) -> list[int]:
    """Different rows, where there are so many."""
    return draw(st.lists(st.integers(0, n - 1), min_size=many, max_size=many, unique=many <= n), label="start")


def _drawn_weights(draw: st.DrawFn, stream: Stream, n: int, k: int, digits: int) -> Problem:
    shares = _several(draw, st.integers(0, 20), k) + 1e-9  # equal ones are the simplest
    rows = np.round(np.where(stream().random(n) > 0.1, stream().uniform(0.1, 3.0, n), 0.0), digits)
    rows[draw(st.integers(0, n - 1))] = 1.0
    weights = 0.2 / k + 0.8 * (shares / shares.sum())
    return {"weights": weights / weights.sum(), "sample_weight": rows}


def _spans(x: NDArray[np.float64]) -> bool:
    """Whether no combination of features is nearly constant."""
    if len(x) <= x.shape[1] or not (deviation := x.std(axis=0)).all():
        return False
    return bool(np.linalg.svd((x - x.mean(axis=0)) / deviation, compute_uv=False)[-1] > 1e-3 * np.sqrt(len(x)))


# Common to both


def _blobs(stream: Stream, n: int, d: int, k: int) -> NDArray[np.float64]:
    """(n, d) rows of overlapping tilted blobs, of mean 0 and deviation 1."""
    true_means = stream().normal(scale=2.0, size=(k, d))
    rng = stream()
    mixing = [np.eye(d) + 0.4 * rng.normal(size=(d, d)) for _ in range(k)]
    shares = _simplex(stream(), k)
    component = stream().choice(k, size=n, p=shares)
    noise = stream().normal(size=(n, d))
    x = np.stack([true_means[j] + mixing[j] @ e for j, e in zip(component, noise, strict=True)])
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


def _gaussian(stream: Stream, x: NDArray[np.float64], scale: Any, rows: Any, digits: int | None = None) -> Problem:
    """The rows with a start near some of them. digits : decimals of the noise, None for all."""
    (n, d), k = x.shape, len(rows)
    moved = stream().normal(size=(k, d))
    means = x[rows] + 0.1 * scale * (moved if digits is None else np.round(moved, digits))
    spread = scale * 10.0 ** stream().uniform(-0.2, 0.2, size=(k, 1))
    rng = stream()
    tilt = [np.eye(d) + 0.2 * rng.normal(size=(d, d)) for _ in range(k)]
    full = np.stack([np.diag(s) @ t @ t.T @ np.diag(s) for s, t in zip(spread, tilt, strict=True)])
    diag = np.stack([np.diag(covariance) for covariance in full])
    return {
        "n": n, "d": d, "k": k, "x": x, "scale": scale, "means": means,
        "covariances": {"full": full, "tied": full.mean(axis=0), "diag": diag, "spherical": diag.mean(axis=1)},
    }  # fmt: skip


def _counts(stream: Stream, n: int, v: int, k: int, longest: int) -> Problem:
    """Documents of 1 to `longest` words, and a start in which no word is impossible."""
    topics = stream().dirichlet(np.full(v, 0.3), size=k)
    lengths = stream().integers(1, longest + 1, size=n)
    shares = _simplex(stream(), k)
    component = stream().choice(k, size=n, p=shares)
    rng = stream()
    counts = np.stack([rng.multinomial(m, topics[j]) for m, j in zip(lengths, component, strict=True)])
    start = 0.5 * stream().dirichlet(np.ones(v), size=k) + 0.5 / v
    return {"n": n, "v": v, "k": k, "counts": counts, "log_prob": np.log(start)}


def _round_blobs(stream: Stream, n: int, d: int, k: int) -> NDArray[np.float64]:
    """(n, d) rows of overlapping round blobs."""
    centers = stream().normal(scale=3.0, size=(k, d))
    return centers[stream().choice(k, size=n)] + stream().normal(size=(n, d))


def _far(centers: NDArray[np.float64], empty: int) -> NDArray[np.float64]:
    """The centres, the last ones so far away that no row is theirs."""
    centers[len(centers) - empty :] += 1e4 * (1 + np.arange(empty))[:, None]
    return centers


def _simplex(rng: np.random.Generator, k: int) -> NDArray[np.float64]:
    """Weights (k,) that sum to 1, none below 0.2/k."""
    weights = 0.2 / k + 0.8 * rng.dirichlet(np.ones(k))
    return weights / weights.sum()


def _row_weights(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Weights (n,) between 0.1 and 3, about a tenth of them 0, never all."""
    weights = rng.uniform(0.1, 3.0, size=n) * (rng.uniform(size=n) > 0.1)
    weights[int(rng.integers(n))] = 1.0
    return weights
