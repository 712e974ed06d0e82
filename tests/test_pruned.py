"""E-steps that skip pairs whose responsibility rounds to nothing: bounds hold, results stay, and overlap falls back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.kernels import bounds, gaussian, pruned, skipping_costs
from pipeline.kernels.arena import Arena
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.families.student_t import StudentT
from pipeline.models.mixture import Mixture

K, D, N = 52, 40, 600  # all pairs are computed by matrix products


def problem(
    family: Any, seed: int = 0, apart: float = 2.0, k: int = K, d: int = D, n: int = N
) -> tuple[Mixture, Any, Array]:
    """A model, its parameters, and rows drawn from it. apart : deviation of the means."""
    rng = np.random.default_rng(seed)
    means = 3.0 + apart * rng.standard_normal((k, d))
    roots = rng.standard_normal((k, d, d)) * np.exp(rng.normal(size=(k, d)))[:, None, :] / np.sqrt(d)
    covariances = roots @ np.swapaxes(roots, 1, 2) + 1e-2 * np.eye(d)
    model = Mixture(family(k, np.full(d, 3.0)))
    spread = {model.component.spread: covariances}
    params = model.params(weights=rng.dirichlet(np.full(k, 3.0)), means=means, **spread)
    return model, params, model.sample(params, n, rng)[0]


def direct(model: Mixture, params: Any, x: Array) -> Array:
    """Log joint densities, (n, k), one component after the other, in float64."""
    log_joint = np.empty((len(x), model.n_components))
    theta = params.theta
    for c, factor in enumerate(theta.factors):
        square = np.square((x.astype(np.float64) - theta.means[c]) @ factor).sum(axis=1)
        log_joint[:, c] = -0.5 * square
    if isinstance(model.component, StudentT):
        return np.log(params.weights) + model.component._log_density(theta, np.log1p(-2 * log_joint / theta.df))
    problem = model.component._problem(theta, np.log(params.weights), False)
    return problem.log_scale + log_joint


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("family", "k", "d", "n"), [(Gaussian, K, D, N), (Gaussian, 32, 48, 8192), (StudentT, K, D, N)]
)
def test_what_is_skipped_rounds_to_nothing(family: Any, k: int, d: int, n: int, dtype: str) -> None:
    """No responsibility that is left out exceeds e^-TAIL, nor the certificate; densities and sums are those of all pairs.

    Those of few components would be computed by SIMD.
    """
    model, params, x = problem(family, k=k, d=d, n=n)
    x = x.astype(dtype)
    weight = np.random.default_rng(1).integers(0, 3, n) * 1.0
    found = model.e_step(params, Rows(x, weight=weight), KERNELS)
    skipped = found.evidence.skipped
    assert skipped.share < 0.2 and skipped.pairs == n * k and skipped.largest <= 1.2e-16
    exact = direct(model, params, x)
    peak = exact.max(axis=1)
    log_norm = peak + np.log(np.exp(exact - peak[:, None]).sum(axis=1))
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert np.abs(found.score - log_norm)[weight > 0].max() <= tolerance * (1 + np.abs(log_norm).max())
    resp = np.exp(exact - log_norm[:, None]) * weight[:, None]
    assert np.allclose(found.stats.sum_w, resp.sum(axis=0), rtol=1e-11 if dtype == "float64" else 1e-4, atol=1e-9)
    if family is Gaussian:
        sums = model.component.statistics(params.theta, x, resp)
        for name in ("sum_x", "sum_xx"):
            value, expected = getattr(found.stats.component, name), getattr(sums, name)
            assert np.abs(value - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold(seed: int) -> None:
    """Every pair above the threshold is a candidate, also where rows are far away and components narrow."""
    model, params, x = problem(Gaussian, seed, apart=[0.5, 3.0, 300.0][seed])
    x[::7] += 1e4 * seed
    given = model.component._problem(params.theta, np.log(params.weights), False)
    x = x.astype(np.float32)
    work = pruned._Work(given, bounds.bounds_of(given, x.dtype), Arena())
    found = work.candidates(work.tile(x))
    pairs = found.pairs
    chosen = np.zeros((N, K), dtype=bool)
    chosen[pairs.rows, np.repeat(np.arange(K), pairs.counts)] = True
    exact = direct(model, params, x)
    least = exact.max(axis=1, keepdims=True)
    assert (exact < least - pruned.TAIL)[~chosen].all()
    assert chosen.sum() < 0.5 * N * K
    rest = np.where(chosen, -np.inf, exact).max(axis=1)
    assert (found.skipped >= rest - 1e-4 * np.abs(rest)).all(), "the certificate is above what was skipped"


@pytest.mark.parametrize("apart", [0.3, 2.0])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_remains_is_what_is_needed(apart: float, ranks: int) -> None:
    """Of what is computed exactly the pairs within TAIL of the row's highest, or rank-th highest, are handed on, whatever bounds say."""
    model, params, x = problem(Gaussian, 4, apart)
    given = model.component._problem(params.theta, np.log(params.weights), False)
    work = pruned._Work(given, bounds.bounds_of(given, x.dtype), Arena(), ranks)
    found = work.candidates(work.tile(x))
    exact = direct(model, params, x)
    gap = exact - np.sort(exact, axis=1)[:, [-ranks]] + pruned.TAIL
    assert np.abs(gap).min() > 1e-6, "no pair is so near the threshold that rounding decides"
    rows, components = found.pairs.rows, found.pairs.components
    assert sorted(zip(rows, components, strict=True)) == sorted(zip(*np.nonzero(gap >= 0), strict=True))
    assert np.abs(found.value - exact[rows, components]).max() <= 1e-12 * np.abs(found.value).max()
    assert found.computed is not None and len(rows) <= found.computed <= N * K


