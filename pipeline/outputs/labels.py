"""labels.zarr: label and log-density of every row, or other predictions of the model, in row order, out of core.

Rows of a table have one dimension, `row`; samples of an xarray dataset have their own, with their coordinates.
The engine computes blocks of up to 2^18 rows, which are written in order. An interrupted job continues with the
first missing block, and the store gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.arrays.stores import guarded, open_group
from pipeline.config import Output
from pipeline.data.chunks import Chunks
from pipeline.data.column import Column
from pipeline.data.grid import Block, Grid
from pipeline.em.heldout import Units
from pipeline.engine.passes import Engine
from pipeline.errors import InputError, StorageError, as_written
from pipeline.models.base import RowArray
from pipeline.outputs.coordinates import of_data
from pipeline.outputs.measures import measures
from pipeline.outputs.model_store import read_model
from pipeline.outputs.run_directory import publish, remove

if TYPE_CHECKING:
    import xarray as xr

BLOCK_ROWS = 2**18
BLOCK_BYTES = 2**24  # of a block with an array of many columns
_NO_SPECIFICATION = ".*does not have a Zarr V3 specification"  # of text


@dataclass(frozen=True)
class LabelBlock:
    """Task: predictions for rows start:stop, reading only the chunks with them.

    model : anything with `family`, `words`, `row_arrays` and `predict`, as those of `LatentModel`.
    top_k : responsibilities stored per row, at most n_components.  drop : whether rows with NaN or inf get fill values, such
    as label -1, or are an error.  silhouette : whether the simplified silhouette of each row is stored.  units : which rows the model was
    not fitted to; None if to all.
    """

    chunks: Chunks
    model: Any
    params: Any
    top_k: int
    drop: bool
    silhouette: bool = False
    units: Units | None = None

    def arrays(self) -> dict[str, RowArray]:
        """Return the arrays by name."""
        more = {"silhouette": RowArray("float32", np.nan)} if self.silhouette else {}
        more |= {} if self.units is None else {"held_out": RowArray("int8", -1)}
        found: dict[str, RowArray] = self.model.row_arrays(self.top_k) | more
        return found

    def rows_on(self) -> tuple[Grid, xr.Dataset | None]:
        """Return the grid of the arrays and its coordinates, as of `Source`."""
        return self.chunks.source.rows_on()

    def keys(self, start: int, stop: int) -> dict[str, Array]:
        """Return what names rows start:stop beside that, as of `Source`."""
        return self.chunks.source.keys(start, stop)

    def pictures(self) -> tuple[list[str], Array] | None:
        """Return names and first rows of pictures, as of `Source`."""
        return self.chunks.source.pictures()

    def block_rows(self) -> int:
        """Return the rows of a block, at most."""
        wide = any(array.columns for array in self.arrays().values())
        return min(BLOCK_ROWS, max(1, BLOCK_BYTES // row_bytes(self.model, self.top_k))) if wide else BLOCK_ROWS

    def __call__(self, start: int, stop: int, kernels: Any) -> dict[str, Array]:
        bounds = self.chunks.source.bounds
        first, last = np.searchsorted(bounds, [start, stop - 1], side="right") - 1
        parts = [self._of_chunk(int(i), start, stop, kernels) for i in range(first, last + 1)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of_chunk(self, i: int, start: int, stop: int, kernels: Any) -> dict[str, Array]:
        chunk = self.chunks.load(i)
        return self.of_rows(chunk, max(start - chunk.start, 0), stop - chunk.start, kernels)

    def of_rows(self, chunk: Rows, first: int, last: int, kernels: Any) -> dict[str, Array]:
        """Return the arrays of rows first:last of a loaded chunk, by name."""
        rows = slice(first, last)
        if chunk.units is None:
            label = None if chunk.label is None else chunk.label[rows]
            part = Rows(chunk.x[rows], start=chunk.start + rows.start, label=label)
            block = self.model.predict(self.params, part, self.top_k, kernels)
        else:  # units are whole in a chunk, and not in a block of labels
            part = replace(chunk, weight=None)
            whole = self.model.predict(self.params, part, self.top_k, kernels)
            block = {name: value[rows] for name, value in whole.items()}
        if self.silhouette:
            block["silhouette"] = self.model.silhouette(self.params, part.x)  # the config has seen to it
        if self.units is not None:
            block["held_out"] = self.units.held_out(chunk.start + first, chunk.start + min(last, chunk.n)).astype(
                np.int8
            )
        if chunk.bad is not None and (bad := chunk.bad[rows]).any():
            if not self.drop:
                refuse_bad(chunk, rows)
            for name, array in self.arrays().items():
                block[name][bad] = array.fill
        return block


def refuse_bad(chunk: Rows, rows: slice) -> None:
    """Raise InputError for bad rows among those of a chunk."""
    if chunk.bad is not None and (bad := chunk.bad[rows]).any():
        row = chunk.start + rows.start + int(bad.argmax())
        raise InputError(f"row {row} holds NaN or inf. Clean the data, or set data.bad_rows: drop.")


def row_bytes(model: Any, top_k: int) -> int:
    """Return the bytes of one row of labels.zarr."""
    arrays = model.row_arrays(top_k).values()
    return sum(np.dtype(array.dtype).itemsize * (top_k if array.ranked else array.columns or 1) for array in arrays)


def has_labels(path: Path, top_k: int) -> bool:
    """Whether there are complete labels with at least this many responsibilities per row."""
    return path.exists() and _stored(path) >= top_k


@as_written("model.zarr")
def lacks_labels(model: Path, labels: Path, output: Output) -> bool:
    """Whether labels are asked for and not complete. model : a model.zarr."""
    if not output.labels:
        return False
    return not has_labels(labels, min(output.top_k, read_model(model).attrs.get("n_components", 0)))


def _stored(path: Path) -> int:
    """Responsibilities per row of a store of labels; -1 if it cannot be opened."""
    try:
        return int(open_group(path).attrs["top_k"])  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError):
        return -1


def write_labels(
    path: Path, task: LabelBlock, engine: Engine, progress: Callable[[int], None], truth: Column | None = None
) -> dict[str, Any]:
    """Write the predictions for all rows to `path`, which appears complete, and return their measures.

    progress : called with the rows done.  truth : the classes of rows, which labels are compared with.
    """
    temporary, sums = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.sums")
    specs, (grid, coordinates) = task.arrays(), task.rows_on()
    refuse_taken(grid, specs, path.name)
    shape = grid.block_shape(task.block_rows())
    attributes: dict[str, Any] = {"family": task.model.family, "n_rows": grid.n_rows, "top_k": task.top_k}
    try:
        layout = [attributes, {name: str(spec) for name, spec in specs.items()}, grid.dims, grid.shape, shape]
        begun = _Blocks(sums, layout)
        if not begun.goes_on:
            remove(temporary)  # begun for another layout, or not even that
        for metadata in temporary.rglob("zarr.json"):
            remove(metadata)  # may be damaged, and costs nothing to write again
        for beside in temporary.glob("*/"):
            if beside.name not in specs:
                remove(beside)  # as are names and coordinates
        group = zarr.open_group(guarded(temporary, read_only=False), mode="a", zarr_format=3, attributes=attributes)
        arrays = {name: _array(group, name, grid, shape, task.top_k, spec) for name, spec in specs.items()}
        files = {name: temporary / name / "c" for name in arrays}
        left = [block for block in grid.blocks(shape) if not begun.is_whole(block, files)]
        done = engine.map_in_order(task, ((block.start, block.stop) for block in left))
        for block, values in zip(left, done, strict=True):
            for name, array in arrays.items():
                array[block.box] = values[name].reshape(
                    *(s.stop - s.start for s in block.box), *array.shape[len(shape) :]
                )
            begun.add(block, files)
            progress(block.stop)
        _write_pictures(group, task)
        # A row with a known label may have another centre than the nearest, whose distance is stored.
        by_distance = "label" in specs and task.model.words.score == "squared_distance" and task.chunks.labels is None
        centers = task.params.centers if by_distance else None
        found = measures(group, centers, truth)
        if found:
            group.attrs["measures"] = found
        # Last: it adds names of coordinates to the attributes, and `group` would write back those that it knows.
        if coordinates is not None:
            taken = {name: of_data(name) for name in map(str, coordinates.variables) if name in specs}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_NO_SPECIFICATION)
                coordinates.rename(taken).to_zarr(
                    guarded(temporary, read_only=False), mode="a", zarr_format=3, consolidated=False
                )
        publish(temporary, path)
        remove(sums)
        return found
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error


def refuse_taken(grid: Grid, arrays: Mapping[str, RowArray], store: str) -> None:
    """Raise InputError where a dimension of the rows has the name of an array of a store, or of another dimension there.

    The coordinate would take the array's place.
    """
    others = {"rank" if array.ranked else array.along for array in arrays.values() if array.ranked or array.columns}
    if taken := set(grid.dims) & (others | set(arrays)):
        name = min(taken)
        raise InputError(
            f"data: has a dimension called {name}, and so has {store} an array or another dimension. Rename it, such as by "
            f"dataset.rename({name}='{name}_')."
        )


class _Blocks:
    """The finished blocks of unfinished labels: a line of JSON for each, with the SHA-256 of its files.

    Attributes
    ----------
    goes_on : bool
        Whether the blocks that are there have this layout.
    """

    def __init__(self, path: Path, layout: Any) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        header, *lines = text.split("\n")
        self.goes_on = header == json.dumps(layout)
        self._sums: dict[str, str] = {}
        if not self.goes_on:
            path.write_text(json.dumps(layout) + "\n", encoding="utf-8")
            return
        for line in lines:
            with suppress(ValueError):  # cut short, or damaged: the block is done again
                key, digest = line.split()
                self._sums[key] = digest

    def is_whole(self, block: Block, arrays: dict[str, Path]) -> bool:
        """Whether the files of a block are as they were written. arrays : folder of the blocks of each."""
        key = _key(block)
        return key in self._sums and self._sums[key] == _digest(key, arrays)

    def add(self, block: Block, arrays: dict[str, Path]) -> None:
        """Note that a block has been written."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{_key(block)} {_digest(_key(block), arrays)}\n")


