"""The job end to end: the same bytes however it was disturbed, and refusals that do no harm."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr
from scipy.special import logsumexp
from scipy.stats import norm

import pipeline
from pipeline import workflow
from pipeline.arrays.packing import unpack
from pipeline.arrays.rows import Rows
from pipeline.data import sample
from pipeline.em.accumulate import method_of
from pipeline.engine import memory
from pipeline.errors import InputError, StorageError
from pipeline.fitting import disk, driver
from pipeline.fitting.disk import SLACK
from pipeline.kernels.cpu import KERNELS
from pipeline.models.information import ScoreProducts
from pipeline.outputs import checkpoint, labels, run_sink
from pipeline.outputs.events import read_events
from pipeline.outputs.model_store import load_model
from tests.jobs import Interrupt, blobs, files, job, results, write_rows
from tests.laws.common import e_step

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small blocks and chunks, no flushing, and one line for a report: what is slow is not at stake here."""
    from pipeline.data import source
    from pipeline.outputs import checkpoint, report, run_directory

    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    monkeypatch.setattr(labels, "BLOCK_ROWS", 200)
    monkeypatch.setattr(source, "TARGET_BYTES", 2400)
    monkeypatch.setattr(report, "write_report", lambda path: (Path(path) / "report.html").write_text("report"))


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every pass."""
    monkeypatch.setattr(run_sink, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def data(tmp_path):
    """600 rows in six chunks."""
    return write_rows(tmp_path / "data.zarr", blobs())


def interrupted(config, output, event: str, nth: int = 1) -> None:
    """A run that ended at the n-th event of a name."""
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, output, listeners=[Interrupt(event, nth)])


def warnings_of(run: Path) -> list[str]:
    """Every warning in the log."""
    return [event["message"] for event in read_events(run / "events.jsonl") if event["event"] == "warning"]


# --- the same bytes


IN_THE_SEARCH = [("level", 1), ("level", 2), ("init", 1), ("pass", 2), ("checkpoint", 4)]
LAST_THINGS = [("init", 1), ("pass", 2), ("checkpoint", 1), ("checkpoint", 3), ("pass", 7), ("labelled", 2)]


@pytest.mark.parametrize(
    ("fit", "event", "nth"),
    [({"init": "k-means||"}, *last) for last in LAST_THINGS]
    + [({"init": "random", "n_init": 3}, "checkpoint", 3), ({"init": "near-mean", "tol": 1e-9}, "checkpoint", 3)]
    + [({"method": "auto", "init": "k-means||"}, *IN_THE_SEARCH[-1])]
    + [
        pytest.param({"method": "auto", "init": "k-means||"}, *each, marks=pytest.mark.slow)
        for each in IN_THE_SEARCH[:-1]
    ]
    + [pytest.param({"method": "incremental", "max_iter": 2}, "checkpoint", 3, marks=pytest.mark.slow)]
    + [pytest.param({"method": "incremental", "max_iter": 2}, "checkpoint", 8, marks=pytest.mark.slow)]
    + [pytest.param({"method": "incremental", "n_init": 2, "max_iter": 2}, "pass", 8, marks=pytest.mark.slow)],
)
def test_a_run_stopped_anywhere_is_resumed_to_the_same_bytes(tmp_path, data, often, fit, event, nth):
    """Whatever was the last thing that a run did, resume ends with the bytes of the run that nothing disturbed."""
    config = job(data, fit=fit, output={"top_k": 1})
    workflow.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", event, nth)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("family", ["kmeans", "gaussian"])
@pytest.mark.parametrize("kinds", [["center"], ["standardize", "pca"], ["zca"]])
def test_preprocessing_survives_a_resume(tmp_path, data, family, kinds):
    """The map that the profile fitted comes back from the checkpoint bit by bit."""
    steps = [{"kind": kind, **({"n_components": 2, "whiten": True} if kind == "pca" else {})} for kind in kinds]
    model = {"family": family, "covariance_type": "full"}
    config = job(data, preprocess=steps, model=model)
    workflow.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", "pass", 3)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_results_depend_on_the_rows_and_the_config_alone(tmp_path, data, monkeypatch):
    """Another working directory, data path, output path, number of workers and memory: the same bytes."""
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(data, tmp_path / "elsewhere" / "moved.zarr")
    config = job(data, engine={"workers": 1})
    workflow.run(config, tmp_path / "a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = job(Path("moved.zarr"), engine={"workers": 4, "memory": "2GiB"})
    workflow.run(other, "deep/b")
    assert results(tmp_path / "a") == results(Path("deep/b"))
    written = b"".join(results(tmp_path / "a").values())
    assert str(tmp_path).encode() not in written and b"elsewhere" not in written


@pytest.mark.parametrize(
    ("prior", "covariance_type"),
    [
        ("auto", "full"),
        ({"weights": 2, "dof": 9}, "tied"),
        ({"shrinkage": 3, "scale": 0}, "diag"),
        ("auto", "spherical"),
    ],
)
def test_a_prior_is_fixed_by_the_profile_and_stored_with_the_model(tmp_path, data, prior, covariance_type):
    """The same bytes through a resume and on other workers; load_model gives back the very prior, and so the objective."""
    model = {"covariance_type": covariance_type, "prior": prior, "n_components": 3}
    steps = [{"kind": "pca", "n_components": 2}]
    config = job(data, model=model, preprocess=steps, engine={"workers": 1})
    workflow.run(config, tmp_path / "whole")
    interrupted(job(data, model=model, preprocess=steps, engine={"workers": 3}), tmp_path / "run", "pass", 3)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    stored = workflow.open_run(tmp_path / "run")
    found, params, affine = load_model(stored)
    x = affine.apply(blobs())
    n, d = x.shape
    stored_prior = found.component.prior
    assert np.abs(stored_prior.mean - x.mean(axis=0)).max() < 1e-12
    if stored_prior.scale is not None:
        np.testing.assert_allclose(stored_prior.scale, (np.cov(x.T, ddof=0) + 1e-6 * np.eye(d)) / 3 ** (2 / d), 0, 1e-9)
    assert stored_prior.dof == (9 if covariance_type == "tied" else d + 2)
    totals = e_step(found, params, x).totals
    [restart] = stored.attrs["restarts"]
    np.testing.assert_allclose(restart["objective"], found.objective(totals, params), 1e-10)
    # As mclust's: the criterion takes the log-likelihood at the mode, and the prior costs no parameter.
    likelihood, p = totals.evidence.log_likelihood, found.n_free_parameters()
    assert found.log_prior(params) != 0
    np.testing.assert_allclose(stored.attrs["bic"], p * np.log(n) - 2 * likelihood, 1e-10)


def test_a_multinomials_prior_of_weights_is_stored(tmp_path):
    """The concentration of the weights comes back with the model, beside that of the words."""
    rows = write_rows(tmp_path / "counts.zarr", np.random.default_rng(0).poisson(2.0, size=(200, 5)).astype(float))
    model = {"family": "multinomial", "covariance_type": "full", "prior": {"weights": 3}}
    workflow.run(job(rows, model=model), tmp_path / "run")
    found, params, _ = load_model(workflow.open_run(tmp_path / "run"))
    assert (found.weight_concentration, found.component.concentration) == (3.0, 1.1)
    assert params.weights.min() > 2 / 206  # N_k + 2 of 206


def test_standard_errors_are_added_on_request(tmp_path, data):
    """With the run or by a later resume, stopped or not, on any workers: the same bytes, and the errors of the stored fit."""
    steps = [{"kind": "standardize"}]
    output = {"standard_errors": True}
    workflow.run(job(data, preprocess=steps, output=output, engine={"workers": 3}), tmp_path / "whole")
    interrupted(job(data, preprocess=steps, output=output, engine={"workers": 1}), tmp_path / "run", "labelled", 1)
    workflow.resume(tmp_path / "run")
    workflow.run(job(data, preprocess=steps), tmp_path / "later")
    assert "means_se" not in workflow.open_run(tmp_path / "later")
    workflow.resume(tmp_path / "later", ["output.standard_errors=true"])
    for name in ("run", "later"):
        assert results(tmp_path / name) == results(tmp_path / "whole")
    assert "standard_errors" in {event["event"] for event in read_events(tmp_path / "later" / "events.jsonl")}
    stored = workflow.open_run(tmp_path / "whole")
    assert stored.weights_se.dims == ("component",) and stored.means_se.dims == ("component", "feature")
    model, params, affine = load_model(stored)
    asked = ScoreProducts(model, params, covariances=True)
    for name, value in asked.errors(asked(Rows(affine.apply(blobs())), KERNELS)).items():
        np.testing.assert_allclose(stored[f"{name}_se"].values, value, 1e-8)
        assert (value > 0).all()
    workflow.resume(tmp_path / "later", ["output.standard_errors=given-covariances"])
    given = workflow.open_run(tmp_path / "later")
    assert given.attrs["standard_errors"] == "given-covariances" and (given.means_se < stored.means_se).all()


def test_standard_errors_that_cannot_be_had_are_said_to_be_missing(tmp_path):
    """More parameters than rows: the errors are NaN and a warning says so; a matrix beyond the bound is refused at once."""
    rows = write_rows(tmp_path / "few.zarr", blobs(8))
    workflow.run(job(rows, output={"standard_errors": True}), tmp_path / "run")
    assert np.isnan(workflow.open_run(tmp_path / "run").means_se).all()
    assert any("means_se" in message for message in warnings_of(tmp_path / "run"))
    many = write_rows(tmp_path / "many.zarr", blobs(1100))
    with pytest.raises(InputError, match=r"standard_errors: 1050 components"):
        workflow.run(job(many, model={"n_components": 1050}, output={"standard_errors": True}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


MODELS = [{}, pytest.param({"family": "multinomial", "covariance_type": "full"}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("model", MODELS)
def test_a_run_stopped_during_an_extrapolated_epoch_is_resumed_to_the_same_bytes(tmp_path, data, monkeypatch, model):
    """What it was extrapolated from, and the blocks' statistics, come back from the checkpoint; the step rejected or not."""
    monkeypatch.setattr(driver, "method_of", partial(method_of, n_blocks=3))
    rows = write_rows(tmp_path / "counts.zarr", np.floor(np.exp(blobs() / 3))) if model else data
    np.save(tmp_path / "labels.npy", np.arange(len(blobs())) % 5)
    start = {"init": "labels", "init_path": str(tmp_path / "labels.npy")}
    fit = {"method": "incremental", "tol": 1e-9, "max_iter": 6, **start}
    config = job(rows, fit=fit, model={"n_components": 5, **model})
    workflow.run(config, tmp_path / "whole")
    with monkeypatch.context() as often:
        often.setattr(run_sink, "CHECKPOINT_SECONDS", 0.0)
        interrupted(config, tmp_path / "run", "pass", 17)  # five epochs, and two blocks of the extrapolated one
    _, state = checkpoint.load(tmp_path / "run/checkpoints", print)
    [found] = unpack(state.facts["state"], state.arrays)["runs"]
    kind, steps, epochs, fallback, *_ = found["accumulator"]
    assert (kind, steps, [len(blocks) for blocks in epochs], len(fallback)) == ("incremental", 17, [3, 3], 3)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize("method", ["auto", "incremental"])
