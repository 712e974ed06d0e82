"""How good labels are: scikit-learn's figures where it has them, from labels.zarr alone, and in the report."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, xlogy
from scipy.stats import multivariate_normal
from sklearn import metrics

from pipeline.data.column import MemoryColumn
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.models.separation import Separation
from pipeline.outputs import measures as measures_module
from pipeline.outputs.measures import agreement, measures
from pipeline.outputs.report.formatting import number
from pipeline.workflow import open_run, predict, resume, run

RNG = np.random.default_rng(3)
CENTERS = RNG.normal(size=(4, 3)) * 4
CLASSES = RNG.integers(0, 4, 400)
X = CENTERS[CLASSES] + RNG.normal(size=(400, 3))
KNOWN = np.where(np.arange(400) % 5 == 0, -1, CLASSES * 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished K-means of a table whose column `kind` has the classes of most rows."""
    folder = tmp_path_factory.mktemp("made")
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(kind=KNOWN)
    frame.to_parquet(folder / "x.parquet", index=False)
    config = {
        "data": {"source": "parquet", "path": str(folder / "x.parquet"), "labels_true": "kind"},
        "model": {"family": "kmeans", "n_components": 4},
        "fit": {"tol": 0},
        "output": {"path": str(folder / "run"), "silhouette": True},
    }
    return run(validate(config))


def test_measures_are_those_of_scikit_learn(made, monkeypatch):
    """The indices of the whole labels; the simplified silhouette by hand; agreement over rows whose class is known."""
    group = zarr.open_group(made / "labels.zarr", mode="r")
    label, found = group["label"][:], group.attrs["measures"]
    assert found["davies_bouldin"] == pytest.approx(metrics.davies_bouldin_score(X, label), rel=1e-9)
    assert found["calinski_harabasz"] == pytest.approx(metrics.calinski_harabasz_score(X, label), rel=1e-9)
    centers = np.array([X[label == k].mean(axis=0) for k in range(4)])
    a, b = np.sort(cdist(X, centers), axis=1)[:, :2].T
    np.testing.assert_allclose(group["silhouette"][:], (b - a) / b, rtol=1e-5, atol=1e-6)
    assert found["silhouette"] == pytest.approx(((b - a) / b).mean(), rel=1e-6)
    seen = KNOWN >= 0
    assert found["adjusted_rand"] == pytest.approx(metrics.adjusted_rand_score(KNOWN[seen], label[seen]))
    mutual = metrics.normalized_mutual_info_score(KNOWN[seen], label[seen])
    assert found["normalized_mutual_information"] == pytest.approx(mutual)
    table = metrics.cluster.contingency_matrix(label[seen], KNOWN[seen])
    assert found["purity"] == table.max(axis=1).sum() / seen.sum() and found["rows_with_class"] == seen.sum()
    confusion = found["confusion"]
    assert confusion["classes"] == [0, 10, 20, 30]
    np.testing.assert_array_equal(np.array(confusion["rows"]), table[confusion["labels"]])
    assert found["matched"] == np.trace(np.array(confusion["rows"])) / seen.sum()
    monkeypatch.setattr(measures_module, "_ROWS", 64)  # of labels at a time
    again = zarr.open_group(predict(made), mode="r").attrs["measures"]
    assert again["confusion"] == confusion
    assert {name: again[name] for name in found if name != "confusion"} == pytest.approx(
        {name: found[name] for name in found if name != "confusion"}
    )


def test_the_report_has_them(made):
    """Facts of the first screen, and the table."""
    text = (made / "report.html").read_text()
    for said in ("Silhouette", "Davies-Bouldin", "Calinski-Harabasz", "Adjusted Rand index", "Labels and classes"):
        assert said in text, said