def _key(block: Block) -> str:
    """The key of the stored chunk that a block is."""
    return "/".join(str(i) for i in block.at)


def _digest(key: str, arrays: dict[str, Path]) -> str:
    """SHA-256 of the files of a block."""
    digest = hashlib.sha256()
    for folder in arrays.values():
        place = folder / key
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _array(group: Any, name: str, grid: Grid, chunk: tuple[int, ...], top_k: int, spec: RowArray) -> Any:
    ranks = (top_k,) if spec.ranked else (spec.columns,) if spec.columns else ()
    return group.create_array(
        name,
        shape=(*grid.shape, *ranks),
        dtype=spec.dtype,
        chunks=(*chunk, *ranks),
        dimension_names=(*grid.dims, "rank" if spec.ranked else spec.along) if ranks else grid.dims,
        fill_value=spec.fill,
        compressors=ZstdCodec(level=3, checksum=True),
        config={"write_empty_chunks": True},  # a missing chunk means work to do, never fill values
    )


def _write_pictures(group: Any, task: LabelBlock) -> None:
    found = task.pictures()
    if found is None:
        return
    names, start = found
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_NO_SPECIFICATION)
        group.create_array(
            "picture", data=np.array(names, dtype=np.dtypes.StringDType()), dimension_names=("picture",), overwrite=True
        )
    group.create_array("picture_start", data=np.asarray(start), dimension_names=("picture",), overwrite=True)
