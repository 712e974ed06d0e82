"""Latent classes over columns of different kinds, and columns whose values are names of categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy.special import logsumexp
from scipy.stats import norm, poisson

import pipeline
from pipeline.data.categories import MOST
from pipeline.data.sources.csv import CsvSection
from pipeline.errors import InputError
from pipeline.models.clusters import NoRows
from pipeline.models.families.columns import Columns, ColumnsSection
from pipeline.models.mixture import Mixture
from tests.jobs import Interrupt, command, refused, results
from tests.laws.common import chunks_of, e_step, fit
from tests.test_families import MIXED, mixed
from tests.test_missing import with_gaps

RNG = np.random.default_rng
REGIONS = ["east", "north", "south"]


def model_of(k: int = 3, concentration: float = 1.0, reg_covar: float = 0.0) -> Mixture:
    """Of the columns of `mixed`."""
    many = np.array([1, 1, 3, 1, 1])
    return Mixture(
        Columns(k, mixed(RNG(0)).mean(axis=0), tuple(MIXED), tuple(MIXED.values()), many, reg_covar, concentration)
    )


def start_of(k: int = 3) -> dict[str, np.ndarray]:
    """A start for these, which is not the answer."""
    rng = RNG(1)
    return {
        "weights": np.arange(1.0, k + 1) / np.arange(1.0, k + 1).sum(),
        "gaussian_means": np.array([25.0, 45.0]) + 10.0 * rng.random((k, 2)),
        "gaussian_covariances": rng.uniform(30.0, 90.0, (k, 2)),
        "poisson_rates": rng.uniform(2.0, 5.0, (k, 1)),
        "bernoulli_probabilities": rng.uniform(0.2, 0.8, (k, 1)),
        "categorical_probabilities": rng.dirichlet(np.ones(3), (k, 1)),
    }


def slow_em(
    x: np.ndarray, start: dict[str, np.ndarray], n_iter: int, prior: float
) -> tuple[dict[str, np.ndarray], list[float]]:
    """EM with scipy's densities, class by class and column by column, of the entries that are there."""
    p, history = {name: value.copy() for name, value in start.items()}, []
    k, there = len(p["weights"]), ~np.isnan(x)
    x = np.where(there, x, 0.0)
    for _ in range(n_iter):
        joint = np.empty((len(x), k))
        for c in range(k):
            yes = p["bernoulli_probabilities"][c, 0]
            terms = [np.zeros(0)] * 5
            terms[1] = poisson(p["poisson_rates"][c, 0]).logpmf(x[:, 1])
            for j, column in enumerate((0, 4)):
                deviation = p["gaussian_covariances"][c, j] ** 0.5
                terms[column] = norm(p["gaussian_means"][c, j], deviation).logpdf(x[:, column])
            terms[2] = np.log(p["categorical_probabilities"][c, 0, x[:, 2].astype(int)])
            terms[3] = np.where(x[:, 3] == 1, np.log(yes), np.log(1 - yes))
            joint[:, c] = np.log(p["weights"][c]) + np.where(there, np.stack(terms, axis=1), 0.0).sum(axis=1)
        history.append(float(logsumexp(joint, axis=1).sum()))
        r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        p["weights"] = r.sum(axis=0) / r.sum()
        for c in range(k):
            own = r[:, c, None] * there
            n = own.sum(axis=0)
            for j, column in enumerate((0, 4)):
                p["gaussian_means"][c, j] = own[:, column] @ x[:, column] / n[column]
                squares = (x[:, column] - p["gaussian_means"][c, j]) ** 2
                p["gaussian_covariances"][c, j] = own[:, column] @ squares / n[column]
            p["poisson_rates"][c, 0] = (own[:, 1] @ x[:, 1] + prior - 1) / n[1]
            p["bernoulli_probabilities"][c, 0] = (own[:, 3] @ x[:, 3] + prior - 1) / (n[3] + 2 * (prior - 1))
            counts = np.array([own[x[:, 2] == v, 2].sum() + prior - 1 for v in range(3)])
            p["categorical_probabilities"][c, 0] = counts / counts.sum()
    return p, history


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("prior", [1.0, 1.5])
def test_it_equals_a_slow_reference(prior: float, missing: bool) -> None:
    """Ten iterations from one start, in two chunks: parameters and log-likelihoods agree to 1e-10, with missing entries too."""
    x, start = mixed(RNG(0), 300), start_of()
    model = model_of(concentration=prior)
    if missing:
        x, model = with_gaps(x, 0.3, RNG(1)), model.for_rows("missing")
    expected, history = slow_em(x, start, 10, prior)
    run, _ = fit(model, model.params_from_arrays(start), chunks_of(x, [0, 70, 300]), 10)
    for name, value in model.arrays(run.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, err_msg=name)
    np.testing.assert_allclose([entry.log_likelihood for entry in run.history], history, rtol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_one_iteration_is_that_of_stepmix(missing: bool) -> None:
    """From StepMix's parameters of a mixed model after one iteration, ours after nine more are its own after ten, to 1e-6."""
    stepmix, pandas = pytest.importorskip("stepmix.stepmix"), pytest.importorskip("pandas")
    x = mixed(RNG(0))[:, [0, 4, 3, 2]]
    x = with_gaps(x, 0.3, RNG(1)) if missing else x
    kinds = {"age": "gaussian", "income": "gaussian", "smoker": "bernoulli", "region": "categorical"}
    frame, of_missing = pandas.DataFrame(x, columns=list(kinds)), "_nan" if missing else ""
    measurement = {
        "age": {"model": f"gaussian_diag{of_missing}", "n_columns": 2},
        "smoker": {"model": f"binary{of_missing}", "n_columns": 1},
        "region": {"model": f"categorical{of_missing}", "n_columns": 1},
    }

    def theirs(n_iter: int) -> tuple[dict[str, np.ndarray], float]:
        found = stepmix.StepMix(
            3, measurement=measurement, max_iter=n_iter, abs_tol=1e-300, rel_tol=0, random_state=0, progress_bar=0
        )
        with pytest.warns(Warning):  # that it has not converged
            found.fit(frame)
        p = found.get_parameters()
        own = p["measurement"]
        arrays = {
            "weights": p["weights"],
            "gaussian_means": own["age"]["means"],
            "gaussian_covariances": own["age"]["covariances"],
            "bernoulli_probabilities": own["smoker"]["pis"],
            "categorical_probabilities": own["region"]["pis"].reshape(3, 1, 3),
        }
        return arrays, found.score(frame) * len(x)

    (start, _), (expected, score) = theirs(1), theirs(10)
    many = np.array([1, 1, 1, 3])
    model = Mixture(Columns(3, np.nanmean(x, axis=0), tuple(kinds), tuple(kinds.values()), many, 0.0, 1.0))
    model = model.for_rows("missing") if missing else model
    run, _ = fit(model, model.params_from_arrays(start), chunks_of(x), 9)
    for name, value in model.arrays(run.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert run.log_likelihood == pytest.approx(score, abs=1e-6 * len(x))


def test_free_numbers_are_those_of_the_kinds() -> None:
    """Means and variances, rates, probabilities, and one less than the categories; and the weights."""
    assert model_of().n_free_parameters() == 2 + 3 * (2 * 2 + 1 + 1 + 2)


@pytest.mark.parametrize(("column", "value"), [(1, -1.0), (1, 2.5), (2, 3.0), (3, 2.0)])
def test_a_value_that_its_kind_cannot_have_is_named_by_its_row(column: int, value: float) -> None:
    """Counts below 0 or broken, codes beyond the last category, and answers other than 0 and 1."""
    x, model = mixed(RNG(0)), model_of()
    x[7, column] = value
    with pytest.raises(InputError, match=r"row 7: .*does not fit the kind of its column"):
        e_step(model, model.params_from_arrays(start_of()), x)


def people(path: Path, n: int = 300, seed: int = 0) -> Path:
    """A text table with names of regions, and yes or no; one region is missing."""
    x = mixed(RNG(seed), n)
    lines = ["age,visits,region,smoker,income"]
    for i, (age, visits, region, smoker, income) in enumerate(x):
        name = "" if i == 5 else REGIONS[int(region)]
        lines.append(f"{age:.3f},{visits:.0f},{name},{'yes' if smoker else 'no'},{income:.3f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def as_parquet(text: Path) -> Path:
    """The same table as parquet, with null for the missing region."""
    arrow = pytest.importorskip("pyarrow")
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    convert = csv.ConvertOptions(strings_can_be_null=True, null_values=[""])
    table = csv.read_csv(text, convert_options=convert)
    at = table.schema.get_field_index("region")
    table = table.set_column(at, "region", table.column("region").dictionary_encode())
    assert arrow.types.is_dictionary(table.schema.field("region").type)
    parquet.write_table(table, text.with_suffix(".parquet"), row_group_size=100)
    return text.with_suffix(".parquet")


def settings(path: Path, **data: Any) -> dict[str, Any]:
    """A short job on such a table."""
    source = "parquet" if path.suffix == ".parquet" else "csv"
    named = {"categories": ["region", "smoker"], "bad_rows": "drop", **data}
    return {
        "data": {"source": source, "path": str(path), **named},
        "model": {"family": "columns", "n_components": 2, "columns": MIXED},
        "fit": {"method": "em", "init": "random", "max_iter": 4, "tol": 0},
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_categories_by_name_from_the_table_to_the_report(kind: str, tmp_path: Path) -> None:
    """Names are found, stored and shown; a run goes on after a stop with the same bytes; a new name is refused by name and row.

    The row without a region is dropped from the text, and counts without it in parquet.
    """
    path = people(tmp_path / "people.csv")
    path = path if kind == "csv" else as_parquet(path)
    config = tmp_path / "job.yaml"
    bad_rows = "drop" if kind == "csv" else "missing"
    config.write_text(json.dumps({**settings(path, bad_rows=bad_rows), "output": {"path": str(tmp_path / "run")}}))
    whole = pipeline.run(pipeline.load_config(config), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(pipeline.load_config(config), listeners=[Interrupt("pass", 2)])
    assert command("resume", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)
    found = pipeline.open_run(whole)
    assert found.attrs["data"]["categories"] == {"region": REGIONS, "smoker": ["no", "yes"]}
    assert found.attrs["dropped_rows"] == (bad_rows == "drop")
    labels = zarr.open_group(whole / "labels.zarr", mode="r")["label"][:]
    assert np.flatnonzero(labels == -1).tolist() == ([5] if bad_rows == "drop" else [])
    assert found.gaussian_column.values.tolist() == ["age", "income"]
    assert found.categorical_probabilities.shape == (2, 1, 3)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert all(f"region: {name}" in page for name in REGIONS) and "visits" in page
    # Rows in which a region is missing altogether have the codes of the run; a new one has none.
    other = people(tmp_path / "other.csv", 60, 1)
    other.write_text("\n".join(line for line in other.read_text().splitlines() if ",east," not in line))
    new = tmp_path / "new.csv"
    new.write_text(other.read_text().replace("south", "west", 1))
    other, new = (each if kind == "csv" else as_parquet(each) for each in (other, new))
    assert command("predict", whole, "--set", f"data.path={other}", "--output", tmp_path / "p").code == 0
    message = refused("predict", whole, "--set", f"data.path={new}", "--output", tmp_path / "q")
    assert "column 'region': got the category 'west', expected one of east, north, south" in message


def test_codes_are_the_same_from_text_and_parquet(tmp_path: Path) -> None:
    """Numbers that name categories are in the order of numbers; a missing one is NaN; order may be given."""
    text = people(tmp_path / "people.csv", 40)
    of_text, of_parquet = (
        pipeline.jobconfig.validate(settings(path)).resolved().settled().open_chunks().source
        for path in (text, as_parquet(text))
    )
    np.testing.assert_array_equal(of_text.read(0), of_parquet.read(0))
    assert np.isnan(of_text.read(0)[5, 2]) and of_text.read(0)[:, 3].max() == 1
    (tmp_path / "n.csv").write_text("a,b\n10,x\n9,y\n10,x\n")
    found = CsvSection(path=str(tmp_path / "n.csv"), categories=["a"], columns=["a"]).settled()
    assert found.categories == {"a": ["9", "10"]}
    given = CsvSection(path=str(tmp_path / "n.csv"), categories={"a": ["10", "9"], "b": ["y", "x"]}).open()
    assert given.read(0).tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": ["regoin"]}, "data.categories: got 'regoin'"),
        ({"categories": {"region": ["east", "east"]}}, "expected different names"),
        ({"categories": {"region": ["east"], "smoker": ["no", "yes"]}}, "got the category"),
        ({"categories": {"region": REGIONS}}, "name it in data.categories"),
        ({"columns": ["age", "region"]}, "data.columns: got age, region, expected the columns of model.columns"),
    ],
)
def test_wrong_categories_are_refused_with_what_to_write(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Of no column, given twice, not all of them, of text that is not named, and of other columns than the model's."""
    config = tmp_path / "job.yaml"
    config.write_text(
        json.dumps(
            {**settings(people(tmp_path / "people.csv", 40), **changes), "output": {"path": str(tmp_path / "run")}}
        )
    )
    assert message in refused("run", config)


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({}, ["a"], "model.columns: got none"),
        ({"a": "gaussian", "c": "poisson"}, ["a", "b"], "got 'c', expected a name"),
        ({"a": "gaussian"}, ["a", "b"], "got no kind for column 'b'"),
        ({"a": "gaussian"}, None, "expected a position"),
        ({"b": "gaussian", "a": "poisson"}, ["a", "b"], "Write them in one order"),
    ],
)
def test_columns_that_are_not_those_of_the_rows_are_refused(columns: dict[str, str], names: Any, message: str) -> None:
    """None, unknown ones, missing ones, names where there are positions, and another order."""
    with pytest.raises(InputError, match=message):
        ColumnsSection.model_validate({"columns": columns}).refuse_features(names, 1 if names is None else len(names))


def test_the_number_of_categories() -> None:
    """From the largest code, or as it is given; a column of numbers is no categorical one."""
    section, summary = ColumnsSection.model_validate({"columns": {"a": "categorical", "b": "gaussian"}}), NoRows(2)
    summary.high = np.array([3.0, 1e9])
    assert section.build(summary, "soft").component.categories.tolist() == [4, 1]
    assert section.with_categories({"a": 6}).build(summary, "soft").component.categories.tolist() == [6, 1]
    summary.high = np.array([MOST + 1.0, 0.0])
    with pytest.raises(InputError, match="column 'a': got the code"):
        section.build(summary, "soft")


def test_the_python_class_takes_a_table_by_its_names() -> None:
    """A pandas table, by names; another order of columns is refused."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(mixed(RNG(0)), columns=list(MIXED))
    found = pipeline.ColumnsMixture(2, columns=MIXED, random_state=0, init_params="random", max_iter=5, tol=1.0).fit(
        table
    )
    assert found.gaussian_means_.shape == (2, 2) and set(found.predict(table)) <= {0, 1}
    with pytest.raises(ValueError, match="Write them in one order"):
        pipeline.ColumnsMixture(2, columns=MIXED).fit(table[["income", "age", "visits", "region", "smoker"]])
