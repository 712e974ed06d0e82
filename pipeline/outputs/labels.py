"""labels.zarr: the label and log-density of every row, in row order, out of core.

Blocks of 2^18 rows are computed by the engine and written here, in order; an interrupted job goes on with the
first block that is not there, and the store appears under its name only when it is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunk, Chunks
from pipeline.engine.passes import Engine
from pipeline.errors import InputError, StorageError
from pipeline.models.base import Model
from pipeline.models.kmeans import KMeans
from pipeline.outputs.run_directory import publish, remove

BLOCK_ROWS = 2**18


@dataclass(frozen=True)
class LabelBlock:
    """Task: labels of rows start:stop, reading only the chunks that hold them.

    top_k : responsibilities kept per row, at most n_components.  drop : whether rows with NaN or inf get label -1,
    or are an error.
    """

    chunks: Chunks
    model: Model
    params: Any
    top_k: int
    drop: bool

    def __call__(self, start: int, stop: int) -> dict[str, Array]:
        """The arrays of one block by name."""
        bounds = self.chunks.source.bounds
        first, last = np.searchsorted(bounds, [start, stop - 1], side="right") - 1
        return _concatenated([self._of_chunk(int(i), start, stop) for i in range(first, last + 1)])

    def _of_chunk(self, i: int, start: int, stop: int) -> dict[str, Array]:
        chunk = self.chunks.load(i)
        return self.of_rows(chunk, max(start - chunk.start, 0), stop - chunk.start)

    def of_rows(self, chunk: Chunk, first: int, last: int) -> dict[str, Array]:
        """The arrays of rows first:last of a chunk that was read, by name."""
        rows = slice(first, last)
        parts = []
        for _, found in self.model.assign(self.params, chunk.x[rows]):
            part = {density_name(self.model): found.log_density, "label": found.label}
            if self.top_k:
                top = np.argsort(-found.log_resp, axis=1, kind="stable")[:, : self.top_k]
                part["top_component"] = top.astype(np.int32)
                part["top_responsibility"] = np.exp(np.take_along_axis(found.log_resp, top, axis=1)).astype(np.float32)
            parts.append(part)
        block = _concatenated(parts)
        if chunk.bad is not None:
            bad = chunk.bad[rows]
            if bad.any() and not self.drop:
                row = chunk.start + rows.start + int(bad.argmax())
                raise InputError(f"row {row} holds NaN or inf. Clean the data, or set data.bad_rows=drop.")
            block["label"][bad] = -1
            block[density_name(self.model)][bad] = np.nan
        return block


def density_name(model: Model) -> str:
    """`log_density`, nats; K-means has no density and gives the squared distance to the centre."""
    return "squared_distance" if isinstance(model, KMeans) else "log_density"


def block_bytes(top_k: int) -> int:
    """Bytes of one block of labels in memory."""
    return BLOCK_ROWS * (4 + 8 + 8 * top_k)


def has_labels(path: Path, top_k: int) -> bool:
    """Whether whole labels with at least this many responsibilities per row are there."""
    return path.exists() and _kept(path) >= top_k


def _kept(path: Path) -> int:
    """Responsibilities per row of a store of labels; -1 when it cannot be opened."""
    try:
        return int(zarr.open_group(path, mode="r").attrs["top_k"])  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError):
        return -1


def write_labels(path: Path, task: LabelBlock, engine: Engine, progress: Callable[[int], None]) -> None:
    """Label all rows into `path`, which appears whole. progress : told how many rows are done."""
    temporary = path.with_name(f".{path.name}.partial")
    n = task.chunks.n_rows
    try:
        if _kept(temporary) != task.top_k:
            remove(temporary)  # begun for another layout, or not even that
        attributes: dict[str, Any] = {"family": task.model.family, "n_rows": n, "top_k": task.top_k}
        group = zarr.open_group(temporary, mode="a", zarr_format=3, attributes=attributes)
        arrays = {name: _array(group, name, *spec) for name, spec in _specs(task.model, n, task.top_k).items()}
        starts = [s for s in range(0, n, BLOCK_ROWS) if not (temporary / "label" / "c" / str(s // BLOCK_ROWS)).exists()]
        blocks = engine.map_in_order(task, ((start, min(start + BLOCK_ROWS, n)) for start in starts))
        for start, block in zip(starts, blocks, strict=True):
            stop = min(start + BLOCK_ROWS, n)
            for name, array in arrays.items():  # the label is last: a block with labels is whole
                array[start:stop] = block[name]
            progress(stop)
        _write_pictures(group, task.chunks)
        publish(temporary, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error


def _specs(model: Model, n: int, top_k: int) -> dict[str, tuple[tuple[int, ...], str, tuple[str, ...], Any]]:
    specs: dict[str, tuple[tuple[int, ...], str, tuple[str, ...], Any]] = {
        density_name(model): ((n,), "float64", ("row",), np.nan)
    }
    if top_k:
        specs["top_component"] = ((n, top_k), "int32", ("row", "rank"), -1)
        specs["top_responsibility"] = ((n, top_k), "float32", ("row", "rank"), np.nan)
    return specs | {"label": ((n,), "int32", ("row",), -1)}


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str, dimensions: tuple[str, ...], fill: Any) -> Any:
    if name in group:
        return group[name]
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(BLOCK_ROWS, *shape[1:]),
        dimension_names=dimensions,
        fill_value=fill,
        compressors=ZstdCodec(level=3, checksum=True),
        config={"write_empty_chunks": True},  # a missing chunk means work to do, never fill values
    )


def _write_pictures(group: Any, chunks: Chunks) -> None:
    found = chunks.source.pictures()
    if found is None or "picture_start" in group:
        return
    names, start = found
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        group.create_array("picture", data=np.array(names, dtype=np.dtypes.StringDType()), dimension_names=("picture",))
    group.create_array("picture_start", data=np.asarray(start), dimension_names=("picture",))


def _concatenated(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
