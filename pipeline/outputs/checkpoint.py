"""Checkpoints: immutable, checksummed generations of the state between two passes.

A generation is written to a temporary directory, flushed, described by a manifest of SHA-256 sums, and renamed. Whenever
the process ends, there are the old generations or the new one, never a part of it. Loading verifies every byte and
falls back to the generation before.

A state has dozens of small arrays; those of one dtype lie one behind another in one array of the store, `packed/<dtype>`: each
array of its own would be three files or folders to make, flush and remove.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from pipeline.arrays.stores import guarded, open_whole
from pipeline.errors import InputError, StorageError
from pipeline.outputs.run_directory import remove, sync, sync_tree

STORED = 3
SMALL = 2**20  # bytes of an array that is packed with others
_MANIFEST = "manifest.json"


class State(NamedTuple):
    """Content of a checkpoint: arrays by path, and facts for JSON."""

    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]


def save(folder: Path, generation: int, state: State, keep: int | None = STORED) -> Path:
    """Write one generation; then remove all but the newest `keep` up to it (None: remove none), and any newer ones.

    Returns
    -------
    Path
        Of the generation.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    final = folder / f"gen-{generation:06d}"
    # A unique name: a save that was stopped in the middle may still be writing its last file in a thread.
    temporary = folder / f".gen-{generation:06d}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".gen-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        alone, packed, places = _packed(state.arrays)
        attributes: dict[str, Any] = {"facts": dict(state.facts), "arrays": list(alone), "packed": places}
        group = zarr.open_group(guarded(temporary, read_only=False), mode="w-", zarr_format=3, attributes=attributes)
        for name, value in {**alone, **packed}.items():
            group.create_array(name, data=np.asarray(value, order="C"), compressors=ZstdCodec(level=1, checksum=True))
        (temporary / _MANIFEST).write_text(json.dumps(sums(temporary), indent=0, sort_keys=True), encoding="utf-8")
        sync_tree(temporary)
        remove(final)
        os.replace(temporary, final)
        sync(folder)
        _prune(folder, generation, keep)
    except OSError as error:
        raise StorageError(
            f"checkpoint {final}: cannot be written ({error}). Earlier checkpoints are intact. Free some space, then `resume`."
        ) from error
    return final


def _packed(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Large arrays by name; the small ones of each dtype, packed; and where each of these is: dtype, first entry, shape."""
    alone, parts, places = {}, dict[str, list[Array]](), dict[str, Any]()
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.nbytes > SMALL or array.dtype.kind not in "biuf":
            alone[name] = array
            continue
        before = parts.setdefault(array.dtype.name, [])
        places[name] = [array.dtype.name, sum(part.size for part in before), list(array.shape)]
        before.append(array.ravel())
    return alone, {f"packed/{dtype}": np.concatenate(each) for dtype, each in parts.items()}, places


def _prune(folder: Path, newest: int, keep: int | None) -> None:
    """Remove all but the newest `keep` up to `newest`. Newer ones were damaged when the run was resumed."""
    found = generations(folder)
    older = [path for path in found if number(path) <= newest]
    for path in found:
        if number(path) > newest or (keep is not None and path not in older[-keep:]):
            remove(path)


def generations(folder: Path) -> list[Path]:
    """Return all generations, oldest first."""
    return sorted((path for path in folder.glob("gen-*") if path.name[4:].isdecimal()), key=number)


def number(path: Path) -> int:
    """Return the number of a generation."""
    return int(path.name.removeprefix("gen-"))


def load(folder: Path, warn: Callable[[str], None]) -> tuple[int, State]:
    """Return the number and content of the newest undamaged generation.

    Parameters
    ----------
    folder : Path
    warn : callable
        Called with a sentence about each damaged one.

    Raises
    ------
    InputError
        If there is no generation yet.
    StorageError
        If all are damaged.
    """
    found = generations(folder)
    if not found:
        raise InputError(
            f"{folder}: got no checkpoint, expected one to resume from. Start again with `em-pipeline run`."
        )
    for path in reversed(found):
        try:
            return number(path), read(path)
        except StorageError as error:
            warn(f"{error} The one before is used.")
    raise StorageError(
        f"{folder}: got {len(found)} damaged checkpoints, expected one that is not. Start again with "
        "`em-pipeline run --overwrite`."
    )


def computed(folder: Path) -> dict[str, Any] | None:
    """What the newest generation that can be read says is computed; None where there is none, or it is of an earlier version."""
    for path in reversed(generations(folder)):
        try:
            found = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["facts"]["computed"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def read(path: Path) -> State:
    """Return the content of one generation. Raises StorageError if a byte has changed."""
    try:
        if json.loads((path / _MANIFEST).read_text(encoding="utf-8")) != sums(path):
            raise ValueError("its bytes do not match their checksums")
        group = zarr.open_group(open_whole(path), mode="r")
        attributes: Mapping[str, Any] = group.attrs
        arrays = {name: np.asarray(group[name][...]) for name in attributes["arrays"]}  # type: ignore[index]
        places = attributes.get("packed", {})
        packed = {kind: np.asarray(group[f"packed/{kind}"][...]) for kind in {at[0] for at in places.values()}}  # type: ignore[index]
        for name, (kind, start, shape) in places.items():
            arrays[name] = packed[kind][start : start + math.prod(shape)].reshape(shape).copy()
        return State(arrays, attributes["facts"])
    except Exception as error:  # zarr and its codecs have their own kinds
        raise StorageError(f"checkpoint {path.name} is damaged ({error}).") from error


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