@pytest.mark.parametrize("model", MODELS)
def test_every_method_gives_the_same_bytes_on_any_workers_and_through_a_resume(
    tmp_path, data, monkeypatch, method, model
):
    """Blocks of several chunks, a run to its end; of the multinomial also the layout of its arrays comes back."""
    monkeypatch.setattr(driver, "method_of", partial(method_of, n_blocks=3))
    rows = write_rows(tmp_path / "counts.zarr", np.floor(np.exp(blobs() / 3))) if model else data
    fit = {"method": method, "tol": 1e-2, "max_iter": 100}
    workflow.run(job(rows, fit=fit, model=model, engine={"workers": 1}), tmp_path / "one")
    config = job(rows, fit=fit, model=model, engine={"workers": 3})
    interrupted(config, tmp_path / "run", "pass", 3)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "one")
    found = workflow.open_run(tmp_path / "run")
    assert found.attrs["converged"]
    assert set(np.asarray(found.phase)) == {"squarem"} | ({method} - {"auto"})
    last = found.isel(iteration=-1)
    assert last.fisher_norm < np.sqrt(2e-2)
    assert ("left to gain" in found.attrs["stop_reason"]) == bool(np.isfinite(last.remaining_gain))
    passes = [event for event in read_events(tmp_path / "one" / "events.jsonl") if event["event"] == "pass"]
    assert sum(event["rows"] for event in passes) == int(found.rows.sum()) + len(blobs())
    assert passes[-1]["fisher_norm"] == float(last.fisher_norm)


