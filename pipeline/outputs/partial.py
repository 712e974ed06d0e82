"""Finished subtrees of a long pass, in the run directory: for jobs whose time limit is shorter than a pass.

    checkpoints/partial-<what the pass computes>/<first chunk>-<after the last>-<SHA-256>.npz

The folder's name is a hash of the jobs, their chunks and what decides bits, so that only the same pass uses it. A file's
name has the hash of its bytes, so that damage is detected and its chunks are read again. Files appear complete, by rename,
and have arrays only. They are removed after the next checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.packing import digest, pack, unpack
from pipeline.data.chunks import Chunks
from pipeline.engine.tree import Span, contains
from pipeline.errors import StorageError
from pipeline.kernels.cpu import KERNELS
from pipeline.numerics import NUMERICS
from pipeline.outputs.run_directory import remove, sync

_STRUCTURE = "structure"


class PartialPass:
    """The SumStore of one pass (engine/stored_sums.py). warn : called with a text for each damaged file."""

    def __init__(
        self,
        checkpoints: Path,
        chunks: Chunks,
        jobs: Sequence[Any],
        ids: Sequence[int] | None,
        warn: Callable[[str], None],
    ) -> None:
        self._checkpoints, self._warn = checkpoints, warn
        self._computed = (jobs, chunks.affine, chunks.n_chunks, ids)

    @cached_property
    def _folder(self) -> Path:
        return self._checkpoints / f"partial-{digest((*self._computed, NUMERICS, KERNELS.identity()))[:32]}"

    @cached_property
    def _can_be_stored(self) -> bool:
        """Whether the pass has a digest: not if a job holds something else than values."""
        try:
            return self._folder is not None
        except TypeError as error:
            self._warn(f"parts of a long pass are not stored ({error})")
            return False

    def spans(self) -> set[Span]:
        """Return the complete stored subtrees; damaged ones are removed."""
        # The hash of the parameters takes longer than a short pass.
        if not exist(self._checkpoints) or not self._can_be_stored:
            return set()
        for path in self._folder.glob("*.npz"):
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem.rpartition("-")[2]:
                self._warn(f"{path.name}: damaged; its chunks are read again")
                remove(path)
        return self._outermost()

    def _outermost(self) -> set[Span]:
        found = {_span(path) for path in self._folder.glob("*.npz")}
        return {span for span in found if not any(contains(one, span) for one in found if one != span)}

    def read(self, span: Span) -> list[Any]:
        """Return stored sums. Raises StorageError if they are gone."""
        try:
            path = next(self._folder.glob(f"{span[0]}-{span[1]}-*.npz"))
            with np.load(path, allow_pickle=False) as arrays:
                value: list[Any] = unpack(json.loads(arrays[_STRUCTURE].tobytes()), dict(arrays))
                return value
        except (StopIteration, OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{self._folder}: chunks {span[0]} to {span[1] - 1} cannot be read any more ({error!r}). "
                "Use `em-pipeline resume` again: they are computed once more."
            ) from error

    def write(self, span: Span, value: list[Any]) -> None:
        """Store a subtree, in place of all that it contains. Raises StorageError if it cannot be written."""
        if not self._can_be_stored:
            return
        packed, content = pack(value), io.BytesIO()
        structure = np.frombuffer(json.dumps(packed.structure).encode(), np.uint8)
        np.savez(content, **packed.arrays, **{_STRUCTURE: structure})  # type: ignore[arg-type]
        whole = content.getbuffer()
        final = self._folder / f"{span[0]}-{span[1]}-{hashlib.sha256(whole).hexdigest()}.npz"
        temporary = self._folder / f".{final.stem}.{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".*"):
                remove(leftover)
            temporary.write_bytes(whole)
            sync(temporary)
            os.replace(temporary, final)
            sync(self._folder)
            for path in self._folder.glob("*.npz"):
                if contains(span, _span(path)) and path != final:
                    remove(path)
        except OSError as error:
            raise StorageError(
                f"{final}: cannot be written ({error}). Checkpoints are intact: make room, then `resume`."
            ) from error


def exist(checkpoints: Path) -> bool:
    """Whether a pass has stored something."""
    return any(checkpoints.glob("partial-*"))


def forget(checkpoints: Path) -> None:
    """Remove what passes stored, after a checkpoint."""
    for folder in checkpoints.glob("partial-*"):
        remove(folder)


def _span(path: Path) -> Span:
    first, stop, _ = path.stem.split("-")
    return int(first), int(stop)
