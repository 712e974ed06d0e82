"""Partial statistics of chunks add to those of the whole; so do the lists that travel beside them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.packing import pack
from pipeline.arrays.rows import LowestRows, Representatives, lowest
from pipeline.data.profile import ProfileJob
from pipeline.engine.tree import tree_sum
from tests.laws.common import (
    EPS,
    FAMILIES,
    TYPES,
    any_problem,
    assigned,
    cases,
    chunks_of,
    close,
    close_fields,
    close_sums,
    e_step,
    examples,
    gaussian,
    same_bits,
    sum_over,
)
from tests.problems import count_problems, cuts, gaussian_problems, seeds

SOFT = [family for family in FAMILIES if family != "kmeans"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("family", SOFT)
@examples(25)
@given(data=st.data())
def test_statistics_of_chunks_add_to_those_of_the_whole(family, assignment, weighted, data):
    """Any ragged chunks, soft or hard, with weights or without: their sums are the sums of all rows."""
    model, params, x, weight, bounds = data.draw(cases(family, assignment=assignment))
    weight = weight if weighted else None
    whole = e_step(model, params, x, None, weight)
    parts = e_step(model, params, x, bounds, weight)
    close_sums(parts.stats, whole.stats, model, params, x, weight)
    same_bits(parts.attached["outliers"].row, whole.attached["outliers"].row)


@pytest.mark.parametrize("weighted", [False, True])
@examples(100)
@given(case=cases("kmeans"))
def test_kmeans_statistics_and_label_hash_are_those_of_the_whole(weighted, case):
    """Lloyd's sums add, and the hash of all labels is the same number whatever the chunks."""
    model, params, x, weight, bounds = case
    weight = weight if weighted else None
    whole, parts = e_step(model, params, x, None, weight), e_step(model, params, x, bounds, weight)
    close_sums(parts.stats, whole.stats, model, params, x, weight)
    assert parts.attached["label_hash"].value == whole.attached["label_hash"].value
    same_bits(parts.attached["outliers"].row, whole.attached["outliers"].row)


@examples(100)
@given(case=cases("kmeans"))
def test_kmeans_label_hash_changes_with_any_label(case):
    """One row with another label, and the hash is another."""
    model, params, x, *_ = case
    before = e_step(model, params, x)
    labels = assigned(model, params, x).label
    other = (labels[0] + 1) % model.n_components
    moved = x.copy()
    moved[0] = params.centers[other]
    after = e_step(model, params, moved)
    same = np.array_equal(labels, assigned(model, params, moved).label)
    assert (before.attached["label_hash"].value == after.attached["label_hash"].value) == same


@pytest.mark.parametrize("family", FAMILIES)
@examples(30)
@given(data=st.data())
def test_statistics_of_labels_are_those_of_the_assignment(family, data):
    """Given each row's own hard label, the statistics are those of a hard E-step; label -1 is weight 0."""
    options = {} if family == "kmeans" else {"assignment": "hard"}
    model, params, x, weight, _ = data.draw(cases(family, **options))
    labels = assigned(model, params, x).label
    out = np.random.default_rng(data.draw(seeds)).random(x.shape[0]) < 0.2
    out[0] = False
    given_ = model.label_statistics(x, np.where(out, -1, labels), weight)
    hard = e_step(model, params, x, None, np.where(out, 0.0, weight)).stats
    if family == "kmeans":
        hard = replace(hard, inertia=0.0)  # labels alone say nothing of it
    close_sums(given_, hard, model, params, x, weight)


