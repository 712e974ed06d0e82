"""How good labels are: by distances to the centres, and by agreement with labels that are known.

From labels.zarr and the centres alone, in one pass over it. Distances are to the centres of the model: where these are the means of
their rows, as after K-means has converged, the indices are those of scikit-learn.

References
----------
Hubert and Arabie (1985): the adjusted Rand index; Strehl and Ghosh (2002): normalized mutual information.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.stores import open_group
from pipeline.data.column import Column
from pipeline.data.grid import FlatRows
from pipeline.errors import InputError
from pipeline.models.separation import Separation

_ROWS = 2**20  # of labels at a time
_MOST_CLASSES = 2**12
_CELLS = 2500  # of the table of labels against classes that is stored


def measures(group: Any, centers: Array | None, truth: Column | None) -> dict[str, float]:
    """Return measures of complete labels, by name; of rows without a label or class nothing is said.

    Parameters
    ----------
    group : zarr.Group
        Of labels.zarr.
    centers : array, shape (k, d), or None
        Where the labels are those of K-means, whose squared distances are stored.
    truth : Column or None
        The class of each row, -1 where it is not known.

    Raises
    ------
    InputError
        For classes that are no whole numbers from -1, or too many.
    """
    if "label" not in group:
        return {}
    found: dict[str, Any] = {} if centers is None else _by_distance(group, centers)
    return found if truth is None else found | agreement(*_crossed(FlatRows(group["label"]), truth))


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


def _by_distance(group: Any, centers: Array) -> dict[str, float]:
    label, squared = FlatRows(group["label"]), FlatRows(group["squared_distance"])
    silhouette = FlatRows(group["silhouette"]) if "silhouette" in group else None

    def of(rows: slice) -> Separation:
        own, each = label[rows], None if silhouette is None else silhouette[rows]
        seen = own >= 0
        return Separation.of(own[seen], squared[rows][seen], len(centers), None if each is None else each[seen])

    return reduce(operator.add, map(of, _blocks(label.shape[0]))).measures(centers)


def _crossed(label: FlatRows, truth: Column) -> tuple[Array, Array, Array]:
    """Labels and classes that occur, and how many rows have each of both, (n_labels, n_classes)."""
    pairs, counts = np.empty((0, 2), np.int64), np.empty(0, np.int64)
    for rows in _blocks(label.shape[0]):
        own, values = label[rows], truth.read(rows.start, rows.stop)
        known = np.asarray(values, np.float64)
        wrong = (known % 1 != 0) | (known < -1)  # NaN too
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"data.labels_true: row {rows.start + at} has {values[at]}, expected a whole number from 0, or -1 where it is not "
                "known. Correct it."
            )
        seen = (own != -1) & (known >= 0)
        block = np.stack([own[seen].astype(np.int64), known[seen].astype(np.int64)], axis=1)
        block, many = np.unique(block, axis=0, return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, block]), axis=0, return_inverse=True)
        counts = np.bincount(place.reshape(-1), np.concatenate([counts, many]), len(pairs)).astype(np.int64)
        if len(np.unique(pairs[:, 1])) > _MOST_CLASSES:
            raise InputError(
                f"data.labels_true: has more than {_MOST_CLASSES} classes, expected fewer. Give the column of classes, or leave it out."
            )
    labels, row = np.unique(pairs[:, 0], return_inverse=True)
    classes, column = np.unique(pairs[:, 1], return_inverse=True)
    table = np.zeros((len(labels), len(classes)), np.int64)
    table[row.reshape(-1), column.reshape(-1)] = counts
    return labels, classes, table


def agreement(labels: Array, classes: Array, table: Array) -> dict[str, Any]:
    """Return the measures of a table of rows by label and class; empty without rows.

    Returns
    -------
    dict
        adjusted_rand, normalized_mutual_information, purity; matched: the share of rows whose label is the one that stands for their
        class, when each label stands for one class at most so that this is largest; if it is small, the table, with labels in that order.
    """
    n = int(table.sum())
    if not n:
        return {}
    rows, columns = table.sum(axis=1).astype(np.float64), table.sum(axis=0).astype(np.float64)
    together = float(np.square(table.astype(np.float64)).sum())
    # Pairs of rows that are together in both, in one alone, and in neither.
    both = together - n
    label_only, class_only = float(np.square(rows).sum()) - together, float(np.square(columns).sum()) - together
    neither = float(n) ** 2 - n - both - label_only - class_only
    if label_only == 0 and class_only == 0:
        rand = 1.0
    else:
        below = (both + class_only) * (class_only + neither) + (both + label_only) * (label_only + neither)
        rand = 2.0 * (both * neither - class_only * label_only) / below
    share = table[table > 0] / n
    expected = (rows[:, None] * columns / float(n) ** 2)[table > 0]
    mutual = max(0.0, float((share * np.log(share / expected)).sum()))
    entropies = [-float((each / n) @ np.log(each / n)) for each in (rows, columns)]
    mean = sum(entropies) / 2
    single = len(labels) == len(classes) == 1
    from scipy.optimize import linear_sum_assignment

    of_label, of_class = linear_sum_assignment(-table)
    order = [*of_label[np.argsort(of_class)], *(i for i in range(len(labels)) if i not in set(of_label.tolist()))]
    found: dict[str, Any] = {
        "adjusted_rand": rand,
        "normalized_mutual_information": 1.0 if single else mutual / mean if mutual > np.finfo(float).eps else 0.0,
        "purity": float(table.max(axis=1).sum() / n),
        "matched": float(table[of_label, of_class].sum() / n),
        "rows_with_class": n,
    }
    if table.size <= _CELLS:
        found["confusion"] = {
            "labels": labels[order].tolist(),
            "classes": classes.tolist(),
            "rows": table[order].tolist(),
        }
    return found


def measures_of(path: Path) -> dict[str, Any]:
    """Return what the labels.zarr of a directory says of its labels; empty without."""
    try:
        return dict(open_group(path / "labels.zarr").attrs.get("measures", {}))  # type: ignore[arg-type]  # JSON
    except Exception:  # no labels, or unreadable ones: the report has the rest
        return {}
