"""Counts of words in texts, in two streaming passes: the texts, whose counts are spilled by provisional number; then these counts.

Words, their order and the options are those of scikit-learn's CountVectorizer, whose analyzer cuts the texts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.conversion import Sizes
from pipeline.errors import InputError

MOST_WORDS = 2**24  # different ones, which are in memory during the first pass: 2 to 3 GiB
_SPILLED = 2**20  # counts at a time
VOCABULARY, DOCUMENTS = "vocabulary.txt", "documents.txt"


@dataclass(frozen=True)
class Limits:
    """Which words are features. As of CountVectorizer; a number of documents or a share of them."""

    min_df: int | float = 1
    max_df: int | float = 1.0
    max_features: int | None = None

    def kept(self, words: list[str], documents: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
        """Return which words stay, indices in the order of the features.

        words : in order of their numbers.  documents, counts : with the word, and of it, (n_words,).  n : documents in all.
        """
        least = self.min_df if isinstance(self.min_df, int) else self.min_df * n
        most = self.max_df if isinstance(self.max_df, int) else self.max_df * n
        if most < least:
            raise InputError(
                f"data.max_df: {self.max_df} is {most:g} of {n} documents, fewer than min_df, {least:g}. Raise it, or lower min_df."
            )
        order = np.array(sorted(range(len(words)), key=words.__getitem__), np.int64)
        order = order[(documents[order] >= least) & (documents[order] <= most)] if len(order) else order
        if self.max_features is not None and len(order) > self.max_features:
            common = np.argsort(-counts[order], kind="stable")[: self.max_features]
            order = order[np.sort(common)]
        return order


@dataclass(frozen=True)
class Counted:
    """Counts of words in documents, spilled to a folder.

    Attributes
    ----------
    folder : Path
    n_documents : int
    words : list of str
        By provisional number.
    documents, counts : array, shape (n_words,), int64
        With the word, and of it.
    """

    folder: Path
    n_documents: int
    words: list[str]
    documents: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls,
        texts: Iterable[tuple[str | None, str]],
        analyze: Callable[[str], list[str]],
        folder: Path,
        known: list[str] | None,
    ) -> Counted:
        """Make the first pass.

        Parameters
        ----------
        texts : iterable of (name or None, text)
            Names are written to DOCUMENTS.
        analyze : callable
            A text to its words.
        folder : Path
        known : list of str, or None
            The words that count; None: all.
        """
        number: dict[str, int] = defaultdict() if known is None else {word: i for i, word in enumerate(known)}
        if isinstance(number, defaultdict):
            number.default_factory = number.__len__
        totals = np.zeros((2, 0), np.int64)
        lengths: list[int] = []
        batch: list[tuple[int, int]] = []
        n = 0
        with (
            (folder / "lengths").open("wb") as of_documents,
            (folder / "pairs").open("wb") as pairs,
            (folder / DOCUMENTS).open("w", encoding="utf-8") as names,
        ):

            def spill() -> None:
                nonlocal totals
                found = np.array(batch, np.int32).reshape(-1, 2)
                if len(number) > totals.shape[1]:
                    totals = np.pad(totals, ((0, 0), (0, len(number) - totals.shape[1])))
                np.add.at(totals[0], found[:, 0], 1)
                np.add.at(totals[1], found[:, 0], found[:, 1])
                found.tofile(pairs)
                np.array(lengths, np.int64).tofile(of_documents)
                batch.clear()
                lengths.clear()

            for name, text in texts:
                found = Counter(analyze(text))
                if known is None:
                    batch += [(number[word], count) for word, count in found.items()]
                    lengths.append(len(found))
                else:
                    own = [(number[word], count) for word, count in found.items() if word in number]
                    batch += own
                    lengths.append(len(own))
                if name is not None:
                    names.write(name + "\n")
                n += 1
                if len(batch) > _SPILLED:
                    spill()
                if len(number) > MOST_WORDS:
                    raise InputError(
                        f"data: {n} documents have more than {MOST_WORDS} different words, expected fewer. Set data.ngram_range to fewer "
                        "words, a data.token_pattern that leaves out numbers, or a data.vocabulary."
                    )
            spill()
        return cls(folder, n, list(number), totals[0], totals[1])

    def triples(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Make the second pass: yield (document, word, count) from 1, by document and word. order : as `Limits.kept` returned it."""
        place = np.full(len(self.words), -1, np.int64)
        place[order] = np.arange(len(order))
        lengths = np.fromfile(self.folder / "lengths", np.int64)
        ends = np.cumsum(lengths)
        with (self.folder / "pairs").open("rb") as pairs:
            first = 0
            while first < len(lengths):
                before = ends[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(ends, before + _SPILLED, side="right")))
                found = np.fromfile(pairs, np.int32, 2 * int(ends[last - 1] - before)).reshape(-1, 2)
                document = np.repeat(np.arange(first, last), lengths[first:last])
                word = place[found[:, 0]]
                seen = word >= 0
                block = np.stack([document + 1, word + 1, found[:, 1]], axis=1)[seen]
                if len(block):
                    yield block[np.lexsort((block[:, 1], block[:, 0]))]
                first = last

    def sizes(self, order: np.ndarray) -> Sizes:
        """Return the sizes of what `triples` yields."""
        return Sizes(self.n_documents, len(order), int(self.documents[order].sum()) if len(order) else 0)

    def clear(self) -> None:
        """Remove what was spilled."""
        for name in ("lengths", "pairs"):
            (self.folder / name).unlink()


def analyzer(options: dict[str, Any]) -> Callable[[str], list[str]]:
    """Return what cuts a text into words. options : of CountVectorizer. Raises InputError for one that it cannot use."""
    import re

    from sklearn.feature_extraction.text import CountVectorizer

    try:
        found: Callable[[str], list[str]] = CountVectorizer(**options).build_analyzer()
    except (ValueError, re.error) as error:
        raise InputError(f"data.token_pattern, data.stop_words: {error}. Correct them.") from error
    return found
