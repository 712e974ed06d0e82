"""Choosing among models in one job: what each would be alone, for one read of the data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from pipeline import workflow
from pipeline.data import source
from pipeline.data.sources.zarr import ZarrSection
from pipeline.em.choice import choose
from pipeline.em.heldout import Units
from pipeline.em.run import Run
from pipeline.errors import InputError
from pipeline.fitting import plan
from pipeline.jobconfig import validate
from pipeline.outputs import run_sink
from pipeline.outputs.events import read_events
from tests.jobs import Interrupt, blobs, command, files, job, results, settings, write_config, write_rows
from tests.laws.common import ArraySource, close, e_step, examples, gaussian_mixture
from tests.problems import count_problem, seeds

pytestmark = pytest.mark.full

TYPES = ["full", "tied", "diag", "spherical"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small chunks, no flushing, and samples that differ between candidates."""
    from pipeline.outputs import checkpoint, run_directory

    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    monkeypatch.setattr(plan, "MIN_SAMPLE_ROWS", 30)
    monkeypatch.setattr(source, "TARGET_BYTES", 2400)


@pytest.fixture
def data(tmp_path):
    """600 rows in six chunks."""
    return write_rows(tmp_path / "data.zarr", blobs())


def everything(run: Path) -> dict[str, bytes]:
    """The bytes of model.zarr, labels.zarr and candidates.zarr."""
    return results(run) | {f"candidates.zarr/{name}": value for name, value in files(run / "candidates.zarr").items()}


def table(run: Path) -> list[dict[str, Any]]:
    """What is said of each candidate."""
    return list(workflow.open_run(run).attrs["candidates"])