def test_too_few_drawn_rows_are_no_search(tmp_path, data, monkeypatch):
    """With fewer than one for each component the start is as asked, through a resume too."""
    fit = {"method": "auto", "tol": 1e-2, "max_iter": 40}
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 1)
    monkeypatch.setattr(sample, "SAMPLE_ROWS_PER_COMPONENT", 0)
    workflow.run(job(data, fit=fit), tmp_path / "few")
    assert workflow.open_run(tmp_path / "few").attrs["search"] == []
    interrupted(job(data, fit=fit), tmp_path / "run", "init")
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "few")
    monkeypatch.undo()
    workflow.run(job(data, fit=fit), tmp_path / "many")
    assert workflow.open_run(tmp_path / "many").attrs["search"]


def test_restarts_of_a_search_begin_from_different_places(tmp_path, data):
    """Only the first begins from the best K-means; the others from random rows that differ."""
    fit = {"method": "auto", "n_init": 3, "tol": 1e-2, "max_iter": 40}
    workflow.run(job(data, fit=fit), tmp_path / "run")
    found = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "level"]
    assert {event["restart"] for event in found if event["family"] == "kmeans"} == {0}
    assert {event["restart"] for event in found if event["family"] == "gaussian"} == {0, 1, 2}
    first = [next(event for event in found if event["restart"] == each) for each in (1, 2)]
    # They may end in the same optimum, but not by the same moves.
    assert [first[0][name] for name in ("objective", "read")] != [first[1][name] for name in ("objective", "read")]


def test_from_given_starts_there_is_no_search(tmp_path, data):
    """The first E-step is of what was given: its log-likelihood by densities of scipy."""
    x = blobs()
    means, label = x[:3], np.random.default_rng(0).integers(3, size=len(x))
    np.savez(tmp_path / "start.npz", weights=np.ones(3) / 3, means=means, covariances=np.ones((3, x.shape[1])))
    np.save(tmp_path / "labels.npy", label)
    own = [x[label == k] for k in range(3)]
    expected = {
        "start.npz": [(1 / 3, mean, np.ones(x.shape[1])) for mean in means],
        "labels.npy": [(len(rows) / len(x), rows.mean(axis=0), rows.var(axis=0) + 1e-6) for rows in own],
    }
    for name, components in expected.items():
        init = {"init": "explicit" if name == "start.npz" else "labels", "init_path": str(tmp_path / name)}
        model = workflow.open_run(workflow.run(job(data, fit={"method": "auto", **init}), tmp_path / init["init"]))
        assert model.attrs["search"] == []
        joint = [np.log(w) + norm(mean, np.sqrt(variance)).logpdf(x).sum(axis=1) for w, mean, variance in components]
        assert model.log_likelihood.values[0] == pytest.approx(logsumexp(joint, axis=0).sum(), rel=1e-6)


def test_the_number_of_restarts_is_kept_through_a_resume(tmp_path, data):
    """All restarts go on, and the model says how each ended."""
    config = job(data, fit={"init": "random", "n_init": 3, "tol": 1e-3, "max_iter": 40})
    interrupted(config, tmp_path / "run", "pass", 3)
    workflow.resume(tmp_path / "run")
    restarts = workflow.open_run(tmp_path / "run").attrs["restarts"]
    assert [r["restart"] for r in restarts] == [0, 1, 2] and sum(r["chosen"] for r in restarts) == 1
    best = max(restarts, key=lambda r: r["objective"])
    assert best["chosen"] or best["objective"] == next(r["objective"] for r in restarts if r["chosen"])


