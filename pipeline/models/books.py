"""Quantisers of several books of K centres, called entries, of which one each add up to about the row.

    x ≈ Σ_b c_b[code_b]                                  B books have K^B sums
    code_b = argmin_k |x_b - c_bk|²                      x_b is what book b is given of the row

Each book is K-means of what it is given, and one pass updates all of them. [Gersho and Gray 1992, ch. 12]
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import LowestRows, Rows
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import Attachment, Evidence, Expectation, LatentModel, Reset, RowArray, Totals
from pipeline.models.clusters import Summary
from pipeline.models.lloyd import Book, Centers, HashedLabels, Lloyd, LloydStats
from pipeline.models.starts import plus_plus


@stored
@dataclass(frozen=True)
class BookStats(Additive):
    """The statistics of K-means of each book.

    sum_w : (books, k).  sum_x : as the centres, about the books' shifts.  inertia : (books,), sums of weighted squared distances.
    """

    sum_w: Array
    sum_x: Array
    inertia: Array


@stored
@dataclass(frozen=True)
class FarRows:
    """The rows that are farthest from their entries, as each book is given them; those of two sets of rows merge by +."""

    of_book: tuple[LowestRows, ...]

    def __add__(self, other: FarRows) -> FarRows:
        return FarRows(tuple(a + b for a, b in zip(self.of_book, other.of_book, strict=True)))


@dataclass(frozen=True)
class FarFromEntries:
    """Attachment: `FarRows`, the places for entries without rows."""

    name: ClassVar[str] = "far_rows"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> FarRows:
        return FarRows(found.beside)

    def nbytes(self, model: Any) -> int:
        return sum(8 * lloyd.k * (4 + lloyd.n_features) for lloyd in model.books)


class Quantizer(LatentModel):
    """K-means in several books.

    Attributes
    ----------
    books : sequence of Lloyd
        The K-means of each book.
    of_each : str
        What has a book, in the singular: part or stage.
    k : int
        Entries of a book.
    """

    k: int
    of_each: ClassVar[str]

    family: ClassVar[str] = Lloyd.family
    has_bound: ClassVar[bool] = False

    @property
    @abstractmethod
    def books(self) -> Sequence[Lloyd]:
        """The K-means of each book."""

    @abstractmethod
    def split(self, centers: Array) -> list[Array]:
        """Return the centres of each book, (k, w) each, from those of all."""

    @abstractmethod
    def joined(self, centers: Sequence[Array]) -> Array:
        """Return all centres from those of each book."""

    @abstractmethod
    def given(self, x: Array, book: int) -> Array:
        """Return the rows that a book is given, (n, w), from what is left of the rows, (n, d)."""

    @abstractmethod
    def left(self, x: Array, centers: Array, label: Array) -> Array:
        """Return what a book leaves of rows for the next one, (n, d). x : (n, d).  centers : (k, w).  label : (n,)."""

    @abstractmethod
    def together(self, before: Any, own: Any) -> Any:
        """Return the squared distances to sums of entries up to a book, from those before it and those that it has; also of inertias."""

    @abstractmethod
    def book_of(self, centers: Array, book: int) -> Book:
        """Return a book as what it adds to a row. centers : (k, w)."""

    @property
    def n_features(self) -> int:
        """Columns of a row, d."""
        return int(self.sizes["feature"])

    @property
    def label(self) -> str:
        return f"k{self.k}-{self.of_each}s{len(self.books)}"

    def facts(self) -> dict[str, Any]:
        return {
            "n_features": self.n_features,
            f"{self.of_each}s": len(self.books),
            "entries": self.k,
            "bits": len(self.books) * entry_bits(self.k),
        }

    @property
    def traced(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]  # named by what has a book
        return {f"{self.of_each}_inertia": (self.of_each,)}

    def trace(self, stats: BookStats) -> dict[str, Array]:
        return {f"{self.of_each}_inertia": stats.inertia}

    @property
    def knows_bound(self) -> bool:
        return False

    @property
    def extrapolates(self) -> bool:
        return False

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return FarFromEntries(), HashedLabels()

    def params(self, **arrays: Array) -> Centers:
        return Centers(arrays["centers"])

    def e_step(self, params: Centers, rows: Rows, kernels: Any) -> Expectation:
        left, stats, far, key, score = _as_computed(rows.x), [], [], np.uint64(0), np.zeros(rows.n)
        for book, (lloyd, centers) in enumerate(zip(self.books, self.split(params.centers), strict=True)):
            own = replace(rows, x=self.given(left, book))
            found = lloyd.e_step(Centers(centers), own, kernels)
            assert found.label is not None and found.label_hash is not None
            stats.append(found.stats)
            far.append(LowestRows.of(lloyd.k, found.score, rows.start, own.x, rows.weight, found.label))
            score = self.together(score, found.score)
            with np.errstate(over="ignore"):  # modulo 2^64; by factors, since two books could exchange labels
                key = key + found.label_hash * np.uint64(2 * book + 1)
            if book + 1 < len(self.books):
                left = self.left(left, centers, found.label)
        joined = BookStats(
            np.stack([each.sum_w for each in stats]),
            self.joined([each.sum_x for each in stats]),
            np.array([each.inertia for each in stats]),
        )
        return Expectation(joined, Evidence(rows.total_weight, 0.0), score, None, key, tuple(far))

    def m_step(self, stats: BookStats, params: Centers | None) -> Centers:
        each = zip(self.books, self.of_books(stats), strict=True)
        return Centers(self.joined([lloyd.m_step(own, None).centers for lloyd, own in each]))

    def expected_log_joint(self, stats: BookStats, params: Centers) -> float:
        return -float(reduce(self.together, stats.inertia))

    def objective(self, totals: Totals, params: Centers) -> float:
        """Minus the inertia."""
        return self.expected_log_joint(totals.stats, params)

    def of_books(self, stats: BookStats) -> list[LloydStats]:
        """Return the statistics of K-means of each book."""
        each = zip(stats.sum_w, self.split(stats.sum_x), stats.inertia, strict=True)
        return [LloydStats(sum_w, sum_x, float(inertia)) for sum_w, sum_x, inertia in each]

    def reset(
        self, new: Centers, old: Centers, stats: BookStats, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Centers, list[Reset]]:
        """As of K-means, book by book; entries are numbered over all books."""
        centers, done = [], []
        each = zip(self.books, self.split(new.centers), self.of_books(stats), attached["far_rows"].of_book, strict=True)
        for book, (lloyd, own, own_stats, far) in enumerate(each):
            moved, found = lloyd.reset(Centers(own), Centers(own), own_stats, {"outliers": far}, ())
            centers.append(moved.centers)
            done += [Reset(book * self.k + k, f"{self.of_each} {book}, {why}", so) for k, why, so in found]
        return (Centers(self.joined(centers)), done) if done else (new, [])

    def converged(self, before: Centers, after: Centers, same_labels: bool, tol: float) -> str | None:
        """As of K-means, in all books."""
        if same_labels:
            return "converged: no label changed"
        for book, then, now in zip(self.books, self.split(before.centers), self.split(after.centers), strict=True):
            if self._scaled(book, now).converged(Centers(then), Centers(now), False, tol) is None:
                return None
        return f"converged: the entries of each {self.of_each} moved by at most tol x its variance, squared"

    def _scaled(self, book: Lloyd, centers: Array) -> Lloyd:
        """The K-means of a book with the variance of what it is given; of a stage after the first, that of its entries."""
        return replace(book, variance=float(centers.var(axis=0).mean())) if np.isnan(book.variance) else book

    def fisher_norm(self, totals: Totals, params: Centers, new: Centers) -> float:
        squares = 0.0
        each = zip(
            self.books, self.of_books(totals.stats), self.split(params.centers), self.split(new.centers), strict=True
        )
        for book, stats, old, moved in each:
            own = Totals(stats, totals.evidence)
            squares += self._scaled(book, moved).fisher_norm(own, Centers(old), Centers(moved)) ** 2
        return float(np.sqrt(squares))

    def statistics_bytes(self) -> int:
        return sum(lloyd.statistics_bytes() for lloyd in self.books)

    def row_operations(self) -> float:
        """Return about how many operations an E-step and its statistics take for a row."""
        return sum(lloyd.row_operations() for lloyd in self.books)

    def encoded(self, params: Centers, x: Array, kernels: Any) -> tuple[Array, Array]:
        """Return the entry of each book for rows, (n, books) int32, and the squared distances to the sums of these, (n,)."""
        left, codes, squared = _as_computed(x), [], np.zeros(len(x))
        for book, (lloyd, centers) in enumerate(zip(self.books, self.split(params.centers), strict=True)):
            label, own = lloyd.nearest(Centers(centers), self.given(left, book), kernels)
            codes.append(label)
            squared = self.together(squared, own)
            if book + 1 < len(self.books):
                left = self.left(left, centers, label)
        return np.stack(codes, axis=1), squared

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        codes = RowArray("int32", -1, columns=len(self.books), along=self.of_each)
        return {self.words.score: RowArray("float64", np.nan), "code": codes}

    def predict(self, params: Centers, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the entry of each book, and squared distances."""
        code, squared = self.encoded(params, rows.x, kernels)
        return {self.words.score: squared, "code": code}

    def score_rows(self, params: Centers, x: Array, kernels: Any) -> Array:
        return self.encoded(params, x, kernels)[1]

    def left_by(self, x: Array, book: int, centers: Array, kernels: Any) -> Array:
        """Return what a book with these centres leaves of rows for the next one, (n, d). x : (n, d)."""
        x = _as_computed(x)
        return self.left(x, centers, self.books[book].nearest(Centers(centers), self.given(x, book), kernels)[0])

    def codebook(self, params: Centers) -> list[Book]:
        """Return what rows are restored from."""
        return [self.book_of(centers, book) for book, centers in enumerate(self.split(params.centers))]

    def start(self, summary: Summary, rng: np.random.Generator) -> Centers:
        """Return k-means++ and some of Lloyd's steps on the rows of the profile, book by book."""
        left, found = _as_computed(np.asarray(summary.sample.x)), []
        for book in range(len(self.books)):
            own = self.given(left, book)
            found.append(plus_plus(own, np.ones(len(own)), self.k, rng, KERNELS))
            left = self.left_by(left, book, found[-1], KERNELS)
        return Centers(self.joined(found))


def entry_bits(k: int) -> int:
    """Return the bits of the number of one of k entries.

    >>> [entry_bits(k) for k in (1, 2, 3, 256)]
    [1, 1, 2, 8]
    """
    return max(1, (k - 1).bit_length())


def _as_computed(x: Array) -> Array:
    """Rows in the dtype that they are computed in."""
    return np.ascontiguousarray(x, compute_dtype(x.dtype))
