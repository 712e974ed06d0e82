"""Two latent variables in one model of a user's: the example in configs/, through the loop and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.config import outside
from pipeline.jobconfig import Config, validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import Totals
from tests.jobs import Interrupt, command, results
from tests.laws.common import chunks_of, e_step, fit, method

FILE = Path(__file__).resolve().parents[1] / "configs" / "switching.py"


@pytest.fixture(scope="module")
def example() -> Any:
    """Rows of the example, its section and its true parameters."""
    source, section = (outside.load(f"{FILE}:{name}", "model.path")[0] for name in ("DrawnRows", "SwitchingSection"))
    return np.concatenate([source(3000).read(i) for i in range(3)]), section, source.truth


def job(n: int, **fit_options: Any) -> Config:
    """The config of the example, on fewer rows."""
    raw = yaml.safe_load(FILE.with_suffix(".yaml").read_text())
    raw["data"] |= {"path": f"{FILE}:DrawnRows", "options": {"n": n}}
    raw["model"]["path"] = f"{FILE}:SwitchingSection"
    raw["fit"] |= fit_options
    return validate(raw)


def test_statistics_add_and_the_posterior_is_of_both_variables(example: Any) -> None:
    """F at the posterior is the log-likelihood; chunks add; the M-step is a maximum; EM, plain or extrapolated, never falls."""
    x, section, truth = example
    model = section().build(type("Summary", (), {"mean": x.mean(axis=0)}), "soft")
    off = truth._replace(coefficients=truth.coefficients + 0.3, variances=truth.variances * 2.0)
    found = model.e_step(off, Rows(x), KERNELS)
    assert model.bound(Totals(found.stats, found.evidence), off) == pytest.approx(
        found.evidence.log_likelihood, rel=1e-11
    )
    parts = e_step(model, off, x, [0, 1, 900, len(x)])
    np.testing.assert_allclose(parts.stats.vv, found.stats.vv, rtol=1e-11, atol=1e-9)
    best, rng = model.m_step(found.stats, off), np.random.default_rng(0)
    for _ in range(10):
        near = best._replace(
            coefficients=best.coefficients + 1e-3 * rng.normal(size=best.coefficients.shape),
            variances=best.variances * np.exp(1e-3 * rng.normal(size=2)),
        )
        assert model.expected_log_joint(found.stats, near) < model.expected_log_joint(found.stats, best)
    for how in ("em", "auto"):
        run, _ = fit(model, off, chunks_of(x), 12, method=method(how, chunks_of(x)))
        trace = np.array([*(entry.objective for entry in run.history), run.objective])
        assert (np.diff(trace) >= -1e-11 * np.abs(trace).max()).all()


@pytest.mark.slow
def test_the_example_finds_the_truth_through_the_commands(example: Any, tmp_path: Path) -> None:
    """A stop and resume give the same bytes; lines, noises and both labels of rows are those that the rows were drawn with."""
    _, _, truth = example
    whole = pipeline.run(job(4000, n_init=2), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job(4000, n_init=2), tmp_path / "run", listeners=[Interrupt("pass", 4)])
    names = (("model.path", "SwitchingSection"), ("data.path", "DrawnRows"))
    sets = [word for key, name in names for word in ("--set", f"{key}={FILE}:{name}")]
    assert command("resume", tmp_path / "run", *sets).code == 0
    assert results(tmp_path / "run") == results(whole)
    found = pipeline.open_run(whole)
    lines, noises = np.argsort(-found.line_weights.values), np.argsort(found.variances.values)
    np.testing.assert_allclose(found.coefficients.values[lines], truth.coefficients, atol=0.08)
    np.testing.assert_allclose(found.variances.values[noises], truth.variances, rtol=0.2)
    np.testing.assert_allclose(found.noise_weights.values[noises], truth.noise_weights, atol=0.03)
    labels = zarr.open_group(whole / "labels.zarr", mode="r")
    assert set(labels["noise"][:]) == set(labels["line"][:]) == {0, 1}
    assert "2 regressions with 2 noises" in (whole / "report.html").read_text()