# --- what resume accepts and refuses


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("model.n_components=4", "model.n_components: was 3, now 4"),
        ("fit.tol=0.5", "fit.tol: was 0.0, now 0.5"),
        ("fit.max_iter=5", "fit.max_iter: was 6, now 5"),
        ("fit.random_state=1", "fit.random_state: was 0, now 1"),
        ("data.bad_rows=drop", "data.bad_rows: was 'error', now 'drop'"),
        ("preprocess=[{kind: center}]", "preprocess"),
    ],
)
def test_resume_refuses_another_job_with_the_difference(tmp_path, data, override, shown):
    """What would compute something else is refused, and nothing in the directory changes."""
    interrupted(job(data), tmp_path / "run", "pass", 3)
    before = files(tmp_path / "run")
    with pytest.raises(InputError) as refusal:
        workflow.resume(tmp_path / "run", [override])
    assert shown in str(refusal.value) and files(tmp_path / "run") == before


@pytest.mark.parametrize("change", ["value", "rows", "dtype", "grid"])
def test_resume_refuses_other_data_with_the_difference(tmp_path, data, change):
    """The input is known by its shape, type, grid, sizes and bytes."""
    interrupted(job(data), tmp_path / "run", "pass", 3)
    x = blobs()
    x[300] += change == "value"
    shutil.rmtree(data)
    x = {"rows": x[:500], "dtype": x.astype(np.float32)}.get(change, x)
    write_rows(data, x, rows=150 if change == "grid" else 100)
    shown = {"value": "sha256", "rows": r"shape: was \[600, 3\], now \[500, 3\]", "dtype": "dtype", "grid": "grid"}
    with pytest.raises(InputError, match=shown[change]):
        workflow.resume(tmp_path / "run")


def test_resume_refuses_other_numerics_and_other_kernels(tmp_path, data, monkeypatch):
    """Bits that would differ are refused; the user may accept those of another BLAS, but no other numerics."""
    interrupted(job(data), tmp_path / "run", "pass", 3)
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"numerics: {pipeline.NUMERICS}", "numerics: -1"))
    with pytest.raises(InputError, match="numerics: was -1"):
        workflow.resume(tmp_path / "run", accept_other_bits=True)
    record = yaml.safe_load(text)
    record["kernel_set"] = ["openblas Other"]
    path.write_text(text.splitlines()[0] + "\n" + yaml.safe_dump(record))
    with pytest.raises(InputError, match=r"openblas Other.*accept-other-bits"):
        workflow.resume(tmp_path / "run")
    workflow.resume(tmp_path / "run", accept_other_bits=True)
    assert (tmp_path / "run" / "model.zarr").exists()


def test_other_versions_only_warn(tmp_path, data):
    """Another version of a package is worth a line, not a refusal."""
    interrupted(job(data), tmp_path / "run", "pass", 3)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("  zarr: ", "  zarr: 0.0.1+"))
    workflow.resume(tmp_path / "run")
    assert any("zarr: the run began with version 0.0.1+" in text for text in warnings_of(tmp_path / "run"))


def test_resume_accepts_moved_data_other_engines_and_outputs(tmp_path, data):
    """data.path, engine.* and output.* may change; a moved input is remembered, where it ran is not."""
    config = job(data)
    workflow.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", "pass", 3)
    data.rename(tmp_path / "moved.zarr")
    with pytest.raises(InputError):
        workflow.resume(tmp_path / "run")
    changes = [f"data.path={tmp_path / 'moved.zarr'}", "engine.workers=1", "output.top_k=2"]
    with pytest.raises(KeyboardInterrupt):
        workflow.resume(tmp_path / "run", changes, [Interrupt("checkpoint", 1)])
    workflow.resume(tmp_path / "run")
    assert files(tmp_path / "run" / "model.zarr") == files(tmp_path / "whole" / "model.zarr")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]
    assert stored["data"]["path"].endswith("moved.zarr") and stored["engine"]["workers"] == "auto"
    assert "top_component" in zarr.open_group(tmp_path / "run" / "labels.zarr", mode="r")


@pytest.mark.parametrize("when", ["finished", "stopped", "labelling"])
def test_a_higher_max_iter_goes_on_to_the_bytes_of_the_longer_run(tmp_path, data, when):
    """Raised before or after the end, max_iter gives what a run with that max_iter gives; labels follow the model."""
    workflow.run(job(data, fit={"max_iter": 12}), tmp_path / "long")
    config = job(data)
    if when == "finished":
        workflow.run(config, tmp_path / "run")
    else:
        interrupted(config, tmp_path / "run", "pass" if when == "stopped" else "labelled", 2)
    with pytest.raises(KeyboardInterrupt):
        workflow.resume(tmp_path / "run", ["fit.max_iter=12"], [Interrupt("pass", 3)])
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "long")


def test_a_converged_run_is_not_gone_on_with(tmp_path, data):
    """A run that has converged has nothing left to do, whatever max_iter is."""
    workflow.run(job(data, fit={"max_iter": 300, "tol": 1e-3}), tmp_path / "run")
    before = results(tmp_path / "run")
    workflow.resume(tmp_path / "run", ["fit.max_iter=400"])
    assert results(tmp_path / "run") == before


def test_resume_of_a_finished_run_does_what_is_missing(tmp_path, data):
    """Labels, report and model come back with the same bytes; a report alone needs no data."""
    run = tmp_path / "run"
    workflow.run(job(data), run)
    before = results(run)
    for name in ("labels.zarr", "model.zarr"):
        shutil.rmtree(run / name)
        workflow.resume(run)
        assert results(run) == before
    workflow.resume(run, ["output.top_k=2"])
    assert "top_component" in zarr.open_group(run / "labels.zarr", mode="r")
    (run / "report.html").unlink()
    shutil.rmtree(data)
    workflow.resume(run)
    assert (run / "report.html").exists()


