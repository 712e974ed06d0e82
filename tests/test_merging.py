"""Merges of two components by their statistics, and resets to half of a component: what they cost and what they rescue."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp
from scipy.stats import gamma, multivariate_normal

from pipeline.em.merging import MergeCosts, least_costs, narrowed
from pipeline.em.moves import improve, refine
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import MemoryRows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.bernoulli import Bernoulli
from pipeline.models.families.columns import IncompleteMeasures
from pipeline.models.families.poisson import Poisson
from pipeline.models.families.student_t import StudentT
from pipeline.models.families.vmf import VonMisesFisher
from pipeline.models.mixture import Mixture
from pipeline.models.moments import halved
from tests.laws.common import chunks_of, close, close_fields, fit, gaussian_mixture, multinomial_mixture
from tests.reference import gaussian_log_joint

ALONE = SimpleNamespace(map=map)


def in_memory(x, weight=None):
    """Rows in memory, on this thread."""
    return MemoryRows(x, weight, ALONE)


def large_and_small(seed=0):
    """A cluster of 3000 rows, long in one direction, and one of 60 rows beside it; the labels with the large one cut in two."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(3000, 2)) * [6, 1], rng.normal(size=(60, 2)) * 0.5 + [0, 4]])
    label = np.where(np.arange(3060) >= 3000, 2, (x[:, 0] > 0).astype(int))
    return x, label


@pytest.mark.parametrize("weighted", [False, True])
def test_the_cost_of_a_merge_is_what_the_rows_lose(weighted):
    """By the definition, with densities of scipy, of all pairs at once; the moments are those of both components."""
    x, label = large_and_small()
    weight = np.random.default_rng(1).random(len(x)) if weighted else None
    model = gaussian_mixture(3, x.mean(axis=0))
    params = model.m_step(model.label_statistics(x, label, weight), None)
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    joint = [np.where(label == j, i, label) for i, j in pairs]
    alone = [model.m_step(model.label_statistics(x, each, weight), None) for each in joint]
    parts = [
        (one.weights[i], one.theta.means[i], one.theta.covariances[i]) for one, (i, _) in zip(alone, pairs, strict=True)
    ]
    more = [np.stack(part) for part in zip(*parts, strict=True)]
    arrays = {
        name: np.concatenate([model.arrays(params)[name], m])
        for name, m in zip(("weights", "means", "covariances"), more, strict=True)
    }
    wide = model.with_components(6)
    cost = MergeCosts(wide, wide.params(**arrays), pairs)(chunks_of(x, None, weight)[0], KERNELS)
    log_joint = gaussian_log_joint(x, arrays["weights"], arrays["means"], arrays["covariances"], "full")
    for p, pair in enumerate(pairs):
        rest = np.append(np.delete(np.arange(3), pair), 3 + p)
        lost = logsumexp(log_joint[:, :3], axis=1) - logsumexp(log_joint[:, rest], axis=1)
        assert cost[p] == pytest.approx(lost.sum() if weight is None else weight @ lost, rel=1e-8)


def test_two_halves_of_a_cluster_are_merged_and_a_small_cluster_stays():
    """Removing the small cluster would cost less than removing either half; merging the halves costs next to nothing."""
    x, label = large_and_small()
    model, rows = gaussian_mixture(3, x.mean(axis=0)), in_memory(x)
    params = model.m_step(model.label_statistics(x, label), None)
    removals = model.removal_costs(params, x, None, KERNELS).cost
    assert removals.argmin() == 2 and removals.min() > 100
    [cheapest] = least_costs(model, params, rows, 1)
    assert cheapest < 0.5 * removals.min()
    two, merged = narrowed(model, params, 2, rows)
    assert two.n_components == 2
    truth = two.m_step(two.label_statistics(x, (label == 2).astype(int)), None)
    order = np.argsort(-merged.weights)
    close(merged.weights[order], truth.weights, 0.02)
    close(merged.theta.means[order], truth.theta.means, 0.05)


