"""Product and residual quantisers against slow, obvious references and scikit-learn, through run, kill, resume, compress and report."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import pipeline
from pipeline import workflow
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.models.books import Quantizer
from pipeline.models.lloyd import Centers
from pipeline.models.quantizers import ProductQuantizer, ResidualQuantizer
from pipeline.outputs.compressed import Compressed
from pipeline.outputs.model_store import load_model, read_dataset
from tests.jobs import Interrupt, command, files, job, refused, results, write_config, write_rows

D, K = 7, 6
PARTS = {"parts": 3, "n_components": K}  # of 3, 2 and 2 features
STAGES = {"stages": 3, "n_components": K}
BOTH = pytest.mark.parametrize("kind", ["parts", "stages"])
COLUMNS = np.array_split(np.arange(D), 3)


def rows_of(n: int = 900, seed: int = 0) -> np.ndarray:
    """Rows around 40 points, far from the origin, whose features have widths of their own."""
    rng = np.random.default_rng(seed)
    points = 4.0 * rng.normal(size=(40, D))
    return (30.0 + points[rng.integers(40, size=n)] + rng.normal(size=(n, D))) * np.linspace(0.5, 2.0, D)


def made(kind: str, x: np.ndarray, k: int = K, seed: int = 0) -> tuple[Quantizer, Centers]:
    """A model with centres at rows, and in later stages at differences of rows."""
    rng = np.random.default_rng(seed)
    if kind == "parts":
        return ProductQuantizer(k, x.mean(axis=0), x.var(axis=0), 3), Centers(x[rng.choice(len(x), k, replace=False)])
    first, *rest = (x[rng.choice(len(x), k, replace=False)] for _ in range(3))
    centers = np.stack([first, *(0.3 * (each - x.mean(axis=0)) for each in rest)])
    return ResidualQuantizer(k, x.mean(axis=0), float(x.var(axis=0).mean()), 3), Centers(centers)


def coded(kind: str, x: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Row by row: the entry of each part or stage, (n, 3), what is left of the row, and what each stage was given."""
    codes, left, given = np.empty((len(x), 3), int), x.astype(float), []
    for b in range(3):
        given.append(left.copy())
        for n in range(len(x)):
            if kind == "parts":
                own = COLUMNS[b]
                codes[n, b] = ((x[n, own] - centers[:, own]) ** 2).sum(axis=1).argmin()
                left[n, own] -= centers[codes[n, b], own]
            else:
                codes[n, b] = ((left[n] - centers[b]) ** 2).sum(axis=1).argmin()
                left[n] -= centers[b, codes[n, b]]
    return codes, left, given


