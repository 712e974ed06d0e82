"""Pictures without noise as files, their figures, and a sheet of some before and after."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.errors import StorageError
from pipeline.outputs.picture_files import SHOWN, PictureFiles, draw_sheet
from pipeline.outputs.run_directory import RunDirectory

BAND = 256  # rows that are compared at a time
REACH = 5  # pixels on each side of the windows of SSIM
WINDOW = np.exp(-np.square(np.arange(-REACH, REACH + 1) / 1.5) / 2)
WINDOW /= WINDOW.sum()


class Score(NamedTuple):
    """A line of pictures.csv. sigma : in grey levels.  seconds : of CPU.  The others are None without a clean picture."""

    picture: str
    file: str
    sigma: float
    seconds: float
    psnr_noisy: float | None = None
    psnr: float | None = None
    ssim_noisy: float | None = None
    ssim: float | None = None


def read_scores(path: Path) -> list[Score]:
    """Return the lines of pictures.csv that are whole."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(Score._fields)][1:]
    return [Score(line[0], line[1], *(float(x) if x else None for x in line[2:])) for line in lines]  # type: ignore[arg-type]  # sigma and seconds are there


def mean_of(name: str, scores: list[Score]) -> float | None:
    """Return the mean of a column of pictures.csv; None where it is empty."""
    values = [value for one in scores if (value := getattr(one, name)) is not None]
    return sum(values) / len(values) if values else None


class Denoised:
    """The files of a directory of `denoise`. clean : source and number of each clean picture, None without."""

    def __init__(self, target: RunDirectory, noisy: Any, clean: list[tuple[Any, int]] | None) -> None:
        self._target, self._noisy, self._clean = target, noisy, clean
        self._files = PictureFiles(target.path / "pictures", noisy)
        self._names = self._files.names
        self._table = target.path / "pictures.csv"
        self._done = {score.picture: score for score in read_scores(self._table)}

    def has(self, picture: int) -> bool:
        """Whether a picture is there, with its line."""
        return self._names[picture] in self._done and self._files.path(picture).exists()

    def add(self, found: Any) -> Score:
        """Write a picture, as a lossless file of its depth, and its line; return that. found : Whole."""
        written, path = self._files.write(found.picture, found.pixels), self._files.path(found.picture)
        score = self._score(found, written, path)
        self._done[score.picture] = score
        try:
            is_new = not self._table.exists()
            with self._table.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([Score._fields] * is_new)
                writer.writerow(["" if value is None else value for value in score])
        except OSError as error:
            raise StorageError(f"{self._table}: cannot be written ({error}). Make room, then `resume`.") from error
        return score

    def _score(self, found: Any, pixels: Array, path: Path) -> Score:
        name, file = self._names[found.picture], str(path.relative_to(self._target.path))
        facts = (name, file, 255.0 * found.sigma, found.seconds)
        if self._clean is None:
            return Score(*facts)
        clean = self._pixels_of_clean(found.picture)
        before, after = likeness(self._pixels(found.picture), clean), likeness(pixels, clean)
        return Score(*facts, before[0], after[0], before[1], after[1])

    def _pixels(self, picture: int) -> Array:
        pixels: Array = self._noisy.pixels(picture, (slice(None), slice(None)), colour=True)
        return pixels

    def _pixels_of_clean(self, picture: int) -> Array:
        assert self._clean is not None
        source, number = self._clean[picture]
        colour = self._noisy.header(picture)[0].colour
        pixels: Array = source.pixels(number, (slice(None), slice(None)), colour=colour)
        return pixels

    @property
    def means(self) -> dict[str, float]:
        """Means of what was compared, and of how many pictures; empty without clean pictures."""
        found = {name: mean_of(name, list(self._done.values())) for name in Score._fields[4:]}
        means = {name: mean for name, mean in found.items() if mean is not None}
        return {"pictures": len(self._done), **means} if means else {}

    def draw_sheet(self) -> None:
        """Write sheet.png: the middle of the first pictures, noisy, without noise, and clean if that is known."""
        lines = []
        for picture in range(min(SHOWN, len(self._names))):
            line = [self._pixels(picture), self._files.read(picture)]
            lines.append([*line, self._pixels_of_clean(picture)] if self._clean is not None else line)
        draw_sheet(self._target.path / "sheet.png", lines)


def likeness(found: Array, clean: Array) -> tuple[float, float | None]:
    """Return the peak signal to noise ratio in decibels, and the structural similarity; None for pictures below 11 pixels.

    Pixels of which the highest is 1, those of `found` cut to 0 to 1. Windows of the similarity are Gaussian, of deviation 1.5 and 11
    pixels across; those that are not whole do not count. [Wang, Bovik, Sheikh and Simoncelli 2004]
    """
    squares, similar, count = 0.0, 0.0, 0
    for a, b, extra in _bands(found, clean):
        squares += float(np.square(a[extra:] - b[extra:]).sum())
        if min(a.shape[:2]) > 2 * REACH:
            local = _similarity(a, b)
            similar, count = similar + float(local.sum()), count + local.size
    mean = squares / found.size
    return (float("inf") if mean == 0 else -10.0 * float(np.log10(mean))), similar / count if count else None


def _bands(found: Array, clean: Array) -> Iterator[tuple[Array, Array, int]]:
    """Yield rows of both, (height, width, channels) float64, and how many of the first were in the band before."""
    for start in range(0, len(found), BAND):
        first = max(0, start - 2 * REACH)
        a, b = (one[first : start + BAND].astype(np.float64) for one in (found, clean))
        shape = (*a.shape[:2], -1)
        yield np.clip(a, 0, 1).reshape(shape), b.reshape(shape), start - first


def _similarity(a: Array, b: Array) -> Array:
    """Of each whole window."""
    from scipy.ndimage import correlate1d

    def local(values: Array) -> Array:
        inner = slice(REACH, -REACH)
        for axis in (0, 1):
            values = correlate1d(values, WINDOW, axis=axis)
        return values[inner, inner]

    mean_a, mean_b, one, two = local(a), local(b), 0.01**2, 0.03**2
    var_a, var_b, cov = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + one) * (2 * cov + two) / ((mean_a**2 + mean_b**2 + one) * (var_a + var_b + two))
