"""Lloyd's compiled pass against the obvious one, at every size where it takes another way."""

import numpy as np
import pytest

from pipeline import KMeans, keyed
from pipeline.kernels import centers as kernel_centers
from pipeline.kernels import nearest, nearest_bounds
from pipeline.kernels.blocks import BLOCK, PART
from pipeline.kernels.centers import prepared
from pipeline.kernels.cpu import KERNELS
from pipeline.kernels.nearest import TILE, add_residuals
from pipeline.kernels.nearest_bounds import LEAST_ROWS, nearest_by_bounds


@pytest.fixture(autouse=True)
def _bounds_of_small_problems(monkeypatch):
    """Bounds also where preparing them takes longer than all distances."""
    monkeypatch.setattr(nearest_bounds, "LEAST_PRODUCTS", 0)


SIZES = [
    (n, d, k)
    for n in (1, TILE - 1, 2 * TILE + 3)
    for d, k in [
        (1, 1),
        (1, BLOCK),
        (2, BLOCK + 1),
        (4, 8),
        (16, 17),
        (17, 5),
        (64, 300),
        (100, 257),
        (2 * PART + 3, 8),
    ]
]


def problem(n, d, k, dtype, seed=0):
    """Rows of the dtype far from the origin, centres among and between them, weights with zeros, and a shift."""
    rng = np.random.default_rng([seed, n, d, k])
    x = (rng.normal(size=(n, d)) + 50.0).astype(dtype)
    centers = rng.normal(size=(k, d)) + 50.0
    return x, rng.uniform(0.1, 3.0, n) * (rng.random(n) > 0.2), centers, x.mean(axis=0, dtype=np.float64)


