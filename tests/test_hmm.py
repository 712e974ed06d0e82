"""Hidden Markov models against all paths, one by one; laws over units; a job through every command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy.special import logsumexp

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.families.hmm import HiddenMarkov, HmmSection
from pipeline.models.mixture import MixtureParams
from tests.jobs import Interrupt, command, refused, results, settings
from tests.laws.common import fit, method

K, D = 3, 2
LENGTHS = [4, 1, 6, 3]


def all_paths(log_density: np.ndarray, initial: np.ndarray, transitions: np.ndarray) -> dict[str, Any]:
    """What every path of one unit adds: log p(x), probabilities of states, transitions, entropy, and the best path."""
    m, k = log_density.shape
    paths = np.array(list(itertools.product(range(k), repeat=m)))
    with np.errstate(divide="ignore"):
        log_initial, log_transitions = np.log(initial), np.log(transitions)
    joint = log_initial[paths[:, 0]] + log_density[np.arange(m), paths].sum(axis=1)
    joint = joint + log_transitions[paths[:, :-1], paths[:, 1:]].sum(axis=1)
    total = logsumexp(joint)
    share = np.exp(joint - total)
    states = np.stack([[share[paths[:, t] == j].sum() for j in range(k)] for t in range(m)])
    pairs = np.zeros((k, k))
    np.add.at(pairs, (paths[:, :-1].ravel(), paths[:, 1:].ravel()), np.repeat(share, m - 1))
    entropy = -(share[share > 0] @ (joint - total)[share > 0])
    return {"log": total, "states": states, "pairs": pairs, "entropy": entropy, "best": paths[joint.argmax()]}


def chain(rng: np.random.Generator, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Start probabilities and transitions; one of each is 0."""
    initial, transitions = rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), k)
    initial[1], transitions[0, 2] = 0.0, 0.0
    return initial / initial.sum(), transitions / transitions.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
def test_a_pass_sums_over_all_paths(spread: float) -> None:
    """Log-likelihoods, states, transitions and the best path; at 3000 nats between states, where products underflow, too."""
    rng = np.random.default_rng(int(spread))
    initial, transitions = chain(rng)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    log_density, weight = spread * rng.normal(size=(sum(LENGTHS), K)), rng.uniform(0.5, 2.0, len(LENGTHS))
    found = KERNELS.chain_pass(log_density.copy(), starts, weight, initial, transitions)
    units = [slice(start, start + length) for start, length in zip(starts, LENGTHS, strict=True)]
    expected = [all_paths(log_density[unit], initial, transitions) for unit in units]
    for unit, one in zip(units, expected, strict=True):
        assert found.log_norm[unit].sum() == pytest.approx(one["log"], rel=1e-12)
        np.testing.assert_allclose(found.share[unit], one["states"], rtol=1e-9, atol=1e-12)
    pairs = sum(w * one["pairs"] for w, one in zip(weight, expected, strict=True))
    np.testing.assert_allclose(found.sum_transitions, pairs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.sum_initial, weight @ [one["states"][0] for one in expected], rtol=1e-9, atol=1e-12
    )
    path = KERNELS.best_path(log_density, starts, initial, transitions)
    np.testing.assert_array_equal(path, np.concatenate([one["best"] for one in expected]))


