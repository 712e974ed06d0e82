"""The search for a start: what its moves promise, and that it changes with neither chunks nor threads."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.cluster import kmeans_plusplus

from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.sample import SampleRows
from pipeline.em import search
from pipeline.em.moves import improve, merge_runs, near_empty, refine
from pipeline.em.principal import leading
from pipeline.em.search import EFFORT, Search, candidate_starts, levels, most_reads, searched
from pipeline.em.splits import _fit_two
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import BLOCK_ROWS, MemoryRows
from pipeline.kernels.cpu import KERNELS
from pipeline.kernels.nearest import lloyd_pass
from pipeline.models.clusters import SearchEffort
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from pipeline.models.plus_plus import in_batches, one_by_one
from tests.laws.common import examples, gaussian, gaussian_mixture, multinomial_mixture, same_bits
from tests.problems import covariance_types, gaussian_problems, seeds
from tests.reference import gaussian_log_joint

ALONE = SimpleNamespace(map=map)  # stands for a pool of threads


def in_memory(x, weight=None):
    """Rows in memory, on this thread."""
    return MemoryRows(x, weight, ALONE)


def known_of(x):
    """What the profiling pass would know of the rows."""
    scatter = "none" if sp.issparse(x) else "matrix"
    return summary_of(ProfileJob(scatter, 500, 0)(Rows(x), KERNELS), [])


def grid_of_clusters(side, rows, seed):
    """Rows around a grid of centres, ten deviations apart, in random order, and the centres."""
    rng = np.random.default_rng(seed)
    centers = 10.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    x = np.repeat(centers, rows, axis=0) + rng.normal(size=(rows * side * side, 2))
    return rng.permutation(x), centers


def run_from_rows(model, x, rows):
    """Refined, from components at the given rows, as wide as clusters are."""
    arrays = {"centers": x[rows]}
    if isinstance(model, Mixture):
        k = model.n_components
        arrays = {"weights": np.full(k, 1 / k), "means": x[rows], "covariances": np.stack([np.eye(x.shape[1])] * k)}
    return refine(model, model.params_from_arrays(arrays), in_memory(x), Limits(10, 0.0))


def missed(found, centers):
    """Centres that no found one is nearest to, or the other way round. [Fränti and Sieranoja 2018: centroid index]."""
    distance = ((found[:, None] - centers) ** 2).sum(axis=2)
    near = (len(np.unique(distance.argmin(axis=axis))) for axis in (0, 1))
    return len(centers) - min(near)


@given(gaussian_problems(k=4), covariance_types)
@examples(25)
def test_the_cost_of_leaving_out_a_mixture_component_is_what_the_rest_cannot_explain(problem, kind):
    """By the definition, with densities of scipy."""
    x, weight = problem["x"], problem["sample_weight"]
    model, params = gaussian(problem, kind)
    log_joint = gaussian_log_joint(x, problem["weights"], problem["means"], problem["covariances"][kind], kind)
    expected = [
        weight @ (logsumexp(log_joint, axis=1) - logsumexp(np.delete(log_joint, k, axis=1), axis=1)) for k in range(4)
    ]
    cost, next_best = vars(model.removal_costs(params, x, weight, KERNELS)).values()
    np.testing.assert_allclose(cost, expected, rtol=1e-6, atol=1e-8 * weight.sum())
    assert next_best.sum() == pytest.approx(weight.sum())
    assert not next_best.diagonal().any()


@given(seeds)
@examples(25)
def test_the_cost_of_leaving_out_a_center_is_what_its_rows_then_have_farther_to_go(seed):
    """By the definition, from all distances."""
    rng = np.random.default_rng(seed)
    x, weight, centers = rng.normal(size=(200, 3)), rng.random(200), rng.normal(size=(5, 3))
    model = Lloyd(5, x.mean(axis=0))
    found = model.removal_costs(model.params_from_arrays({"centers": centers}), x, weight, KERNELS)
    distance = ((x[:, None] - centers) ** 2).sum(axis=2)
    before = weight @ distance.min(axis=1)
    np.testing.assert_allclose(
        found.cost,
        [weight @ np.delete(distance, k, axis=1).min(axis=1) - before for k in range(5)],
        rtol=1e-9,
        atol=1e-12,
    )
    label, second = np.argsort(distance, axis=1)[:, :2].T
    expected = sp.coo_array((weight, (label, second)), shape=(5, 5)).toarray()
    np.testing.assert_allclose(found.next_best.toarray(), expected)


@given(seeds, st.sampled_from(["gaussian", "kmeans", "multinomial"]))
@examples(15)
def test_moves_never_lower_the_objective_nor_leave_more_near_empty_components(seed, family):
    """Whatever the rows and the start, where no cluster is small."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 2)) + 6.0 * rng.normal(size=(5, 2))[rng.integers(5, size=600)]
    model, arrays = (
        gaussian_mixture(4, x.mean(axis=0)),
        {
            "weights": np.full(4, 0.25),
            "means": x[:4],
            "covariances": np.stack([np.cov(x.T)] * 4),
        },
    )
    if family == "kmeans":
        model, arrays = Lloyd(4, x.mean(axis=0), x.var()), {"centers": x[:4]}
    if family == "multinomial":
        x = sp.csr_array(rng.poisson(rng.gamma(0.5, size=(5, 12))[rng.integers(5, size=600)]))
        words = rng.dirichlet(np.ones(12), size=4)
        model, arrays = multinomial_mixture(4, 12), {"weights": np.full(4, 0.25), "log_prob": np.log(words)}
    limits = Limits(15, 1e-4)
    before = refine(model, model.params_from_arrays(arrays), in_memory(x), limits)
    after, moved = improve(before, in_memory(x), limits)
    assert after.objective >= before.objective - 1e-9 * abs(before.objective)
    assert near_empty(after) <= near_empty(before)
    assert after.objective > before.objective or not moved
    assert after.model.n_components == 4


