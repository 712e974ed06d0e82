"""The report: one readable, self-contained page from the run directory alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

import pipeline
from pipeline.arrays.packing import pack
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.models.families.gaussian import Gaussian
from pipeline.models.mixture import Mixture
from pipeline.outputs.report import svg, write_report
from pipeline.outputs.report.formatting import number, percent, seconds, size
from tests.jobs import blobs
from tests.stores import (
    RUNS,
    Page,
    choice_run,
    dense_run,
    keep,
    patch_run,
    read,
    stretched,
    write_run,
)

pytestmark = pytest.mark.full


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
    first = text[: text.index("Convergence", text.index("What was asked for"))]
    assert "tart by k-means||, at most 100 iterations." in first
    assert "20,000" in first and "Iterations 12" in first and "9.5\u202fs" in first and "rows/s" in first
    assert "Converged: the log-likelihood per row moved by 4.1e-4 nats" in first
    assert ("nats per row" in first and "BIC" in first) or "centres move by at most 0.001" in first


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
    from pipeline.data.patch import patch_basis
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
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.tables import locations

    arrays = {
        "means": np.array([[0.0, 1.0], [2.0, 3.0]]),
        "covariances": np.tile(np.eye(2), (2, 1, 1)),
        "preprocess_offset": np.array([10.0, 20.0]),
        "preprocess_matrix": np.diag([0.5, 0.25]),
        "preprocess_inverse": np.diag([2.0, 4.0]),
    }
    table = locations(read_record(write_run(tmp_path / "run", "means", arrays, {"kind": "rows"})))
    assert table.means.tolist() == [[10, 24], [14, 32]]
    assert table.deviations is not None and table.deviations.tolist() == [[2, 4], [2, 4]]


def test_standard_errors_stand_beside_the_means(tmp_path: Path) -> None:
    """In the table of means, where they are in the data's units; not where a preprocess lies between."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.tables import locations

    arrays = {"means": np.array([[0.0, 1.0], [2.0, 3.0]]), "means_se": np.array([[0.125, 0.25], [0.5, np.nan]])}
    run = write_run(tmp_path / "run", "means", arrays, {"kind": "rows"})
    assert "± 0.25" in write_report(run).read_text(encoding="utf-8")
    turned = {"preprocess_offset": np.zeros(2), "preprocess_matrix": np.eye(2), "preprocess_inverse": np.eye(2)}
    mapped = write_run(tmp_path / "mapped", "means", {**arrays, **turned}, {"kind": "rows"})
    assert locations(read_record(mapped)).errors is None


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
    np.testing.assert_allclose(moment.positions, record.positions * stretched(2, 4))
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
    return pipeline.run(validate(plain), folder / "run")


def test_outliers_are_the_rows_of_the_lowest_density(real: Path) -> None:
    """Those of labels.zarr, the worst first, with their values or words; the page names each."""
    from pipeline.outputs.report.outliers import outliers
    from pipeline.outputs.report.record import read_record

    record = read_record(real)
    model = xr.open_zarr(real / "model.zarr", consolidated=False)
    labels = xr.open_zarr(real / "labels.zarr", consolidated=False)
    kmeans = model.attrs["family"] == "kmeans"
    name = "squared_distance" if kmeans else "log_density"
    score = labels[name].values
    rows = np.argsort(-score if kmeans else score, kind="stable")[:3]
    assert model.outlier_row.values.tolist() == rows.tolist()
    np.testing.assert_allclose(model[f"outlier_{name}"], score[rows], rtol=1e-9)
    x = np.load(real.parent / "x.npy")
    if "outliers" in model:
        np.testing.assert_array_equal(model.outliers, x[rows])
    else:
        order = np.argsort(-x[rows], axis=1, kind="stable")
        np.testing.assert_array_equal(model.outlier_word[:, :4], order)
        np.testing.assert_array_equal(model.outlier_count[:, :4], np.take_along_axis(x[rows], order, axis=1))
        assert (model.outlier_word[:, 4:] == -1).all()
    found = outliers(record)
    assert found is not None and [line.row for line in found.rows] == rows.tolist()
    assert [line.label for line in found.rows] == labels.label.values[rows].tolist()
    page = (real / "report.html").read_text(encoding="utf-8")
    assert all(f'scope="row">{row}</th>' in page for row in rows) and "The end, iteration" in page