def summed(kind: str, codes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """The sum of the entries of each row."""
    if kind == "parts":
        return np.concatenate([centers[code][:, own] for code, own in zip(codes.T, COLUMNS, strict=True)], axis=1)
    return np.sum([centers[b][code] for b, code in enumerate(codes.T)], axis=0)


@BOTH
@given(seed=st.integers(0, 2**16), cut=st.integers(1, 119))
@settings(max_examples=15, deadline=None)
def test_an_e_step_equals_a_slow_reference(kind, seed, cut):
    """Codes, sums and inertia are those of rows one by one, also with weights; the statistics of two chunks add, and their keys."""
    x = rows_of(120, seed)
    model, params = made(kind, x, seed=seed)
    weight = np.random.default_rng(seed).integers(0, 3, len(x)).astype(float)
    codes, left, given = coded(kind, x, params.centers)
    found = model.predict(params, Rows(x), 0, KERNELS)
    np.testing.assert_array_equal(found["code"], codes)
    np.testing.assert_allclose(found["squared_distance"], (left**2).sum(axis=1), rtol=1e-9, atol=1e-9)
    step = EStep(model, params, model.attachments)
    whole = step(Rows(x, weight), KERNELS)
    for b in range(3):
        member = (codes[:, b, None] == np.arange(K)) * weight[:, None]
        own = COLUMNS[b] if kind == "parts" else np.arange(D)
        np.testing.assert_allclose(whole.stats.sum_w[b], member.sum(axis=0))
        expected = member.T @ (given[b][:, own] - model.books[b].shift)
        np.testing.assert_allclose(model.split(whole.stats.sum_x)[b], expected, rtol=1e-9, atol=1e-7)
    assert model.objective(whole.totals, params) == pytest.approx(-weight @ (left**2).sum(axis=1))
    parts = step(Rows(x[:cut], weight[:cut]), KERNELS) + step(Rows(x[cut:], weight[cut:], start=cut), KERNELS)
    np.testing.assert_allclose(parts.stats.sum_x, whole.stats.sum_x, rtol=1e-9, atol=1e-7)
    for name in ("label_hash", "far_rows"):
        a, b = parts.attached[name], whole.attached[name]
        same = a.value == b.value if name == "label_hash" else all((p.row == q.row).all() for p, q in zip(a.of_book, b.of_book, strict=True))  # fmt: skip
        assert same


@BOTH
def test_labels_that_two_books_exchange_change_the_hash(kind):
    """It must not look as if no label had changed."""
    x = np.array([[0.0] * 4])
    model: Any = ProductQuantizer(2, np.zeros(4), np.ones(4), 2) if kind == "parts" else ResidualQuantizer(2, np.zeros(4), 1.0, 2)  # fmt: skip
    a, b = np.array([[0.0], [1.0]]) * np.ones(4), np.array([[1.0], [0.0]]) * np.ones(4)
    one = [np.hstack([a[:, :2], b[:, :2]]), np.hstack([b[:, :2], a[:, :2]])] if kind == "parts" else [np.stack([a, b]), np.stack([b, a])]  # fmt: skip
    steps = [EStep(model, Centers(each), model.attachments)(Rows(x), KERNELS) for each in one]
    assert steps[0].stats.sum_w.tolist() != steps[1].stats.sum_w.tolist()
    assert steps[0].attached["label_hash"].value != steps[1].attached["label_hash"].value


def run_from(folder: Path, kind: str, x: np.ndarray, iterations: int = 300, **changes: Any) -> xr.Dataset:
    """The model of a run from the centres of `made`, until no label changes."""
    model = PARTS if kind == "parts" else STAGES
    stored = folder / "x.zarr"
    stored = stored if stored.exists() else write_rows(stored, x, 130)
    np.savez(folder / "start.npz", centers=made(kind, x)[1].centers)
    fit = {"method": "auto", "init": "explicit", "init_path": str(folder / "start.npz"), "max_iter": iterations}
    workflow.run(job(stored, model={"family": "kmeans", **model}, fit=fit, **changes), folder / "run", overwrite=True)
    return read_dataset(folder / "run" / "model.zarr")


def test_a_product_quantiser_is_scikit_learns_k_means_of_each_part(tmp_path):
    """From the same centres: centres, labels and inertia of one KMeans for each part of the features."""
    x = rows_of()
    found, start = run_from(tmp_path, "parts", x), made("parts", x)[1].centers
    labels = xr.open_zarr(tmp_path / "run" / "labels.zarr", consolidated=False).load()
    inertia = 0.0
    for part, own in enumerate(COLUMNS):
        peer = KMeans(K, init=start[:, own], n_init=1, tol=0, max_iter=300).fit(x[:, own])
        np.testing.assert_allclose(found.centers.values[:, own], peer.cluster_centers_, rtol=1e-10)
        np.testing.assert_array_equal(labels.code.values[:, part], peer.labels_)
        assert found.part_inertia.values[-1, part] == pytest.approx(peer.inertia_)
        inertia += peer.inertia_
    assert found.attrs["final_inertia"] == pytest.approx(inertia) == pytest.approx(labels.squared_distance.values.sum())
    assert found.attrs["stop_reason"] == "converged: no label changed" and found.attrs["bits"] == 9
    assert (np.diff(found.inertia.values) <= 1e-9 * inertia).all()


def test_a_residual_quantiser_is_k_means_of_what_is_left_written_out(tmp_path):
    """Each iteration is means of residuals, all stages at once; in the end each stage is a fixed point of scikit-learn's KMeans on residuals."""
    x = rows_of()
    centers, first = made("stages", x)[1].centers.copy(), []
    for _ in range(4):
        codes, _, given = coded("stages", x, centers)
        first.append(((given[1]) ** 2).sum())
        for b, k in itertools.product(range(3), range(K)):
            if (codes[:, b] == k).any():
                centers[b, k] = given[b][codes[:, b] == k].mean(axis=0)
    few = run_from(tmp_path, "stages", x, iterations=4)
    np.testing.assert_allclose(few.centers.values, centers, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(few.stage_inertia.values[:, 0], first)
    found = run_from(tmp_path, "stages", x)
    assert found.attrs["stop_reason"] == "converged: no label changed"
    codes, left, given = coded("stages", x, found.centers.values)
    for b in range(3):
        peer = KMeans(K, init=found.centers.values[b], n_init=1, tol=0, max_iter=300).fit(given[b])
        np.testing.assert_array_equal(peer.labels_, codes[:, b])
        np.testing.assert_allclose(peer.cluster_centers_, found.centers.values[b], rtol=1e-9, atol=1e-9)
    stages = found.stage_inertia.values
    assert (np.diff(stages[:, 0]) <= 1e-9 * stages[0, 0]).all(), "the first stage is K-means"
    assert (np.diff(stages[-1]) < 0).all(), "each stage restores more"
    assert found.attrs["final_inertia"] == pytest.approx((left**2).sum())


@BOTH
def test_an_entry_without_rows_moves_to_the_farthest_row_of_its_book(kind):
    """It gets what the book was given of this row."""
    x = rows_of(200)
    model, params = made(kind, x)
    books = model.split(params.centers.copy())
    books[1][2] = 1e5
    params = Centers(model.joined(books))
    step = EStep(model, params, model.attachments)(Rows(x), KERNELS)
    new = model.m_step(step.stats, params)
    moved, resets = model.reset(new, params, step.stats, step.attached, ())
    assert K + 2 in [each.component for each in resets if each.done]
    assert next(each.reason for each in resets if each.component == K + 2).startswith(kind[:-1] + " 1, no rows")
    _, _, given = coded(kind, x, params.centers)
    own = COLUMNS[1] if kind == "parts" else np.arange(D)
    row = step.attached["far_rows"].of_book[1].row[0]
    empty = int(np.flatnonzero(step.stats.sum_w[1] == 0)[0])
    np.testing.assert_allclose(model.split(moved.centers)[1][empty], given[1][row, own], rtol=1e-9, atol=1e-9)


PREPROCESS = {
    "none": [],
    "standardize": [{"kind": "standardize"}],
    "pca": [{"kind": "pca", "n_components": 5}],
}


@BOTH
@pytest.mark.parametrize(
    "steps", ["standardize", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "pca"))]
)
def test_restored_rows_are_sums_of_entries_in_few_bits(tmp_path, kind, steps):
    """By hand from the codes of `predict`; the bits are those of the entries, and the error that of the restored rows."""
    x = rows_of().astype(np.float32)
    stored = write_rows(tmp_path / "x.zarr", x, 130)
    model = {"family": "kmeans", **(PARTS if kind == "parts" else STAGES)}
    run = workflow.run(job(stored, model=model, fit={"method": "auto"}, preprocess=PREPROCESS[steps]), tmp_path / "run")
    fitted, params, affine = load_model(read_dataset(run / "model.zarr"))
    mapped = x if affine is None else affine.apply(x)
    codes = xr.open_zarr(run / "labels.zarr", consolidated=False).code.values
    np.testing.assert_array_equal(codes, fitted.predict(params, Rows(mapped), 0, KERNELS)["code"])
    each = np.split(np.arange(mapped.shape[1]), np.cumsum([b.n_features for b in fitted.books])[:-1])
    total = (
        np.concatenate([params.centers[code][:, own] for code, own in zip(codes.T, each, strict=True)], axis=1)
        if kind == "parts"
        else summed(kind, codes, params.centers)
    )
    raw = total if affine is None else total @ affine.inverse() + affine.offset
    out = pipeline.compress(run, [], tmp_path / "codes")
    rows = pipeline.decompress(out, [], tmp_path / "rows")
    got = xr.open_zarr(rows / "decompress.zarr", consolidated=False).x.values
    np.testing.assert_allclose(got, raw, rtol=2e-5)
    found = Compressed(out / "compress.zarr")
    assert found.figures.bits == 9 and found.codebook.title == "3 × 6"
    assert found.figures.mean_squared_error == pytest.approx(((x - raw) ** 2).mean(), rel=1e-4)
    compact = kind == "parts" and steps != "pca"
    assert found.figures.codebook_bytes == 4 * K * D * (1 if compact else 3)
    assert "the 3 × 6 centres" in (out / "report.html").read_text()


