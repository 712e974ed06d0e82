"""The report: one readable, self-contained page from the run directory alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

import pipeline
from pipeline import config
from pipeline.errors import InputError, StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.report import write_report
from pipeline.outputs.report.words import number, percent, seconds, size
from tests.jobs import blobs

pytestmark = pytest.mark.full

FAMILY_NAMES = {"means": "gaussian", "centers": "kmeans", "log_prob": "multinomial"}


def history(k: int, n_iter: int, rows: int) -> dict[str, Any]:
    """A plausible history: log-likelihoods that rise, a free energy between two of them, sizes that settle."""
    t = np.arange(n_iter + 1)
    log_likelihood = rows * (-10 - 4 * np.exp(-0.3 * t) - 1 / (t + 2))
    between = 0.35 * log_likelihood[:-1] + 0.65 * log_likelihood[1:]
    sizes = np.random.default_rng(3).dirichlet(np.full(k, 5.0), n_iter) * rows
    return {
        "log_likelihood": ("iteration", log_likelihood[:-1]),
        "lower_bound": ("iteration", between),
        "entropy": ("iteration", np.full(n_iter, 0.3 * rows)),
        "n_effective": (("iteration", "component"), sizes),
        "rows": ("iteration", np.full(n_iter, rows)),
        "phase": ("iteration", np.full(n_iter, "em", dtype=object)),
        "final": log_likelihood[-1],
    }


def write_run(folder: Path, centre: str, arrays: dict[str, Any], data: dict[str, Any], **attrs: Any) -> Path:
    """A finished run directory; `centre` is means, centers or log_prob, and names the family."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILY_NAMES[centre]
    k, d = arrays[centre].shape
    n_iter, rows = 12, 20_000
    past = history(k, n_iter, rows)
    final = past.pop("final")
    if family == "kmeans":
        past["inertia"] = ("iteration", -np.asarray(past.pop("log_likelihood")[1]))
        del past["lower_bound"], past["entropy"]
    variables: dict[str, Any] = past | {
        "weights": ("component", np.sort(np.random.default_rng(0).dirichlet(np.full(k, 4.0)))[::-1]),
        centre: (("component", "feature"), arrays[centre]),
        "exemplar_row": (("component", "rank"), np.arange(5 * k).reshape(k, 5)),
        "exemplar_responsibility": (("component", "rank"), np.full((k, 5), 0.99)),
    }
    square = ("feature", "feature_2")
    tied = attrs.get("covariance_type") == "tied"
    dims: dict[tuple[str, int], tuple[str, ...]] = {
        ("covariances", 3): ("component", *square),
        ("covariances", 2): square if tied else ("component", "feature"),
        ("covariances", 1): ("component",),
        ("exemplars", 3): ("component", "rank", "feature"),
        ("sample", 2): ("sample_row", "feature"),
        ("means_se", 2): ("component", "feature"),
        ("misfit_row", 1): ("misfit",),
        ("misfit_log_density", 1): ("misfit",),
        ("misfits", 2): ("misfit", "feature"),
        ("preprocess_offset", 1): ("raw_feature",),
        ("preprocess_matrix", 2): ("raw_feature", "feature"),
        ("preprocess_inverse", 2): ("feature", "raw_feature"),
    }
    variables |= {name: (dims[name, array.ndim], array) for name, array in arrays.items() if name != centre}
    objective = {"final_inertia": -final} if family == "kmeans" else {"final_log_likelihood": final}
    criteria = {} if family == "kmeans" else {"aic": 412345.6, "bic": 423456.7, "icl": 434567.8}
    stored = {
        "family": family,
        "covariance_type": "full" if family == "gaussian" else None,
        "assignment": "hard" if family == "kmeans" else "soft",
        "n_components": k,
        "n_features": d,
        "n_rows": rows,
        "total_weight": float(rows),
        "stop_reason": "converged: the log-likelihood per row moved by 4.1e-4 nats, less than tol = 1e-3",
        "converged": True,
        "n_iter": n_iter,
        "log_jacobian": 0.0,
        "order": [1, 0, *range(2, k)][:k] if k > 1 else [0],
        "data": data,
        "restarts": [{"restart": 0, "objective": final, "n_iter": n_iter, "stop_reason": "tol", "chosen": True}],
        "reg_covar": 1e-6,
        "dropped_rows": 0,
    }
    stored |= objective | criteria | attrs
    dataset = xr.Dataset(variables, attrs={key: value for key, value in stored.items() if value is not None})
    dataset.to_zarr(folder / "model.zarr", consolidated=False, mode="w")
    config = {
        "data": {"source": "zarr", "path": "data/rows.zarr"},
        "model": {"family": family, "n_components": k},
        "fit": {"init": "k-means||", "n_init": 1, "max_iter": 100, "tol": 1e-3},
        "output": {"path": "runs/example"},
    }
    resolved = {
        "config": config,
        "versions": {"em-pipeline": "0.1.0", "numpy": "2.4.0"},
        "numerics": 1,
        "fingerprint": {"shape": [rows, d], "dtype": "float64", "n_chunks": 7, "sha256": ["ab12" * 16] * 16},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    write_events(folder, n_iter, rows)
    return folder


def write_events(folder: Path, n_iter: int, rows: int) -> None:
    """Events with a reset, a warning, a kind that nobody knows, and a last line torn by a crash."""
    moment = "2026-03-05T14:{:02d}:{:02d}+00:00"
    entries: list[dict[str, Any]] = [
        {"event": "start", "host": "grey", "cores": 2, "blas": "openblas Haswell", "memory_total": 2**32},
        {"event": "profile", "rows": rows, "seconds": 0.41, "bytes_read": 10**7},
        {"event": "init", "method": "k-means||", "seconds": 1.2},
    ]
    for t in range(n_iter):
        speed = {"seconds": 0.02 + 0.003 * (t % 3), "rows": rows, "bytes_read": 10**7, "workers": 2}
        entries.append({"event": "pass", "iteration": t, **speed})
    entries += [
        {"event": "reset", "restart": 0, "iteration": 3, "component": 1, "reason": "1.2 effective rows"},
        {"event": "warning", "message": "2 <b>rows</b> & more"},
        {"event": "eclipse", "depth": 3},
        {"event": "checkpoint", "generation": 4, "seconds": 0.03},
        {"event": "finished", "seconds": 9.5, "peak_pss": 3 * 10**8},
    ]
    lines = [json.dumps({**entry, "time": moment.format(i // 60, i % 60)}) for i, entry in enumerate(entries)]
    (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "pass", "seco')


def spd(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    """(k, d, d) covariances."""
    a = rng.normal(size=(k, d, d)) * np.linspace(1, 0.1, d)
    return np.asarray(a @ a.transpose(0, 2, 1) / d + 0.01 * np.eye(d))


def dense_run(folder: Path, d: int = 2, k: int = 3, covariance_type: str = "full", **attrs: Any) -> Path:
    """A Gaussian mixture of plain rows."""
    rng = np.random.default_rng(d)
    full = spd(rng, k, d)
    covariances: np.ndarray = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2),
        "spherical": np.trace(full, axis1=1, axis2=2) / d,
    }[covariance_type]
    means = 3 * rng.normal(size=(k, d))
    sample = means[rng.integers(k, size=500)] + rng.normal(size=(500, d))
    arrays = {"means": means, "covariances": covariances, "sample": sample}
    return write_run(folder, "means", arrays, {"kind": "rows"}, covariance_type=covariance_type, **attrs)


def kmeans_run(folder: Path) -> Path:
    """K-means of plain rows."""
    rng = np.random.default_rng(1)
    arrays = {"centers": rng.normal(size=(4, 5)), "sample": rng.normal(size=(300, 5))}
    return write_run(folder, "centers", arrays, {"kind": "rows"})


def image_run(folder: Path) -> Path:
    """Small images, spherical; the last component has no closest row."""
    rng = np.random.default_rng(2)
    arrays = {
        "means": rng.uniform(0, 16, (6, 64)),
        "covariances": np.ones(6),
        "exemplars": rng.uniform(0, 16, (6, 5, 64)),
        "sample": rng.uniform(0, 16, (50, 64)),
    }
    return write_run(folder, "means", arrays, {"kind": "image", "size": [8, 8]}, covariance_type="spherical")


def patch_run(folder: Path, k: int = 200, p: int = 8) -> Path:
    """Full covariances of mean-free patches."""
    rng = np.random.default_rng(4)
    d = p * p - 1
    arrays = {
        "means": 0.01 * rng.normal(size=(k, d)),
        "covariances": spd(rng, k, d),
        "exemplars": rng.normal(size=(k, 5, d)),
        "sample": rng.normal(size=(100, d)),
        "misfit_row": np.array([70, 5]),
        "misfit_log_density": np.array([-50.0, -40.0]),
        "misfits": rng.normal(size=(2, d)),
    }
    data = {"kind": "patch", "size": [p, p], "channels": 1, "remove_mean": True, "contrast": None}
    return write_run(folder, "means", arrays, data)


def topic_run(folder: Path) -> Path:
    """A multinomial mixture with a vocabulary that needs escaping."""
    theta = np.random.default_rng(5).dirichlet(np.full(40, 0.2), 20) + 1e-9
    words = [f"word&{i}" for i in range(40)]
    return write_run(folder, "log_prob", {"log_prob": np.log(theta)}, {"kind": "document"}, vocabulary=words)


def forget(run: Path) -> Path:
    """The run with a history that was not computed at every iteration, as an incremental method leaves it."""
    model = zarr.open_group(run / "model.zarr")
    for name in ("log_likelihood", "lower_bound", "entropy"):
        array = model[name]
        assert isinstance(array, zarr.Array)
        array[2:5] = np.nan
    return run


def choice_run(folder: Path, shapes: tuple[str, ...] = ("full",), heldout: bool = False, **attrs: Any) -> Path:
    """A run that was chosen from 2, 3 and 4 components; the second of the first shape by BIC or held-out rows."""
    table = [
        {
            "name": f"k{k}-{shape}",
            "n_components": k,
            "covariance_type": shape,
            "final_log_likelihood": -2e5 + 10 * k,
            "aic": 4e5 + 100 * abs(k - 3) + i,
            "bic": 4e5 + 1000 * abs(k - 3) + i,
            "icl": 4e5 + 900.0 + k,
            "n_free_parameters": 10 * k,
            "total_weight": 15_000.0,
            "collapsed": int(k == 4),
            "n_iter": 20 + k,
            "stop_reason": f"converged: of {k} components",
            "restarts": [],
            "criterion": "heldout" if heldout else "bic",
            "chosen": k == 3 and i == 0,
        }
        | ({"heldout": -13.0 - abs(k - 3), "heldout_weight": 5000.0} if heldout else {})
        for k in (4, 2, 3)
        for i, shape in enumerate(shapes)
    ]
    return dense_run(folder, candidates=table, **attrs)


def keep(run: Path, iterations: tuple[int, ...] = (0, 1, 5)) -> Path:
    """The run with parameters of some iterations: the model's, stretched by feature, in the order that the fit had."""
    model = xr.open_zarr(run / "model.zarr", consolidated=False)
    back = np.argsort(model.attrs["order"])
    names = [name for name in ("weights", "means", "covariances", "centers", "log_prob") if name in model]
    first = f"-{model.attrs['covariance_type']}" if "covariance_type" in model.attrs else ""
    folder = run / "iterations" / f"k{model.sizes['component']}{first}-0"
    for t in iterations:
        arrays = {}
        for name in names:
            value, stretch = model[name].values, stretched(model.sizes["feature"], t)
            if name != "weights":
                square = "feature_2" in model[name].dims
                value = value * np.outer(stretch, stretch) if square else value * (stretch if value.ndim > 1 else 2)
            arrays[name] = value[back] if model[name].dims[0] == "component" else value
        checkpoint.save(folder, t, checkpoint.State(arrays, {}), keep=None)
    return run


def stretched(d: int, t: int) -> np.ndarray:
    """(d,) what each feature of iteration t is multiplied by."""
    return np.asarray(1 + np.linspace(0.2, 1, d) / (t + 1))


RUNS: dict[str, Callable[[Path], Path]] = {
    "line": lambda folder: dense_run(folder, d=1, k=1, covariance_type="diag"),
    "plane": lambda folder: keep(dense_run(folder)),
    "many": lambda folder: dense_run(folder, d=20, covariance_type="tied"),
    "gaps": lambda folder: forget(dense_run(folder, d=3, covariance_type="spherical")),
    "choice": choice_run,
    "choice of types": lambda folder: choice_run(folder, ("full", "tied"), heldout=True),
    "kmeans": lambda folder: keep(kmeans_run(folder)),
    "images": lambda folder: keep(image_run(folder)),
    "patches": lambda folder: keep(patch_run(folder, k=12, p=4)),
    "topics": lambda folder: keep(topic_run(folder)),
}


class Page(HTMLParser):
    """What the tests look at: elements with their attributes, and the text."""

    VOID = {"meta", "img", "br", "hr", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def read(run: Path) -> Page:
    """Write the report and parse it."""
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=RUNS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of each kind of run, written once."""
    return write_report(RUNS[request.param](tmp_path_factory.mktemp(request.param) / "run"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; tests only read it, or write the same report again."""
    run = dense_run(tmp_path_factory.mktemp("plane") / "run")
    write_report(run)
    return run


def test_pages_are_whole_and_self_contained(report: Path) -> None:
    """Every family's page is well-formed, needs no script and no network, and says each picture in words."""
    run, text = report.parent, report.read_text(encoding="utf-8")
    page = Page(text)
    assert report.name == "report.html" and page.open == []
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not page.all("script") and not page.all("link")
    pictures = page.all("img")
    charts = [svg for svg in page.all("svg") if "aria-label" in svg]
    assert len(charts) >= 3 and all(chart["aria-label"] for chart in charts)
    assert all(picture["alt"] and str(picture["src"]).startswith("data:image/png") for picture in pictures)
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids)), "ids collide"
    assert "nan" not in re.findall(r"\w+", page.text.lower())
    assert [child.name for child in run.iterdir() if child.name.startswith(".")] == []


def test_the_first_screen_answers(report: Path) -> None:
    """What was asked and what came out are there before the first chart, with units."""
    text = " ".join(re.split("[ \n]+", Page(report.read_text(encoding="utf-8")).text))
    first = text[: text.index("How it converged")]
    assert "tart by k-means||, at most 100 iterations." in first
    assert "20,000" in first and "Iterations 12" in first and "9.5\u202fs" in first and "rows/s" in first
    assert "Converged: the log-likelihood per row moved by 4.1e-4 nats" in first
    assert ("nats per row" in first and "BIC" in first) or "K-means" in first


def test_many_patches_stay_small(tmp_path: Path) -> None:
    """Two hundred components of 8 x 8 patches fit in 5 MB, all on contact sheets and the largest one by one."""
    run = patch_run(tmp_path / "run")
    page = read(run)
    assert (run / "report.html").stat().st_size < 5e6
    alts = [str(picture["alt"]) for picture in page.all("img")]
    assert sum("of all 200 components" in alt for alt in alts) == 5
    assert sum(alt.startswith("Component ") for alt in alts) == 24


def test_patches_map_back_to_pixels(tmp_path: Path) -> None:
    """A mean-free component, seen through a preprocess, is the picture that it was made from, and so is its covariance."""
    from pipeline.data.images import patch_basis
    from pipeline.outputs.report.pictures import pixel_map
    from pipeline.outputs.report.record import read_record

    rng = np.random.default_rng(0)
    basis = np.asarray(patch_basis((3, 4)))
    picture = rng.normal(size=12)
    picture -= picture.mean()
    matrix, offset = np.diag(rng.uniform(1, 2, 11)), rng.normal(size=11)
    feature = (picture @ basis - offset) @ matrix
    direction = picture @ basis @ matrix
    arrays = {
        "means": np.tile(feature, (2, 1)),
        "covariances": np.tile(np.outer(direction, direction), (2, 1, 1)),
        "preprocess_offset": offset,
        "preprocess_matrix": matrix,
        "preprocess_inverse": np.linalg.inv(matrix),
    }
    run = write_run(tmp_path / "run", "means", arrays, {"kind": "patch", "size": [3, 4], "remove_mean": True})
    pixels = pixel_map(read_record(run))
    assert pixels is not None
    np.testing.assert_allclose(pixels.points(feature).ravel(), picture, atol=1e-12)
    eigen = pixels.directions(np.outer(direction, direction), 1).ravel()
    np.testing.assert_allclose(eigen, picture / picture[np.abs(picture).argmax()], atol=1e-9)


def test_rows_are_shown_in_the_units_of_the_data(tmp_path: Path) -> None:
    """After a preprocess the table of means is mapped back, means as points and deviations as directions."""
    from pipeline.outputs.report.projection import means_table
    from pipeline.outputs.report.record import read_record

    arrays = {
        "means": np.array([[0.0, 1.0], [2.0, 3.0]]),
        "covariances": np.tile(np.eye(2), (2, 1, 1)),
        "preprocess_offset": np.array([10.0, 20.0]),
        "preprocess_matrix": np.diag([0.5, 0.25]),
        "preprocess_inverse": np.diag([2.0, 4.0]),
    }
    table = means_table(read_record(write_run(tmp_path / "run", "means", arrays, {"kind": "rows"})))
    assert table.means.tolist() == [[10, 24], [14, 32]]
    assert table.deviations is not None and table.deviations.tolist() == [[2, 4], [2, 4]]


def test_standard_errors_stand_beside_the_means(tmp_path: Path) -> None:
    """In the table of means, where they are in the data's units; not where a preprocess lies between."""
    from pipeline.outputs.report.projection import means_table
    from pipeline.outputs.report.record import read_record

    arrays = {"means": np.array([[0.0, 1.0], [2.0, 3.0]]), "means_se": np.array([[0.125, 0.25], [0.5, np.nan]])}
    run = write_run(tmp_path / "run", "means", arrays, {"kind": "rows"})
    assert "± 0.25" in write_report(run).read_text(encoding="utf-8")
    turned = {"preprocess_offset": np.zeros(2), "preprocess_matrix": np.eye(2), "preprocess_inverse": np.eye(2)}
    mapped = write_run(tmp_path / "mapped", "means", {**arrays, **turned}, {"kind": "rows"})
    assert means_table(read_record(mapped)).errors is None


def test_kept_iterations_stand_side_by_side(report: Path) -> None:
    """A drawing with words for each kept iteration and for the end; without any, one line names what keeps them."""
    text = report.read_text(encoding="utf-8")
    shown = text[text.index('<section id="replay">') :].split("</section>")[0]
    if not (report.parent / "iterations").exists():
        assert "output.keep_iterations=" in shown and "<figure" not in shown and shown.count("<p") == 1
        return
    assert "keep_iterations" not in shown and shown.count("per row") == 4
    titles = ["Start", "Iteration 1", "Iteration 5", "The end, iteration 12"]
    assert all(title in shown for title in titles)
    if "<table" in shown:  # topics: a line for each, a column for each iteration
        page = Page(shown)
        assert len(page.all("tr")) == 13 and len(page.all("td")) == 12 * 4 and "word&" in page.text
        return
    alts = re.findall(r'(?:alt|aria-label)="([^"]*)"', shown)
    assert len(alts) == 4 and all(alt.startswith(title) for alt, title in zip(alts, titles, strict=True))
    plain = re.sub(r'at\d+-|(?:alt|aria-label)="[^"]*"|<h3>.*?</h3>|<figcaption>.*?</figcaption>', "", shown)
    drawn = re.findall(r"<figure>.*?</figure>", plain, re.DOTALL)
    assert len(drawn) == len(set(drawn)) == 4, "two iterations look the same"


def test_kept_iterations_have_the_numbers_of_the_end(tmp_path: Path) -> None:
    """Parameters are kept in the order that components had; they are shown in that of the model. Of a refit, its own."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.replay import moments

    run = keep(dense_run(tmp_path / "run", covariance_type="tied"), (4,))
    record = read_record(run)
    (moment,) = moments(record)[0].values()
    np.testing.assert_allclose(moment.means, record.means * stretched(2, 4))
    np.testing.assert_allclose(moment.weights, record.weights)
    square = np.outer(stretched(2, 4), stretched(2, 4))
    np.testing.assert_allclose(moment.array("covariances"), record.array("covariances") * square)
    (run / "iterations" / "k3-tied-0-refit").mkdir()
    (run / "iterations" / "k3-tied-0" / "gen-000004").rename(run / "iterations" / "k3-tied-0-refit" / "gen-000002")
    assert list(moments(record)[0]) == [2]


def test_many_and_damaged_iterations(tmp_path: Path) -> None:
    """Of many kept iterations the first few and some later ones are shown; one that is damaged is named."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.replay import moments

    run = keep(dense_run(tmp_path / "run"), tuple(range(12)))
    (run / "iterations" / "k3-full-0" / "gen-000004" / "manifest.json").write_text("torn")
    found, lost = moments(read_record(run))
    assert list(found) == [0, 1, 2, 7, 11] and "Damaged, so not shown: iteration 4." in lost


@pytest.fixture(scope="module", params=["gaussian", "kmeans", "multinomial"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the job itself, on 300 rows, and its report."""
    folder = tmp_path_factory.mktemp(request.param)
    counts = request.param == "multinomial"
    x = blobs(300, 4) if not counts else np.random.default_rng(0).poisson(2.0, (300, 4)) + 1
    np.save(folder / "x.npy", x)
    data = {"source": "npy", "path": str(folder / "x.npy")}
    if counts:
        lines = [f"{i + 1} {w + 1} {c}" for i, row in enumerate(x) for w, c in enumerate(row)]
        (folder / "docword.x.txt").write_text("\n".join(["300", "4", str(len(lines)), *lines]))
        data = {"source": "docword", "path": str(folder / "docword.x.txt"), "cache": str(folder)}
    plain = {
        "data": data,
        "model": {"family": request.param, "n_components": 3},
        "fit": {"method": "em", "max_iter": 3},
        "output": {"top_k": 3, "keep_iterations": [0, 2]},
    }
    return pipeline.run(config.validate(plain), folder / "run")


def test_misfits_are_the_rows_of_the_lowest_density(real: Path) -> None:
    """Those of labels.zarr, the worst first, with their values or words; the page names each."""
    from pipeline.outputs.report.misfits import misfits
    from pipeline.outputs.report.record import read_record

    model = xr.open_zarr(real / "model.zarr", consolidated=False)
    labels = xr.open_zarr(real / "labels.zarr", consolidated=False)
    kmeans = model.attrs["family"] == "kmeans"
    name = "squared_distance" if kmeans else "log_density"
    score = labels[name].values
    rows = np.argsort(-score if kmeans else score, kind="stable")[:3]
    assert model.misfit_row.values.tolist() == rows.tolist()
    np.testing.assert_allclose(model[f"misfit_{name}"], score[rows], rtol=1e-9)
    x = np.load(real.parent / "x.npy")
    if "misfits" in model:
        np.testing.assert_array_equal(model.misfits, x[rows])
    else:
        order = np.argsort(-x[rows], axis=1, kind="stable")
        np.testing.assert_array_equal(model.misfit_word[:, :4], order)
        np.testing.assert_array_equal(model.misfit_count[:, :4], np.take_along_axis(x[rows], order, axis=1))
        assert (model.misfit_word[:, 4:] == -1).all()
    found = misfits(read_record(real))
    assert found is not None and [line.row for line in found.rows] == rows.tolist()
    assert [line.label for line in found.rows] == labels.label.values[rows].tolist()
    page = (real / "report.html").read_text(encoding="utf-8")
    assert all(f'scope="row">{row}</th>' in page for row in rows) and "The end, iteration" in page


def test_patches_say_which_picture_they_are_of(tmp_path: Path) -> None:
    """Rows that fit worst are pictures with words; labels.zarr says which picture each is cut from, and its component."""
    from pipeline.outputs.report.misfits import misfits
    from pipeline.outputs.report.record import read_record

    run = patch_run(tmp_path / "run", k=3, p=4)
    without = misfits(read_record(run))
    assert without is not None and [(line.cut_from, line.label) for line in without.rows] == [("", None)] * 2
    labels = zarr.open_group(run / "labels.zarr", mode="w")
    labels.create_array("label", data=np.arange(100, dtype=np.int32) % 3)
    labels.create_array("picture", data=np.array(["cat.png", "dog.png"], dtype=np.dtypes.StringDType()))
    labels.create_array("picture_start", data=np.array([0, 60]))
    found = misfits(read_record(run))
    assert found is not None and [(line.cut_from, line.label) for line in found.rows] == [
        ("dog.png", 1),
        ("cat.png", 2),
    ]
    assert [line.picture and line.picture.alt for line in found.rows] == ["Row 70, −50 nats.", "Row 5, −40 nats."]


def test_confusion_counts_responsibilities(real: Path) -> None:
    """Row i sums the responsibilities of the rows labelled i, whether they come of the sample or of labels.zarr."""
    from pipeline.outputs.report.misfits import _counts, _counts_of_labels, confusion
    from pipeline.outputs.report.record import read_record

    record = read_record(real)
    labels = xr.open_zarr(real / "labels.zarr", consolidated=False)
    found = _counts(record)
    assert found is not None
    label = labels.label.values
    if record.family == "kmeans":  # to the second nearest centre instead
        away = ((np.load(real.parent / "x.npy")[:, None] - record.means) ** 2).sum(axis=2)
        expected = np.zeros((3, 3))
        np.add.at(expected, (label, np.argsort(away, axis=1)[:, 1]), 1)
    else:
        resp = np.zeros((len(label), 3))
        np.put_along_axis(resp, labels.top_component.values, labels.top_responsibility.values, axis=1)
        expected = np.stack([resp[label == k].sum(axis=0) for k in range(3)])
        again = _counts_of_labels(record)
        assert again is not None
        np.testing.assert_allclose(again[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    shared = confusion(record)
    assert shared is not None and shared.chart is None
    assert all(pair.first < pair.second for pair in shared.pairs)


def test_confusion_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    """The pair that shares most comes first, with both shares; a heat map from four components on."""
    from pipeline.outputs.report.misfits import confusion
    from pipeline.outputs.report.record import read_record

    means = np.array([[0.0, 0.0], [1.5, 0.0], [20.0, 0.0], [0.0, 20.0]])
    sample = np.repeat(means, 50, axis=0) + np.random.default_rng(0).normal(size=(200, 2))
    arrays = {"means": means, "covariances": np.ones(4), "sample": sample}
    attrs: dict[str, Any] = {"covariance_type": "spherical", "data_mean": [0.0, 0.0], "fixed": []}
    shared = confusion(read_record(write_run(tmp_path / "run", "means", arrays, {"kind": "rows"}, **attrs)))
    assert shared is not None and shared.chart is not None and len(shared.pairs) == 1
    pair = shared.pairs[0]
    assert (pair.first, pair.second) == (0, 1) and 5 < float(pair.there[:-2]) < 50 > float(pair.back[:-2]) > 5


def test_lines_that_do_not_move_look_flat(tmp_path: Path) -> None:
    """Rounding is no mountain range: the axis of a run that began at its end has ticks that differ, and no staircase."""
    from pipeline.outputs.report.figures import convergence, read_curve
    from pipeline.outputs.report.record import read_record

    run = dense_run(tmp_path / "run")
    model = zarr.open_group(run / "model.zarr")
    for name in ("log_likelihood", "lower_bound"):
        array = model[name]
        assert isinstance(array, zarr.Array)
        array[:] = -2e5 + 1e-7 * np.arange(12)
    model.attrs["final_log_likelihood"] = -2e5 + 2e-6
    record = read_record(run)
    curve = read_curve(record)
    assert curve is not None
    charts = convergence(record, curve)
    assert [chart.title for chart in charts] == ["Log-likelihood per row", "How sure the rows are"]
    ticks = re.findall(rf">({number(-1)[0]}[\d.]+)<", charts[0].picture)
    assert len(ticks) == len(set(ticks)) > 2


def test_every_iteration_is_told_in_numbers(plane: Path, tmp_path: Path) -> None:
    """A line for each with both moves, which add to the next log-likelihood; of many the first and the last."""
    from pipeline.outputs.report.figures import Curve, numbers

    curve = Curve(np.array([-4.0, -3.0, -2.5]), np.array([-3.5, -2.75]))
    lines, hidden = numbers(curve)
    assert lines[0] == ["0", number(-4, 8), "0.500", number(-3.5, 8), "0.500"]
    assert lines[1] == ["1", number(-3, 8), "0.250", number(-2.75, 8), "0.250"]
    assert hidden == 0 and "Every iteration in numbers" in (plane / "report.html").read_text(encoding="utf-8")
    many, hidden = numbers(Curve(np.arange(101.0), None))
    assert [many[0][0], many[-1][0], len(many), hidden] == ["0", "99", 60, 40]


def test_falls_are_explained(tmp_path: Path) -> None:
    """Where reg_covar may be why an iteration lost, the page says so; under a prior, that it is the sum that rises."""
    from pipeline.outputs.report.figures import convergence, read_curve
    from pipeline.outputs.report.record import read_record

    run = dense_run(tmp_path / "run")
    array = zarr.open_group(run / "model.zarr")["log_likelihood"]
    assert isinstance(array, zarr.Array)
    array[3] = array[0] - 1.0
    for reg, said in ((1e-6, True), (0.0, False)):
        zarr.open_group(run / "model.zarr").attrs["reg_covar"] = reg
        record = read_record(run)
        curve = read_curve(record)
        assert curve is not None
        caption = " ".join(chart.caption for chart in convergence(record, curve))
        assert "1 iteration lost instead" in caption and ("reg_covar" in caption) is said
    record = read_record(run)
    under_prior = replace(record, model=record.model.assign(prior_mean=("feature", [0.0, 0.0])))
    captions = " ".join(chart.caption for chart in convergence(under_prior, curve))
    assert "log prior together" in captions and "reg_covar" not in captions


def test_words_are_ranked_with_their_lift(tmp_path: Path) -> None:
    """A topic lists its likeliest words first; lift compares with all the counts."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.topics import topics

    theta = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    attrs: dict[str, Any] = {"vocabulary": ["a", "b", "c"], "data_mean": [2.0, 2.0, 4.0]}
    run = write_run(tmp_path / "run", "log_prob", {"log_prob": np.log(theta)}, {"kind": "document"}, **attrs)
    first, second = topics(read_record(run))
    assert [word.text for word in first.words] == ["a", "b", "c"]
    assert [word.text for word in second.words] == ["c", "a", "b"]
    np.testing.assert_allclose([word.lift for word in first.words], [2.8, 0.8, 0.2])


def test_what_happened_is_told(plane: Path) -> None:
    """Resets, warnings and unknown events are listed, escaped; routine ones and a torn line are not."""
    page = Page((plane / "report.html").read_text(encoding="utf-8"))
    assert "Component 1 (now 0) started anew at iteration 3: 1.2 effective rows." in page.text
    assert "2 <b>rows</b> & more" in page.text
    assert "depth 3" in page.text and "seco'" not in page.text


def test_what_stays_collapsed_is_told_once(tmp_path: Path) -> None:
    """A component that is left as it is has one line, with how often; the first screen counts the collapsed ones."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.story import happenings, outcome
    from pipeline.outputs.report.timing import timing

    run = dense_run(tmp_path / "run", data_mean=[0.0, 0.0], fixed=[])
    zarr.open_group(run / "model.zarr")["weights"][:] = [0.7, 0.29995, 0.00005]  # of 20,000 rows: the last has one
    reset = {"event": "reset", "time": "2026-03-05T20:00:00+00:00", "reason": "1 row"}
    left = [{**reset, "component": 2, "iteration": t, "done": False} for t in range(3, 9)]
    again = {**reset, "component": 1, "iteration": 4, "done": True}
    (run / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*left, again]))
    record = read_record(run)
    told = [line.text for line in happenings(record)[0]]
    assert told == [
        "Component 2 was left as it is at iteration 3, and at 5 later iterations: 1 row.",
        "Component 1 (now 0) started anew at iteration 4: 1 row.",
    ]
    assert [fact.value for fact in outcome(record, timing(record)) if fact.name == "Collapsed"] == ["1"]


def test_restarts_are_compared(plane: Path, tmp_path: Path) -> None:
    """Several restarts come as a table that marks the one that was kept; a single one is no news."""
    base = {"n_iter": 7, "stop_reason": "stopped: max_iter = 7 iterations reached"}
    restarts = [{"restart": 0, "objective": -4e4, "chosen": False, **base}]
    restarts += [{"restart": 1, "objective": -3e4, "chosen": True, **base}]
    text = read(dense_run(tmp_path / "two", restarts=restarts)).text
    assert f"{number(-2)}" in text and f"{number(-1.5, 8)}" in text and "kept" in text
    assert 'id="restarts"' not in (plane / "report.html").read_text(encoding="utf-8")


def rows_of(page: str) -> list[str]:
    """The lines of the table of candidates, without their tags."""
    section = page[page.index('<section id="choice">') :].split("</section>")[0]
    return [re.sub(r"<[^>]*>", " ", line) for line in section.split("<tbody>")[1].split("<tr")[1:]]


def test_a_choice_is_told(plane: Path, tmp_path: Path) -> None:
    """Each candidate has a line with its criteria per model, the chosen one a mark; one candidate is no choice."""
    page = write_report(choice_run(tmp_path / "run")).read_text(encoding="utf-8")
    lines = rows_of(page)
    assert len(lines) == 3 and ["chosen" in line for line in lines] == [False, False, True]
    for text in ("401,000", "400,100", "400,904", "converged, 1 collapsed", number((-2e5 + 40) / 15_000, 8)):
        assert text in lines[0]
    assert "BIC is best at 3 components" in page
    assert "chosen from 3 candidates" in page and "candidate k4-full, iteration 3" in page
    assert "held out" not in page and "Overlapping" not in page
    assert 'id="choice"' not in (plane / "report.html").read_text(encoding="utf-8")


def test_the_search_for_the_start_is_told(plane: Path, tmp_path: Path) -> None:
    """A line for each rung, with what was moved on it; no section where there was no search."""
    run = dense_run(tmp_path / "run")
    rung = {"family": "kmeans", "rows": 1250, "read": 9000, "starts": 4, "moved": [], "objective": -2.5, "features": 1}
    above = {"family": "gaussian", "rows": 5000, "starts": 1, "moved": [8, 2], "objective": -3.25, "features": 99}
    climbed = [rung, {**rung, **above}]
    zarr.open_group(run / "model.zarr").attrs["search"] = climbed
    page = write_report(run).read_text(encoding="utf-8")
    section = page[page.index('<section id="search">') :].split("</section>")[0]
    lines = [re.sub(r"<[^>]*>", " ", line) for line in section.split("<tbody>")[1].split("<tr")[1:]]
    assert len(lines) == 2
    assert all(text in lines[0] for text in ("1,250", "K-means, 1 principal components", "none", "2.5"))
    assert all(text in lines[1] for text in ("5,000", "Gaussian mixture", "8, 2", number(-3.25, 8)))
    assert "principal" not in lines[1]
    assert 'id="search"' not in (plane / "report.html").read_text(encoding="utf-8")


def test_annihilation_is_drawn(tmp_path: Path) -> None:
    """The message length over the number of components, with the shortest named; nothing where there was no search for it."""
    from pipeline.outputs.report.choice import message_lengths
    from pipeline.outputs.report.record import read_record

    run = dense_run(tmp_path / "run")
    assert message_lengths(read_record(run)) is None
    zarr.open_group(run / "model.zarr").attrs["message_lengths"] = [[9, 900.0], [4, 820.0], [3, 810.0], [1, 990.0]]
    chart = message_lengths(read_record(run))
    assert chart is not None and "from 1 to 9 components; it is shortest at 3" in chart.picture


def test_held_out_rows_and_types_are_told(tmp_path: Path) -> None:
    """Candidates of several types have a line each in table and chart; held-out figures say which rows they are of."""
    page = write_report(choice_run(tmp_path / "run", ("full", "tied"), heldout=True)).read_text(encoding="utf-8")
    lines = rows_of(page)
    assert len(lines) == 6 and sum("tied" in line for line in lines) == 3
    assert number(-14.0, 8) in lines[0] and "5,000 held-out rows" in page
    assert "held-out log-likelihood is best at 3 components (full)" in page


def test_the_choice_warns_where_patches_overlap(tmp_path: Path) -> None:
    """Criteria that count overlapping patches as independent rows say so; patches beside each other do not."""
    run = choice_run(tmp_path / "run")
    patches = {"kind": "patch", "size": [2, 1], "channels": 1, "remove_mean": False}
    zarr.open_group(run / "model.zarr").attrs["data"] = patches
    config = yaml.safe_load((run / "config.yaml").read_text())
    for stride, said in ((1, True), (2, False)):
        config["config"]["data"]["patch"] = {"stride": stride}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        page = write_report(run).read_text(encoding="utf-8")
        assert ("Overlapping patches are not independent" in page) is said


def test_interrupted_runs_add_their_sessions_up(tmp_path: Path) -> None:
    """The time of a resumed run is that of its sessions, without the night between them."""
    run = dense_run(tmp_path / "run")
    entries = [
        {"event": "start", "time": "2026-03-05T20:00:00+00:00"},
        {"event": "pass", "seconds": 30, "rows": 10, "time": "2026-03-05T20:01:00+00:00"},
        {"event": "start", "time": "2026-03-06T08:00:00+00:00"},
        {"event": "resume", "generation": 2, "time": "2026-03-06T08:00:01+00:00"},
        {"event": "finished", "seconds": 20, "time": "2026-03-06T08:00:20+00:00"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = read(run).text
    assert "1\u202fmin 20\u202fs" in text and "2 sessions" in text


def test_bare_runs_are_reported(tmp_path: Path) -> None:
    """A model with its parameters alone, no events and no config, still gives a page."""
    run = tmp_path / "run"
    data = {"weights": ("component", [0.6, 0.4]), "means": (("component", "feature"), [[0.0, 1.0], [2.0, 3.0]])}
    xr.Dataset(data, attrs={"family": "gaussian"}).to_zarr(run / "model.zarr", consolidated=False)
    assert "A mixture of 2 Gaussians" in read(run).text


def test_unfinished_and_damaged_runs_are_refused(tmp_path: Path) -> None:
    """No model is the user's to mend by finishing the run; a damaged one is named as such."""
    with pytest.raises(InputError, match="no such directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="resume"):
        write_report(tmp_path)
    run = dense_run(tmp_path / "run")
    for chunk in (run / "model.zarr" / "means").rglob("*"):
        if chunk.is_file() and chunk.name != "zarr.json":
            chunk.write_bytes(b"torn")
    with pytest.raises(StorageError, match="means"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    """A report without labels.zarr does without; one that cannot be read is the user's to know of."""
    from pipeline.outputs.report.misfits import misfits
    from pipeline.outputs.report.record import read_record

    run = patch_run(tmp_path / "run", k=3, p=4)
    zarr.open_group(run / "labels.zarr", mode="w").create_array("label", data=np.ones(100, dtype=np.int32))
    chunk = next(path for path in (run / "labels.zarr" / "label" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"labels.zarr: cannot be read"):
        misfits(read_record(run))


def test_a_failed_write_leaves_the_old_page(plane: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is replaced whole or not at all."""
    before = (plane / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="disk full"):
        write_report(plane)
    assert (plane / "report.html").read_bytes() == before
    assert not list(plane.glob(".report*"))


def test_the_same_run_gives_the_same_page(plane: Path) -> None:
    """Nothing in the page depends on when it was written."""
    before = (plane / "report.html").read_bytes()
    assert write_report(plane).read_bytes() == before


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(1234567), "1,234,567"),
        (number(-2668.2486295), "−2,668.25"),
        (number(1.5e-7, 3), "1.5 × 10⁻⁷"),
        (number(0.0123456789, 3), "0.0123"),
        (number(float("nan")), "–"),
        (number(-float("inf")), "−∞"),
        (percent(0.1234), "12.3\u202f%"),
        (percent(0.00123), "0.12\u202f%"),
        (percent(1e-6), "< 0.01\u202f%"),
        (seconds(0.32), "320\u202fms"),
        (seconds(3.24), "3.2\u202fs"),
        (seconds(59.97), "1\u202fmin 00\u202fs"),
        (seconds(7500), "2\u202fh 05\u202fmin"),
        (size(1000), "1000\u202fB"),
        (size(1.25 * 2**30), "1.2\u202fGiB"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    """Grouped digits, real minus signs, and a unit."""
    assert shown == expected