@pytest.mark.slow
def test_a_report_can_be_made_anywhere(real: Path) -> None:
    """Another process, which has loaded nothing of the run, writes the page with all its sections."""
    before = Page((real / "report.html").read_text(encoding="utf-8"))
    subprocess.run([sys.executable, "-m", "pipeline", "report", real], check=True, capture_output=True)
    after = Page((real / "report.html").read_text(encoding="utf-8"))
    heads = [[text for text in ("Overlap between", "Neighbouring") if text in page.text] for page in (before, after)]
    assert heads[0] == heads[1] and len(heads[0]) == 1
    assert len(before.all("table")) == len(after.all("table")) and len(before.all("svg")) == len(after.all("svg"))


def test_patches_say_which_picture_they_are_of(tmp_path: Path) -> None:
    """Rows that fit worst are pictures with words; labels.zarr says which picture each is cut from, and its component."""
    from pipeline.outputs.report.outliers import outliers
    from pipeline.outputs.report.record import read_record

    run = patch_run(tmp_path / "run", k=3, p=4)
    without = outliers(read_record(run))
    assert without is not None and [(line.cut_from, line.label) for line in without.rows] == [("", None)] * 2
    labels = zarr.open_group(run / "labels.zarr", mode="w")
    labels.create_array("label", data=np.arange(100, dtype=np.int32) % 3)
    labels.create_array("picture", data=np.array(["cat.png", "dog.png"], dtype=np.dtypes.StringDType()))
    labels.create_array("picture_start", data=np.array([0, 60]))
    found = outliers(read_record(run))
    assert found is not None and [(line.cut_from, line.label) for line in found.rows] == [
        ("dog.png", 1),
        ("cat.png", 2),
    ]
    assert [line.picture and line.picture.alt for line in found.rows] == ["Patch 70, −50 nats.", "Patch 5, −40 nats."]


def test_overlap_counts_responsibilities(real: Path) -> None:
    """Row i sums the responsibilities of the rows labelled i, whether they come of the sample or of labels.zarr."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.sharing import _counts, _counts_of_labels, sharing

    record = read_record(real)
    labels = xr.open_zarr(real / "labels.zarr", consolidated=False)
    found = _counts(record)
    assert found is not None
    label = labels.label.values
    if record.words.sign < 0:  # to the second nearest centre instead
        away = ((np.load(real.parent / "x.npy")[:, None] - record.positions) ** 2).sum(axis=2)
        expected = np.zeros((3, 3))
        np.add.at(expected, (label, np.argsort(away, axis=1)[:, 1]), 1)
    else:
        resp = np.zeros((len(label), 3))
        np.put_along_axis(resp, labels.top_component.values, labels.top_responsibility.values, axis=1)
        expected = np.stack([resp[label == k].sum(axis=0) for k in range(3)])
        again = _counts_of_labels(record)
        assert again is not None
        np.testing.assert_allclose(again[0].toarray(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0].toarray(), expected, rtol=1e-5, atol=1e-5)
    shared = sharing(record)
    assert shared is not None and shared.chart is None
    assert all(pair.first < pair.second for pair in shared.pairs)


def test_overlap_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    """The pair that shares most comes first, with both shares; a heat map from four components on."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.sharing import sharing

    means = np.array([[0.0, 0.0], [1.5, 0.0], [20.0, 0.0], [0.0, 20.0]])
    sample = np.repeat(means, 50, axis=0) + np.random.default_rng(0).normal(size=(200, 2))
    arrays = {"means": means, "covariances": np.ones(4), "sample": sample}
    model = pack(Mixture(Gaussian(4, np.zeros(2), "spherical")), "model", separator=".", inline=True)
    attrs: dict[str, Any] = {"covariance_type": "spherical", "data_mean": [0.0, 0.0], "model": model.structure}
    arrays |= model.arrays
    shared = sharing(read_record(write_run(tmp_path / "run", "means", arrays, {"kind": "rows"}, **attrs)))
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
    assert [chart.title for chart in charts] == ["Log-likelihood per row", "How certain the labels are"]
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
    restart = record.attrs["restarts"][0]
    zarr.open_group(run / "model.zarr").attrs["restarts"] = [{**restart, "objective": restart["objective"] - 1e4}]
    captions = " ".join(chart.caption for chart in convergence(read_record(run), curve))
    assert "plus the log prior" in captions and "reg_covar" not in captions


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


