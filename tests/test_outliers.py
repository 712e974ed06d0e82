"""`outliers`: p-values against counts over the run's rows, the rate of false alarms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import pipeline
from pipeline import workflow
from pipeline.em.heldout import Units
from pipeline.errors import InputError
from tests.jobs import blobs, command, job


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on standardized rows, a K-means, and other rows: like its own, then far away, and one with NaN."""
    folder = tmp_path_factory.mktemp("made")
    rows = np.random.default_rng(1).permutation(blobs(4000))
    np.save(folder / "x.npy", rows[:3000])
    np.save(folder / "new.npy", np.concatenate([rows[3000:], rows[:20] + 30.0, np.full((1, 3), np.nan)]))
    for name, model in (("run", {}), ("kmeans", {"family": "kmeans"})):
        workflow.run(job(folder / "x.npy", model=model, preprocess=[{"kind": "standardize"}]), folder / name)
    return folder


@pytest.mark.parametrize(("name", "score", "sign"), [("run", "log_density", 1), ("kmeans", "squared_distance", -1)])
@pytest.mark.parametrize("by_component", [False, True])
def test_p_values_are_counts_over_the_rows_of_the_run(made, tmp_path, name, score, sign, by_component):
    """Of all rows, or of those with the same label; far rows have the least, rows like the run's are flagged at the rate."""
    options = ["--by-component"] if by_component else []
    rows = ["--set", f"data.path={made / 'new.npy'}", "--set", "data.bad_rows=drop", "--rate", "0.05"]
    assert command("outliers", made / name, *rows, *options, "--output", tmp_path / "out").code == 0
    found = zarr.open_group(tmp_path / "out" / "outliers.zarr", mode="r")
    own = zarr.open_group(made / name / "labels.zarr", mode="r")
    known, labels = sign * own[score][:], own["label"][:]
    for i in (0, 1, 500, 1001):
        alike = known[labels == found["label"][i]] if by_component else known
        expected = (1 + (alike <= sign * found[score][i]).sum()) / (1 + len(alike))
        assert found["p_value"][i] == pytest.approx(expected, rel=1e-12)
    flags = found["outlier"][:]
    assert (flags[1000:1020] == 1).all() and flags[1020] == -1 and np.isnan(found["p_value"][1020])
    assert 0.03 < flags[:1000].mean() < 0.07
    assert (flags[:1020] == (found["p_value"][:1020] <= 0.05)).all()
    assert workflow.resume(tmp_path / "out") == tmp_path / "out"


@pytest.mark.full
def test_held_out_rows_calibrate_where_the_model_was_not_refitted_to_them(made, tmp_path):
    """The fit is that of the other rows alone, and p-values count over the held-out rows alone; with the refit over all rows."""
    rows = [f"data.path={made / 'new.npy'}", "data.bad_rows=drop"]
    for refit in (False, True):
        run = workflow.run(job(made / "x.npy", select={"heldout": 0.3, "refit": refit}), tmp_path / f"run{refit}")
        out = Units(0.3, 0).held_out(0, 3000)
        own = zarr.open_group(run / "labels.zarr", mode="r")
        assert ("held_out" in own) == (not refit) and (refit or (own["held_out"][:] == out).all())
        known = own["log_density"][:] if refit else own["log_density"][:][out]
        found = zarr.open_group(pipeline.outliers(run, rows, tmp_path / f"out{refit}", 0.05), mode="r")
        expected = (1 + (known <= found["log_density"][3]).sum()) / (1 + len(known))
        assert found["p_value"][3] == pytest.approx(expected, rel=1e-12)
        weight = pipeline.open_run(run).attrs["total_weight"]
        assert weight == (3000 if refit else 3000 - out.sum())
    assert "held-out rows." in (tmp_path / "runFalse" / "report.html").read_text(encoding="utf-8")
    others = zarr.open_group(workflow.predict(tmp_path / "runFalse", rows, tmp_path / "labels"), mode="r")
    assert "held_out" not in others
    with pytest.raises(InputError, match="refit: false needs heldout"):
        job(made / "x.npy", select={"refit": False})


def test_what_cannot_be_calibrated_is_refused(made, tmp_path):
    """Each refusal says what was found; nothing is written."""
    rows = [f"data.path={made / 'new.npy'}"]
    for rate, said in ((0.0, "got rate 0"), (1e-4, "none is so rare")):
        with pytest.raises(InputError, match=said):
            pipeline.outliers(made / "run", rows, tmp_path / "no", rate)
    (made / "run" / "labels.zarr").rename(made / "aside")
    with pytest.raises(InputError, match=r"no labels\.zarr .*em-pipeline predict"):
        pipeline.outliers(made / "run", rows, tmp_path / "no")
    (made / "aside").rename(made / "run" / "labels.zarr")
    assert not (tmp_path / "no").exists()


def test_rows_of_a_prediction_calibrate_in_place_of_the_run_s(made, tmp_path):
    """p-values count over the predicted rows; a prediction by another model is refused."""
    rows, like = [f"data.path={made / 'new.npy'}", "data.bad_rows=drop"], [f"data.path={made / 'x.npy'}"]
    shifted = np.load(made / "x.npy")[:500] + 3.0
    np.save(tmp_path / "shifted.npy", shifted)
    workflow.predict(made / "run", [f"data.path={tmp_path / 'shifted.npy'}"], tmp_path / "labels")
    store = pipeline.outliers(made / "run", rows, tmp_path / "out", 0.05, calibration=tmp_path / "labels")
    found, own = zarr.open_group(store, mode="r"), zarr.open_group(tmp_path / "labels" / "labels.zarr", mode="r")
    expected = (1 + (own["log_density"][:] <= found["log_density"][0]).sum()) / 501
    assert found["p_value"][0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="holds no labels by the model"):
        pipeline.outliers(made / "kmeans", like, tmp_path / "no", calibration=tmp_path / "labels")


def test_the_report_shows_the_oddest_rows_and_the_rate(made, tmp_path):
    """The rows of the lowest p-values with their own values, the share that is flagged, and the same page when it is made again."""
    rows = [f"data.path={made / 'new.npy'}", "data.bad_rows=drop"]
    folder = workflow.outliers(made / "run", rows, tmp_path / "out", rate=0.05).parent
    found, x = zarr.open_group(folder / "outliers.zarr", mode="r"), np.load(made / "new.npy")
    scores, p = found["log_density"][:], found["p_value"][:]
    oddest = np.lexsort((np.arange(len(x)), scores, p))[:10]
    assert found["outlier_row"][:].tolist() == oddest.tolist() and set(oddest) <= set(range(1000, 1020))
    np.testing.assert_array_equal(found["outlier_log_density"][:], scores[oddest])
    model = pipeline.open_run(made / "run")
    mapped = (x[oddest] - model.preprocess_offset.values) @ model.preprocess_matrix.values
    np.testing.assert_allclose(found["outliers"][:], mapped, rtol=1e-6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    flagged = (found["outlier"][:] == 1).sum() / 1020
    assert "Outliers among 1,021 rows" in page and "The oddest rows" in page and f"{100 * flagged:.1f}" in page
    assert all(f'scope="row">{row}</th>' in page for row in oddest)
    (folder / "report.html").unlink()
    workflow.resume(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page


def test_a_command_without_a_report_says_so(made, tmp_path):
    """And what there is."""
    workflow.encode(made / "run", "soft", [f"data.path={made / 'x.npy'}"], tmp_path / "codes")
    with pytest.raises(InputError, match=r"is of `em-pipeline encode`, which has no report\. Open .*encode\.zarr"):
        pipeline.show(tmp_path / "codes")