@pytest.mark.parametrize(("seed", "gain"), [(10, 3), (11, 3), (18, 0), (28, 3)])
def test_moves_that_promise_little_are_tried_at_last_while_few_rows_were_read(seed, gain):
    """Eight clusters that overlap, weights from 1 to 1/30: they gain some nats, total, where there is something to gain, and never lose any."""
    rng, k = np.random.default_rng(seed), 8
    weights = 30.0 ** -np.linspace(0.0, 1.0, k)
    means, scales = 4 * rng.normal(size=(k, 2)), rng.uniform(0.4, 1.6, k)
    label = rng.choice(k, 3000, p=weights / weights.sum())
    x = means[label] + scales[label][:, None] * rng.normal(size=(3000, 2))
    model, rows, limits = gaussian_mixture(k, x.mean(axis=0)), in_memory(x), Limits(12, 1e-4)
    start = model.start_at(x[rng.choice(3000, k, replace=False)], known_of(x))
    run = refine(model, start, rows, Limits(50, 1e-6))
    found, read = {}, {}
    for thorough in (0.0, 1.0, np.inf):
        before = rows.read[0]
        found[thorough] = improve(run, rows, limits, thorough=thorough)[0].objective
        read[thorough] = rows.read[0] - before
    assert found[1.0] == found[0.0] and read[1.0] == read[0.0]  # more rows than that had been read before
    assert found[np.inf] >= found[0.0] + gain and read[np.inf] > read[0.0]