def models(run: Path) -> dict[str, xr.Dataset]:
    """Every candidate of a run by its name, in the order of its table."""
    return {
        entry["name"]: workflow.open_run(run)
        if entry["chosen"]
        else xr.open_zarr(run / "candidates.zarr", group=entry["name"], consolidated=False).load()
        for entry in table(run)
    }


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Two models are equal to the last bit, but for the table of the choice."""
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        a, b = (each[name].astype(str) if each[name].dtype == object else each[name] for each in (one, other))
        assert a.dims == b.dims and a.shape == b.shape and a.values.tobytes() == b.values.tobytes(), name
    attrs = [{key: value for key, value in each.attrs.items() if key != "candidates"} for each in (one, other)]
    assert attrs[0] == attrs[1]


# --- one job or many

SEVERAL = {"n_components": [5, 2], "covariance_type": ["diag", "full"]}
EACH = {f"k{k}-{shape}": {"n_components": k, "covariance_type": shape} for k in (5, 2) for shape in ("diag", "full")}
NO_LABELS = {"labels": False}
FIT = {"n_init": 2, "tol": 1e-3, "max_iter": 30, "random_state": 4}


@pytest.mark.parametrize(
    ("init", "method"),
    [("random", "em"), *(pytest.param("k-means||", m, marks=pytest.mark.slow) for m in ("em", "auto"))],
)
def test_candidates_are_what_each_would_be_alone(tmp_path, data, init, method):
    """Each of several candidates has the bits of the job that fits it alone, restarts, start and sample included."""
    fit = {**FIT, "init": init, "method": method}
    workflow.run(job(data, model=SEVERAL, fit=fit, output=NO_LABELS), tmp_path / "all")
    together = models(tmp_path / "all")
    assert list(together) == list(EACH)
    for name, model in EACH.items():
        workflow.run(job(data, model=model, fit=fit, output=NO_LABELS), tmp_path / name)
        same(together[name], workflow.open_run(tmp_path / name))


def test_held_out_rows_are_the_same_beside_other_candidates(tmp_path, data):
    """With rows held out, too, what is said of a candidate and its refit are what the job with it alone gives."""
    select = {"heldout": 0.3, "criterion": "heldout"}
    several = {**SEVERAL, "covariance_type": "diag"}
    workflow.run(job(data, model=several, fit=FIT, select=select, output=NO_LABELS), tmp_path / "all")
    for entry in table(tmp_path / "all"):
        alone = tmp_path / entry["name"]
        workflow.run(job(data, model=EACH[entry["name"]], fit=FIT, select=select, output=NO_LABELS), alone)
        assert {**entry, "chosen": True} == table(alone)[0] and not (alone / "candidates.zarr").exists()
        if entry["chosen"]:
            same(workflow.open_run(tmp_path / "all"), workflow.open_run(alone))


def test_multinomials_are_chosen_among_too(tmp_path):
    """Counts have candidates by their number of components, each as alone."""
    counts = count_problem(1, n=200, v=12, k=3)["counts"]
    lines = [f"{n + 1} {v + 1} {c}" for n, row in enumerate(counts) for v, c in enumerate(row) if c]
    path = tmp_path / "docword.x.txt"
    path.write_text("\n".join([*map(str, counts.shape), str(len(lines)), *lines]))
    plain = settings(path, model={"family": "multinomial", "n_components": [2, 3], "covariance_type": "full"})
    plain["data"] = {"source": "docword", "path": str(path)}
    workflow.run(validate(plain), tmp_path / "all")
    for name, found in models(tmp_path / "all").items():
        plain["model"]["n_components"] = int(name[1])
        workflow.run(validate(plain), tmp_path / name)
        same(found, workflow.open_run(tmp_path / name))


class CountingSource(ArraySource):
    """Rows in memory that count how often a chunk is read."""

    def __init__(self, x, bounds):
        """As ArraySource."""
        super().__init__(x, bounds)
        self.reads = []

    def read(self, i):
        """Chunk i."""
        self.reads.append(i)
        return super().read(i)


def reads(tmp_path: Path, monkeypatch, **changes: Any) -> dict[str, list[int]]:
    """Chunks read before each profile, init and pass of a job on six chunks."""
    counting = CountingSource(blobs(), np.arange(0, 700, 100))
    monkeypatch.setattr(ZarrSection, "open", lambda data: counting)
    counted: dict[str, list[int]] = {"profile": [], "init": [], "pass": []}

    def listen(event) -> None:
        if event["event"] in counted:
            counted[event["event"]].append(len(counting.reads))
        counting.reads.clear()

    config = job(tmp_path / "unused.zarr", output={"labels": False}, **changes)
    workflow.run(config, tmp_path / f"run{len(list(tmp_path.iterdir()))}", listeners=[listen])
    return counted


def test_candidates_share_every_read(tmp_path, monkeypatch):
    """Eight candidates read each chunk once per pass, and no more often before the first pass than one does."""
    fit = {"method": "em", "init": "k-means||", "n_init": 2, "max_iter": 4}
    one = reads(tmp_path, monkeypatch, fit=fit)
    model = {"n_components": [2, 3], "covariance_type": TYPES}
    eight = reads(tmp_path, monkeypatch, model=model, fit=fit)
    assert one["profile"] == eight["profile"] and one["init"] == eight["init"] and one["init"][0] % 6 == 0
    assert eight["pass"] == one["pass"] == [6] * 5


def test_a_held_out_likelihood_costs_no_read_and_the_refit_its_own(tmp_path, monkeypatch):
    """Passes before the choice are those without held-out rows; those of the refit come after."""
    fit = {"method": "em", "max_iter": 4}
    held_out = reads(tmp_path, monkeypatch, model={"n_components": [2, 3]}, fit=fit, select={"heldout": 0.2})
    assert held_out["pass"] == [6] * 10


# --- criteria


@pytest.mark.parametrize("shape", TYPES)
def test_criteria_are_those_of_scikit_learn(tmp_path, data, shape):
    """Free parameters, log-likelihood, BIC and AIC of each candidate are scikit-learn's, and ICL is BIC + 2 entropy."""
    x = blobs()
    workflow.run(job(data, model={"n_components": [2, 4], "covariance_type": shape}), tmp_path / "run")
    for entry, found in zip(table(tmp_path / "run"), models(tmp_path / "run").values(), strict=True):
        peer = GaussianMixture(entry["n_components"], covariance_type=shape)
        peer.weights_, peer.means_, peer.covariances_ = (
            found[name].values for name in ("weights", "means", "covariances")
        )
        peer.precisions_cholesky_ = _compute_precision_cholesky(peer.covariances_, shape)
        close(entry["final_log_likelihood"], peer.score_samples(x).sum(), 1e-10)
        close([entry["bic"], entry["aic"]], [peer.bic(x), peer.aic(x)], 1e-10)
        resp = peer.predict_proba(x)
        close(entry["icl"], peer.bic(x) - 2 * (resp * np.log(np.maximum(resp, 1e-300))).sum(), 1e-10)
        assert entry["n_free_parameters"] == peer._n_parameters() and entry["n_iter"] == len(found.log_likelihood)


