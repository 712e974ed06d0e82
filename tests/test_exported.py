"""Labels as a table: a line a row, joined to what names the row in the input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from pipeline.data.sources.images import ImagesSection
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.workflow import predict, run
from tests.jobs import blobs

N = 300
NAMES = [f"station {i % 7}/{i}" for i in range(N)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run over a parquet file whose column `id` names the rows, and the folder."""
    folder = tmp_path_factory.mktemp("made")
    frame = pd.DataFrame(blobs(N), columns=["a", "b", "c"][: blobs(N).shape[1]]).assign(id=NAMES)
    pq.write_table(pa.Table.from_pandas(frame), folder / "rows.parquet", row_group_size=70)
    frame.to_csv(folder / "rows.csv", index=False)
    config = {
        "data": {"source": "parquet", "path": str(folder / "rows.parquet"), "index": "id"},
        "model": {"family": "kmeans", "n_components": 3},
        "fit": {"method": "em", "max_iter": 2},
        "output": {"path": str(folder / "run"), "top_k": 2},
    }
    return run(validate(config)), folder


def test_the_index_is_no_feature_and_names_the_rows(made, monkeypatch):
    """A table of the run's own rows: row, id, label and the other arrays; labels are those of labels.zarr, which stays as it is."""
    path, _ = made
    monkeypatch.setattr("pipeline.outputs.exported.TABLE_ROWS", 64)
    before = {file: file.stat().st_mtime_ns for file in (path / "labels.zarr").rglob("*")}
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        table = read(predict(path, form=form))
        assert list(table.columns[:3]) == ["row", "id", "label"] and len(table) == N
        assert table["id"].tolist() == NAMES and table["row"].tolist() == list(range(N))
        stored = zarr.open_group(path / "labels.zarr", mode="r")
        np.testing.assert_array_equal(table["label"], stored["label"][:])
        ranked = sorted(name for name in table.columns if name.endswith(("_0", "_1")))
        assert ranked, table.columns
        for name in ranked:
            np.testing.assert_array_equal(table[name], stored[name[:-2]][:, int(name[-1])].astype(table[name].dtype))
    assert before == {file: file.stat().st_mtime_ns for file in (path / "labels.zarr").rglob("*")}


def test_rows_of_another_file_have_its_index(made, tmp_path):
    """Other rows, from text, with the names of their own; the same command again writes the same table."""
    path, folder = made
    asked = ["data.source=csv", f"data.path={folder / 'rows.csv'}", "data.columns=null"]
    first = predict(path, asked, tmp_path / "there", form="csv")
    text = first.read_bytes()
    assert predict(path, asked, tmp_path / "there", form="csv").read_bytes() == text
    table = pd.read_csv(first)
    assert table["id"].tolist() == NAMES
    np.testing.assert_array_equal(table["label"], pd.read_csv(predict(path, form="csv"))["label"])


def test_patches_are_named_by_picture_and_place(tmp_path):
    """The picture and the top left pixel of each row."""
    for i, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.arange(30 + 6 * i, dtype=np.uint8).reshape(5 + i, 6)).save(tmp_path / name)
    source = ImagesSection(path=str(tmp_path), patch={"size": [2, 3], "stride": 2, "remove_mean": False}).open()
    x = np.concatenate([source.read(i) for i in range(source.n_chunks)]) * 255
    keys = source.keys(1, source.n_rows)
    pixels = {"a.png": np.arange(30).reshape(5, 6), "b.png": np.arange(36).reshape(6, 6)}
    for row, picture, y, x0 in zip(x[1:], keys["picture"], keys["y"], keys["x"], strict=True):
        np.testing.assert_allclose(row.reshape(2, 3), pixels[picture][y : y + 2, x0 : x0 + 3], atol=1e-4)
    assert set(keys["picture"]) == {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("parquet", {"index": "ident"}, "data.index: got 'ident', which is no column of "),
        ("parquet", {"index": "id", "columns": ["a", "id"]}, ", or one of data.columns. Correct it."),
        ("csv", {"index": "ids"}, "data.index: got 'ids', which is no column of "),
        ("csv", {"index": "a", "columns": ["a"]}, "data.index: 'a' is one of data.columns"),
        ("csv", {"index": 9, "header": False}, "data.index: got 9, which is no column of "),
    ],
)
def test_an_index_that_is_none_is_refused(made, source, options, said):
    """It must be a column, and none of the features."""
    data = {"source": source, "path": str(made[1] / f"rows.{source}"), **options}
    with pytest.raises(InputError) as error:
        validate({"data": data}).open_chunks()
    assert said in str(error.value)


def test_a_format_that_is_none_is_refused(made):
    """Before anything is computed."""
    with pytest.raises(InputError, match="got 'xlsx', expected zarr, parquet, csv or geotiff"):
        predict(made[0], form="xlsx")
