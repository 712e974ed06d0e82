"""Incremental EM: another way of accumulating the same statistics, and extrapolation of its epochs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import xlogy
from scipy.stats import multivariate_normal

from pipeline.data.chunks import Chunks
from pipeline.em import loop
from pipeline.em.accumulate import Accumulator, deal, method_of, total_of
from pipeline.em.extrapolate import extrapolate
from pipeline.em.loop import RejectedEvent, ResetEvent
from pipeline.em.run import Run
from pipeline.engine.passes import Engine
from pipeline.models.base import EStep
from tests.laws.common import (
    TYPES,
    ArraySource,
    any_problem,
    cases,
    chunks_of,
    close,
    close_fields,
    e_step,
    examples,
    fit,
    follow,
    gaussian,
    method,
    moment_rounding,
    never_falls,
    passes,
    same_bits,
    sum_over,
)
from tests.problems import cuts, gaussian_problem, gaussian_problems, ragged_bounds, seeds


def blocked(family, seed, **options):
    """A model, its start, chunks and a method whose blocks are some of them."""
    reg = {} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight = any_problem(family, seed, **reg, **options)
    bounds = np.linspace(0, x.shape[0], 8).astype(int)
    chunks = chunks_of(x, bounds, weight if seed % 2 else None)
    return model, params, chunks, method("incremental", chunks, seed)


@st.composite
def blocked_cases(draw, family, **options):
    """The same, drawn."""
    reg = {} if family == "multinomial" else {"reg_covar": 0.0}
    model, params, x, weight, _ = draw(cases(family, **reg, **options))
    chunks = chunks_of(x, draw(cuts(x.shape[0], 12)), weight if draw(st.booleans()) else None)
    return model, params, chunks, method("incremental", chunks, draw(seeds))


@given(n_chunks=st.integers(1, 300), seed=st.integers(0, 9), n_blocks=st.integers(1, 30))
def test_every_chunk_is_in_one_block(n_chunks, seed, n_blocks):
    """As many chunks in each as there can be, in ascending order; another seed deals otherwise."""
    blocks = deal(n_chunks, seed, n_blocks)
    assert sorted(i for block in blocks for i in block) == list(range(n_chunks))
    sizes = [len(block) for block in blocks]
    assert len(blocks) == min(n_blocks, n_chunks) and max(sizes) - min(sizes) <= 1
    assert all(list(block) == sorted(block) for block in blocks)
    assert blocks == deal(n_chunks, seed, n_blocks)
    if n_chunks > 50 and n_blocks > 1:
        assert blocks != deal(n_chunks, seed + 1, n_blocks)
        assert any(np.diff(block).max(initial=0) > 1 for block in blocks)  # not neighbours in storage


def reference(x, blocks, weights, means, covariances, n_epochs):
    """Neal and Hinton's loop, rows and responsibilities in full: the free energy after every block's M-step."""
    n, k = len(x), len(weights)
    densities = lambda: np.stack(  # noqa: E731
        [np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in zip(weights, means, covariances, strict=True)],
        axis=1,
    )
    r, trace = np.full((n, k), np.nan), []
    for epoch in range(n_epochs):
        for b, rows in enumerate(blocks):
            log_joint = densities()[rows]
            r[rows] = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1)[:, None])
            if epoch == 0 and b < len(blocks) - 1:
                continue
            counts = r.sum(axis=0)
            weights, means = counts / n, r.T @ x / counts[:, None]
            covariances = [(r[:, j, None] * (x - means[j])).T @ (x - means[j]) / counts[j] for j in range(k)]
            trace.append(float((r * densities()).sum() - xlogy(r, r).sum()))
    return np.array(trace), weights, means, np.stack(covariances)


@examples(10)
@given(problem=gaussian_problems(max_offset=3.0), seed=seeds)
def test_free_energy_after_every_block_is_that_of_a_slow_loop(problem, seed):
    """Exact, block by block, and so are the parameters at the end."""
    x = problem["x"]
    model, params = gaussian(problem, "full", reg_covar=0.0)
    assume(len(x) >= 9)
    chunks = chunks_of(x, ragged_bounds(np.random.default_rng(seed), len(x), 9))
    how = method("incremental", chunks, seed, 4)
    epochs, bounds = 3, []  # the fourth would begin with an extrapolation step
    for runs, events in passes([Run(0, model, params)], chunks, epochs, 0.0, how):
        assume(not events)
        if runs[0].final is None and len(runs[0].accumulator.epochs[-1]) == 4:
            bounds.append(runs[0].bound)
            last = runs[0]
    rows = [np.concatenate([chunks[i].start + np.arange(len(chunks[i].x)) for i in block]) for block in how.blocks]
    start = params.weights, params.theta.means, params.theta.covariances
    trace, weights, means, covariances = reference(x, rows, *start, epochs)
    close(bounds, trace, 1e-10)
    close(last.params.weights, weights, 1e-8)
    assert np.abs(last.params.theta.means - means).max() <= 1e-8 * np.abs(x).max()  # they may be 0
    close(last.params.theta.covariances, covariances, 1e-8)
    assert [entry.rows for entry in last.history] == [len(x)] * epochs
    entries = [entry.lower_bound for entry in last.history]
    close(entries, trace[::4][:1].tolist() + trace[4::4].tolist(), 1e-10)


def incremental_never_falls(case, tol=0.0, n_iter=8):
    """The bound after every block, and the history up to the parameters returned."""
    model, params, chunks, how = case
    runs, events = follow(model, params, chunks, n_iter, tol, how)
    never_falls(runs, events)
    run = runs[-1]
    if not any(isinstance(event, ResetEvent) for event in events):
        known = np.array([*(each.bound for each in runs if np.isfinite(each.bound)), run.objective])
        rounding = max(moment_rounding(model, each.params, run.history[-1].weight) for each in runs)
        assert (np.diff(known) >= -1e-12 * np.abs(known).max() - rounding).all()
    return run


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(8)
@given(data=st.data())
def test_no_block_lowers_the_free_energy(family, assignment, data):
    """With reg_covar = 0 or under a prior, soft or hard, with weights or without; and then on all rows."""
    case = data.draw(blocked_cases(family, assignment=assignment))
    incremental_never_falls(case)
    incremental_never_falls(case, tol=1e-2, n_iter=40)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(150)
@given(data=st.data())
def test_no_block_lowers_the_free_energy_on_hundreds_of_problems(family, data):
    """The same law, on many more."""
    case = data.draw(blocked_cases(family))
    incremental_never_falls(case, n_iter=20)
    incremental_never_falls(case, tol=1e-3, n_iter=60)


@pytest.mark.parametrize("family", ["full", "multinomial"])
def test_one_chunk_is_batch(family):
    """One block holds all rows: to the bit what auto does."""
    model, params, x, weight = any_problem(family, 11)
    chunks = chunks_of(x, None, weight)
    run, _ = fit(model, params, chunks, 9, 1e-6, method("incremental", chunks))
    auto, _ = fit(model, params, chunks, 9, 1e-6, method("auto", chunks))
    same_bits(run.params, auto.params)
    assert [entry.phase for entry in run.history] == ["squarem"] * len(auto.history)


@pytest.mark.parametrize("family", [*TYPES, "multinomial"])
@examples(3)
@given(data=st.data())
def test_epochs_end_and_the_certificate_is_that_of_all_rows(family, data):
    """Blocks go over to passes over all rows, and stop there, with less than tol left."""
    model, params, chunks, how = data.draw(blocked_cases(family))
    assume(len(chunks) > 1)
    run, events = fit(model, params, chunks, 400, 1e-2, how)
    # Where components collapse, reg_covar = 0 leaves the likelihood without a bound.
    assume(not any(isinstance(event, ResetEvent) for event in events))
    phases = [entry.phase for entry in run.history]
    assert phases[0] == "incremental" and phases[-1] == "squarem" and phases == sorted(phases)
    assert run.stop_reason.startswith("converged") and 0.5 * run.history[-1].fisher_norm ** 2 < 1e-2
    blockwise = [entry for entry in run.history if entry.phase == "incremental"]
    assert all(np.isnan(entry.log_likelihood) for entry in blockwise[1:])
    rejected = {event.iteration for event in events}  # what was read in vain counts
    n = sum(chunk.n for chunk in chunks)
    assert all(entry.rows > n if i in rejected else entry.rows == n for i, entry in enumerate(blockwise))


def test_a_reset_during_an_epoch_fills_the_blocks_again():
    """What the blocks stored belongs to a component that is no more; the run then goes on to its end, and finds it a place."""
    problem = gaussian_problem(2, k=3, d=2)
    model, params = gaussian(problem, "full")
    far = params.theta.means + np.array([[0.0], [0.0], [1e4]]) * problem["scale"]
    params = model.params(**model.arrays(params) | {"means": far})
    chunks = chunks_of(problem["x"], np.linspace(0, problem["n"], 7).astype(int))
    resets = []
    for runs, events in passes([Run(0, model, params)], chunks, 300, 1e-4, method("incremental", chunks)):
        found = [event for event in events if isinstance(event, ResetEvent)]
        if found:
            assert runs[0].accumulator.steps == 0 and runs[0].accumulator.epochs == () and not runs[0].settled
        resets += found
    assert resets and resets[0].reset.component == 2
    assert runs[0].stop_reason.startswith("converged")
    assert (runs[0].final.stats.sum_w > 3).all()


def test_restarts_in_different_phases_do_not_touch_each_other():
    """Runs whose epochs end at different times end as each would alone, to the bit."""
    model, params, chunks, how = blocked("full", 17)
    arrays = model.arrays(params)
    other = model.params(**arrays | {"weights": arrays["weights"][::-1].copy(), "means": arrays["means"][::-1] * 1.01})
    *_, (together, _) = passes([Run(0, model, params), Run(1, model, other)], chunks, 60, 1e-3, how)
    lengths = set()
    for run, start in zip(together, (params, other), strict=True):
        alone, _ = fit(model, start, chunks, 60, 1e-3, how)
        same_bits(run.params, alone.params)
        assert run.stop_reason == alone.stop_reason
        lengths.add(sum(entry.phase == "incremental" for entry in run.history))
    assert len(lengths) == 2, "a problem in which they do was expected"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_pass_over_some_chunks_sums_those_and_no_others(workers):
    """Engine.sum_over with ids: the same bits as those chunks alone in that order, on any number of workers."""
    problem = gaussian_problem(1, n=900, d=3, k=3)
    model, params = gaussian(problem, "full")
    bounds = np.linspace(0, 900, 31).astype(int)
    ids = deal(30, 0, 4)[1]
    found = Engine(workers=workers).sum_over(Chunks(ArraySource(problem["x"], bounds)), [EStep(model, params)], ids)
    in_memory = chunks_of(problem["x"], bounds)
    same_bits(found[0].stats, sum_over([in_memory[i] for i in ids], [EStep(model, params)])[0].stats)
    assert found[0].stats.sum_w.sum() == pytest.approx(30 * len(ids))


def test_incremental_sums_are_formed_again():
    """After many epochs the total is still the sum of what the blocks hold: nothing has drifted."""
    model, params, chunks, how = blocked("spherical", 8)
    *_, (runs, _), _ = passes([Run(0, model, params)], chunks, 60, 0.0, how)
    now = runs[0].accumulator.epochs[-1]
    assert len(now) == len(how.blocks)
    same_bits(runs[0].history[-1].traced["n_effective"], total_of(now).stats.sum_w)


@pytest.mark.parametrize("family", ["full", "multinomial"])
def test_steps_of_epochs_that_are_all_rejected_leave_no_trace(family, monkeypatch):
    """To the bit what epochs alone do; the rows that the rejected steps read are counted, and each is an event."""
    model, params, chunks, how = blocked(family, 1)
    monkeypatch.setattr(loop, "extrapolate", lambda run: run)
    alone, _ = fit(model, params, chunks, 12, 0.0, how)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "least_objective", lambda run: np.inf)
    run, events = fit(model, params, chunks, 12, 0.0, how)
    assert events and all(isinstance(event, RejectedEvent) for event in events)
    same_bits(run.params, alone.params)
    assert [entry.objective for entry in run.history] == [entry.objective for entry in alone.history]
    n = sum(how.block_rows)
    assert {entry.rows for entry in alone.history} == {n}
    assert 12 * n < sum(entry.rows for entry in run.history) <= (12 + len(events)) * n


def test_a_step_takes_every_block_to_the_end_of_its_sequence():
    """Blocks that follow L_b + ρⁿ D_b end at L_b, each by the α of their sum; during the epoch that follows no bound is claimed."""
    problem = gaussian_problem(3, k=2, d=2)
    model, params = gaussian(problem, "full")
    x = problem["x"]
    limits = [e_step(model, params, part).totals for part in (x[::2], x[1::2])]
    ways = [(e_step(model, params, x[i::4]).totals - limit * 0.5) * 0.1 for i, limit in enumerate(limits)]
    epochs = tuple(tuple(limit + way * 0.9**n for limit, way in zip(limits, ways, strict=True)) for n in range(3))
    accumulator = Accumulator("incremental", 6, epochs)
    run = Run(0, model, model.m_step(total_of(epochs[2]).stats, params), accumulator=accumulator, bound=-1.0)
    after = extrapolate(run)
    for block, limit in zip(after.accumulator.epochs[0], limits, strict=True):
        close_fields(block, limit, 1e-9)
    assert after.accumulator.fallback == epochs[2] and after.bound == -1.0 and not after.accumulator.can_extrapolate
    during_an_epoch = replace(run, accumulator=accumulator._replace(steps=7))
    assert extrapolate(during_an_epoch) is during_an_epoch


def test_a_step_that_collapses_a_component_during_its_epoch_is_rejected(monkeypatch):
    """Without a reset: the run goes on from its last epoch."""
    model, params, chunks, how = blocked("full", 1)
    collapsed = type(model).collapsed
    begun = []

    def once(self, params, counts):
        return [(0, "tried")] if begun and begun.pop() else collapsed(self, params, counts)

    monkeypatch.setattr(type(model), "collapsed", once)
    rejected, before = None, None
    for runs, events in passes([Run(0, model, params)], chunks, 12, 0.0, how):
        if events:
            rejected = events[0]
            break
        before = runs[0]
        if before.accumulator.fallback and not begun:
            begun.append(True)
    assert isinstance(rejected, RejectedEvent) and rejected.objective is None
    assert rejected.facts()["event"] == "rejected"
    now, fallback = runs[0].accumulator, before.accumulator.fallback
    assert now.epochs == (fallback,) and now.fallback == () and runs[0].settled
    same_bits(runs[0].params, model.m_step(total_of(fallback).stats, params))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_extrapolated_epochs_save_reads(seed):
    """Four overlapping clusters: plain EM's optimum, for less than a third of its reads, and less than passes over all rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3000, 2)) + 1.7 * rng.normal(size=(4, 2))[rng.integers(4, size=3000)]
    model, _ = gaussian({**gaussian_problem(seed, n=3000, d=2, k=4), "x": x}, "full")
    covariances = np.tile(np.cov(x.T), (4, 1, 1))
    start = model.params(weights=np.full(4, 0.25), means=x[:4].copy(), covariances=covariances)
    chunks = chunks_of(x, np.linspace(0, len(x), 11).astype(int))
    runs = {"em": fit(model, start, chunks, 3000, 1e-10)[0]}
    runs |= {
        name: fit(model, start, chunks, 60, 0.0, method(name, chunks, n_blocks=10))[0]
        for name in ("auto", "incremental")
    }
    goal, needed = runs["em"].objective - 1e-3 * len(x), {}
    for name, run in runs.items():
        reads = np.cumsum([entry.rows for entry in run.history]) / len(x)
        needed[name] = reads[np.flatnonzero([entry.objective >= goal for entry in run.history])[0]]
    assert needed["incremental"] < min(needed["em"] / 3, needed["auto"] / 1.5)


def test_blocks_have_the_rows_of_their_chunks():
    """Which a pass over a block is counted by."""
    how = method_of("incremental", np.array([0, 5, 7, 20, 21]), 3, 2)
    sizes = [5, 2, 13, 1]
    assert how.block_rows == tuple(sum(sizes[i] for i in block) for block in how.blocks) and sum(how.block_rows) == 21
