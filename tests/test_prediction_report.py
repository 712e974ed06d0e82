"""The report of a prediction: labels, log-densities and rows that fit worst, beside the training rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import workflow
from pipeline.errors import InputError
from pipeline.outputs.report import write_report
from pipeline.outputs.report.prediction import context, read_prediction
from tests.jobs import blobs, command, job
from tests.stores import Page

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, labels of rows like its own, and of rows that are not: `run`, `alike` and `unlike`."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "x.npy", blobs())
    workflow.run(job(folder / "x.npy"), folder / "run")
    x = blobs()
    np.save(folder / "alike.npy", x[::2])
    x[7] += 100.0
    x[30:90] += 40.0
    np.save(folder / "unlike.npy", x)
    for name in ("alike", "unlike"):
        workflow.predict(folder / "run", [f"data.path={folder / name}.npy"], folder / name)
    return folder


def found(folder: Path) -> dict[str, Any]:
    """What the page of a prediction is made from."""
    return context(read_prediction(folder, yaml.safe_load((folder / "config.yaml").read_text())))


def test_rows_like_those_of_the_fit_are_said_to_be(made):
    """Shares, mean log-density and quantiles agree with those of the training rows, and the page says so."""
    page = Page((made / "alike" / "report.html").read_text())
    text = " ".join(page.text.split())
    assert page.open == [] and "Labels of 300 rows" in text and "much like those" in text
    assert str(made / "alike.npy") in text and str(made / "run") in text
    assert len([svg for svg in page.all("svg") if "aria-label" in svg]) == 2
    assert "nan" not in text.lower().split()


def test_drift_is_told_and_the_oddest_rows_are_named(made):
    """One row in ten was moved away: so many fit as badly as the worst hundredth did; the farthest row comes first."""
    what = found(made / "unlike")
    assert what["worst"][0][0] == "7" and {int(line[0]) for line in what["worst"][1:]} <= set(range(30, 90))
    assert "many of these rows are unlike those" in what["verdict"] and not what["alike"]
    [low] = [fact for fact in what["facts_list"] if fact.name == "Badly fitting rows"]
    assert 0.1 <= float(low.value.split("\N{NARROW NO-BREAK SPACE}")[0]) / 100 <= 0.13
    assert sum(int(line[1].replace(",", "")) for line in what["lines"]) == 600


def test_report_writes_it_again_and_resume_what_is_missing(made, tmp_path):
    """`report DIR` and `resume DIR` of a prediction give the same page; neither sends to the other."""
    copy = shutil.copytree(made / "alike", tmp_path / "copy")
    (copy / "report.html").unlink()
    assert command("report", copy).code == 0
    page = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert command("resume", copy).code == 0 and (copy / "report.html").read_text() == page
    assert (
        "report.html"
        in command("predict", made / "run", "--set", f"data.path={made / 'alike.npy'}", "--output", copy).out
    )


def test_another_model_is_not_compared_with(made, tmp_path):
    """If the model of the run is gone or another one, report and resume say so, and what to do."""
    copy = shutil.copytree(made / "alike", tmp_path / "copy")
    mark, _, text = (copy / "config.yaml").read_text().partition("\n")
    plain = yaml.safe_load(text)
    for changes, said in (({"model": {}}, "is not the one"), ({"prediction_of": str(tmp_path)}, "is not there")):
        (copy / "config.yaml").write_text(f"{mark}\n{yaml.safe_dump({**plain, **changes})}")
        with pytest.raises(InputError, match=f"{said}.*em-pipeline predict"):
            write_report(copy)
        with pytest.raises(InputError, match=r"which has (another model|no model.zarr)"):
            workflow.resume(copy)


def test_without_labels_of_the_training_rows_the_means_are_compared(made, tmp_path):
    """A run that stores no labels leaves its mean log-density and its shares."""
    kept = shutil.move(made / "run" / "labels.zarr", tmp_path / "labels.zarr")
    try:
        what = found(made / "unlike")
    finally:
        shutil.move(kept, made / "run" / "labels.zarr")
    assert what["verdict"] == "" and "of the training rows: " in what["facts_list"][0].note
    assert "output.labels" in what["chart_list"][1].caption
