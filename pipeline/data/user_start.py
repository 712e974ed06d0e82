"""User-supplied starts in a file: labels of the rows, or parameters by name."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from pipeline.arrays.packing import digest
from pipeline.config import Fit
from pipeline.data.chunks import Chunks
from pipeline.data.column import RowColumn
from pipeline.data.earlier import Earlier
from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import open_binary, refuse_absent
from pipeline.data.priors import is_prior, read_prior, without_mean
from pipeline.data.section import DataSection
from pipeline.data.stores import ZarrPlace
from pipeline.errors import InputError, PipelineError


class UserStart(NamedTuple):
    """A user-supplied start; empty without one.

    Attributes
    ----------
    labels : RowColumn or None
        Of the rows.
    arrays : dict or None
        Parameters by name.
    earlier : Earlier or None
        What is taken over from an earlier run.
    """

    labels: RowColumn | None = None
    arrays: dict[str, np.ndarray] | None = None
    earlier: Earlier | None = None

    def fingerprint(self, chunks: Chunks) -> str | None:
        """Return the SHA-256 of the parameters, or of the labels of the hashed chunks; None without a start."""
        if self == UserStart():
            return None
        content = hashlib.sha256()
        for name, array in sorted((self.arrays or {}).items()):
            content.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        if self.earlier is not None:
            content.update(digest(self.earlier).encode())
        if self.labels is not None:
            for i in chunks.hashed():
                content.update(self.labels.read(*chunks.rows(i)).tobytes())
        return content.hexdigest()


def user_start(fit: Fit, data: DataSection, n_rows: int) -> UserStart:
    """Read what `fit.init_path` names.

    Parameters
    ----------
    fit : Fit
    data : DataSection
        Says what an absent chunk of labels means.
    n_rows : int

    Raises
    ------
    InputError
        If it cannot be read.
    """
    path = fit.init_path
    if path is None:
        return UserStart()
    if fit.init == "labels":
        return UserStart(labels=RowColumn.open(path, n_rows, "labels", missing_chunks=data.missing_chunks))
    refuse_absent(path, "fit.init_path")
    try:
        if is_prior(path):
            return UserStart(arrays=_of_patches(path, data))
        if path.endswith(".npz"):
            with open_binary(path, {}) as file, np.load(file, allow_pickle=False) as stored:
                return UserStart(arrays={name: stored[name] for name in stored.files})
        group = ZarrPlace(path, {}, "error").open()
        found = {name: array for name, array in group.arrays() if array.dtype.kind in "iuf"}
        for name, array in found.items():
            refuse_encoded(f"fit.init_path {path}/{name}", array)
        return UserStart(arrays={name: np.asarray(array[...]) for name, array in found.items()})
    except PipelineError:
        raise
    except Exception as error:  # every store, codec and archive has its own kinds
        raise InputError(
            f"fit.init_path {path}: cannot be read ({error}), expected an .npz or .zarr of arrays, or a mixture of patches in .mat or .fits. Write it again."
        ) from error


def _of_patches(path: str, data: DataSection) -> dict[str, np.ndarray]:
    """The mixture of patches of another program, for rows of the data."""
    found, patch = read_prior(path), getattr(data, "patch", None)
    return without_mean(found, patch.size) if patch is not None and patch.remove_mean else found
