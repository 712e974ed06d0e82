"""Labels as a column of obs in the AnnData file or store that they are of: only where `output.write_back` asks for it.

A file is copied, and the copy with the column takes its name, so that a kill leaves the old one or the new one. In a store the column
counts when obs lists it, which is written last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.arrays.stores import guarded, open_group
from pipeline.config.paths import is_url
from pipeline.data.files import part_of
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import Config
from pipeline.models.clusters import NOISE
from pipeline.outputs.run_directory import sync

_MARK = "em-pipeline-labels"  # attribute of a column of ours: the SHA-256 of its labels
_BLOCK = 2**18  # rows


def refuse_write_back(config: Config) -> None:
    """Raise InputError if the config asks for a column that cannot be written, before labels are computed."""
    data, name = _asked(config)
    if name is None:
        return
    if is_url(data.path):
        raise InputError(
            f"output.write_back: {data.path} is a URL, which is read only. Give a local path, or leave it out."
        )
    if "/" in name or name.startswith("."):
        raise InputError(
            f"output.write_back: got {name!r}, expected a name without / that begins with no dot. Correct it."
        )
    with data.place.node() as root:
        if name in root["obs"] and _MARK not in root["obs"][name].attrs:
            raise InputError(
                f"output.write_back: {data.path} has a column {name!r} of obs, which is not replaced. Choose another name."
            )
    path = Path(os.path.realpath(data.path))
    folder = path if path.is_dir() else path.parent  # a file is replaced by a copy in its folder
    if not os.access(folder, os.W_OK):
        raise InputError(f"output.write_back: {folder} cannot be written to. Change its permissions, or leave it out.")
    if path.is_file() and (free := shutil.disk_usage(folder).free) < (size := path.stat().st_size):
        raise InputError(
            f"output.write_back: a copy of {path} takes {size} bytes, and {folder} has {free} free. Make room, or leave it out."
        )


def lacks_column(config: Config, labels: Path) -> bool:
    """Whether the config asks for a column that is not there with these labels. labels : a complete labels.zarr."""
    data, name = _asked(config)
    if name is None:
        return False
    with data.place.node() as root:
        obs = root["obs"]
        listed = name in obs and name in map(str, obs.attrs["column-order"])
        return not listed or str(obs[name].attrs.get(_MARK)) != _digest(labels)


def write_back(config: Config, labels: Path) -> None:
    """Write labels to the column of obs that the config asks for, as categories; rows without a label are missing.

    labels : a complete labels.zarr.  Raises StorageError if it cannot be written.
    """
    data, name = _asked(config)
    path = Path(os.path.realpath(data.path))
    try:
        if path.is_dir():
            _into_store(path, str(name), labels)
        else:
            _into_file(path, str(name), labels)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error


def _asked(config: Config) -> tuple[Any, str | None]:
    """The section of AnnData, and the name of the column; None if none is asked for."""
    return config.data, config.output.write_back


def _into_file(path: Path, name: str, labels: Path) -> None:
    import h5py

    with part_of(path, path.name) as part:
        shutil.copy2(path, part)
        with h5py.File(part, "r+") as file:
            _add(file["obs"], name, labels, h5py.string_dtype())
        sync(part)
        os.replace(part, path)
    sync(path.parent)


def _into_store(path: Path, name: str, labels: Path) -> None:
    store = guarded(path, read_only=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Zarr (V3|format 3) specification")  # text, consolidated metadata
        _add(zarr.open_group(store, path="obs", mode="r+", use_consolidated=False), name, labels, str)
        if zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None:
            zarr.consolidate_metadata(store)  # which anndata reads in place of each array's own


def _add(obs: Any, name: str, labels: Path, text: Any) -> None:
    """Add a column of categories to a group of h5py or zarr. text : the dtype of their names."""
    if name in obs:
        del obs[name]
    highest = max(int(block.max()) for block in _blocks(labels))
    noise = any((block == NOISE).any() for block in _blocks(labels))
    names = [*map(str, range(highest + 1)), *(["noise"] if noise else [])]
    column = obs.create_group(name)
    create = column.create_array if isinstance(column, zarr.Group) else column.create_dataset
    n_rows = sum(len(block) for block in _blocks(labels))
    codes = create("codes", shape=(n_rows,), dtype=np.min_scalar_type(-len(names)))
    for i, block in enumerate(_blocks(labels)):
        start = i * _BLOCK
        codes[start : start + len(block)] = np.where(block == NOISE, highest + 1, block)
    categories = create("categories", shape=(len(names),), dtype=text)
    categories[:] = np.array(names, dtype=object)
    codes.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    categories.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    kind = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
    column.attrs.update(kind | {_MARK: _digest(labels)})
    order = [str(each) for each in obs.attrs["column-order"]]
    if name not in order:
        obs.attrs["column-order"] = [*order, name]


def _blocks(labels: Path) -> Iterator[np.ndarray]:
    array: Any = open_group(labels)["label"]
    for start in range(0, array.shape[0], _BLOCK):
        yield array[start : start + _BLOCK]


def _digest(labels: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(labels):
        digest.update(block.tobytes())
    return digest.hexdigest()
