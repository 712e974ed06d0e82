"""Components that too few rows support are pruned, and what is left is fitted to all rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from scipy.special import logsumexp

from pipeline import workflow
from pipeline.em.pruning import pruned
from pipeline.engine.memory_rows import MemoryRows
from pipeline.workflow import open_run
from tests.jobs import Interrupt, command, job, results, write_config, write_rows
from tests.laws.common import TYPES, examples, gaussian_mixture
from tests.problems import seeds
from tests.reference import gaussian_log_joint

pytestmark = pytest.mark.full

APART = 8.0


def clusters(k: int, d: int = 2, n: int = 1500, seed: int = 0) -> np.ndarray:
    """Rows of k clusters on a circle, far apart, in no order."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(k) / k
    means = np.zeros((k, d))
    means[:, :2] = APART * k / 4 * np.c_[np.cos(angle), np.sin(angle)]
    return means[rng.integers(k, size=n)] + rng.normal(size=(n, d))


@example(29726)  # the last step but one of EM prunes
@given(seeds)
@examples(8)
def test_lengths_are_figueiredo_and_jains(seed):
    """Their equation 15, term by term, for the number of components that is kept; the smallest within 5 nats of the shortest; down to one."""
    d, k, n = 2, 1 + seed % 3, 900
    x = clusters(k, d, n, seed % 100)
    model = gaussian_mixture(5, x.mean(axis=0))
    rng = np.random.default_rng(seed)
    means, covariances = x[rng.choice(n, 5, replace=False)], np.tile(np.cov(x.T), (5, 1, 1))
    params = model.params(weights=np.full(5, 0.2), means=means, covariances=covariances)
    with ThreadPoolExecutor(1) as threads:
        best = pruned(model, params, MemoryRows(x, None, threads), n)
    assert [k for k, _ in best.lengths] == sorted({k for k, _ in best.lengths}, reverse=True)
    assert best.lengths[-1][0] == 1
    limit = min(length for _, length in best.lengths) + 5.0
    kept, length = min(each for each in best.lengths if each[1] <= limit)
    assert kept == best.model.n_components == len(best.params.weights)
    found, price = best.model.arrays(best.params), d + d * (d + 1) / 2
    w = found["weights"]
    log_joint = gaussian_log_joint(x, *found.values(), "full")
    expected = price / 2 * np.log(n * w / 12).sum() + kept / 2 * np.log(n / 12) + kept * (price + 1) / 2
    assert length == pytest.approx(expected - logsumexp(log_joint, axis=1).sum(), rel=1e-9)


@pytest.mark.parametrize("covariance_type", ["full", *(pytest.param(t, marks=pytest.mark.slow) for t in TYPES[1:])])
def test_a_job_keeps_as_many_components_as_there_are_clusters(tmp_path, covariance_type):
    """Of eight that it may have; the model, its history and its labels are those of four, and the log says how."""
    # The message of one small component more is up to 4.4 nats shorter with some seeds, which is not enough.
    store = write_rows(tmp_path / "x.zarr", clusters(4, seed=3), rows=500)
    config = job(
        store,
        model={"n_components": 8, "covariance_type": covariance_type},
        fit={"method": "auto", "tol": 1e-3, "max_iter": 20},
        select={"pruning": True},
    )
    found = open_run(workflow.run(config, tmp_path / "run"))
    assert found.sizes["component"] == 4 and found.attrs["n_components"] == 4
    lengths = dict(found.attrs["message_lengths"])
    assert lengths[4] < min(lengths.values()) + 5 and lengths[1] > lengths[4]


@pytest.mark.parametrize("seed", [2, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 1))])
def test_the_message_is_no_longer_than_from_the_truth(tmp_path, seed):
    """Weights of 1 to 1/20, scales of 1 to 4: a job finds no longer message than pruning from the true parameters does."""
    k, d, n = 5, 4, 4000
    rng = np.random.default_rng(seed)
    weights = 20.0 ** -np.linspace(0, 1, k)
    weights /= weights.sum()
    means, scales = rng.normal(size=(k, d)) * 4, 2.0 ** rng.uniform(-1, 1, size=(k, 1, 1))
    label = rng.choice(k, n, p=weights)
    x = means[label] + scales[label, :, 0] * rng.normal(size=(n, d))
    model = gaussian_mixture(k, x.mean(axis=0))
    params = model.params(weights=weights, means=means, covariances=scales**2 * np.eye(d))
    with ThreadPoolExecutor(2) as threads:
        truth = pruned(model, params, MemoryRows(x, None, threads), n)
    config = job(
        write_rows(tmp_path / "x.zarr", x, rows=1000),
        model={"n_components": k + 4},
        select={"pruning": True},
        fit={"method": "auto"},
    )
    found = open_run(workflow.run(config, tmp_path / "run")).attrs
    lengths = dict(found["message_lengths"])
    assert lengths[found["n_components"]] <= min(length for _, length in truth.lengths) + 1e-3


def test_a_stopped_job_goes_on_with_the_components_that_are_left(tmp_path):
    """Stopped after a pass with fewer components than the config has: the same bytes."""
    store = write_rows(tmp_path / "x.zarr", clusters(3), rows=500)
    changes = {
        "model": {"n_components": 6},
        "fit": {"method": "auto", "max_iter": 8, "tol": 0},
        "select": {"pruning": True},
    }
    config = job(store, **changes)
    alone = workflow.run(config, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "stopped", listeners=[Interrupt("pass", 2)])
    assert results(workflow.resume(tmp_path / "stopped")) == results(alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"n_components": [2, 3]}},
        {"fit": {"method": "em"}},
        {"fit": {"n_init": 2}},
        {"model": {"family": "kmeans"}},
    ],
)
def test_what_it_cannot_go_with_is_refused(tmp_path, changes):
    """With a sentence that says with what it goes."""
    store = write_rows(tmp_path / "x.zarr", clusters(2))
    fit = {"method": "auto", "init": "random", **changes.pop("fit", {})}
    path = write_config(tmp_path / "c.yaml", store, fit=fit, select={"pruning": True}, **changes)
    refused = command("run", path, "--output", tmp_path / "run")
    assert refused.code == 2 and "select" in refused.err and not (tmp_path / "run").exists()