def test_labels_that_are_not_wanted_are_not_written(tmp_path, data):
    """output.labels: false leaves them out; resume with true adds them."""
    workflow.run(job(data, output={"labels": False}), tmp_path / "run")
    assert not (tmp_path / "run" / "labels.zarr").exists() and (tmp_path / "run" / "report.html").exists()
    workflow.resume(tmp_path / "run", ["output.labels=true"])
    assert (tmp_path / "run" / "labels.zarr").exists()


# --- damage


def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path, data, often):
    """The generation before gives the same bytes at the end; if none is whole, nothing starts again in silence."""
    config = job(data)
    workflow.run(config, tmp_path / "whole")
    run = tmp_path / "run"
    interrupted(config, run, "checkpoint", 4)
    found = sorted((run / "checkpoints").glob("gen-*"))
    (found[-1] / "zarr.json").write_text("{")
    shutil.copytree(run, tmp_path / "all")
    workflow.resume(run)
    assert results(run) == results(tmp_path / "whole")
    assert any(f"{found[-1].name} is damaged" in text for text in warnings_of(run))
    for path in (tmp_path / "all" / "checkpoints").glob("gen-*"):
        (path / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match="damaged checkpoints"):
        workflow.resume(tmp_path / "all")


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_chunk_lost_in_mid_run_is_named(tmp_path, data, damage):
    """A stored chunk that is missing or damaged ends the run with exit code 3 and its name; restored, resume goes on."""
    config = job(data)
    workflow.run(config, tmp_path / "whole")
    chunk = data / "c" / "3" / "0"
    whole = chunk.read_bytes()

    def harm(event) -> None:
        if event["event"] == "pass" and event["iteration"] == 2:
            if damage == "missing":
                chunk.unlink()
            else:
                chunk.write_bytes(
                    whole[:-9] if damage == "truncated" else whole[:50] + bytes([whole[50] ^ 4]) + whole[51:]
                )

    with pytest.raises(StorageError, match="c/3/0"):
        workflow.run(config, tmp_path / "run", listeners=[harm])
    chunk.write_bytes(whole)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize("init", ["labels", "explicit"])
def test_a_start_that_changed_before_it_was_used_is_refused(tmp_path, data, init):
    """A resume that still needs fit.init_path looks whether it is what the run began with; later it needs none."""
    path = tmp_path / ("start.npy" if init == "labels" else "start.npz")

    def write(seed: int) -> None:
        if init == "labels":
            np.save(path, np.random.default_rng(seed).integers(3, size=600))
        else:
            parameters = {"weights": np.ones(3) / 3, "means": blobs(3, seed=seed), "covariances": np.ones((3, 3))}
            np.savez(path, **parameters)

    write(0)
    config = job(data, fit={"init": init, "init_path": str(path)})
    workflow.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", "init")
    interrupted(config, tmp_path / "late", "pass", 2)
    write(1)
    workflow.resume(tmp_path / "late")
    with pytest.raises(InputError, match=r"fit\.init_path: got SHA-256"):
        workflow.resume(tmp_path / "run")
    write(0)
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "late") == results(tmp_path / "whole")


def test_a_damaged_model_or_config_is_an_error_of_storage(tmp_path, data):
    """What cannot be read back says so and says what to do."""
    run = tmp_path / "run"
    workflow.run(job(data), run)
    (run / "model.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StorageError, match="writes it again"):
        workflow.predict(run)
    first = (run / "config.yaml").read_text().splitlines()[0]
    for text in ("a: [", "[]", "config: 3"):
        (run / "config.yaml").write_text(f"{first}\n{text}")
        with pytest.raises(StorageError, match="damaged"):
            workflow.resume(run)


# --- room


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "em"])
def test_parameters_of_chosen_iterations_are_kept(tmp_path, data, often, method):
    """They are those of a run that ends there, of every restart, and the same bytes through a resume."""
    fit = {"method": method, "n_init": 2, "init": "random"}
    config = job(data, fit=fit, output={"keep_iterations": [0, 1, 3, 50], "keep_checkpoints": 1})
    workflow.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "run", "pass", 3)
    workflow.resume(tmp_path / "run")
    kept = files(tmp_path / "whole" / "iterations")
    assert files(tmp_path / "run" / "iterations") == kept
    assert {key.rpartition("gen-")[0] + key.rpartition("gen-")[2][:6] for key in kept} == {
        f"k3-diag-{restart}/{t:06d}" for restart in range(2) for t in (0, 1, 3)
    }
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) == 1
    workflow.run(job(data, fit={**fit, "max_iter": 3}), tmp_path / "short")
    model = workflow.open_run(tmp_path / "short")
    chosen = next(restart["restart"] for restart in model.attrs["restarts"] if restart["chosen"])
    found = checkpoint.read(tmp_path / "run" / "iterations" / f"k3-diag-{chosen}" / "gen-000003")
    for name, value in found.arrays.items():
        np.testing.assert_array_equal(value[model.attrs["order"]], model[name].values)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ({"n_components": [5, 9], "covariance_type": "full"}, {"fit": {"n_init": 3}}),
        pytest.param(
            {"n_components": 4}, {"fit": {"method": "incremental"}, "select": {"heldout": 0.3}}, marks=pytest.mark.slow
        ),
        ({"family": "kmeans", "n_components": 40}, {"preprocess": [{"kind": "pca", "n_components": 3}]}),
    ],
)
def test_the_plan_of_the_disk_is_kept(tmp_path, model, more):
    """Nothing that is written is larger than what was said before the first pass."""
    data = write_rows(tmp_path / "x.zarr", blobs(3000, 12))
    fit = {"max_iter": 4, **more.pop("fit", {})}
    config = job(data, model=model, fit=fit, output={"top_k": 2, "keep_iterations": "all"}, **more)
    workflow.run(config, tmp_path / "run")
    planned = next(read_events(tmp_path / "run" / "events.jsonl"))["plan"]["disk"]
    written = {"checkpoints": 4 / 3, "iterations": 1.0, "labels": 1.0}  # checkpoints: one more was being written
    for name, factor in written.items():
        found = tmp_path / "run" / (f"{name}.zarr" if name == "labels" else name)
        arrays = sum(len(value) - 64 for key, value in files(found).items() if "/c/" in key)  # 64: of the codec
        assert 0 < factor * arrays <= planned[name], name
    models = sum(
        len(value) for name in ("model", "candidates") for value in files(tmp_path / "run" / f"{name}.zarr").values()
    )
    assert models <= planned["models"] + SLACK and planned["total"] == sum(planned.values()) - planned["total"] + SLACK


