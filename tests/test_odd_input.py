"""Odd rows through the whole job: types, layouts, scales, repeats. What comes out is right, or an error, or has a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline import workflow
from pipeline.arrays.dtypes import compute_dtype
from pipeline.errors import InputError
from pipeline.outputs.events import read_events
from tests.jobs import blobs, job

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flushing."""
    from pipeline.outputs import checkpoint, run_directory

    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)


def fitted(folder: Path, x: np.ndarray, **changes: Any) -> dict[str, np.ndarray]:
    """The parameters of a job on these rows, and its labels."""
    np.save(folder / "x.npy", x)
    changes["output"] = {"path": str(folder / "run"), **changes.get("output", {})}
    workflow.run(job(folder / "x.npy", **changes), overwrite=True)
    return arrays(folder / "run")


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Parameters and labels of a finished run."""
    model = workflow.open_run(run)
    found = {name: model[name].values for name in ("weights", "means", "covariances", "centers") if name in model}
    return found | {"label": np.asarray(zarr.open_group(run / "labels.zarr", mode="r")["label"][...])}


def warnings_of(run: Path) -> list[str]:
    """Every warning in the log."""
    return [event["message"] for event in read_events(run / "events.jsonl") if event["event"] == "warning"]


# --- types and layouts

WHOLE = np.clip(np.rint(blobs(600, seed=1) * 8 + 100), 0, 255)  # every type below holds these values exactly
MODELS: dict[str, dict[str, Any]] = {
    "full": {"covariance_type": "full"},
    "kmeans": {"family": "kmeans"},
}
STEPS = {"max_iter": 5}


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """The float64 fit of each model."""
    return {
        name: fitted(tmp_path_factory.mktemp(name), WHOLE, model=model, fit=STEPS) for name, model in MODELS.items()
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["u1", ">f8", "F", *(pytest.param(t, marks=pytest.mark.slow) for t in ("f2", "i8"))])
def test_a_type_or_layout_changes_a_fit_by_its_rounding(tmp_path, in_float64, model, dtype):
    """The same values in any type, byte order and layout: the float64 fit, to 1000 eps of the type that is computed in."""
    wanted = in_float64[model]
    x = np.asfortranarray(WHOLE) if dtype == "F" else WHOLE.astype(dtype)
    found = fitted(tmp_path, x, model=MODELS[model], fit=STEPS)
    bound = 0.0 if dtype in ("F", ">f8") else 1000 * float(np.finfo(compute_dtype(x.dtype)).eps)
    for name in ("weights", "means", "covariances", "centers"):
        if name in wanted:
            assert np.abs(found[name] - wanted[name]).max() <= bound * np.abs(wanted[name]).max(), name
    np.testing.assert_array_equal(found["label"], wanted["label"])


def test_integers_are_promoted_before_they_are_squared(tmp_path):
    """Values whose squares do not fit int64 give the fit of the same numbers as float64."""
    x = (WHOLE * 1e10).astype(np.int64)
    found, wanted = fitted(tmp_path, x), fitted(tmp_path, x.astype(np.float64))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (97, 3)},
        {"chunks": (600, 1)},
        {"chunks": (50, 2), "shards": (200, 4)},
        {"chunks": (1000, 3)},
        {"chunks": (97, 3), "zarr_format": 2, "order": "F"},
    ],
)
def test_chunks_and_shards_do_not_matter(tmp_path, monkeypatch, options):
    """Ragged, oversized, sharded and chunked through the features: the fit of one plain chunk, to rounding."""
    from pipeline.data import source

    wanted = fitted(tmp_path, blobs())
    monkeypatch.setattr(source, "TARGET_BYTES", 2400)
    zarr.create_array(tmp_path / "x.zarr", data=blobs(), **options)
    workflow.run(job(tmp_path / "x.zarr"), tmp_path / "chunked")
    found = arrays(tmp_path / "chunked")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


# --- scales and repeats


@pytest.mark.parametrize("family", ["gaussian", "kmeans"])
@pytest.mark.parametrize("scale", [1e300, 1e-200])
def test_values_beyond_arithmetic_are_refused(tmp_path, family, scale):
    """Where squares overflow or vanish the job ends before its first pass over a model, and says what to do."""
    with pytest.raises(InputError, match="Rescale the data"):
        fitted(tmp_path, blobs() * scale, model={"family": family})


def test_an_offset_does_not_matter(tmp_path):
    """All values near 1e8: the same labels, and means moved by the offset."""
    wanted, found = fitted(tmp_path, blobs()), fitted(tmp_path, blobs() + 1e8)
    np.testing.assert_array_equal(found["label"], wanted["label"])
    np.testing.assert_allclose(found["means"] - 1e8, wanted["means"], atol=1e-6)
    np.testing.assert_allclose(found["covariances"], wanted["covariances"], rtol=1e-6)


ODD = {
    "constant": (np.c_[blobs(), np.ones(600)], {}, ["1 features have one value only: 3"]),
    "repeated": (np.repeat(blobs(60), 10, axis=0), {}, ["the sample of 600 rows has 60 distinct ones"]),
    "few": (
        np.repeat(blobs(2), 100, axis=0),
        {},
        ["the sample of 200 rows has 2 distinct ones, fewer than n_components"],
    ),
    "small": (
        blobs() * 1e-5,
        {},
        ["the variance of 3 features is below model.reg_covar 1e-06, which hides", "0, 1, 2"],
    ),
    "small, kmeans": (blobs() * 1e-5, {"family": "kmeans"}, []),
    "ordinary": (blobs(), {}, []),
}


@pytest.mark.parametrize("case", ODD)
def test_what_hides_clusters_is_said(tmp_path, case):
    """Finite parameters, the same when run again, and a warning that says which features or how many rows."""
    x, model, said = ODD[case]
    found = fitted(tmp_path, x, model=model, fit={"max_iter": 3})
    text = "\n".join(warnings_of(tmp_path / "run"))
    assert all(words in text for words in said) and bool(text) == bool(said), text
    again = fitted(tmp_path, x, model=model, fit={"max_iter": 3})
    for name, value in found.items():
        assert np.isfinite(value).all() and value.tobytes() == again[name].tobytes(), name


# --- names


@pytest.mark.parametrize("variable", ["../secret", "a/../../secret", "/../secret"])
def test_a_name_does_not_lead_out_of_the_store(tmp_path, variable):
    """data.variable names an array of the store, and nothing beside it."""
    zarr.open_group(tmp_path / "store.zarr", mode="w").create_array("a", data=blobs())
    zarr.create_array(tmp_path / "secret", data=blobs())
    with pytest.raises(InputError):
        workflow.run(job(tmp_path / "store.zarr", data={"variable": variable}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