@pytest.mark.parametrize("criterion", ["bic", "aic", "icl", "heldout"])
def test_the_best_by_the_criterion_is_the_model(tmp_path, data, criterion):
    """The lowest BIC, AIC or ICL, or the highest held-out log-likelihood, is chosen; labels are those of that model."""
    select = {"criterion": criterion, "heldout": 0.25}
    model = {"n_components": [2, 9], "covariance_type": ["full", "spherical"]}
    workflow.run(job(data, model=model, select=select, output={"top_k": 4}, fit={"max_iter": 3}), tmp_path / "run")
    entries = table(tmp_path / "run")
    values = [-entry["heldout"] if criterion == "heldout" else entry[criterion] for entry in entries]
    assert [entry["chosen"] for entry in entries] == [value == min(values) for value in values]
    chosen, model = entries[int(np.argmin(values))], workflow.open_run(tmp_path / "run")
    assert (model.attrs["n_components"], model.attrs["covariance_type"]) == (
        chosen["n_components"],
        chosen["covariance_type"],
    )
    others = {entry["name"] for entry in entries if not entry["chosen"]}
    assert set(zarr.open_group(tmp_path / "run" / "candidates.zarr", mode="r").group_keys()) == others
    labels = xr.open_zarr(tmp_path / "run" / "labels.zarr", consolidated=False)
    assert labels.top_component.shape == (600, min(4, chosen["n_components"]))
    events = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "candidate"]
    assert [event["name"] for event in events] == [entry["name"] for entry in entries]


@pytest.mark.parametrize(("width", "chosen"), [(1e-6, 0), (1e-2, 1)])
def test_a_collapsed_component_is_not_chosen(width, chosen):
    """A component that narrowed to reg_covar does not win, however likely it finds its rows; a narrow one may."""
    x = np.concatenate([blobs(400, 2), 9 + np.sqrt(width) * np.random.default_rng(0).normal(size=(20, 2))])
    runs = []
    for k in (1, 2):
        model = gaussian_mixture(k, x.mean(axis=0))
        spread = np.stack([np.cov(x.T), width * np.eye(2)])[:k]
        start = {"weights": np.array([[1.0], [0.95, 0.05]][k - 1]), "means": np.array([x.mean(axis=0), [9.0, 9.0]])[:k]}
        params = model.params_from_arrays({**start, "covariances": spread})
        run = Run(0, model, params, stop_reason="converged: as given", candidate=k - 1)
        runs.append(replace(run, final=e_step(model, params, x)))
    choice = choose(runs, "aic", 420.0)
    one, two = choice.table
    assert two["aic"] < one["aic"] and [entry["collapsed"] for entry in (one, two)] == [0, 1 - chosen]
    assert choice.chosen == chosen and [one["chosen"], two["chosen"]] == [chosen == 0, chosen == 1]


# --- held out


@examples(60)
@given(seed=seeds, share=st.floats(0.05, 0.95))
def test_held_out_units_are_whole_and_follow_from_their_numbers(seed, share):
    """All rows of a picture are on one side, the same for any cut into chunks; the share is about what was asked for."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 400)
    start = np.append(0, np.cumsum(lengths)[:-1])
    units, n = Units(share, seed, start), int(lengths.sum())
    whole = units.held_out(0, n)
    of = np.repeat(np.arange(400), lengths)
    for unit in range(400):
        assert len(set(whole[of == unit])) == 1
    cuts = np.unique(np.append(rng.integers(0, n, 7), [0, n]))
    assert np.array_equal(np.concatenate([units.held_out(a, b) for a, b in pairwise(cuts)]), whole)
    picked = whole[start].mean()
    assert abs(picked - share) < 6 * np.sqrt(share * (1 - share) / 400)
    assert np.array_equal(Units(share, seed).held_out(0, 400), whole[start])


def test_pictures_are_held_out_whole(tmp_path):
    """Patches of a picture are all held out or all fitted: the fit has whole pictures less than all rows."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (10 + i, 12), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    config = job(
        tmp_path / "x.zarr",
        data={"source": "images", "path": str(tmp_path / "pictures"), "patch": {"size": [3, 3]}},
        model={"n_components": [1, 2]},
        select={"heldout": 0.4},
        fit={"max_iter": 3},
    )
    workflow.run(config, tmp_path / "run")
    sizes = np.array([(8 + i) * 10 for i in range(8)])
    start = np.append(0, np.cumsum(sizes)[:-1])
    out = Units(0.4, 0, start).held_out(0, sizes.sum())[start]
    assert 0 < out.sum() < 8
    for entry in table(tmp_path / "run"):
        assert entry["heldout_weight"] == sizes[out].sum() and entry["total_weight"] == sizes[~out].sum()
    assert workflow.open_run(tmp_path / "run").attrs["total_weight"] == sizes.sum()