def test_a_disk_without_room_is_refused_before_the_first_pass(tmp_path, data, monkeypatch):
    """The message says how much there is and what needs how much; nothing is left, and a started run stays as it was."""
    interrupted(job(data), tmp_path / "begun", "pass", 3)
    before = files(tmp_path / "begun")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match=r"room for 0 MiB.*may need 17 MiB.*Make room"):
        workflow.run(job(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StorageError, match="Make room"):
        workflow.resume(tmp_path / "begun")
    assert files(tmp_path / "begun") == before


# --- directories


def test_directories_that_are_not_ours_are_left_alone(tmp_path, data):
    """A folder with anything of the user's in it, or a file, is refused, with --overwrite too."""
    theirs = tmp_path / "photos"
    theirs.mkdir()
    (theirs / "config.yaml").write_text("model: mine")
    (theirs / "model.zarr").mkdir()
    file = tmp_path / "file"
    file.write_text("text")
    for place in (theirs, file):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="not a run directory"):
                workflow.run(job(data), place, overwrite)
    assert (theirs / "config.yaml").read_text() == "model: mine" and (theirs / "model.zarr").is_dir()
    assert sorted(path.name for path in theirs.iterdir()) == ["config.yaml", "model.zarr"]


def test_a_directory_of_ours_starts_afresh_goes_on_or_is_refused(tmp_path, data):
    """Without a checkpoint a run starts afresh; with one it names resume; a finished run wants --overwrite."""
    run, config = tmp_path / "run", job(data)
    interrupted(config, run, "profile")
    assert not (run / "checkpoints").exists()
    with pytest.raises(InputError, match="got no checkpoint"):
        workflow.resume(run)
    interrupted(config, run, "checkpoint")
    with pytest.raises(InputError, match="em-pipeline resume"):
        workflow.run(config, run)
    workflow.resume(run)
    with pytest.raises(InputError, match="--overwrite"):
        workflow.run(config, run)
    (run / "notes.txt").write_text("mine")
    workflow.run(job(data, fit={"random_state": 1}), run, overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.yaml.partial"], [".lock.77"]])
def test_what_a_killed_start_leaves_does_not_block_the_next(tmp_path, data, left):
    """Killed between making the directory and writing its config, a run can simply be repeated."""
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_text("somewhere-else")
    workflow.run(job(data), run)
    assert (run / "report.html").exists()


def test_overwriting_never_leaves_a_directory_that_nobody_owns(tmp_path, data, monkeypatch):
    """Killed anywhere while an old run is being removed, the directory is still ours and whole names are whole."""
    from pipeline.outputs import run_directory

    config, whole = job(data), tmp_path / "whole"
    workflow.run(config, whole)
    original, nth, done = run_directory.remove, 0, False
    while not done:
        nth += 1
        run, calls = shutil.copytree(whole, tmp_path / f"{nth}"), 0

        def remove(path, nth=nth):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise KeyboardInterrupt
            original(path)

        with monkeypatch.context() as patch:
            patch.setattr(run_directory, "remove", remove)
            try:
                run_directory.RunDirectory(run).create({"config": {}})
                done = True
            except KeyboardInterrupt:
                pass
        assert run_directory.RunDirectory(run).is_ours
        for name in ("model.zarr", "labels.zarr"):
            assert not (run / name).exists() or files(run / name) == files(whole / name)
    assert nth > 5


def test_a_directory_in_use_is_refused(tmp_path, data):
    """A second run into the same directory is told who is there; the lock of a process that ended is taken over."""
    messages: list[str] = []

    def second(event) -> None:
        if event["event"] == "profile":
            with pytest.raises(InputError) as refusal:
                workflow.run(job(data), tmp_path / "run")
            messages.append(str(refusal.value))

    workflow.run(job(data), tmp_path / "run", listeners=[second])
    import os
    import socket

    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in messages[0]


EARLY = {
    "no such store": ({"data": {"path": "nowhere.zarr"}}, InputError),
    "more components than rows": ({"model": {"n_components": 601}}, InputError),
    "too little memory": ({"engine": {"memory": "300MiB"}}, InputError),
    "unknown profile": ({"engine": {"scheduler": "slurm"}}, InputError),
    "weights of another length": ({"data": {"weights": "short.npy"}}, InputError),
    "no labels to start from": ({"fit": {"init": "labels", "init_path": "nowhere.npy"}}, InputError),
    "no start": ({"fit": {"init": "explicit", "init_path": "nowhere.npz"}}, InputError),
    "no scheduler file": ({"engine": {"scheduler_file": "scheduler.json"}}, Exception),
}


@pytest.mark.parametrize("case", EARLY)
def test_failures_before_the_input_is_open_leave_nothing(tmp_path, data, case, monkeypatch):
    """Neither a directory nor a lock is left by a job that could not begin."""
    from pipeline.engine import cluster

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.ones(599))
    changes, error = EARLY[case]
    with pytest.raises(error):
        workflow.run(job(data, **changes), tmp_path / "out" / "run")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_storage(tmp_path, data):
    """A path where nothing can be made is exit code 3 before the first pass; a name that no disk takes is a mistake."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(StorageError, match="output"):
            workflow.run(job(data), place)
    for name in (tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(InputError, match="expected a path"):
            workflow.run(job(data), name)


def test_memory_is_refused_with_advice(data):
    """A limit that not even one task fits in says what is needed and what to do; a larger one allows fewer workers."""
    with pytest.raises(InputError, match=r"one task needs \d+ MiB.*Raise engine.memory"):
        memory.plan(2**20, "auto", 50 * 2**20, 8 * 2**20, 2**20, False)
    one = memory.plan(memory.IMPORTS + 53 * 2**20, 4, 50 * 2**20, 8 * 2**20, 2**20, False)
    assert one.workers == 1 and not one.ahead and one.peak <= one.limit
    room = memory.plan(memory.IMPORTS + 60 * 2**20, 4, 50 * 2**20, 8 * 2**20, 2**20, False)
    assert room.workers == 1 and room.ahead and 0 <= room.spare < 2**21
    assert memory.plan(2**40, 4, 50 * 2**20, 8 * 2**20, 2**20, False).workers == 4


# --- rows and their weights


def test_bad_rows_are_an_error_or_are_dropped(tmp_path):
    """NaN and inf end the run with their count and the first; dropped ones are reported and have no label."""
    x = blobs()
    x[[7, 300, 599], 1] = np.nan, np.inf, -np.inf
    path = write_rows(tmp_path / "x.zarr", x)
    with pytest.raises(InputError, match="3 of 600 rows hold NaN or inf, the first is row 7"):
        workflow.run(job(path), tmp_path / "run")
    workflow.run(job(path, data={"bad_rows": "drop"}), tmp_path / "run")
    found = xr.open_zarr(tmp_path / "run" / "labels.zarr", consolidated=False).load()
    assert np.flatnonzero(found.label.values == -1).tolist() == [7, 300, 599]
    assert np.flatnonzero(np.isnan(found.log_density.values)).tolist() == [7, 300, 599]
    assert workflow.open_run(tmp_path / "run").attrs["dropped_rows"] == 3
    assert any("3 rows with NaN or inf are left out" in text for text in warnings_of(tmp_path / "run"))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_weights_that_are_none_are_refused(tmp_path, data, value):
    """A negative or infinite weight is named by its row."""
    weights = np.ones(600)
    weights[123] = value
    np.save(tmp_path / "w.npy", weights)
    with pytest.raises(InputError, match="row 123 has weight"):
        workflow.run(job(data, data={"weights": str(tmp_path / "w.npy")}), tmp_path / "run")


STARTING_FILES = {
    "labels too short": ("labels", {"labels": np.zeros(599, int)}, "shape"),
    "labels out of range": ("labels", {"labels": np.full(600, 3)}, "expected 0..2"),
    "means of another shape": ("explicit", {"weights": np.full(3, 1 / 3), "means": np.ones((3, 2))}, "means"),
    "no means": ("explicit", {"weights": np.full(3, 1 / 3)}, "means"),
    "not a number": (
        "explicit",
        {"weights": np.full(3, 1 / 3), "means": np.full((3, 3), np.nan), "covariances": np.ones((3, 3))},
        "means",
    ),
}


@pytest.mark.parametrize("case", STARTING_FILES)
def test_starts_that_do_not_fit_are_refused(tmp_path, data, case):
    """A start from a file is checked against the data and the model."""
    init, arrays, words = STARTING_FILES[case]
    path = tmp_path / ("start.npy" if init == "labels" else "start.npz")
    if init == "labels":
        np.save(path, arrays["labels"])
    else:
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=words):
        workflow.run(job(data, fit={"init": init, "init_path": str(path)}), tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", None])
def test_a_start_that_cannot_be_read_is_refused(tmp_path, data, content):
    """A file that is no .npz, or is not there, is an InputError that names it."""
    path = tmp_path / "start.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"start\.npz"):
        workflow.run(job(data, fit={"init": "explicit", "init_path": str(path)}), tmp_path / "run")


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", ["gaussian", "kmeans"])
def test_small_problems_work(tmp_path, k, family):
    """One component, one feature, as many components as rows: the job ends."""
    x = np.array([[0.0], [5.0]])
    np.save(tmp_path / "x.npy", x)
    workflow.run(job(tmp_path / "x.npy", model={"n_components": k, "family": family}), tmp_path / "run")
    assert np.isfinite(workflow.open_run(tmp_path / "run").weights.values).all()


# --- what is written


def test_the_model_opens_with_xarray_and_has_every_name(tmp_path, data):
    """Names, dimensions and attributes of model.zarr are those of the specification."""
    workflow.run(job(data, preprocess=[{"kind": "standardize"}], fit={"tol": 1e-3}), tmp_path / "run")
    found = xr.open_zarr(tmp_path / "run" / "model.zarr", consolidated=False).load()
    dimensions = {
        "weights": ("component",),
        "means": ("component", "feature"),
        "covariances": ("component", "feature"),
        "log_likelihood": ("iteration",),
        "lower_bound": ("iteration",),
        "entropy": ("iteration",),
        "n_effective": ("iteration", "component"),
        "rows": ("iteration",),
        "phase": ("iteration",),
        "preprocess_offset": ("raw_feature",),
        "preprocess_matrix": ("raw_feature", "feature"),
        "preprocess_inverse": ("feature", "raw_feature"),
    }
    assert {name: found[name].dims for name in dimensions} == dimensions
    wanted = {"family", "versions", "stop_reason", "final_log_likelihood", "order", "bic", "aic", "icl", "log_jacobian"}
    assert wanted <= set(found.attrs) and len(found.log_likelihood) == found.attrs["n_iter"]
    assert (np.diff(found.weights) <= 0).all()


def test_events_say_what_the_specification_asks(tmp_path, data):
    """Every line has event and time; passes have their figures; start and end have versions, host, kernels, memory."""
    workflow.run(job(data), tmp_path / "run")
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    assert all({"event", "time"} <= set(event) for event in events)
    passes = [event for event in events if event["event"] == "pass"]
    assert [event["iteration"] for event in passes if not event["final"]] == list(range(6))
    assert all({"seconds", "rows", "bytes_read", "workers"} <= set(event) for event in passes)
    start = next(event for event in events if event["event"] == "start")
    assert {"versions", "host", "blas", "pss"} <= set(start)
    assert start["plan"]["fixed"] < start["plan"]["peak"] <= start["plan"]["limit"]
    assert all(event["implementations"] == {"SIMD": [3, 3]} for event in passes)
    end = next(event for event in events if event["event"] == "finished")
    assert end["peak_pss"] > 0


def test_storage_options_are_never_written(tmp_path, data, monkeypatch):
    """A password given in the config or on the command line is in no file of the run."""
    import sys

    monkeypatch.setattr(sys, "argv", ["em-pipeline", "run", "c.yaml", "--set", "data.storage_options.key=hunter2"])
    workflow.run(job(data, data={"storage_options": {"key": "hunter2"}}), tmp_path / "run")
    assert not any(b"hunter2" in content for content in files(tmp_path / "run").values())


# --- prediction


def test_predicting_the_runs_own_rows_gives_its_labels(tmp_path, data):
    """predict RUN writes labels.zarr with the same bytes, also where the data have moved."""
    run = tmp_path / "run"
    workflow.run(job(data), run)
    before = results(run)
    shutil.rmtree(run / "labels.zarr")
    assert workflow.predict(run) == run / "labels.zarr" and results(run) == before
    data.rename(tmp_path / "moved.zarr")
    workflow.predict(run, [f"data.path={tmp_path / 'moved.zarr'}"])
    assert results(run) == before


def test_predicting_other_rows_needs_a_place_and_goes_on_where_it_stopped(tmp_path, data):
    """Other data are refused without an output; with one, a stop is gone on with and a finished one is kept."""
    run, out = tmp_path / "run", tmp_path / "out"
    workflow.run(job(data), run)
    before = files(run)
    other = [f"data.path={write_rows(tmp_path / 'other.zarr', blobs(700, seed=5))}"]
    with pytest.raises(InputError, match="--output"):
        workflow.predict(run, other)
    workflow.predict(run, other, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        workflow.predict(run, other, out, [Interrupt("labelled", 2)])
    assert not (out / "labels.zarr").exists()
    shutil.copytree(out, tmp_path / "resumed")
    assert workflow.resume(tmp_path / "resumed") == tmp_path / "resumed"
    assert files(tmp_path / "resumed" / "labels.zarr") == files(tmp_path / "whole" / "labels.zarr")
    assert (tmp_path / "resumed" / "report.html").exists()
    events: list[str] = []
    workflow.predict(run, [*other, "engine.workers=1"], out, [lambda event: events.append(event["event"])])
    assert events.count("labelled") == 2
    assert files(out / "labels.zarr") == files(tmp_path / "whole" / "labels.zarr")
    assert files(run) == before
    workflow.predict(run, other, out)
    with pytest.raises(InputError, match="the labels of other data"):
        workflow.predict(run, [*other, "output.top_k=1"], out)
    with pytest.raises(InputError, match="the labels of other data"):
        workflow.run(job(data), out)


def test_labels_of_another_model_are_not_gone_on_with(tmp_path, data):
    """Begun with one model and gone on with another, labels begin again."""
    run, out = tmp_path / "run", tmp_path / "out"
    other = [f"data.path={write_rows(tmp_path / 'other.zarr', blobs(700, seed=5))}"]
    workflow.run(job(data), run)
    with pytest.raises(KeyboardInterrupt):
        workflow.predict(run, other, out, [Interrupt("labelled", 2)])
    shutil.rmtree(data)
    write_rows(data, blobs(seed=9))
    workflow.run(job(data), run, overwrite=True)
    workflow.predict(run, other, out)
    workflow.predict(run, other, tmp_path / "fresh")
    assert files(out / "labels.zarr") == files(tmp_path / "fresh" / "labels.zarr")


def test_prediction_takes_fewer_rows_than_components_and_no_other_width(tmp_path, data):
    """One row can be labelled; rows of another width cannot; what the run settled cannot be set."""
    run = tmp_path / "run"
    workflow.run(job(data), run)
    few = write_rows(tmp_path / "few.zarr", blobs(1), rows=1)
    assert workflow.predict(run, [f"data.path={few}"], tmp_path / "few").exists()
    wide = write_rows(tmp_path / "wide.zarr", blobs(20, d=5))
    with pytest.raises(InputError, match="5 features, the model was fitted to 3"):
        workflow.predict(run, [f"data.path={wide}"], tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
    with pytest.raises(InputError, match=r"got model\.n_components, expected data"):
        workflow.predict(run, ["model.n_components=2"])
    with pytest.raises(InputError, match="no model yet"):
        interrupted(job(data), tmp_path / "half", "checkpoint")
        workflow.predict(tmp_path / "half")
