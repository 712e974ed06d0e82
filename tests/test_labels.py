"""labels.zarr: every row once, in order, whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.kernels.cpu import KERNELS
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from pipeline.outputs import labels
from pipeline.outputs.labels import LabelBlock, has_labels, write_labels
from tests.jobs import blobs, files, job, write_rows
from tests.laws.common import gaussian_mixture

N, D, K = 530, 3, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 100 rows, which do not divide the chunks."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 100)


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """Rows in ragged chunks, with two bad ones."""
    from pipeline.data import source

    monkeypatch.setattr(source, "TARGET_BYTES", 1)
    x = blobs(N, D)
    x[17, 1], x[222, 0] = np.nan, np.inf
    path = write_rows(tmp_path / "x.zarr", x, rows=70)
    return job(path).data.open_chunks()


def gaussian() -> tuple[Mixture, object]:
    """A model with parameters somewhere in the data."""
    rng = np.random.default_rng(1)
    model = gaussian_mixture(K, np.zeros(D), "diag")
    arrays = {"weights": np.full(K, 1 / K), "means": 4 * rng.normal(size=(K, D)), "covariances": np.ones((K, D))}
    return model, model.params_from_arrays(arrays)


def write(path, chunks, top_k=0, drop=True, engine=None, progress=lambda rows: None):
    """Label all rows with the Gaussian."""
    write_labels(path, LabelBlock(chunks, *gaussian(), top_k, drop), engine or Engine(workers=2), progress)


def test_labels_are_those_of_the_model_row_by_row(tmp_path, chunks):
    """Labels and log-densities equal a direct computation; dropped rows have label -1 and log-density NaN."""
    write(tmp_path / "labels.zarr", chunks, top_k=2)
    found = xr.open_zarr(tmp_path / "labels.zarr", consolidated=False).load()
    x = np.concatenate([chunks.load(i).x for i in range(chunks.n_chunks)])
    model, params = gaussian()
    log_joint = model.log_joint(params, x, KERNELS)
    good = np.setdiff1d(np.arange(N), [17, 222])
    assert np.array_equal(found.label.values[good], log_joint.argmax(axis=1)[good])
    np.testing.assert_allclose(found.log_density.values[good], np.logaddexp.reduce(log_joint, axis=1)[good], rtol=1e-12)
    assert (found.label.values[[17, 222]] == -1).all() and np.isnan(found.log_density.values[[17, 222]]).all()
    assert found.label.dims == ("row",) and found.top_responsibility.dims == ("row", "rank")
    top, share = found.top_component.values[good], found.top_responsibility.values[good]
    assert np.array_equal(top[:, 0], found.label.values[good]) and (share[:, 0] >= share[:, 1]).all()
    resp = np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1)[:, None])[good]
    np.testing.assert_allclose(share, np.take_along_axis(resp, top, axis=1), rtol=1e-6)
    assert zarr.open_array(tmp_path / "labels.zarr", path="label", mode="r").chunks == (100,)


def test_kmeans_gives_squared_distances(tmp_path, chunks):
    """K-means has no density: its column is the squared distance to the nearest centre."""
    model = Lloyd(2, np.zeros(D))
    params = model.params_from_arrays({"centers": np.array([[0.0] * D, [5.0] * D])})
    write_labels(tmp_path / "l.zarr", LabelBlock(chunks, model, params, 0, True), Engine(workers=1), lambda rows: None)
    found = xr.open_zarr(tmp_path / "l.zarr", consolidated=False).load()
    x = np.concatenate([chunks.load(i).x for i in range(chunks.n_chunks)])[:17]
    distance = ((x[:, None, :] - params.centers) ** 2).sum(axis=2)
    np.testing.assert_allclose(found.squared_distance.values[:17], distance.min(axis=1), rtol=1e-12)
    assert "log_density" not in found


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("blocks", range(1, 6))
def test_an_interrupted_store_is_gone_on_with(tmp_path, chunks, blocks, workers):
    """Stopped after any number of blocks, nothing shows under the name; the next call computes the rest alone."""
    write(tmp_path / "whole.zarr", chunks, top_k=1)
    seen: list[int] = []

    def stop(rows: int) -> None:
        seen.append(rows)
        if len(seen) == blocks:
            raise KeyboardInterrupt

    path, engine = tmp_path / "labels.zarr", Engine(workers=workers)
    with pytest.raises(KeyboardInterrupt):
        write(path, chunks, 1, engine=engine, progress=stop)
    assert not path.exists()
    write(path, chunks, 1, engine=engine, progress=seen.append)
    assert seen == [100, 200, 300, 400, 500, 530]
    assert files(path) == files(tmp_path / "whole.zarr")
    assert not list(tmp_path.glob(".labels*"))


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "another block": lambda file: shutil.copy(file.parent / ("2" if file.name == "1" else "1"), file),
}


BLOCKS, OTHERS = ["label/c/1", "log_density/c/0"], ["label/zarr.json", "zarr.json", "sums"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in (*BLOCKS, *OTHERS)
        for damage in DAMAGES
        if name in BLOCKS or damage != "another block"
    ],
)
def test_damaged_blocks_are_done_again(tmp_path, chunks, name, damage):
    """Whatever happens to unfinished labels, they end as if nothing had."""
    write(tmp_path / "whole.zarr", chunks)
    path, seen = tmp_path / "labels.zarr", []

    def stop(rows: int) -> None:
        seen.append(rows)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, chunks, progress=stop)
    DAMAGES[damage](tmp_path / (f".labels.zarr.{name}" if name == "sums" else f".labels.zarr.partial/{name}"))
    write(path, chunks, progress=seen.append)
    assert files(path) == files(tmp_path / "whole.zarr")
    assert len(seen) < 4 + 4 or name == "sums"  # what was whole is not done again


def test_a_store_begun_with_another_layout_is_begun_again(tmp_path, chunks):
    """top_k may change between a stop and a resume; no block may then keep fill values."""
    path, seen = tmp_path / "labels.zarr", []

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, chunks, 0, progress=stop)
    write(path, chunks, 2, progress=seen.append)
    assert len(seen) == 6
    top = zarr.open_array(path, path="top_component", mode="r")[:]
    assert (np.delete(top, [17, 222], axis=0) >= 0).all()
    assert has_labels(path, 2) and has_labels(path, 0) and not has_labels(path, 3)
    assert not has_labels(tmp_path / "none.zarr", 0)


def test_a_bad_row_is_an_error_where_rows_are_not_dropped(tmp_path, chunks):
    """bad_rows: error holds for prediction too, and names a bad row: that of whichever block meets one first."""
    with pytest.raises(InputError, match=r"row (17|222) holds NaN or inf"):
        write(tmp_path / "labels.zarr", chunks, drop=False)
    assert not (tmp_path / "labels.zarr").exists()


def test_many_responsibilities_per_row_are_planned_for(chunks):
    """The memory plan grows with output.top_k."""
    jobs = [plan_job(job(Path("x.zarr"), output={"top_k": k}), chunks) for k in (0, 1000)]
    plans = [memory_plan(each, chunks) for each in jobs]
    assert plans[1].per_task > plans[0].per_task
