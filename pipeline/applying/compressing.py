"""Rows and pictures as numbers of the centres of a run of K-means, in few bits: `em-pipeline compress`.

What restores them are books in the units of the data: of each a row has an entry, and these add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.applying.rows import OpenRows, asked_of, output_of, write_rows
from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tiles
from pipeline.data.grid import Grid
from pipeline.data.patch import patch_basis
from pipeline.data.preprocess import Affine
from pipeline.data.sources.images import ImageSource, ImagesSection
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import RowArray
from pipeline.models.lloyd import Book
from pipeline.outputs.compressed import ROWS, Codebook, Compressed
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.labels import BLOCK_BYTES, BLOCK_ROWS, LabelBlock, refuse_bad
from pipeline.outputs.picture_files import SHOWN, draw_sheet
from pipeline.outputs.run_directory import RunDirectory

if TYPE_CHECKING:
    import xarray as xr

STRIDE = "data.patch.stride="
TILE = 2**13  # rows whose errors are computed at a time


def compress(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Write the nearest centre of each row, or that of each part or stage, in as few bits as number them; return the directory.

    It gets `compress.zarr` and a report.

    Pictures are covered by patches side by side; at the right and the lower edge one more ends there. Of patches without their mean,
    each mean takes 8 bits more.

    Parameters
    ----------
    path : str or Path
        Of a run of K-means.
    overrides : sequence of str
        ``data.path=…`` of the rows; engine may change too. ``data.patch.stride=…`` lets patches overlap: by default it is their smaller
        side.
    output : str or Path
        The directory.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.

    Raises
    ------
    InputError
        If the run is not of K-means, or the rows cannot be restored from its centres.

    References
    ----------
    Gersho and Gray (1992), ch. 10, and sec. 12.7 for patches without their mean.
    """
    config, target = asked_of(path, overrides, "compress"), output_of("compress", output)
    if isinstance(config.data, ImagesSection) and not any(one.startswith(STRIDE) for one in overrides):
        patch = config.data.patch.model_copy(update={"stride": min(config.data.patch.size)})
        config = config.model_copy(update={"data": config.data.model_copy(update={"patch": patch})})
    return finish_compressing(RunDirectory(path), config, target, {"command": "compress"}, listeners, began)