def test_events_are_listed(plane: Path) -> None:
    """Resets, warnings and unknown events are listed, escaped; routine ones and a torn line are not."""
    page = Page((plane / "report.html").read_text(encoding="utf-8"))
    assert "Component 1 (now 0) was reset at iteration 3: 1.2 effective rows." in page.text
    assert "2 <b>rows</b> & more" in page.text
    assert "depth 3" in page.text and "seco'" not in page.text


def test_what_stays_collapsed_is_listed_once(tmp_path: Path) -> None:
    """A component that is not reset again has one line, with how often; the first screen counts the collapsed ones."""
    from pipeline.outputs.report.record import read_record
    from pipeline.outputs.report.summary import happenings, outcome
    from pipeline.outputs.report.timing import timing

    run = dense_run(tmp_path / "run", collapsed=1)
    reset = {"event": "reset", "time": "2026-03-05T20:00:00+00:00", "reason": "1 row"}
    left = [{**reset, "component": 2, "iteration": t, "done": False} for t in range(3, 9)]
    again = {**reset, "component": 1, "iteration": 4, "done": True}
    (run / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*left, again]))
    record = read_record(run)
    listed = [line.text for line in happenings(record)[0]]
    assert listed == [
        "Component 2 was collapsed but not reset again at iteration 3, and at 5 later iterations: 1 row.",
        "Component 1 (now 0) was reset at iteration 4: 1 row.",
    ]
    assert [fact.value for fact in outcome(record, timing(record)) if fact.name == "Collapsed"] == ["1"]


def test_restarts_are_compared(plane: Path, tmp_path: Path) -> None:
    """Several restarts come as a table that marks the chosen one; a single one is no news."""
    base = {"n_iter": 7, "stop_reason": "stopped: max_iter = 7 iterations reached"}
    restarts = [{"restart": 0, "objective": -4e4, "chosen": False, **base}]
    restarts += [{"restart": 1, "objective": -3e4, "chosen": True, **base}]
    text = read(dense_run(tmp_path / "two", restarts=restarts)).text
    assert f"{number(-2)}" in text and f"{number(-1.5, 8)}" in text and "chosen" in text
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
    """A line for each level, with what was moved on it; no section where there was no search."""
    run = dense_run(tmp_path / "run")
    level = {"family": "kmeans", "rows": 1250, "read": 9000, "starts": 4, "moved": [], "objective": -2.5, "features": 1}
    above = {"family": "gaussian", "rows": 5000, "starts": 1, "moved": [8, 2], "objective": -3.25, "features": 99}
    levels = [level, {**level, **above}]
    zarr.open_group(run / "model.zarr").attrs["search"] = levels
    page = write_report(run).read_text(encoding="utf-8")
    section = page[page.index('<section id="search">') :].split("</section>")[0]
    lines = [re.sub(r"<[^>]*>", " ", line) for line in section.split("<tbody>")[1].split("<tr")[1:]]
    assert len(lines) == 2
    assert all(text in lines[0] for text in ("1,250", "K-means, 1 principal components", "none", "2.5"))
    assert all(text in lines[1] for text in ("5,000", "Gaussian mixture", "8, 2", number(-3.25, 8)))
    assert "principal" not in lines[1]
    assert 'id="search"' not in (plane / "report.html").read_text(encoding="utf-8")


