"""`summarize`: the sample and the nearest rows against sorts of all rows, for any chunks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import pipeline
from pipeline import keyed, workflow
from pipeline.applying.summarizing import STREAM
from pipeline.errors import InputError
from tests.jobs import blobs, command, job, write_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on standardized rows, one of which is bad and one cluster of which is small."""
    folder = tmp_path_factory.mktemp("made")
    x = np.concatenate([blobs(400), np.full((4, 3), 50.0) + np.random.default_rng(0).normal(size=(4, 3))])
    x[7] = np.nan
    np.save(folder / "x.npy", x)
    write_rows(folder / "x.zarr", x, rows=23)
    kept = {"data": {"bad_rows": "drop"}, "preprocess": [{"kind": "standardize"}]}
    for name, model in (("mixture", {}), ("kmeans", {"family": "kmeans"})):
        model = {"n_components": 4, **model}
        workflow.run(job(folder / "x.npy", model=model, **kept), folder / name)
    return folder


@pytest.mark.full
@pytest.mark.parametrize(("name", "score", "sign"), [("mixture", "log_density", 1), ("kmeans", "squared_distance", -1)])
def test_rows_are_those_of_sorts_over_all_rows(made, tmp_path, name, score, sign):
    """min(size, 30) rows of each label with the least hashes, and the 3 that fit best, by number; other chunks give the same bytes."""
    asked = ["--per-cluster", 30, "--nearest", 3, "--seed", 5, "--format", "csv"]
    assert command("summarize", made / name, *asked, "--output", tmp_path / "out").code == 0
    found = xr.open_zarr(tmp_path / "out" / "summarize.zarr", consolidated=False).load()
    x, labels = np.load(made / "x.npy"), xr.open_zarr(made / name / "labels.zarr", consolidated=False).load()
    label = labels["label"].values
    assert found["size"].values.tolist() == np.bincount(label[label >= 0], minlength=4).tolist()
    hashed, expected = keyed.uniform(5, STREAM, np.arange(len(x))), []
    for k in range(4):
        own = np.flatnonzero(label == k)
        expected += own[np.argsort(hashed[own])][:30].tolist()
        assert (found["label"] == k).sum() == min(len(own), 30)
        best = found["nearest_row"].values[k]
        assert set(label[best[best >= 0]]) == {k} and (best >= 0).sum() == min(3, len(own))
        if name == "kmeans":
            assert best.tolist() == own[np.argsort(labels[score].values[own])][:3].tolist()
    assert found["row"].values.tolist() == sorted(expected)
    np.testing.assert_array_equal(found["value"], x[found["row"]])
    np.testing.assert_array_equal(found["label"], label[found["row"]])
    np.testing.assert_array_equal(found["nearest_value"], x[found["nearest_row"]])
    np.testing.assert_array_equal(found[f"nearest_{score}"], labels[score].values[found["nearest_row"].values])
    centres = pipeline.open_run(made / name)["means" if name == "mixture" else "centers"]
    raw = np.delete(x, 7, axis=0)
    np.testing.assert_allclose(found["prototype"], centres * raw.std(axis=0) + raw.mean(axis=0), rtol=1e-9)
    table = pd.read_csv(tmp_path / "out" / "summarize.csv")
    assert table["row"].tolist() == sorted(expected) and list(table) == [
        "row",
        "label",
        "value_0",
        "value_1",
        "value_2",
    ]
    assert workflow.resume(tmp_path / "out") == tmp_path / "out"
    for workers in (1, 2):
        changes = ["data.source=zarr", f"data.path={made / 'x.zarr'}", f"engine.workers={workers}"]
        store = pipeline.summarize(made / name, tmp_path / str(workers), 30, 3, 5, changes)
        other = xr.open_zarr(store, consolidated=False).load()
        xr.testing.assert_equal(
            other[["row", "label", "value", "size", "nearest_row"]],
            found[["row", "label", "value", "size", "nearest_row"]],
        )


def test_what_cannot_be_summarized_is_refused(made, tmp_path):
    """Bad rows, lists beyond memory, and numbers below 1."""
    for asked, said in (
        ({"overrides": ["data.bad_rows=error"]}, "row 7 holds NaN"),
        ({"per_cluster": 0}, "expected at least 1"),
        ({"nearest": 0}, "expected at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            pipeline.summarize(made / "mixture", tmp_path / "no", **asked)