@BOTH
def test_patches_without_their_mean_come_back(tmp_path, kind):
    """Codes of the entries and of the mean, beside each other."""
    model = {"parts": 3, "n_components": 16} if kind == "parts" else {"stages": 2, "n_components": 16}
    patch = {"size": [4, 4], "stride": 3, "remove_mean": True}
    config = {
        "data": {"source": "bundled", "path": "photographs", "patch": patch},
        "model": {"family": "kmeans", **model},
        "fit": {"effort": "low", "max_iter": 5},
        "output": {"labels": False},
    }
    run = workflow.run(pipeline.jobconfig.validate(config), tmp_path / "run")
    out = pipeline.compress(run, [], tmp_path / "codes")
    found = Compressed(out / "compress.zarr")
    assert found.figures.bits == (12 if kind == "parts" else 8) + 8 and found.codebook.n_values == 16
    assert found.figures.psnr > 24
    restored = pipeline.decompress(out, [], tmp_path / "pictures")
    assert len(list((restored / "pictures").iterdir())) == 2


@BOTH
def test_chunks_workers_and_a_stop_change_no_byte(tmp_path, kind):
    """A run that was stopped and resumed has the bytes of one that was not, on any number of workers; codes have those of other chunks."""
    x = rows_of()
    stored = write_rows(tmp_path / "x.zarr", x, 130)
    model = {"family": "kmeans", **(PARTS if kind == "parts" else STAGES)}
    config = job(stored, model=model, fit={"method": "auto", "max_iter": 8, "effort": "low", "n_init": 2})
    run = workflow.run(config, tmp_path / "whole")
    one = config.model_copy(update={"engine": config.engine.model_copy(update={"workers": 1})})
    assert results(workflow.run(one, tmp_path / "one")) == results(run)
    assert len(read_dataset(run / "model.zarr").attrs["restarts"]) == 2
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "stopped", listeners=[Interrupt("pass", 2)])
    assert command("resume", tmp_path / "stopped").code == 0
    assert results(tmp_path / "stopped") == results(run)
    other = write_rows(tmp_path / "other.zarr", x, 411)
    codes = [
        pipeline.compress(run, [f"data.path={rows}"], tmp_path / f"codes{rows.stem}") / "compress.zarr" / "code"
        for rows in (stored, other)
    ]
    assert files(codes[0]) == files(codes[1])
    shutil.rmtree(tmp_path / "codesx" / "compress.zarr")
    workflow.resume(tmp_path / "codesx")
    assert files(codes[0]) == files(codes[1])


