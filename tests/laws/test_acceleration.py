"""SQUAREM: no accepted step lowers the objective, and a refused one leaves no trace but the rows it read."""

import numpy as np
import pytest
from hypothesis import given

from pipeline.em import loop
from pipeline.em.folds import Fold
from pipeline.em.loop import RefusedEvent, ResetEvent
from pipeline.em.run import Run
from pipeline.em.squarem import leap
from tests.laws.common import TYPES, any_problem, chunks_of, e_step, examples, fit, gaussian, method, passes, same_bits
from tests.problems import gaussian_problem, seeds

MIXTURES = [*TYPES, "multinomial"]


def never_falls(run, events):
    """No step down beyond 1e-12 of the size, from each reset to the next one, and to the parameters returned."""
    trace = np.array([*(entry.objective for entry in run.history), run.objective])
    assert np.isfinite(trace).all()
    comparable = np.ones(len(trace) - 1, dtype=bool)
    for event in events:
        if isinstance(event, ResetEvent):
            comparable[event.iteration] = False
    falls = np.maximum(-np.diff(trace), 0.0)[comparable]
    assert (falls <= 1e-12 * np.abs(trace).max()).all(), f"falls by {falls.max():.3g}"


def accelerated(family, seed, n_iter=25):
    """A run that leaps, on a random problem with reg_covar = 0."""
    options = {"concentration": [1.0, 1.1, 2.0][seed % 3]} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight = any_problem(family, seed, **options)
    chunks = chunks_of(x, None, weight if seed % 2 else None)
    return fit(model, params, chunks, n_iter, 0.0, method("auto", chunks))


@pytest.mark.parametrize("family", MIXTURES)
@examples(15)
@given(seed=seeds)
def test_no_accepted_step_lowers_the_objective(family, seed):
    """Whatever the leaps, history rises or stays, to 1e-12 |F|."""
    never_falls(*accelerated(family, seed))


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
@examples(200)
@given(seed=seeds)
def test_no_accepted_step_lowers_the_objective_on_hundreds_of_problems(family, seed):
    """The same law, on many more."""
    never_falls(*accelerated(family, seed, 60))


@pytest.mark.parametrize("family", MIXTURES)
def test_leaps_that_are_all_refused_leave_plain_em(family, monkeypatch):
    """To the bit; but the rows that they read are counted, and each is an event."""
    seed = next(s for s in range(9) if any_problem(family, s)[0].n_components > 3)
    model, params, x, weight = any_problem(family, seed)
    chunks = chunks_of(x, None, weight)
    plain, _ = fit(model, params, chunks, 12)
    monkeypatch.setattr(loop, "least_objective", lambda run: np.inf)
    run, events = fit(model, params, chunks, 12, 0.0, method("auto", chunks))
    assert events and all(isinstance(event, RefusedEvent) for event in events)
    same_bits(run.params, plain.params)
    assert [e.objective for e in run.history] == [e.objective for e in plain.history]
    assert sum(entry.rows for entry in run.history) == (12 + len(events)) * x.shape[0]
    assert {entry.rows for entry in plain.history} == {x.shape[0]}


@examples(20)
@given(seed=seeds)
def test_a_leap_goes_where_a_geometric_sequence_ends(seed):
    """From L + ρⁿ D, as statistics near a fixed point L are, it lands at L: r and v lie along D, and α = -1/(1 - ρ)."""
    problem = gaussian_problem(seed, k=2, d=2)
    model, params = gaussian(problem, "full")
    x = problem["x"]
    limit = e_step(model, params, x).stats
    direction = (e_step(model, params, x[::2]).stats - limit * 0.5) * 0.1
    sequence = tuple(limit + direction * 0.9**n for n in range(3))
    run = Run(
        0, model, model.m_step(sequence[2], params), fold=Fold("squarem", 3, tuple((stats,) for stats in sequence))
    )
    landed = leap(run)
    for name in ("sum_w", "sum_x", "sum_xx"):
        expected = getattr(limit, name)
        assert np.allclose(
            getattr(landed.fold.kept[0][0], name), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max()
        )


def test_a_reset_ends_a_cycle():
    """Statistics from before it belong to a component that is no more."""
    problem = gaussian_problem(2, k=3, d=2)
    model, params = gaussian(problem, "full")
    params = model.params(
        params.weights, params.means + np.array([[0.0], [0.0], [1e4]]) * problem["scale"], params.covariances
    )
    chunks = chunks_of(problem["x"])
    found = False
    for runs, events in passes([Run(0, model, params)], chunks, 10, 0.0, method("auto", chunks)):
        if any(isinstance(event, ResetEvent) for event in events):
            assert runs[0].fold.kept == ()
            found = True
    assert found


def test_leaps_save_passes():
    """Two overlapping clusters, where plain EM creeps: the same optimum for less than two thirds of the reads."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, 2)) - 0.9, rng.normal(size=(2000, 2)) + 0.9])
    model, _ = gaussian({**gaussian_problem(0, n=4000, d=2, k=2), "x": x}, "full")
    start = model.params(np.array([0.3, 0.7]), x[:2].copy(), np.tile(np.cov(x.T), (2, 1, 1)))
    chunks = chunks_of(x)
    limit, _ = fit(model, start, chunks, 3000, 1e-12)
    goal = limit.objective - 1e-3 * len(x)
    needed = {}
    for name in ("em", "auto"):
        run, _ = fit(model, start, chunks, 400, 0.0, method(name, chunks))
        reads = np.cumsum([entry.rows for entry in run.history]) / len(x)
        needed[name] = reads[np.flatnonzero([entry.objective >= goal for entry in run.history])[0]]
    assert needed["auto"] < needed["em"] * 2 / 3


def test_hard_assignments_and_kmeans_do_not_leap():
    """Labels jump: there is nothing to extrapolate, and nothing is kept."""
    for family, options in (("diag", {"assignment": "hard"}), ("kmeans", {})):
        model, params, x, _ = any_problem(family, 3, **options)
        chunks = chunks_of(x)
        plain, _ = fit(model, params, chunks, 9, 1e-4)
        run, events = fit(model, params, chunks, 9, 1e-4, method("auto", chunks)) if family == "kmeans" else (plain, [])
        same_bits(run.params, plain.params)
        assert all(
            r[0].fold.kept == () for r, _ in passes([Run(0, model, params)], chunks, 9, 0.0, method("auto", chunks))
        )
        assert not [event for event in events if isinstance(event, RefusedEvent)]
