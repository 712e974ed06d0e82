"""SQUAREM: no accepted step lowers the objective, and a rejected one leaves no trace but the rows it read."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.em import loop
from pipeline.em.accumulate import Accumulator
from pipeline.em.extrapolate import extrapolate
from pipeline.em.loop import RejectedEvent, ResetEvent
from pipeline.em.run import Run
from tests.laws.common import (
    TYPES,
    any_problem,
    cases,
    chunks_of,
    close_fields,
    e_step,
    examples,
    fit,
    follow,
    gaussian,
    method,
    never_falls,
    passes,
    same_bits,
)
from tests.problems import gaussian_problem, gaussian_problems

MIXTURES = [*TYPES, "multinomial"]


def accelerated(family, data, n_iter=25):
    """The runs after each pass of one that extrapolates, on a random problem with reg_covar = 0."""
    options = {"concentration": st.sampled_from([1.0, 1.1, 2.0])} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight, _ = data.draw(cases(family, **options))
    chunks = chunks_of(x, None, weight if data.draw(st.booleans(), label="weighted") else None)
    return follow(model, params, chunks, n_iter, 0.0, method("auto", chunks))


@pytest.mark.parametrize("family", MIXTURES)
@examples(15)
@given(data=st.data())
def test_no_accepted_step_lowers_the_objective(family, data):
    """Whatever the extrapolation steps, history rises or stays, to 1e-12 |F|."""
    never_falls(*accelerated(family, data))


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
@examples(200)
@given(data=st.data())
def test_no_accepted_step_lowers_the_objective_on_hundreds_of_problems(family, data):
    """The same law, on many more."""
    never_falls(*accelerated(family, data, 60))


@pytest.mark.parametrize("family", MIXTURES)
def test_steps_that_are_all_rejected_leave_plain_em(family, monkeypatch):
    """To the bit; but the rows that they read are counted, and each is an event."""
    seed = next(s for s in range(9) if any_problem(family, s)[0].n_components > 3)
    model, params, x, weight = any_problem(family, seed)
    chunks = chunks_of(x, None, weight)
    plain, _ = fit(model, params, chunks, 12)
    monkeypatch.setattr(loop, "least_objective", lambda run: np.inf)
    run, events = fit(model, params, chunks, 12, 0.0, method("auto", chunks))
    assert events and all(isinstance(event, RejectedEvent) for event in events)
    same_bits(run.params, plain.params)
    assert [e.objective for e in run.history] == [e.objective for e in plain.history]
    assert sum(entry.rows for entry in run.history) == (12 + len(events)) * x.shape[0]
    assert {entry.rows for entry in plain.history} == {x.shape[0]}


@examples(20)
@given(problem=gaussian_problems(d=2, k=2))
def test_a_step_goes_where_a_geometric_sequence_ends(problem):
    """From L + ρⁿ D, as statistics near a fixed point L are, it ends at L: r and v lie along D, and α = -1/(1 - ρ)."""
    model, params = gaussian(problem, "full")
    x = problem["x"]
    limit = e_step(model, params, x).totals
    direction = (e_step(model, params, x[::2]).totals - limit * 0.5) * 0.1
    sequence = tuple(limit + direction * 0.9**n for n in range(3))
    accumulator = Accumulator("squarem", 3, tuple((totals,) for totals in sequence))
    run = Run(0, model, model.m_step(sequence[2].stats, params), accumulator=accumulator)
    assume(model.is_valid(model.m_step(limit.stats, params), limit.stats))
    [[found]] = extrapolate(run).accumulator.epochs
    close_fields(found, limit, 1e-9)


def test_a_reset_ends_a_cycle():
    """Statistics from before it belong to a component that is no more."""
    problem = gaussian_problem(2, k=3, d=2)
    model, params = gaussian(problem, "full")
    far = params.theta.means + np.array([[0.0], [0.0], [1e4]]) * problem["scale"]
    params = model.params(**model.arrays(params) | {"means": far})
    chunks = chunks_of(problem["x"])
    found = False
    for runs, events in passes([Run(0, model, params)], chunks, 10, 0.0, method("auto", chunks)):
        if any(isinstance(event, ResetEvent) for event in events):
            assert runs[0].accumulator.epochs == ()
            found = True
    assert found


@pytest.mark.slow
def test_extrapolation_saves_passes():
    """Two overlapping clusters, where plain EM creeps: the same optimum for less than two thirds of the reads."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, 2)) - 0.9, rng.normal(size=(2000, 2)) + 0.9])
    model, _ = gaussian({**gaussian_problem(0, n=4000, d=2, k=2), "x": x}, "full")
    covariances = np.tile(np.cov(x.T), (2, 1, 1))
    start = model.params(weights=np.array([0.3, 0.7]), means=x[:2].copy(), covariances=covariances)
    chunks = chunks_of(x)
    limit, _ = fit(model, start, chunks, 3000, 1e-12)
    goal = limit.objective - 1e-3 * len(x)
    needed = {}
    for name in ("em", "auto"):
        run, _ = fit(model, start, chunks, 400, 0.0, method(name, chunks))
        reads = np.cumsum([entry.rows for entry in run.history]) / len(x)
        needed[name] = reads[np.flatnonzero([entry.objective >= goal for entry in run.history])[0]]
    assert needed["auto"] < needed["em"] * 2 / 3


@pytest.mark.parametrize(("family", "options"), [("diag", {"assignment": "hard"}), ("kmeans", {})])
def test_hard_assignments_and_kmeans_do_not_extrapolate(family, options):
    """Labels jump: there is nothing to extrapolate, nothing is stored, and passes are plain EM's."""
    model, params, x, _ = any_problem(family, 3, **options)
    chunks = chunks_of(x)
    plain, _ = fit(model, params, chunks, 9)
    for runs, events in passes([Run(0, model, params)], chunks, 9, 0.0, method("auto", chunks)):
        assert runs[0].accumulator.epochs == () and not [e for e in events if isinstance(e, RejectedEvent)]
    same_bits(runs[0].params, plain.params)
    assert [entry.objective for entry in runs[0].history] == [entry.objective for entry in plain.history]
