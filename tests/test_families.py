"""The laws of every family, in one table: a new family adds one line to PROBLEMS.

A line says which config section makes the model, and how rows are drawn. Starts, fits and samples follow from the contract.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
import yaml

import pipeline
from pipeline.arrays.packing import pack
from pipeline.data.chunks import Chunks
from pipeline.data.profile import ProfileJob, summary_of
from pipeline.data.units import UnitSource
from pipeline.engine.passes import Engine
from pipeline.kernels.cpu import KERNELS
from pipeline.models import schema
from pipeline.models.base import LatentModel
from pipeline.models.families import FAMILIES
from tests.jobs import Interrupt, command, results
from tests.laws.common import ArraySource, assigned, chunks_of, close, close_params, e_step, fit, job, method, sum_over
from tests.laws.common import same_bits as same
from tests.problems import ragged_bounds

N = 400


def blobs(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Rows of three overlapping blobs, of heavy tails, far from the origin."""
    centers = 3.0 * rng.normal(size=(3, 3))
    return 20.0 + centers[rng.integers(3, size=n)] + rng.standard_t(8, size=(n, 3))


def counts(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Counts of three kinds of rows."""
    return rng.poisson(rng.gamma(2.0, 2.0, size=(3, 4))[rng.integers(3, size=n)]).astype(float)


def documents(rng: np.random.Generator, n: int = N) -> sp.csr_array:
    """Counts of words of three topics, sparse, at least one word a row."""
    topics = rng.dirichlet(np.full(12, 0.5), size=3)
    return sp.csr_array(
        np.stack([rng.multinomial(1 + rng.integers(30), topics[rng.integers(3)]) for _ in range(n)]) * 1.0
    )


def answers(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Eight features of 0 and 1, of three kinds of rows."""
    return (rng.random((n, 8)) < rng.uniform(0.1, 0.9, (3, 8))[rng.integers(3, size=n)]).astype(float)


def gaps(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Rows in which a fifth of the entries is missing, of a few patterns, and no row is."""
    patterns = rng.random((6, x.shape[1])) < 0.2
    patterns[patterns.all(axis=1)] = False
    return np.where(patterns[rng.integers(6, size=len(x))], np.nan, x)


def codes(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Six columns of 2 or 4 categories, of three kinds of rows."""
    kind = rng.integers(3, size=n)
    many = np.array([2, 4, 4, 2, 4, 4])
    columns = [rng.dirichlet(np.full(m, 0.7), 3) @ np.tri(m).T for m in many]
    found = np.stack([(rng.random((n, 1)) > below[kind]).sum(axis=1) for below in columns], axis=1)
    return np.minimum(found, many - 1).astype(float)


def directions(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Rows of any length in three directions of five dimensions."""
    around = 2.0 * rng.normal(size=(3, 5))[rng.integers(3, size=n)] + rng.normal(size=(n, 5))
    return around * rng.uniform(0.1, 10.0, (n, 1))


def factors(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Rows of three kinds, each in two of six dimensions and noise, far from the origin."""
    kind, loadings = rng.integers(3, size=n), 2.0 * rng.normal(size=(3, 6, 2))
    around = np.einsum("ndq,nq->nd", loadings[kind], rng.normal(size=(n, 2)))
    return 20.0 + 2.0 * rng.normal(size=(3, 6))[kind] + around + rng.normal(size=(n, 6)) * rng.uniform(0.5, 1.5, 6)


MIXED = {"age": "gaussian", "visits": "poisson", "region": "categorical", "smoker": "bernoulli", "income": "gaussian"}


def mixed(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Columns of four kinds, of three kinds of rows."""
    kind = rng.integers(3, size=n)
    region = np.minimum((rng.random((n, 1)) > (rng.dirichlet(np.ones(3), 3) @ np.tri(3).T)[kind]).sum(axis=1), 2)
    smoker = rng.random(n) < rng.uniform(0.1, 0.9, 3)[kind]
    around = np.array([20.0, 40.0, 60.0])[kind] + rng.normal(size=(2, n)) * [[5.0], [9.0]]
    return np.column_stack([around[0], rng.poisson(rng.gamma(2.0, 2.0, 3)[kind]), region, smoker, around[1]]).astype(
        float
    )


def walks(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """Sequences of eight rows, in states that stay for some rows."""
    states = np.repeat(rng.integers(3, size=n), 1 + rng.poisson(2.0, n))[:n]
    return 20.0 + 2.0 * rng.normal(size=(3, 3))[states] + rng.normal(size=(n, 3))


class Problem(NamedTuple):
    """A line of the table.

    model : its section.  draw : rows, from a generator and their number.  features : before columns of errors.  unit : rows of a unit,
    where the family models units.  slow : whether its laws are slow tests.
    """

    model: dict[str, Any]
    draw: Callable[..., Any]
    features: int | None = None
    unit: int = 0
    slow: bool = False


PROBLEMS = {
    "factor": Problem({"family": "factor"}, factors),
    "factor-spherical": Problem({"family": "factor", "noise_type": "spherical", "rank": 1}, factors),
    "factor-shared": Problem({"family": "factor", "shared_noise": True}, factors),
    "factor-even": Problem({"family": "factor", "noise_type": "spherical", "shared_noise": True}, factors, slow=True),
    "gaussian-full": Problem({"family": "gaussian", "reg_covar": 0.0}, blobs),
    "gaussian-tied": Problem({"family": "gaussian", "covariance_type": "tied", "reg_covar": 0.0}, blobs),
    "gaussian-diag": Problem({"family": "gaussian", "covariance_type": "diag", "reg_covar": 0.0}, blobs),
    "gaussian-spherical": Problem({"family": "gaussian", "covariance_type": "spherical", "reg_covar": 0.0}, blobs),
    "gaussian-prior": Problem({"family": "gaussian", "prior": "auto"}, blobs),
    "kmeans": Problem({"family": "kmeans"}, blobs),
    "multinomial": Problem({"family": "multinomial"}, documents),
    "lda": Problem({"family": "lda", "doc_tol": 1e-12}, documents),
    "lda-fixed": Problem({"family": "lda", "doc_topic_prior": 0.5, "concentration": 1.5}, documents),
    "poisson": Problem({"family": "poisson", "concentration": 1.5}, counts),
    "bernoulli": Problem({"family": "bernoulli"}, answers),
    "bernoulli-sparse": Problem({"family": "bernoulli"}, lambda rng, n=N: sp.csr_array(answers(rng, n))),
    "bernoulli-likelihood": Problem({"family": "bernoulli", "concentration": 1.0}, answers, slow=True),
    "categorical": Problem({"family": "categorical"}, codes),
    "categorical-given": Problem(
        {"family": "categorical", "concentration": 1.0, "n_categories": [2, 5, 4, 2, 4, 4]}, codes
    ),
    "columns": Problem(
        {"family": "columns", "columns": {str(j): kind for j, kind in enumerate(MIXED.values())}}, mixed
    ),
    "vmf": Problem({"family": "vmf"}, directions),
    "vmf-sparse": Problem({"family": "vmf"}, documents),
    "spherical-kmeans": Problem({"family": "spherical-kmeans"}, directions),
    "spherical-kmeans-sparse": Problem({"family": "spherical-kmeans"}, documents),
    "student-t-full": Problem({"family": "student-t", "reg_covar": 0.0}, blobs),
    "student-t-tied": Problem({"family": "student-t", "covariance_type": "tied", "reg_covar": 0.0}, blobs),
    "student-t-diag": Problem({"family": "student-t", "covariance_type": "diag", "reg_covar": 0.0}, blobs),
    "student-t-shared": Problem({"family": "student-t", "covariance_type": "spherical", "shared_df": True}, blobs),
    "student-t-fixed": Problem({"family": "student-t", "df": 4.0, "prior": "auto"}, blobs),
    "gaussian-noise": Problem({"family": "gaussian", "reg_covar": 0.0, "noise": "uniform"}, blobs),
    "gaussian-missing": Problem({"family": "gaussian", "reg_covar": 0.0}, lambda rng, n=N: gaps(rng, blobs(rng, n))),
    "gaussian-errors": Problem(
        {"family": "gaussian", "covariance_type": "diag", "reg_covar": 0.0},
        lambda rng, n=N: np.concatenate([blobs(rng, n), rng.gamma(1.0, 0.1, (n, 3))], axis=1),
        3,
    ),
    "columns-missing": Problem(
        {"family": "columns", "columns": {str(j): kind for j, kind in enumerate(MIXED.values())}, "reg_covar": 0.0},
        lambda rng, n=N: gaps(rng, mixed(rng, n)),
    ),
    "poisson-missing": Problem({"family": "poisson", "concentration": 1.5}, lambda rng, n=N: gaps(rng, counts(rng, n))),
    "hmm": Problem({"family": "hmm", "emission": {"family": "gaussian", "reg_covar": 0.0}}, walks, unit=8),
    "hmm-poisson": Problem({"family": "hmm", "emission": "poisson"}, counts, unit=8, slow=True),
    "hmm-missing": Problem(
        {"family": "hmm", "emission": "poisson"}, lambda rng, n=N: gaps(rng, counts(rng, n)), unit=8, slow=True
    ),
    "factor-missing": Problem({"family": "factor"}, lambda rng, n=N: gaps(rng, factors(rng, n)), slow=True),
    "factor-spherical-missing": Problem(
        {"family": "factor", "noise_type": "spherical", "shared_noise": True},
        lambda rng, n=N: gaps(rng, factors(rng, n)),
        slow=True,
    ),
    "hmm-gaussian-missing": Problem(
        {"family": "hmm", "emission": {"family": "gaussian", "reg_covar": 0.0}},
        lambda rng, n=N: gaps(rng, walks(rng, n)),
        unit=8,
        slow=True,
    ),
    "bernoulli-missing": Problem({"family": "bernoulli"}, lambda rng, n=N: gaps(rng, answers(rng, n)), slow=True),
    "categorical-missing": Problem({"family": "categorical"}, lambda rng, n=N: gaps(rng, codes(rng, n)), slow=True),
    "gaussian-diag-missing": Problem(
        {"family": "gaussian", "covariance_type": "diag", "reg_covar": 0.0},
        lambda rng, n=N: gaps(rng, blobs(rng, n)),
        slow=True,
    ),
    "gaussian-covariances-of-errors": Problem(
        {"family": "gaussian", "reg_covar": 0.0},
        lambda rng, n=N: np.concatenate([blobs(rng, n), rng.gamma(1.0, 0.1, (n, 1)) * np.eye(3).ravel()], axis=1),
        3,
        slow=True,
    ),
    "student-t-missing": Problem(
        {"family": "student-t", "prior": "auto"}, lambda rng, n=N: gaps(rng, blobs(rng, n)), slow=True
    ),
    "student-t-diag-missing": Problem(
        {"family": "student-t", "covariance_type": "diag", "reg_covar": 0.0},
        lambda rng, n=N: gaps(rng, blobs(rng, n)),
        slow=True,
    ),
    "student-t-tied-missing": Problem(
        {"family": "student-t", "covariance_type": "tied", "reg_covar": 0.0},
        lambda rng, n=N: gaps(rng, blobs(rng, n)),
        slow=True,
    ),
    "student-t-noise": Problem({"family": "student-t", "reg_covar": 0.0, "noise": "uniform"}, blobs, slow=True),
}
FIRST = {problem.model["family"]: name for name, problem in reversed(PROBLEMS.items())}  # the first line of each family
UNTABLED = {"python"}  # models of users, of which `check_model` tests the laws
NOT_CLOSED = (
    "factor",
    "student-t",
    "gaussian-missing",
    "gaussian-diag-missing",
    "gaussian-errors",
    "gaussian-covariances-of",
    "gaussian-noise",
    "hmm-gaussian-missing",
)
LABELLED = [name for name in PROBLEMS if FAMILIES[PROBLEMS[name].model["family"]].takes_labels]  # a row, a component
DENSITIES = [name for name in LABELLED if "bic" in FAMILIES[PROBLEMS[name].model["family"]].criteria]


def lines(names: Iterable[str]) -> list[Any]:
    """Lines of the table, those that are slow with that mark."""
    return [pytest.param(name, marks=pytest.mark.slow if PROBLEMS[name].slow else ()) for name in names]


class Drawn(NamedTuple):
    """A drawn problem: the model, parameters after a few iterations, rows, their weights, ragged bounds of chunks, and rows of a unit."""

    model: Any
    params: Any
    x: Any
    weight: np.ndarray
    bounds: list[int]
    unit: int

    def units(self) -> np.ndarray:
        """Which rows belong together, (units, rows of a unit): where there are no units, each is alone."""
        return np.arange(N).reshape(-1, self.unit or 1)


def drawn(name: str, k: int = 3, assignment: str | None = None, seed: int = 0) -> Drawn:
    """The problem of a line. It starts from labels that know nothing of the clusters, and a few iterations."""
    plain, draw, features, unit, _ = PROBLEMS[name]
    section = FAMILIES[plain["family"]].model_validate({**plain, "n_components": k})
    rng = np.random.default_rng(seed)
    x = draw(rng)
    profile = sum_over(chunks_of(x), [ProfileJob(section.second_moments, 50, 0, features)])[0]
    model = section.build(summary_of(profile, []), assignment or section.assignments[0])
    if profile.n_missing or features:
        model = model.for_rows("errors" if features else "missing")
    dense = x.toarray() if sp.issparse(x) else np.nan_to_num(x)
    order = np.argsort(
        dense @ rng.normal(size=dense.shape[1])
    )  # slices of rows: labels that differ, but not by cluster
    labels = np.empty(N, dtype=np.int64)
    labels[order] = np.arange(N) * k // N
    first = model.starts_as or model
    params = first.m_step(first.label_statistics(first.plain(x), labels), None)
    params = params if first is model else model.started(params)
    for _ in range(2):
        params = model.m_step(e_step(model, params, x, unit=unit).stats, params)
    each = max(unit, 1)
    weight = np.repeat(np.where(rng.random(N // each) < 0.1, 0.0, rng.uniform(0.2, 3.0, N // each)), each)
    bounds = [each * int(b) for b in np.unique(np.array([0, 1, 8, 150, 151, N]) // each)]
    return Drawn(model, params, x, weight, bounds, unit)


def test_every_family_has_a_line() -> None:
    """No family is left out of the laws."""
    assert set(FIRST) | UNTABLED == set(FAMILIES)


def close_totals(a: Any, b: Any, tolerance: float = 1e-11) -> None:
    """Every array that adds is close, in units of the largest entry of the array, and of one nat a row."""
    found = pack(a).arrays
    for name, value in pack(b).arrays.items():
        error = np.abs(found[name] - value).max()
        assert error <= tolerance * (N + np.abs(value).max()), f"{name}: differs by {error:.3g}"


@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_statistics_add_in_any_order(name: str) -> None:
    """Of ragged chunks, and of rows in another order, they are those of the whole, with and without weights."""
    problem = drawn(name)
    model, params, x, weight, bounds, unit = problem
    order = np.random.default_rng(1).permutation(problem.units()).ravel()
    for w in (None, weight):
        whole = e_step(model, params, x, None, w, unit=unit).totals
        close_totals(e_step(model, params, x, bounds, w, unit=unit).totals, whole)
        close_totals(e_step(model, params, x[order], None, None if w is None else w[order], unit=unit).totals, whole)


@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_weight_is_how_often_a_row_is_there(name: str) -> None:
    """Weight 2 is the row twice, weight 0 the row left out: in the E-step, and in what labels start from."""
    problem = drawn(name)
    model, params, x, _, _, unit = problem
    times = np.random.default_rng(1).integers(0, 3, len(problem.units()))
    repeated = np.repeat(problem.units(), times, axis=0).ravel()
    times = np.repeat(times, unit or 1)
    one, two = e_step(model, params, x, None, times * 1.0, unit=unit), e_step(model, params, x[repeated], unit=unit)
    close_totals(one.totals, two.totals)
    labels, model = np.arange(N) % model.n_components, model.starts_as or model
    x = model.plain(x)
    close_totals(model.label_statistics(x, labels, times * 1.0), model.label_statistics(x[repeated], labels[repeated]))


@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_workers_change_no_bit(name: str) -> None:
    """One, two and four threads, timed before or not (the timing moves the shard level), return the bytes of the plain tree."""
    model, params, x, _, _, unit = drawn(name)
    source: Any = ArraySource(x, ragged_bounds(np.random.default_rng(3), N, 37))
    chunks = Chunks(UnitSource(source, np.arange(0, N, unit), True) if unit else source)
    final = job(model, params, final=True)
    expected = sum_over([chunks.load(i) for i in range(chunks.n_chunks)], [final])[0]
    for workers in (1, 2, 4):
        engine = Engine(workers=workers)
        for _ in range(2):
            same(engine.sum_over(chunks, [final])[0], expected)


@pytest.mark.parametrize("how", ["em", "auto"])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_objective_never_falls(name: str, assignment: str, how: str) -> None:
    """Nor does the bound after an M-step; and after an E-step it is the objective less the prior."""
    section = FAMILIES[PROBLEMS[name].model["family"]]
    if assignment not in section.assignments:
        assignment = section.assignments[0]
    model, params, x, weight, _, unit = drawn(name, assignment=assignment)
    chunks = chunks_of(x, None, weight, unit)
    run, events = fit(model, params, chunks, 12, method=method(how, chunks))
    assert not [event for event in events if not hasattr(event, "least")]  # nothing was reset
    trace = np.array([*(entry.objective for entry in run.history), run.objective])
    assert (np.diff(trace) >= -1e-12 * np.abs(trace).max()).all(), np.diff(trace).min()
    if model.has_bound:
        totals = run.final.totals
        bound = model.bound(totals, run.params) + model.log_prior(run.params)
        assert bound == pytest.approx(model.objective(totals, run.params), rel=1e-10)
        new = model.m_step(totals.stats, run.params)
        assert model.bound(totals, new) + model.log_prior(new) >= bound - 1e-12 * abs(bound)


@pytest.mark.parametrize("name", lines([*DENSITIES, "lda", "lda-fixed"]))
def test_lengths_of_steps_are_those_of_the_free_energy(name: str) -> None:
    """To second order, in an M-step near the optimum and in a small change of the statistics."""
    model, params, x, _, _, unit = drawn(name)
    run, _ = fit(model, params, chunks_of(x, unit=unit), 25)
    totals = run.final.totals
    after = model.m_step(totals.stats, run.params)
    expected = LatentModel.fisher_norm(model, totals, run.params, after)
    assert model.fisher_norm(totals, run.params, after) == pytest.approx(expected, rel=0.05, abs=3e-7)
    change = totals - e_step(model, run.params, x[: N // 2], unit=unit).totals * 2.0
    expected = LatentModel.change_norm(model, change, totals, after)
    assert model.change_norm(change, totals, after) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_components_have_no_order(name: str) -> None:
    """Components in another order: the same densities and the same step, in that order."""
    model, params, x, _, _, unit = drawn(name)
    order = np.array([2, 0, 1])
    moved = model.params_from_arrays(schema.selected(model.fields, model.arrays(params), order))
    here, there = assigned(model, params, x), assigned(model, moved, x)
    if unit:
        [rows] = chunks_of(x, unit=unit)
        found = (model.predict(each, rows, 0, KERNELS) for each in (params, moved))
        here, there = (SimpleNamespace(score=each[model.words.score], label=each["label"]) for each in found)
    close(there.score, here.score, 1e-12)
    np.testing.assert_array_equal(np.where(there.label < 0, there.label, order[there.label]), here.label)
    after, again = (model.m_step(e_step(model, start, x, unit=unit).stats, start) for start in (params, moved))
    arrays = schema.selected(model.fields, model.arrays(after), order)
    close_params(model, again, model.params_from_arrays(arrays), 1e-10)


@pytest.mark.parametrize("name", lines(PROBLEMS))
def test_one_component_is_a_maximum(name: str) -> None:
    """K = 1: the fit to the rows has a higher objective on them than fits to the rows with other weights."""
    model, params, x, _, _, unit = drawn(name, k=1)
    chunks = chunks_of(x, unit=unit)
    best, _ = fit(model, params, chunks, 60, method=method("auto", chunks))
    rng = np.random.default_rng(1)
    for size in (0.02, 0.3):
        weight = np.repeat(rng.uniform(1.0 - size, 1.0 + size, N // (unit or 1)), unit or 1)
        other, _ = fit(model, params, chunks_of(x, None, weight, unit), 60)
        totals = e_step(model, other.params, x, unit=unit).totals
        assert best.objective > model.objective(totals, other.params)


@pytest.mark.parametrize("name", lines(name for name in LABELLED if not name.startswith(NOT_CLOSED)))
def test_one_component_is_a_closed_form(name: str) -> None:
    """K = 1, and no latent variable but the label: one M-step ends where any number of them does."""
    model, params, x, _, _, unit = drawn(name, k=1)
    after = model.m_step(e_step(model, params, x, unit=unit).stats, params)
    close_params(model, model.m_step(e_step(model, after, x, unit=unit).stats, after), after, 1e-10)


@pytest.mark.parametrize("name", lines(DENSITIES))
def test_a_sample_recovers_the_fit(name: str) -> None:
    """Rows drawn from a fit: a fit to them gains about half a nat a free number over the truth, as theory has it."""
    model, params, x, _, _, unit = drawn(name, seed=3)
    truth = fit(model, params, chunks_of(x, unit=unit), 10)[0].params
    sample, labels = model.sample(truth, 4000, np.random.default_rng(1))
    shares = truth.weights if unit else model.shares(truth, None)
    assert np.bincount(labels[labels >= 0], minlength=3) == pytest.approx(4000 * shares, abs=150)
    unit = 4000 if unit else 0  # one sequence
    chunks = chunks_of(sample, unit=unit)
    run, _ = fit(model, truth, chunks, 40, method=method("auto", chunks))
    gain = 2.0 * (run.log_likelihood - e_step(model, truth, sample, unit=unit).evidence.log_likelihood)
    free = model.n_free_parameters()
    assert -0.5 * free <= gain <= free + 5.0 * np.sqrt(2.0 * free)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in FIRST.values() if not PROBLEMS[name].unit])  # test_hmm.py
def test_through_every_command(name: str, tmp_path: Path) -> None:
    """config, check, run, a stop, resume with the same bytes, predict, report and the Python API."""
    plain, draw, *_ = PROBLEMS[name]
    x = draw(np.random.default_rng(0), 150)
    if sp.issparse(x):
        x = x.toarray()
    np.save(tmp_path / "x.npy", x)
    template = command("config", plain["family"]).out
    assert all(f"{key}:" in template for key in plain)
    config = yaml.safe_load(template)
    config["data"] = {"source": "npy", "path": str(tmp_path / "x.npy")}
    config["model"] |= {**plain, "n_components": 2}
    config["fit"] |= {"method": "em", "max_iter": 4, "tol": 0}
    config["output"]["path"] = str(tmp_path / "run")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    assert json.loads(command("check", tmp_path / "job.yaml", "--json").out)["rows"] == len(x)
    whole = pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(pipeline.load_config(tmp_path / "job.yaml"), listeners=[Interrupt("pass", 2)])
    assert command("resume", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)
    assert command("predict", tmp_path / "run", "--output", tmp_path / "labels").code == 0
    words, page = FAMILIES[plain["family"]].words, (tmp_path / "run" / "report.html").read_text()
    assert words.name.lower() in command("status", tmp_path / "run").out.lower()
    assert words.title.format(k=2) in page and ("Gaussian" in page) == (plain["family"] in ("gaussian", "columns"))
    labels = pipeline.open_estimator(tmp_path / "run").predict(x)
    import zarr

    np.testing.assert_array_equal(zarr.open_group(tmp_path / "labels" / "labels.zarr", mode="r")["label"][:], labels)


@pytest.mark.parametrize(
    "name",
    lines(
        name
        for name in LABELLED
        if not name.startswith(("factor-", "columns-")) and not name.endswith("sparse") and name != "multinomial"
    ),
)
def test_an_e_step_takes_the_same_memory_for_any_number_of_components(name):
    """Responsibilities of a chunk are never all there at once, nor what tells the cost of leaving components out."""
    k = 64
    model, params, few, *_, unit = drawn(name, k)
    x = np.tile(few, (40_000 // len(few), 1))
    for action in (
        lambda: job(model, params)(chunks_of(x, unit=unit)[0], KERNELS),
        lambda: model.removal_costs(params, x, None, KERNELS),
    ):
        action()
        tracemalloc.start()
        action()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * 8 * k * len(x) + 2 * x.nbytes, f"{peak / 2**20:.1f} MiB"
