"""What must not matter: where the origin is, which unit a feature has, which order features and components come in."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.packing import pack
from pipeline.kernels.cpu import KERNELS
from pipeline.models import schema
from tests.laws.common import (
    EPS,
    FAMILIES,
    TYPES,
    cases,
    chunks_of,
    close,
    close_params,
    e_step,
    examples,
    fit,
    gaussian,
    gaussian_mixture,
    job,
    kmeans,
    log_det_rounding,
    multinomial,
)
from tests.problems import count_problem, gaussian_problems, kmeans_problem, kmeans_problems, seeds
from tests.reference import kmeans_lloyd


def offsets(d):
    """(d,) whole numbers up to a million."""
    return hnp.arrays(np.float64, d, elements=st.integers(-(10**6), 10**6), fill=st.nothing())


def fitted(problem, covariance_type, n_iter=3, weight=None, **options):
    """Parameters after n_iter iterations; problems with a reset are left out."""
    model, params = gaussian(problem, covariance_type, **options)
    run, resets = fit(model, params, chunks_of(problem["x"], None, weight), n_iter)
    assume(not resets)
    return run


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(40)
@given(problem=gaussian_problems(max_offset=0.0), data=st.data())
def test_translation_moves_only_means(covariance_type, problem, data):
    """At a million deviations from the origin: weights, covariances and log-likelihood stay, means move along.

    The offset is on the grid of the moved rows, so that moving them is exact, and all that differs is our own doing.
    """
    grid = 2.0 ** np.ceil(np.log2(problem["scale"])) * 2.0**-26  # rows on a grid keep every bit when moved by 1e6 sd
    x = np.round(problem["x"] / grid) * grid
    offset = data.draw(offsets(problem["d"])) * problem["scale"]
    offset = np.round(offset / grid) * grid
    means = np.round(problem["means"] / grid) * grid
    here = fitted({**problem, "x": x, "means": means}, covariance_type, reg_covar=0.0)
    there = fitted({**problem, "x": x + offset, "means": means + offset}, covariance_type, reg_covar=0.0)
    # A mean out there is known to eps of the offset, 1e6 sd x 2e-16 = 2e-10 sd, and everything else follows from it.
    close(there.params.weights, here.params.weights, 1e-7)
    close(there.params.theta.covariances, here.params.theta.covariances, 1e-7)
    close(there.log_likelihood, here.log_likelihood, 1e-7)
    assert (np.abs(there.params.theta.means - offset - here.params.theta.means) <= 1e-7 * problem["scale"]).all()


@examples(100)
@given(problem=kmeans_problems(generic=True), data=st.data())
def test_translation_moves_only_centres(problem, data):
    """K-means a million deviations away gives the same labels and inertia, where no row ties."""
    offset = data.draw(offsets(problem["d"]))
    x = np.round(problem["x"] * 2**20) / 2**20
    centers = np.round(problem["centers"] * 2**20) / 2**20
    model, params = kmeans({**problem, "x": x, "centers": centers})
    moved, moved_params = kmeans({**problem, "x": x + offset, "centers": centers + offset})
    here, _ = fit(model, params, chunks_of(x), 4)
    there, _ = fit(moved, moved_params, chunks_of(x + offset), 4)
    assert abs(there.objective - here.objective) <= 1e-8 * abs(here.objective) + 1e-28 * (x**2).sum()
    assert np.abs(there.params.centers - offset - here.params.centers).max() <= 1e-8


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
@examples(40)
@given(problem=gaussian_problems(k=1))
def test_one_component_is_the_closed_form(covariance_type, weighted, problem):
    """K = 1 is the sample's mean and covariance after one M-step, from anywhere."""
    weight = problem["sample_weight"] if weighted else None
    run = fitted(problem, covariance_type, 1, weight, reg_covar=0.0)
    x, d = problem["x"], problem["d"]
    full = np.cov(x.T, ddof=0, aweights=weight).reshape(d, d)
    expected = {"full": full[None], "tied": full, "diag": np.diag(full)[None], "spherical": [np.trace(full) / d]}
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.outer(np.diag(full), np.diag(full)))
    assert (np.abs(run.params.theta.means[0] - mean) <= 1e-13 * (np.abs(mean) + 100 * problem["scale"])).all()
    error = np.abs(run.params.theta.covariances - expected[covariance_type])
    size = {"full": scale, "tied": scale, "diag": np.diag(scale)[None], "spherical": np.trace(scale) / d}
    assert (error <= 1e-11 * size[covariance_type]).all()
    assert run.params.weights == 1.0