def test_fits_do_not_see_what_is_held_out(tmp_path):
    """Candidates, and what is known of the rows, are those of the other rows alone; held-out ones are only scored."""
    x = blobs(500, 2)
    rng = np.random.default_rng(3)
    weight, labels = rng.uniform(0.5, 2.0, 500), rng.integers(0, 2, 500)
    out = Units(0.3, 0).held_out(0, 500)
    disturbed = np.where(out[:, None], x[::-1], x)
    runs = {}
    for name, rows, keep in (("some", x, ~out), ("other", disturbed, ~out), ("only", x[~out], None)):
        folder = tmp_path / name
        folder.mkdir()
        own = slice(None) if keep is not None else ~out
        np.save(folder / "w.npy", weight[own])
        np.save(folder / "l.npy", labels[own])
        config = job(
            write_rows(folder / "x.zarr", rows),
            data={"weights": str(folder / "w.npy")},
            model={"n_components": 2, "covariance_type": ["diag", "full"]},
            fit={"init": "labels", "init_path": str(folder / "l.npy"), "max_iter": 5},
            select={} if keep is None else {"heldout": 0.3},
        )
        workflow.run(config, folder / "run")
        runs[name] = {each["name"]: each for each in table(folder / "run")}
    for name, entry in runs["only"].items():
        for key in ("final_log_likelihood", "bic", "aic", "icl", "total_weight"):
            assert runs["some"][name][key] == runs["other"][name][key]
            close(runs["some"][name][key], entry[key], 1e-10, key)
        assert runs["some"][name]["heldout"] != runs["other"][name]["heldout"]
        close(runs["some"][name]["heldout_weight"], weight[out].sum(), 1e-12)


def test_the_held_out_likelihood_is_that_of_the_rows_under_the_fit(tmp_path, data):
    """Nats per held-out row are scikit-learn's score of those rows under a candidate's stored parameters."""
    x, out = blobs(), Units(0.3, 0).held_out(0, 600)
    workflow.run(job(data, model={"n_components": [2, 3, 4]}, select={"heldout": 0.3}), tmp_path / "run")
    for entry, found in zip(table(tmp_path / "run"), models(tmp_path / "run").values(), strict=True):
        if not entry["chosen"]:  # that one has been refitted
            peer = GaussianMixture(entry["n_components"], covariance_type="diag")
            peer.weights_, peer.means_, peer.covariances_ = (
                found[name].values for name in ("weights", "means", "covariances")
            )
            peer.precisions_cholesky_ = _compute_precision_cholesky(peer.covariances_, "diag")
            close(entry["heldout"], peer.score(x[out]), 1e-10)
            assert found.attrs["heldout"] == entry["heldout"]