def finish_compressing(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the codes that a directory lacks. options : of the command, by name."""

    def made(opened: OpenRows) -> LabelBlock:
        _refuse(opened, config)
        books, affine = opened.model.codebook(opened.params), opened.affine
        if affine is not None:
            inverse = 1.0 / affine.matrix if affine.matrix.ndim == 1 else affine.inverse()
            books = _before(inverse, affine.offset, books)
        chunks, basis = opened.chunks, None
        codebook = Codebook.of(books, compute_dtype(chunks.source.dtype))
        if isinstance(chunks.source, ImageSource):
            covering = chunks.source.covering()
            if chunks.source.patch.remove_mean:
                basis = patch_basis(covering.patch.size, covering.channels)
                books = _before(basis.T, np.zeros(len(basis)), books)
                codebook = Codebook.of(books, np.float32, covering.channels)
            chunks = replace(chunks, source=covering)
        return CodeBlock(chunks, opened.model, opened.params, 0, False, codebook=codebook, affine=affine, basis=basis)

    def after(opened: OpenRows, log: EventLog) -> None:
        from pipeline.outputs.report import write_report

        found = Compressed(target.path / "compress.zarr")
        if not target.report.exists():
            if isinstance(source := opened.chunks.source, ImageSource):
                colour, whole = source.channels > 1, (slice(None), slice(None))
                shown = range(min(SHOWN, len(source.pictures()[0])))
                draw_sheet(
                    target.path / "sheet.png", [[source.pixels(i, whole, colour), found.pixels(i)] for i in shown]
                )
            log("compressed", **found.figures._asdict())
            write_report(target.path)

    write_rows(run, config, target, options, made, listeners, began, after=after)
    return target.path


def _refuse(opened: OpenRows, config: Config) -> None:
    """Raise InputError where rows cannot be restored from centres."""
    source, title = opened.chunks.source, opened.model.words.name
    data = config.data
    refused = {
        f"a run of a {title}": opened.model.words.score != "squared_distance",
        "sparse rows": source.sparse,
        "data.noise": opened.chunks.noise is not None,
        f"data.bad_rows: {data.bad_rows}": data.bad_rows != "error",
    }
    if isinstance(source, ImageSource):
        patch = source.patch
        refused |= {
            "data.patch.contrast": patch.contrast is not None,
            f"{source.channels} channels": source.channels not in (1, 3),
            f"data.patch.stride {patch.stride}, larger than a patch,": patch.stride > min(patch.size),
        }
    for what, is_so in refused.items():
        if is_so:
            raise InputError(
                f"compress: got {what}, expected a run of K-means on rows of numbers, or on patches in grey or rgb in the pixels' own "
                "scale, of which every row and pixel is restored. Fit one."
            )


def _before(inverse: Array, offset: Array, books: Sequence[Book]) -> list[Book]:
    """Return books of rows before a map, from those of mapped rows; one of a part has all values once these are mixed.

    inverse : array, (d, D), or (d,) of a factor for each feature.  offset : array, (D,), which the books add once.
    """
    left, found = offset.copy(), []
    for entries, first in books:
        own = slice(first, first + entries.shape[1])
        raw, at = (entries * inverse[own], own) if inverse.ndim == 1 else (entries @ inverse[own], slice(0, len(left)))
        found.append(Book(raw + left[at], at.start))
        left[at] = 0.0
    return found


@dataclass(frozen=True)
class CodeBlock(LabelBlock):
    """Task: the codes of blocks start:stop of rows, reading only the chunks with them, one at a time.

    codebook : what stands for rows as they are read.  affine, basis : the preprocessing; of patches the features without the mean.
    """

    codebook: Any = None
    affine: Affine | None = None
    basis: Any = None

    def arrays(self) -> dict[str, RowArray]:
        """Return the arrays by name."""
        n_bytes = ROWS // 8 * sum(self.codebook.widths)
        return {
            "code": RowArray("uint8", 0, columns=n_bytes, along="byte"),
            "squared_error": RowArray("float64", np.nan),
        }

    def rows_on(self) -> tuple[Grid, xr.Dataset]:
        """Return the grid of blocks, with the codebook and what is known of pictures."""
        import xarray as xr

        source = self.chunks.source
        facts: dict[str, Any] = {
            "rows": source.n_rows,
            "channels_of_means": self.codebook.channels,
            "books": [list(book) for book in self.codebook.books],
            "values_of_input": source.n_rows * source.n_features,
            "bits_of_input": source.n_rows * source.n_features * 8 * source.dtype.itemsize,
            "patch": None,
        }
        arrays: dict[str, Any] = {"codebook": (("entry", "value"), self.codebook.entries)}
        if isinstance(source, ImageSource):
            headers, tops = zip(*(source.header(i) for i in range(len(source.pictures()[0]))), strict=True)
            arrays["headers"] = ("picture", "field"), np.array(headers, np.int64)
            arrays["top"] = "picture", np.array(tops)
            patch, c = source.patch, source.channels
            facts["values_of_input"] = sum(one.height * one.width for one in headers) * c
            facts["bits_of_input"] = sum(one.height * one.width * one.bits for one in headers) * c
            facts["patch"] = {"size": list(patch.size), "stride": patch.stride, "channels": c}
        blocks = -(-source.n_rows // ROWS)
        return Grid(("block",), (blocks,)), xr.Dataset(arrays, attrs={"family": self.model.family, "compressed": facts})

    def keys(self, start: int, stop: int) -> dict[str, Array]:
        """Blocks have no names."""
        return {}

    def block_rows(self) -> int:
        """Return how many blocks are computed at a time, at most."""
        row = 8 * len(self.codebook.widths) + 2 * sum(self.codebook.widths)  # numbers, and a byte for each bit, twice
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row) // ROWS)

    def __call__(self, start: int, stop: int, kernels: Any) -> dict[str, Array]:
        bounds, n = self.chunks.source.bounds, self.chunks.n_rows
        low, high = start * ROWS, min(stop * ROWS, n)
        first, last = np.searchsorted(bounds, [low, high - 1], side="right") - 1
        numbers = np.empty((high - low, len(self.codebook.widths)), np.int64)
        errors = np.empty(high - low)
        for i in range(int(first), int(last) + 1):
            chunk = self.chunks.load(i)
            part = slice(max(low - chunk.start, 0), min(high - chunk.start, chunk.n))
            refuse_bad(chunk, part)
            for tile in tiles(part.stop - part.start, TILE):
                x = chunk.x[part.start + tile.start : part.start + tile.stop]
                at = slice(chunk.start + part.start + tile.start - low, chunk.start + part.start + tile.stop - low)
                numbers[at] = self._numbers(x, kernels)
                difference = x - self.codebook.rows(numbers[at])
                errors[at] = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
        blocks = np.add.reduceat(errors, np.arange(0, len(errors), ROWS))
        return {"code": self.codebook.packed(numbers), "squared_error": blocks}

    def _numbers(self, x: Array, kernels: Any) -> Array:
        """The entry of each book and the codes of means of rows, (n, books + channels). x : (n, d)."""
        mapped = x if self.basis is None else x @ self.basis.astype(x.dtype)
        mapped = mapped if self.affine is None else self.affine.apply(mapped)
        found = self.model.predict(self.params, Rows(mapped), 0, kernels)
        code = found["code"] if "code" in found else found["label"]
        return np.column_stack([code.astype(np.int64), self.codebook.means(x)])