def test_one_kmeans_centre_is_the_mean():
    """K = 1 ends at the mean with the total scatter as inertia, after two iterations."""
    problem = kmeans_problem(4, k=1)
    model, params = kmeans(problem)
    run, _ = fit(model, params, chunks_of(problem["x"]), 10)
    close(run.params.centers[0], problem["x"].mean(axis=0), 1e-13)
    close(-run.objective, ((problem["x"] - problem["x"].mean(axis=0)) ** 2).sum(), 1e-12)
    assert len(run.history) == 2


def test_one_topic_is_the_closed_form():
    """K = 1: word probabilities are the total counts + concentration - 1, normalised."""
    problem = count_problem(4, k=1)
    model, params = multinomial(problem, concentration=1.7)
    run, _ = fit(model, params, chunks_of(sp.csr_array(problem["counts"])), 1)
    totals = problem["counts"].sum(axis=0) + 0.7
    close(np.exp(run.params.theta.log_prob[0]), totals / totals.sum(), 1e-13)


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("family", FAMILIES)
@examples(25)
@given(data=st.data())
def test_weight_is_how_often_a_row_is_there(family, assignment, data):
    """From explicit starts, weight 2 is the row twice and weight 0 the row left out: same history, same parameters."""
    options = {} if family == "kmeans" else {"assignment": assignment}
    model, params, x, *_ = data.draw(cases(family, **options))
    times = np.random.default_rng(data.draw(seeds)).integers(0, 4, size=x.shape[0])
    times[0] = 2
    repeated = x[np.repeat(np.arange(x.shape[0]), times)]
    weighted, events = fit(model, params, chunks_of(x, None, times.astype(float)), 4)
    copied, again = fit(model, params, chunks_of(repeated), 4)
    assume(not events)
    assert not again
    assert len(weighted.history) == len(copied.history)
    assert weighted.stop_reason.split()[0] == copied.stop_reason.split()[0]
    close_params(model, weighted.params, copied.params, 1e-9)
    rounding = log_det_rounding(model, copied.params, float(times.sum()))  # a few rows nearly on a line
    assert abs(weighted.objective - copied.objective) <= 1e-9 * abs(copied.objective) + rounding
    close(weighted.history[-1].weight, copied.history[-1].weight, 1e-12)
    close(weighted.history[-1].traced["n_effective"], copied.history[-1].traced["n_effective"], 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@examples(25)
@given(data=st.data())
def test_a_row_of_weight_zero_is_absent(family, data):
    """Whatever such a row holds, even one that no component can produce, the sums are those without it."""
    options = {"concentration": 1.0} if family == "multinomial" else {}
    model, params, x, *_ = data.draw(cases(family, **options).filter(lambda case: case.x.shape[0] > 1))
    n = x.shape[0]
    if family == "multinomial":
        dense = x.toarray()
        dense[0] = 0
        dense[0, 0] = 3
        log_prob = params.theta.log_prob.copy()
        log_prob[:, 0] = -np.inf
        log_prob -= np.log(np.exp(log_prob).sum(axis=1, keepdims=True))
        params = model.params_from_arrays({"weights": params.weights, "log_prob": log_prob})
        dense[1:, 0] = 0
        x = sp.csr_array(dense)
    else:
        x = x.copy()
        x[0] = 1e6 * np.abs(x).max()
    weight = np.ones(n)
    weight[0] = 0.0
    with_row = e_step(model, params, x, None, weight, final=True)
    without = job(model, params, final=True)(chunks_of(x[1:])[0], KERNELS)
    found = pack(with_row.totals).arrays
    for name, expected in pack(without.totals).arrays.items():
        size = np.abs(expected).max() + n * np.abs(np.asarray(x[1:].max())) ** 2
        assert np.abs(found[name] - expected).max() <= 64 * EPS * size, name
    for name in ("outliers", "representatives"):
        np.testing.assert_array_equal(with_row.attached[name].row, without.attached[name].row + 1)


@examples(150)
@given(problem=kmeans_problems(generic=True), weighted=st.booleans())
def test_hard_em_with_equal_fixed_spheres_is_kmeans(problem, weighted):
    """Weights and one spherical covariance fixed: the means of hard EM are the centres of Lloyd's, each iteration."""
    x, k = problem["x"], problem["k"]
    weight = np.ceil(problem["sample_weight"]) if weighted else None
    fixed = ("weights", "covariances")
    model = gaussian_mixture(k, x.mean(axis=0), "spherical", reg_covar=0.0, assignment="hard", fixed=fixed)
    start = {"weights": np.full(k, 1 / k), "means": problem["centers"], "covariances": np.full(k, 4.0)}
    run, resets = fit(model, model.params_from_arrays(start), chunks_of(x, None, weight), 5)
    assume(not resets)
    lloyd, lloyd_params = kmeans(problem)
    other, _ = fit(lloyd, lloyd_params, chunks_of(x, None, weight), 5)
    close(run.params.theta.means, other.params.centers, 1e-11)
    close(run.params.theta.means, kmeans_lloyd(x, problem["centers"], 5, 0.0, weight).centers, 1e-11)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(40)
@given(problem=gaussian_problems(), data=st.data())
def test_features_and_components_have_no_order(covariance_type, problem, data):
    """Features permuted and components permuted: the same fit, permuted."""
    f, c = (np.array(data.draw(st.permutations(range(problem[size])))) for size in ("d", "k"))
    picks = {"full": np.ix_(c, f, f), "tied": np.ix_(f, f), "diag": np.ix_(c, f), "spherical": c}
    pick = picks[covariance_type]
    other = {
        **problem,
        "x": problem["x"][:, f],
        "weights": problem["weights"][c],
        "means": problem["means"][np.ix_(c, f)],
        "covariances": {covariance_type: problem["covariances"][covariance_type][pick]},
    }
    plain, permuted = fitted(problem, covariance_type), fitted(other, covariance_type)
    close(permuted.params.weights, plain.params.weights[c], 1e-8)
    reach = np.abs(problem["x"]).max(axis=0)
    assert (np.abs(permuted.params.theta.means - plain.params.theta.means[np.ix_(c, f)]) <= 1e-9 * reach[f]).all()
    close(permuted.params.theta.covariances, plain.params.theta.covariances[pick], 1e-8)
    model = plain.model
    reordered = model.params(**schema.selected(model.fields, model.arrays(plain.params), c))
    close(reordered.theta.means, plain.params.theta.means[c], 0.0)
    densities = (model.log_joint(params, problem["x"], KERNELS) for params in (reordered, plain.params))
    close(next(densities), next(densities)[:, c], 1e-13)


@pytest.mark.parametrize("covariance_type", TYPES)
@examples(40)
@given(problem=gaussian_problems(), power=st.floats(-20, 20), data=st.data())
def test_units_scale_the_answer(covariance_type, problem, power, data):
    """Other units: means and covariances scale with them, the log-likelihood moves by the log-Jacobian."""
    d, one = problem["d"], 10.0**power
    powers = data.draw(st.lists(st.floats(-3, 3), min_size=d, max_size=d))
    scales(
        problem, covariance_type, np.full(d, one) if covariance_type == "spherical" else one * 10.0 ** np.array(powers)
    )


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag"])
@examples(20)
@given(problem=gaussian_problems(d=3))
def test_a_feature_in_large_units_leaves_the_others_their_digits(covariance_type, problem):
    """Squares in one feature are 1e18 times those in another: what they lose in rounding is not added to that one."""
    scales(problem, covariance_type, np.array([1e-4, 1.0, 1e5]))


def scales(problem, covariance_type, unit):
    """A fit in other units (d,) is the fit, scaled."""
    one = unit[0]
    square = {"full": np.outer(unit, unit), "tied": np.outer(unit, unit), "diag": unit**2, "spherical": one**2}
    scaled = {
        **problem,
        "x": problem["x"] * unit,
        "means": problem["means"] * unit,
        "covariances": {covariance_type: problem["covariances"][covariance_type] * square[covariance_type]},
    }
    plain, other = (fitted(p, covariance_type, reg_covar=0.0) for p in (problem, scaled))
    close(other.params.weights, plain.params.weights, 1e-8)
    reach = np.abs(problem["x"]).max(axis=0)
    assert (np.abs(other.params.theta.means / unit - plain.params.theta.means) <= 1e-9 * reach).all()
    close(other.params.theta.covariances / square[covariance_type], plain.params.theta.covariances, 1e-8)
    jacobian = problem["n"] * np.log(unit).sum()
    assert abs(other.log_likelihood + jacobian - plain.log_likelihood) <= 1e-9 * (
        abs(plain.log_likelihood) + abs(jacobian)
    )


@examples(60)
@given(one=gaussian_problems(k=1), line=gaussian_problems(d=1))
def test_types_agree_where_they_must(one, line):
    """One component: tied is full. One feature: full, diag and spherical are the same model."""
    close(fitted(one, "tied").params.theta.covariances, fitted(one, "full").params.theta.covariances[0], 1e-9)
    full, diag, spherical = (fitted(line, t) for t in ("full", "diag", "spherical"))
    close(full.params.theta.covariances.ravel(), diag.params.theta.covariances.ravel(), 1e-9)
    close(spherical.params.theta.covariances, diag.params.theta.covariances.ravel(), 1e-9)
    close(spherical.log_likelihood, full.log_likelihood, 1e-10)
