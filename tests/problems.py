"""Random clustering problems, each a function of one seed, for laws that must hold over a space of inputs.

Use `@given(seeds)` and build the problem inside the test: hypothesis prints the seed of a failure, and the
seed is all that is needed to see it again.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

seeds = st.integers(min_value=0, max_value=2**32 - 1)
covariance_types = st.sampled_from(["full", "tied", "diag", "spherical"])

Problem = dict[str, Any]


def gaussian_problem(
    seed: int, *, n: int | None = None, d: int | None = None, k: int | None = None, max_offset: float = 100.0
) -> Problem:
    """Rows from overlapping Gaussian blobs, and a start for EM that is not the answer.

    Returns seed, n, d, k, and
    x : (n, d) float64; features of very different scales (0.1 to 100); |mean|/sd of each at most `max_offset`;
    scale, offset : (d,), the scale and the |mean|/sd of each feature, nearly;
    weights : (k,), all above 0.2/k;  means : (k, d), distinct rows of x, moved a little;
    covariances : for each covariance type, in scikit-learn's shape, about those of the data;
    sample_weight : (n,), about a tenth of them 0.

    n is at least 12 k (d + 1), unless given: a few iterations then nearly always stay away from collapse.
    """
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 7)) if d is None else d
    k = int(rng.integers(1, 6)) if k is None else k
    n = 12 * k * (d + 1) + int(rng.integers(0, 200)) if n is None else n
    true_means = rng.normal(scale=2.0, size=(k, d))
    mixing = [np.eye(d) + 0.4 * rng.normal(size=(d, d)) for _ in range(k)]
    component = rng.choice(k, size=n, p=_simplex(rng, k))
    noise = rng.normal(size=(n, d))
    x = np.stack([true_means[j] + mixing[j] @ e for j, e in zip(component, noise, strict=True)])

    x = (x - x.mean(axis=0)) / x.std(axis=0)
    offset = rng.uniform(-max_offset, max_offset, size=d) * rng.integers(0, 2, size=d)
    scale = 10.0 ** rng.uniform(-1, 2, size=d)
    x = (x + offset) * scale

    rows = rng.choice(n, size=k, replace=False)
    means = x[rows] + 0.1 * scale * rng.normal(size=(k, d))
    spread = scale * 10.0 ** rng.uniform(-0.2, 0.2, size=(k, 1))
    tilt = [np.eye(d) + 0.2 * rng.normal(size=(d, d)) for _ in range(k)]
    full = np.stack([np.diag(s) @ t @ t.T @ np.diag(s) for s, t in zip(spread, tilt, strict=True)])
    diag = np.stack([np.diag(covariance) for covariance in full])
    return {
        "seed": seed, "n": n, "d": d, "k": k,
        "x": x, "scale": scale, "offset": np.abs(offset),
        "weights": _simplex(rng, k), "means": means,
        "covariances": {"full": full, "tied": full.mean(axis=0), "diag": diag, "spherical": diag.mean(axis=1)},
        "sample_weight": _row_weights(rng, n),
    }  # fmt: skip


def count_problem(seed: int, *, n: int | None = None, v: int | None = None, k: int | None = None) -> Problem:
    """Documents of a few topics as dense counts, and a start for EM.

    Returns seed, n, v, k, counts : (n, v) int64 with many zeros, every document of one word or more, and now
    and then a word that nobody uses; weights : (k,);  log_prob : (k, v), finite;  sample_weight : (n,).
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(10, 120)) if n is None else n
    v = int(rng.integers(2, 40)) if v is None else v
    k = int(rng.integers(1, 6)) if k is None else k
    topics = rng.dirichlet(np.full(v, 0.3), size=k)
    lengths = rng.integers(1, 60, size=n)
    component = rng.choice(k, size=n, p=_simplex(rng, k))
    counts = np.stack([rng.multinomial(m, topics[j]) for m, j in zip(lengths, component, strict=True)])
    start = 0.5 * rng.dirichlet(np.ones(v), size=k) + 0.5 / v  # no word is impossible at the start
    return {
        "seed": seed, "n": n, "v": v, "k": k,
        "counts": counts, "weights": _simplex(rng, k), "log_prob": np.log(start),
        "sample_weight": _row_weights(rng, n),
    }  # fmt: skip


def kmeans_problem(
    seed: int, *, n: int | None = None, d: int | None = None, k: int | None = None, empty: int = 0
) -> Problem:
    """Rows in a few blobs and starting centres; the last `empty` centres lie so far away that no row is theirs.

    Returns seed, n, d, k, x : (n, d), centers : (k, d), sample_weight : (n,).
    """
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 7)) if d is None else d
    k = int(rng.integers(1 + empty, 8 + empty)) if k is None else k
    n = int(rng.integers(5 * k, 40 * k)) if n is None else n
    blobs = rng.normal(scale=3.0, size=(k, d))
    x = blobs[rng.choice(k, size=n)] + rng.normal(size=(n, d)) + rng.uniform(-50, 50, size=d)
    centers = x[rng.choice(n, size=k, replace=False)]
    centers[k - empty :] += 1e4 * (1 + np.arange(empty))[:, None]
    return {"seed": seed, "n": n, "d": d, "k": k, "x": x, "centers": centers, "sample_weight": _row_weights(rng, n)}


def ragged_bounds(rng: np.random.Generator, n: int, n_chunks: int | None = None) -> NDArray[np.int64]:
    """Boundaries (n_chunks + 1,) from 0 to n of chunks of very different sizes, none of them empty."""
    n_chunks = int(rng.integers(1, min(n, 40) + 1)) if n_chunks is None else min(n_chunks, n)
    cuts = rng.choice(np.arange(1, n), size=n_chunks - 1, replace=False) if n_chunks > 1 else np.empty(0)
    return np.concatenate([[0], np.sort(cuts), [n]]).astype(np.int64)


def _simplex(rng: np.random.Generator, k: int) -> NDArray[np.float64]:
    """Weights (k,) that sum to 1, none below 0.2/k."""
    weights = 0.2 / k + 0.8 * rng.dirichlet(np.ones(k))
    return weights / weights.sum()


def _row_weights(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Weights (n,) between 0.1 and 3, about a tenth of them 0, never all."""
    weights = rng.uniform(0.1, 3.0, size=n) * (rng.uniform(size=n) > 0.1)
    weights[int(rng.integers(n))] = 1.0
    return weights
