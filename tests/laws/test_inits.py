"""Starts: what each gives, that restarts differ, and that none depends on how rows are cut into chunks."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.data.profile import ProfileJob, summary_of
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.keyed import race, uniform
from pipeline.models.lloyd import Lloyd
from pipeline.models.starts import DistanceSample, in_step, starting
from tests.laws.common import (
    TYPES,
    chunks_of,
    close,
    e_step,
    examples,
    gaussian_mixture,
    multinomial_mixture,
    same_bits,
    start,
    sum_over,
)
from tests.problems import (
    count_problem,
    gaussian_problem,
    gaussian_problems,
    kmeans_problem,
    ragged_bounds,
    seeds,
)

DRAWN = ["k-means||", "k-means++", "random", "near-mean"]
FAMILIES = ["kmeans", "gaussian", "multinomial"]


class Labels:
    """Labels in memory, as a source's column gives them."""

    def __init__(self, labels):
        """`labels` : (n,)."""
        self.labels = labels

    def read(self, start, stop):
        """Labels of rows start:stop."""
        return self.labels[start:stop]


def rows_of(family, seed, k=3):
    """Rows for a family: dense blobs, or sparse counts."""
    if family == "multinomial":
        return sp.csr_array(count_problem(seed, n=90, v=12, k=k)["counts"])
    return gaussian_problem(seed, n=150, d=3, k=k)["x"]


def known_of(x, weight=None, seed=0, size=5000):
    """What the profiling pass knows of the rows."""
    scatter = "none" if sp.issparse(x) else "matrix"
    return summary_of(sum_over(chunks_of(x, None, weight), [ProfileJob(scatter, size, seed)])[0], [])


def model_of(family, known, k, **options):
    """A model about what is known."""
    if family == "kmeans":
        return Lloyd(k, known.mean)
    if family == "multinomial":
        return multinomial_mixture(k, len(known.mean), **options)
    return gaussian_mixture(k, known.mean, **options)


def starts(family, x, init, k=3, n_init=1, seed=0, bounds=None, weight=None, **options):
    """The model and its initial parameters for each restart."""
    known = known_of(x, weight, seed)
    model = model_of(family, known, k, **options)
    return model, start(model, init, n_init, seed, known, chunks_of(x, bounds, weight))