@pytest.mark.parametrize("family", FAMILIES)
@examples(30)
@given(data=st.data())
def test_statistics_are_a_vector_space(family, data):
    """Addition commutes to the bit, minus undoes plus, and scaling distributes over sums to rounding."""
    model, params, x, weight, _ = data.draw(cases(family).filter(lambda case: case.x.shape[0] > 1))
    half = x.shape[0] // 2
    a, b = e_step(model, params, x[:half], None, weight[:half]).stats, e_step(model, params, x[half:]).stats
    same_bits(a + b, b + a)
    same_bits(2.0 * a, a + a)
    close_fields((a - a) + b, b, 0.0)
    tripled, apart = (a + b) * 3.0, a * 3.0 + b * 3.0
    close_sums(tripled, apart, model, params, x, np.full(x.shape[0], 9.0))
    back, first, second = (pack(value).arrays for value in ((a + b) - b, a, b))
    for name, value in first.items():
        assert (np.abs(back[name] - value) <= 2 * EPS * (np.abs(value) + np.abs(second[name]))).all(), name
    summed = a + b
    a += b
    same_bits(a, summed)
    assert a.nbytes == sum(value.nbytes for value in pack(a).arrays.values())


@examples(100)
@given(
    score=st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, np.inf, np.nan]), min_size=1, max_size=200),
    limit=st.integers(1, 11),
    sparse=st.booleans(),
    seed=seeds,
    data=st.data(),
)
def test_lowest_rows_merge_in_any_grouping_to_those_of_the_whole(score, limit, sparse, seed, data):
    """The best m of a union are the best m of the parts' best, with ties to the lowest row, however they are grouped."""
    rng, n, score = np.random.default_rng(seed), len(score), np.array(score)  # many ties, some rows left out
    x, weight, label = rng.normal(size=(n, 2)), rng.random(n), rng.integers(0, 3, n)
    rows = sp.csr_array(x) if sparse else x

    def of(part):
        return LowestRows.of(limit, score[part], part.start, rows[part], weight[part], label[part])

    whole = of(slice(0, n))
    expected = sorted((s, r) for s, r in zip(score, range(n), strict=True) if s < np.inf)[:limit]
    assert list(zip(whole.score, whole.row, strict=True)) == expected
    parts = [of(slice(a, b)) for a, b in pairwise(data.draw(cuts(n)))]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left + part
    for part in parts[-2::-1]:
        right = part + right
    for merged in (left, right, tree_sum(parts, lambda a, b: a + b)):
        same_bits(merged, whole)