def drawn(emission: Any, n_units: int = 40, seed: int = 0, **options: Any) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """A model, parameters off the truth, rows of sequences, and first rows of the sequences."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, n_units)
    n, states = int(lengths.sum()), None
    transitions = 0.7 * np.eye(K) + 0.3 * rng.dirichlet(np.ones(K), K)
    states = np.concatenate([_walk(rng, transitions, m) for m in lengths])
    if "gaussian" in str(emission):
        x = 3.0 * rng.normal(size=(K, D))[states] + rng.normal(size=(n, D))
    elif emission == "poisson":
        x = rng.poisson(rng.gamma(2.0, 3.0, (K, D))[states]).astype(float)
    else:
        below = np.cumsum(rng.dirichlet(np.full(4, 0.5), (K, D)), axis=2)[states]
        x = np.minimum((rng.random((n, D, 1)) > below).sum(axis=2), 3).astype(float)
    section = HmmSection.model_validate({"n_components": K, "emission": emission, **options})
    profile = ProfileJob(section.second_moments, 50, 0)(Rows(x), KERNELS)
    model = section.build(summary_of(profile, []), "soft")
    params = model.m_step(model.label_statistics(x, np.arange(n) % K), None)
    starts = np.cumsum([0, *lengths[:-1]])
    for _ in range(2):
        params = model.m_step(model.e_step(params, Rows(x, units=starts), KERNELS).stats, params)
    return model, params, x, starts


def _walk(rng: np.random.Generator, transitions: np.ndarray, m: int) -> np.ndarray:
    states = [int(rng.integers(K))]
    while len(states) < m:
        states.append(int(rng.choice(K, p=transitions[states[-1]])))
    return np.array(states)


EMISSIONS = [{"family": "gaussian", "reg_covar": 0.0}, "poisson", "categorical"]


def chunked(x: np.ndarray, starts: np.ndarray, cuts: list[int], weight: np.ndarray | None = None) -> list[Rows]:
    """Chunks of whole units. cuts : units at which chunks begin.  weight : of units."""
    ends, found = np.append(starts, len(x)), []
    of_rows = None if weight is None else np.repeat(weight, np.diff(ends))
    for a, b in itertools.pairwise([*cuts, len(starts)]):
        rows = slice(ends[a], ends[b])
        own = None if of_rows is None else of_rows[rows]
        found.append(Rows(x[rows], own, int(ends[a]), units=starts[a:b] - ends[a]))
    return found


@pytest.mark.parametrize("emission", EMISSIONS, ids=str)
def test_laws_of_units(emission: Any) -> None:
    """Statistics of chunks add; weight 2 is the sequence twice; F is the log-likelihood at the posterior; EM never falls."""
    model, params, x, starts = drawn(emission)
    [whole] = chunked(x, starts, [0])
    found = model.e_step(params, whole, KERNELS)
    parts = [model.e_step(params, part, KERNELS) for part in chunked(x, starts, [0, 1, 7, 30])]
    stats, evidence = parts[0].stats, parts[0].evidence
    for part in parts[1:]:
        stats, evidence = stats + part.stats, evidence + part.evidence
    np.testing.assert_allclose(stats.transitions, found.stats.transitions, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(stats.sum_w, found.stats.sum_w, rtol=1e-11)
    assert evidence.log_likelihood == pytest.approx(found.evidence.log_likelihood, rel=1e-12)
    bound = model.expected_log_joint(found.stats, params) + found.evidence.entropy
    assert bound == pytest.approx(found.evidence.log_likelihood, rel=1e-11)
    times = np.random.default_rng(1).integers(0, 3, len(starts))
    ends = np.append(starts, len(x))
    each = [x[ends[u] : ends[u + 1]] for u in np.repeat(np.arange(len(starts)), times)]
    again = Rows(np.concatenate(each), units=np.cumsum([0, *map(len, each)])[:-1])
    [weighted] = chunked(x, starts, [0], times * 1.0)
    two, one = model.e_step(params, again, KERNELS), model.e_step(params, weighted, KERNELS)
    np.testing.assert_allclose(two.stats.transitions, one.stats.transitions, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(two.stats.initial, one.stats.initial, rtol=1e-10, atol=1e-10)
    assert two.evidence.log_likelihood == pytest.approx(one.evidence.log_likelihood, rel=1e-12)
    for how in ("em", "auto"):
        chunks = chunked(x, starts, [0, 10, 20])
        run, _ = fit(model, params, chunks, 12, method=method(how, chunks))
        trace = np.array([*(entry.objective for entry in run.history), run.objective])
        assert (np.diff(trace) >= -1e-11 * np.abs(trace).max()).all(), np.diff(trace).min()


def test_known_states_bad_rows_and_weights() -> None:
    """A known state is kept, a bad row says nothing, and weights that differ within a sequence are refused."""
    model, params, x, starts = drawn("gaussian", n_units=3)
    bad = np.arange(len(x)) == 1
    x = np.where(bad[:, None], 0.0, x)
    label = np.full(len(x), -1)
    label[2] = 1
    rows = Rows(x, np.where(bad, 0.0, 1.0), 0, bad, label, units=starts)
    found = model.e_step(params, rows, KERNELS)
    log_density = model.component.log_joint(params.theta, np.zeros(K), x, KERNELS)
    log_density[1] = 0.0
    log_density[2, [0, 2]] = -np.inf
    ends = np.append(starts, len(x))
    chain_of = params.start_probabilities, params.transitions
    logs = [
        KERNELS.chain_pass(log_density[a:b].copy(), np.zeros(1, int), np.ones(1), *chain_of)
        for a, b in itertools.pairwise(ends)
    ]
    assert found.evidence.log_likelihood == pytest.approx(sum(each.log_norm.sum() for each in logs), rel=1e-12)
    assert found.stats.sum_w.sum() == pytest.approx(len(x) - 1)
    assert model.predict(params, rows, 0, KERNELS)["label"][2] == 1
    with pytest.raises(InputError, match="expected one weight for all rows of a unit"):
        model.e_step(params, Rows(x, np.arange(1.0, len(x) + 1), units=starts), KERNELS)


def test_independent_rows_are_a_mixture() -> None:
    """Equal rows of the transitions, units of one row: the E-step of a mixture with these weights."""
    model, params, x, _ = drawn("gaussian")
    weights = np.array([0.5, 0.2, 0.3])
    same = model.params(
        start_probabilities=weights, transitions=np.tile(weights, (K, 1)), **model.component.arrays(params.theta)
    )
    found = model.e_step(same, Rows(x, units=np.arange(len(x))), KERNELS)
    plain = super(HiddenMarkov, model).e_step(MixtureParams(weights, params.theta), Rows(x), KERNELS)
    assert found.evidence.log_likelihood == pytest.approx(plain.evidence.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(found.stats.sum_w, plain.stats.sum_w, rtol=1e-10)
    np.testing.assert_allclose(same.weights, weights, rtol=1e-10)


@pytest.fixture
def sequences(tmp_path: Path) -> dict[str, Any]:
    """Sections of a job on sequences of three sticky states."""
    _, _, x, starts = drawn("gaussian", n_units=60, seed=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "units.npy", np.repeat(np.arange(len(starts)), np.diff(starts, append=len(x))))
    return settings(
        tmp_path / "x.npy",
        data={"units": str(tmp_path / "units.npy")},
        model={"family": "hmm", "n_components": K, "emission": {"family": "gaussian", "covariance_type": "diag"}},
        fit={"method": "auto", "max_iter": 8},
        select={"heldout": 0.2},
        output={"top_k": 2},
    )


@pytest.mark.slow
def test_through_every_command(sequences: dict[str, Any], tmp_path: Path) -> None:
    """check, run, a stop, resume with the same bytes, labels that are Viterbi's, prediction of new sequences, the report."""
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(sequences))
    assert json.loads(command("check", path, "--json").out)["rows"] > 0
    whole = pipeline.run(pipeline.load_config(path), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(pipeline.load_config(path), tmp_path / "run", listeners=[Interrupt("pass", 3)])
    assert command("resume", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)
    found = pipeline.open_run(whole)
    assert (np.diff(found.log_likelihood) >= -1e-8).all() and np.diag(found.transitions).min() > 0.5
    assert (np.diff(found.weights) <= 0).all() and found.attrs["candidates"][0]["heldout"] < 0
    model, params, _ = pipeline.outputs.model_store.load_model(found)
    x, numbers = np.load(tmp_path / "x.npy"), np.load(tmp_path / "units.npy")
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    log_density = model.component.log_joint(params.theta, np.zeros(K), x, KERNELS)
    path_of = KERNELS.best_path(log_density, starts, params.start_probabilities, params.transitions)
    labels = zarr.open_group(whole / "labels.zarr", mode="r")
    np.testing.assert_array_equal(labels["label"][:], path_of)
    assert labels["log_density"][:].sum() == pytest.approx(found.attrs["final_log_likelihood"], rel=1e-9)
    page = (whole / "report.html").read_text()
    assert "hidden Markov model with 3 states" in page and "By state and next state" in page
    np.save(tmp_path / "new.npy", x[:50])
    np.save(tmp_path / "new_units.npy", numbers[:50])
    new = ("--set", f"data.path={tmp_path / 'new.npy'}", "--set", f"data.units={tmp_path / 'new_units.npy'}")
    assert command("predict", tmp_path / "run", *new, "--output", tmp_path / "new").code == 0
    fresh = zarr.open_group(tmp_path / "new" / "labels.zarr", mode="r")["label"][:]
    cut = starts[starts < 50][-1]  # the last sequence is cut short
    np.testing.assert_array_equal(fresh[:cut], path_of[:cut])


def test_what_does_not_fit_is_refused(sequences: dict[str, Any], tmp_path: Path) -> None:
    """Rows without units, unknown or unsuitable emissions, options of the emissions, and units longer than the memory."""
    path = tmp_path / "job.yaml"

    def said(**changes: Any) -> str:
        path.write_text(json.dumps({**sequences, **changes}))
        return refused("check", path)

    model = sequences["model"]
    assert "data.units: got none" in said(data={**sequences["data"], "units": None}, select={})
    assert "expected one of" in said(model={**model, "emission": "gausian"})
    assert "not supported" in said(model={**model, "emission": "student-t"})
    assert "n_components: is model.n_components" in said(
        model={**model, "emission": {"family": "poisson", "n_components": 2}}
    )
    assert "covariance_type" in said(model={**model, "emission": {"family": "gaussian", "covariance_type": "round"}})
    x = np.load(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.tile(x, (40, 1)))
    np.save(tmp_path / "units.npy", np.zeros(40 * len(x)))
    assert "split the longest unit" in said(select={}, model={**model, "n_components": 100}, engine={"memory": "64MiB"})


def test_the_python_class_takes_sequences_by_their_lengths() -> None:
    """As fits of chunks of whole sequences: the paths are Viterbi's, probabilities are those given the sequence, lengths must fit."""
    _, _, x, starts = drawn("gaussian", n_units=30)
    lengths = np.diff(starts, append=len(x))
    found = pipeline.HiddenMarkovModel(K, emission={"family": "gaussian", "covariance_type": "diag"}, random_state=0)
    found = found.set_params(max_iter=20, tol=1e-3).fit(x, lengths)
    assert (np.diff(found.lower_bounds_) > -1e-9).all() and found.transitions_.shape == (K, K)
    log_density = found.model_.component.log_joint(found._model()[1].theta, np.zeros(K), x, KERNELS)
    chain_of = found.start_probabilities_, found.transitions_
    np.testing.assert_array_equal(found.predict(x, lengths), KERNELS.best_path(log_density, starts, *chain_of))
    passed = KERNELS.chain_pass(log_density.copy(), starts, np.ones(len(starts)), *chain_of)
    np.testing.assert_allclose(found.predict_proba(x, lengths), passed.share, atol=1e-6)
    assert found.score(x, lengths) == pytest.approx(passed.log_norm.mean(), rel=1e-12)
    assert found.score(x, lengths) * len(x) == pytest.approx(found.lower_bound_ * len(x), rel=1e-9)
    assert found.score(x) != pytest.approx(found.score(x, lengths), rel=1e-9)  # one sequence
    assert found.bic(x, lengths) > found.aic(x, lengths)
    assert x.min() < 0
    with pytest.raises(ValueError, match="Negative values"):
        pipeline.HiddenMarkovModel(K, emission="poisson").fit(x, lengths)
    more = found.partial_fit(x[: starts[10]], lengths[:10])
    assert more.statistics_ is not None and len(more.sample(5)[0]) == 5
    with pytest.raises(ValueError, match=r"lengths: got .*expected whole numbers above 0 with the sum"):
        found.fit(x, lengths[:-1])
    with pytest.raises(ValueError, match="a model of sequences needs rows in memory"):
        found.fit(da.from_array(x), lengths)