@pytest.mark.slow
def test_more_bits_restore_more(tmp_path):
    """Of digits in 8 bits flat K-means is best, as it can choose among all; 8 x 256 entries, which no flat codebook could number, are far better."""
    error = {}
    for name, model in {
        "flat 256": {"n_components": 256},
        "parts 2 x 16": {"parts": 2, "n_components": 16},
        "stages 2 x 16": {"stages": 2, "n_components": 16},
        "parts 8 x 256": {"parts": 8, "n_components": 256},
        "stages 4 x 16": {"stages": 4, "n_components": 16},
    }.items():
        config = {
            "data": {"source": "bundled", "path": "digits"},
            "model": {"family": "kmeans", **model},
            "fit": {"effort": "low"},
            "output": {"labels": False},
        }
        workflow.run(pipeline.jobconfig.validate(config), tmp_path / name)
        error[name] = read_dataset(tmp_path / name / "model.zarr").attrs["final_inertia"]
    assert error["flat 256"] < min(error["parts 2 x 16"], error["stages 2 x 16"])
    assert error["stages 4 x 16"] < error["stages 2 x 16"]
    assert error["parts 8 x 256"] < 0.25 * error["flat 256"]


def test_an_update_of_a_product_quantiser_counts_both_parts_of_the_rows(tmp_path):
    """Earlier rows keep their codes: the inertia is theirs under these, and that of the new ones. That of stages is refused."""
    x, more = rows_of(), rows_of(400, seed=1)
    run_from(tmp_path, "parts", x)
    others = f"data.path={write_rows(tmp_path / 'more.zarr', more, 130)}"
    assert command("update", tmp_path / "run", "--set", others, "--output", tmp_path / "both").code == 0
    before, after = (read_dataset(tmp_path / each / "model.zarr") for each in ("run", "both"))
    codes = coded("parts", x, before.centers.values)[0]
    centers = after.centers.values
    inertia = ((x - summed("parts", codes, centers)) ** 2).sum() + (coded("parts", more, centers)[1] ** 2).sum()
    assert after.attrs["final_inertia"] == pytest.approx(inertia)
    run_from(tmp_path, "stages", x)
    said = refused("update", tmp_path / "run", "--set", others, "--output", tmp_path / "no")
    assert "the statistics of a residual quantiser do not say" in said