def test_the_refit_goes_on_with_all_rows(tmp_path, data):
    """The stored model counts every row, and gains over the parameters that it was chosen for."""
    config = job(data, model={"n_components": [2, 3]}, select={"heldout": 0.4}, fit={"method": "em"})
    workflow.run(config, tmp_path / "run")
    found = workflow.open_run(tmp_path / "run")
    close(found.n_effective.values.sum(axis=1), np.full(6, 600.0), 1e-12)
    assert found.attrs["final_log_likelihood"] >= found.log_likelihood.values[0]
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    passes = [event["refit"] for event in events if event["event"] == "pass"]
    assert passes == [False] * 7 + [True] * 7


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path, data, share):
    """All rows held out, or none: an error before anything is made."""
    with pytest.raises(InputError, match=r"select.heldout: .* of 600 rows out"):
        workflow.run(job(data, select={"heldout": share}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- interruptions


@pytest.mark.parametrize(
    ("event", "nth"),
    [
        ("pass", 2),
        pytest.param("candidate", 2, marks=pytest.mark.slow),
        pytest.param("checkpoint", 5, marks=pytest.mark.slow),
    ],
)
def test_a_choice_stopped_anywhere_is_resumed_to_the_same_bytes(tmp_path, data, monkeypatch, event, nth):
    """In the fits, at the choice or in the refit: resume ends with every byte of the run that nothing disturbed."""
    monkeypatch.setattr(run_sink, "CHECKPOINT_SECONDS", 0.0)
    fit = {"method": "em", "n_init": 2, "init": "random", "max_iter": 2}
    config = job(data, model={"n_components": [3, 2]}, fit=fit, select={"heldout": 0.2})
    workflow.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "run", listeners=[Interrupt(event, nth)])
    workflow.resume(tmp_path / "run")
    assert everything(tmp_path / "run") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    ("heldout", "when"),
    [(0.0, "finished"), *(pytest.param(0.2, when, marks=pytest.mark.slow) for when in ("finished", "refitting"))],
)
def test_a_higher_max_iter_chooses_again(tmp_path, data, heldout, when):
    """Raised after the choice, max_iter gives what a job with that max_iter gives, the choice included."""
    changes: dict[str, Any] = {"model": {"n_components": [2, 3]}, "select": {"heldout": heldout}, "output": NO_LABELS}
    workflow.run(job(data, fit={"method": "em", "max_iter": 9}, **changes), tmp_path / "long")
    changes["fit"] = {"method": "em"}
    if when == "refitting":
        with pytest.raises(KeyboardInterrupt):
            workflow.run(job(data, **changes), tmp_path / "run", listeners=[Interrupt("pass", 10)])
    else:
        workflow.run(job(data, **changes), tmp_path / "run")
    workflow.resume(tmp_path / "run", ["fit.max_iter=9"])
    assert everything(tmp_path / "run") == everything(tmp_path / "long")


def test_what_is_missing_of_a_choice_comes_back(tmp_path, data):
    """Without its other candidates a finished run makes them again; whole, it does nothing."""
    workflow.run(job(data, model={"n_components": [2, 3]}, output={"top_k": 5}), tmp_path / "run")
    before = everything(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "candidates.zarr")
    workflow.resume(tmp_path / "run")
    assert everything(tmp_path / "run") == before
    shutil.rmtree(data)
    workflow.resume(tmp_path / "run")


def test_other_candidates_are_another_job(tmp_path, data):
    """Resuming with another list or criterion is refused with the difference."""
    with pytest.raises(KeyboardInterrupt):
        workflow.run(job(data, model={"n_components": [2, 3]}), tmp_path / "run", listeners=[Interrupt("pass", 2)])
    for override, shown in (
        ("model.n_components=[2,3,4]", r"was \[2, 3\], now \[2, 3, 4\]"),
        ("select.criterion=aic", "select.criterion: was 'bic', now 'aic'"),
    ):
        with pytest.raises(InputError, match=shown):
            workflow.resume(tmp_path / "run", [override])


# --- what a person sees


def test_the_command_says_what_was_chosen(tmp_path, data):
    """A list in the YAML or in --set; a line for each candidate on the way, in the status and in the log."""
    path = write_config(tmp_path / "c.yaml", data, model={"n_components": [2, 3]}, fit={"max_iter": 3})
    done = command("run", path, "--output", tmp_path / "run", "--set", "model.covariance_type=[tied, diag]")
    assert done.code == 0, done.err
    for name in ("k2-tied", "k2-diag", "k3-tied", "k3-diag"):
        assert f"candidate {name}  BIC" in done.err
    chosen = next(entry["name"] for entry in table(tmp_path / "run") if entry["chosen"])
    assert done.err.count("chosen by bic") == 1
    status = command("status", tmp_path / "run").out
    assert "2 or 3 components, tied or diag" in status and chosen in status


def test_more_candidates_need_more_memory(tmp_path):
    """The statistics of all candidates are in the plan."""
    from pipeline.data.chunks import Chunks

    chunks = Chunks(ArraySource(np.zeros((1000, 50)), [0, 1000]))
    configs = [
        job(Path("x.zarr"), model={"n_components": k, "covariance_type": "full"})
        for k in (400, [400, 300], [400, 300, 200])
    ]
    plans = [plan.memory_plan(plan.plan_job(config, chunks), chunks) for config in configs]
    assert plans[0].per_task < plans[1].per_task < plans[2].per_task
    assert plans[0].fixed < plans[1].fixed < plans[2].fixed