@examples(200)
@given(shape=st.tuples(st.integers(1, 60), st.integers(1, 3)), data=st.data())
def test_representatives_merge_in_any_grouping_to_those_of_the_whole(shape, data):
    """Each component's best rows, by responsibility, then density, then row, are the same however rows are grouped."""
    (n, k), limit = shape, 5
    log_resp, log_joint = (
        data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from(values), fill=st.nothing()))
        for values in ([0.0, -0.5, -np.inf], [-1.0, -2.0, -3.0])
    )
    row, x = np.arange(n), np.random.default_rng(0).normal(size=(n, 2))

    def of(part):
        return Representatives.of(limit, row[part], log_resp[part], log_joint[part], x[part])

    whole = of(slice(0, n))
    for j in range(k):
        ranked = sorted(range(n), key=lambda i: (-log_resp[i, j], -log_joint[i, j], i))[:limit]
        assert whole.row[j].tolist() == ranked
        same_bits(whole.x[j], x[ranked])
    parts = [of(slice(a, b)) for a, b in pairwise(data.draw(cuts(n)))]
    left = parts[0]
    for part in parts[1:]:
        left = left + part
    same_bits(left, whole)
    same_bits(tree_sum(parts, lambda a, b: a + b), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_representatives_survive_chunks_without_weight(family):
    """Chunks in which no row counts take no representatives away from the others, wherever they come."""
    model, params, x, weight = any_problem(family, 5)
    third = x.shape[0] // 3
    for empty in (slice(0, third), slice(third, 2 * third), slice(2 * third, None)):
        w = weight.copy()
        w[empty] = 0.0
        cut, whole = (
            e_step(model, params, x, bounds, w, final=True).attached["representatives"]
            for bounds in ([0, third, 2 * third, x.shape[0]], None)
        )
        assert (w[cut.row] > 0).all()
        same_bits(cut.row, whole.row)


@pytest.mark.parametrize("scatter", ["matrix", "variances", "none"])
@examples(100)
@given(problem=gaussian_problems(), weighted=st.booleans(), seed=seeds)
def test_profiles_merge_to_that_of_the_whole(scatter, problem, weighted, seed):
    """Mean, covariance, extremes and sample of ragged chunks are NumPy's of all rows."""
    x, weight = problem["x"], problem["sample_weight"] if weighted else None
    job = ProfileJob(scatter, 7, seed)
    whole, parts = (sum_over(chunks_of(x, bounds, weight), [job])[0] for bounds in (None, problem["bounds"]))
    w = np.ones(len(x)) if weight is None else weight
    mean = np.average(x, axis=0, weights=w)
    for profile in (whole, parts):
        close(profile.total, w.sum(), len(x) * EPS)
        assert (np.abs(profile.mean - mean) <= 4 * len(x) * EPS * np.abs(x).max(axis=0)).all()
        assert profile.n_rows == len(x)
        same_bits(profile.low, x[w > 0].min(axis=0))
        same_bits(profile.high, x[w > 0].max(axis=0))
        if scatter != "none":
            covariance = np.atleast_2d(np.cov(x.T, ddof=0, aweights=w))
            scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
            expected = covariance if scatter == "matrix" else np.diag(covariance)
            scale = scale if scatter == "matrix" else np.diag(scale)
            assert (np.abs(profile.covariance - expected) <= 1e-9 * scale).all()
    same_bits(parts.sample, whole.sample)


@examples(50)
@given(problem=count_problems())
def test_profiles_of_counts_merge(problem):
    """The mean of sparse rows, and their sample, do not depend on the chunks either."""
    x, job = sp.csr_array(problem["counts"]), ProfileJob("none", 9, 0)
    whole, parts = (
        sum_over(chunks_of(x, bounds, problem["sample_weight"]), [job])[0] for bounds in (None, problem["bounds"])
    )
    close(whole.mean, np.average(problem["counts"], axis=0, weights=problem["sample_weight"]), 1e-12)
    close(parts.mean, whole.mean, 1e-12)
    same_bits(parts.sample, whole.sample)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(30)
@given(problem=gaussian_problems(n=40))
def test_gaussian_statistics_are_the_textbook_sums(covariance_type, problem):
    """sum_w, sum_x and sum_xx are the sums of r, r (x - shift) and r (x - shift)(x - shift)^T, written as loops."""
    model, params = gaussian(problem, covariance_type)
    x, w = problem["x"], problem["sample_weight"]
    stats = e_step(model, params, x, None, w).stats
    resp = np.exp(assigned(model, params, x).log_resp) * w[:, None]
    y = x - model.shift
    full = np.array(
        [sum(r * np.outer(row, row) for r, row in zip(resp[:, j], y, strict=True)) for j in range(problem["k"])]
    )
    diagonal = np.diagonal(full, axis1=1, axis2=2)
    lower = full[:, *np.tril_indices(x.shape[1])]
    expected = {"full": lower, "tied": full.sum(axis=0), "diag": diagonal, "spherical": diagonal.sum(axis=1)}
    close(stats.sum_w, resp.sum(axis=0), 1e-12)
    assert (np.abs(stats.component.sum_x - resp.T @ y) <= 1e-11 * np.abs(y).sum(axis=0) * w.max()).all()
    close(stats.component.sum_xx, expected[covariance_type], 1e-11)


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("n", [1, 3, 1039, 1040, 1041, 1072, 1073, 5000])
def test_lowest_positions_are_those_of_a_sort(n, limit):
    """Of few scores, which are cut once, and of many, cut twice; ties are all there, inf and NaN never."""
    score = np.random.default_rng(n).integers(0, 50, n) + 0.5
    score[::7], score[3::11] = np.inf, np.nan
    finite = np.sort(score[np.isfinite(score)])
    expected = np.flatnonzero(score <= finite[:limit][-1]) if len(finite) else np.empty(0, int)
    np.testing.assert_array_equal(lowest(score, limit), expected)
