"""Old models, new data: a run goes on from another one, adapts it, or adds rows to it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import pipeline
from pipeline import workflow
from pipeline.errors import InputError
from pipeline.jobconfig import Config, validate
from pipeline.models.covariance import SHAPES, full_covariances
from pipeline.outputs.earlier import start_of
from pipeline.outputs.model_store import load_statistics, read_dataset
from pipeline.outputs.run_directory import RunDirectory
from tests.jobs import Interrupt, blobs, command, files, job, refused, results, settings, write_config

pytestmark = pytest.mark.full
K = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every pass, no flushing, no report."""
    from pipeline.outputs import checkpoint, report, run_directory, run_sink

    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    monkeypatch.setattr(run_sink, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(report, "write_report", lambda path: (path / "report.html").write_text("report"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two halves of some rows, all of them, and a run `old` on the first half."""
    folder = tmp_path_factory.mktemp("earlier")
    x = blobs(1200)
    for name, rows in {"a": x[::2], "b": x[1::2], "ab": x}.items():
        np.save(folder / f"{name}.npy", rows)
    workflow.run(fit_to(folder / "a.npy"), folder / "old")
    return folder


def fit_to(rows: Path, **changes: Any) -> Config:
    """A job on some rows, full covariances, to its end."""
    given: dict[str, Any] = {"model": {"covariance_type": "full"}, "fit": {"tol": 1e-6, "max_iter": 50}}
    for section, values in changes.items():
        given[section] = {**given.get(section, {}), **values} if isinstance(values, dict) else values
    return job(rows, **given)


def going_on(desk: Path, **changes: Any) -> Config:
    """A job on the other half that starts from `old`."""
    fit = {"init": "run", "init_path": str(desk / "old"), **changes.pop("fit", {})}
    return fit_to(desk / "b.npy", fit=fit, **changes)


def adapting(desk: Path, relevance: float = 16.0, run: str = "old", **changes: Any) -> Config:
    """A job on the other half under the prior of a run; fit.init is not set."""
    model = {"prior": {"from_run": str(desk / run), "relevance": relevance}, **changes.pop("model", {})}
    given = {"fit": {"tol": 1e-6, "max_iter": 50}, **changes, "model": {"covariance_type": "full", **model}}
    config = settings(desk / "b.npy", **given)
    del config["fit"]["init"]
    return validate(config)


def score(run: Path, x: np.ndarray) -> float:
    """Log-likelihood of rows, nats a row."""
    return float(pipeline.open_estimator(run).score(x))


# --- going on


def test_a_run_goes_on_from_the_parameters_of_another(desk, tmp_path):
    """The first E-step has its parameters; components keep their order, also where the new rows would sort them otherwise."""
    config = going_on(desk, fit={"max_iter": 1}, output={"keep_iterations": [0]})
    run = workflow.run(config, tmp_path / "run")
    old, new = pipeline.open_run(desk / "old"), pipeline.open_run(run)
    first = pipeline.open_estimator(desk / "old").score(np.load(desk / "b.npy"))
    assert new.log_likelihood.values[0] / 600 == pytest.approx(first, rel=1e-12)
    np.testing.assert_allclose(new.means, old.means, atol=0.3)
    assert new.attrs["order"] == [0, 1, 2]
    assert RunDirectory(run).read_config()["start"] is not None  # the digest of what was taken over


@pytest.mark.slow
def test_its_preprocessing_is_taken_over(desk, tmp_path):
    """Parameters mean something in the space of that map alone: another one, or none, is refused."""
    steps = [{"kind": "pca", "n_components": 2, "whiten": True}]
    old = workflow.run(fit_to(desk / "a.npy", preprocess=steps), tmp_path / "old")
    fit = {"init": "run", "init_path": str(old)}
    new = workflow.run(fit_to(desk / "b.npy", preprocess=steps, fit=fit), tmp_path / "new")
    for name in ("preprocess_offset", "preprocess_matrix"):
        np.testing.assert_array_equal(pipeline.open_run(new)[name], pipeline.open_run(old)[name])
    for other in ([], [{"kind": "center"}]):
        with pytest.raises(InputError, match="set preprocess to that of the run"):
            workflow.run(fit_to(desk / "b.npy", preprocess=other, fit=fit), tmp_path / "refused")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"model": {"family": "student-t", "covariance_type": "full"}}, "family gaussian, expected student-t"),
    "other numbers of components": ({"model": {"n_components": 4}}, r"got shape \(3,\), expected shape \(4,\)"),
    "other covariances": ({"model": {"covariance_type": "diag"}}, "covariances: got shape"),
    "no run": ({"fit": {"init_path": "nowhere"}}, "is not a run directory"),
    "statistics under other options": ({"fit": {"init_statistics": True}, "model": {"reg_covar": 0.1}}, "made with model.reg_covar"),
    "statistics of the very rows": ({"fit": {"init_statistics": True}, "data": "a.npy"}, "would count twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(desk, tmp_path, case):
    """Before the first pass, with what to change; nothing is written."""
    changes, said = case
    data = {"path": str(desk / changes["data"])} if "data" in changes else {}
    config = going_on(desk, **{**changes, "data": data})
    with pytest.raises(InputError, match=said):
        workflow.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_rows_of_other_features_are_refused(desk, tmp_path):
    """Fewer of them, or of other names."""
    x = np.load(desk / "b.npy")
    np.save(tmp_path / "narrow.npy", x[:, :2])
    with pytest.raises(InputError, match="means: got shape"):
        workflow.run(going_on(desk, data={"path": str(tmp_path / "narrow.npy")}), tmp_path / "run")
    for name, header in (("a", "u,v,w"), ("b", "u,w,v")):
        np.savetxt(tmp_path / f"{name}.csv", x, delimiter=",", header=header, comments="")
    text = {"source": "csv", "path": str(tmp_path / "a.csv")}
    old = workflow.run(fit_to(desk / "b.npy", data=text), tmp_path / "old")
    fit = {"init": "run", "init_path": str(old)}
    with pytest.raises(InputError, match="number 1 was 'v', and is 'w'"):
        workflow.run(fit_to(desk / "b.npy", data={**text, "path": str(tmp_path / "b.csv")}, fit=fit), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fit": {"init": "run"}}, "init_path: is missing"),
        ({"fit": {"init_statistics": True}}, "is for init: run"),
        ({"fit": {"init": "run", "init_path": "r", "n_init": 2, "init_statistics": True}}, "with n_init 1"),
        ({"fit": {"init": "run", "init_path": "r"}, "model": {"n_components": [2, 3]}}, "give one value"),
        ({"model": {"prior": {"from_run": "r", "scale": 1.0}}}, "part of another prior"),
        ({"model": {"prior": {"relevance": 2.0}}}, "is for from_run"),
        ({"model": {"prior": {"from_run": "r"}}, "fit": {"init": "random"}}, "leave fit.init out"),
        ({"model": {"prior": {"from_run": "r"}}, "fit": {"init": "run", "init_path": "s"}}, "name one run"),
        ({"model": {"prior": {"from_run": "r"}}, "select": {"pruning": True}}, "none is pruned"),
        ({"model": {"prior": {"from_run": "s3://r"}}}, "URL"),
    ],
)
def test_options_that_do_not_go_together(changes, said):
    """Each with what to change."""
    with pytest.raises(InputError, match=said):
        validate({"data": {"source": "npy", "path": "x.npy"}, **changes})


# --- adaptation


def adapted(x: np.ndarray, old: Any, kind: str, relevance: float, steps: int) -> dict[str, np.ndarray]:
    """MAP estimates by the formulas of Gauvain and Lee, component by component and row by row."""
    k, d = old.means.shape
    w0, m0 = old.weights.values, old.means.values
    s0 = full_covariances(SHAPES[kind], old.covariances.values, k, d)
    weights, means, covariances = w0, m0, s0
    for _ in range(steps):
        joint = np.stack(
            [w * multivariate_normal(m, s).pdf(x) for w, m, s in zip(weights, means, covariances, strict=True)], axis=1
        )
        resp = joint / joint.sum(axis=1, keepdims=True)
        counts = resp.sum(axis=0)
        weights = (counts + k * relevance * w0) / (len(x) + k * relevance)
        means = np.array([(relevance * m0[i] + resp[:, i] @ x) / (relevance + counts[i]) for i in range(k)])
        scatter = []
        for i in range(k):
            by, apart = x - means[i], m0[i] - means[i]
            scatter.append(relevance * (s0[i] + np.outer(apart, apart)) + (resp[:, i, None] * by).T @ by)
        covariances = np.array([s / (relevance + n) for s, n in zip(scatter, counts, strict=True)])
        if kind == "tied":
            covariances = np.tile(sum(scatter) / (k * relevance + len(x)), (k, 1, 1))
        elif kind == "diag":
            covariances = np.array([np.diag(np.diagonal(s)) for s in covariances])
        elif kind == "spherical":
            covariances = np.array([np.eye(d) * np.trace(s) / d for s in covariances])
    return {"weights": weights, "means": means, "covariances": covariances}


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SHAPES if kind != "full")]
)
def test_adaptation_is_that_of_gauvain_and_lee(desk, tmp_path, kind):
    """Weights, means and covariances of all types, after three iterations; the objective never falls."""
    if kind != "full":
        workflow.run(fit_to(desk / "a.npy", model={"covariance_type": kind}), tmp_path / "old")
    where = desk if kind == "full" else tmp_path
    shutil.copy(desk / "b.npy", where / "b.npy") if where != desk else None
    config = adapting(where, 7.0, model={"covariance_type": kind}, fit={"method": "em", "max_iter": 3, "tol": 0})
    run = pipeline.open_run(workflow.run(config, tmp_path / "run"))
    expected = adapted(np.load(desk / "b.npy"), pipeline.open_run(where / "old"), kind, 7.0, 3)
    np.testing.assert_allclose(run.weights, expected["weights"], rtol=1e-10)
    np.testing.assert_allclose(run.means, expected["means"], rtol=1e-10)
    found = full_covariances(SHAPES[kind], run.covariances.values, K, 3)
    np.testing.assert_allclose(found, expected["covariances"], atol=1e-10)
    assert (np.diff(run.objective.values) >= -1e-12 * abs(run.objective.values[0])).all()


@pytest.mark.slow
def test_the_relevance_leads_from_the_rows_to_the_run(desk, tmp_path):
    """Many pseudo-rows keep the components of the run, and a component without new rows stays as it was."""
    x = np.load(desk / "b.npy")
    old = pipeline.open_estimator(desk / "old")
    np.save(tmp_path / "one.npy", x[old.predict(x) == 0][:50])
    for name, path in {"stiff": desk / "b.npy", "some": tmp_path / "one.npy"}.items():
        config = adapting(desk, 1e9 if name == "stiff" else 16.0, data={"path": str(path)})
        workflow.run(config, tmp_path / name)
    stiff, some = pipeline.open_run(tmp_path / "stiff"), pipeline.open_run(tmp_path / "some")
    np.testing.assert_allclose(stiff.means, old.means_, atol=1e-4)
    np.testing.assert_allclose(some.means[1:], old.means_[1:], atol=0.05)
    np.testing.assert_allclose(some.covariances[1:], old.covariances_[1:], rtol=0.1)
    assert some.attrs["collapsed"] == 0


# --- adding rows


def test_two_halves_are_nearly_the_whole(desk, tmp_path):
    """Within 1e-3 nats a row of the fit of all rows, although the first half is gone; the bound never falls."""
    whole = workflow.run(fit_to(desk / "ab.npy"), tmp_path / "whole")
    shutil.copytree(desk / "old", tmp_path / "old")
    new = workflow.update(tmp_path / "old", [f"data.path={desk / 'b.npy'}"])
    assert new == tmp_path / "old-updated"
    x = np.load(desk / "ab.npy")
    assert abs(score(new, x) - score(whole, x)) < 1e-3
    assert score(new, x) > score(desk / "old", x)
    found = pipeline.open_run(new)
    assert found.attrs["total_weight"] == 1200 and found.attrs["earlier_weight"] == 600
    bound = found.log_likelihood.values  # of all rows, from below
    assert (np.diff(bound) >= -1e-12 * abs(bound[0])).all() and "bic" not in found.attrs
    assert found.attrs["order"] == pipeline.open_run(desk / "old").attrs["order"]  # labels mean the same
    labels = pipeline.open_estimator(new).predict(x), pipeline.open_estimator(desk / "old").predict(x)
    assert np.mean(labels[0] == labels[1]) > 0.98


def test_the_stored_statistics_are_those_of_the_last_e_step(desk):
    """Of all rows, under the stored parameters: responsibilities by hand, in the order of the attribute `order`."""
    dataset, x = read_dataset(desk / "old" / "model.zarr"), np.load(desk / "a.npy")
    statistics, resp = load_statistics(dataset), pipeline.open_estimator(desk / "old").predict_proba(x)
    order = dataset.attrs["order"]
    np.testing.assert_allclose(statistics.totals.stats.sum_w[order], resp.sum(axis=0), rtol=1e-9)
    sums = statistics.totals.stats.component.sum_x[order]
    shift = statistics.model.shift
    np.testing.assert_allclose(sums, resp.T @ (x - shift), rtol=1e-9)
    entropy = -np.sum(resp * np.log(np.maximum(resp, 1e-300)))
    assert statistics.totals.evidence.entropy == pytest.approx(entropy, rel=1e-8)
    assert statistics.totals.evidence.log_likelihood is None


@pytest.mark.slow
def test_what_update_may_change(desk, tmp_path):
    """New data have to be named, and what the statistics have settled may not be; lists are what was chosen from them."""
    with pytest.raises(InputError, match=r"Add --set data\.path"):
        workflow.update(desk / "old", [])
    with pytest.raises(InputError, match="settled by the run"):
        workflow.update(desk / "old", ["data.path=b.npy", "model.reg_covar=1"])
    config = fit_to(desk / "a.npy", model={"n_components": [2, 3], "covariance_type": ["diag", "full"]})
    chosen = workflow.run(config, tmp_path / "chosen")
    new = workflow.update(chosen, [f"data.path={desk / 'b.npy'}", "fit.max_iter=2"], tmp_path / "new")
    assert pipeline.open_run(new).attrs["n_components"] == pipeline.open_run(chosen).attrs["n_components"]
    labels = np.full(600, -1)
    np.save(tmp_path / "labels.npy", labels)
    order = pipeline.open_run(desk / "old").attrs["order"]
    assert order != [0, 1, 2]
    with pytest.raises(InputError, match="labels would name others"):
        workflow.update(desk / "old", [f"data.path={desk / 'b.npy'}", f"data.labels={tmp_path / 'labels.npy'}"])


@pytest.mark.parametrize("family", ["kmeans", pytest.param("spherical-kmeans", marks=pytest.mark.slow)])
def test_two_halves_are_nearly_the_whole_for_centres(tmp_path, family):
    """K-means of digits: the inertia of all rows within 0.5 % of the fit of all; that of fixed labels is above it, and never rises."""
    x = np.random.default_rng(0).permutation(load_digits().data)
    for name, rows in {"a": x[:900], "b": x[900:], "ab": x}.items():
        np.save(tmp_path / f"{name}.npy", rows)
    changes: dict[str, Any] = {
        "model": {"family": family, "n_components": 10},
        "fit": {"init": "k-means||", "method": "auto", "tol": 0.0, "max_iter": 100},
    }
    old = workflow.run(job(tmp_path / "a.npy", **changes), tmp_path / "old")
    whole = workflow.run(job(tmp_path / "ab.npy", **changes), tmp_path / "whole")
    new = workflow.update(old, [f"data.path={tmp_path / 'b.npy'}"])
    unit = x if family == "kmeans" else x / np.linalg.norm(x, axis=1, keepdims=True)
    a, b, both, found = unit[:900], unit[900:], pipeline.open_run(whole), pipeline.open_run(new)
    share = 1.0 if family == "kmeans" else 0.5  # 1 - cosine = |x - c|² / 2

    def squares(rows: np.ndarray, centers: Any) -> np.ndarray:
        return share * ((rows[:, None] - np.asarray(centers)) ** 2).sum(axis=2)

    least = squares(unit, found.centers).min(axis=1).sum()
    assert least < 1.005 * squares(unit, both.centers).min(axis=1).sum()
    fixed = squares(a, pipeline.open_run(old).centers).argmin(axis=1)  # labels that they had
    bound = squares(a, found.centers)[np.arange(900), fixed].sum() + squares(b, found.centers).min(axis=1).sum()
    assert found.attrs["final_inertia"] == pytest.approx(bound, rel=1e-9) and bound >= least
    assert (np.diff(found.inertia.values) <= 1e-12 * bound).all() and found.attrs["earlier_weight"] == 900
    opened = pipeline.open_estimator(old)
    opened.tol, opened.max_iter = 0.0, 100
    opened.partial_fit(x[900:])  # the same from Python, in the order of the run
    centers = opened.cluster_centers_ if family == "kmeans" else opened.centers_
    np.testing.assert_allclose(centers, found.centers, atol=1e-9)


KINDS = {
    "go on": lambda desk: going_on(desk),
    "adapt": lambda desk: adapting(desk),
    "add": lambda desk: going_on(desk, fit={"init_statistics": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "event", "nth"),
    [("go on", "init", 1), ("adapt", "init", 1), ("add", "init", 1), ("adapt", "pass", 2), ("add", "pass", 2)],
)
def test_a_killed_run_ends_in_the_same_bytes(desk, tmp_path, kind, event, nth):
    """Wherever it stopped: what is taken over is in the checkpoints, so that the earlier run is not needed any more."""
    shutil.copytree(desk, tmp_path / "own")
    config = KINDS[kind](tmp_path / "own")
    alone = workflow.run(config, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "run", listeners=[Interrupt(event, nth)])
    shutil.rmtree(tmp_path / "own" / "old")
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(alone)
    workflow.predict(tmp_path / "run", [f"data.path={tmp_path / 'own' / 'a.npy'}"], tmp_path / "labels")


@pytest.mark.slow
def test_an_earlier_run_that_changes_before_it_is_used_is_refused(desk, tmp_path):
    """Its parameters are part of the digest that the run began with."""
    shutil.copytree(desk, tmp_path / "own")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(going_on(tmp_path / "own"), tmp_path / "run", listeners=[Interrupt("profile", 1)])
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    (tmp_path / "run" / "checkpoints" / "partial-0").mkdir(parents=True)
    workflow.run(fit_to(desk / "b.npy"), tmp_path / "own" / "old", overwrite=True)
    with pytest.raises(InputError, match="which the run began with"):
        workflow.resume(tmp_path / "run")


def test_nothing_in_the_earlier_run_is_executed(desk, tmp_path):
    """A file that its config.yaml names, and a scheduler, are the user's to name again."""
    shutil.copytree(desk / "old", tmp_path / "old")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    path = tmp_path / "old" / "config.yaml"
    mark, text = path.read_text().split("\n", 1)
    for section, change in {
        "model": {"family": "python", "path": f"{tmp_path / 'evil.py'}:Evil"},
        "engine": {"scheduler_address": "tcp://127.0.0.1:1"},
    }.items():
        record = yaml.safe_load(text)
        record["config"][section] |= change
        path.write_text(f"{mark}\n{yaml.safe_dump(record)}")
        with pytest.raises(InputError, match=r"not executed unless you name them|not used unless you repeat them"):
            workflow.update(tmp_path / "old", [f"data.path={desk / 'b.npy'}"])
        config = fit_to(desk / "b.npy", fit={"init": "run", "init_path": str(tmp_path / "old")})
        assert start_of(config, config.open_chunks()).arrays is not None  # only its parameters are read
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_the_command_checks_runs_and_reports(desk, tmp_path, monkeypatch):
    """check and run of a config that names a run; update, and the report, which says what was taken over."""
    monkeypatch.undo()
    fit = {"init": "run", "init_path": str(desk / "old"), "max_iter": 2}
    config = write_config(tmp_path / "c.yaml", desk / "b.npy", model={"covariance_type": "full"}, fit=fit)
    assert json.loads(command("check", config, "--json").out)["fits"] == 1
    before = files(desk / "old")
    options = ["--set", f"data.path={desk / 'b.npy'}", "--output", tmp_path / "new"]
    done = command("update", desk / "old", *options)
    assert done.code == 0 and "report:" in done.out
    page = (tmp_path / "new" / "report.html").read_text()
    assert "600 by the statistics of an earlier run" in page and "is a lower bound" in page
    assert files(desk / "old") == before
    assert "contains a finished run" in refused("update", desk / "old", *options)
    assert command("report", tmp_path / "new").code == 0


# --- in Python


def test_partial_fit_of_two_halves(desk):
    """Near the fit of all rows; rows of other features are refused."""
    a, b, x = (np.load(desk / f"{name}.npy") for name in ("a", "b", "ab"))
    mixture = pipeline.GaussianMixture(K, random_state=0, tol=1e-6).partial_fit(a).partial_fit(b)
    whole = pipeline.GaussianMixture(K, random_state=0, tol=1e-6).fit(x)
    assert abs(mixture.score(x) - whole.score(x)) < 1e-3
    assert mixture.statistics_.totals.evidence.weight == 1200
    with pytest.raises(ValueError, match="features"):
        mixture.partial_fit(b[:, :2])


@pytest.mark.slow
def test_partial_fit_is_update(desk, tmp_path):
    """Of an opened run, in the order of its components; of a fitted estimator, also after it was stored."""
    b = np.load(desk / "b.npy")
    new = workflow.update(desk / "old", [f"data.path={desk / 'b.npy'}"], tmp_path / "new")
    opened = pipeline.open_estimator(desk / "old")
    opened.tol, opened.method, opened.max_iter = 1e-6, "em", 50
    opened.partial_fit(b)
    np.testing.assert_allclose(opened.means_, pipeline.open_run(new).means, atol=1e-6)
    first = pipeline.GaussianMixture(K, random_state=0, tol=1e-6).partial_fit(np.load(desk / "a.npy"))
    again = pickle.loads(pickle.dumps(first)).partial_fit(b)
    first.partial_fit(b)
    np.testing.assert_array_equal(first.means_, again.means_)
    x = np.load(desk / "ab.npy")
    whole = pipeline.GaussianMixture(K, random_state=0, tol=1e-6).fit(x)
    assert abs(first.score(x) - whole.score(x)) < 1e-3
    with pytest.raises(ValueError, match="features"):
        first.partial_fit(b[:, :2])


@pytest.mark.slow
def test_adaptation_in_python_is_the_commands(desk, tmp_path):
    """The same prior, and the same start."""
    run = pipeline.open_run(
        workflow.run(adapting(desk, fit={"method": "em", "max_iter": 4, "tol": 0}), tmp_path / "run")
    )
    prior = {"from_run": str(desk / "old"), "relevance": 16.0}
    mixture = pipeline.GaussianMixture(K, prior=prior, max_iter=4, tol=0)
    with pytest.warns(ConvergenceWarning):
        mixture.fit(np.load(desk / "b.npy"))
    np.testing.assert_allclose(mixture.means_, run.means, rtol=1e-12)


@pytest.mark.slow
def test_partial_fit_of_other_families(desk):
    """Whatever has statistics that say what parameters cost; K-means of separated clusters is the fit of all rows."""
    counts = np.random.default_rng(0).poisson(3.0, size=(200, 4))
    mixture = pipeline.PoissonMixture(2, random_state=0).partial_fit(counts[:100]).partial_fit(counts[100:])
    weight = mixture.statistics_.totals.evidence.weight
    assert weight == 200
    a, b, x = (np.load(desk / f"{name}.npy") for name in ("a", "b", "ab"))
    first = pipeline.KMeans(K, random_state=0).partial_fit(a).partial_fit(b)
    whole = pipeline.KMeans(K, random_state=0).fit(x)
    assert first.inertia_ == pytest.approx(whole.inertia_, rel=1e-9) and len(first.labels_) == len(b)
    with pytest.raises(ValueError, match="features"):
        first.partial_fit(b[:, :2])
