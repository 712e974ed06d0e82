"""Rows in a `.npy` file, as numpy.save writes it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from pipeline.config import AnyPath, LocalPath
from pipeline.data.files import open_binary, opening, seekable
from pipeline.data.section import ConvertedSection
from pipeline.data.source import row_dtype
from pipeline.data.table import TableSource, npy_header, refuse_other_size


class NpySection(ConvertedSection):
    """A two-dimensional array in a .npy file, in C or Fortran order."""

    source: Literal["npy"] = Field("npy", description="an array that numpy.save has written")
    path: AnyPath = Field(description="a .npy file, .gz or plain, or an fsspec URL of one")
    cache: LocalPath | None = Field(
        None,
        description="folder of the unpacked copy of a large .gz file, which workers must see; null: the folder of the input",
    )

    def open(self) -> TableSource:
        path = self.path
        with opening(path), open_binary(path, self.storage_options) as stream:
            shape, columns_first, dtype, offset = npy_header(stream, path)
            row_dtype(path, shape, dtype)
            n_bytes = offset + math.prod(shape) * dtype.itemsize
        path = seekable(path, self.storage_options, self.cache, n_bytes)
        with opening(path), open_binary(path, self.storage_options) as stream:
            refuse_other_size(stream, path, n_bytes)
        return TableSource(path, self.storage_options, offset, shape, dtype, columns_first and len(shape) > 1)
