"""Starts that are given: labels of the rows or parameters by name, from fit.init_path."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import zarr

from pipeline.config import Config
from pipeline.data.chunks import Chunks
from pipeline.data.column import RowColumn
from pipeline.data.files import refuse_absent
from pipeline.errors import InputError


class Given(NamedTuple):
    """labels : of the rows.  arrays : parameters by name.  None where they are not given."""

    labels: RowColumn | None = None
    arrays: dict[str, np.ndarray] | None = None

    def fingerprint(self, chunks: Chunks) -> str | None:
        """SHA-256 of the parameters, or of the labels of as many chunks as enter that of the rows; None if nothing is given."""
        if self == Given():
            return None
        content = hashlib.sha256()
        for name, array in sorted((self.arrays or {}).items()):
            content.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        if self.labels is not None:
            for i in chunks.hashed():
                content.update(self.labels.read(*chunks.rows(i)).tobytes())
        return content.hexdigest()


def given_start(config: Config, n_rows: int) -> Given:
    """What fit.init_path holds. Raises InputError when it cannot be read."""
    path = config.fit.init_path
    if path is None:
        return Given()
    if config.fit.init == "labels":
        return Given(labels=RowColumn.open(path, n_rows, "labels", missing_chunks=config.data.missing_chunks))
    refuse_absent(path, "fit.init_path")
    try:
        if path.endswith(".npz"):
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                return Given(arrays={name: stored[name] for name in stored.files})
        group = zarr.open_group(path, mode="r")
        arrays = {name: np.asarray(array[...]) for name, array in group.arrays() if array.dtype.kind in "iuf"}
        return Given(arrays=arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"fit.init_path {path}: cannot be read ({error}); expected an .npz or .zarr of arrays."
        ) from error
