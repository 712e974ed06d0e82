"""Pictures as lossless files of their depth, and sheets of some side by side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.errors import StorageError
from pipeline.outputs.run_directory import sync_tree

SHOWN, ACROSS, GAP = 6, 360, 6  # pictures on a sheet; pixels of each, cut from its middle; between them
FILES = {8: (np.uint8, "PNG", ".png"), 16: (np.uint16, "PNG", ".png"), 32: (np.float32, "TIFF", ".tif")}


class PictureFiles:
    """Files of pictures in a folder, by their names in a source. source : anything with `pictures` and `header`, as `ImageSource` has them."""

    def __init__(self, folder: Path, source: Any) -> None:
        self._folder, self._source = folder, source
        self.names: list[str] = source.pictures()[0]
        self._alike = Counter(str(Path(name).with_suffix("")) for name in self.names)

    def path(self, picture: int) -> Path:
        """Return the file of a picture."""
        name = self.names[picture]
        suffix, alone = FILES[self._source.header(picture)[0].bits][2], Path(name).with_suffix("")
        return self._folder / f"{name if self._alike[str(alone)] > 1 else alone}{suffix}"

    def write(self, picture: int, pixels: Array) -> Array:
        """Write a picture, which appears complete, and return what the file holds. pixels : (height, width[, 3]) float32, 1 for white.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        header, top = self._source.header(picture)
        kind, form, _ = FILES[header.bits]
        values = pixels * np.float32(top)
        if header.bits < 32:
            values = np.rint(np.clip(values, 0, 2**header.bits - 1))
        values, path = values.astype(kind), self.path(picture)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(values, path, form)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error
        return values.astype(np.float32) / np.float32(top)

    def read(self, picture: int) -> Array:
        """Return the pixels of a file, (height, width[, 3]) float32."""
        from PIL import Image

        with Image.open(self.path(picture)) as image:
            return np.asarray(image, np.float32) / np.float32(self._source.header(picture)[1])


def _save(values: Array, path: Path, form: str) -> None:
    from PIL import Image

    temporary = path.with_name(f".{path.name}.partial")
    Image.fromarray(values).save(temporary, format=form)
    sync_tree(temporary)
    os.replace(temporary, path)


def draw_sheet(path: Path, lines: Sequence[Sequence[Array]]) -> None:
    """Write a sheet as PNG: the middle of pictures, a line for each of `lines`."""
    tiles = [[_middle(one) for one in line] for line in lines]
    heights = [line[0].shape[0] for line in tiles]
    width = max(line[0].shape[1] for line in tiles)
    sheet = np.full((sum(heights) + GAP * len(tiles), (width + GAP) * len(tiles[0]), 3), 255, np.uint8)
    top = 0
    for height, line in zip(heights, tiles, strict=True):
        for i, tile in enumerate(line):
            sheet[top : top + height, i * (width + GAP) : i * (width + GAP) + tile.shape[1]] = tile
        top += height + GAP
    _save(sheet[:-GAP, :-GAP], path, "PNG")


def _middle(pixels: Array) -> Array:
    """At most ACROSS x ACROSS pixels from the middle of a picture, as bytes (height, width, 3)."""
    height, width = pixels.shape[:2]
    top, left = max(0, height - ACROSS) // 2, max(0, width - ACROSS) // 2
    part = pixels[top : top + ACROSS, left : left + ACROSS].reshape(min(height, ACROSS), min(width, ACROSS), -1)
    return np.rint(255 * np.clip(np.broadcast_to(part, (*part.shape[:2], 3)), 0, 1)).astype(np.uint8)
