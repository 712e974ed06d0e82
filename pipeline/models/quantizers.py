"""Product and residual quantisers: what their books are given.

    product     x_b = the features of part b                        parts do not depend on each other: the inertia does not rise
    residual    x_b = x - Σ_{a<b} c_a[code_a]                       stage b is given what the stages before it leave

What a stage is given changes while stages before it move. The inertia of the first stage does not rise; that of the next one does not
once no label of the first changes, and so on: the stages end one after the other, each as K-means of what those before it leave.
[Jégou, Douze and Schmid 2011; Juang and Gray 1982]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.tiles import tiles
from pipeline.models.books import BookStats, Quantizer
from pipeline.models.lloyd import Book, Centers, Lloyd
from pipeline.models.schema import Field, Fields
from pipeline.models.words import Words

TILE = 2**13  # rows that are subtracted from at a time


@stored
@dataclass(frozen=True)
class ProductQuantizer(Quantizer):
    """K-means of each part of the features.

    Attributes
    ----------
    shift, variance : arrays, shape (d,)
        A point near the rows, and their variances.
    parts : int
        At most d; features that follow each other are in one part, of d / parts features, and first parts of one more where that is no
        whole number.
    """

    k: int
    shift: Array
    variance: Array
    parts: int

    of_each: ClassVar[str] = "part"
    words: ClassVar[Words] = Lloyd.words._replace(
        name="product quantiser",
        title="K-means of {part} parts of the features, with {entry} entries each",
        component="entry",
        components="entries",
        until="no label changes, or the entries of each part move by at most {tol} × its mean variance, squared",
    )

    @property
    def fields(self) -> Fields:
        return {"centers": Field(("entry", "feature"))}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"entry": self.k, "feature": len(self.shift), "part": self.parts}

    @cached_property
    def bounds(self) -> list[slice]:
        """The features of each part."""
        stops = np.cumsum([len(part) for part in np.array_split(self.shift, self.parts)]).tolist()
        return [slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True)]

    @cached_property
    def books(self) -> Sequence[Lloyd]:
        return [Lloyd(self.k, self.shift[own], float(self.variance[own].mean())) for own in self.bounds]

    @property
    def knows_bound(self) -> bool:
        return True

    def restated(self, stats: BookStats, before: Centers | None, after: Centers | None) -> BookStats:
        """As of K-means, part by part."""

        def of_each(params: Centers | None) -> list[Centers | None]:
            return [None] * self.parts if params is None else [Centers(own) for own in self.split(params.centers)]

        each = zip(self.books, self.of_books(stats), of_each(before), of_each(after), strict=True)
        return replace(stats, inertia=np.array([book.restated(own, a, b).inertia for book, own, a, b in each]))

    def split(self, centers: Array) -> list[Array]:
        return [centers[:, own] for own in self.bounds]

    def joined(self, centers: Sequence[Array]) -> Array:
        return np.concatenate(centers, axis=1)

    def given(self, x: Array, book: int) -> Array:
        return np.ascontiguousarray(x[:, self.bounds[book]])

    def left(self, x: Array, centers: Array, label: Array) -> Array:
        return x

    def together(self, before: Any, own: Any) -> Any:
        return before + own

    def book_of(self, centers: Array, book: int) -> Book:
        return Book(centers, self.bounds[book].start)


@stored
@dataclass(frozen=True)
class ResidualQuantizer(Quantizer):
    """K-means of rows, then of what is left of them, stage after stage.

    Attributes
    ----------
    shift : array, shape (d,)
        A point near the rows.
    variance : float
        Mean variance of the features.
    stages : int
    """

    k: int
    shift: Array
    variance: float
    stages: int

    of_each: ClassVar[str] = "stage"
    words: ClassVar[Words] = Lloyd.words._replace(
        name="residual quantiser",
        title="K-means in {stage} stages, each of what the one before leaves, with {entry} entries each",
        component="entry",
        components="entries",
        until="no label changes, or the entries of each stage move by at most {tol} × a mean variance, squared",
    )

    @property
    def fields(self) -> Fields:
        return {"centers": Field(("stage", "entry", "feature"))}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"stage": self.stages, "entry": self.k, "feature": len(self.shift)}

    @cached_property
    def books(self) -> Sequence[Lloyd]:
        rest = Lloyd(self.k, np.zeros_like(self.shift), np.nan)
        return [Lloyd(self.k, self.shift, self.variance), *[rest] * (self.stages - 1)]

    def split(self, centers: Array) -> list[Array]:
        return list(centers)

    def joined(self, centers: Sequence[Array]) -> Array:
        return np.stack(centers)

    def given(self, x: Array, book: int) -> Array:
        return x

    def left(self, x: Array, centers: Array, label: Array) -> Array:
        out = np.empty_like(x)
        for rows in tiles(len(x), TILE):
            np.subtract(x[rows], centers[label[rows]], out=out[rows], casting="same_kind")
        return out

    def together(self, before: Any, own: Any) -> Any:
        return own

    def book_of(self, centers: Array, book: int) -> Book:
        return Book(centers, 0)