@pytest.mark.parametrize("init", DRAWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_in_step_are_those_of_each_alone_for_the_reads_of_the_longest(family, init):
    """Models that start together share passes and nothing else: the bits of each are those of its start alone."""
    x = rows_of(family, 3)
    x = sp.csr_array(np.repeat(x.toarray()[:9], 20, axis=0)) if sp.issparse(x) else np.repeat(x[:9], 20, axis=0)
    known = known_of(x)
    models = [model_of(family, known, k) for k in (8, 1, 3)]  # nearly as many as there are distinct rows: more rounds
    passes = []

    def sums(jobs):
        passes.append(len(jobs))
        return sum_over(chunks_of(x), jobs)

    together = in_step([starting(m, init, 2, 0, known, KERNELS) for m in models], sums)
    passes_together, alone = len(passes), []
    for model, found in zip(models, together, strict=True):
        passes.clear()
        same_bits(found, in_step([starting(model, init, 2, 0, known, KERNELS)], sums)[0])
        alone.append(len(passes))
    assert passes_together == max(alone)


@examples(30)
@given(problem=gaussian_problems(n=200, d=2, k=2), seed=seeds)
def test_a_smaller_sample_is_the_first_of_a_larger_one(problem, seed):
    """What a profile keeps for one K is what a profile for that K alone keeps, ties and weights of 0 included."""
    small, large = (known_of(problem["x"], problem["sample_weight"], seed, size) for size in (17, 60))
    same_bits(large.with_sample(17).sample, small.sample)


@pytest.mark.parametrize("init", DRAWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_start_can_be_gone_on_from(family, init):
    """Each family from each start: finite parameters that give every row a density, and weights that sum to 1."""
    for seed in range(12):
        x = rows_of(family, seed)
        model, found = starts(family, x, init, n_init=2, seed=seed)
        for params in found:
            for name, value in model.arrays(params).items():
                assert np.isfinite(value).all(), name
            totals = e_step(model, params, x).totals
            assert np.isfinite(model.objective(totals, params))
            close(totals.stats.sum_w.sum(), x.shape[0], 1e-12)
            if family != "kmeans":
                close(params.weights.sum(), 1.0, 1e-14)


@pytest.mark.parametrize("init", DRAWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_restarts_and_seeds_differ_and_repeat(family, init):
    """Every restart starts elsewhere, another seed too, and the same seed at the same place to the bit."""
    x = rows_of(family, 1, k=5)
    model, found = starts(family, x, init, k=5, n_init=4)
    _, again = starts(family, x, init, k=5, n_init=4)
    _, other = starts(family, x, init, k=5, seed=1)
    same_bits(found, again)
    places = [model.arrays(params)[model.location] for params in [*found, *other]]
    for i, one in enumerate(places):
        for two in places[i + 1 :]:
            assert not np.array_equal(one, two)


@pytest.mark.parametrize("init", DRAWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_do_not_depend_on_chunks(family, init):
    """The same rows in ragged chunks are drawn: parameters agree to rounding, drawn rows to the bit."""
    for seed in range(8):
        x = rows_of(family, seed)
        model, whole = starts(family, x, init, seed=seed)
        _, parts = starts(family, x, init, seed=seed, bounds=ragged_bounds(np.random.default_rng(seed), x.shape[0]))
        for name, value in model.arrays(whole[0]).items():
            close(model.arrays(parts[0])[name], value, 1e-9, name)


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
@examples(100)
@given(
    k=st.integers(1, 11),
    distinct=st.lists(st.tuples(*[st.integers(-50, 49)] * 2), min_size=1, max_size=19, unique=True),
    share=st.sampled_from([0.3, 1.0, 100.0]),
    seed=st.integers(0, 999),
)
def test_as_many_distinct_centres_as_distinct_rows_allow(init, k, distinct, share, seed):
    """However often rows repeat: K distinct centres when there are K distinct rows, else all of the distinct rows."""
    rng = np.random.default_rng(seed)
    times = np.maximum(1, (200 * rng.dirichlet(np.full(len(distinct), share))).astype(int))
    x = rng.permutation(np.repeat(np.array(distinct, dtype=float), times, axis=0))
    if len(x) < k:
        x = np.concatenate([x, x[rng.integers(len(x), size=k)]])
    _, [params] = starts("kmeans", x, init, k=k, seed=seed)
    assert len(np.unique(np.round(params.centers, 9), axis=0)) == min(k, len(distinct))  # spare ones repeat others


def test_heavy_repetition_takes_more_rounds_rather_than_fewer_centres():
    """One value in a thousand rows and 19 rare ones, one far beyond another: 20 distinct centres all the same."""
    x = np.concatenate([np.zeros(3000), *[np.full(4000 // 3**i + 1, 10.0 ** (i / 2)) for i in range(19)]])[:, None]
    _, [params] = starts("kmeans", x, "k-means||", k=20)
    assert len(np.unique(params.centers)) == 20


@pytest.mark.parametrize("init", ["k-means||", "k-means++"])
def test_separated_blobs_are_all_found(init):
    """20 blobs 100 deviations apart: every one has a centre, from every one of ten seeds, far from the origin too."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        blobs = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=-1).reshape(-1, 2) * 100.0
        x = np.repeat(blobs, 60, axis=0) + rng.normal(size=(1200, 2)) + [0.0, 1e8 * (seed % 2)]
        _, [params] = starts("kmeans", x, init, k=20, seed=seed)
        nearest = np.abs(params.centers[:, None] - blobs - [0.0, 1e8 * (seed % 2)]).sum(axis=2).argmin(axis=1)
        assert len(set(nearest.tolist())) == 20


def test_rows_are_drawn_in_proportion_to_weighted_squared_distance():
    """The first row of a round is row n with probability w_n D_n^2 / sum: chi-square over 8,000 seeds."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(12, 2)), rng.uniform(0.2, 3.0, size=12)
    weight[3] = 0.0
    centers = x[[0, 5]]
    rates = weight * ((x[:, None] - centers) ** 2).sum(axis=2).min(axis=1)
    [chunk] = chunks_of(x, None, weight)
    draws = 8_000
    first = [DistanceSample(centers, np.zeros(2), 1, seed, 16)(chunk, KERNELS).row[0] for seed in range(draws)]
    seen = np.bincount(first, minlength=12)
    assert (seen[rates == 0] == 0).all()
    possible = rates > 0
    expected = draws * rates[possible] / rates.sum()
    assert chisquare(seen[possible], expected).pvalue > 1e-4


def test_keyed_numbers_are_uniform_and_independent():
    """Means, deciles and neighbours' correlation of 200,000 keyed numbers are those of independent uniforms."""
    u = uniform(7, 3, np.arange(200_000))
    assert u.min() > 0 and u.max() < 1
    assert chisquare(np.histogram(u, 20, (0, 1))[0]).pvalue > 1e-4
    for other in (uniform(8, 3, np.arange(200_000)), uniform(7, 4, np.arange(200_000)), np.roll(u, 1)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 5 / np.sqrt(len(u))
    same_bits(uniform(7, 3, np.arange(100, 200)), u[100:200])
    assert np.isinf(race(0, 0, np.arange(3), np.zeros(3))).all()
    assert (race(0, 0, np.arange(3), np.full(3, 1e-320)) > 0).all()
    same_bits(uniform(2**64 + 7, 3, np.arange(5)), u[:5])


@pytest.mark.parametrize("covariance_type", TYPES)
def test_random_and_near_mean_have_equal_weights_and_the_datas_covariance(covariance_type):
    """Weights 1/K and the covariance of the data; random: rows of the data; near-mean: 1% of a deviation away."""
    x = rows_of("gaussian", 4)
    full = np.cov(x.T, ddof=0) + 1e-6 * np.eye(3)
    one = {"full": full, "tied": full, "diag": np.diag(full), "spherical": np.trace(full) / 3}[covariance_type]
    for init in ("random", "near-mean"):
        _, [params] = starts("gaussian", x, init, covariance_type=covariance_type)
        np.testing.assert_array_equal(params.weights, np.full(3, 1 / 3))
        assert (
            params.theta.covariances.shape
            == {"full": (3, 3, 3), "tied": (3, 3), "diag": (3, 3), "spherical": (3,)}[covariance_type]
        )
        close(params.theta.covariances, np.broadcast_to(one, params.theta.covariances.shape), 1e-12)
        if init == "random":
            assert all((x == mean).all(axis=1).any() for mean in params.theta.means)
        else:
            away = (params.theta.means - x.mean(axis=0)) / x.std(axis=0)
            assert 0 < np.abs(away).max() < 0.06


@examples(40)
@given(problem=gaussian_problems(n=120, d=2, k=3), seed=seeds)
def test_labels_give_the_moments_of_their_groups(problem, seed):
    """One M-step from the labels: shares, means and covariances of the groups; rows of label -1 are left out."""
    x, rng = problem["x"], np.random.default_rng(seed)
    labels = rng.integers(-1, 3, size=120)
    weight = problem["sample_weight"] + 0.1
    known = known_of(x, weight)
    model = gaussian_mixture(3, known.mean, reg_covar=0.0)
    found = start(model, "labels", 2, 0, known, chunks_of(x, problem["bounds"], weight), labels=Labels(labels))
    same_bits(found[0], found[1])
    arrays = model.arrays(found[0])
    for j in range(3):
        group = labels == j
        close(arrays["weights"][j], weight[group].sum() / weight[labels >= 0].sum(), 1e-12)
        close(arrays["means"][j], np.average(x[group], axis=0, weights=weight[group]), 1e-9)
        close(arrays["covariances"][j], np.cov(x[group].T, ddof=0, aweights=weight[group]), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_out_of_range_or_all_missing_are_refused(family):
    """A label of K or more, below -1, or no label at all: an InputError that says which."""
    x = rows_of(family, 0)
    known = known_of(x)
    model = model_of(family, known, 3)
    for labels, words in (
        (np.full(x.shape[0], 3), "0..2"),
        (np.full(x.shape[0], -2), "-2"),
        (np.full(x.shape[0], -1), "no row"),
    ):
        with pytest.raises(InputError, match=words):
            start(model, "labels", 1, 0, known, chunks_of(x), labels=Labels(labels))


def test_explicit_parameters_are_checked():
    """Missing, misshapen, negative, asymmetric and indefinite parameters are refused; good ones are taken to the bit."""
    x = rows_of("gaussian", 0)
    known = known_of(x)
    model = gaussian_mixture(2, known.mean)
    good = {"weights": np.array([0.25, 0.75]), "means": x[:2], "covariances": np.stack([np.eye(3)] * 2)}

    def explicit(**changes):
        return start(model, "explicit", 1, 0, known, [], arrays={**good, **changes})[0]

    for name, value in model.arrays(explicit()).items():
        np.testing.assert_array_equal(value, good[name])
    asymmetric = np.stack([np.eye(3) + np.triu(np.full((3, 3), 0.1), 1)] * 2)
    wrong = [
        ({"weights": np.array([0.5, 0.6])}, "sum"),
        ({"weights": np.array([-0.5, 1.5])}, ">= 0"),
        ({"weights": np.ones(3) / 3}, "shape"),
        ({"means": np.full((2, 3), np.nan)}, "finite"),
        ({"covariances": asymmetric}, "symmetric"),
        ({"covariances": np.stack([-np.eye(3)] * 2)}, "positive definite"),
        ({"covariances": np.stack([np.eye(3), np.ones((3, 3))])}, "component 1"),
    ]
    for changes, words in wrong:
        with pytest.raises(InputError, match=words):
            explicit(**changes)
    with pytest.raises(InputError, match="means is missing"):
        model.params_from_arrays({"weights": good["weights"]})
    topics = multinomial_mixture(2, 3)
    for weights, log_prob in (([-0.5, 1.5], np.log(np.full((2, 3), 1 / 3))), ([0.5, 0.5], np.zeros((2, 3)))):
        with pytest.raises(InputError):
            topics.params_from_arrays({"weights": np.array(weights), "log_prob": log_prob})


def test_k_means_starts_are_good_starts():
    """On blobs, the inertia of k-means|| before any iteration is near that of the truth, and below random rows'."""
    ratios = []
    for seed in range(15):
        problem = kmeans_problem(seed, n=400, d=4, k=6)
        inertia = {}
        for init in ("k-means||", "random"):
            model, [params] = starts("kmeans", problem["x"], init, k=6, seed=seed)
            inertia[init] = e_step(model, params, problem["x"]).stats.inertia
        ratios.append(inertia["k-means||"] / inertia["random"])
    assert np.median(ratios) < 0.9
    assert max(ratios) < 1.2


def test_fewer_usable_rows_than_components_is_refused():
    """Rows of weight 0 cannot start a component: the error gives both numbers."""
    x = rows_of("gaussian", 0)[:6]
    weight = np.array([1.0, 0, 0, 1, 0, 0])
    with pytest.raises(InputError, match="only 2 usable rows"):
        starts("kmeans", x, "k-means||", k=3, weight=weight)