@pytest.mark.parametrize("size", [1e18, 1e25, 1e36])
def test_rows_whose_bounds_overflow(size: float) -> None:
    """Squares that no float32 holds rule out nothing wrongly: densities are those of all pairs."""
    model, params, x = problem(Gaussian)
    x[::50] *= size
    found = model.e_step(params, Rows(x), KERNELS)
    assert found.evidence.skipped.share < 0.5
    exact = direct(model, params, x).max(axis=1)
    assert np.allclose(found.score[::50], exact[::50], rtol=1e-12)


def test_where_components_overlap_nothing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass is then the one of before, bit by bit; so it is for few components."""
    model, params, x = problem(Gaussian, apart=0.0)
    params = model.params(
        weights=params.weights, means=params.theta.means, covariances=np.tile(np.eye(D) * 4.0, (K, 1, 1))
    )
    found = model.e_step(params, Rows(x), KERNELS)
    assert found.evidence.skipped.share == 1.0
    monkeypatch.setattr(gaussian, "pruned_pass", lambda *_: None)
    same = model.e_step(params, Rows(x), KERNELS)
    assert found.evidence.log_likelihood == same.evidence.log_likelihood
    assert (found.stats.component.sum_xx == same.stats.component.sum_xx).all()
    few, params, x = problem(Gaussian, k=3)
    assert np.isnan(few.e_step(params, Rows(x), KERNELS).evidence.skipped.share)


def test_all_pairs_take_longer_in_float64() -> None:
    """What skipping is compared with: products of float32 rows that are computed in float64, all or some; and SIMD, all or none."""
    single, double = (skipping_costs.PRODUCTS[np.dtype(dtype)] for dtype in ("float32", "float64"))
    for reach, dtype, of_pair in (
        (np.full(K, 10.0), "float32", single),
        (np.full(K, 1e6), "float32", double),
        (np.repeat([10.0, 1e6], K // 2), "float32", (single + double) / 2),
        (np.full(K, 5e3), "float32", (single + double) / 2),  # densities in float32, moments in float64
        (np.full(K, 1e6), "float64", double),
    ):
        found = skipping_costs.of_all(given(K)._replace(reach=reach), np.dtype(dtype), K, True)
        assert found == pytest.approx(K * D * D * of_pair)
    for condition, dtype, wide in (([1e2] * 20, "float32", False), ([1e2] * 19 + [1e5], "float32", True), ([1e2] * 20, "float64", True)):  # fmt: skip
        found = skipping_costs.of_all(given(20)._replace(condition=np.array(condition)), np.dtype(dtype), 20, False)
        assert found == pytest.approx(
            20 * D * D * skipping_costs.VECTORS[np.dtype("float64" if wide else "float32")] / 2
        )


def test_too_little_to_skip_is_known_without_bounds() -> None:
    """Few rows, features or components: nothing is prepared, and all pairs are computed."""
    for k, d, n, might in ((32, 48, 8192, True), (32, 48, 8191, False), (K, D, N, True), (32, 24, 8192, False), (4, 48, 8192, False)):  # fmt: skip
        assert skipping_costs.might_pay(given(k, d), np.zeros((n, d), np.float32), True) == might


def given(k: int, d: int = D) -> Any:
    """What kernels get of a problem."""
    model, params, _ = problem(Gaussian, k=k, d=d, n=2)
    return model.component._problem(params.theta, np.log(params.weights), False)._replace(condition=np.full(k, 10.0))


def test_hard_labels_and_known_labels() -> None:
    """Each row goes to its most probable component; rows with a known component to that."""
    model, params, x = problem(Gaussian)
    hard = Mixture(model.component, "hard")
    found = hard.e_step(params, Rows(x), KERNELS)
    assert found.evidence.skipped.share < 0.2
    best = direct(model, params, x).argmax(axis=1)
    assert (found.stats.sum_w == np.bincount(best, minlength=K)).all()
    label = np.where(np.arange(N) < 200, 7, -1)
    known = model.e_step(params, Rows(x, label=label), KERNELS)
    assert known.stats.sum_w[7] >= 200


def test_results_do_not_depend_on_what_was_computed_before() -> None:
    """Bounds are shared by the chunks of a pass; whose chunk came first, and with which weights, changes no bit."""
    model, params, x = problem(Gaussian)
    one = model.e_step(params, Rows(x), KERNELS)
    again = model.params(
        weights=params.weights, **{n: a.copy() for n, a in model.component.arrays(params.theta).items()}
    )
    model.e_step(again, Rows(x[:300], label=np.arange(300) % K), KERNELS)
    two = model.e_step(again, Rows(x), KERNELS)
    assert one.evidence == two.evidence and (one.stats.component.sum_xx == two.stats.component.sum_xx).all()


@pytest.mark.parametrize("family", [Gaussian, StudentT])
def test_labels_and_costs_of_removal_are_those_of_all_pairs(family: Any) -> None:
    """Predictions and the cost of leaving a component out, whose next-best component is then found exactly."""
    model, params, x = problem(family, d=80)
    assert (
        KERNELS.gaussian_near_joint(model.component._problem(params.theta, np.log(params.weights), False), x, 2)
        is not None
    )
    exact = direct(model, params, x)
    peak = exact.max(axis=1)
    log_norm = peak + np.log(np.exp(exact - peak[:, None]).sum(axis=1))
    [(_, found)] = model.assign(params, x, KERNELS)
    assert (found.label == exact.argmax(axis=1)).all() and np.allclose(found.score, log_norm, rtol=1e-12)
    resp = np.exp(exact - log_norm[:, None])
    assert np.allclose(np.exp(found.log_resp), resp, rtol=1e-9, atol=1e-15)
    assert (found.log_resp == -np.inf).mean() > 0.5
    cost, next_best = vars(model.removal_costs(params, x, None, KERNELS)).values()
    each, top = np.arange(N), exact.argmax(axis=1)
    expected = np.zeros(K)
    np.add.at(expected, top, log_norm)
    exact[each, top] = -np.inf
    second = exact.max(axis=1)
    np.add.at(expected, top, -second - np.log(np.exp(exact - second[:, None]).sum(axis=1)))
    resp[each, top] = 0.0
    expected -= np.log1p(-resp).sum(axis=0)
    assert np.allclose(cost, expected, rtol=1e-9)
    assert next_best[top, exact.argmax(axis=1)].all() and next_best.sum() == N
