"""Checkpoints: immutable, checksummed generations of the state between two passes.

A generation is written to a temporary directory, flushed, described by a manifest of SHA-256 sums, and renamed:
whoever dies at any instant leaves the old ones or the new one, never half of it. Loading verifies every byte and
falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError, StorageError
from pipeline.outputs.run_directory import remove, sync, sync_tree

KEPT = 3
_MANIFEST = "manifest.json"


class State(NamedTuple):
    """What a checkpoint holds: arrays by path, and JSON-able facts."""

    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]


def save(folder: Path, generation: int, state: State, keep: int | None = KEPT) -> Path:
    """Write one generation; then remove the older ones but for the newest `keep` (None: none), and damaged newer ones.

    Raises StorageError when the disk does not take it.
    """
    final = folder / f"gen-{generation:06d}"
    # A name of its own: of a save that a stop has ended in the middle, a thread may still write the last file.
    temporary = folder / f".gen-{generation:06d}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".gen-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        attributes: dict[str, Any] = {"facts": dict(state.facts), "arrays": list(state.arrays)}
        group = zarr.open_group(temporary, mode="w-", zarr_format=3, attributes=attributes)
        for name, value in state.arrays.items():
            group.create_array(name, data=np.asarray(value, order="C"), compressors=ZstdCodec(level=1, checksum=True))
        (temporary / _MANIFEST).write_text(json.dumps(sums(temporary), indent=0, sort_keys=True), encoding="utf-8")
        sync_tree(temporary)
        remove(final)
        os.replace(temporary, final)
        sync(folder)
        _prune(folder, generation, keep)
    except OSError as error:
        raise StorageError(
            f"checkpoint {final}: cannot be written ({error}). Earlier checkpoints are intact: make room, then `resume`."
        ) from error
    return final


def _prune(folder: Path, newest: int, keep: int | None) -> None:
    """Remove all but the newest `keep` up to `newest`. What is newer was passed over as damaged when the run went on."""
    found = generations(folder)
    older = [path for path in found if number(path) <= newest]
    for path in found:
        if number(path) > newest or (keep is not None and path not in older[-keep:]):
            remove(path)


def generations(folder: Path) -> list[Path]:
    """All generations, oldest first."""
    return sorted((path for path in folder.glob("gen-*") if path.name[4:].isdecimal()), key=number)


def number(path: Path) -> int:
    """Of a generation."""
    return int(path.name.removeprefix("gen-"))


def load(folder: Path, warn: Callable[[str], None]) -> tuple[int, State]:
    """The newest generation that is whole, and its number. warn : told of each damaged one.

    Raises InputError when there is none yet, StorageError when none is whole.
    """
    found = generations(folder)
    if not found:
        raise InputError(
            f"{folder}: the run had no checkpoint yet, expected one to go on from. Start again with `em-pipeline run`."
        )
    for path in reversed(found):
        try:
            return number(path), read(path)
        except StorageError as error:
            warn(f"{error} Falling back to the one before.")
    raise StorageError(
        f"{folder}: {len(found)} checkpoints, none of them whole. Start again with `em-pipeline run --overwrite`."
    )


def read(path: Path) -> State:
    """What one generation holds. Raises StorageError unless every byte of it is as it was written."""
    try:
        if json.loads((path / _MANIFEST).read_text(encoding="utf-8")) != sums(path):
            raise ValueError("its bytes do not match their checksums")
        group = zarr.open_group(path, mode="r")
        arrays = {name: np.asarray(group[name][...]) for name in group.attrs["arrays"]}  # type: ignore[index,union-attr]
        return State(arrays, group.attrs["facts"])  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(f"checkpoint {path.name} is damaged ({error}).") from error


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