@pytest.mark.parametrize("case", range(40))
def test_agreement_of_any_labels(case):
    """Of random labels, of one class, of one label, and of equal ones."""
    rng = np.random.default_rng(case)
    n = int(rng.integers(2, 40))
    label, known = rng.integers(0, rng.integers(1, 6), n), rng.integers(0, rng.integers(1, 6), n)
    known = label if case % 7 == 0 else known
    rows, columns = np.unique(label), np.unique(known)
    found = agreement(rows, columns, metrics.cluster.contingency_matrix(label, known))
    assert found["adjusted_rand"] == pytest.approx(metrics.adjusted_rand_score(known, label), abs=1e-12)
    expected = metrics.normalized_mutual_info_score(known, label)
    assert found["normalized_mutual_information"] == pytest.approx(expected, abs=1e-9)
    assert found["matched"] <= found["purity"] <= 1


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        ({"labels_true": "kinds"}, {}, "data.labels_true: got 'kinds', expected a column (a, b, c, kind) or a path"),
        ({}, {"model": {"family": "gaussian"}}, "output.silhouette: is for family kmeans"),
        (
            {"labels_true": "kind"},
            {"output": {"labels": False}},
            "data.labels_true: is compared with labels; set output.labels",
        ),
        ({"labels": "kind"}, {}, "with output.labels and without data.labels"),
    ],
)
def test_what_cannot_be_measured_is_refused(made, data, more, said):
    """Before the fit."""
    config = {
        "data": {"source": "parquet", "path": str(made.parent / "x.parquet"), **data},
        "model": {"family": "kmeans"},
        "output": {"silhouette": True},
    } | more
    with pytest.raises(InputError) as error:
        validate(config).open_chunks()
    assert said in str(error.value)


def test_classes_are_whole_numbers(made):
    """A class of 1.5 is named by its row."""
    group = zarr.open_group(made / "labels.zarr", mode="r")
    for wrong in (1.5, -2, np.nan):
        values = np.where(np.arange(400) == 7, wrong, 1.0)
        with pytest.raises(InputError, match=r"data.labels_true: row 7 has .*, expected a whole number from 0"):
            measures(group, None, MemoryColumn(values))


def test_separation_adds_and_is_that_of_scikit_learn():
    """Of some rows and others it is that of all; a cluster without rows counts in none; one cluster has none."""
    label = np.where(CLASSES == 3, 2, CLASSES)
    centers = np.array([*(X[label == k].mean(axis=0) for k in range(3)), np.zeros(3)])
    square = ((X - centers[label]) ** 2).sum(axis=1)
    each = np.arange(len(X)) / len(X)
    parts = [Separation.of(label[s], square[s], 4, each[s]) for s in (slice(0, 150), slice(150, None))]
    found = (parts[0] + parts[1]).measures(centers)
    assert found["davies_bouldin"] == pytest.approx(metrics.davies_bouldin_score(X, label), rel=1e-9)
    assert found["calinski_harabasz"] == pytest.approx(metrics.calinski_harabasz_score(X, label), rel=1e-9)
    assert found["silhouette"] == pytest.approx(each.mean(), rel=1e-12)
    assert Separation.of(np.zeros(9, int), np.ones(9), 1, None).measures(np.zeros((1, 3))) == {}


@pytest.mark.parametrize(
    "criterion",
    ["silhouette", *(pytest.param(name, marks=pytest.mark.slow) for name in ("davies_bouldin", "calinski_harabasz"))],
)
def test_the_number_of_clusters_is_chosen_by_separation(tmp_path, criterion):
    """Four clusters that are apart; the table has what scikit-learn says of each candidate, and `resume` writes it again."""
    np.save(tmp_path / "x.npy", X * [1, 1, 1] + 20 * np.eye(4)[CLASSES][:, :3])
    config = {
        "data": {"source": "npy", "path": str(tmp_path / "x.npy")},
        "model": {"family": "kmeans", "n_components": [1, 3, 4, 6]},
        "select": {"criterion": criterion},
        "output": {"path": str(tmp_path / "run")},
    }
    made = run(validate(config))
    model = open_run(made)
    table = model.attrs["candidates"]
    assert [entry["n_components"] for entry in table if entry["chosen"]] == [4] == [model.sizes["component"]]
    assert criterion not in table[0]
    rows = np.load(tmp_path / "x.npy")
    for k, centers in {4: model.centers.values, **other_centers(made)}.items():
        entry = next(entry for entry in table if entry["n_components"] == k)
        distance = cdist(rows, centers)
        assert entry["final_inertia"] == pytest.approx((distance.min(axis=1) ** 2).sum(), rel=1e-6)
        if k > 1:
            label, (a, b) = distance.argmin(axis=1), np.sort(distance, axis=1)[:, :2].T
            assert entry["silhouette"] == pytest.approx(((b - a) / b).mean(), rel=1e-5)
            assert entry["davies_bouldin"] == pytest.approx(metrics.davies_bouldin_score(rows, label), rel=1e-6)
            assert entry["calinski_harabasz"] == pytest.approx(metrics.calinski_harabasz_score(rows, label), rel=1e-6)
    names = {"silhouette": "mean silhouette", "davies_bouldin": "Davies-Bouldin index"}
    page = (made / "report.html").read_text(encoding="utf-8")
    assert f"By {names.get(criterion, 'Calinski-Harabasz index')}." in page and "One cluster has none of them." in page
    assert ">squared distance per row</th>" in page and ">parameters</th>" not in page
    ends = [table[i]["final_inertia"] / len(rows) / 3 for i in (0, 3)]
    said = f"goes from {number(ends[0], 3)} at {number(0.0, 3)} bits per row to {number(ends[1], 3)} at {number(np.log2(6), 3)} bits"
    assert "Rate and distortion" in page and said in page
    for name in ("model.zarr", "candidates.zarr", "labels.zarr"):
        shutil.rmtree(made / name)
    resume(made)
    assert open_run(made).attrs["candidates"] == table


