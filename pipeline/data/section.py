"""What the `data` sections of all sources have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import AnyPath, LocalPath, Variant
from pipeline.config.paths import is_url
from pipeline.data.chunks import Chunks
from pipeline.data.column import Column, RowColumn
from pipeline.data.source import Source
from pipeline.data.units import UnitSource, unit_starts
from pipeline.errors import InputError


class DataSection(Variant):
    """What to read. A source derives from this, with `source` a Literal of its name, options of its own, and `open`.

    Attributes
    ----------
    sparse : bool
        Whether rows are sparse counts, which are never made dense.
    reads_files, reads_stores : bool
        Whether rows come from files, or from zarr stores, beside weights and labels.
    takes_labels_back : bool
        Whether `output.write_back` can write labels beside the rows.
    """

    source: str = Field("bundled", description="what kind of data this is")
    weights: AnyPath | None = Field(None, description="path of a .npy or .zarr with one non-negative weight a row")
    labels: AnyPath | None = Field(None, description="path of a .npy or .zarr with one integer a row; -1: unknown")
    labels_true: AnyPath | None = Field(
        None,
        description="path of a .npy or .zarr with the class of each row, -1: unknown; not used in the fit: the report says how well the "
        "labels agree with it",
    )
    units: AnyPath | None = Field(
        None,
        description="path of a .npy or .zarr with one number a row, the same for consecutive rows that belong together, such as "
        "those of a sequence: they are held out together",
    )
    noise: AnyPath | None = Field(
        None,
        description="path of a .npy or .zarr with the known errors of each row: the variances of its entries, (rows, features), or their "
        "covariance, (rows, features, features)",
    )
    bad_rows: Literal["error", "drop", "missing"] = Field(
        "error", description="what to do about rows with NaN or inf; missing: NaN is an entry that is not known"
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="passed on to fsspec; never written to the run directory"
    )
    missing_chunks: Literal["error", "fill"] = Field(
        "error", description="of zarr stores; fill: chunks that are not stored hold nothing but the fill value"
    )

    sparse: ClassVar[bool] = False
    reads_files: ClassVar[bool] = False
    reads_stores: ClassVar[bool] = False
    takes_labels_back: ClassVar[bool] = False

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> Self:
        beside = any(path is not None for path in (self.weights, self.labels, self.labels_true, self.units, self.noise))
        if self.storage_options and not (self.reads_files or beside):
            raise ValueError(
                f"storage_options: source {self.source} reads no files without weights, labels, units or noise; leave it out"
            )
        if self.missing_chunks != "error" and not (self.reads_stores or beside):
            raise ValueError(
                f"missing_chunks: source {self.source} reads no stores without weights, labels, units or noise; leave it out"
            )
        return self

    @abstractmethod
    def open(self) -> Source:
        """Open and check the rows, before anything is computed.

        Raises
        ------
        InputError
            If they cannot be used.
        StorageError
            If they are damaged.
        """

    def with_columns(self, used: Mapping[str, bool]) -> Self:
        """Return the same section, which reads these columns where it has names. used : whether each holds categories."""
        return self

    def settled(self) -> Self:
        """Return the same section with what has to be found out of the data once, such as names of categories."""
        return self

    def open_chunks(self, by_unit: bool = False) -> Chunks:
        """Open the rows with their weights, labels and units. Raises what `open` does.

        by_unit : whether each chunk must hold whole units.
        """
        source = self.open()
        weights, labels, units = (self.open_column(what, source) for what in ("weights", "labels", "units"))
        self.open_column("labels_true", source)  # refused now, not after the fit
        noise = self.open_errors(source)
        starts = source.units() if units is None else unit_starts(units, source.n_rows)
        if by_unit and starts is None:
            raise InputError(
                "data.units: got none, expected them: the model is one of units, such as sequences. Set it."
            )
        if starts is not None and (by_unit or units is not None):
            source = UnitSource(source, starts, by_unit)
        return Chunks(source, weights, labels=labels, missing=self.bad_rows == "missing", noise=noise)

    def open_column(self, what: str, source: Source) -> Column | None:
        """Open a column beside the rows.

        Parameters
        ----------
        what : {"weights", "labels", "labels_true", "units"}
        source : Source
            The rows, as `open` returned them.

        Returns
        -------
        Column or None
            None where there is none.
        """
        path = getattr(self, what)
        if path is None:
            return None
        return RowColumn.open(path, source.n_rows, what, None, self.storage_options, self.missing_chunks)

    def open_errors(self, source: Source) -> RowColumn | None:
        """Open the errors of rows; None where there are none."""
        if self.noise is None:
            return None
        d, options = source.n_features, (self.storage_options, self.missing_chunks)
        return RowColumn.open(self.noise, source.n_rows, "noise", None, *options, ((d,), (d, d)))

    def converted_in(self, folder: str) -> Self:
        """Return the same section, which writes what must be converted to a folder, and never beside the input."""
        return self


class FileSection(DataSection):
    """A source that reads files: local paths or fsspec URLs."""

    path: AnyPath = Field(description="a file, or any fsspec URL")

    reads_files: ClassVar[bool] = True


class ConvertedSection(FileSection):
    """A source whose files may have to be converted before they can be read by chunk."""

    cache: LocalPath | None = Field(
        None, description="folder of the converted copy, which workers must see; null: the folder of the input"
    )

    def converted_in(self, folder: str) -> Self:
        refused = is_url(self.path) and self.cache is None  # by `open`
        return self if refused else self.model_copy(update={"cache": folder})
