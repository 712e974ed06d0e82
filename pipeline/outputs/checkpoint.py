"""Checkpoints: immutable, checksummed generations of the state between two passes.

A generation is written to a temporary directory, flushed, described by a manifest of SHA-256 sums, and renamed:
whoever dies at any instant leaves the old ones or the new one, never half of it. Loading verifies every byte and
falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.errors import InputError, StorageError
from pipeline.models.stats import Array
from pipeline.outputs.run_directory import remove, sync, sync_tree

KEPT = 3
_MANIFEST = "manifest.json"


class State(NamedTuple):
    """What a checkpoint holds: arrays by path, and JSON-able facts."""

    arrays: Mapping[str, Array]
    facts: Mapping[str, Any]


def save(folder: Path, generation: int, state: State) -> Path:
    """Write one generation and prune old ones. Raises StorageError when the disk does not take it."""
    final = folder / f"gen-{generation:06d}"
    temporary = folder / f".gen-{generation:06d}.{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".gen-*"):
            remove(leftover)
        attributes: dict[str, Any] = {"facts": dict(state.facts), "arrays": list(state.arrays)}
        group = zarr.open_group(temporary, mode="w-", zarr_format=3, attributes=attributes)
        for name, value in state.arrays.items():
            group.create_array(name, data=np.asarray(value, order="C"), compressors=ZstdCodec(level=1, checksum=True))
        (temporary / _MANIFEST).write_text(json.dumps(sums(temporary), indent=0, sort_keys=True), encoding="utf-8")
        sync_tree(temporary)
        remove(final)
        os.replace(temporary, final)
        sync(folder)
        for old in generations(folder)[:-KEPT]:
            remove(old)
    except OSError as error:
        raise StorageError(
            f"checkpoint {final}: cannot be written ({error}). Earlier checkpoints are intact: make room, then `resume`."
        ) from error
    return final


def generations(folder: Path) -> list[Path]:
    """All generations, oldest first."""
    return sorted(folder.glob("gen-[0-9]*"))


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
            if json.loads((path / _MANIFEST).read_text(encoding="utf-8")) != sums(path):
                raise ValueError("its bytes do not match their checksums")
            group = zarr.open_group(path, mode="r")
            arrays = {name: np.asarray(group[name][...]) for name in group.attrs["arrays"]}  # type: ignore[index,union-attr]
            return int(path.name.removeprefix("gen-")), State(arrays, group.attrs["facts"])  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            warn(f"checkpoint {path.name} is damaged ({error}); falling back to the one before")
    raise StorageError(
        f"{folder}: {len(found)} checkpoints, none of them whole. Start again with `em-pipeline run --overwrite`."
    )


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
