"""Texts as counts of their words: tokenised once, as scikit-learn's CountVectorizer does, into the CSR store of word counts."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import csr_array

from pipeline.config import AnyPath
from pipeline.data.conversion import Sizes, convert, made_from, write_triples
from pipeline.data.csr import CsrSource
from pipeline.data.files import beside
from pipeline.data.section import ConvertedSection
from pipeline.data.source import TARGET_BYTES
from pipeline.data.stores import ZarrPlace
from pipeline.data.texts import TABLES, fingerprint, text_files, texts_in
from pipeline.data.words import DOCUMENTS, VOCABULARY, Counted, Limits, analyzer
from pipeline.errors import InputError

_INDICES = 2**20  # of words, at a time


class TextSection(ConvertedSection):
    """Texts; the counts of their words are written once, to a store in `cache` or beside the input."""

    source: Literal["text"] = Field("text", description="texts, of which words are counted")
    path: AnyPath = Field(
        description="a folder of .txt files, each a document, or a glob of files; a file with one document a line; or a table"
    )
    column: str | None = Field(
        None, description="of a table (parquet, csv or tsv with a header): the column that holds the texts"
    )
    index: str | None = Field(
        None,
        description="of a table: the column that names a document, for the table of predict --format; files have names",
    )
    encoding: str = Field("utf-8", description="of the texts, such as latin-1")
    lowercase: bool = Field(
        True, description="whether letters become small first; this and the following are CountVectorizer's"
    )
    token_pattern: str = Field(r"(?u)\b\w\w+\b", description="a regular expression: what is a word")
    stop_words: Literal["english"] | list[str] | None = Field(
        None, description="words that are left out: a list, or english"
    )
    ngram_range: tuple[int, int] = Field((1, 1), description="how many words in a row are a feature, from and to")
    min_df: int | float = Field(
        1, ge=0, description="words in fewer documents are left out; a share of them if it has a point"
    )
    max_df: int | float = Field(
        1.0, ge=0, description="words in more documents are left out; a share of them if it has a point"
    )
    max_features: int | None = Field(
        None, ge=1, description="how many of the commonest words stay; null: all; ties by alphabet"
    )
    vocabulary: AnyPath | None = Field(
        None,
        description="path of a text file with one word a line: the features; null: found in the texts, and noted in the run",
    )
    tf_idf: bool = Field(
        False,
        description="counts times inverse document frequencies, rows scaled to length 1, as TfidfTransformer does by default; for families of "
        "directions; true | false",
    )

    sparse: ClassVar[bool] = True

    @model_validator(mode="after")
    def _what_goes_together(self) -> Self:
        table = self.path.endswith(TABLES)
        if table and self.column is None:
            raise ValueError(
                f"column: is missing; a table needs the name of the column that holds the texts, got path {self.path}"
            )
        if not table and (self.column is not None or self.index is not None):
            raise ValueError(
                f"column, index: are for tables ({', '.join(TABLES)}), got path {self.path}; leave them out"
            )
        if not 1 <= self.ngram_range[0] <= self.ngram_range[1]:
            raise ValueError(f"ngram_range: got {list(self.ngram_range)}, expected two numbers from 1, the lower first")
        for name, value in (("min_df", self.min_df), ("max_df", self.max_df)):
            if isinstance(value, float) and value > 1:
                raise ValueError(f"{name}: got {value}, expected a share up to 1.0, or a whole number of documents")
        limits = (self.min_df, self.max_df, self.max_features)
        if self.vocabulary is not None and limits != (1, 1.0, None):
            raise ValueError("vocabulary: settles the features; leave out min_df, max_df and max_features")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding: got {self.encoding!r}, expected a name such as utf-8 or latin-1") from None
        return self

    def settled(self) -> Self:
        if self.vocabulary is not None:
            return self
        words = os.path.join(self._converted(), VOCABULARY)
        return self.model_copy(update={"vocabulary": words, "min_df": 1, "max_df": 1.0, "max_features": None})

    def open(self) -> TextCounts:
        place = ZarrPlace(self._converted(), {}, "error")
        words = os.path.join(str(place), VOCABULARY)
        if not self.tf_idf:
            return TextCounts(place, place.open_first(), words, True)
        return TfIdf(place, place.open_first(), words, self._own() or str(place))

    def _own(self) -> str | None:
        """The store that the vocabulary was found with; None where there is none, or where the words are the user's."""
        folder, name = os.path.split(self.vocabulary or "")
        return folder if name == VOCABULARY and made_from(folder, {"encoding-type": "csr_matrix"}) else None

    def _converted(self) -> str:
        """Path of the store of these counts, which is written if it is not there."""
        files, whole = text_files(self.path, self.storage_options)
        size, digest = fingerprint(files, self.storage_options)
        options = self.model_dump(include={"column", "index", "encoding", *_ANALYSIS}, mode="json")
        identity = {"source-bytes": size, "source-sha256": digest, "analysis": json.dumps(options, sort_keys=True)}
        if (own := self._own()) is not None and made_from(own, identity):
            return own
        known = None if self.vocabulary is None else _words(self.vocabulary)
        limits = Limits(self.min_df, self.max_df, self.max_features)
        chosen = repr(limits) if known is None else hashlib.sha256("\n".join(known).encode()).hexdigest()
        identity["features"] = chosen
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.cache or os.path.dirname(self.path.rstrip("/"))
        store = os.path.join(folder, f"{os.path.basename(self.path.rstrip('/')).replace('*', '_')}.{name}.csr.zarr")
        if made_from(store, identity):
            return store
        analyze = analyzer({each: getattr(self, each) for each in _ANALYSIS})

        def fill(part: Path, group: Any) -> Sizes:
            texts = texts_in(self.path, files, whole, self.column, self.index, self.encoding, self.storage_options)
            counted = Counted.of(texts, analyze, part, known)
            order = (
                limits.kept(counted.words, counted.documents, counted.counts, counted.n_documents)
                if known is None
                else np.arange(len(known))
            )
            sizes = counted.sizes(order)
            if not sizes.entries:
                raise InputError(
                    f"{self.path}: {counted.n_documents} documents have {len(counted.words)} words, and none stays, expected at least one. "
                    "Correct data.path, or set data.token_pattern, data.min_df, data.max_df or data.vocabulary so that some do."
                )
            words = [counted.words[i] for i in order]
            if odd := next((word for word in words if "\n" in word or "\r" in word), None):
                raise InputError(
                    f"data.token_pattern: makes the word {odd!r}, expected none with a line break. Correct it."
                )
            write_triples(group, counted.triples(order), sizes, self.path)
            (part / VOCABULARY).write_text("\n".join(words) + "\n", encoding="utf-8", newline="\n")
            counted.clear()
            return sizes

        convert(beside(self.path.rstrip("/"), self.cache) / os.path.basename(store), identity, fill)
        return store


