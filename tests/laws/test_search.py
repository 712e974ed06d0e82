"""The search for a start: what its moves promise, and that it changes with neither chunks nor threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from pipeline.data.chunks import Chunk
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.sample import SampleRows
from pipeline.em.moves import crowded, improve, settle, united
from pipeline.em.principal import leading
from pipeline.em.search import GROWTH, Search, contenders, rungs
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import BLOCK_ROWS, MemoryRows
from pipeline.models.gaussian import Gaussian
from pipeline.models.kmeans import KMeans
from pipeline.models.multinomial import Multinomial
from tests.problems import covariance_types, gaussian_problem, seeds

ALONE = SimpleNamespace(map=map)  # stands for a pool of threads


def held(x, weight=None):
    """Rows in memory, on this thread."""
    return MemoryRows(x, weight, ALONE)


def known_of(x):
    """What the profiling pass would know of the rows."""
    return summary_of(ProfileJob("full", 500, 0)(Chunk(x, None, 0, None)), [])


def grid_of_clusters(side, rows, seed):
    """Rows around a grid of centres, ten deviations apart, in random order, and the centres."""
    rng = np.random.default_rng(seed)
    centers = 10.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    x = np.repeat(centers, rows, axis=0) + rng.normal(size=(rows * side * side, 2))
    return rng.permutation(x), centers


def run_from_rows(model, x, rows):
    """Settled, from components at the given rows, as wide as clusters are."""
    arrays = {"centers": x[rows]}
    if isinstance(model, Gaussian):
        k = model.n_components
        arrays = {"weights": np.full(k, 1 / k), "means": x[rows], "covariances": np.stack([np.eye(x.shape[1])] * k)}
    return settle(model, model.params_from_arrays(arrays), held(x), Limits(10, 0.0))


def missed(found, centers):
    """Centres that no found one is nearest to, or the other way round. [Fränti and Sieranoja 2018: centroid index]."""
    distance = ((found[:, None] - centers) ** 2).sum(axis=2)
    near = (len(np.unique(distance.argmin(axis=axis))) for axis in (0, 1))
    return len(centers) - min(near)


@given(seeds, covariance_types)
@settings(max_examples=25, deadline=None)
def test_the_cost_of_leaving_out_a_mixture_component_is_what_the_rest_cannot_explain(seed, kind):
    """By the definition, with densities of scipy."""
    problem = gaussian_problem(seed, k=4)
    x, weight = problem["x"], problem["sample_weight"]
    model = Gaussian(4, x.mean(axis=0), kind)
    params = model.params(problem["weights"], problem["means"], problem["covariances"][kind])
    full = {
        "full": lambda c: c,
        "tied": lambda c: np.stack([c] * 4),
        "diag": lambda c: np.stack([np.diag(v) for v in c]),
        "spherical": lambda c: np.stack([np.eye(x.shape[1]) * v for v in c]),
    }[kind](problem["covariances"][kind])
    log_joint = np.stack(
        [
            np.log(problem["weights"][k]) + multivariate_normal(problem["means"][k], full[k]).logpdf(x).reshape(-1)
            for k in range(4)
        ],
        axis=1,
    )
    expected = [
        weight @ (logsumexp(log_joint, axis=1) - logsumexp(np.delete(log_joint, k, axis=1), axis=1)) for k in range(4)
    ]
    cost, heirs = model.removal_costs(params, x, weight)
    np.testing.assert_allclose(cost, expected, rtol=1e-6, atol=1e-8 * weight.sum())
    assert heirs.sum() == pytest.approx(weight.sum())
    assert not np.diagonal(heirs).any()


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_the_cost_of_leaving_out_a_center_is_what_its_rows_then_have_farther_to_go(seed):
    """By the definition, from all distances."""
    rng = np.random.default_rng(seed)
    x, weight, centers = rng.normal(size=(200, 3)), rng.random(200), rng.normal(size=(5, 3))
    model = KMeans(5, x.mean(axis=0))
    cost, heirs = model.removal_costs(model.params_from_arrays({"centers": centers}), x, weight)
    distance = ((x[:, None] - centers) ** 2).sum(axis=2)
    before = weight @ distance.min(axis=1)
    np.testing.assert_allclose(
        cost, [weight @ np.delete(distance, k, axis=1).min(axis=1) - before for k in range(5)], rtol=1e-9, atol=1e-12
    )
    label, second = np.argsort(distance, axis=1)[:, :2].T
    np.testing.assert_allclose(heirs, sp.coo_array((weight, (label, second)), shape=(5, 5)).toarray())


@given(seeds, st.sampled_from(["gaussian", "kmeans", "multinomial"]))
@settings(max_examples=15, deadline=None)
def test_moves_never_lower_the_objective_nor_crowd_a_component(seed, family):
    """Whatever the rows and the start."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 2)) + 6.0 * rng.normal(size=(5, 2))[rng.integers(5, size=600)]
    model, arrays = (
        Gaussian(4, x.mean(axis=0)),
        {
            "weights": np.full(4, 0.25),
            "means": x[:4],
            "covariances": np.stack([np.cov(x.T)] * 4),
        },
    )
    if family == "kmeans":
        model, arrays = KMeans(4, x.mean(axis=0), x.var()), {"centers": x[:4]}
    if family == "multinomial":
        x = sp.csr_array(rng.poisson(rng.gamma(0.5, size=(5, 12))[rng.integers(5, size=600)]))
        words = rng.dirichlet(np.ones(12), size=4)
        model, arrays = Multinomial(4, np.zeros(12)), {"weights": np.full(4, 0.25), "log_prob": np.log(words)}
    limits = Limits(15, 1e-4)
    before = settle(model, model.params_from_arrays(arrays), held(x), limits)
    after, moved = improve(before, held(x), limits)
    assert after.objective >= before.objective - 1e-9 * abs(before.objective)
    assert crowded(after) <= crowded(before)
    if not moved:  # it has settled beside its trials
        assert after.model is before.model