def distances(x, centers):
    """(n, k) squared distances in float64, row by row."""
    return np.stack([((row - centers) ** 2).sum(axis=1) for row in x.astype(np.float64)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_labels_are_those_of_a_nearest_centre(n, d, k, dtype):
    """The chosen centre's distance is exact, and no other's is lower by more than rounding in the rows' dtype."""
    x, weight, centers, shift = problem(n, d, k, dtype)
    label, score, *_ = KERNELS.lloyd_pass(x, weight, centers, shift)
    every, d2 = distances(x, centers), -score
    assert np.isneginf(d2[weight == 0]).all()
    d2[weight == 0] = every[weight == 0, label[weight == 0]]
    assert np.allclose(d2, every[np.arange(n), label], rtol=1e-13)
    size = (np.abs(x - shift).max() + np.abs(centers - shift).max()) ** 2 * d
    assert (d2 <= every.min(axis=1) + 4 * np.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_sums_are_those_of_the_labels(n, d, k, dtype):
    """Weights, rows about the shift, inertia and the key of labels are the plain float64 sums over rows."""
    x, weight, centers, shift = problem(n, d, k, dtype)
    label, score, sum_w, sum_x, inertia, key = KERNELS.lloyd_pass(x, weight, centers, shift, first=1000)
    expected_w, expected_x = np.zeros(k), np.zeros((k, d))
    for row, w, own in zip(x.astype(np.float64), weight, label, strict=True):
        expected_w[own] += w
        expected_x[own] += w * (row - shift)
    assert np.allclose(sum_w, expected_w, rtol=1e-13)
    assert np.allclose(sum_x, expected_x, rtol=1e-12, atol=1e-12 * max(weight.sum(), 1.0))
    assert np.isclose(inertia, -(weight[weight > 0] @ score[weight > 0]), rtol=1e-13)
    z = ((1000 + np.arange(n)) * k + label + 1).astype(np.uint64) * keyed._GOLDEN
    assert key == np.add.reduce(keyed._mix(z)[weight > 0], dtype=np.uint64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 3, 16, 17, 64, 2 * PART + 1])
def test_ties_go_to_the_lowest_centre(d, dtype):
    """Centres given several times, anywhere among the others, are chosen where they stand first."""
    x, weight, centers, shift = problem(700, d, 90, dtype)
    copies = np.concatenate([centers, centers[::-1], centers, centers[:1]])
    assert np.array_equal(
        KERNELS.lloyd_pass(x, weight, copies, shift).label, KERNELS.lloyd_pass(x, weight, centers, shift).label
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [3, 40, 2 * PART + 1])
def test_a_row_is_computed_alike_wherever_it_stands(d, dtype):
    """Its label and distance have the same bits alone, among other rows, and at other places of a tile."""
    x, weight, centers, shift = problem(600, d, 33, dtype)
    label, score, *_ = KERNELS.lloyd_pass(x, weight, centers, shift)
    for start in (1, 100, 255, 256, 599):
        part = KERNELS.lloyd_pass(np.ascontiguousarray(x[start:]), weight[start:], centers, shift)
        assert np.array_equal(part.label, label[start:])
        assert part.score.tobytes() == score[start:].tobytes()


def test_no_weights_are_ones():
    """None and ones are the same, to the bit."""
    x, _, centers, shift = problem(600, 7, 9, np.float32)
    plain, ones = (KERNELS.lloyd_pass(x, weight, centers, shift) for weight in (None, np.ones(600)))
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(plain, ones, strict=True))


def test_rows_without_weight_add_nothing():
    """Their labels are known, but the sums and the key are those of the others."""
    x, weight, centers, shift = problem(300, 5, 7, np.float64)
    label, _, sum_w, sum_x, inertia, _ = KERNELS.lloyd_pass(x, weight, centers, shift)
    kept = KERNELS.lloyd_pass(x[weight > 0], weight[weight > 0], centers, shift)
    assert (label >= 0).all()
    for one, other in zip((sum_w, sum_x, inertia), kept[2:5], strict=True):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_row_at_its_centre_has_distance_0():
    """No rounding is left where a row is its centre, however far from the origin."""
    x = np.random.default_rng(0).normal(1e6, 1.0, size=(50, 9)).astype(np.float32)
    label, score, *_ = KERNELS.lloyd_pass(x, None, x[:20].astype(np.float64), x.mean(axis=0, dtype=np.float64))
    assert np.array_equal(label[:20], np.arange(20))
    assert (score[:20] == 0).all()


def test_residuals_of_given_labels():
    """Sums about any points for labels that someone else chose."""
    x, weight, centers, _ = problem(100, 6, 4, np.float32)
    label = np.random.default_rng(0).integers(0, 4, 100).astype(np.int32)
    score, sum_w, sum_x = np.empty(100), np.zeros(4), np.zeros((4, 6))
    total = add_residuals(x, weight, label, centers, score, sum_w, sum_x)
    for k in range(4):
        own = label == k
        assert np.isclose(sum_w[k], weight[own].sum())
        assert np.allclose(sum_x[k], weight[own] @ (x[own].astype(np.float64) - centers[k]))
    assert (np.isinf(score) == (weight == 0)).all()
    assert np.isclose(total, -(weight[weight > 0] @ score[weight > 0]))


def clustered(seed, dtype, n=700, d=128, k=256):
    """Rows near a few points in a space of 128 features, and centres among the rows, of which two are the same and two nearly."""
    rng = np.random.default_rng(seed)
    x = (10.0 * rng.normal(size=(40, d))[rng.integers(40, size=n)] + rng.normal(size=(n, d)) + 3.0).astype(dtype)
    centers = x[rng.choice(n, k, replace=False)].astype(np.float64) + 0.1 * rng.normal(size=(k, d))
    centers[5], centers[7] = centers[k - 20], centers[k // 2] * (1 + 1e-7)
    return x, centers, x.mean(axis=0, dtype=np.float64)


def passes(monkeypatch, x, weight, centers, shift):
    """A pass with bounds, what these found, and a pass that computes all distances."""
    seen, bounded = [], nearest.nearest_by_bounds
    with monkeypatch.context() as patch:
        patch.setattr(nearest_bounds, "WORTH", np.inf)  # also where they take longer
        patch.setattr(nearest, "nearest_by_bounds", lambda *given: seen.append(bounded(*given)) or seen[-1])
        found = KERNELS.lloyd_pass(x, weight, centers, shift, first=9)
        patch.setattr(nearest, "nearest_by_bounds", lambda *given: None)
        every = KERNELS.lloyd_pass(x, weight, centers.copy(), shift, first=9)
    return found, seen[0], every


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(700, 128, 256), (513, 131, 259), (23000, 128, 300), (600, 33, 70), (600, 300, 65)]
)
def test_bounds_leave_labels_and_sums_as_they_are(monkeypatch, dtype, n, d, k):
    """The bits of a pass that computes all distances, ties and near ties included, whatever does not fill a vector, a block or a tile."""
    x, centers, shift = clustered(0, dtype, n, d, k)
    weight = np.where(np.arange(len(x)) % 7 == 0, 0.0, 1.5)
    found, label, every = passes(monkeypatch, x, weight, centers, shift)
    for ours, theirs in zip(found, every, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(label, every.label)
    assert (label == 5).any() and not (label == k - 20).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_leave_odd_rows_as_they_are(monkeypatch, dtype):
    """Rows with NaN, with infinities, and so large that their squares overflow have the labels that computing all distances gives, and so have those beside them."""
    x, centers, shift = clustered(1, dtype)
    x[3, 3], x[44, 0], x[45, 7], x[-1] = np.nan, np.inf, -np.inf, np.finfo(dtype).max / 4
    weight = np.isfinite(x).all(axis=1).astype(np.float64)
    with np.errstate(all="ignore"):
        _, label, every = passes(monkeypatch, x, weight, centers, shift)
    np.testing.assert_array_equal(label, every.label)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_chosen_centres_have_the_bits_of_all(monkeypatch, dtype):
    """Where many centres are as near as rounding can tell, Lloyd's own scores decide, one by one: the same numbers as block by block."""
    rng = np.random.default_rng(3)
    x, centers = rng.normal(size=(600, 131)).astype(dtype), rng.normal(size=(257, 131))
    centers[:200] = 0.3 * centers[0] * (1 + np.finfo(dtype).eps * rng.integers(-3, 4, (200, 131)))
    _, label, every = passes(monkeypatch, x, None, centers, np.zeros(131))
    np.testing.assert_array_equal(label, every.label)
    assert len(np.unique(label[label < 200])) > 20


def given(made):
    """The arguments of bounds beside the rows."""
    return made.reference, made.leading


def test_centres_are_prepared_once_for_each_array():
    """What is prepared is known by the array, for as long as it lives; an estimator whose centres change in place predicts anew."""
    x, centers, shift = clustered(2, np.float32)
    made = prepared(centers, shift, x.dtype)
    assert prepared(centers, shift, x.dtype) is made
    assert prepared(centers, shift + 1, x.dtype) is not made and prepared(centers.copy(), shift, x.dtype) is not made
    fitted = KMeans(2, init=x[:2], max_iter=1).fit(x[:50])
    before = fitted.predict(x)
    fitted.cluster_centers_[:] = fitted.cluster_centers_[::-1].copy()
    np.testing.assert_array_equal(fitted.predict(x), 1 - before)


def test_bounds_give_way_where_they_rule_out_little():
    """Rows without structure, whose bounds are near one another, are left to the pass that computes all distances."""
    rng = np.random.default_rng(0)
    x, centers = rng.normal(size=(700, 128)).astype(np.float32), rng.normal(size=(256, 128))
    assert nearest_by_bounds(x, *given(prepared(centers, np.zeros(128), x.dtype))) is None
    x, centers, shift = clustered(1, np.float32, d=784, k=600)
    assert nearest_by_bounds(x, *given(prepared(centers, shift, x.dtype))) is not None


def test_few_rows_form_no_bounds(monkeypatch):
    """Directions that too few rows would use took half of a pass of hierarchical K-means; distances are the same without them."""
    x, centers, shift = clustered(1, np.float32)
    every = KERNELS.lloyd_pass(x, None, centers, shift)

    def refuse(*_):
        raise AssertionError("bounds were formed")

    monkeypatch.setattr(kernel_centers, "leading_of", refuse)
    few = LEAST_ROWS - 1
    np.testing.assert_array_equal(KERNELS.lloyd_pass(x[:few], None, centers.copy(), shift).label, every.label[:few])
    with pytest.raises(AssertionError, match="bounds were formed"):
        KERNELS.lloyd_pass(x[: few + 1], None, centers.copy(), shift)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_not_read_are_not_doubtful(dtype):
    """What the largest centre rules out is what each row's own distance to the reference would."""
    rng, limit = np.random.default_rng(0), 1e-3
    centers = rng.normal(size=(3, 5)).astype(dtype)
    label, reference = rng.integers(3, size=3000), rng.normal(size=5).astype(dtype)
    x = (centers[label] + rng.normal(size=(3000, 5)) * 10 ** rng.uniform(-4, 1, (3000, 1))).astype(dtype)
    score = -np.square(x.astype(np.float64) - centers[label]).sum(axis=1)
    largest = float(np.square(centers - reference).sum(axis=1).max())
    found, read = (nearest._are_doubtful(x, reference, score, limit, each) for each in (largest, np.inf))
    np.testing.assert_array_equal(found, read)
    assert 100 < found.sum() < 2900


def test_little_to_compute_forms_no_bounds(monkeypatch):
    """Bounds of 100 centres in 64 features took three times as long to prepare as a pass over 600 rows takes."""
    monkeypatch.setattr(nearest_bounds, "LEAST_PRODUCTS", 10**9)

    def refuse(*_):
        raise AssertionError("bounds were formed")

    monkeypatch.setattr(kernel_centers, "leading_of", refuse)
    x, centers, shift = clustered(1, np.float32, d=64)
    KERNELS.lloyd_pass(x, None, centers, shift)
