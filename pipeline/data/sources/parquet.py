"""Rows in files of parquet or Arrow: whole row groups at a time, columns by name; needs the extra `parquet`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from pipeline.arrays.dtypes import compute_dtype
from pipeline.config import AnyPath, ColumnOrPath
from pipeline.config.paths import is_url
from pipeline.data.categories import (
    CategoriesOption,
    Distinct,
    categories_field,
    refuse_others,
    unknown_category,
    with_columns,
)
from pipeline.data.column import Column
from pipeline.data.files import reading, stored_size
from pipeline.data.row_groups import WHAT, RowGroups, TableFile, pyarrow_of, table_files
from pipeline.data.section import FileSection
from pipeline.data.source import Source, rows_per_target
from pipeline.errors import InputError, did_you_mean


class ParquetSection(FileSection):
    """Files of parquet or Arrow: one, or all of a folder or glob in the order of their names. A null is NaN, hence a bad row."""

    also_called: ClassVar[tuple[str, ...]] = ("arrow", "feather")

    source: Literal["parquet"] = Field(
        "parquet", description="files of parquet, or of Arrow, such as Feather's (extra parquet)"
    )
    path: AnyPath = Field(
        description="a parquet file, a folder of them, a glob such as rows/*.parquet, or an fsspec URL of any of these"
    )
    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="names of the columns that are features; null: all but those of weights and labels and pandas' index",
    )
    index: str | None = Field(
        None,
        description="the column that names a row, of any type: it is no feature, and stands in the table of predict --format",
    )
    categories: CategoriesOption = categories_field
    weights: ColumnOrPath | None = Field(
        None, description="one non-negative weight a row: a column by its name, else the path of a .npy or .zarr"
    )
    labels: ColumnOrPath | None = Field(
        None,
        description="one integer a row; -1, and null in a column: unknown; a column by its name, else the path of a .npy or .zarr",
    )
    labels_true: ColumnOrPath | None = Field(None, description="the class of each row, for the report: as labels")

    def with_columns(self, used: Mapping[str, bool]) -> Self:
        return with_columns(self, used)

    def settled(self) -> Self:
        if not isinstance(self.categories, list):
            return self
        source = self.model_copy(update={"categories": {name: [] for name in self.categories}}).open()
        found = Distinct(self.categories)
        for _, name, values in source.groups.read(0, source.n_rows, self.categories):
            found.add(name, _texts(values.unique()).drop_null().to_pylist())
        return self.model_copy(update={"categories": found.sorted()})

    def open(self) -> ParquetSource:
        if isinstance(self.categories, list):
            return self.settled().open()
        paths = table_files(self.path, self.storage_options)
        tables = [TableFile.open(path, self.storage_options) for path in paths]
        first = tables[0]
        beside = [name for name in (self.weights, self.labels, self.labels_true, self.index) if name in first.columns]
        if self.index is not None and self.index not in {*first.columns, *first.index} - set(self.columns or ()):
            near = did_you_mean(self.index, first.columns) or f", expected one of {', '.join(first.columns)}."
            said = near if self.index not in first.columns else ", or one of data.columns."
            raise InputError(f"data.index: got {self.index!r}, which is no column of {self.path}{said} Correct it.")
        names = self.columns or [name for name in first.columns if name not in beside]
        coded = self.categories or {}
        first.refuse_absent_or_text(names, self.columns is None, coded)
        refuse_others(coded, names)
        used = None if self.columns is None else {*names, *beside}
        for table in tables[1:]:
            table.refuse_other_columns(first, used)
        groups = RowGroups.of(tables, self.storage_options)
        dtypes = [np.int32 if name in coded else first.columns[name].to_pandas_dtype() for name in names]
        return ParquetSource(groups, names, compute_dtype(np.result_type(*dtypes)), coded, self.index)

    def open_column(self, what: str, source: Source) -> Column | None:
        name = getattr(self, what)
        if name is None or not isinstance(source, ParquetSource):
            return None
        first = TableFile.open(source.groups.paths[0], self.storage_options)
        if name in first.columns:
            first.refuse_absent_or_text([name], False, {})
            return ParquetColumn(source.groups, name, -1 if what.startswith("labels") else None)
        if not is_url(name) and not os.path.lexists(name):
            names = ", ".join(first.columns)
            near = did_you_mean(name, first.columns) or "."
            raise InputError(
                f"data.{what}: got {name!r}, expected a column ({names}) or a path that exists{near} Correct it."
            )
        return super().open_column(what, source)


class ParquetSource(Source):
    """Rows of some columns of parquet files: float32 if it represents every value of their types exactly, else float64.

    Parameters
    ----------
    groups : RowGroups
    names : sequence of str
        Of the columns.
    dtype : numpy.dtype
    categories : dict
        Names of the categories of some columns.
    index : str or None
        The column that names a row.
    """

    def __init__(
        self,
        groups: RowGroups,
        names: Sequence[str],
        dtype: np.dtype[Any],
        categories: Mapping[str, list[str]],
        index: str | None = None,
    ) -> None:
        self._index = index
        self.groups, self._names, self._categories = groups, list(names), dict(categories)
        self.n_features, self.dtype = len(names), dtype
        self.bounds = groups.bounds(rows_per_target(self.n_features, dtype.itemsize))

    def read(self, i: int) -> np.ndarray:
        start, stop = int(self.bounds[i]), int(self.bounds[i + 1])
        x = np.empty((stop - start, self.n_features), self.dtype)
        place = {name: j for j, name in enumerate(self._names)}
        for row, name, values in self.groups.read(start, stop, self._names):
            own = self._categories.get(name)
            found = _numbers(values) if own is None else _codes(values, name, own, row)
            x[row - start : row - start + len(values), place[name]] = found
        return x

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if self._index is None:
            return {}
        found = list(self.groups.read(start, stop, [self._index]))
        values = np.concatenate([each.to_pandas().to_numpy() for _, _, each in found])
        return {self._index: values[start - found[0][0] :][: stop - start]}

    def describe(self) -> dict[str, Any]:
        coded = {"categories": self._categories} if self._categories else {}
        return {"kind": "rows", "features": self._names, **coded}

    def object_sizes(self) -> list[int]:
        with reading(self.groups.paths[0]):
            return [stored_size(path, self.groups.options) for path in self.groups.paths]


@dataclass(frozen=True)
class ParquetColumn:
    """A column of parquet files. null : replaces a null; None for NaN."""

    groups: RowGroups
    name: str
    null: int | None

    def decoding(self) -> int:
        """Return the bytes of the largest row group, as Arrow and NumPy hold it."""
        return 16 * int(np.diff(self.groups.starts).max())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of rows start:stop, shape (stop - start,)."""
        found = list(self.groups.read(start, stop, [self.name]))
        values = [_numbers(each if self.null is None else each.fill_null(self.null)) for _, _, each in found]
        return np.concatenate(values)[start - found[0][0] :][: stop - start]


def _codes(values: Any, name: str, categories: list[str], start: int) -> np.ndarray:
    """Codes of a column of categories; a null is NaN. Raises InputError for what is none of them. start : row of the first value."""
    arrow, texts = pyarrow_of(WHAT), _texts(values)
    codes = arrow.compute.index_in(texts, arrow.array(categories, arrow.string()), skip_nulls=True)
    if codes.null_count > texts.null_count:
        row = int(np.argmax(np.asarray(codes.is_null()) & np.asarray(texts.is_valid())))
        raise unknown_category(texts[row].as_py(), f"data.path, row {start + row}", name, categories)
    return _numbers(codes)


def _texts(values: Any) -> Any:
    """A column as text. Whole numbers have no point, and truth is false or true."""
    arrow = pyarrow_of(WHAT)
    values = values.cast(values.type.value_type) if arrow.types.is_dictionary(values.type) else values
    return values.cast(arrow.string())


def _numbers(values: Any) -> np.ndarray:
    """A column as a NumPy array; a null is NaN, which makes integers float64."""
    arrow = pyarrow_of(WHAT)
    return np.asarray((values.cast(arrow.uint8()) if arrow.types.is_boolean(values.type) else values).to_numpy())
