"""Tables of pandas, polars, Arrow and Dask in the Python classes: names are kept, columns of anything but numbers refused."""

from __future__ import annotations

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import GaussianMixture, KMeans

ROWS = np.random.default_rng(0).normal(size=(40, 2)) + np.arange(2).repeat(20)[:, None] * 6.0
FRAME = pd.DataFrame(ROWS, columns=["width", "height"])


class Exported:
    """A table of some other program, which only exports itself by Arrow's C interface."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.Table.from_pandas(FRAME).__arrow_c_stream__(requested_schema)


def polars(**columns):
    """A table of polars, where that is installed."""
    return pytest.importorskip("polars").DataFrame(columns)


TABLES = {
    "pandas": lambda: FRAME,
    "pandas with types of Arrow": lambda: FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "pandas with object columns of numbers": lambda: FRAME.astype(object),
    "Arrow": lambda: pa.Table.from_pandas(FRAME),
    "a batch of Arrow": lambda: pa.RecordBatch.from_pandas(FRAME),
    "another program's": Exported,
    "polars": lambda: polars(width=ROWS[:, 0], height=ROWS[:, 1]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_its_numbers_with_names(kind):
    """The centres of the plain rows; names are remembered, compared, and on what transform makes."""
    table = TABLES[kind]()
    fitted = KMeans(2, n_init=1, random_state=0).fit(table)
    np.testing.assert_array_equal(fitted.labels_, KMeans(2, n_init=1, random_state=0).fit(ROWS).labels_)
    assert fitted.feature_names_in_.tolist() == ["width", "height"]
    assert fitted.get_feature_names_out().tolist() == ["kmeans0", "kmeans1"]
    np.testing.assert_array_equal(fitted.predict(table), fitted.labels_)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(FRAME.rename(columns={"width": "depth"}))


def test_empty_cells_are_missing_entries():
    """A null of Arrow or pandas is NaN, for a class that has missing entries."""
    numbers = [None, *ROWS[1:, 0]]
    arrow, frame = pa.table({"a": numbers, "b": ROWS[:, 1]}), FRAME.assign(width=pd.array(numbers, dtype="Float64"))
    plain = ROWS.copy()
    plain[0, 0] = np.nan
    options = {"missing": True, "means_init": [[0, 0], [6, 6]], "max_iter": 3, "tol": 1.0, "random_state": 0}
    by_hand = GaussianMixture(2, **options).fit(plain).means_
    for table in (arrow, frame):
        np.testing.assert_array_equal(GaussianMixture(2, **options).fit(table).means_, by_hand)
        with pytest.raises(ValueError, match="NaN"):
            GaussianMixture(2).fit(table)


def test_chunks_of_unknown_size_are_measured():
    """A selection of a Dask array or DataFrame: the result of the same rows, lazy labels, and X as it was."""
    kept = ROWS[ROWS[:, 0] > 0]
    lazy = da.from_array(ROWS, chunks=(15, 2))
    by_hand = KMeans(2, init=[[0, 0], [6, 6]]).fit(da.from_array(kept, chunks=(15, 2)))
    for x in (lazy[lazy[:, 0] > 0], dd.from_pandas(FRAME, npartitions=3).query("width > 0")):
        fitted = KMeans(2, init=[[0, 0], [6, 6]]).fit(x)
        np.testing.assert_allclose(fitted.cluster_centers_, by_hand.cluster_centers_, rtol=1e-12)
        assert isinstance(fitted.labels_, da.Array) and fitted.labels_.shape == (len(kept),)
        np.testing.assert_array_equal(fitted.predict(x).compute(), by_hand.predict(kept))
    assert np.isnan(lazy[lazy[:, 0] > 0].shape[0])


REFUSED = {
    "text": ({"a": ["x"] * 40}, "column 'a' holds no numbers"),
    "numbers as text": ({"a": ["1"] * 40}, "Leave it out, or write it as numbers"),
    "dates": ({"a": pd.date_range("2001", periods=40)}, "column 'a' holds dates or times"),
    "lengths of time": ({"a": pd.timedelta_range("1h", periods=40)}, "column 'a' holds dates or times"),
}


@pytest.mark.parametrize("kind", ["pandas", "Arrow", "Dask", "polars"])
@pytest.mark.parametrize("case", REFUSED)
def test_columns_of_anything_else_are_named(kind, case):
    """Text and times are never read as numbers, whichever table they are in."""
    columns, said = REFUSED[case]
    frame = pd.DataFrame(columns | {"b": ROWS[:, 0]})
    make = {
        "pandas": lambda: frame,
        "Arrow": lambda: pa.Table.from_pandas(frame),
        "Dask": lambda: dd.from_pandas(frame, npartitions=2),
        "polars": lambda: polars(**{name: pa.array(values) for name, values in frame.items()}),
    }
    with pytest.raises(ValueError, match=said):
        KMeans(2).fit(make[kind]())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pd.DataFrame({"a": pd.Categorical(["x", "y"])}), "column 'a' holds no numbers"),
        (pd.DataFrame({"a": pd.Series(["x", 1.0], dtype=object)}), r"column 'a' holds no numbers \(object\)"),
        (pd.DataFrame({"a": [{}, {}]}), r"column 'a' holds no numbers \(object\)"),
        (pd.DataFrame(ROWS, columns=["a", "a"]), "two columns are called 'a'"),
        (np.array(["2001-01-01", "2002-01-01"], "M8[s]")[:, None], "holds dates or times"),
    ],
)
def test_other_tables_are_refused(table, said):
    """One sentence that says what to write."""
    with pytest.raises(ValueError, match=said):
        KMeans(1).fit(table)


def test_a_lazy_frame_is_refused():
    """It holds no rows yet."""
    lazy = polars(a=ROWS[:, 0]).lazy()
    with pytest.raises(ValueError, match=r"Use X.collect\(\)"):
        KMeans(1).fit(lazy)
