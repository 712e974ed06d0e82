"""Finished subtrees of a long pass, in the run directory: a job whose time limit is shorter than a pass still ends.

    checkpoints/partial-<what the pass computes>/<first chunk>-<after the last>-<SHA-256>.npz

The folder's name is a hash of the jobs, of the chunks they see and of what decides bits, so that only the same pass finds
it again; a file's name is that of its bytes, so that a damaged one is noticed and its chunks are read once more. Files
appear whole, by rename, and hold arrays only. The next checkpoint covers them, and they go.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from pipeline import NUMERICS
from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunks
from pipeline.data.draw import Drawn
from pipeline.data.profile import Profile
from pipeline.engine.tree import Span, contains
from pipeline.errors import StorageError
from pipeline.kernels.cpu import KERNELS
from pipeline.models.gaussian import GaussianStats
from pipeline.models.kmeans import KMeansStats
from pipeline.models.multinomial import MultinomialStats
from pipeline.models.stats import Exemplars, HeldOut, LowestRows, Partial
from pipeline.outputs.run_directory import remove, sync

# What jobs of a pass return, beside arrays and numbers.
_RESULTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Partial, LowestRows, Exemplars, HeldOut, Profile, Drawn),
        *(GaussianStats, KMeansStats, MultinomialStats),
    )
}
_STRUCTURE = "structure"


class PartialPass:
    """Where one pass stores its finished sums: the SumStore of engine/stored_sums.py. warn : called with a text for each damaged file."""

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
        found = hashlib.sha256()
        _absorb(found, (*self._computed, NUMERICS, KERNELS.identity()))
        return self._checkpoints / f"partial-{found.hexdigest()[:32]}"

    @cached_property
    def _can_be_kept(self) -> bool:
        """Whether it can be told from other passes: not where a job holds something else than values."""
        try:
            return self._folder is not None
        except TypeError as error:
            self._warn(f"a long pass is not kept until its end ({error})")
            return False

    def spans(self) -> set[Span]:
        """Which are there, whole; damaged ones are removed."""
        # The hash of the parameters takes longer than a short pass.
        if not exist(self._checkpoints) or not self._can_be_kept:
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
        """What was written. Raises StorageError when it is gone."""
        try:
            path = next(self._folder.glob(f"{span[0]}-{span[1]}-*.npz"))
            with np.load(path, allow_pickle=False) as arrays:
                value: list[Any] = _decoded(json.loads(arrays[_STRUCTURE].tobytes()), arrays)
                return value
        except (StopIteration, OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{self._folder}: chunks {span[0]} to {span[1] - 1} cannot be read any more ({error!r}). "
                "Use `em-pipeline resume` again: they are computed once more."
            ) from error

    def write(self, span: Span, value: list[Any]) -> None:
        """Store a subtree, in place of all that it contains. Raises StorageError when the disk does not take it."""
        if not self._can_be_kept:
            return
        arrays: dict[str, Array] = {}
        structure = json.dumps(_encoded(value, arrays)).encode()
        content = io.BytesIO()
        np.savez(content, **arrays, **{_STRUCTURE: np.frombuffer(structure, np.uint8)})  # type: ignore[arg-type]
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
    """Whether a pass has left something."""
    return any(checkpoints.glob("partial-*"))


def forget(checkpoints: Path) -> None:
    """Remove what passes left: a checkpoint has been written since."""
    for folder in checkpoints.glob("partial-*"):
        remove(folder)


def _span(path: Path) -> Span:
    first, stop, _ = path.stem.split("-")
    return int(first), int(stop)


def _absorb(content: Any, value: Any) -> None:
    """Add a value to a hash: equal values, however they came to be, are the same bytes. Raises TypeError for others."""
    if isinstance(value, np.ndarray):
        content.update(f"array {value.dtype.str} {value.shape}".encode())
        content.update(np.ascontiguousarray(value).tobytes())
    elif sp.issparse(value):
        _absorb(content, (value.shape, value.indptr, value.indices, value.data))
    elif is_dataclass(value):
        _absorb(content, (type(value).__name__, *(getattr(value, field.name) for field in fields(value))))
    elif isinstance(value, (tuple, list, range)):
        content.update(f"{len(value)} parts".encode())
        for part in value:
            _absorb(content, part)
    elif isinstance(value, dict):
        _absorb(content, sorted(value.items()))
    elif isinstance(value, (float, np.floating)):
        content.update(float(value).hex().encode())
    elif value is None or isinstance(value, (bool, int, str, np.bool_, np.integer, Path, np.dtype)):
        content.update(f"{value};".encode())
    else:
        raise TypeError(f"a job holds {type(value).__name__}, expected arrays, numbers, text and dataclasses of these")


def _encoded(value: Any, arrays: dict[str, Array]) -> Any:
    """What JSON can say of a result, with its arrays put aside."""
    if isinstance(value, (np.ndarray, np.generic)):
        name = f"a{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name} if isinstance(value, np.ndarray) else {"scalar": name}
    if sp.issparse(value):
        parts = [_encoded(part, arrays) for part in (value.data, value.indices, value.indptr)]
        return {"csr": parts, "shape": list(value.shape)}
    if type(value).__name__ in _RESULTS:
        return {"of": type(value).__name__, "fields": [_encoded(getattr(value, f.name), arrays) for f in fields(value)]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_encoded(part, arrays) for part in value]}
    if value is None or isinstance(value, (int, float)):
        return value  # JSON writes every digit of a float
    raise TypeError(f"a job returned {type(value).__name__}, expected one of {', '.join(_RESULTS)}, arrays or numbers")


def _decoded(found: Any, arrays: Any) -> Any:
    if not isinstance(found, dict):
        return found
    if "array" in found:
        return arrays[found["array"]]
    if "scalar" in found:
        return arrays[found["scalar"]][()]
    if "csr" in found:
        return sp.csr_array(tuple(_decoded(part, arrays) for part in found["csr"]), shape=tuple(found["shape"]))
    if "of" in found:
        return _RESULTS[found["of"]](*(_decoded(part, arrays) for part in found["fields"]))
    if "tuple" in found:
        return tuple(_decoded(part, arrays) for part in found["tuple"])
    return [_decoded(part, arrays) for part in found["list"]]
