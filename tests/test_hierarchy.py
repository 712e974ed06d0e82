"""Hierarchical K-means against a slow, obvious reference, through command, kill, resume, predict, report and the Python class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import KMeans, workflow
from pipeline.arrays.rows import Rows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.hierarchy import ENOUGH, NEAR, Grouped, Hierarchy, shared
from pipeline.outputs.model_store import load_model
from tests.jobs import Interrupt, command, job, refused, results, write_config, write_rows

SIX_BY_EIGHT = {"family": "kmeans", "levels": [6, 8], "n_components": 48}


def close(a: object, b: object, scale: float = 0.0) -> None:
    """Equal to 1e-9, relative, or of a scale."""
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * scale)


def rows_of(n: int = 900, d: int = 3, seed: int = 0) -> np.ndarray:
    """Rows around 60 points, far from the origin."""
    rng = np.random.default_rng(seed)
    return 30.0 + 4.0 * rng.normal(size=(60, d))[rng.integers(60, size=n)] + 0.5 * rng.normal(size=(n, d))


def grouped(x: np.ndarray, groups: int, k: int, seed: int = 0) -> tuple[Hierarchy, Grouped]:
    """A model whose centres are rows, in groups at random: some may have none."""
    rng = np.random.default_rng(seed)
    centers, upper = x[rng.choice(len(x), k, replace=False)], x[rng.choice(len(x), groups, replace=False)]
    model = Hierarchy(k, x.mean(axis=0), float(x.var(axis=0).mean()), groups)
    return model, model.params(centers=centers, group=rng.integers(groups, size=k).astype(float), upper_centers=upper)


def slow_labels(x: np.ndarray, params: Grouped) -> np.ndarray:
    """Row by row: the nearest group, the groups with centres that are nearest to it, and the nearest of their centres."""
    upper, found = params.upper_centers, []
    used = [g for g in range(len(upper)) if (params.group == g).any()]
    for row in x:
        own = upper[np.argmin(((row - upper) ** 2).sum(axis=1))]
        near = sorted(used, key=lambda g: ((own - upper[g]) ** 2).sum())[:NEAR]
        squared = np.where(np.isin(params.group, near), ((row - params.centers) ** 2).sum(axis=1), np.inf)
        found.append(int(squared.argmin()))
    return np.array(found)


@given(seed=st.integers(0, 2**16), groups=st.integers(1, 20), k=st.integers(1, 60), cut=st.integers(1, 199))
@settings(max_examples=25, deadline=None)
def test_an_e_step_equals_a_slow_reference(seed, groups, k, cut):
    """Labels, sums and inertia are those of rows one by one, also with weights; the statistics of two chunks add, and their keys."""
    x = rows_of(200, seed=seed)
    model, params = grouped(x, groups, k, seed)
    weight = np.random.default_rng(seed).integers(0, 3, len(x)).astype(float)
    label, found = slow_labels(x, params), EStep(model, params, model.attachments)
    whole = found(Rows(x, weight), KERNELS)
    np.testing.assert_array_equal(model.nearest(params, x, KERNELS)[0], label)
    member = (label[:, None] == np.arange(k)) * weight[:, None]
    close(whole.stats.sum_w, member.sum(axis=0))
    close(whole.stats.sum_x, member.T @ (x - model.shift), scale=weight.sum() * 30)
    close(whole.stats.inertia, weight @ ((x - params.centers[label]) ** 2).sum(axis=1))
    parts = found(Rows(x[:cut], weight[:cut]), KERNELS) + found(Rows(x[cut:], weight[cut:], start=cut), KERNELS)
    close(parts.stats.sum_x, whole.stats.sum_x, scale=weight.sum() * 30)
    assert parts.attached["label_hash"].value == whole.attached["label_hash"].value


@given(
    seed=st.integers(0, 2**16), d=st.sampled_from([1, 3, 40]), n=st.sampled_from([3, 700]), groups=st.integers(1, 12)
)
@settings(max_examples=25, deadline=None)
def test_a_label_does_not_depend_on_the_other_rows(seed, d, n, groups):
    """The labels of one row at a time, of any few rows, and those by differences: float64 tells them, float32 all but for rounding."""
    rng, x = np.random.default_rng(seed), rows_of(800, d, seed)
    model, params = grouped(x, groups, int(rng.integers(1, 300)), seed)
    some = rng.permutation(len(x))[:n]
    for dtype in ("float64", "float32"):
        rows = x.astype(dtype)
        whole = model.nearest(params, rows, KERNELS)
        few = model.nearest(params, rows[some], KERNELS)
        alone = [model.nearest(params, rows[[t]], KERNELS)[0][0] for t in some[:5]]
        for one, other in zip(whole, few, strict=True):
            np.testing.assert_array_equal(one[some], other)
        np.testing.assert_array_equal(alone, few[0][:5])
        squared = ((rows - params.centers[slow_labels(rows.astype(float), params)]) ** 2).sum(axis=1)
        scale = ((x - x.mean(axis=0)) ** 2).sum(axis=1).max()
        np.testing.assert_allclose(whole[1], squared, rtol=0, atol=64 * np.finfo(dtype).eps * scale)


@pytest.mark.parametrize(("dtype", "fine"), [("float32", 1e-3), ("float64", 1e-7), ("float32", 10.0)])
def test_centres_nearer_than_rounding_are_told_apart(dtype, fine):
    """By differences where the dtype about the upper centre does not tell them; of equal centres the lowest has the rows, also of another group."""
    rng = np.random.default_rng(0)
    upper = 100.0 * rng.normal(size=(12, 3))
    places = upper[rng.integers(12, size=30)] + 10.0 + fine * rng.normal(size=(30, 3))
    centers = np.concatenate([places, places])[rng.permutation(60)]
    x = (places[rng.integers(30, size=500)] + 0.3 * fine * rng.normal(size=(500, 3))).astype(dtype)
    model = Hierarchy(60, x.mean(axis=0).astype(float), 1.0, 12)
    params = model.params(centers=centers, group=rng.integers(12, size=60).astype(float), upper_centers=upper)
    label = model.nearest(params, x, KERNELS)[0]
    np.testing.assert_array_equal(label, slow_labels(x.astype(float), params))
    sums = model.sums(params, x, None, 0, KERNELS)
    np.testing.assert_array_equal(sums.sum_w, np.bincount(label, minlength=60))


@pytest.mark.parametrize("groups", [1, NEAR])
def test_with_few_groups_it_is_lloyd(groups):
    """As many groups as a row is looked up in: labels, distances and sums of the flat K-means of the same centres."""
    x = rows_of()
    model, params = grouped(x, groups, 50)
    flat = KERNELS.lloyd_pass(x, None, params.centers, model.shift)
    ours = model.sums(params, x, None, 0, KERNELS)
    for name in ("label", "score", "sum_w", "label_key"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(flat, name))
    close(ours.sum_x, flat.sum_x, scale=len(x) * 30)


def test_an_empty_centre_moves_to_the_farthest_row_and_to_its_group():
    """It gets this row alone, also in the next E-step, whichever group it was in; the centres of empty groups stay."""
    x = rows_of(300)
    model, params = grouped(x, 12, 40)
    centers = params.centers.copy()
    centers[[3, 7]] += 1e4  # no row is near
    params = model.params(centers=centers, group=params.group, upper_centers=params.upper_centers)
    step = EStep(model, params, model.attachments)(Rows(x), KERNELS)
    far = step.attached["outliers"]
    moved, resets = model.reset(model.m_step(step.stats, params), params, step.stats, step.attached, ())
    done = [reset.component for reset in resets if reset.done]
    assert {3, 7} <= set(done)
    for k, row, before in zip(done, far.row, far.label, strict=False):
        close(moved.centers[k], x[row])
        assert moved.group[k] == params.group[before]
    again = model.nearest(moved, x, KERNELS)[0]
    assert set(done) <= set(again[far.row[: len(done)]].tolist())


@pytest.mark.parametrize("each", [2, ENOUGH + 1])
def test_a_start_has_different_centres_in_the_groups_of_their_rows(each):
    """As many as in proportion to a group's rows; where these are few for each centre, rows, of which equal ones count once."""
    x = rows_of(600)
    x[:60] = x[60:120]
    model, k = Hierarchy(600 // each, x.mean(axis=0), 1.0, 7), 600 // each
    upper = x[100:107]
    found = model.start_below(upper, x, None, (0, 0), KERNELS, map)
    own = KERNELS.nearest(x, upper, model.shift)[0]
    np.testing.assert_array_equal(np.bincount(found.group.astype(int), minlength=7), shared(k, np.bincount(own)))
    assert len(np.unique(found.centers, axis=0)) == k
    if each < ENOUGH:
        np.testing.assert_array_equal(KERNELS.nearest(found.centers, upper, model.shift)[0], found.group)
        assert {tuple(c) for c in found.centers} <= {tuple(row) for row in x}


def fitted(folder: Path, rows: int, **engine: object) -> Path:
    """A run of 6 x 8 centres on chunks of so many rows."""
    stored = folder / f"x{rows}.zarr"
    stored = stored if stored.exists() else write_rows(stored, rows_of(), rows)
    run = folder / f"run{rows}{len(engine)}"
    workflow.run(job(stored, model=SIX_BY_EIGHT, fit={"max_iter": 30}, engine=engine), run)
    return run


def test_inertia_falls_and_chunks_do_not_matter(tmp_path):
    """Without resets no iteration raises the inertia; other chunks give the same fit but for rounding, workers the same bits."""
    first, other = fitted(tmp_path, 900), fitted(tmp_path, 130)
    a, b = (xr.open_zarr(run / "model.zarr", consolidated=False).load() for run in (first, other))
    inertia = a["inertia"].values
    assert len(inertia) > 2 and (np.diff(inertia) <= 1e-9 * inertia[0]).all()
    assert a.attrs["n_components"] == 48 and a.attrs["groups"] == 6
    for name in ("centers", "group", "upper_centers"):
        close(a[name].values, b[name].values)
    assert results(other) == results(fitted(tmp_path, 130, workers=1))
    x, labels = rows_of(), xr.open_zarr(first / "labels.zarr", consolidated=False).load()
    params = load_model(a)[1]
    np.testing.assert_array_equal(labels["label"], slow_labels(x, params))
    squared = ((x - params.centers[labels["label"].values]) ** 2).sum(axis=1)
    close(labels["squared_distance"].values, squared)
    assert command("report", first).code == 0 and (first / "report.html").exists()


@pytest.mark.parametrize("method", ["auto", pytest.param("em", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("event", "nth"), [("pass", 3), pytest.param("init", 1, marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_same_bits(tmp_path, method, event, nth):
    """Stopped after its start or in its iterations, it ends with the bytes of a run that was not."""
    stored = write_rows(tmp_path / "x.zarr", rows_of(), 130)
    config = job(stored, model=SIX_BY_EIGHT, fit={"max_iter": 8, "method": method})
    workflow.run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "stopped", listeners=[Interrupt(event, nth)])
    assert command("resume", tmp_path / "stopped").code == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_a_prediction_a_balanced_sample_and_an_update_take_its_groups(tmp_path):
    """`predict` of the same rows has the run's labels, `summarize` as many rows of each, and `update` goes on from its centres."""
    run = fitted(tmp_path, 130)
    here = f"data.path={tmp_path / 'x130.zarr'}"
    assert command("predict", run, "--set", here, "--output", tmp_path / "again").code == 0
    a, b = (xr.open_zarr(each / "labels.zarr", consolidated=False).load() for each in (run, tmp_path / "again"))
    np.testing.assert_array_equal(a["label"], b["label"])
    assert command("summarize", run, "--per-cluster", 3, "--output", tmp_path / "few").code == 0
    few = xr.open_zarr(tmp_path / "few" / "summarize.zarr", consolidated=False).load()
    size = np.bincount(a["label"], minlength=48)
    assert np.bincount(few["label"], minlength=48).tolist() == np.minimum(size, 3).tolist()
    others = f"data.path={write_rows(tmp_path / 'others.zarr', rows_of(seed=1), 130)}"
    assert command("update", run, "--set", others, "--output", tmp_path / "more").code == 0
    assert xr.open_zarr(tmp_path / "more" / "model.zarr", consolidated=False).attrs["groups"] == 6


def test_check_tells_what_it_takes(tmp_path):
    """The plan names the centres."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", rows_of(), 130),
                          model=SIX_BY_EIGHT, output={"path": str(tmp_path / "r")})  # fmt: skip
    found = command("check", config)
    assert found.code == 0 and "memory" in found.out


@pytest.mark.parametrize("method", ["em", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_python_class_is_the_same_fit(method):
    """Labels are those of its groups, `predict` agrees, the inertia is theirs, and sample weights of 2 stand for rows twice."""
    x = rows_of()
    found = KMeans(levels=(12, 5), random_state=0, method=method).fit(x)
    params = Hierarchy(60, x.mean(axis=0), groups=12).params(**found._stored())
    label = slow_labels(x, params)
    np.testing.assert_array_equal(found.labels_, label)
    np.testing.assert_array_equal(found.predict(x), label)
    close(found.inertia_, ((x - params.centers[label]) ** 2).sum())
    flat = KMeans(60, random_state=0, n_init=3).fit(x)
    assert found.inertia_ < 1.25 * flat.inertia_
    assert found.partial_fit(rows_of(seed=1)).cluster_centers_.shape == (60, 3)
    assert found.to_sklearn().n_clusters == 60


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"model": {"levels": [6, 8], "n_components": 40}}, "levels [6, 8] make 48; leave n_components out"),
        ({"model": {"levels": [6, 8, 2]}}, "levels"),
        ({"model": {"levels": [6, 0]}}, "levels"),
        ({"model": {"levels": [60, 80]}}, "there are 900 rows"),
        ({"fit": {"init": "near-mean"}}, "fit.init: got near-mean"),
        ({"model": {"family": "spherical-kmeans", "levels": [6, 8]}}, "levels"),
        ({"data": {"labels": "y.npy"}}, "data.labels"),
    ],
)
def test_what_is_refused(tmp_path, section, text):
    """One sentence with what was found."""
    base = {"model": {"family": "kmeans", "levels": [6, 8]}, "output": {"path": str(tmp_path / "r")}}
    merged = {name: {**base.get(name, {}), **section.get(name, {})} for name in {*base, *section}}
    stored = write_rows(tmp_path / "x.zarr", rows_of(), 130)
    config = write_config(tmp_path / "c.yaml", stored, **merged)
    plain = config.read_text()
    if "n_components: 40" not in plain:  # of the short jobs of these tests
        config.write_text("\n".join(line for line in plain.splitlines() if "n_components" not in line))
    assert text in refused("check", config)