def test_annihilation_is_drawn(tmp_path: Path) -> None:
    """The message length over the number of components, with the chosen number named; nothing where there was no search for it."""
    from pipeline.outputs.report.choice import message_lengths
    from pipeline.outputs.report.record import read_record

    run = dense_run(tmp_path / "run")
    assert message_lengths(read_record(run)) is None
    zarr.open_group(run / "model.zarr").attrs.update(
        {"n_components": 3, "message_lengths": [[9, 900.0], [4, 808.0], [3, 810.0], [1, 990.0]]}
    )
    chart = message_lengths(read_record(run))
    assert chart is not None and "from 1 to 9 components; 3 are chosen" in chart.picture


def test_held_out_rows_and_types_are_told(tmp_path: Path) -> None:
    """Candidates of several types have a line each in table and chart; held-out figures say which rows they are of."""
    page = write_report(choice_run(tmp_path / "run", ("full", "tied"), heldout=True)).read_text(encoding="utf-8")
    lines = rows_of(page)
    assert len(lines) == 6 and sum("tied" in line for line in lines) == 3
    assert number(-14.0, 8) in lines[0] and "5,000 held-out rows" in page
    assert "held-out log-likelihood is best at 3 components (full)" in page
    assert "covariance type" in page and "reg covar" not in page  # an option that all share is no choice


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
    from pipeline.outputs.report.outliers import outliers
    from pipeline.outputs.report.record import read_record

    run = patch_run(tmp_path / "run", k=3, p=4)
    zarr.open_group(run / "labels.zarr", mode="w").create_array("label", data=np.ones(100, dtype=np.int32))
    chunk = next(path for path in (run / "labels.zarr" / "label" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"labels.zarr: cannot be read"):
        outliers(read_record(run))


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


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB colour with entries from 0 to 255 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, tuple[float, ...]]]:
    """The colours of style.css by name, on a light page and on a dark one."""
    css = (Path(svg.__file__).parent / "style.css").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        colours = re.findall(r"--(\w+): #([0-9a-f]{6})\b", block)
        found.append({name: tuple(int(value[i : i + 2], 16) for i in (0, 2, 4)) for name, value in colours})
    assert len(found) == 2 and found[0].keys() == found[1].keys()
    return found