def other_centers(made) -> dict[int, np.ndarray]:
    """The centres of the candidates that were not chosen, by their number."""
    groups = zarr.open_group(made / "candidates.zarr", mode="r").groups()
    return {group["centers"].shape[0]: group["centers"][:] for _, group in groups}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"model": {"family": "gaussian"}, "select": {"criterion": "silhouette"}},
            "which family gaussian does not know",
        ),
        ({"model": {"family": "kmeans", "n_components": [2, 3]}}, "choose by silhouette or davies_bouldin"),
        ({"model": {"family": "kmeans"}, "select": {"heldout": 0.1}}, "no likelihood of held-out rows; leave it out"),
        ({"model": {"family": "spherical-kmeans", "n_components": [2, 3]}}, "has no likelihood to choose by"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(raw, message):
    """In one sentence."""
    with pytest.raises(InputError, match=message):
        validate(raw)


@pytest.mark.parametrize("noise", [None, "uniform"])
def test_overlap_is_that_of_all_rows_one_by_one(tmp_path, noise):
    """Responsibilities by scipy's densities, summed over the rows of each label; weights count; noise rows are left out."""
    rng = np.random.default_rng(11)
    x = np.concatenate([rng.normal(size=(500, 2)) + at for at in ([0, 0], [2, 0], [0, 7])])
    x = np.concatenate([x, rng.uniform(-20, 20, (60, 2))])[rng.permutation(1560)]
    weight = rng.integers(1, 4, len(x)).astype(float)
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(97, 2))
    np.save(tmp_path / "w.npy", weight)
    config = {
        "data": {"source": "zarr", "path": str(tmp_path / "x.zarr"), "weights": str(tmp_path / "w.npy")},
        "model": {"n_components": 3, "noise": noise},
        "output": {"path": str(tmp_path / "run"), "overlap": True},
    }
    made = run(validate(config))
    model, k = open_run(made), 3
    joint = np.stack(
        [
            np.log(model.weights.values[j])
            + multivariate_normal(model.means.values[j], model.covariances.values[j]).logpdf(x)
            for j in range(k)
        ],
        axis=1,
    )
    if noise:
        tau, volume = float(model.noise), np.prod(np.ptp(x, axis=0))
        joint = np.column_stack([joint + np.log(1 - tau), np.full(len(x), np.log(tau / volume))])
    resp = np.exp(joint - logsumexp(joint, axis=1)[:, None])
    label = joint.argmax(axis=1)
    expected = np.stack([weight[label == j] @ resp[label == j, :k] for j in range(k)], axis=1)
    np.testing.assert_allclose(model.overlap.values, expected, rtol=1e-6, atol=1e-6)
    assert model.overlap.dims == ("component", "label")
    entropy = -float((weight[:, None] * xlogy(resp, resp)).sum())
    text = (made / "report.html").read_text()
    errors = 1 - np.trace(expected) / expected.sum()
    for said in ("Expected errors", f"{100 * errors:.1f}", "Entropy", f"{entropy / weight.sum():.3g}", "Of all rows"):
        assert said in text, said
