"""Components of word counts as topics: their most probable words.

Words are ranked by probability p(w|k); lift is p(w|k) / p(w), relative to all counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.outputs.report.record import Record

WORDS = 10


@dataclass(frozen=True)
class Word:
    """One word of a topic; `bar` is its probability as a share of the topic's largest."""

    text: str
    probability: float
    lift: float
    bar: float


@dataclass(frozen=True)
class Topic:
    """One component."""

    component: int
    share: float
    words: list[Word]
    rows: list[int]


def topics(record: Record) -> list[Topic]:
    """Return every component with its most probable words, in stored order."""
    theta = np.exp(_log_probabilities(record))
    overall = _overall(record, theta)
    vocabulary = record.attrs.get("vocabulary") or []
    result = []
    for k in range(record.k):
        top = np.argsort(-theta[k], kind="stable")[:WORDS]
        peak = theta[k, top[0]]
        words = [
            Word(
                word(vocabulary, w),
                float(theta[k, w]),
                float(theta[k, w] / overall[w]),
                float(theta[k, w] / peak),
            )
            for w in top
        ]
        rows = [int(row) for row in record.representatives[k] if row >= 0]
        result.append(Topic(k, float(record.weights[k]), words, rows))
    return result


def likeliest(record: Record, components: Sequence[int], words: int) -> list[list[str]]:
    """Return the most probable words of some components, in decreasing order."""
    vocabulary = record.attrs.get("vocabulary") or []
    top = np.argsort(-_log_probabilities(record)[list(components)], axis=1, kind="stable")[:, :words]
    return [[word(vocabulary, w) for w in line] for line in top]


def word(vocabulary: Sequence[str], w: int) -> str:
    """Return a word by its number; without a vocabulary, the number."""
    return str(vocabulary[w]) if w < len(vocabulary) else f"word {w}"


def _log_probabilities(record: Record) -> np.ndarray:
    assert record.log_probabilities is not None
    return record.array(record.log_probabilities)


def _overall(record: Record, theta: np.ndarray) -> np.ndarray:
    """Share of each word in all counts, (d,); without a stored data mean, that which the mixture expects."""
    counts = np.asarray(record.attrs.get("data_mean") or [], dtype=float)
    overall = counts / counts.sum() if counts.shape == theta.shape[1:] and counts.sum() > 0 else record.weights @ theta
    # A word that never occurs has a prior probability only: a lift of 1 would be a guess, a division by 0 an error.
    return np.asarray(np.where(overall > 0, overall, np.inf))