def test_graphs_can_be_seen() -> None:
    """Every colour of a mark has a contrast of 3 : 1 with the page and with a card, light and dark; text of 4.5 : 1."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21) and contrast((9, 9, 9), (9, 9, 9)) == 1
    marks = [colour[6:-1] for colour in (*svg.CYCLE, svg.GREY)]
    for theme in themes():
        for ground in (theme["paper"], theme["card"]):
            assert {
                name: round(contrast(theme[name], ground), 2) for name in marks if contrast(theme[name], ground) < 3
            } == {}
            assert contrast(theme["ink"], ground) > 4.5 and contrast(theme["muted"], ground) > 4.5
            assert all(contrast(pixel, ground) > 3 for pixel in (svg.PIXEL_BLUE, svg.PIXEL_ORANGE))


def test_marks_have_the_colours_of_the_theme(report: Path) -> None:
    """No chart names a colour itself or makes one paler, but for the area between two lines."""
    page = Page(report.read_text(encoding="utf-8"))
    known = {f"var(--{name})" for name in themes()[0]} | {"none", "currentColor", None}
    shapes = [attrs for tag, attrs in page.elements if tag in ("path", "ellipse", "circle", "line", "polygon", "text")]
    assert shapes and {attrs.get(what) for attrs in shapes for what in ("stroke", "fill")} <= known
    assert all(("fill-opacity" in attrs) == (tag == "polygon") for tag, attrs in page.elements)
    assert not any("opacity" in attrs or "stroke-opacity" in attrs for _, attrs in page.elements)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.5, 0.5), (1e-9, 3e-9), (-460.06, -460.02), (0, 3e12), (5, 5.0001)]
)
@pytest.mark.parametrize("whole", [False, True])
def test_ticks_are_round_and_differ(low: float, high: float, whole: bool) -> None:
    """Seven steps at most, inside the range, evenly spaced, each with a label of its own; whole numbers where they count."""
    found = svg.ticks(low, high, 6, whole)
    values, labels = [value for value, _ in found], [label for _, label in found]
    assert len(labels) == len(set(labels)) <= 8 and (whole or len(labels) > 2)
    rounding = 1e-8 * max(high - low, float(whole))
    assert all(low - rounding <= value <= high + rounding for value in values)
    np.testing.assert_allclose(np.diff(values, 2), 0, atol=rounding)
    assert not whole or all(value == int(value) for value in values)


def test_one_component_has_no_chart_of_sizes(tmp_path: Path) -> None:
    """Its axes would have nothing to say; the other charts are there."""
    text = write_report(dense_run(tmp_path / "run", k=1)).read_text(encoding="utf-8")
    assert (
        "Component sizes" not in text
        and "Gaussian mixture with 1 component" in text
        and "Components over the data" in text
    )


def test_the_page_is_in_the_order_of_questions(tmp_path: Path) -> None:
    """The choice among models stands right after the result."""
    page = read(choice_run(tmp_path / "run"))
    sections = [section.get("id") for section in page.all("section")]
    assert sections[:3] == [None, "choice", "convergence"] and sections[-1] == "provenance"


def test_what_is_maximized_is_said(tmp_path: Path) -> None:
    """Where the objective is not what the curve shows, the page says what it is, its value, and draws no tol beside the gains."""
    final = 20_000 * (-10 - 4 * np.exp(-0.3 * 12) - 1 / 14)
    restart = {"restart": 0, "n_iter": 12, "stop_reason": "tol", "chosen": True}
    alone = read(dense_run(tmp_path / "alone", restarts=[{**restart, "objective": final}])).text
    assert "plus the log prior" not in alone and "Objective" not in alone and "tol = 0.001" in alone
    prior = read(dense_run(tmp_path / "prior", restarts=[{**restart, "objective": final - 40_000.0}])).text
    assert "The fit maximizes the log-likelihood plus the log prior" in prior and "tol = 0.001" not in prior
    assert f"Objective {number(final / 20_000 - 2)}" in " ".join(prior.split())
    labels = [{**restart, "objective": final - 20_000.0}]
    hard = read(dense_run(tmp_path / "hard", restarts=labels, assignment="hard")).text
    assert "plus the entropy of the labels" in hard and "log prior" not in hard


def test_collapsed_components_are_those_that_the_run_counted(tmp_path: Path) -> None:
    """The stored count is the one that is shown."""
    run = dense_run(tmp_path / "run", collapsed=2)
    assert "Collapsed 2 of 3 components" in " ".join(read(run).text.split())
    zarr.open_group(run / "model.zarr").attrs["collapsed"] = 0
    assert "Collapsed" not in read(run).text


def test_no_finished_event_is_needed(tmp_path: Path) -> None:
    """The page has the time that the last event says, else the time to it, and the peak of memory that any event says."""
    run = dense_run(tmp_path / "run")
    lines = [
        {"event": "start", "time": "2026-03-05T20:00:00+00:00"},
        {"event": "pass", "seconds": 30, "rows": 10, "time": "2026-03-05T20:01:00+00:00", "peak_pss": 3 * 2**30},
        {"event": "labels", "seconds": 3, "time": "2026-03-05T20:01:10+00:00"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(read(run).text.split(" "))
    assert "1\u202fmin 10\u202fs" in text and "3.0\u202fGiB" in text and "sessions" not in text
    again = [
        {"event": "finished", "seconds": 75, "peak_pss": 3 * 2**30, "time": "2026-03-05T20:01:12+00:00"},
        {"event": "labels", "seconds": 5, "time": "2026-03-07T20:00:05+00:00"},  # by `predict`, days later
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *again]))
    assert "1\u202fmin 15\u202fs" in read(run).text
    stored = {"event": "stored", "seconds": 73, "peak_pss": 2**30, "time": "2026-03-05T20:01:11+00:00"}
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, stored]))
    assert "1\u202fmin 13\u202fs" in read(run).text