_ANALYSIS = ("lowercase", "token_pattern", "stop_words", "ngram_range")


def _words(path: str) -> list[str]:
    try:
        words = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.vocabulary: {path} cannot be read as UTF-8 text ({error}). Restore it, or run again without it."
        ) from error
    words = [word.rstrip("\r") for word in (words if words[-1] else words[:-1])]
    if len(set(words)) < len(words) or not words:
        raise InputError(
            f"data.vocabulary: {path} has no word, or one twice, expected each once, one a line. Correct it."
        )
    return words


class TextCounts(CsrSource):
    """Counts of words in texts, with the names of these."""

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the name of each document, where they have names."""
        with (Path(str(self._place)) / DOCUMENTS).open(encoding="utf-8", newline="\n") as lines:
            names = [line.rstrip("\n") for line in islice(lines, start, stop)]
        return {"document": np.array(names, object)} if names else {}


class TfIdf(TextCounts):
    """Counts times ln((1 + n) / (1 + n_w)) + 1, n_w of n documents with the word, in rows of length 1.

    store : of the texts that these documents are counted in: those of the run, also for other texts.
    """

    def __init__(self, place: ZarrPlace, group: Any, vocabulary: str, store: str) -> None:
        super().__init__(place, group, vocabulary, True)
        self.dtype, self._store = np.dtype(np.float64), store

    def read(self, i: int) -> csr_array:
        rows = super().read(i)
        data = rows.data * _inverse_frequencies(self._store)[rows.indices]
        length = np.sqrt(np.bincount(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), data**2, rows.shape[0]))
        rows.data = data / np.repeat(length, np.diff(rows.indptr))
        return rows

    def decoding(self) -> tuple[int, str]:
        """Return also the frequencies, and how many documents have each word, and two copies of a chunk's values in turn."""
        n_bytes, advice = super().decoding()
        return n_bytes + 16 * self.n_features + 2 * TARGET_BYTES, advice


@lru_cache(maxsize=2)
def _inverse_frequencies(store: str) -> np.ndarray:
    """Inverse document frequencies of the words in a store of counts, (d,) float64, from one read of its indices a process."""
    place = ZarrPlace(store, {}, "error")
    group = place.open_first()
    n, d = group.attrs["shape"]
    documents, indices = np.zeros(d, np.int64), place.child("indices")
    for start in range(0, group["indices"].shape[0], _INDICES):
        part = indices.read(start, min(start + _INDICES, group["indices"].shape[0]))
        documents += np.bincount(part, minlength=d)
    return np.log((1 + n) / (1 + documents)) + 1.0