FAMILIES = {
    "gaussian": lambda d: gaussian_mixture(3, np.zeros(d), "full"),
    "diag": lambda d: gaussian_mixture(3, np.zeros(d), "diag"),
    "multinomial": lambda d: multinomial_mixture(3, d),
    "poisson": lambda d: Mixture(Poisson(3, np.zeros(d))),
    "bernoulli": lambda d: Mixture(Bernoulli(3, np.zeros(d))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_statistics_of_a_pair_are_those_of_its_rows_together(family):
    """For each family that merges, and each pair."""
    x = np.random.default_rng(0).integers(0, 2, size=(30, 3)).astype(np.float64)
    model, label = FAMILIES[family](3), np.arange(30) % 3
    rows = sp.csr_array(x) if family == "multinomial" else x
    stats = model.label_statistics(rows, label)
    found = model.component.of_pairs(stats.component, np.array([0, 1]), np.array([2, 2]))
    for p, i in enumerate((0, 1)):
        both = model.with_components(1).label_statistics(rows, np.where(np.isin(label, [i, 2]), 0, -1))
        for name, value in vars(found).items():
            expected = getattr(both.component, name)
            if value is not None and np.ndim(value):
                close(value[p], expected[0], 1e-12, name)


WITHOUT_NAN = {
    **FAMILIES,
    "spherical": lambda d: gaussian_mixture(3, np.zeros(d), "spherical"),
    "vmf": lambda d: Mixture(VonMisesFisher(3, d)),
}
WITH_NAN = {
    "measures": lambda d: Mixture(IncompleteMeasures(3, np.zeros(d), covariance_type="diag")),
    "missing counts": lambda d: Mixture(Poisson(3, np.full(d, 0.5)).with_missing()),
    "missing chances": lambda d: Mixture(Bernoulli(3, np.full(d, 0.5)).with_missing()),
}


@pytest.mark.parametrize("family", [*WITHOUT_NAN, *WITH_NAN])
def test_what_pairs_are_screened_by_are_sums_of_log_densities(family):
    """Of each component's rows, from its statistics, for the parameters of other rows: constants cancel in the difference of two."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(60, 3)).astype(np.float64)
    if family == "vmf":
        x = rng.normal(size=x.shape)
        x /= np.linalg.norm(x, axis=1)[:, None]
    if family in WITH_NAN:
        x[rng.random(x.shape) < 0.2] = np.nan
    rows, model = sp.csr_array(x) if family == "multinomial" else x, (WITHOUT_NAN | WITH_NAN)[family](3)
    label, component = np.arange(60) % 3, model.component
    stats = model.label_statistics(rows, label)
    found, expected = [], []
    for _ in range(2):
        theta = model.m_step(model.label_statistics(rows, rng.integers(3, size=60)), None).theta
        found.append(component.expected_log_densities(theta, stats.sum_w, stats.component))
        own = component.log_joint(theta, np.zeros(3), rows, KERNELS)[np.arange(60), label]
        expected.append(np.bincount(label, own))
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1], rtol=1e-9, atol=1e-9)


def test_student_t_pairs_are_screened_by_rows_and_their_precisions():
    """Rows of a start have precision 1: N(x | mu, Sigma) Gamma(1 | nu/2, nu/2), by scipy's densities."""
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(60, 3)), np.arange(60) % 3
    model, df = Mixture(StudentT(3, np.zeros(3))), np.array([2.0, 5.0, 30.0])
    stats = model.label_statistics(x, label)
    theta = replace(model.m_step(stats, None).theta, df=df)
    found = model.component.expected_log_densities(theta, stats.sum_w, stats.component)
    for k in range(3):
        of_rows = multivariate_normal(theta.means[k], theta.covariances[k]).logpdf(x[label == k]).sum()
        assert found[k] == pytest.approx(of_rows + 20 * gamma(df[k] / 2, scale=2 / df[k]).logpdf(1.0), rel=1e-9)


def test_moves_repair_a_large_cluster_cut_in_two():
    """Two components share a large cluster and one covers two small ones: a split paid for by a merge, in one call."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=(4000, 2)) * [6, 1], *(rng.normal(size=(150, 2)) * 0.5 + [m, 6] for m in (-3, 3))]
    )
    label = np.where(np.arange(len(x)) >= 4000, 2, (x[:, 0] > 0).astype(int))
    model, rows, limits = gaussian_mixture(3, x.mean(axis=0)), in_memory(x), Limits(15, 1e-5)
    start = refine(model, model.m_step(model.label_statistics(x, label), None), rows, limits)
    run, moved = improve(start, rows, limits)
    true = np.repeat([0, 1, 2], [4000, 150, 150])
    best = refine(model, model.m_step(model.label_statistics(x, true), None), rows, limits)
    assert moved and run.objective > best.objective - 1.0 and run.objective > start.objective + 50
    assert all(type(many) is int for many in moved)  # model.zarr stores them as JSON


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_a_reset_component_becomes_half_of_the_largest(covariance_type):
    """With the moments of half a Gaussian; ten iterations later it has rows enough, and no reset is made twice."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(600, 3)), rng.normal(size=(900, 3)) * [1, 1, 4] + [20, 0, 0]])
    model = gaussian_mixture(3, x.mean(axis=0), covariance_type)
    far = {"weights": [0.4, 0.5, 0.1], "means": [[0.0, 0, 0], [20, 0, 0], [1e4, 0, 0]]}
    widths = model.arrays(model.m_step(model.label_statistics(x, np.repeat([0, 1], [600, 900])), None))["covariances"]
    if covariance_type != "tied":
        widths[2] = np.eye(3) if covariance_type == "full" else 1.0
    run, events = fit(model, model.params_from_arrays({**far, "covariances": widths}), chunks_of(x), 12)
    assert [(event.iteration, event.reset.component, event.reset.done) for event in events] == [(0, 2, True)]
    assert (run.history[10].traced["n_effective"] >= 4 * model.least_rows).all()
    assert run.objective > run.history[0].objective


def test_halves_have_the_moments_of_half_a_gaussian():
    """By sampling: the mean of the halves is the component's, and so is the variance of both together."""
    model = gaussian_mixture(2, np.zeros(2), "full")
    covariance = np.array([[4.0, 1.0], [1.0, 2.0]])
    params = model.params(
        weights=np.full(2, 0.5), means=np.array([[1.0, 2.0], [9.0, 9.0]]), covariances=np.stack([covariance] * 2)
    )
    theta = halved(model.component, params.theta, {1: 0})
    close(theta.means.mean(axis=0), [1.0, 2.0], 1e-12)
    apart = 0.5 * (theta.means[1] - theta.means[0])
    close(theta.covariances[0] + np.outer(apart, apart), covariance, 1e-12)
    close_fields(SimpleNamespace(c=theta.covariances[0]), SimpleNamespace(c=theta.covariances[1]), 0.0)
    drawn = np.random.default_rng(0).multivariate_normal([0, 0], covariance, 200_000)
    side = drawn[drawn @ apart > 0]
    close(side.mean(axis=0), apart, 0.02)
