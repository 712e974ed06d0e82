"""Births: components where several share the place of a small cluster, which no split of a single one finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit, logsumexp

from pipeline.em import moves
from pipeline.em.births import BirthPass, births, have_births
from pipeline.em.moves import improve, refine
from pipeline.em.stopping import Limits
from pipeline.engine.memory_rows import BLOCK_ROWS, MemoryRows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.covariance import from_covariance
from tests.laws.common import chunks_of, close, gaussian_mixture, multinomial_mixture, same_bits
from tests.reference import gaussian_log_joint

LIMITS = Limits(15, 1e-5)


def in_memory(x, weight=None):
    """Rows in memory, on this thread."""
    return MemoryRows(x, weight, SimpleNamespace(map=map))


def small_among_large(seed=1, large=1500, small=40):
    """Rows of four wide clusters, a fifth far away and a narrow one in the middle of the four, in 4 dimensions, and their labels."""
    rng = np.random.default_rng(seed)
    corners = [[2.2, 2.2, 0, 0], [-2.2, 2.2, 0, 0], [2.2, -2.2, 0, 0], [-2.2, -2.2, 0, 0], [0, 0, 30, 0]]
    parts = [rng.normal(size=(large, 4)) + corner for corner in corners]
    x = np.concatenate([*parts, 0.25 * rng.normal(size=(small, 4))])
    label = np.repeat(np.arange(6), [*[large] * 5, small])
    order = rng.permutation(len(x))
    return x[order], label[order]


def cut_in_two(x, label):
    """Labels that leave the small cluster to the large ones, and cut the one far away in two."""
    quarter = 2 * (x[:, 1] < 0) + (x[:, 0] < 0)
    return np.where((label == 4) & (x[:, 3] > 0), 5, np.where(label == 5, quarter, label))


@pytest.mark.parametrize("seed", [3, 6, 8])
def test_a_small_cluster_that_large_ones_share_is_found(seed):
    """By moves with births, up to the optimum that EM from the truth has; splits alone miss it."""
    x, label = small_among_large(seed)
    model, rows = gaussian_mixture(6, x.mean(axis=0)), in_memory(x)
    start, best = (
        refine(model, model.m_step(model.label_statistics(x, each), None), rows, Limits(300, 1e-7))
        for each in (cut_in_two(x, label), label)
    )
    assert start.objective < best.objective - 30
    run, moved = improve(start, rows, LIMITS)
    assert moved and run.objective > best.objective - 1.0
    all_stages, moves.STAGES = moves.STAGES, moves.STAGES[:1]
    try:
        assert improve(start, rows, LIMITS)[0].objective < best.objective - 30
    finally:
        moves.STAGES = all_stages


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pass_of_births_is_partial_em(kind, weighted):
    """Gains, soft counts and moments about the means by the definition, with densities of scipy."""
    x, label = small_among_large(large=150, small=20)
    weight = np.random.default_rng(1).random(len(x)) if weighted else None
    model = gaussian_mixture(6, x.mean(axis=0), kind)
    params = model.m_step(model.label_statistics(x, cut_in_two(x, label), weight), None)
    born = replace(model.component, n_components=2)
    means, shares = np.array([[0.0, 0, 0, 0], [2.0, 2, 0, 0]]), np.array([0.01, 0.1])
    covariances = from_covariance(born.shape, np.diag([0.3, 0.4, 0.5, 0.6]), 2)
    theta = born.theta(means=means, covariances=covariances)
    [rows] = chunks_of(x, None, weight)
    found = BirthPass(model, params, born, theta, shares)(rows, KERNELS)
    log_f = logsumexp(gaussian_log_joint(x, params.weights, params.theta.means, params.theta.covariances, kind), axis=1)
    log_phi = gaussian_log_joint(x, np.ones(2), means, covariances, kind)
    count = np.ones(len(x)) if weight is None else weight
    for k in range(2):
        odds = np.log(shares[k] / (1 - shares[k])) + log_phi[:, k] - log_f
        resp, y = count * expit(odds), x - means[k]
        gain = np.logaddexp(log_f + np.log1p(-shares[k]), np.log(shares[k]) + log_phi[:, k]) - log_f
        assert found.gain[k] == pytest.approx(count @ gain, abs=len(x) * np.exp(-14.0))
        assert found.sum_w[k] == pytest.approx(resp.sum(), rel=1e-4)
        close(found.sum_x[k], resp @ y, 1e-3)
        square = {"full": (y.T * resp) @ y, "diag": resp @ y**2, "spherical": np.array((resp @ y**2).sum())}[kind]
        close(found.sum_xx[k], square[np.tril_indices(4)] if kind == "full" else square, 1e-3)


def test_threads_do_not_change_a_bit_of_births():
    """Gains and arrays, on one thread and on three."""
    x, label = small_among_large(large=BLOCK_ROWS, small=300)
    model = gaussian_mixture(6, x.mean(axis=0))
    params = model.m_step(model.label_statistics(x, cut_in_two(x, label)), None)
    found = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            found.append(births(model, params, MemoryRows(x, None, pool)))
    assert found[0] and [birth.gain for birth in found[0]] == [birth.gain for birth in found[1]]
    for one, other in zip(*found, strict=True):
        same_bits(one.arrays, other.arrays)


def test_the_best_birth_is_the_cluster_that_is_missing():
    """Its mean and its rows; its gain is no more than the whole mixture then gains."""
    x, label = small_among_large()
    model, rows = gaussian_mixture(6, x.mean(axis=0)), in_memory(x)
    start = refine(model, model.m_step(model.label_statistics(x, cut_in_two(x, label)), None), rows, LIMITS)
    best = births(model, start.params, rows)[0]
    assert np.abs(best.arrays["means"][0]).max() < 0.2
    assert 20 < best.arrays["weights"][0] * len(x) < 80
    arrays = {name: np.concatenate([value, best.arrays[name]]) for name, value in model.arrays(start.params).items()}
    arrays["weights"] /= arrays["weights"].sum()
    wide = model.with_components(7)
    found = refine(wide, wide.params_from_arrays(arrays), rows, LIMITS)
    assert 0 < best.gain <= found.objective - start.objective + 1.0


def test_models_without_means_and_covariances_of_their_own_have_no_births():
    """Nor those of which a part is fixed, or whose rows belong to one component entirely."""
    mixture = gaussian_mixture(3, np.zeros(2))
    assert have_births(mixture)
    assert not have_births(mixture.with_components(1))
    assert not have_births(replace(mixture, assignment="hard"))
    assert not have_births(gaussian_mixture(3, np.zeros(2), "tied"))
    assert not have_births(multinomial_mixture(3, 4))
