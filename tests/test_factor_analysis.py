"""A model without components, in a user's file, through the loop and every command; against scikit-learn."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import FactorAnalysis as Peer

import pipeline
from pipeline.em.accumulate import method_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.jobconfig import Config, validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep, Totals
from tests.factor_analysis import FactorAnalysis, Factors, Rows
from tests.jobs import Interrupt, command, results, write_rows

N, D, Q = 700, 6, 2
FILE = Path(__file__).with_name("factor_analysis.py")


def drawn(seed: int = 0) -> np.ndarray:
    """Rows of a model with Q factors, (N, D)."""
    rng = np.random.default_rng(seed)
    loadings, noise = 2.0 * rng.normal(size=(D, Q)), rng.uniform(0.5, 1.5, size=D)
    return 5.0 + rng.normal(size=(N, Q)) @ loadings.T + rng.normal(size=(N, D)) * np.sqrt(noise)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in a store."""
    return write_rows(tmp_path_factory.mktemp("rows") / "x.zarr", drawn())


@pytest.fixture(scope="module")
def peer() -> Peer:
    """scikit-learn's fit, as close to the maximum as it comes."""
    return Peer(Q, tol=1e-13, max_iter=100_000, svd_method="lapack").fit(drawn())


def job(rows: Path, **fit: Any) -> Config:
    """A fit of these rows to the end."""
    return validate(
        {
            "data": {"source": "zarr", "path": str(rows)},
            "model": {"family": "python", "path": f"{FILE}:FactorSection", "n_factors": Q},
            "fit": {"init": "random", "max_iter": 3000, "tol": 1e-11, **fit},
        }
    )


def test_the_fit_is_scikit_learns(rows: Path, peer: Peer, tmp_path: Path) -> None:
    """The same log-likelihood to 1e-6, total nats, and covariance, by plain EM and by extrapolation, which takes fewer passes."""
    passes = {}
    for method in ("em", "auto"):
        found = pipeline.open_run(pipeline.run(job(rows, method=method), tmp_path / method))
        assert found.attrs["stop_reason"].startswith("converged")
        assert found.attrs["final_log_likelihood"] == pytest.approx(N * peer.score(drawn()), abs=1e-6)
        assert found.attrs["n_free_parameters"] == D + D * Q - 1 + D
        w = found.loadings.values
        np.testing.assert_allclose(w @ w.T + np.diag(found.noise_variance), peer.get_covariance(), rtol=2e-5, atol=2e-5)
        passes[method] = found.attrs["n_iter"]
        assert ("squarem" in found.phase.values) == (method == "auto")
    assert passes["auto"] < 0.6 * passes["em"]


def test_it_ends_where_it_would_have_after_an_interruption(rows: Path, peer: Peer, tmp_path: Path) -> None:
    """Model and labels to the byte; prediction gives scikit-learn's log-densities; the report says what was fitted."""
    whole = pipeline.run(job(rows), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job(rows), tmp_path / "run", listeners=[Interrupt("pass", 9)])
    assert command("status", tmp_path / "run").code == 0
    assert command("resume", tmp_path / "run", "--set", f"model.path={FILE}:FactorSection").code == 0
    assert results(tmp_path / "run") == results(whole)
    assert (
        command(
            "predict", tmp_path / "run", "--set", f"model.path={FILE}:FactorSection", "--output", tmp_path / "p"
        ).code
        == 0
    )
    for place in (tmp_path / "run", tmp_path / "p"):
        density = xr.open_zarr(place / "labels.zarr", consolidated=False).log_density.values
        np.testing.assert_allclose(density, peer.score_samples(drawn()), atol=1e-4)
    assert "Factor analysis with 2 factors" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_candidates_differ_in_what_the_family_lists(rows: Path, tmp_path: Path) -> None:
    """BIC finds the number of factors, with the free parameters that the family counts."""
    config = job(rows, max_iter=60).model_copy(
        update={"model": job(rows).model.model_copy(update={"n_factors": (1, 2, 3)})}
    )
    found = pipeline.open_run(pipeline.run(config, tmp_path / "run"))
    assert found.attrs["n_factors"] == Q and found.sizes["factor"] == Q
    assert [entry["n_factors"] for entry in found.attrs["candidates"]] == [1, 2, 3]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_objective_never_falls_and_the_certificate_holds(seed: int) -> None:
    """Plain EM says at each step near the end what was left to gain; with extrapolation, a run stops with less than tol left."""
    x = drawn(3)
    model = FactorAnalysis(Q, x.mean(axis=0) + 0.5)
    start = model.start(SimpleNamespace(mean=x.mean(axis=0), variance=x.var(axis=0)), np.random.default_rng(seed))

    def fit(method: str, tol: float) -> Run:
        def evaluate(jobs: Any) -> list[Any]:
            return [job(Rows(x), KERNELS) for job in jobs]

        way = method_of(method, np.array([0, N]), 0)
        *_, ([run], _) = em([Run(0, model, start)], evaluate, Limits(5000, tol), N, way)
        assert (np.diff([entry.objective for entry in run.history]) >= -1e-9).all()
        return run

    plain = fit("em", 1e-14)
    left = (plain.objective - np.array([entry.objective for entry in plain.history])) / N
    said = np.array([entry.remaining_gain for entry in plain.history])
    near = (left < 1e-5) & (left > 1e-9)
    assert near.sum() >= 3
    np.testing.assert_allclose(said[near], left[near], rtol=0.5)
    for tol in (1e-3, 1e-5, 1e-7):
        assert plain.objective - fit("auto", tol).objective < tol * N


def test_statistics_add_and_the_bound_is_the_likelihood() -> None:
    """Over chunks, weighted rows included; F(q, theta) = log p(X | theta) at the posterior; the M-step maximizes the bound."""
    x, w, rng = drawn(4), np.random.default_rng(2).uniform(0, 3, N), np.random.default_rng(5)
    model = FactorAnalysis(Q, np.full(D, 4.0))
    params = model.start(SimpleNamespace(mean=x.mean(axis=0), variance=x.var(axis=0)), rng)
    whole = EStep(model, params)(Rows(x, w), KERNELS)
    parts = [EStep(model, params)(Rows(x[a:b], w[a:b], a), KERNELS) for a, b in itertools.pairwise([0, 1, 300, N])]
    added = parts[0] + parts[1] + parts[2]
    for name in ("w", "yy", "yz", "zz"):
        np.testing.assert_allclose(getattr(added.stats, name), getattr(whole.stats, name), rtol=1e-12)
    totals = Totals(whole.stats, whole.evidence)
    assert model.bound(totals, params) == pytest.approx(whole.evidence.log_likelihood, rel=1e-12)
    best = model.m_step(whole.stats, params)
    for _ in range(20):
        near = Factors(*(value * (1 + 1e-3 * rng.normal(size=value.shape)) for value in best))
        assert model.expected_log_joint(whole.stats, near) < model.expected_log_joint(whole.stats, best)