@BOTH
def test_the_pages_have_rate_and_distortion(tmp_path, kind):
    """Bits and error on the first screen, and the chart of parts or stages; a prediction and its page too."""
    x = rows_of()
    found = run_from(tmp_path, kind, x)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rate" in page and "bits a row" in page and f"Error by {kind[:-1]}" in page and "statistics." not in page.split('id="provenance"')[0]  # fmt: skip
    assert f"{found.attrs['final_inertia'] / x.size:.4f}"[:5] in page
    here = f"data.path={tmp_path / 'x.zarr'}"
    assert command("predict", tmp_path / "run", "--set", here, "--output", tmp_path / "again").code == 0
    a, b = (xr.open_zarr(tmp_path / each / "labels.zarr", consolidated=False).load() for each in ("run", "again"))
    assert a.code.dims == ("row", kind[:-1]) and (a.code == b.code).all()
    assert (tmp_path / "again" / "report.html").exists()
    assert command("outliers", tmp_path / "run", "--set", here, "--output", tmp_path / "odd").code == 0


@BOTH
def test_commands_that_need_labels_refuse_it_in_a_sentence(tmp_path, kind):
    """What was found, and what to do."""
    run_from(tmp_path, kind, rows_of(), iterations=2)
    run, name = tmp_path / "run", "product quantiser" if kind == "parts" else "residual quantiser"
    assert f"a {name} has no labels of single rows" in refused("summarize", run, "--output", tmp_path / "no")
    assert f"a {name} has no labels of single rows" in refused(
        "encode", run, "--as", "hard", "--output", tmp_path / "no"
    )
    assert f"a run of a {name}" in refused("sample", run, "--rows", 3, "--output", tmp_path / "no")
    with pytest.raises(InputError, match=f"a {name} has no Python class"):
        pipeline.open_estimator(run)
    assert pipeline.open_run(run).attrs[kind] == 3


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"model": {"parts": 8}}, "model.parts: got 8, but rows have 7 features after preprocess. Set it to at most 7"),
        ({"model": {"parts": 1}}, "model.parts: got 1, expected at least 2"),
        ({"model": {"parts": "a"}}, "model.parts: got 'a'"),
        ({"model": {"stages": 0}}, "model.stages: got 0, expected at least 2"),
        ({"model": {"parts": 2, "stages": 2}}, "model.parts: does not go with stages; leave one of them out"),
        ({"model": {"parts": 2, "levels": [2, 3]}}, "model.levels: does not go with parts; leave one of them out"),
        ({"model": {"parts": 2, "n_components": [4, 8]}}, "give one n_components"),
        ({"model": {"parts": 2, "n_components": 1000}}, "there are 900 rows"),
        ({"model": {"parts": 2}, "fit": {"method": "em"}}, "expected auto for family kmeans with parts"),
        ({"model": {"stages": 2}, "fit": {"init": "near-mean"}}, "fit.init: got near-mean"),
        ({"model": {"stages": 2}, "output": {"top_k": 2}}, "output.top_k: is of labels"),
        ({"model": {"stages": 2}, "output": {"silhouette": True}}, "got family kmeans with stages"),
        ({"model": {"parts": 2}, "data": {"labels": "y.npy"}}, "data.labels"),
        ({"model": {"parts": 2}, "data": {"labels_true": "y.npy"}}, "data.labels_true: is of labels"),
    ],
)
def test_what_is_refused(tmp_path, section, text):
    """One sentence with what was found, what is valid, and what to do."""
    base = {
        "model": {"family": "kmeans"},
        "fit": {"method": "auto", "init": "k-means||"},
        "output": {"path": str(tmp_path / "r")},
    }
    merged = {name: {**base.get(name, {}), **section.get(name, {})} for name in {*base, *section}}
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", rows_of(), 130), **merged)
    if "levels" in section["model"]:
        config.write_text("\n".join(line for line in config.read_text().splitlines() if "n_components" not in line))
    assert text in refused("check", config)