@pytest.mark.parametrize("seed", range(3))
def test_moves_find_a_small_cluster_and_none_in_rows_of_one(seed):
    """80 rows in 20 features are near collapse: a cluster apart gains more than chance could, and some rows of a single cluster do not."""
    rng, d = np.random.default_rng(seed), 20
    sizes = [2000, 1500, 80]
    label = np.repeat(np.arange(3), sizes)
    x = rng.permutation(rng.normal(size=(len(label), d)) + np.array([[0.0], [4.0], [-3.0]])[label])
    truth = {"weights": np.array(sizes) / len(x), "means": np.repeat([[0.0], [4.0], [-3.0]], d, axis=1)}
    model, rows, limits = gaussian_mixture(3, x.mean(axis=0)), in_memory(x), Limits(30, 1e-6)
    best = refine(model, model.params_from_arrays({**truth, "covariances": np.stack([np.eye(d)] * 3)}), rows, limits)
    high = x.mean(axis=1) > 2.0  # the second cluster in halves, the first with the third
    half = np.where(high, 1 + (x[:, 0] > 4.0), 0)
    start = model.m_step(model.label_statistics(x, half), None)
    found, _ = improve(refine(model, start, rows, limits), rows, limits)
    assert near_empty(best) == near_empty(found) == 1
    assert found.objective >= best.objective - 1e-4 * len(x)
    one = rng.normal(size=(1500, d))
    model, rows = gaussian_mixture(3, np.zeros(d)), in_memory(one)
    before = refine(model, model.m_step(model.label_statistics(one, np.arange(1500) % 3), None), rows, limits)
    assert near_empty(improve(before, rows, limits)[0]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_split_parts_clusters_that_overlap_in_many_features(seed):
    """Two fitted to the rows of both gain as much as EM from the true labels: in 50 features that takes more than a few iterations."""
    rng, d, label = np.random.default_rng(seed), 50, np.repeat([0, 1], [780, 650])
    factors = np.eye(d) + 0.5 * rng.normal(size=(2, d, d)) / np.sqrt(d)
    means = 0.25 * rng.normal(size=(2, d))
    x = np.einsum("nij,nj->ni", factors[label], rng.normal(size=(len(label), d))) + means[label]
    two, rows = gaussian_mixture(2, x.mean(axis=0)), in_memory(x)
    one, limits = two.with_components(1), Limits(50, 0.0)
    ends = [
        refine(model, model.m_step(model.label_statistics(x, own), None), rows, limits).objective
        for model, own in ((two, label), (one, 0 * label))
    ]
    found = _fit_two(two, Rows(x, np.ones(len(x))), KERNELS)
    assert found.gain >= 0.99 * (ends[0] - ends[1])


@given(seeds, st.sampled_from(["gaussian", "kmeans"]), st.integers(2, 5))
@examples(15)
def test_merged_runs_are_no_worse_than_the_better_of_each_pair(seed, family, many):
    """Wherever they were refined to; one that is left over stays."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, 2)) + 6.0 * rng.normal(size=(5, 2))[rng.integers(5, size=500)]
    model = Lloyd(4, x.mean(axis=0), x.var()) if family == "kmeans" else gaussian_mixture(4, x.mean(axis=0))
    runs = [run_from_rows(model, x, rng.choice(500, 4, replace=False)) for _ in range(many)]
    found = merge_runs(runs, in_memory(x), Limits(10, 0.0))
    assert len(found) == -(-many // 2)
    for i, run in enumerate(found):
        pair = runs[2 * i : 2 * i + 2]
        fewest = min(near_empty(one) for one in pair)
        assert near_empty(run) <= fewest
        assert run.objective >= max(one.objective for one in pair if near_empty(one) == fewest)


def test_two_runs_with_half_of_the_clusters_each_have_all_of_them_when_merged():
    """One has those on the left, the other those on the right; the rest of their components are in one cluster."""
    x, centers = grid_of_clusters(4, 60, 0)
    for points in (x, centers):  # so far apart that no component goes from one side to the other
        points[points[:, 0] > 15] += [100.0, 0.0]
    model = Lloyd(16, x.mean(axis=0), x.var())
    rng, middle = np.random.default_rng(0), centers[:, 0].mean()
    runs = []
    for left in (True, False):
        found = (centers[:, 0] < middle) == left
        apart = ((x[:, None] - centers) ** 2).sum(axis=2) < 9
        own = [rng.choice(np.flatnonzero(apart[:, i])) for i in np.flatnonzero(found)]
        rest = rng.choice(np.flatnonzero(apart[:, np.flatnonzero(~found)[0]]), 8, replace=False)
        runs.append(run_from_rows(model, x, np.concatenate([own, rest])))
    assert all(missed(run.params.centers, centers) > 0 for run in runs), "the problem is too easy to show anything"
    (best,) = merge_runs(runs, in_memory(x), Limits(20, 0.0))
    assert missed(best.params.centers, centers) == 0


@pytest.mark.parametrize("family", ["kmeans", "gaussian"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_every_cluster_is_found(family, seed):
    """With a start from random rows, which leaves several clusters without a component."""
    x, centers = grid_of_clusters(5, 60, seed)
    k = len(centers)
    model = Lloyd(k, x.mean(axis=0), x.var()) if family == "kmeans" else gaussian_mixture(k, x.mean(axis=0))
    found = {}
    for moves in (False, True):
        params = Search("random", moves, seed, known_of(x), in_memory(x), len(x), lambda level: None)(model)
        found[moves] = missed(model.arrays(params)[model.location], centers)
    assert found[True] == 0
    assert found[False] > 0, "the problem is too easy to show anything"


@pytest.mark.parametrize("family", ["kmeans", "gaussian", "multinomial"])
def test_threads_do_not_change_a_bit(family):
    """The parameters found by one thread and by three."""
    rng = np.random.default_rng(0)
    n = 2 * BLOCK_ROWS + 77
    if family == "multinomial":
        x = sp.csr_array(rng.poisson(rng.gamma(0.5, size=(6, 15))[rng.integers(6, size=n)]).astype(np.float64))
        model = multinomial_mixture(6, 15)
    else:
        x = rng.normal(size=(n, 3)) + 3.0 * rng.normal(size=(6, 3))[rng.integers(6, size=n)]
        model = Lloyd(6, x.mean(axis=0), x.var()) if family == "kmeans" else gaussian_mixture(6, x.mean(axis=0))
    answers = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            rows = MemoryRows(x, None, pool)
            found = Search("k-means||", True, 0, known_of(x), rows, n, lambda level: None)(model)
        answers.append(model.arrays(found))
    same_bits(*answers)


@given(seeds, st.integers(1, 400), st.floats(0.05, 1.0))
@examples(50)
def test_drawn_rows_follow_from_seed_and_row_alone(seed, cut, share):
    """Other chunks draw the same rows in the same order, weights go with them, and rows of no weight are left out."""
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(400, 2)), rng.integers(0, 3, size=400).astype(np.float64)
    draw = SampleRows(share, seed)
    parts = [Rows(x[a:b], weight[a:b], a) for a, b in ((0, cut), (cut, 400)) if b > a]
    together, apart = draw(Rows(x, weight), KERNELS), draw(parts[0], KERNELS)
    for part in parts[1:]:
        apart = apart + draw(part, KERNELS)
    if not together.key:
        return
    (rows, weights, _), (rows_apart, weights_apart, _) = together.rows(None), apart.rows(None)
    assert together.below(share / 2) == sum((key < share / 2).sum() for key in apart.key)
    np.testing.assert_array_equal(rows, rows_apart)
    np.testing.assert_array_equal(weights, weights_apart)
    originals = {row.tobytes(): w for row, w in zip(x, weight, strict=True)}
    drawn = [originals[row.tobytes()] for row in rows]
    assert (np.ones(len(drawn)) if weights is None else weights).tolist() == drawn
    assert min(drawn) > 0


def test_a_smaller_share_is_the_head_of_a_larger_one():
    """So levels are nested."""
    x = np.arange(1000.0)[:, None]
    small, large = (SampleRows(share, 3)(Rows(x), KERNELS).rows(None)[0] for share in (0.2, 0.7))
    np.testing.assert_array_equal(small, large[: len(small)])
    assert 150 < len(small) < 250


class Small(Lloyd):
    """K-means whose lowest level may have few rows."""

    search = SearchEffort(level_rows=128, starts=8, finalists=4, tol=0.0)


@given(st.integers(1, 3), st.integers(1, 5000), st.booleans())
@examples(30)
def test_a_search_goes_through_the_levels_and_reads_no_more_than_is_said(k, n, moves):
    """From a sample with enough rows for each component up to all rows, with fewer starts the more rows there are."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + 10, 2)) + 3.0 * rng.normal(size=(5, 2))[rng.integers(5, size=n + 10)]
    model, rows, seen = Small(k, x.mean(axis=0), x.var()), in_memory(x), []
    Search("random", moves, 0, known_of(x), rows, len(x), seen.append)(model)
    sizes, starts = [level.rows for level in seen], [level.starts for level in seen]
    assert sizes == sorted(set(sizes)) and starts == sorted(starts, reverse=True)
    assert sizes[-1] == len(x) or not moves  # one start on all rows is what the fit itself does
    assert min(sizes) >= min(128, len(x)) and min(sizes) >= min(64 * k, len(x))
    assert sizes[0] < 4 * max(128, 64 * k) and starts[0] >= 4
    assert sum(level.read for level in seen) == rows.read[0] <= most_reads(model, len(x), len(x), moves)


@pytest.mark.slow
@pytest.mark.parametrize("effort", EFFORT)
@pytest.mark.parametrize(
    ("family", "k", "d"),
    [("kmeans", 12, 3), ("kmeans", 30, 150), ("full", 12, 3), ("diag", 8, 140), ("spherical", 30, 2)],
)
def test_a_search_with_a_small_budget_reads_no_more_than_is_said(monkeypatch, family, k, d, effort):
    """Also in principal components, where more passes cost no more time, and where the last round of moves exceeds the budget."""
    monkeypatch.setattr(search, "FEW_ROWS", 1)  # few rows have no more of the budget than many
    rng = np.random.default_rng(k)
    x = rng.normal(size=(6000, d)) + 2.0 * rng.normal(size=(k, d))[rng.integers(k, size=6000)]
    model = Lloyd(k, x.mean(axis=0), x.var()) if family == "kmeans" else gaussian_mixture(k, x.mean(axis=0), family)
    rows, budget = in_memory(x), EFFORT[effort]
    Search("k-means++", True, 0, known_of(x), rows, len(x), lambda level: None, budget)(model)
    parts = searched(model, "k-means++", False, len(x), budget)
    assert rows.read[0] <= sum(most_reads(each, some, len(x), True, part) for each, some, part in parts)


@pytest.mark.parametrize("init", ["random", "near-mean", "k-means++", "k-means||"])
def test_kmeans_finds_clusters_of_many_features_in_their_principal_components(init):
    """Twenty clusters among 200 features; the centres that it hands on are the means of the rows nearest to each."""
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.normal(size=(20, 200))
    x = centers[rng.integers(20, size=4000)] + rng.normal(size=(4000, 200))
    seen = []
    model = Lloyd(20, x.mean(axis=0), x.var())
    found = Search(init, True, 0, known_of(x), in_memory(x), len(x), seen.append)(model).centers
    assert {level.features for level in seen} == {64}
    assert missed(found, centers) == 0
    nearest = ((x[:, None] - found) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(found, np.stack([x[nearest == k].mean(axis=0) for k in range(20)]), rtol=1e-10)


def test_principal_components_are_those_of_the_covariance():
    """Against NumPy's decomposition of centred rows; coordinates of weighted rows come back where these lie in the space."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(300, 12)) * np.linspace(1, 5, 12), rng.uniform(0.5, 2, size=300)
    shift = weight @ x / weight.sum()
    project = leading(in_memory(x, weight), shift, 4)
    expected = np.linalg.svd(np.sqrt(weight)[:, None] * (x - shift))[2][:4]
    np.testing.assert_allclose(np.abs(project.basis.T @ expected.T), np.eye(4), atol=1e-9)
    inside = shift + rng.normal(size=(5, 4)) @ expected
    np.testing.assert_allclose(project.back(project(inside)), inside, rtol=1e-10)


def test_moves_on_rows_in_a_plane_end_where_they_began_and_raise_nothing():
    """A component whose own rows span fewer dimensions than there are cannot be split; the others can."""
    rng = np.random.default_rng(0)
    flat = np.column_stack([rng.normal(size=(400, 2)), np.full(400, 5.0)])
    x = np.concatenate([flat, 20.0 + rng.normal(size=(400, 3)), -20.0 + rng.normal(size=(400, 3))])
    model = gaussian_mixture(2, x.mean(axis=0), reg_covar=0.0)
    arrays = {"weights": [1 / 3, 2 / 3], "means": x[[0, 500]], "covariances": [np.eye(3), 500.0 * np.eye(3)]}
    before = refine(model, model.params_from_arrays(arrays), in_memory(x), Limits(1, 0.0))
    after, _ = improve(before, in_memory(x), Limits(5, 0.0))
    assert after.objective >= before.objective


def test_starts_from_labels_do_not_lose_narrow_components_in_float32():
    """Far from the mean of the data, and a thousand times narrower one way than the other: the covariance of NumPy."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3000, 2)) * [300.0, 0.3] + [0.0, 1000.0]).astype(np.float32)
    model = gaussian_mixture(1, np.zeros(2))
    params = model.m_step(model.label_statistics(x, np.zeros(3000, dtype=np.int64)), None)
    expected = np.cov(x.T.astype(np.float64), bias=True) + 1e-6 * np.eye(2)
    np.testing.assert_allclose(params.theta.covariances[0], expected, rtol=1e-8, atol=1e-8)


def test_many_centers_are_drawnin_batches_that_spread_like_one_by_one():
    """1,001 distinct rows of positive weight, whose D² is at most 1.05 times that of scikit-learn's; of fewer distinct rows, all."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(4000, 3)), np.ones(4000)
    weight[::4] = 0.0
    chosen = in_batches(x, weight, 1001, rng, KERNELS)
    assert len(np.unique(chosen)) == 1001 and weight[chosen].all()
    inertia = {
        name: lloyd_pass(x, weight, centers, np.zeros(3)).inertia
        for name, centers in {
            "ours": x[chosen],
            "theirs": kmeans_plusplus(x, 1001, sample_weight=weight, random_state=0, n_local_trials=1)[0],
        }.items()
    }
    assert inertia["ours"] <= 1.05 * inertia["theirs"]
    few = np.repeat(x[:50], 30, axis=0)
    assert len(np.unique(few[in_batches(few, np.ones(1500), 1200, rng, KERNELS)], axis=0)) == 50


@pytest.mark.parametrize(("n", "d", "k"), [(60, 2, 5), (200, 16, 200), (7, 1, 1)])
def test_centers_drawn_one_by_one_are_those_of_scikit_learn(n, d, k):
    """The same rows in the same order, of random rows and of rows of which many are equal, with and without weights."""
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=(n, d)), rng.integers(6, size=(n, d)).astype(float)):
        for weight in (np.ones(n), rng.random(n)):
            theirs = kmeans_plusplus(x, k, sample_weight=weight, random_state=3)[1]
            np.testing.assert_array_equal(one_by_one(x, weight, k, 3), theirs)


@pytest.mark.parametrize("effort", EFFORT)
def test_the_effort_is_the_budget_of_the_search(effort):
    """More starts for a larger one, never more rows read than it allows; the search does what it plans."""
    share, model, n = EFFORT[effort], Lloyd(40, np.zeros(2)), 40_000
    many = {name: candidate_starts(model, [n], n, each)[0] for name, each in EFFORT.items()}
    assert many["low"] < many["medium"] < many["high"]
    least = candidate_starts(model, [n], n, 0.0)
    assert least == [1, 1]
    x, seen = np.random.default_rng(0).normal(size=(3000, 2)), []
    small = Lloyd(300, x.mean(axis=0), x.var())
    Search("random", False, 0, known_of(x), in_memory(x), len(x), seen.append, share)(small)
    assert seen[0].starts == candidate_starts(small, levels(small, 3000), 3000, share)[0]