@given(seeds, st.sampled_from(["gaussian", "kmeans"]), st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_what_runs_come_to_together_is_no_worse_than_the_better_of_each_pair(seed, family, many):
    """However they have settled; one that is left over stays."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, 2)) + 6.0 * rng.normal(size=(5, 2))[rng.integers(5, size=500)]
    model = KMeans(4, x.mean(axis=0), x.var()) if family == "kmeans" else Gaussian(4, x.mean(axis=0))
    runs = [run_from_rows(model, x, rng.choice(500, 4, replace=False)) for _ in range(many)]
    found = united(runs, held(x), Limits(10, 0.0))
    assert len(found) == -(-many // 2)
    for i, run in enumerate(found):
        pair = runs[2 * i : 2 * i + 2]
        fewest = min(crowded(one) for one in pair)
        assert crowded(run) <= fewest
        assert run.objective >= max(one.objective for one in pair if crowded(one) == fewest)


def test_two_runs_that_know_half_of_the_clusters_each_know_all_of_them_together():
    """One knows those on the left, the other those on the right; the rest of their components crowd in one cluster."""
    x, centers = grid_of_clusters(4, 60, 0)
    for points in (x, centers):  # so far apart that no component goes from one side to the other
        points[points[:, 0] > 15] += [100.0, 0.0]
    model = KMeans(16, x.mean(axis=0), x.var())
    rng, middle = np.random.default_rng(0), centers[:, 0].mean()
    runs = []
    for left in (True, False):
        known = (centers[:, 0] < middle) == left
        apart = ((x[:, None] - centers) ** 2).sum(axis=2) < 9
        own = [rng.choice(np.flatnonzero(apart[:, i])) for i in np.flatnonzero(known)]
        crowd = rng.choice(np.flatnonzero(apart[:, np.flatnonzero(~known)[0]]), 8, replace=False)
        runs.append(run_from_rows(model, x, np.concatenate([own, crowd])))
    assert all(missed(run.params.centers, centers) > 0 for run in runs), "the problem is too easy to show anything"
    (best,) = united(runs, held(x), Limits(20, 0.0))
    assert missed(best.params.centers, centers) == 0


@pytest.mark.parametrize("family", ["kmeans", "gaussian"])
@pytest.mark.parametrize("seed", range(3))
def test_every_cluster_is_found(family, seed):
    """With a start from random rows, which leaves several clusters without a component."""
    x, centers = grid_of_clusters(5, 60, seed)
    k = len(centers)
    model = KMeans(k, x.mean(axis=0), x.var()) if family == "kmeans" else Gaussian(k, x.mean(axis=0))
    found = {}
    for moves in (False, True):
        params = Search("random", moves, seed, known_of(x), held(x), len(x), lambda rung: None)(model)
        found[moves] = missed(params.centers if family == "kmeans" else params.means, centers)
    assert found[True] == 0
    assert found[False] > 0, "the problem is too easy to show anything"


@pytest.mark.parametrize("family", ["kmeans", "gaussian", "multinomial"])
def test_threads_do_not_change_a_bit(family):
    """The parameters found by one thread and by three."""
    rng = np.random.default_rng(0)
    n = 2 * BLOCK_ROWS + 77
    if family == "multinomial":
        x = sp.csr_array(rng.poisson(rng.gamma(0.5, size=(6, 15))[rng.integers(6, size=n)]).astype(np.float64))
        model = Multinomial(6, np.zeros(15))
        known = summary_of(ProfileJob("none", 500, 0)(Chunk(x, None, 0, None)), [])
    else:
        x = rng.normal(size=(n, 3)) + 3.0 * rng.normal(size=(6, 3))[rng.integers(6, size=n)]
        model = KMeans(6, x.mean(axis=0), x.var()) if family == "kmeans" else Gaussian(6, x.mean(axis=0))
        known = known_of(x)
    answers = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            found = Search("k-means||", True, 0, known, MemoryRows(x, None, pool), n, lambda rung: None)(model)
        answers.append({name: value.tobytes() for name, value in found.arrays().items()})
    assert answers[0] == answers[1]


@given(seeds, st.integers(1, 400), st.floats(0.05, 1.0))
@settings(max_examples=50, deadline=None)
def test_drawn_rows_follow_from_seed_and_row_alone(seed, cut, share):
    """Other chunks draw the same rows in the same order, weights go with them, and rows of no weight are left out."""
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(400, 2)), rng.integers(0, 3, size=400).astype(np.float64)
    draw = SampleRows(share, seed)
    parts = [Chunk(x[a:b], weight[a:b], a, None) for a, b in ((0, cut), (cut, 400)) if b > a]
    together, apart = draw(Chunk(x, weight, 0, None)), draw(parts[0])
    for part in parts[1:]:
        apart = apart + draw(part)
    if not together.key:
        return
    (rows, weights), (rows_apart, weights_apart) = together.rows(None), apart.rows(None)
    assert together.below(share / 2) == sum((key < share / 2).sum() for key in apart.key)
    np.testing.assert_array_equal(rows, rows_apart)
    np.testing.assert_array_equal(weights, weights_apart)
    originals = {row.tobytes(): w for row, w in zip(x, weight, strict=True)}
    drawn = [originals[row.tobytes()] for row in rows]
    assert (np.ones(len(drawn)) if weights is None else weights).tolist() == drawn
    assert min(drawn) > 0


def test_a_smaller_share_is_the_head_of_a_larger_one():
    """So rungs are nested."""
    x = np.arange(1000.0)[:, None]
    small, large = (SampleRows(share, 3)(Chunk(x, None, 0, None)).rows(None)[0] for share in (0.2, 0.7))
    np.testing.assert_array_equal(small, large[: len(small)])
    assert 150 < len(small) < 250


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 2_000_000), covariance_types)
def test_rungs_grow_to_all_rows_and_hold_enough_for_each_component(k, d, n, kind):
    """By GROWTH, and the lowest for every family."""
    model = Gaussian(k, np.zeros(d), kind)
    sizes = rungs(model, n)
    assert sizes[-1] == n
    assert sizes == sorted(set(sizes))
    for size, above in pairwise(sizes):
        assert size == -(-above // 4)
        assert size >= 64 * k
        assert size >= 10 * model.least_rows * k


@given(st.integers(1, 5))
def test_a_rung_costs_no_more_than_the_highest_but_for_the_least_number_of_starts(n_rungs):
    """Rows grow as contenders become fewer."""
    for model in (KMeans(3, np.zeros(2)), Gaussian(3, np.zeros(2))):
        many = contenders(model, n_rungs)
        assert many[-1] == 1 and len(many) == n_rungs + 1
        assert many[0] >= 4
        for i in range(1, n_rungs):
            assert many[i] == many[n_rungs - 1] * GROWTH ** (n_rungs - 1 - i)


@pytest.mark.parametrize("init", ["random", "near-mean", "k-means++", "k-means||"])
def test_kmeans_finds_clusters_of_many_features_in_their_principal_components(init):
    """Twenty clusters among 200 features; the centres that it hands on are the means of the rows nearest to each."""
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.normal(size=(20, 200))
    x = centers[rng.integers(20, size=4000)] + rng.normal(size=(4000, 200))
    seen = []
    model = KMeans(20, x.mean(axis=0), x.var())
    found = Search(init, True, 0, known_of(x), held(x), len(x), seen.append)(model).centers
    assert {rung.features for rung in seen} == {64}
    assert missed(found, centers) == 0
    nearest = ((x[:, None] - found) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(found, np.stack([x[nearest == k].mean(axis=0) for k in range(20)]), rtol=1e-10)


def test_principal_components_are_those_of_the_covariance():
    """Against NumPy's decomposition of centred rows; coordinates of weighted rows come back where these lie in the space."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(300, 12)) * np.linspace(1, 5, 12), rng.uniform(0.5, 2, size=300)
    shift = weight @ x / weight.sum()
    project = leading(held(x, weight), shift, 4)
    expected = np.linalg.svd(np.sqrt(weight)[:, None] * (x - shift))[2][:4]
    np.testing.assert_allclose(np.abs(project.basis.T @ expected.T), np.eye(4), atol=1e-9)
    inside = shift + rng.normal(size=(5, 4)) @ expected
    np.testing.assert_allclose(project.back(project(inside)), inside, rtol=1e-10)


def test_moves_on_rows_in_a_plane_end_where_they_began_and_raise_nothing():
    """A component whose own rows span fewer dimensions than there are cannot be split; the others can."""
    rng = np.random.default_rng(0)
    flat = np.column_stack([rng.normal(size=(400, 2)), np.full(400, 5.0)])
    x = np.concatenate([flat, 20.0 + rng.normal(size=(400, 3)), -20.0 + rng.normal(size=(400, 3))])
    model = replace(Gaussian(2, x.mean(axis=0)), reg_covar=0.0)
    arrays = {"weights": [1 / 3, 2 / 3], "means": x[[0, 500]], "covariances": [np.eye(3), 500.0 * np.eye(3)]}
    before = settle(model, model.params_from_arrays(arrays), held(x), Limits(1, 0.0))
    after, _ = improve(before, held(x), Limits(5, 0.0))
    assert after.objective >= before.objective


def test_starts_from_labels_do_not_lose_narrow_components_in_float32():
    """Far from the mean of the data, and a thousand times narrower one way than the other: the covariance of NumPy."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 2)) * [300.0, 0.3] + [0.0, 1000.0]).astype(np.float32)
    model = Gaussian(1, np.zeros(2))
    params = model.m_step(model.stats_of_labels(x, np.zeros(3000, dtype=np.int64)), None)
    expected = np.cov(x.T.astype(np.float64), bias=True) + 1e-6 * np.eye(2)
    np.testing.assert_allclose(params.covariances[0], expected, rtol=1e-8, atol=1e-8)
